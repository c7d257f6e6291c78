"""UUIDv7 identifiers: made by the client, ordered by time (RFC 9562, section 5.7)."""

from __future__ import annotations

import os
from uuid import UUID

_RANDOM_BITS = 74
_RANDOM_MASK = (1 << _RANDOM_BITS) - 1
_MAX_MILLISECONDS = (1 << 48) - 1


class IdFactory:
    """
    Makes UUIDv7 values that grow strictly as long as the clock does not go back.

    Within one millisecond the random part of the id before is counted up (RFC 9562, section 6.2, method 2).
    """

    def __init__(self) -> None:
        """Start with a fresh random part."""
        self._milliseconds = -1
        self._random = 0

    def new(self, seconds: float) -> UUID:
        """Return the next id for an event at *seconds* since 1970."""
        milliseconds = min(max(int(seconds * 1000), 0), _MAX_MILLISECONDS)
        if milliseconds == self._milliseconds and self._random < _RANDOM_MASK:
            self._random += 1
        else:
            self._milliseconds = milliseconds
            # The top bit starts at zero, which leaves room to count up.
            self._random = int.from_bytes(os.urandom(10), "big") & (_RANDOM_MASK >> 1)
        return _uuid7(milliseconds, self._random)


def _uuid7(milliseconds: int, random: int) -> UUID:
    high, low = random >> 62, random & ((1 << 62) - 1)
    return UUID(int=milliseconds << 80 | 7 << 76 | high << 64 | 2 << 62 | low)

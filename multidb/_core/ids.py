"""UUIDv7 identifiers: made by the client, ordered by time (RFC 9562, section 5.7)."""

from __future__ import annotations

import os
from typing import Final
from uuid import UUID, SafeUUID

_MAX_MILLISECONDS: Final = (1 << 48) - 1
_VERSION: Final = 7 << 76
_VARIANT: Final = 2 << 62
_HIGH_MASK: Final = (1 << 12) - 1
# The top bit starts at zero, which leaves room to count up: for 73,000 years at a million ids a second.
_LOW_MASK: Final = (1 << 61) - 1

# A UUID refuses assignments, and its constructor takes three times as long: it looks at nine ways to be called.
_set_int: Final = UUID.__dict__["int"].__set__
_set_is_safe: Final = UUID.__dict__["is_safe"].__set__
_UNKNOWN: Final = SafeUUID.unknown


class IdFactory:
    """
    Makes UUIDv7 values that grow strictly as long as the clock does not go back.

    Within one millisecond the random part of the id before is counted up (RFC 9562, section 6.2, method 2).
    """

    def __init__(self) -> None:
        """Start with a fresh random part."""
        self._milliseconds = -1
        self._last = 0

    def new(self, seconds: float) -> UUID:
        """Return the next id for an event at *seconds* since 1970."""
        milliseconds = int(seconds * 1000)
        if not 0 <= milliseconds <= _MAX_MILLISECONDS:
            milliseconds = 0 if milliseconds < 0 else _MAX_MILLISECONDS
        if milliseconds == self._milliseconds:
            self._last += 1
        else:
            self._milliseconds = milliseconds
            self._last = _first(milliseconds)
        return uuid_of(self._last)


def _first(milliseconds: int) -> int:
    random = int.from_bytes(os.urandom(10), "big")
    high, low = random >> 64 & _HIGH_MASK, random & _LOW_MASK
    return milliseconds << 80 | _VERSION | high << 64 | _VARIANT | low


def uuid_of(number: int) -> UUID:
    """Return `UUID(int=number)` for a number that is known to have at most 128 bits."""
    uuid: UUID = object.__new__(UUID)
    _set_int(uuid, number)
    _set_is_safe(uuid, _UNKNOWN)
    return uuid

"""What a state backend has to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multidb.errors import ConflictError


class Keep(Enum):
    """The type of KEEP."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP
"""As `expire_seconds`: leave the life span of what is stored as it is."""


# Key and Entry are made by every call, and a frozen dataclass takes three times as long to make. Treat them as frozen.
@dataclass(slots=True, unsafe_hash=True)
class Key:
    """Names one thing of one user, or a global one where *user_id* is None. Each kind of thing has keys of its own."""

    user_id: str | None
    name: str


@dataclass(slots=True, unsafe_hash=True)
class Entry:
    """A value to store: canonical JSON and its life span in seconds; None: until it is deleted."""

    key: Key
    value: bytes
    expire_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Merge:
    """Top-level fields (name to canonical JSON) to put into a stored dict. What is absent counts as an empty dict."""

    key: Key
    changes: Mapping[str, bytes]
    expire_seconds: float | None | Keep
    max_bytes: int
    """A merge that would make the value larger is a conflict."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A cooldown to claim for *seconds*."""

    key: Key
    seconds: float


@dataclass(frozen=True, slots=True)
class Increment:
    """An amount to add to a counter. *expire_seconds* counts from the first increment; later ones leave it alone."""

    key: Key
    amount: int
    expire_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Push:
    """An item (canonical JSON) for the end of a list, which then keeps its newest *max_length* items."""

    key: Key
    item: bytes
    max_length: int | None = None


class StateBackend(Protocol):
    """
    Small values with a life span; cooldowns, counters and lists beside them, each kind in a key space of its own.

    Gets arguments already checked. Raises only `multidb.errors.BackendError` and its children. Every call is one atomic
    step per element. Life spans are kept to the millisecond; nothing expired is ever returned or counted. Values are
    canonical JSON (keys sorted, no spaces), and what comes back is canonical too.
    """

    @property
    def name(self) -> str:
        """A short constant name for metrics and errors, such as `redis`."""
        ...

    async def open(self) -> None:
        """Get ready. Called once, after its engine is open."""
        ...

    async def close(self) -> None:
        """Release what `open()` took. Called once, before its engine closes."""
        ...

    async def set(self, entries: Sequence[Entry], /) -> None:
        """Store *entries* over what was there, life span included."""
        ...

    async def get(self, keys: Sequence[Key], /) -> list[bytes | None]:
        """Return the values, None where there is none."""
        ...

    async def merge(self, merges: Sequence[Merge], /) -> list[bytes | ConflictError]:
        """Put fields into stored dicts; return each dict as it is now. Where no dict is stored: a conflict."""
        ...

    async def compare_and_set(
        self, key: Key, expected: bytes, value: bytes, expire_seconds: float | None | Keep, /
    ) -> bool:
        """Store *value* if *expected* is stored, byte for byte (absent counts as `null`); return whether it was."""
        ...

    async def touch(self, key: Key, expire_seconds: float | None, /) -> bool:
        """Give a value a new life span from now; return whether there was one."""
        ...

    async def delete(self, keys: Sequence[Key], /) -> list[bool]:
        """Delete values; return for each whether there was one."""
        ...

    async def get_all(self, user_id: str | None, /) -> dict[str, bytes]:
        """Return all values of a user by name, in no particular order. Its cost grows with that user's keys only."""
        ...

    async def clear(self, user_id: str | None, /) -> int:
        """Delete all values of a user, not the cooldowns, counters, lists; return how many. Cost as `get_all()`."""
        ...

    async def claim(self, claims: Sequence[Claim], /) -> list[bool]:
        """Start each cooldown that is not running; return for each whether this call started it."""
        ...

    async def set_cooldown(self, claim: Claim, /) -> None:
        """Start a cooldown, or start it anew."""
        ...

    async def cooldown(self, key: Key, /) -> float | None:
        """Return the seconds a cooldown still runs, None when it does not."""
        ...

    async def clear_cooldown(self, key: Key, /) -> bool:
        """End a cooldown; return whether it was running."""
        ...

    async def increment(self, increments: Sequence[Increment], /) -> list[int | ConflictError]:
        """Add to counters, which start at 0; return the new values. Leaving 64 bits is a conflict."""
        ...

    async def counter(self, key: Key, /) -> int:
        """Return a counter's value, 0 where there is none."""
        ...

    async def reset_counter(self, key: Key, /) -> bool:
        """Delete a counter; return whether there was one."""
        ...

    async def push(self, pushes: Sequence[Push], /) -> list[int]:
        """Append to lists; return each list's length after it."""
        ...

    async def items(self, key: Key, /) -> list[bytes]:
        """Return a list's items, oldest first."""
        ...

    async def delete_list(self, key: Key, /) -> bool:
        """Delete a list; return whether there was one."""
        ...


__all__ = [
    "KEEP", "Claim", "Entry", "Increment", "Keep", "Key", "Merge", "Push", "StateBackend",
]  # fmt: skip

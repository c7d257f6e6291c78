"""State in this process; with a folder in a journal, too, from which a restart takes what has not expired."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar

from orjson import Fragment

from multidb._core.values import MAX_INT, MIN_INT, dump, load
from multidb.errors import ConflictError
from multidb.state.backends._journal import LOCK_SECONDS
from multidb.state.backends._shared import SharedTables
from multidb.state.backends._tables import (
    COOLDOWN,
    COUNTER,
    LIST,
    NEVER,
    PRUNED_AT_ONCE,
    VALUE,
    Tables,
    deadline_after,
    items_of,
    microseconds,
)
from multidb.state.protocol import KEEP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from multidb._core.clock import Clock
    from multidb.state.backends._records import Recorder
    from multidb.state.backends._tables import Row
    from multidb.state.protocol import Claim, Entry, Increment, Keep, Key, Merge, Push

R = TypeVar("R")

# What a step changes: the tables themselves, or through a recorder where there is a journal.
_Tables: TypeAlias = "Tables | Recorder"

_NULL = b"null"


class MemoryStateBackend:
    """
    State in dicts. Every call looks at it and changes it in one step without an await, so it is atomic.

    Life spans end at a time of *clock*, to the microsecond. Nothing returns the dead; writes free the memory.

    With a *folder* every write is in a journal there before the call returns. As with Redis and its setting
    `appendfsync everysec` an acknowledged write survives the process, however that ends, and a power cut may
    take those of the last second or two. Several processes may use the folder at once: writes take turns by a
    lock, and every call first reads what others wrote. A write that the disk has no room for is an
    OverloadedError, and changes nothing. Who waits longer than *timeout_seconds* for other processes gets a
    BackendTimeoutError, and nothing is changed.
    """

    def __init__(
        self, *, clock: Clock, folder: Path | None = None, timeout_seconds: float = LOCK_SECONDS
    ) -> None:
        """Start empty; with a *folder*, `open()` creates it or loads what is there."""
        self._clock = clock
        self._tables = Tables()
        self._shared = SharedTables(folder, clock, timeout_seconds) if folder is not None else None

    @property
    def name(self) -> str:
        """`memory`, or `files` with a folder."""
        return "memory" if self._shared is None else "files"

    async def open(self) -> None:
        """Load what is in the folder."""
        if self._shared is not None:
            await self._shared.open()

    async def close(self) -> None:
        """Make everything durable."""
        if self._shared is not None:
            await self._shared.close()

    async def _read(self, look: Callable[[Tables, int], R]) -> R:
        if self._shared is not None:
            return await self._shared.read(look)
        return look(self._tables, microseconds(self._clock))

    async def _write(self, step: Callable[[_Tables, int], R]) -> R:
        if self._shared is not None:
            return await self._shared.write(step)
        now = microseconds(self._clock)
        self._tables.prune(now, PRUNED_AT_ONCE)
        return step(self._tables, now)

    async def set(self, entries: Sequence[Entry], /) -> None:
        """Store *entries* over what was there, life span included."""
        if self._shared is not None:
            await self._shared.write(lambda tables, now: _put(tables, entries, now))
            return
        now = microseconds(self._clock)
        self._tables.prune(now, PRUNED_AT_ONCE)
        _put(self._tables, entries, now)

    async def get(self, keys: Sequence[Key], /) -> list[bytes | None]:
        """Return the values, None where there is none."""
        if self._shared is not None:
            return await self._shared.read(lambda tables, now: _values(tables, keys, now))
        return _values(self._tables, keys, microseconds(self._clock))

    async def merge(self, merges: Sequence[Merge], /) -> list[bytes | ConflictError]:
        """Put fields into stored dicts; return each as it is now. Something else stored is a conflict."""
        return await self._write(lambda tables, now: [_merge(tables, merge, now) for merge in merges])

    async def compare_and_set(
        self, key: Key, expected: bytes, value: bytes, expire_seconds: float | Keep | None, /
    ) -> bool:
        """Store *value* if *expected* is stored, byte for byte (absent: `null`); return whether it was."""

        def step(tables: _Tables, now: int) -> bool:
            row = _find(tables, VALUE, key, now)
            if expected != (row[0] if row is not None else _NULL):
                return False
            tables.put(VALUE, key.user_id or "", key.name, value, _deadline(row, expire_seconds, now))
            return True

        return await self._write(step)

    async def touch(self, key: Key, expire_seconds: float | None, /) -> bool:
        """Give a value a new life span from now; return whether there was one."""

        def step(tables: _Tables, now: int) -> bool:
            if _find(tables, VALUE, key, now) is None:
                return False
            tables.touch(key.user_id or "", key.name, deadline_after(now, expire_seconds))
            return True

        return await self._write(step)

    async def delete(self, keys: Sequence[Key], /) -> list[bool]:
        """Delete values; return for each whether there was one."""
        return await self._write(lambda tables, now: [_remove(tables, VALUE, key, now) for key in keys])

    async def get_all(self, user_id: str | None, /) -> dict[str, bytes]:
        """Return all values of a user by their names."""
        return await self._read(lambda tables, now: tables.of_user(VALUE, user_id or "", now))

    async def clear(self, user_id: str | None, /) -> int:
        """Delete all values of a user (not the cooldowns, counters, lists); return how many."""

        def step(tables: _Tables, now: int) -> int:
            names = tables.of_user(VALUE, user_id or "", now)
            for name in names:
                tables.remove(VALUE, user_id or "", name)
            return len(names)

        return await self._write(step)

    async def claim(self, claims: Sequence[Claim], /) -> list[bool]:
        """Start each cooldown that is not running; return for each whether this call started it."""
        return await self._write(lambda tables, now: [_claim(tables, claim, now) for claim in claims])

    async def set_cooldown(self, claim: Claim, /) -> None:
        """Start a cooldown, or start it anew."""
        await self._write(lambda tables, now: _start(tables, claim, now))

    async def cooldown(self, key: Key, /) -> float | None:
        """Return the seconds a cooldown still runs, None when it does not."""

        def look(tables: Tables, now: int) -> float | None:
            row = _find(tables, COOLDOWN, key, now)
            return (row[1] - now) / 1_000_000 if row is not None else None

        return await self._read(look)

    async def clear_cooldown(self, key: Key, /) -> bool:
        """End a cooldown; return whether it was running."""
        return await self._write(lambda tables, now: _remove(tables, COOLDOWN, key, now))

    async def increment(self, increments: Sequence[Increment], /) -> list[int | ConflictError]:
        """Add to counters, which start at 0; return the new values. Leaving 64 bits is a conflict."""
        return await self._write(lambda tables, now: [_increment(tables, each, now) for each in increments])

    async def counter(self, key: Key, /) -> int:
        """Return a counter's value, 0 where there is none."""

        def look(tables: Tables, now: int) -> int:
            row = _find(tables, COUNTER, key, now)
            return row[0] if row is not None else 0

        return await self._read(look)

    async def reset_counter(self, key: Key, /) -> bool:
        """Delete a counter; return whether there was one."""
        return await self._write(lambda tables, now: _remove(tables, COUNTER, key, now))

    async def push(self, pushes: Sequence[Push], /) -> list[int]:
        """Append to lists; return each list's length after it."""

        def step(tables: _Tables, _now: int) -> list[int]:
            return [
                tables.push(each.key.user_id or "", each.key.name, each.item, each.max_length)
                for each in pushes
            ]

        return await self._write(step)

    async def items(self, key: Key, /) -> list[bytes]:
        """Return a list's items, oldest first."""

        def look(tables: Tables, now: int) -> list[bytes]:
            row = _find(tables, LIST, key, now)
            return items_of(row[0]) if row is not None else []

        return await self._read(look)

    async def delete_list(self, key: Key, /) -> bool:
        """Delete a list; return whether there was one."""
        return await self._write(lambda tables, now: _remove(tables, LIST, key, now))


def _put(tables: _Tables, entries: Sequence[Entry], now: int) -> None:
    for entry in entries:
        key = entry.key
        tables.put(VALUE, key.user_id or "", key.name, entry.value, deadline_after(now, entry.expire_seconds))


def _values(tables: Tables, keys: Sequence[Key], now: int) -> list[bytes | None]:
    rows = [tables.find(VALUE, key.user_id or "", key.name, now) for key in keys]
    return [row[0] if row is not None else None for row in rows]


def _find(tables: _Tables, kind: str, key: Key, now: int) -> Row | None:
    return tables.find(kind, key.user_id or "", key.name, now)


def _remove(tables: _Tables, kind: str, key: Key, now: int) -> bool:
    there = _find(tables, kind, key, now) is not None
    if there:
        tables.remove(kind, key.user_id or "", key.name)
    return there


def _deadline(row: Row | None, expire_seconds: float | Keep | None, now: int) -> int:
    if expire_seconds is KEEP:
        return row[1] if row is not None else NEVER
    return deadline_after(now, expire_seconds)


def _merge(tables: _Tables, merge: Merge, now: int) -> bytes | ConflictError:
    row = _find(tables, VALUE, merge.key, now)
    stored = load(row[0]) if row is not None else {}
    if type(stored) is not dict:
        return ConflictError("what is stored is not a dict")
    stored |= {name: Fragment(value) for name, value in merge.changes.items()}
    merged = dump(stored)
    if len(merged) > merge.max_bytes:
        return ConflictError("the dict would become larger than a value may be")
    deadline = _deadline(row, merge.expire_seconds, now)
    tables.put(VALUE, merge.key.user_id or "", merge.key.name, merged, deadline)
    return merged


def _claim(tables: _Tables, claim: Claim, now: int) -> bool:
    free = _find(tables, COOLDOWN, claim.key, now) is None
    if free:
        _start(tables, claim, now)
    return free


def _start(tables: _Tables, claim: Claim, now: int) -> None:
    deadline = deadline_after(now, claim.seconds)
    tables.put(COOLDOWN, claim.key.user_id or "", claim.key.name, None, deadline)


def _increment(tables: _Tables, increment: Increment, now: int) -> int | ConflictError:
    key = increment.key
    row = _find(tables, COUNTER, key, now)
    value: int = increment.amount + (row[0] if row is not None else 0)
    if not MIN_INT <= value <= MAX_INT:
        return ConflictError("the counter would leave 64 bits")
    deadline = row[1] if row is not None else deadline_after(now, increment.expire_seconds)
    tables.put(COUNTER, key.user_id or "", key.name, value, deadline)
    return value

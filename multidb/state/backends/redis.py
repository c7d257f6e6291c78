"""State on Redis or Valkey: plain JSON in string keys, and an index of names for each user."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote_to_bytes

from multidb._core.values import dump
from multidb.engines.redis import Script
from multidb.errors import ConflictError
from multidb.state.protocol import KEEP

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from multidb.engines.redis import Command, RedisEngine
    from multidb.state.protocol import Claim, Entry, Increment, Keep, Key, Merge, Push

_LUA: Final = files("multidb.state.backends") / "lua"


def _script(name: str, *, index: bool = True, weighty: int = 0) -> Script:
    parts = ("index", name) if index else (name,)
    source = "\n".join((_LUA / f"{part}.lua").read_text("utf-8") for part in parts)
    return Script(source, weighty=weighty)


_SET: Final = _script("set", weighty=5)  # The value: see `_on_value()`.
_MERGE: Final = _script("merge")
_COMPARE_AND_SET: Final = _script("compare_and_set")
_TOUCH: Final = _script("touch")
_DELETE: Final = _script("delete")
_GET_ALL: Final = _script("get_all")
_CLEAR: Final = _script("clear", index=False)
_INCREMENT: Final = _script("increment", index=False)
_PUSH: Final = _script("push", index=False)

_SCRIPTS: Final = (_SET, _MERGE, _COMPARE_AND_SET, _TOUCH, _DELETE, _GET_ALL, _CLEAR, _INCREMENT, _PUSH)

_NO_DICT: Final = b"dict"
_TOO_LARGE: Final = b"size"


class RedisStateBackend:
    """
    Keeps a value as JSON in the key `prefix:{u:user}:v:name`, a global one in `prefix:{g}:v:name`.

    `:c:` are cooldowns, `:n:` counters, `:l:` lists; `prefix:{u:user}:i` is the index of a user's values.
    Users and names are percent-encoded: no two things share a key, and all keys of a user share a slot. The
    server must not evict keys (`maxmemory-policy noeviction`, its default): it knows nothing of the index.
    """

    name: Final = "redis"

    def __init__(self, engine: RedisEngine, *, prefix: str = "multidb") -> None:
        """Work on *engine*, which is opened and closed by others, under keys that start with *prefix*."""
        self._engine = engine
        self._prefix = quote(prefix, safe="")
        engine.prepare(*_SCRIPTS)

    async def open(self) -> None:
        """Do nothing: the engine is open."""

    async def close(self) -> None:
        """Do nothing: the engine is closed by who opened it."""

    async def dangers(self) -> Sequence[str]:
        """Return what about the server's configuration endangers what it acknowledged."""
        return await self._engine.dangers()

    def set(self, entries: Sequence[Entry], /) -> Coroutine[Any, Any, Any]:
        """Store *entries* over what was there, life span included."""
        if len(entries) == 1:  # Neither a list nor a coroutine of its own: a lone value is what matters.
            return self._engine.run(self._set(entries[0]), writes=True)
        return self._engine.run_all([self._set(one) for one in entries], writes=True)

    def _set(self, entry: Entry) -> Command:
        return self._on_value(_SET, entry.key, entry.value, _span(entry.expire_seconds))

    async def get(self, keys: Sequence[Key], /) -> list[bytes | None]:
        """Return the values, None where there is none."""
        if len(keys) == 1:
            return [await self._engine.run(("GET", self._key(keys[0], "v")), writes=False)]
        names = [self._key(key, "v") for key in keys]
        if self._engine.is_cluster:
            return await self._engine.run_all([("GET", name) for name in names], writes=False, bulky=True)
        if not names:
            return []
        values: list[bytes | None] = await self._engine.run(("MGET", *names), writes=False, bulky=True)
        return values

    async def merge(self, merges: Sequence[Merge], /) -> list[bytes | ConflictError]:
        """Put fields into stored dicts; return each dict as it is now. What is no dict is a conflict."""
        replies = await self._engine.run_all([self._merge(one) for one in merges], writes=True)
        return [_merged(reply) for reply in replies]

    def _merge(self, merge: Merge) -> Command:
        fields = sorted((name.encode(), dump(name), value) for name, value in merge.changes.items())
        return self._on_value(
            _MERGE,
            merge.key,
            _span(merge.expire_seconds),
            merge.max_bytes,
            *(part for field in fields for part in field),
        )

    async def compare_and_set(
        self, key: Key, expected: bytes, value: bytes, expire_seconds: float | Keep | None, /
    ) -> bool:
        """Store *value* if *expected* is stored, absence counting as `null`; return whether it was."""
        command = self._on_value(_COMPARE_AND_SET, key, expected, value, _span(expire_seconds))
        return bool(await self._engine.run(command, writes=True))

    async def touch(self, key: Key, expire_seconds: float | None, /) -> bool:
        """Give a value a new life span from now; return whether there was one."""
        return bool(await self._engine.run(self._on_value(_TOUCH, key, _span(expire_seconds)), writes=True))

    async def delete(self, keys: Sequence[Key], /) -> list[bool]:
        """Delete values; return for each whether there was one."""
        deleted = await self._engine.run_all([self._on_value(_DELETE, key) for key in keys], writes=True)
        return [bool(one) for one in deleted]

    async def get_all(self, user_id: str | None, /) -> dict[str, bytes]:
        """Return all values of a user by their names; the cost grows with that user's keys only."""
        found = await self._engine.run(self._on_scope(_GET_ALL, user_id), writes=False, bulky=True)
        names = (unquote_to_bytes(name).decode() for name in found[::2])
        return dict(zip(names, found[1::2], strict=True))

    async def clear(self, user_id: str | None, /) -> int:
        """Delete all values of a user; return how many. Cost as for `get_all()`."""
        return int(await self._engine.run(self._on_scope(_CLEAR, user_id), writes=True))

    async def claim(self, claims: Sequence[Claim], /) -> list[bool]:
        """Start each cooldown that is not running; return for each whether this call started it."""
        started = await self._engine.run_all(
            [(*self._cooldown(claim), "NX") for claim in claims], writes=True
        )
        return [bool(one) for one in started]

    async def set_cooldown(self, claim: Claim, /) -> None:
        """Start a cooldown, or start it anew."""
        await self._engine.run(self._cooldown(claim), writes=True)

    def _cooldown(self, claim: Claim) -> Command:
        return ("SET", self._key(claim.key, "c"), b"1", "PX", _span(claim.seconds))

    async def cooldown(self, key: Key, /) -> float | None:
        """Return the seconds a cooldown still runs, None when it does not."""
        left: int = await self._engine.run(("PTTL", self._key(key, "c")), writes=False)
        if left >= 0:
            return max(left, 1) / 1000  # In its last millisecond it has 0 of them left and still runs.
        return math.inf if left == -1 else None

    async def clear_cooldown(self, key: Key, /) -> bool:
        """End a cooldown; return whether it was running."""
        return await self._remove(key, "c")

    async def increment(self, increments: Sequence[Increment], /) -> list[int | ConflictError]:
        """Add to counters, which start at 0; return the new values. Leaving 64 bits is a conflict."""
        replies = await self._engine.run_all([self._increment(one) for one in increments], writes=True)
        return [
            ConflictError("the counter would leave 64 bits") if reply is None else int(reply)
            for reply in replies
        ]

    def _increment(self, increment: Increment) -> Command:
        key = self._key(increment.key, "n")
        return (_INCREMENT, 1, key, increment.amount, _span(increment.expire_seconds))

    async def counter(self, key: Key, /) -> int:
        """Return a counter's value, 0 where there is none."""
        return int(await self._engine.run(("GET", self._key(key, "n")), writes=False) or 0)

    async def reset_counter(self, key: Key, /) -> bool:
        """Delete a counter; return whether there was one."""
        return await self._remove(key, "n")

    async def push(self, pushes: Sequence[Push], /) -> list[int]:
        """Append to lists; return each list's length after it."""
        commands: list[Command] = [
            (_PUSH, 1, self._key(one.key, "l"), one.item, "" if one.max_length is None else one.max_length)
            for one in pushes
        ]
        return await self._engine.run_all(commands, writes=True)

    async def items(self, key: Key, /) -> list[bytes]:
        """Return a list's items, oldest first."""
        found: list[bytes] = await self._engine.run(
            ("LRANGE", self._key(key, "l"), 0, -1), writes=False, bulky=True
        )
        return found

    async def delete_list(self, key: Key, /) -> bool:
        """Delete a list; return whether there was one."""
        return await self._remove(key, "l")

    async def _remove(self, key: Key, kind: str) -> bool:
        return bool(await self._engine.run(("DEL", self._key(key, kind)), writes=True))

    def _scope(self, user_id: str | None) -> str:
        return f"{self._prefix}:{{g}}" if user_id is None else f"{self._prefix}:{{u:{_quoted(user_id)}}}"

    def _key(self, key: Key, kind: str) -> str:
        return f"{self._scope(key.user_id)}:{kind}:{_quoted(key.name)}"

    def _on_value(self, script: Script, key: Key, *arguments: object) -> Command:
        """Return the call of a script that changes a value and its user's index."""
        scope, name = self._scope(key.user_id), _quoted(key.name)
        return (script, 2, f"{scope}:v:{name}", f"{scope}:i", name, *arguments)

    def _on_scope(self, script: Script, user_id: str | None) -> Command:
        """Return the call of a script that goes through a user's index."""
        scope = self._scope(user_id)
        return (script, 1, f"{scope}:i", f"{scope}:v:")


def _quoted(text: str) -> str:
    return text if text.isascii() and text.isalnum() else _percent_encoded(text)


@lru_cache(4096)
def _percent_encoded(text: str) -> str:
    return quote(text, safe="")


def _span(expire_seconds: float | Keep | None) -> int | str:
    """Return a life span as the scripts take it: whole milliseconds, rounded up so that it is never 0."""
    if expire_seconds is None:
        return ""
    if expire_seconds is KEEP:
        return "keep"
    milliseconds = expire_seconds * 1000.0
    # 1.1 * 1000 is 1100.0000000000002, which is not meant to be 1101.
    return int(milliseconds) if milliseconds.is_integer() else math.ceil(round(milliseconds, 3))


def _merged(reply: bytes) -> bytes | ConflictError:
    if reply == _NO_DICT:
        return ConflictError("what is stored is not a dict")
    if reply == _TOO_LARGE:
        return ConflictError("the dict would become larger than a value may be")
    return reply

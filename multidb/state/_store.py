"""StateStore: checks what it is given and makes one call to the backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from multidb._core import values
from multidb._core.operation import Operation
from multidb.errors import ConflictError, InvalidValueError
from multidb.state.protocol import KEEP, Claim, Entry, Increment, Keep, Key, Merge, Push, StateBackend

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from multidb._core.values import UserId
    from multidb.resilience.route import Route

_SET: Final = Operation("state", "set_state", writes=True)
_GET: Final = Operation("state", "get_state")
_UPDATE: Final = Operation("state", "update_state", writes=True)
_COMPARE_AND_SET: Final = Operation("state", "compare_and_set_state", writes=True)
_TOUCH: Final = Operation("state", "touch_state", writes=True)
_DELETE: Final = Operation("state", "delete_state", writes=True)
_GET_ALL: Final = Operation("state", "get_all_user_states")
_CLEAR: Final = Operation("state", "clear_state", writes=True)
# The same on what belongs to no user.
_GLOBAL: Final = {
    _SET: replace(_SET, name="set_global_state"),
    _GET: replace(_GET, name="get_global_state"),
    _UPDATE: replace(_UPDATE, name="update_global_state"),
    _COMPARE_AND_SET: replace(_COMPARE_AND_SET, name="compare_and_set_global_state"),
    _TOUCH: replace(_TOUCH, name="touch_global_state"),
    _DELETE: replace(_DELETE, name="delete_global_state"),
    _GET_ALL: replace(_GET_ALL, name="get_all_global_states"),
    _CLEAR: replace(_CLEAR, name="clear_global_state"),
}
_CLAIM: Final = Operation("state", "try_cooldown", writes=True)
_SET_COOLDOWN: Final = Operation("state", "set_cooldown", writes=True)
_CHECK_COOLDOWN: Final = Operation("state", "check_cooldown")
_CLEAR_COOLDOWN: Final = Operation("state", "clear_cooldown", writes=True)
_INCREMENT: Final = Operation("state", "increment_counter", writes=True)
_GET_COUNTER: Final = Operation("state", "get_counter")
_RESET_COUNTER: Final = Operation("state", "reset_counter", writes=True)
_PUSH: Final = Operation("state", "add_to_list", writes=True)
_GET_LIST: Final = Operation("state", "get_list")
_DELETE_LIST: Final = Operation("state", "delete_list", writes=True)


class StateStore:
    """
    Where things stand right now: small values with a life span, cooldowns, counters and lists, per user or global.

    Life spans are seconds, 0.001 to ten years, kept to the millisecond. What has expired is never returned.
    """

    def __init__(self, route: Route[StateBackend], *, max_state_bytes: int) -> None:
        """Work on the backend of *route*."""
        self._route = route
        self._max_bytes = max_state_bytes

    # Values of a user

    async def set_state(
        self,
        user_id: UserId,
        key: str,
        value: Any,
        *,
        expire_seconds: float | None = None,
    ) -> None:
        """
        Store *value* under *key*, for *expire_seconds*; None: until it is deleted.

        Raises InvalidArgumentError, InvalidValueError for a value that not every backend can keep, BackendError.
        """
        await self._set(_user_key(user_id, key), value, expire_seconds)

    async def get_state(self, user_id: UserId, key: str, default: Any = None) -> Any:
        """Return the value of *key*, equal to what was stored and of the same type; *default* when there is none."""
        return _loaded(await self._get(_user_key(user_id, key)), default)

    async def update_state(
        self,
        user_id: UserId,
        key: str,
        changes: Mapping[str, Any] | BaseModel,
        *,
        expire_seconds: float | None | Keep = KEEP,
    ) -> dict[str, Any]:
        """
        Put the top-level fields of *changes* into a stored dict, in one atomic step; return the dict as it is now.

        What is absent counts as an empty dict. KEEP leaves the life span as it is. Raises ConflictError when something
        that is no dict is stored.
        """
        return await self._update(_user_key(user_id, key), changes, expire_seconds)

    async def compare_and_set_state(
        self,
        user_id: UserId,
        key: str,
        expected: Any,
        value: Any,
        *,
        expire_seconds: float | None | Keep = KEEP,
    ) -> bool:
        """
        Store *value* if *expected* is stored, in one atomic step; return whether it was.

        Equal means equal with its type: 1 is not 1.0. *expected* None fits a stored None, and a key that is absent.
        """
        return await self._compare_and_set(_user_key(user_id, key), expected, value, expire_seconds)

    async def touch_state(self, user_id: UserId, key: str, expire_seconds: float | None) -> bool:
        """Give a value a new life span from now (None: no end); return whether there was one."""
        return await self._touch(_user_key(user_id, key), expire_seconds)

    async def delete_state(self, user_id: UserId, key: str) -> bool:
        """Delete a value; return whether there was one."""
        return await self._delete(_user_key(user_id, key))

    async def get_all_user_states(self, user_id: UserId) -> dict[str, Any]:
        """Return all values of a user, by key."""
        return await self._get_all(values.identifier(user_id, "user_id"))

    async def clear_state(self, user_id: UserId) -> int:
        """Delete all values of a user (not the cooldowns, counters and lists); return how many."""
        return await self._clear(values.identifier(user_id, "user_id"))

    # Global values

    async def set_global_state(self, key: str, value: Any, *, expire_seconds: float | None = None) -> None:
        """Store a value that belongs to no user; otherwise as `set_state()`."""
        await self._set(_global_key(key), value, expire_seconds)

    async def get_global_state(self, key: str, default: Any = None) -> Any:
        """Return a global value; otherwise as `get_state()`."""
        return _loaded(await self._get(_global_key(key)), default)

    async def update_global_state(
        self, key: str, changes: Mapping[str, Any] | BaseModel, *, expire_seconds: float | None | Keep = KEEP
    ) -> dict[str, Any]:
        """Put fields into a global dict; otherwise as `update_state()`."""
        return await self._update(_global_key(key), changes, expire_seconds)

    async def compare_and_set_global_state(
        self,
        key: str,
        expected: Any,
        value: Any,
        *,
        expire_seconds: float | None | Keep = KEEP,
    ) -> bool:
        """Store a global value if *expected* is stored; otherwise as `compare_and_set_state()`."""
        return await self._compare_and_set(_global_key(key), expected, value, expire_seconds)

    async def touch_global_state(self, key: str, expire_seconds: float | None) -> bool:
        """Give a global value a new life span; otherwise as `touch_state()`."""
        return await self._touch(_global_key(key), expire_seconds)

    async def delete_global_state(self, key: str) -> bool:
        """Delete a global value; return whether there was one."""
        return await self._delete(_global_key(key))

    async def get_all_global_states(self) -> dict[str, Any]:
        """Return all global values, by key."""
        return await self._get_all(None)

    async def clear_global_state(self) -> int:
        """Delete all global values; return how many."""
        return await self._clear(None)

    # Cooldowns

    async def try_cooldown(self, user_id: UserId, action: str, seconds: float) -> bool:
        """
        Start a cooldown unless it is running; return True when this call started it, so the action may go ahead.

        Of many callers at once exactly one gets True. Checking first and setting then would let several pass.
        """
        claim = Claim(_user_key(user_id, action, "action"), values.seconds(seconds, "seconds"))
        (claimed,) = await self._route.run(_CLAIM, lambda backend: backend.claim([claim]))
        return claimed

    async def set_cooldown(self, user_id: UserId, action: str, seconds: float) -> None:
        """Start a cooldown, or start it anew if it is running."""
        claim = Claim(_user_key(user_id, action, "action"), values.seconds(seconds, "seconds"))
        await self._route.run(_SET_COOLDOWN, lambda backend: backend.set_cooldown(claim))

    async def check_cooldown(self, user_id: UserId, action: str) -> float | None:
        """Return how many seconds a cooldown still runs, None when it does not. To act on it: `try_cooldown()`."""
        key = _user_key(user_id, action, "action")
        return await self._route.run(_CHECK_COOLDOWN, lambda backend: backend.cooldown(key))

    async def clear_cooldown(self, user_id: UserId, action: str) -> bool:
        """End a cooldown; return whether it was running."""
        key = _user_key(user_id, action, "action")
        return await self._route.run(_CLEAR_COOLDOWN, lambda backend: backend.clear_cooldown(key))

    # Counters

    async def increment_counter(
        self, user_id: UserId, counter: str, amount: int = 1, *, expire_seconds: float | None = None
    ) -> int:
        """
        Add *amount* to a counter, which starts at 0; return its new value.

        *expire_seconds* counts from the first increment, in the same atomic step; later ones do not prolong it.
        Raises ConflictError when the counter would leave 64 bits.
        """
        key = _user_key(user_id, counter, "counter")
        increment = Increment(key, values.whole_number(amount, "amount"), _optional_seconds(expire_seconds))
        (value,) = await self._route.run(_INCREMENT, lambda backend: backend.increment([increment]))
        if isinstance(value, ConflictError):
            raise value
        return value

    async def get_counter(self, user_id: UserId, counter: str) -> int:
        """Return a counter's value, 0 when there is none."""
        key = _user_key(user_id, counter, "counter")
        return await self._route.run(_GET_COUNTER, lambda backend: backend.counter(key))

    async def reset_counter(self, user_id: UserId, counter: str) -> bool:
        """Set a counter back to 0; return whether there was one."""
        key = _user_key(user_id, counter, "counter")
        return await self._route.run(_RESET_COUNTER, lambda backend: backend.reset_counter(key))

    # Lists

    async def add_to_list(
        self, user_id: UserId, name: str, item: Any, *, max_length: int | None = None
    ) -> int:
        """Append *item* to a list, which then keeps its newest *max_length* items; return its length."""
        if max_length is not None:
            values.whole_number(max_length, "max_length", 1)
        encoded = values.encode(item, "item", max_bytes=self._max_bytes)
        push = Push(_user_key(user_id, name, "name"), encoded, max_length)
        (length,) = await self._route.run(_PUSH, lambda backend: backend.push([push]))
        return length

    async def get_list(self, user_id: UserId, name: str) -> list[Any]:
        """Return a list's items, oldest first; an empty list when there is none."""
        key = _user_key(user_id, name, "name")
        return [
            values.load(item) for item in await self._route.run(_GET_LIST, lambda backend: backend.items(key))
        ]

    async def delete_list(self, user_id: UserId, name: str) -> bool:
        """Delete a list; return whether there was one."""
        key = _user_key(user_id, name, "name")
        return await self._route.run(_DELETE_LIST, lambda backend: backend.delete_list(key))

    # What users and the global scope share

    def _set(self, key: Key, value: object, expire_seconds: float | None) -> Coroutine[Any, Any, None]:
        # No coroutine of its own: each one between the caller and the driver costs as much as the JSON of a value.
        encoded = values.encode(value, "value", max_bytes=self._max_bytes)
        span = None if expire_seconds is None else values.seconds(expire_seconds, "expire_seconds")
        entries = (Entry(key, encoded, span),)
        return self._route.run(_of(_SET, key.user_id), lambda backend: backend.set(entries))

    def _get(self, key: Key) -> Coroutine[Any, Any, list[bytes | None]]:
        return self._route.run(_of(_GET, key.user_id), lambda backend: backend.get((key,)))

    async def _update(
        self, key: Key, changes: Mapping[str, Any] | BaseModel, expire_seconds: float | None | Keep
    ) -> dict[str, Any]:
        if not isinstance(changes, Mapping | BaseModel):
            raise InvalidValueError("changes", f"{type(changes).__name__}; pass a dict or a pydantic model")
        given = dict(changes) if isinstance(changes, Mapping) else changes
        fields = values.load(values.encode(given, "changes", max_bytes=self._max_bytes))
        if not isinstance(fields, dict):
            raise InvalidValueError("changes", "the model dumps to something that is no dict")
        merge = Merge(
            key,
            {name: values.dump(item) for name, item in fields.items()},
            _expire(expire_seconds),
            self._max_bytes,
        )
        (result,) = await self._route.run(_of(_UPDATE, key.user_id), lambda backend: backend.merge([merge]))
        if isinstance(result, ConflictError):
            raise result
        merged: dict[str, Any] = values.load(result)
        return merged

    async def _compare_and_set(
        self, key: Key, expected: object, value: object, expire_seconds: float | None | Keep
    ) -> bool:
        before = values.encode(expected, "expected", max_bytes=self._max_bytes)
        after = values.encode(value, "value", max_bytes=self._max_bytes)
        expire = _expire(expire_seconds)
        return await self._route.run(
            _of(_COMPARE_AND_SET, key.user_id),
            lambda backend: backend.compare_and_set(key, before, after, expire),
        )

    async def _touch(self, key: Key, expire_seconds: float | None) -> bool:
        expire = _optional_seconds(expire_seconds)
        return await self._route.run(_of(_TOUCH, key.user_id), lambda backend: backend.touch(key, expire))

    async def _delete(self, key: Key) -> bool:
        (deleted,) = await self._route.run(_of(_DELETE, key.user_id), lambda backend: backend.delete([key]))
        return deleted

    async def _get_all(self, user_id: str | None) -> dict[str, Any]:
        encoded = await self._route.run(_of(_GET_ALL, user_id), lambda backend: backend.get_all(user_id))
        return {name: values.load(encoded[name]) for name in sorted(encoded)}

    async def _clear(self, user_id: str | None) -> int:
        return await self._route.run(_of(_CLEAR, user_id), lambda backend: backend.clear(user_id))


def _loaded(found: list[bytes | None], default: object) -> object:
    (encoded,) = found
    return default if encoded is None else values.load(encoded)


def _of(operation: Operation, user_id: str | None) -> Operation:
    return _GLOBAL[operation] if user_id is None else operation


def _user_key(user_id: UserId, name: str, argument: str = "key") -> Key:
    return Key(values.identifier(user_id, "user_id"), values.label(name, argument))


def _global_key(name: str) -> Key:
    return Key(None, values.label(name, "key"))


def _optional_seconds(expire_seconds: float | None) -> float | None:
    return None if expire_seconds is None else values.seconds(expire_seconds, "expire_seconds")


def _expire(expire_seconds: float | None | Keep) -> float | None | Keep:
    return KEEP if expire_seconds is KEEP else _optional_seconds(expire_seconds)

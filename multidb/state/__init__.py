"""State: where things stand right now. The functions here work on the current MultiDB, see `multidb.init_all()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multidb._core.current import current
from multidb.state._store import StateStore
from multidb.state.protocol import KEEP, Keep, StateBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from multidb._core.values import UserId

__all__ = [
    "KEEP",
    "Keep",
    "StateBackend",
    "StateStore",
    "add_to_list",
    "check_cooldown",
    "clear_cooldown",
    "clear_global_state",
    "clear_state",
    "compare_and_set_global_state",
    "compare_and_set_state",
    "delete_global_state",
    "delete_list",
    "delete_state",
    "get_all_global_states",
    "get_all_user_states",
    "get_counter",
    "get_global_state",
    "get_list",
    "get_state",
    "increment_counter",
    "reset_counter",
    "set_cooldown",
    "set_global_state",
    "set_state",
    "touch_global_state",
    "touch_state",
    "try_cooldown",
    "update_global_state",
    "update_state",
]


async def set_state(user_id: UserId, key: str, value: Any, *, expire_seconds: float | None = None) -> None:
    """Same as `StateStore.set_state()`, on the current MultiDB."""
    await current().state.set_state(user_id, key, value, expire_seconds=expire_seconds)


async def get_state(user_id: UserId, key: str, default: Any = None) -> Any:
    """Same as `StateStore.get_state()`, on the current MultiDB."""
    return await current().state.get_state(user_id, key, default)


async def update_state(
    user_id: UserId,
    key: str,
    changes: Mapping[str, Any] | BaseModel,
    *,
    expire_seconds: float | None | Keep = KEEP,
) -> dict[str, Any]:
    """Same as `StateStore.update_state()`, on the current MultiDB."""
    return await current().state.update_state(user_id, key, changes, expire_seconds=expire_seconds)


async def compare_and_set_state(
    user_id: UserId, key: str, expected: Any, value: Any, *, expire_seconds: float | None | Keep = KEEP
) -> bool:
    """Same as `StateStore.compare_and_set_state()`, on the current MultiDB."""
    return await current().state.compare_and_set_state(
        user_id, key, expected, value, expire_seconds=expire_seconds
    )


async def touch_state(user_id: UserId, key: str, expire_seconds: float | None) -> bool:
    """Same as `StateStore.touch_state()`, on the current MultiDB."""
    return await current().state.touch_state(user_id, key, expire_seconds)


async def delete_state(user_id: UserId, key: str) -> bool:
    """Same as `StateStore.delete_state()`, on the current MultiDB."""
    return await current().state.delete_state(user_id, key)


async def get_all_user_states(user_id: UserId) -> dict[str, Any]:
    """Same as `StateStore.get_all_user_states()`, on the current MultiDB."""
    return await current().state.get_all_user_states(user_id)


async def clear_state(user_id: UserId) -> int:
    """Same as `StateStore.clear_state()`, on the current MultiDB."""
    return await current().state.clear_state(user_id)


async def set_global_state(key: str, value: Any, *, expire_seconds: float | None = None) -> None:
    """Same as `StateStore.set_global_state()`, on the current MultiDB."""
    await current().state.set_global_state(key, value, expire_seconds=expire_seconds)


async def get_global_state(key: str, default: Any = None) -> Any:
    """Same as `StateStore.get_global_state()`, on the current MultiDB."""
    return await current().state.get_global_state(key, default)


async def update_global_state(
    key: str, changes: Mapping[str, Any] | BaseModel, *, expire_seconds: float | None | Keep = KEEP
) -> dict[str, Any]:
    """Same as `StateStore.update_global_state()`, on the current MultiDB."""
    return await current().state.update_global_state(key, changes, expire_seconds=expire_seconds)


async def compare_and_set_global_state(
    key: str, expected: Any, value: Any, *, expire_seconds: float | None | Keep = KEEP
) -> bool:
    """Same as `StateStore.compare_and_set_global_state()`, on the current MultiDB."""
    return await current().state.compare_and_set_global_state(
        key, expected, value, expire_seconds=expire_seconds
    )


async def touch_global_state(key: str, expire_seconds: float | None) -> bool:
    """Same as `StateStore.touch_global_state()`, on the current MultiDB."""
    return await current().state.touch_global_state(key, expire_seconds)


async def delete_global_state(key: str) -> bool:
    """Same as `StateStore.delete_global_state()`, on the current MultiDB."""
    return await current().state.delete_global_state(key)


async def get_all_global_states() -> dict[str, Any]:
    """Same as `StateStore.get_all_global_states()`, on the current MultiDB."""
    return await current().state.get_all_global_states()


async def clear_global_state() -> int:
    """Same as `StateStore.clear_global_state()`, on the current MultiDB."""
    return await current().state.clear_global_state()


async def try_cooldown(user_id: UserId, action: str, seconds: float) -> bool:
    """Same as `StateStore.try_cooldown()`, on the current MultiDB."""
    return await current().state.try_cooldown(user_id, action, seconds)


async def set_cooldown(user_id: UserId, action: str, seconds: float) -> None:
    """Same as `StateStore.set_cooldown()`, on the current MultiDB."""
    await current().state.set_cooldown(user_id, action, seconds)


async def check_cooldown(user_id: UserId, action: str) -> float | None:
    """Same as `StateStore.check_cooldown()`, on the current MultiDB."""
    return await current().state.check_cooldown(user_id, action)


async def clear_cooldown(user_id: UserId, action: str) -> bool:
    """Same as `StateStore.clear_cooldown()`, on the current MultiDB."""
    return await current().state.clear_cooldown(user_id, action)


async def increment_counter(
    user_id: UserId, counter: str, amount: int = 1, *, expire_seconds: float | None = None
) -> int:
    """Same as `StateStore.increment_counter()`, on the current MultiDB."""
    return await current().state.increment_counter(user_id, counter, amount, expire_seconds=expire_seconds)


async def get_counter(user_id: UserId, counter: str) -> int:
    """Same as `StateStore.get_counter()`, on the current MultiDB."""
    return await current().state.get_counter(user_id, counter)


async def reset_counter(user_id: UserId, counter: str) -> bool:
    """Same as `StateStore.reset_counter()`, on the current MultiDB."""
    return await current().state.reset_counter(user_id, counter)


async def add_to_list(user_id: UserId, name: str, item: Any, *, max_length: int | None = None) -> int:
    """Same as `StateStore.add_to_list()`, on the current MultiDB."""
    return await current().state.add_to_list(user_id, name, item, max_length=max_length)


async def get_list(user_id: UserId, name: str) -> list[Any]:
    """Same as `StateStore.get_list()`, on the current MultiDB."""
    return await current().state.get_list(user_id, name)


async def delete_list(user_id: UserId, name: str) -> bool:
    """Same as `StateStore.delete_list()`, on the current MultiDB."""
    return await current().state.delete_list(user_id, name)

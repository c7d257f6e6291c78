"""set_state() in process: what a call costs without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import data
from benchmarks.measuring import Calls, WrongResultError
from benchmarks.scenario import OURS, CallScenario

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.stage import Stage

scenario = CallScenario(
    "set_state_memory",
    "set_state() in process",
    baseline="cashews mem://",
    tasks=(1,),  # Nothing is waited for, so one task has done all its calls before another begins.
)


def _calls(set_: Callable[[int], Awaitable[Any]], get: Callable[[int], Awaitable[Any]]) -> Calls:
    async def check(number: int, result: Any) -> None:  # noqa: ARG001
        if await get(number) != data.state(number):
            raise WrongResultError("the state is not what was set")

    return Calls(set_, check)


@scenario.contender(OURS)
async def multidb(stage: Stage) -> Calls:
    """One call each, on `memory://`."""
    db = await stage.multidb()

    async def set_(number: int) -> None:
        await db.state.set_state(data.user(number), "order", data.state(number), expire_seconds=data.DAY)

    async def get(number: int) -> Any:
        return await db.state.get_state(data.user(number), "order")

    return _calls(set_, get)


@scenario.contender("cashews mem://", "cashews")
async def cashews(stage: Stage) -> Calls:
    """Its memory backend, which keeps the object itself and not a copy."""
    from cashews import Cache

    cache = Cache()
    cache.setup("mem://", size=2 * data.USERS)
    await cache.init()
    stage.at_end(cache.close)

    async def set_(number: int) -> None:
        await cache.set(f"order:{data.user(number)}", data.state(number), expire=data.DAY)

    async def get(number: int) -> Any:
        return await cache.get(f"order:{data.user(number)}")

    return _calls(set_, get)


@scenario.contender("aiocache memory", "aiocache")
async def aiocache(stage: Stage) -> Calls:
    """Its SimpleMemoryCache with its default serializer, which keeps the object itself."""
    from aiocache import SimpleMemoryCache

    cache = SimpleMemoryCache()
    stage.at_end(cache.clear)

    async def set_(number: int) -> None:
        await cache.set(f"order:{data.user(number)}", data.state(number), ttl=data.DAY)

    async def get(number: int) -> Any:
        return await cache.get(f"order:{data.user(number)}")

    return _calls(set_, get)


@scenario.contender("py-key-value MemoryStore", "key_value.aio", "cachetools")
async def py_key_value(stage: Stage) -> Calls:  # noqa: ARG001
    """Its MemoryStore, which keeps JSON."""
    from key_value.aio.stores.memory import MemoryStore

    store = MemoryStore()

    async def set_(number: int) -> None:
        await store.put(data.user(number), data.state(number), collection="order", ttl=data.DAY)

    async def get(number: int) -> Any:
        return await store.get(data.user(number), collection="order")

    return _calls(set_, get)


@scenario.contender("aiogram MemoryStorage", "aiogram")
async def aiogram(stage: Stage) -> Calls:  # noqa: ARG001
    """set_data(), which keeps a shallow copy, without a life span."""
    from aiogram.fsm.storage.base import StorageKey
    from aiogram.fsm.storage.memory import MemoryStorage

    storage = MemoryStorage()

    async def set_(number: int) -> None:
        who = number % data.USERS
        await storage.set_data(StorageKey(bot_id=1, chat_id=who, user_id=who), data.state(number))

    async def get(number: int) -> Any:
        who = number % data.USERS
        return await storage.get_data(StorageKey(bot_id=1, chat_id=who, user_id=who))

    return _calls(set_, get)

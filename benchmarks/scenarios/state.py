"""set_state() and get_state() on Valkey: a small dict that lives for a day, in a database for each contender."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from benchmarks import data
from benchmarks.measuring import Calls, WrongResultError, for_each_user
from benchmarks.scenario import OURS, CallScenario, Contender

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.stage import Stage

    Set = Callable[[int], Awaitable[Any]]
    Get = Callable[[int], Awaitable[Any]]
    Open = Callable[[Stage], Awaitable[tuple[Set, Get]]]

# The default of redis-py's pool is 100, with an error for whoever comes next.
_CONNECTIONS = 1000

writing = CallScenario("set_state", "set_state() on Valkey", baseline="redis-py")
reading = CallScenario("get_state", "get_state() on Valkey", baseline="redis-py")


def _contender(name: str, *requires: str) -> Callable[[Open], Open]:
    """Register for both scenarios what opens a client and returns how to set, and to get, the state of a user."""

    def register(opens: Open) -> Open:
        writing.contenders.append(Contender(name, partial(_writes, opens), requires))
        reading.contenders.append(Contender(name, partial(_reads, opens), requires))
        return opens

    return register


async def _writes(opens: Open, stage: Stage) -> Calls:
    set_, get = await opens(stage)

    async def check(number: int, result: Any) -> None:  # noqa: ARG001
        if await get(number) != data.state(number):
            raise WrongResultError("the state is not what was set")

    return Calls(set_, check)


async def _reads(opens: Open, stage: Stage) -> Calls:
    set_, get = await opens(stage)
    await for_each_user(set_)

    async def check(number: int, result: Any) -> None:
        if result != data.state(number % data.USERS):
            raise WrongResultError("the state is not what was set")

    return Calls(get, check)


@_contender(OURS)
async def multidb(stage: Stage) -> tuple[Set, Get]:
    """One call each."""
    db = await stage.multidb(state=stage.valkey())

    async def set_(number: int) -> None:
        await db.state.set_state(data.user(number), "order", data.state(number), expire_seconds=data.DAY)

    async def get(number: int) -> Any:
        return await db.state.get_state(data.user(number), "order")

    return set_, get


@_contender("redis-py", "redis")
async def redis_py(stage: Stage) -> tuple[Set, Get]:
    """Its default pool; SET with EX and json, GET and json."""
    import redis.asyncio

    client = redis.asyncio.from_url(stage.valkey(), max_connections=_CONNECTIONS)
    stage.at_end(client.aclose)

    async def set_(number: int) -> None:
        await client.set(f"order:{data.user(number)}", json.dumps(data.state(number)), ex=data.DAY)

    async def get(number: int) -> Any:
        found = await client.get(f"order:{data.user(number)}")
        return None if found is None else json.loads(found)

    return set_, get


@_contender("aiogram RedisStorage", "aiogram")
async def aiogram(stage: Stage) -> tuple[Set, Get]:
    """set_data() and get_data()."""
    from aiogram.fsm.storage.base import StorageKey
    from aiogram.fsm.storage.redis import RedisStorage

    storage = RedisStorage.from_url(
        stage.valkey(), {"max_connections": _CONNECTIONS}, state_ttl=data.DAY, data_ttl=data.DAY
    )
    stage.at_end(storage.close)

    async def set_(number: int) -> None:
        who = number % data.USERS
        await storage.set_data(StorageKey(bot_id=1, chat_id=who, user_id=who), data.state(number))

    async def get(number: int) -> Any:
        who = number % data.USERS
        return await storage.get_data(StorageKey(bot_id=1, chat_id=who, user_id=who))

    return set_, get


@_contender("cashews", "cashews")
async def cashews(stage: Stage) -> tuple[Set, Get]:
    """Its Redis backend, with its pool of ten."""
    from cashews import Cache

    cache = Cache()
    cache.setup(stage.valkey(), suppress=False, socket_timeout=5)
    await cache.init()
    stage.at_end(cache.close)

    async def set_(number: int) -> None:
        await cache.set(f"order:{data.user(number)}", data.state(number), expire=data.DAY)

    async def get(number: int) -> Any:
        return await cache.get(f"order:{data.user(number)}")

    return set_, get


@_contender("aiocache", "aiocache", "redis")
async def aiocache(stage: Stage) -> tuple[Set, Get]:
    """Its Redis backend and JSON serializer."""
    from aiocache import RedisCache
    from aiocache.serializers import JsonSerializer

    place = urlsplit(stage.valkey())
    cache = RedisCache(
        endpoint=place.hostname, port=place.port, db=int(place.path.strip("/") or 0), password=place.password,
        serializer=JsonSerializer(), pool_max_size=_CONNECTIONS,
    )  # fmt: skip
    stage.at_end(cache.close)

    async def set_(number: int) -> None:
        await cache.set(f"order:{data.user(number)}", data.state(number), ttl=data.DAY)

    async def get(number: int) -> Any:
        return await cache.get(f"order:{data.user(number)}")

    return set_, get


@_contender("py-key-value-aio", "key_value.aio", "redis")
async def py_key_value(stage: Stage) -> tuple[Set, Get]:
    """Its RedisStore."""
    import redis.asyncio
    from key_value.aio.stores.redis import RedisStore

    client = redis.asyncio.from_url(stage.valkey(), decode_responses=True, max_connections=_CONNECTIONS)
    stage.at_end(client.aclose)
    store = RedisStore(client=client)
    await store.setup()

    async def set_(number: int) -> None:
        await store.put(data.user(number), data.state(number), collection="order", ttl=data.DAY)

    async def get(number: int) -> Any:
        return await store.get(data.user(number), collection="order")

    return set_, get


@_contender("valkey-glide", "glide")
async def valkey_glide(stage: Stage) -> tuple[Set, Get]:
    """One client, which pipelines in Rust."""
    from glide import ExpirySet, ExpiryType, GlideClient, GlideClientConfiguration, NodeAddress

    place = urlsplit(stage.valkey())
    configuration = GlideClientConfiguration(
        [NodeAddress(place.hostname or "", place.port or 0)],
        database_id=int(place.path.strip("/") or 0),
        request_timeout=5000,
    )
    client = await GlideClient.create(configuration)
    stage.at_end(client.close)
    day = ExpirySet(ExpiryType.SEC, data.DAY)

    async def set_(number: int) -> None:
        await client.set(f"order:{data.user(number)}", json.dumps(data.state(number)), expiry=day)

    async def get(number: int) -> Any:
        found = await client.get(f"order:{data.user(number)}")
        return None if found is None else json.loads(found)

    return set_, get

"""What a bot does for one message, on the three servers: six calls, one after the other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import data, events
from benchmarks.measuring import Calls, WrongResultError, for_each_user
from benchmarks.scenario import OURS, CallScenario
from benchmarks.scenarios.profiles import FIELD, by_hand

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from benchmarks.stage import Stage

_COOLDOWN_SECONDS = 1
_CONNECTIONS = 1000

scenario = CallScenario(
    "handler",
    "A message handler: profile read, state read, state write, event, cooldown, profile field",
    baseline="asyncpg + PyMongo + redis-py",
)


class Seen(NamedTuple):
    """What a handler read before it wrote."""

    profile: Any
    state: Any
    event_id: UUID


@scenario.contender(OURS)
async def multidb(stage: Stage) -> Calls:
    """Six calls of the three stores."""
    url = await stage.events_database()
    db = await stage.multidb(logs=url, profiles=stage.mongodb(), state=stage.valkey())

    async def meet(number: int) -> None:
        await db.profiles.create_or_update_profile(data.user(number), data.profile(number))
        await db.state.set_state(data.user(number), "order", data.state(number), expire_seconds=data.DAY)

    async def call(number: int) -> Seen:
        who = data.user(number)
        profile = await db.profiles.get_profile_by_username(who)
        state = await db.state.get_state(who, "order")
        await db.state.set_state(who, "order", data.state(number), expire_seconds=data.DAY)
        event = await db.logs.log_event(
            who, data.event_type(number), data.text(number), context=data.context(number), username="ada"
        )
        await db.state.try_cooldown(who, "reply", _COOLDOWN_SECONDS)
        await db.profiles.update_profile_field(who, FIELD, number)
        return Seen(profile, state, event.id)

    async def read(number: int) -> tuple[Any, Any]:
        who = data.user(number)
        return await db.state.get_state(who, "order"), await db.profiles.get_profile_by_username(who)

    await for_each_user(meet)
    return await _calls(stage, url, call, read)


@scenario.contender("asyncpg + PyMongo + redis-py", "asyncpg", "pymongo", "redis")
async def drivers(stage: Stage) -> Calls:
    """The same by hand, over the drivers' own pools."""
    import asyncpg
    import redis.asyncio
    from pymongo import AsyncMongoClient

    url = await stage.events_database()
    pool = await stage.open(asyncpg.create_pool(url, min_size=events.POOL, max_size=events.POOL))
    client: AsyncMongoClient[Any] = AsyncMongoClient(stage.mongodb())
    stage.at_end(client.close)
    profiles = by_hand(client.get_default_database()["profiles"])
    cache: Any = redis.asyncio.from_url(stage.valkey(), max_connections=_CONNECTIONS)
    stage.at_end(cache.aclose)

    async def meet(number: int) -> None:
        await profiles.save(number)
        await cache.set(f"order:{data.user(number)}", json.dumps(data.state(number)), ex=data.DAY)

    async def call(number: int) -> Seen:
        who = data.user(number)
        profile = await profiles.get(number)
        state = json.loads(await cache.get(f"order:{who}"))
        await cache.set(f"order:{who}", json.dumps(data.state(number)), ex=data.DAY)
        row = events.postgres_row(number)
        await pool.execute(events.POSTGRES_INSERT, *row)
        await cache.set(f"reply:{who}", "1", nx=True, ex=_COOLDOWN_SECONDS)
        await profiles.set_field(number)
        return Seen(profile, state, row[0])

    async def read(number: int) -> tuple[Any, Any]:
        return json.loads(await cache.get(f"order:{data.user(number)}")), await profiles.get(number)

    await for_each_user(meet)
    return await _calls(stage, url, call, read)


@scenario.contender("SQLAlchemy ORM + Beanie + redis-py", "sqlalchemy", "asyncpg", "beanie", "redis")
async def mappers(stage: Stage) -> Calls:
    """What one picks who wants objects."""
    import redis.asyncio
    from pymongo import AsyncMongoClient

    from benchmarks.odm import Profile, prepare
    from benchmarks.orm import PostgresEvent, sessions

    url = await stage.events_database()
    session = sessions(stage, url)
    client: AsyncMongoClient[Any] = AsyncMongoClient(stage.mongodb())
    stage.at_end(client.close)
    await prepare(client.get_default_database())
    cache: Any = redis.asyncio.from_url(stage.valkey(), max_connections=_CONNECTIONS)
    stage.at_end(cache.aclose)

    async def meet(number: int) -> None:
        await Profile(id=data.user(number), **data.profile(number)).save()
        await cache.set(f"order:{data.user(number)}", json.dumps(data.state(number)), ex=data.DAY)

    async def call(number: int) -> Seen:
        who = data.user(number)
        profile = await Profile.get(who)
        state = json.loads(await cache.get(f"order:{who}"))
        await cache.set(f"order:{who}", json.dumps(data.state(number)), ex=data.DAY)
        event = PostgresEvent(**events.as_dict(events.postgres_row(number)))
        async with session() as one:
            one.add(event)
            await one.commit()
        await cache.set(f"reply:{who}", "1", nx=True, ex=_COOLDOWN_SECONDS)
        await Profile.find_one(Profile.id == who).update({"$set": {FIELD: number}})
        return Seen(None if profile is None else profile.model_dump(), state, event.id)

    async def read(number: int) -> tuple[Any, Any]:
        found = await Profile.get(data.user(number))
        state = json.loads(await cache.get(f"order:{data.user(number)}"))
        return state, None if found is None else found.model_dump()

    await for_each_user(meet)
    return await _calls(stage, url, call, read)


async def _calls(
    stage: Stage,
    url: str,
    call: Callable[[int], Awaitable[Seen]],
    read: Callable[[int], Awaitable[tuple[Any, Any]]],
) -> Calls:
    """Return a handler's calls; *read* gets the state and the profile of a user."""
    import asyncpg

    connection = await asyncpg.connect(url)
    stage.at_end(connection.close)

    async def check(number: int, result: Seen) -> None:
        state, profile = await read(number)
        message = await connection.fetchval(
            "SELECT message FROM multidb_events WHERE id = $1", result.event_id
        )
        if result.profile["visits"] != number % data.USERS or result.state["phase"] != "confirming":
            raise WrongResultError("what the handler read is not what was stored")
        if (state, profile[FIELD], message) != (data.state(number), number, data.text(number)):
            raise WrongResultError("what the handler wrote is not there")

    async def reset() -> None:
        await connection.execute("TRUNCATE multidb_events")

    async def count() -> int:
        return int(await connection.fetchval("SELECT count(*) FROM multidb_events"))

    return Calls(call, check, reset, count)

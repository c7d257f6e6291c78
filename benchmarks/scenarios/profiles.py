"""Profiles on MongoDB, with majority and journal: 1,000 of 600 bytes, in a database for each contender."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import data
from benchmarks.measuring import Calls, WrongResultError, for_each_user
from benchmarks.scenario import OURS, CallScenario, Contender

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.stage import Stage

    Open = Callable[[Stage], Awaitable["Profiles"]]

FIELD = "last_seen"


class Profiles(NamedTuple):
    """How a client keeps profiles: by the number of the call, which says whose and what."""

    save: Callable[[int], Awaitable[Any]]
    """Create it, or update all its fields."""
    get: Callable[[int], Awaitable[Any]]
    """Return its fields, whatever else there is among them; None when there is none."""
    set_field: Callable[[int], Awaitable[Any]]
    """Set FIELD to the number."""


saving = CallScenario("create_or_update_profile", "create_or_update_profile() on MongoDB", baseline="PyMongo")
setting = CallScenario("update_profile_field", "update_profile_field() on MongoDB", baseline="PyMongo")
getting = CallScenario("get_profile", "get_profile_by_username() on MongoDB", baseline="PyMongo")


def _contender(name: str, *requires: str, sets_fields: bool = True) -> Callable[[Open], Open]:
    """Register for the scenarios what opens a client."""

    def register(opens: Open) -> Open:
        saving.contenders.append(Contender(name, partial(_saves, opens), requires))
        getting.contenders.append(Contender(name, partial(_gets, opens), requires))
        if sets_fields:
            setting.contenders.append(Contender(name, partial(_sets, opens), requires))
        return opens

    return register


async def _opened(opens: Open, stage: Stage) -> Profiles:
    """Return a client that has the profile of every user."""
    profiles = await opens(stage)
    await for_each_user(profiles.save)
    return profiles


async def _saves(opens: Open, stage: Stage) -> Calls:
    profiles = await _opened(opens, stage)

    async def check(number: int, result: Any) -> None:  # noqa: ARG001
        expect(data.profile(number), await profiles.get(number))

    return Calls(profiles.save, check)


async def _gets(opens: Open, stage: Stage) -> Calls:
    profiles = await _opened(opens, stage)

    async def check(number: int, result: Any) -> None:
        expect(data.profile(number % data.USERS), result)

    return Calls(profiles.get, check)


async def _sets(opens: Open, stage: Stage) -> Calls:
    profiles = await _opened(opens, stage)

    async def check(number: int, result: Any) -> None:  # noqa: ARG001
        expect(data.profile(number % data.USERS) | {FIELD: number}, await profiles.get(number))

    return Calls(profiles.set_field, check)


def expect(fields: dict[str, Any], found: Any) -> None:
    """Raise WrongResultError unless *found* has these fields."""
    if found is None or any(found.get(name) != value for name, value in fields.items()):
        raise WrongResultError("the profile is not what was written")


@_contender(OURS)
async def multidb(stage: Stage) -> Profiles:
    """One call each."""
    db = await stage.multidb(profiles=stage.mongodb())

    async def save(number: int) -> None:
        await db.profiles.create_or_update_profile(data.user(number), data.profile(number))

    async def get(number: int) -> Any:
        return await db.profiles.get_profile_by_username(data.user(number))

    async def set_field(number: int) -> None:
        await db.profiles.update_profile_field(data.user(number), FIELD, number)

    return Profiles(save, get, set_field)


@_contender("PyMongo", "pymongo")
async def pymongo(stage: Stage) -> Profiles:
    """AsyncMongoClient: update_one and find_one."""
    from pymongo import AsyncMongoClient

    client: AsyncMongoClient[Any] = AsyncMongoClient(stage.mongodb())
    stage.at_end(client.close)
    return by_hand(client.get_default_database()["profiles"])


@_contender("Motor", "motor")
async def motor(stage: Stage) -> Profiles:
    """The same calls, in Motor's threads."""
    from motor.motor_asyncio import AsyncIOMotorClient

    client: Any = AsyncIOMotorClient(stage.mongodb())
    stage.at_end(partial(_now, client.close))
    return by_hand(client.get_default_database()["profiles"])


async def _now(call: Callable[[], object]) -> None:
    call()


def by_hand(collection: Any) -> Profiles:
    """Return how one keeps profiles with PyMongo or Motor, with the time and the version that multidb keeps too."""

    async def save(number: int) -> None:
        now = datetime.now(UTC)
        await collection.update_one(
            {"_id": data.user(number)},
            {
                "$set": data.profile(number) | {"updated_at": now},
                "$setOnInsert": {"created_at": now},
                "$inc": {"version": 1},
            },
            upsert=True,
        )

    async def get(number: int) -> Any:
        return await collection.find_one({"_id": data.user(number)})

    async def set_field(number: int) -> None:
        await collection.update_one(
            {"_id": data.user(number)},
            {"$set": {FIELD: number, "updated_at": datetime.now(UTC)}, "$inc": {"version": 1}},
        )

    return Profiles(save, get, set_field)


@_contender("Beanie", "beanie", "pymongo")
async def beanie(stage: Stage) -> Profiles:
    """Documents: save(), get(), and an update of one field."""
    from pymongo import AsyncMongoClient

    from benchmarks.odm import Profile, prepare

    client: AsyncMongoClient[Any] = AsyncMongoClient(stage.mongodb())
    stage.at_end(client.close)
    await prepare(client.get_default_database())

    async def save(number: int) -> None:
        await Profile(id=data.user(number), **data.profile(number)).save()

    async def get(number: int) -> Any:
        found = await Profile.get(data.user(number))
        return None if found is None else found.model_dump()

    async def set_field(number: int) -> None:
        await Profile.find_one(Profile.id == data.user(number)).update({"$set": {FIELD: number}})

    return Profiles(save, get, set_field)


@_contender("aiogram PyMongoStorage", "aiogram", "pymongo")
async def aiogram(stage: Stage) -> Profiles:
    """set_data(), get_data() and update_data()."""
    from aiogram.fsm.storage.base import StorageKey
    from aiogram.fsm.storage.pymongo import PyMongoStorage
    from pymongo import AsyncMongoClient

    client: AsyncMongoClient[Any] = AsyncMongoClient(stage.mongodb())
    storage = PyMongoStorage(client, db_name=client.get_default_database().name)
    stage.at_end(storage.close)

    def key(number: int) -> StorageKey:
        who = number % data.USERS
        return StorageKey(bot_id=1, chat_id=who, user_id=who)

    async def save(number: int) -> None:
        await storage.set_data(key(number), data.profile(number))

    async def get(number: int) -> Any:
        return await storage.get_data(key(number))

    async def set_field(number: int) -> None:
        await storage.update_data(key(number), {FIELD: number})

    return Profiles(save, get, set_field)


@_contender("LangGraph AsyncPostgresStore", "langgraph.store.postgres", "psycopg", sets_fields=False)
async def langgraph(stage: Stage) -> Profiles:
    """What a LangGraph program has for this, on PostgreSQL: put and get, batched."""
    from langgraph.store.postgres.aio import AsyncPostgresStore

    store = await stage.open(AsyncPostgresStore.from_conn_string(stage.postgres()))
    await store.setup()

    async def save(number: int) -> None:
        await store.aput(("profiles",), data.user(number), data.profile(number), index=False)

    async def get(number: int) -> Any:
        item = await store.aget(("profiles",), data.user(number))
        return None if item is None else item.value

    return Profiles(save, get, set_field=save)  # It cannot set a part.

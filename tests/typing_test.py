"""Checked by mypy, never run: what a user's type checker sees."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, assert_type

from pydantic import BaseModel

import multidb
from multidb import MultiDB, logs, profiles, state
from multidb.logs import Event, Sale, Session
from multidb.logs.protocol import LogBackend
from multidb.profiles.protocol import ProfileBackend
from multidb.state.protocol import StateBackend


class Bot(BaseModel):
    username: str


async def logs_are_typed(db: MultiDB) -> None:
    assert_type(await logs.log_event("u", "t", context={"a": 1}), Event)
    assert_type(await db.logs.get_events(1), list[Event])
    assert_type(await logs.count_events(), int)
    assert_type(await logs.count_events(by="level"), dict[str, int])
    assert_type(await logs.event_histogram(), dict[datetime, int])
    assert_type(await logs.log_sale(1, "coffee", "4.50"), Sale)
    assert_type(
        await logs.update_sale_status("00000000-0000-7000-8000-000000000000", "completed"), Sale | None
    )
    assert_type(await logs.create_or_update_session(1), Session)
    async for event in logs.iter_events():
        assert_type(event, Event)


async def profiles_are_typed() -> None:
    assert_type(await profiles.create_or_update_profile("b", Bot(username="b")), dict[str, Any])
    assert_type(await profiles.get_profile_by_username("b"), dict[str, Any] | None)
    assert_type(await profiles.get_profile_by_username("b", as_model=Bot), Bot | None)
    assert_type(await profiles.increment_profile_field("b", "n"), int | float | None)


async def state_is_typed(data: Mapping[str, int]) -> None:
    assert_type(await state.update_state(1, "k", data), dict[str, Any])
    assert_type(await state.try_cooldown(1, "a", 2.5), bool)
    assert_type(await state.check_cooldown(1, "a"), float | None)
    assert_type(await multidb.init_all(redis_url="memory://"), MultiDB)


def backends_keep_their_protocols() -> None:
    from multidb.engines.mongo import MongoEngine
    from multidb.engines.redis import RedisEngine
    from multidb.engines.sql import SqlEngine
    from multidb.logs.backends.files import FileLogBackend
    from multidb.logs.backends.memory import MemoryLogBackend
    from multidb.logs.backends.sql import SqlLogBackend
    from multidb.profiles.backends.files import FileProfileBackend
    from multidb.profiles.backends.memory import MemoryProfileBackend
    from multidb.profiles.backends.mongo import MongoProfileBackend
    from multidb.state.backends.memory import MemoryStateBackend
    from multidb.state.backends.redis import RedisStateBackend

    def keeps(
        sql: SqlEngine,
        mongo: MongoEngine,
        redis: RedisEngine,
        files: FileLogBackend,
        json: FileProfileBackend,
        mem: MemoryStateBackend,
    ) -> tuple[list[LogBackend], list[ProfileBackend], list[StateBackend]]:
        return (
            [SqlLogBackend(sql), files, MemoryLogBackend()],
            [MongoProfileBackend(mongo), json, MemoryProfileBackend()],
            [RedisStateBackend(redis), mem],
        )

    print(keeps)

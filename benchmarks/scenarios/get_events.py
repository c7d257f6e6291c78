"""get_events(): the newest ten of one user out of a large table, which all contenders read."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import data, events
from benchmarks.measuring import Calls, WrongResultError
from benchmarks.scenario import OURS, CallScenario
from benchmarks.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_LIMIT = 10
_SELECT = "SELECT {} FROM multidb_events WHERE user_id = {} ORDER BY timestamp DESC, id DESC LIMIT 10"


postgres = CallScenario(
    "get_events_postgres",
    "get_events(), the newest 10 of one user out of many, PostgreSQL",
    baseline="asyncpg pool",
    prepare=partial(Stage.large, kind="postgres"),
)
sqlite = CallScenario(
    "get_events_sqlite",
    "get_events(), the newest 10 of one user out of many, SQLite",
    baseline="aiosqlite",
    prepare=partial(Stage.large, kind="sqlite"),
)


def _calls(stage: Stage, call: Callable[[int], Awaitable[Any]], of: Callable[[Any, str], Any]) -> Calls:
    """Return calls whose results have to be the newest events of the user; *of* gets a field of one."""

    async def check(number: int, result: Any) -> None:
        who = number % data.USERS
        newest = stage.rows - 1 - (stage.rows - 1 - who) % data.USERS
        wanted = [newest - i * data.USERS for i in range(_LIMIT)]
        if [of(event, "message") for event in result] != [data.text(each) for each in wanted]:
            raise WrongResultError("these are not the newest events")
        if [of(event, "context") for event in result] != [data.context(each) for each in wanted]:
            raise WrongResultError("the events have other contexts")

    return Calls(call, check)


async def _multidb(stage: Stage, url: str) -> Calls:
    db = await stage.multidb(logs=url)

    async def call(number: int) -> Any:
        return await db.logs.get_events(data.user(number), limit=_LIMIT)

    return _calls(stage, call, getattr)


def _dict(row: Any) -> dict[str, Any]:
    found = dict(row)
    found["context"] = json.loads(found["context"])
    return found


@postgres.contender(OURS)
async def multidb_on_postgres(stage: Stage, url: str) -> Calls:
    """One call each."""
    return await _multidb(stage, url)


@postgres.contender("asyncpg pool", "asyncpg")
async def asyncpg_pool(stage: Stage, url: str) -> Calls:
    """A pool of ten; rows to dicts."""
    import asyncpg

    pool = await stage.open(asyncpg.create_pool(url, min_size=10, max_size=10))
    sql = _SELECT.format(events.READ, "$1")

    async def call(number: int) -> Any:
        return [_dict(row) for row in await pool.fetch(sql, data.user(number))]

    return _calls(stage, call, dict.__getitem__)


@postgres.contender("SQLAlchemy Core", "sqlalchemy", "asyncpg")
async def sqlalchemy_core(stage: Stage, url: str) -> Calls:
    """A connection and a select a call; rows to dicts."""
    from sqlalchemy import select

    from benchmarks.orm import PostgresEvent, engine

    pool = engine(stage, url)
    table = PostgresEvent.__table__
    columns = [table.c[name] for name in events.READ.split(", ")]
    newest = select(*columns).order_by(table.c.timestamp.desc(), table.c.id.desc()).limit(_LIMIT)

    async def call(number: int) -> Any:
        async with pool.connect() as connection:
            found = await connection.execute(newest.where(table.c.user_id == data.user(number)))
            return [dict(row) for row in found.mappings()]

    return _calls(stage, call, dict.__getitem__)


@postgres.contender("SQLAlchemy ORM", "sqlalchemy", "asyncpg")
async def sqlalchemy_orm(stage: Stage, url: str) -> Calls:
    """A session and a select of objects a call."""
    from benchmarks.orm import PostgresEvent

    return await _orm(stage, url, PostgresEvent)


async def _orm(stage: Stage, url: str, model: Any, **options: Any) -> Calls:
    from sqlalchemy import select

    from benchmarks.orm import sessions

    session = sessions(stage, url, **options)
    newest = select(model).order_by(model.timestamp.desc(), model.id.desc()).limit(_LIMIT)

    async def call(number: int) -> Any:
        async with session() as one:
            return list(await one.scalars(newest.where(model.user_id == data.user(number))))

    return _calls(stage, call, getattr)


@sqlite.contender(OURS)
async def multidb_on_sqlite(stage: Stage, url: str) -> Calls:
    """One call each."""
    return await _multidb(stage, url)


@sqlite.contender("aiosqlite", "aiosqlite")
async def one_connection(stage: Stage, url: str) -> Calls:
    """One connection, one hop to its thread a call; rows to dicts."""
    import aiosqlite

    connection = await stage.open(aiosqlite.connect(url.removeprefix("sqlite:///"), isolation_level=None))
    connection.row_factory = aiosqlite.Row
    sql = _SELECT.format(events.READ, "?")

    async def call(number: int) -> Any:
        return [_dict(row) for row in await connection.execute_fetchall(sql, (data.user(number),))]

    return _calls(stage, call, dict.__getitem__)


@sqlite.contender("SQLAlchemy ORM", "sqlalchemy", "aiosqlite")
async def sqlalchemy_orm_on_sqlite(stage: Stage, url: str) -> Calls:
    """A session and a select of objects a call, over its default pool."""
    from benchmarks.orm import SqliteEvent

    return await _orm(stage, url, SqliteEvent)

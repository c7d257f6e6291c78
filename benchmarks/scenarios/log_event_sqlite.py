"""log_event() on SQLite, synchronous FULL: multidb's tables and indexes, in a file for each contender."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import data, events
from benchmarks.measuring import Calls, WrongResultError
from benchmarks.scenario import OURS, CallScenario

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    import aiosqlite

    from benchmarks.stage import Stage

scenario = CallScenario(
    "log_event_sqlite", "log_event() on SQLite with synchronous = FULL, the same schema", baseline="aiosqlite"
)


async def connect(stage: Stage, path: Path) -> aiosqlite.Connection:
    """Return a connection that commits each statement, as durable as multidb's."""
    import aiosqlite

    connection = await stage.open(aiosqlite.connect(path, isolation_level=None))
    await connection.execute("PRAGMA journal_mode = WAL")
    await connection.execute("PRAGMA synchronous = FULL")
    return connection


@scenario.contender(OURS)
async def multidb(stage: Stage) -> Calls:
    """One call each."""
    return await _multidb(stage, await stage.events_file())


@scenario.contender("multidb, log_search_index=False")
async def multidb_without_index(stage: Stage) -> Calls:
    """The same on a table that has no index for searching."""
    return await _multidb(stage, stage.folder() / "logs.db", log_search_index=False)


async def _multidb(stage: Stage, path: Path, **others: Any) -> Calls:
    db = await stage.multidb(logs=f"sqlite:///{path}", **others)

    async def call(number: int) -> bytes:
        event = await db.logs.log_event(
            data.user(number),
            data.event_type(number),
            data.text(number),
            context=data.context(number),
            username="ada",
        )
        return event.id.bytes

    return await _in_file(stage, path, call)


@scenario.contender("aiosqlite", "aiosqlite")
async def one_by_one(stage: Stage) -> Calls:
    """One connection that commits by itself, one statement a call."""
    path = await stage.events_file()
    connection = await connect(stage, path)

    async def call(number: int) -> Any:
        row = events.sqlite_row(number)
        await connection.execute(events.SQLITE_INSERT, row)
        return row[0]

    return await _in_file(stage, path, call)


@scenario.contender("SQLAlchemy ORM", "sqlalchemy", "aiosqlite")
async def sqlalchemy_orm(stage: Stage) -> Calls:
    """A session, an object and a commit a call, over one connection: several would find the file locked."""
    from benchmarks.orm import SqliteEvent, sessions

    path = await stage.events_file()
    session = sessions(stage, f"sqlite:///{path}", pool_size=1, max_overflow=0)

    async def call(number: int) -> Any:
        values = events.as_dict(events.sqlite_row(number))
        async with session() as one:
            one.add(SqliteEvent(**values))
            await one.commit()
        return values["id"]

    return await _in_file(stage, path, call)


async def _in_file(stage: Stage, path: Path, call: Callable[[int], Awaitable[Any]]) -> Calls:
    """Return the calls of a contender who writes to multidb's table at *path* and returns the id."""
    reader = await connect(stage, path)

    async def fetch(sql: str, *values: Any) -> Any:
        async with reader.execute(sql, values) as cursor:
            return await cursor.fetchone()

    async def check(number: int, result: bytes) -> None:
        row = await fetch("SELECT user_id, message, context FROM multidb_events WHERE id = ?", result)
        if row is None or (row[0], row[1]) != (data.user(number), data.text(number)):
            raise WrongResultError("the event is not there")
        if json.loads(row[2]) != data.context(number):
            raise WrongResultError("the event has another context")

    async def count() -> int:
        ((rows,),) = await reader.execute_fetchall("SELECT count(*) FROM multidb_events")
        return int(rows)

    return Calls(call, check, partial(_empty, reader), count)


async def _empty(connection: aiosqlite.Connection) -> None:
    # Row by row the triggers of the search index would take minutes.
    triggers = await connection.execute_fetchall(
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'multidb_events'"
    )
    for name, _ in triggers:
        await connection.execute(f"DROP TRIGGER {name}")
    await connection.execute("DELETE FROM multidb_events")
    if triggers:
        await connection.execute(
            "INSERT INTO multidb_events_search (multidb_events_search) VALUES ('rebuild')"
        )
    for _, sql in triggers:
        await connection.execute(sql)
    await connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")

"""log_event() on PostgreSQL: multidb's table, with its indexes, in a database for each contender."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from benchmarks import data, events
from benchmarks.measuring import Calls, WrongResultError
from benchmarks.scenario import OURS, CallScenario

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from uuid import UUID

    from benchmarks.stage import Stage

scenario = CallScenario(
    "log_event_postgres",
    "log_event() on PostgreSQL, the same table and indexes",
    baseline="asyncpg pool",
)


@scenario.contender(OURS)
async def multidb(stage: Stage) -> Calls:
    """One call each."""
    return await _multidb(stage, await stage.events_database())


@scenario.contender("multidb, log_search_index=False")
async def multidb_without_index(stage: Stage) -> Calls:
    """The same on a table that has no index for searching."""
    return await _multidb(stage, stage.postgres(), log_search_index=False)


async def _multidb(stage: Stage, url: str, **others: Any) -> Calls:
    db = await stage.multidb(logs=url, **others)

    async def call(number: int) -> UUID:
        event = await db.logs.log_event(
            data.user(number),
            data.event_type(number),
            data.text(number),
            context=data.context(number),
            username="ada",
        )
        return event.id

    return await in_table(stage, url, call)


@scenario.contender("asyncpg pool", "asyncpg")
async def asyncpg_pool(stage: Stage) -> Calls:
    """A pool of ten, one statement a call."""
    import asyncpg

    url = await stage.events_database()
    pool = await stage.open(asyncpg.create_pool(url, min_size=events.POOL, max_size=events.POOL))

    async def call(number: int) -> Any:
        row = events.postgres_row(number)
        await pool.execute(events.POSTGRES_INSERT, *row)
        return row[0]

    return await in_table(stage, url, call)


@scenario.contender("SQLAlchemy ORM", "sqlalchemy", "asyncpg")
async def sqlalchemy_orm(stage: Stage) -> Calls:
    """A session, an object and a commit a call."""
    from benchmarks.orm import PostgresEvent, sessions

    url = await stage.events_database()
    session = sessions(stage, url)

    async def call(number: int) -> Any:
        values = events.as_dict(events.postgres_row(number))
        async with session() as one:
            one.add(PostgresEvent(**values))
            await one.commit()
        return values["id"]

    return await in_table(stage, url, call)


@scenario.contender("SQLAlchemy Core", "sqlalchemy", "asyncpg")
async def sqlalchemy_core(stage: Stage) -> Calls:
    """A transaction with one insert a call."""
    from sqlalchemy.dialects.postgresql import insert

    from benchmarks.orm import PostgresEvent, engine

    url = await stage.events_database()
    pool = engine(stage, url)
    statement = insert(PostgresEvent).on_conflict_do_nothing(index_elements=["id"])

    async def call(number: int) -> Any:
        values = events.as_dict(events.postgres_row(number))
        async with pool.begin() as connection:
            await connection.execute(statement, values)
        return values["id"]

    return await in_table(stage, url, call)


@scenario.contender("LangGraph AsyncPostgresStore", "langgraph.store.postgres", "psycopg")
async def langgraph(stage: Stage) -> Calls:
    """A put into its own table, which it batches as well."""
    import psycopg
    from langgraph.store.postgres.aio import AsyncPostgresStore

    url = stage.postgres()
    store = await stage.open(AsyncPostgresStore.from_conn_string(url))
    await store.setup()
    other = await stage.open(await psycopg.AsyncConnection.connect(url, autocommit=True))

    async def call(number: int) -> UUID:
        event_id = data.uuid7()
        await store.aput(("events", data.user(number)), str(event_id), _plain(number), index=False)
        return event_id

    async def check(number: int, result: UUID) -> None:
        item = await store.aget(("events", data.user(number)), str(result))
        if item is None or item.value != _plain(number):
            raise WrongResultError("the event is not there")

    async def reset() -> None:
        await other.execute("TRUNCATE store")

    async def count() -> int:
        (rows,) = await (await other.execute("SELECT count(*) FROM store")).fetchone() or (0,)
        return int(rows)

    return Calls(call, check, reset, count)


def _plain(number: int) -> Mapping[str, Any]:
    return {
        "event_type": data.event_type(number),
        "message": data.text(number),
        "context": data.context(number),
        "level": "INFO",
        "username": "ada",
    }


@scenario.contender("eventsourcing", "eventsourcing", "psycopg")
async def eventsourcing(stage: Stage) -> Calls:
    """Its PostgreSQL recorder, into its own table, in ten threads."""
    from eventsourcing.persistence import StoredEvent
    from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

    place = urlsplit(stage.postgres())
    store = PostgresDatastore(
        place.path.strip("/"), place.hostname or "", place.port or 0, place.username or "", place.password or "",
        pool_size=events.POOL,
    )  # fmt: skip
    stage.at_end(partial(asyncio.to_thread, store.close))
    recorder = PostgresApplicationRecorder(store)
    recorder.create_table()
    threads = ThreadPoolExecutor(events.POOL)
    stage.at_end(partial(asyncio.to_thread, threads.shutdown))
    loop = asyncio.get_running_loop()

    async def call(number: int) -> UUID:
        event_id = data.uuid7()
        event = StoredEvent(event_id, 1, data.event_type(number), json.dumps(_plain(number)).encode())
        await loop.run_in_executor(threads, recorder.insert_events, [event])
        return event_id

    async def check(number: int, result: UUID) -> None:
        (event,) = await loop.run_in_executor(threads, recorder.select_events, result)
        if json.loads(event.state) != _plain(number):
            raise WrongResultError("the event is not there")

    def truncate() -> None:
        with store.transaction(commit=True) as cursor:
            cursor.execute("TRUNCATE stored_events")

    def rows() -> int:
        with store.transaction() as cursor:
            cursor.execute("SELECT count(*) AS rows FROM stored_events")
            return int((cursor.fetchone() or {"rows": 0})["rows"])

    return Calls(call, check, partial(asyncio.to_thread, truncate), partial(asyncio.to_thread, rows))


async def in_table(stage: Stage, url: str, call: Callable[[int], Awaitable[Any]]) -> Calls:
    """Return the calls of a contender who writes to multidb's table at *url* and returns the id."""
    import asyncpg

    connection = await asyncpg.connect(url)
    stage.at_end(connection.close)

    async def check(number: int, result: UUID) -> None:
        row = await connection.fetchrow(
            "SELECT user_id, message, context, search FROM multidb_events WHERE id = $1", result
        )
        if row is None or (row["user_id"], row["message"]) != (data.user(number), data.text(number)):
            raise WrongResultError("the event is not there")
        if json.loads(row["context"]) != data.context(number):
            raise WrongResultError("the event has another context")

    async def reset() -> None:
        await connection.execute("TRUNCATE multidb_events")

    async def count() -> int:
        return int(await connection.fetchval("SELECT count(*) FROM multidb_events"))

    return Calls(call, check, reset, count)

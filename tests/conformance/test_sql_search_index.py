"""The index for searching: made or not, made later, by one process of many, and done without."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from multidb.engines.sql import SqlEngine
from multidb.logs._records import Event
from multidb.logs.backends.sql import SqlLogBackend
from multidb.logs.protocol import Appended, Query
from multidb.testing import servers
from multidb.testing.conformance._log_data import NOON, TICK, entries, event, ids, newest_first, store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(120)

needs_postgres = pytest.mark.skipif(
    servers.own_skip_reason("postgres") is not None, reason=str(servers.own_skip_reason("postgres"))
)

LONG = "ş" * 300_000
# As docs/backends has it.
DROP = {
    "postgresql": ["DROP INDEX CONCURRENTLY multidb_events_search"],
    "sqlite": [
        "DROP TRIGGER multidb_events_inserted",
        "DROP TRIGGER multidb_events_deleted",
        "DROP TABLE multidb_events_trigrams",
        "DROP TABLE multidb_events_search",
    ],
}
IS_THERE = {
    "postgresql": "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('multidb_events_search')",
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE name = 'multidb_events_search'",
}


@asynccontextmanager
async def opened(url: str, *, search_index: bool) -> AsyncIterator[SqlLogBackend]:
    engine = SqlEngine(url, command_timeout_seconds=20)
    await engine.open()
    try:
        backend = SqlLogBackend(engine, search_index=search_index)
        await backend.open()
        yield backend
    finally:
        await engine.close()


async def execute(url: str, *statements: str) -> list[Any]:
    """Run statements past multidb; return the rows of the last."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as db:
            return [db.execute(statement).fetchall() for statement in statements][-1]
    connection = await asyncpg.connect(url)
    try:
        return [[tuple(row) for row in await connection.fetch(statement)] for statement in statements][-1]
    finally:
        await connection.close()


async def is_there(url: str) -> bool:
    ((count,),) = await execute(url, IS_THERE[url.partition(":")[0]])
    return bool(count)


def some(count: int) -> list[Event]:
    """Return events: every tenth says "kedi", one of them at length."""
    return newest_first(
        event(
            "u",
            timestamp=NOON - TICK * n,
            message=("kedi " if n % 10 == 0 else "köpek ") + (LONG if n == 20 else ""),
        )
        for n in range(count)
    )


async def check(backend: SqlLogBackend, happened: list[Event]) -> None:
    """Search for a word and for two letters, count, append, and delete."""
    cats = [each for each in happened if each.message.startswith("kedi")]

    assert ids(cats) == ids(await backend.query(Query(Event, keyword="kedi", limit=1000)))
    assert ids(cats[:3]) == ids(await backend.query(Query(Event, keyword="ke", limit=3)))
    assert [] == await backend.query(Query(Event, keyword="balik", limit=1000))
    assert {"": len(cats)} == await backend.count(Query(Event, keyword="kedi"))
    new = [event("v", message=f"balık {n}", timestamp=NOON - TICK * n) for n in range(3)]
    await store(backend, new[:1])
    await store(backend, new[1:])
    assert [Appended.DUPLICATE] * 3 == list(await backend.append(entries(new)))
    assert ids(new) == ids(await backend.query(Query(Event, keyword="balik")))
    assert 3 == await backend.delete(Query(Event, {"user_id": "v"}))
    assert [] == await backend.query(Query(Event, keyword="balik"))


async def test_without(url: str) -> None:
    """Without the index searches find the same."""
    happened = some(200)
    async with opened(url, search_index=False) as backend:
        await store(backend, happened)
        await check(backend, happened)

    assert not await is_there(url)


async def test_made_later(url: str) -> None:
    """Turned on, the index is made of what is there; turned off, what is there stays and is kept up to date."""
    happened = some(200)
    async with opened(url, search_index=False) as backend:
        await store(backend, happened)
    async with opened(url, search_index=True) as backend:
        assert await is_there(url)
        await check(backend, happened)
    async with opened(url, search_index=False) as backend:
        assert await is_there(url)
        await check(backend, happened)
    if url.startswith("sqlite"):
        await execute(
            url, "INSERT INTO multidb_events_search (multidb_events_search) VALUES ('integrity-check')"
        )


async def test_dropped(url: str) -> None:
    """Dropped as the documentation says it stays away until it is asked for."""
    happened = some(50)
    async with opened(url, search_index=True) as backend:
        await store(backend, happened)
    await execute(url, *DROP[url.partition(":")[0]])
    async with opened(url, search_index=False) as backend:
        assert not await is_there(url)
        await check(backend, happened)
    async with opened(url, search_index=True) as backend:
        assert await is_there(url)
        await check(backend, happened)


@pytest.mark.parametrize("count", [0, 200])
async def test_many_at_once(url: str, count: int) -> None:
    """Of many that would make the index at once one does, and all of them work."""
    happened = some(count)
    async with opened(url, search_index=False) as backend:
        if happened:
            await store(backend, happened)

    async def work() -> None:
        async with opened(url, search_index=True) as backend:
            found = await backend.count(Query(Event, keyword="kedi"))
            assert {"": count // 10} == found

    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(work())

    async with opened(url, search_index=True) as backend:
        assert await is_there(url)
        await check(backend, happened)


@needs_postgres
class TestPostgres:
    async def test_needs_no_extension(self, postgres_url: str) -> None:
        """Without the index a user who may not install pg_trgm can do without it."""
        await execute(
            postgres_url,
            "CREATE ROLE plain LOGIN PASSWORD 'p'",
            "GRANT CREATE ON SCHEMA public TO plain",
        )
        try:
            address = postgres_url.rpartition("@")[2]
            async with opened(f"postgresql://plain:p@{address}", search_index=False) as backend:
                await check(backend, [])
        finally:
            await execute(postgres_url, "DROP OWNED BY plain CASCADE", "DROP ROLE plain")

        assert [] == await execute(postgres_url, "SELECT FROM pg_extension WHERE extname = 'pg_trgm'")

    async def test_left_over(self, postgres_url: str) -> None:
        """An index that was not finished, as its maker died, is made anew."""
        happened = some(50)
        async with opened(postgres_url, search_index=True) as backend:
            await store(backend, happened)
        await execute(
            postgres_url,
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass('multidb_events_search')",
        )
        async with opened(postgres_url, search_index=True) as backend:
            await check(backend, happened)
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('multidb_events_search')"

        assert [(True,)] == await execute(postgres_url, valid)

    async def test_nobody_waits(self, postgres_url: str) -> None:
        """While one process makes the index, which waits for who writes, others start and append."""
        happened = some(50)
        async with opened(postgres_url, search_index=False) as backend:
            await store(backend, happened)
        writer = await asyncpg.connect(postgres_url)
        making = opened(postgres_url, search_index=True)
        try:
            await writer.execute("BEGIN; DELETE FROM multidb_events WHERE user_id = 'nobody'")
            opening = asyncio.create_task(making.__aenter__())
            while not await is_there(postgres_url):  # noqa: ASYNC110 -- what is waited for is on the server
                await asyncio.sleep(0.01)
            async with opened(postgres_url, search_index=True) as other:
                await check(other, happened)

            assert not opening.done()
            await writer.execute("COMMIT")
            await check(await opening, happened)
            await making.__aexit__(None, None, None)
        finally:
            await writer.close()

    async def test_merged_beside(self, postgres_url: str) -> None:
        """What is new is merged into the index before an INSERT has to, which would take a caller 50 ms."""
        await execute(postgres_url, "CREATE EXTENSION pgstattuple")
        async with opened(postgres_url, search_index=True) as backend:
            for page in range(20):
                await store(
                    backend, [event("u", message=f"kedi {page} {n} {LONG[:100]}") for n in range(100)]
                )
            async with asyncio.timeout(10):
                while await self._unmerged(postgres_url) > 600:  # noqa: ASYNC110 -- it is on the server
                    await asyncio.sleep(0.01)

            assert {"": 2000} == await backend.count(Query(Event, keyword="kedi"))

    async def _unmerged(self, url: str) -> int:
        ((count,),) = await execute(url, "SELECT pending_tuples FROM pgstatginindex('multidb_events_search')")
        return int(count)

    async def test_merged_by_nobody(self, postgres_url: str) -> None:
        """Where the index is another one's it is left to the server, and nobody hears of it."""
        async with opened(postgres_url, search_index=True):
            pass
        await execute(
            postgres_url,
            "CREATE ROLE guest LOGIN PASSWORD 'p'",
            "GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO guest",
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO guest",
        )
        try:
            address = postgres_url.rpartition("@")[2]
            async with opened(f"postgresql://guest:p@{address}", search_index=True) as backend:
                for _ in range(5):
                    await store(backend, [event("u", message="kedi") for _ in range(1000)])

                assert {"": 5000} == await backend.count(Query(Event, keyword="kedi"))
        finally:
            await execute(postgres_url, "DROP OWNED BY guest CASCADE", "DROP ROLE guest")

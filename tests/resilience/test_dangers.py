"""What a server's settings may lose is found at the start, said in health and in one line, and never in the way."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from multidb import MultiDB, Settings
from multidb.engines import _redis_dangers as redis_dangers
from multidb.engines.mongo import NO_REPLICA_SET
from multidb.errors import BackendUnavailableError
from multidb.instrumentation import Status
from multidb.logs.backends._sql_postgres import DANGERS
from multidb.logs.backends.memory import MemoryLogBackend
from multidb.resilience.dangers import Dangers
from multidb.testing import servers
from multidb.testing.faults import TcpProxy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FSYNC, COMMIT, PAGES, UNLOGGED = DANGERS
SLOW_SECONDS = 0.25

needs_postgres = pytest.mark.skipif(
    servers.own_skip_reason("postgres") is not None, reason=str(servers.own_skip_reason("postgres"))
)
needs_mongo = pytest.mark.skipif(
    servers.own_skip_reason("mongodb") is not None, reason=str(servers.own_skip_reason("mongodb"))
)
needs_valkey = pytest.mark.skipif(
    servers.own_skip_reason("valkey") is not None, reason=str(servers.own_skip_reason("valkey"))
)


def settings(tmp_path: Path, **others: Any) -> Settings:
    given: dict[str, Any] = {
        "postgres_url": "memory://",
        "mongodb_uri": "memory://",
        "redis_url": "memory://",
    }
    return Settings(**{**given, "data_dir": tmp_path, "spool_any_file_system": True, **others})


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of multidb about what is in danger."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "multidb" and record.levelno == logging.WARNING and "danger" in record.getMessage()
    ]


async def warnings_of(store: str, given: Settings) -> tuple[str, ...]:
    """Open and close; return what health says of a store that is UP."""
    async with MultiDB(given) as db:
        health = db.health()
    assert Status.UP is health[store].status
    assert all(not each.warnings for name, each in health.items() if name != store)
    assert () == db.health()[store].warnings  # Closed, nothing is known.
    return health[store].warnings


# PostgreSQL


@pytest.fixture(scope="module")
def fast_postgres() -> Iterator[servers.PostgresServer]:
    with servers.PostgresServer(fsync=False) as server:
        yield server


@pytest.fixture(scope="module")
def safe_postgres() -> Iterator[servers.PostgresServer]:
    with servers.PostgresServer() as server:
        yield server


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@needs_postgres
@pytest.mark.parametrize("fallback", ["on", "off"])
async def test_fast_postgres(
    fallback: str, fast_postgres: servers.PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """fsync=off and its like are in health and in one line, without a word of where the server is."""
    with fast_postgres.database() as url:
        found = await warnings_of("logs", settings(tmp_path, postgres_url=url, fallback=fallback))

    assert (FSYNC, COMMIT, PAGES) == found
    assert ["logs on postgresql: acknowledged data is in danger: " + "; ".join(found)] == said(caplog)
    assert fast_postgres.password not in caplog.text


@needs_postgres
async def test_safe_postgres(
    safe_postgres: servers.PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is said where nothing is wrong."""
    with safe_postgres.database() as url:
        assert () == await warnings_of("logs", settings(tmp_path, postgres_url=url))
    assert [] == said(caplog)


@needs_postgres
async def test_database_and_tables(safe_postgres: servers.PostgresServer, tmp_path: Path) -> None:
    """What is set for the database, and what somebody did to the tables, counts, too."""
    with safe_postgres.database() as url:
        given = settings(tmp_path, postgres_url=url)
        assert () == await warnings_of("logs", given)
        await execute(url, "ALTER TABLE multidb_sales SET UNLOGGED", "CREATE UNLOGGED TABLE others (n int)")
        assert (UNLOGGED,) == await warnings_of("logs", given)
        name = url.rpartition("/")[2]
        await execute(
            url, "ALTER TABLE multidb_sales SET LOGGED", f"ALTER DATABASE {name} SET synchronous_commit = off"
        )

        assert (COMMIT,) == await warnings_of("logs", given)


@needs_postgres
async def test_postgres_that_comes_later(
    fast_postgres: servers.PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Away at the start it is looked at when it appears, and said once, also after the next outage."""
    with fast_postgres.database() as url, TcpProxy.before(url) as proxy:
        proxy.refuse()
        given = settings(tmp_path, postgres_url=proxy.proxied(url), start="degraded")
        async with MultiDB(given) as db:
            assert () == db.health()["logs"].warnings
            for _ in range(2):
                proxy.heal()
                end = time.monotonic() + 10
                while db.health()["logs"].status is not Status.UP:
                    assert time.monotonic() < end
                    await asyncio.sleep(0.01)
                assert (FSYNC, COMMIT, PAGES) == db.health()["logs"].warnings
                proxy.refuse()
                assert (await db.logs.log_event("u", "x")).is_spooled

    assert 1 == len(said(caplog))


# Redis and Valkey


@pytest.fixture(scope="module")
def valkey() -> Iterator[servers.ValkeyServer]:
    with servers.ValkeyServer() as server:
        yield server


@needs_valkey
async def test_forgetful_valkey(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without an AOF a crash loses state; with a policy that evicts, so does a full memory."""
    with servers.ValkeyServer(fsync=False, arguments=["--maxmemory-policy", "allkeys-lru"]) as server:
        found = await warnings_of("state", settings(tmp_path, redis_url=server.url))

    assert (redis_dangers.NO_AOF, redis_dangers.EVICTS) == found
    assert ["state on redis: acknowledged data is in danger: " + "; ".join(found)] == said(caplog)


@needs_valkey
async def test_safe_valkey(
    valkey: servers.ValkeyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = settings(tmp_path, redis_url=valkey.url)
    assert () == await warnings_of("state", given)
    valkey.command("CONFIG SET appendfsync no")
    try:
        assert (redis_dangers.NO_SYNC,) == await warnings_of("state", given)
        valkey.command("CONFIG SET appendfsync everysec")
        assert () == await warnings_of("state", given)
    finally:
        valkey.command("CONFIG SET appendfsync always")
    assert 1 == len(said(caplog))


@needs_valkey
@pytest.mark.parametrize(
    ("forbidden", "expected"),
    [
        ("-config", (redis_dangers.EVICTS,)),
        ("-info", (redis_dangers.EVICTS,)),
        ("-config -info", (redis_dangers.UNKNOWN,)),
    ],
)
async def test_forbidden(
    forbidden: str, expected: tuple[str, ...], valkey: servers.ValkeyServer, tmp_path: Path
) -> None:
    """Where CONFIG GET is forbidden INFO tells most of it; where that is, too, it is unknown. Never an error."""
    valkey.command(f"ACL SETUSER bot on >canary ~* &* +@all {forbidden}")
    valkey.command("CONFIG SET maxmemory-policy volatile-ttl")
    try:
        url = f"redis://bot:canary@127.0.0.1:{valkey.port}/0"
        assert expected == await warnings_of("state", settings(tmp_path, redis_url=url))
    finally:
        valkey.command("CONFIG SET maxmemory-policy noeviction")


@needs_valkey
async def test_cluster(tmp_path: Path) -> None:
    """Of a cluster every master is asked."""
    with servers.ValkeyCluster() as cluster:
        given = settings(tmp_path, redis_url=cluster.url.replace("redis:", "redis+cluster:"))
        assert () == await warnings_of("state", given)
        cluster.nodes[2].command("CONFIG SET maxmemory-policy allkeys-lfu")

        assert (redis_dangers.EVICTS,) == await warnings_of("state", given)


# MongoDB


@needs_mongo
@pytest.mark.parametrize("driver", ["pymongo", "motor"])
async def test_lone_mongo(driver: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server that is no replica set has the only copy."""
    with servers.MongoServer() as server:
        found = await warnings_of("profiles", settings(tmp_path, mongodb_uri=server.url, mongo_driver=driver))

    assert (NO_REPLICA_SET,) == found
    assert [f"profiles on mongodb: acknowledged data is in danger: {NO_REPLICA_SET}"] == said(caplog)


@needs_mongo
async def test_replica_set(tmp_path: Path) -> None:
    with servers.MongoServer(replica_set=True) as server:
        assert () == await warnings_of("profiles", settings(tmp_path, mongodb_uri=server.url))
        alone = f"mongodb://127.0.0.1:{server.port}/?directConnection=true"
        assert () == await warnings_of("profiles", settings(tmp_path, mongodb_uri=alone))


# Never in the way


class Asked(MemoryLogBackend):
    """A backend of the program's own that is asked."""

    def __init__(self, answer: Sequence[str] | Exception | None) -> None:
        super().__init__()
        self._answer = answer

    async def dangers(self) -> Sequence[str]:
        if self._answer is None:
            await asyncio.Event().wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer or ()


async def test_own_backend(tmp_path: Path) -> None:
    """A backend of one's own may have the power, too."""
    async with MultiDB(settings(tmp_path), logs=Asked(["no disk"])) as db:
        assert ("no disk",) == db.health()["logs"].warnings


@pytest.mark.parametrize("error", [BackendUnavailableError("gone"), ValueError("canary"), None])
async def test_no_answer(error: Exception | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server that gives no answer, or a strange one, delays the start by the deadline at most, and no more."""
    caplog.set_level(logging.INFO, "multidb")
    began = time.monotonic()
    async with MultiDB(settings(tmp_path, deadline_seconds=0.3), logs=Asked(error)) as db:
        assert time.monotonic() - began < 0.3 + SLOW_SECONDS
        assert () == db.health()["logs"].warnings
        await db.logs.log_event("u", "x")
    assert "its settings are unknown" in caplog.text
    assert "canary" not in caplog.text


async def test_said_again_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    """The same is said once; what was not known before is said."""
    backend = Asked(["a"])
    dangers = Dangers(backend, "logs", 1.0)
    for answer in (["a"], ["a"], [], ["a", "b"]):
        backend._answer = answer
        await dangers.look()
        assert tuple(answer) == dangers.found

    assert 2 == len(said(caplog))


@needs_postgres
@needs_valkey
async def test_takes_no_time(
    safe_postgres: servers.PostgresServer, valkey: servers.ValkeyServer, tmp_path: Path
) -> None:
    """It is one round trip."""
    with safe_postgres.database() as url:
        async with MultiDB(settings(tmp_path, postgres_url=url, redis_url=valkey.url, fallback="off")) as db:
            seconds = {}
            for store, one in db._built.items():
                began = time.perf_counter()
                await Dangers(one.backend, store, 2.0).look()
                seconds[store] = time.perf_counter() - began
    print("\nto look at the settings:", {store: f"{1000 * each:.2f} ms" for store, each in seconds.items()})

    assert max(seconds.values()) < SLOW_SECONDS

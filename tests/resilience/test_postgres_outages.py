"""
Logs on a PostgreSQL server that dies, hangs, refuses and lies: nothing acknowledged is lost or doubled, nobody waits.

MULTIDB_TEST_RESILIENCE_SCALE=1 runs 200 kills of a program and 80 of the server, and 100 by four programs; the default is a fiftieth.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import pytest

import multidb
from multidb import MultiDB, Settings
from multidb.errors import BackendUnavailableError, ConfigurationError, OverloadedError
from multidb.instrumentation import Status
from multidb.testing import servers
from multidb.testing.faults import (
    Crasher,
    TcpProxy,
    killed,
    paused,
    postgres_disk_full,
    postgres_read_only,
    postgres_terminate,
    restarted,
    seeded,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path
    from uuid import UUID

    from multidb.testing.servers import PostgresServer

pytestmark = [
    pytest.mark.skipif(
        servers.skip_reason("postgres") is not None, reason=str(servers.skip_reason("postgres"))
    ),
    pytest.mark.timeout(3600),
]

SCALE = float(os.environ.get("MULTIDB_TEST_RESILIENCE_SCALE", "0.02"))
OUTAGE_SECONDS = 3.0 if SCALE >= 1 else 1.5
DEADLINE = 2.0
MOST_SECONDS = DEADLINE + 0.25
BACK_SECONDS = 2.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with servers.PostgresServer() as server:
        yield server


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    with server.database() as url:
        yield url


def settings(url: str, tmp_path: Path, **others: Any) -> Settings:
    given = {"mongodb_uri": "memory://", "redis_url": "memory://", "data_dir": tmp_path}
    return Settings(**{"postgres_url": url, "spool_any_file_system": True, **given, **others})


def status(db: MultiDB) -> Status:
    return db.health()["logs"].status


async def until_up(db: MultiDB, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while status(db) is not Status.UP:
        assert time.monotonic() < end, db.health()["logs"]
        await asyncio.sleep(0.01)


async def stored(url: str) -> list[UUID]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return [row[0] for row in await connection.fetch("SELECT id FROM multidb_events")]
    finally:
        await connection.close()


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@dataclass
class Load:
    """Tasks that log one event after the other, and what they were told."""

    db: MultiDB
    acknowledged: list[UUID] = field(default_factory=list)
    spooled: int = 0
    seconds: list[float] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    last_stored: float = 0.0
    first_stored_after: float | None = None
    healed: float = float("inf")
    is_back: asyncio.Event = field(default_factory=asyncio.Event)
    running: bool = True

    async def task(self, number: int) -> None:
        while self.running:
            began = time.monotonic()
            try:
                event = await self.db.logs.log_event(number, "load", "merhaba", context={"n": number})
            except Exception as exc:  # noqa: BLE001
                self.errors.append(exc)
            else:
                self.acknowledged.append(event.id)
                self.spooled += event.is_spooled
                if not event.is_spooled and self.first_stored_after is None and began >= self.healed:
                    self.first_stored_after = time.monotonic() - self.healed
                    self.is_back.set()
            self.seconds.append(time.monotonic() - began)
            await asyncio.sleep(0.002)


@asynccontextmanager
async def load(db: MultiDB, tasks: int = 20) -> AsyncIterator[Load]:
    """Log until the block ends."""
    load = Load(db)
    running = [asyncio.create_task(load.task(number)) for number in range(tasks)]
    await asyncio.sleep(0.3)
    try:
        yield load
    finally:
        load.running = False
        await asyncio.gather(*running)


@asynccontextmanager
async def _hole(proxy: TcpProxy) -> AsyncIterator[None]:
    proxy.black_hole()
    yield
    proxy.heal()


@asynccontextmanager
async def _cut(proxy: TcpProxy) -> AsyncIterator[None]:
    proxy.partition()
    yield
    proxy.heal()


@asynccontextmanager
async def _refusing(proxy: TcpProxy) -> AsyncIterator[None]:
    proxy.refuse()
    yield
    proxy.heal()


OUTAGES: dict[str, Callable[[PostgresServer, TcpProxy, str], Any]] = {
    "stopped": lambda server, proxy, url: paused(server),
    "killed": lambda server, proxy, url: killed(server),
    "black hole": lambda server, proxy, url: _hole(proxy),
    "partition": lambda server, proxy, url: _cut(proxy),
    "refused": lambda server, proxy, url: _refusing(proxy),
    "read-only": lambda server, proxy, url: postgres_read_only(server),
    "disk full": lambda server, proxy, url: postgres_disk_full(url),
}


@pytest.mark.parametrize("outage", OUTAGES)
async def test_outage(outage: str, server: PostgresServer, url: str, tmp_path: Path) -> None:
    """Every call ends in time and is acknowledged; reads fail at once; it is back soon; all is there, once."""
    with TcpProxy.before(url) as proxy:
        async with MultiDB(settings(proxy.proxied(url), tmp_path)) as db, load(db) as given:
            async with OUTAGES[outage](server, proxy, url):
                await asyncio.sleep(OUTAGE_SECONDS)
                began = time.monotonic()
                reads = outage in ("read-only", "disk full")
                if reads:
                    assert len(await db.logs.get_events(limit=5)) == 5
                else:
                    with pytest.raises(BackendUnavailableError, match="away"):
                        await db.logs.get_events()
                    assert time.monotonic() - began < 0.05
                expected = Status.READ_ONLY if outage == "read-only" else Status.DEGRADED
                assert expected is status(db)
                assert db.health()["logs"].backlog_records > 0
            given.healed = time.monotonic()
            with suppress(TimeoutError):
                await asyncio.wait_for(given.is_back.wait(), 15)
            given.running = False
            await until_up(db)
        print(
            f"\n{outage}: {len(given.seconds)} calls, slowest {max(given.seconds):.3f} s, {given.spooled} spooled,"
            f" back after {given.first_stored_after:.2f} s"
        )

        assert [] == given.errors
        assert given.spooled > 0
        assert max(given.seconds) <= MOST_SECONDS
        assert given.first_stored_after <= BACK_SECONDS
        found = await stored(url)
        assert Counter(given.acknowledged) == Counter(found)
    assert not (tmp_path / "spool").exists()


async def test_clean_restart(server: PostgresServer, url: str, tmp_path: Path) -> None:
    """A restart, and sessions that are ended, lose nothing and are seen by nobody who logs."""
    async with MultiDB(settings(url, tmp_path)) as db:
        async with load(db) as given:
            await restarted(server)
            await asyncio.sleep(1)
            await postgres_terminate(url)
            await asyncio.sleep(0.5)
        await until_up(db)

        assert [] == given.errors
        assert Counter(given.acknowledged) == Counter(await stored(url))


@pytest.mark.parametrize("then", ["close", "hang"])
async def test_lost_replies(then: Any, url: str, tmp_path: Path) -> None:
    """Of 5 % of all writes the answer is lost: no event is lost or doubled."""
    with seeded() as seed, TcpProxy.before(url, seed=seed) as proxy:
        async with MultiDB(settings(proxy.proxied(url), tmp_path)) as db:
            async with load(db, 10) as given:
                proxy.swallow_replies(share=0.05, spare=6, then=then)
                await asyncio.sleep(2 + 4 * min(SCALE, 1))
                swallowed = proxy.stats().swallowed
                proxy.heal()
            await until_up(db)
            duplicates = db.health()["logs"].duplicates
        print(
            f"\n{swallowed} answers lost of {len(given.acknowledged)} calls, {duplicates} duplicates suppressed"
        )

        assert swallowed > 0
        assert [] == given.errors
        assert max(given.seconds) <= MOST_SECONDS
        assert Counter(given.acknowledged) == Counter(await stored(url))


# Never a reason to fall back


@pytest.mark.parametrize("start", ["strict", "degraded"])
async def test_wrong_password_at_start(start: str, url: str, tmp_path: Path) -> None:
    """A wrong password is an error at the start, whatever was asked for."""
    parts = urlsplit(url)
    wrong = parts._replace(netloc=f"postgres:wrong@{parts.hostname}:{parts.port}").geturl()
    with pytest.raises(ConfigurationError, match="password"):
        await MultiDB(settings(wrong, tmp_path, start=start)).open()

    assert not (tmp_path / "spool").exists()


async def test_wrong_password_later(server: PostgresServer, url: str, tmp_path: Path) -> None:
    """A password that is changed while it runs is an error of the calls; set right, all goes on."""
    role, name = "bot_outages", urlsplit(url).path.lstrip("/")
    with suppress(asyncpg.PostgresError):
        await execute(server.url, f"CREATE ROLE {role}")
    await execute(
        server.url, f"ALTER ROLE {role} LOGIN PASSWORD 'right'", f'ALTER DATABASE "{name}" OWNER TO {role}'
    )
    parts = urlsplit(url)
    own = parts._replace(netloc=f"{role}:right@{parts.hostname}:{parts.port}").geturl()
    async with MultiDB(settings(own, tmp_path, log_search_index=False)) as db:
        await db.logs.log_event("u", "x")
        await execute(server.url, f"ALTER ROLE {role} PASSWORD 'other'")
        await postgres_terminate(url)
        failures = []
        for _ in range(10):
            try:
                await db.logs.log_event("u", "y")
            except ConfigurationError as exc:
                failures.append(exc)
            await asyncio.sleep(0.1)
        assert len(failures) >= 5
        assert status(db) in (Status.DOWN, Status.UP)
        await execute(server.url, f"ALTER ROLE {role} PASSWORD 'right'")
        await until_up(db)
        await asyncio.sleep(1.5)
        event = await db.logs.log_event("u", "z")

        assert not event.is_spooled
        assert 1 + (10 - len(failures)) + 1 == len(await stored(url))


async def test_missing_right(server: PostgresServer, url: str, tmp_path: Path) -> None:
    """A right that is taken away is an error of the calls, and nothing is spooled."""
    role, name = "bot_outages_rights", urlsplit(url).path.lstrip("/")
    with suppress(asyncpg.PostgresError):
        await execute(server.url, f"CREATE ROLE {role}")
    await execute(
        server.url, f"ALTER ROLE {role} LOGIN PASSWORD 'right'", f'GRANT ALL ON DATABASE "{name}" TO {role}'
    )
    async with MultiDB(settings(url, tmp_path)):
        pass
    await execute(url, f"GRANT SELECT ON multidb_events, multidb_schema_version TO {role}")
    parts = urlsplit(url)
    own = parts._replace(netloc=f"{role}:right@{parts.hostname}:{parts.port}").geturl()
    async with MultiDB(settings(own, tmp_path)) as db:
        for _ in range(5):
            with pytest.raises(ConfigurationError, match="privilege"):
                await db.logs.log_event("u", "x")

        assert Status.UP is status(db)
    assert not (tmp_path / "spool").exists()


async def test_probe_needs_no_more_than_an_append(server: PostgresServer, url: str, tmp_path: Path) -> None:
    """The probe works with the rights of the documentation, less those that deleting needs, and leaves nothing."""
    role, name = "bot_outages_probe", urlsplit(url).path.lstrip("/")
    with suppress(asyncpg.PostgresError):
        await execute(server.url, f"CREATE ROLE {role}")
    await execute(
        server.url, f"ALTER ROLE {role} LOGIN PASSWORD 'right'", f'GRANT ALL ON DATABASE "{name}" TO {role}'
    )
    async with MultiDB(settings(url, tmp_path)):
        pass
    await execute(
        url,
        f"GRANT SELECT, INSERT ON multidb_events, multidb_characters TO {role}",
        f"GRANT SELECT ON multidb_schema_version TO {role}",
    )
    parts = urlsplit(url)
    own = parts._replace(netloc=f"{role}:right@{parts.hostname}:{parts.port}").geturl()
    async with MultiDB(settings(own, tmp_path)) as db:
        with TcpProxy.before(url):
            async with postgres_read_only(server):
                assert (await db.logs.log_event("u", "x")).is_spooled
                await asyncio.sleep(1)
                assert Status.READ_ONLY is status(db)
        await until_up(db)

    assert 1 == len(await stored(url))


async def test_fallback_off(server: PostgresServer, url: str, tmp_path: Path) -> None:
    """Without a fallback it is the plain error, and nothing is spooled."""
    with TcpProxy.before(url) as proxy:
        async with MultiDB(settings(proxy.proxied(url), tmp_path, fallback="off")) as db:
            proxy.refuse()
            for _ in range(5):
                with pytest.raises(BackendUnavailableError):
                    await db.logs.log_event("u", "x")
            proxy.heal()
            await db.logs.log_event("u", "x")
    assert not (tmp_path / "spool").exists()


# Start and end


async def test_start_strict(url: str, tmp_path: Path) -> None:
    """A server that is away is a clear error."""
    with TcpProxy.before(url) as proxy:
        proxy.refuse()
        began = time.monotonic()
        with pytest.raises(BackendUnavailableError, match="POSTGRES_URL"):
            await MultiDB(settings(proxy.proxied(url), tmp_path)).open()
        assert time.monotonic() - began < MOST_SECONDS


async def test_start_degraded(url: str, tmp_path: Path) -> None:
    """Asked to, it starts without the server, and creates the tables when it appears."""
    with TcpProxy.before(url) as proxy:
        proxy.refuse()
        async with MultiDB(settings(proxy.proxied(url), tmp_path, start="degraded")) as db:
            events = [await db.logs.log_event("u", "x", str(n)) for n in range(30)]
            assert Status.DEGRADED is status(db)
            assert all(event.is_spooled for event in events)
            await asyncio.sleep(1)
            proxy.heal()
            await until_up(db)

            assert events[::-1] == await db.logs.get_events("u")


async def test_leftovers(url: str, tmp_path: Path) -> None:
    """What is in the spool when it ends, in time, is replayed by the next one."""
    with TcpProxy.before(url) as proxy:
        given = settings(proxy.proxied(url), tmp_path)
        async with MultiDB(given) as db:
            proxy.black_hole()
            events = await asyncio.gather(*(db.logs.log_event("u", "x", str(n)) for n in range(50)))
            began = time.monotonic()
        assert time.monotonic() - began < 5
        proxy.heal()
        async with MultiDB(given) as db:
            await until_up(db)

            assert 50 == len(await db.logs.get_events("u"))
            assert {event.id for event in events} == set(await stored(url))
    assert not (tmp_path / "spool").exists()


def test_second_run(url: str, tmp_path: Path) -> None:
    """An event loop that ends in an outage, without a close, leaves its spool to the next one in the process."""
    with TcpProxy.before(url) as proxy:
        given = settings(proxy.proxied(url), tmp_path)

        async def first() -> None:
            db = await multidb.init_all(given)
            proxy.refuse()
            assert (await db.logs.log_event("u", "x")).is_spooled

        async def second() -> None:
            db = await multidb.init_all(given)
            await until_up(db)
            assert 1 == len(await db.logs.get_events("u"))
            await multidb.close_all()

        asyncio.run(first())
        proxy.heal()
        asyncio.run(second())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_fork_in_an_outage(url: str, tmp_path: Path) -> None:
    """A child that is forked in an outage knows that nothing is its own; the parent's spool is not touched."""
    with TcpProxy.before(url) as proxy:
        async with MultiDB(settings(proxy.proxied(url), tmp_path)) as db:
            proxy.refuse()
            assert (await db.logs.log_event("u", "x")).is_spooled
            child = os.fork()
            if child == 0:
                closed = status(db) is Status.CLOSED
                db.abandon()
                os._exit(0 if closed else 1)
            assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # noqa: ASYNC222
            assert (await db.logs.log_event("u", "x")).is_spooled
            proxy.heal()
            await until_up(db)

            assert 2 == len(await stored(url))


async def test_cancelled(url: str, tmp_path: Path) -> None:
    """A caller that is cancelled in an outage takes nobody along."""
    with TcpProxy.before(url) as proxy:
        async with MultiDB(settings(proxy.proxied(url), tmp_path)) as db:
            proxy.black_hole()
            calls = [asyncio.create_task(db.logs.log_event("u", "x", str(n))) for n in range(20)]
            bulk = asyncio.create_task(db.logs.log_events([{"user_identifier": 1, "event_type": "y"}] * 10))
            await asyncio.sleep(0.1)
            for call in calls[::2]:
                call.cancel()
            bulk.cancel()
            said = await asyncio.gather(*calls, bulk, return_exceptions=True)
            proxy.heal()
            await until_up(db)
            found = Counter(await stored(url))

            assert all(event.is_spooled and found[event.id] == 1 for event in said[1:20:2])
            assert all(isinstance(each, asyncio.CancelledError) for each in (*said[:20:2], said[20]))
            assert set(found.values()) == {1}


async def test_no_place_for_a_spool(url: str, tmp_path: Path) -> None:
    """A folder that cannot be written is an error at the start, that names the settings."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="MULTIDB_SPOOL_DIR") as caught:
        await MultiDB(settings(url, tmp_path, spool_any_file_system=False, spool_dir="/proc/1/spool")).open()

    assert "MULTIDB_FALLBACK=off" in str(caught.value)


async def test_embedded_backends_have_none(tmp_path: Path) -> None:
    """SQLite, files and memory stand on this machine: they have no failover, and are UP while they are open."""
    for place in (f"sqlite:///{tmp_path}/x.db", f"file://{tmp_path}/logs", "memory://"):
        db = MultiDB(settings(place, tmp_path))
        assert {Status.CLOSED} == {health.status for health in db.health().values()}
        async with db:
            await db.logs.log_event("u", "x")
            assert {Status.UP} == {health.status for health in db.health().values()}
            assert {"logs", "profiles", "state"} == set(db.health())
        assert {Status.CLOSED} == {health.status for health in db.health().values()}
    assert not (tmp_path / "spool").exists()


# Kills

PROGRAM = """
import asyncio, sys
from uuid import uuid4
from multidb import MultiDB, Settings
from multidb.instrumentation import Status
from multidb.testing.faults import child

URL, FOLDER = sys.argv[1:]

async def main():
    settings = Settings(
        postgres_url=URL, mongodb_uri="memory://", redis_url="memory://", data_dir=FOLDER,
        spool_any_file_system=True, spool_min_free_bytes=0, start="degraded",
    )
    async with MultiDB(settings) as db:
        if child.is_last():
            while db.health()["logs"].status is not Status.UP:
                await asyncio.sleep(0.02)
            return
        child.point("open")

        async def task(number):
            while True:
                event_id = uuid4()
                child.sent(str(event_id))
                await db.logs.log_event(number, "load", "merhaba", event_id=event_id)
                child.acknowledged(str(event_id))

        await asyncio.gather(*(task(number) for number in range(30)))

asyncio.run(main())
"""


@pytest.mark.parametrize(("workers", "kills", "server_kills"), [(1, 200, 80), (4, 100, 17)])
async def test_kills(
    workers: int, kills: int, server_kills: int, server: PostgresServer, url: str, tmp_path: Path
) -> None:
    """Programs and the server are killed over and over, under load: nothing acknowledged is lost or doubled."""
    kills, server_kills = max(workers + 2, round(kills * SCALE)), max(2, round(server_kills * SCALE))
    crasher = Crasher(PROGRAM, [url, tmp_path], workers=workers, seconds=(0.2, 1.2))
    running = asyncio.create_task(crasher.run_async(kills, finish_seconds=None))
    killed_servers = 0
    while not running.done():
        await asyncio.wait((running,), timeout=0.5 + 1.5 * (killed_servers % 3) / 2)
        if killed_servers < server_kills or SCALE >= 1:
            async with killed(server):
                await asyncio.sleep(0.2)
            killed_servers += 1
    ledger = running.result()
    last = Crasher(PROGRAM, [url, tmp_path], seconds=(0, 1))
    await last.run_async(0, finish_seconds=120)
    found = [str(each) for each in await stored(url)]
    print(f"\n{workers} workers: {ledger}; {killed_servers} kills of PostgreSQL; {len(found)} stored")

    assert killed_servers >= server_kills
    ledger.check(found)
    assert not list((tmp_path / "spool").rglob("*.jsonl"))


async def test_no_connection_left(url: str, tmp_path: Path) -> None:
    """A server that others have all connections of serves on those that multidb has; nothing is spooled."""
    others: list[Any] = []
    async with MultiDB(settings(url, tmp_path)) as db:
        await db.logs.log_event("u", "x")
        try:
            with suppress(asyncpg.TooManyConnectionsError):
                while True:
                    others.append(await asyncpg.connect(url))
            found = await asyncio.gather(
                *(db.logs.search_events("x") for _ in range(4)), return_exceptions=True
            )
            await asyncio.sleep(0.5)

            assert any(isinstance(each, OverloadedError) for each in found)
            assert not (await db.logs.log_event("u", "x")).is_spooled
            assert Status.UP is status(db)
        finally:
            await asyncio.gather(*(other.close() for other in others))

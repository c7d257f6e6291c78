"""
Several MultiDBs, event loops, forks and processes on one data folder, while PostgreSQL is away and the spool is in use.

Each works or gives a clear error, and nothing acknowledged is lost or doubled. MULTIDB_TEST_RESILIENCE_SCALE=1 runs 100
kills of four programs; the default is a tenth.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import multidb
from multidb import MultiDB, Settings
from multidb.errors import ClosedError
from multidb.instrumentation import Status
from multidb.resilience.spool import tools
from multidb.testing import servers
from multidb.testing.faults import Crasher, TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from uuid import UUID

    from multidb.testing.servers import PostgresServer

pytestmark = [
    pytest.mark.skipif(
        servers.skip_reason("postgres") is not None, reason=str(servers.skip_reason("postgres"))
    ),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.timeout(3600),
]

SCALE = float(os.environ.get("MULTIDB_TEST_RESILIENCE_SCALE", "0.02"))


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with servers.PostgresServer() as server:
        yield server


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    with server.database() as url:
        yield url


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def settings(url: str, tmp_path: Path, **others: Any) -> Settings:
    given = {"mongodb_uri": "memory://", "redis_url": "memory://", "data_dir": tmp_path}
    return Settings(**{"postgres_url": url, "spool_any_file_system": True, **given, **others})


async def until_up(*dbs: MultiDB, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    for db in dbs:
        while db.health()["logs"].status is not Status.UP:
            assert time.monotonic() < end, db.health()["logs"]
            await asyncio.sleep(0.01)


async def stored(url: str) -> list[UUID]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return [row[0] for row in await connection.fetch("SELECT id FROM multidb_events")]
    finally:
        await connection.close()


def is_gone(root: Path) -> bool:
    return not root.exists()


def spool_of(db: MultiDB) -> Any:
    return db._built["logs"].backend._failover._spool


async def spooled(db: MultiDB, count: int = 20) -> list[UUID]:
    """Log, and see that it went to the disk."""
    events = await asyncio.gather(*(db.logs.log_event("u", "x", str(n)) for n in range(count)))
    assert all(event.is_spooled for event in events)
    return [event.id for event in events]


# One process


async def test_two_in_one_process(url: str, tmp_path: Path, root: Path) -> None:
    """Two MultiDBs on one folder each have their own; what one leaves when it is closed the other one takes over."""
    with TcpProxy.before(url) as proxy:
        given = settings(proxy.proxied(url), tmp_path)
        async with MultiDB(given) as one:
            async with MultiDB(given) as other:
                proxy.refuse()
                events = await spooled(one) + await spooled(other)
                owners = tools.owners(root)
                assert [(True, os.getpid(), 20)] * 2 == [
                    (owner.is_alive, owner.process_id, owner.records) for owner in owners
                ]
                assert 0 == await spool_of(one).adopt()
                assert 1 == spool_of(one).stats().others
            assert 20 == await spool_of(one).adopt()
            assert 40 == one.health()["logs"].backlog_records
            proxy.heal()
            await until_up(one)

            assert Counter(events) == Counter(await stored(url))
    assert is_gone(root)


async def test_two_recover_at_once(url: str, tmp_path: Path, root: Path) -> None:
    """Each replays its own, at the same time."""
    with TcpProxy.before(url) as proxy:
        given = settings(proxy.proxied(url), tmp_path)
        async with MultiDB(given) as one, MultiDB(given) as other:
            proxy.refuse()
            events = await spooled(one, 300) + await spooled(other, 300)
            proxy.heal()
            await until_up(one, other)

            assert Counter(events) == Counter(await stored(url))
            assert 0 == one.health()["logs"].duplicates + other.health()["logs"].duplicates
    assert is_gone(root)


async def test_other_thread(url: str, tmp_path: Path) -> None:
    """The event loop of another thread gets a clear error, and the outage goes on as it was."""
    with TcpProxy.before(url) as proxy:
        async with MultiDB(settings(proxy.proxied(url), tmp_path)) as db:
            proxy.refuse()
            events = await spooled(db)

            async def use() -> None:
                with pytest.raises(ClosedError, match="event loop"):
                    await db.logs.log_event("u", "x")
                with pytest.raises(ClosedError, match="another thread"):
                    await db.close()

            await asyncio.to_thread(lambda: asyncio.run(use()))
            events += await spooled(db)
            proxy.heal()
            await until_up(db)

            assert Counter(events) == Counter(await stored(url))


# One event loop after the other


def forgotten(left: list[MultiDB]) -> list[str]:
    """Forget what is *left*; return what Python says to that. A warning itself keeps what it is about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        left.clear()
        gc.collect()
        said = [str(each.message) for each in caught]
        caught.clear()
        gc.collect()
    return said


@pytest.mark.parametrize("how", ["init_all", "close", "forgotten"])
def test_second_run(how: str, url: str, tmp_path: Path, root: Path) -> None:
    """
    An event loop that ended in an outage without a close: the next one in the process finds the records.

    Whether it calls `init_all()` again, closes the old one first, or has simply forgotten it.
    """
    left: list[MultiDB] = []
    events: list[UUID] = []
    with TcpProxy.before(url) as proxy:
        given = settings(proxy.proxied(url), tmp_path)

        async def first() -> None:
            db = await multidb.init_all(given) if how == "init_all" else MultiDB(given)
            await db.open()
            proxy.refuse()
            events.extend(await spooled(db))
            left.append(db)

        async def second() -> None:
            if how == "close":
                with pytest.raises(ClosedError, match="another event loop"):
                    await left[0].logs.log_event("u", "x")
                await left[0].close()
            db = await multidb.init_all(given)
            await until_up(db)
            assert Counter(events) == Counter(await stored(url))
            await multidb.close_all()

        asyncio.run(first())
        proxy.heal()
        if how == "forgotten":
            assert any("unclosed <MultiDB" in each for each in forgotten(left))
        asyncio.run(second())
    assert is_gone(root)


# Forks

PROGRAM = """
import asyncio, os, signal, sys
import multidb
from multidb import MultiDB, Settings, Status
from multidb.errors import ClosedError

URL, FOLDER, HOW = sys.argv[1:]

def settings():
    return Settings(
        postgres_url=URL, mongodb_uri="memory://", redis_url="memory://", data_dir=FOLDER,
        spool_any_file_system=True, spool_min_free_bytes=0, start="degraded",
    )

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def until_up(db):
    while db.health()["logs"].status is not Status.UP:
        await asyncio.sleep(0.01)

async def in_child(db):
    assert db.health()["logs"].status is Status.CLOSED, db.health()
    try:
        await db.logs.log_event("child", "x")
    except ClosedError as exc:
        assert "fork" in str(exc), exc
    else:
        raise AssertionError("the parent's was used")
    if HOW == "nothing":
        return
    own = await multidb.init_all(settings())
    for n in range(50):
        event = await own.logs.log_event("child", "x", str(n))
        assert event.is_spooled
        say("event", event.id)
    if HOW == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    await multidb.close_all()

def child(db):
    try:
        asyncio.run(in_child(db))
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

async def main():
    db = await multidb.init_all(settings())
    running = True

    async def load(number):
        while running:
            event = await db.logs.log_event("parent", "x", str(number))
            say("event", event.id)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(load(number)) for number in range(10)]
    await asyncio.sleep(0.2)
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            child(db)
        _, code = await asyncio.to_thread(os.waitpid, pid, 0)
        code = os.waitstatus_to_exitcode(code)
        assert code == (-signal.SIGKILL if HOW == "killed" else 0), code
        await asyncio.sleep(0.05)
    running = False
    await asyncio.gather(*tasks)
    say("spooled", db.health()["logs"].backlog_records)
    await asyncio.to_thread(sys.stdin.readline)
    await until_up(db)
    await db._built["logs"].backend._failover._spool.adopt()
    await until_up(db)
    await multidb.close_all()

asyncio.run(main())
"""


class Program:
    """A program that says a line for each event that is acknowledged."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[str] = []

    async def until(self, word: str) -> str:
        """Listen until it says *word*; return the rest of that line."""
        assert self.process.stdout is not None
        while line := (await asyncio.wait_for(self.process.stdout.readline(), 60)).decode():
            what, _, rest = line.strip().partition(" ")
            if what == "event":
                self.events.append(rest)
            elif what == word:
                return rest
        assert self.process.stderr is not None
        raise AssertionError(f"it ended without {word!r}: {(await self.process.stderr.read()).decode()}")

    async def end(self) -> None:
        """Let it go on, and see it end well."""
        said, errors = await asyncio.wait_for(self.process.communicate(b"\n"), 60)
        self.events += [line.split()[1] for line in said.decode().splitlines() if line.startswith("event ")]
        assert 0 == self.process.returncode, errors.decode()


@asynccontextmanager
async def program(source: str, *arguments: str | Path) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", source),
        *map(str, arguments),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Program(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("how", ["nothing", "closed", "killed"])
async def test_fork_in_an_outage(how: str, url: str, tmp_path: Path, root: Path) -> None:
    """
    A child that is forked under load knows that nothing is its own, and may open its own.

    Whether it closes that, or is killed: neither its records nor the parent's are lost or doubled.
    """
    async with MultiDB(settings(url, tmp_path)):
        pass
    with TcpProxy.before(url) as proxy:
        proxy.refuse()
        async with program(PROGRAM, proxy.proxied(url), tmp_path, how) as running:
            waiting = int(await running.until("spooled"))
            assert waiting > 0
            proxy.heal()
            await running.end()
        print(f"\n{how}: {len(running.events)} events, {waiting} in the parent's spool")

        assert Counter(running.events) == Counter(map(str, await stored(url)))
    assert is_gone(root)


LEFT_BY_THE_PARENT = """
import asyncio, os, sys, time
import multidb
from multidb import Settings

async def main():
    db = await multidb.init_all(Settings(
        postgres_url=sys.argv[1], mongodb_uri="memory://", redis_url="memory://", data_dir=sys.argv[2],
        spool_any_file_system=True, spool_min_free_bytes=0, start="degraded",
    ))
    for n in range(20):
        os.write(1, b"event %s\\n" % str((await db.logs.log_event("u", "x", str(n))).id).encode())
    child = os.fork()
    if child == 0:
        for descriptor in range(3):
            os.close(descriptor)
        time.sleep(60)
        os._exit(0)
    os.write(1, b"child %d\\n" % child)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_parent_killed_before_its_child(url: str, tmp_path: Path, root: Path) -> None:
    """What a killed process left is adopted, also while a child of its lives that was forked in the outage."""
    async with MultiDB(settings(url, tmp_path)):
        pass
    with TcpProxy.before(url) as proxy:
        proxy.refuse()
        async with program(LEFT_BY_THE_PARENT, proxy.proxied(url), tmp_path) as parent:
            child = int(await parent.until("child"))
            try:
                assert [True] == [owner.is_alive for owner in tools.owners(root)]
                parent.process.kill()
                await parent.process.wait()
                assert [False] == [owner.is_alive for owner in tools.owners(root)]
                proxy.heal()
                async with MultiDB(settings(proxy.proxied(url), tmp_path)) as db:
                    await until_up(db)
            finally:
                os.kill(child, signal.SIGKILL)

        assert Counter(parent.events) == Counter(map(str, await stored(url)))
    assert is_gone(root)


# Several processes

WORKER = """
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
        if db.health()["logs"].backlog_records:
            child.point("adopted")
        child.point("open")

        async def task(number):
            while True:
                event_id = uuid4()
                child.sent(str(event_id))
                event = await db.logs.log_event(number, "load", "merhaba", event_id=event_id)
                child.acknowledged(str(event_id))
                if event.is_spooled:
                    child.point("spooled")

        await asyncio.gather(*(task(number) for number in range(20)))

asyncio.run(main())
"""


async def test_four_processes(url: str, tmp_path: Path, root: Path) -> None:
    """Four programs on one folder are killed over and over, mostly in an outage; who comes next adopts the orphans."""
    kills = max(10, round(100 * SCALE))
    async with MultiDB(settings(url, tmp_path)):
        pass
    with TcpProxy.before(url) as proxy:
        arguments = [proxy.proxied(url), tmp_path]
        crasher = Crasher(WORKER, arguments, workers=4, seconds=(0.2, 1.0))
        dice = random.Random(crasher.seed)
        proxy.refuse()
        running = asyncio.create_task(crasher.run_async(kills, finish_seconds=None))
        while not running.done():
            await asyncio.wait((running,), timeout=dice.uniform(1.0, 2.5))
            proxy.heal()
            await asyncio.wait((running,), timeout=dice.uniform(0.1, 0.8))
            proxy.refuse()
        ledger = running.result()
        orphans = tools.owners(root)
        problems = tools.verify(root).problems
        proxy.heal()
        await Crasher(WORKER, arguments, seconds=(0, 1)).run_async(0, finish_seconds=120)
    found = [str(each) for each in await stored(url)]
    print(
        f"\n4 processes: {ledger}; {ledger.points['spooled']} spooled, adopted at {ledger.points['adopted']} of "
        f"{ledger.points['open']} starts, {len(orphans)} orphans at the end with "
        f"{sum(owner.records for owner in orphans)} records; {len(found)} stored, lost {len(ledger.lost(found))}, "
        f"doubled {len(ledger.doubled(found))}"
    )

    ledger.check(found)
    assert ledger.points["spooled"] > 0
    assert ledger.points["adopted"] > 0
    assert not any(owner.is_alive for owner in orphans)
    assert [] == problems
    assert is_gone(root)


@pytest.mark.skipif(SCALE < 1, reason="MULTIDB_TEST_RESILIENCE_SCALE=1: a running process looks every 30 s")
async def test_survivor_adopts(url: str, tmp_path: Path, root: Path) -> None:
    """A program that goes on takes over, by itself, what three that were killed left."""
    async with MultiDB(settings(url, tmp_path)):
        pass
    with TcpProxy.before(url) as proxy:
        proxy.refuse()
        async with MultiDB(settings(proxy.proxied(url), tmp_path, start="degraded")) as db:
            events = list(map(str, await spooled(db)))
            for _ in range(3):
                async with program(LEFT_BY_THE_PARENT, proxy.proxied(url), tmp_path) as other:
                    child = int(await other.until("child"))
                    os.kill(child, signal.SIGKILL)
                events += other.events
            proxy.heal()
            end = time.monotonic() + 45
            while len(await stored(url)) < len(events):
                assert time.monotonic() < end
                await asyncio.sleep(0.5)
            await until_up(db)

            assert Counter(events) == Counter(map(str, await stored(url)))
    assert is_gone(root)

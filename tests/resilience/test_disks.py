"""
Logs whose server is away, on disks that forget, fill up and fail: what was acknowledged gets to PostgreSQL all the same.

MULTIDB_TEST_RESILIENCE_SCALE=1 cuts the power 100 times and tears a record at every byte; the default is a part of that.
"""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import time
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest

from multidb import MultiDB, Settings
from multidb.errors import BackendError, OverloadedError
from multidb.instrumentation import Status
from multidb.testing import servers
from multidb.testing.faults import (
    LossyFS,
    TcpProxy,
    file_size_limit,
    lossyfs_skip_reason,
    seeded,
    torn_copies,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from multidb.testing.servers import PostgresServer

pytestmark = [
    pytest.mark.skipif(
        servers.skip_reason("postgres") is not None, reason=str(servers.skip_reason("postgres"))
    ),
    pytest.mark.timeout(3600),
]
on_fuse = pytest.mark.skipif(lossyfs_skip_reason() is not None, reason=str(lossyfs_skip_reason()))

SCALE = float(os.environ.get("MULTIDB_TEST_RESILIENCE_SCALE", "0.02"))
CUTS = max(3, round(25 * SCALE))
TORN_STEP = 1 if SCALE >= 1 else 43
DISKS = [("strict", "nothing"), ("ordered", "something"), ("strict", "something"), ("ordered", "nothing")]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with servers.PostgresServer() as server:
        yield server


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    with server.database() as url:
        yield url


def settings(url: str, spool: Path, **others: Any) -> Settings:
    given = {
        "postgres_url": url,
        "mongodb_uri": "memory://",
        "redis_url": "memory://",
        "spool_dir": spool,
        "spool_any_file_system": True,
        "spool_min_free_bytes": 0,
        "spool_segment_bytes": 20_000,
        "start": "degraded",
    }
    return Settings(**given | others)


async def until_up(db: MultiDB, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while db.health()["logs"].status is not Status.UP:
        assert time.monotonic() < end, db.health()["logs"]
        await asyncio.sleep(0.02)


async def stored(url: str) -> Counter[UUID]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return Counter(row[0] for row in await connection.fetch("SELECT id FROM multidb_events"))
    finally:
        await connection.close()


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def segments(spool: Path) -> list[Path]:
    return sorted(path for path in spool.rglob("*.jsonl") if "rejected" not in path.parts)


PROGRAM = """
import asyncio, os, sys
from uuid import uuid4
from multidb import MultiDB, Settings

URL, FOLDER = sys.argv[1:]

async def main():
    settings = Settings(
        postgres_url=URL, mongodb_uri="memory://", redis_url="memory://", spool_dir=FOLDER, start="degraded",
        spool_any_file_system=True, spool_min_free_bytes=0, spool_segment_bytes=20000,
    )
    async with MultiDB(settings) as db:
        async def task(number):
            while True:
                event_id = uuid4()
                event = await db.logs.log_event(number, "cut", "merhaba", event_id=event_id)
                assert event.is_spooled
                os.write(1, f"{event_id}\\n".encode())

        await asyncio.gather(*(task(number) for number in range(20)))

asyncio.run(main())
"""


def _life(url: str, disk: LossyFS, changes: int) -> list[UUID]:
    """Let a program log until the power is cut after so many changes of the disk; return what was acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, disk.path / "spool"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    said = b""
    disk.freeze_after(changes)
    end = time.monotonic() + 60
    while not disk.frozen:
        said += process.stdout.read() or b""
        assert process.poll() is None, process.communicate()[1].decode()[-1000:]
        assert time.monotonic() < end, "the disk is not used"
        time.sleep(0.005)
    process.kill()  # Before it hears of the cut.
    disk.power_cut()
    process.wait()
    said += process.communicate()[0] or b""
    return [UUID(line) for line in said.decode().split("\n")[:-1]]


@on_fuse
@pytest.mark.parametrize(("model", "survivors"), DISKS if SCALE >= 1 else DISKS[:2])
async def test_power_cuts(model: Any, survivors: Any, url: str) -> None:
    """A program is cut off over and over while PostgreSQL is away: what it was told is kept is there in the end."""
    acknowledged: list[UUID] = []
    with seeded() as seed, TcpProxy.before(url) as proxy:
        chance = Random(seed)
        with LossyFS(model=model, survivors=survivors, seed=seed) as disk:
            proxy.refuse()
            for _ in range(CUTS):
                changes = chance.randint(1, 400)
                acknowledged += await asyncio.to_thread(_life, proxy.proxied(url), disk, changes)
            proxy.heal()
            async with MultiDB(settings(proxy.proxied(url), disk.path / "spool")) as db:
                await until_up(db)
                rejected = db.health()["logs"].rejected
            found = await stored(url)
            left = segments(disk.path / "spool")
        lost = [each for each in acknowledged if not found[each]]
        doubled = [each for each, count in found.items() if count > 1]
        print(
            f"\n{CUTS} power cuts, {model}, {survivors} survives: {len(acknowledged)} acknowledged, lost {len(lost)},"
            f" doubled {len(doubled)}, {rejected} damaged lines set aside; seed {seed}"
        )

        assert not lost
        assert not doubled
        assert not left
        assert len(acknowledged) > 20 * CUTS


class Told:
    """What calls said, in an outage."""

    def __init__(self, db: MultiDB) -> None:
        self.db = db
        self.acknowledged: list[UUID] = []
        self.errors: list[BackendError] = []

    async def log(self, calls: int, tasks: int = 10) -> None:
        """Log so many events; errors of the disk are noted."""

        async def task() -> None:
            for _ in range(calls // tasks):
                try:
                    event = await self.db.logs.log_event("u", "x", "ş" * 50)
                except BackendError as exc:
                    self.errors.append(exc)
                else:
                    self.acknowledged.append(event.id)

        await asyncio.gather(*(task() for _ in range(tasks)))


async def _check(told: Told, url: str, what: str) -> None:
    await until_up(told.db)
    found = await stored(url)
    lost = [each for each in told.acknowledged if not found[each]]
    definite = sum(not error.ambiguous for error in told.errors)
    print(
        f"\n{what}: {len(told.acknowledged)} acknowledged, lost {len(lost)}; {len(told.errors)} errors, {definite} of them"
        f" definite, {sum(found.values())} stored"
    )

    assert not lost
    assert set(found.values()) == {1}
    assert (
        len(told.acknowledged) <= sum(found.values()) <= len(told.acknowledged) + len(told.errors) - definite
    )


@on_fuse
async def test_full_disk(url: str) -> None:
    """A disk that is full refuses calls, and keeps what it had acknowledged; with room again all goes on."""
    with TcpProxy.before(url) as proxy, LossyFS() as disk:
        async with MultiDB(settings(proxy.proxied(url), disk.path / "spool")) as db:
            told = Told(db)
            proxy.refuse()
            disk.limit(30_000)
            await told.log(600)
            assert {OverloadedError} == {type(error) for error in told.errors}
            assert db.health()["logs"].status is Status.DOWN
            disk.heal()
            before = len(told.acknowledged)
            await told.log(100)
            assert before + 100 == len(told.acknowledged)
            proxy.heal()
            await _check(told, url, "ENOSPC")
        assert not segments(disk.path / "spool")


@on_fuse
@pytest.mark.parametrize("operation", ["write", "fsync", "create", "fsyncdir"])
async def test_failing_disk(operation: Any, url: str) -> None:
    """A disk that fails now and then: what it fails is refused, the rest is kept."""
    with TcpProxy.before(url) as proxy, LossyFS() as disk:
        async with MultiDB(settings(proxy.proxied(url), disk.path / "spool")) as db:
            told = Told(db)
            proxy.refuse()
            for number in range(20):
                if number % 2 == 0:
                    disk.fail(operation, errno.EIO, after_calls=number % 3, times=2)
                await told.log(40)
                disk.heal()
            proxy.heal()
            await _check(told, url, f"EIO in {operation}")
        assert not segments(disk.path / "spool")


async def test_limit_on_file_sizes(url: str, tmp_path: Path) -> None:
    """No file may grow beyond a limit: a segment that reaches it is followed by another one."""
    with TcpProxy.before(url) as proxy:
        async with MultiDB(settings(proxy.proxied(url), tmp_path / "spool")) as db:
            told = Told(db)
            proxy.refuse()
            await told.log(10)
            with file_size_limit(9_000):
                await told.log(300, tasks=3)
            proxy.heal()
            await _check(told, url, "RLIMIT_FSIZE")
    assert not segments(tmp_path / "spool")


async def test_torn_at_every_byte(url: str, tmp_path: Path) -> None:
    """Wherever the last record was torn, the ones before it get to the server, and nothing crashes."""
    spool = tmp_path / "spool"
    offsets = 0
    with TcpProxy.before(url) as proxy:
        async with MultiDB(settings(proxy.proxied(url), spool)) as db:
            proxy.refuse()
            events = [await db.logs.log_event("u", "x", f"merhaba {n}", context={"n": n}) for n in range(5)]
            assert all(event.is_spooled for event in events)
        (segment,) = segments(spool)
        proxy.heal()
        for tail in ("missing", "zeros"):
            for copy in torn_copies(segment, tmp_path / "torn", folder=spool, step=TORN_STEP, tail=tail):
                await execute(url, "DELETE FROM multidb_events")
                async with MultiDB(settings(proxy.proxied(url), copy.folder, postgres_pool_min=1)) as db:
                    await until_up(db)
                    rejected = db.health()["logs"].rejected

                assert {event.id for event in events[:-1]} == set(await stored(url)), copy
                assert rejected == 0, copy
                assert not segments(copy.folder)
                offsets += 1
    print(f"\ntorn at {offsets} offsets of the last record: lost 0 of {4 * offsets} before it, crashes 0")

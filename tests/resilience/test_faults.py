"""The faults do what they say, so that a test that survives them has survived something."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from multidb import MultiDB, Settings
from multidb._core.clock import SystemClock
from multidb._core.files import write_atomic
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ConfigurationError,
    InvalidArgumentError,
    OverloadedError,
)
from multidb.logs.backends.memory import MemoryLogBackend
from multidb.profiles.backends.memory import MemoryProfileBackend
from multidb.state.backends.memory import MemoryStateBackend
from multidb.state.protocol import Entry, Increment, Key, StateBackend
from multidb.testing import faults, servers
from multidb.testing.faults import Crasher, CrasherError, Ledger, LossyFS, TcpProxy
from multidb.testing.faults._lossy_disk import ROOT, LossyDisk
from multidb.testing.servers import MongoServer, PostgresServer, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from multidb.testing.faults import Call

pytestmark = pytest.mark.timeout(60)

SEED = 4
SECONDS = 5.0


def needs(kind: servers.Kind) -> pytest.MarkDecorator:
    reason = servers.own_skip_reason(kind)
    return pytest.mark.skipif(reason is not None, reason=str(reason))


needs_fuse = pytest.mark.skipif(
    faults.lossyfs_skip_reason() is not None, reason=str(faults.lossyfs_skip_reason())
)


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def mongo() -> Iterator[MongoServer]:
    with MongoServer(replica_set=True, arguments=faults.MONGO_TEST_COMMANDS) as server:
        yield server


class Echo:
    """Answers each line with the same; remembers what it got."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.begun = self.ended = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.begun += 1
        with suppress(ConnectionError):
            while line := await reader.readline():
                self.received += line
                writer.write(line)
                await writer.drain()
        self.ended += 1
        writer.close()


@asynccontextmanager
async def echoing(**options: Any) -> AsyncIterator[tuple[TcpProxy, Echo]]:
    echo = Echo()
    listening = await asyncio.start_server(echo.serve, "127.0.0.1", 0, limit=1 << 24)
    async with TcpProxy("127.0.0.1", listening.sockets[0].getsockname()[1], seed=SEED, **options) as proxy:
        yield proxy, echo
    listening.close()
    assert await eventually(lambda: echo.begun == echo.ended)


class Client:
    """One connection, on which `ask()` sends a line and returns what comes back."""

    opened: ClassVar[list[asyncio.StreamWriter]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.opened.append(writer)

    @classmethod
    async def to(cls, proxy: TcpProxy) -> Client:
        return cls(*await asyncio.open_connection(proxy.host, proxy.port))

    def send(self, line: bytes) -> None:
        self.writer.write(line + b"\n")

    async def ask(self, line: bytes, seconds: float = SECONDS) -> bytes | None:
        """Return the answer, None when there is none in time, b"" when the connection has ended."""
        self.send(line)
        return await self.answer(seconds)

    async def answer(self, seconds: float = SECONDS) -> bytes | None:
        try:
            return (await asyncio.wait_for(self.reader.read(65536), seconds)).rstrip(b"\n")
        except TimeoutError:
            return None
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.writer.close()


async def eventually(condition: Any, seconds: float = SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


@pytest.fixture
async def _close_clients() -> AsyncIterator[None]:
    yield
    while Client.opened:
        writer = Client.opened.pop()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@pytest.mark.usefixtures("_close_clients")
class TestProxy:
    async def test_forwards(self) -> None:
        """Without a fault it is not there, in either direction, for large and small, and counts."""
        async with echoing(count=b"write") as (proxy, echo):
            one, two = await Client.to(proxy), await Client.to(proxy)
            assert [b"write 1", b"read", b"write 2"] == [
                await one.ask(b"write 1"),
                await one.ask(b"read"),
                await two.ask(b"write 2"),
            ]
            large = random.Random(SEED).randbytes(3_000_000).replace(b"\n", b"_") + b"\n"
            one.writer.write(large)
            assert large == await one.reader.readexactly(len(large))
            two.close()
            assert await eventually(lambda: echo.ended == 1)
            assert await eventually(lambda: proxy.stats().open == 1)
            stats = proxy.stats()

        assert (2, 2) == (stats.connections, stats.counted)
        assert len(echo.received) == stats.bytes_to_server == stats.bytes_to_client

    async def test_delay(self) -> None:
        """A round trip takes the delays of both ways; bytes in flight overlap and stay in order."""
        async with echoing() as (proxy, _):
            client = await Client.to(proxy)
            proxy.delay(0.1, jitter_seconds=0.02)
            started = time.monotonic()
            for number in range(20):
                client.send(b"%d" % number)
                await asyncio.sleep(0)
            lines = [await client.reader.readline() for _ in range(20)]
            seconds = time.monotonic() - started
            proxy.heal()
            started = time.monotonic()
            await client.ask(b"at once")
            healed = time.monotonic() - started

        assert [b"%d\n" % number for number in range(20)] == lines
        assert 0.2 <= seconds < 1
        assert healed < 0.1

    async def test_drip(self) -> None:
        async with echoing() as (proxy, _):
            client = await Client.to(proxy)
            proxy.drip(20_000, direction="to_client")
            started = time.monotonic()
            client.send(b"x" * 5_000)
            await client.reader.readline()

            assert 0.2 <= time.monotonic() - started < 2

    @pytest.mark.parametrize("reset", [False, True])
    async def test_drop(self, reset: bool) -> None:
        """Dropping ends what is open, by FIN or RST; new connections are accepted."""
        async with echoing() as (proxy, _):
            client = await Client.to(proxy)
            await client.ask(b"a")
            proxy.drop(reset=reset)
            if reset:
                with pytest.raises(ConnectionResetError):
                    await client.reader.read()
            else:
                assert b"" == await client.reader.read()
            assert b"b" == await (await Client.to(proxy)).ask(b"b")
            assert 1 == proxy.stats().dropped

    async def test_refuse(self) -> None:
        """Refusing ends what is open and refuses new ones, on a port that nobody else gets."""
        async with echoing() as (proxy, _):
            client = await Client.to(proxy)
            proxy.refuse()
            proxy.refuse()
            assert b"" == await client.ask(b"a")
            with pytest.raises(ConnectionRefusedError):
                await Client.to(proxy)
            proxy.heal()

            assert b"b" == await (await Client.to(proxy)).ask(b"b")

    async def test_black_hole(self) -> None:
        """Everything is accepted and nothing comes, also for new connections; healing closes those, and all is well."""
        async with echoing() as (proxy, echo):
            before = await Client.to(proxy)
            await before.ask(b"a")
            proxy.black_hole()
            assert None is await before.ask(b"b", 0.1)
            during = await Client.to(proxy)
            assert None is await during.ask(b"c", 0.1)
            proxy.heal()
            assert [b"", b""] == [await before.answer(), await during.answer()]
            assert b"d" == await (await Client.to(proxy)).ask(b"d")

        assert b"a\nd\n" == echo.received
        assert 4 == proxy_stats_lost(proxy)

    async def test_black_hole_without_a_server(self) -> None:
        """Also where nobody listens behind it."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        async with TcpProxy("127.0.0.1", port) as proxy:
            assert b"" == await (await Client.to(proxy)).ask(b"a")
            proxy.black_hole()
            assert None is await (await Client.to(proxy)).ask(b"a", 0.1)

    async def test_partition(self) -> None:
        """What is held back arrives when it is healed."""
        async with echoing() as (proxy, echo):
            client = await Client.to(proxy)
            proxy.partition(direction="to_client")
            assert None is await client.ask(b"a", 0.1)
            assert b"a\n" == echo.received
            proxy.heal()
            assert b"a" == await client.answer()
            proxy.partition(direction="to_server")
            assert None is await client.ask(b"b", 0.1)
            assert b"a\n" == echo.received
            proxy.heal()

            assert b"b" == await client.answer()

    async def test_swallow_every(self) -> None:
        """Every third reply to a write is lost with its connection; the server has done it."""
        async with echoing() as (proxy, echo):
            proxy.swallow_replies(every=3, matching=b"write")
            answers = []
            for number in range(9):
                client = await Client.to(proxy)
                answers += [await client.ask(b"read"), await client.ask(b"write %d" % number)]
                client.close()
            assert 3 == proxy.stats().swallowed

        lost = [2, 5, 8]
        assert [b"" if number in lost else b"write %d" % number for number in range(9)] == answers[1::2]
        assert [b"read"] * 9 == answers[::2]
        assert 9 == echo.received.count(b"write")

    async def test_swallow_share(self) -> None:
        """With a share, the seed decides: again the same; *spare* lets a connection begin, *times* ends it."""

        async def lost() -> list[int]:
            async with echoing() as (proxy, _):
                proxy.swallow_replies(share=0.3, spare=1, times=8)
                found = []
                for number in range(40):
                    client = await Client.to(proxy)
                    assert b"hello" == await client.ask(b"hello")
                    if not await client.ask(b"a"):
                        found.append(number)
                    client.close()
                return found

        first = await lost()
        assert 8 == len(first)
        assert first == await lost()

    async def test_swallow_and_hang(self) -> None:
        """The connection stays, silent for good; others go on; healing closes it."""
        async with echoing() as (proxy, _):
            client, other = await Client.to(proxy), await Client.to(proxy)
            proxy.swallow_replies(every=1, times=1, then="hang")
            assert None is await client.ask(b"a", 0.1)
            assert None is await client.ask(b"b", 0.1)
            assert b"c" == await other.ask(b"c")
            proxy.heal()

            assert [b"", b"d"] == [await client.answer(), await other.ask(b"d")]

    async def test_halve(self) -> None:
        async with echoing() as (proxy, _):
            client = await Client.to(proxy)
            proxy.halve_replies(every=1)
            client.send(b"123456789")

            assert b"12345" == await client.reader.read()
            assert 1 == proxy.stats().halved

    def test_blocked_loop(self) -> None:
        """It works for a client that blocks its thread, and for one in a child process."""
        with (
            ValkeyServer(fsync=False)
            if not servers.own_skip_reason("valkey")
            else pytest.skip("no valkey") as server
        ):
            import redis

            with (
                TcpProxy.before(server.url) as proxy,
                redis.Redis.from_url(proxy.proxied(server.url)) as client,
            ):
                assert client.ping()

    def test_lifecycle(self) -> None:
        """Unstarted it says so; it stops twice, leaves no thread, and starts again."""
        proxy = TcpProxy("127.0.0.1", 1)
        with pytest.raises(ConfigurationError):
            proxy.heal()
        for _ in range(2):
            proxy.start().start()
            assert proxy.port
            proxy.stop()
            proxy.stop()
        assert "multidb-proxy" not in [thread.name for thread in threading.enumerate()]

    def test_seed_in_a_failure(self) -> None:
        """What fails inside says the seed."""
        with pytest.raises(ZeroDivisionError) as caught, TcpProxy("127.0.0.1", 1, seed=77):
            _ = 1 / 0
        assert ["seed 77: run again with MULTIDB_TEST_SEED=77"] == caught.value.__notes__

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            (
                "postgresql://u:p%40@db.example:5433/name?sslmode=require",
                "postgresql://u:p%40@HERE/name?sslmode=require",
            ),
            ("postgresql+asyncpg://u@h/name", "postgresql+asyncpg://u@HERE/name"),
            (
                "mongodb://u:p@h/name?replicaSet=rs0&w=majority",
                "mongodb://u:p@HERE/name?w=majority&directConnection=true",
            ),
            ("mongodb://h", "mongodb://HERE/?directConnection=true"),
            ("redis://:p@[::1]:7/3", "redis://:p@HERE/3"),
            ("valkey://h", "valkey://HERE"),
        ],
    )
    def test_proxied(self, url: str, expected: str) -> None:
        with TcpProxy.before(url) as proxy:
            assert expected.replace("HERE", f"127.0.0.1:{proxy.port}") == proxy.proxied(url)

    @pytest.mark.parametrize(
        "url",
        [
            "mongodb://secret@a,b/x",
            "mongodb+srv://secret@a/x",
            "unix:///secret",
            "http://secret",
            "",
            "redis://",
        ],
    )
    def test_not_proxied(self, url: str) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            TcpProxy.before(url)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        "wrong",
        [{}, {"every": 1, "share": 0.1}, {"every": 0}, {"share": 2}, {"share": 0.1, "then": "explode"}],
    )
    def test_wrong_arguments(self, wrong: dict[str, Any]) -> None:
        with TcpProxy("127.0.0.1", 1) as proxy, pytest.raises(InvalidArgumentError):
            proxy.swallow_replies(**wrong)


def proxy_stats_lost(proxy: TcpProxy) -> int:
    return proxy._stats.bytes_lost


@needs("valkey")
@needs("postgres")
@needs("mongodb")
class TestProxyOnServers:
    async def test_all_stores(
        self, postgres: PostgresServer, mongo: MongoServer, valkey: ValkeyServer
    ) -> None:
        """multidb works through three proxies; a black hole is a timeout in time, and over when it is healed."""
        with (
            postgres.database() as postgres_url,
            mongo.database() as mongodb_uri,
            valkey.database() as redis_url,
            TcpProxy.before(postgres_url) as one,
            TcpProxy.before(mongodb_uri) as two,
            TcpProxy.before(redis_url) as three,
        ):
            settings = Settings(
                postgres_url=one.proxied(postgres_url),
                mongodb_uri=two.proxied(mongodb_uri),
                redis_url=three.proxied(redis_url),
                deadline_seconds=1.0,
                fallback="off",
            )
            calls = [
                lambda db: db.logs.log_event("u", "e"),
                lambda db: db.profiles.create_or_update_profile("u", {"a": 1}),
                lambda db: db.state.set_state("u", "k", 1),
            ]
            async with MultiDB(settings) as db:

                async def suffer(proxy: TcpProxy, call: Any) -> None:
                    await call(db)
                    proxy.black_hole()
                    started = time.monotonic()
                    with pytest.raises((BackendTimeoutError, BackendUnavailableError)):
                        await call(db)
                    assert time.monotonic() - started < 1.5
                    proxy.heal()
                    assert await recovered(lambda: call(db))

                await asyncio.gather(*map(suffer, (one, two, three), calls))

    async def test_postgres_reply_lost(self, postgres: PostgresServer) -> None:
        """An INSERT whose reply is swallowed is there, and the client knows nothing of it."""
        import asyncpg

        with postgres.database() as url, TcpProxy.before(url, count=b"INSERT", seed=SEED) as proxy:
            direct = await asyncpg.connect(url)
            await direct.execute("CREATE TABLE t (n int)")
            proxy.swallow_replies(share=0.2, matching=b"INSERT")
            failed = 0
            connection = None
            for number in range(60):
                if connection is None:
                    connection = await asyncpg.connect(proxy.proxied(url))
                try:
                    await connection.execute(f"INSERT INTO t VALUES ({number})")
                except (asyncpg.PostgresConnectionError, OSError):
                    failed += 1
                    connection = None
            stored = await direct.fetch("SELECT n FROM t ORDER BY n")
            await direct.close()
            if connection is not None:
                await connection.close()
            stats = proxy.stats()

        assert list(range(60)) == [row["n"] for row in stored]
        assert failed == stats.swallowed > 3
        assert 60 == stats.counted

    async def test_valkey_reply_lost(self, valkey: ValkeyServer) -> None:
        """INCR with redis-py's default retries counts too much; without retries it fails, and is applied."""
        import redis.asyncio as redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        async def counted(retries: int) -> tuple[int, int]:
            with valkey.database() as url, TcpProxy.before(url, seed=SEED) as proxy:
                client = redis.Redis.from_url(proxy.proxied(url), retry=Retry(NoBackoff(), retries))
                proxy.swallow_replies(share=0.1, matching=b"INCR")
                failed = 0
                for _ in range(100):
                    try:
                        await client.incr("n")
                    except redis.ConnectionError:
                        failed += 1
                await client.aclose()
                return failed, int(valkey_get(url, "n"))

        assert (0, 100) < await counted(3)
        failed, value = await counted(0)
        assert failed > 0
        assert 100 == value

    async def test_mongo_reply_lost(self, mongo: MongoServer) -> None:
        """Without retryable writes a swallowed reply to $inc is an error for a write that was done."""
        from pymongo import AsyncMongoClient
        from pymongo.errors import AutoReconnect

        with mongo.database() as url, TcpProxy.before(url, seed=SEED) as proxy:
            async with AsyncMongoClient(proxy.proxied(url), retryWrites=False, timeoutMS=5000) as client:
                collection = client.get_default_database()["t"]
                await collection.insert_one({"_id": 1, "n": 0})
                proxy.swallow_replies(share=0.2, matching=b"$inc")
                failed = 0
                for _ in range(12):
                    try:
                        await collection.update_one({"_id": 1}, {"$inc": {"n": 1}})
                    except AutoReconnect:
                        failed += 1
                proxy.heal()
                document = await collection.find_one({"_id": 1})

        assert failed > 0
        assert document is not None
        assert 12 == document["n"]


async def recovered(call: Any, seconds: float = SECONDS) -> bool:
    """Whether *call* works again within *seconds*."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(BackendError):
            await call()
            return True
        await asyncio.sleep(0.02)
    return False


def valkey_get(url: str, key: str) -> str:
    import redis

    with redis.Redis.from_url(url, decode_responses=True) as client:
        return str(client.get(key))


N = Key(None, "n")
ONE = [Increment(N, 1)]


def memory_state() -> MemoryStateBackend:
    return MemoryStateBackend(clock=SystemClock())


class TestFaultyBackend:
    async def test_definite_and_ambiguous(self) -> None:
        """Before: nothing was done and the error says so; after: it was done, and may have been."""
        faulty = faults.FaultyBackend(
            memory_state(),
            faults.in_order(
                faults.Fail(),
                faults.Fail(BackendTimeoutError, applied=True),
                faults.Fail(OverloadedError, ambiguous=True),
                faults.Fail(BackendError, applied=True, ambiguous=False),
                None,
                only=["increment"],
            ),
        )
        seen = []
        for _ in range(6):
            try:
                seen.append(await faulty.backend.increment(ONE))
            except BackendError as error:
                seen.append((type(error), error.ambiguous, await faulty.backend.counter(N)))

        assert [
            (BackendUnavailableError, False, 0),
            (BackendTimeoutError, True, 1),
            (OverloadedError, True, 1),
            (BackendError, False, 2),
            [3],
            [4],
        ] == seen
        calls = faulty.called("increment")
        assert [False, True, False, True, True, True] == [call.applied for call in calls]
        assert ["BackendUnavailableError", None] == [calls[0].error, calls[-1].error]
        assert ((ONE,), True) == (calls[0].args, calls[0].writes)

    async def test_reads_are_not_ambiguous(self) -> None:
        faulty = faults.FaultyBackend(memory_state(), faults.in_order(faults.Fail(applied=True)))
        with pytest.raises(BackendUnavailableError) as caught:
            await faulty.backend.counter(N)
        assert not caught.value.ambiguous

    async def test_by_chance(self) -> None:
        """The same seed gives the same faults, about as many as asked for; others are left alone."""

        async def failures(seed: int) -> list[int]:
            plan = faults.by_chance(
                {faults.Fail(): 0.1, faults.Fail(applied=True): 0.1}, only=["increment"], seed=seed
            )
            assert f"seed={seed}" in repr(plan)
            faulty = faults.FaultyBackend(memory_state(), plan)
            for _ in range(500):
                with suppress(BackendError):
                    await faulty.backend.increment(ONE)
                await faulty.backend.counter(N)
            applied = sum(call.applied for call in faulty.called("increment"))
            assert applied == await faulty.backend.counter(N)
            return [call.number for call in faulty.calls if call.error]

        first = await failures(1)
        assert 60 < len(first) < 140
        assert first == await failures(1)
        assert first != await failures(2)

    async def test_inject(self) -> None:
        """Switched on for named methods and so many times, switched off by heal(); open and close by name only."""
        faulty = faults.FaultyBackend(memory_state())
        faulty.inject(faults.Fail(), times=1)
        faulty.inject(faults.Fail(OverloadedError), only=["open", "counter"])
        with pytest.raises(OverloadedError):
            await faulty.backend.open()
        await faulty.backend.close()
        with pytest.raises(BackendUnavailableError):
            await faulty.backend.counter(N)
        with pytest.raises(OverloadedError):
            await faulty.backend.counter(N)
        faulty.heal()

        assert 0 == await faulty.backend.counter(N)
        for wrong in ("counter", ["conter"]):
            with pytest.raises(InvalidArgumentError):
                faulty.inject(faults.Fail(), only=wrong)

    async def test_delay_and_wrong(self) -> None:
        faulty = faults.FaultyBackend(
            memory_state(), faults.in_order(faults.Delay(0.05), faults.FEWER, faults.Wrong(lambda _: "?"))
        )
        started = time.monotonic()
        await faulty.backend.increment(ONE)
        assert time.monotonic() - started >= 0.05
        assert [2] == await faulty.backend.increment([*ONE, Increment(Key(None, "other"), 1)])
        assert "?" == await faulty.backend.counter(N)  # type: ignore[comparison-overlap]

    async def test_hang(self) -> None:
        """It hangs until cancelled; where it ignores that, until healed or its time is over."""
        faulty = faults.FaultyBackend(memory_state())
        faulty.inject(faults.Hang(applied=True), times=1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(faulty.backend.increment(ONE), 0.05)
        assert "CancelledError" == faulty.calls[-1].error
        assert 1 == await faulty.backend.counter(N)

        faulty.inject(faults.Hang(ignores_cancellation=True))
        task = asyncio.ensure_future(faulty.backend.increment(ONE))
        await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0.05)
        assert not done
        faulty.heal()
        with pytest.raises(BackendUnavailableError) as caught:
            await task
        assert caught.value.ambiguous

        faulty.inject(faults.Hang(ignores_cancellation=True, seconds=0.05))
        with pytest.raises(BackendUnavailableError):
            await faulty.backend.increment(ONE)

    async def test_in_stores(self) -> None:
        """All three stores take it; the deadline holds on a backend that ignores its cancellation."""
        logs, profiles, state = (
            faults.FaultyBackend(MemoryLogBackend()),
            faults.FaultyBackend(MemoryProfileBackend()),
            faults.FaultyBackend(memory_state()),
        )
        settings = Settings(deadline_seconds=0.2)
        async with MultiDB(settings, logs=logs.backend, profiles=profiles.backend, state=state.backend) as db:
            for faulty, call in (
                (logs, lambda: db.logs.log_event("u", "e")),
                (profiles, lambda: db.profiles.create_or_update_profile("u", {"a": 1})),
                (state, lambda: db.state.set_state("u", "k", 1)),
            ):
                await call()
                faulty.inject(faults.Hang(ignores_cancellation=True, seconds=2))
                started = time.monotonic()
                with pytest.raises(BackendTimeoutError):
                    await call()
                assert time.monotonic() - started < 0.45
                faulty.heal()
                await call()
            assert "memory" == logs.backend.name

    async def test_keeps_what_the_inner_one_has(self) -> None:
        """Methods beyond the protocol are there, also for runtime_checkable protocols."""

        class Inner(MemoryStateBackend):
            abandoned = False

            def abandon(self) -> None:
                self.abandoned = True

            async def more(self, *, by: int) -> int:
                return by

        inner = Inner(clock=SystemClock())
        faulty: faults.FaultyBackend[StateBackend] = faults.FaultyBackend(inner)
        from multidb._backends import SupportsAbandon

        assert isinstance(faulty, SupportsAbandon)
        faulty.abandon()
        assert inner.abandoned
        assert 3 == await faulty.more(by=3)  # type: ignore[operator]
        with pytest.raises(AttributeError):
            _ = faulty.nothing

    def test_seeds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The variable sets the seed, and a failure says it."""
        monkeypatch.setenv("MULTIDB_TEST_SEED", "12")
        with pytest.raises(ZeroDivisionError) as caught, faults.seeded() as seed:
            _ = 1 / 0
        assert 12 == seed
        assert "MULTIDB_TEST_SEED=12" in caught.value.__notes__[0]
        monkeypatch.setenv("MULTIDB_TEST_SEED", "x")
        with pytest.raises(InvalidArgumentError):
            faults.pick_seed()

    def test_wrong_chances(self) -> None:
        with pytest.raises(InvalidArgumentError):
            faults.by_chance({faults.Fail(): 0.6, faults.Delay(1): 0.6})

    def test_call_in_the_records(self) -> None:
        """A call keeps its arguments."""
        call: Call = faults.Call(0, "set", ([Entry(N, b"1")],))

        assert call.writes


class TestServers:
    @needs("valkey")
    async def test_paused_and_killed(self) -> None:
        """The event loop goes on meanwhile, and afterwards the server serves."""
        async with (
            ValkeyServer() as server,
            MultiDB(Settings(redis_url=server.url, deadline_seconds=0.3)) as db,
        ):
            for accident in (faults.paused, faults.killed):
                await db.state.set_state("u", "k", 1)
                ticks = asyncio.ensure_future(longest_pause())
                async with accident(server):
                    with pytest.raises(BackendError):
                        await db.state.set_state("u", "k", 2)
                ticks.cancel()
                assert await recovered(lambda: db.state.set_state("u", "k", 3))
            await faults.restarted(server)
            assert await recovered(lambda: db.state.set_state("u", "k", 4))

    @needs("valkey")
    async def test_valkey(self, valkey: ValkeyServer) -> None:
        """Each fault of Valkey is the error that it is called after, and over after the block; data stays."""
        import redis.asyncio as redis
        from redis import exceptions as theirs

        with valkey.database() as url:
            client = redis.Redis.from_url(url, decode_responses=True)
            await client.set("k", "kept")
            for fault, error, text in (
                (faults.valkey_out_of_memory, theirs.OutOfMemoryError, "command not allowed"),
                (faults.valkey_read_only, theirs.ReadOnlyError, "read only"),
                (faults.valkey_cannot_save, theirs.ResponseError, "MISCONF"),
            ):
                async with fault(valkey):
                    with pytest.raises(error, match=text):
                        await client.set("k", "changed")
                    assert "kept" == await client.get("k")
                await client.set("other", "1")
            await client.aclose()
        assert not (valkey.home / "data" / "dump.rdb").is_dir()

    @needs("postgres")
    async def test_postgres(self, postgres: PostgresServer) -> None:
        """Read-only, disk full, terminated: the states that PostgreSQL gives, and over after the block."""
        import asyncpg

        with postgres.database() as url:
            client = await asyncpg.connect(url, server_settings={"application_name": "multidb"})
            await client.execute("CREATE TABLE t (n int)")
            for fault, state in (
                (faults.postgres_read_only(postgres), "25006"),
                (faults.postgres_disk_full(url), "53100"),
            ):
                async with fault:
                    with pytest.raises(asyncpg.PostgresError) as caught:
                        await client.execute("INSERT INTO t VALUES (1)")
                    assert state == caught.value.sqlstate
                    assert 0 == await client.fetchval("SELECT count(*) FROM t")
                await client.execute("INSERT INTO t VALUES (1)")
                await client.execute("DELETE FROM t")
            assert 1 == await faults.postgres_terminate(url)
            with pytest.raises(
                (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
            ):
                await client.fetchval("SELECT 1")
            assert 0 == await faults.postgres_terminate(url, application_name="nobody")

    @needs("mongodb")
    async def test_mongo(self, mongo: MongoServer) -> None:
        """Fail points, step down, fsyncLock."""
        from pymongo import AsyncMongoClient
        from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError, WriteConcernError

        with mongo.database() as url:
            async with AsyncMongoClient(url, retryWrites=False, timeoutMS=5000) as client:
                collection = client.get_default_database()["t"]
                await collection.insert_one({"_id": 0})
                async with faults.mongo_failing(mongo, ["insert"], code=112, times=1):
                    with pytest.raises(OperationFailure) as caught:
                        await collection.insert_one({"_id": 1})
                    await collection.insert_one({"_id": 1})
                assert 112 == caught.value.code
                async with faults.mongo_failing(mongo, ["insert"], close_connection=True):
                    with pytest.raises(AutoReconnect):
                        await collection.insert_one({"_id": 2})
                async with faults.mongo_failing(mongo, ["insert"], write_concern_code=64):
                    with pytest.raises(WriteConcernError):
                        await collection.insert_one({"_id": 3})
                started = time.monotonic()
                async with faults.mongo_failing(mongo, ["find"], block_seconds=0.2):
                    assert 3 == len(await collection.find().to_list())
                assert time.monotonic() - started >= 0.2
                async with faults.mongo_locked(mongo):
                    writing = asyncio.ensure_future(collection.insert_one({"_id": 4}))
                    done, _ = await asyncio.wait([writing], timeout=0.2)
                    assert not done
                await writing
                await faults.mongo_step_down(mongo)
                with pytest.raises((PyMongoError, TimeoutError)):
                    async with asyncio.timeout(0.5):
                        await collection.insert_one({"_id": 5})
                deadline = time.monotonic() + 10
                while time.monotonic() < deadline:
                    with suppress(PyMongoError):
                        await collection.replace_one({"_id": 6}, {}, upsert=True)
                        break
                assert await collection.find_one({"_id": 6})

    @needs("mongodb")
    async def test_mongo_without_test_commands(self) -> None:
        """It says what to start it with."""
        async with MongoServer() as server:
            with pytest.raises(ConfigurationError, match="MONGO_TEST_COMMANDS"):
                async with faults.mongo_failing(server, ["insert"], code=1):
                    pass


async def longest_pause() -> None:
    """Fail when the event loop is blocked for long."""
    while True:
        started = time.monotonic()
        await asyncio.sleep(0.01)
        assert time.monotonic() - started < 0.5


class TestLossyDisk:
    """The model behind LossyFS, which needs no FUSE."""

    @staticmethod
    def disk(model: Any = "strict", seed: int = SEED) -> LossyDisk:
        return LossyDisk(model, random.Random(seed))

    def test_strict(self) -> None:
        """A file needs its own sync and its folder's; a rename that of its folder."""
        disk = self.disk()
        kept, unnamed = (disk.make(ROOT, name, 0o100600, 0, 0).number for name in (b"kept", b"unnamed"))
        disk.write(kept, 0, b"one")
        disk.sync(kept)
        disk.write(unnamed, 0, b"x")
        disk.remove(ROOT, b"unnamed", is_folder=False)
        disk.sync(ROOT)
        disk.write(kept, 3, b"two")
        disk.rename(ROOT, b"kept", ROOT, b"moved")
        lost = disk.make(ROOT, b"lost", 0o100600, 0, 0).number
        disk.sync(lost)
        disk.cut_power("nothing")

        assert {b"kept": kept} == disk.node(ROOT).names
        assert b"one" == disk.read(kept, 0, 9)
        assert 2 == len(disk.nodes)

    def test_rename_over(self) -> None:
        """tmp + fsync + rename + fsync(folder) is there; without the last, the old one; without the first, empty."""
        results = []
        for steps in ("data folder", "data", "folder"):
            disk = self.disk()
            old = disk.make(ROOT, b"f", 0o100600, 0, 0).number
            disk.write(old, 0, b"old")
            disk.sync(old)
            disk.sync(ROOT)
            new = disk.make(ROOT, b"tmp", 0o100600, 0, 0).number
            disk.write(new, 0, b"new")
            if "data" in steps:
                disk.sync(new)
            disk.rename(ROOT, b"tmp", ROOT, b"f")
            if "folder" in steps:
                disk.sync(ROOT)
            disk.cut_power("nothing")
            results.append(disk.read(disk.look_up(ROOT, b"f").number, 0, 9))

        assert [b"new", b"old", b""] == results

    def test_ordered(self) -> None:
        """The sync of a file takes all earlier names along."""
        disk = self.disk("ordered")
        file = disk.make(ROOT, b"f", 0o100600, 0, 0).number
        disk.sync(file)
        disk.make(ROOT, b"g", 0o100600, 0, 0)
        disk.cut_power("nothing")

        assert {b"f": file} == disk.node(ROOT).names

    def test_something_survives(self) -> None:
        """Of what was not synced, any part may be there: the same for a seed, and never less than what was."""

        def after(seed: int) -> bytes:
            disk = self.disk(seed=seed)
            file = disk.make(ROOT, b"f", 0o100600, 0, 0).number
            disk.write(file, 0, b"synced;")
            disk.sync(file)
            disk.sync(ROOT)
            for number in range(4):
                disk.write(file, 7 + 4 * number, b"<%02d>" % number)
            disk.cut_power("something")
            return disk.read(file, 0, 99)

        found = [after(seed) for seed in range(60)]
        assert found == [after(seed) for seed in range(60)]
        assert all(each.startswith(b"synced;") for each in found)
        assert {b"synced;"} < set(found)
        assert any(b"\0" in each for each in found)
        assert any(len(each) % 4 != 3 for each in found)

    def test_failed_sync(self) -> None:
        """After a sync that failed the next one succeeds and saves nothing of it."""
        disk = self.disk()
        file = disk.make(ROOT, b"f", 0o100600, 0, 0).number
        disk.sync(ROOT)
        disk.write(file, 0, b"abc")
        disk.fail_sync(file)
        disk.sync(file)
        assert b"abc" == disk.read(file, 0, 9)
        disk.cut_power("nothing")

        assert b"" == disk.read(file, 0, 9)

    def test_capacity(self) -> None:
        """Short writes, then ENOSPC; removing frees, also what was open until then."""
        disk = self.disk()
        disk.capacity = 10
        node = disk.make(ROOT, b"f", 0o100600, 0, 0)
        node.opened += 1
        assert [6, 4] == [disk.write(node.number, 0, b"123456"), disk.write(node.number, 6, b"123456")]
        with pytest.raises(OSError, match="full"):
            disk.write(node.number, 10, b"1")
        with pytest.raises(OSError, match="full"):
            disk.make(ROOT, b"g", 0o100600, 0, 0)
        disk.remove(ROOT, b"f", is_folder=False)
        assert 0 == disk.free
        disk.close(node.number)
        assert 10 == disk.free
        assert [ROOT] == [number for number in disk.nodes if disk.nodes[number].names is not None]


RECIPES = """
import os, sys
from pathlib import Path

def sync(path):
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)

folder, recipe = Path(sys.argv[1]), sys.argv[2]
log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
if "folder" in recipe:
    sync(folder)
for number in range(100000):
    os.write(log, b"%d\\n" % number)
    if "file" in recipe:
        os.fdatasync(log)
    print(number, flush=True)
"""


@needs_fuse
class TestLossyFS:
    def test_is_a_file_system(self) -> None:
        """What programs do with files works: folders, renames, links, appends, locks, truncation, statvfs, SQLite."""
        import fcntl

        with LossyFS() as disk:
            folder = disk.path / "a" / "b"
            folder.mkdir(parents=True)
            file = folder / "f"
            file.write_bytes(b"x" * 300_000)
            with file.open("r+b") as opened:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                opened.seek(100_000)
                opened.write(b"y")
                opened.truncate(100_002)
            assert b"x" * 100_000 + b"yx" == file.read_bytes()
            file.rename(folder / "g")
            os.link(folder / "g", folder / "h")
            file.write_bytes(b"new")
            file.replace(folder / "g")
            assert [b"new", 100_002] == [(folder / "g").read_bytes(), (folder / "h").stat().st_size]
            (folder / "h").chmod(0o600)
            assert 0o600 == (folder / "h").stat().st_mode & 0o777
            for number in range(300):
                (disk.path / f"many-{number:03}").touch()
            assert 301 == len(list(disk.path.iterdir()))
            with pytest.raises(OSError, match="not empty"):
                folder.rmdir()
            os.posix_fallocate(os.open(folder / "h", os.O_RDWR), 0, 200_000)
            with pytest.raises(FileExistsError):
                (folder / "h").open("x")
            disk.limit(1_000_000)
            assert 490_000 < os.statvfs(disk.path).f_bavail * os.statvfs(disk.path).f_frsize < 1_000_000
            (folder / "h").unlink()
            with closing(sqlite3.connect(disk.path / "db")) as db:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("CREATE TABLE t (n)")
                with db:
                    db.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(1000)])
                assert (1000,) == db.execute("SELECT count(*) FROM t").fetchone()
        assert not disk_mounted()

    @pytest.mark.parametrize(
        ("recipe", "survives"), [("file folder", True), ("file", False), ("folder", False), ("", False)]
    )
    def test_recipes(self, recipe: str, survives: bool) -> None:
        """A log keeps what its program acknowledged if it syncs both the file and the folder, and only then."""
        with LossyFS(seed=SEED) as disk:
            with subprocess.Popen(
                [sys.executable, "-c", RECIPES, disk.path, recipe],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ) as process:
                assert process.stdout is not None
                head = [process.stdout.readline() for _ in range(50)]
                disk.power_cut()
                process.kill()
                acknowledged = [int(line) for line in [*head, *process.stdout.readlines()]]
            log = disk.path / "log"
            stored = {int(line) for line in log.read_text().splitlines()} if log.exists() else set()

        assert len(acknowledged) >= 50
        assert survives == (set(acknowledged) <= stored)

    def test_freeze(self) -> None:
        """The cut can be put after each change that a program makes: an atomic write leaves the old or the new."""

        def write_twice(path: Path) -> None:
            with suppress(OSError):
                write_atomic(path, b"old")
                write_atomic(path, b"new")

        found = []
        with LossyFS() as disk:
            write_twice(disk.path / "0")
            counts = disk.counts()
            changes = sum(count for name, count in counts.items() if name not in {"open", "read"})
            for change in range(1, changes + 1):
                path = disk.path / str(change)
                disk.freeze_after(change)
                writing = threading.Thread(target=write_twice, args=(path,))
                writing.start()
                assert disk.wait_frozen()
                disk.power_cut()
                writing.join(SECONDS)
                assert not writing.is_alive()
                found.append(path.read_bytes() if path.exists() else None)

        assert 10 == changes
        assert [None] * 4 + [b"old"] * 5 + [b"new"] == found

    def test_sqlite(self) -> None:
        """SQLite in WAL mode keeps its commits with synchronous=FULL and loses some with NORMAL."""
        kept = {}
        for mode in ("FULL", "NORMAL"):
            with LossyFS(seed=SEED) as disk:
                db = sqlite3.connect(disk.path / "db", isolation_level=None)
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("CREATE TABLE t (n)")
                db.execute("PRAGMA wal_checkpoint")
                db.execute(f"PRAGMA synchronous={mode}")
                for number in range(50):
                    db.execute("INSERT INTO t VALUES (?)", (number,))
                disk.power_cut()
                with suppress(sqlite3.Error):
                    db.close()
                with closing(sqlite3.connect(disk.path / "db")) as db:
                    kept[mode] = db.execute("SELECT count(*) FROM t").fetchone()[0]
                    assert ("ok",) == db.execute("PRAGMA integrity_check").fetchone()

        assert 50 == kept["FULL"]
        assert 50 > kept["NORMAL"]

    def test_errors(self) -> None:
        """EIO after so many bytes or calls, for so many times; ENOSPC: the write before it is short."""
        with LossyFS() as disk, (disk.path / "f").open("wb", buffering=0) as file:
            disk.fail("write", errno.EIO, after_bytes=15)
            assert [10, 5] == [file.write(b"0123456789"), file.write(b"0123456789")]
            with pytest.raises(OSError, match="Input/output"):
                file.write(b"x")
            disk.heal()
            disk.fail("fsync", errno.EIO, after_calls=1, times=1)
            os.fsync(file.fileno())
            with pytest.raises(OSError, match="Input/output"):
                os.fsync(file.fileno())
            os.fsync(file.fileno())
            disk.limit(20)
            assert 5 == file.write(b"0123456789")
            with pytest.raises(OSError, match="No space"):
                file.write(b"x")
            disk.heal()
            file.write(b"x")
            disk.fail("create", errno.EROFS)
            with pytest.raises(OSError, match="Read-only"):
                (disk.path / "g").touch()

    def test_ends_with_its_owner(self) -> None:
        """A test run that is killed leaves no process and no mount."""
        program = "from multidb.testing.faults import LossyFS\ndisk = LossyFS().start()\nprint(disk._process.pid, disk.path, flush=True)\nimport time; time.sleep(60)"
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            pid, path = process.stdout.readline().split()
            process.kill()
        deadline = time.monotonic() + SECONDS
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)

        assert not Path(f"/proc/{pid}").exists()
        assert path not in Path("/proc/mounts").read_text()
        assert not Path(path).parent.exists()

    async def test_async(self) -> None:
        """In `async with`; after the end it says that it is not there."""
        async with LossyFS() as disk:
            (disk.path / "f").touch()
        with pytest.raises(ConfigurationError):
            disk.power_cut()


def disk_mounted() -> bool:
    return f"multidb-lossy-{os.getpid()}" in Path("/proc/mounts").read_text()


class TestFiles:
    def test_file_size_limit(self, tmp_path: Path) -> None:
        with faults.file_size_limit(10), (tmp_path / "f").open("wb", buffering=0) as file:
            assert [7, 3] == [file.write(b"x" * 7), file.write(b"x" * 7)]
            with pytest.raises(OSError, match="too large"):
                file.write(b"x")
        (tmp_path / "f").write_bytes(b"x" * 100)

    def test_torn_copies(self, tmp_path: Path) -> None:
        """Every tail of the last line, missing or zeros; with the folder around it when asked; nothing is left."""
        spool = tmp_path / "spool"
        (spool / "sub").mkdir(parents=True)
        (spool / "other").write_bytes(b"o")
        file = spool / "sub" / "log"
        file.write_bytes(b"one\ntwo\n")
        into = tmp_path / "into"

        assert [b"one\n", b"one\nt", b"one\ntw", b"one\ntwo"] == [
            torn.path.read_bytes() for torn in faults.torn_copies(file, into)
        ]
        found = []
        for torn in faults.torn_copies(file, into, folder=spool, start=0, tail="zeros", step=3):
            assert b"o" == (torn.folder / "other").read_bytes()
            found.append((torn.size, (torn.folder / "sub" / "log").read_bytes()))
        assert [(0, bytes(8)), (3, b"one" + bytes(5)), (6, b"one\ntw" + bytes(2))] == found
        assert [] == list(into.iterdir())
        assert b"one\ntwo\n" == file.read_bytes()


# Appends to a file and acknowledges. With "early" it acknowledges before it writes.
PROGRAM = """
import os, sys
from multidb.testing.faults import child

path, *how = sys.argv[1:]
file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
number = 0
while not child.is_last():
    identifier = f"{child.worker_number()}.{child.round_number()}.{number}"
    child.sent(identifier)
    if "early" in how:
        child.acknowledged(identifier)
        child.point("acknowledged")
    os.write(file, f"{identifier}\\n".encode())
    child.point("written")
    if "early" not in how:
        child.acknowledged(identifier)
    number += 1
os.write(file, f"last.{child.worker_number()}\\n".encode())
child.sent(f"last.{child.worker_number()}")
"""


class TestCrasher:
    def test_ledger(self, tmp_path: Path) -> None:
        """Killed in every way, by two workers: nothing acknowledged is missing, and the last round ends by itself."""
        log = tmp_path / "log"
        crasher = Crasher(
            PROGRAM,
            [log],
            workers=2,
            seconds=(0.0, 0.02),
            acknowledgements=(1, 20),
            points=["written"],
            seed=SEED,
        )
        ledger = crasher.run(kills=4, finish_seconds=30)
        stored = log.read_text().splitlines()
        ledger.check(stored)

        assert 4 == ledger.kills == sum(ledger.kills_by.values())
        assert {"last.0", "last.1"} <= set(stored)
        assert 0 < len(ledger.acknowledged) <= len(stored)
        assert f"seed {SEED}" in str(ledger)

    def test_finds_what_is_lost(self, tmp_path: Path) -> None:
        """A program that acknowledges first is caught, exactly where it is killed; the error says the seed."""
        log = tmp_path / "log"
        crasher = Crasher(PROGRAM, [log, "early"], points=["acknowledged"], passes=5, seed=SEED)
        ledger = crasher.run(kills=2, finish_seconds=None)
        stored = log.read_text().splitlines()

        assert 2 == len(ledger.lost(stored))
        assert {"point acknowledged": 2} == ledger.kills_by
        with pytest.raises(AssertionError, match="2 lost") as caught:
            ledger.check(stored)
        assert "MULTIDB_TEST_SEED=4" in caught.value.__notes__[0]
        log.unlink()
        again = crasher.run(kills=2, finish_seconds=None)
        assert ledger.acknowledged == again.acknowledged

    def test_check(self) -> None:
        """Doubled and unknown are found, too; what was sent may be there or not."""
        ledger = Ledger(1, sent=["a", "b"], acknowledged=["a"])
        ledger.check(["a"])
        ledger.check(["a", "b"])

        assert (["a"], ["b"], ["c"]) == (
            ledger.lost(["b", "b", "c"]),
            ledger.doubled(["b", "b", "c"]),
            ledger.unknown(["c"]),
        )

    @pytest.mark.parametrize(
        ("program", "message"),
        [
            ("print('oh no')\nraise SystemExit(3)", "ended by itself with 3(.|\n)*oh no"),
            ("import time\ntime.sleep(60)", "said nothing"),
        ],
    )
    def test_failures(self, program: str, message: str) -> None:
        """A program that ends, or is silent, is an error with what it printed and the seed."""
        with pytest.raises(CrasherError, match=message) as caught:
            Crasher(program, acknowledgements=(1, 2), silent_seconds=0.5, workers=2, seed=9).run(kills=100)
        assert "seed 9" in caught.value.__notes__[0]

    def test_last_round(self, tmp_path: Path) -> None:
        """A last round that does not end, or ends badly, is one, too."""
        program = "from multidb.testing.faults import child\nchild.acknowledged('1')\n"
        with pytest.raises(CrasherError, match="ended with 5"):
            Crasher(program + "raise SystemExit(5)", acknowledgements=(1, 1)).run(kills=1)
        with pytest.raises(CrasherError, match="did not end in time"):
            Crasher(program + "import time; time.sleep(60)", acknowledgements=(1, 1)).run(
                kills=0, finish_seconds=1
            )

    async def test_cancelled(self) -> None:
        """In an event loop it can be cancelled, and leaves no process."""
        program = "from multidb.testing.faults import child\nimport os, time\nchild.sent(str(os.getpid()))\nif os.fork() == 0:\n    child.sent(str(os.getpid()))\ntime.sleep(60)"
        before = children()
        running = asyncio.ensure_future(Crasher(program, seconds=(30, 30)).run_async(kills=1))
        assert await eventually(lambda: len(children() - before) == 1, 10)
        await asyncio.sleep(0.3)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert children() <= before

    def test_ends_with_its_owner(self, tmp_path: Path) -> None:
        """A test run that is killed takes its programs with it."""
        inner = "from multidb.testing.faults import child\nimport os, time\nopen({!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
        pid_file = tmp_path / "pid"
        program = f"from multidb.testing.faults import Crasher\nCrasher({inner.format(str(pid_file))!r}, seconds=(60, 60)).run(1)"
        with subprocess.Popen([sys.executable, "-c", program]) as process:
            deadline = time.monotonic() + 20
            while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        pid = pid_file.read_text()
        while running_process(pid) and time.monotonic() < deadline:
            time.sleep(0.02)

        assert not running_process(pid)

    def test_wrong_arguments(self) -> None:
        with pytest.raises(InvalidArgumentError):
            Crasher("x\n")


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()) | {
        pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    }


def running_process(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

"""Lanes: many calls over one connection, each with its own reply, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import warnings
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hiredis import Reader

from multidb.engines._redis_lane import PING, Lane
from multidb.engines.redis import LARGE_BYTES, RedisEngine, Script
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    OverloadedError,
)
from multidb.state.backends.redis import RedisStateBackend
from multidb.state.protocol import Entry, Increment, Key
from multidb.testing import servers
from multidb.testing.servers import ValkeyCluster, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

pytestmark = pytest.mark.timeout(60)

needs_valkey = pytest.mark.skipif(
    servers.own_skip_reason("valkey") is not None, reason=str(servers.own_skip_reason("valkey"))
)

_HELLO = b"*4\r\n$7\r\nversion\r\n$5\r\n8.0.0\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n"
_GREETING = {b"HELLO": _HELLO, b"CLIENT": b"+OK\r\n", b"SCRIPT": b"+OK\r\n", b"PING": b"+PONG\r\n"}


class Scripted:
    """A server that answers the greeting by itself, and all else as a test says: bytes, or nothing."""

    def __init__(self) -> None:
        self.answer: Callable[[list[bytes]], bytes] = lambda command: b":1\r\n"
        self.seen: list[list[bytes]] = []
        self.connections = 0
        self.login_seconds = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()

    async def say(self, answer: bytes, seconds: float) -> None:
        """Send *answer* after a while, over every connection."""
        await asyncio.sleep(seconds)
        for writer in self._writers:
            writer.write(answer)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        await asyncio.sleep(self.login_seconds)
        commands = Reader()
        while data := await reader.read(65536):
            commands.feed(data)
            while command := commands.gets():
                answer = self.answer(command)
                known = _GREETING.get(command[0])
                if known is None:
                    self.seen.append(command)
                elif answer or command[0] != b"PING":
                    answer = known
                writer.write(answer)
        self._writers.discard(writer)
        writer.close()


@asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    fake = Scripted()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    async with server:
        yield fake
        fake.hang_up()
        server.close()


@asynccontextmanager
async def engine_of(port: int, **options: Any) -> AsyncIterator[RedisEngine]:
    engine = RedisEngine(f"redis://127.0.0.1:{port}", **options)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[ValkeyServer]:
    with ValkeyServer(fsync=False) as server:
        yield server


@pytest.fixture
def own() -> Iterator[ValkeyServer]:
    with ValkeyServer(fsync=False) as server:
        yield server


async def ended(call: Awaitable[Any]) -> Any:
    """Return a result, or the error in its place."""
    try:
        return await call
    except (BackendError, ClosedError) as exc:
        return exc


def start(calls: list[Any]) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(ended(call)) for call in calls]


def increment() -> tuple[str, str]:
    return ("INCR", "n")


async def everyone_gets_their_own(port: int) -> None:
    """60 tasks ask for what nobody else asks for, and are cancelled at random; large and small values, and batches."""
    dice = random.Random(5)
    async with engine_of(port, timeout_seconds=10, connect_timeout_seconds=5) as engine:
        backend = RedisStateBackend(engine)

        async def ask(name: str) -> None:
            for turn in range(60):
                word = f"{name}-{turn}".encode()
                match dice.randrange(10):
                    case 0:
                        await backend.set([Entry(Key(name, "k"), word)])
                        assert [word] == await backend.get([Key(name, "k")])
                    case 1:
                        assert [word, b"x"] == await engine.run_all(
                            [("ECHO", word), ("ECHO", b"x")], writes=False
                        )
                    case 2 if turn % 10 == 0:
                        large = word * LARGE_BYTES
                        assert large == await engine.run(("ECHO", large), writes=False)
                    case _:
                        assert word == await engine.run(("ECHO", word), writes=False)

        async def disturb() -> None:
            while True:
                tasks = [
                    asyncio.create_task(engine.run(("ECHO", "nobody waits"), writes=False)) for _ in range(20)
                ]
                for _ in range(dice.randrange(5)):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.sleep(0)

        disturbing = asyncio.create_task(disturb())
        await asyncio.gather(*(ask(f"task{i}") for i in range(60)))
        disturbing.cancel()


@needs_valkey
class TestReplies:
    async def test_everyone_gets_their_own(self, shared: ValkeyServer) -> None:
        await everyone_gets_their_own(shared.port)

    def test_on_uvloop(self, shared: ValkeyServer) -> None:
        uvloop = pytest.importorskip("uvloop")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(everyone_gets_their_own(shared.port))

    async def test_cancelled_before_it_is_written(self, shared: ValkeyServer) -> None:
        """A call that is cancelled in the tick it was made in is never sent; its neighbours are."""
        async with engine_of(shared.port) as engine:
            await engine.run(("DEL", "n"), writes=True)
            tasks = start([engine.run(increment(), writes=True) for _ in range(10)])
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

            assert await engine.run(("GET", "n"), writes=False) == b"5"

    async def test_one_write_a_tick(self, shared: ValkeyServer) -> None:
        """What 100 tasks call at once goes out in one write; the next round is the next write."""
        async with engine_of(shared.port) as engine:
            backend = RedisStateBackend(engine)
            await backend.set([Entry(Key("0", "k"), b"1")])
            writes = count_writes(engine)
            for _ in range(3):
                await asyncio.gather(
                    *(backend.get([Key(str(i), "k")]) for i in range(50)),
                    *(backend.set([Entry(Key(str(i), "k"), b"1", 60.0)]) for i in range(50)),
                )

        assert len(writes) == 3

    async def test_one_bad_key(self, shared: ValkeyServer) -> None:
        """Values that are stored in one call of the script: the one that cannot be fails alone."""
        async with engine_of(shared.port) as engine:
            backend = RedisStateBackend(engine)
            await engine.run(("SET", "multidb:{u:bad}:i", "no index"), writes=True)
            users = [*"abc", "bad", *"def"]
            results = await asyncio.gather(
                *(ended(backend.set([Entry(Key(user, "k"), user.encode(), 60.0)])) for user in users)
            )
            values = await asyncio.gather(*(backend.get([Key(user, "k")]) for user in "abcdef"))

        failures = [result for result in results if isinstance(result, Exception)]
        assert [[user.encode()] for user in "abcdef"] == values
        assert [BackendError] == [type(failure) for failure in failures]
        assert isinstance(results[3], BackendError)

    async def test_scripts_are_forgotten(self, own: ValkeyServer) -> None:
        """All that were on their way when the server forgot its scripts are carried out, once."""
        add = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
        async with engine_of(own.port) as engine:
            backend = RedisStateBackend(engine)
            for _ in range(5):
                own.command("SCRIPT FLUSH")
                await asyncio.gather(
                    *(backend.set([Entry(Key(str(i), "k"), b"1")]) for i in range(20)),
                    *(engine.run((add, 1, "sum", 1), writes=True) for _ in range(20)),
                )

            assert await engine.run(("GET", "sum"), writes=False) == b"100"
            assert [b"1"] * 20 == [(await backend.get([Key(str(i), "k")]))[0] for i in range(20)]

    async def test_forbidden_to_load_scripts(self, own: ValkeyServer) -> None:
        """A user who may not SCRIPT LOAD has the scripts all the same."""
        own.command("ACL SETUSER limited on >pw ~* +@all -script")
        engine = RedisEngine(f"redis://limited:pw@127.0.0.1:{own.port}")
        backend = RedisStateBackend(engine)
        await engine.open()
        await backend.set([Entry(Key("a", "k"), b"1")])

        assert [b"1"] == await backend.get([Key("a", "k")])
        await engine.close()


def count_writes(engine: RedisEngine) -> list[int]:
    wire = engine._lane._wire
    writes: list[int] = []
    write = wire.write

    def counted(data: bytes) -> None:
        writes.append(len(data))
        write(data)

    wire.write = counted
    return writes


class TestLost:
    async def test_exactly_those_outstanding_fail(self) -> None:
        """What was written fails as ambiguous; what waited behind it goes over the next connection."""
        async with scripted() as server, engine_of(server.port, queue_max_calls=5) as engine:
            server.answer = lambda command: b""
            calls = start([engine.run(("INCR", str(i)), writes=True) for i in range(12)])
            await asyncio.sleep(0.1)
            server.answer = lambda command: b":7\r\n"
            server.hang_up()
            results = await asyncio.gather(*calls)

        assert [BackendUnavailableError] * 5 == [type(result) for result in results[:5]]
        assert all(result.ambiguous for result in results[:5])
        assert [7] * 7 == results[5:]
        assert [str(i).encode() for i in range(12)] == [command[1] for command in server.seen]

    async def test_reads_are_repeated_once(self) -> None:
        async with scripted() as server, engine_of(server.port) as engine:
            server.answer = lambda command: b""
            reads = start([engine.run(("GET", "k"), writes=False) for _ in range(3)])
            await asyncio.sleep(0.05)
            server.hang_up()
            await asyncio.sleep(0.05)
            server.hang_up()
            results = await asyncio.gather(*reads)

        assert [BackendUnavailableError] * 3 == [type(result) for result in results]
        assert not any(result.ambiguous for result in results)
        assert len(server.seen) == 6

    async def test_no_server_to_go_on_with(self) -> None:
        """Where there is no next connection, what was not written fails at once and for certain."""
        async with (
            scripted() as server,
            engine_of(server.port, queue_max_calls=1, timeout_seconds=5) as engine,
        ):
            server.answer = lambda command: b""
            calls = start([engine.run(increment(), writes=True) for _ in range(3)])
            await asyncio.sleep(0.05)
            engine._lane._connect = refused
            started = time.monotonic()
            server.hang_up()
            results = await asyncio.gather(*calls)

        assert [BackendUnavailableError] * 3 == [type(result) for result in results]
        assert [True, False, False] == [result.ambiguous for result in results]
        assert time.monotonic() - started < 1

    async def test_nonsense(self) -> None:
        """Replies that nobody asked for end the connection, not the engine."""
        async with scripted() as server, engine_of(server.port) as engine:
            server.answer = lambda command: b"+OK\r\n+OK\r\n"
            await engine.run(("SET", "k", "v"), writes=True)
            await asyncio.sleep(0.05)
            server.answer = lambda command: b"HTTP/1.1 400\r\n"
            nonsense = await ended(engine.run(("SET", "k", "v"), writes=True))
            server.answer = lambda command: b"$1\r\nv\r\n"

            assert await engine.run(("GET", "k"), writes=False) == b"v"
        assert type(nonsense) is BackendUnavailableError
        assert nonsense.ambiguous
        assert server.connections == 3

    @needs_valkey
    async def test_killed_with_many_outstanding(self, own: ValkeyServer) -> None:
        """Every call ends; afterwards the server is used again as before."""
        async with engine_of(own.port, timeout_seconds=5) as engine:
            own.command("CLIENT PAUSE 10000 ALL")
            calls = start([engine.run(increment(), writes=True) for _ in range(500)])
            await asyncio.sleep(0.1)
            own.kill()
            results = await asyncio.gather(*calls)
            own.start()
            after = await engine.run(("GET", "n"), writes=False)

        assert Counter({BackendUnavailableError: 500}) == Counter(type(result) for result in results)
        assert all(result.ambiguous for result in results)
        assert after is None


async def refused() -> Any:
    raise ConnectionRefusedError


class TestDeadlines:
    async def test_late_reply(self) -> None:
        """A caller that waited too long leaves its place: the late reply is nobody else's."""
        async with scripted() as server, engine_of(server.port, timeout_seconds=0.3) as engine:
            server.answer = lambda command: b""
            first = start([engine.run(("GET", "first"), writes=False)])
            await asyncio.sleep(0.15)
            second, third = start([engine.run(("GET", name), writes=False) for name in ("second", "third")])
            saying = asyncio.create_task(server.say(b"$1\r\n1\r\n", 0.1))
            await asyncio.sleep(0.2)
            fourth, *_ = start([engine.run(("GET", "fourth"), writes=False)])
            await server.say(b"$1\r\n2\r\n", 0.15)
            await server.say(b"$1\r\n3\r\n$1\r\n4\r\n", 0.05)
            results = await asyncio.gather(*first, second, third, fourth)
            await saying

        assert results[0] == b"1"
        assert [BackendTimeoutError] * 2 == [type(result) for result in results[1:3]]
        assert results[3] == b"4"
        assert server.connections == 1

    async def test_silence(self) -> None:
        """A connection over which nothing came for the deadline is dropped, and all that is outstanding fails."""
        async with scripted() as server, engine_of(server.port, timeout_seconds=0.2) as engine:
            server.answer = lambda command: b""
            write = asyncio.create_task(ended(engine.run(increment(), writes=True)))
            read = asyncio.create_task(ended(engine.run(("GET", "n"), writes=False)))
            results = [await write, await read]
            server.answer = lambda command: b"+OK\r\n"
            after = await engine.run(("SET", "k", "v"), writes=True)

        assert [BackendTimeoutError] * 2 == [type(result) for result in results]
        assert [True, False] == [result.ambiguous for result in results]
        assert after == b"OK"
        assert server.connections == 2

    async def test_silence_after_a_slow_login(self) -> None:
        """What waited for the connection has waited, though what greets the server has not."""
        async with scripted() as server, engine_of(server.port, timeout_seconds=0.6) as engine:
            server.login_seconds = 0.4
            server.answer = lambda command: b""
            server.hang_up()
            await asyncio.sleep(0.05)
            started = time.monotonic()
            error = await ended(engine.run(("GET", "n"), writes=False))
            seconds = time.monotonic() - started

        assert isinstance(error, BackendTimeoutError)
        assert seconds < 0.6 + 0.25

    async def test_no_connection_for_a_reason_of_ours(self) -> None:
        """Whatever keeps a connection from being made, those that wait for it hear of it at once."""

        async def connect() -> Any:
            raise ZeroDivisionError

        lane = Lane(connect, timeout_seconds=30.0, max_calls=10, max_bytes=1024)
        calls = [asyncio.ensure_future(lane.call(PING, writes=True)) for _ in range(3)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        await lane.close(1)

        assert [ZeroDivisionError] * 3 == [type(error) for error in errors]
        assert len({id(error) for error in errors}) == 3

    async def test_one_timer(self) -> None:
        """However often connections are given up, one timer keeps the deadlines."""
        async with scripted() as server, engine_of(server.port, timeout_seconds=0.1) as engine:
            server.answer = lambda command: b""
            for _ in range(5):
                await asyncio.gather(*(ended(engine.run(increment(), writes=True)) for _ in range(5)))
            calls = 0
            keep = Lane._keep_deadlines

            def count(self: Lane) -> None:
                nonlocal calls
                calls += 1
                keep(self)

            with mock.patch.object(Lane, "_keep_deadlines", count):
                waiting = [ended(engine.run(increment(), writes=True)) for _ in range(5)]
                await asyncio.gather(*waiting)

        assert calls <= 8

    async def test_closed_while_it_hangs(self, caplog: pytest.LogCaptureFixture) -> None:
        """A server that does not answer a farewell leaves nothing that nobody looked at."""
        async with scripted() as server:
            async with engine_of(server.port, timeout_seconds=0.5) as engine:
                server.answer = lambda command: b""
                (call,) = start([engine.run(("GET", "n"), writes=False)])
                await asyncio.sleep(0.05)
            error = await call
            gc.collect()

        assert isinstance(error, BackendError | ClosedError)
        assert not [record for record in caplog.records if record.name == "asyncio"]

    @needs_valkey
    @pytest.mark.parametrize("form", ["redis", "redis+cluster"])
    async def test_stopped_server(self, form: str, request: pytest.FixtureRequest) -> None:
        """Whatever is called while a server is stopped ends by the deadline."""
        if form == "redis":
            server = request.getfixturevalue("own")
            url, key = server.url, "{k}"
        else:
            cluster = request.getfixturevalue("cluster")
            server, url = cluster.nodes[0], cluster_url(cluster)
            key = next(f"{{{i}}}" for i in range(99) if slot_of(server, f"{{{i}}}") < 5000)
        engine = RedisEngine(url, timeout_seconds=0.6, connect_timeout_seconds=0.6)
        await engine.open()
        await engine.run(("SET", key, "v"), writes=True)
        server.pause()
        times: list[float] = []
        for _ in range(3):
            times += await asyncio.gather(
                *(seconds_of(engine.run(("SET", key, "v"), writes=True)) for _ in range(50)),
                *(seconds_of(engine.run(("GET", key), writes=False)) for _ in range(50)),
                seconds_of(engine.run(("SET", key, b"x" * 1_000_000), writes=True)),
                seconds_of(engine.run(("GET", key), writes=False, bulky=True)),
                seconds_of(engine.run_all([("GET", key), ("SET", key, "v")], writes=True)),
                seconds_of(engine.run_all([("SET", key, b"x" * 100_000)] * 3, writes=True)),
                seconds_of(engine.ping()),
            )
        server.resume()
        await engine.close()

        assert max(times) < 0.85


async def seconds_of(call: Awaitable[object]) -> float:
    started = time.monotonic()
    with pytest.raises(BackendError):
        await call
    return time.monotonic() - started


class TestBackPressure:
    async def test_full(self) -> None:
        """Behind as much as may be outstanding a caller waits; past its deadline it knows that nothing was sent."""
        async with (
            scripted() as server,
            engine_of(server.port, queue_max_calls=4, timeout_seconds=0.3) as engine,
        ):
            server.answer = lambda command: b""
            results = await asyncio.gather(*start([engine.run(increment(), writes=True) for _ in range(10)]))

        assert [BackendTimeoutError] * 4 + [OverloadedError] * 6 == [type(result) for result in results]
        assert [True] * 4 + [False] * 6 == [result.ambiguous for result in results]
        assert len(server.seen) == 4

    async def test_full_of_bytes(self) -> None:
        async with (
            scripted() as server,
            engine_of(server.port, queue_max_bytes=100_000, timeout_seconds=0.3) as engine,
        ):
            server.answer = lambda command: b""
            value = b"x" * 50_000
            results = await asyncio.gather(
                *start([engine.run(("SET", "k", value), writes=True) for _ in range(6)])
            )

        assert [BackendTimeoutError] * 2 + [OverloadedError] * 4 == [type(result) for result in results]

    async def test_merged_calls_count(self) -> None:
        async with (
            scripted() as server,
            engine_of(server.port, queue_max_calls=4, timeout_seconds=0.3) as engine,
        ):
            server.answer = lambda command: b""
            backend = RedisStateBackend(engine)
            results = await asyncio.gather(
                *start([backend.set([Entry(Key("a", str(i)), b"1")]) for i in range(10)])
            )

        assert [BackendTimeoutError] * 4 + [OverloadedError] * 6 == [type(result) for result in results]

    @needs_valkey
    async def test_first_come_first_served(self, shared: ValkeyServer) -> None:
        """20,000 calls at once through a narrow lane are all answered, in the order in which they were made."""
        async with engine_of(shared.port, queue_max_calls=100, timeout_seconds=30) as engine:
            await engine.run(("DEL", "n"), writes=True)
            counts = await asyncio.gather(*(engine.run(increment(), writes=True) for _ in range(20_000)))

        assert list(range(1, 20_001)) == counts


class SlowProxy:
    """Forwards connections, but what comes beyond the first 64 KiB of one only slowly, and the first when it may."""

    def __init__(self, port: int) -> None:
        self.first_may = asyncio.Event()
        self.first_may.set()
        self.port = 0
        self._server_port = port
        self._connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        is_first = self._connections == 1
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        down = asyncio.create_task(self._down(from_server, writer))
        total = 0
        while data := await reader.read(16384):
            total += len(data)
            if total > 65536:
                await asyncio.sleep(0.02)
            if is_first:
                await self.first_may.wait()
            to_server.write(data)
        to_server.close()
        await down

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


@asynccontextmanager
async def slow_proxy(port: int) -> AsyncIterator[SlowProxy]:
    proxy = SlowProxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    async with server:
        yield proxy
        server.close()


@needs_valkey
class TestLargeValues:
    async def test_hold_up_nobody(self, shared: ValkeyServer) -> None:
        """While a large value is on its way, small ones of others come and go."""
        async with slow_proxy(shared.port) as proxy, engine_of(proxy.port, timeout_seconds=5) as engine:
            backend = RedisStateBackend(engine)
            large = asyncio.create_task(backend.set([Entry(Key("large", "k"), b"x" * 600_000)]))
            await asyncio.sleep(0.1)
            for i in range(20):
                await backend.set([Entry(Key("small", "k"), str(i).encode())])
                await backend.get([Key("small", "k")])

            assert not large.done()
            await large
            assert [b"x" * 600_000] == await backend.get([Key("large", "k")])

    async def test_small_after_large(self, shared: ValkeyServer) -> None:
        """A small value that follows a large one, whose caller was cancelled while it was sent, is the one that stays."""
        key = Key("same", "k")
        async with slow_proxy(shared.port) as proxy, engine_of(proxy.port, timeout_seconds=5) as engine:
            backend = RedisStateBackend(engine)
            large = asyncio.create_task(backend.set([Entry(key, b"x" * 400_000)]))
            await asyncio.sleep(0.1)
            large.cancel()
            started = time.monotonic()
            await backend.set([Entry(Key("other", "k"), b'"at once"')])
            seconds = time.monotonic() - started
            await backend.set([Entry(key, b'"small"')])
            await asyncio.sleep(0.5)

            assert [b'"small"'] == await backend.get([key])
        assert seconds < 0.2

    async def test_large_after_small(self, shared: ValkeyServer) -> None:
        """A large value that follows a small one, whose caller was cancelled while it was sent, is the one that stays."""
        key = Key("same", "k")
        async with slow_proxy(shared.port) as proxy, engine_of(proxy.port, timeout_seconds=5) as engine:
            backend = RedisStateBackend(engine)
            await backend.set([Entry(key, b"1")])
            proxy.first_may.clear()
            small = asyncio.create_task(backend.set([Entry(key, b'"small"')]))
            await asyncio.sleep(0.05)
            small.cancel()
            large = asyncio.create_task(backend.set([Entry(key, b"x" * 100_000)]))
            await asyncio.sleep(0.5)
            proxy.first_may.set()
            await large
            await asyncio.sleep(0.1)

            assert [b"x" * 100_000] == await backend.get([key])

    async def test_cancelled_before_it_is_sent(self, shared: ValkeyServer) -> None:
        """A large value whose caller is cancelled while it waits for its turn is never sent."""
        async with (
            slow_proxy(shared.port) as proxy,
            engine_of(proxy.port, timeout_seconds=5, pool_max=1) as engine,
        ):
            backend = RedisStateBackend(engine)
            first = asyncio.create_task(backend.set([Entry(Key("first", "k"), b"x" * 200_000)]))
            await asyncio.sleep(0.02)
            second = asyncio.create_task(backend.set([Entry(Key("second", "k"), b"x" * 200_000)]))
            await asyncio.sleep(0.02)
            second.cancel()
            await first
            await asyncio.sleep(0.1)

            assert [None] == await backend.get([Key("second", "k")])

    async def test_in_a_cluster(self, cluster: ValkeyCluster) -> None:
        engine = RedisEngine(cluster_url(cluster), timeout_seconds=5)
        await engine.open()
        backend = RedisStateBackend(engine)
        users = [str(i) for i in range(12)]
        await asyncio.gather(*(backend.set([Entry(Key(user, "k"), b"x" * 200_000)]) for user in users))
        values = await backend.get([Key(user, "k") for user in users])
        await engine.close()

        assert [200_000] * 12 == [len(value or b"") for value in values]

    async def test_one_large_reply(self, shared: ValkeyServer) -> None:
        """All values of a user, and lists, come over a connection of their own."""
        async with engine_of(shared.port) as engine:
            backend = RedisStateBackend(engine)
            await asyncio.gather(
                *(backend.set([Entry(Key("much", str(i)), b"x" * 60_000)]) for i in range(50))
            )
            calls = start([backend.get_all("much") for _ in range(3)])
            await asyncio.sleep(0)
            outstanding = len(engine._lane._wire.sent) + len(engine._lane.queue)
            found = await asyncio.gather(*calls)

        assert outstanding == 0
        assert [50] * 3 == [len(values) for values in found]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(fsync=False) as three:
        yield three


def cluster_url(cluster: ValkeyCluster) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)


def slot_of(server: ValkeyServer, key: str) -> int:
    return int(server.command(f"CLUSTER KEYSLOT {key}").removeprefix(":"))


@needs_valkey
class TestCluster:
    async def test_one_lane_a_node(self, cluster: ValkeyCluster) -> None:
        """300 tasks share a connection to each node, and each gets its own reply."""
        engine = RedisEngine(cluster_url(cluster), timeout_seconds=5)
        await engine.open()
        backend = RedisStateBackend(engine)
        counts = await asyncio.gather(
            *(backend.increment([Increment(Key(str(i % 30), "n"), 1)]) for i in range(300))
        )
        await asyncio.gather(
            *(backend.set([Entry(Key(str(i), "k"), str(i).encode(), 60.0)]) for i in range(300))
        )
        values = await asyncio.gather(*(backend.get([Key(str(i), "k")]) for i in range(300)))
        lanes = list(engine._nodes.lanes)
        await engine.close()

        assert Counter(dict.fromkeys(range(1, 11), 30)) == Counter(count for (count,) in counts)
        assert [[str(i).encode()] for i in range(300)] == values
        assert len(lanes) == 3

    async def test_a_node_comes_back(self, cluster: ValkeyCluster) -> None:
        """The lanes to the other nodes work while one node is gone, and so does its own after its return."""
        engine = RedisEngine(cluster_url(cluster), timeout_seconds=1)
        await engine.open()
        key = {
            node.port: next(f"{{{i}}}" for i in range(999) if slot_of(node, f"{{{i}}}") * 3 // 16384 == at)
            for at, node in enumerate(cluster.nodes)
        }
        for each in key.values():
            await engine.run(("SET", each, "v"), writes=True)
        gone = cluster.nodes[2]
        gone.kill()
        for _ in range(3):
            results = await asyncio.gather(
                *start([engine.run(("GET", each), writes=False) for each in key.values()])
            )
        cluster.start()
        deadline = time.monotonic() + 15
        while isinstance(
            back := await ended(engine.run(("SET", key[gone.port], "v"), writes=True)), BackendError
        ):
            assert time.monotonic() < deadline
        await engine.close()

        assert [b"v", b"v"] == results[:2]
        assert type(results[2]) is BackendUnavailableError
        assert back == b"OK"


class TestLife:
    async def test_nothing_is_left(self) -> None:
        """Closing ends what is outstanding, in time, and leaves no task, no connection and no warning."""
        before = asyncio.all_tasks()
        async with scripted() as server:
            engine = RedisEngine(f"redis://127.0.0.1:{server.port}", queue_max_calls=3, timeout_seconds=30)
            await engine.open()
            server.answer = lambda command: b""
            calls = start([engine.run(increment(), writes=True) for _ in range(6)])
            calls += start([engine.run(("SET", "k", b"x" * 100_000), writes=True)])
            await asyncio.sleep(0.05)
            started = time.monotonic()
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                await engine.close()
                results = await asyncio.gather(*calls)
                gc.collect()
            seconds = time.monotonic() - started
            after = await ended(engine.run(increment(), writes=True))
            await asyncio.sleep(0.05)
            left = server._writers

        assert [ClosedError] * 8 == [type(result) for result in (*results, after)]
        assert seconds < 3  # and not 30
        assert not left
        assert {task for task in asyncio.all_tasks() if "redis" in task.get_name()} <= before

    async def test_close_waits(self) -> None:
        """What is answered soon after `close()` was called is answered."""
        async with scripted() as server:
            engine = RedisEngine(f"redis://127.0.0.1:{server.port}")
            await engine.open()
            server.answer = lambda command: b""
            call, *_ = start([engine.run(increment(), writes=True)])
            await asyncio.sleep(0.05)
            saying = asyncio.create_task(server.say(b":5\r\n+PONG\r\n", 0.1))
            await engine.close()

            assert await call == 5
            await saying

    def test_abandoned_in_a_loop_that_runs(self) -> None:
        """Who waits when an engine is abandoned is told so."""

        async def abandon() -> list[Any]:
            async with scripted() as server:
                engine = RedisEngine(f"redis://127.0.0.1:{server.port}", timeout_seconds=30)
                await engine.open()
                server.answer = lambda command: b""
                calls = start([engine.run(increment(), writes=True) for _ in range(3)])
                calls += start([engine.run(("SET", "k", b"x" * 100_000), writes=True)])
                await asyncio.sleep(0.05)
                engine.abandon()
                return await asyncio.gather(*calls)

        assert [ClosedError] * 4 == [type(result) for result in asyncio.run(abandon())]

    async def test_close_while_connecting(self) -> None:
        async with scripted() as server:
            engine = RedisEngine(f"redis://127.0.0.1:{server.port}", timeout_seconds=30)
            await engine.open()
            engine._lane._connect = lambda: asyncio.sleep(30)
            server.hang_up()
            await asyncio.sleep(0.05)
            calls = start([engine.run(increment(), writes=True) for _ in range(3)])
            await asyncio.sleep(0.05)
            await engine.close()
            results = await asyncio.gather(*calls)

        assert [ClosedError] * 3 == [type(result) for result in results]

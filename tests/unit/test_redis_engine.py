"""RedisEngine: what its URL may say, which errors it raises, and what it survives."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import warnings
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from redis import exceptions as theirs

from multidb.engines._redis_errors import UnsentError, translate
from multidb.engines._redis_url import Topology, parse
from multidb.engines.redis import RedisEngine, Script
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    MultiDBError,
    OverloadedError,
)
from multidb.testing import servers
from multidb.testing.servers import ValkeyCluster, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)

needs_valkey = pytest.mark.skipif(
    servers.own_skip_reason("valkey") is not None, reason=str(servers.own_skip_reason("valkey"))
)
SECRET = "hunter2"


@pytest.fixture(scope="module")
def shared() -> Iterator[ValkeyServer]:
    """A server that tests leave as they found it."""
    with ValkeyServer(fsync=False) as server:
        yield server


@pytest.fixture
def own() -> Iterator[ValkeyServer]:
    """A server that a test may maltreat; it keeps what it acknowledged."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="module")
def cluster_to_mend() -> Iterator[ValkeyCluster]:
    with ValkeyCluster() as three:
        yield three


@pytest.fixture
def cluster(cluster_to_mend: ValkeyCluster) -> ValkeyCluster:
    """A cluster that a test may maltreat: the next one starts what does not run."""
    cluster_to_mend.start()
    cluster_to_mend.flush()
    return cluster_to_mend


@pytest.fixture(params=["redis", "redis+cluster"])
def deployment(request: pytest.FixtureRequest) -> tuple[str, ValkeyServer]:
    """A URL, and the server behind it that has the key `k`, which a test may maltreat."""
    if request.param == "redis":
        server = request.getfixturevalue("own")
        return server.url, server
    cluster = request.getfixturevalue("cluster")
    return cluster_url(cluster), owner(cluster, "k")


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisEngine]:
    engine = RedisEngine(url, **options)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


def cluster_url(cluster: ValkeyCluster) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("redis://h", {"hosts": (("h", 6379),), "db": 0, "tls": False, "password": None}),
            ("redis://h/", {"db": 0}),
            ("valkey://h:1/5", {"hosts": (("h", 1),), "db": 5, "tls": False}),
            ("redis://h?db=7", {"db": 7}),
            ("rediss://h", {"tls": True}),
            ("valkeys://h", {"tls": True}),
            ("REDIS://h", {"topology": Topology.SINGLE}),
            ("redis://:p%40ss%2Fw%3A%25@h", {"username": None, "password": "p@ss/w:%"}),
            ("redis://us%3Aer:p:w@h", {"username": "us:er", "password": "p:w"}),
            ("redis://[::1]:7", {"hosts": (("::1", 7),)}),
            ("redis://[::1]", {"hosts": (("::1", 6379),)}),
            ("unix:///run/a%20b.sock?db=3", {"path": "/run/a b.sock", "db": 3, "hosts": ()}),
            ("unix://u:p@/run/r.sock", {"username": "u", "password": "p", "path": "/run/r.sock"}),
            (
                "redis+cluster://u:p@a:1,b,[::1]:3",
                {"hosts": (("a", 1), ("b", 6379), ("::1", 3)), "password": "p"},
            ),
            ("rediss+cluster://a/0", {"topology": Topology.CLUSTER, "tls": True}),
            (
                "redis+sentinel://u:p@a:1,b/main/2?sentinel_password=x%26y&sentinel_username=s",
                {
                    "topology": Topology.SENTINEL,
                    "hosts": (("a", 1), ("b", 26379)),
                    "service": "main",
                    "db": 2,
                    "username": "u",
                    "password": "p",
                    "sentinel_username": "s",
                    "sentinel_password": "x&y",
                },
            ),
            ("redis+sentinel://a/ma%20in", {"service": "ma in", "db": 0}),
            (
                "rediss://h?ssl_cert_reqs=none&ssl_check_hostname=False&ssl_ca_certs=/ca.pem",
                {
                    "tls_options": {
                        "ssl_cert_reqs": "none",
                        "ssl_check_hostname": False,
                        "ssl_ca_certs": "/ca.pem",
                    }
                },
            ),
        ],
    )
    def test_good(self, url: str, expected: dict[str, Any]) -> None:
        address = parse(url)

        assert expected == {name: getattr(address, name) for name in expected}

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "h:6379",
            "http://h",
            "redis+other://h",
            "redis+://h",
            "unix+cluster:///x",
            "redis://",
            "redis://:6379",
            "redis://h:0",
            "redis://h:65536",
            "redis://h:x",
            "redis://h:",
            "redis://h:-1",
            "redis://h:١",
            "redis://h/x",
            "redis://h/-1",
            "redis://h/1/2",
            "redis://a,b",
            "redis://h?db=x",
            "redis://h#f",
            "redis://h?nonsense",
            "redis://[::1",
            "redis://[::1]x",
            "redis+cluster://a,",
            "redis+cluster://a/1",
            "redis+cluster://a?db=1",
            "redis+sentinel://a",
            "redis+sentinel://a/",
            "redis+sentinel://a/m/x",
            "redis+sentinel://a/m/1/2",
            "unix://",
            "unix://host/x",
            "rediss://h?ssl_cert_reqs=perhaps",
            "rediss://h?ssl_check_hostname=perhaps",
            f"redis://u:{SECRET}@h:x",
            f"redis://u:{SECRET}#@h",
            f"redis://u:{SECRET}/@h",
            f"redis://u:{SECRET}?@h",
            f"redis://u:12?{SECRET}=3@h",
            f"redis://u:{SECRET}\u2100@h",
            f"redis://u:[{SECRET}@h",
            f"redis+sentinel://u:{SECRET}@h",
        ],
    )
    def test_bad(self, url: str) -> None:
        """A URL that is not understood is refused, and no part of it appears in what is printed of the error."""
        with pytest.raises(ConfigurationError, match="REDIS_URL: ") as caught:
            RedisEngine(url)
        printed = "".join(traceback_of(caught.value))

        assert SECRET not in printed

    @pytest.mark.parametrize(
        "option", ["socket_timeout", "max_connections", "foo", "ssl_certfile", "sentinel_password"]
    )
    def test_unknown_option(self, option: str) -> None:
        with pytest.raises(ConfigurationError, match=option):
            RedisEngine(f"redis://h?{option}={SECRET}")

    def test_secrets_are_not_shown(self) -> None:
        address = parse(f"redis+sentinel://u:{SECRET}@h/m?sentinel_password={SECRET}")

        assert SECRET not in repr(address)
        assert SECRET not in repr(RedisEngine(f"redis://:{SECRET}@h"))

    def test_making_one_does_nothing(self) -> None:
        """It needs no event loop, no server and no DNS."""
        engine = RedisEngine("redis://no.such.host.invalid")
        engine.abandon()

        assert engine.name == "redis"


def traceback_of(exc: BaseException) -> list[str]:
    import traceback

    return traceback.format_exception_only(exc) + (
        traceback_of(exc.__cause__)
        if exc.__cause__
        else traceback_of(exc.__context__)
        if exc.__context__ and not exc.__suppress_context__
        else []
    )


@contextmanager
def fake_server(hello: bytes | None = None, *, noise: bytes = b"") -> Iterator[int]:
    """A listener that answers HELLO with *hello* and all else with OK, or everything with *noise*, or is silent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopped = threading.Event()

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                if stopped.is_set():
                    connection.close()
                    return
                with connection:
                    while (hello or noise) and (data := connection.recv(10_000)):
                        for command in re.findall(rb"\*\d+\r\n\$\d+\r\n(\w+)", data):
                            connection.sendall(
                                noise or {b"HELLO": hello, b"PING": b"+PONG\r\n"}.get(command, b"+OK\r\n")
                            )
                    stopped.wait(2)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stopped.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join()


async def failure_of_open(url: str, **options: Any) -> tuple[MultiDBError, float]:
    """Return the error of opening, and the seconds it took."""
    engine = RedisEngine(url, **options)
    started = time.monotonic()
    with pytest.raises(MultiDBError) as caught:
        await engine.open()
    seconds = time.monotonic() - started
    with pytest.raises(ClosedError):
        await engine.ping()
    assert SECRET not in "".join(traceback_of(caught.value))
    return caught.value, seconds


class TestOpen:
    @pytest.mark.parametrize(
        "form", ["redis://127.0.0.1:{}", "redis+cluster://127.0.0.1:{}", "redis+sentinel://127.0.0.1:{}/m"]
    )
    async def test_nobody_listens(self, form: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        error, seconds = await failure_of_open(form.format(port))

        assert type(error) is BackendUnavailableError
        assert not error.ambiguous
        assert seconds < 1

    @pytest.mark.parametrize(
        "form", ["redis://127.0.0.1:{}", "redis+cluster://127.0.0.1:{}", "redis+sentinel://127.0.0.1:{}/m"]
    )
    async def test_nobody_answers(self, form: str) -> None:
        with fake_server() as port:
            error, seconds = await failure_of_open(
                form.format(port), timeout_seconds=0.2, connect_timeout_seconds=0.2
            )

        assert type(error) is BackendUnavailableError
        assert seconds < 0.6

    async def test_no_such_host(self) -> None:
        error, _ = await failure_of_open("redis://no.such.host.invalid")

        assert type(error) is BackendUnavailableError

    async def test_no_such_socket(self, tmp_path: Path) -> None:
        error, _ = await failure_of_open(f"unix://{tmp_path}/r.sock")

        assert type(error) is BackendUnavailableError

    async def test_no_redis_at_all(self) -> None:
        with fake_server(noise=b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
            error, _ = await failure_of_open(f"redis://127.0.0.1:{port}")

        assert isinstance(error, BackendUnavailableError | ConfigurationError)

    @pytest.mark.parametrize(
        "answer",
        [b"-ERR unknown command 'HELLO'\r\n", b"*4\r\n+version\r\n+6.2.14\r\n+mode\r\n+standalone\r\n"],
    )
    async def test_too_old(self, answer: bytes) -> None:
        with fake_server(answer) as port:
            error, _ = await failure_of_open(f"redis://127.0.0.1:{port}")

        assert type(error) is ConfigurationError

    @needs_valkey
    @pytest.mark.parametrize("login", ["", f":{SECRET}@", f"nobody:{SECRET}@"])
    @pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
    async def test_wrong_login(self, login: str, scheme: str) -> None:
        """A wrong or missing password is a matter of configuration, never an outage."""
        with ValkeyServer(fsync=False, password="right") as server:
            error, seconds = await failure_of_open(f"{scheme}://{login}127.0.0.1:{server.port}")

        assert type(error) is ConfigurationError
        assert seconds < 1

    @needs_valkey
    async def test_right_login(self) -> None:
        with ValkeyServer(fsync=False, password="ri:g@ht/%") as server:
            async with opened(f"redis://default:ri%3Ag%40ht%2F%25@127.0.0.1:{server.port}") as engine:
                await engine.ping()

    @needs_valkey
    @pytest.mark.parametrize(
        "form",
        ["redis://127.0.0.1:{}/99", "redis+cluster://127.0.0.1:{}", "redis+sentinel://127.0.0.1:{}/main"],
    )
    async def test_wrong_url(self, shared: ValkeyServer, form: str) -> None:
        """A database that is not there, or another kind of server, is a matter of configuration."""
        error, _ = await failure_of_open(form.format(shared.port))

        assert type(error) is ConfigurationError

    @needs_valkey
    async def test_node_of_a_cluster(self, cluster: ValkeyCluster) -> None:
        error, _ = await failure_of_open(f"redis://127.0.0.1:{cluster.nodes[0].port}")

        assert type(error) is ConfigurationError
        assert "redis+cluster://" in str(error)

    @needs_valkey
    async def test_any_node_will_do(self, cluster: ValkeyCluster) -> None:
        url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.nodes[2].port}"
        async with opened(url) as engine:
            await engine.ping()

    @needs_valkey
    async def test_too_many_clients(self, own: ValkeyServer) -> None:
        async with opened(own.url):
            own.command("CONFIG SET maxclients 1")
            error, _ = await failure_of_open(own.url)

        assert type(error) is OverloadedError

    @needs_valkey
    async def test_unix_socket(self, tmp_path: Path) -> None:
        path = tmp_path / "v.sock"
        with ValkeyServer(fsync=False, arguments=["--unixsocket", str(path)]):
            async with opened(f"unix://{path}?db=2") as engine:
                assert await engine.run(("SET", "k", "v"), writes=True)
                assert b"v" == await engine.run(("GET", "k"), writes=False)


class TestErrors:
    @needs_valkey
    async def test_memory_is_full(self, own: ValkeyServer) -> None:
        async with opened(own.url) as engine:
            own.command("CONFIG SET maxmemory 1")
            errors = [await failure(engine.run(command, writes=True)) for command in (SET, (SCRIPT, 1, "k"))]
            probe = await failure(engine.ping())
            batch = await failure(engine.run_all([SET, SET], writes=True))

            assert [OverloadedError] * 4 == [type(error) for error in (*errors, probe, batch)]
            assert not any(error.ambiguous for error in (*errors, probe, batch))
            assert await engine.run(("GET", "k"), writes=False) is None

    @needs_valkey
    @pytest.mark.parametrize(
        ("setting", "undo"),
        [
            ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
            ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
        ],
    )
    async def test_not_for_writing(self, own: ValkeyServer, setting: str, undo: str) -> None:
        """A replica, or a master that has too few, takes no writes: PING says PONG, `ping()` does not."""
        async with opened(own.url) as engine:
            own.command(setting)
            errors = [await failure(engine.run(SET, writes=True)), await failure(engine.ping())]
            batch = await failure(engine.run_all([SET, SET], writes=True))
            own.command(undo)
            await until(lambda: works(engine))
            clients = own.command("CLIENT LIST")

        assert type(batch) is BackendUnavailableError
        assert not batch.ambiguous
        assert clients.count("name=multidb") == 1
        assert [BackendUnavailableError] * 2 == [type(error) for error in errors]
        assert not any(error.ambiguous for error in errors)

    @needs_valkey
    async def test_busy_with_a_script(self, own: ValkeyServer) -> None:
        async with opened(own.url) as engine, opened(own.url) as other:
            own.command("CONFIG SET busy-reply-threshold 20")
            endless = asyncio.create_task(other.run((Script("while true do end"), 0), writes=True))
            await asyncio.sleep(0.1)
            error = await failure(engine.run(SET, writes=True))
            own.command("SCRIPT KILL")
            with suppress(MultiDBError):
                await endless

        assert type(error) is BackendUnavailableError
        assert not error.ambiguous

    @needs_valkey
    async def test_not_permitted(self, own: ValkeyServer) -> None:
        own.command(f"ACL SETUSER limited on >{SECRET} ~* +@all -set")
        async with opened(f"redis://limited:{SECRET}@127.0.0.1:{own.port}") as engine:
            error = await failure(engine.run(SET, writes=True))

        assert type(error) is ConfigurationError

    @needs_valkey
    async def test_wrong_type(self, shared: ValkeyServer) -> None:
        """An answer that nothing else fits is a plain BackendError, which quotes no data."""
        async with opened(shared.url) as engine:
            await engine.run(("LPUSH", "list", "x"), writes=True)
            error = await failure(engine.run(("INCRBY", "list", SECRET), writes=True))
            one_of_three = await failure(engine.run_all([SET, ("INCR", "list"), SET], writes=True))

        assert type(error) is BackendError
        assert SECRET not in "".join(traceback_of(error))
        assert not error.ambiguous
        assert "WRONGTYPE" in str(one_of_three)
        assert one_of_three.ambiguous

    @needs_valkey
    async def test_no_answer(self, own: ValkeyServer) -> None:
        """A server that stops answering costs one timeout; only of a write it is not known what became of it."""
        async with opened(own.url, timeout_seconds=0.2, connect_timeout_seconds=0.2) as engine:
            own.pause()
            started = time.monotonic()
            write = await failure(engine.run(SET, writes=True))
            seconds = time.monotonic() - started
            unreachable = await failure(engine.run(SET, writes=True))
            own.resume()
            await until(lambda: works(engine))
            own.pause()
            read = await failure(engine.run(("GET", "k"), writes=False))
            started = time.monotonic()
            await engine.close()
            closing = time.monotonic() - started
            own.resume()

        assert type(write) is BackendTimeoutError
        assert write.ambiguous
        assert 0.15 < seconds < 0.5
        assert type(unreachable) is BackendUnavailableError
        assert not unreachable.ambiguous
        assert type(read) is BackendTimeoutError
        assert not read.ambiguous
        assert closing < 0.5

    @needs_valkey
    async def test_no_room_to_send(self, own: ValkeyServer) -> None:
        """A value that is too large to be sent before the server stops reading costs one timeout as well."""
        async with opened(own.url, timeout_seconds=0.3) as engine:
            own.pause()
            error = await failure(engine.run(("SET", "k", b"x" * 50_000_000), writes=True))
            own.resume()
            await until(lambda: works(engine))

        assert type(error) is BackendTimeoutError
        assert error.ambiguous

    @needs_valkey
    async def test_closed_while_waiting(self, own: ValkeyServer) -> None:
        """Who waits for an answer, or for a turn, when the engine is closed is told so."""
        large = ("SET", "k", b"x" * 100_000)
        async with opened(own.url, pool_max=1, queue_max_calls=1) as engine:
            own.command("CLIENT PAUSE 10000 WRITE")
            calls = [
                asyncio.create_task(failure(engine.run(command, writes=True)))
                for command in (SET, SET, large, large)
            ]
            await asyncio.sleep(0.1)
            await engine.close()
            errors = await asyncio.gather(*calls)

        assert [ClosedError] * 4 == [type(error) for error in errors]

    @needs_valkey
    async def test_pool_in_use(self, own: ValkeyServer) -> None:
        """Waiting for a turn ends before the caller's own deadline, and says that nothing was sent."""
        async with opened(own.url, pool_max=2, timeout_seconds=0.4) as engine:
            own.pause()
            large = [("SET", f"k{i}", b"x" * 100_000) for i in range(5)]
            calls = [asyncio.create_task(failure(engine.run(each, writes=True))) for each in large]
            errors = await asyncio.gather(*calls)
            own.resume()

        assert [OverloadedError] * 3 == [type(error) for error in errors[2:]]
        assert not any(error.ambiguous for error in errors[2:])

    @needs_valkey
    async def test_killed_while_it_works(self, deployment: tuple[str, ValkeyServer]) -> None:
        """A write whose connection breaks may have been applied; a read is tried once more."""
        url, server = deployment
        async with opened(url) as engine:
            await asyncio.gather(*(engine.run(SET, writes=True) for _ in range(10)))
            server.command("CLIENT PAUSE 10000 ALL")
            write = asyncio.create_task(failure(engine.run(SET, writes=True)))
            batch = asyncio.create_task(failure(engine.run_all([SET] * 3, writes=True)))
            read = asyncio.create_task(failure(engine.run(("GET", "k"), writes=False)))
            await asyncio.sleep(0.2)
            server.kill()
            errors = await asyncio.gather(write, batch, read)
            refused = await failure(engine.run(SET, writes=True))

        assert [BackendUnavailableError] * 4 == [type(error) for error in (*errors, refused)]
        assert [True, True, False, False] == [error.ambiguous for error in (*errors, refused)]

    @needs_valkey
    async def test_read_whose_connection_broke(self, deployment: tuple[str, ValkeyServer]) -> None:
        """A read is tried once more on a new connection, and nobody sees that the first one broke."""
        url, server = deployment
        async with opened(url) as engine:
            await asyncio.gather(*(engine.run(SET, writes=True) for _ in range(10)))
            server.command("CLIENT PAUSE 300 ALL")
            read = asyncio.create_task(engine.run(("GET", "k"), writes=False))
            batch = asyncio.create_task(engine.run_all([("GET", "k")] * 2, writes=False))
            await asyncio.sleep(0.1)
            server.command("CLIENT KILL TYPE normal")

            assert [b"v", [b"v", b"v"]] == await asyncio.gather(read, batch)

    async def test_not_open(self) -> None:
        engine = RedisEngine("redis://127.0.0.1:1")

        assert [ClosedError] * 2 == [
            type(await failure(call)) for call in (engine.ping(), engine.run(SET, writes=True))
        ]

    @pytest.mark.parametrize(
        ("exc", "expected", "ambiguous"),
        [
            (theirs.TimeoutError(), BackendTimeoutError, True),
            (theirs.ConnectionError("Connection closed by server."), BackendUnavailableError, True),
            (theirs.InvalidResponse(), BackendUnavailableError, True),
            (OSError(), BackendUnavailableError, True),
            (theirs.BusyLoadingError("x", status_code="LOADING"), BackendUnavailableError, False),
            (theirs.MasterDownError("x", status_code="MASTERDOWN"), BackendUnavailableError, False),
            (theirs.ClusterDownError("x", status_code="CLUSTERDOWN"), BackendUnavailableError, False),
            (theirs.ClusterError("TTL exhausted."), BackendUnavailableError, False),
            (theirs.TryAgainError("x", status_code="TRYAGAIN"), BackendUnavailableError, False),
            (theirs.MovedError("1 h:1", status_code="MOVED"), BackendUnavailableError, False),
            (theirs.ReadOnlyError("x", status_code="READONLY"), BackendUnavailableError, False),
            (theirs.ResponseError("MISCONF Errors writing"), BackendUnavailableError, False),
            (theirs.SlotNotCoveredError("x"), BackendUnavailableError, False),
            (theirs.MaxConnectionsError(), OverloadedError, False),
            (theirs.OutOfMemoryError("x", status_code="OOM"), OverloadedError, False),
            (
                theirs.ConnectionError("max number of clients reached", status_code="ERR"),
                OverloadedError,
                False,
            ),
            (theirs.AuthenticationError("x", status_code="NOAUTH"), ConfigurationError, None),
            (theirs.NoPermissionError("x", status_code="NOPERM"), ConfigurationError, None),
            (theirs.ResponseError("some text", status_code="ERR"), BackendError, False),
            (theirs.DataError("x"), BackendError, False),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
    )
    def test_translation(self, exc: Exception, expected: type, ambiguous: bool | None) -> None:
        error = translate(exc, writes=True)
        of_a_read = translate(exc, writes=False)

        assert (expected, ambiguous) == (type(error), getattr(error, "ambiguous", None))
        assert not getattr(of_a_read, "ambiguous", False)

    @pytest.mark.parametrize(
        ("cause", "expected"),
        [
            (theirs.ConnectionError("Error 111 connecting"), BackendUnavailableError),
            (theirs.TimeoutError("Timeout connecting to server"), BackendUnavailableError),
            (theirs.BusyLoadingError("x", status_code="LOADING"), BackendUnavailableError),
            (theirs.ResponseError("BUSY x"), BackendUnavailableError),
            (theirs.ConnectionError("max number of clients reached", status_code="ERR"), OverloadedError),
            (theirs.ResponseError("DB index is out of range", status_code="ERR"), ConfigurationError),
            (theirs.ResponseError("DENIED protected mode"), ConfigurationError),
            (theirs.AuthenticationError("x", status_code="WRONGPASS"), ConfigurationError),
        ],
    )
    def test_translation_of_what_was_not_sent(self, cause: Exception, expected: type) -> None:
        exc = UnsentError()
        exc.__cause__ = cause
        error = translate(exc, writes=True)

        assert (expected, False) == (type(error), getattr(error, "ambiguous", False))


SET = ("SET", "k", "v")
SCRIPT = Script("return redis.call('SET', KEYS[1], 'v')")


async def failure(call: Awaitable[object]) -> Any:
    with pytest.raises(MultiDBError) as caught:
        await call
    return caught.value


async def works(engine: RedisEngine) -> bool:
    try:
        await engine.run(SET, writes=True)
    except BackendError:
        return False
    return True


def owner(cluster: ValkeyCluster, key: str) -> ValkeyServer:
    """Return the node that keeps a key."""
    slot = int(cluster.nodes[0].command(f"CLUSTER KEYSLOT {key}").removeprefix(":"))
    return cluster.nodes[(slot + 1) * 3 // 16384]


def key_on(cluster: ValkeyCluster, number: int) -> str:
    """Return a key that a node keeps."""
    return next(key for key in (f"k{i}" for i in range(1000)) if owner(cluster, key) is cluster.nodes[number])


@needs_valkey
class TestSurvives:
    async def test_restart_while_idle(self, own: ValkeyServer) -> None:
        """The first call after a restart works, be it a write that may not be done twice."""
        async with opened(own.url) as engine:
            await asyncio.gather(*(engine.run(("INCR", "n"), writes=True) for _ in range(10)))
            own.restart()
            after = await asyncio.gather(*(engine.run(("INCR", "n"), writes=True) for _ in range(10)))
            batch = await engine.run_all([("INCR", "n")] * 3, writes=True)

        assert list(range(11, 21)) == sorted(after)
        assert [21, 22, 23] == batch

    async def test_cluster_restarts_while_idle(self, cluster: ValkeyCluster) -> None:
        async with opened(cluster_url(cluster)) as engine:
            counters = [("INCR", f"n{i}") for i in range(30)]
            await engine.run_all(counters, writes=True)
            cluster.restart()
            after = await engine.run_all(counters, writes=True)
            cluster.restart()
            once_more = [await engine.run(counter, writes=True) for counter in counters]

        assert [2] * 30 == after
        assert [3] * 30 == once_more

    @pytest.mark.parametrize("commands", [[("INCR", "n")], [("INCR", "n"), ("INCR", "n")]])
    async def test_connection_that_died_unseen(
        self, own: ValkeyServer, commands: list[tuple[str, str]]
    ) -> None:
        """A connection that was idle is asked first, and replaced if it is dead: nothing is done twice."""
        async with dying_proxy(own.port) as (port, kill), opened(f"redis://127.0.0.1:{port}") as engine:
            await engine.run_all(commands, writes=True)
            for connection in engine._opened:
                connection.next_health_check = 0
            kill()
            after = await engine.run_all(commands, writes=True)

        assert 2 * len(commands) == after[-1]

    async def test_scripts_are_forgotten(self, own: ValkeyServer) -> None:
        add = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
        async with opened(own.url) as engine:
            results = [await engine.run((add, 1, "n", 1), writes=True)]
            own.command("SCRIPT FLUSH")
            results += [await engine.run((add, 1, "n", 1), writes=True)]
            own.command("SCRIPT FLUSH")
            results += await engine.run_all([(add, 1, "n", 1), ("INCR", "n"), (add, 1, "n", 1)], writes=True)

        assert [1, 2, 3, 4, 5] == results

    async def test_cancelled_with_a_pool_of_one(self, own: ValkeyServer) -> None:
        """Whenever a call is cancelled, the next one gets the connection, and its own answer."""
        async with opened(own.url, pool_max=1, timeout_seconds=5) as engine:
            await engine.run(("SET", "number", "1"), writes=True)
            for steps in range(40):
                call = asyncio.create_task(engine.run(("GET", "missing"), writes=False))
                waiting = asyncio.create_task(engine.run_all([("GET", "missing")] * 3, writes=False))
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                waiting.cancel()

                assert b"1" == await engine.run(("GET", "number"), writes=False)
                await asyncio.gather(call, waiting, return_exceptions=True)
            clients = await engine.run(("CLIENT", "LIST"), writes=False)

        assert clients.count(b"name=multidb") == 1

    async def test_more_tasks_than_connections(self, shared: ValkeyServer) -> None:
        """Small calls share one connection; those with large values have up to *pool_max* besides."""
        async with opened(shared.url, pool_max=3, timeout_seconds=5) as engine:
            await engine.run(("DEL", "n"), writes=True)
            counts = await asyncio.gather(*(engine.run(("INCR", "n"), writes=True) for _ in range(200)))
            before = await engine.run(("CLIENT", "LIST"), writes=False)
            large = [("SET", f"large{i}", b"x" * 100_000) for i in range(20)]
            await asyncio.gather(*(engine.run(command, writes=True) for command in large))
            after = await engine.run(("CLIENT", "LIST"), writes=False)

        assert set(range(1, 201)) == set(counts)
        assert before.count(b"name=multidb") == 1
        assert after.count(b"name=multidb") == 4

    async def test_a_node_is_down(self, cluster: ValkeyCluster) -> None:
        """What belongs to the other nodes is done; what is raised says so, and only that one node's is missing."""
        async with opened(cluster_url(cluster), timeout_seconds=0.5) as engine:
            keys = [key_on(cluster, number) for number in range(3)]
            await engine.run_all([("INCR", key) for key in keys], writes=True)
            cluster.nodes[1].kill()
            error = await failure(engine.run_all([("INCR", key) for key in keys], writes=True))
            counts = [await engine.run(("GET", keys[number]), writes=False) for number in (0, 2)]
            probe = await failure(engine.ping())
            cluster.start()
            await until(lambda: works(engine))
            back = await engine.run(("GET", keys[1]), writes=False)

        assert type(error) is BackendUnavailableError
        assert error.ambiguous
        assert [b"2", b"2"] == counts
        assert type(probe) is BackendUnavailableError
        assert back == b"1"

    async def test_slots_move(self, cluster: ValkeyCluster) -> None:
        """Keys that moved to a node that has never seen the script are found there, in a batch too."""
        add = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
        first, second, _ = cluster.nodes
        async with opened(cluster_url(cluster)) as engine:
            key = key_on(cluster, 0)
            other = key_on(cluster, 1)
            results = [await engine.run((add, 1, key, 1), writes=True)]
            move_slot(key, first, second)
            results += await engine.run_all(
                [(add, 1, key, 1), ("INCR", other), (add, 1, key, 1)], writes=True
            )
            second.command("SCRIPT FLUSH")
            move_slot(key, second, first)
            first.command("SCRIPT FLUSH")
            results += [await engine.run((add, 1, key, 1), writes=True)]

        assert [1, 2, 1, 3, 4] == results


def move_slot(key: str, source: ValkeyServer, target: ValkeyServer) -> None:
    slot = source.command(f"CLUSTER KEYSLOT {key}").removeprefix(":")
    source_id, target_id = (node.command("CLUSTER MYID").strip() for node in (source, target))
    target.command(f"CLUSTER SETSLOT {slot} IMPORTING {source_id}")
    source.command(f"CLUSTER SETSLOT {slot} MIGRATING {target_id}")
    source.command(f"MIGRATE 127.0.0.1 {target.port} {key} 0 5000")
    for node in (target, source):
        node.command(f"CLUSTER SETSLOT {slot} NODE {target_id}")


@asynccontextmanager
async def dying_proxy(port: int) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """
    Forward connections to *port*; after `kill()` the ones there are end at the next byte they are sent.

    That is how a connection ends whose peer rebooted, or which a firewall forgot.
    """
    condemned: set[asyncio.StreamWriter] = set()
    alive: set[asyncio.StreamWriter] = set()

    async def forward(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        while (data := await reader.read(65536)) and client not in condemned:
            writer.write(data)
        writer.close()
        client.close()

    async def serve(reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        alive.add(client)
        up, upstream = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(forward(reader, upstream, client), forward(up, client, client))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], lambda: condemned.update(alive)
        server.close()


@needs_valkey
class TestLife:
    async def test_close_twice(self, shared: ValkeyServer) -> None:
        engine = RedisEngine(shared.url)
        await engine.close()
        await engine.open()
        await engine.close()
        await engine.close()

        assert type(await failure(engine.ping())) is ClosedError

    async def test_open_again(self, shared: ValkeyServer) -> None:
        engine = RedisEngine(shared.url)
        for _ in range(2):
            await engine.open()
            await engine.ping()
            await engine.close()

    async def test_close_under_way(self, own: ValkeyServer) -> None:
        """Closing ends the calls that wait for an answer, and leaves no connection."""
        engine = RedisEngine(own.url)
        await engine.open()
        own.command("CLIENT PAUSE 10000 WRITE")
        calls = [asyncio.create_task(failure(engine.run(SET, writes=True))) for _ in range(3)]
        await asyncio.sleep(0.1)
        await engine.close()
        errors = await asyncio.gather(*calls)

        assert [ClosedError] * 3 == [type(error) for error in errors]

    async def test_given_client(self, shared: ValkeyServer) -> None:
        """A client that was given is used, and left open."""
        from redis.asyncio import Redis

        async with Redis(port=shared.port) as client:
            async with opened("redis://ignored", client=client) as engine:
                await engine.run(SET, writes=True)
                await engine.ping()

            assert await client.get("k") == b"v"

    def test_loop_is_gone(self, deployment: tuple[str, ValkeyServer]) -> None:
        """An engine whose loop is gone is let go of without a warning, and the server sees its connections end."""
        url, server = deployment
        engine = RedisEngine(url)

        async def use() -> None:
            await engine.open()
            commands = [("INCR", f"n{i}") for i in range(20)]
            await asyncio.gather(*(engine.run_all(commands, writes=True) for _ in range(5)))

        for _ in range(2):
            asyncio.run(use())
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                engine.abandon()
                engine.abandon()
                gc.collect()

        asyncio.run(until(lambda: no_clients(server)))

    def test_in_a_forked_child(self, own: ValkeyServer) -> None:
        """A child that lets go does not disturb its parent's connections."""
        engine = RedisEngine(own.url)
        with asyncio.Runner() as runner:
            runner.run(engine.open())
            runner.run(engine.run(SET, writes=True))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                engine.abandon()
                gc.collect()
                os._exit(0)
            os.waitpid(child, 0)
            ids = [runner.run(engine.run(("CLIENT", "ID"), writes=False)) for _ in range(3)]
            runner.run(engine.close())

        assert len(set(ids)) == 1


async def no_clients(server: ValkeyServer) -> bool:
    return "name=multidb" not in server.command("CLIENT LIST")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@asynccontextmanager
async def tls_proxy(port: int, certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, upstream = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(forward(reader, upstream), forward(up, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()


@needs_valkey
class TestTls:
    async def test_trusted(self, shared: ValkeyServer, certificate: tuple[Path, Path]) -> None:
        async with tls_proxy(shared.port, certificate) as port:
            url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate[0]}"
            async with opened(url) as engine:
                await engine.run(SET, writes=True)
                await engine.ping()

    async def test_not_trusted(self, shared: ValkeyServer, certificate: tuple[Path, Path]) -> None:
        """A certificate that nobody trusts is a matter of configuration, never an outage to sit out."""
        async with tls_proxy(shared.port, certificate) as port:
            error, _ = await failure_of_open(f"rediss://127.0.0.1:{port}")
            async with opened(f"rediss://127.0.0.1:{port}?ssl_cert_reqs=none") as engine:
                await engine.ping()

        assert type(error) is ConfigurationError

    @pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
    @pytest.mark.parametrize("present", [False, True])
    async def test_wrong_file(self, shared: ValkeyServer, tmp_path: Path, option: str, present: bool) -> None:
        file = tmp_path / "empty.pem"
        if present:
            file.touch()
        error, _ = await failure_of_open(f"rediss://127.0.0.1:{shared.port}?{option}={file}")

        assert type(error) is ConfigurationError

    @pytest.mark.parametrize("form", ["rediss://{}", "rediss+cluster://{}", "rediss+sentinel://{}/main"])
    async def test_server_without_tls(
        self, shared: ValkeyServer, certificate: tuple[Path, Path], form: str
    ) -> None:
        options = f"ssl_ca_path=/&ssl_ca_certs={certificate[0]}&ssl_check_hostname=no&ssl_cert_reqs=optional"
        own = f"ssl_certfile={certificate[0]}&ssl_keyfile={certificate[1]}"
        error, _ = await failure_of_open(f"{form.format(f'127.0.0.1:{shared.port}')}?{options}&{own}")

        assert isinstance(error, ConfigurationError | BackendUnavailableError)

    def test_loop_is_gone(self, shared: ValkeyServer, certificate: tuple[Path, Path]) -> None:
        proxy = asyncio.new_event_loop()
        thread = threading.Thread(target=proxy.run_forever)
        thread.start()
        context = tls_proxy(shared.port, certificate)
        port = asyncio.run_coroutine_threadsafe(context.__aenter__(), proxy).result(10)
        engine = RedisEngine(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate[0]}")
        try:
            asyncio.run(engine.open())
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                engine.abandon()
                gc.collect()
        finally:
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), proxy).result(10)
            proxy.call_soon_threadsafe(proxy.stop)
            thread.join()
            proxy.close()

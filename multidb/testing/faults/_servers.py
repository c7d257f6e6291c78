"""Accidents of the servers of `multidb.testing.servers`, none of which blocks the event loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from multidb.errors import ConfigurationError
from multidb.testing.servers._ports import HOST, ReservedPort

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from pymongo import AsyncMongoClient

    from multidb.testing.servers import MongoServer, PostgresServer, Server, ValkeyCluster, ValkeyServer

R = TypeVar("R")

MONGO_TEST_COMMANDS = ("--setParameter=enableTestCommands=1",)
"""The arguments with which a MongoServer has fail points."""

_SECONDS = 10.0
_POLL_SECONDS = 0.01


@asynccontextmanager
async def paused(server: Server | ValkeyCluster) -> AsyncIterator[None]:
    """Freeze *server* (SIGSTOP) for the block: connections stay and nothing answers."""
    await _in_thread(server.pause)
    try:
        yield
    finally:
        await _in_thread(server.resume)


@asynccontextmanager
async def killed(server: Server | ValkeyCluster) -> AsyncIterator[None]:
    """Kill *server* (SIGKILL), and start it again on the same port and data after the block."""
    await _in_thread(server.kill)
    try:
        yield
    finally:
        await _in_thread(server.start)


async def restarted(server: Server | ValkeyCluster) -> None:
    """Shut *server* down cleanly and start it again; return once it serves."""
    await _in_thread(server.restart)


@asynccontextmanager
async def valkey_out_of_memory(server: ValkeyServer) -> AsyncIterator[None]:
    """Let every command that needs memory fail with OOM; PING, GET and DEL work. Nothing is evicted."""
    settings = {"maxmemory": "1", "maxmemory-policy": "noeviction"}
    before = {name: await _valkey_setting(server, name) for name in settings}
    await _set_valkey(server, settings)
    try:
        yield
    finally:
        await _set_valkey(server, before)


@asynccontextmanager
async def valkey_read_only(server: ValkeyServer) -> AsyncIterator[None]:
    """Make *server* the replica of one that is not there: reads work, writes fail with READONLY, data stays."""
    nobody = ReservedPort()
    try:
        await _command(server, f"REPLICAOF {HOST} {nobody.number}")
        try:
            yield
        finally:
            await _command(server, "REPLICAOF NO ONE")
    finally:
        nobody.close()


@asynccontextmanager
async def valkey_cannot_save(server: ValkeyServer) -> AsyncIterator[None]:
    """Let a snapshot fail: writes, and PING, fail with MISCONF; reads work. Not with snapshots of your own."""
    snapshot = server.home / "data" / "dump.rdb"
    before = await _valkey_setting(server, "save")
    await asyncio.to_thread(snapshot.unlink, missing_ok=True)
    # A folder in the place of the file: the last step of the snapshot, a rename, fails.
    await asyncio.to_thread(snapshot.mkdir)
    try:
        await _command(server, 'CONFIG SET save "3600 1000000"')
        await _save(server, "err")
        yield
    finally:
        await asyncio.to_thread(snapshot.rmdir)
        await _save(server, "ok")
        await _command(server, f'CONFIG SET save "{before}"')


@asynccontextmanager
async def postgres_read_only(server: PostgresServer) -> AsyncIterator[None]:
    """Make every transaction of every session read-only: writes fail with SQLSTATE 25006."""
    await _set_read_only(server.url, "on")
    try:
        yield
    finally:
        await _set_read_only(server.url, "off")


async def postgres_terminate(url: str, *, application_name: str = "multidb") -> int:
    """End the sessions of *application_name* on all databases of the server at *url*; return how many there were."""
    ended: int = await _fetch_value(
        url,
        "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = $1 AND pid <> pg_backend_pid()) AS ended",
        application_name,
    )
    return ended


@asynccontextmanager
async def postgres_disk_full(url: str) -> AsyncIterator[None]:
    """
    Let every insert and update in the database at *url* fail as on a full disk, with SQLSTATE 53100.

    An imitation, by triggers on the tables that are there now: reads and deletes work, and so do new tables. They are
    set while nobody writes, so this waits for the transactions that do.
    """
    await _execute(url, _SET_TRIGGERS)
    try:
        yield
    finally:
        await _execute(url, "DROP FUNCTION public.multidb_disk_full() CASCADE")


@asynccontextmanager
async def mongo_failing(
    server: MongoServer,
    commands: Sequence[str],
    *,
    code: int | None = None,
    close_connection: bool = False,
    block_seconds: float | None = None,
    write_concern_code: int | None = None,
    times: int | None = None,
) -> AsyncIterator[None]:
    """
    Let *commands* (`insert`, `update`, `find`, …) of every client fail: MongoDB's fail point `failCommand`.

    *code*: the error they get in the place of being done; *close_connection*: it ends without an answer;
    *block_seconds*: they wait before; *write_concern_code*: they are done, and the answer says that waiting for the
    write concern failed. *times*: only the first so many.

    Takes `MongoServer(arguments=MONGO_TEST_COMMANDS)`, else raises ConfigurationError.
    """
    from pymongo.errors import OperationFailure

    data: dict[str, Any] = {"failCommands": list(commands), "closeConnection": close_connection}
    if code is not None:
        data["errorCode"] = code
    if block_seconds is not None:
        data |= {"blockConnection": True, "blockTimeMS": int(block_seconds * 1000)}
    if write_concern_code is not None:
        data["writeConcernError"] = {"code": write_concern_code, "errmsg": "a fault was injected"}
    try:
        await _configure_fail_point(server, "alwaysOn" if times is None else {"times": times}, data)
    except OperationFailure as exc:
        msg = "MongoDB has no fail points unless it runs with MONGO_TEST_COMMANDS"
        raise ConfigurationError(msg) from exc
    try:
        yield
    finally:
        await _configure_fail_point(server, "off", {})


async def mongo_step_down(server: MongoServer, *, seconds: int = 1) -> None:
    """
    Let the primary of a replica set step down for *seconds*; return at once.

    A set of one member has no primary meanwhile, and elects the same again within about *seconds* + 1.
    """
    async with _mongo(server) as client:
        command = {"replSetStepDown": seconds, "secondaryCatchUpPeriodSecs": 0, "force": True}
        await client.admin.command(command)


@asynccontextmanager
async def mongo_locked(server: MongoServer) -> AsyncIterator[None]:
    """Let writes wait for the block (`fsyncLock`): they hang until it ends, and are done then if still wanted."""
    async with _mongo(server) as client:
        await client.admin.command({"fsync": 1, "lock": True})
        try:
            yield
        finally:
            await client.admin.command("fsyncUnlock")


async def _in_thread(action: Callable[..., R], *args: Any) -> R:
    """Run *action* in a thread; when cancelled, let it finish first: half a kill helps nobody."""
    running = asyncio.ensure_future(asyncio.to_thread(action, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


async def _command(server: ValkeyServer, line: str) -> str:
    return await _in_thread(server.command, line)


async def _valkey_setting(server: ValkeyServer, name: str) -> str:
    """Return a setting. By a client, as the answer is a list, which `command()` does not read."""

    def read() -> str:
        from redis import Redis

        with Redis.from_url(server.url) as client:
            return str(client.config_get(name)[name])

    return await _in_thread(read)


async def _set_valkey(server: ValkeyServer, settings: dict[str, str]) -> None:
    words = " ".join(f"{name} {value}" for name, value in settings.items())
    await _command(server, f"CONFIG SET {words}")


async def _save(server: ValkeyServer, expected: str) -> None:
    """Take a snapshot; return once it has ended as *expected*, `ok` or `err`."""
    await _command(server, "BGSAVE")
    wanted = {"rdb_bgsave_in_progress:0", f"rdb_last_bgsave_status:{expected}"}

    async def has_ended() -> bool:
        return wanted <= set((await _command(server, "INFO persistence")).split())

    await _until(has_ended)


async def _connect(url: str) -> Any:
    asyncpg = import_module("asyncpg")  # here: only for tests that use PostgreSQL; it has no types
    return await asyncpg.connect(url, timeout=_SECONDS, command_timeout=_SECONDS)


async def _execute(url: str, *statements: str) -> None:
    connection = await _connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close(timeout=_SECONDS)


async def _fetch_value(url: str, query: str, *args: object) -> Any:
    connection = await _connect(url)
    try:
        return await connection.fetchval(query, *args)
    finally:
        await connection.close(timeout=_SECONDS)


async def _set_read_only(url: str, value: str) -> None:
    """Set it for the server, and wait until a new session has it: the reload is told to processes by signal."""
    await _execute(
        url, f"ALTER SYSTEM SET default_transaction_read_only = {value}", "SELECT pg_reload_conf()"
    )

    async def is_set() -> bool:
        return bool(value == await _fetch_value(url, "SHOW default_transaction_read_only"))

    await _until(is_set)
    # That session was perhaps told first. The next one begins when all have been.
    await is_set()


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(_SECONDS):
        while not await condition():  # noqa: ASYNC110 -- the server has no event to wait for
            await asyncio.sleep(_POLL_SECONDS)


_SET_TRIGGERS = """
CREATE FUNCTION public.multidb_disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
DO $$
DECLARE place record;
BEGIN
    FOR place IN SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
        AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%'
    LOOP
        EXECUTE format('CREATE TRIGGER multidb_disk_full BEFORE INSERT OR UPDATE ON %I.%I'
            ' FOR EACH STATEMENT EXECUTE FUNCTION public.multidb_disk_full()', place.nspname, place.relname);
    END LOOP;
END $$;
"""


def _mongo(server: MongoServer) -> AsyncMongoClient[dict[str, Any]]:
    from pymongo import AsyncMongoClient

    milliseconds = int(_SECONDS * 1000)
    return AsyncMongoClient(
        HOST,
        server.port,
        directConnection=True,
        serverSelectionTimeoutMS=milliseconds,
        socketTimeoutMS=milliseconds,
    )


async def _configure_fail_point(server: MongoServer, mode: Any, data: dict[str, Any]) -> None:
    async with _mongo(server) as client:
        command: dict[str, Any] = {"configureFailPoint": "failCommand", "mode": mode}
        await client.admin.command(command | ({"data": data} if data else {}))

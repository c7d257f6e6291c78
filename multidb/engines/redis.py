"""RedisEngine: the connections to one Redis or Valkey, to a cluster, or to the master that Sentinels name."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from multidb.engines._drivers import require
from multidb.engines._redis_url import Topology, parse
from multidb.errors import BackendUnavailableError, ClosedError, ConfigurationError, OverloadedError

require("redis", "redis")
require("hiredis", "redis")

from redis.asyncio import RedisCluster  # noqa: E402 -- after the lines that say how to install it
from redis.exceptions import ResponseError  # noqa: E402

from multidb.engines._redis_commands import Command, Script, run_many, run_one  # noqa: E402
from multidb.engines._redis_connections import make_client  # noqa: E402
from multidb.engines._redis_errors import DRIVER_ERRORS, code_of, translate, translated  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio.sentinel import Sentinel

    from multidb.engines._redis_connections import OwnConnection

_OLDEST: Final = 7
# A script without flags counts as a write: what would refuse a write refuses it, and would still say PONG.
_PROBE: Final = b"#!lua\nreturn 1"
# The code of the answer to a command that the server does not know.
_UNKNOWN: Final = "ERR"
# The program did something else for longer than this: servers may have hung up meanwhile.
_IDLE_SECONDS: Final = 0.05
_CLOSED: Final = "the Redis engine is not open"


class RedisEngine:
    """
    The connections to one Redis (7.0 or newer) or Valkey, or to one cluster of them.

    *url* is as in `_redis_url.parse()`. *pool_max* calls run at once, the others wait their turn.
    *client*, a client of your own or a fake, is used in the place of one for *url*, as it is, and not closed.
    No call is repeated, except one that only reads and whose connection broke.
    """

    name: Final = "redis"

    def __init__(
        self,
        url: str,
        *,
        pool_max: int = 20,
        timeout_seconds: float = 1.0,
        connect_timeout_seconds: float = 1.0,
        client: Any = None,
    ) -> None:
        """Read *url*. Raises ConfigurationError."""
        self._address = parse(url)
        self._pool_max = pool_max
        self._timeout = timeout_seconds
        self._connect_timeout = connect_timeout_seconds
        self._given = client
        self._client: Any = None
        self._sentinel: Sentinel | None = None
        self._opened: WeakSet[OwnConnection] = WeakSet()
        self._gate: asyncio.Semaphore | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._last_turn = 0.0

    @property
    def is_cluster(self) -> bool:
        """Whether hash tags spread keys over servers, so that no command may name keys of two tags."""
        return self._address.topology is Topology.CLUSTER or isinstance(self._given, RedisCluster)

    async def open(self) -> None:
        """
        Connect once and look at the server.

        Raises BackendUnavailableError when it cannot be reached, ConfigurationError for a wrong password,
        database, Sentinel service or kind of server, and for one older than Redis 7.
        """
        self._gate = asyncio.Semaphore(self._pool_max)
        self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
        if self._given is not None:
            self._client = self._given
            return
        try:
            async with asyncio.timeout(self._connect_timeout + self._timeout):
                with translated(writes=False):
                    await self._connect()
        except TimeoutError as exc:
            await self.close()
            raise BackendUnavailableError("the server does not answer") from exc
        except BaseException:
            await self.close()
            raise

    async def _connect(self) -> None:
        self._client, self._sentinel = make_client(
            self._address,
            pool_max=self._pool_max,
            timeout_seconds=self._timeout,
            connect_timeout_seconds=self._connect_timeout,
            opened=self._opened,
        )
        if self._sentinel is not None:
            await _check_service(self._sentinel, self._address.service)
        _check_server(await _hello(self._client), self._address.topology)

    async def close(self) -> None:
        """Close the connections, within `connect_timeout_seconds`. Closing twice is fine."""
        client, self._client = self._client, None
        sentinel, self._sentinel = self._sentinel, None
        if client is None or client is self._given:
            return
        try:
            with suppress(TimeoutError, *DRIVER_ERRORS):
                async with asyncio.timeout(self._connect_timeout):
                    await client.aclose()
                    if sentinel is not None:
                        await sentinel.aclose()
        finally:
            self._let_go(client, loop_gone=False)

    def abandon(self) -> None:
        """Let go of the sockets without a word to the server: the loop is gone, or this is a forked child."""
        client, self._client, self._sentinel = self._client, None, None
        gone = self._pid != os.getpid() or self._loop is None or self._loop.is_closed()
        self._let_go(client, loop_gone=gone)

    def _let_go(self, client: object, *, loop_gone: bool) -> None:
        for connection in tuple(self._opened):
            connection.abandon(loop_gone=loop_gone)
        if isinstance(client, RedisCluster) and client is not self._given:
            client._initialize = True  # noqa: SLF001 -- else it warns that it is unclosed

    async def ping(self) -> None:
        """Return when the server, of a cluster every master, takes writes. Raises what a write would."""
        options = {"target_nodes": RedisCluster.PRIMARIES} if self.is_cluster else {}
        client, gate = await self._enter()
        try:
            await client.execute_command("EVAL", _PROBE, 0, **options)
        except DRIVER_ERRORS as exc:
            raise translate(exc, writes=False) from exc
        finally:
            gate.release()

    async def run(self, command: Command, *, writes: bool) -> Any:
        """Run one command; return its reply. *writes*: it may change data, so a lost reply is ambiguous."""
        client, gate = await self._enter()
        try:
            return await run_one(client, command, writes=writes)
        except DRIVER_ERRORS as exc:
            raise translate(exc, writes=writes) from exc
        finally:
            gate.release()

    async def run_all(self, commands: Sequence[Command], *, writes: bool) -> list[Any]:
        """
        Run commands in one round trip to each server, in order on each server; return the replies.

        Each command is carried out whatever becomes of the others. When one fails, its error is raised; it is
        ambiguous if another one may have changed data.
        """
        if not commands:
            return []
        if len(commands) == 1:
            return [await self.run(commands[0], writes=writes)]
        client, gate = await self._enter()
        try:
            return await run_many(client, commands, writes=writes, spread=self.is_cluster)
        finally:
            gate.release()

    async def _enter(self) -> tuple[Any, asyncio.Semaphore]:
        """Wait for a turn; return the client to use in it, and what to release after it."""
        gate = self._gate
        if self._client is None or gate is None or self._loop is None:
            raise ClosedError(_CLOSED)
        now = self._loop.time()
        if now - self._last_turn > _IDLE_SECONDS:
            # In two rounds the loop reads what arrived: the end of connections to a server that restarted.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        self._last_turn = now
        if gate.locked():
            await self._wait(gate)
        else:
            await gate.acquire()
        if self._client is None:
            gate.release()
            raise ClosedError(_CLOSED)
        return self._client, gate

    async def _wait(self, gate: asyncio.Semaphore) -> None:
        # Shorter than for a reply: after its own deadline a caller would not learn that nothing was sent.
        try:
            async with asyncio.timeout(self._timeout / 2):
                await gate.acquire()
        except TimeoutError as exc:
            raise OverloadedError(f"all {self._pool_max} connections are in use") from exc


async def _hello(client: Any) -> dict[bytes, Any]:
    """Return what the server says of itself."""
    options = {}
    if isinstance(client, RedisCluster):
        await client.initialize()
        options["target_nodes"] = client.get_default_node()
    try:
        reply = await client.execute_command("HELLO", 2, **options)
    except ResponseError as exc:
        if code_of(exc) != _UNKNOWN:
            raise
        raise ConfigurationError("the server does not know HELLO: older than Redis 6, or no Redis") from exc
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _check_server(hello: dict[bytes, Any], topology: Topology) -> None:
    version = hello.get(b"version", b"?").decode()
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) < _OLDEST:
        raise ConfigurationError(f"Redis {version} is too old: multidb needs Redis 7 or Valkey 8")
    mode = hello.get(b"mode")
    if mode == b"sentinel":
        raise ConfigurationError("the server is a Sentinel: write redis+sentinel://host:port/service")
    if mode == b"cluster" and topology is not Topology.CLUSTER:
        raise ConfigurationError("the server is part of a cluster: write redis+cluster://host:port")


async def _check_service(sentinel: Sentinel, service: str) -> None:
    """
    Refuse a password that the Sentinels refuse, and a service that none of them knows.

    redis-py would say of either that no master was found, as if it were down.
    """
    failure: Exception | None = None
    clients: list[Any] = sentinel.sentinels
    for client in clients:
        try:
            address = await client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", service)
        except DRIVER_ERRORS as exc:
            if isinstance(exc, ResponseError) and code_of(exc) == _UNKNOWN:
                raise ConfigurationError(
                    "the server is no Sentinel: write redis:// for redis+sentinel://"
                ) from exc
            if isinstance(translate(exc, writes=False), ConfigurationError):
                raise
            failure = exc
        else:
            if address:
                return
    if failure is None:
        raise ConfigurationError("no Sentinel knows the service that the URL names")
    raise failure


__all__ = ["Command", "RedisEngine", "Script"]

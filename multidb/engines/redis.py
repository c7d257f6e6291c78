"""RedisEngine: the connections to one Redis or Valkey, to a cluster, or to the master that Sentinels name."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakSet

from multidb.engines._drivers import require
from multidb.engines._redis_url import Topology, parse
from multidb.errors import (
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    MultiDBError,
)

require("redis", "redis")
require("hiredis", "redis")

from redis.asyncio import RedisCluster  # noqa: E402 -- after the lines that say how to install it
from redis.exceptions import (  # noqa: E402
    AskError,
    ClusterDownError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from multidb.engines._redis_apart import Apart  # noqa: E402
from multidb.engines._redis_cluster import ClusterLanes  # noqa: E402
from multidb.engines._redis_commands import (  # noqa: E402
    Command,
    Script,
    for_lane,
    for_lanes,
    own_replies,
    raise_failure,
    run_many,
    tag_of,
    translated_one,
)
from multidb.engines._redis_connections import connected, make_client, pack  # noqa: E402
from multidb.engines._redis_dangers import QUESTIONS, configuration, dangers  # noqa: E402
from multidb.engines._redis_errors import DRIVER_ERRORS, code_of, translate, translated  # noqa: E402
from multidb.engines._redis_lane import CLOSED, PING, Lane  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from redis.asyncio.sentinel import Sentinel

    from multidb.engines._redis_connections import OwnConnection

R = TypeVar("R")

LARGE_BYTES: Final = 64 * 1024
"""What is larger than this goes apart."""

_GRACE_SECONDS: Final = 0.05
_OLDEST: Final = 7
# A script without flags counts as a write: what would refuse a write refuses it, and would still say PONG.
_PROBE: Final = b"#!lua\nreturn 1"
# The code of the answer to a command that the server does not know.
_UNKNOWN: Final = "ERR"
_HELLO: Final[bytes] = pack(("HELLO", 2))
# MOVED, ASK, TRYAGAIN, CLUSTERDOWN: redis-py's own client knows where to turn then.
_MOVED: Final = (AskError, TryAgainError, ClusterDownError)


class RedisEngine:
    """
    The connections to one Redis (7.0 or newer) or Valkey, or to one cluster of them.

    *url* is as in `_redis_url.parse()`. The calls of all tasks share one connection to each server, see `Lane`, on
    which *queue_max_calls* and *queue_max_bytes* may be outstanding. Calls with large values, and those whose replies
    may be large, go apart, up to *pool_max* at once, each over a connection of its own, so that nothing small waits
    behind them. A large value that is read like a small one holds up what comes behind it while it arrives.

    What a task calls on one user (the keys of one hash tag) is applied in that order, also where a call is made after
    the one before it was cancelled. What failed as ambiguous may still be applied later.

    Every call ends within *timeout_seconds*. None is repeated, except one that only reads and whose connection broke.
    *client*, a client of your own or a fake, is used in the place of one for *url*, as it is, up to *pool_max* calls
    at once, and not closed.
    """

    name: Final = "redis"

    def __init__(
        self,
        url: str,
        *,
        pool_max: int = 20,
        timeout_seconds: float = 1.0,
        connect_timeout_seconds: float = 1.0,
        queue_max_calls: int = 10_000,
        queue_max_bytes: int = 64 * 1024 * 1024,
        client: Any = None,
    ) -> None:
        """Read *url*. Raises ConfigurationError."""
        self._address = parse(url)
        self._pool_max = pool_max
        self._timeout = timeout_seconds
        self._connect_timeout = connect_timeout_seconds
        self._queue_max_calls = queue_max_calls
        self._queue_max_bytes = queue_max_bytes
        self._given = client
        self._client: Any = None
        self._sentinel: Sentinel | None = None
        self._opened: WeakSet[OwnConnection] = WeakSet()
        self._scripts: list[Script] = []
        self._lane: Lane | None = None
        self._nodes: ClusterLanes | None = None
        self._apart: Apart | None = None
        self._held: Mapping[str, object] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    @property
    def is_cluster(self) -> bool:
        """Whether hash tags spread keys over servers, so that no command may name keys of two tags."""
        return self._address.topology is Topology.CLUSTER or isinstance(self._given, RedisCluster)

    def prepare(self, *scripts: Script) -> None:
        """Make *scripts* known to every server that is connected to from now on."""
        self._scripts += [script for script in scripts if script not in self._scripts]

    async def open(self) -> None:
        """
        Connect once and look at the server.

        Raises BackendUnavailableError when it cannot be reached, ConfigurationError for a wrong password,
        database, Sentinel service or kind of server, and for one older than Redis 7.
        """
        self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
        if self._given is not None:
            self._use(self._given)
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

    def _use(self, client: Any) -> None:
        self._client = client
        self._apart = Apart(client, calls_max=self._pool_max, timeout_seconds=self._timeout)
        self._held = self._apart.held

    async def _connect(self) -> None:
        client, self._sentinel = make_client(
            self._address,
            pool_max=self._pool_max,
            timeout_seconds=self._timeout,
            connect_timeout_seconds=self._connect_timeout,
            opened=self._opened,
        )
        self._use(client)
        if self._sentinel is not None:
            await _check_service(self._sentinel, self._address.service)
        if isinstance(client, RedisCluster):
            hello = await _hello_of_cluster(client)
            self._nodes = ClusterLanes(client, self._new_lane)
        else:
            lane = self._lane = self._new_lane(client.connection_pool.make_connection)
            hello = await lane.call(_HELLO, writes=False)
        _check_server(hello, self._address.topology)

    def _new_lane(
        self, make_connection: Callable[[], OwnConnection], on_failure: Callable[[], object] | None = None
    ) -> Lane:
        return Lane(
            lambda: connected(make_connection(), self._connect_timeout + self._timeout),
            timeout_seconds=self._timeout,
            max_calls=self._queue_max_calls,
            max_bytes=self._queue_max_bytes,
            greeting=self._greeting,
            on_failure=on_failure,
            merges=not self.is_cluster,
        )

    def _greeting(self) -> list[bytes]:
        return [pack(("SCRIPT", "LOAD", script.source)) for script in self._scripts]

    async def close(self) -> None:
        """
        Wait half of `connect_timeout_seconds` for the calls under way, then close the connections in the other half.

        What has no answer by then fails with ClosedError. Closing twice is fine.
        """
        client, self._client = self._client, None
        sentinel, self._sentinel = self._sentinel, None
        parts = self._take_parts()
        if client is None:
            return
        seconds = self._connect_timeout / 2
        try:
            await asyncio.gather(*(part.drain(seconds) for part in parts))
            with suppress(TimeoutError, *DRIVER_ERRORS):
                async with asyncio.timeout(seconds):
                    await asyncio.gather(*(part.close(seconds) for part in parts))
                    if client is not self._given:
                        await client.aclose()
                    if sentinel is not None:
                        await sentinel.aclose()
        finally:
            self._let_go(client, loop_gone=False)

    def abandon(self) -> None:
        """Let go of the sockets without a word to the server: the loop is gone, or this is a forked child."""
        client, self._client, self._sentinel = self._client, None, None
        gone = self._pid != os.getpid() or self._loop is None or self._loop.is_closed()
        for part in self._take_parts():
            part.abandon(loop_gone=gone)
        self._let_go(client, loop_gone=gone)

    def _take_parts(self) -> list[Lane | Apart]:
        lane, nodes, apart = self._lane, self._nodes, self._apart
        self._lane = self._nodes = self._apart = None
        lanes = [] if nodes is None else list(nodes.lanes.values())
        return [part for part in (lane, *lanes, apart) if part is not None]

    def _let_go(self, client: object, *, loop_gone: bool) -> None:
        for connection in tuple(self._opened):
            connection.abandon(loop_gone=loop_gone)
        if isinstance(client, RedisCluster) and client is not self._given:
            client._initialize = True  # noqa: SLF001 -- else it warns that it is unclosed

    async def ping(self) -> None:
        """Return when the server, of a cluster every master, takes writes. Raises what a write would."""
        if self._lane is not None:
            await self.run(("EVAL", _PROBE, 0), writes=False)
            return
        options = {"target_nodes": RedisCluster.PRIMARIES} if self.is_cluster else {}

        async def probe(client: Any) -> None:
            with translated(writes=False):
                await client.execute_command("EVAL", _PROBE, 0, **options)

        await self._beside().run(probe, writes=False, deadline=self._deadline())

    async def dangers(self) -> list[str]:
        """Return what endangers acknowledged data, of a cluster on any master; of a client of your own nothing."""
        lanes = [lane for lane in (self._lane,) if lane is not None]
        if self._nodes is not None:
            lanes = self._nodes.masters()
        packed = [pack(question) for question in QUESTIONS]

        async def ask(lane: Lane) -> dict[str, str]:
            calls = (lane.call(each, writes=False) for each in packed)
            return configuration(await asyncio.gather(*calls, return_exceptions=True))

        return dangers(await asyncio.gather(*map(ask, lanes)))

    async def run(self, command: Command, *, writes: bool, bulky: bool = False) -> Any:
        """
        Run one command; return its reply.

        *writes*: it may change data, so a lost reply is ambiguous. *bulky*: the reply may be large.
        """
        lane = self._lane if self._nodes is None else self._nodes.find(command)
        if lane is None or bulky or self._held:
            return await self._run_with_care(command, writes=writes, bulky=bulky)
        packed, size = for_lane(command)
        if size > LARGE_BYTES:
            return await self._run_with_care(command, writes=writes, bulky=True)
        future = lane.call(packed, writes=writes)
        deadline = lane.deadline
        reply = await future
        if isinstance(reply, Exception):
            return await self._recover(lane, command, reply, writes=writes, deadline=deadline)
        return reply

    async def run_all(self, commands: Sequence[Command], *, writes: bool, bulky: bool = False) -> list[Any]:
        """
        Run commands in one round trip to each server, in order on each server; return the replies.

        Each command is carried out whatever becomes of the others. When one fails, its error is raised; it is
        ambiguous if another one may have changed data.
        """
        if len(commands) <= 1:
            return [await self.run(command, writes=writes, bulky=bulky) for command in commands]
        deadline, tags = self._deadline(), self._tags(commands)
        await self._beside().settled(tags, deadline)
        if not bulky and self._given is None:
            lanes = [await self._lane_for(command, deadline) for command in commands]
            packed, size = for_lanes(commands, lanes)
            if size <= LARGE_BYTES:
                return await self._run_on_lanes(lanes, packed, commands, writes=writes, deadline=deadline)

        async def exchange(client: Any) -> list[Any]:
            return await run_many(client, commands, writes=writes, spread=self.is_cluster)

        replies: list[Any] = await self._run_apart(exchange, commands, tags, writes=writes, deadline=deadline)
        return replies

    async def _run_with_care(self, command: Command, *, writes: bool, bulky: bool) -> Any:
        """Run a command where there is no lane yet, or where it is for none, or where others come first."""
        deadline, tags = self._deadline(), self._tags([command])
        await self._beside().settled(tags, deadline)
        if bulky or self._given is not None:
            return await self._run_apart(
                lambda client: translated_one(client, command, writes=writes),
                [command],
                tags,
                writes=writes,
                deadline=deadline,
            )
        lane = await self._lane_for(command, deadline)
        packed, size = for_lane(command)
        if size > LARGE_BYTES:
            return await self._run_with_care(command, writes=writes, bulky=True)
        reply = await _by(deadline, lane.call(packed, writes=writes), writes=writes)
        if isinstance(reply, Exception):
            return await self._recover(lane, command, reply, writes=writes, deadline=deadline)
        return reply

    async def _run_apart(
        self,
        exchange: Callable[[Any], Awaitable[Any]],
        commands: Sequence[Command],
        tags: Collection[str],
        *,
        writes: bool,
        deadline: float,
    ) -> Any:
        async def ready() -> None:
            """What was written to a lane before this call is applied when the lane has answered."""
            lanes = {await self._lane_for(command, deadline) for command in commands}
            await asyncio.gather(*(lane.call(PING, writes=False) for lane in lanes if lane.is_busy))

        return await self._beside().run(
            exchange,
            writes=writes,
            deadline=deadline,
            tags=tags,
            ready=ready if writes and self._given is None else None,
        )

    async def _run_on_lanes(
        self,
        lanes: Sequence[Lane],
        packed: Sequence[bytes | Command],
        commands: Sequence[Command],
        *,
        writes: bool,
        deadline: float,
    ) -> list[Any]:
        calls = zip(lanes, packed, strict=True)
        together = asyncio.gather(
            *(lane.call(each, writes=writes) for lane, each in calls), return_exceptions=True
        )
        replies: list[Any] = own_replies(commands, await _by(deadline, together, writes=writes))
        for i, reply in enumerate(replies):
            if isinstance(reply, Exception) and not isinstance(reply, MultiDBError):
                try:
                    replies[i] = await self._recover(
                        lanes[i], commands[i], reply, writes=writes, deadline=deadline
                    )
                except MultiDBError as exc:
                    replies[i] = exc
        raise_failure(replies, writes=writes)
        return replies

    async def _recover(
        self, lane: Lane, command: Command, reply: Exception, *, writes: bool, deadline: float
    ) -> Any:
        """Return the reply to a command after all, or raise what the server's error means."""
        script, *arguments = command
        if isinstance(reply, NoScriptError) and isinstance(script, Script):
            self.prepare(script)
            in_full = pack(("EVAL", script.source, *arguments))
            reply = script.own(await _by(deadline, lane.call(in_full, writes=writes), writes=writes))
        if isinstance(reply, ReadOnlyError):  # The name of the server may have come to mean another one.
            lane.wear()
        if isinstance(reply, _MOVED) and self._nodes is not None:
            return await self._beside().run(
                lambda client: translated_one(client, command, writes=writes),
                writes=writes,
                deadline=deadline,
                tags=[tag_of(command)],
            )
        if isinstance(reply, Exception):
            raise translate(reply, writes=writes) from reply
        return reply

    async def _lane_for(self, command: Command, deadline: float) -> Lane:
        if self._nodes is not None:
            return await _by(deadline, self._nodes.found(command), writes=False)
        if self._lane is None:
            raise ClosedError(CLOSED)
        return self._lane

    def _tags(self, commands: Sequence[Command]) -> set[str]:
        """Return what keeps its order; nothing, where each call goes as it comes to a client that was given."""
        return {tag_of(command) for command in commands} if self._given is None else set()

    def _beside(self) -> Apart:
        if self._apart is None:
            raise ClosedError(CLOSED)
        return self._apart

    def _deadline(self) -> float:
        return monotonic() + self._timeout


async def _by(deadline: float, answer: Awaitable[R], *, writes: bool) -> R:
    """Return the *answer* if it comes by the *deadline*."""
    try:
        # A lane tells better what became of a call, if it was made at once.
        async with asyncio.timeout(deadline + _GRACE_SECONDS - monotonic()):
            return await answer
    except TimeoutError as exc:
        raise BackendTimeoutError("no answer from the server", ambiguous=writes) from exc


async def _hello_of_cluster(client: RedisCluster) -> Any:
    await client.initialize()
    try:
        return await client.execute_command("HELLO", 2, target_nodes=client.get_default_node())
    except ResponseError as exc:
        return exc


def _check_server(reply: Any, topology: Topology) -> None:
    if isinstance(reply, Exception):
        if code_of(reply) != _UNKNOWN:
            raise reply
        raise ConfigurationError("the server does not know HELLO: older than Redis 6, or no Redis") from reply
    hello: dict[bytes, Any] = dict(zip(reply[::2], reply[1::2], strict=True))
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

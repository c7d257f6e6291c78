"""The connections of redis-py as multidb wants them: they know what was sent, and can do without a loop."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hiredis import Reader, pack_command
from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from multidb.engines._redis_errors import UnsentError
from multidb.engines._redis_url import TLS_FILES, Topology
from multidb.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncio import StreamWriter
    from collections.abc import Callable, Iterable, Iterator
    from weakref import WeakSet

    from multidb.engines._redis_url import RedisAddress

HEALTH_CHECK_SECONDS: Final = 15
"""A connection that was idle for longer is asked whether it still works."""

NOTHING: Final = object()
"""What a reader returns when no reply is complete."""


pack: Callable[[tuple[Any, ...]], bytes] = pack_command
"""Returns what goes over the wire for a command. Its own type knows commands of one word only."""


@contextmanager
def _nothing_sent() -> Iterator[None]:
    try:
        yield
    except UnsentError:
        raise
    except RedisError as exc:
        raise UnsentError from exc


class OwnConnection(AbstractConnection):
    """What each connection of ours adds to redis-py's. *opened* is the set that it enters itself in."""

    def __init__(self, *, opened: WeakSet[OwnConnection], **options: Any) -> None:
        super().__init__(**options)
        opened.add(self)

    async def connect(self) -> None:
        """Connect; raise nothing but UnsentError."""
        if self.is_connected:
            return
        with _nothing_sent():
            await super().connect()  # type: ignore[no-untyped-call] # redis-py's

    async def connect_check_health(
        self, check_health: bool = True, retry_socket_connect: bool = True
    ) -> None:
        """Connect; raise nothing but UnsentError."""
        del check_health  # Its PING would only come before CLIENT SETNAME, which has to be answered too.
        with _nothing_sent():
            await super().connect_check_health(check_health=False, retry_socket_connect=retry_socket_connect)

    async def check_health(self) -> None:
        """Ask whether an idle connection still works, before anything is sent; else make a new one."""
        try:
            await super().check_health()  # type: ignore[no-untyped-call] # redis-py's
        except RedisError:
            await self.connect()

    async def send_packed_command(
        self, command: str | bytes | Iterable[bytes], check_health: bool = True
    ) -> None:
        """Send what `pack_command()` returned, without the task that redis-py makes for each command."""
        if not self.is_connected:
            await self.connect_check_health()
        if check_health:
            await self.check_health()
        writer = self._writer
        if writer is None:  # Another task closed it: redis-py's cluster does so when a node fails.
            raise UnsentError
        try:
            async with asyncio.timeout(self.socket_timeout):
                writer.writelines(_chunks(command))
                await writer.drain()
        except BaseException as exc:
            writer.transport.abort()  # Closing it would go on to send what is left.
            await self.disconnect(nowait=True)
            if isinstance(exc, TimeoutError):
                raise RedisTimeoutError from exc
            if isinstance(exc, OSError):
                raise RedisConnectionError from exc
            raise

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Return the next reply. One that is here already, as in a pipeline, takes no waiting."""
        reply = NOTHING if args or options or not self.is_connected else _arrived(self._parser)
        if type(reply) is object:
            try:
                return await super().read_response(*args, **options)
            except ReadOnlyError:
                self.mark_for_reconnect()  # type: ignore[no-untyped-call] # redis-py's
                raise
        if isinstance(reply, RedisConnectionError):
            await self.disconnect(nowait=True)
        if isinstance(reply, ReadOnlyError):  # The name of the server may have come to mean another one.
            self.mark_for_reconnect()  # type: ignore[no-untyped-call] # redis-py's
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def should_reconnect(self) -> bool:
        """Whether it cannot be used as it is; redis-py's cluster does not see that a server hung up."""
        hung_up = self._reader is not None and self._reader.at_eof()
        return hung_up or bool(super().should_reconnect())  # type: ignore[no-untyped-call] # redis-py's

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return what goes over the wire for a command."""
        return [_packed(args)]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """Return what goes over the wire for several commands."""
        return [_packed(tuple(command)) for command in commands]

    @property
    def transport(self) -> Any:
        """The transport of a connection that is connected."""
        if self._writer is None:
            raise UnsentError
        return self._writer.transport

    def new_reader(self) -> Reader:
        """Return what makes replies of the bytes that come from now on, with errors as redis-py tells them."""
        return Reader(
            protocolError=InvalidResponse, replyError=self._parser.parse_error, notEnoughData=NOTHING
        )

    def abandon(self, *, loop_gone: bool) -> None:
        """Close the socket without waiting; with *loop_gone* also without the loop, and in silence."""
        writer, self._writer, self._reader = self._writer, None, None
        if writer is None:
            return
        if loop_gone:
            _drop(writer)
        else:
            writer.transport.abort()


def _packed(command: tuple[Any, ...]) -> bytes:
    # redis-py packs in Python, which takes half the time of a pipeline.
    name, *arguments = command
    words = name.split() if isinstance(name, str) else [name]  # "CLUSTER SLOTS" is two words to a server.
    return pack((*words, *arguments))


def _arrived(parser: Any) -> Any:
    """Return a reply that was read from the socket; if there is none a bare object, as hiredis is told to."""
    gets = getattr(getattr(parser, "_reader", None), "gets", None)
    return NOTHING if gets is None else gets()


def _chunks(command: str | bytes | Iterable[bytes]) -> Iterable[bytes]:
    if isinstance(command, str):
        return [command.encode()]
    return [command] if isinstance(command, bytes) else command


def _drop(writer: StreamWriter) -> None:
    """
    Close only our file descriptor.

    Closing through the transport takes the socket out of the loop's selector. A closed loop has none; in a
    forked child it is the parent's, whose connection would go deaf. asyncio has no public way to do this.
    """
    transport: Any = writer.transport
    plain = getattr(getattr(transport, "_ssl_protocol", None), "_transport", transport)
    sock = getattr(writer.get_extra_info("socket"), "_sock", None)
    if sock is not None:
        sock.close()
    if hasattr(plain, "_sock"):
        plain._sock, plain._closing = None, True  # noqa: SLF001
    if plain is not transport:
        transport._closed = True  # noqa: SLF001


class TcpConnection(OwnConnection, Connection):
    """A connection to a server."""


class TlsConnection(OwnConnection, SSLConnection):
    """A connection to a server, with TLS."""


class UnixConnection(OwnConnection, UnixDomainSocketConnection):
    """A connection through a Unix socket."""


class MasterConnection(OwnConnection, SentinelManagedConnection):
    """A connection to the master that the Sentinels name."""


class MasterTlsConnection(OwnConnection, SentinelManagedSSLConnection):
    """A connection to the master that the Sentinels name, with TLS."""


async def connected(connection: OwnConnection, seconds: float) -> OwnConnection:
    """Return *connection* when it has logged in; raise UnsentError when that fails, or takes longer."""
    try:
        async with asyncio.timeout(seconds):
            await connection.connect()
    except BaseException as exc:
        connection.abandon(loop_gone=False)
        if isinstance(exc, TimeoutError):
            raise UnsentError from exc
        raise
    return connection


def make_client(
    address: RedisAddress,
    *,
    pool_max: int,
    timeout_seconds: float,
    connect_timeout_seconds: float,
    opened: WeakSet[OwnConnection],
) -> tuple[Redis | RedisCluster, Sentinel | None]:
    """Return a client, which connects when it is used, and its Sentinels if any; each is closed by itself."""
    for name in TLS_FILES & set(address.tls_options):
        if not Path(str(address.tls_options[name])).exists():  # redis-py would call it a failed connection.
            raise ConfigurationError(f"the option {name} of REDIS_URL names a file that is not there")
    options = {
        "opened": opened,
        # The engine keeps to *pool_max*; here a connection still counts while it is being closed.
        "max_connections": 2 * pool_max,
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": connect_timeout_seconds,
        "health_check_interval": HEALTH_CHECK_SECONDS,
        "client_name": "multidb",
        # redis-py's own retries repeat INCR after a lost answer, and find the cooldown running they claimed.
        "retry": Retry(NoBackoff(), 0),
        # RESP3 adds a handshake and pushes, for replies that are the same.
        "protocol": 2,
    }
    if address.topology is Topology.CLUSTER:
        return _cluster(address, options), None
    if address.topology is Topology.SENTINEL:
        return _master(address, options)
    return _single(address, options), None


def _single(address: RedisAddress, options: dict[str, Any]) -> Redis:
    options |= {"username": address.username, "password": address.password, "db": address.db}
    if address.path:
        return Redis.from_pool(ConnectionPool(UnixConnection, path=address.path, **options))
    host, port = address.hosts[0]
    return Redis.from_pool(
        ConnectionPool(_plain(address), host=host, port=port, **options | address.tls_options)
    )


def _master(address: RedisAddress, options: dict[str, Any]) -> tuple[Redis, Sentinel]:
    options |= address.tls_options
    sentinel = Sentinel([])  # type: ignore[no-untyped-call] # redis-py's
    login: dict[str, Any] = {"username": address.sentinel_username, "password": address.sentinel_password}
    sentinel.sentinels = [
        Redis.from_pool(ConnectionPool(_plain(address), host=host, port=port, **login, **options))
        for host, port in address.hosts
    ]
    options |= {"username": address.username, "password": address.password, "db": address.db}
    kind = MasterTlsConnection if address.tls else MasterConnection
    return sentinel.master_for(address.service, connection_class=kind, **options), sentinel


def _cluster(address: RedisAddress, options: dict[str, Any]) -> RedisCluster:
    own = {"opened": options.pop("opened"), **address.tls_options}
    cluster = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in address.hosts],
        # Every so many moved slots it would close all connections, also those that wait for an answer.
        reinitialize_steps=0,
        username=address.username,
        password=address.password,
        **options,
    )
    # It takes no connection class, nor what is ours, but makes every node with these.
    cluster.connection_kwargs |= own | {"connection_class": _plain(address)}
    for node in cluster.startup_nodes:
        node.connection_class = _plain(address)
        node.connection_kwargs |= own
    return cluster


def _plain(address: RedisAddress) -> type[TcpConnection | TlsConnection]:
    return TlsConnection if address.tls else TcpConnection

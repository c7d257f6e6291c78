# ruff: noqa: SLF001 -- it looks inside PyMongo, asyncio's transports and tasks
"""What PyMongo has no public way for: why TLS fails, and letting go of a client without its event loop."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pymongo
from pymongo import AsyncMongoClient

if TYPE_CHECKING:
    from collections.abc import Iterator

_DRIVER_FOLDER: Final = str(Path(pymongo.__file__).parent)
_CONNECTING_SECONDS: Final = 0.05
_HANDSHAKE_SECONDS: Final = 0.5


async def is_untrusted(client: Any) -> bool:
    """Return whether *client* does not trust a server's certificate: PyMongo tells it in words only."""
    with suppress(AttributeError, TypeError):  # A fake has none of this.
        context = client.options.pool_options._ssl_context
        if isinstance(context, ssl.SSLContext):
            servers = client.topology_description.server_descriptions()
            return any([await _is_untrusted_at(host, port, context) for host, port in servers])
    return False


async def _is_untrusted_at(host: str, port: int | None, context: ssl.SSLContext) -> bool:
    try:
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    except ssl.SSLCertVerificationError:
        return True
    except OSError:
        return False
    writer.transport.abort()
    return False


async def close_client(client: Any, *, seconds: float) -> None:
    """Close *client*, PyMongo's or Motor's; it may take about *seconds* to say farewell to the server."""
    if isinstance(client, AsyncMongoClient):
        if not client.nodes:
            await _let_connect(client)
        with pymongo.timeout(seconds):
            await client.close()
    else:
        # Motor's close() is no coroutine: it would block the event loop while it talks to the server.
        await asyncio.to_thread(_close_motor, client, seconds)


async def _let_connect(client: Any) -> None:
    """Let the monitors end what they are at: cancelled while connecting, they forget to close the socket."""
    with suppress(AttributeError):
        for executor in _executors(client):
            executor._stopped = True
        await asyncio.sleep(_CONNECTING_SECONDS)


def _close_motor(client: Any, seconds: float) -> None:
    with pymongo.timeout(seconds):
        client.close()


def abandon_client(client: Any, *, loop: asyncio.AbstractEventLoop | None, pid: int) -> None:
    """
    Close the sockets of *client*, PyMongo's or Motor's, stop its tasks or threads, and tell the server nothing.

    No driver has a public way to do this, hence the looks inside. What is not found there is left to the
    garbage collector and its warnings. In a forked child (*pid* is the parent's) only this process' copies
    are closed.
    """
    own = pid == os.getpid()
    if not isinstance(client, AsyncMongoClient):
        if own:  # A child has no threads to stop, and PyMongo itself forgets the sockets there.
            with suppress(AttributeError):  # Else close() tells the server of them.
                client.delegate._topology.pop_all_sessions()
            _close_motor(client, _CONNECTING_SECONDS)
        return
    client._closed = True
    alive = own and loop is not None and not loop.is_closed()
    with suppress(AttributeError):
        for executor in _executors(client):
            _stop(executor, alive=alive)
        for connection in _pooled(client):
            connection.closed = True
            _drop(connection.conn.conn[0], alive=alive)
    if own and loop is not None and not alive:
        _silence(loop)


def _servers(client: Any) -> list[Any]:
    return list(client._topology._servers.values())


def _executors(client: Any) -> Iterator[Any]:
    yield client._kill_cursors_executor
    for server in _servers(client):
        yield server._monitor._executor
        yield server._monitor._rtt_monitor._executor


def _pooled(client: Any) -> Iterator[Any]:
    for server in _servers(client):
        for pool in (server.pool, server._monitor._pool, server._monitor._rtt_monitor._pool):
            while pool.conns:
                yield pool.conns.pop()


def _stop(executor: Any, *, alive: bool) -> None:
    task, executor._task, executor._stopped = executor._task, None, True
    if task is not None and alive:
        task.cancel()


def _drop(transport: Any, *, alive: bool) -> None:
    if alive:
        transport.abort()
        return
    # Not through the transport: its loop is closed, or, after a fork, shares its epoll with the parent.
    if (tls := getattr(transport, "_ssl_protocol", None)) is not None:
        transport._closed = True
        transport = tls._transport
    sock, transport._sock = transport._sock, None
    if sock is not None:
        sock.close()


def _silence(loop: asyncio.AbstractEventLoop) -> None:
    """End what PyMongo had under way in a loop that was closed without cancelling its tasks."""
    for task in asyncio.all_tasks(loop):
        coroutine: Any = task.get_coro()
        if coroutine is not None and coroutine.cr_code.co_filename.startswith(_DRIVER_FOLDER):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            with suppress(Exception):  # Closing it runs its cleanup, which wants to wait and cannot.
                coroutine.close()
    for transport in list(getattr(loop, "_transports", {}).values()):
        with suppress(AttributeError):
            protocol = transport.get_protocol()
            protocol = getattr(protocol, "_app_protocol", protocol)  # behind TLS
            if type(protocol).__module__.startswith("pymongo."):
                _drop(transport, alive=False)

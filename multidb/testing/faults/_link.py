"""One connection through a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from multidb.testing.faults._weather import ProxyStats, Way, Weather

_CHUNK_BYTES = 65536
_QUEUED_CHUNKS = 64
_REMEMBERED_BYTES = 65536
_DRIPS_PER_SECOND = 50
_LINGER_SECONDS = 1.0
_RESET = struct.pack("ii", 1, 0)


class _Mark(Enum):
    END = "the sender has ended its side"
    CLOSE = "close the connection after what came before"


class Link:
    """A client, and the connection to the server that is made for it."""

    def __init__(
        self,
        client: socket.socket,
        target: tuple[str, int],
        weather: Weather,
        stats: ProxyStats,
        random: Random,
        count: Callable[[bytes], bool] | None,
    ) -> None:
        """Take *client* over; `start()` does the rest."""
        self.tainted = False
        """Whether bytes are missing: nothing that comes after them makes sense."""
        self.closed = False
        self._client = client
        self._server: socket.socket | None = None
        self._target = target
        self._weather = weather
        self._stats = stats
        self._random = random
        self._count = count
        self._request = bytearray()
        self._is_counted = False
        self._replies = 0
        self._is_silent = False
        self._is_to_finish = False
        self._queues: dict[Way, asyncio.Queue[tuple[float, bytes | _Mark]]] = {}
        self._loop = asyncio.get_running_loop()

    def start(self, ended: Callable[[Link], None]) -> None:
        """Forward until both sides have ended; then call *ended*."""
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(lambda _: ended(self))

    def close(self, *, reset: bool = False) -> None:
        """Close both sides now."""
        if reset:
            for each in (self._client, self._server):
                if each is not None:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.closed = True
        self._task.cancel()
        # Not left to the task: whoever closes may want to see it closed.
        self._close_sockets()

    async def ended(self) -> None:
        """Wait until nothing of it is left."""
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        try:
            self._client.setblocking(False)
            self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._connect()
            await self._forward()
            if self._is_to_finish:
                await self._finish()
        except OSError:
            pass  # One side is gone, and with it the other.
        finally:
            self.closed = True
            self._close_sockets()

    async def _connect(self) -> None:
        """Connect to the server; where it cannot be reached, and all is swallowed, let the client wait."""
        family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
        self._server = socket.socket(family, socket.SOCK_STREAM)
        self._server.setblocking(False)
        self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.sock_connect(self._server, self._target)
        except OSError:
            self._server.close()
            self._server = None
            if not self._weather.swallows:
                raise
            self.tainted = True

    async def _forward(self) -> None:
        self._queues = {way: asyncio.Queue(_QUEUED_CHUNKS) for way in ("to_server", "to_client")}
        pumps = [self._receive("to_server", self._client)]
        if self._server is None:
            pumps.append(self._send("to_server", None))
        else:
            pumps += [
                self._send("to_server", self._server),
                self._receive("to_client", self._server),
                self._send("to_client", self._client),
            ]
        tasks = [self._loop.create_task(pump) for pump in pumps]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if not self._is_to_finish:
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self, way: Way, source: socket.socket) -> None:
        """Take bytes off one side and queue them for the other with the time at which they are due."""
        due = 0.0
        while True:
            try:
                chunk = await self._loop.sock_recv(source, _CHUNK_BYTES)
            except ConnectionError:
                chunk = b""
            for part in self._seen(way, chunk) if chunk else (_Mark.END,):
                seconds, jitter = self._weather.delays.get(way, (0.0, 0.0))
                delay = seconds + (self._random.uniform(0, jitter) if jitter else 0.0)
                due = max(due, self._loop.time() + delay)
                await self._queues[way].put((due, part))
            if not chunk:
                return

    def _seen(self, way: Way, chunk: bytes) -> tuple[bytes | _Mark, ...]:
        """Return what is to be passed on of *chunk*."""
        if way in self._weather.swallows or (way == "to_client" and self._is_silent):
            self.tainted = True
            self._stats.bytes_lost += len(chunk)
            return ()
        if way == "to_server":
            self._note_request(chunk)
            return (chunk,)
        if not self._request:
            return (chunk,)
        return self._reply(chunk)

    def _note_request(self, chunk: bytes) -> None:
        if not self._request:
            self._stats.requests += 1
            self._is_counted = False
        self._request += chunk[: max(0, _REMEMBERED_BYTES - len(self._request))]
        if self._count is not None and not self._is_counted and self._count(bytes(self._request)):
            self._is_counted = True
            self._stats.counted += 1

    def _reply(self, chunk: bytes) -> tuple[bytes | _Mark, ...]:
        self._stats.replies += 1
        self._replies += 1
        request = bytes(self._request)
        self._request.clear()
        fault = self._weather.reply_fault
        if fault is None or not fault.strikes(request, self._replies):
            return (chunk,)
        self.tainted = self._is_silent = True
        if fault.halves:
            self._stats.halved += 1
            half = len(chunk) // 2
            self._stats.bytes_lost += len(chunk) - half
            return (chunk[:half], _Mark.CLOSE)
        self._stats.swallowed += 1
        self._stats.bytes_lost += len(chunk)
        return () if fault.hangs else (_Mark.CLOSE,)

    async def _send(self, way: Way, sink: socket.socket | None) -> None:
        while True:
            due, part = await self._queues[way].get()
            if (wait := due - self._loop.time()) > 0:
                await asyncio.sleep(wait)
            await self._weather.passable[way].wait()
            if way in self._weather.swallows or sink is None:
                self.tainted = True
                self._stats.bytes_lost += len(part) if isinstance(part, bytes) else 0
            elif part is _Mark.CLOSE:
                self._is_to_finish = True
                raise ConnectionAbortedError
            elif isinstance(part, bytes):
                await self._deliver(way, sink, part)
            else:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                return

    async def _deliver(self, way: Way, sink: socket.socket, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            rate = self._weather.rates.get(way)
            size = len(left) if rate is None else max(1, int(rate / _DRIPS_PER_SECOND))
            await self._loop.sock_sendall(sink, left[:size])
            self._count_bytes(way, min(size, len(left)))
            left = left[size:]
            if rate is not None:
                await asyncio.sleep(size / rate)

    def _count_bytes(self, way: Way, count: int) -> None:
        if way == "to_server":
            self._stats.bytes_to_server += count
        else:
            self._stats.bytes_to_client += count

    async def _finish(self) -> None:
        """Close the client's side; let the server do what it was sent, before its side is closed too."""
        self._client.close()
        if self._server is None:
            return
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                self._server.shutdown(socket.SHUT_WR)
                while await self._loop.sock_recv(self._server, _CHUNK_BYTES):
                    pass

    def _close_sockets(self) -> None:
        for each in (self._client, self._server):
            if each is not None and each.fileno() >= 0:
                self._loop.remove_reader(each)
                self._loop.remove_writer(each)
                each.close()

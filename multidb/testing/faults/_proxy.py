"""A TCP proxy that misbehaves on demand."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import Future
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from multidb.errors import ConfigurationError, InvalidArgumentError
from multidb.testing.faults import _urls
from multidb.testing.faults._link import Link
from multidb.testing.faults._seed import note_seed, pick_seed
from multidb.testing.faults._weather import ProxyStats, ReplyFault, Weather, chooser, matcher
from multidb.testing.servers._ports import HOST, ReservedPort

if TYPE_CHECKING:
    from collections.abc import Callable

    from multidb.testing.faults._weather import Direction, Matching

R = TypeVar("R")

_START_SECONDS = 10.0


class TcpProxy:
    """
    Stands before the server at *host* and *port*, and forwards until it is told to misbehave.

    Use it in `with` or `async with`. It runs in a thread of its own, so that it goes on where the event loop of a
    test is blocked; every method may be called from any thread, also inside an event loop, and takes effect before
    it returns. Each fault stays until `heal()`, or until it is set anew; faults of different kinds add up.

        with TcpProxy.before(server.url) as proxy:
            settings = Settings(redis_url=proxy.proxied(server.url))
            proxy.black_hole()

    A *request* is what a client sends until the server answers, the *reply* begins with the first bytes of that
    answer: this is seen in the bytes' direction and not in any protocol, so TLS and every server are fine. Requests
    in flight together count as one.

    *count*: which requests `stats().counted` counts, by bytes that occur in them or a function of them.
    *seed*: decides jitter and chance, see `pick_seed()`. An error that leaves the `with` block is given it as a note.
    What depends on chance is decided per request in the order of the replies; with several connections at once that
    order is the network's.

    A server that is down shows as a connection closed at once, as the proxy has accepted it by then; to be refused
    call `refuse()`.
    """

    def __init__(
        self, host: str, port: int, *, count: Matching | None = None, seed: int | None = None
    ) -> None:
        """Remember where to; nothing happens before `start()`."""
        self.seed = pick_seed(seed)
        self._target = (host, port)
        self._count = None if count is None else matcher(count)
        self._random = Random(self.seed)  # noqa: S311 -- to be repeated, not to be secret
        self._stats = ProxyStats()
        self._weather = Weather()
        self._links: set[Link] = set()
        self._reserved: ReservedPort | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._listener: socket.socket
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    def before(cls, url: str, *, count: Matching | None = None, seed: int | None = None) -> Self:
        """Return a proxy for the one server that *url* names. Raises InvalidArgumentError where that is not one."""
        host, port = _urls.address(url)
        return cls(host, port, count=count, seed=seed)

    @property
    def host(self) -> str:
        """Where the proxy listens: a loopback address."""
        return HOST

    @property
    def port(self) -> int:
        """The port it listens on, the same until `stop()`, also while it refuses."""
        if self._reserved is None:
            msg = "this proxy is not started"
            raise ConfigurationError(msg)
        return self._reserved.number

    def proxied(self, url: str) -> str:
        """
        Return *url* (postgresql, mongodb, redis, valkey) with the proxy's address; all else stays.

        A MongoDB URL gets `directConnection=true` in the place of `replicaSet`: a client that asks for the set
        connects to the addresses that the set's configuration names, past the proxy. So a proxy shows how one member
        fails, and never a failover.
        """
        return _urls.moved(url, self.host, self.port)

    def start(self) -> Self:
        """Listen; nothing when it does already."""
        if self._thread is None:
            self._reserved = ReservedPort()
            self._loop = asyncio.SelectorEventLoop()
            self._thread = threading.Thread(target=self._run, name="multidb-proxy", daemon=True)
            self._thread.start()
            self._do(self._listen)
        return self

    def stop(self) -> None:
        """Close every connection and the port; idempotent."""
        if self._thread is None or self._reserved is None:
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_SECONDS)
        self._loop.close()
        self._reserved.close()
        self._thread = self._reserved = None
        self._weather.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            note_seed(error, self.seed)
        self.stop()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.__exit__(_, error, __)

    def stats(self) -> ProxyStats:
        """Return what has been seen since the start."""
        return self._do(lambda: replace(self._stats, open=sum(not link.closed for link in self._links)))

    def delay(self, seconds: float, *, jitter_seconds: float = 0.0, direction: Direction = "both") -> None:
        """Let bytes arrive *seconds* later, and up to *jitter_seconds* more, never out of order."""
        _not_negative(seconds=seconds, jitter_seconds=jitter_seconds)
        self._do(lambda: self._weather.set_delay(direction, seconds, jitter_seconds))

    def drip(self, bytes_per_second: float, *, direction: Direction = "both") -> None:
        """Let bytes through slowly, some 50 times a second a few."""
        if not bytes_per_second > 0:
            msg = "bytes_per_second: must be above 0"
            raise InvalidArgumentError(msg)
        self._do(lambda: self._weather.set_rate(direction, bytes_per_second))

    def partition(self, *, direction: Direction = "both") -> None:
        """
        Hold bytes back, and the end of connections; `heal()` delivers them, as TCP does when a cable is put back.

        New connections are accepted, and nothing comes back.
        """
        self._do(lambda: self._weather.hold(direction))

    def black_hole(self, *, direction: Direction = "both") -> None:
        """Accept and swallow everything. As bytes are gone, `heal()` closes the connections that lost some."""
        self._do(lambda: self._weather.swallow(direction))

    def drop(self, *, reset: bool = False) -> None:
        """Close every connection now, with *reset* by RST; new ones are accepted."""

        def drop_all() -> None:
            for link in [link for link in self._links if not link.closed]:
                self._stats.dropped += 1
                link.close(reset=reset)

        self._do(drop_all)

    def refuse(self) -> None:
        """Close every connection and refuse new ones, as a server does that is down."""
        self.drop()
        self._do(self._stop_listening)
        self.drop()

    def swallow_replies(
        self,
        *,
        every: int | None = None,
        share: float | None = None,
        matching: Matching | None = None,
        spare: int = 0,
        times: int | None = None,
        then: Literal["close", "hang"] = "close",
    ) -> None:
        """
        Forward requests and lose the replies to some of them: the server did it and the client never knows.

        *every*: the n-th, 2n-th, … reply is lost; *share*: each with this probability, 0 to 1, by the seed. Exactly
        one of them. *matching*: only replies to requests in which these bytes occur, or for which the function
        returns true; the others do not count. *spare*: the first so many replies of each connection get through,
        such as those of its set-up. *times*: stop after so many. *then*: `close` the connection, or `hang`: it stays
        open and silent until `heal()`, which closes it.
        """
        if then not in {"close", "hang"}:
            msg = "then: close or hang"
            raise InvalidArgumentError(msg)
        chosen = chooser(self._random, every, share)
        self._set_reply_fault(
            ReplyFault(
                chosen, matcher(matching), spare=spare, times=times, hangs=then == "hang", halves=False
            )
        )

    def halve_replies(
        self,
        *,
        every: int | None = None,
        share: float | None = None,
        matching: Matching | None = None,
        spare: int = 0,
        times: int | None = None,
    ) -> None:
        """Cut some replies in the middle of their first chunk and close. Arguments as of `swallow_replies()`."""
        chosen = chooser(self._random, every, share)
        self._set_reply_fault(
            ReplyFault(chosen, matcher(matching), spare=spare, times=times, hangs=False, halves=True)
        )

    def heal(self) -> None:
        """End every fault; close the connections that lost bytes, and deliver what was held back on the others."""

        def heal_all() -> None:
            self._weather.clear()
            for link in [link for link in self._links if link.tainted]:
                link.close()
            self._listen()

        self._do(heal_all)

    def _set_reply_fault(self, fault: ReplyFault) -> None:
        self._do(lambda: setattr(self._weather, "reply_fault", fault))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _listen(self) -> None:
        if self._listening is not None:
            return
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, self.port))
        listener.listen(256)
        listener.setblocking(False)
        self._listener = listener
        self._listening = self._loop.create_task(self._accept(listener))

    def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
            self._loop.remove_reader(self._listener)
            self._listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = await self._loop.sock_accept(listener)
            self._stats.connections += 1
            link = Link(client, self._target, self._weather, self._stats, self._random, self._count)
            self._links.add(link)
            link.start(self._links.discard)

    async def _end(self) -> None:
        listening = self._listening
        self._stop_listening()
        if listening is not None:
            await asyncio.wait((listening,))
        links = list(self._links)
        for link in links:
            link.close()
        await asyncio.gather(*(link.ended() for link in links))

    def _do(self, action: Callable[[], R]) -> R:
        """Run *action* in the proxy's thread; return what it returns."""
        if self._thread is None:
            msg = "this proxy is not started"
            raise ConfigurationError(msg)
        done: Future[R] = Future()

        def run() -> None:
            try:
                done.set_result(action())
            except BaseException as error:  # noqa: BLE001 -- whatever it is, the caller raises it
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result(_START_SECONDS)


def _not_negative(**seconds: float) -> None:
    for name, value in seconds.items():
        if not value >= 0:
            msg = f"{name}: must not be negative"
            raise InvalidArgumentError(msg)

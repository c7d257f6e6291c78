"""ConnectionPool: connections of a driver, each lent to one call at a time."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from multidb.engines._sql_errors import root_of, translate, translating
from multidb.errors import ClosedError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")

_CLOSE_SECONDS: Final = 2.0
# A connection that was in use a moment ago is not asked whether it is alive.
_IDLE_SECONDS: Final = 30.0
_AGE_SECONDS: Final = 1800.0
_SPARE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How many connections there are, and how long things may take."""

    pool_min: int
    pool_max: int
    pool_timeout_seconds: float
    connect_timeout_seconds: float
    command_timeout_seconds: float


class Driver(Protocol):
    """What the pool needs to know of a driver."""

    one_writer: bool
    keeps_after_fork: bool
    """Whether what is open must not even be closed in a forked child."""
    most: int
    """How many connections there may be."""

    def create(self) -> AsyncEngine:
        """Return what makes connections."""
        ...

    async def ping(self, connection: Any, /) -> None:
        """Return when the connection works."""
        ...

    def is_open(self, connection: Any, /) -> bool:
        """Whether the connection is open as far as is known here."""
        ...

    def is_usable(self, connection: Any, exc: BaseException, /) -> bool:
        """Whether the connection is as good as new after *exc*."""
        ...

    async def close(self, connection: Any, /) -> None:
        """Close the connection in all form."""
        ...

    def drop(self, connection: Any, /) -> None:
        """Close the connection without waiting."""
        ...

    def abandon(self, connection: Any, /) -> None:
        """Close the connection without its event loop and without a word to the server."""
        ...


@dataclass(eq=False, slots=True)
class _Link:
    connection: Any
    made_at: float = field(default_factory=monotonic)
    idle_since: float = 0.0


class _Gate:
    """Lets so many in at once, first come, first served; who finds it open needs no coroutine."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._waiting: deque[asyncio.Future[None]] = deque()

    def enter_at_once(self) -> bool:
        if not self._room:
            return False
        self._room -= 1
        return True

    async def enter(self, seconds: float) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled():
                self.leave()  # It came too late.
            if isinstance(exc, TimeoutError):
                raise OverloadedError("waited too long for a connection of the pool") from exc
            raise

    def leave(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._room += 1


class ConnectionPool:
    """
    Lends connections, first come, first served. More than `pool_min` stay open only while they are needed.

    They are made by SQLAlchemy's engine but not kept by its pool: that lets those who come late overtake those
    who wait, until these give up, and costs every call 40 microseconds, not 3.
    """

    def __init__(self, driver: Driver, options: PoolOptions) -> None:
        """Remember what to connect to. To be made in the event loop that uses it."""
        self._driver = driver
        self._options = options
        self._engine: AsyncEngine | None = driver.create()
        self._links: set[_Link] = set()
        self._idle: list[_Link] = []
        self._turns = _Gate(driver.most)
        self._writing = _Gate(1) if driver.one_writer else None
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()

    async def run(self, call: Callable[..., Awaitable[T]], *args: Any, writes: bool) -> T:
        """
        Return what *call* returns, given a connection and *args*; its errors become multidb's.

        *writes*: it may change data.
        """
        writing = self._writing if writes else None
        if writing is not None and not writing.enter_at_once():
            await writing.enter(self._options.pool_timeout_seconds)
        try:
            if not self._turns.enter_at_once():
                await self._turns.enter(self._options.pool_timeout_seconds)
            try:
                link = self._take_warm() or await self._take()
                try:
                    result = await call(link.connection, *args)
                except BaseException as exc:
                    self._put_back(link, exc)
                    error = translate(exc, writes=writes)
                    if error is None:
                        raise
                    raise error from root_of(exc)
                self._put_back(link)
                return result
            finally:
                self._turns.leave()
        finally:
            if writing is not None:
                writing.leave()

    async def run_apart(self, call: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Return what *call* returns on a new connection that is no part of the pool and is dropped afterwards."""
        link = await self._connect()
        try:
            with translating():
                return await call(link.connection, *args)
        finally:
            self._drop(link)

    def reset(self) -> None:
        """Drop every connection: calls under way fail, and make room."""
        for link in [*self._links]:
            self._drop(link)
        self._idle.clear()

    async def close(self) -> None:
        """Close the connections within two seconds or so; calls under way fail."""
        if self._engine is None:
            return
        self._engine = None
        links = [*self._links]
        goodbyes = [asyncio.ensure_future(self._driver.close(link.connection)) for link in links]
        try:
            if goodbyes:
                await asyncio.wait(goodbyes, timeout=_CLOSE_SECONDS)
        finally:
            for link, goodbye in zip(links, goodbyes, strict=True):
                if not _went_well(goodbye):
                    self._drop(link)
            self._links.clear()
            self._idle.clear()
        # What was dropped is gone when the event loop has come round.
        await asyncio.sleep(0)

    def abandon(self) -> None:
        """Let go of the connections: the event loop is gone, or this is a forked child."""
        if self._engine is None:
            return
        self._engine = None
        forked = self._pid != os.getpid()
        if forked and self._driver.keeps_after_fork:
            _inherited.append(self)
            return
        close = self._driver.abandon if forked or self._loop.is_closed() else self._driver.drop
        for link in self._links:
            with suppress(Exception):
                close(link.connection)
        self._links.clear()

    def _take_warm(self) -> _Link | None:
        """Return the connection that was used last, if that was a moment ago."""
        idle = self._idle
        if idle and self._is_warm(idle[-1], monotonic()):
            return idle.pop()
        return None

    def _is_warm(self, link: _Link, now: float) -> bool:
        return now - link.idle_since < _IDLE_SECONDS and self._is_sound(link, now)

    def _is_sound(self, link: _Link, now: float) -> bool:
        return self._driver.is_open(link.connection) and now - link.made_at < _AGE_SECONDS

    async def _take(self) -> _Link:
        """Return an idle connection, or a new one."""
        while self._idle:
            link = self._idle.pop()
            if await self._is_alive(link):
                return link
        return await self._connect()

    async def _connect(self) -> _Link:
        """Return a new connection."""
        if self._engine is None:
            raise ClosedError("the SQL engine is not open")
        with translating():
            lease = await self._engine.raw_connection()
        link = _Link(lease.driver_connection)
        lease.detach()
        self._links.add(link)
        if self._engine is None:  # closed meanwhile
            self._drop(link)
            raise ClosedError("the SQL engine is not open")
        return link

    async def _is_alive(self, link: _Link) -> bool:
        now = monotonic()
        if self._is_warm(link, now):
            return True
        if self._is_sound(link, now):
            try:
                await self._driver.ping(link.connection)
            except BaseException as exc:
                self._drop(link)
                if translate(exc, writes=False) is None:
                    raise
                return False
            return True
        self._drop(link)
        return False

    def _put_back(self, link: _Link, exc: BaseException | None = None) -> None:
        if self._engine is None or (exc is not None and not self._driver.is_usable(link.connection, exc)):
            self._drop(link)
            return
        link.idle_since = monotonic()
        # To the others first: what was cancelled may still be busy in SQLite's thread.
        self._idle.insert(len(self._idle) if exc is None else 0, link)
        while len(self._idle) > self._options.pool_min and self._is_spare(self._idle[0]):
            self._drop(self._idle.pop(0))

    def _is_spare(self, link: _Link) -> bool:
        # The last used is used first, so that after a burst the first ones are left alone.
        return monotonic() - link.idle_since >= _SPARE_SECONDS

    def _drop(self, link: _Link) -> None:
        self._links.discard(link)
        with suppress(Exception):
            self._driver.drop(link.connection)


# What a forked child got from its parent and must keep as it is.
_inherited: list[ConnectionPool] = []


def _went_well(goodbye: asyncio.Future[None]) -> bool:
    """Whether a connection is closed; if it still tries to, it need not."""
    if goodbye.done():
        return not goodbye.cancelled() and goodbye.exception() is None
    # Somebody has to look at how it ends, else asyncio complains.
    goodbye.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    goodbye.cancel()
    return False

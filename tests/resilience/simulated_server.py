"""A SQL log server that is simulated: down, hanging, slow, full, read-only, forgetful of its answers, one after the other."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from simulated_machine import PROGRAM

from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ConfigurationError,
    OverloadedError,
)
from multidb.logs.backends.memory import MemoryLogBackend
from multidb.logs.protocol import Appended

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from multidb.logs.protocol import Entry

MODES = ("up", "refusing", "stopped", "hole", "lossy", "slow", "read_only", "full", "password")
POISON = "poison"
"""The type of an event that the server never takes."""
_TCP_SECONDS = 15.0
_CONNECT_SECONDS = 2.0


class Switchboard:
    """What goes wrong between the programs and a server, and in it. It knows nothing of what is stored."""

    def __init__(self, random: Random) -> None:
        self.mode = "up"
        self.latency = 0.001
        self.random = random
        self.clock = asyncio.get_running_loop().time
        self.since = self.clock()
        """When it came into its mode."""
        self.away_since: float | None = None
        """Since when no write can have worked."""
        self.last_in: dict[str, float] = {}
        """When it was last in a mode."""
        self._resumed = asyncio.Event()
        self._resumed.set()
        self.lines: dict[Line, None] = {}

    def become(self, mode: str) -> None:
        before, now = self.mode, self.clock()
        self.last_in[before] = now
        self.mode, self.since = mode, now
        if mode in ("up", "slow", "lossy"):
            self.away_since = None
        elif self.away_since is None:
            self.away_since = now
        if mode == "stopped":
            self._resumed.clear()
        else:
            self._resumed.set()
        if mode in ("refusing", "password"):
            for line in list(self.lines):
                line.cut()

    @property
    def away_seconds(self) -> float:
        return 0.0 if self.away_since is None else self.clock() - self.away_since

    def was(self, mode: str, seconds: float) -> bool:
        """Whether it was in *mode* within the last *seconds*."""
        return self.mode == mode or self.clock() - self.last_in.get(mode, -1e9) <= seconds

    async def resumed(self) -> None:
        await self._resumed.wait()


class Line:
    """The connections of one program. What is on its way when they are cut may have been done."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._waiting: dict[asyncio.Future[Any], None] = {}
        board.lines[self] = None
        self.is_open = False

    def cut(self) -> None:
        for future in list(self._waiting):
            if not future.done():
                future.set_exception(BackendUnavailableError("the connection was lost", ambiguous=True))

    async def open(self) -> None:
        """Connect."""
        board = self._board
        await asyncio.sleep(board.latency)
        if board.mode in ("stopped", "hole"):
            await asyncio.sleep(_CONNECT_SECONDS)
            raise BackendTimeoutError("no connection")
        _refuse(board.mode, writes=False)
        self.is_open = True

    async def call(self, do: Callable[[], Awaitable[Any]], *, writes: bool) -> Any:
        """Return what *do* returns on the server."""
        board = self._board
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting[future] = None
        _start(self._request(do, future, writes))
        deaf = board.random.random() < 0.2
        try:
            while True:
                try:
                    return await asyncio.shield(future)
                except asyncio.CancelledError:
                    program = PROGRAM.get()
                    # As asyncpg on a stopped server: its own cancellation waits for an answer.
                    if not deaf or board.mode not in ("stopped", "hole") or (program and program.dead):
                        raise
        finally:
            del self._waiting[future]

    async def _request(
        self, do: Callable[[], Awaitable[Any]], future: asyncio.Future[Any], writes: bool
    ) -> None:
        """The way of a request: nobody who cancels a call takes it back."""
        board, chance = self._board, self._board.random
        await asyncio.sleep(board.latency * chance.random())
        if not await self._arrives(future):
            return
        if board.mode == "slow":
            await asyncio.sleep(chance.choice((0.05, 0.5, 1.0, 1.5, 3.0)))
        try:
            _refuse(board.mode, writes=writes)
            result = await do()
        except Exception as exc:  # noqa: BLE001
            if not future.done():
                future.set_exception(exc)
            return
        if board.mode == "lossy" and chance.random() < 0.3:
            await self._lost(future, hangs=chance.random() < 0.5)
            return
        await asyncio.sleep(board.latency * chance.random())
        if not future.done():
            future.set_result(result)

    async def _arrives(self, future: asyncio.Future[Any]) -> bool:
        """Whether the server gets a request. What it found waiting after a stop it takes up, whoever has given up."""
        board, chance = self._board, self._board.random
        if future.done() and (chance.random() < 0.5 or board.mode not in ("up", "slow", "lossy")):
            return False
        is_lost = board.mode == "hole"
        if board.mode == "stopped":
            await board.resumed()
            is_lost = chance.random() < 0.3
        if is_lost:
            await self._lost(future)
        return not is_lost

    async def _lost(self, future: asyncio.Future[Any], *, hangs: bool = True) -> None:
        if hangs:
            await asyncio.wait((future,), timeout=_TCP_SECONDS)
        if not future.done():
            future.set_exception(BackendUnavailableError("the connection was lost", ambiguous=True))


def _start(call: Any) -> None:
    """Run it as nobody's: it goes on when the program that sent it is dead."""
    token = PROGRAM.set(None)
    try:
        task = asyncio.create_task(call, name="request")
    finally:
        PROGRAM.reset(token)
    _requests.add(task)
    task.add_done_callback(_requests.discard)


_requests: set[asyncio.Task[None]] = set()


def _refuse(mode: str, *, writes: bool) -> None:
    if mode == "refusing":
        raise BackendUnavailableError("refused")
    if mode == "password":
        raise ConfigurationError("the password is wrong")
    if writes and mode == "read_only":
        error: BackendError = BackendUnavailableError("read-only")
        error.condition = "read_only"
        raise error
    if writes and mode == "full":
        error = OverloadedError("disk full")
        error.condition = "full"
        raise error


class LogServer:
    """What is stored, and how often."""

    def __init__(self, board: Switchboard) -> None:
        self.board = board
        self.backend = MemoryLogBackend()
        self.stored: Counter[Any] = Counter()
        self.refused: set[Any] = set()

    async def append(self, entries: Sequence[Entry[Any]]) -> Sequence[Appended]:
        poison = {entry.record.id for entry in entries if entry.record.event_type == POISON}
        if poison:
            self.refused |= poison
            raise BackendError("a value that is not allowed")
        outcomes = await self.backend.append(entries)
        for entry, outcome in zip(entries, outcomes, strict=True):
            if outcome is Appended.STORED:
                self.stored[entry.record.id] += 1
        return outcomes


class LogClient:
    """A log backend on a `LogServer`, for one program."""

    name = "simulated"

    def __init__(self, server: LogServer) -> None:
        self._server = server
        self._line = Line(server.board)

    async def open(self) -> None:
        await self._line.open()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._line.call(self._nothing, writes=False)
        except TimeoutError:
            raise BackendTimeoutError("no answer") from None

    async def close(self) -> None:
        self._line.is_open = False
        self._line.cut()

    async def probe(self) -> None:
        """Write, and take it back."""
        await self._line.call(self._nothing, writes=True)

    def reset(self) -> None:
        self._line.cut()

    async def append(self, entries: Sequence[Entry[Any]]) -> Sequence[Appended]:
        return await self._line.call(lambda: self._server.append(entries), writes=True)

    async def query(self, query: Any) -> Any:
        return await self._line.call(lambda: self._server.backend.query(query), writes=False)

    async def query_all(self, queries: Any) -> Any:
        return await self._line.call(lambda: self._server.backend.query_all(queries), writes=False)

    async def count(self, query: Any, by: str | None = None) -> Any:
        return await self._line.call(lambda: self._server.backend.count(query, by), writes=False)

    async def _nothing(self) -> None:
        pass

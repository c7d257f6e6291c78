"""Calls apart from the lanes: each has a connection of redis-py's pool to itself, so that it holds up nobody else."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from multidb.engines._redis_lane import CLOSED
from multidb.errors import BackendTimeoutError, ClosedError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

# What a call may take longer than its deadline while its driver is being stopped.
_GRACE_SECONDS: Final = 0.1
# The program did something else for longer than this: servers may have hung up meanwhile.
_IDLE_SECONDS: Final = 0.05


class Apart:
    """
    Runs calls on *client*, *calls_max* at once. Each ends by its deadline, and waits half of *timeout_seconds* for
    its turn at most: later it would not be known that nothing was sent.

    A write that was sent goes on when its caller is cancelled. Until it ended, nothing else with one of its tags is
    to be sent, by lanes neither: who sends looks into `held` and waits for `settled()`.
    """

    def __init__(self, client: Any, *, calls_max: int, timeout_seconds: float) -> None:
        """Use *client*."""
        self.held: dict[str, asyncio.Task[Any]] = {}
        """The write under way, by tag."""
        self._client = client
        self._calls_max = calls_max
        self._timeout = timeout_seconds
        self._gate = asyncio.Semaphore(calls_max)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last_turn = 0.0
        self._is_closed = False

    async def settled(self, tags: Collection[str], deadline: float) -> None:
        """Return when no write with one of *tags* is under way. Raises OverloadedError past *deadline*."""
        while under_way := {self.held[tag] for tag in tags if tag in self.held}:
            _, late = await asyncio.wait(under_way, timeout=max(deadline - monotonic(), 0))
            if late:
                raise OverloadedError(
                    "another call for the same user, with a large value, is still under way"
                )

    async def run(
        self,
        exchange: Callable[[Any], Awaitable[Any]],
        *,
        writes: bool,
        deadline: float,
        tags: Collection[str] = (),
        ready: Callable[[], Awaitable[object]] | None = None,
    ) -> Any:
        """Return what *exchange* returns on the client; it is started when *ready* returned."""
        await self.settled(tags, deadline)
        call = _Call(exchange, ready, writes=writes, deadline=deadline)
        task = asyncio.create_task(self._in_turn(call), name="multidb-redis-apart")
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        if writes:
            self.held |= dict.fromkeys(tags, task)
        try:
            await asyncio.wait((task,), timeout=deadline + _GRACE_SECONDS - monotonic())
        except asyncio.CancelledError:
            if not call.may_be_applied:
                task.cancel()
            raise
        if task.done() and not task.cancelled():
            return task.result()
        task.cancel()
        if self._is_closed:
            raise ClosedError(CLOSED)
        raise call.timed_out()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        for tag in [tag for tag, holder in self.held.items() if holder is task]:
            del self.held[tag]
        if not task.cancelled():
            task.exception()  # Retrieved here, as its caller may have left.

    async def _in_turn(self, call: _Call) -> Any:
        await self._enter()
        try:
            async with asyncio.timeout(call.deadline - monotonic()):
                return await call.run(self._client)
        except TimeoutError as exc:
            raise call.timed_out() from exc
        finally:
            self._gate.release()

    async def _enter(self) -> None:
        now = monotonic()
        if now - self._last_turn > _IDLE_SECONDS:
            # In two rounds the loop reads what arrived: the end of connections to a server that restarted.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        self._last_turn = now
        try:
            async with asyncio.timeout(self._timeout / 2):
                await self._gate.acquire()
        except TimeoutError as exc:
            raise OverloadedError(f"all {self._calls_max} connections are in use") from exc

    async def drain(self, seconds: float) -> None:
        """Wait until all that was called is answered, for *seconds* at most."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=seconds)

    async def close(self, seconds: float) -> None:
        """Fail what is under way with ClosedError, within *seconds*."""
        self._is_closed = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def abandon(self, *, loop_gone: bool) -> None:
        """Let go of everything at once; with *loop_gone* without the loop."""
        self._is_closed = True
        if not loop_gone:
            for task in self._tasks:
                task.cancel()


class _Call:
    """One call, and how far it got."""

    def __init__(
        self,
        exchange: Callable[[Any], Awaitable[Any]],
        ready: Callable[[], Awaitable[object]] | None,
        *,
        writes: bool,
        deadline: float,
    ) -> None:
        self.deadline = deadline
        self.may_be_applied = False
        self._exchange = exchange
        self._ready = ready
        self._writes = writes

    async def run(self, client: Any) -> Any:
        if self._ready is not None:
            await self._ready()
        self.may_be_applied = self._writes
        return await self._exchange(client)

    def timed_out(self) -> BackendTimeoutError:
        return BackendTimeoutError("no answer from the server", ambiguous=self.may_be_applied)

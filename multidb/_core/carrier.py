"""Carriers: who makes a call for others, keeps the deadline, and goes on in another way where the call hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from multidb.errors import BackendTimeoutError, BackendUnavailableError

R = TypeVar("R")

Rest: TypeAlias = Callable[[Sequence[Any] | None], Coroutine[Any, Any, Any]]
"""
What is done instead of a call. It gets the items of those callers that still wait, and returns a result for each; or
None where the call is one caller's: then it returns what the call would have.
"""

# An answer may have come while the loop was busy with something else for longer than a call has.
TICK_SECONDS: Final = 0.01


class Carrier(Protocol):
    """Makes a call, in a task that its callers do not wait for: whatever it does they are answered in time."""

    @property
    def end(self) -> float | None:
        """When the first caller has to be answered, by the clock of the event loop; None: nobody said."""
        ...

    def hand_over(self, rest: Rest, /) -> None:
        """Cancel the call, never wait for it, and answer with *rest*. What has been answered stays so."""
        ...


carrier: Final[ContextVar[Carrier | None]] = ContextVar("multidb_carrier", default=None)
"""The one of the call that runs."""


class Errand(Generic[R]):
    """
    One call in a task of its own.

    Not asyncio.timeout(): a driver whose own cancellation hangs (asyncpg on a stopped server) would hang with it. Nor
    asyncio.wait(), which takes one more turn of the loop.
    """

    __slots__ = ("_answer", "_name", "_task", "_tasks", "_turn", "_writes", "end")

    def __init__(self, name: str, tasks: set[asyncio.Task[None]], *, writes: bool) -> None:
        """Make it in a task of this *name*, which is among *tasks* as long as it runs."""
        self._name = name
        self._tasks = tasks
        self._writes = writes
        self._turn = 0
        self._answer: asyncio.Future[R] | None = None
        self.end: float | None = None

    async def run(self, call: Awaitable[R], seconds: float) -> R:
        """
        Return what *call* returns within *seconds*.

        Raises what it raises, and BackendTimeoutError. When this is cancelled, or late, so is the call, and nobody
        waits for it.
        """
        loop = asyncio.get_running_loop()
        self.end = loop.time() + seconds
        answer: asyncio.Future[R] = loop.create_future()
        self._answer = answer
        self._start(call)
        timer = loop.call_later(seconds, self._ring, loop, seconds)
        try:
            return await answer
        finally:
            timer.cancel()
            self._let_go()
            self._answer = None  # Some remember this until the call would have been late.

    def hand_over(self, rest: Rest, /) -> None:
        """Give the answer of *rest* instead."""
        if self._is_waited_for():
            self._let_go()
            self._start(rest(None))

    def _is_waited_for(self) -> bool:
        return self._answer is not None and not self._answer.done()

    def _start(self, call: Awaitable[R]) -> None:
        self._turn += 1
        token = carrier.set(self)
        self._task = asyncio.create_task(self._make(call, self._turn), name=self._name)
        carrier.reset(token)
        self._tasks.add(self._task)

    def _let_go(self) -> None:
        task = self._task
        if task.done():
            self._tasks.discard(task)
        else:
            task.add_done_callback(self._tasks.discard)
            task.cancel()

    async def _make(self, call: Awaitable[R], turn: int) -> None:
        """Make *call* and give its answer, if it is still wanted."""
        try:
            result = await call
        except asyncio.CancelledError:
            if turn != self._turn or not self._is_waited_for():
                raise
            self._fail(
                BackendUnavailableError("the call was cancelled by the driver", ambiguous=self._writes)
            )
        except Exception as exc:  # noqa: BLE001 -- whatever it is, it is the caller's
            if turn == self._turn:
                self._fail(exc)
        else:
            if turn == self._turn and self._answer is not None and not self._answer.done():
                self._answer.set_result(result)
        finally:
            carrier.set(None)  # Else this and the task would keep each other, and the answer, for a while.

    def _ring(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        late = BackendTimeoutError(f"no answer within {seconds:.3g} seconds", ambiguous=self._writes)
        loop.call_later(TICK_SECONDS, self._fail, late)

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
            self._answer.exception()  # Retrieved: a caller that is cancelled now will not look at it.

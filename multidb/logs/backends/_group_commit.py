"""GroupCommit: one thread that works off calls, all that came while it was busy as one batch."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

C = TypeVar("C")

_MOST_CALLS: Final = 1000


class _Outcome(Protocol):
    @property
    def result(self) -> Any: ...
    @property
    def error(self) -> Exception | None: ...


class GroupCommit(Generic[C]):
    """
    Hands calls to *commit*, in one thread and in batches.

    There is no timer: a batch is whatever waits when the one before is done. A call that is cancelled before
    its batch begins is not made; cancelled later it is made all the same, and takes nobody along.
    """

    def __init__(self, commit: Callable[[Sequence[C]], Sequence[_Outcome]], name: str) -> None:
        """Start the thread, for the running event loop."""
        self._commit = commit
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting: list[tuple[C, asyncio.Future[Any]]] = []
        self._idle = asyncio.Event()
        self._idle.set()

    async def submit(self, call: C) -> Any:
        """Return the result of *call*, or raise its error."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append((call, future))
        if self._idle.is_set():
            self._idle.clear()
            # Not at once: what is called in the same tick belongs to the same batch.
            self._loop.call_soon(self._start)
        return await future

    async def close(self) -> None:
        """Wait for the calls under way, then end the thread."""
        await self._idle.wait()
        await asyncio.to_thread(self._thread.shutdown)

    def abandon(self) -> None:
        """End the thread without the event loop, after the batch that it is at."""
        self._thread.shutdown(cancel_futures=True)

    def _start(self) -> None:
        batch = [pair for pair in self._waiting[:_MOST_CALLS] if not pair[1].done()]
        del self._waiting[:_MOST_CALLS]
        if batch:
            running = self._thread.submit(self._commit, [call for call, _ in batch])
            running.add_done_callback(lambda done: self._done(done, [future for _, future in batch]))
        elif self._waiting:
            self._loop.call_soon(self._start)
        else:
            self._idle.set()

    def _done(self, done: Future[Sequence[_Outcome]], futures: list[asyncio.Future[Any]]) -> None:
        """In the thread: tell the loop. It may be closed, and then there is nobody left to tell."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, done, futures)

    def _deliver(self, done: Future[Sequence[_Outcome]], futures: list[asyncio.Future[Any]]) -> None:
        failure = done.exception()
        outcomes = [] if failure else done.result()
        for i, future in enumerate(futures):
            if future.done():
                continue
            error = failure or outcomes[i].error
            if error is None:
                future.set_result(outcomes[i].result)
            else:
                future.set_exception(error)
        self._start()

"""Threads that work for an event loop: one that groups appends, and the calls for another one."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from multidb.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

_MOST_CALLS: Final = 1000
_MOST_BYTES: Final = 4 * 1024 * 1024


class Worker:
    """One thread, which starts with the first call."""

    def __init__(self, name: str) -> None:
        """Belong to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, name)
        self._unfinished: set[Future[Any]] = set()

    async def run(self, call: Callable[[], T]) -> T:
        """Return what *call* returns. Cancelled, it is made all the same, unless it has not begun."""
        future: asyncio.Future[T] = self._loop.create_future()
        running = self._submit(call)
        running.add_done_callback(lambda done: self.tell(_settle, done, future))
        try:
            return await future
        except asyncio.CancelledError:
            running.cancel()
            raise

    def start(self, call: Callable[[], T], then: Callable[[Future[T]], None]) -> None:
        """Make a *call*, and *then* another one in the event loop."""
        self._submit(call).add_done_callback(lambda done: self.tell(then, done))

    def tell(self, call: Callable[..., None], *args: Any) -> None:
        """In the thread: make a *call* in the event loop. It may be closed, and then there is nobody left to tell."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    async def close(self) -> None:
        """End the thread after what it is at."""
        self._thread.shutdown(wait=False)
        await asyncio.to_thread(self._thread.shutdown)

    def abandon(self, seconds: float) -> set[Future[Any]]:
        """End the thread without the event loop. Return what it is at, if that does not end within *seconds*."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        return wait(set(self._unfinished), seconds).not_done if seconds else set()

    def _submit(self, call: Callable[[], T]) -> Future[T]:
        future = self._thread.submit(call)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future


class Appends:
    """
    Hands records to *commit*: those of one call after the other, all those that came meanwhile as one.

    There is no timer. A call that is cancelled before its turn is not made; cancelled later it is made all the same.
    *on_commit* is called after each, whether its callers still wait or not.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Sequence[bytes]]], Sequence[Exception | None]],
        worker: Worker,
        on_commit: Callable[[], None],
    ) -> None:
        """Belong to the running event loop."""
        self._commit = commit
        self._worker = worker
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Sequence[bytes], int, asyncio.Future[None]]] = []
        self._idle = asyncio.Event()
        self._idle.set()

    async def submit(self, records: Sequence[bytes], size: int) -> None:
        """Return once *records*, of *size* bytes, are committed; raise what became of them otherwise."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((records, size, future))
        if self._idle.is_set():
            self._idle.clear()
            # Not at once: what is called in the same tick belongs to the same sync.
            self._loop.call_soon(self._start)
        await future

    async def drain(self) -> None:
        """Wait for the calls under way."""
        await self._idle.wait()

    def _start(self) -> None:
        calls: list[Sequence[bytes]] = []
        futures: list[asyncio.Future[None]] = []
        taken, left = 0, _MOST_BYTES
        for records, size, future in self._waiting[:_MOST_CALLS]:
            if calls and size > left:
                break
            taken += 1
            if not future.done():
                calls.append(records)
                futures.append(future)
                left -= size
        del self._waiting[:taken]
        if calls:
            try:
                self._worker.start(lambda: self._commit(calls), lambda done: self._deliver(done, futures))
            except RuntimeError:
                _settle_all(futures, [_abandoned() for _ in futures])
                self._start()
        elif self._waiting:
            self._loop.call_soon(self._start)
        else:
            self._idle.set()

    def _deliver(self, done: Future[Sequence[Exception | None]], futures: list[asyncio.Future[None]]) -> None:
        self._on_commit()
        if done.cancelled():
            _settle_all(futures, [_abandoned() for _ in futures])
        elif (failure := done.exception()) is not None:
            _settle_all(futures, [failure] * len(futures))
        else:
            _settle_all(futures, done.result())
        # Not at once: those that go on now, and append again, belong to the next sync.
        self._loop.call_soon(self._start)


def _settle_all(futures: list[asyncio.Future[None]], outcomes: Sequence[BaseException | None]) -> None:
    for future, outcome in zip(futures, outcomes, strict=True):
        if future.done():
            continue
        if outcome is None:
            future.set_result(None)
        else:
            future.set_exception(outcome)


def _abandoned() -> ClosedError:
    return ClosedError("the spool was closed before this was written")


def _settle(done: Future[T], future: asyncio.Future[T]) -> None:
    if future.done():
        return
    if done.cancelled():
        future.cancel()
    elif (failure := done.exception()) is not None:
        future.set_exception(failure)
    else:
        future.set_result(done.result())

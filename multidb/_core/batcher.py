"""Batcher: the calls that are made while a flush is under way become the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar, cast

from multidb._core.carrier import TICK_SECONDS, carrier
from multidb._core.operation import own_copy
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    OverloadedError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Hashable, Iterable, Iterator

    from multidb._core.carrier import Rest

I = TypeVar("I")  # noqa: E741 -- an item, as R is a result
R = TypeVar("R")

_Flush: TypeAlias = Callable[[list[I]], Coroutine[Any, Any, Sequence[R | Exception]]]

_BY_THE_DRIVER: Final = "the call was cancelled by the driver"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one flush takes, how much may wait for the next ones, and how many are under way at once."""

    flush_calls: int = 500
    flush_bytes: int = 1024 * 1024
    queue_calls: int = 10_000
    queue_bytes: int = 64 * 1024 * 1024
    flights: int = 2
    share_calls: int = 32
    """A flush of more than so many leaves one half to another flight."""


class _Call(Generic[I, R]):
    """One caller, with what it wants and where its result goes. It has a *deadline* once the loop came round."""

    __slots__ = ("deadline", "future", "item", "size")

    def __init__(self, item: I, size: int, future: asyncio.Future[R]) -> None:
        self.item = item
        self.size = size
        self.future = future
        self.deadline: float | None = None


class _Flight(Generic[I, R]):
    """A task that flushes, one batch after the other, and the batch that it is at."""

    __slots__ = ("_batcher", "calls", "end", "keys", "rest", "task")

    def __init__(self, batcher: Batcher[I, R], rest: Rest | None = None) -> None:
        self._batcher = batcher
        self.calls: list[_Call[I, R]] = []
        self.keys: set[Hashable] = set()
        self.rest = rest
        """What the first batch is given to instead of a flush."""
        self.task: asyncio.Task[None]
        self.end: float | None = None

    def hand_over(self, rest: Rest, /) -> None:
        """See `Carrier`."""
        self._batcher.hand_over(self, rest)


class _Alone:
    """A call that is flushed in its caller's own task."""

    __slots__ = ("_cancelling", "_is_given_up", "end", "ended", "rest", "task")

    def __init__(self, deadline: float) -> None:
        self.task = cast("asyncio.Task[Any]", asyncio.current_task())
        self.end = deadline
        self.ended: asyncio.Future[None] | None = None
        """Somebody waits for the end."""
        self._cancelling = self.task.cancelling()
        self._is_given_up = False
        self.rest: Rest | None = None
        """What goes on with it since it was handed over."""

    def give_up(self) -> None:
        """Cancel it, as its deadline is over."""
        if self.rest is None:
            self._is_given_up = True
            self.task.cancel()

    def hand_over(self, rest: Rest, /) -> None:
        """See `Carrier`."""
        if not self._is_given_up and self.rest is None:
            self.give_up()
            self.rest = rest

    def was_given_up(self) -> bool:
        """Take a cancellation by one of these back; return whether there was one, and no other."""
        was, self._is_given_up = self._is_given_up, False
        return was and self.task.uncancel() <= self._cancelling


class Batcher(Generic[I, R]):
    """
    Hands items to *flush*, all those together that came while the flush before was under way.

    There is no timer: a flush starts on the next tick. *flush* returns a result for each item in order, or the
    exception that is for its caller alone. Items with the same *key* are flushed in the order in which they
    came, never at the same time. Flushes run in tasks that no caller's cancellation reaches; a caller that is
    cancelled before its flush is left out of it.

    Every caller has its answer within *deadline_seconds* of the loop's next turn: BackendTimeoutError when its
    item was sent, OverloadedError when it was not. *writes*: what was sent may have been applied then.
    *repeatable*: an item may be flushed again after a failure that leaves open whether it was applied.
    *at_once*: a call that is alone, as the one before was, is flushed in its caller's own task, which saves two turns
    of the loop. For what has no order to keep, and ends at once when it is cancelled.
    """

    def __init__(
        self,
        flush: _Flush[I, R],
        *,
        deadline_seconds: float,
        writes: bool,
        repeatable: bool = False,
        at_once: bool = False,
        key: Callable[[I], Hashable] | None = None,
        bounds: Bounds | None = None,
        name: str = "multidb-flush",
    ) -> None:
        """Set how items are flushed; nothing starts before the first call."""
        self._flush = flush
        self._seconds = deadline_seconds
        self._writes = writes
        self._repeatable = repeatable
        self._at_once = at_once
        self._was_alone = False
        self._alone: _Alone | None = None
        self._key = key
        self._bounds = Bounds() if bounds is None else bounds
        self._name = name
        self._queue: deque[_Call[I, R]] = deque()
        self._queued_bytes = 0
        self._waiting: deque[_Call[I, R]] = deque()
        """Those that came when the queue was full, in the order in which they came."""
        self._fresh: list[_Call[I, R]] = []
        """Calls of this turn of the loop, which have no deadline yet."""
        self._flights: set[_Flight[I, R]] = set()
        self._abandoned: set[asyncio.Task[None]] = set()
        self._busy: set[Hashable] = set()
        self._alarm: asyncio.TimerHandle | None = None

    def call(self, item: I, size: int = 0) -> Awaitable[R]:
        """
        Return what gives the result for *item*, which takes *size* bytes.

        To be awaited at once. Where the queue is full it waits its turn. Raises what the flush raised,
        BackendTimeoutError, OverloadedError.
        """
        if self._was_alone and self._at_once and not (self._alone or self._flights or self._fresh):
            return self._flush_alone(item)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        call = _Call(item, size, future)
        if self._has_room():
            self._enqueue(call)
        else:
            self._waiting.append(call)
        self._note(call, loop)
        return future

    async def _flush_alone(self, item: I) -> R:
        loop = asyncio.get_running_loop()
        self._alone = alone = _Alone(loop.time() + self._seconds)
        if self._alarm is None:
            self._alarm = loop.call_at(alone.end, self._ring)
        keys = set() if self._key is None else {self._key(item)}
        self._busy |= keys
        token = carrier.set(alone)
        try:
            (result,) = self._checked(await self._flush([item]), 1)
        except asyncio.CancelledError as exc:
            if alone.was_given_up():
                if alone.rest is None:
                    raise self._late() from exc
                result = await self._in_time(item, alone.rest, alone.end)
            elif _is_cancelled():
                raise
            else:
                raise self._unanswered(_BY_THE_DRIVER) from None
        finally:
            carrier.reset(token)
            alone.was_given_up()  # A driver may have said something else than that it was cancelled.
            self._alone = None
            self._busy -= keys
            if alone.ended is not None and not alone.ended.done():
                alone.ended.set_result(None)
            if self._queue and len(self._flights) < self._bounds.flights:
                self._start()  # They may have waited for the key.
        if isinstance(result, Exception):
            raise result
        return result

    async def _in_time(self, item: I, rest: Rest, end: float) -> R | Exception:
        try:
            async with asyncio.timeout_at(end):
                (result,) = self._checked(await rest([item]), 1)
        except TimeoutError as exc:
            raise self._late() from exc
        return result

    async def drain(self, seconds: float) -> None:
        """Wait up to *seconds* for the calls to be answered, then give the rest up."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (tasks := {flight.task for flight in self._flights} | self._abandoned) and loop.time() < end:
            await asyncio.wait(tasks, timeout=end - loop.time())
        if self._alone is not None:
            self._alone.ended = loop.create_future()
            await asyncio.wait((self._alone.ended,), timeout=end - loop.time())
        for flight in tuple(self._flights):
            _fail(flight.calls, self._unanswered("multidb was closed before an answer came"))
            self._abandon(flight)
        closed = ClosedError("multidb was closed before this call was sent")
        _fail((*self._queue, *self._waiting), closed)
        self._queue.clear()
        self._waiting.clear()
        self._fresh.clear()
        self._queued_bytes = 0
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._abandoned:  # Most end as soon as they are told to.
            await asyncio.sleep(0)

    # The queue

    def _has_room(self) -> bool:
        bounds = self._bounds
        return len(self._queue) < bounds.queue_calls and self._queued_bytes < bounds.queue_bytes

    def _enqueue(self, call: _Call[I, R]) -> None:
        self._queue.append(call)
        self._queued_bytes += call.size

    def _admit(self) -> None:
        """Let in those that wait. Called wherever room is made, so that who comes never finds room before them."""
        while self._waiting and self._has_room():
            self._enqueue(self._waiting.popleft())

    def _note(self, call: _Call[I, R], loop: asyncio.AbstractEventLoop) -> None:
        """See to it that the next turn of the loop begins with this call and all others of this turn."""
        self._fresh.append(call)
        if len(self._fresh) > 1:
            return
        if len(self._flights) < self._bounds.flights:
            self._start()
        else:
            loop.call_soon(self._stamp)

    def _stamp(self) -> None:
        """
        Give the calls of this turn their deadline.

        A turn of the loop in which ten thousand tasks call may take longer than a deadline; it is not the server's.
        """
        if not self._fresh:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._seconds
        for call in self._fresh:
            call.deadline = deadline
        self._fresh.clear()
        if self._alarm is None:
            self._alarm = loop.call_at(deadline, self._ring)

    # Flushing

    def _start(self) -> None:
        self._launch(_Flight(self))

    def _launch(self, flight: _Flight[I, R]) -> None:
        self._flights.add(flight)
        # In a context of its own: what it does is no part of what the caller does that happens to be the first.
        flight.task = asyncio.create_task(self._fly(flight), name=self._name, context=Context())
        flight.task.add_done_callback(partial(self._look_after, flight))

    async def _fly(self, flight: _Flight[I, R]) -> None:
        carrier.set(flight)
        if flight.rest is not None:
            await self._settle(flight, flight.calls, flight.rest)
        # One that was given up ends here, should its driver answer after all.
        while flight in self._flights and self._board(flight):
            await self._settle(flight, flight.calls, self._flush)
        self._land(flight)
        carrier.set(None)  # Else flight and task would keep each other.

    def hand_over(self, flight: _Flight[I, R], rest: Rest) -> None:
        """Give the calls of *flight* to *rest*, in a flight that takes its place."""
        if flight not in self._flights:
            return
        another: _Flight[I, R] = _Flight(self, rest)
        another.keys = flight.keys
        another.calls, flight.calls = flight.calls, []
        self._abandon(flight)
        self._busy |= another.keys
        self._launch(another)

    def _land(self, flight: _Flight[I, R]) -> None:
        if flight in self._flights:
            self._flights.remove(flight)
            self._busy -= flight.keys

    def _look_after(self, flight: _Flight[I, R], task: asyncio.Task[None]) -> None:
        """Answer for a flight that was cancelled, perhaps before it began, as when the loop is being shut down."""
        if not task.cancelled() and task.exception() is None:
            return
        self._land(flight)
        error = self._unanswered("the flush was cancelled")
        error.__cause__ = None if task.cancelled() else task.exception()
        _fail(flight.calls, error)
        self._stamp()
        left = (*self._queue, *self._waiting)
        if len(self._flights) < self._bounds.flights and not all(call.future.done() for call in left):
            self._start()

    def _board(self, flight: _Flight[I, R]) -> bool:
        """Take the next batch out of the queue; return whether there is one."""
        self._stamp()
        self._busy -= flight.keys
        flight.calls, flight.keys = [], set()
        most, bounds = self._bounds.flush_calls, self._bounds
        alone = len(self._flights) < bounds.flights
        if alone and len(self._queue) > bounds.share_calls:
            # One half for the other flight: the program works on one while the server works on the other.
            most = min(most, max(bounds.share_calls, (len(self._queue) + 1) // 2))
        self._take(flight, most)
        self._was_alone = len(flight.calls) == 1 and not self._queue if flight.calls else self._was_alone
        self._admit()
        self._busy |= flight.keys
        if alone and flight.calls and self._queue:
            self._start()
        return bool(flight.calls)

    def _take(self, flight: _Flight[I, R], most: int) -> None:
        """Move up to *most* calls from the queue to *flight*, but those whose key is in another one."""
        queue, bounds, size = self._queue, self._bounds, 0
        held: list[_Call[I, R]] = []
        while queue and len(flight.calls) < most and len(held) < bounds.flush_calls:
            call = queue[0]
            if flight.calls and size + call.size > bounds.flush_bytes:
                break
            queue.popleft()
            if self._key is not None and (key := self._key(call.item)) in self._busy:
                held.append(call)
                continue
            self._queued_bytes -= call.size
            flight.calls.append(call)
            size += call.size
            if self._key is not None:
                flight.keys.add(key)
        queue.extendleft(reversed(held))

    async def _settle(self, flight: _Flight[I, R], calls: Sequence[_Call[I, R]], flush: _Flush[I, R]) -> None:
        """Give *calls* to *flush*. What fails because of one of them is tried again in halves."""
        calls = [call for call in calls if not call.future.done()]
        if not calls or flight not in self._flights:
            return
        flight.end = calls[0].deadline  # Of the first to come, and so of the first to give up.
        try:
            results = self._checked(await flush([call.item for call in calls]), len(calls))
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            _fail(calls, self._unanswered(_BY_THE_DRIVER))
        except Exception as exc:  # noqa: BLE001 -- whatever it is, it is the callers'
            if flight in self._flights:  # Else others answer for it.
                await self._failed(flight, calls, flush, exc)
        else:
            if flight in self._flights:
                _answer(calls, results)

    async def _failed(
        self, flight: _Flight[I, R], calls: Sequence[_Call[I, R]], flush: _Flush[I, R], exc: Exception
    ) -> None:
        if len(calls) == 1 or not self._concerns_items(exc):
            _fail(calls, exc)
            return
        middle = len(calls) // 2
        await self._settle(flight, calls[:middle], flush)
        await self._settle(flight, calls[middle:], flush)

    def _checked(self, results: Sequence[R | Exception], count: int) -> Sequence[R | Exception]:
        if len(results) != count:
            msg = f"the backend answered {len(results)} of {count} calls"
            raise BackendError(msg, ambiguous=self._writes)
        return results

    def _concerns_items(self, exc: Exception) -> bool:
        """Whether *exc* may be due to some of the items only, and the others can be flushed again."""
        if isinstance(exc, BackendError):
            return not exc.retryable and (self._repeatable or not exc.ambiguous)
        # Whatever else it is, some of the items may have been applied before it was met.
        return self._repeatable and not isinstance(exc, ClosedError | ConfigurationError)

    def _unanswered(self, message: str) -> BackendError:
        return BackendUnavailableError(message, ambiguous=self._writes)

    # Deadlines

    def _late(self) -> BackendError:
        return BackendTimeoutError(f"no answer within {self._seconds:g} seconds", ambiguous=self._writes)

    def _ring(self) -> None:
        # An answer may have come while the loop was busy with something else for longer than the deadline.
        self._alarm = asyncio.get_running_loop().call_later(TICK_SECONDS, self._expire)

    def _expire(self) -> None:
        """Answer the callers whose deadline is over; look again when the next one is."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for flight in tuple(self._flights):
            expired = [call for call in flight.calls if _is_over(call, now)]
            _fail(expired, self._late())
            if expired and len(expired) == len(flight.calls):
                self._abandon(flight)
        alone = self._alone
        if alone is not None and alone.end <= now:
            alone.give_up()
        unsent = f"not sent within {self._seconds:g} seconds: too many calls at once; nothing was done"
        _fail(tuple(self._expired(now)), OverloadedError(unsent))
        self._admit()
        if self._queue and len(self._flights) < self._bounds.flights:
            self._start()  # In the place of one that was given up.
        waiting = [calls[0] for calls in (self._queue, self._waiting) if calls]
        calls = [*waiting, *(call for flight in self._flights for call in flight.calls)]
        deadlines = [call.deadline for call in calls if call.deadline is not None and call.deadline > now]
        if alone is not None and alone.end > now:
            deadlines.append(alone.end)
        self._alarm = loop.call_at(min(deadlines), self._ring) if deadlines else None

    def _expired(self, now: float) -> Iterator[_Call[I, R]]:
        """Take those out that nobody got to in time. They stand in the order in which they came."""
        while self._queue and _is_over(self._queue[0], now):
            call = self._queue.popleft()
            self._queued_bytes -= call.size
            yield call
        while self._waiting and _is_over(self._waiting[0], now):
            yield self._waiting.popleft()

    def _abandon(self, flight: _Flight[I, R]) -> None:
        """Cancel a flight without waiting for it: a driver's own cancellation may hang."""
        self._land(flight)
        self._abandoned.add(flight.task)
        flight.task.add_done_callback(self._abandoned.discard)
        flight.task.cancel()


def _is_cancelled() -> bool:
    """Whether somebody cancelled this task; a CancelledError may also come from something that it awaits."""
    return cast("asyncio.Task[Any]", asyncio.current_task()).cancelling() > 0


def _is_over(call: _Call[Any, Any], now: float) -> bool:
    return call.deadline is not None and call.deadline <= now


def _answer(calls: Iterable[_Call[Any, R]], results: Sequence[R | Exception]) -> None:
    for call, result in zip(calls, results, strict=True):
        if isinstance(result, Exception):
            _fail((call,), result)
        elif not call.future.done():
            call.future.set_result(result)


def _fail(calls: Iterable[_Call[Any, Any]], exc: Exception) -> None:
    """Raise *exc* in every caller that still waits, each its own: a raise changes an exception."""
    for call in calls:
        if not call.future.done():
            call.future.set_exception(own_copy(exc))
            call.future.exception()  # Retrieved: a caller that is cancelled now will not look at it.

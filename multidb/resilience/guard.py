"""Guard: what stands before a server, and finds out when it is gone and when it is back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import Context
from enum import Enum
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, runtime_checkable

from multidb._core.carrier import TICK_SECONDS, Carrier, Errand, carrier
from multidb._core.operation import own_copy
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ConfigurationError,
    MultiDBError,
)
from multidb.resilience.breaker import Breaker, BreakerState, counts

if TYPE_CHECKING:
    from multidb.resilience.breaker import BreakerPolicy

R = TypeVar("R")

_log = logging.getLogger("multidb")

# Its own timeouts end it, where a new schema takes long; this one is for what has none.
_OPEN_SECONDS: Final = 3600.0
# A call that ends by itself ends a little before the route gives it up: then it is known why.
_ALL: Final = 0.97
# Who got less than this share of its time, because it waited for others, does not show that the server hangs.
_FAIR: Final = 0.5
_CLOSE_SECONDS: Final = 1.0


@runtime_checkable
class SupportsProbe(Protocol):
    """Optional power of a backend: what a guard needs to stand before its server."""

    async def probe(self) -> None:
        """
        Write something as a call would, durably and on a new connection, that leaves nothing behind.

        It fails where a write would: a server that is read-only or full answers a PING.
        """
        ...

    def reset(self) -> None:
        """Drop every connection, so that calls that hang end, and new ones do not meet what is left of an outage."""
        ...


class Server(Protocol):
    """What is behind a guard."""

    @property
    def is_open(self) -> bool:
        """Whether `open()` has worked."""
        ...

    async def open(self) -> None:
        """Connect, and create what is missing; where it fails it may be tried again."""
        ...

    async def probe(self) -> None:
        """As `SupportsProbe.probe()`."""
        ...

    def reset(self) -> None:
        """As `SupportsProbe.reset()`."""
        ...


class Kind(Enum):
    """What a guard is to make of a call."""

    SPARING = "sparing"
    """A write that can go elsewhere: it leaves some of its time for that, and says how the server fares."""
    WRITE = "write"
    """A write that has no other place to go: it has all of the time, and says how the server fares."""
    SLOW = "slow"
    """A write that may take long by itself: one that fails says only that the server should be looked at."""
    READ = "read"
    """As SLOW, but it changes nothing, and works on a server that refuses writes."""


_TELLING: Final = (Kind.SPARING, Kind.WRITE)


Instead: TypeAlias = Callable[[BackendError, Sequence[Any] | None], Coroutine[Any, Any, Any]]
"""What is done where a call has to be left alone because of an error; the rest is as for `Rest`."""


class _Ticket:
    """A call under way."""

    __slots__ = ("began", "carrier", "due", "instead", "kind", "made")

    def __init__(
        self, given: Carrier, kind: Kind, made: float, due: float, began: float | None, instead: Instead
    ) -> None:
        self.carrier = given
        self.kind = kind
        self.made = made
        self.due = due
        """By the clock of the event loop, as *made*."""
        self.began = began
        """By the clock of the breaker; None: it had too little time to show anything about the server."""
        self.instead = instead

    def end(self, error: BackendError) -> None:
        """Have its callers answered otherwise, or told *error*. The call is not waited for."""
        error.ambiguous = self.kind is not Kind.READ
        self.carrier.hand_over(partial(self.instead, error))


async def _raise(error: BackendError, _: Sequence[Any] | None) -> Any:
    raise error


class Guard:
    """
    Runs the calls on one server as long as it serves, and refuses them at once while it does not.

    A call that hangs is given up in time and never waited for, even where its cancellation hangs: its carrier answers
    in its place. So a call costs no task and no timer of its own: one alarm looks after all of them. As soon as the
    server is known to be gone, so are the others under way. While it is, a task probes it; once the probes are good,
    *recover* is called to give it what it missed, and may raise what its calls raise: then it goes on from there.
    ConfigurationError is never a reason to do without the server. Where the probe of a server that was gone raises it,
    calls raise it, too, until somebody has seen to it.

    *on_change* is called whenever `state`, `answers_reads` or `refusal()` change. Nothing runs before `start()`.
    """

    def __init__(
        self,
        name: str,
        server: Server,
        recover: Callable[[], Awaitable[None]],
        on_change: Callable[[], None],
        *,
        deadline_seconds: float,
        share: float = 0.6,
        policy: BreakerPolicy | None = None,
        now: Callable[[], float] = monotonic,
        seed: int | None = None,
    ) -> None:
        """Set what is guarded. *share* of the time that a sparing call has left is what the server gets."""
        self._name = name
        self._server = server
        self._recover = recover
        self._on_change = on_change
        self._seconds = deadline_seconds
        self._share = share
        self._fair_seconds = _FAIR * deadline_seconds
        self._now = now
        self._new_breaker = partial(Breaker, policy, now=now, on_change=self._changed, seed=seed)
        self._breaker = self._new_breaker()
        self._wrong: ConfigurationError | None = None
        self._running = False
        self._prober: asyncio.Task[None] | None = None
        self._look: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()
        self._under_way: set[_Ticket] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = asyncio.Event()
        self._closed.set()

    @property
    def state(self) -> BreakerState:
        """That of the breaker."""
        return self._breaker.state

    @property
    def last_error(self) -> Exception | None:
        """Why calls do not go to the server, or did not."""
        return self._wrong or self._breaker.last_error

    @property
    def allows(self) -> bool:
        """Whether calls go to the server."""
        return self._breaker.allows

    @property
    def answers_reads(self) -> bool:
        """Whether reads go to the server: it is there, though it may refuse writes."""
        if self._breaker.state is not BreakerState.OPEN:
            return True
        return bool(self._condition()) and self._server.is_open

    @property
    def is_misconfigured(self) -> bool:
        """Whether the server is there, and refuses us."""
        return self._wrong is not None

    def refusal(self) -> MultiDBError:
        """Return what is raised instead of a call."""
        if self._wrong is not None:
            return own_copy(self._wrong)
        error = self._breaker.last_error
        why = type(error).__name__ if error is not None else "an error"
        refusal = BackendUnavailableError(f"the server is away, after {why}; nothing was sent")
        refusal.condition = self._condition()
        return refusal

    def start(self, error: BackendError | None = None) -> None:
        """Begin, also anew; with an *error* as one whose server is away."""
        self._breaker, self._wrong = self._new_breaker(), None
        self._closed = asyncio.Event()  # The loop may be another one.
        self._closed.set()
        self._running = True
        if error is not None:
            self._breaker.trip(error)

    async def wait(self) -> None:
        """Return as soon as calls go to the server."""
        await self._closed.wait()

    def run(
        self, call: Callable[[], Coroutine[Any, Any, R]], kind: Kind, instead: Instead = _raise
    ) -> Coroutine[Any, Any, R]:
        """
        Return what *call* returns.

        Raises what it raises; BackendUnavailableError at once where the server is away, and later where that turns
        out meanwhile; BackendTimeoutError. These two are ambiguous if the call is a write and was made. A call that
        has to be left alone is answered by *instead*, which gets one of these two.
        """
        if not self._breaker.allows and not (kind is Kind.READ and self.answers_reads):
            raise self.refusal()
        return self.attempt(call, kind, instead)

    def attempt(
        self, call: Callable[[], Coroutine[Any, Any, R]], kind: Kind = Kind.SPARING, instead: Instead = _raise
    ) -> Coroutine[Any, Any, R]:
        """Return what *call* returns, as `run()` does, also while calls do not go to the server."""
        given = carrier.get()
        if given is not None:
            return self._watched(given, call, kind, instead)
        errand = Errand[R](f"multidb-{self._name}-call", self._errands, writes=kind is not Kind.READ)
        return errand.run(self._watched(errand, call, kind, instead), self._seconds)

    async def close(self) -> None:
        """End the tasks. Calls under way, and those given up, are not waited for."""
        tasks = self._stop()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)

    async def settle(self, seconds: float) -> None:
        """Wait up to *seconds* for the calls that were given up: with their connections closed they end soon."""
        if self._errands:
            await asyncio.wait(set(self._errands), timeout=seconds)

    def abandon(self) -> None:
        """Let go of everything without the event loop."""
        self._stop()
        self._errands.clear()
        self._under_way.clear()

    def _stop(self) -> list[asyncio.Task[None]]:
        self._running = False
        tasks = [task for task in (self._prober, self._look) if task is not None]
        self._prober = self._look = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        for task in tasks:
            with suppress(RuntimeError):  # The loop is closed.
                task.cancel()
        return tasks

    # One call

    async def _watched(
        self, given: Carrier, call: Callable[[], Coroutine[Any, Any, R]], kind: Kind, instead: Instead
    ) -> R:
        loop = asyncio.get_running_loop()
        made, left = loop.time(), self._seconds
        if given.end is not None and given.end - made < left:
            left = max(0.0, given.end - made)
        due = made + left * (self._share if kind is Kind.SPARING else _ALL)
        began = self._now() if left >= self._fair_seconds else None
        ticket = _Ticket(given, kind, made, due, began, instead)
        under_way = self._under_way
        under_way.add(ticket)
        # One that rings is left alone: calls with hardly any time left would put it off for ever.
        if self._alarm is None or due < self._alarm.when() - TICK_SECONDS:
            self._set_alarm(loop, due)
        try:
            result = await call()
        except Exception as exc:
            if ticket not in under_way:  # It was given up: somebody else answers.
                raise asyncio.CancelledError from exc
            under_way.remove(ticket)
            self._failed(ticket, exc)
            raise
        except asyncio.CancelledError:
            under_way.discard(ticket)
            raise
        if ticket in under_way:
            under_way.remove(ticket)
            if kind in _TELLING:
                self._breaker.succeeded()
        return result

    def _set_alarm(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = loop.call_at(at, self._ring)

    def _ring(self) -> None:
        # An answer may have come while the loop was busy with something else for longer than a call has.
        self._alarm = asyncio.get_running_loop().call_later(TICK_SECONDS, self._expire)

    def _expire(self) -> None:
        """Answer for the calls that took too long; look again when the next one does."""
        self._alarm = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for ticket in [each for each in self._under_way if each.due <= now]:
            if ticket in self._under_way:  # The one before may have ended all of them.
                self._under_way.discard(ticket)
                error = BackendTimeoutError(f"no answer within {ticket.due - ticket.made:.3g} seconds")
                ticket.end(error)
                self._failed(ticket, error)
        if self._under_way:
            self._set_alarm(loop, min(ticket.due for ticket in self._under_way))

    def _failed(self, ticket: _Ticket, error: Exception) -> None:
        if ticket.kind in _TELLING:
            self._breaker.failed(error, began=ticket.began)
        else:
            self._suspect(error)

    async def _bounded(self, call: Coroutine[Any, Any, None], seconds: float | None = None) -> None:
        """Make a *call* that is no program's, in so many *seconds* or the time of a sparing one."""
        errand = Errand[None](f"multidb-{self._name}-call", self._errands, writes=True)
        await errand.run(call, self._share * self._seconds if seconds is None else seconds)

    # Finding out

    def _condition(self) -> str:
        error = self._breaker.last_error
        return error.condition if isinstance(error, BackendError) else ""

    def _changed(self, _: BreakerState, state: BreakerState) -> None:
        if state is BreakerState.CLOSED:
            self._closed.set()
        else:
            self._closed.clear()
        if state is BreakerState.OPEN:
            if not self._condition():
                self._give_up()
            if self._running and self._prober is None:
                self._prober = _start(self._probe_on(), f"multidb-{self._name}-probe")
        self._on_change()

    def _give_up(self) -> None:
        """End the calls under way: the server that they wait for is gone."""
        under_way = [*self._under_way]
        self._under_way.clear()
        for ticket in under_way:
            ticket.end(BackendUnavailableError("the server went away"))
        # Not yet: those that were just woken are to be told that they were given up.
        asyncio.get_running_loop().call_soon(self._server.reset)

    def _suspect(self, error: Exception) -> None:
        """Look at the server, as a slow call failed: that may be its own fault."""
        if self._running and self._look is None and self._breaker.allows and counts(error):
            self._look = _start(self._look_once(), f"multidb-{self._name}-look")

    async def _look_once(self) -> None:
        try:
            await self._bounded(self._server.probe())
        except Exception as exc:  # noqa: BLE001 -- whatever it is, it is about the server
            if counts(exc) and self._running:
                self._breaker.trip(exc)
        finally:
            self._look = None

    async def _probe_on(self) -> None:
        """Probe until calls go to the server again."""
        try:
            while self._breaker.state is not BreakerState.CLOSED:
                await asyncio.sleep(self._breaker.pause())
                error = await self._probed()
                if self._breaker.probed(error):
                    await self._recovered()
        finally:
            if self._prober is asyncio.current_task():
                self._prober = None

    async def _probed(self) -> Exception | None:
        """Probe once; return what went wrong."""
        before = self._wrong, self._condition()
        error: Exception | None = None
        try:
            if self._server.is_open:
                await self._bounded(self._server.probe())
            else:
                await self._bounded(self._server.open(), _OPEN_SECONDS)
        except Exception as exc:  # noqa: BLE001 -- whatever it is, the server is not to be trusted
            error = exc
            if not isinstance(exc, MultiDBError):
                _log.exception("the probe of %s failed", self._name)
        self._wrong = error if isinstance(error, ConfigurationError) else None
        if error is not None:
            self._breaker.last_error = error
        if before != (self._wrong, self._condition()):
            self._on_change()
        return error

    async def _recovered(self) -> None:
        """Give the server what it missed; where that works, calls go to it again."""
        try:
            await self._recover()
        except Exception as exc:  # noqa: BLE001 -- it goes on with probes, whatever it is
            if isinstance(exc, ConfigurationError):
                self._wrong = exc
            elif not isinstance(exc, MultiDBError):
                _log.exception("the recovery of %s failed", self._name)
            self._breaker.trip(exc)
            return
        self._breaker.recovered()


def _start(call: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    # In a context of its own: what it does is no part of the call that happened to fail.
    return asyncio.create_task(call, name=name, context=Context())

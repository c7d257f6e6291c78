"""Failover: a server with a spool beside it, for the backends of any store."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, runtime_checkable

from multidb.errors import BackendError, ClosedError, ConfigurationError
from multidb.instrumentation import Status
from multidb.resilience.breaker import BreakerPolicy, BreakerState
from multidb.resilience.dangers import Dangers
from multidb.resilience.guard import Guard, Kind, SupportsProbe
from multidb.resilience.replay import Replayer
from multidb.resilience.spool import MAX_RECORD_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from multidb.instrumentation import Health
    from multidb.resilience.replay import Outcome
    from multidb.resilience.spool import Spool
    from multidb.resilience.watch import Watch

R = TypeVar("R")
T = TypeVar("T")

_log = logging.getLogger("multidb")

_SETTLE_SECONDS: Final = 0.2


@runtime_checkable
class SupportsHealth(Protocol):
    """Optional power of a backend: it knows how it fares."""

    def health(self) -> Health:
        """Return it at once, without a look at the server."""
        ...


class Part(Protocol):
    """An engine or a backend."""

    async def open(self) -> None:
        """Get ready."""
        ...

    async def close(self) -> None:
        """Let go of what `open()` took; also after one that failed."""
        ...


@dataclass(frozen=True, slots=True)
class FailoverOptions:
    """How a failover behaves."""

    deadline_seconds: float = 2.0
    primary_share: float = 0.6
    """What the server gets of a call's time; the rest is for the spool."""
    starts_degraded: bool = False
    """A server that is away at the start is no error."""
    policy: BreakerPolicy = field(default_factory=BreakerPolicy)


class Primary:
    """A backend and what it stands on, opened and closed together, as often as it takes."""

    def __init__(self, backend: SupportsProbe, *parts: Part) -> None:
        """Set what is opened, in order: *parts*, of which the last is mostly *backend*."""
        self.backend = backend
        self._parts = parts
        self._opened: AsyncExitStack | None = None
        self._is_wanted = False

    @property
    def is_open(self) -> bool:
        """Whether everything is open."""
        return self._opened is not None

    async def open(self) -> None:
        """Open everything, or nothing. Raises as they do, and ClosedError where it is closed meanwhile."""
        self._is_wanted = True
        async with AsyncExitStack() as opened:
            for part in self._parts:
                opened.push_async_callback(part.close)
                await part.open()
            if not self._is_wanted:  # Nobody waits for it any more, and it could not be cancelled.
                raise ClosedError("closed while it was being opened")
            self._opened = opened.pop_all()

    async def close(self) -> None:
        """Close in reverse."""
        self._is_wanted = False
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.aclose()

    def abandon(self) -> None:
        """Let go of everything without the event loop."""
        self._is_wanted = False
        self._opened = None
        for part in reversed(self._parts):
            abandon: Callable[[], None] | None = getattr(part, "abandon", None)
            if abandon is not None:
                abandon()

    async def probe(self) -> None:
        """Write something that leaves nothing behind."""
        await self.backend.probe()

    def reset(self) -> None:
        """Drop every connection."""
        if self.is_open:
            self.backend.reset()


class Failover:
    """
    Runs calls on a server, and keeps in *spool* what cannot get there, until it can.

    *deliver* gives the server records of the spool, each as it was kept, by calls of `attempt()`; see `Replayer`.
    ConfigurationError never leads to the spool.
    """

    def __init__(
        self,
        primary: Primary,
        spool: Spool,
        watch: Watch,
        deliver: Callable[[Sequence[bytes]], Awaitable[Sequence[Outcome]]],
        options: FailoverOptions | None = None,
        **guard_options: Any,
    ) -> None:
        """Open nothing."""
        options = FailoverOptions() if options is None else options
        self._primary = primary
        self._spool = spool
        self._watch = watch
        self._starts_degraded = options.starts_degraded
        self._dangers = Dangers(primary.backend, spool.store, options.deadline_seconds)
        self._replayer = Replayer(spool, watch, deliver, self._update)
        self._guard = Guard(
            spool.store,
            primary,
            self._recover,
            self._update,
            deadline_seconds=options.deadline_seconds,
            share=options.primary_share,
            policy=options.policy,
            **guard_options,
        )
        self._is_open = False
        self._spool_error: BackendError | None = None
        self._kept_after: BackendError | None = None
        """Why the latest record was kept."""

    async def open(self) -> None:
        """
        Open the spool, then the server, which may be away if that was asked for.

        Raises as they do; ConfigurationError where the spool's folder is no place for one.
        """
        away: BackendError | None = None
        async with AsyncExitStack() as opened:
            await self._open_spool()
            opened.push_async_callback(self._spool.close)
            try:
                await self._primary.open()
            except BackendError as exc:
                if not (self._starts_degraded and exc.retryable):
                    raise
                away = exc
            else:
                opened.push_async_callback(self._primary.close)
                await self._dangers.look()
            opened.pop_all()
        self._is_open = True
        self._spool_error = self._kept_after = None
        self._guard.start(away)
        self._replayer.start(self._guard)
        self._update()

    async def close(self) -> None:
        """Stop replaying and close both; what is left in the spool is replayed by the next one."""
        if not self._is_open:
            return
        self._is_open = False
        self._watch.become(Status.CLOSED)
        if pending := self._spool.pending:
            _log.warning("%d records of %s wait on the disk for the next start", pending, self._spool.store)
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._guard.settle, _SETTLE_SECONDS)
            closing.push_async_callback(self._primary.close)
            closing.push_async_callback(self._spool.close)
            closing.push_async_callback(self._guard.close)
            closing.push_async_callback(self._replayer.close)

    def abandon(self) -> None:
        """Let go of everything without the event loop."""
        self._is_open = False
        self._guard.abandon()
        self._replayer.abandon()
        self._spool.abandon()
        self._primary.abandon()

    def run(self, call: Callable[[], Coroutine[Any, Any, R]], kind: Kind) -> Coroutine[Any, Any, R]:
        """Return what *call* returns on the server. Raises as `Guard.run()`."""
        return self._guard.run(call, kind)

    def attempt(self, call: Callable[[], Coroutine[Any, Any, R]]) -> Coroutine[Any, Any, R]:
        """Return what *call* returns on the server, for a replay. Raises as `Guard.attempt()`."""
        return self._guard.attempt(call)

    async def run_or_keep(
        self,
        call: Callable[[], Coroutine[Any, Any, Sequence[R]]],
        items: Sequence[T],
        encode: Callable[[T], bytes],
        kept: R,
    ) -> Sequence[R]:
        """
        Return what *call* returns on the server for *items*, or *kept* for each: then they are in the spool instead.

        What the server cannot take now goes there, as *encode* makes it, whether it may have been applied or not; so
        doing it again has to do no harm. Raises what the spool raises then, and anything else that the server raises.
        """

        async def keep(failure: BackendError, some: Sequence[T] | None = None) -> Sequence[R]:
            wanted = items if some is None else some
            await self._keep([encode(item) for item in wanted], failure)
            return [kept] * len(wanted)

        try:
            return await self._guard.run(call, Kind.SPARING, keep)
        except BackendError as exc:
            if not exc.retryable:
                raise
            return await keep(exc)

    @property
    def pending(self) -> int:
        """How many records are still to be replayed."""
        return self._spool.pending

    def health(self) -> Health:
        """Return how it fares."""
        if not self._is_open:
            return self._watch.health()
        # First: in a forked child this raises, before anything is told to anybody.
        stats = self._spool.stats()
        self._update()
        return replace(self._watch.health(stats), warnings=self._dangers.found)

    async def _recover(self) -> None:
        """Begin to give the server what it missed. It may be another one by now, with other settings."""
        await self._dangers.look()
        await self._replayer.begin()

    async def _open_spool(self) -> None:
        try:
            await self._spool.open()
        except ConfigurationError as exc:
            hint = "name another place by MULTIDB_SPOOL_DIR, or do without by MULTIDB_FALLBACK=off"
            raise ConfigurationError(f"{exc}; {hint}") from exc

    async def _keep(self, records: Sequence[bytes], failure: BackendError) -> None:
        if any(len(record) > MAX_RECORD_BYTES for record in records):
            msg = f"too large for the spool ({MAX_RECORD_BYTES:,} bytes), and the server is away"
            raise BackendError(msg, ambiguous=failure.ambiguous) from failure
        try:
            await self._spool.append(records)
        except BackendError as exc:
            self._spool_error = exc
            exc.ambiguous = exc.ambiguous or failure.ambiguous
            raise
        else:
            self._spool_error, self._kept_after = None, failure
        finally:
            self._update()

    def _update(self) -> None:
        """See how it fares."""
        if not self._is_open:
            return
        guard = self._guard
        if guard.state is BreakerState.OPEN:
            self._watch.become(self._away(), self._spool_error or guard.last_error)
        elif guard.state is BreakerState.RECOVERING:
            self._watch.become(Status.RECOVERING, guard.last_error)
        elif self._spool.pending:
            self._watch.become(Status.RECOVERING, self._kept_after)
        else:
            self._spool_error = self._kept_after = None
            self._watch.become(Status.UP)

    def _away(self) -> Status:
        if self._guard.is_misconfigured or self._spool_error is not None:
            return Status.DOWN
        is_read_only = getattr(self._guard.last_error, "condition", "") == "read_only"
        return Status.READ_ONLY if is_read_only else Status.DEGRADED

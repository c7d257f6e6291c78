"""Route: every backend call of a store goes through here, under one deadline and in front of the hooks."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from multidb._core.batcher import Batcher
from multidb._core.carrier import Errand
from multidb.errors import BackendError, BackendTimeoutError
from multidb.instrumentation import OperationDetails, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
    from typing import Any

    from multidb._core.batcher import Bounds
    from multidb._core.lifecycle import Lifecycle
    from multidb._core.operation import Operation
    from multidb.instrumentation import Hook

_log = logging.getLogger("multidb")


class _Named(Protocol):
    @property
    def name(self) -> str: ...


B = TypeVar("B", bound=_Named)
I = TypeVar("I")  # noqa: E741 -- an item, as R is a result
R = TypeVar("R")


class Route(Generic[B]):
    """
    Runs the calls of one store on its backend.

    *deadline_seconds* None: the backend works in process, or its engine ends every call in time and lets calls
    share round trips by itself. Its calls run at once, without more ado. *prompt*: a call that is cancelled ends at
    once, whatever the server does.
    """

    def __init__(
        self,
        backend: B,
        lifecycle: Lifecycle,
        *,
        deadline_seconds: float | None,
        hooks: Sequence[Hook] = (),
        bounds: Bounds | None = None,
        prompt: bool = False,
    ) -> None:
        """Set the backend and what surrounds its calls."""
        self.backend = backend
        self.deadline_seconds = deadline_seconds
        self.bounds = bounds
        self.prompt = prompt
        self.check = lifecycle.check
        self._hooks = tuple(hooks)
        self._running: set[asyncio.Task[Any]] = set()
        self._batchers: list[Batcher[Any, Any]] = []

    async def run(
        self, operation: Operation, call: Callable[[B], Awaitable[R]], *, bounded: bool = True
    ) -> R:
        """
        Return what *call* returns on the backend.

        Raises ClosedError unless the MultiDB is open, BackendTimeoutError past the deadline, and what the backend
        raises, with store, backend and operation filled in. Cancelling it cancels the call; a write may have been
        applied all the same. Not *bounded*: the call ends in time by itself.
        """
        self.check()
        started = perf_counter() if self._hooks else 0.0
        try:
            if not bounded or self.deadline_seconds is None:
                result = await call(self.backend)
            else:
                result = await self._bounded(operation, call(self.backend), self.deadline_seconds)
        except BaseException as exc:
            if isinstance(exc, BackendError):
                exc.store, exc.backend, exc.operation = operation.store, self.backend.name, operation.name
            if self._hooks:
                self._tell(operation, exc, perf_counter() - started)
            raise
        if self._hooks:
            self._tell(operation, None, perf_counter() - started)
        return result

    def batched(
        self,
        flush: Callable[[B, list[I]], Coroutine[Any, Any, Sequence[R | Exception]]],
        *,
        writes: bool = False,
        repeatable: bool = False,
        at_once: bool = False,
        key: Callable[[I], Hashable] | None = None,
    ) -> Batched[B, I, R]:
        """
        Return what runs calls of one kind that share round trips: *flush* gets the items of several.

        It returns a result for each, or the exception that is for its caller alone. The rest is as for `Batcher`; a
        backend that is not prompt does nothing *at_once*.
        """
        batched = Batched(self, flush)
        if self.deadline_seconds is not None:
            batched.batcher = Batcher(
                lambda items: flush(self.backend, items),
                deadline_seconds=self.deadline_seconds,
                writes=writes,
                repeatable=repeatable or not writes,
                at_once=at_once and self.prompt,
                key=key,
                bounds=self.bounds,
            )
            self._batchers.append(batched.batcher)
        return batched

    def _bounded(self, operation: Operation, call: Awaitable[R], seconds: float) -> Coroutine[Any, Any, R]:
        name = f"multidb-{operation.store}-{operation.name}"
        return Errand[R](name, self._running, writes=operation.writes).run(call, seconds)

    async def drain(self, seconds: float) -> None:
        """Wait up to *seconds* for the calls under way, and those given up on, to end."""
        drains: list[Awaitable[Any]] = [batcher.drain(seconds) for batcher in self._batchers]
        if self._running:
            drains.append(asyncio.wait(set(self._running), timeout=seconds))
        await asyncio.gather(*drains)

    def _tell(self, operation: Operation, error: BaseException | None, duration_seconds: float) -> None:
        details = OperationDetails(
            store=operation.store,
            backend=self.backend.name,
            operation=operation.name,
            writes=operation.writes,
            outcome=_outcome(error),
            duration_seconds=duration_seconds,
            error=None
            if error is None or isinstance(error, asyncio.CancelledError)
            else type(error).__name__,
        )
        for hook in self._hooks:
            try:
                hook.on_operation(details)
            except Exception:  # noqa: BLE001 -- whatever a hook does, the call is not to suffer
                _log.exception("a hook failed on %s.%s", operation.store, operation.name)


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return "ok"
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return "timeout" if isinstance(error, BackendTimeoutError) else "error"


class Batched(Generic[B, I, R]):
    """Runs calls of one kind on the backend of a route, several in one round trip. Made by `Route.batched()`."""

    def __init__(
        self, route: Route[B], flush: Callable[[B, list[I]], Coroutine[Any, Any, Sequence[R | Exception]]]
    ) -> None:
        """Run each call alone, until there is a *batcher*."""
        self.batcher: Batcher[I, R] | None = None
        self._route = route
        self._flush = flush

    def run(self, operation: Operation, item: I, size: int = 0) -> Coroutine[Any, Any, R]:
        """Return what becomes of *item*, of *size* bytes; raise as `Route.run()`, and OverloadedError."""
        batcher = self.batcher
        if batcher is None:
            return self._route.run(operation, lambda backend: self._alone(backend, item))
        return self._route.run(operation, lambda _: batcher.call(item, size), bounded=False)

    async def _alone(self, backend: B, item: I) -> R:
        (result,) = await self._flush(backend, [item])
        if isinstance(result, Exception):
            raise result
        return result

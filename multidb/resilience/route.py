"""Route: every backend call of a store goes through here, under one deadline and in front of the hooks."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from multidb.errors import BackendError, BackendTimeoutError, BackendUnavailableError, MultiDBError
from multidb.instrumentation import OperationDetails, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from multidb._core.lifecycle import Lifecycle
    from multidb._core.operation import Operation
    from multidb.instrumentation import Hook

_log = logging.getLogger("multidb")


class _Named(Protocol):
    @property
    def name(self) -> str: ...


B = TypeVar("B", bound=_Named)
R = TypeVar("R")


class Route(Generic[B]):
    """
    Runs the calls of one store on its backend.

    *deadline_seconds* None: the backend works in process and cannot hang, so its calls run without one.
    """

    def __init__(
        self, backend: B, lifecycle: Lifecycle, *, deadline_seconds: float | None, hooks: Sequence[Hook] = ()
    ) -> None:
        """Set the backend and what surrounds its calls."""
        self.backend = backend
        self._lifecycle = lifecycle
        self._deadline_seconds = deadline_seconds
        self._hooks = tuple(hooks)
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, operation: Operation, call: Callable[[B], Coroutine[Any, Any, R]]) -> R:
        """
        Return what *call* returns on the backend.

        Raises ClosedError unless the MultiDB is open, BackendTimeoutError past the deadline, and what the backend
        raises, with store, backend and operation filled in. Cancelling it cancels the call; a write may have been
        applied all the same.
        """
        self._lifecycle.check()
        started = perf_counter()
        outcome: Outcome = "ok"
        error: str | None = None
        try:
            if self._deadline_seconds is None:
                return await call(self.backend)
            return await self._bounded(operation, call(self.backend), self._deadline_seconds)
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except MultiDBError as exc:
            outcome = "timeout" if isinstance(exc, BackendTimeoutError) else "error"
            error = type(exc).__name__
            if isinstance(exc, BackendError):
                exc.store, exc.backend, exc.operation = operation.store, self.backend.name, operation.name
            raise
        except Exception as exc:
            outcome, error = "error", type(exc).__name__
            raise
        finally:
            if self._hooks:
                self._tell(operation, outcome, error, perf_counter() - started)

    async def _bounded(self, operation: Operation, call: Coroutine[Any, Any, R], seconds: float) -> R:
        # Not asyncio.timeout(): a driver whose own cancellation hangs (asyncpg on a stopped server) would hang with it.
        task = asyncio.create_task(call, name=f"multidb-{operation.store}-{operation.name}")
        self._running.add(task)
        try:
            await asyncio.wait((task,), timeout=seconds)
        except asyncio.CancelledError:
            self._abandon(task)
            raise
        if task.done():
            self._running.discard(task)
            if task.cancelled():  # By something below, as nobody cancelled this call.
                msg = "the call was cancelled by the driver"
                raise BackendUnavailableError(msg, ambiguous=operation.writes)
            return task.result()
        self._abandon(task)
        msg = f"no answer within {seconds:g} seconds"
        raise BackendTimeoutError(msg, ambiguous=operation.writes)

    def _abandon(self, task: asyncio.Task[Any]) -> None:
        """Cancel *task* without waiting for it, and take note of how it ends so that asyncio does not complain."""
        task.add_done_callback(self._forget)
        task.cancel()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()

    async def drain(self, seconds: float) -> None:
        """Wait up to *seconds* for the calls under way, and those given up on, to end."""
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)

    def _tell(
        self, operation: Operation, outcome: Outcome, error: str | None, duration_seconds: float
    ) -> None:
        details = OperationDetails(
            store=operation.store,
            backend=self.backend.name,
            operation=operation.name,
            writes=operation.writes,
            outcome=outcome,
            duration_seconds=duration_seconds,
            error=error,
        )
        for hook in self._hooks:
            try:
                hook.on_operation(details)
            except Exception:  # noqa: BLE001 -- whatever a hook does, the call is not to suffer
                _log.exception("a hook failed on %s.%s", operation.store, operation.name)

"""The hook protocol, and the hook that writes to the standard library's logging."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from multidb.instrumentation._health import ReplayDetails, SetAsideDetails, TransitionDetails

Outcome: TypeAlias = Literal["ok", "error", "timeout", "cancelled"]


@dataclass(frozen=True, slots=True)
class OperationDetails:
    """One finished backend call. Holds no user data: every field has few possible values, save the duration."""

    store: str
    backend: str
    operation: str
    writes: bool
    outcome: Outcome
    duration_seconds: float
    error: str | None = None
    """The class name of the exception, where there was one."""


class Hook(Protocol):
    """Is told of every backend call after it ended. Must return quickly; what it raises is logged and ignored."""

    def on_operation(self, details: OperationDetails, /) -> None:
        """Take note of a finished call."""
        ...


@runtime_checkable
class SupportsTransition(Protocol):
    """Optional for a hook: is told when a store comes into another status."""

    def on_transition(self, details: TransitionDetails, /) -> None:
        """Take note of a new status."""
        ...


@runtime_checkable
class SupportsReplay(Protocol):
    """Optional for a hook: is told of every batch that is replayed to a server."""

    def on_replay(self, details: ReplayDetails, /) -> None:
        """Take note of a replayed batch."""
        ...


@runtime_checkable
class SupportsSetAside(Protocol):
    """Optional for a hook: is told of every record that is set aside."""

    def on_set_aside(self, details: SetAsideDetails, /) -> None:
        """Take note of a record that is set aside."""
        ...


class LoggingHook:
    """Writes failed calls, and calls slower than *slow_seconds*, to the logger `multidb`."""

    def __init__(self, *, slow_seconds: float = 0.5, logger: logging.Logger | None = None) -> None:
        """Set what counts as slow."""
        self._slow_seconds = slow_seconds
        self._logger = logger or logging.getLogger("multidb")

    def on_operation(self, details: OperationDetails, /) -> None:
        """Write a line where the call failed or was slow."""
        if details.outcome in ("error", "timeout"):
            self._write(logging.WARNING, details)
        elif details.duration_seconds >= self._slow_seconds:
            self._write(logging.INFO, details)

    def _write(self, level: int, details: OperationDetails) -> None:
        self._logger.log(
            level,
            "%s.%s on %s: %s in %.3f s",
            details.store,
            details.operation,
            details.backend,
            details.error or details.outcome,
            details.duration_seconds,
        )

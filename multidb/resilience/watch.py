"""Watch: how a store fares, told to the hooks and the log whenever that changes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from multidb._core.clock import utc_now
from multidb.instrumentation import (
    Health,
    ReplayDetails,
    SetAsideDetails,
    Status,
    SupportsReplay,
    SupportsSetAside,
    SupportsTransition,
    TransitionDetails,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from multidb._core.clock import Clock
    from multidb.instrumentation import Hook
    from multidb.resilience.spool import SpoolStats

H = TypeVar("H")

_log = logging.getLogger("multidb")


class Watch:
    """What is known of one store on one backend."""

    def __init__(self, store: str, backend: str, clock: Clock, hooks: Sequence[Hook] = ()) -> None:
        """Start CLOSED."""
        self.status = Status.CLOSED
        self.reason: str | None = None
        self.duplicates = 0
        self._store = store
        self._backend = backend
        self._clock = clock
        self._since = utc_now(clock)
        self._hooks = tuple(hooks)

    def become(self, status: Status, error: BaseException | None = None) -> None:
        """Be in *status*, because of *error*."""
        before, reason = self.status, None if error is None else type(error).__name__
        self.reason = reason
        if before is status:
            return
        self.status, self._since = status, utc_now(self._clock)
        details = TransitionDetails(self._store, self._backend, before, status, reason)
        if status is not Status.CLOSED and {before, status} != {Status.CLOSED, Status.UP}:
            level = logging.INFO if status is Status.UP else logging.WARNING
            why = f" ({reason})" if reason else ""
            was = before.value
            _log.log(level, "%s on %s: %s, was %s%s", self._store, self._backend, status.value, was, why)
        self._tell(
            (hook for hook in self._hooks if isinstance(hook, SupportsTransition)),
            lambda hook: hook.on_transition(details),
        )

    def replayed(
        self, records: int, duplicates: int, set_aside: int, backlog: int, duration_seconds: float
    ) -> None:
        """Take note of a replayed batch."""
        self.duplicates += duplicates
        details = ReplayDetails(
            self._store, self._backend, records, duplicates, set_aside, backlog, duration_seconds
        )
        self._tell(
            (hook for hook in self._hooks if isinstance(hook, SupportsReplay)),
            lambda hook: hook.on_replay(details),
        )

    def set_aside(self, reason: str) -> None:
        """Take note of a record that is set aside."""
        details = SetAsideDetails(self._store, self._backend, reason)
        self._tell(
            (hook for hook in self._hooks if isinstance(hook, SupportsSetAside)),
            lambda hook: hook.on_set_aside(details),
        )

    def health(self, stats: SpoolStats | None = None) -> Health:
        """Return how it fares; *stats* are those of its spool."""
        health = Health(
            self._store, self._backend, self.status, self._since, self.reason, duplicates=self.duplicates
        )
        if stats is None:
            return health
        return Health(
            *(health.store, health.backend, health.status, health.since, health.reason),
            backlog_records=stats.records,
            backlog_bytes=stats.bytes if stats.records else 0,
            backlog_oldest_seconds=stats.oldest_seconds,
            backlog_is_high=stats.records > 0 and stats.is_high,
            rejected=stats.rejected,
            duplicates=self.duplicates,
        )

    def _tell(self, hooks: Iterable[H], call: Callable[[H], None]) -> None:
        for hook in hooks:
            try:
                call(hook)
            except Exception:  # noqa: BLE001 -- whatever a hook does, the store is not to suffer
                _log.exception("a hook of %s failed", self._store)

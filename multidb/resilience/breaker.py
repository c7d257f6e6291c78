"""Breaker: whether calls still go to a server, and how long to leave it alone when they do not."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Final

from multidb.errors import BackendError, BackendTimeoutError, BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

_GROWTH: Final = 3.0
_SPANS: Final = 100


class BreakerState(Enum):
    """CLOSED: calls go to the server. OPEN: they do not. RECOVERING: it answers again, and gets what it missed."""

    CLOSED = "closed"
    OPEN = "open"
    RECOVERING = "recovering"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a breaker opens, and how it finds its way back. Seconds, calls, a share of calls."""

    failures: int = 3
    """So many failures in a row open it: enough for a bot that sees a message a second."""
    window_seconds: float = 10.0
    window_calls: int = 10
    window_share: float = 0.5
    """Among at least *window_calls* of the last *window_seconds*, this share of failures opens it, too."""
    probe_seconds: float = 0.25
    probe_max_seconds: float = 1.0
    """The first pause before a probe, and the longest one: about as long as a server is back before it is used."""
    probe_successes: int = 2
    flap_seconds: float = 60.0
    flap_max_seconds: float = 15.0
    """Opening again so soon after it closed doubles the first pause, up to this."""


@dataclass(slots=True)
class _Span:
    """How the calls of some time went: a thousand a second are not kept one by one."""

    end: float
    calls: int = 0
    failed: int = 0


class Breaker:
    """
    Counts how the calls on one server go.

    It opens after *failures* in a row, by a share of failures among many calls, or at once where the server
    definitely refuses to serve, or does not answer while it answers nobody else either: others queue behind a call
    that hangs, and their deadlines come nearer. Only unavailable and timeout count, and a server that is full: a
    conflict, a bad value or an empty pool of our own say nothing about the server. It does not close by itself:
    whoever probes the server says so.
    """

    def __init__(
        self,
        policy: BreakerPolicy | None = None,
        *,
        now: Callable[[], float] = monotonic,
        on_change: Callable[[BreakerState, BreakerState], None] | None = None,
        seed: int | None = None,
    ) -> None:
        """Start CLOSED. *on_change* is told the state before and the new one."""
        self.state = BreakerState.CLOSED
        self.since = now()
        """When it came into its state, by *now*."""
        self.last_error: Exception | None = None
        """The failure that opened it last, or the latest one since."""
        self._policy = BreakerPolicy() if policy is None else policy
        self._now = now
        self._on_change = on_change
        self._random = random.Random(seed)  # noqa: S311 -- only to spread probes
        self._in_a_row = 0
        self._succeeded_at = self.since
        self._spans: deque[_Span] = deque()
        self._closed_at: float | None = None
        self._hold = self._policy.probe_seconds
        self._pause = self._hold
        self._good_probes = 0

    @property
    def allows(self) -> bool:
        """Whether calls go to the server."""
        return self.state is BreakerState.CLOSED

    def succeeded(self) -> None:
        """Take note of a call that the server answered, if only with a refusal of what was asked."""
        self._in_a_row = 0
        self._succeeded_at = self._now()
        if self.state is BreakerState.CLOSED:
            self._note(self._succeeded_at)

    def failed(self, error: Exception, *, began: float | None = None) -> None:
        """Take note of a call that *began* then, by the clock of this breaker, and ended in *error*."""
        if not counts(error):
            if not isinstance(error, BackendError) or not error.retryable:
                self.succeeded()
            return
        if self.state is not BreakerState.CLOSED:
            if self.state is BreakerState.RECOVERING:
                self.trip(error)
            return  # While it is open, those that fail late have nothing new to say.
        self._in_a_row += 1
        self._note(self._now(), failed=1)
        if (
            _is_definite(error)
            or self._hangs(error, began)
            or self._in_a_row >= self._policy.failures
            or self._mostly_fails()
        ):
            self.trip(error)

    def trip(self, error: Exception) -> None:
        """Open, or stay open, because of *error*."""
        self.last_error = error
        if self.state is BreakerState.RECOVERING:
            # What the probe says is not what the calls meet: this is no better than a probe that failed.
            self._good_probes = 0
            self._become(BreakerState.OPEN)
        elif self.state is BreakerState.CLOSED:
            self._open()

    def pause(self) -> float:
        """Return how many seconds to wait before the next probe: more each time, and not the same for everybody."""
        most = max(self._hold, self._policy.probe_max_seconds)
        seconds = min(self._random.uniform(self._hold, max(self._hold, self._pause)), most)
        self._pause = min(seconds * _GROWTH, most)
        return self._hold if self._good_probes else seconds

    def probed(self, error: Exception | None = None) -> bool:
        """Take note of a probe and its *error*; return whether the server is trusted again, and RECOVERING begins."""
        if error is not None:
            self._good_probes = 0
            self.last_error = error
            return False
        self._good_probes += 1
        if self.state is BreakerState.OPEN and self._good_probes >= self._policy.probe_successes:
            self._become(BreakerState.RECOVERING)
        return self.state is BreakerState.RECOVERING

    def recovered(self) -> None:
        """Let calls go to the server again: it has got what it missed, or enough of it to be trusted."""
        self._in_a_row = 0
        self._spans.clear()
        self._closed_at = self._succeeded_at = self._now()
        self._become(BreakerState.CLOSED)

    def _open(self) -> None:
        policy, now = self._policy, self._now()
        soon = self._closed_at is not None and now - self._closed_at < policy.flap_seconds
        self._hold = min(self._hold * 2, policy.flap_max_seconds) if soon else policy.probe_seconds
        self._pause = self._hold
        self._good_probes = 0
        self._become(BreakerState.OPEN)

    def _become(self, state: BreakerState) -> None:
        before, self.state, self.since = self.state, state, self._now()
        if self._on_change is not None and before is not state:
            self._on_change(before, state)

    def _note(self, now: float, *, failed: int = 0) -> None:
        spans = self._spans
        if not spans or now >= spans[-1].end:
            begin = now - self._policy.window_seconds
            while spans and spans[0].end <= begin:
                spans.popleft()
            spans.append(_Span(now + self._policy.window_seconds / _SPANS))
        span = spans[-1]
        span.calls += 1
        span.failed += failed

    def _mostly_fails(self) -> bool:
        calls = sum(span.calls for span in self._spans)
        failed = sum(span.failed for span in self._spans)
        return calls >= self._policy.window_calls and failed >= self._policy.window_share * calls

    def _hangs(self, error: Exception, began: float | None) -> bool:
        unanswered = isinstance(error, BackendTimeoutError) and error.ambiguous
        return unanswered and began is not None and self._succeeded_at <= began


def counts(error: Exception) -> bool:
    """Return whether *error* says that the server does not serve."""
    return isinstance(error, BackendUnavailableError | BackendTimeoutError) or (
        isinstance(error, BackendError) and bool(error.condition)
    )


def _is_definite(error: Exception) -> bool:
    """Return whether the server refused to serve, in so many words or by refusing to be connected to."""
    if not isinstance(error, BackendError) or error.ambiguous:
        return False
    return isinstance(error, BackendUnavailableError) or bool(error.condition)

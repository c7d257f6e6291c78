"""A clock that a test moves by hand."""

from __future__ import annotations

from datetime import UTC, datetime


class ManualClock:
    """
    A clock that stands still until `advance()` moves it.

    It starts at *start*, an aware datetime; without one at 2026-01-01 00:00 UTC, so that every day's test
    is the same.
    """

    def __init__(self, start: datetime | None = None) -> None:
        """Set the clock to *start*."""
        begin = start or datetime(2026, 1, 1, tzinfo=UTC)
        if begin.tzinfo is None:
            msg = "start: naive datetime; pass an aware one, such as datetime.now(UTC)"
            raise ValueError(msg)
        self._time = begin.timestamp()

    def time(self) -> float:
        """Return the seconds since 1970-01-01 UTC."""
        return self._time

    def advance(self, seconds: float) -> None:
        """Move the clock by *seconds*; a negative number sets it back, as an administrator may."""
        self._time += seconds

"""Where multidb reads the time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The wall clock of a MultiDB; tests pass one that they move by hand."""

    def time(self) -> float:
        """Return the seconds since 1970-01-01 UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    time = staticmethod(time.time)


def utc_now(clock: Clock) -> datetime:
    """Return the time of *clock* as an aware UTC datetime, to the microsecond."""
    return datetime.fromtimestamp(clock.time(), UTC)

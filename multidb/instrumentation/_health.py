"""How a store fares, and what hooks are told when that changes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


class Status(Enum):
    """How a store fares."""

    UP = "up"
    """Everything goes where it belongs."""
    DEGRADED = "degraded"
    """The server is away: what can be kept on the local disk is kept there."""
    RECOVERING = "recovering"
    """The server is back, or was never away for all calls, and gets what is kept on the local disk."""
    READ_ONLY = "read_only"
    """The server answers and refuses writes: as DEGRADED, but reads work."""
    DOWN = "down"
    """Writes fail: the server cannot be used, and there is no other place for them."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Health:
    """How one store fares at the moment. Holds no user data, no URL and no text of a server."""

    store: str
    backend: str
    status: Status
    since: datetime
    """Aware UTC: when it came into its status."""
    reason: str | None = None
    """The class of the error that brought it there, unless it is UP or CLOSED."""
    backlog_records: int = 0
    """How many records wait on the local disk for the server."""
    backlog_bytes: int = 0
    backlog_oldest_seconds: float | None = None
    backlog_is_high: bool = False
    """Whether it takes most of the room that it may take."""
    rejected: int = 0
    """How many records are set aside in the spool for somebody to look at."""
    duplicates: int = 0
    """How many replayed records the server had already, since this MultiDB was opened."""
    warnings: tuple[str, ...] = ()
    """What about the settings of the server endangers what it acknowledged, as far as it tells; it may be UP."""


@dataclass(frozen=True, slots=True)
class TransitionDetails:
    """A store that came from one status into another one."""

    store: str
    backend: str
    before: Status
    after: Status
    reason: str | None
    """The class of the error that led there, where there is one."""


@dataclass(frozen=True, slots=True)
class ReplayDetails:
    """A batch of records that a server got after all."""

    store: str
    backend: str
    records: int
    """How many there were, with the duplicates and those set aside."""
    duplicates: int
    """How many of them it had already: an answer was lost, or a replay was cut short. They are stored once."""
    set_aside: int
    backlog_records: int
    """How many still wait."""
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class SetAsideDetails:
    """A record that is out of the way of the others, in the spool's folder `rejected`."""

    store: str
    backend: str
    reason: str
    """Quotes no data."""

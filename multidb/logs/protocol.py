"""What a log backend has to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Final, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from multidb.logs._records import Event, MessageStats, Record, Sale, SaleStatus, Session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

R = TypeVar("R", bound=Record)

Bucket: TypeAlias = Literal["minute", "hour", "day", "week"]
BUCKETS: Final[Mapping[Bucket, timedelta]] = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
}
"""Buckets start at whole multiples of their width counted from Monday, 1970-01-05 00:00 UTC."""


class Appended(Enum):
    """What became of one entry."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    """The id was there already, with the same digest: nothing was written, and that is right."""
    CONFLICT = "conflict"
    """The id was there already, with another digest: nothing was written."""
    SPOOLED = "spooled"
    """It is durable on the local disk, and will be stored when the server is back. Only failover says so."""


class Entry(NamedTuple, Generic[R]):
    """
    A record on its way in. *context* is the canonical JSON of its context.

    *digest* is 16 bytes over its content but the id and the time, so that a retry is the same also where multidb fills
    in the time.
    """

    record: R
    context: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Query(Generic[R]):
    """Which records of a kind: those that fulfil every condition."""

    kind: type[R]
    equal: Mapping[str, str] = field(default_factory=dict)
    """Field name to value: `user_id`, `event_type`, `level`, `product_type`, `status`, `role`, `conversation_id`."""
    since: datetime | None = None
    """Inclusive."""
    until: datetime | None = None
    """Exclusive."""
    after: tuple[datetime, UUID] | None = None
    """Only what comes after (timestamp, id) in the order newest first, that is, what is smaller."""
    keyword: str | None = None
    """Events only: a folded text that the folded message or the folded event type contains."""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class SessionTouch:
    """A sign of life. *context* is canonical JSON that replaces the stored context; None keeps it."""

    user_id: str
    session_id: str
    at: datetime
    expires_at: datetime
    context: bytes | None


class LogBackend(Protocol):
    """
    Append-only storage for events, sales and messages, and for sessions.

    Gets arguments already checked. Raises only `multidb.errors.BackendError` and its children, and where it says so
    ConflictError. Times are aware UTC datetimes, kept to the microsecond.
    """

    @property
    def name(self) -> str:
        """A short constant name for metrics and errors, such as `postgresql`."""
        ...

    async def open(self) -> None:
        """Create or upgrade what is missing. Called once, after its engine is open. May raise ConfigurationError."""
        ...

    async def close(self) -> None:
        """Release what `open()` took. Called once, before its engine closes."""
        ...

    async def append(self, entries: Sequence[Entry[R]], /) -> Sequence[Appended]:
        """
        Store *entries*, all of one kind, in one round trip; return what became of each, in order.

        An id stored before is never stored again: retries and replay depend on it. That goes for an id that comes twice
        in *entries*, too. A conflict does not keep the other entries out.
        """
        ...

    async def query(self, query: Query[R], /) -> list[R]:
        """Return the first `query.limit` matching records, newest first by (timestamp, id)."""
        ...

    async def query_all(self, queries: Sequence[Query[R]], /) -> Sequence[list[R]]:
        """
        Return what `query()` returns for each of *queries*, all of one kind and without a keyword, in their order.

        In one round trip where the backend can.
        """
        ...

    async def count(self, query: Query[R], by: str | None = None, /) -> dict[str, int]:
        """Count the matching records by the field *by*; without one, under the key "" . Ignores `after` and `limit`."""
        ...

    async def histogram(self, query: Query[R], bucket: Bucket, /) -> dict[datetime, int]:
        """Count the matching records by the start of their *bucket*, oldest first; empty buckets are left out."""
        ...

    async def delete(self, query: Query[R], /) -> int:
        """Delete the matching records; return how many. Ignores `after` and `limit`. Never needs a keyword."""
        ...

    async def set_sale_status(
        self, sale_id: UUID, status: SaleStatus, allowed_from: Sequence[SaleStatus], /
    ) -> Sale | None:
        """
        Give a sale a new status in one atomic step; return the sale as it is now, or None when there is none.

        Raises ConflictError when its status is none of *allowed_from*, with the sale unchanged; a sale that already
        has *status* is returned as it is.
        """
        ...

    async def message_stats(self, query: Query[R], /) -> MessageStats:
        """Aggregate the matching messages where they are kept. Ignores `after` and `limit`."""
        ...

    async def touch_sessions(self, touches: Sequence[SessionTouch], /) -> list[Session]:
        """
        Start or continue sessions, keyed by (user_id, session_id); return each as it is now.

        A stored session that is active at the touch's `at` goes on: it keeps its `started_at`; its `last_seen_at` and
        `expires_at` never go back. Any other is replaced by a new one, with an empty context when the touch has none.
        """
        ...

    async def active_sessions(self, user_id: str | None, now: datetime, limit: int, /) -> list[Session]:
        """Return the sessions active at *now*, by (last_seen_at descending, user_id, session_id)."""
        ...

    async def end_session(self, user_id: str, session_id: str, now: datetime, /) -> bool:
        """End a session that is active at *now*; return whether there was one."""
        ...


def is_active(session: Session, now: datetime) -> bool:
    """Return whether *session* is neither ended nor idle at *now*."""
    return session.ended_at is None and session.expires_at > now


__all__ = [
    "BUCKETS",
    "Appended",
    "Bucket",
    "Entry",
    "Event",
    "LogBackend",
    "Query",
    "SessionTouch",
    "is_active",
]

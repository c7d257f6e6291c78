"""What the backends without a database share: filters, counts, status steps and the table of sessions."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from multidb._core.text import SEPARATOR, fold
from multidb._core.values import load
from multidb.errors import ConflictError
from multidb.logs._records import MessageStats, Session
from multidb.logs.protocol import BUCKETS, is_active

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from multidb.logs._records import Message, Sale, SaleStatus
    from multidb.logs.protocol import Bucket, SessionTouch

_MONDAY: Final = datetime(1970, 1, 5, tzinfo=UTC)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)
_NO_CONTEXT: Final = b"{}"
# Sessions past their end are out of sight of every call, except one that comes with an older clock.
_SESSIONS_KEPT: Final = timedelta(days=7)
_FEW_SESSIONS: Final = 1024


def has(fields: Mapping[str, Any], equal: Mapping[str, str]) -> bool:
    """Return whether the *fields* of a record have the values of *equal*."""
    return all(fields[name] == value for name, value in equal.items())


def searched_text(event: Mapping[str, Any]) -> str:
    """Return what a folded keyword is looked for in. No keyword reaches across the separator."""
    return fold(event["message"]) + SEPARATOR + fold(event["event_type"])


def tally(values: Iterable[str | None]) -> dict[str, int]:
    """Count equal *values*; None counts under the key ""."""
    return dict(Counter(value or "" for value in values))


def counts_by_bucket(moments: Iterable[datetime], bucket: Bucket) -> dict[datetime, int]:
    """Count *moments* by the start of their *bucket*, oldest first."""
    width = BUCKETS[bucket]
    counts = Counter((moment - _MONDAY) // width for moment in moments)
    return {_MONDAY + number * width: counts[number] for number in sorted(counts)}


def stats_of(messages: Iterable[Message]) -> MessageStats:
    """Aggregate *messages*, which may come in any order."""
    roles: Counter[str] = Counter()
    users: set[str] = set()
    conversations: set[str] = set()
    characters = 0
    first: datetime | None = None
    last: datetime | None = None
    for message in messages:
        roles[message.role] += 1
        users.add(message.user_id)
        if message.conversation_id is not None:
            conversations.add(message.conversation_id)
        characters += len(message.text)
        first = min(first or message.timestamp, message.timestamp)
        last = max(last or message.timestamp, message.timestamp)
    return MessageStats(
        total=roles.total(),
        by_role=dict(roles),
        users=len(users),
        conversations=len(conversations),
        characters=characters,
        first_at=first,
        last_at=last,
    )


def steps_to(sale: Sale, status: SaleStatus, allowed_from: Sequence[SaleStatus]) -> bool:
    """Return whether *sale* has to change to get *status*. Raises ConflictError when it may not."""
    if sale.status == status:
        return False
    if sale.status not in allowed_from:
        msg = f"a sale that is {sale.status} cannot become {status}"
        raise ConflictError(msg)
    return True


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session as it is kept: the context apart, as canonical JSON, which nobody can change from outside."""

    session: Session
    context: bytes

    def copy(self) -> Session:
        """Return the session with a context of its own."""
        return self.session.model_copy(update={"context": load(self.context)})


def touched(stored: StoredSession | None, touch: SessionTouch) -> StoredSession:
    """Return what a session is after *touch*."""
    if stored is None or not is_active(stored.session, touch.at):
        session = Session.model_construct(
            user_id=touch.user_id,
            session_id=touch.session_id,
            started_at=touch.at,
            last_seen_at=touch.at,
            expires_at=touch.expires_at,
        )
        return StoredSession(session, _NO_CONTEXT if touch.context is None else touch.context)
    session = stored.session.model_copy(
        update={
            "last_seen_at": max(stored.session.last_seen_at, touch.at),
            "expires_at": max(stored.session.expires_at, touch.expires_at),
        }
    )
    return StoredSession(session, stored.context if touch.context is None else touch.context)


def ended(stored: StoredSession | None, now: datetime) -> StoredSession | None:
    """Return what a session is after its end at *now*, or None when there is none to end."""
    if stored is None or not is_active(stored.session, now):
        return None
    return StoredSession(stored.session.model_copy(update={"ended_at": now}), stored.context)


class SessionTable:
    """The sessions of a log, by user and session id. Those over for a week are dropped as the table grows."""

    def __init__(self) -> None:
        """Start empty."""
        self._users: dict[str, dict[str, StoredSession]] = {}
        self._size = 0
        self._prune_at = _FEW_SESSIONS

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[StoredSession]:
        for sessions in self._users.values():
            yield from sessions.values()

    def get(self, user_id: str, session_id: str) -> StoredSession | None:
        """Return a session, active or not."""
        return self._users.get(user_id, {}).get(session_id)

    def put(self, stored: StoredSession) -> None:
        """Add or replace a session."""
        sessions = self._users.setdefault(stored.session.user_id, {})
        self._size += stored.session.session_id not in sessions
        sessions[stored.session.session_id] = stored
        if self._size > self._prune_at:
            self.prune(stored.session.last_seen_at)

    def prune(self, now: datetime) -> None:
        """Drop the sessions that were over for a week at *now*."""
        live = [s for s in self if now - s.session.expires_at < _SESSIONS_KEPT]
        self._users, self._size = {}, 0
        self._prune_at = 2 * len(live) + _FEW_SESSIONS
        for stored in live:
            self.put(stored)

    def active(self, user_id: str | None, now: datetime, limit: int) -> list[Session]:
        """Return active sessions by (last_seen_at descending, user_id, session_id)."""
        sessions = self if user_id is None else self._users.get(user_id, {}).values()
        active = (stored for stored in sessions if is_active(stored.session, now))
        return [stored.copy() for stored in heapq.nsmallest(limit, active, key=_latest_first)]


def _latest_first(stored: StoredSession) -> tuple[timedelta, str, str]:
    session = stored.session
    return _LATEST - session.last_seen_at, session.user_id, session.session_id

"""LogStore: checks what it is given, fills in ids and times, and makes one call to the backend."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, Literal, overload
from uuid import UUID

from pydantic import BaseModel

from multidb._core import values
from multidb._core.clock import Clock, utc_now
from multidb._core.ids import IdFactory
from multidb._core.operation import Operation
from multidb._core.text import fold
from multidb.errors import BackendTimeoutError, ConflictError, InvalidArgumentError, InvalidValueError
from multidb.logs._bulk import Bulk, in_turns
from multidb.logs._records import (
    LEVELS,
    STATUS_STEPS,
    Event,
    Level,
    Message,
    MessageStats,
    Sale,
    SaleStatus,
    Session,
    made,
    mark_spooled,
)
from multidb.logs.protocol import BUCKETS, Appended, Bucket, Entry, LogBackend, Query, R, SessionTouch

if TYPE_CHECKING:
    from multidb._core.values import UserId
    from multidb.resilience.route import Batched, Route

_LOG_EVENT: Final = Operation("logs", "log_event", writes=True)
_LOG_EVENTS: Final = Operation("logs", "log_events", writes=True)
_GET_EVENTS: Final = Operation("logs", "get_events")
_SEARCH_EVENTS: Final = Operation("logs", "search_events")
_COUNT_EVENTS: Final = Operation("logs", "count_events")
_EVENT_HISTOGRAM: Final = Operation("logs", "event_histogram")
_DELETE_EVENTS: Final = Operation("logs", "delete_events", writes=True)
_LOG_SALE: Final = Operation("logs", "log_sale", writes=True)
_GET_SALES: Final = Operation("logs", "get_sales")
_UPDATE_SALE_STATUS: Final = Operation("logs", "update_sale_status", writes=True)
_LOG_MESSAGE: Final = Operation("logs", "log_message", writes=True)
_GET_MESSAGES: Final = Operation("logs", "get_messages")
_GET_MESSAGE_STATS: Final = Operation("logs", "get_message_stats")
_TOUCH_SESSION: Final = Operation("logs", "create_or_update_session", writes=True)
_GET_ACTIVE_SESSIONS: Final = Operation("logs", "get_active_sessions")
_END_SESSION: Final = Operation("logs", "end_session", writes=True)

_PAGE: Final = 1000
_SMALL_PAGE: Final = 100
# Pages of a user up to this length are read together with those of others. Longer ones, and those of some of a user's
# events, for which the database may have to go through all, would hold them up.
_SHORT: Final = 100
_EVENT_BYTES: Final = 1024
_NO_CONTEXT: Final = b"{}"
_AMOUNT_DIGITS: Final = 20
_AMOUNT_DECIMALS: Final = 18
_EXACT: Final = Context(prec=2 * _AMOUNT_DIGITS)  # The program's own context may round.
_MIN_CURRENCY: Final = 3
_MAX_CURRENCY: Final = 12
_EVENT_ARGUMENTS: Final = (
    "user_identifier",
    "event_type",
    "message",
    "context",
    "level",
    "username",
    "event_id",
    "timestamp",
)
_MAX_HOURS: Final = values.MAX_SECONDS / 3600

GroupBy = Literal["user_id", "event_type", "level"]


class LogStore:
    """What happened: events, and the sales, messages and sessions a bot keeps beside them."""

    def __init__(self, route: Route[LogBackend], clock: Clock, *, max_context_bytes: int) -> None:
        """Work on the backend of *route*."""
        self._route = route
        self._clock = clock
        self._ids = IdFactory()
        self._max_bytes = max_context_bytes
        # A batch has entries of one kind. Each id is stored once, so that a batch can be sent again.
        self._appends = {
            kind: route.batched(
                lambda backend, entries: backend.append(entries),
                writes=True,
                repeatable=True,
                at_once=True,
                key=_user,
            )
            for kind in (Event, Sale, Message)
        }
        self._touches: Batched[LogBackend, SessionTouch, Session] = route.batched(
            lambda backend, touches: backend.touch_sessions(touches),
            writes=True,
            repeatable=True,
            key=lambda touch: touch.user_id,
        )
        self._reads: Batched[LogBackend, Query[Event], list[Event]] = route.batched(
            lambda backend, queries: backend.query_all(queries), at_once=True
        )

    # Events

    async def log_event(
        self,
        user_identifier: UserId,
        event_type: str,
        message: str = "",
        *,
        context: Mapping[str, Any] | BaseModel | None = None,
        level: Level = "INFO",
        username: str | None = None,
        event_id: UUID | str | None = None,
        timestamp: datetime | None = None,
    ) -> Event:
        """
        Record that *event_type* happened to *user_identifier*; return the event.

        The id is a UUIDv7 unless *event_id* gives one; logging the same event under the same id again stores it once,
        and the time that is stored stays the first one's, also where the event that is returned says another.
        *timestamp* must be aware; default: now; for an id that is stored already the stored one stays. Raises
        InvalidArgumentError, InvalidValueError for a text or a context that not every backend can keep, ConflictError
        when the id is stored with other content, BackendError.
        """
        entry = self._event_entry(
            user_identifier,
            event_type,
            message,
            context=context,
            level=level,
            username=username,
            event_id=event_id,
            timestamp=timestamp,
        )
        await self._append_one(_LOG_EVENT, entry, entry.record.message)
        return entry.record

    async def log_events(
        self, events: Iterable[Event | Mapping[str, Any]] | AsyncIterable[Event | Mapping[str, Any]]
    ) -> int:
        """
        Record many events in chunks of 1,000 or 2 MiB; return how many were stored now, not before under the same id.

        Each is an Event, or a dict with the arguments of `log_event()`. A list is checked whole before anything is
        sent; of an iterator, sync or async, the chunks before a bad event are stored, and each while the next one is
        read, so that two are in memory. Raises what `log_event()` raises; a ConflictError names the ids in conflict in
        its `conflicts`, and every other event is stored. A BackendError is `ambiguous` when a part may be stored: only
        events with ids of their own can be sent again.
        """
        if not isinstance(events, Iterable | AsyncIterable):
            msg = f"events: {type(events).__name__}; pass a list or an iterator, sync or async"
            raise InvalidArgumentError(msg)
        bulk = Bulk(lambda chunk: self._route.run(_LOG_EVENTS, lambda backend: backend.append(chunk)))
        async with aclosing(in_turns(events)) as numbered, bulk:
            if isinstance(events, Sequence):
                for entry in [self._entry_of(event, i) async for i, event in numbered]:
                    if bulk.add(entry):
                        await bulk.send()
            else:
                async for i, event in numbered:
                    if bulk.add(self._entry_of(event, i)):
                        await bulk.send()
        if bulk.conflicts:
            msg = f"{len(bulk.conflicts)} events have ids that are stored with other content; the others are stored"
            raise ConflictError(msg, conflicts=bulk.conflicts)
        return bulk.stored

    async def get_events(
        self,
        user_identifier: UserId | None = None,
        *,
        event_type: str | None = None,
        level: Level | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        hours_back: float | None = None,
        limit: int = 100,
        after: Event | None = None,
    ) -> list[Event]:
        """
        Return matching events, newest first by (timestamp, id).

        *since* is inclusive, *until* exclusive, *hours_back* another way to say *since*. `after=events[-1]` continues
        from that event and stays right while others append. *limit* is 1 to 10,000; `iter_events()` has no limit.
        """
        query = self._event_query(user_identifier, event_type, level, since, until, hours_back, limit, after)
        if limit > _SHORT or query.equal.keys() != {"user_id"}:
            return await self._query_events(query)
        return await self._reads.run(_GET_EVENTS, query, limit * _EVENT_BYTES)

    async def iter_events(
        self,
        user_identifier: UserId | None = None,
        *,
        event_type: str | None = None,
        level: Level | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        hours_back: float | None = None,
        after: Event | None = None,
    ) -> AsyncIterator[Event]:
        """
        Yield all matching events, newest first, 1,000 in memory at a time. Arguments as for `get_events()`.

        Where 1,000 take longer than the deadline, as from a cold disk, 100 are asked for before it gives up.
        """
        query = self._event_query(user_identifier, event_type, level, since, until, hours_back, _PAGE, after)
        while True:
            try:
                events = await self._query_events(query)
            except BackendTimeoutError:
                if query.limit <= _SMALL_PAGE:
                    raise
                query = replace(query, limit=_SMALL_PAGE)
                continue
            for event in events:
                yield event
            if len(events) < query.limit:
                return
            last = events[-1]
            query = replace(query, after=(last.timestamp, last.id), limit=min(2 * query.limit, _PAGE))

    async def search_events(
        self,
        keyword: str,
        *,
        user_identifier: UserId | None = None,
        event_type: str | None = None,
        level: Level | None = None,
        after_date: datetime | None = None,
        limit: int = 50,
    ) -> list[Event]:
        """
        Return events whose message or event type contains *keyword*, newest first.

        Case does not count, nor does the dot of an i ("IŞIK" finds "ışık"); `%`, `_` and `*` are ordinary characters.
        """
        folded = fold(values.check_text(keyword, "keyword", max_bytes=self._max_bytes))
        if not folded:
            msg = "keyword: must not be empty"
            raise InvalidArgumentError(msg)
        query = Query(
            Event,
            equal=self._event_filter(user_identifier, event_type, level),
            since=_optional_timestamp(after_date, "after_date"),
            keyword=folded,
            limit=values.limit(limit),
        )
        return await self._route.run(_SEARCH_EVENTS, lambda backend: backend.query(query))

    @overload
    async def count_events(
        self,
        user_identifier: UserId | None = None,
        *,
        event_type: str | None = None,
        level: Level | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        hours_back: float | None = None,
        by: None = None,
    ) -> int: ...

    @overload
    async def count_events(
        self,
        user_identifier: UserId | None = None,
        *,
        event_type: str | None = None,
        level: Level | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        hours_back: float | None = None,
        by: GroupBy,
    ) -> dict[str, int]: ...

    @overload
    async def count_events(
        self,
        user_identifier: UserId | None = None,
        *,
        event_type: str | None = None,
        level: Level | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        hours_back: float | None = None,
        by: GroupBy | None,
    ) -> int | dict[str, int]: ...

    async def count_events(
        self,
        user_identifier: UserId | None = None,
        *,
        event_type: str | None = None,
        level: Level | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        hours_back: float | None = None,
        by: GroupBy | None = None,
    ) -> int | dict[str, int]:
        """
        Count matching events; with *by* (`user_id`, `event_type` or `level`) return a dict of counts.

        The dict has the largest counts first, equal ones by name.
        """
        if by is not None:
            values.choice(by, "by", ("user_id", "event_type", "level"))
        query = self._event_query(user_identifier, event_type, level, since, until, hours_back)
        counts = await self._route.run(_COUNT_EVENTS, lambda backend: backend.count(query, by))
        if by is None:
            return counts.get("", 0)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    async def event_histogram(
        self,
        user_identifier: UserId | None = None,
        *,
        event_type: str | None = None,
        level: Level | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        hours_back: float | None = None,
        bucket: Bucket = "hour",
    ) -> dict[datetime, int]:
        """
        Count matching events by the start (UTC) of their *bucket*: minute, hour, day, or week (from Monday).

        Oldest first; empty buckets are left out.
        """
        values.choice(bucket, "bucket", tuple(BUCKETS))
        query = self._event_query(user_identifier, event_type, level, since, until, hours_back)
        return await self._route.run(_EVENT_HISTOGRAM, lambda backend: backend.histogram(query, bucket))

    async def delete_events(
        self,
        *,
        before: datetime,
        user_identifier: UserId | None = None,
        event_type: str | None = None,
        level: Level | None = None,
    ) -> int:
        """Delete the matching events older than *before*; return how many."""
        until = values.timestamp(before, "before")
        query = Query(Event, equal=self._event_filter(user_identifier, event_type, level), until=until)
        return await self._route.run(_DELETE_EVENTS, lambda backend: backend.delete(query))

    # Sales

    async def log_sale(
        self,
        user_id: UserId,
        product_type: str,
        amount: Decimal | float | str,
        *,
        currency: str = "USD",
        status: SaleStatus = "pending",
        context: Mapping[str, Any] | BaseModel | None = None,
        sale_id: UUID | str | None = None,
        timestamp: datetime | None = None,
    ) -> Sale:
        """
        Record a sale; return it as it was given. `log_sale("u1", "coffee", "4.50", currency="EUR")`.

        *amount* is kept exactly: 0 or more, below 10^20, at most 18 decimal places. A float counts as what Python
        prints for it. *currency* is 3 to 12 letters or digits, kept in capitals. Raises as `log_event()` does.
        """
        fields = {
            "product_type": values.label(product_type, "product_type"),
            "amount": _amount(amount),
            "currency": _currency(currency),
            "status": values.choice(status, "status", STATUS_STEPS),
            "user_id": values.identifier(user_id, "user_id"),
        }
        entry = self._entry(Sale, fields, context, sale_id, timestamp, id_name="sale_id")
        await self._append_one(_LOG_SALE, entry)
        return entry.record

    async def get_sales(
        self,
        user_id: UserId | None = None,
        *,
        product_type: str | None = None,
        status: SaleStatus | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        hours_back: float | None = None,
        limit: int = 100,
        after: Sale | None = None,
    ) -> list[Sale]:
        """Return matching sales, newest first. Times, *limit* and *after* as for `get_events()`."""
        equal = _filter(
            user_id=_optional_user(user_id), product_type=_optional_label(product_type, "product_type")
        )
        if status is not None:
            equal["status"] = values.choice(status, "status", STATUS_STEPS)
        query = self._query(Sale, equal, since, until, hours_back, limit, after)
        return await self._route.run(_GET_SALES, lambda backend: backend.query(query))

    async def update_sale_status(self, sale_id: UUID | str, status: SaleStatus) -> Sale | None:
        """
        Move a sale on: pending → completed, failed or refunded; completed → refunded. Return it, or None if unknown.

        A sale that already has *status* is returned as it is. Raises ConflictError for any other step.
        """
        uuid = _uuid(sale_id, "sale_id")
        allowed_from = STATUS_STEPS[values.choice(status, "status", STATUS_STEPS)]
        return await self._route.run(
            _UPDATE_SALE_STATUS, lambda backend: backend.set_sale_status(uuid, status, allowed_from)
        )

    # Messages

    async def log_message(
        self,
        user_id: UserId,
        text: str,
        *,
        role: str = "user",
        conversation_id: UserId | None = None,
        context: Mapping[str, Any] | BaseModel | None = None,
        message_id: UUID | str | None = None,
        timestamp: datetime | None = None,
    ) -> Message:
        """
        Record one message of a conversation with *user_id*; return it.

        *role* says who spoke: `user`, `assistant`, `system`, `tool`, or a name of your own. Raises as `log_event()`.
        """
        fields = {
            "text": values.check_text(text, "text", max_bytes=self._max_bytes),
            "role": values.label(role, "role"),
            "conversation_id": _optional_user(conversation_id, "conversation_id"),
            "user_id": values.identifier(user_id, "user_id"),
        }
        entry = self._entry(Message, fields, context, message_id, timestamp, id_name="message_id")
        await self._append_one(_LOG_MESSAGE, entry, entry.record.text)
        return entry.record

    async def get_messages(
        self,
        user_id: UserId | None = None,
        *,
        conversation_id: UserId | None = None,
        role: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        hours_back: float | None = None,
        limit: int = 100,
        after: Message | None = None,
    ) -> list[Message]:
        """Return matching messages, newest first. Times, *limit* and *after* as for `get_events()`."""
        query = self._query(
            Message, _message_filter(user_id, conversation_id, role), since, until, hours_back, limit, after
        )
        return await self._route.run(_GET_MESSAGES, lambda backend: backend.query(query))

    async def get_message_stats(
        self,
        user_id: UserId | None = None,
        *,
        conversation_id: UserId | None = None,
        role: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        hours_back: float | None = None,
    ) -> MessageStats:
        """Return totals over the matching messages, computed by the database."""
        query = self._query(
            Message, _message_filter(user_id, conversation_id, role), since, until, hours_back
        )
        stats = await self._route.run(_GET_MESSAGE_STATS, lambda backend: backend.message_stats(query))
        return stats.model_copy(update={"by_role": dict(sorted(stats.by_role.items()))})

    # Sessions

    async def create_or_update_session(
        self,
        user_id: UserId,
        session_id: UserId = "default",
        *,
        context: Mapping[str, Any] | BaseModel | None = None,
        idle_seconds: float = 1800.0,
    ) -> Session:
        """
        Start a session of *user_id*, or keep it going; return it.

        It stays active for *idle_seconds* from now. *context* replaces the one stored; None keeps it. A session that
        ended or idled out starts anew.
        """
        now = utc_now(self._clock)
        idle = timedelta(seconds=values.seconds(idle_seconds, "idle_seconds"))
        touch = SessionTouch(
            user_id=values.identifier(user_id, "user_id"),
            session_id=values.identifier(session_id, "session_id"),
            at=now,
            expires_at=now + idle,
            context=None if context is None else self._context(context),
        )
        return await self._touches.run(
            _TOUCH_SESSION, touch, 0 if touch.context is None else len(touch.context)
        )

    async def get_active_sessions(self, user_id: UserId | None = None, *, limit: int = 100) -> list[Session]:
        """Return the active sessions of *user_id*, or of everybody, those seen last first."""
        user, rows, now = _optional_user(user_id), values.limit(limit), utc_now(self._clock)
        return await self._route.run(
            _GET_ACTIVE_SESSIONS, lambda backend: backend.active_sessions(user, now, rows)
        )

    async def end_session(self, user_id: UserId, session_id: UserId = "default") -> bool:
        """End a session; return whether it was active."""
        user, session = values.identifier(user_id, "user_id"), values.identifier(session_id, "session_id")
        now = utc_now(self._clock)
        return await self._route.run(_END_SESSION, lambda backend: backend.end_session(user, session, now))

    # What they share

    async def _query_events(self, query: Query[Event]) -> list[Event]:
        return await self._route.run(_GET_EVENTS, lambda backend: backend.query(query))

    async def _append_one(self, operation: Operation, entry: Entry[Any], text: str = "") -> None:
        size = len(entry.context) + len(text)
        outcome = await self._appends[type(entry.record)].run(operation, entry, size)
        if outcome is Appended.CONFLICT:
            msg = f"id {entry.record.id} is stored with other content"
            raise ConflictError(msg)
        if outcome is Appended.SPOOLED:
            mark_spooled(entry.record)

    def _entry_of(self, event: Event | Mapping[str, Any], i: int) -> Entry[Event]:
        """Return the entry for the event at position *i* of those to be logged."""
        try:
            if type(event) is dict or isinstance(event, Mapping):
                return self._entry_of_arguments(event)
            if isinstance(event, Event):
                return self._event_entry(
                    event.user_id,
                    event.event_type,
                    event.message,
                    context=event.context,
                    level=event.level,
                    username=event.username,
                    event_id=event.id,
                    timestamp=event.timestamp,
                )
        except InvalidValueError as exc:
            raise InvalidValueError(f"events[{i}].{exc.path}", exc.reason) from exc
        except InvalidArgumentError as exc:
            msg = f"events[{i}]: {exc}"
            raise InvalidArgumentError(msg) from exc
        msg = (
            f"events[{i}]: {type(event).__name__}; pass an Event or a dict with the arguments of log_event()"
        )
        raise InvalidArgumentError(msg)

    def _entry_of_arguments(self, arguments: Mapping[str, Any]) -> Entry[Event]:
        try:
            return self._event_entry(**arguments)
        except TypeError:  # Python looks at the names before anything else happens.
            _check_names(arguments)
            raise

    def _event_entry(
        self,
        user_identifier: UserId,
        event_type: str,
        message: str = "",
        *,
        context: Mapping[str, Any] | BaseModel | None = None,
        level: Level = "INFO",
        username: str | None = None,
        event_id: UUID | str | None = None,
        timestamp: datetime | None = None,
    ) -> Entry[Event]:
        fields = {
            "event_type": values.label(event_type, "event_type"),
            "message": values.check_text(message, "message", max_bytes=self._max_bytes),
            "level": values.choice(level, "level", LEVELS),
            "username": None if username is None else values.label(username, "username"),
            "user_id": values.identifier(user_identifier, "user_identifier"),
        }
        return self._entry(Event, fields, context, event_id, timestamp, id_name="event_id")

    def _entry(
        self,
        kind: type[R],
        fields: dict[str, Any],
        context: Mapping[str, Any] | BaseModel | None,
        given_id: UUID | str | None,
        timestamp: datetime | None,
        *,
        id_name: str,
    ) -> Entry[R]:
        """Build a record from checked *fields*, and the bytes and the digest that go with it."""
        encoded = _NO_CONTEXT if context is None else self._context(context)
        # Before the time: a retry that gives the same id, and no time, is the same record.
        digest = _digest(fields, encoded)
        if timestamp is None:
            seconds = self._clock.time()
            at = datetime.fromtimestamp(seconds, UTC)
        else:
            at = values.timestamp(timestamp, "timestamp")
            seconds = at.timestamp()
        uuid = self._ids.new(seconds) if given_id is None else _uuid(given_id, id_name)
        # A context of its own: what the caller does to the one given changes nothing here.
        own = {} if encoded == _NO_CONTEXT else values.load(encoded)
        user = fields["user_id"]
        # In the order of the model, whose own fields come last.
        record = made(kind, {"id": uuid, "user_id": user, "timestamp": at, "context": own, **fields})
        return Entry(record, encoded, digest)

    def _context(self, context: Mapping[str, Any] | BaseModel) -> bytes:
        if type(context) is dict:
            return values.encode(context, "context", max_bytes=self._max_bytes)
        if not isinstance(context, BaseModel | Mapping):
            raise InvalidValueError("context", f"{type(context).__name__}; pass a dict or a pydantic model")
        encoded = values.encode(_dict(context), "context", max_bytes=self._max_bytes)
        if not encoded.startswith(b"{"):
            raise InvalidValueError("context", "the model dumps to something that is no dict")
        return encoded

    def _event_filter(
        self, user_identifier: UserId | None, event_type: str | None, level: Level | None
    ) -> dict[str, str]:
        equal = _filter(
            user_id=_optional_user(user_identifier, "user_identifier"),
            event_type=_optional_label(event_type, "event_type"),
        )
        if level is not None:
            equal["level"] = values.choice(level, "level", LEVELS)
        return equal

    def _event_query(
        self,
        user_identifier: UserId | None,
        event_type: str | None,
        level: Level | None,
        since: datetime | None,
        until: datetime | None,
        hours_back: float | None,
        limit: int = 1,
        after: Event | None = None,
    ) -> Query[Event]:
        equal = self._event_filter(user_identifier, event_type, level)
        return self._query(Event, equal, since, until, hours_back, limit, after)

    def _query(
        self,
        kind: type[R],
        equal: dict[str, str],
        since: datetime | None,
        until: datetime | None,
        hours_back: float | None,
        limit: int = 1,
        after: R | None = None,
    ) -> Query[R]:
        if after is not None and not isinstance(after, kind):
            msg = f"after: {type(after).__name__}; pass the last {kind.__name__} of the page before"
            raise InvalidArgumentError(msg)
        return Query(
            kind,
            equal=equal,
            since=self._since(since, hours_back),
            until=_optional_timestamp(until, "until"),
            after=None if after is None else (values.timestamp(after.timestamp, "after.timestamp"), after.id),
            limit=values.limit(limit),
        )

    def _since(self, since: datetime | None, hours_back: float | None) -> datetime | None:
        if hours_back is None:
            return _optional_timestamp(since, "since")
        if since is not None:
            msg = "since and hours_back say the same: pass one of them"
            raise InvalidArgumentError(msg)
        if type(hours_back) not in (int, float) or not 0 < hours_back <= _MAX_HOURS:
            msg = f"hours_back: must be a number above 0, up to {_MAX_HOURS:,.0f} (10 years)"
            raise InvalidArgumentError(msg)
        return utc_now(self._clock) - timedelta(hours=hours_back)


def _user(entry: Entry[Any]) -> str:
    user_id: str = entry.record.user_id
    return user_id


def _dict(value: Mapping[str, Any] | BaseModel) -> object:
    return dict(value) if isinstance(value, Mapping) else value


def _check_names(event: Mapping[Any, Any]) -> None:
    """Refuse a dict that does not hold the arguments of `log_event()`."""
    unknown = [str(name) for name in event if name not in _EVENT_ARGUMENTS]
    missing = [name for name in ("user_identifier", "event_type") if name not in event]
    if unknown or missing:
        wrong = f"no such field: {ascii(unknown[0])[:80]}" if unknown else f"missing: {', '.join(missing)}"
        msg = f"{wrong}; an event has the arguments of log_event(): {', '.join(_EVENT_ARGUMENTS)}"
        raise InvalidArgumentError(msg) from None


def _digest(fields: dict[str, Any], context: bytes) -> bytes:
    """Return 16 bytes over the content of a record but its time, the same on every machine and for every backend."""
    content = values.dump(fields, str)  # The amount of a sale is no JSON.
    return hashlib.blake2b(content + context, digest_size=16).digest()


def _filter(**equal: str | None) -> dict[str, str]:
    return {name: value for name, value in equal.items() if value is not None}


def _message_filter(
    user_id: UserId | None, conversation_id: UserId | None, role: str | None
) -> dict[str, str]:
    return _filter(
        user_id=_optional_user(user_id),
        conversation_id=_optional_user(conversation_id, "conversation_id"),
        role=_optional_label(role, "role"),
    )


def _optional_user(value: UserId | None, name: str = "user_id") -> str | None:
    return None if value is None else values.identifier(value, name)


def _optional_label(value: str | None, name: str) -> str | None:
    return None if value is None else values.label(value, name)


def _optional_timestamp(value: datetime | None, name: str) -> datetime | None:
    return None if value is None else values.timestamp(value, name)


def _uuid(value: UUID | str, name: str) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        msg = f"{name}: must be a UUID"
        raise InvalidArgumentError(msg) from None


def _amount(value: Decimal | float | str) -> Decimal:
    if type(value) not in (Decimal, int, float, str):
        msg = f"amount: {type(value).__name__}; pass a Decimal, an int or a str"
        raise InvalidArgumentError(msg)
    try:
        amount = Decimal(repr(value) if type(value) is float else value)
    except InvalidOperation:
        msg = "amount: not a number"
        raise InvalidArgumentError(msg) from None
    if not amount.is_finite() or amount < 0 or amount >= 10**_AMOUNT_DIGITS:
        msg = f"amount: must be 0 or more and below 10^{_AMOUNT_DIGITS}"
        raise InvalidArgumentError(msg)
    exponent = amount.as_tuple().exponent
    if type(exponent) is not int or exponent < -_AMOUNT_DECIMALS:
        msg = f"amount: more than {_AMOUNT_DECIMALS} decimal places; round it"
        raise InvalidArgumentError(msg)
    # Plain digits: 1E+3 becomes 1000, which is how every database writes it.
    return (amount.quantize(Decimal(1), context=_EXACT) if exponent > 0 else amount).copy_abs()


def _currency(value: str) -> str:
    if (
        type(value) is str
        and value.isascii()
        and value.isalnum()
        and _MIN_CURRENCY <= len(value) <= _MAX_CURRENCY
    ):
        return value.upper()
    msg = f"currency: {_MIN_CURRENCY} to {_MAX_CURRENCY} letters or digits, such as EUR"
    raise InvalidArgumentError(msg)

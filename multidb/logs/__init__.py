"""Event logs: what happened. The functions here work on the current MultiDB, see `multidb.init_all()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from multidb._core.current import current
from multidb.logs._records import Event, Level, Message, MessageStats, Record, Sale, SaleStatus, Session
from multidb.logs._store import GroupBy, LogStore
from multidb.logs.protocol import Bucket, LogBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
    from datetime import datetime
    from decimal import Decimal
    from uuid import UUID

    from pydantic import BaseModel

    from multidb._core.values import UserId

__all__ = [
    "Bucket",
    "Event",
    "GroupBy",
    "Level",
    "LogBackend",
    "LogStore",
    "Message",
    "MessageStats",
    "Record",
    "Sale",
    "SaleStatus",
    "Session",
    "count_events",
    "create_or_update_session",
    "delete_events",
    "end_session",
    "event_histogram",
    "get_active_sessions",
    "get_events",
    "get_message_stats",
    "get_messages",
    "get_sales",
    "iter_events",
    "log_event",
    "log_events",
    "log_message",
    "log_sale",
    "search_events",
    "update_sale_status",
]


async def log_event(
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
    """Same as `LogStore.log_event()`, on the current MultiDB."""
    return await current().logs.log_event(
        user_identifier,
        event_type,
        message,
        context=context,
        level=level,
        username=username,
        event_id=event_id,
        timestamp=timestamp,
    )


async def log_events(
    events: Iterable[Event | Mapping[str, Any]] | AsyncIterable[Event | Mapping[str, Any]],
) -> int:
    """Same as `LogStore.log_events()`, on the current MultiDB."""
    return await current().logs.log_events(events)


async def get_events(
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
    """Same as `LogStore.get_events()`, on the current MultiDB."""
    return await current().logs.get_events(
        user_identifier,
        event_type=event_type,
        level=level,
        since=since,
        until=until,
        hours_back=hours_back,
        limit=limit,
        after=after,
    )


def iter_events(
    user_identifier: UserId | None = None,
    *,
    event_type: str | None = None,
    level: Level | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    hours_back: float | None = None,
    after: Event | None = None,
) -> AsyncIterator[Event]:
    """Same as `LogStore.iter_events()`, on the current MultiDB."""
    return current().logs.iter_events(
        user_identifier,
        event_type=event_type,
        level=level,
        since=since,
        until=until,
        hours_back=hours_back,
        after=after,
    )


async def search_events(
    keyword: str,
    *,
    user_identifier: UserId | None = None,
    event_type: str | None = None,
    level: Level | None = None,
    after_date: datetime | None = None,
    limit: int = 50,
) -> list[Event]:
    """Same as `LogStore.search_events()`, on the current MultiDB."""
    return await current().logs.search_events(
        keyword,
        user_identifier=user_identifier,
        event_type=event_type,
        level=level,
        after_date=after_date,
        limit=limit,
    )


@overload
async def count_events(
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
    user_identifier: UserId | None = None,
    *,
    event_type: str | None = None,
    level: Level | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    hours_back: float | None = None,
    by: GroupBy | None = None,
) -> int | dict[str, int]:
    """Same as `LogStore.count_events()`, on the current MultiDB."""
    return await current().logs.count_events(
        user_identifier,
        event_type=event_type,
        level=level,
        since=since,
        until=until,
        hours_back=hours_back,
        by=by,
    )


async def event_histogram(
    user_identifier: UserId | None = None,
    *,
    event_type: str | None = None,
    level: Level | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    hours_back: float | None = None,
    bucket: Bucket = "hour",
) -> dict[datetime, int]:
    """Same as `LogStore.event_histogram()`, on the current MultiDB."""
    return await current().logs.event_histogram(
        user_identifier,
        event_type=event_type,
        level=level,
        since=since,
        until=until,
        hours_back=hours_back,
        bucket=bucket,
    )


async def delete_events(
    *,
    before: datetime,
    user_identifier: UserId | None = None,
    event_type: str | None = None,
    level: Level | None = None,
) -> int:
    """Same as `LogStore.delete_events()`, on the current MultiDB."""
    return await current().logs.delete_events(
        before=before, user_identifier=user_identifier, event_type=event_type, level=level
    )


async def log_sale(
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
    """Same as `LogStore.log_sale()`, on the current MultiDB."""
    return await current().logs.log_sale(
        user_id,
        product_type,
        amount,
        currency=currency,
        status=status,
        context=context,
        sale_id=sale_id,
        timestamp=timestamp,
    )


async def get_sales(
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
    """Same as `LogStore.get_sales()`, on the current MultiDB."""
    return await current().logs.get_sales(
        user_id,
        product_type=product_type,
        status=status,
        since=since,
        until=until,
        hours_back=hours_back,
        limit=limit,
        after=after,
    )


async def update_sale_status(sale_id: UUID | str, status: SaleStatus) -> Sale | None:
    """Same as `LogStore.update_sale_status()`, on the current MultiDB."""
    return await current().logs.update_sale_status(sale_id, status)


async def log_message(
    user_id: UserId,
    text: str,
    *,
    role: str = "user",
    conversation_id: UserId | None = None,
    context: Mapping[str, Any] | BaseModel | None = None,
    message_id: UUID | str | None = None,
    timestamp: datetime | None = None,
) -> Message:
    """Same as `LogStore.log_message()`, on the current MultiDB."""
    return await current().logs.log_message(
        user_id,
        text,
        role=role,
        conversation_id=conversation_id,
        context=context,
        message_id=message_id,
        timestamp=timestamp,
    )


async def get_messages(
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
    """Same as `LogStore.get_messages()`, on the current MultiDB."""
    return await current().logs.get_messages(
        user_id,
        conversation_id=conversation_id,
        role=role,
        since=since,
        until=until,
        hours_back=hours_back,
        limit=limit,
        after=after,
    )


async def get_message_stats(
    user_id: UserId | None = None,
    *,
    conversation_id: UserId | None = None,
    role: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    hours_back: float | None = None,
) -> MessageStats:
    """Same as `LogStore.get_message_stats()`, on the current MultiDB."""
    return await current().logs.get_message_stats(
        user_id, conversation_id=conversation_id, role=role, since=since, until=until, hours_back=hours_back
    )


async def create_or_update_session(
    user_id: UserId,
    session_id: UserId = "default",
    *,
    context: Mapping[str, Any] | BaseModel | None = None,
    idle_seconds: float = 1800.0,
) -> Session:
    """Same as `LogStore.create_or_update_session()`, on the current MultiDB."""
    return await current().logs.create_or_update_session(
        user_id, session_id, context=context, idle_seconds=idle_seconds
    )


async def get_active_sessions(user_id: UserId | None = None, *, limit: int = 100) -> list[Session]:
    """Same as `LogStore.get_active_sessions()`, on the current MultiDB."""
    return await current().logs.get_active_sessions(user_id, limit=limit)


async def end_session(user_id: UserId, session_id: UserId = "default") -> bool:
    """Same as `LogStore.end_session()`, on the current MultiDB."""
    return await current().logs.end_session(user_id, session_id)

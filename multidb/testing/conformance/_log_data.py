"""What the parts of the log suite share: the hooks that a subclass overrides, and builders of records."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar
from uuid import UUID, uuid4

import pytest
from hypothesis import strategies as st

from multidb._core.values import dump
from multidb.logs._records import LEVELS, Event, Message, Record, Sale
from multidb.logs.protocol import Appended, Entry, Query, SessionTouch
from multidb.testing.conformance._data import Exact, exact, free_dicts, moments, nfc, texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hypothesis.strategies import SearchStrategy

    from multidb.logs.protocol import LogBackend

R = TypeVar("R", bound=Record)

NOON: Final = datetime(2026, 3, 4, 12, 0, 0, 123456, tzinfo=UTC)
FIRST_MOMENT: Final = datetime.min.replace(tzinfo=UTC)
LAST_MOMENT: Final = datetime.max.replace(tzinfo=UTC)
TICK: Final = timedelta(microseconds=1)


@pytest.mark.asyncio
class LogSuite:
    """The hooks of the log suite."""

    concurrent_instances: ClassVar[bool] = False
    """Whether `second_backend()` leaves the first backend usable, so that the two can race."""

    async def second_backend(self) -> LogBackend | None:
        """
        Return another open backend on the same data; None skips the tests that need one.

        It may be a second connection or what a reopened store yields. Close it in your fixture.
        """
        return None

    async def another(self) -> LogBackend:
        """Return `second_backend()`, or skip the test."""
        second = await self.second_backend()
        if second is None:
            pytest.skip("second_backend() is not overridden")
        return second


def event(user_id: str, /, **fields: Any) -> Event:
    """Return an event with a random id that happened at NOON, unless *fields* say otherwise."""
    return Event(**{"id": uuid4(), "timestamp": NOON, "event_type": "happened", **fields}, user_id=user_id)


def sale(user_id: str, /, **fields: Any) -> Sale:
    """Return a sale of 9.90 at NOON."""
    given = {"id": uuid4(), "timestamp": NOON, "product_type": "gift", "amount": Decimal("9.90"), **fields}
    return Sale(**given, user_id=user_id)


def message(user_id: str, /, **fields: Any) -> Message:
    """Return a message of NOON."""
    return Message(**{"id": uuid4(), "timestamp": NOON, "text": "merhaba", **fields}, user_id=user_id)


def entry(record: R) -> Entry[R]:
    """Return *record* as the store hands it to a backend."""
    content = repr(exact(record.model_dump(exclude={"id"}))).encode()
    return Entry(record, dump(record.context), blake2b(content, digest_size=16).digest())


def entries(records: Iterable[R]) -> list[Entry[R]]:
    """Return *records* as the store hands them to a backend."""
    return [entry(record) for record in records]


async def store(backend: LogBackend, records: Iterable[R]) -> None:
    """Append *records*, all of them new."""
    given = entries(records)

    assert [Appended.STORED] * len(given) == list(await backend.append(given))


def of_user(user_id: str, kind: type[R], /, **conditions: Any) -> Query[R]:
    """Return a query for one user's records; *conditions* are its other fields, `equal` is added to."""
    equal = {"user_id": user_id, **conditions.pop("equal", {})}
    return Query(kind, equal, **conditions)


def newest_first(records: Iterable[R]) -> list[R]:
    """Return *records* in the order of a query."""
    return sorted(records, key=lambda record: (record.timestamp, record.id.int), reverse=True)


def seen(records: Sequence[Any]) -> list[Exact]:
    """Return *records* (or sessions, or stats) with the type of everything in them."""
    return [(type(record).__name__, exact(record.model_dump())) for record in records]


def ids(records: Iterable[Any]) -> list[UUID]:
    """Return the ids of *records*."""
    return [record.id for record in records]


def matches(record: Record, query: Query[Any]) -> bool:
    """Return whether *record* fulfils *query*, keyword apart."""
    return (
        all(getattr(record, name) == value for name, value in query.equal.items())
        and (query.since is None or record.timestamp >= query.since)
        and (query.until is None or record.timestamp < query.until)
    )


def touch(
    user_id: str,
    session_id: str,
    at: datetime,
    *,
    idle_seconds: float = 60,
    context: dict[str, Any] | None = None,
) -> SessionTouch:
    """Return a sign of life at *at* that keeps a session alive for *idle_seconds*."""
    encoded = None if context is None else dump(context)
    return SessionTouch(user_id, session_id, at, at + timedelta(seconds=idle_seconds), encoded)


def identifiers() -> SearchStrategy[str]:
    """Return any identifier of up to 20 characters."""
    return (
        texts()
        .map(nfc)
        .filter(lambda name: name != "" and not any(unicodedata.category(c) == "Cc" for c in name))
    )


def amounts() -> SearchStrategy[Decimal]:
    """Return any exact amount with six decimal places, negative zero apart."""
    return st.decimals(-(10**12), 10**12, places=6).map(lambda amount: amount or abs(amount))


def events_of(user_id: str) -> SearchStrategy[Event]:
    """Return any event that a user may have."""
    return st.builds(
        Event,
        id=st.uuids(),
        user_id=st.just(user_id),
        timestamp=moments(),
        context=free_dicts(),
        event_type=identifiers(),
        message=texts(200),
        level=st.sampled_from(LEVELS),
        username=st.none() | identifiers(),
    )

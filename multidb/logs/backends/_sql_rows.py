"""How values look to asyncpg and to sqlite3, and how rows become records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

from pydantic import BaseModel

from multidb._core.text import SEPARATOR, fold
from multidb._core.values import load
from multidb.logs._records import Event, Message, Sale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from multidb.logs._records import Record
    from multidb.logs.protocol import Entry

M = TypeVar("M", bound=BaseModel)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# Characters. The trigrams of so long a text take a database a quarter of a second, if it is random.
_LONG: Final = 256 * 1024
_PORTION: Final = 1024 * 1024
_CONTEXT: Final = 3
_OWN_FROM: Final = 5
_TIMES: Final = ("timestamp", "started_at", "last_seen_at", "expires_at", "ended_at")


@dataclass(frozen=True, slots=True)
class Values:
    """How values look to a driver: *time*, *id*, *amount* going in; *moment*, *out* by field, coming out."""

    time: Callable[[datetime], Any]
    moment: Callable[[Any], datetime]
    id: Callable[[UUID], Any]
    amount: Callable[[Decimal], Any]
    out: dict[str, Callable[[Any], Any]]


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def _aware(moment: datetime) -> datetime:
    """Return *moment* in UTC: Python's first and last are ±infinity to asyncpg, which has no zone."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _plain_uuid(uuid: UUID) -> UUID:
    """Return a UUID of Python's own class, which is the only one that JSON libraries know."""
    return UUID(int=uuid.int)


def _context(text: str | None) -> dict[str, Any]:
    return {} if text is None or text == "{}" else load(text)


def _same(value: Any) -> Any:
    return value


POSTGRES: Final = Values(
    time=_same,
    moment=_aware,
    id=_same,
    amount=_same,
    out={"id": _plain_uuid, "context": _context, "amount": Decimal, **dict.fromkeys(_TIMES, _aware)},
)
SQLITE: Final = Values(
    time=_micros,
    moment=_moment,
    id=lambda uuid: uuid.bytes,
    amount=str,
    out={
        "id": lambda octets: UUID(bytes=octets),
        "context": _context,
        "amount": Decimal,
        **dict.fromkeys(_TIMES, _moment),
    },
)


def fields_of(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the columns of a record, in the order that `reader()` takes them."""
    return tuple(model.model_fields)


def reader(model: type[M], values: Values) -> Callable[[Sequence[Any]], M]:
    """Return a function that makes a record of a row with the columns `fields_of()`."""
    columns = [(name, values.out.get(name)) for name in fields_of(model)]

    def read(row: Sequence[Any]) -> M:
        # Validating is faster than model_construct().
        return model(
            **{
                name: value if convert is None or (value is None and name != "context") else convert(value)
                for (name, convert), value in zip(columns, row, strict=True)
            }
        )

    return read


def row_of(entry: Entry[Any], values: Values) -> list[Any]:
    """Return the values of an entry's columns, in the order of its table."""
    record = entry.record
    return [
        values.id(record.id),
        record.user_id,
        values.time(record.timestamp),
        entry.context.decode(),
        entry.digest,
        *_OWN[type(record)](record, values),
    ]


def portions(rows: Sequence[Sequence[Any]]) -> Iterator[Sequence[Sequence[Any]]]:
    """Yield *rows* in portions that a statement can store in the time it has: nearly always all of them."""
    start = size = 0
    for i, row in enumerate(rows):
        # What is indexed for searching takes by far the most time.
        weight = len(row[_CONTEXT]) // 16 + sum(len(text) for text in row[_OWN_FROM:] if type(text) is str)
        size += weight
        if size > _PORTION and i > start:
            yield rows[start:i]
            start, size = i, weight
    yield rows[start:]


def _event(event: Event, values: Values) -> Sequence[Any]:  # noqa: ARG001
    search = fold(event.message) + SEPARATOR + fold(event.event_type)
    searches = (search, None) if len(search) <= _LONG else (None, search)
    return event.event_type, event.message, event.level, event.username, *searches


def _sale(sale: Sale, values: Values) -> Sequence[Any]:
    return sale.product_type, values.amount(sale.amount), sale.currency, sale.status


def _message(message: Message, values: Values) -> Sequence[Any]:  # noqa: ARG001
    return message.text, message.role, message.conversation_id


_OWN: Final[dict[type[Record], Callable[[Any, Values], Sequence[Any]]]] = {
    Event: _event,
    Sale: _sale,
    Message: _message,
}

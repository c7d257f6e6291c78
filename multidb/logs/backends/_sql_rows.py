"""How values look to asyncpg and to sqlite3, and how rows become records."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from pydantic import BaseModel

from multidb._core.ids import uuid_of
from multidb._core.text import SEPARATOR, fold
from multidb._core.values import load
from multidb.logs._records import Event, Message, Sale, made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from uuid import UUID

    from multidb.logs._records import Record
    from multidb.logs.protocol import Entry, R

M = TypeVar("M", bound=BaseModel)

Column: TypeAlias = "Sequence[Any]"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# Characters. The trigrams of so long a text take a database a quarter of a second, if it is random.
_LONG: Final = 256 * 1024
_PORTION: Final = 1024 * 1024
# With these two every other character is the first of a trigram, by which keywords of one and two are looked up.
_END: Final = SEPARATOR + SEPARATOR
# What is beyond, PostgreSQL's index of trigrams does not find by regular expressions.
LAST_LOW: Final = "\u07ff"
_LOW_BEFORE_HIGH: Final = re.compile(f"[^\0-{LAST_LOW}](?<=([\0-{LAST_LOW}]{{2}}).)", re.DOTALL)
# fold() leaves it alone, and few texts have it.
_BETWEEN: Final = "\x1e"
_TIMES: Final = ("timestamp", "started_at", "last_seen_at", "expires_at", "ended_at")


@dataclass(frozen=True, slots=True)
class Values:
    """How values look to a driver: *time* and *id* going in; *moment*, and *out* by field, coming out."""

    time: Callable[[datetime], Any]
    moment: Callable[[Any], datetime]
    id: Callable[[UUID], Any]
    out: dict[str, Callable[[Column], Column]]
    """What makes values of a record out of those of a column."""


def micros(moments: Iterable[datetime]) -> list[int]:
    """Return *moments* as microseconds since 1970."""
    return [(moment - _EPOCH) // _MICROSECOND for moment in moments]


def _moment(number: int) -> datetime:
    return _EPOCH + timedelta(0, 0, number)


def _aware(moment: datetime) -> datetime:
    """Return *moment* in UTC: Python's first and last are ±infinity to asyncpg, which has no zone."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _contexts(texts: Column) -> Column:
    return [{} if text is None or text == "{}" else load(text) for text in texts]


def _each(convert: Callable[[Any], Any]) -> Callable[[Column], Column]:
    return lambda column: [None if value is None else convert(value) for value in column]


POSTGRES: Final = Values(
    time=lambda moment: moment,
    moment=_aware,
    id=lambda uuid: uuid,
    out={
        # Of Python's own class, which is the only one that JSON libraries know.
        "id": lambda column: [uuid_of(uuid.int) for uuid in column],
        "context": _contexts,
        "amount": _each(Decimal),
        **dict.fromkeys(_TIMES, _each(_aware)),
    },
)
SQLITE: Final = Values(
    time=lambda moment: (moment - _EPOCH) // _MICROSECOND,
    moment=_moment,
    id=lambda uuid: uuid.bytes,
    out={
        "id": lambda column: [uuid_of(int.from_bytes(octets, "big")) for octets in column],
        "context": _contexts,
        "amount": _each(Decimal),
        **dict.fromkeys(_TIMES, _each(_moment)),
    },
)


def fields_of(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the columns of a record, in the order that `reader()` takes them."""
    return tuple(model.model_fields)


def reader(model: type[M], values: Values) -> Callable[[Sequence[Column]], list[M]]:
    """Return a function that makes records of rows whose first columns are `fields_of()`."""
    names = fields_of(model)
    converts = [values.out.get(name) for name in names]

    def read(rows: Sequence[Column]) -> list[M]:
        columns = [
            column if convert is None else convert(column)
            for convert, column in zip(converts, zip(*rows, strict=True), strict=False)
        ]
        # What was checked on its way in needs no check.
        return [
            made(model, fields) for fields in map(dict, map(zip, repeat(names), zip(*columns, strict=True)))
        ]

    return read


def _getter(*own: str) -> Callable[[Any], Any]:
    return attrgetter("id", "user_id", "timestamp", *own)


def columns_of(kind: type[Record], entries: Sequence[Entry[Any]]) -> list[Column]:
    """Return the columns of *entries*, in the order of their table; values as they are, contexts as bytes."""
    fields, more = _FIELDS[kind]
    ids, users, times, *own = zip(*map(fields, map(_RECORD, entries)), strict=True)
    contexts, digests = zip(*map(_BYTES, entries), strict=True)
    return [ids, users, times, contexts, digests, *own, *(more(*own) if more is not None else ())]


def portions(kind: type[Record], entries: Sequence[Entry[R]]) -> list[Sequence[Entry[R]]]:
    """Return *entries* in portions that a statement can store in the time it has: nearly always all of them."""
    if len(entries) == 1:
        return [entries]
    weigh = _WEIGHTS[kind]
    weights = [len(entry.context) // 16 + weigh(entry.record) for entry in entries]
    if sum(weights) <= _PORTION:
        return [entries]
    some = []
    start = size = 0
    for i, weight in enumerate(weights):
        size += weight
        if size > _PORTION and i > start:
            some.append(entries[start:i])
            start, size = i, weight
    return [*some, entries[start:]]


def _searched(types: Column, messages: Column, *_: Column) -> Sequence[Column]:
    """Return what is searched of events, short and long."""
    folded = _folded([*messages, *types])
    searches = [
        _search(message + SEPARATOR + event_type)
        for message, event_type in zip(folded[: len(types)], folded[len(types) :], strict=True)
    ]
    if max(map(len, searches)) <= _LONG:
        return searches, [None] * len(searches)
    return (
        [search if len(search) <= _LONG else None for search in searches],
        [search if len(search) > _LONG else None for search in searches],
    )


def _search(text: str) -> str:
    """Return what is searched for *text*: with two characters again that are followed by none that is low."""
    if not text.isascii():
        for pair in set(_LOW_BEFORE_HIGH.findall(text)):
            text += SEPARATOR + pair
    return text + _END


def _folded(texts: Sequence[str]) -> Sequence[str]:
    """Return fold() of each of *texts*; of many at once it takes half the time."""
    folded = fold(_BETWEEN.join(texts)).split(_BETWEEN)
    return folded if len(folded) == len(texts) else [fold(text) for text in texts]


_RECORD: Final = attrgetter("record")
_BYTES: Final = attrgetter("context", "digest")
# The fields that records of a kind have columns for, and what makes more columns of those that only this kind has.
_FIELDS: Final[dict[type[Record], tuple[Callable[[Any], Any], Callable[..., Sequence[Column]] | None]]] = {
    Event: (_getter("event_type", "message", "level", "username"), _searched),
    Sale: (_getter("product_type", "amount", "currency", "status"), None),
    Message: (_getter("text", "role", "conversation_id"), None),
}
# What is indexed for searching takes by far the most time.
_WEIGHTS: Final[dict[type[Record], Callable[[Any], int]]] = {
    Event: lambda event: 2 * len(event.message),
    Sale: lambda sale: len(sale.product_type),
    Message: lambda message: len(message.text),
}

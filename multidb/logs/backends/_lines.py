"""A record as a line of JSON, and back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Generic
from uuid import UUID
from zlib import crc32

import orjson

from multidb._core.values import dump, load
from multidb.logs.protocol import R

if TYPE_CHECKING:
    from multidb.logs._records import Sale, SaleStatus
    from multidb.logs.protocol import Entry

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class BadLineError(ValueError):
    """A line that is no record of the kind."""


@dataclass(frozen=True, slots=True)
class Line(Generic[R]):
    """A record, what its append was compared by, and its text."""

    record: R
    digest: bytes
    text: bytes


def encode(entry: Entry[R]) -> Line[R]:
    """Return the line for *entry*."""
    return Line(entry.record, entry.digest, _text(entry.record, entry.context, entry.digest))


def with_status(line: Line[Sale], status: SaleStatus) -> Line[Sale]:
    """Return the line of a sale that has come to *status*."""
    sale = line.record.model_copy(update={"status": status})
    return Line(sale, line.digest, _text(sale, dump(sale.context), line.digest))


def _text(record: R, context: bytes, digest: bytes) -> bytes:
    fields = {"timestamp": record.timestamp} | vars(record)
    del fields["context"]  # To come behind the fields that are short.
    fields["context"] = orjson.Fragment(context)
    fields["digest"] = digest.hex()
    return orjson.dumps(fields, default=_plain_digits, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)


def _plain_digits(value: object) -> str:
    if isinstance(value, Decimal):
        return format(value, "f")
    raise TypeError


def parse(text: bytes) -> dict[str, Any]:
    """Return the fields of a line. Raises BadLineError when it has none."""
    try:
        fields = load(text)
    except ValueError as exc:
        raise BadLineError from exc
    if not isinstance(fields, dict):
        raise BadLineError
    return fields


def decode(kind: type[R], text: bytes) -> Line[R]:
    """Return what a line holds. Raises BadLineError."""
    fields = parse(text)
    try:
        digest = bytes.fromhex(fields.pop("digest"))
        # Not left to pydantic, whose UTC is a class of its own.
        fields["timestamp"] = datetime.fromisoformat(fields["timestamp"])
        record = kind.model_validate(fields)
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise BadLineError from exc
    if record.timestamp.tzinfo is not UTC:
        raise BadLineError
    return Line(record, digest, text)


def id_of(text: bytes) -> bytes | None:
    """Return the id in a line that was good when it was read before; None when it is damaged now."""
    try:
        return UUID(parse(text)["id"]).bytes
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def micros_of(moment: datetime) -> int:
    """Return the microseconds since 1970-01-01 UTC."""
    return (moment - _EPOCH) // _MICROSECOND


def moment_of(micros: int) -> datetime:
    """Return the moment that many microseconds since 1970-01-01 UTC."""
    return _EPOCH + timedelta(microseconds=micros)


def day_of(moment: datetime) -> int:
    """Return the number of the UTC day, 1 for 0001-01-01."""
    return moment.toordinal()


def mark_of(user_id: str) -> int:
    """Return 32 bits that stand for a user where a mistake costs only a look at the line."""
    return crc32(user_id.encode())

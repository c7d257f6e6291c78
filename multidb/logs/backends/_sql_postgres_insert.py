"""How PostgreSQL is given the rows of a batch: statements, and the arguments that go with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from multidb.logs.backends._sql_rows import micros
from multidb.logs.backends._sql_tables import TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Table

    from multidb.logs._records import Record
    from multidb.logs.backends._sql_rows import Column

# Control characters that hardly any text has: one stands between values, the other for NULL.
_BETWEEN: Final = "\x1e"
_NULL: Final = "\x1d"
_TYPES: Final = {"amount": "numeric", "digest": "bytea", "id": "uuid", "timestamp": "timestamptz"}
_TEXT_TYPES: Final = {"amount": "numeric", "id": "uuid", "timestamp": "float8"}
_FROM_TEXT: Final = {
    "digest": "decode(digest, 'hex')",
    "timestamp": "timestamptz '1970-01-01 00:00:00+00' + interval '1 microsecond' * timestamp",
}
# A float8 is exact up to here: from 1684 to 2255.
_EXACT: Final = 2**53
_DIGEST_BYTES: Final = 16


def _insert(rows: Table, source: str, values: Mapping[str, str]) -> str:
    names = [column.name for column in rows.columns]
    columns = ", ".join(names)
    selected = ", ".join({"context": "context::json", **values}.get(name, name) for name in names)
    return (
        f"INSERT INTO {rows.name} ({columns}) SELECT {selected} FROM {source} AS t ({columns}) "  # noqa: S608
        "ON CONFLICT (id) DO NOTHING RETURNING id"
    )


def _of_one(rows: Table) -> str:
    values = (f"${i}::{_TYPES.get(column.name, 'text')}" for i, column in enumerate(rows.columns, 1))
    return _insert(rows, f"(VALUES ({', '.join(values)}))", {})


def _of_arrays(rows: Table) -> str:
    arrays = (f"${i}::{_TYPES.get(column.name, 'text')}[]" for i, column in enumerate(rows.columns, 1))
    return _insert(rows, f"unnest({', '.join(arrays)})", {})


def _of_texts(rows: Table) -> str:
    arrays = []
    for i, column in enumerate(rows.columns, 1):
        null = f", chr({ord(_NULL)})" if column.nullable else ""
        kind = _TEXT_TYPES.get(column.name, "text")
        arrays.append(f"string_to_array(${i}, chr({ord(_BETWEEN)}){null})::{kind}[]")
    return _insert(rows, f"unnest({', '.join(arrays)})", _FROM_TEXT)


_ONE: Final = {kind: _of_one(rows) for kind, rows in TABLES.items()}
_ARRAYS: Final = {kind: _of_arrays(rows) for kind, rows in TABLES.items()}
_TEXTS: Final = {kind: _of_texts(rows) for kind, rows in TABLES.items()}
_NULLABLE: Final = {
    kind: [i for i, column in enumerate(rows.columns) if column.nullable] for kind, rows in TABLES.items()
}


def insert(kind: type[Record], columns: Sequence[Column]) -> tuple[str, Sequence[Any]]:
    """Return what inserts the rows whose ids are new and returns these ids, and its arguments."""
    ids, user_ids, moments, contexts, *others = columns
    if len(ids) > 1:
        texts = _texts(columns, _NULLABLE[kind])
        if texts is not None:
            return _TEXTS[kind], texts
        return _ARRAYS[kind], [ids, user_ids, moments, [context.decode() for context in contexts], *others]
    return _ONE[kind], [ids[0], user_ids[0], moments[0], contexts[0].decode(), *(each[0] for each in others)]


def _texts(columns: Sequence[Column], nullable: Sequence[int]) -> list[str] | None:
    """
    Return each of *columns* as one text, or None when that would not be what they are.

    asyncpg takes several Python calls for every value of an array, and as long for all of a text as for one of these.
    """
    ids, user_ids, moments, contexts, digests, *others = columns
    numbers = micros(moments)
    if min(numbers) < -_EXACT or max(numbers) > _EXACT:
        return None
    texts = [
        _BETWEEN.join([f"{each.int:032x}" for each in ids]),
        _BETWEEN.join(user_ids),
        _BETWEEN.join(map(str, numbers)),
        _BETWEEN.encode().join(contexts).decode(),
        b"".join(digests).hex(_BETWEEN, _DIGEST_BYTES),
    ]
    for place, column in enumerate(others, len(texts)):
        if place in nullable:
            text = _BETWEEN.join([_NULL if value is None else value for value in column])
            if text.count(_NULL) != column.count(None):
                return None
        else:
            text = _BETWEEN.join(map(str, column))
        texts.append(text)
    if any(text.count(_BETWEEN) != len(ids) - 1 for text in texts):
        return None
    return texts

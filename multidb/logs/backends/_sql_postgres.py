"""What is particular to PostgreSQL about the logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Interval, Text, bindparam, func, literal_column, or_
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from multidb._core.operation import ambiguous_after
from multidb.logs.backends._sql_rows import POSTGRES
from multidb.logs.backends._sql_statements import TOUCH
from multidb.logs.backends._sql_tables import EVENTS, TABLES, Time
from multidb.logs.protocol import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Table

    from multidb.engines.sql import SqlEngine
    from multidb.logs._records import Record
    from multidb.logs.protocol import Bucket, SessionTouch

_LIKE: Final = "like"
_ESCAPED: Final = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})
# The first moment is a Monday: date_bin() of PostgreSQL 14 is off by one for times before its origin. The two
# are written out, as asyncpg would send ±infinity for them.
_FIRST: Final = literal_column("'0001-01-01 00:00:00+00'::timestamptz", Time)
_LAST: Final = literal_column("'9999-12-31 23:59:59.999999+00'::timestamptz", Time)
_TYPES: Final = {"amount": "numeric", "digest": "bytea", "id": "uuid", "timestamp": "timestamptz"}


def _insert(rows: Table) -> str:
    names = [column.name for column in rows.columns]
    arrays = ", ".join(f"${i}::{_TYPES.get(name, 'text')}[]" for i, name in enumerate(names, 1))
    values = ", ".join("context::json" if name == "context" else name for name in names)
    columns = ", ".join(names)
    source = f"SELECT {values} FROM unnest({arrays}) AS t ({columns})"  # noqa: S608
    return f"INSERT INTO {rows.name} ({columns}) {source} ON CONFLICT (id) DO NOTHING RETURNING id"


_INSERTS: Final = {kind: _insert(rows) for kind, rows in TABLES.items()}
_DIGESTS: Final = {
    kind: f"SELECT id, digest FROM {rows.name} WHERE id = ANY($1::uuid[])"  # noqa: S608
    for kind, rows in TABLES.items()
}
_TOUCH: Final = TOUCH.format(
    values="SELECT user_id, session_id, seen_at, seen_at, expires_at, NULL, context::json FROM unnest("
    "$1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::text[]) "
    "AS t (user_id, session_id, seen_at, expires_at, context)",
    later="greatest",
)


class PostgresFlavour:
    """The logs on PostgreSQL: what `SqlLogBackend` asks for."""

    values: Final = POSTGRES
    dialect: Final = PGDialect_asyncpg()  # type: ignore[no-untyped-call]

    def __init__(self, engine: SqlEngine) -> None:
        """Work on *engine*."""
        self._engine = engine

    async def how(self, keyword: str, limit: int) -> str:  # noqa: ARG002
        """Return how a keyword is looked for: the planner knows best."""
        return _LIKE

    def keyword_arguments(self, keyword: str) -> dict[str, Any]:
        """Return the arguments of `contains()`."""
        return {"keyword": f"%{keyword.translate(_ESCAPED)}%"}

    def contains(self, how: str) -> ColumnElement[bool]:  # noqa: ARG002
        """Return the condition for a keyword, which the trigram index serves."""
        keyword = bindparam("keyword", type_=Text())
        return or_(EVENTS.c.search.like(keyword), EVENTS.c.long_search.like(keyword))

    def aside(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return *column*: the planner knows how many records an index leads to."""
        return column

    def bucket_arguments(self, bucket: Bucket) -> dict[str, Any]:
        """Return the arguments of `bucket()`."""
        return {"width": BUCKETS[bucket]}

    def bucket(self, timestamp: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the start of the bucket of a time."""
        finite = func.least(func.greatest(timestamp, _FIRST), _LAST)
        return func.date_bin(bindparam("width", type_=Interval()), finite, _FIRST)

    async def insert(self, kind: type[Record], rows: Sequence[Sequence[Any]]) -> set[Any]:
        """Insert the rows whose ids are new; return the ids of these."""
        columns = list(zip(*rows, strict=True))
        stored = await self._engine.fetch(_INSERTS[kind], columns, writes=True)
        return {row[0] for row in stored}

    async def digests(self, kind: type[Record], ids: Sequence[Any]) -> dict[Any, bytes]:
        """Return the digests of the records that are there."""
        rows = await self._engine.fetch(_DIGESTS[kind], [ids], prepared=False)
        return dict(rows)

    async def touch(self, touches: Sequence[SessionTouch]) -> list[Sequence[Any]]:
        """Return what the sessions are after each touch. A statement may touch each but once."""
        rows: list[Sequence[Any]] = [()] * len(touches)
        for number, turn in enumerate(_turns(touches)):
            places = [turn[key] for key in sorted(turn)]  # The same order everywhere cannot deadlock.
            columns = zip(*(_arguments(touches[place]) for place in places), strict=True)
            with ambiguous_after(number):
                touched = await self._engine.fetch(_TOUCH, list(columns), writes=True)
            for row in touched:
                rows[turn[row[0], row[1]]] = row
        return rows


def _turns(touches: Sequence[SessionTouch]) -> list[dict[tuple[str, str], int]]:
    """Return the places of *touches*, those of the same session one after the other."""
    turns: list[dict[tuple[str, str], int]] = []
    for place, touch in enumerate(touches):
        key = (touch.user_id, touch.session_id)
        for turn in turns:
            if key not in turn:
                turn[key] = place
                break
        else:
            turns.append({key: place})
    return turns


def _arguments(touch: SessionTouch) -> tuple[Any, ...]:
    context = None if touch.context is None else touch.context.decode()
    return touch.user_id, touch.session_id, touch.at, touch.expires_at, context

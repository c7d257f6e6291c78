"""What is particular to PostgreSQL about the logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Interval, Text, bindparam, func, literal_column, or_
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from multidb._core.operation import ambiguous_after
from multidb.logs.backends._sql_postgres_insert import insert
from multidb.logs.backends._sql_rows import POSTGRES
from multidb.logs.backends._sql_statements import TOUCH
from multidb.logs.backends._sql_tables import EVENTS, TABLES, Time
from multidb.logs.protocol import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import ColumnElement

    from multidb.engines.sql import SqlEngine
    from multidb.logs._records import Record
    from multidb.logs.backends._sql_rows import Column
    from multidb.logs.backends._sql_statements import Shape, Statements
    from multidb.logs.protocol import Bucket, SessionTouch

_LIKE: Final = "like"
_ROWS_AT_ONCE: Final = 10_000
_ESCAPED: Final = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})
# The first moment is a Monday: date_bin() of PostgreSQL 14 is off by one for times before its origin. The two
# are written out, as asyncpg would send ±infinity for them.
_FIRST: Final = literal_column("'0001-01-01 00:00:00+00'::timestamptz", Time)
_LAST: Final = literal_column("'9999-12-31 23:59:59.999999+00'::timestamptz", Time)
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

    async def look(self) -> None:
        """See what there is: the planner does, each time."""

    async def how(self, keyword: str, limit: int) -> str:  # noqa: ARG002
        """Return how a keyword is looked for: the planner knows best."""
        return _LIKE

    async def select_all(
        self, statements: Statements, asked: Sequence[tuple[Shape, Mapping[str, Any]]]
    ) -> list[list[Sequence[Any]]]:
        """Return the rows for each of *asked*, a statement for each shape."""
        found: list[list[Sequence[Any]]] = [[] for _ in asked]
        for shape, places in _alike(asked):
            statement = statements.select_each(shape)
            names = asked[places[0]][1]
            arguments = {name: [asked[place][1][name] for place in places] for name in names}
            for row in await self._engine.fetch(statement.sql, statement.args(arguments)):
                found[places[row[-1] - 1]].append(row)
        return found

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

    async def insert(self, kind: type[Record], columns: Sequence[Column]) -> Sequence[UUID]:
        """Insert the rows whose ids are new; return these ids."""
        sql, arguments = insert(kind, columns)
        stored = await self._engine.fetch(sql, arguments, writes=True)
        return columns[0] if len(stored) == len(columns[0]) else [row[0] for row in stored]

    async def digests(self, kind: type[Record], ids: Sequence[UUID]) -> dict[UUID, bytes]:
        """Return the digests of the records that are there."""
        return dict(await self._engine.fetch(_DIGESTS[kind], [ids], prepared=False))

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


def _alike(asked: Sequence[tuple[Shape, Mapping[str, Any]]]) -> Iterator[tuple[Shape, list[int]]]:
    """Yield the places of those that one statement answers: of one shape, and not too many rows together."""
    alike: dict[Shape, list[int]] = {}
    rows: dict[Shape, int] = {}
    for place, (shape, arguments) in enumerate(asked):
        rows[shape] = rows.get(shape, 0) + arguments["limit"]
        if rows[shape] > _ROWS_AT_ONCE and shape in alike:
            yield shape, alike.pop(shape)
            rows[shape] = arguments["limit"]
        alike.setdefault(shape, []).append(place)
    yield from alike.items()


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

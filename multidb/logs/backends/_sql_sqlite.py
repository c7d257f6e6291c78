"""What is particular to SQLite about the logs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import BigInteger, and_, bindparam, func, literal_column, text, type_coerce
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite

from multidb.logs._records import Event
from multidb.logs.backends._sql_rows import SQLITE, micros
from multidb.logs.backends._sql_search_index import is_there
from multidb.logs.backends._sql_statements import TOUCH
from multidb.logs.backends._sql_tables import EVENTS, TABLES
from multidb.logs.protocol import BUCKETS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Table

    from multidb.engines.sql import SqlEngine
    from multidb.logs._records import Record
    from multidb.logs.backends._sql_rows import Column
    from multidb.logs.backends._sql_statements import Shape, Statements
    from multidb.logs.protocol import Bucket, Query, SessionTouch

_INDEXED: Final = "indexed"
_SHORT: Final = "short"
_SCANNED: Final = "scanned"
_TRIGRAM: Final = 3
_MOST_TRIGRAMS: Final = 32
_MOST_ARGUMENTS: Final = 500
# So many records, by the root of how many are wanted, take as long to look up as a million take to look through.
_MANY: Final = 1000
# Of a short keyword every event is counted once for each trigram that begins with it.
_MANY_SHORT: Final = 250
_COUNT_CANDIDATES: Final = """
SELECT count(*) FROM (SELECT rowid FROM multidb_events_search WHERE multidb_events_search MATCH ? LIMIT ?)
"""
_COUNT_SHORT: Final = """
SELECT count(*) FROM (SELECT doc FROM multidb_events_trigrams WHERE term >= ? AND term <= ? LIMIT ?)
"""
_CANDIDATES: Final = {
    _INDEXED: """
SELECT rowid FROM multidb_events_search WHERE multidb_events_search MATCH :trigrams
UNION ALL SELECT seq FROM multidb_events WHERE long_search IS NOT NULL
""",
    # Those of a trigram that begins with the keyword.
    _SHORT: """
SELECT doc FROM multidb_events_trigrams WHERE term >= :keyword AND term <= :last
UNION ALL SELECT seq FROM multidb_events WHERE long_search IS NOT NULL
""",
}
_LAST: Final = "\U0010ffff"
# A Monday before all times: the rest of a negative number would be negative.
_ORIGIN: Final = SQLITE.time(datetime(1, 1, 1, tzinfo=UTC))


def _insert(rows: Table) -> str:
    names = ", ".join(each.name for each in rows.columns)
    marks = ", ".join("?" for _ in rows.columns)
    # The names are our own, here and below.
    return f"INSERT INTO {rows.name} ({names}) VALUES ({marks}) ON CONFLICT (id) DO NOTHING"  # noqa: S608


def _newest(rows: Table) -> str:
    # The ids of the rows that a transaction inserted, if it is told how many.
    return f"SELECT id FROM {rows.name} ORDER BY seq DESC LIMIT ?"  # noqa: S608


_NAMES: Final = ", ".join(column.name for column in EVENTS.columns)
_STAGE: Final = f"CREATE TEMP TABLE IF NOT EXISTS multidb_incoming ({_NAMES})"
_TO_STAGE: Final = f"INSERT INTO temp.multidb_incoming VALUES ({', '.join('?' for _ in EVENTS.columns)})"  # noqa: S608
_FROM_STAGE: Final = (
    f"INSERT INTO multidb_events ({_NAMES}) SELECT * FROM temp.multidb_incoming WHERE true "  # noqa: S608
    "ON CONFLICT (id) DO NOTHING"
)
_INSERTS: Final = {kind: _insert(rows) for kind, rows in TABLES.items()}
_NEWEST: Final = {kind: _newest(rows) for kind, rows in TABLES.items()}
_TOUCH: Final = TOUCH.format(values="VALUES (?, ?, ?3, ?3, ?, NULL, ?)", later="max")


class SqliteFlavour:
    """The logs on SQLite: what `SqlLogBackend` asks for."""

    values: Final = SQLITE
    dialect: Final = SQLiteDialect_aiosqlite()

    def __init__(self, engine: SqlEngine) -> None:
        """Work on *engine*."""
        self._engine = engine
        self._is_indexed = True

    async def dangers(self) -> list[str]:
        """Return nothing: the connection sees to it that what is committed is on the disk."""
        return []

    async def look(self) -> None:
        """See whether there is an index for searching."""
        self._is_indexed = await is_there(self._engine)

    async def close(self) -> None:
        """Do nothing: there is nothing under way beside the calls."""

    async def how(self, query: Query[Any], keyword: str) -> str:
        """
        Return how *keyword* is looked for, to find the first `query.limit` records.

        What many records have is found sooner by looking through them from the newest on.
        """
        is_short = len(keyword) < _TRIGRAM
        if not self._is_indexed or (is_short and "user_id" in query.equal):
            return _SCANNED
        many = int((_MANY_SHORT if is_short else _MANY) * query.limit**0.5)
        count, args = (
            (_COUNT_SHORT, [keyword, keyword + _LAST * 2, many])
            if is_short
            else (_COUNT_CANDIDATES, [_trigrams(keyword), many])
        )
        ((found,),) = await self._engine.fetch(count, args)
        if found == many:
            return _SCANNED
        return _SHORT if is_short else _INDEXED

    async def select_all(
        self, statements: Statements, asked: Sequence[tuple[Shape, Mapping[str, Any]]]
    ) -> list[Sequence[Any]]:
        """Return the rows for each of *asked*."""
        written = [(statements.select(shape), arguments) for shape, arguments in asked]
        return await self._engine.fetch_each(
            [(statement.sql, statement.args(arguments)) for statement, arguments in written]
        )

    def keyword_arguments(self, keyword: str) -> dict[str, Any]:
        """Return the arguments of `contains()`."""
        return {"keyword": keyword, "trigrams": _trigrams(keyword), "last": keyword + _LAST * 2}

    def contains(self, how: str) -> ColumnElement[bool]:
        """Return the condition for a keyword; the index knows who has its trigrams, in whatever order."""
        searched = func.coalesce(EVENTS.c.search, EVENTS.c.long_search)
        there = func.instr(searched, bindparam("keyword")) > literal_column("0")
        if how == _SCANNED:
            return there
        return and_(text(f"multidb_events.seq IN ({_CANDIDATES[how]})"), there)

    def aside(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return *column* such that no index is chosen for it."""
        return literal_column(f"+{column}", type_=column.type)

    def bucket_arguments(self, bucket: Bucket) -> dict[str, Any]:
        """Return the arguments of `bucket()`."""
        return {"width": BUCKETS[bucket] // timedelta(microseconds=1), "origin": _ORIGIN}

    def bucket(self, timestamp: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the start of the bucket of a time."""
        micros = type_coerce(timestamp, BigInteger())
        origin, width = bindparam("origin", type_=BigInteger()), bindparam("width", type_=BigInteger())
        return micros - (micros - origin) % width

    async def insert(self, kind: type[Record], columns: Sequence[Column]) -> Sequence[UUID]:
        """Insert the rows whose ids are new; return these ids."""
        ids = columns[0]
        rows = _rows(columns)
        is_indexed = kind is Event and self._is_indexed
        if len(rows) == 1:  # A statement is a transaction by itself.
            return ids if await self._engine.execute(_INSERTS[kind], rows[0]) else []

        def insert(db: sqlite3.Connection) -> Sequence[UUID]:
            inserted = (
                _insert_staged(db, rows) if is_indexed else db.executemany(_INSERTS[kind], rows).rowcount
            )
            if inserted == len(ids):
                return ids
            return [UUID(bytes=row[0]) for row in db.execute(_NEWEST[kind], (inserted,))]

        return await self._engine.transaction(insert)

    async def digests(self, kind: type[Record], ids: Sequence[UUID]) -> dict[UUID, bytes]:
        """Return the digests of the records that are there."""
        digests: dict[UUID, bytes] = {}
        for start in range(0, len(ids), _MOST_ARGUMENTS):
            some = {uuid.bytes: uuid for uuid in ids[start : start + _MOST_ARGUMENTS]}
            marks = ", ".join("?" * len(some))
            sql = f"SELECT id, digest FROM {TABLES[kind].name} WHERE id IN ({marks})"  # noqa: S608
            found = await self._engine.fetch(sql, list(some))
            digests |= {some[octets]: digest for octets, digest in found}
        return digests

    async def touch(self, touches: Sequence[SessionTouch]) -> list[Sequence[Any]]:
        """Return what the sessions are after each touch."""
        arguments = [_arguments(each) for each in touches]

        def touch(db: sqlite3.Connection) -> list[Sequence[Any]]:
            return [db.execute(_TOUCH, each).fetchone() for each in arguments]

        return await self._engine.transaction(touch)


def _insert_staged(db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> int:
    """
    Insert *rows* of events with one statement; return how many were new.

    FTS5 writes to its index what it has got at the end of every statement: of 500 it takes a quarter of the time.
    """
    db.execute(_STAGE)
    db.executemany(_TO_STAGE, rows)
    inserted = db.execute(_FROM_STAGE).rowcount
    db.execute("DELETE FROM temp.multidb_incoming")
    return inserted


_OCTETS: Final = attrgetter("bytes")


def _rows(columns: Sequence[Column]) -> list[tuple[Any, ...]]:
    ids, user_ids, moments, contexts, digests, *others = columns
    # The amounts of sales.
    others = [[*map(str, each)] if isinstance(each[0], Decimal) else each for each in others]
    return list(
        zip(
            map(_OCTETS, ids),
            user_ids,
            micros(moments),
            map(bytes.decode, contexts),
            digests,
            *others,
            strict=True,
        )
    )


def _trigrams(keyword: str) -> str:
    """Return up to 32 trigrams from all over *keyword*, as a query of FTS5 for all of them."""
    every = max(1, (len(keyword) - _TRIGRAM + 1) // _MOST_TRIGRAMS)
    starts = range(0, len(keyword) - _TRIGRAM + 1, every)
    trigrams = dict.fromkeys(keyword[start : start + _TRIGRAM] for start in starts)
    return " ".join('"' + trigram.replace('"', '""') + '"' for trigram in list(trigrams)[:_MOST_TRIGRAMS])


def _arguments(touch: SessionTouch) -> tuple[Any, ...]:
    context = None if touch.context is None else touch.context.decode()
    times = SQLITE.time(touch.at), SQLITE.time(touch.expires_at)
    return touch.user_id, touch.session_id, *times, context

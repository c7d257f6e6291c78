"""What is particular to PostgreSQL about the logs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Interval, Text, bindparam, false, func, literal_column, or_, text
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from multidb._core.operation import ambiguous_after
from multidb.errors import BackendError, MultiDBError
from multidb.logs._records import Event
from multidb.logs.backends._sql_postgres_insert import insert
from multidb.logs.backends._sql_rows import LAST_LOW, POSTGRES
from multidb.logs.backends._sql_statements import TOUCH
from multidb.logs.backends._sql_tables import EVENTS, TABLES, Time
from multidb.logs.protocol import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import ColumnElement, TextClause

    from multidb.engines.sql import SqlEngine
    from multidb.logs._records import Record
    from multidb.logs.backends._sql_rows import Column
    from multidb.logs.backends._sql_statements import Shape, Statements
    from multidb.logs.protocol import Bucket, Query, SessionTouch

_LIKE: Final = "like"
_SHORT: Final = "short"
_NOTHING: Final = "nothing"
_TRIGRAM: Final = 3
# So many of the newest, by the root of how many are wanted, are looked at before the index is asked.
_FIRST_LOOK: Final = 1000
# The sample that PostgreSQL keeps has a hundredth, or nothing.
_COMMON: Final = 0.005
_TRIGRAMS: Final = """
SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
WHERE extname = 'pg_trgm' AND to_regclass('multidb_events_search') IS NOT NULL
AND has_schema_privilege(pg_namespace.oid, 'USAGE')
"""
_KNOWN: Final = """
SELECT cardinality({trigrams}.show_trgm($1)),
    (SELECT count(*) FROM multidb_characters WHERE character = ANY($2::text[]))
"""
_ESTIMATE: Final = """
EXPLAIN (FORMAT JSON)
SELECT 1 FROM multidb_events WHERE search LIKE $1 UNION ALL SELECT 1 FROM multidb_events
"""
_COUNT_NEWEST: Final = """
SELECT count(*) FROM (
    SELECT FROM (
        SELECT search, long_search FROM multidb_events ORDER BY timestamp DESC, id DESC LIMIT $2
    ) AS newest WHERE search LIKE $1 OR long_search LIKE $1 LIMIT $3
) AS found
"""
# A keyword of two and each character that there is make the trigrams that it may be in. A regular expression for less
# than 256 of them is looked up at once; of patterns for LIKE each one would go through all that is new in the index.
# What stands in a SELECT is hidden from the planner, which takes it for rare, and three times over for so rare that it
# chooses the index.
_OF_TRIGRAMS: Final = rf"""
search ~ ANY (ARRAY(
    SELECT :letters || '[' || string_agg(
        CASE WHEN position(character IN '[]\^-') > 0 THEN '\' ELSE '' END || character, ''
    ) || ']'
    FROM (
        SELECT character, row_number() OVER () / 150 AS part
        FROM multidb_characters WHERE character <= chr({ord(LAST_LOW)})
    ) AS low GROUP BY part
)) AND search LIKE (SELECT :keyword) AND search LIKE (SELECT :keyword)
"""  # noqa: S608
_ROWS_AT_ONCE: Final = 10_000
_ESCAPED: Final = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})
# The first moment is a Monday: date_bin() of PostgreSQL 14 is off by one for times before its origin. The two
# are written out, as asyncpg would send ±infinity for them.
_FIRST: Final = literal_column("'0001-01-01 00:00:00+00'::timestamptz", Time)
_LAST: Final = literal_column("'9999-12-31 23:59:59.999999+00'::timestamptz", Time)
DANGERS: Final = (
    "fsync is off: a crash of the machine loses committed data, and may destroy the rest",
    "synchronous_commit is off: a crash loses what was committed last",
    "full_page_writes is off: a power cut may destroy pages of the tables",
    "tables are unlogged: a crash of the server empties them",
)
_DANGERS: Final = """
SELECT current_setting('fsync') = 'off', current_setting('synchronous_commit') = 'off',
    current_setting('full_page_writes') = 'off', EXISTS (
        SELECT FROM pg_class JOIN unnest(ARRAY[
            'multidb_events', 'multidb_sales', 'multidb_messages', 'multidb_sessions', 'multidb_characters'
        ]) AS name ON oid = to_regclass(name)
        WHERE relpersistence = 'u'
    )
"""
_NEW_CHARACTERS: Final = (
    "INSERT INTO multidb_characters SELECT unnest($1::text[]) ON CONFLICT (character) DO NOTHING"
)
# Of what is new an index keeps a list, which the INSERT that makes it too long has to merge: for 50 ms or so.
_MERGE: Final = "SELECT gin_clean_pending_list('multidb_events_search')"
_MERGED_AT_ONCE: Final = 1500  # That INSERT comes after about 3,500 events of a hundred characters.
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
# It takes the privilege, the room and the locks of an append. The row is rolled back, and the commit is a real one,
# as the transaction has a number by then: it waits for the disk, and for the replicas that commits wait for.
PROBE: Final = f"""
BEGIN;
SAVEPOINT before;
INSERT INTO {EVENTS.name} (id, user_id, timestamp, context, digest, event_type, message, level)
    VALUES (gen_random_uuid(), '', now(), '{{}}', '', '', '', 'DEBUG');
ROLLBACK TO SAVEPOINT before;
SELECT txid_current();
COMMIT
"""  # noqa: S608


class PostgresFlavour:
    """The logs on PostgreSQL: what `SqlLogBackend` asks for."""

    values: Final = POSTGRES
    dialect: Final = PGDialect_asyncpg()  # type: ignore[no-untyped-call]

    def __init__(self, engine: SqlEngine) -> None:
        """Work on *engine*."""
        self._engine = engine
        self._characters: set[str] = set()
        self._known = ""
        self._unmerged = 0
        self._merging: asyncio.Task[None] | None = None

    async def dangers(self) -> list[str]:
        """Return what endangers what was committed."""
        found = await self._engine.fetch(_DANGERS)
        return [danger for danger, applies in zip(DANGERS, found[0], strict=True) if applies]

    async def look(self) -> None:
        """See whether there is an index for searching, and where its functions are."""
        found = await self._engine.fetch(_TRIGRAMS)
        self._known = _KNOWN.format(trigrams=found[0][0]) if found else ""

    async def close(self) -> None:
        """End what is under way beside the calls."""
        if self._merging is not None:
            self._merging.cancel()
            await asyncio.wait((self._merging,))

    async def how(self, query: Query[Any], keyword: str) -> str:
        """
        Return how *keyword* is looked for: the planner knows best, but with a keyword that is no trigram.

        Where the index helps then, the planner cannot tell.
        """
        if len(keyword) >= _TRIGRAM or not self._known or "user_id" in query.equal:
            return _LIKE
        pattern = self.keyword_arguments(keyword)["keyword"]
        newest = int(_FIRST_LOOK * query.limit**0.5)
        if await self._is_common(pattern, newest):
            return _LIKE
        characters = set(keyword)
        ((trigrams, known),) = await self._engine.fetch(self._known, [keyword, [*characters]])
        if known < len(characters):
            return _NOTHING
        # One is in too many trigrams; what is no letter or digit to the index is in none.
        is_indexed = len(keyword) > 1 and trigrams == _TRIGRAM and max(keyword) <= LAST_LOW
        if not is_indexed or await self._is_among(newest, pattern, query.limit):
            return _LIKE
        return _SHORT

    async def _is_common(self, pattern: str, few: int) -> bool:
        """Whether events like *pattern* are found soon, as the planner knows: there are many, or *few* in all."""
        ((plan,),) = await self._engine.fetch(_ESTIMATE, [pattern], prepared=False)
        alike, events = (each["Plan Rows"] for each in plan[0]["Plan"]["Plans"])
        return bool(alike > _COMMON * events or events <= few)

    async def _is_among(self, newest: int, pattern: str, limit: int) -> bool:
        """Whether *limit* of the *newest* events are like *pattern*."""
        ((found,),) = await self._engine.fetch(_COUNT_NEWEST, [pattern, newest, limit], prepared=False)
        return bool(found == limit)

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
        return {"keyword": f"%{keyword.translate(_ESCAPED)}%", "letters": keyword}

    def contains(self, how: str) -> ColumnElement[bool]:
        """Return the condition for a keyword, which the trigram index serves."""
        if how == _NOTHING:
            return false()
        keyword = bindparam("keyword", type_=Text())
        there: ColumnElement[bool] | TextClause = EVENTS.c.search.like(keyword)
        if how == _SHORT:
            there = text(_OF_TRIGRAMS).bindparams(keyword, bindparam("letters", type_=Text()))
        return or_(there, EVENTS.c.long_search.like(keyword))

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
        try:
            if kind is Event:
                *_, searches, long_searches = columns
                await self._note_characters([*filter(None, searches), *filter(None, long_searches)])
            stored = await self._engine.fetch(sql, arguments, writes=True)
        except BackendError:
            self._characters.clear()  # A server that has taken over from another may lack the latest.
            raise
        if kind is Event and self._known:
            self._note_unmerged(len(stored))
        return columns[0] if len(stored) == len(columns[0]) else [row[0] for row in stored]

    def _note_unmerged(self, count: int) -> None:
        """Have the index merge what is new now and then, before somebody's INSERT has to."""
        self._unmerged += count
        if self._unmerged >= _MERGED_AT_ONCE and self._merging is None:
            self._unmerged = 0
            self._merging = asyncio.create_task(self._merge(), name="multidb-search-index", context=Context())

    async def _merge(self) -> None:
        try:
            with suppress(MultiDBError):  # Mostly that the index is another one's; then it is left to INSERT.
                await self._engine.fetch(_MERGE, prepared=False)
        finally:
            self._merging = None

    async def _note_characters(self, texts: Sequence[str]) -> None:
        """See to it that the characters of *texts* are in their table before the texts are in theirs."""
        if self._characters.issuperset("".join(texts)):
            return
        new = set().union(*texts) - self._characters
        # What is there stays as it is, so that an answer that is lost leaves no doubt.
        await self._engine.fetch(_NEW_CHARACTERS, [sorted(new)])  # In order two cannot deadlock.
        self._characters |= new

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

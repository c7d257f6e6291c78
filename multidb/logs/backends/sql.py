"""SqlLogBackend: logs on PostgreSQL and SQLite."""

from __future__ import annotations

from itertools import chain, islice
from operator import attrgetter, gt
from typing import TYPE_CHECKING, Any, Final

from multidb._core.operation import ambiguous_after
from multidb.errors import ConflictError
from multidb.logs._records import Event, Message, MessageStats, Sale, Session
from multidb.logs.backends._sql_postgres import PROBE, PostgresFlavour
from multidb.logs.backends._sql_rows import columns_of, portions, reader
from multidb.logs.backends._sql_schema import create_or_upgrade
from multidb.logs.backends._sql_sqlite import SqliteFlavour
from multidb.logs.backends._sql_statements import DELETED_AT_ONCE, Shape, Statement, Statements
from multidb.logs.protocol import Appended, R

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from uuid import UUID

    from multidb.engines.sql import SqlEngine
    from multidb.logs._records import Record, SaleStatus
    from multidb.logs.protocol import Bucket, Entry, Query, SessionTouch


class SqlLogBackend:
    """
    Logs in four tables: `multidb_events`, `multidb_sales`, `multidb_messages` and `multidb_sessions`.

    In PostgreSQL `multidb_characters` has the characters of searched texts, for searches by short keywords.

    What is acknowledged is committed. A batch of entries is one statement, in SQLite one transaction; a query
    is one statement. A search uses an index of trigrams, if there is one, and may begin with statements that
    find out how best to do that.
    """

    def __init__(self, engine: SqlEngine, *, search_index: bool = True) -> None:
        """
        Keep the logs in the database of *engine*.

        *search_index* sees to it that there is one. Without it a search looks through all events, and appending is
        faster; an index that is there stays, and is used.
        """
        self._engine = engine
        self._search_index = search_index
        self._flavour = _flavour(engine)
        self._values = self._flavour.values
        self._statements = Statements(self._flavour)
        self._readers: dict[Any, Callable[[Sequence[Any]], list[Any]]] = {
            model: reader(model, self._values) for model in (Event, Sale, Message, Session)
        }

    @property
    def name(self) -> str:
        """`postgresql` or `sqlite`."""
        return self._engine.name

    async def open(self) -> None:
        """Create or upgrade the tables. Raises ConfigurationError for tables of a newer multidb."""
        await create_or_upgrade(self._engine, search_index=self._search_index)
        await self._flavour.look()

    async def close(self) -> None:
        """End what is under way beside the calls; the connections are the engine's."""
        await self._flavour.close()

    async def probe(self) -> None:
        """PostgreSQL only: see whether an append would work, on a new connection; nothing is left of it."""
        await self._engine.probe(PROBE)

    def reset(self) -> None:
        """Drop every connection."""
        self._engine.reset()

    async def dangers(self) -> Sequence[str]:
        """Return what about the server's settings endangers what it committed; SQLite's are our own."""
        return await self._flavour.dangers()

    async def append(self, entries: Sequence[Entry[R]], /) -> Sequence[Appended]:
        """Store *entries* in one round trip; in another, look at what was there. Return the outcomes."""
        if not entries:
            return []
        kind = type(entries[0].record)
        stored: list[UUID] = []
        for some in portions(kind, _by_id(entries)):
            with ambiguous_after(stored):
                stored += await self._flavour.insert(kind, columns_of(kind, some))
        if len(stored) == len(entries):
            return [Appended.STORED] * len(entries)
        return await self._outcomes(kind, entries, set(stored))

    async def _outcomes(
        self, kind: type[Record], entries: Sequence[Entry[R]], stored: set[UUID]
    ) -> list[Appended]:
        """Return what became of *entries*: *stored* are the new ids."""
        digests: dict[UUID, bytes] = {}
        for entry in entries:
            digests.setdefault(entry.record.id, entry.digest)
        with ambiguous_after(stored):
            digests |= await self._flavour.digests(kind, [each for each in digests if each not in stored])
        outcomes = []
        for entry in entries:
            record_id = entry.record.id
            if record_id in stored:
                stored.remove(record_id)
                outcomes.append(Appended.STORED)
            # One that is not there was there a moment ago, and has been deleted since.
            elif digests[record_id] == entry.digest:
                outcomes.append(Appended.DUPLICATE)
            else:
                outcomes.append(Appended.CONFLICT)
        return outcomes

    async def query(self, query: Query[R], /) -> list[R]:
        """Return the first `query.limit` matching records, newest first."""
        statement = self._statements.select(await self._shape(query))
        rows = await self._fetch(statement, self._arguments(query), prepared=query.keyword is None)
        return self._readers[query.kind](rows)

    async def query_all(self, queries: Sequence[Query[R]], /) -> Sequence[list[R]]:
        """Return what `query()` returns for each of *queries*: in SQLite in one hop, else a statement a shape."""
        if len(queries) <= 1:
            return [await self.query(query) for query in queries]
        asked = [(_shape(query), self._arguments(query)) for query in queries]
        found = await self._flavour.select_all(self._statements, asked)
        records = iter(self._readers[queries[0].kind]([*chain.from_iterable(found)]))
        return [[*islice(records, len(rows))] for rows in found]

    async def count(self, query: Query[R], by: str | None = None, /) -> dict[str, int]:
        """Count the matching records by the field *by*; those without one count under the key ""."""
        statement = self._statements.count(await self._shape(query, after=False), by)
        rows = await self._fetch(statement, self._arguments(query))
        if by is None:
            return {"": rows[0][0]}
        return {value or "": count for value, count in rows}

    async def histogram(self, query: Query[R], bucket: Bucket, /) -> dict[datetime, int]:
        """Count the matching records by the start of their *bucket*, oldest first."""
        statement = self._statements.histogram(await self._shape(query, after=False))
        arguments = self._arguments(query) | self._flavour.bucket_arguments(bucket)
        rows = await self._fetch(statement, arguments)
        return {self._values.moment(start): count for start, count in rows}

    async def delete(self, query: Query[R], /) -> int:
        """Delete the matching records, some thousands at a time: what takes too long goes on where it was."""
        statement = self._statements.delete(await self._shape(query, after=False))
        args = statement.args(self._arguments(query))
        deleted = 0
        while True:
            with ambiguous_after(deleted):
                now = await self._engine.execute(statement.sql, args)
            deleted += now
            if now < DELETED_AT_ONCE:
                return deleted

    async def set_sale_status(
        self, sale_id: UUID, status: SaleStatus, allowed_from: Sequence[SaleStatus], /
    ) -> Sale | None:
        """Give a sale a new status in one atomic step. Raises ConflictError when it may not get it."""
        arguments: dict[str, Any] = {"id": self._values.id(sale_id), "new_status": status}
        arguments |= {f"allowed_{number}": each for number, each in enumerate(allowed_from)}
        while True:
            change = self._statements.set_status(len(allowed_from))
            rows = await self._fetch(change, arguments, writes=True)
            if rows:
                return self._sale(rows)
            rows = await self._fetch(self._statements.sale(), arguments)
            if not rows:
                return None
            sale = self._sale(rows)
            if sale.status == status:
                return sale
            if sale.status not in allowed_from:
                msg = f"a sale that is {sale.status} cannot become {status}"
                raise ConflictError(msg)
            # It got a status it may have between the two statements: once more.

    async def message_stats(self, query: Query[R], /) -> MessageStats:
        """Aggregate the matching messages in the database."""
        statement = self._statements.message_stats(await self._shape(query, after=False))
        rows = await self._fetch(statement, self._arguments(query))
        (totals,) = (row for row in rows if row[0] is None)
        _, total, users, conversations, characters, first, last = totals
        return MessageStats(
            total=total,
            by_role={role: count for role, count, *_ in rows if role is not None},
            users=users,
            conversations=conversations,
            characters=characters,
            first_at=None if first is None else self._values.moment(first),
            last_at=None if last is None else self._values.moment(last),
        )

    async def touch_sessions(self, touches: Sequence[SessionTouch], /) -> list[Session]:
        """Start or continue sessions; return each as it is after its touch."""
        return self._readers[Session](await self._flavour.touch(touches)) if touches else []

    async def active_sessions(self, user_id: str | None, now: datetime, limit: int, /) -> list[Session]:
        """Return the sessions active at *now*, the last seen first."""
        statement = self._statements.active_sessions(of_user=user_id is not None)
        arguments = {"user_id": user_id, "now": self._values.time(now), "limit": limit}
        return self._readers[Session](await self._fetch(statement, arguments, prepared=True))

    async def end_session(self, user_id: str, session_id: str, now: datetime, /) -> bool:
        """End a session that is active at *now*; return whether there was one."""
        statement = self._statements.end_session()
        arguments = {"user_id": user_id, "session_id": session_id, "now": self._values.time(now)}
        return await self._engine.execute(statement.sql, statement.args(arguments)) == 1

    async def _shape(self, query: Query[Any], *, after: bool = True) -> Shape:
        how = "" if query.keyword is None else await self._flavour.how(query, query.keyword)
        return _shape(query, after=after, how=how)

    def _arguments(self, query: Query[Any]) -> dict[str, Any]:
        time = self._values.time
        arguments: dict[str, Any] = {**query.equal, "limit": query.limit}
        if query.since is not None:
            arguments["since"] = time(query.since)
        if query.until is not None:
            arguments["until"] = time(query.until)
        if query.after is not None:
            arguments["after_time"] = time(query.after[0])
            arguments["after_id"] = self._values.id(query.after[1])
        if query.keyword is not None:
            arguments |= self._flavour.keyword_arguments(query.keyword)
        return arguments

    async def _fetch(
        self, statement: Statement, arguments: dict[str, Any], *, writes: bool = False, prepared: bool = False
    ) -> Sequence[Any]:
        # Prepared is what is run all the time and has but one good plan.
        return await self._engine.fetch(
            statement.sql, statement.args(arguments), writes=writes, prepared=prepared
        )

    def _sale(self, rows: Sequence[Any]) -> Sale:
        sale: Sale
        (sale,) = self._readers[Sale](rows)
        return sale


def _shape(query: Query[Any], *, after: bool = True, how: str = "") -> Shape:
    return Shape(
        kind=query.kind,
        equal=tuple(sorted(query.equal)),
        since=query.since is not None,
        until=query.until is not None,
        after=after and query.after is not None,
        keyword=how,
    )


_NUMBER: Final = attrgetter("record.id.int")


def _by_id(entries: Sequence[Entry[R]]) -> Sequence[Entry[R]]:
    """Return *entries* by their ids: two that insert the same ids in the same order cannot deadlock."""
    ids = [*map(_NUMBER, entries)]
    # What IdFactory has just made is in order already.
    if any(map(gt, ids, islice(ids, 1, None))):
        return sorted(entries, key=_NUMBER)
    return entries


def _flavour(engine: SqlEngine) -> PostgresFlavour | SqliteFlavour:
    return PostgresFlavour(engine) if engine.name == "postgresql" else SqliteFlavour(engine)

"""MemoryLogBackend: logs in the memory of this process, gone with it."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Generic

from multidb._core.values import load
from multidb.logs._records import Event, Message, Record, Sale
from multidb.logs.backends._in_process import (
    SessionTable,
    counts_by_bucket,
    ended,
    has,
    searched_text,
    stats_of,
    steps_to,
    tally,
    touched,
)
from multidb.logs.protocol import Appended, R

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from multidb.logs._records import MessageStats, SaleStatus, Session
    from multidb.logs.protocol import Bucket, Entry, Query, SessionTouch

# The fields that calls select by most; a list of its own for each of their values costs 9 bytes a record.
_INDEXED: Final[dict[type[Record], tuple[str, ...]]] = {
    Event: ("user_id", "event_type"),
    Sale: ("user_id", "product_type"),
    Message: ("user_id", "conversation_id"),
}
# What is looked at without giving others a turn: some milliseconds at worst.
_BLOCK: Final = 1000
# From here on, sorting anew (which is one merge) beats moving half the list for each.
_FEW: Final = 100


class MemoryLogBackend:
    """
    Logs in process: a backend for a small bot, and the fake for tests.

    Records are kept sorted by (timestamp, id), all together and by the fields most asked for: appending and
    reading the newest cost the same however many there are. A search looks at every record, or at every one
    of the user it is given.
    """

    name: Final = "memory"

    def __init__(self) -> None:
        """Start empty. The data outlives a close, and goes with the object."""
        self._tables: dict[type[Record], _Table[Any]] = {kind: _Table(kind) for kind in _INDEXED}
        self._sessions = SessionTable()

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """There is nothing to close."""

    async def append(self, entries: Sequence[Entry[R]], /) -> Sequence[Appended]:
        """Store *entries*; return what became of each."""
        return self._tables[type(entries[0].record)].append(entries) if entries else []

    async def query(self, query: Query[R], /) -> list[R]:
        """Return the first `query.limit` matching records, newest first."""
        found = await self._tables[query.kind].newest_first(query, query.limit)
        return [stored.copy() for stored in found]

    async def query_all(self, queries: Sequence[Query[R]], /) -> Sequence[list[R]]:
        """Return what `query()` returns for each of *queries*."""
        return [await self.query(query) for query in queries]

    async def count(self, query: Query[R], by: str | None = None, /) -> dict[str, int]:
        """Count the matching records by the field *by*."""
        records = await self._matching(query)
        if by is None:
            return {"": len(records)}
        return tally(getattr(record, by) for record in records)

    async def histogram(self, query: Query[R], bucket: Bucket, /) -> dict[datetime, int]:
        """Count the matching records by time."""
        records = await self._matching(query)
        return counts_by_bucket((record.timestamp for record in records), bucket)

    async def delete(self, query: Query[R], /) -> int:
        """Delete the matching records; return how many."""
        table = self._tables[query.kind]
        return table.delete(await table.newest_first(replace(query, after=None)))

    async def set_sale_status(
        self, sale_id: UUID, status: SaleStatus, allowed_from: Sequence[SaleStatus], /
    ) -> Sale | None:
        """Give a sale a new status."""
        stored: _Stored[Sale] | None = self._tables[Sale].get(sale_id)
        if stored is None:
            return None
        if steps_to(stored.record, status, allowed_from):
            stored.record = stored.record.model_copy(update={"status": status})
        return stored.copy()

    async def message_stats(self, query: Query[R], /) -> MessageStats:
        """Aggregate the matching messages."""
        return stats_of(await self._matching(query))

    async def touch_sessions(self, touches: Sequence[SessionTouch], /) -> list[Session]:
        """Start or continue sessions."""
        sessions = []
        for touch in touches:
            stored = touched(self._sessions.get(touch.user_id, touch.session_id), touch)
            self._sessions.put(stored)
            sessions.append(stored.copy())
        return sessions

    async def active_sessions(self, user_id: str | None, now: datetime, limit: int, /) -> list[Session]:
        """Return active sessions, latest first."""
        return self._sessions.active(user_id, now, limit)

    async def end_session(self, user_id: str, session_id: str, now: datetime, /) -> bool:
        """End a session."""
        stored = ended(self._sessions.get(user_id, session_id), now)
        if stored is not None:
            self._sessions.put(stored)
        return stored is not None

    async def _matching(self, query: Query[Any]) -> list[Any]:
        """Return the matching records, whatever `after` and `limit` say. They are for looking at only."""
        found = await self._tables[query.kind].newest_first(replace(query, after=None))
        return [stored.record for stored in found]


class _Stored(Generic[R]):
    """A record as it is kept: the context apart, as canonical JSON, which nobody can change from outside."""

    __slots__ = ("_text", "context", "digest", "key", "record")

    def __init__(self, entry: Entry[R]) -> None:
        record = entry.record
        self.key = (record.timestamp, record.id.int)
        self.record = record.model_copy(update={"context": {}}) if record.context else record
        self.context = entry.context
        self.digest = entry.digest
        self._text: str | None = None

    def copy(self) -> R:
        return self.record.model_copy(update={"context": load(self.context)})

    def fits(self, query: Query[R]) -> bool:
        """Return whether it fulfils the conditions that are not on time."""
        if query.equal and not has(vars(self.record), query.equal):
            return False
        return query.keyword is None or query.keyword in self._searched_text()

    def _searched_text(self) -> str:
        if self._text is None:
            self._text = searched_text(vars(self.record))
        return self._text


_key = attrgetter("key")


class _Table(Generic[R]):
    """The records of one kind, sorted by (timestamp, id), whole and by each value of the indexed fields."""

    def __init__(self, kind: type[R]) -> None:
        self._indexed = _INDEXED[kind]
        self._by_id: dict[UUID, _Stored[R]] = {}
        self._all: list[_Stored[R]] = []
        self._by_value: defaultdict[tuple[str, str | None], list[_Stored[R]]] = defaultdict(list)

    def get(self, record_id: UUID) -> _Stored[R] | None:
        return self._by_id.get(record_id)

    def append(self, entries: Sequence[Entry[R]]) -> list[Appended]:
        added: list[_Stored[R]] = []
        outcomes = []
        for entry in entries:
            known = self._by_id.get(entry.record.id)
            if known is None:
                stored = self._by_id[entry.record.id] = _Stored(entry)
                added.append(stored)
                outcomes.append(Appended.STORED)
            else:
                same = known.digest == entry.digest
                outcomes.append(Appended.DUPLICATE if same else Appended.CONFLICT)
        self._sort_in(added)
        return outcomes

    def _sort_in(self, added: list[_Stored[R]]) -> None:
        added.sort(key=_key)
        _merge(self._all, added)
        by_value: defaultdict[tuple[str, str | None], list[_Stored[R]]] = defaultdict(list)
        for stored in added:
            for name in self._indexed:
                by_value[name, getattr(stored.record, name)].append(stored)
        for key, rows in by_value.items():
            _merge(self._by_value[key], rows)

    async def newest_first(self, query: Query[R], limit: int | None = None) -> list[_Stored[R]]:
        """Return the first *limit* that match. Others get their turn in between, and may change the table."""
        found: list[_Stored[R]] = []
        below = query.after and (query.after[0], query.after[1].int)
        while True:
            rows = self._rows(query)
            low, high = _bounds(rows, query, below)
            start = max(low, high - _BLOCK)
            for at in range(high - 1, start - 1, -1):
                if rows[at].fits(query):
                    found.append(rows[at])
                    if len(found) == limit:
                        return found
            if start == low:
                return found
            below = rows[start].key
            await asyncio.sleep(0)

    def _rows(self, query: Query[R]) -> list[_Stored[R]]:
        """Return the shortest list that holds all that matches."""
        lists = [self._by_value.get((n, query.equal[n]), []) for n in self._indexed if n in query.equal]
        return min(lists, key=len, default=self._all)

    def delete(self, found: Sequence[_Stored[R]]) -> int:
        """Delete what is still there of *found*; return how many."""
        doomed = {stored.record.id for stored in found if self._by_id.pop(stored.record.id, None) is stored}
        if not doomed:
            return 0
        self._all = [stored for stored in self._all if stored.record.id not in doomed]
        for key in {(name, getattr(stored.record, name)) for stored in found for name in self._indexed}:
            kept = [stored for stored in self._by_value.pop(key, ()) if stored.record.id not in doomed]
            if kept:
                self._by_value[key] = kept
        return len(doomed)


def _bounds(rows: list[_Stored[R]], query: Query[R], below: tuple[datetime, int] | None) -> tuple[int, int]:
    """Return from where to where the times fit."""
    low = 0 if query.since is None else bisect_left(rows, (query.since, 0), key=_key)
    high = len(rows) if query.until is None else bisect_left(rows, (query.until, 0), key=_key)
    if below is not None:
        high = min(high, bisect_left(rows, below, key=_key))
    return low, max(low, high)


def _merge(rows: list[_Stored[R]], added: list[_Stored[R]]) -> None:
    """Insert what is *added*, which is sorted, in its place: nearly always the end."""
    if not rows or not added or rows[-1].key < added[0].key:
        rows += added
    elif len(added) < _FEW:
        for stored in added:
            insort(rows, stored, key=_key)
    else:
        rows += added
        rows.sort(key=_key)

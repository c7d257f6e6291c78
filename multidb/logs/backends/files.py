"""FileLogBackend: logs as lines of JSON, in one file a day."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from multidb._core.files import translating
from multidb.errors import ClosedError
from multidb.logs.backends._group_commit import GroupCommit
from multidb.logs.backends._in_process import counts_by_bucket, stats_of, tally
from multidb.logs.backends._log_folder import Alone, Call, LogFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path
    from uuid import UUID

    from multidb.logs._records import MessageStats, Sale, SaleStatus, Session
    from multidb.logs.backends._kind_files import KindFiles
    from multidb.logs.protocol import Appended, Bucket, Entry, Query, R, SessionTouch

T = TypeVar("T")

_READERS: Final = 4


class FileLogBackend:
    """
    Logs in *folder*, as lines of JSON that a person can read: `events/2026-11-20.jsonl`, one file a UTC day.

    Acknowledged means synced to the disk; calls made at the same time share a sync. One process at a time
    owns the folder. While it is open, a file may be removed by hand, and is gone then, but not edited.

    A record costs 60 bytes of memory, which are there to know every id, and to find a time and a user's
    records without reading. A million records cost 10 seconds at the start, to read and check them.
    A query reads the lines of its user and its days; a search reads every line between its times.
    """

    name: Final = "files"

    def __init__(self, folder: Path) -> None:
        """Keep logs in *folder*, which `open()` creates."""
        self._path = folder
        self._open: _Open | None = None

    @property
    def bad_lines(self) -> int:
        """How many lines are skipped because they are damaged; 0 while closed."""
        return 0 if self._open is None else self._open.folder.bad_lines

    async def open(self) -> None:
        """Repair and read the folder. Raises ConfigurationError when another process has it, BackendError."""
        opened = _Open(LogFolder(self._path))
        await opened.start()
        self._open = opened

    async def close(self) -> None:
        """Wait for what is being written, and give the folder back."""
        opened, self._open = self._open, None
        if opened is not None:
            # A close that is given up on still has to give the folder back.
            await asyncio.shield(asyncio.create_task(opened.stop(), name="multidb-logs-close"))

    def abandon(self) -> None:
        """Give the folder back without the event loop."""
        opened, self._open = self._open, None
        if opened is not None:
            opened.abandon()

    async def append(self, entries: Sequence[Entry[R]], /) -> Sequence[Appended]:
        """Store *entries*; return what became of each."""
        outcomes: list[Appended] = await self._write(lambda batch: batch.append(entries))
        return outcomes

    async def query(self, query: Query[R], /) -> list[R]:
        """Return the first `query.limit` matching records, newest first."""
        return await self._read(query, lambda files: _newest(files, query))

    async def query_all(self, queries: Sequence[Query[R]], /) -> Sequence[list[R]]:
        """Return what `query()` returns for each of *queries*, found in one thread."""
        if not queries:
            return []
        return await self._read(queries[0], lambda files: [_newest(files, query) for query in queries])

    async def count(self, query: Query[R], by: str | None = None, /) -> dict[str, int]:
        """Count the matching records by the field *by*."""
        whole = replace(query, after=None)
        if by is None:
            return await self._read(query, lambda files: {"": files.count(whole)})
        return await self._read(query, lambda files: tally(files.values(whole, by)))

    async def histogram(self, query: Query[R], bucket: Bucket, /) -> dict[datetime, int]:
        """Count the matching records by time."""
        whole = replace(query, after=None)
        return await self._read(query, lambda files: counts_by_bucket(files.moments(whole), bucket))

    async def delete(self, query: Query[R], /) -> int:
        """Delete the matching records; return how many. A file in which some stay is written anew."""
        files = self._opened().folder.kinds[query.kind]
        deleted: int = await self._write(Alone(lambda: files.delete(replace(query, after=None))))
        return deleted

    async def set_sale_status(
        self, sale_id: UUID, status: SaleStatus, allowed_from: Sequence[SaleStatus], /
    ) -> Sale | None:
        """Give a sale a new status: a new line for it is appended, and the last one counts."""
        sale: Sale | None = await self._write(
            lambda batch: batch.set_sale_status(sale_id, status, allowed_from)
        )
        return sale

    async def message_stats(self, query: Query[R], /) -> MessageStats:
        """Aggregate the matching messages."""
        whole = replace(query, after=None)
        return await self._read(
            query, lambda files: stats_of(line.record for line in files.newest_first(whole))
        )

    async def touch_sessions(self, touches: Sequence[SessionTouch], /) -> list[Session]:
        """Start or continue sessions."""
        sessions: list[Session] = await self._write(lambda batch: batch.touch_sessions(touches))
        return sessions

    async def active_sessions(self, user_id: str | None, now: datetime, limit: int, /) -> list[Session]:
        """Return active sessions, latest first."""
        opened = self._opened()
        return await opened.read(lambda: opened.folder.sessions.active(user_id, now, limit))

    async def end_session(self, user_id: str, session_id: str, now: datetime, /) -> bool:
        """End a session."""
        was_active: bool = await self._write(lambda batch: batch.end_session(user_id, session_id, now))
        return was_active

    async def _write(self, call: Call) -> Any:
        return await self._opened().writer.submit(call)

    async def _read(self, query: Query[R], work: Callable[[KindFiles[Any]], T]) -> T:
        opened = self._opened()
        files = opened.folder.kinds[query.kind]
        return await opened.read(lambda: work(files))

    def _opened(self) -> _Open:
        if self._open is None:
            msg = "the log files are not open"
            raise ClosedError(msg)
        return self._open


def _newest(files: KindFiles[R], query: Query[R]) -> list[R]:
    return [line.record for line in islice(files.newest_first(query), query.limit)]


class _Open:
    """What there is between `open()` and `close()`: the folder, a thread that writes and some that read."""

    def __init__(self, folder: LogFolder) -> None:
        self.folder = folder
        self.writer: GroupCommit[Call] = GroupCommit(folder.commit, "multidb-logs-write")
        self._readers = ThreadPoolExecutor(_READERS, "multidb-logs-read")

    async def start(self) -> None:
        """Open the folder; leave nothing behind when that fails or is cancelled."""
        opening = asyncio.ensure_future(self.writer.submit(Alone(self.folder.open)))
        try:
            await asyncio.shield(opening)
        except BaseException:
            stopping = asyncio.ensure_future(self.stop())
            await asyncio.shield(stopping)
            raise

    async def stop(self) -> None:
        """Finish the writes and the reads, then close the folder."""
        try:
            await self.writer.submit(Alone(self.folder.close))
        finally:
            await self.writer.close()
            await asyncio.to_thread(self._readers.shutdown)

    def abandon(self) -> None:
        """Let the write under way be finished in its thread, then close the folder. In a forked child: its copy."""
        self.writer.abandon()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self.folder.close()

    async def read(self, work: Callable[[], T]) -> T:
        """Return what *work* returns in a thread."""
        with translating():
            return await asyncio.get_running_loop().run_in_executor(self._readers, work)

"""Spool: keeps the records of a store on the disk until they are replayed to the server."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar

from multidb._core.clock import SystemClock
from multidb._core.files import safe_name, translating
from multidb.errors import ClosedError, InvalidArgumentError
from multidb.resilience.spool._disks import check_place
from multidb.resilience.spool._files import SpoolFiles
from multidb.resilience.spool._lines import MAX_RECORD_BYTES, Header
from multidb.resilience.spool._records import Limits
from multidb.resilience.spool._workers import Appends, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from multidb._core.clock import Clock
    from multidb.resilience.spool._records import Batch, SpooledRecord, SpoolStats
    from multidb.resilience.spool._source import Position

T = TypeVar("T")

_log = logging.getLogger("multidb")

_MEBIBYTE: Final = 1024 * 1024
# For each of two threads.
_ABANDON_SECONDS: Final = 0.5


class Spool:
    """
    Records of one *store* in the folder *root*, which no crash takes away once they are acknowledged.

    Nothing is created before the first append, and nothing is left once all is done. Each spool has a folder of its
    own, `<host>/<process id>-<uuid>/<store>/`, and a lock on it that ends with the process; the folders of dead
    processes are adopted, by one spool of the same *store* and *namespace*. The namespace says where the records are
    to go: spools for two databases must not share one.

    What fails raises BackendError: OverloadedError where there is no room. No message quotes a record.
    """

    def __init__(
        self,
        root: Path,
        store: str,
        *,
        namespace: str = "",
        limits: Limits | None = None,
        clock: Clock | None = None,
        host: str | None = None,
        adopt_seconds: float = 30.0,
        any_file_system: bool = False,
    ) -> None:
        """Set what is kept where; `open()` looks at it. *any_file_system*: memory and network will do."""
        self.store = store
        self._root = root.absolute()
        self._header = Header(safe_name(store), namespace)
        self._limits = Limits() if limits is None else limits
        self._clock = SystemClock() if clock is None else clock
        self._host = safe_name(socket.gethostname() if host is None else host)
        self._adopt_seconds = adopt_seconds
        self._any_file_system = any_file_system
        self._opened: _Opened | None = None

    async def open(self) -> None:
        """Adopt what dead processes left. Raises ConfigurationError where the folder is no place for a spool."""
        if self._opened is not None:
            return
        opened = _Opened(
            SpoolFiles(self._root, self._host, self._header, self._limits, self._clock), self._adopt_seconds
        )
        try:
            await opened.reader.run(lambda: check_place(self._root, any_file_system=self._any_file_system))
            await opened.adopt()
        except BaseException:
            opened.abandon()
            raise
        opened.schedule()
        self._opened = opened

    async def close(self) -> None:
        """Finish the appends under way, and give the folders up; what is not done waits for the next spool."""
        opened, self._opened = self._opened, None
        if opened is not None:
            # A close that is given up on still has to give the folders up.
            await asyncio.shield(
                asyncio.create_task(opened.close(), name=f"multidb-spool-{self.store}-close")
            )

    def abandon(self) -> None:
        """Give the folders up without the event loop. In a forked child they are left to the parent."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.abandon()

    async def append(self, records: Sequence[bytes], /) -> None:
        """
        Keep *records*, each JSON on one line; return once they are on the disk.

        Raises OverloadedError, BackendUnavailableError: none of them is kept then, unless the error is ambiguous.
        Cancelled, they may be kept all the same.
        """
        opened = self._here()
        size = 0
        for record in records:
            if not record or len(record) > MAX_RECORD_BYTES or b"\n" in record:
                msg = f"records: {len(record):,} bytes; one is a line of JSON of up to {MAX_RECORD_BYTES:,} bytes"
                raise InvalidArgumentError(msg)
            size += len(record)
        if records:
            await opened.appends.submit(records, size)

    async def read_batch(self, most: int = 500, max_bytes: int = _MEBIBYTE) -> Batch | None:
        """
        Return the next records to replay, at least one, in the order in which they were appended; None: all is done.

        They are all of one owner, the one with the oldest record; up to *most*, and to *max_bytes*. Until `done()`
        the same ones come again. Damaged records, and those over the limit of age, are set aside and not returned.
        """
        opened = self._here()
        batch = await opened.read(lambda: opened.files.read(most, max_bytes))
        opened.note()
        return batch

    def found(self) -> list[str]:
        """Return, for each record that `read_batch()` has set aside since this was called last, the reason."""
        return self._here().files.found()

    async def done(self, position: Position, /) -> None:
        """
        Take everything up to *position* for done: of a whole batch, or of a record in it.

        It is durable when it returns, unless the disk is full; a crash before that means that the batch comes again.
        """
        opened = self._here()
        await opened.read(lambda: opened.files.done(position))
        opened.note()

    async def reject(self, record: SpooledRecord, reason: str, /) -> None:
        """
        Set aside a *record* that the server refuses for good; it is still to be `done()`.

        The *reason* quotes no data: it is shown, and logged.
        """
        opened = self._here()
        await opened.read(lambda: opened.files.reject(record, reason))

    async def adopt(self) -> int:
        """Take over at once what dead processes left, and tidy up; return how many records. It comes by itself, too."""
        return await self._here().adopt()

    async def wait(self) -> None:
        """Return as soon as there is something to replay."""
        await self._here().waiting.wait()

    @property
    def pending(self) -> int:
        """How many records are not done; 0 while closed, and in a forked child."""
        opened = self._opened
        # A lock may have been held by another thread when the child was forked, and there nobody gives it back.
        return 0 if opened is None or opened.is_inherited else opened.files.records

    def stats(self) -> SpoolStats:
        """Return what there is. This does not wait for anything."""
        return self._here().files.stats()

    def _here(self) -> _Opened:
        if self._opened is None:
            msg = "the spool is not open"
            raise ClosedError(msg)
        self._opened.check()
        return self._opened


class _Opened:
    """What a spool has while it is open: two threads, and a timer."""

    def __init__(self, files: SpoolFiles, adopt_seconds: float) -> None:
        """Start nothing yet."""
        self.files = files
        self.reader = Worker("multidb-spool-read")
        self.waiting = asyncio.Event()
        self._writer = Worker("multidb-spool-write")
        self.appends = Appends(files.commit, self._writer, self.note)
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._adopt_seconds = adopt_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._busy: set[Future[Any]] = set()
        self._giving_up = Lock()

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child: files and threads are the parent's."""
        return self._pid != os.getpid()

    def check(self) -> None:
        """Raise ClosedError in a forked child."""
        if self.is_inherited:
            msg = "the spool was opened before a fork: open another one in the child process"
            raise ClosedError(msg)

    async def read(self, call: Callable[[], T]) -> T:
        """Return what *call* returns in the thread that reads."""
        with translating():
            return await self.reader.run(call)

    async def adopt(self) -> int:
        """Adopt, and tidy up."""
        records = await self.read(self._adopt)
        self.note()
        return records

    def note(self) -> None:
        """Wake those that wait for something to replay, when there is something."""
        if self.files.records:
            self.waiting.set()
        else:
            self.waiting.clear()

    def schedule(self) -> None:
        """Adopt again some time from now."""
        if not self._closing:
            self._timer = self._loop.call_later(self._adopt_seconds, self._start_adopting)

    async def close(self) -> None:
        """End everything in order."""
        self._stop()
        await self.appends.drain()
        try:
            with translating():
                await self._writer.run(self.files.seal)
                await self.reader.run(self.files.release)
        finally:
            await self._writer.close()
            await self.reader.close()

    def abandon(self) -> None:
        """End everything without the event loop."""
        self._stop()
        mine = not self.is_inherited
        seconds = _ABANDON_SECONDS if mine else 0.0
        self._busy = {future for worker in (self._writer, self.reader) for future in worker.abandon(seconds)}
        if not mine:
            return
        if not self._busy:
            self._give_up()
            return
        # A disk that hangs is not to hang the program. Until that ends, nobody else may have the folders.
        _log.warning("the disk of the spool is slow, or hangs: its folders are given up when that ends")
        for future in tuple(self._busy):
            future.add_done_callback(self._no_longer_busy)

    def _no_longer_busy(self, future: Future[Any]) -> None:
        """In a thread: give the folders up after the last call."""
        with self._giving_up:
            self._busy.discard(future)
            if not self._busy:
                self._give_up()

    def _give_up(self) -> None:
        self.files.seal()
        self.files.release()

    def _stop(self) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _adopt(self) -> int:
        self.files.tidy()
        return self.files.adopt()

    def _start_adopting(self) -> None:
        self.reader.start(self._adopt, self._adopted)

    def _adopted(self, done: Future[Any]) -> None:
        if done.cancelled():
            return
        if done.exception() is not None:
            _log.warning("the spool cannot be looked through: %s", type(done.exception()).__name__)
        self.note()
        self.schedule()

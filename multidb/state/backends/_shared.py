"""Tables that a journal keeps, and that several processes share through it."""

from __future__ import annotations

import asyncio
import logging
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

from multidb._core.files import translating
from multidb._core.locks import held_elsewhere, pauses
from multidb.errors import BackendError, BackendTimeoutError, BackendUnavailableError, ClosedError
from multidb.state.backends._journal import Successor, load_journal, sync
from multidb.state.backends._records import Recorder, line, records_of
from multidb.state.backends._tables import PRUNED_AT_ONCE, microseconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from multidb._core.clock import Clock
    from multidb.state.backends._journal import Journal
    from multidb.state.backends._tables import Tables

R = TypeVar("R")

_log = logging.getLogger("multidb")

_SYNC_SECONDS: Final = 1.0
_RECORDS_AT_ONCE: Final = 64


class SharedTables:
    """
    Runs every step on the state as all processes left it, under the lock of the journal.

    A step's changes are in the journal, that is with the kernel, before `write()` returns, and on the disk a
    second later.
    """

    def __init__(self, folder: Path, clock: Clock, timeout_seconds: float) -> None:
        """Choose the folder; nothing happens before `open()`. A call waits up to *timeout_seconds* for its turn."""
        self._folder = folder
        self._clock = clock
        self._timeout = timeout_seconds
        self._journal: Journal | None = None
        self._tables: Tables
        self._turns: asyncio.Lock
        self._in_turn = 0
        """How many calls wait for the lock, or have just got it."""
        self._timer: asyncio.TimerHandle | None = None
        self._upkeep: asyncio.Task[None] | None = None
        self._unsynced = False
        self._closing = False
        self._sync_error: Exception | None = None

    async def open(self) -> None:
        """Create the journal, or load what it says."""
        self._turns = asyncio.Lock()
        self._timer = self._upkeep = self._sync_error = None
        self._closing = False
        with translating():
            await self._load()

    async def close(self) -> None:
        """Make everything durable, and let go of the journal."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._upkeep is not None:
            await asyncio.wait((self._upkeep,))
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._unsynced:
            with translating():
                await asyncio.to_thread(sync, self._folder)
            self._unsynced = False

    async def read(self, look: Callable[[Tables, int], R]) -> R:
        """Return what *look* sees."""
        try:
            if self._opened().is_current():
                return look(self._tables, microseconds(self._clock))
            journal = await self._enter()
            try:
                return look(self._tables, microseconds(self._clock))
            finally:
                journal.unlock()
        except OSError:
            with translating():  # Entered on failure only: it costs as much as the rest of a read.
                raise

    async def write(self, step: Callable[[Recorder, int], R]) -> R:
        """Return what *step* returns, with its changes in the journal. When that fails, they are undone."""
        if self._sync_error is not None:
            msg = "the journal could not be made durable; that is being tried again"
            raise BackendUnavailableError(msg) from self._sync_error
        try:
            return self._recorded(await self._enter(), step)
        except OSError:
            with translating():
                raise

    def _recorded(self, journal: Journal, step: Callable[[Recorder, int], R]) -> R:
        """Under the lock, which is given back: run *step*, and append what it changed."""
        recorder = Recorder(self._tables)
        try:
            now = microseconds(self._clock)
            self._tables.prune(now, PRUNED_AT_ONCE)
            result = step(recorder, now)
            if recorder.records:
                journal.append(recorder.records)
                self._sync_soon()
        except BaseException:
            recorder.undo()
            raise
        finally:
            journal.unlock()
        return result

    def _opened(self) -> Journal:
        if self._journal is None:
            msg = "the journal is not open"
            raise ClosedError(msg)
        return self._journal

    async def _enter(self) -> Journal:
        """Take the lock and read what is new. The caller must await nothing before it gives the lock back."""
        journal = self._opened()
        if not self._in_turn and journal.try_lock():
            if self._catch_up(journal):
                return journal
            journal.unlock()
        self._in_turn += 1
        try:
            async with asyncio.timeout(self._timeout):
                return await self._enter_in_turn()
        except TimeoutError:
            raise held_elsewhere(self._opened().lock_path) from None
        finally:
            self._in_turn -= 1

    async def _enter_in_turn(self) -> Journal:
        """As `_enter()`, where that takes time: who comes later waits behind."""
        async with self._turns:
            for pause in pauses():
                journal = self._opened()
                if journal.try_lock():
                    if self._catch_up(journal):
                        return journal
                    journal.unlock()
                    await self._load()
                else:
                    await asyncio.sleep(pause)
        raise AssertionError  # pragma: no cover -- the pauses do not end

    def _catch_up(self, journal: Journal) -> bool:
        """Under the lock: read what is new; return False where the journal has to be loaded again."""
        if journal.is_current():
            return True
        known = len(journal.damaged)
        try:
            caught_up = journal.catch_up(self._tables)
        except BaseException:
            journal.unlock()
            raise
        _warn(len(journal.damaged) - known)
        return caught_up

    async def _load(self) -> None:
        journal, tables = await asyncio.to_thread(load_journal, self._folder, microseconds(self._clock))
        _warn(len(journal.damaged))
        if self._journal is not None:
            self._journal.close()
        self._journal, self._tables = journal, tables

    def _sync_soon(self) -> None:
        self._unsynced = True
        if self._timer is None and self._upkeep is None:
            self._timer = asyncio.get_running_loop().call_later(_SYNC_SECONDS, self._start_upkeep)

    def _start_upkeep(self) -> None:
        self._timer = None
        self._upkeep = asyncio.create_task(self._make_durable(), name="multidb-state-journal")

    async def _make_durable(self) -> None:
        self._unsynced = False
        try:
            if not await self._is_rewritten():
                await asyncio.to_thread(sync, self._folder)
            self._sync_error = None
        except (OSError, BackendError) as exc:
            self._unsynced = True
            if self._sync_error is None:
                _log.exception("the journal of the state could not be made durable: no more writes for now")
            self._sync_error = exc
        except BaseException:
            self._unsynced = True
            raise
        finally:
            self._upkeep = None
            if self._unsynced and not self._closing:
                self._sync_soon()

    async def _is_rewritten(self) -> bool:
        """Rewrite the journal where that is due; return whether it was, as it is durable then."""
        journal = self._opened()
        # After a failed sync the kernel may have dropped what it could not write: only a new file will do.
        if not journal.is_wasteful and self._sync_error is None:
            return False
        try:
            return await self._rewrite()
        except (OSError, BackendTimeoutError):
            if self._sync_error is not None:
                raise
            journal.put_up_with()
            return False

    async def _rewrite(self) -> bool:
        journal = await self._enter()
        place, damaged = journal.place, list(journal.damaged)
        journal.unlock()
        successor = await asyncio.to_thread(Successor, self._folder, place)
        # Made here, a few at a time: a thread would take the interpreter from this one for 5 ms again and
        # again. What changes meanwhile is appended to the journal, and so copied in the end.
        records = records_of(self._tables, microseconds(self._clock))
        while lines := b"".join([line(record) for record in islice(records, _RECORDS_AT_ONCE)]):
            await asyncio.to_thread(successor.write, lines)
        return await asyncio.to_thread(successor.take_over, damaged)


def _warn(damaged: int) -> None:
    if damaged > 0:
        _log.warning(
            "the journal of the state has %d damaged lines, which count for nothing; its next rewrite sets them aside",
            damaged,
        )

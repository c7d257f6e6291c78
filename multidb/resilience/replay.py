"""Replay: gives a server the records of a spool, in batches, without a record that it refuses standing in the way."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Final

from multidb.errors import BackendError, ClosedError, ConfigurationError, MultiDBError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from multidb.resilience.guard import Guard
    from multidb.resilience.spool import Spool, SpooledRecord
    from multidb.resilience.watch import Watch

_log = logging.getLogger("multidb")

_FIRST: Final = 10
_MORE: Final = 50
_MOST: Final = 500
# Calls on the server have much shorter times: what takes so long is a disk.
_BEGIN_SECONDS: Final = 10.0
# A record that the server never has an answer for must not be in the way of the others for ever. A table that is
# locked for some minutes must not be taken for that.
_STUCK_SECONDS: Final = 900.0
_STUCK_TRIES: Final = 20
_PAUSE_SECONDS: Final = 0.5
_MAX_PAUSE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a record."""

    is_duplicate: bool = False
    """The server had it already."""
    refused: str | None = None
    """Why the server will never take it, without a word of its data."""


TAKEN: Final = Outcome()
DUPLICATE: Final = Outcome(is_duplicate=True)


class _SpoolError(Exception):
    """The spool cannot be read, or not be written."""


@contextmanager
def _of_the_spool() -> Iterator[None]:
    """Tell what the spool raises from what the server does."""
    try:
        yield
    except BackendError as exc:
        raise _SpoolError from exc


class Replayer:
    """
    Gives what is in *spool* to *deliver*, one batch after the other, which returns what became of each record.

    It raises BackendError that is `retryable` where the server cannot take any now, and ConfigurationError: then the
    batch comes again. Any other error is taken for the fault of a record, which is found by halving the batch, and set
    aside. So is a record that fails by itself for a quarter of an hour, while the server looks well. Batches grow as
    long as all goes well. What is done is on the disk after every batch.
    """

    def __init__(
        self,
        spool: Spool,
        watch: Watch,
        deliver: Callable[[Sequence[bytes]], Awaitable[Sequence[Outcome]]],
        on_progress: Callable[[], None],
    ) -> None:
        """Start nothing. *on_progress* is called after every batch."""
        self._spool = spool
        self._watch = watch
        self._deliver = deliver
        self._on_progress = on_progress
        self._size = _FIRST
        self._stuck: tuple[bytes, float, int] = (b"", 0.0, 0)
        """The record that failed by itself last, since when, and how often."""
        # One batch at a time, also where the recovery of a server begins while one is under way.
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self, guard: Guard) -> None:
        """Replay in the background, whenever there is something and calls go to the server."""
        self._turn = asyncio.Lock()
        self._task = asyncio.create_task(
            self._run(guard), name=f"multidb-{self._spool.store}-replay", context=Context()
        )

    async def begin(self) -> None:
        """
        Replay one record, and then ten, to see whether the server can be trusted. Raises what *deliver* raises.

        A spool that cannot be read, or hangs, says nothing about the server.
        """
        try:
            async with asyncio.timeout(_BEGIN_SECONDS), self._turn:
                self._size = _FIRST
                if await self._step(1):
                    await self._step(_FIRST)
        except (_SpoolError, TimeoutError) as exc:
            self._warn(exc)

    async def close(self) -> None:
        """Stop; the batch under way comes again."""
        task = self._stop()
        if task is not None:
            await asyncio.wait((task,))

    def abandon(self) -> None:
        """Let go of everything without the event loop."""
        self._stop()

    def _stop(self) -> asyncio.Task[None] | None:
        task, self._task = self._task, None
        if task is not None:
            with suppress(RuntimeError):  # The loop is closed.
                task.cancel()
        return task

    async def _run(self, guard: Guard) -> None:
        pause = _PAUSE_SECONDS
        while True:
            await self._spool.wait()
            await guard.wait()
            if await self._went_well():
                pause = _PAUSE_SECONDS
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    async def _went_well(self) -> bool:
        try:
            async with self._turn:
                more = await self._step(self._size)
        except Exception as exc:  # noqa: BLE001 -- whatever it is, the records stay and are tried again
            self._size = max(1, self._size // 2)
            if not isinstance(exc, BackendError):
                self._warn(exc)
            return False
        self._size = min(self._size + _MORE, _MOST)
        return more

    async def _step(self, most: int) -> bool:
        """Replay a batch; return whether there was one."""
        with _of_the_spool():
            batch = await self._spool.read_batch(most)
        for reason in self._spool.found():
            self._watch.set_aside(reason)
        if batch is None:
            self._on_progress()
            return False
        await self._replay(batch.records)
        if batch.position > batch.records[-1].position:
            with _of_the_spool():
                await self._spool.done(batch.position)
        self._on_progress()
        return True

    async def _replay(self, records: Sequence[SpooledRecord]) -> None:
        """
        Deliver *records*, and find the one that is at fault where one is.

        What is delivered is done before the next is: to find a record takes many calls, and a program that is killed
        before the last of them would begin at the first again.
        """
        started = perf_counter()
        outcomes: Sequence[Outcome] | None
        try:
            outcomes = await self._delivered(records)
        except BackendError as exc:
            if not self._is_stuck(records):
                raise
            outcomes = [Outcome(refused=f"failed again and again: {type(exc).__name__}")]
        if outcomes is None:
            middle = len(records) // 2
            await self._replay(records[:middle])
            await self._replay(records[middle:])
            return
        refused = 0
        with _of_the_spool():
            for record, outcome in zip(records, outcomes, strict=True):
                if outcome.refused is not None:
                    refused += 1
                    await self._spool.reject(record, outcome.refused)
                    self._watch.set_aside(outcome.refused)
            await self._spool.done(records[-1].position)
        duplicates = sum(outcome.is_duplicate for outcome in outcomes)
        seconds = perf_counter() - started
        self._watch.replayed(len(outcomes), duplicates, refused, self._spool.pending, seconds)

    def _is_stuck(self, records: Sequence[SpooledRecord]) -> bool:
        """Take note of *records* that failed; return whether it is one, and not to be tried any more."""
        if len(records) > 1:
            return False
        now, data = asyncio.get_running_loop().time(), records[0].data
        stuck, since, tries = self._stuck
        self._stuck = (data, since, tries + 1) if stuck == data else (data, now, 1)
        _, since, tries = self._stuck
        return tries >= _STUCK_TRIES and now - since >= _STUCK_SECONDS

    def _warn(self, exc: Exception) -> None:
        cause = exc.__cause__ if isinstance(exc, _SpoolError) else exc
        _log.warning("the replay of %s waits: %s", self._spool.store, type(cause).__name__)

    async def _delivered(self, records: Sequence[SpooledRecord]) -> Sequence[Outcome] | None:
        """Deliver *records*; return None where one of several is at fault."""
        try:
            return await self._deliver([record.data for record in records])
        except (ClosedError, ConfigurationError):
            raise
        except Exception as exc:
            if isinstance(exc, BackendError) and exc.retryable:
                raise
            if len(records) > 1:
                return None
            if not isinstance(exc, MultiDBError):
                _log.exception("a record of %s cannot be replayed", self._spool.store)
            return [Outcome(refused=f"refused by the server: {type(exc).__name__}")]

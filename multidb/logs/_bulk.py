"""Bulk: storing many events in chunks, each while the next one is being checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from multidb._core.operation import ambiguous_after
from multidb.logs.protocol import Appended, Entry

if TYPE_CHECKING:
    from types import TracebackType

    from multidb.logs._records import Event

_CHUNK: Final = 1000
# A chunk has one deadline, however large its texts are.
_CHUNK_BYTES: Final = 2 * 1024 * 1024
# How many items are checked in one turn of the event loop: about a third of a millisecond.
_TURN: Final = 64


class Bulk:
    """
    Stores the entries it is given in chunks, in order and one at a time, so that two are in memory at most.

    An async context manager: leaving it stores the rest. Where the block fails, the chunk under way is still stored;
    where it is cancelled, so is the chunk. Raises what *append* raises, `ambiguous` when a chunk before was stored.
    """

    def __init__(
        self, append: Callable[[list[Entry[Event]]], Coroutine[Any, Any, Sequence[Appended]]]
    ) -> None:
        """Store each chunk by a call of *append*."""
        self.stored = 0
        self.conflicts: list[str] = []
        self._append = append
        self._chunk: list[Entry[Event]] = []
        self._size = 0
        self._sent: list[Entry[Event]] = []
        self._under_way: asyncio.Task[Sequence[Appended]] | None = None
        self._failed = False
        self._begun = False

    def add(self, entry: Entry[Event]) -> bool:
        """Put *entry* into the next chunk; return whether it is time to `send()`."""
        self._chunk.append(entry)
        self._size += len(entry.context) + len(entry.record.message)
        return len(self._chunk) == _CHUNK or self._size >= _CHUNK_BYTES or self._failed

    async def send(self) -> None:
        """Start to store the chunk, once the one before is stored."""
        await self._settle()
        self._sent, self._chunk, self._size = self._chunk, [], 0
        self._under_way = asyncio.create_task(self._append(self._sent), name="multidb-logs-bulk")
        self._under_way.add_done_callback(self._ended)
        await asyncio.sleep(0)  # It is on its way before the next event is looked at.

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if exc is None and self._chunk:
                await self.send()
            if exc is None or isinstance(exc, Exception):
                await self._settle()
        finally:
            if self._under_way is not None:
                self._under_way.cancel()
                await asyncio.gather(self._under_way, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Sequence[Appended]]) -> None:
        self._failed = task.cancelled() or task.exception() is not None

    async def _settle(self) -> None:
        """Wait for the chunk under way, if there is one, and take note of what became of it."""
        task = self._under_way
        if task is None:
            return
        await asyncio.wait((task,))
        self._under_way = None
        with ambiguous_after(self._begun):
            outcomes = task.result()
        self._begun = True
        self.stored += outcomes.count(Appended.STORED) + outcomes.count(Appended.SPOOLED)
        self.conflicts += [
            str(entry.record.id)
            for entry, outcome in zip(self._sent, outcomes, strict=True)
            if outcome is Appended.CONFLICT
        ]


async def in_turns(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[tuple[int, Any]]:
    """Yield *items* with their positions, and let other tasks run now and then."""
    i = 0
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield i, item
            i += 1
            if not i % _TURN:
                await asyncio.sleep(0)
    else:
        for item in items:
            yield i, item
            i += 1
            if not i % _TURN:
                await asyncio.sleep(0)

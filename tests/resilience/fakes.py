"""A spool in memory, for virtual time: threads know nothing of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from multidb.resilience.spool import Batch, Position, SpooledRecord, SpoolStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multidb.errors import BackendError


class FakeSpool:
    """Does what `Spool` does, without a disk. *failure* is raised by appends, *slow* is what they take."""

    def __init__(self, store: str = "logs") -> None:
        self.store = store
        self.records: list[bytes] = []
        self.rejected: list[tuple[bytes, str]] = []
        self.failure: BackendError | None = None
        self.slow = 0.0
        self.slow_read = 0.0
        self.is_open = False
        self.appends = 0
        self.damaged: list[str] = []
        self.read_failure: BackendError | None = None
        self._first = 0
        self._waiting = asyncio.Event()

    async def open(self) -> None:
        self.is_open = True
        self._note()

    async def close(self) -> None:
        self.is_open = False

    def abandon(self) -> None:
        self.is_open = False

    async def append(self, records: Sequence[bytes]) -> None:
        if self.slow:
            await asyncio.sleep(self.slow)
        if self.failure is not None:
            raise self.failure
        self.appends += 1
        self.records += records
        self._note()

    async def read_batch(self, most: int = 500, max_bytes: int = 0) -> Batch | None:
        if self.read_failure is not None:
            raise self.read_failure
        if self.slow_read:
            await asyncio.sleep(self.slow_read)
        if not self.records:
            return None
        records = [
            SpooledRecord(data, 0.0, Position("o", 0, 0, self._first + place + 1))
            for place, data in enumerate(self.records[:most])
        ]
        return Batch(tuple(records), records[-1].position)

    def found(self) -> list[str]:
        found, self.damaged = self.damaged, []
        return found

    async def done(self, position: Position) -> None:
        del self.records[: position.records - self._first]
        self._first = position.records
        self._note()

    async def reject(self, record: SpooledRecord, reason: str) -> None:
        self.rejected.append((record.data, reason))

    async def wait(self) -> None:
        await self._waiting.wait()

    @property
    def pending(self) -> int:
        return len(self.records)

    def stats(self) -> SpoolStats:
        return SpoolStats(
            records=len(self.records),
            bytes=sum(map(len, self.records)),
            max_bytes=1 << 28,
            is_high=False,
            segments=1,
            oldest_seconds=1.0 if self.records else None,
            adopted=0,
            others=0,
            rejected=len(self.rejected),
            torn_bytes=0,
            free_bytes=None,
        )

    def _note(self) -> None:
        if self.records:
            self._waiting.set()
        else:
            self._waiting.clear()

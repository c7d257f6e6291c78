"""Going through all events where a disk is slow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from multidb import MultiDB
from multidb.errors import BackendTimeoutError
from multidb.logs.backends.memory import MemoryLogBackend

if TYPE_CHECKING:
    from multidb.logs import Event
    from multidb.logs.protocol import Query

COUNT = 3456


class SlowBackend(MemoryLogBackend):
    """Cannot give more than so many records in time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.asked: list[int] = []

    async def query(self, query: Query[Any], /) -> list[Any]:
        self.asked.append(query.limit)
        if query.limit > self.most:
            raise BackendTimeoutError("too slow")
        return await super().query(query)


async def went_through(backend: SlowBackend) -> list[Event]:
    async with MultiDB.in_memory() as memory, MultiDB(memory.settings, logs=backend) as db:
        await db.logs.log_events({"user_identifier": "u", "event_type": f"{n}"} for n in range(COUNT))
        return [event async for event in db.logs.iter_events()]


@pytest.mark.parametrize("most", [100, 300, 999])
async def test_slow(most: int) -> None:
    """Pages that take too long are asked for in small, and grow again: everything comes, once and in order."""
    events = await went_through(SlowBackend(most))

    assert [f"{n}" for n in reversed(range(COUNT))] == [event.event_type for event in events]


async def test_fast() -> None:
    """Else there are as few pages as can be."""
    backend = SlowBackend(1000)
    await went_through(backend)

    assert [1000] * 4 == backend.asked


async def test_too_slow() -> None:
    """What cannot give a small page either fails after two deadlines."""
    backend = SlowBackend(99)
    with pytest.raises(BackendTimeoutError):
        await went_through(backend)

    assert [1000, 100] == backend.asked

"""log_events(): chunks are stored in order, each while the next one is checked, and nothing of that shows."""

from __future__ import annotations

import asyncio
import tracemalloc
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multidb import (
    BackendError,
    BackendUnavailableError,
    ConflictError,
    InvalidValueError,
    MultiDB,
    MultiDBError,
    Settings,
)
from multidb._core.operation import ambiguous_after
from multidb.logs import LogStore, _bulk
from multidb.logs._store import _LOG_EVENTS
from multidb.logs.backends.memory import MemoryLogBackend
from multidb.logs.protocol import Appended

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

MEMORY = Settings(mongodb_uri="memory://", redis_url="memory://")


class SlowBackend(MemoryLogBackend):
    """Stores a chunk when *gate* is open, after some turns of the loop; fails where *faults* say so."""

    def __init__(self, *, faults: dict[int, BackendError] | None = None, turns: int = 0) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.faults = faults or {}
        self.turns = turns
        self.started: list[int] = []
        self.stored: list[str] = []
        self.cancelled = 0
        self.at_once = 0

    async def append(self, entries: Any, /) -> Any:
        number = len(self.started)
        self.started.append(len(entries))
        self.at_once += 1
        assert 1 == self.at_once
        try:
            await self.gate.wait()
            for _ in range(self.turns):
                await asyncio.sleep(0)
            if number in self.faults:
                raise self.faults[number]
            outcomes = await super().append(entries)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1
        self.stored += [entry.record.message for entry in entries]
        return outcomes


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"user_identifier": "u", "event_type": "e", "message": str(number)} | more


async def stream(rows: Iterable[Any], read: list[Any] | None = None) -> AsyncIterator[Any]:
    for one in rows:
        if read is not None:
            read.append(one)
        yield one


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def test_checked_while_the_chunk_before_is_stored() -> None:
    """The next chunk is read and checked meanwhile, and no further one: two are in memory at most."""
    backend, read = SlowBackend(), []
    backend.gate.clear()
    async with MultiDB(MEMORY, logs=backend) as db:
        call = asyncio.create_task(db.logs.log_events(stream(map(row, range(5000)), read)))
        await turns(500)

        assert 2000 == len(read)
        assert [1000] == backend.started
        backend.gate.set()
        assert 5000 == await call
        assert [1000] * 5 == backend.started
        assert [str(number) for number in range(5000)] == backend.stored
        assert not others()


@pytest.mark.parametrize("kind", [list, iter, stream])
async def test_other_tasks_go_on(kind: Any) -> None:
    """However many events there are, and whatever they come from, no other task waits for all of them."""
    async with MultiDB(MEMORY, logs=SlowBackend()) as db:
        call = asyncio.create_task(db.logs.log_events(kind(map(row, range(3000)))))
        had = 0
        while not call.done():
            await asyncio.sleep(0)
            had += 1

        assert 3000 == await call
        assert had > 3000 / _bulk._TURN


async def test_bad_event_while_a_chunk_is_stored() -> None:
    """The chunk before it is stored all the same, and the error comes once that is done."""
    backend = SlowBackend(turns=200)
    async with MultiDB(MEMORY, logs=backend) as db:
        with pytest.raises(InvalidValueError) as caught:
            await db.logs.log_events(
                stream([*map(row, range(1500)), row(1500, context={"a": b""}), row(1501)])
            )

        assert "events[1500].context.a" == caught.value.path
        assert 1000 == len(backend.stored)
        assert not others()


async def test_failing_source_while_a_chunk_is_stored() -> None:
    """That goes for what a stream raises, too."""
    backend = SlowBackend(turns=200)

    def rows() -> Iterator[Any]:
        yield from map(row, range(1500))
        raise ZeroDivisionError

    async with MultiDB(MEMORY, logs=backend) as db:
        with pytest.raises(ZeroDivisionError):
            await db.logs.log_events(rows())

        assert 1000 == len(backend.stored)
        assert not others()


async def test_the_earlier_error_comes_out() -> None:
    """Where a chunk fails and an event behind it is bad, the error is that of the chunk."""
    backend = SlowBackend(faults={0: BackendUnavailableError("gone")}, turns=200)
    async with MultiDB(MEMORY, logs=backend) as db:
        with pytest.raises(BackendUnavailableError) as caught:
            await db.logs.log_events(stream([*map(row, range(1500)), row(1500, level="loud")]))

        assert not caught.value.ambiguous
        assert ("logs", "log_events") == (caught.value.store, caught.value.operation)
        assert [1000] == backend.started


async def test_failure_ends_a_slow_stream() -> None:
    """A chunk that failed is told of at the next event, not when the next chunk is full."""
    backend = SlowBackend(faults={1: BackendUnavailableError("gone")})
    read: list[int] = []

    async def rows() -> AsyncIterator[Any]:
        for number in range(10_000):
            read.append(number)
            yield row(number)
            if number >= 2000:
                await turns(5)

    async with MultiDB(MEMORY, logs=backend) as db:
        with pytest.raises(BackendUnavailableError) as caught:
            await db.logs.log_events(rows())

        assert caught.value.ambiguous
        assert 2010 > len(read)
        assert [1000, 1000] == backend.started


@pytest.mark.parametrize("rows", [1500, 999, 2000, 2500])
async def test_cancelled(rows: int) -> None:
    """Cancelling the call cancels the chunk under way, whether it waits for that or for the stream; nothing is left."""
    backend = SlowBackend()
    backend.gate.clear()

    async def endless() -> AsyncIterator[Any]:
        for number in range(rows):
            yield row(number)
        await asyncio.Event().wait()

    async with MultiDB(MEMORY, logs=backend) as db:
        source = endless()
        call = asyncio.create_task(db.logs.log_events(source))
        await turns(500)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await source.aclose()

        assert not others()
        assert min(rows // 1000, 1) == backend.cancelled
        assert [] == backend.stored


async def test_cancelled_while_the_chunk_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A failure that nobody is there to hear of any more is no unhandled exception."""
    backend = SlowBackend(faults={0: BackendUnavailableError("gone")})
    backend.gate.clear()
    async with MultiDB(MEMORY, logs=backend) as db:
        call = asyncio.create_task(db.logs.log_events(map(row, range(2500))))
        await turns(500)
        backend.gate.set()
        call.cancel()
        with pytest.raises((asyncio.CancelledError, BackendUnavailableError)):
            await call

        assert not others()
    assert [] == caplog.records


async def test_empty_and_small() -> None:
    """Nothing is sent for nothing, and one chunk for a few."""
    backend = SlowBackend()
    async with MultiDB(MEMORY, logs=backend) as db:
        assert 0 == await db.logs.log_events(stream(()))
        assert [] == backend.started
        assert 3 == await db.logs.log_events(stream(map(row, range(3))))
        assert 1000 == await db.logs.log_events(map(row, range(1000)))
        assert [3, 1000] == backend.started


async def test_large_texts() -> None:
    """A chunk has 2 MiB of texts and contexts at most, and the event that goes beyond."""
    backend = SlowBackend()
    async with MultiDB(MEMORY, logs=backend) as db:
        await db.logs.log_events(row(number, context={"a": "x" * 1024 * 1000}) for number in range(7))

        assert [3, 3, 1] == backend.started


async def test_flat_memory() -> None:
    """Four times the events take the same memory."""

    async def peak(count: int) -> int:
        class Forgets(MemoryLogBackend):
            async def append(self, entries: Any, /) -> Any:
                await asyncio.sleep(0)
                return [Appended.STORED] * len(entries)

        async with MultiDB(MEMORY, logs=Forgets()) as db:
            tracemalloc.start()
            try:
                assert count == await db.logs.log_events(
                    stream(row(n, context={"n": n}) for n in range(count))
                )
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    assert 1.2 > await peak(16_000) / await peak(4_000)


# Against a plain model: one chunk after the other, nothing at once.

_IDS = [UUID(int=7 << 76 | 2 << 62 | number) for number in range(4)]
same_ids = st.builds(
    lambda id_, text: {"event_id": id_, "message": text}, st.sampled_from(_IDS), st.sampled_from("ab")
)


async def plainly(logs: LogStore, rows: list[dict[str, Any]], chunk: int, *, whole: bool) -> int:
    if whole:
        for i, one in enumerate(rows):
            logs._entry_of(one, i)
    outcomes: list[tuple[UUID, Appended]] = []
    for start in range(0, len(rows), chunk):
        entries = [logs._entry_of(one, start + i) for i, one in enumerate(rows[start : start + chunk])]
        with ambiguous_after(start):
            new = await logs._route.run(_LOG_EVENTS, lambda backend, some=entries: backend.append(some))
        outcomes += zip([entry.record.id for entry in entries], new, strict=True)
    conflicts = [str(id_) for id_, outcome in outcomes if outcome is Appended.CONFLICT]
    if conflicts:
        msg = f"{len(conflicts)} events have ids that are stored with other content; the others are stored"
        raise ConflictError(msg, conflicts=conflicts)
    return [outcome for _, outcome in outcomes].count(Appended.STORED)


async def result(call: Any, backend: SlowBackend) -> tuple[object, ...]:
    try:
        returned: object = await call
    except MultiDBError as exc:
        returned = (type(exc), str(exc), getattr(exc, "ambiguous", None), getattr(exc, "conflicts", None))
    assert not others()
    return returned, backend.stored, backend.started


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.just({}) | same_ids, max_size=14),
    bad=st.none() | st.integers(0, 14),
    fails=st.none() | st.integers(0, 4),
    turns=st.integers(0, 4),
    kind=st.sampled_from((list, iter, stream)),
)
def test_like_one_after_the_other(
    rows: list[dict[str, Any]], bad: int | None, fails: int | None, turns: int, kind: Any
) -> None:
    """What is stored, what is returned and what is raised is as if the chunks were sent one after the other."""
    rows = [row(number) | more for number, more in enumerate(rows)]
    if bad is not None and bad < len(rows):
        rows[bad] = row(bad, message="\0")

    async def outcome(call: Callable[[LogStore], Any]) -> tuple[object, ...]:
        faults = {} if fails is None else {fails: BackendUnavailableError("gone")}
        backend = SlowBackend(faults=faults, turns=turns)
        async with MultiDB(MEMORY, logs=backend) as db:
            return await result(call(db.logs), backend)

    async def both() -> list[object]:
        return [
            await outcome(lambda logs: plainly(logs, rows, 3, whole=kind is list)),
            await outcome(lambda logs: logs.log_events(kind(rows))),
        ]

    with patch.object(_bulk, "_CHUNK", 3):
        expected, actual = asyncio.run(both())

    assert expected == actual


async def test_in_turns_of_nothing() -> None:
    """Positions count from 0, over sync and async items."""
    async with aclosing(_bulk.in_turns("ab")) as sync, aclosing(_bulk.in_turns(stream("ab"))) as async_:
        assert [(0, "a"), (1, "b")] == [pair async for pair in sync] == [pair async for pair in async_]

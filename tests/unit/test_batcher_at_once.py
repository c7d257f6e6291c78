"""A call that is alone, flushed in its caller's own task; in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from test_batcher import DEADLINE, NEVER, Server, call, ended
from virtual_time import in_virtual_time, loop, turns

from multidb._core.batcher import Batcher, Bounds
from multidb.errors import BackendError, BackendTimeoutError, BackendUnavailableError, ConflictError


def make(server: Server, **options: Any) -> Batcher[Any, Any]:
    options = {"writes": True, "at_once": True} | options
    return Batcher(server.flush, deadline_seconds=DEADLINE, bounds=Bounds(share_calls=1000), **options)


async def used(server: Server, **options: Any) -> Batcher[Any, Any]:
    """Return a batcher that has flushed one call that was alone."""
    batcher = make(server, **options)
    (first,) = call(batcher, "first")
    await turns()
    server.flushes[0].answer()
    await ended([first])
    return batcher


@in_virtual_time
async def test_own_task() -> None:
    """The first call has a flush in another task; one that is alone again is flushed in its own."""
    server = Server()
    batcher = await used(server)
    (task,) = call(batcher, "a")
    await turns()

    assert [["first"], ["a"]] == server.items
    assert task is server.flushes[1].task
    assert task is not server.flushes[0].task
    server.flushes[1].answer()
    assert ["A"] == await ended([task])


@in_virtual_time
async def test_not_where_it_is_not_wanted() -> None:
    """Without at_once every flush has a task that no caller's cancellation reaches."""
    server = Server()
    batcher = await used(server, at_once=False)
    (task,) = call(batcher, "a")
    await turns()

    assert task is not server.flushes[1].task
    server.flushes[1].answer()
    assert ["A"] == await ended([task])


@in_virtual_time
async def test_others_share() -> None:
    """Those that come while one is at it share a flush, and as long as there is company nobody is flushed alone."""
    server = Server()
    batcher = await used(server)
    tasks = call(batcher, "a", "b", "c")
    await turns()

    assert [["a"], ["b", "c"]] == server.items[1:]
    for flush in server.flushes[1:]:
        flush.answer()
    assert ["A", "B", "C"] == await ended(tasks)

    tasks = call(batcher, "d", "e")
    await turns()
    assert [["d", "e"]] == server.items[3:]
    server.flushes[3].answer()
    assert ["D", "E"] == await ended(tasks)


@in_virtual_time
async def test_same_key() -> None:
    """One with the same key waits until it has ended; others do not."""
    server = Server()
    batcher = await used(server, key=lambda item: item[0])
    tasks = call(batcher, "a1", "a2", "b1")
    await turns()
    assert [["a1"], ["b1"]] == server.items[1:]

    server.flushes[1].answer()
    await turns()
    assert [["a1"], ["b1"], ["a2"]] == server.items[1:]
    for flush in server.flushes[2:]:
        flush.answer()
    assert ["A1", "A2", "B1"] == await ended(tasks)


@in_virtual_time
async def test_cancelled() -> None:
    """Cancelling it ends its flush, and leaves the others alone."""
    server = Server()
    batcher = await used(server)
    own, other = call(batcher, "a", "b")
    await turns()
    own.cancel()
    await asyncio.wait((own,))

    assert own.cancelled()
    assert [["b"]] == [flush.items for flush in server.under_way]
    server.flushes[2].answer()
    assert ["B"] == await ended([other])


@pytest.mark.parametrize("writes", [True, False])
@in_virtual_time
async def test_deadline(writes: bool) -> None:
    """Past its deadline it is a timeout, ambiguous where it writes; the next call is flushed all the same."""
    server = Server()
    batcher = await used(server, writes=writes)
    (task,) = call(batcher, "a")
    started = loop().time()
    (error,) = await asyncio.gather(task, return_exceptions=True)

    assert isinstance(error, BackendTimeoutError)
    assert writes == error.ambiguous
    assert started + DEADLINE == pytest.approx(loop().time(), abs=0.02)
    (after,) = call(batcher, "b")
    await turns()
    server.flushes[2].answer()
    assert ["B"] == await ended([after])


@in_virtual_time
async def test_errors() -> None:
    """What the flush raises, and what it returns for the item, is raised; a wrong number of results, too."""
    server = Server()
    batcher = await used(server)
    for outcome in (BackendUnavailableError("gone"), ConflictError("taken")):
        (task,) = call(batcher, "a")
        await turns()
        if isinstance(outcome, BackendError):
            server.flushes[-1].fail(outcome)
        else:
            server.flushes[-1].answer(outcome)
        assert [outcome] == await ended([task])

    (task,) = call(batcher, "a")
    await turns()
    server.flushes[-1].answer("A", "B")
    (error,) = await ended([task])
    assert type(error) is BackendError
    assert error.ambiguous


@in_virtual_time
async def test_cancelled_by_the_driver() -> None:
    """A CancelledError that nobody asked for is no cancellation of the caller."""
    server = Server()
    batcher = await used(server)
    (task,) = call(batcher, "a")
    await turns()
    server.flushes[1].end.cancel()
    (error,) = await ended([task])

    assert isinstance(error, BackendUnavailableError)


@in_virtual_time
async def test_drain() -> None:
    """Closing waits for it, as long as it may."""
    server = Server()
    batcher = await used(server)
    (task,) = call(batcher, "a")
    await turns()
    draining = asyncio.create_task(batcher.drain(NEVER))
    await turns()
    assert not draining.done()

    server.flushes[1].answer()
    await draining
    assert ["A"] == await ended([task])

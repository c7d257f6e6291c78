"""`using()`: another MultiDB for a block."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

import multidb
from multidb import MultiDB, NotInitializedError, state
from multidb._core import current as current_module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MEMORY: dict[str, Any] = {"postgres_url": "memory://", "mongodb_uri": "memory://", "redis_url": "memory://"}


@pytest.fixture
async def dbs(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[MultiDB]]:
    """Three open MultiDBs, none of them the default."""
    monkeypatch.setattr(current_module, "_default", None)
    async with MultiDB.in_memory() as one, MultiDB.in_memory() as two, MultiDB.in_memory() as three:
        yield [one, two, three]


async def test_block(dbs: list[MultiDB]) -> None:
    """Inside the block the module functions work on that MultiDB; afterwards there is none again."""
    with multidb.using(dbs[0]) as db:
        await state.set_state("u", "k", "one")

        assert db is dbs[0] is multidb.current()
    with pytest.raises(NotInitializedError):
        multidb.current()
    assert ["one", None] == [await one.state.get_state("u", "k") for one in dbs[:2]]


async def test_override_of_the_default(dbs: list[MultiDB]) -> None:
    """It overrides the process default, and leaves it as it was."""
    default = await multidb.init_all(**MEMORY)
    with multidb.using(dbs[0]):
        assert dbs[0] is multidb.current()
    assert default is multidb.current()
    await multidb.close_all()


async def test_nesting(dbs: list[MultiDB]) -> None:
    """The innermost block counts, also where one is used twice."""
    seen = []
    with multidb.using(dbs[0]):
        with multidb.using(dbs[1]):
            with multidb.using(dbs[0]):
                seen.append(multidb.current())
            seen.append(multidb.current())
        seen.append(multidb.current())

    assert [dbs[0], dbs[1], dbs[0]] == seen


async def test_exception(dbs: list[MultiDB]) -> None:
    """A block that is left by an exception is left."""
    with multidb.using(dbs[0]):
        with pytest.raises(ZeroDivisionError), multidb.using(dbs[1]):
            raise ZeroDivisionError

        assert dbs[0] is multidb.current()


async def test_tasks_started_inside(dbs: list[MultiDB]) -> None:
    """Tasks that are started in the block keep its MultiDB, also after the block ended."""
    go = asyncio.Event()

    async def later() -> MultiDB:
        await go.wait()
        return multidb.current()

    with multidb.using(dbs[0]):
        task = asyncio.create_task(later())
    with multidb.using(dbs[1]):
        go.set()

        assert dbs[0] is await task


async def test_tasks_beside(dbs: list[MultiDB]) -> None:
    """Tasks side by side do not see each other's blocks."""

    async def work(db: MultiDB) -> list[MultiDB]:
        seen = []
        with multidb.using(db):
            for number in range(20):
                await asyncio.sleep(0)
                await state.set_state("u", f"k{number}", dbs.index(db))
                seen.append(multidb.current())
        return seen

    results = await asyncio.gather(*(work(db) for db in dbs))

    assert [[db] * 20 for db in dbs] == results
    assert [{0}, {1}, {2}] == [set((await db.state.get_all_user_states("u")).values()) for db in dbs]


async def test_threads(dbs: list[MultiDB]) -> None:
    """`asyncio.to_thread` takes the block along, as it does with every context variable."""
    with multidb.using(dbs[0]):
        assert dbs[0] is await asyncio.to_thread(multidb.current)


async def test_close_inside(dbs: list[MultiDB]) -> None:
    """`close_all()` closes the default, not the MultiDB of the block."""
    with multidb.using(dbs[0]):
        await multidb.close_all()
        await state.set_state("u", "k", 1)

        assert 1 == await state.get_state("u", "k")


async def test_not_open() -> None:
    """Using one that is not open is allowed, so that it can be opened inside; a call before that says so."""
    with multidb.using(MultiDB.in_memory()) as db:
        with pytest.raises(multidb.ClosedError, match="not open"):
            await state.get_state("u", "k")
        async with db:
            assert await state.get_state("u", "k") is None


async def test_exit_stack(dbs: list[MultiDB]) -> None:
    """Blocks can be left together, in reverse."""
    with ExitStack() as blocks:
        for db in dbs:
            blocks.enter_context(multidb.using(db))

        assert dbs[2] is multidb.current()
    with pytest.raises(NotInitializedError):
        multidb.current()

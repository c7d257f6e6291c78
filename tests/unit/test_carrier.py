"""Whoever makes a call for others goes on in another way when it is told to; in virtual time."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from virtual_time import in_virtual_time, loop, turns

from multidb._core.batcher import Batcher, Bounds
from multidb._core.carrier import Carrier, Errand, carrier
from multidb.errors import BackendError, BackendTimeoutError, BackendUnavailableError


class Hanging:
    """A call that hangs, and so does its cancellation, until `release`; then it gives *answer*."""

    def __init__(self, answer: Any = "late") -> None:
        self.answer = answer
        self.carrier: Carrier | None = None
        self.asked: list[Any] = []
        self.release = asyncio.Event()

    async def __call__(self, items: Any = None) -> Any:
        self.asked.append(items)
        self.carrier = carrier.get()
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                continue
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def called(batcher: Batcher[str, str], item: str) -> str:
    return await batcher.call(item)


async def upper(items: Any) -> Any:
    return "rest" if items is None else [item.upper() for item in items]


@pytest.mark.parametrize("answer", ["late", BackendError("late")])
@in_virtual_time
async def test_errand(answer: Any) -> None:
    """It gives the answer of what it was handed over to, whatever the call says afterwards."""
    tasks: set[asyncio.Task[None]] = set()
    hanging = Hanging(answer)
    call = asyncio.create_task(Errand[Any]("n", tasks, writes=True).run(hanging(), 2.0))
    await turns()
    assert hanging.carrier is not None
    assert loop().time() + 2 == hanging.carrier.end
    hanging.carrier.hand_over(upper)

    assert "rest" == await call
    assert 1 == len(tasks)
    hanging.carrier.hand_over(upper)
    hanging.release.set()
    await turns()
    assert not tasks


@in_virtual_time
async def test_errand_in_time() -> None:
    """What it was handed over to has what is left of the time."""
    tasks: set[asyncio.Task[None]] = set()
    hanging, again = Hanging(), Hanging()
    began = loop().time()
    call = asyncio.create_task(Errand[Any]("n", tasks, writes=True).run(hanging(), 2.0))
    await asyncio.sleep(1.5)
    assert hanging.carrier is not None
    hanging.carrier.hand_over(again)
    with pytest.raises(BackendTimeoutError, match="2 seconds") as caught:
        await call

    assert caught.value.ambiguous
    assert 2.0 == pytest.approx(loop().time() - began, abs=0.02)
    assert [None] == again.asked
    hanging.release.set()
    again.release.set()
    await turns()
    assert not tasks


@in_virtual_time
async def test_cancelled_errand() -> None:
    """A caller that is cancelled does not wait for its call, and nothing is done instead."""
    tasks: set[asyncio.Task[None]] = set()
    hanging, again = Hanging(), Hanging()
    call = asyncio.create_task(Errand[Any]("n", tasks, writes=True).run(hanging(), 2.0))
    await turns()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert hanging.carrier is not None
    hanging.carrier.hand_over(again)
    await turns()

    assert [] == again.asked
    hanging.release.set()
    await turns()
    assert not tasks


@pytest.mark.parametrize("late", [["x", "y", "z"], BackendError("late"), BackendUnavailableError("late")])
@in_virtual_time
async def test_flight(late: Any) -> None:
    """The calls of a flush get their results from elsewhere, those that were cancelled left out; it is not repeated."""
    hanging = Hanging(late)
    batcher: Batcher[str, str] = Batcher(
        hanging, deadline_seconds=2.0, writes=True, repeatable=True, key=lambda item: "k"
    )
    calls = [asyncio.create_task(called(batcher, item)) for item in "abc"]
    await turns()
    calls[1].cancel()
    assert hanging.carrier is not None
    hanging.carrier.hand_over(upper)
    said = await asyncio.gather(*calls, return_exceptions=True)
    hanging.carrier.hand_over(upper)
    hanging.release.set()
    await turns()

    assert ("A", "C") == (said[0], said[2])
    assert isinstance(said[1], asyncio.CancelledError)
    assert [["a", "b", "c"]] == hanging.asked
    assert late is not None
    await batcher.drain(1)


@in_virtual_time
async def test_flight_in_time() -> None:
    """Those that were handed over keep their deadline and their key; the ones behind them come next."""
    hanging, again = Hanging(["late"]), Hanging(["later"])
    batcher: Batcher[str, str] = Batcher(
        hanging, deadline_seconds=2.0, writes=True, key=lambda item: "k", bounds=Bounds(flights=2)
    )
    began = loop().time()
    first = asyncio.create_task(called(batcher, "a"))
    await turns()
    second = asyncio.create_task(called(batcher, "b"))
    await asyncio.sleep(1.0)
    assert hanging.carrier is not None
    assert began + 2.0 == pytest.approx(hanging.carrier.end)
    hanging.carrier.hand_over(again)
    await turns()
    assert [["a"]] == hanging.asked  # The second waits for the key.
    again.release.set()
    assert "later" == await first
    await turns()
    assert [["a"], ["b"]] == hanging.asked
    with pytest.raises(BackendTimeoutError):
        await second

    assert 2.0 == pytest.approx(loop().time() - began, abs=0.02)
    hanging.release.set()
    await turns()
    await batcher.drain(1)


@in_virtual_time
async def test_one_of_many_fails() -> None:
    """What they are handed over to may refuse one of them: the others do without it."""

    async def picky(items: Any) -> Any:
        if "b" in items:
            raise BackendError("refused")
        return await upper(items)

    hanging = Hanging(["late"] * 3)
    batcher: Batcher[str, str] = Batcher(hanging, deadline_seconds=2.0, writes=True)
    calls = [asyncio.create_task(called(batcher, item)) for item in "abc"]
    await turns()
    assert hanging.carrier is not None
    hanging.carrier.hand_over(picky)
    said = await asyncio.gather(*calls, return_exceptions=True)

    assert ("A", "C") == (said[0], said[2])
    assert isinstance(said[1], BackendError)
    hanging.release.set()
    await batcher.drain(1)


@pytest.mark.parametrize("seconds", [0.5, 5.0])
@in_virtual_time
async def test_alone(seconds: float) -> None:
    """A call in its caller's own task goes on there, in what is left of its time."""
    given: list[Carrier | None] = []

    async def flush(items: list[str]) -> list[str]:
        given.append(carrier.get())
        if len(given) > 1:
            await asyncio.sleep(60)
        return items

    async def rest(items: Any) -> Any:
        await asyncio.sleep(seconds)
        return [item.upper() for item in items]

    batcher: Batcher[str, str] = Batcher(flush, deadline_seconds=2.0, writes=True, at_once=True)
    assert "a" == await batcher.call("a")
    began = loop().time()
    call = asyncio.create_task(called(batcher, "b"))
    await asyncio.sleep(1.0)
    last = given[-1]
    assert last is not None
    assert began + 2.0 == last.end
    last.hand_over(rest)
    last.hand_over(rest)
    if seconds < 1:
        assert "B" == await call
    else:
        with pytest.raises(BackendTimeoutError):
            await call

    assert min(1 + seconds, 2) == pytest.approx(loop().time() - began)
    assert not call.cancelling()
    assert carrier.get() is None
    await batcher.drain(1)


class Page(list[int]):
    """Something large, which can be watched."""


@pytest.mark.parametrize("way", ["errand", "flight"])
async def test_answers_go_at_once(way: str) -> None:
    """An answer that its caller let go of is gone, without the garbage collector, which would keep megabytes of them."""
    pages: list[weakref.ref[Page]] = []

    async def page(items: Any = None) -> Any:
        one = Page(items or [1])
        pages.append(weakref.ref(one))
        return one if items is None else [one]

    gc.disable()
    try:
        if way == "errand":
            errand = Errand[Page]("test", set(), writes=False)
            await errand.run(page(), 1)
            errand.hand_over(page)  # A guard may remember it, and be late.
        else:
            await Batcher[int, Page](page, deadline_seconds=1, writes=False).call(1)
        await turns()
        assert [None] == [each() for each in pages]
    finally:
        gc.enable()

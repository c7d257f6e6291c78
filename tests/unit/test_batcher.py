"""The batcher alone: what shares a flush, in which order, and who hears of what; in virtual time."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import traceback
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest
from virtual_time import VirtualLoop, in_virtual_time, loop, turns

from multidb._core.batcher import Batcher, Bounds
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    InvalidValueError,
    OverloadedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEADLINE = 2.0
NEVER = 3600.0


class Flush:
    """A flush that is under way until the test ends it."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.task = asyncio.current_task()
        self.end: asyncio.Future[Sequence[Any]] = asyncio.get_running_loop().create_future()

    def answer(self, *results: Any) -> None:
        """Answer *results*, or for each item the item in capitals."""
        self.end.set_result(results or [str(item).upper() for item in self.items])

    def fail(self, error: BaseException) -> None:
        self.end.set_exception(error)


class Server:
    """What the batcher flushes to. *reply* answers at once; without one each flush waits for the test."""

    def __init__(self, reply: Callable[[list[Any]], Sequence[Any]] | None = None) -> None:
        self.flushes: list[Flush] = []
        self.under_way: list[Flush] = []
        self.most = 0
        self.stubborn = False
        """Whether a flush goes on when it is cancelled, as some drivers do."""
        self._reply = reply

    @property
    def items(self) -> list[list[Any]]:
        return [flush.items for flush in self.flushes]

    async def flush(self, items: list[Any]) -> Sequence[Any]:
        flush = Flush(items)
        self.flushes.append(flush)
        self.under_way.append(flush)
        self.most = max(self.most, len(self.under_way))
        try:
            if self._reply is not None:
                await asyncio.sleep(0)
                return self._reply(items)
            while True:
                try:
                    return await asyncio.shield(flush.end)
                except asyncio.CancelledError:
                    if not self.stubborn or flush.end.done():
                        raise
        finally:
            self.under_way.remove(flush)


def make(
    server: Server, *, writes: bool = True, repeatable: bool = False, key: Any = None, **bounds: int
) -> Batcher[Any, Any]:
    return Batcher(
        server.flush,
        deadline_seconds=DEADLINE,
        writes=writes,
        repeatable=repeatable,
        key=key,
        bounds=Bounds(**({"share_calls": 1000} | bounds)),
    )


def call(batcher: Batcher[Any, Any], *items: Any, size: int = 0) -> list[asyncio.Task[Any]]:
    """Call for each of *items* in a task of its own."""
    return [asyncio.create_task(called(batcher, item, size)) for item in items]


async def called(batcher: Batcher[Any, Any], item: Any, size: int = 0) -> Any:
    """Return what the call returns."""
    return await batcher.call(item, size)


async def ended(tasks: Sequence[asyncio.Task[Any]]) -> list[Any]:
    """Return the results, or the exceptions, of tasks that are done."""
    await turns()
    assert all(task.done() for task in tasks)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def user(item: str) -> str:
    """The key of `a1` is `a`."""
    return item[0]


@pytest.fixture(autouse=True)
def _no_complaint(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test leaves what asyncio complains of."""
    yield
    gc.collect()
    records = [*caplog.get_records("call"), *caplog.records]
    assert [] == [record.getMessage() for record in records if record.name == "asyncio"]


# What shares a flush


@in_virtual_time
async def test_lone_call() -> None:
    """A lone call is flushed on the next turn of the loop; no clock is waited for."""
    server = Server()
    batcher = make(server)
    (task,) = call(batcher, "a")
    await asyncio.sleep(0)
    before = list(server.flushes)
    await asyncio.sleep(0)
    server.flushes[0].answer()

    assert [] == before
    assert ["A"] == await ended([task])
    assert 1000 == loop().time()


@in_virtual_time
async def test_calls_of_one_turn() -> None:
    """Calls of one turn of the loop share a flush."""
    server = Server()
    tasks = call(make(server), "a", "b", "c")
    await turns()
    server.flushes[0].answer()

    assert ["A", "B", "C"] == await ended(tasks)
    assert [["a", "b", "c"]] == server.items


@in_virtual_time
async def test_calls_during_a_flush() -> None:
    """Everything that is called while the flushes allowed are under way becomes the next one."""
    server = Server()
    batcher = make(server, flights=1)
    tasks = call(batcher, "a")
    await turns()
    for item in "bcd":
        tasks += call(batcher, item)
        await turns()
    server.flushes[0].answer()
    await turns()
    server.flushes[1].answer()

    assert ["A", "B", "C", "D"] == await ended(tasks)
    assert [["a"], ["b", "c", "d"]] == server.items


@in_virtual_time
async def test_call_upon_an_answer() -> None:
    """Whoever calls again as soon as it is answered is in the next flush, with the others."""
    server = Server(lambda items: items)
    batcher = make(server)

    async def chat() -> None:
        for number in range(20):
            assert number == await batcher.call(number)

    await asyncio.gather(*(chat() for _ in range(100)))

    assert {100} == {len(items) for items in server.items}


@in_virtual_time
async def test_bound_in_calls() -> None:
    """A flush takes so many calls and no more; the others follow in order."""
    server = Server(lambda items: items)
    tasks = call(make(server, flush_calls=10), *range(35))
    await asyncio.wait(tasks)

    assert [*range(35)] == [item for items in server.items for item in items]
    assert [10, 10, 10, 5] == [len(items) for items in server.items]


@in_virtual_time
async def test_bound_in_bytes() -> None:
    """A flush takes so many bytes and no more."""
    server = Server(lambda items: items)
    batcher = make(server, flush_bytes=100)
    tasks = [*call(batcher, 0, 1, 2, size=40), *call(batcher, 3, size=21), *call(batcher, 4, size=1)]
    await asyncio.wait(tasks)

    assert [[0, 1], [2, 3, 4]] == server.items


@in_virtual_time
async def test_huge_item() -> None:
    """An item that is larger than a flush goes alone, and takes its turn."""
    server = Server(lambda items: items)
    batcher = make(server, flush_bytes=100, flights=1)
    tasks = [*call(batcher, 0), *call(batcher, 1, size=1000), *call(batcher, 2, 3, size=1)]
    await asyncio.wait(tasks)

    assert [[0], [1], [2, 3]] == server.items


@in_virtual_time
async def test_flights() -> None:
    """So many flushes are under way at once, and never more."""
    server = Server()
    batcher = make(server, flights=3)
    tasks: list[asyncio.Task[Any]] = []
    for item in "abcdef":
        tasks += call(batcher, item)
        await turns()
    under_way = [flush.items for flush in server.under_way]
    server.flushes[1].answer()
    await turns()
    for flush in tuple(server.under_way):
        flush.answer()

    assert [["a"], ["b"], ["c"]] == under_way
    assert ["A", "B", "C", "D", "E", "F"] == await ended(tasks)
    assert ["d", "e", "f"] == server.items[3]
    assert 3 == server.most


@in_virtual_time
async def test_burst_beyond_one_flush() -> None:
    """A burst that is more than one flush takes is under way in as many as are allowed."""
    server = Server()
    tasks = call(make(server, flush_calls=10), *range(35))
    await turns()
    under_way = len(server.under_way)
    while server.under_way:
        server.under_way[0].answer()
        await turns()

    assert 2 == under_way == server.most
    assert [str(number) for number in range(35)] == await ended(tasks)


@in_virtual_time
async def test_shared_burst() -> None:
    """Of many calls that come at once each flight takes a half; of few it is one flush."""
    server = Server(lambda items: items)
    batcher = make(server, share_calls=10)
    few = call(batcher, *range(10))
    await asyncio.wait(few)
    tasks = call(batcher, *range(31))
    await turns(3)
    shared = list(server.items)
    await asyncio.wait(tasks)

    assert [[*range(10)], [*range(16)], [*range(16, 31)]] == shared
    assert [*range(31)] == await ended(tasks)
    assert 2 == server.most


@in_virtual_time
async def test_shared_burst_of_one_key() -> None:
    """Sharing keeps the order of a key."""
    applied: list[int] = []

    def reply(items: list[int]) -> list[int]:
        applied.extend(items)
        return items

    server = Server(reply)
    tasks = call(make(server, share_calls=10, key=lambda item: item % 3), *range(300))
    await asyncio.wait(tasks)

    assert [*range(300)] == sorted(applied)
    assert all([*range(key, 300, 3)] == [item for item in applied if item % 3 == key] for key in range(3))


@in_virtual_time
async def test_context() -> None:
    """A flush is no part of what its first caller does: it sees none of the caller's context variables."""
    variable: ContextVar[str] = ContextVar("variable", default="nothing")
    seen: list[str] = []

    def reply(items: list[Any]) -> list[Any]:
        seen.append(variable.get())
        return items

    batcher = make(Server(reply))
    variable.set("a request of one user")
    await batcher.call("a")

    assert ["nothing"] == seen


# The order of one key


@in_virtual_time
async def test_same_key_in_one_flush() -> None:
    """Items of one key may share a flush, in order."""
    server = Server(lambda items: items)
    await asyncio.wait(call(make(server, key=user), "a1", "b1", "a2", "a3"))

    assert [["a1", "b1", "a2", "a3"]] == server.items


@in_virtual_time
async def test_same_key_in_two_flushes() -> None:
    """An item waits for the flush that has its key; those behind it go ahead, its followers do not."""
    server = Server()
    batcher = make(server, key=user)
    tasks = call(batcher, "a1")
    await turns()
    tasks += call(batcher, "a2", "b1", "a3", "c1")
    await turns()
    under_way = [flush.items for flush in server.under_way]
    server.flushes[0].answer()
    await turns()
    after = [flush.items for flush in server.under_way]
    for flush in tuple(server.under_way):
        flush.answer()

    assert [["a1"], ["b1", "c1"]] == under_way
    assert [["b1", "c1"], ["a2", "a3"]] == after
    assert ["A1", "A2", "B1", "A3", "C1"] == await ended(tasks)


@in_virtual_time
async def test_held_item_is_flushed_when_its_key_is_free() -> None:
    """An item whose key was taken is flushed as soon as that flush ends, also when nobody calls any more."""
    server = Server()
    batcher = make(server, key=user)
    tasks = call(batcher, "a1")
    await turns()
    tasks += call(batcher, "a2")
    await turns()
    held = list(server.items)
    server.flushes[0].fail(BackendUnavailableError("gone"))
    await turns()
    server.flushes[1].answer()
    results = await ended(tasks)

    assert [["a1"]] == held
    assert BackendUnavailableError is type(results[0])
    assert "A2" == results[1]


@in_virtual_time
async def test_key_of_a_cancelled_caller() -> None:
    """A flush keeps its key although its caller was cancelled: what it does is not over."""
    server = Server()
    batcher = make(server, key=user)
    tasks = call(batcher, "a1")
    await turns()
    await cancelled(*tasks)
    tasks = call(batcher, "a2")
    await turns()
    held = list(server.items)
    server.flushes[0].answer()
    await turns()
    server.flushes[1].answer()

    assert [["a1"]] == held
    assert ["A2"] == await ended(tasks)


@in_virtual_time
async def test_key_during_a_bisection() -> None:
    """A key is taken until the last half of its batch is through."""
    server = Server()
    batcher = make(server, key=user)
    tasks = call(batcher, "a1", "b1")
    await turns()
    server.flushes[0].fail(BackendError("one of them is bad"))
    await turns()
    tasks += call(batcher, "a2", "b2", "c1")
    await turns()
    server.flushes[1].answer()  # a1
    await turns()
    server.flushes[2].answer()  # c1
    await turns()
    during = list(server.items)
    server.flushes[3].answer()  # b1
    await turns()
    server.flushes[4].answer()

    assert [["a1", "b1"], ["a1"], ["c1"], ["b1"]] == during
    assert ["a2", "b2"] == server.items[4]
    assert ["A1", "B1", "A2", "B2", "C1"] == await ended(tasks)


@in_virtual_time
async def test_key_of_a_flush_given_up() -> None:
    """A flush that was given up has let go of its keys: their owners are not locked out for as long as it hangs."""
    server = Server()
    server.stubborn = True
    batcher = make(server, key=user, flights=1)
    first = call(batcher, "a1")
    await asyncio.sleep(DEADLINE / 2)
    second = call(batcher, "a2")
    await asyncio.sleep(DEADLINE / 2 + 0.1)
    server.flushes[1].answer()
    results = await ended([*first, *second])
    server.flushes[0].answer()
    await turns()

    assert BackendTimeoutError is type(results[0])
    assert "A2" == results[1]


# Whose result it is


@in_virtual_time
async def test_results_and_errors_of_items() -> None:
    """Each caller gets its own result or its own exception."""
    server = Server()
    tasks = call(make(server), "a", "b", "c", "d")
    await turns()
    server.flushes[0].answer(1, ZeroDivisionError("b's"), None, InvalidValueError("d", "bad"))
    results = await ended(tasks)

    assert [1, None] == results[::2]
    assert ['ZeroDivisionError("b\'s")', "InvalidValueError('d', 'bad')"] == [repr(e) for e in results[1::2]]
    assert 1 == len(server.flushes)


@in_virtual_time
async def test_one_exception_for_several_items() -> None:
    """A backend may return one exception object for several items; the callers get one each."""
    server = Server()
    tasks = call(make(server), "a", "b", "c")
    await turns()
    server.flushes[0].answer(*[BackendError("bad", ambiguous=True)] * 3)
    results = await ended(tasks)

    assert 3 == len({id(exc) for exc in results})
    assert ["bad"] * 3 == [str(exc) for exc in results]
    assert all(exc.ambiguous for exc in results)


async def _failed_together(error: BaseException) -> list[Any]:
    """Return what three callers get whose flush raises *error*."""
    server = Server()
    tasks = call(make(server), "a", "b", "c")
    await turns()
    server.flushes[0].fail(error)
    return await ended(tasks)


@in_virtual_time
async def test_each_caller_has_its_own_exception() -> None:
    """One that fails for all is an object of its own for each, equal in all that a caller sees of it."""
    error = BackendTimeoutError("no answer", ambiguous=True)
    error.__cause__ = ConnectionResetError("the driver's")
    error.add_note("a note")
    results = await _failed_together(error)
    results[0].add_note("mine")
    results[0].store = "mine"

    assert 3 == len({id(exc) for exc in results})
    assert {BackendTimeoutError} == {type(exc) for exc in results}
    assert {"no answer"} == {str(exc) for exc in results[1:]}
    assert all(exc.ambiguous and exc.retryable for exc in results)
    assert all(exc.__cause__ is error.__cause__ for exc in results)
    assert [["a note"]] * 2 == [exc.__notes__ for exc in results[1:]]


@in_virtual_time
async def test_context_of_an_exception() -> None:
    """What an exception was raised in the middle of is told to every caller, unless it says `from None`."""
    error = BackendUnavailableError("gone")
    error.__context__ = KeyError("in the middle of this")
    results = await _failed_together(error)

    assert 3 == sum("in the middle of this" in "".join(traceback.format_exception(exc)) for exc in results)

    error = BackendUnavailableError("gone")
    error.__context__, error.__suppress_context__ = KeyError("in the middle of this"), True
    results = await _failed_together(error)

    assert 0 == sum("in the middle of this" in "".join(traceback.format_exception(exc)) for exc in results)


@in_virtual_time
async def test_tracebacks() -> None:
    """A traceback shows the flush and the own caller, and grows with nobody else's."""
    results = await _failed_together(BackendUnavailableError("gone"))
    lines = [traceback.format_exception(exc) for exc in results]
    frames = [[frame.name for frame in traceback.extract_tb(exc.__traceback__)] for exc in results]

    assert 1 == len({len(each) for each in lines})
    assert all(1 == names.count("flush") and 1 == names.count("called") for names in frames)


@in_virtual_time
async def test_exception_that_cannot_be_copied() -> None:
    """An exception that cannot be made again from its arguments reaches every caller all the same."""

    class AwkwardError(Exception):
        def __init__(self, code: int, text: str) -> None:
            super().__init__(f"{code} {text}")

    results = await _failed_together(AwkwardError(7, "x"))

    assert ["7 x"] * 3 == [str(exc) for exc in results]


@pytest.mark.parametrize("count", [0, 2, 4])
@pytest.mark.parametrize("writes", [True, False])
def test_wrong_number_of_results(count: int, writes: bool) -> None:
    """Too few results, or too many, are nobody's: which would be whose?"""

    @in_virtual_time
    async def test() -> None:
        server = Server()
        tasks = call(make(server, writes=writes), "a", "b", "c")
        await turns()
        server.flushes[0].end.set_result(["x"] * count)
        await turns()
        if not writes:  # Reads again are harmless: here a half of them, then the other.
            assert 1 < len(server.flushes)
            while server.under_way:
                server.under_way[0].end.set_result([])
                await turns()
        results = await ended(tasks)

        assert {BackendError} == {type(exc) for exc in results}
        assert all(exc.ambiguous is writes for exc in results)
        assert writes == (len(server.flushes) == 1)

    test()


@in_virtual_time
async def test_no_results() -> None:
    """A backend that answers with nothing at all, or raises what is no error of ours, fails its callers."""
    server = Server()
    batcher = make(server)
    tasks = call(batcher, "a", "b")
    await turns()
    server.flushes[0].end.set_result(None)  # type: ignore[arg-type]
    tasks += call(batcher, "c")
    await turns()
    server.flushes[1].fail(ZeroDivisionError())
    results = await ended(tasks)

    assert [TypeError, TypeError, ZeroDivisionError] == [type(exc) for exc in results]


# One bad item among good ones


class Picky(Server):
    """Raises *error* for every flush with a bad item in it."""

    def __init__(self, error: Exception, bad: set[int]) -> None:
        def reply(items: list[int]) -> list[int]:
            if bad.intersection(items):
                raise error
            self.applied += items
            return [item * 10 for item in items]

        super().__init__(reply)
        self.applied: list[int] = []


@pytest.mark.parametrize(
    ("error", "repeatable"),
    [
        (BackendError("bad row"), False),
        (BackendError("bad row"), True),
        (BackendError("bad row", ambiguous=True), True),
        (InvalidValueError("x", "too deep for this backend"), True),
        (ZeroDivisionError(), True),
    ],
    ids=repr,
)
@pytest.mark.parametrize("bad", [0, 255, 256, 499])
def test_bad_item(error: Exception, repeatable: bool, bad: int) -> None:
    """One bad item fails its caller only; finding it takes few flushes, not one for each item."""

    @in_virtual_time
    async def test() -> None:
        server = Picky(error, {bad})
        results = await asyncio.gather(
            *(make_once(server).call(number) for number in range(500)), return_exceptions=True
        )

        assert type(error) is type(results[bad])
        assert [n * 10 for n in range(500) if n != bad] == [r for r in results if isinstance(r, int)]
        assert [n for n in range(500) if n != bad] == server.applied
        assert len(server.flushes) <= 1 + 2 * 9

    batchers: list[Batcher[Any, Any]] = []

    def make_once(server: Server) -> Batcher[Any, Any]:
        if not batchers:
            batchers.append(make(server, repeatable=repeatable))
        return batchers[0]

    test()


@pytest.mark.parametrize(
    "error",
    [InvalidValueError("x", "too deep"), ZeroDivisionError(), BackendError("bad", ambiguous=True)],
    ids=repr,
)
@in_virtual_time
async def test_nothing_is_written_twice(error: Exception) -> None:
    """Where some may have been applied, and may not be again, what failed is not tried again in halves."""
    server = Picky(error, {3})
    batcher = make(server)
    results = await asyncio.gather(*(batcher.call(number) for number in range(10)), return_exceptions=True)

    assert [type(error)] * 10 == [type(result) for result in results]
    assert len(server.flushes) == 1


@in_virtual_time
async def test_no_trial_of_single_items() -> None:
    """As long as nothing fails, and in the parts where nothing does, no item is tried alone."""
    server = Picky(BackendError("bad row"), {3})
    batcher = make(server)
    await asyncio.wait(call(batcher, *range(10, 110)))
    before = len(server.flushes)
    tasks = call(batcher, *range(8))
    await asyncio.wait(tasks)

    assert BackendError is type((await ended(tasks))[3])
    assert 1 == before
    assert [[*range(8)], [0, 1, 2, 3], [0, 1], [2, 3], [2], [3], [4, 5, 6, 7]] == server.items[before:]


@in_virtual_time
async def test_several_bad_items() -> None:
    """Each of several bad items fails alone, with an exception of its own."""
    bad = {7, 8, 300, 411, 499}
    server = Picky(BackendError("bad row"), bad)
    tasks = call(make(server), *range(500))
    await asyncio.wait(tasks)
    results = await ended(tasks)

    assert bad == {number for number, result in enumerate(results) if isinstance(result, BackendError)}
    assert 5 == len({id(results[number]) for number in bad})
    assert [number for number in range(500) if number not in bad] == server.applied
    assert len(server.flushes) <= 1 + 2 * 9 * len(bad)


@pytest.mark.parametrize(
    "error",
    [
        BackendUnavailableError("gone"),
        BackendTimeoutError("late"),
        BackendTimeoutError("late", ambiguous=True),
        OverloadedError("disk full"),
        BackendError("which of them was stored?", ambiguous=True),
        ConfigurationError("wrong password"),
        ClosedError("closed"),
        ZeroDivisionError(),
    ],
    ids=repr,
)
def test_failure_for_all(error: Exception) -> None:
    """What is no item's fault, or leaves open what was stored, fails all callers and is not tried again."""

    @in_virtual_time
    async def test() -> None:
        server = Server()
        tasks = call(make(server), *range(100))
        await turns()
        server.flushes[0].fail(error)
        results = await ended(tasks)

        assert {type(error)} == {type(exc) for exc in results}
        assert 100 == len({id(exc) for exc in results})
        assert 1 == len(server.flushes)

    test()


@in_virtual_time
async def test_server_that_dies_during_a_bisection() -> None:
    """When the server goes away while a bad item is looked for, those that are stored stay answered."""
    server = Server()
    tasks = call(make(server), *"abcd")
    await turns()
    server.flushes[0].fail(BackendError("bad row"))
    await turns()
    server.flushes[1].answer()
    await turns()
    server.flushes[2].fail(BackendUnavailableError("gone"))
    results = await ended(tasks)

    assert ["A", "B"] == results[:2]
    assert [BackendUnavailableError] * 2 == [type(exc) for exc in results[2:]]
    assert [[*"abcd"], [*"ab"], [*"cd"]] == server.items


@in_virtual_time
async def test_cancelled_during_a_bisection() -> None:
    """Who is cancelled while a bad item is looked for is in no later half."""
    server = Server()
    tasks = call(make(server), *"abcd")
    await turns()
    server.flushes[0].fail(BackendError("bad row"))
    await turns()
    await cancelled(tasks[2])
    server.flushes[1].answer()
    await turns()
    server.flushes[2].answer()

    assert ["A", "B", "D"] == await ended([*tasks[:2], tasks[3]])
    assert [[*"abcd"], [*"ab"], ["d"]] == server.items


# Cancelled callers


@in_virtual_time
async def test_cancelled_before_the_flush() -> None:
    """A caller that is cancelled before its flush is left out of it."""
    server = Server()
    batcher = make(server, flights=1)
    first = call(batcher, "a", "b")
    await asyncio.sleep(0)
    await cancelled(first[0])
    second = call(batcher, "c", "d")
    await turns()
    await cancelled(second[1])
    server.flushes[0].answer()
    await turns()
    server.flushes[1].answer()

    assert ["B", "C"] == await ended([first[1], second[0]])
    assert [["b"], ["c"]] == server.items


@in_virtual_time
async def test_all_cancelled_before_the_flush() -> None:
    """Where nobody is left there is no flush; what comes next is flushed."""
    server = Server(lambda items: items)
    batcher = make(server, flush_calls=3)
    tasks = call(batcher, *range(20))
    await asyncio.sleep(0)
    await cancelled(*tasks)
    await turns()
    nothing = list(server.items)
    tasks = call(batcher, *range(20))
    await asyncio.sleep(0)
    await cancelled(*tasks[:19])
    await turns()

    assert [] == nothing
    assert [19] == await ended(tasks[19:])
    assert [[19]] == server.items


@in_virtual_time
async def test_cancelled_during_the_flush() -> None:
    """A caller that is cancelled during its flush changes nothing for the others, nor for the flush."""
    server = Server()
    tasks = call(make(server), "a", "b", "c")
    await turns()
    await cancelled(tasks[1])
    flush = server.flushes[0]
    alive = flush.task is not None and not flush.task.done() and flush.task.cancelling() == 0
    flush.answer()

    assert alive
    assert ["A", "C"] == await ended([tasks[0], tasks[2]])
    assert [["a", "b", "c"]] == server.items


@pytest.mark.parametrize("error", [None, BackendUnavailableError("gone"), ZeroDivisionError()], ids=repr)
def test_all_cancelled_during_the_flush(error: Exception | None) -> None:
    """A flush whose callers are all gone ends as it ends, and nobody complains of what it raised."""

    @in_virtual_time
    async def test() -> None:
        server = Server()
        batcher = make(server)
        tasks = call(batcher, "a", "b")
        await turns()
        await cancelled(*tasks)
        if error is None:
            server.flushes[0].answer()
        else:
            server.flushes[0].fail(error)
        await turns()
        after = call(batcher, "c")
        await turns()
        server.flushes[1].answer()

        assert ["C"] == await ended(after)
        assert [["a", "b"], ["c"]] == server.items

    test()


@pytest.mark.parametrize("error", [None, BackendUnavailableError("gone")], ids=repr)
def test_cancelled_when_the_answer_is_there(error: Exception | None) -> None:
    """A cancellation that meets the answer is still a cancellation, and the error is taken note of."""

    @in_virtual_time
    async def test() -> None:
        server = Server()
        (task,) = call(make(server), "a")
        await turns()
        flush = server.flushes[0]
        if error is None:
            flush.answer()
        else:
            flush.fail(error)
        for _ in range(3):
            await asyncio.sleep(0)
            if not server.under_way:
                break
        await cancelled(task)

        assert task.cancelled()

    test()


@in_virtual_time
async def test_timeout_of_the_caller() -> None:
    """A shorter timeout around a call ends the call, and no other."""
    server = Server()
    batcher = make(server)
    (other,) = call(batcher, "b")
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.1):
            await batcher.call("a")
    server.flushes[0].answer()

    assert ["B"] == await ended([other])
    assert not isinstance(caught.value, BackendTimeoutError)


@pytest.mark.parametrize("writes", [True, False])
def test_cancelled_by_the_driver(writes: bool) -> None:
    """A CancelledError that a driver raises by itself is an error for its callers; nobody is cancelled by it."""

    @in_virtual_time
    async def test() -> None:
        server = Server()
        batcher = make(server, writes=writes)
        tasks = call(batcher, "a", "b")
        await turns()
        server.flushes[0].fail(asyncio.CancelledError())
        results = await ended(tasks)
        after = call(batcher, "c")
        await turns()
        server.flushes[1].answer()

        assert {BackendUnavailableError} == {type(exc) for exc in results}
        assert all(exc.ambiguous is writes for exc in results)
        assert ["C"] == await ended(after)

    test()


# A server that does not answer


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("stubborn", [True, False])
def test_flush_that_hangs(writes: bool, stubborn: bool) -> None:
    """Its callers time out at the deadline, the queue goes on in another flush, a late answer reaches nobody."""

    @in_virtual_time
    async def test() -> None:
        server = Server()
        server.stubborn = stubborn
        batcher = make(server, flights=1, writes=writes)
        tasks = call(batcher, "a", "b")
        await asyncio.sleep(DEADLINE * 0.99)
        waiting = call(batcher, "c")
        early = [task.done() for task in tasks]
        await asyncio.sleep(DEADLINE * 0.02)
        results = await ended(tasks)
        server.flushes[1].answer()
        answered = await ended(waiting)
        if stubborn:
            server.flushes[0].answer("late", "later")
        await turns()

        assert [False, False] == early
        assert [BackendTimeoutError] * 2 == [type(exc) for exc in results]
        assert all(exc.ambiguous is writes and exc.retryable for exc in results)
        assert results[0] is not results[1]
        assert ["C"] == answered
        assert [["a", "b"], ["c"]] == server.items

    test()


@pytest.mark.parametrize(
    "error", [BackendError("late, and bad"), BackendUnavailableError("late"), KeyError()]
)
def test_late_error(error: Exception) -> None:
    """A flush that was given up and raises at last, even for one bad item, is not tried again."""

    @in_virtual_time
    async def test() -> None:
        server = Server()
        server.stubborn = True
        tasks = call(make(server, repeatable=True), "a", "b", "c")
        await asyncio.sleep(DEADLINE * 1.1)
        server.flushes[0].fail(error)
        results = await ended(tasks)

        assert {BackendTimeoutError} == {type(exc) for exc in results}
        assert 1 == len(server.flushes)

    test()


@in_virtual_time
async def test_flush_with_old_and_new_calls() -> None:
    """Each call has its own deadline: a flush is given up when the last of its callers has had its time."""
    server = Server()
    batcher = make(server, flights=1)
    tasks = call(batcher, "a")
    await turns()
    tasks += call(batcher, "b")
    await asyncio.sleep(DEADLINE / 2)
    tasks += call(batcher, "c")
    await turns()
    server.flushes[0].answer()
    await asyncio.sleep(DEADLINE / 2 + 0.1)
    state = [task.done() for task in tasks]
    server.flushes[1].answer()
    results = await ended(tasks)

    assert [True, True, False] == state
    assert ["A", BackendTimeoutError, "C"] == [results[0], type(results[1]), results[2]]
    assert [["a"], ["b", "c"]] == server.items


@in_virtual_time
async def test_all_flights_hang() -> None:
    """Where every flush hangs, those that were sent time out as ambiguous and those that were not as overload."""
    server = Server()
    batcher = make(server)
    sent = call(batcher, "a")
    await turns()
    sent += call(batcher, "b")
    await turns()
    unsent = call(batcher, "c", "d")
    await asyncio.sleep(DEADLINE * 1.1)
    results = await ended(sent)
    others = await ended(unsent)
    await turns()

    assert [BackendTimeoutError] * 2 == [type(exc) for exc in results]
    assert [OverloadedError] * 2 == [type(exc) for exc in others]
    assert not any(exc.ambiguous for exc in others)
    assert others[0] is not others[1]
    assert [["a"], ["b"]] == server.items


@in_virtual_time
async def test_dead_server_for_a_while() -> None:
    """Callers that keep coming while nothing answers are all answered in time, and served when it is back."""
    server = Server()
    server.stubborn = True
    batcher = make(server, queue_calls=5)
    tasks: list[asyncio.Task[Any]] = []
    slow = []

    async def timed(item: int) -> Any:
        started = loop().time()
        try:
            return await batcher.call(item)
        finally:
            slow.append(loop().time() - started)

    for number in range(100):
        tasks.append(asyncio.create_task(timed(number)))
        await asyncio.sleep(0.1)
    server.stubborn = False
    while server.under_way:
        server.under_way[0].answer()
        await turns()
    results = await ended(tasks)
    sent = {item for items in server.items for item in items}
    unsent = {number for number, result in enumerate(results) if isinstance(result, OverloadedError)}

    assert max(slow) < DEADLINE + 0.1
    assert [BackendTimeoutError] * 10 == [type(exc) for exc in results[:10]]
    assert [str(number) for number in range(82, 100)] == results[82:]
    assert set(range(100)) - unsent == sent


@in_virtual_time
async def test_long_turn_of_the_loop() -> None:
    """Calls of a turn that takes longer than the deadline begin when it is over."""
    server = Server()
    tasks: list[asyncio.Task[Any]] = []
    batcher = make(server, flights=1)

    async def slow(item: str) -> Any:
        loop().pass_time(DEADLINE)
        return await batcher.call(item)

    for _ in range(2):  # Once with no flush under way, once with one.
        tasks += [asyncio.create_task(slow(item)) for item in "abc"]
        await asyncio.sleep(DEADLINE * 0.9)
    server.flushes[0].answer()
    await turns()
    server.flushes[1].answer()

    assert ["A", "B", "C"] * 2 == await ended(tasks)


@in_virtual_time
async def test_answer_that_came_during_a_long_turn() -> None:
    """An answer that is there when the loop comes round counts, although the deadline passed while it was busy."""
    server = Server()
    tasks = call(make(server), "a", "b")
    await asyncio.sleep(DEADLINE * 0.99)
    server.flushes[0].answer()
    loop().pass_time(DEADLINE)

    assert ["A", "B"] == await ended(tasks)


# A queue that is full


@in_virtual_time
async def test_full_in_calls() -> None:
    """A caller that finds the queue full waits, and is let in in the order in which it came."""
    server = Server(lambda items: items)
    batcher = make(server, queue_calls=4, flush_calls=2, flights=1)
    tasks = call(batcher, *range(21))
    await asyncio.wait(tasks)

    assert [*range(21)] == await ended(tasks)
    assert [*range(21)] == [item for items in server.items for item in items]
    assert {1, 2} == {len(items) for items in server.items}


@in_virtual_time
async def test_full_in_bytes() -> None:
    """The same where it is full in bytes; one item that is larger than the queue is still taken."""
    server = Server(lambda items: items)
    batcher = make(server, queue_bytes=100, flush_bytes=60, flights=1)
    tasks = [task for number in range(20) for task in call(batcher, number, size=number * 11)]
    await asyncio.wait(tasks)

    assert [*range(20)] == await ended(tasks)
    assert [*range(20)] == [item for items in server.items for item in items]


@in_virtual_time
async def test_nobody_overtakes() -> None:
    """Who comes when others have just been let in goes behind them, in every turn of the loop."""
    server = Server(lambda items: items)
    batcher = make(server, queue_calls=3, flush_calls=2, flights=1, key=lambda _: "the same")
    tasks: list[asyncio.Task[Any]] = []
    for number in range(0, 200, 2):
        tasks += call(batcher, number, number + 1)
        await turns(number % 3)
    await asyncio.wait(tasks)

    assert [*range(200)] == [item for items in server.items for item in items]


@in_virtual_time
async def test_full_past_the_deadline() -> None:
    """Who was not sent in time gets an OverloadedError that is definite: nothing was sent, and nothing will be."""
    server = Server()
    server.stubborn = True
    batcher = make(server, queue_calls=2, flights=1)
    tasks = call(batcher, *"abcdef")
    await asyncio.sleep(DEADLINE * 1.1)
    results = await ended(tasks)
    after = call(batcher, "g")
    await turns()
    server.flushes[1].answer()
    answered = await ended(after)
    server.flushes[0].answer()
    await turns()

    assert [BackendTimeoutError] * 2 + [OverloadedError] * 4 == [type(exc) for exc in results]
    assert 4 == len({id(exc) for exc in results[2:]})
    assert not any(exc.ambiguous for exc in results[2:])
    assert ["G"] == answered
    assert [["a", "b"], ["g"]] == server.items


@in_virtual_time
async def test_cancelled_while_the_queue_is_full() -> None:
    """Whoever is cancelled while it waits gives its place on; so does one that was just let in."""
    server = Server()
    batcher = make(server, queue_calls=2, flights=1)
    tasks = call(batcher, "a")
    await turns()
    tasks += call(batcher, *"bcdefg")
    await turns()
    await cancelled(tasks[3], tasks[4])  # d and e wait
    server.flushes[0].answer()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await cancelled(tasks[5])  # f has been let in
    await turns()
    server.flushes[1].answer()
    await turns()
    server.flushes[2].answer()

    assert ["A", "B", "C", "G"] == await ended([task for task in tasks if not task.cancelled()])
    assert [["a"], ["b", "c"], ["g"]] == server.items


@in_virtual_time
async def test_full_of_cancelled_calls() -> None:
    """A queue that is full of cancelled calls keeps nobody waiting."""
    server = Server()
    batcher = make(server, queue_calls=3, flights=1)
    tasks = call(batcher, "a")
    await turns()
    tasks += call(batcher, *"bcd")
    await turns()
    waiting = call(batcher, *"efghi")
    await turns()
    await cancelled(*tasks[1:], *waiting[:3])
    server.flushes[0].answer()
    await turns()
    server.flushes[1].answer()
    await turns()

    assert ["A", "H", "I"] == await ended([tasks[0], *waiting[3:]])
    assert [["a"], ["h", "i"]] == server.items


@in_virtual_time
async def test_a_hundred_thousand_callers() -> None:
    """A hundred thousand callers at once all finish, a flush and a queue at a time."""
    server = Server(lambda items: items)
    batcher = make(server)
    results = await asyncio.gather(*(batcher.call(number, 100) for number in range(100_000)))

    assert [*range(100_000)] == results
    assert max(len(items) for items in server.items) == 500


@in_virtual_time
async def test_a_hundred_thousand_callers_of_a_dead_server() -> None:
    """They all fail in time, too, and what they wanted is let go of."""

    class Item:
        pass

    server = Server()
    batcher = make(server)
    kept = Item()
    seen = weakref.ref(kept)
    tasks = call(batcher, *range(99_999), kept)
    await turns()
    del kept
    await asyncio.wait(tasks, timeout=DEADLINE + 0.1)
    kinds = [type(task.exception()) for task in tasks]
    tasks.clear()
    gc.collect()

    assert 1000 == kinds.count(BackendTimeoutError)
    assert 99_000 == kinds.count(OverloadedError)
    assert seen() is None


# The end


def _nothing_left(batcher: Batcher[Any, Any]) -> bool:
    return not loop().timers() and {asyncio.current_task()} == asyncio.all_tasks()


@in_virtual_time
async def test_drain_nothing() -> None:
    """Draining what was never used, or is idle, or was drained, does nothing, at once."""
    server = Server(lambda items: items)
    batcher = make(server)
    await batcher.drain(5)
    await batcher.call("a")
    for _ in range(2):
        await batcher.drain(5)

    assert _nothing_left(batcher)
    assert 1000 == loop().time()


@in_virtual_time
async def test_drain_waits_for_all() -> None:
    """Draining answers those under way, those in the queue and those that wait for room."""
    server = Server(lambda items: items)
    batcher = make(server, queue_calls=10, flush_calls=3)
    tasks = call(batcher, *range(50))
    await asyncio.sleep(0)
    await batcher.drain(5)

    assert [*range(50)] == await ended(tasks)
    assert _nothing_left(batcher)


@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("stubborn", [False, True])
def test_drain_gives_up(after: int, stubborn: bool) -> None:
    """Past its time, draining tells everybody: who was sent that it may have been done, the others that it was not."""

    @in_virtual_time
    async def test() -> None:
        server = Server()
        server.stubborn = stubborn
        batcher = make(server, queue_calls=3, flush_calls=2, flights=1)
        tasks = call(batcher, *range(10))
        await turns(1 + after)
        await batcher.drain(0.5)
        results = await ended(tasks)
        sent = [item for items in server.items for item in items]
        for flush in server.under_way:
            flush.answer()
        await turns()

        assert [0, 1] == sent
        assert [BackendUnavailableError] * 2 + [ClosedError] * 8 == [type(exc) for exc in results]
        assert all(exc.ambiguous for exc in results[:2])
        assert 10 == len({id(exc) for exc in results})
        assert loop().time() == pytest.approx(1000.5)
        assert _nothing_left(batcher)

    test()


@pytest.mark.parametrize("after", range(4))
def test_drain_with_no_time(after: int) -> None:
    """Draining with no time to wait leaves nothing either: no task, no timer, nobody unanswered."""

    @in_virtual_time
    async def test() -> None:
        server = Server()
        batcher = make(server, queue_calls=3, flush_calls=2, flights=1)
        tasks = call(batcher, *range(10))
        await turns(after)
        await batcher.drain(0)
        # Those whose tasks had not begun call now, as nothing below a closed store does.
        done = [task for task in tasks if task.done()]
        await turns()
        await batcher.drain(0)
        results = await ended(tasks)

        assert (after == 0) == (done == [])
        assert {BackendUnavailableError, ClosedError} >= {type(exc) for exc in results}
        assert _nothing_left(batcher)

    test()


@in_virtual_time
async def test_drain_with_cancelled_callers() -> None:
    """Draining waits for the flush of callers that are gone, and leaves nothing."""
    server = Server()
    batcher = make(server, queue_calls=2)
    tasks = call(batcher, *range(6))
    await turns()
    await cancelled(*tasks)
    draining = asyncio.create_task(batcher.drain(5))
    await turns()
    waited = not draining.done()
    server.flushes[0].answer()
    await draining

    assert waited
    assert _nothing_left(batcher)


@in_virtual_time
async def test_drain_waits_for_a_flush_given_up() -> None:
    """A flush that was given up and is still under way is waited for, as it may hold a connection."""
    server = Server()
    server.stubborn = True
    batcher = make(server)
    tasks = call(batcher, "a")
    await asyncio.sleep(DEADLINE * 1.1)
    draining = asyncio.create_task(batcher.drain(5))
    await turns()
    waited = not draining.done()
    server.flushes[0].answer()
    await draining

    assert waited
    assert [BackendTimeoutError] == [type(exc) for exc in await ended(tasks)]
    assert _nothing_left(batcher)


@in_virtual_time
async def test_idle_batcher_has_no_timer() -> None:
    """A while after the last call nothing is left of it."""
    batcher = make(Server(lambda items: items))
    await batcher.call("a")
    await asyncio.sleep(DEADLINE * 1.1)

    assert _nothing_left(batcher)


@pytest.mark.parametrize("after", range(4))
def test_cancelled_flight(after: int) -> None:
    """Whoever cancels all tasks, at whatever moment, ends the flushes but not the batcher: who calls next is served."""

    @in_virtual_time
    async def test() -> None:
        server = Server()
        batcher = make(server, queue_calls=2, key=user)
        tasks = call(batcher, "a1", "a2", "b1", "b2")
        await turns(1)
        for _ in range(after):
            await turns(1)
            tasks += call(batcher, "a3")
        await turns(1)
        for task in asyncio.all_tasks() - {asyncio.current_task(), *tasks}:
            task.cancel()
        tasks += call(batcher, "a4", "c1")
        for _ in range(10):
            await turns()
            for flush in tuple(server.under_way):
                flush.answer()
        results = await ended(tasks)

        assert {str, BackendUnavailableError} >= {type(result) for result in results}
        assert ["A4", "C1"] == results[-2:]
        assert all(exc.ambiguous for exc in results if isinstance(exc, BackendUnavailableError))

    test()


@in_virtual_time
async def test_flight_that_is_cancelled_before_it_begins() -> None:
    """A flush that is cancelled before its first step takes nobody with it."""
    server = Server(lambda items: items)
    batcher = make(server)
    tasks = call(batcher, "a")
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task(), *tasks}:
        task.cancel()
    tasks += call(batcher, "b")

    assert ["a", "b"] == await ended(tasks)

    tasks = call(batcher, "c")
    await asyncio.sleep(0)
    await cancelled(*(asyncio.all_tasks() - {asyncio.current_task()}))  # type: ignore[arg-type]
    await turns()

    assert ["d"] == await ended(call(batcher, "d"))


@in_virtual_time
async def test_flush_that_breaks_out() -> None:
    """A flush that ends as no call does, with a KeyboardInterrupt say, leaves nobody waiting."""
    server = Server()
    batcher = make(server, flights=1)
    tasks = call(batcher, "a")
    await turns()
    tasks += call(batcher, "b")
    await turns()
    # As a task that raises it: in a real program it ends the loop, and what comes after is the shutting down.
    flight = next(iter(batcher._flights))
    flight.task.cancel()
    await turns()
    server.flushes[1].answer()
    results = await ended(tasks)

    assert BackendUnavailableError is type(results[0])
    assert "B" == results[1]


def _asyncio_run(main: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("after", range(8))
def test_program_that_ends_in_the_middle(after: int) -> None:
    """A program that ends while calls are under way ends, and whoever calls once more upon that is served."""
    interrupted: set[int] = set()
    served: set[int] = set()

    async def main() -> list[asyncio.Task[None]]:
        batcher = make(Server(list), queue_calls=4, flush_calls=2)

        async def work(number: int) -> None:
            try:
                await batcher.call(number)
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                interrupted.add(number)
                served.add(await batcher.call(number))
                raise

        tasks = [asyncio.create_task(work(number)) for number in range(20)]
        await turns(after)
        return tasks

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        tasks = runner.run(main())

    assert all(task.cancelled() for task in tasks)
    assert interrupted == served
    assert after == 0 or set(range(20)) == interrupted


PROGRAM = """
import asyncio, sys, gc
from multidb._core.batcher import Batcher, Bounds

async def flush(items):
    try:
        await asyncio.sleep(0 if {quick} else 60)
        return items
    finally:
        await asyncio.sleep(0)

async def call(batcher, number):
    return await batcher.call(number)

async def main():
    batcher = Batcher(flush, deadline_seconds=1, writes=True, bounds=Bounds(queue_calls=20, flush_calls=7))
    tasks = [asyncio.create_task(call(batcher, number)) for number in range(100)]
    for _ in range({turns}):
        await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    ends = asyncio.gather(*tasks, return_exceptions=True)
    {end}

try:
    asyncio.run(main())
except ZeroDivisionError:
    pass
gc.collect()
print("end")
"""


@pytest.mark.parametrize(
    ("quick", "rounds", "end"),
    [(True, 1, "return"), (False, 4, "return"), (True, 5, "1 / 0"), (False, 1, "await batcher.drain(0)")],
)
def test_nothing_to_complain_of(quick: bool, rounds: int, end: str) -> None:
    """Python in development mode has no complaint about a program that ends in the middle."""
    program = PROGRAM.format(quick=quick, turns=rounds, end=end)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert ("end\n", "") == (done.stdout, done.stderr)

"""Running calls in rounds: contenders take turns, many tasks call at once, and what they did is checked."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks import data
from benchmarks.statistics import Cell, Sample

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

_WARM_UP_SECONDS = 0.15
_CHECKED = 5
_AT_ONCE = 50


class WrongResultError(Exception):
    """A contender did not do what was measured."""


@dataclass(frozen=True)
class Calls:
    """
    What a contender does, open and ready.

    *call* gets a number that no call had before, so that no two write equal values; the number's rest by
    `data.USERS` is whose turn it is. *check* gets the number and the result of a call that was the last one of its
    user, and raises WrongResultError where it did not do what it is for. *reset*, before a round, brings what is
    stored to the size that all contenders start with; *count* says how many calls since then have left something.
    """

    call: Callable[[int], Awaitable[Any]]
    check: Callable[[int, Any], Awaitable[None]]
    reset: Callable[[], Awaitable[None]] | None = None
    count: Callable[[], Awaitable[int]] | None = None


@dataclass(frozen=True)
class Pace:
    """How long and how often is measured."""

    tasks: Sequence[int]
    rounds: int
    seconds: float

    def only(self, tasks: Sequence[int] | None) -> Pace:
        """Return this with only those of *tasks*, if there are such."""
        return self if tasks is None else replace(self, tasks=[each for each in self.tasks if each in tasks])


class Turn:
    """One contender at one number of tasks: its rounds, and the numbers that its calls get."""

    def __init__(self, cell: Cell, calls: Calls, numbers: Numbers) -> None:
        self.cell = cell
        self._calls = calls
        self._numbers = numbers
        self._latencies = array("d")
        self._errors: dict[str, int] = {}
        self._last: list[tuple[int, Any]] = []

    async def warm_up(self, seconds: float) -> None:
        """Open connections, prepare statements, fill caches."""
        await self._run(min(seconds, _WARM_UP_SECONDS))

    async def round(self, seconds: float) -> None:
        """Measure for *seconds*, then check."""
        if self._calls.reset is not None:
            await self._calls.reset()
        gc.collect()
        cpu, started = time.process_time(), time.perf_counter()
        await self._run(seconds)
        took, cpu = time.perf_counter() - started, time.process_time() - cpu
        self.cell.samples.append(Sample.of(self._latencies, took, cpu, self._errors))
        try:
            await self._check()
        except WrongResultError as exc:
            self.cell.problem = str(exc)

    async def _run(self, seconds: float) -> None:
        self._latencies, self._errors, self._last = array("d"), {}, []
        tasks = self.cell.tasks
        first = self._numbers.next_block()
        until = time.perf_counter() + seconds
        ends = await asyncio.gather(*(self._work(first + task, tasks, until) for task in range(tasks)))
        self._numbers.used_up_to(max(ends))

    async def _work(self, number: int, step: int, until: float) -> int:
        """Call again and again until it is time; return the number after the last one."""
        call, clock, took = self._calls.call, time.perf_counter, self._latencies.append
        last = None
        started = clock()
        while started < until:
            try:
                result = await call(number)
            except Exception as exc:  # noqa: BLE001 -- a rival may raise anything, and others go on
                self._failed(exc)
                started = clock()
            else:
                ended = clock()
                took(ended - started)
                started = ended
                last = (number, result)
            number += step
        if last is not None:
            self._last.append(last)
        return number

    def _failed(self, exc: Exception) -> None:
        name = type(exc).__name__
        self._errors[name] = self._errors.get(name, 0) + 1

    async def _check(self) -> None:
        if not self._last:
            raise WrongResultError(f"no call succeeded: {self._errors}")
        # A call that failed may have been done, so only the others can be held to what they said.
        if not self._errors:
            for number, result in self._last[:_CHECKED]:
                await self._calls.check(number, result)
        if self._calls.count is not None:
            done, stored = len(self._latencies), await self._calls.count()
            if not done <= stored <= done + sum(self._errors.values()):
                raise WrongResultError(f"{done} calls, but {stored} were stored")


async def for_each_user(call: Callable[[int], Awaitable[Any]]) -> None:
    """Await *call* with the first number of each user, some at a time."""
    for start in range(0, data.USERS, _AT_ONCE):
        await asyncio.gather(*(call(number) for number in range(start, start + _AT_ONCE)))


class Numbers:
    """Numbers for calls: each only once, and each task has users of its own."""

    def __init__(self) -> None:
        self._next = 0

    def next_block(self) -> int:
        """Return the first number of a round."""
        return self._next

    def used_up_to(self, end: int) -> None:
        """Begin the next round behind *end*, with the first user again."""
        self._next = (end // data.USERS + 1) * data.USERS


async def measure(
    scenario: str,
    contenders: dict[str, Calls],
    pace: Pace,
    *,
    loop: str,
    seed: int,
    advance: Callable[[str], None],
) -> list[Cell]:
    """Return what was measured, a cell for each contender and number of tasks. *advance* is told of every round."""
    cells = []
    order = random.Random(seed)
    numbers = {name: Numbers() for name in contenders}
    gc.collect()
    gc.freeze()  # What many rivals have imported would make collections slow that only one program has.
    try:
        for tasks in pace.tasks:
            turns = [
                Turn(Cell(scenario, name, tasks, loop), calls, numbers[name])
                for name, calls in contenders.items()
            ]
            for turn in turns:
                await turn.warm_up(pace.seconds)
            for _ in range(pace.rounds):
                for turn in order.sample(turns, len(turns)):
                    await turn.round(pace.seconds)
                    advance(f"{scenario}, {tasks} tasks")
            cells += [turn.cell for turn in turns]
    finally:
        gc.unfreeze()
    return cells

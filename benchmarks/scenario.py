"""A scenario: one piece of work, and everybody who does it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks import alone
from benchmarks.measuring import measure
from benchmarks.stage import Stage, UnavailableError, missing
from benchmarks.statistics import Cell

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from benchmarks.measuring import Calls, Pace
    from benchmarks.stage import Servers

    Build = Callable[..., Awaitable[Calls]]

OURS = "multidb"
# So many rows are few: they are moved twice, more only once.
_FEW_ROWS = 100_000


@dataclass(frozen=True)
class Run:
    """How a scenario is to be run."""

    servers: Servers
    pace: Pace
    loop: str
    seed: int
    burst: int
    """How many tasks call at once where it is about that."""
    wanted: Callable[[str], bool]
    """Whether to measure a contender, by its name."""
    skipped: Callable[[str, str], None]
    """Is told the name of who cannot be measured, and why."""
    advance: Callable[[str], None]
    """Is told what is being done."""


class Scenario(Protocol):
    """One piece of work. *baseline* names the contender that multidb's ratio is told against first."""

    name: str
    title: str
    baseline: str
    unit: str
    """What is counted: `calls` or `rows`, or `tasks` that call once, all at the same time."""

    async def run(self, run: Run) -> list[Cell]:
        """Measure everybody who can be."""


@dataclass(frozen=True)
class Contender:
    """Somebody who does the work, and the modules that this takes."""

    name: str
    build: Build
    requires: tuple[str, ...] = ()


@dataclass
class CallScenario:
    """Calls of a fraction of a second, again and again, by many tasks."""

    name: str
    title: str
    baseline: str
    contenders: list[Contender] = field(default_factory=list)
    tasks: tuple[int, ...] | None = None
    """The numbers of tasks that make sense, where not all do."""
    prepare: Callable[[Stage], Awaitable[Any]] | None = None
    """Makes what all contenders share; they get what it returns."""
    unit: str = "calls"

    def contender(self, name: str, *requires: str) -> Callable[[Build], Build]:
        """Register a contender: a function of the stage that returns its `Calls`."""

        def register(build: Build) -> Build:
            self.contenders.append(Contender(name, build, requires))
            return build

        return register

    async def run(self, run: Run) -> list[Cell]:
        """Open everybody, and measure them in turns."""
        pace = run.pace.only(self.tasks)
        async with Stage(run.servers) as stage:
            calls = await self._open(stage, run)
            return await measure(self.name, calls, pace, loop=run.loop, seed=run.seed, advance=run.advance)

    async def _open(self, stage: Stage, run: Run) -> dict[str, Calls]:
        shared = () if self.prepare is None else (await self.prepare(stage),)
        opened: dict[str, Calls] = {}
        for contender in self.contenders:
            if contender.name not in {OURS, self.baseline} and not run.wanted(contender.name):
                continue
            reason = missing(contender.requires)
            if reason is None:
                try:
                    opened[contender.name] = await contender.build(stage, *shared)
                except (ImportError, UnavailableError) as exc:
                    reason = str(exc)
            if reason is not None:
                run.skipped(contender.name, reason)
        return opened


@dataclass
class AloneScenario:
    """Work that takes seconds, in a process of its own, whose memory is measured too."""

    name: str
    title: str
    baseline: str
    jobs: Mapping[str, tuple[str, str | None]]
    """By contender: the function of `alone` that does it, and the module that this takes."""
    kind: str
    """Where the events are: `postgres` or `sqlite`."""
    unit: str = "rows"
    reads: bool = False

    async def run(self, run: Run) -> list[Cell]:
        """Let everybody do it, one after the other, in an order that changes."""
        cells = {
            name: Cell(self.name, name, run.burst if self.unit == "tasks" else 1, run.loop)
            for name in self._runnable(run)
        }
        order = random.Random(run.seed)
        again = self.unit == "rows" and run.servers.rows <= _FEW_ROWS
        for _ in range(2 if again else 1):
            for cell in order.sample(list(cells.values()), len(cells)):
                run.advance(f"{self.name}, {cell.contender}")
                await self._measure(cell, run)
        return list(cells.values())

    def _runnable(self, run: Run) -> list[str]:
        names = []
        for name, (_, module) in self.jobs.items():
            if name in {OURS, self.baseline} or run.wanted(name):
                reason = missing((module,)) if module else None
                if reason is None:
                    names.append(name)
                else:
                    run.skipped(name, reason)
        return names

    async def _measure(self, cell: Cell, run: Run) -> None:
        amount = run.burst if self.unit == "tasks" else run.servers.rows
        async with Stage(run.servers) as stage:
            place = await (stage.large(self.kind) if self.reads else stage.events_place(self.kind))
            what, _ = self.jobs[cell.contender]
            try:
                sample = await alone.run(alone.Job(what, place, amount, run.loop))
            except RuntimeError as exc:
                cell.problem = str(exc)
                return
            cell.samples.append(sample)
            cell.problem = await self._problem(cell, amount, place)

    async def _problem(self, cell: Cell, amount: int, place: str) -> str | None:
        """Say what is wrong with the last sample; None when it did what it said."""
        sample = cell.samples[-1]
        if sample.calls + sum(sample.errors.values()) != amount:
            return f"{sample.calls:,} done instead of {amount:,}"
        if self.reads:
            return None
        extra = 1 if self.unit == "tasks" else 0
        stored = await alone.count(place) - extra
        if not sample.calls <= stored <= amount:
            return f"{sample.calls:,} calls, but {stored:,} were stored"
        return None

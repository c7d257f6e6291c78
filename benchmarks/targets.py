"""What multidb has to reach, as ratios of throughput in one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.scenario import OURS
from benchmarks.statistics import ratio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benchmarks.statistics import Cell


@dataclass(frozen=True)
class Target:
    """At *tasks* tasks multidb has at least *at_least* times the throughput of *baseline*."""

    scenario: str
    baseline: str
    tasks: int
    at_least: float


@dataclass(frozen=True)
class Outcome:
    """What was reached of a target; None where that was not measured, or went wrong."""

    target: Target
    loop: str
    reached: float | None

    @property
    def verdict(self) -> str:
        """`OK`, `missed` or `not measured`."""
        if self.reached is None:
            return "not measured"
        return "OK" if self.reached >= self.target.at_least else "missed"


def _targets() -> Iterator[Target]:
    for scenario, baseline, alone, together in (
        ("log_event_postgres", "asyncpg pool", 1.0, 5.0),
        ("log_event_postgres", "SQLAlchemy ORM", 2.0, 20.0),
        ("log_event_sqlite", "aiosqlite", 0.9, 4.0),
        ("set_state", "redis-py", 0.9, 5.0),
        ("set_state", "cashews", 1.2, 8.0),
        ("set_state", "py-key-value-aio", 1.2, 8.0),
        ("get_state", "redis-py", 0.9, 5.0),
        ("get_state", "cashews", 1.2, 8.0),
        ("get_state", "py-key-value-aio", 1.2, 8.0),
        ("update_profile_field", "PyMongo", 0.9, 5.0),
        ("get_profile", "PyMongo", 0.9, 8.0),
        ("get_events_postgres", "asyncpg pool", 0.9, 1.5),
        ("set_state_memory", "cashews mem://", 1.5, None),
        ("handler", "asyncpg + PyMongo + redis-py", 1.1, 7.0),
        ("handler", "SQLAlchemy ORM + Beanie + redis-py", 2.0, 12.0),
        ("bulk_postgres", "one COPY", 0.5, None),
        ("bulk_sqlite", "one executemany", 0.5, None),
    ):
        yield Target(scenario, baseline, 1, alone)
        if together is not None:
            yield Target(scenario, baseline, 100, together)


TARGETS = tuple(_targets())


def outcomes(cells: Iterable[Cell]) -> list[Outcome]:
    """Return what *cells* reached of each target, for each event loop that was measured."""
    found = {(cell.loop, cell.scenario, cell.contender, cell.tasks): cell for cell in cells}
    loops = list(dict.fromkeys(loop for loop, *_ in found))
    return [Outcome(target, loop, _reached(target, loop, found)) for loop in loops for target in TARGETS]


def _reached(target: Target, loop: str, cells: dict[tuple[str, str, str, int], Cell]) -> float | None:
    ours = cells.get((loop, target.scenario, OURS, target.tasks))
    baseline = cells.get((loop, target.scenario, target.baseline, target.tasks))
    if ours is None or baseline is None or ours.problem or baseline.problem:
        return None
    return ratio(ours, baseline)

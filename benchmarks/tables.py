"""Rows of text for the figures, whoever shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.scenario import OURS
from benchmarks.statistics import Cell, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.scenario import Scenario
    from benchmarks.targets import Outcome

TEXTS = {"contender", "call", "against", ""}
"""The columns that are no numbers."""


def _named(cell: Cell) -> str:
    """Return who it is, and what went wrong."""
    if cell.problem:
        return f"{cell.contender} (wrong: {cell.problem})"
    if cell.errors:
        errors = ", ".join(f"{count:,} {kind}" for kind, count in cell.errors.items())
        return f"{cell.contender} (errors: {errors})"
    return cell.contender


_COLUMNS: dict[str, dict[str, Callable[[Cell], str]]] = {
    "calls": {
        "tasks": lambda cell: str(cell.tasks),
        "contender": _named,
        "calls/s": lambda cell: number(cell.per_second),
        "±": lambda cell: f"{100 * cell.spread:.0f} %",
        "p50 ms": lambda cell: small(cell.p50_ms),
        "p99 ms": lambda cell: small(cell.p99_ms),
        "CPU µs": lambda cell: small(cell.cpu_us),
    },
    "rows": {
        "contender": _named,
        "rows/s": lambda cell: number(cell.per_second),
        "±": lambda cell: f"{100 * cell.spread:.0f} %",
        "CPU µs": lambda cell: small(cell.cpu_us),
        "MiB before": lambda cell: f"{cell.base_mib:.0f}",
        "MiB at most": lambda cell: f"{cell.peak_mib:.0f}",
    },
    "tasks": {
        "tasks": lambda cell: str(cell.tasks),
        "contender": _named,
        "done": lambda cell: f"{min((sample.calls for sample in cell.samples), default=0):,}",
        "calls/s": lambda cell: number(cell.per_second),
        "p99 ms": lambda cell: small(cell.p99_ms),
        "CPU µs": lambda cell: small(cell.cpu_us),
        "MiB before": lambda cell: f"{cell.base_mib:.0f}",
        "MiB at most": lambda cell: f"{cell.peak_mib:.0f}",
    },
}
_RATIO = "multidb is"


def of(scenario: Scenario, cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Return the columns for the *cells* of a scenario, and their rows, the fastest of each number of tasks first."""
    columns = _COLUMNS[scenario.unit]
    ours = {cell.tasks: cell for cell in cells if cell.contender == OURS}
    ordered = sorted(cells, key=lambda cell: (cell.tasks, -cell.per_second))
    rows = [
        [*(column(cell) for column in columns.values()), _times(ours.get(cell.tasks), cell)]
        for cell in ordered
    ]
    return [*columns, _RATIO], rows


def _times(ours: Cell | None, cell: Cell) -> str:
    if ours is None or ours is cell or ours.problem or cell.problem:
        return ""
    times = ratio(ours, cell)
    return "" if times is None else f"{times:.2f}×"


def small(value: float) -> str:
    """Return two or three digits of a number that is mostly small."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def number(value: float) -> str:
    """Return three digits of a large number."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f} {unit}"
    return f"{value:.0f}"


TARGET_COLUMNS = ("call", "against", "tasks", "wanted", "reached", "")


def target_rows(outcomes: Iterable[Outcome]) -> list[list[str]]:
    """Return a row for each target."""
    return [
        [
            outcome.target.scenario,
            outcome.target.baseline,
            str(outcome.target.tasks),
            f"≥ {outcome.target.at_least:g}",
            "" if outcome.reached is None else f"{outcome.reached:.2f}",
            outcome.verdict,
        ]
        for outcome in outcomes
    ]

"""The charts of the documentation: small SVGs that are the same each time they are drawn from the same figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import tables
from benchmarks.scenario import OURS
from benchmarks.scenarios import SCENARIOS
from benchmarks.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.results import Results
    from benchmarks.statistics import Cell

_GREY = "#7f8791"  # Readable on white and on the dark of the documentation.
_OURS_COLOUR = "#e4572e"
_OTHERS = ("#4c78a8", "#72b7b2", "#54a24b", "#b279a2", "#9d755d", "#eeca3b")
_STYLE: Any = {
    "svg.hashsalt": "multidb",
    "svg.fonttype": "none",  # Text stays text: smaller, and it can be searched.
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _GREY,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw a chart for each scenario that was measured, and one of the targets; return the files."""
    import matplotlib as mpl

    mpl.use("svg")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with mpl.rc_context(_STYLE):
        loop = results.loops[0]
        for scenario in SCENARIOS:
            cells = [cell for cell in results.of(scenario.name, loop) if not cell.problem and cell.per_second]
            if len({cell.contender for cell in cells}) > 1:
                path = folder / f"{scenario.name}.svg"
                lines = scenario.unit == "calls" and len({cell.tasks for cell in cells}) > 1
                (_lines if lines else _bars)(cells, f"{_noun(scenario.unit)}/s", path)
                drawn.append(path)
        handler = results.of("handler", loop)
        if handler:
            drawn.append(folder / "overview.svg")
            _overview(results, loop, drawn[-1])
    return drawn


def _noun(unit: str) -> str:
    return "rows" if unit == "rows" else "calls"


def _lines(cells: Sequence[Cell], label: str, path: Path) -> None:
    """Throughput over the number of tasks, a line for each contender, named at its end."""
    from matplotlib.ticker import LogLocator

    figure, axes = _figure(6.4, 3.2)
    tasks = sorted({cell.tasks for cell in cells})
    ends = []
    for name, colour in _colours(cells).items():
        line = sorted((cell.tasks, cell.per_second) for cell in cells if cell.contender == name)
        axes.plot(*zip(*line, strict=True), color=colour, marker="o", markersize=3, linewidth=_width(name))
        ends.append((line[-1][1], name, colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(tasks, [str(number) for number in tasks])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: tables.number(value))
    axes.set_xlabel("tasks that call at once")
    axes.set_ylabel(label)
    axes.grid(visible=True, axis="y", color=_GREY, alpha=0.25, linewidth=0.5)
    _name_ends(axes, ends)
    _save(figure, path)


def _name_ends(axes: Any, ends: list[tuple[float, str, str]]) -> None:
    """Write names beside the ends of lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    span = (high / low) ** 0.075
    previous = 0.0
    for value, name, colour in sorted(ends):
        place = max(value, previous * span)
        previous = place
        axes.annotate(
            f"{name} {tables.number(value)}",
            (1.02, place),
            xycoords=("axes fraction", "data"),
            color=colour,
            va="center",
            fontsize=8,
            fontweight="bold" if name == OURS else "normal",
            annotation_clip=False,
        )


def _bars(cells: Sequence[Cell], label: str, path: Path) -> None:
    """Throughput, a bar for each contender."""
    ordered = sorted(cells, key=lambda cell: cell.per_second)
    figure, axes = _figure(6.4, 0.6 + 0.3 * len(ordered))
    colours = _colours(cells)
    rates = [cell.per_second for cell in ordered]
    bars = axes.barh(
        [cell.contender for cell in ordered], rates, color=[colours[cell.contender] for cell in ordered]
    )
    axes.bar_label(
        bars, [f"{tables.number(rate)} {label}" for rate in rates], padding=3, color=_GREY, fontsize=8
    )
    axes.set_xlim(0, 1.25 * max(rates))
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    _save(figure, path)


def _overview(results: Results, loop: str, path: Path) -> None:
    """How many times the driver multidb is, alone and at the largest number of tasks that has a target."""
    from benchmarks.statistics import ratio

    first = {target.scenario: target.baseline for target in reversed(TARGETS)}
    found: list[tuple[str, float, float]] = []
    for scenario, baseline in first.items():
        by = {(cell.contender, cell.tasks): cell for cell in results.of(scenario, loop) if not cell.problem}
        pair = [
            ratio(by[OURS, tasks], by[baseline, tasks])
            for tasks in (1, 100)
            if (OURS, tasks) in by and (baseline, tasks) in by
        ]
        if len(pair) == 2 and None not in pair:
            found.append((f"{scenario}\nagainst {baseline}", pair[0] or 0, pair[1] or 0))
    if not found:
        return
    figure, axes = _figure(6.4, 0.6 + 0.5 * len(found))
    places = range(len(found))
    for offset, index, colour, label in (
        (0.19, 2, _OURS_COLOUR, "100 tasks"),
        (-0.19, 1, _OTHERS[0], "1 task"),
    ):
        values = [each[index] for each in found]
        bars = axes.barh([place + offset for place in places], values, height=0.36, color=colour, label=label)
        axes.bar_label(bars, [f"{value:.1f}×" for value in values], padding=3, color=_GREY, fontsize=8)
    axes.set_yticks(list(places), [each[0] for each in found], fontsize=8)
    axes.axvline(1, color=_GREY, linewidth=0.8, linestyle=":")
    axes.set_xlabel("throughput, the driver by hand = 1")
    axes.legend(frameon=False, loc="lower right", reverse=True)
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _colours(cells: Sequence[Cell]) -> dict[str, str]:
    names = list(dict.fromkeys(cell.contender for cell in cells))
    others = iter(_OTHERS * len(names))
    return {name: _OURS_COLOUR if name == OURS else next(others) for name in names}


def _width(name: str) -> float:
    return 2.2 if name == OURS else 1.2


def _save(figure: Any, path: Path) -> None:
    figure.savefig(
        path,
        format="svg",
        bbox_inches="tight",
        transparent=True,
        metadata={"Date": None, "Creator": "multidb"},
    )

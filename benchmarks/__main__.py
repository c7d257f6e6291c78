"""`python -m benchmarks`: start the servers, measure, and tell."""

from __future__ import annotations

import argparse
import asyncio
import logging
import shlex
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import loops, machine, report, tables
from benchmarks.measuring import Pace
from benchmarks.results import Results
from benchmarks.scenario import Run
from benchmarks.scenarios import SCENARIOS
from benchmarks.stage import Servers, UnavailableError
from benchmarks.targets import outcomes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.scenario import Scenario

_WIDTH = 120
_FULL = {"tasks": [1, 10, 100, 500], "rounds": 5, "seconds": 0.6, "rows": 1_000_000, "burst": 100_000}
_QUICK = {"tasks": [1, 100], "rounds": 3, "seconds": 0.1, "rows": 20_000, "burst": 10_000}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure multidb beside the drivers and what one would use instead, on servers of its own.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="scenarios:\n" + "\n".join(f"  {one.name:26}{one.title}" for one in SCENARIOS),
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="two minutes: 1 and 100 tasks, three short rounds, 20,000 rows")
    add(
        "--only",
        metavar="PATTERN",
        default="*",
        help="these scenarios: names with * and ?, with commas between",
    )
    add(
        "--rivals", metavar="PATTERN", default="*",
        help="these contenders, beside multidb and the driver, as for --only",
    )  # fmt: skip
    add("--tasks", metavar="1,100", type=_numbers, help="how many tasks call at once (default 1,10,100,500)")
    add("--rounds", type=int, help="how often everybody has a turn (default 5)")
    add("--seconds", type=float, help="how long a turn is (default 0.6)")
    add("--rows", type=int, help="events in the large table (default 1,000,000)")
    add("--burst", type=int, help="tasks that call once, all at the same time (default 100,000)")
    add("--loop", choices=(*loops.LOOPS, "both"), default="asyncio", help="event loop (default asyncio)")
    add("--uvloop", dest="loop", action="store_const", const="uvloop", help="the same as --loop uvloop")
    add(
        "--appendonly",
        action="store_true",
        help="Valkey syncs every write to disk, which it does not by default",
    )
    add("--seed", type=int, default=1, help="of the order in which contenders take turns")
    add("--json", type=Path, metavar="FILE", help="write all samples to FILE")
    add("--charts", type=Path, metavar="DIR", help="draw charts, as SVG, into DIR")
    add("--docs", type=Path, metavar="DIR", help="rewrite the figures of DIR/performance.md, and its charts")
    options = parser.parse_args(argv)
    for name, value in (_QUICK if options.quick else _FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _matches(patterns: str) -> Callable[[str], bool]:
    wanted = [part.strip().lower() for part in patterns.split(",")]
    return lambda name: any(fnmatch(name.lower(), part) for part in wanted)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, or 1 when something that was measured turned out wrong."""
    given = sys.argv[1:] if argv is None else list(argv)
    options = arguments(given)
    chosen = [one for one in SCENARIOS if _matches(options.only)(one.name)]
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    if not chosen:
        console.print(f"no scenario is called {options.only}; see --help")
        return 2
    logging.getLogger("multidb").setLevel(logging.ERROR)
    results = Results(
        " ".join(["python -m benchmarks", *map(shlex.quote, given)]),
        machine.machine(),
        machine.libraries(),
        options={name: getattr(options, name) for name in (*_FULL, "loop", "appendonly", "seed")},
    )
    started = time.monotonic()
    chosen_loops = loops.LOOPS if options.loop == "both" else (options.loop,)
    with Servers(rows=options.rows, appendonly=options.appendonly) as running, _progress(console) as progress:
        bar = progress.add_task("", total=len(chosen_loops) * len(chosen))
        for loop in chosen_loops:
            with asyncio.Runner(loop_factory=loops.factory(loop)) as runner:
                for scenario in chosen:
                    runner.run(_run(scenario, running, options, loop, results, progress))
                    progress.advance(bar)
                results.servers = runner.run(machine.servers(running.running))
    results.minutes = round((time.monotonic() - started) / 60, 1)
    _show(console, results)
    _keep(options, results)
    return 1 if any(cell.problem for cell in results.cells) else 0


def _progress(console: Console) -> Progress:
    columns = (SpinnerColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=console, transient=True)


async def _run(
    scenario: Scenario,
    running: Servers,
    options: argparse.Namespace,
    loop: str,
    results: Results,
    progress: Progress,
) -> None:
    (bar,) = progress.task_ids

    def advance(description: str) -> None:
        progress.update(bar, description=f"{loop}: {description}")

    def skipped(contender: str, reason: str) -> None:
        results.skipped[f"{scenario.name}: {contender}"] = reason

    advance(f"{scenario.name}, preparing")
    pace = Pace(options.tasks, options.rounds, options.seconds)
    wanted = _matches(options.rivals)
    run = Run(running, pace, loop, options.seed, options.burst, wanted, skipped, advance)
    started = time.monotonic()
    try:
        results.cells += await scenario.run(run)
    except UnavailableError as exc:
        skipped("all", str(exc))
    results.took[f"{scenario.name} ({loop})"] = round(time.monotonic() - started, 1)


def _show(console: Console, results: Results) -> None:
    for scenario in SCENARIOS:
        for loop in results.loops:
            cells = results.of(scenario.name, loop)
            if cells:
                _print(console, f"{scenario.name} ({loop}): {scenario.title}", *tables.of(scenario, cells))
    reached = [one for one in outcomes(results.cells) if one.reached is not None]
    if reached:
        _print(console, "targets", tables.TARGET_COLUMNS, tables.target_rows(reached))
    for what, reason in results.skipped.items():
        console.print(f"skipped {what}: {reason}", highlight=False)
    console.print(f"{results.minutes} minutes; load before: {results.machine['load']}", highlight=False)


def _print(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in tables.TEXTS else "right")
    previous = None
    for row in rows:
        if previous is not None and previous[0] != row[0]:
            table.add_section()
        table.add_row(*row, style="bold" if "multidb" in row else None)
        previous = row
    console.print(table)
    console.print()


def _keep(options: argparse.Namespace, results: Results) -> None:
    if options.json is not None:
        results.save(options.json)
    if options.charts is not None:
        from benchmarks.charts import draw

        draw(results, options.charts)
    if options.docs is not None:
        report.write(results, options.docs)


if __name__ == "__main__":
    sys.exit(main())

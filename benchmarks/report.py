"""`python -m benchmarks.report results.json … docs`: put the figures of runs into docs/performance.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import tables
from benchmarks.results import Results
from benchmarks.scenario import OURS
from benchmarks.scenarios import SCENARIOS
from benchmarks.targets import outcomes

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = "performance.md"
CHARTS = Path("assets") / "performance"
_SECTION = "<!-- benchmark: {} -->"
_END = "<!-- benchmark ends -->"


def write(results: Results, docs: Path, *, charts: bool = True) -> None:
    """Rewrite what stands between the marks of the page, and the charts it shows."""
    drawn: set[str] = set()
    if charts:
        from benchmarks.charts import draw

        drawn = {path.name for path in draw(results, docs / CHARTS)}
    page = docs / PAGE
    page.write_text(rewritten(page.read_text(encoding="utf-8"), sections(results, drawn)), encoding="utf-8")


def rewritten(text: str, made: dict[str, str]) -> str:
    """Return *text* with each section between its marks replaced; ValueError when one has no place."""
    for name, content in made.items():
        start = _SECTION.format(name)
        pattern = re.compile(f"{re.escape(start)}\n.*?{re.escape(_END)}", re.DOTALL)
        text, found = pattern.subn(lambda _, new=f"{start}\n\n{content}\n\n{_END}": new, text)  # type: ignore[misc]
        if found != 1:
            raise ValueError(f"{start} is {found} times in the page, with {_END} behind it")
    return text


def sections(results: Results, drawn: set[str]) -> dict[str, str]:
    """Return what stands between the marks, by their names."""
    overview = _chart("overview.svg", "How many times the drivers by hand multidb is", drawn)
    return {
        "targets": "\n".join([*overview, *_targets(results)]),
        "setting": _setting(results),
        "figures": "\n".join(
            line for loop in results.loops for line in _figures(results, loop, drawn)
        ).strip(),
    }


def _chart(name: str, words: str, drawn: set[str]) -> list[str]:
    return [f"![{words}]({(CHARTS / name).as_posix()})", ""] if name in drawn else []


def _targets(results: Results) -> list[str]:
    found = [one for one in outcomes(results.cells) if one.reached is not None]
    lines = []
    for loop in results.loops:
        rows = tables.target_rows(one for one in found if one.loop == loop)
        if rows:
            lines += [f"On {loop}:", "", *_table(tables.TARGET_COLUMNS, rows), ""]
    return lines[:-1]


def _setting(results: Results) -> str:
    one = results.machine
    options = results.options
    lines = [
        f"`{results.command.replace('; ', '`, then `')}`, {one['date']}, {results.minutes:g} minutes.",
        f"Each figure is the median of {options['rounds']} rounds of {options['seconds']:g} s.",
        f"The large table has {options['rows']:,} rows.",
        "",
        f"- Machine: {one['cpus']} CPUs ({one['processor']}), {one['memory_gib']:g} GiB, {one['system']},",
        f"  {one['kernel']}, {one['python']}; the load was {one['load']:g} before.",
    ]
    titles = {"postgres": "PostgreSQL", "mongodb": "MongoDB", "valkey": "Valkey", "sqlite": "SQLite"}
    for kind, facts in results.servers.items():
        told = ", ".join(
            f"{name} `{value if value not in {'', None} else 'none'}`"
            for name, value in facts.items()
            if "version" not in name
        )
        version = next(str(value) for name, value in facts.items() if "version" in name)
        lines.append(f"- {titles[kind]} {version}{': ' if told else ''}{told}.")
    lines.append(
        f"- Libraries: {', '.join(f'{name} {number}' for name, number in results.libraries.items())}."
    )
    lines += [f"- Not measured: {what}: {reason}." for what, reason in results.skipped.items()]
    return "\n".join(lines)


def _figures(results: Results, loop: str, drawn: set[str]) -> list[str]:
    lines: list[str] = []
    for scenario in SCENARIOS:
        cells = results.of(scenario.name, loop)
        if not cells:
            continue
        lines += [f"### {scenario.title}{'' if loop == results.loops[0] else f', {loop}'}", ""]
        if loop == results.loops[0]:
            lines += _chart(f"{scenario.name}.svg", scenario.title, drawn)
        columns, rows = tables.of(scenario, cells)
        lines += [*_table(columns, rows), ""]
    return lines


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table, with multidb's rows in bold."""
    sides = ["---" if column in tables.TEXTS else "---:" for column in columns]
    bodies = [[f"**{cell}**" if cell and OURS in row else cell for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (columns, sides, *bodies)]


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the page of runs that were kept."""
    given = sys.argv[1:] if argv is None else argv
    if len(given) < 2:
        print("usage: python -m benchmarks.report results.json … docs", file=sys.stderr)
        return 2
    *kept, docs = map(Path, given)
    results, *others = map(Results.load, kept)
    for other in others:
        results.add(other)
    write(results, docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())

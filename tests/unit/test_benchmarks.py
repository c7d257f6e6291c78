"""The benchmark's arithmetic and its page: no server and no rival is needed for these."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("rich")
ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("no checkout", allow_module_level=True)
# Last, so that `multidb` is the installed one.
sys.path.append(str(ROOT))

from benchmarks import data, measuring, report, stage, tables, targets  # noqa: E402
from benchmarks.__main__ import arguments, main  # noqa: E402
from benchmarks.results import Results  # noqa: E402
from benchmarks.scenarios import SCENARIOS  # noqa: E402
from benchmarks.statistics import Cell, Sample, percentile, ratio  # noqa: E402


def sample(rate: float, errors: dict[str, int] | None = None) -> Sample:
    return Sample(int(rate), 1.0, 0.5, 2.0, 0.1, errors or {})


def cell(
    contender: str, *rates: float, scenario: str = "set_state", tasks: int = 1, loop: str = "asyncio"
) -> Cell:
    return Cell(scenario, contender, tasks, loop, [sample(rate) for rate in rates])


def results(*cells: Cell) -> Results:
    machine = {
        "cpus": 2, "processor": "P", "memory_gib": 8, "system": "S", "kernel": "K", "python": "CPython", "load": 0,
        "date": "2026-11-20",
    }  # fmt: skip
    servers = {"valkey": {"version": "9.1.2", "appendonly": "yes"}, "sqlite": {"version": "3.40.1"}}
    options = {"rounds": 3, "seconds": 0.2, "rows": 20_000}
    return Results(
        "python -m benchmarks", machine, {"multidb": "0.1"}, servers, options, list(cells), {"x": "y"}, 2.0
    )


def calls(stored: dict[int, int], *, forget: bool = False, fail: bool = False) -> measuring.Calls:
    """Return calls that remember the last number of each user, or pretend to."""

    async def call(number: int) -> int:
        await asyncio.sleep(0)
        if fail and number % 2:
            raise OSError
        if not forget:
            stored[number % data.USERS] = number
        return number

    async def check(number: int, result: int) -> None:
        if (stored.get(number % data.USERS), result) != (number, number):
            raise measuring.WrongResultError("forgotten")

    return measuring.Calls(call, check)


async def measured(contenders: dict[str, measuring.Calls], tasks: int = 10) -> list[Cell]:
    pace = measuring.Pace([tasks], rounds=2, seconds=0.01)
    return await measuring.measure("s", contenders, pace, loop="asyncio", seed=1, advance=lambda _: None)


def test_percentile() -> None:
    """The share of values that are not above it; of none, nothing."""
    values = [float(n) for n in range(1, 101)]

    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([3.0], 0.99)) == (51, 100, 3)
    assert percentile([], 0.5) == 0


def test_a_sample_of_latencies() -> None:
    """Latencies become milliseconds; time and CPU are by call."""
    found = Sample.of([0.003, 0.001, 0.002], seconds=2, cpu_seconds=0.3, errors={})

    assert (found.calls, found.per_second, found.p50_ms, found.p99_ms) == (3, 1.5, 2.0, 3.0)
    assert found.cpu_us == pytest.approx(100_000)
    assert Sample.of([], 0, 0, {}).per_second == 0


def test_the_median_counts() -> None:
    """One slow round is no result; the spread tells of it, and errors add up."""
    found = cell("multidb", 100, 10, 110)
    found.samples.append(sample(100, {"TimeoutError": 2}))

    assert (found.per_second, found.spread, found.errors) == (100, 0.5, {"TimeoutError": 2})


def test_a_ratio_is_by_round() -> None:
    """Where the machine gets slow for both, the ratio stays."""
    assert ratio(cell("multidb", 1000, 100, 500), cell("x", 100, 10, 50)) == 10
    assert ratio(cell("multidb", 1), cell("x")) is None
    assert ratio(cell("multidb", 1), cell("x", 0)) is None


def test_targets() -> None:
    """Reached, missed, and not measured, which is also what turned out wrong."""
    wrong = cell("cashews", 1)
    wrong.problem = "forgotten"
    found = targets.outcomes(
        [cell("multidb", 100), cell("redis-py", 110), cell("py-key-value-aio", 90), wrong]
    )
    verdicts = {
        (one.target.scenario, one.target.baseline, one.target.tasks): one.verdict
        for one in found
        if one.target.tasks == 1
    }

    assert verdicts["set_state", "redis-py", 1] == "OK"
    assert verdicts["set_state", "py-key-value-aio", 1] == "missed"
    assert verdicts["set_state", "cashews", 1] == "not measured"
    assert verdicts["handler", "asyncpg + PyMongo + redis-py", 1] == "not measured"


def test_every_target_is_somebodys() -> None:
    """Each names a scenario, and a contender of it."""
    by_name = {scenario.name: scenario for scenario in SCENARIOS}

    for target in targets.TARGETS:
        scenario = by_name[target.scenario]
        names = getattr(scenario, "jobs", None) or [one.name for one in scenario.contenders]
        assert target.baseline in names
        assert scenario.baseline in names
        assert "multidb" in names


async def test_rounds_in_turns() -> None:
    """Everybody has every round, with numbers that come once and users that belong to one task."""
    stored: dict[int, int] = {}
    first, second = await measured({"a": calls(stored), "b": calls({})})

    assert [len(first.samples), len(second.samples)] == [2, 2]
    assert (first.problem, second.problem, first.errors) == (None, None, {})
    assert all(one.calls >= 10 for one in first.samples)
    assert set(stored) <= set(range(data.USERS))


async def test_wrong_and_failing_calls() -> None:
    """Who forgets is found out; what raises is counted, and no result."""
    forgetful, failing = await measured({"a": calls({}, forget=True), "b": calls({}, fail=True)}, tasks=2)

    assert forgetful.problem == "forgotten"
    assert failing.problem is None
    assert failing.errors["OSError"] > 0


async def test_what_is_stored_is_counted() -> None:
    """Fewer rows than calls are a problem."""

    async def call(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def check(number: int, result: int) -> None: ...

    async def count() -> int:
        return 1

    (found,) = await measured({"a": measuring.Calls(call, check, count=count)})

    assert found.problem is not None
    assert "1 were stored" in found.problem


def test_json_keeps_everything(tmp_path: Path) -> None:
    """What was saved is loaded, samples and all, and has the medians for others to read."""
    before = results(cell("multidb", 100, 200), cell("redis-py", 50, 60))
    before.save(tmp_path / "results.json")
    stored = json.loads((tmp_path / "results.json").read_text())

    assert before == Results.load(tmp_path / "results.json")
    assert stored["cells"][0]["per_second"] == 150


def test_tables() -> None:
    """The fastest is first, ratios are multidb's, and errors are shown."""
    bad = cell("redis-py", 50, 50)
    bad.samples[0].errors["OSError"] = 3
    scenario = next(one for one in SCENARIOS if one.name == "set_state")
    columns, rows = tables.of(scenario, [bad, cell("multidb", 100, 100)])

    assert columns[:3] == ["tasks", "contender", "calls/s"]
    assert rows[0][:3] == ["1", "multidb", "100"]
    assert rows[1][1] == "redis-py (errors: 3 OSError)"
    assert (rows[0][-1], rows[1][-1]) == ("", "2.00×")
    bad.problem = "forgotten"
    assert tables.of(scenario, [bad, cell("multidb", 100)])[1][1][1:3] == [
        "redis-py (wrong: forgotten)",
        "50",
    ]
    assert [tables.number(each) for each in (12.3, 9_870, 123_456, 1_500_000)] == [
        "12",
        "9.87 k",
        "123 k",
        "1.50 M",
    ]


def test_the_page(tmp_path: Path) -> None:
    """Sections between their marks are replaced, again and again, and the prose around them stays."""
    page = tmp_path / "performance.md"
    page.write_text((ROOT / "docs" / "performance.md").read_text(encoding="utf-8"), encoding="utf-8")
    run = results(cell("multidb", 900), cell("redis-py", 1000))
    report.write(run, tmp_path, charts=False)
    once = page.read_text(encoding="utf-8")
    report.write(run, tmp_path, charts=False)

    assert once == page.read_text(encoding="utf-8")
    assert "| set_state | redis-py | 1 | ≥ 0.9 | 0.90 | OK |" in once
    assert "Valkey 9.1.2: appendonly `yes`" in once
    assert "# Performance\n" in once


def test_two_runs() -> None:
    """A run on another event loop is shown beside the first."""
    run = results(cell("multidb", 900), cell("redis-py", 1000))
    run.add(results(cell("multidb", 1800, loop="uvloop"), cell("redis-py", 1000, loop="uvloop")))
    made = report.sections(run, set())

    assert ["asyncio", "uvloop"] == run.loops
    assert "set_state() on Valkey, uvloop" in made["figures"]
    assert made["setting"].startswith("`python -m benchmarks`, then `python -m benchmarks`")

    run.add(results(cell("multidb", 7)))
    assert [7] == [each.per_second for each in run.of("set_state", "asyncio")]
    assert 2 == len(run.of("set_state", "uvloop"))


def test_a_page_without_marks() -> None:
    """It is not overwritten."""
    with pytest.raises(ValueError, match="is 0 times in the page"):
        report.rewritten("# Mine", {"targets": "x"})


def test_charts_are_the_same_each_time(tmp_path: Path) -> None:
    """Equal figures make equal files."""
    pytest.importorskip("matplotlib")
    from benchmarks.charts import draw

    run = results(
        cell("multidb", 900), cell("redis-py", 1000), cell("multidb", 90_000, tasks=100),
        cell("redis-py", 10_000, tasks=100), cell("multidb", 5, scenario="bulk_sqlite"),
        cell("one executemany", 9, scenario="bulk_sqlite"), cell("multidb", 5, scenario="handler"),
    )  # fmt: skip
    once = {path.name: path.read_bytes() for path in draw(run, tmp_path / "a")}
    again = {path.name: path.read_bytes() for path in draw(run, tmp_path / "b")}

    assert once == again
    assert {"set_state.svg", "bulk_sqlite.svg", "overview.svg"} == set(once)
    assert all(b"<svg" in drawn for drawn in once.values())


def test_a_chart_without_multidb(tmp_path: Path) -> None:
    """Where it did not do what was measured the others are drawn."""
    pytest.importorskip("matplotlib")
    from benchmarks.charts import draw

    wrong = cell("multidb", 1)
    wrong.problem = "forgotten"
    others = [cell(name, 10, tasks=tasks) for name in ("redis-py", "cashews") for tasks in (1, 100)]

    assert [path.name for path in draw(results(wrong, *others), tmp_path)] == ["set_state.svg"]


def test_arguments() -> None:
    """--quick changes the defaults and nothing that is said beside it."""
    options = arguments(["--quick", "--tasks", "1,7", "--uvloop"])

    assert (options.tasks, options.rounds, options.rows, options.loop) == ([1, 7], 3, 20_000, "uvloop")
    assert arguments([]).tasks == [1, 10, 100, 500]


def test_no_such_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    """It says so, and starts nothing."""
    assert main(["--only", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().out


def test_what_is_missing() -> None:
    """A module that is not there is named, also when its parent is not."""
    assert stage.missing(("json",)) is None
    for name in ("no_such_module", "no_such.module"):
        assert "is not installed" in (stage.missing((name,)) or "")

"""`multidb spool`: look at what waits on the disk for a server, check it, read it, and put back what was set aside."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from multidb import ConfigurationError, Settings
from multidb.cli._output import bar_of_bytes, console, errors, failing
from multidb.resilience.spool import Limits, tools

app = typer.Typer(
    name="spool",
    help="What waits on the local disk for a server that is away, and what was set aside.",
    no_args_is_help=True,
)

_HINT = "see whether this user may read the folder, and whether its disk is in order"
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))

SpoolDir = Annotated[
    Path | None,
    typer.Option(
        "--spool-dir",
        metavar="DIR",
        help=r"The spool's folder \[default: MULTIDB_SPOOL_DIR, else spool in MULTIDB_DATA_DIR, else data/spool].",
    ),
]
Store = Annotated[
    str | None,
    typer.Option("--store", metavar="NAME", help="Only that of one store: logs, profiles or state."),
]


@app.command("ls")
def list_spool(
    spool_dir: SpoolDir = None,
    store: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """
    Show what waits for a server, whose it is, and what was set aside and why.

    An owner is a process with records on the disk: alive, or orphaned, and
    then a running program adopts them within half a minute, or the next one
    that starts. Records that were set aside wait for you: see export and retry.

    Example: multidb spool ls --spool-dir /srv/bot/data/spool
    """
    with failing(_HINT):
        root = _root(_settings(spool_dir))
        with _advancing("reading", root, store) as advance:
            found = tools.owners(root, store=store, advance=advance)
            aside = _set_aside(root, store, advance)
    if as_json:
        print(json.dumps(_as_json(root, found, aside), ensure_ascii=False, indent=2))  # noqa: T201 -- what was asked for
        return
    if not found and not aside:
        _say_empty(root, store)
        return
    if found:
        console.print(_owners_table(found))
        if _has_strangers(found):
            console.print(
                "Records wait for more than one server. Those of a server that no program uses any more are adopted "
                "by nobody: start one once with that address.",
                style="yellow",
            )
    if aside:
        console.print(_aside_table(aside))
        console.print(
            "Read them: multidb spool export --rejected. Put them back: multidb spool retry.", style="dim"
        )
    console.print(f"in {root}", style="dim", markup=False, soft_wrap=True)


@app.command()
def verify(spool_dir: SpoolDir = None, store: Store = None) -> None:
    """
    Check every record's checksum; change nothing.

    Prints what is damaged: file, line, the bytes of it, and why. That stands
    in nobody's way: a replay sets damaged records aside, and goes on.

    Exit code 1: something is damaged, or the spool could not be read.

    Example: multidb spool verify --store logs
    """
    with failing(_HINT):
        root = _root(_settings(spool_dir))
        with _advancing("checking", root, store) as advance:
            report = tools.verify(root, store=store, advance=advance)
    for problem in report.problems:
        console.print(_problem(problem), markup=False, soft_wrap=True, style="red")
    sound = f"{report.records:,} waiting and {report.rejected:,} set aside are sound"
    errors.print(f"{sound}, {len(report.problems):,} damaged")
    if report.torn_bytes:
        errors.print(f"{report.torn_bytes:,} bytes are of writes that were never finished, nor acknowledged")
    if report.problems:
        raise typer.Exit(1)


@app.command()
def export(
    spool_dir: SpoolDir = None,
    store: Store = None,
    rejected: Annotated[
        bool | None,
        typer.Option(
            "--rejected/--waiting", help=r"Only what was set aside, or only what waits \[default: both]."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="A new file, for its owner only, instead of the terminal."
        ),
    ] = None,
) -> None:
    """
    Print the records as JSON, one a line, with store, reason, time and record.

    The reason is null for a record that waits. This changes nothing, and may be
    done while programs use the spool. It shows users' data.

    Example: multidb spool export --rejected -o rejected.jsonl
    """
    to_terminal = output is None and sys.stdout.isatty()
    with failing(_HINT):
        root = _root(_settings(spool_dir))
        count = _Count()
        with _advancing("exporting", root, store, hidden=to_terminal) as advance, _opened(output) as file:
            for line in _lines(root, store, rejected, advance, count):
                file.write(line)
                count.records += 1
            file.flush()
    if not to_terminal:
        errors.print(f"{count.records:,} records")
    if count.damaged:
        errors.print(
            f"{count.damaged:,} damaged lines were left out; to see where: multidb spool verify", style="red"
        )


@app.command()
def retry(
    spool_dir: SpoolDir = None,
    store: Store = None,
    reason: Annotated[
        str | None,
        typer.Option(
            "--reason", metavar="TEXT", help="Only what was set aside for a reason that contains this."
        ),
    ] = None,
) -> None:
    """
    Put what was set aside back into the spool, to be replayed once more.

    Do so when the cause is gone: the column is there, the server takes such
    records now, or they were too old when it came back. What is refused again
    is set aside again. A running program replays them within half a minute,
    else the next one that starts.

    Nothing is put back where the disk is nearly full, nor as another user than
    the program's, who could not read it.

    Example: multidb spool retry --store logs --reason "too old"
    """
    with failing("what was not put back stays set aside; try again"):
        settings = _settings(spool_dir)
        root = _root(settings)
        with _advancing("putting back", root, store) as advance:
            retried = tools.retry(root, store=store, reason=reason, limits=_limits(settings), advance=advance)
        left = sum(1 for _ in tools.rejections(root, store=store))
    console.print(f"{retried.records:,} records are put back, {left:,} stay set aside")
    if retried.kept:
        errors.print(
            f"{retried.kept:,} of them are damaged and cannot be: multidb spool export --rejected shows them"
        )
    if retried.records:
        errors.print("a running program replays them within half a minute, else the next one that starts")


# Where


def _settings(spool_dir: Path | None) -> Settings:
    return Settings.from_env() if spool_dir is None else Settings.from_env(spool_dir=spool_dir)


def _root(settings: Settings) -> Path:
    root = (settings.spool_dir or settings.data_dir / "spool").absolute()
    if root.exists() and not root.is_dir():
        raise ConfigurationError(f"{root} is no folder: name the spool's by --spool-dir or MULTIDB_SPOOL_DIR")
    return root


def _say_empty(root: Path, store: str | None) -> None:
    whose = "" if store is None else f" of {store}"
    console.print(f"Nothing{whose} waits, and nothing was set aside: in {root}", markup=False, soft_wrap=True)
    if not root.is_dir():
        console.print(
            "There is no such folder, which is as it should be while nothing waits. "
            "If the program has another one, name it by --spool-dir or MULTIDB_SPOOL_DIR.",
            style="dim",
        )


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_bytes=settings.spool_max_bytes,
        min_free_bytes=settings.spool_min_free_bytes,
        min_free_share=settings.spool_min_free_share,
        segment_bytes=settings.spool_segment_bytes,
    )


@contextmanager
def _advancing(
    what: str, root: Path, store: str | None, *, hidden: bool = False
) -> Iterator[Callable[[int], None]]:
    with bar_of_bytes(hidden=hidden) as bar:
        task = bar.add_task(what, total=tools.size(root, store=store))
        yield lambda length: bar.advance(task, length)


# ls


@dataclass(slots=True)
class _Aside:
    """How many records of a store were set aside for a reason."""

    store: str
    reason: str
    records: int = 0
    oldest: float = 0.0
    """0: not known."""


def _set_aside(root: Path, store: str | None, advance: Callable[[int], None]) -> list[_Aside]:
    found: dict[tuple[str, str], _Aside] = {}
    for name, rejection in tools.rejections(root, store=store, advance=advance):
        aside = found.setdefault((name, rejection.reason), _Aside(name, rejection.reason))
        aside.records += 1
        if rejection.time and (not aside.oldest or rejection.time < aside.oldest):
            aside.oldest = rejection.time
    return [found[each] for each in sorted(found)]


def _owners_table(owners: list[tools.Owner]) -> Table:
    records, length = sum(owner.records for owner in owners), sum(owner.bytes for owner in owners)
    title = f"{records:,} records wait, {_bytes(length)}"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("store", overflow="fold")
    table.add_column("for", overflow="fold")
    table.add_column("owner", overflow="fold")
    for name in ("segments", "records", "size", "oldest"):
        table.add_column(name, justify="right", no_wrap=True)
    for owner in owners:
        state = "[green]alive[/]" if owner.is_alive else "[yellow]orphaned[/]"
        namespace = "[red]nobody: no header[/]" if owner.namespace is None else escape(owner.namespace)
        table.add_row(
            escape(owner.store),
            namespace,
            f"{state}, process {owner.process_id or '?'}\non {escape(owner.host)}",
            f"{owner.segments:,}",
            f"{owner.records:,}",
            _bytes(owner.bytes),
            _age(None if owner.oldest is None else owner.oldest.timestamp()),
        )
    return table


def _has_strangers(owners: list[tools.Owner]) -> bool:
    """Return whether orphans of a store are for another server than others of it."""
    return any(
        one.store == other.store and one.namespace != other.namespace
        for one in owners
        if not one.is_alive
        for other in owners
    )


def _aside_table(aside: list[_Aside]) -> Table:
    title = f"{sum(each.records for each in aside):,} records were set aside"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("store", overflow="fold")
    table.add_column("reason", overflow="fold")
    table.add_column("records", justify="right")
    table.add_column("oldest", justify="right")
    for each in aside:
        table.add_row(escape(each.store), escape(each.reason), f"{each.records:,}", _age(each.oldest or None))
    return table


def _as_json(root: Path, owners: list[tools.Owner], aside: list[_Aside]) -> dict[str, Any]:
    return {
        "folder": str(root),
        "records": sum(owner.records for owner in owners),
        "bytes": sum(owner.bytes for owner in owners),
        "rejected": sum(each.records for each in aside),
        "owners": [
            {
                "store": owner.store,
                "for": owner.namespace,
                "host": owner.host,
                "process_id": owner.process_id,
                "state": "alive" if owner.is_alive else "orphaned",
                "segments": owner.segments,
                "records": owner.records,
                "bytes": owner.bytes,
                "oldest": None if owner.oldest is None else owner.oldest.isoformat(),
                "folder": str(owner.path),
            }
            for owner in owners
        ],
        "set_aside": [
            {
                "store": each.store,
                "reason": each.reason,
                "records": each.records,
                "oldest": datetime.fromtimestamp(each.oldest, UTC).isoformat() if each.oldest else None,
            }
            for each in aside
        ],
    }


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":  # noqa: PLR2004
            break
        size /= 1024
    return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"


def _age(since: float | None) -> str:
    """Return how long ago that was, in the largest unit of which there is more than one, or in seconds."""
    if since is None:
        return "-"
    seconds = max(0.0, datetime.now(UTC).timestamp() - since)
    unit, length = next((each for each in _UNITS if seconds >= 2 * each[1]), _UNITS[-1])
    return f"{seconds / length:,.0f} {unit}"


# verify and export


def _problem(problem: tools.Problem) -> str:
    if not problem.line:
        return f"{problem.path}: {problem.what}"
    begin, end = problem.offset, problem.offset + problem.size
    return f"{problem.path}: line {problem.line}, bytes {begin:,} to {end:,}: {problem.what}"


@dataclass(slots=True)
class _Count:
    """What an export met."""

    records: int = 0
    damaged: int = 0

    def note(self) -> None:
        self.damaged += 1


def _lines(
    root: Path, store: str | None, rejected: bool | None, advance: Callable[[int], None], count: _Count
) -> Iterator[bytes]:
    wanted = (False, True) if rejected is None else (rejected,)
    return chain.from_iterable(
        tools.export(root, store=store, rejected=each, advance=advance, damaged=count.note) for each in wanted
    )


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[bytes]]:
    """Open a new file, which does not stay where the export fails; or what is printed to."""
    if output is None:
        with _printing():
            yield sys.stdout.buffer
        return
    try:
        file = open(output, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
    except FileExistsError:
        raise ConfigurationError(f"{output} is there already: name another file") from None
    except OSError as exc:
        raise ConfigurationError(f"{output}: {exc.strerror}; name another file") from None
    try:
        with file:
            yield file
    except BaseException as exc:
        with suppress(OSError):
            output.unlink()
        if isinstance(exc, OSError):
            raise ConfigurationError(f"{output}: {exc.strerror}; nothing is left of it") from None
        raise


@contextmanager
def _printing() -> Iterator[None]:
    """Turn the error of an output that is full into one of multidb; a pipe that was closed is no error."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        with suppress(OSError, ValueError):  # What is left in the buffer would fail once more at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ConfigurationError(
            f"the output: {exc.strerror}; write it elsewhere, as with --output"
        ) from None

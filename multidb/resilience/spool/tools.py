"""What people do with a spool, without an event loop: look at it, check it, read it, put back what was set aside."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from multidb._core.files import translating
from multidb._core.values import dump, load
from multidb.resilience.spool._lines import BadLineError, parse
from multidb.resilience.spool._owners import LOCK_NAME, is_alive
from multidb.resilience.spool._places import folders_of, rejected_of, size_of, waiting_paths, waiting_segments
from multidb.resilience.spool._rejected import Rejection, read_rejections
from multidb.resilience.spool._retry import Retried, retry
from multidb.resilience.spool._segments import read_header, read_lines, scan, segment_paths
from multidb.resilience.spool._source import whose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from multidb.resilience.spool._segments import Segment

_ABOUT_BYTES: Final = 1024 * 1024


def _ignore(_: int) -> None:
    """Do nothing with how many bytes are through."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A folder of a spool, as it was when it was looked at."""

    path: Path
    host: str
    store: str
    namespace: str | None
    """None where no file says it: then nobody adopts the folder."""
    is_alive: bool
    """Whether a process has it; else it waits to be adopted."""
    process_id: int | None
    """Of the process that has it, or had it last."""
    segments: int
    records: int
    """How many are not done."""
    bytes: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be: in which file, at which byte, and what."""

    path: Path
    offset: int
    what: str
    line: int = 0
    """Which line of the file it is, from 1; 0: all of it."""
    size: int = 0
    """How many bytes the line has."""


@dataclass(slots=True)
class Report:
    """What `verify()` found."""

    records: int = 0
    """How many are sound and not done."""
    rejected: int = 0
    torn_bytes: int = 0
    """Of writes that were never finished, and never acknowledged: no problem."""
    problems: list[Problem] = field(default_factory=list)


def size(root: Path, *, store: str | None = None) -> int:
    """Return how many bytes there are to read. Raises BackendUnavailableError, ConfigurationError."""
    with translating():
        paths = [path for folder in folders_of(root, store) for _, path in waiting_paths(folder)]
        return sum(map(size_of, paths + rejected_of(root, store)))


def owners(root: Path, *, store: str | None = None, advance: Callable[[int], None] = _ignore) -> list[Owner]:
    """
    Return what is in the spool in *root*: by host, then by owner. *advance* is told of bytes that are through.

    Raises BackendUnavailableError, and ConfigurationError where this user may not look.
    """
    with translating():
        return [_owner(folder, advance) for folder in folders_of(root, store)]


def rejections(
    root: Path, *, store: str | None = None, advance: Callable[[int], None] = _ignore
) -> Iterator[tuple[str, Rejection]]:
    """Yield what was set aside, each with its store. Raises as `owners()`."""
    with translating():
        for path in rejected_of(root, store):
            for _, rejection in _read_rejections(path):
                if rejection is not None:
                    yield path.parent.name, rejection
            advance(size_of(path))


def verify(root: Path, *, store: str | None = None, advance: Callable[[int], None] = _ignore) -> Report:
    """
    Read and check every line of the spool in *root*. What a running process does meanwhile is no problem.

    Raises as `owners()`.
    """
    report = Report()
    with translating():
        for folder in folders_of(root, store):
            if whose(folder) is None and segment_paths(folder):
                report.problems.append(Problem(folder, 0, "no file says whose this is, so nobody adopts it"))
            for segment, offset in waiting_segments(folder):
                _verify(segment, offset, report)
                advance(segment.size + segment.torn)
        for path in rejected_of(root, store):
            _verify_rejected(path, report)
            advance(size_of(path))
    return report


def export(
    root: Path,
    *,
    store: str | None = None,
    rejected: bool = False,
    advance: Callable[[int], None] = _ignore,
    damaged: Callable[[], None] = lambda: None,
) -> Iterator[bytes]:
    """
    Yield the records that are not done as lines of JSON, with where each is from and when it was spooled.

    With *rejected* those that were set aside instead, with the reason. Lines that hold no record are left out, and
    *damaged* is called for each: `verify()` names them. Raises as `owners()`.
    """
    with translating():
        if rejected:
            for path in rejected_of(root, store):
                for line, rejection in _read_rejections(path):
                    if rejection is not None:
                        yield _line(path.parent.name, rejection.where, _as_dict(rejection))
                    elif line:
                        damaged()
                advance(size_of(path))
            return
        for folder in folders_of(root, store):
            for segment, offset in waiting_segments(folder):
                yield from _waiting(segment, offset, damaged)
                advance(segment.size + segment.torn)


def _owner(folder: Path, advance: Callable[[int], None]) -> Owner:
    header = whose(folder)
    counted = []
    for segment, offset in waiting_segments(folder):
        counted.append((segment, _times(segment, offset)))
        advance(segment.size + segment.torn)
    starts = [oldest for _, (_, oldest) in counted if oldest is not None]
    return Owner(
        path=folder.parent,
        host=folder.parent.parent.name,
        store=folder.name,
        namespace=None if header is None else header.namespace,
        is_alive=is_alive(folder.parent),
        process_id=_process_id(folder.parent),
        segments=len(counted),
        records=sum(records for _, (records, _) in counted),
        bytes=sum(segment.size + segment.torn for segment, _ in counted),
        oldest=datetime.fromtimestamp(min(starts) / 1000, UTC) if starts else None,
    )


def _times(segment: Segment, offset: int) -> tuple[int, int | None]:
    """Return how many records a segment has from *offset* on, and when the first sound one was spooled."""
    records, oldest = 0, None
    for line in read_lines(segment, offset):
        records += bool(line)
        if oldest is None:
            with suppress(BadLineError):
                oldest = parse(line)[0]
    return records, oldest


def _process_id(owner: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int((owner / LOCK_NAME).read_text("ascii"))
    return None


def _verify(segment: Segment, offset: int, report: Report) -> None:
    report.torn_bytes += segment.torn
    number = 1 + _lines_before(segment.path, offset)
    for line in read_lines(segment, offset):
        try:
            parse(line)
            report.records += 1
        except BadLineError as exc:
            if segment.path.exists():
                report.problems.append(Problem(segment.path, offset, str(exc), number, len(line)))
        offset += len(line)
        number += 1


def _verify_rejected(path: Path, report: Report) -> None:
    try:
        segment = scan(0, path)
        if read_header(path) is None and segment.records:
            report.problems.append(Problem(path, 0, "no header"))
    except FileNotFoundError:  # Put back meanwhile.
        return
    offset = segment.start
    number = 1 + _lines_before(path, offset)
    for line, rejection in _read_rejections(path):
        report.rejected += rejection is not None
        if rejection is None and line:
            report.problems.append(Problem(path, offset, "no rejected record", number, len(line)))
        offset += len(line)
        number += 1


def _lines_before(path: Path, offset: int) -> int:
    """Return how many lines a file has before *offset*."""
    lines = 0
    with suppress(FileNotFoundError), path.open("rb") as file:
        while offset > 0 and (chunk := file.read(min(offset, _ABOUT_BYTES))):
            lines += chunk.count(b"\n")
            offset -= len(chunk)
    return lines


def _waiting(segment: Segment, offset: int, damaged: Callable[[], None]) -> Iterator[bytes]:
    """Yield the records of a segment from *offset* on, for people."""
    folder = segment.path.parent
    where = f"{folder.parent.name}/{segment.number}"
    for line in read_lines(segment, offset):
        try:
            millis, record = parse(line)
        except BadLineError:
            if segment.path.exists():
                damaged()
        else:
            fields = {"reason": None, "record": load(record), "time": _time(millis / 1000)}
            yield _line(folder.name, where, fields)


def _read_rejections(path: Path) -> Iterator[tuple[bytes, Rejection | None]]:
    with suppress(FileNotFoundError):  # Put back meanwhile.
        yield from read_rejections(path)


def _as_dict(rejection: Rejection) -> dict[str, Any]:
    fields: dict[str, Any] = {"reason": rejection.reason, "time": _time(rejection.time)}
    if rejection.record is None:
        fields["raw"] = rejection.raw.decode("utf-8", "backslashreplace")
    else:
        fields["record"] = load(rejection.record)
    return fields


def _time(seconds: float) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else None


def _line(store: str, where: str, fields: dict[str, Any]) -> bytes:
    return dump({"store": store, "where": where} | fields) + b"\n"


__all__ = [
    "Owner",
    "Problem",
    "Rejection",
    "Report",
    "Retried",
    "export",
    "owners",
    "rejections",
    "retry",
    "size",
    "verify",
]

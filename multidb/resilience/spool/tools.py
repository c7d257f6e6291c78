"""What people do with a spool, without an event loop: look at it, check it, read it, put back what was set aside."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from multidb._core import files
from multidb._core.clock import SystemClock
from multidb._core.files import safe_name, translating
from multidb._core.values import dump, load
from multidb.errors import BackendUnavailableError
from multidb.resilience.spool._lines import BadLineError, lines_of, parse
from multidb.resilience.spool._own import Own
from multidb.resilience.spool._owners import LOCK_NAME, find_owners, is_alive
from multidb.resilience.spool._rejected import (
    Rejection,
    is_in_place,
    read_rejections,
    rejected_paths,
    remove_rejected,
)
from multidb.resilience.spool._segments import read_header, read_lines, scan, segment_paths
from multidb.resilience.spool._source import read_progress, whose

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from multidb._core.clock import Clock
    from multidb.resilience.spool._segments import Segment

_SEGMENT_BYTES: Final = 4 * 1024 * 1024
_ABOUT_BYTES: Final = 1024 * 1024


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


@dataclass(slots=True)
class Report:
    """What `verify()` found."""

    records: int = 0
    """How many are sound and not done."""
    rejected: int = 0
    torn_bytes: int = 0
    """Of writes that were never finished, and never acknowledged: no problem."""
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Retried:
    """How many rejected records were put back, and how many lines stay because they hold none."""

    records: int
    kept: int


def owners(root: Path, *, store: str | None = None) -> list[Owner]:
    """Return what is in the spool in *root*: by host, then by owner. Raises BackendUnavailableError."""
    with translating():
        return [_owner(folder) for folder in _folders(root, store)]


def rejections(root: Path, *, store: str | None = None) -> Iterator[tuple[str, Rejection]]:
    """Yield what was set aside, each with its store. Raises BackendUnavailableError."""
    with translating():
        for path in _rejected(root, store):
            for _, rejection in _read_rejections(path):
                if rejection is not None:
                    yield path.parent.name, rejection


def verify(root: Path, *, store: str | None = None) -> Report:
    """Read and check every line of the spool in *root*. What a running process does meanwhile is no problem."""
    report = Report()
    with translating():
        for folder in _folders(root, store):
            if whose(folder) is None and segment_paths(folder):
                report.problems.append(Problem(folder, 0, "no file says whose this is, so nobody adopts it"))
            for segment, offset in _segments(folder):
                _verify(segment, offset, report)
        for path in _rejected(root, store):
            if read_header(path) is None and scan(0, path).records:
                report.problems.append(Problem(path, 0, "no header"))
            offset = 0
            for line, rejection in _read_rejections(path):
                report.rejected += rejection is not None
                if rejection is None and line:
                    report.problems.append(Problem(path, offset, "no rejected record"))
                offset += len(line)
    return report


def export(root: Path, *, store: str | None = None, rejected: bool = False) -> Iterator[bytes]:
    """
    Yield the records that are not done as lines of JSON, with where each is from and when it was spooled.

    With *rejected* those that were set aside instead, with the reason. Damaged lines are left out: `verify()` names
    them. Raises BackendUnavailableError.
    """
    with translating():
        if rejected:
            for path in _rejected(root, store):
                for _, rejection in _read_rejections(path):
                    if rejection is not None:
                        yield _line(path.parent.name, rejection.where, _as_dict(rejection))
            return
        for folder in _folders(root, store):
            for segment, offset in _segments(folder):
                for line in read_lines(segment, offset):
                    with suppress(BadLineError):
                        millis, record = parse(line)
                        where = f"{folder.parent.name}/{segment.number}"
                        yield _line(
                            folder.name, where, {"record": load(record), "time": _time(millis / 1000)}
                        )


def retry(
    root: Path, *, store: str | None = None, clock: Clock | None = None, host: str | None = None
) -> Retried:
    """
    Put back what was set aside, as new records: a process that is running, or the next one, replays them.

    Killed in between, some may come twice; that changes nothing, as with any replay. Lines that hold no record stay
    where they are. Raises BackendUnavailableError, and OverloadedError when the disk is full: what is not put back
    by then stays set aside.
    """
    clock = SystemClock() if clock is None else clock
    home = root.absolute() / safe_name(socket.gethostname() if host is None else host)
    records = kept = 0
    with translating():
        for path in _rejected(root, store):
            retried = _retry(path, home, clock)
            records += retried.records
            kept += retried.kept
    return Retried(records, kept)


def _folders(root: Path, store: str | None) -> Iterator[Path]:
    """Yield the folders with segments; an owner has one, that of its store."""
    for owner in find_owners(root.absolute()):
        with suppress(FileNotFoundError):
            for folder in sorted(owner.iterdir()):
                if folder.is_dir() and store in (None, folder.name):
                    yield folder


def _rejected(root: Path, store: str | None) -> list[Path]:
    return [path for path in rejected_paths(root.absolute()) if store in (None, path.parent.name)]


def _segments(folder: Path) -> Iterator[tuple[Segment, int]]:
    """Yield the segments that are not done, each with where to begin. The owner may remove some meanwhile."""
    number, offset = read_progress(folder)
    with suppress(FileNotFoundError):
        for each, path in segment_paths(folder):
            if each >= number:
                segment = scan(each, path)
                yield segment, max(offset, segment.start) if each == number else segment.start


def _owner(folder: Path) -> Owner:
    header = whose(folder)
    counted = [(segment, _times(segment, offset)) for segment, offset in _segments(folder)]
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
    for line in read_lines(segment, offset):
        try:
            parse(line)
            report.records += 1
        except BadLineError as exc:
            if segment.path.exists():
                report.problems.append(Problem(segment.path, offset, str(exc)))
        offset += len(line)


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


def _retry(path: Path, home: Path, clock: Clock) -> Retried:
    """Put the records of a file back, then remove it, or all of it that is put back."""
    with suppress(FileNotFoundError), path.open("r+b", buffering=0) as file:
        if not files.try_lock(file.fileno()):
            raise BackendUnavailableError(
                "a file of rejected records is in use by another process: try again"
            )
        try:
            if not is_in_place(file, path):
                return Retried(0, 0)
            return _put_back(path, home, clock)
        finally:
            files.unlock(file.fileno())
    return Retried(0, 0)


def _put_back(path: Path, home: Path, clock: Clock) -> Retried:
    header = read_header(path)
    if header is None:
        kept_lines = scan(0, path).records
        if not kept_lines:  # Its writer was killed at the first one.
            remove_rejected(path)
        return Retried(0, kept_lines)
    own = Own(home, header, _SEGMENT_BYTES, Lock())
    kept: list[bytes] = []
    records = 0
    try:
        for batch in _batches(path, kept):
            millis = int(clock.time() * 1000)
            own.append(lines_of(batch, millis), len(batch), millis)
            records += len(batch)
    finally:
        own.forget()
    if kept:
        files.write_atomic(path, path.read_bytes()[: scan(0, path).start] + b"".join(kept))
    else:
        remove_rejected(path)
    return Retried(records, len(kept))


def _batches(path: Path, kept: list[bytes]) -> Iterator[list[bytes]]:
    """Yield the records of a file, a megabyte or so at once; the other lines go to *kept*."""
    size = 0

    def number(record: bytes) -> int:
        nonlocal size
        size += len(record)
        return size // _ABOUT_BYTES

    for _, batch in groupby(_records(path, kept), number):
        yield list(batch)


def _records(path: Path, kept: list[bytes]) -> Iterator[bytes]:
    for line, rejection in read_rejections(path):
        if rejection is not None and rejection.record is not None:
            yield rejection.record
        elif line:
            kept.append(line)

"""Source: what one owner spooled and is not done yet, in the order in which it came."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from multidb._core import files
from multidb._core.values import dump, load
from multidb.resilience.spool._lines import BadLineError, Header, lines_of, millis_of, parse
from multidb.resilience.spool._owners import remove_owner
from multidb.resilience.spool._segments import (
    Segment,
    read_header,
    read_lines,
    read_start,
    scan,
    segment_paths,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from threading import Lock

    from multidb.resilience.spool._owners import OwnerLock

_log = logging.getLogger("multidb")

_PROGRESS: Final = "progress"


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place between two records of an owner: behind so many bytes, and so many records, of a segment."""

    owner: str
    segment: int
    offset: int
    records: int


class Source:
    """
    The segments of one owner, and how far they are done.

    The spool that has the owner's lock is the only one to use it. Its fields change under *mutex*: records are added
    in one thread and read in another.
    """

    def __init__(self, folder: Path, store: str, lock: OwnerLock, mutex: Lock) -> None:
        """Start without segments."""
        self.name = folder.name
        self.folder = folder / store
        self.segments: list[Segment] = []
        self.head_millis: int | None = None
        """When the first record was spooled that is not done."""
        self.set_aside: set[Position] = set()
        """Where the records are that were set aside since the last `advance()`."""
        self._owner = folder
        self._store = store
        self._lock = lock
        self._mutex = mutex
        self._at = Position(self.name, 0, 0, 0)

    @property
    def pending(self) -> int:
        """How many records are not done."""
        return sum(segment.records for segment in self.segments) - self._at.records

    @property
    def size(self) -> int:
        """How many bytes the segments have on the disk."""
        return sum(segment.size + segment.torn for segment in self.segments)

    def load(self) -> None:
        """Find out what an earlier owner left. Raises OSError."""
        files.remove_temporaries(self.folder)
        number, offset = read_progress(self.folder)
        at = Position(self.name, number, offset, 0)
        finished = []
        for number, path in segment_paths(self.folder):
            segment = scan(number, path)
            if (number, segment.size) <= (at.segment, at.offset) or not segment.records:
                finished.append(segment)
            else:
                self.segments.append(segment)
        self._move(at)
        if self.segments and self._at.offset > self.segments[0].start:
            done = sum(1 for _ in read_lines(self.segments[0], self.segments[0].start, self._at.offset))
            self._at = replace(self._at, records=done)
        _unlink(finished)
        self._look_at_head()

    def read(self) -> Iterator[tuple[Position, bytes]]:
        """Yield the lines that are not done, each with the position behind it. Raises OSError."""
        with self._mutex:
            at, segments = self._at, list(self.segments)
        for segment in segments:
            offset, records = segment.start, 0
            if segment.number == at.segment:
                offset, records = at.offset, at.records
            for line in read_lines(segment, offset):
                offset, records = (
                    (offset + len(line), records + 1) if line else (segment.size, segment.records)
                )
                yield Position(self.name, segment.number, offset, records), line

    def advance(self, to: Position) -> None:
        """
        Take the records up to *to* for done, durably. Once a segment is done, its file goes.

        Where a full disk keeps the progress from being written it counts all the same, in this process: to go on is
        what makes room, and a replay may be repeated.
        """
        with self._mutex:
            if to <= self._at:
                return
            finished = self._finish(to)
            at = self._at
        self.set_aside = {position for position in self.set_aside if position > to}
        if self.segments:
            self._write_progress(at)
        _unlink(finished)
        self._look_at_head()

    def remove(self) -> bool:
        """Remove the owner's folder, in which nothing is left to be done; return whether that worked."""
        return remove_owner(self._owner, self._store, self._lock)

    def release(self) -> None:
        """Leave the folder to whoever comes next."""
        with suppress(OSError):
            self._lock.release()

    def _finish(self, to: Position) -> list[Segment]:
        """Move to *to*; return the segments that are done with."""
        finished = []
        while self.segments and _is_done(self.segments[0], to):
            finished.append(self.segments.pop(0))
        self._move(to)
        return finished

    def _move(self, to: Position) -> None:
        """Be at *to*, or at the first record where that is in none of the segments."""
        if self.segments and self.segments[0].number != to.segment:
            first = self.segments[0]
            to = Position(self.name, first.number, first.start, 0)
        elif not self.segments:
            to = Position(self.name, to.segment, to.offset, 0)
        self._at = to

    def _look_at_head(self) -> None:
        with self._mutex:
            at = self._at
            if not self.pending:
                self.head_millis = None
                return
            segment = self.segments[0]
        millis = _millis_at(segment, at.offset if at.segment == segment.number else segment.start)
        with self._mutex:
            self.head_millis = millis

    def _write_progress(self, at: Position) -> None:
        record = dump({"offset": at.offset, "segment": at.segment})
        try:
            files.write_atomic(self.folder / _PROGRESS, lines_of([record], 0))
        except OSError as exc:
            _log.warning("the progress of a replay cannot be written: %s", type(exc).__name__)


def read_progress(folder: Path) -> tuple[int, int]:
    """Return the segment, and the byte in it, up to which the records in *folder* are done; 0, 0 for none."""
    with suppress(OSError, BadLineError, TypeError, KeyError, ValueError):
        fields = load(parse((folder / _PROGRESS).read_bytes())[1])
        return int(fields["segment"]), int(fields["offset"])
    return 0, 0


def whose(folder: Path) -> Header | None:
    """Return what the segments in *folder* say whose they are; None when none says it, or there is none."""
    with suppress(OSError):
        for _, path in segment_paths(folder):
            with suppress(OSError):
                if (header := read_header(path)) is not None:
                    return header
    return None


def _millis_at(segment: Segment, offset: int) -> int:
    """Return the time of the record at *offset*; where it cannot be read, that of the file."""
    if (millis := millis_of(read_start(segment, offset))) is not None:
        return millis
    with suppress(OSError):
        return int(segment.path.stat().st_mtime * 1000)
    return 0


def _is_done(segment: Segment, at: Position) -> bool:
    if segment.number == at.segment:
        return segment.sealed and at.offset >= segment.size
    return segment.number < at.segment


def _unlink(segments: list[Segment]) -> None:
    for segment in segments:
        with suppress(OSError):
            segment.path.unlink(missing_ok=True)

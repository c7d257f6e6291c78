"""KindFiles: all records of one kind, one file a day."""

from __future__ import annotations

import logging
import operator
from bisect import insort
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from threading import Lock
from typing import TYPE_CHECKING, Final, Generic

from multidb._core.files import make_folders, remove_temporaries, sync_folder, translating, write_atomic
from multidb.errors import BackendError, BackendUnavailableError
from multidb.logs.backends._day_file import DayFile, DayView
from multidb.logs.backends._id_index import IdIndex
from multidb.logs.backends._journal import JournalChangedError
from multidb.logs.backends._lines import day_of
from multidb.logs.protocol import R

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from multidb.logs.backends._lines import Line
    from multidb.logs.protocol import Query

_log = logging.getLogger("multidb")

_SUFFIX: Final = ".jsonl"


@dataclass(frozen=True, slots=True)
class Staged(Generic[R]):
    """A line on its way into its day's file. *again*: it replaces one for the same record."""

    line: Line[R]
    again: bool = False


class KindFiles(Generic[R]):
    """
    The records of one kind, in files like `2026-11-20.jsonl`.

    `load()`, `find()`, `write()` and `delete()` are called by one thread; the rest by any.
    """

    def __init__(self, kind: type[R], folder: Path) -> None:
        """Name the folder."""
        self._kind = kind
        self._folder = folder
        self._ids = IdIndex()
        self._days: dict[int, DayFile[R]] = {}
        self._numbers: list[int] = []
        self._last: DayFile[R] | None = None
        # Held while the rows of a day and its file are out of step, and to look at both.
        self._lock = Lock()

    @property
    def bad_lines(self) -> int:
        """How many lines are skipped because they are no records."""
        with self._lock:
            return sum(len(day.bad) + len(day.damaged) for day in self._days.values())

    def load(self) -> None:
        """Create the folder, or repair and read what is in it."""
        make_folders(self._folder)
        remove_temporaries(self._folder)
        for number in sorted(_days_in(self._folder)):
            self._load(number)
        sync_folder(self._folder)

    def close(self) -> None:
        """Close the file that is open."""
        if self._last is not None:
            self._last.journal.close()
            self._last = None

    def find(self, key: bytes) -> Line[R] | None:
        """Return the record with the id *key*."""
        place = self._ids.get(key)
        day = None if place is None else self._days.get(place[0])
        if place is None or day is None:
            return None
        line = day.line_at(place[1])
        # A place may be left over from what was deleted.
        return line if line is not None and line.record.id.bytes == key else None

    def write(self, number: int, staged: Sequence[Staged[R]]) -> None:
        """Append lines to the file of a day, durably. Raises BackendError."""
        text = b"".join([item.line.text for item in staged])
        try:
            with translating():
                day = self._opened(number)
            offset = day.journal.append(text)
        except JournalChangedError:
            day, offset = self._write_anew(number, text)
        with self._lock:
            for item in staged:
                self._note(day, item, offset)
                offset += len(item.line.text)
            self._put(day)

    def _write_anew(self, number: int, text: bytes) -> tuple[DayFile[R], int]:
        """Somebody else changed the file: read it again, and go on with what is there."""
        with translating():
            self._load(number)
            day = self._opened(number)
        try:
            return day, day.journal.append(text)
        except JournalChangedError as exc:
            msg = "another program keeps changing the log files"
            raise BackendUnavailableError(msg) from exc

    def _opened(self, number: int) -> DayFile[R]:
        """Return a day, and let go of the file of the one before: most appends go to today's."""
        if number not in self._days and self._path(number).exists():
            self._load(number)  # Put there by somebody else, or what a failed append could not take back.
        day = self._days.get(number) or DayFile(self._kind, number, self._path(number))
        if day is not self._last:
            self.close()
            self._last = day
        return day

    def _note(self, day: DayFile[R], item: Staged[R], offset: int) -> None:
        key = item.line.record.id.bytes
        place = self._ids.get(key) if item.again else None
        try:
            if place is None:
                day.add(item.line, offset)
            else:
                day.move(item.line, place[1], offset)
        except ValueError:  # Somebody else took the older line out of the file.
            day.add(item.line, offset)
        self._ids.put(key, day.day, offset)

    def count(self, query: Query[R]) -> int:
        """Return how many records match. Without a filter no file is read."""
        if query.equal or query.keyword is not None:
            return sum(1 for view in self._views(query) for _ in view.rows())
        with self._lock:
            bounds = [day.rows.bounds(query) for day in self._days.values()]
        return sum(high - low for low, high in bounds)

    def moments(self, query: Query[R]) -> Iterator[datetime]:
        """Yield the timestamps of the matching records. Without a filter no file is read."""
        return (moment for view in self._views(query) for moment in view.moments())

    def values(self, query: Query[R], name: str) -> Iterator[str | None]:
        """Yield the field *name* of the matching records."""
        return (value for view in self._views(query) for value in view.values(name))

    def newest_first(self, query: Query[R]) -> Iterator[Line[R]]:
        """Yield the matching records, by (timestamp, id) descending. Raises OSError."""
        return (line for view in self._views(query) for line, _ in view.newest_first())

    def _views(self, query: Query[R]) -> Iterator[DayView[R]]:
        """Yield the days that may have something, newest first; each is to be used before the next."""
        for number in self._numbers_of(query):
            view = self._view(number, query)
            if view is not None:
                with closing(view):
                    yield view

    def _numbers_of(self, query: Query[R]) -> list[int]:
        """Return the days, newest first, that may have something for *query*."""
        low = 0 if query.since is None else day_of(query.since)
        ends = [day_of(end) for end in (query.until, query.after and query.after[0]) if end is not None]
        with self._lock:
            return [n for n in reversed(self._numbers) if low <= n <= min(ends, default=n)]

    def _view(self, number: int, query: Query[R]) -> DayView[R] | None:
        with self._lock:
            day = self._days.get(number)
            if day is None or operator.eq(*day.rows.bounds(query)):
                return None
            try:
                return DayView(day, query)
            except FileNotFoundError:  # Removed by hand: gone, as whoever did it wanted.
                return None

    def delete(self, query: Query[R]) -> int:
        """Delete the matching records, day by day; return how many. Raises BackendError."""
        deleted: dict[int, int] = {}
        try:
            with translating():
                for number in self._numbers_of(query):
                    if doomed := self._doomed(self._days[number], query):
                        self._delete_lines(self._days[number], doomed, keep_bad=bool(query.equal))
                        deleted[number] = len(doomed)
                sync_folder(self._folder)
        except BackendError as error:
            error.ambiguous |= bool(deleted)
            raise
        finally:
            self._sweep(deleted.keys())
        return sum(deleted.values())

    def _delete_lines(self, day: DayFile[R], doomed: set[int], *, keep_bad: bool) -> None:
        self.close()
        if len(doomed) == len(day.rows) and not (keep_bad and day.bad):
            with self._lock:
                day.journal.path.unlink(missing_ok=True)
                del self._days[day.day]
                self._numbers.remove(day.day)
        else:
            self._rewrite(day, doomed)

    def _doomed(self, day: DayFile[R], query: Query[R]) -> set[int]:
        """Return the offsets of the lines that match."""
        if not query.equal:
            return set(day.rows.offsets[slice(*day.rows.bounds(query))])
        view = self._view(day.day, query)
        if view is None:
            return set()
        with closing(view):
            return {offset for _, offset in view.newest_first()}

    def _rewrite(self, day: DayFile[R], doomed: set[int]) -> None:
        fresh, content, places = day.without(doomed)
        try:
            with self._lock:
                write_atomic(day.journal.path, content)
                self._put(fresh)
        except OSError:
            self._load(day.day)  # It may be the old file or the new one.
            raise
        for key, offset in places:
            self._ids.put(key, day.day, offset)

    def _sweep(self, numbers: Collection[int]) -> None:
        """Forget the ids of what is no longer there in the days *numbers*."""
        if not numbers:
            return
        live = {n: set(self._days[n].rows.offsets) if n in self._days else set() for n in numbers}
        self._ids.sweep(lambda number, offset: number not in live or offset in live[number])

    def _load(self, number: int) -> None:
        day = DayFile(self._kind, number, self._path(number))
        seen: dict[bytes, int] = {}
        for line, offset in day.scan():
            if not self._enter(day, line, offset, seen):
                day.bad[offset] = len(line.text)
        if day.bad:
            _log.warning("%s: %d lines are no records and are skipped", day.journal.path, len(day.bad))
        with self._lock:
            self._put(day)

    def _enter(self, day: DayFile[R], line: Line[R], offset: int, seen: dict[bytes, int]) -> bool:
        """Take note of a line read from a file; return whether it belongs there."""
        key = line.record.id.bytes
        other = self._ids.get(key)
        if other is not None and other[0] != day.day and other[0] in self._days:
            return False
        if day_of(line.record.timestamp) != day.day:
            return False
        try:
            if key in seen:
                day.move(line, seen[key], offset)
            else:
                day.add(line, offset)
        except ValueError:
            return False
        seen[key] = offset
        self._ids.put(key, day.day, offset)
        return True

    def _put(self, day: DayFile[R]) -> None:
        if day.day not in self._days:
            insort(self._numbers, day.day)
        self._days[day.day] = day

    def _path(self, number: int) -> Path:
        return self._folder / f"{date.fromordinal(number).isoformat()}{_SUFFIX}"


def _days_in(folder: Path) -> Iterator[int]:
    for path in folder.glob("*" + _SUFFIX):
        try:
            day = date.fromisoformat(path.stem)
        except ValueError:
            continue
        if day.isoformat() == path.stem:
            yield day.toordinal()

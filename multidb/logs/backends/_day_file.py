"""DayFile: the records of one kind and one UTC day, in a file, with what it takes in memory to find them."""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_left, bisect_right
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Generic

from multidb.logs.backends._in_process import has, searched_text
from multidb.logs.backends._journal import Journal
from multidb.logs.backends._lines import BadLineError, decode, id_of, mark_of, micros_of, moment_of, parse
from multidb.logs.protocol import R

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from pathlib import Path
    from uuid import UUID

    from multidb.logs.backends._lines import Line
    from multidb.logs.protocol import Query

_log = logging.getLogger("multidb")

_WINDOW: Final = 64 * 1024


class Rows:
    """Where the lines of a day are, by time: four columns, 24 bytes a record."""

    __slots__ = ("lengths", "marks", "micros", "offsets")

    def __init__(self) -> None:
        """Start empty."""
        self.micros = array("q")
        self.offsets = array("Q")
        self.lengths = array("I")
        self.marks = array("I")

    def __len__(self) -> int:
        return len(self.micros)

    def add(self, micros: int, offset: int, length: int, mark: int) -> None:
        """Insert a row behind those of the same time, which is nearly always at the end."""
        at = len(self.micros)
        if at and micros < self.micros[-1]:
            at = bisect_right(self.micros, micros)
        self.micros.insert(at, micros)
        self.offsets.insert(at, offset)
        self.lengths.insert(at, length)
        self.marks.insert(at, mark)

    def move(self, micros: int, old: int, offset: int, length: int) -> None:
        """Point the row at *old* to another line for the same record."""
        at = self.offsets.index(old, bisect_left(self.micros, micros))
        self.offsets[at] = offset
        self.lengths[at] = length

    def bounds(self, query: Query[R]) -> tuple[int, int]:
        """Return from where to where the times fit; what is at the time of `after` is included."""
        low = 0 if query.since is None else bisect_left(self.micros, micros_of(query.since))
        high = len(self) if query.until is None else bisect_left(self.micros, micros_of(query.until))
        if query.after is not None:
            high = min(high, bisect_right(self.micros, micros_of(query.after[0])))
        return low, max(low, high)

    def of_user(self, user_id: str) -> list[int]:
        """Return the numbers of the rows of a user, and rarely one of another."""
        mark = mark_of(user_id)
        return [row for row, other in enumerate(self.marks) if other == mark]

    def moved(self, places: Mapping[int, int]) -> Rows:
        """Return the rows whose offsets are in *places*, at their new ones."""
        rows = Rows()
        for i, offset in enumerate(self.offsets):
            if offset in places:
                rows.add(self.micros[i], places[offset], self.lengths[i], self.marks[i])
        return rows

    def cut(self, low: int, high: int) -> Rows:
        """Return a copy of a part, which goes on to hold when rows are added here."""
        rows = Rows()
        rows.micros = self.micros[low:high]
        rows.offsets = self.offsets[low:high]
        rows.lengths = self.lengths[low:high]
        rows.marks = self.marks[low:high]
        return rows


class DayFile(Generic[R]):
    """
    The records of one kind and one UTC day.

    Changed by one thread only, while it holds the lock of its kind; read by others through a `DayView`.
    """

    def __init__(self, kind: type[R], day: int, path: Path) -> None:
        """Start empty; the file is created by the first append."""
        self.kind = kind
        self.day = day
        self.journal = Journal(path)
        self.rows = Rows()
        self.bad: dict[int, int] = {}
        """Offset and length of the lines that were no records when the file was opened."""
        self.damaged: set[int] = set()
        """Offsets of the lines that were found to be none since."""

    def scan(self) -> Iterator[tuple[Line[R], int]]:
        """Repair the file, then yield its records with their offsets; what is no record goes to *bad*."""
        self.journal.recover()
        offset = 0
        with self.journal.path.open("rb") as lines:
            for text in lines:
                try:
                    yield decode(self.kind, text), offset
                except BadLineError:
                    self.bad[offset] = len(text)
                offset += len(text)

    def add(self, line: Line[R], offset: int) -> None:
        """Take note of a record whose line is in the file at *offset*."""
        record = line.record
        self.rows.add(micros_of(record.timestamp), offset, len(line.text), mark_of(record.user_id))

    def move(self, line: Line[R], old: int, offset: int) -> None:
        """Take note of a newer line for the record whose line is at *old*. Raises ValueError if none is."""
        self.rows.move(micros_of(line.record.timestamp), old, offset, len(line.text))

    def line_at(self, offset: int) -> Line[R] | None:
        """Return the record whose line begins at *offset*, if one does."""
        try:
            with self.journal.path.open("rb") as file:
                file.seek(offset)
                return decode(self.kind, file.readline())
        except (FileNotFoundError, BadLineError):
            return None

    def without(self, doomed: set[int]) -> tuple[DayFile[R], bytes, list[tuple[bytes, int]]]:
        """Return this day less *doomed*, what its file is to hold then, and the ids with their offsets."""
        lengths = {o: n for o, n in zip(self.rows.offsets, self.rows.lengths, strict=True) if o not in doomed}
        bad = self.bad | {offset: lengths.pop(offset) for offset in self.damaged if offset in lengths}
        old, content = self.journal.path.read_bytes(), bytearray()
        moved: dict[int, int] = {}
        places: list[tuple[bytes, int]] = []
        for offset, length in sorted((lengths | bad).items()):
            text = old[offset : offset + length]
            if offset in lengths and (key := id_of(text)) is not None:
                places.append((key, len(content)))
            moved[offset] = len(content)
            content += text
        fresh = DayFile(self.kind, self.day, self.journal.path)
        fresh.journal.size = len(content)
        fresh.rows = self.rows.moved({offset: moved[offset] for offset in lengths})
        fresh.bad = {moved[offset]: length for offset, length in bad.items()}
        return fresh, bytes(content), places


class DayView(Generic[R]):
    """What a day held at one moment between two times, whatever is added or deleted meanwhile."""

    def __init__(self, day: DayFile[R], query: Query[R]) -> None:
        """Take a copy of the rows and open the file. Raises OSError."""
        self._day = day
        self._rows = day.rows.cut(*day.rows.bounds(query))
        self._query = query
        self._file = day.journal.path.open("rb", buffering=0)
        self._window = b""
        self._start = 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def newest_first(self) -> Iterator[tuple[Line[R], int]]:
        """Yield the matching records with the offsets of their lines."""
        for _, run in groupby(self.rows(), self._rows.micros.__getitem__):
            lines = [found for row in run if (found := self._record(row)) is not None]
            lines.sort(key=_id_of, reverse=True)
            yield from lines

    def moments(self) -> Iterator[datetime]:
        """Yield the timestamps of the matching records."""
        return (moment_of(self._rows.micros[row]) for row in self.rows())

    def values(self, name: str) -> Iterator[str | None]:
        """Yield the field *name* of the matching records."""
        return (fields.get(name) for row in self.rows() if (fields := self._fields(row)) is not None)

    def rows(self) -> Iterator[int]:
        """Yield the numbers of the rows that match, newest first; `after` is not looked at, nor ids."""
        user_id = self._query.equal.get("user_id")
        rows = range(len(self._rows)) if user_id is None else self._rows.of_user(user_id)
        if not self._query.equal and self._query.keyword is None:
            return reversed(rows)
        return (row for row in reversed(rows) if self._fits(row))

    def _fits(self, row: int) -> bool:
        fields = self._fields(row)
        if fields is None:
            return False
        try:
            keyword = self._query.keyword
            return has(fields, self._query.equal) and (keyword is None or keyword in searched_text(fields))
        except (KeyError, AttributeError, TypeError):
            self._report(row)
            return False

    def _fields(self, row: int) -> dict[str, Any] | None:
        try:
            return parse(self._text(row))
        except BadLineError:
            self._report(row)
            return None

    def _record(self, row: int) -> tuple[Line[R], int] | None:
        try:
            line = decode(self._day.kind, self._text(row))
        except BadLineError:
            self._report(row)
            return None
        after = self._query.after
        if after is not None and (line.record.timestamp, line.record.id) >= after:
            return None
        return line, self._rows.offsets[row]

    def _text(self, row: int) -> bytes:
        """Return a line. The next one wanted is mostly the one before, so that is read, too."""
        offset = self._rows.offsets[row]
        end = offset + self._rows.lengths[row]
        if offset < self._start or end > self._start + len(self._window):
            self._start = max(0, min(offset, end - _WINDOW))
            self._file.seek(self._start)
            self._window = self._file.read(end - self._start)
        return self._window[offset - self._start : end - self._start]

    def _report(self, row: int) -> None:
        offset = self._rows.offsets[row]
        if offset not in self._day.damaged:
            self._day.damaged.add(offset)
            _log.warning("%s: the line at byte %d is no record any more", self._day.journal.path, offset)


def _id_of(found: tuple[Line[R], int]) -> UUID:
    return found[0].record.id

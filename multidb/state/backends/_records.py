"""The lines of the journal: what a write left behind, with a checksum, and how to do it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias
from zlib import crc32

from orjson import Fragment

from multidb._core.values import dump, load
from multidb.errors import ConfigurationError
from multidb.state.backends._tables import COOLDOWN, COUNTER, LIST, NEVER, VALUE, Tables, items_of, pushed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from multidb.state.backends._tables import Row, Run

Record: TypeAlias = "Sequence[Any]"
"""
What a write left behind, as a JSON list. The user "" stands for the global things, and a deadline is in
microseconds since 1970, or null.

A value is `["v", user, name, deadline, value]`, a cooldown `["c", user, name, deadline, null]`, a counter
`["n", user, name, deadline, number]`; `["touch", user, name, deadline]` gives a value another deadline, and
`["gone", kind, user, name]` removes something. A list grows by
`["l", user, name, items pushed before, items to keep or null, item]`.

The first line of a journal is `["state", format, inode, size, here]`: what the journal with that inode says
up to its byte *size*, this one says up to its byte *here*, and what follows there follows here.

Doing a record again changes nothing. Even records that are older than what is there do no harm, as long as
all that came after them are done again, too.
"""

_TOUCH: Final = "touch"
_GONE: Final = "gone"
_START: Final = "state"
_FORMAT: Final = 1

START_BYTES: Final = 128
"""The length of the first line."""

_ROWS: Final = frozenset({VALUE, COOLDOWN, COUNTER})
_DAWN: Final = 0
_CRC_BYTES: Final = 9


class Recorder:
    """Tables that keep a record of what is done to them, to be written down and to be undone."""

    def __init__(self, tables: Tables) -> None:
        """Start without records."""
        self.records: list[Record] = []
        self.find = tables.find
        self.of_user = tables.of_user
        self._tables = tables
        self._before: list[tuple[str, str, str, Row | None]] = []

    def put(self, kind: str, user: str, name: str, value: Any, deadline: int) -> None:
        """As `Tables.put()`."""
        self._before.append((kind, user, name, self._tables.put(kind, user, name, value, deadline)))
        self.records.append(_row(kind, user, name, value, deadline))

    def touch(self, user: str, name: str, deadline: int) -> None:
        """As `Tables.touch()`."""
        self._before.append((VALUE, user, name, self._tables.touch(user, name, deadline)))
        self.records.append((_TOUCH, user, name, _null(deadline)))

    def push(self, user: str, name: str, item: bytes, keep: int | None) -> int:
        """As `Tables.push()`."""
        row = self._tables.find(LIST, user, name, _DAWN)
        self._before.append((LIST, user, name, row))
        self.records.append((LIST, user, name, row[0][3] if row is not None else 0, keep, Fragment(item)))
        return self._tables.push(user, name, item, keep)

    def remove(self, kind: str, user: str, name: str) -> None:
        """As `Tables.remove()`."""
        self._before.append((kind, user, name, self._tables.remove(kind, user, name)))
        self.records.append((_GONE, kind, user, name))

    def undo(self) -> None:
        """Put everything back as it was. Only before the tables are pruned again."""
        for kind, user, name, row in reversed(self._before):
            self._tables.restore(kind, user, name, row)


def replay(record: bytes, tables: Tables) -> None:
    """
    Do what *record* says. What is dead is stored all the same: a later record may have prolonged its life.

    Raises ConfigurationError for what only a newer multidb writes.
    """
    kind, *rest = load(record)
    if kind in _ROWS:
        user, name, deadline, value = rest
        tables.put(kind, user, name, dump(value) if kind == VALUE else value, _never(deadline))
    elif kind == LIST:
        _replay_push(tables, rest)
    elif kind == _TOUCH:
        user, name, deadline = rest
        if tables.find(VALUE, user, name, _DAWN) is not None:
            tables.touch(user, name, _never(deadline))
    elif kind == _GONE:
        tables.remove(*rest)
    elif kind != _START or rest[0] != _FORMAT:
        msg = "the journal was written by a newer multidb: upgrade multidb, or use another folder"
        raise ConfigurationError(msg)


def _replay_push(tables: Tables, record: Record) -> None:
    user, name, before, keep, item = record
    row = tables.find(LIST, user, name, _DAWN)
    run: Run | None = row[0] if row is not None else None
    if run is not None and before < run[3]:
        return
    buffer, start, stop, _ = pushed(run, dump(item), keep)
    tables.put(LIST, user, name, (buffer, start, stop, before + 1), NEVER)


def records_of(tables: Tables, now: int) -> Iterator[Record]:
    """Yield the records that say what *tables* hold. What changes meanwhile may be missed."""
    for kind, user, name, value, deadline in tables.rows(now):
        if kind == LIST:
            items = items_of(value)
            for before, item in enumerate(items, value[3] - len(items)):
                yield LIST, user, name, before, None, Fragment(item)
        else:
            yield _row(kind, user, name, value, deadline)


def _row(kind: str, user: str, name: str, value: Any, deadline: int) -> Record:
    return kind, user, name, _null(deadline), Fragment(value) if kind == VALUE else value


def _null(deadline: int) -> int | None:
    return None if deadline == NEVER else deadline


def _never(deadline: int | None) -> int:
    return NEVER if deadline is None else deadline


def line(record: Record) -> bytes:
    """Return the line for *record*."""
    encoded = dump(record)
    return b"%08x %b\n" % (crc32(encoded), encoded)


def checked(line: bytes) -> bytes | None:
    """Return the record on a line without its end; None when the line is damaged."""
    record = line[_CRC_BYTES:]
    return record if line[:_CRC_BYTES] == b"%08x " % crc32(record) and record else None


def start_line(inode: int = 0, size: int = 0, here: int = START_BYTES) -> bytes:
    """Return the first line of a journal. Its length is fixed: it is written last, when *here* is known."""
    encoded = dump([_START, _FORMAT, inode, size, here]).ljust(START_BYTES - _CRC_BYTES - 1)
    return b"%08x %b\n" % (crc32(encoded), encoded)


def read_start_line(line: bytes) -> tuple[int, int, int] | None:
    """Return inode, size and here from the first line of a journal; None when it is another line."""
    record = checked(line.removesuffix(b"\n"))
    match load(record) if record is not None else None:
        case [start, form, int(inode), int(size), int(here)] if (start, form) == (_START, _FORMAT):
            return inode, size, here
    return None


class Lines:
    """The records on the good lines of a part of a journal; iterated over, it knows how good the part is."""

    def __init__(self, content: bytes) -> None:
        """Take the bytes from the end of a line on."""
        self.good_bytes = 0
        """Up to the end of the last good line. What comes behind it is a write that was never finished."""
        self.damaged: list[bytes] = []
        """The bad lines before that."""
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        """Yield the records."""
        *lines, _ = self._content.split(b"\n")
        position = 0
        doubtful: list[bytes] = []
        for line in lines:
            position += len(line) + 1
            record = checked(line)
            if record is None:
                doubtful.append(line)
                continue
            yield record
            self.good_bytes = position
            self.damaged += doubtful
            doubtful.clear()

"""The journal of the state: a file of lines that several processes append to and follow."""

from __future__ import annotations

import os
from io import FileIO
from typing import TYPE_CHECKING, Final

from multidb._core.files import (
    create,
    make_folders,
    open_or_create,
    sync_file,
    sync_folder,
    try_lock,
    unlock,
    write_all,
)
from multidb._core.locks import held_elsewhere, locked
from multidb.state.backends._records import START_BYTES, Lines, line, read_start_line, replay, start_line
from multidb.state.backends._tables import Tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from multidb.state.backends._records import Record

_JOURNAL: Final = "state.journal"
_LOCK: Final = "state.lock"
_REWRITE_LOCK: Final = "state.rewrite"
_SUCCESSOR: Final = "state.journal.new"
_REJECTED: Final = "state.rejected"

LOCK_SECONDS: Final = 5.0
"""How long to wait for another process, which holds the lock for microseconds."""

_AT_ONCE: Final = 1024 * 1024
_SMALL: Final = 1024 * 1024
_ROUNDS: Final = 10
_FEW: Final = 64 * 1024


class Journal:
    """
    The journal as one process follows it: how far it was read, and the lock under which it is appended to.

    The methods are short and do not wait, so that an event loop may call them. All of them raise OSError.
    """

    def __init__(self, folder: Path, file: FileIO) -> None:
        """Follow *file*, of which nothing was read yet."""
        self.lock_path = folder / _LOCK
        self.damaged: list[bytes] = []
        """Lines with a wrong checksum: they count for nothing, and the next rewrite sets them aside."""
        self._path = os.fspath(folder / _JOURNAL)
        self._lock = _open(self.lock_path)
        self._file = file
        self._inode = os.fstat(file.fileno()).st_ino
        self._offset = 0
        self._needed = 0

    def close(self) -> None:
        """Close the files, and with them give up the lock."""
        self._file.close()
        self._lock.close()

    def try_lock(self) -> bool:
        """Take the lock if it is free; return whether it was."""
        return try_lock(self._lock.fileno())

    def unlock(self) -> None:
        """Give the lock back."""
        unlock(self._lock.fileno())

    @property
    def place(self) -> tuple[int, int]:
        """Which file this is, by its inode, and up to which byte it was read."""
        return self._inode, self._offset

    def is_current(self) -> bool:
        """Return whether everything was read that anyone wrote."""
        stat = os.stat(self._path)  # noqa: PTH116 -- on every call; a Path would cost as much again
        return stat.st_size == self._offset and stat.st_ino == self._inode

    def catch_up(self, tables: Tables) -> bool:
        """
        Under the lock: replay what others wrote, and cut off what a process that died left half-written.

        Return False where that is too much, or the file is not the one it was: then load it again.
        """
        if not self._read(tables):
            return False
        replaced = os.stat(self._path).st_ino != self._inode  # noqa: PTH116 -- as above
        if replaced and not (self._follow() and self._read(tables)):
            return False
        if os.fstat(self._file.fileno()).st_size > self._offset:
            self._file.truncate(self._offset)
        return True

    def append(self, records: Sequence[Record]) -> None:
        """Under the lock, caught up: write *records*, all of them, or none when this fails."""
        lines = b"".join([line(record) for record in records])
        try:
            write_all(self._file, lines)
        except BaseException:
            self._file.truncate(self._offset)
            raise
        self._offset += len(lines)

    @property
    def is_wasteful(self) -> bool:
        """Whether most of the file is obsolete, or some of it damaged."""
        return bool(self.damaged) or self._offset > 2 * self._needed + _SMALL

    def put_up_with(self) -> None:
        """After a rewrite that failed: do not call the file wasteful before it has doubled."""
        self._needed = self._offset
        self.damaged.clear()

    def read_all(self, size: int, tables: Tables, now: int) -> None:
        """Replay the first *size* bytes. This is for threads."""
        counted = self._replay(size, tables)
        tables.prune(now, most=counted)
        self._needed = int(self._offset * min(1.0, len(tables) / max(counted, 1)))

    def _read(self, tables: Tables) -> bool:
        size = os.fstat(self._file.fileno()).st_size
        if not 0 <= size - self._offset <= _AT_ONCE:
            return False
        self._replay(size, tables)
        return True

    def _replay(self, size: int, tables: Tables) -> int:
        """Replay the bytes up to *size*; return how many records that were."""
        lines = Lines(_read_bytes(self._file, self._offset, size))
        count = 0
        for record in lines:
            replay(record, tables)
            count += 1
        self._offset += lines.good_bytes
        self.damaged += lines.damaged
        return count

    def _follow(self) -> bool:
        """Go on in the file that took the place of this one, where that one says it goes on from here."""
        file = _File(self._path, "a+")
        start = read_start_line(_read_bytes(file, 0, START_BYTES))
        if start is None or start[0] != self._inode or start[1] > self._offset:
            file.close()
            return False
        _, size, here = start
        self._file.close()
        self._file = file
        self._inode = os.fstat(file.fileno()).st_ino
        self._offset += here - size
        self._needed = here
        self.damaged.clear()
        return True


class Successor:
    """
    A journal that is to take the place of another one. Its methods are for threads, one at a time.

    It starts with what is there, without what is obsolete, and goes on with what was appended to the other
    since its *place*. Others append until the last moment; who follows that one finds where to go on here.
    """

    def __init__(self, folder: Path, place: tuple[int, int]) -> None:
        """Start the file. Raises BackendTimeoutError when another process is at it, OSError."""
        self._folder = folder
        self._inode, self._start = place
        self._copied = self._start
        self._lock = _open(folder / _REWRITE_LOCK)
        if not try_lock(self._lock.fileno()):
            raise held_elsewhere(folder / _REWRITE_LOCK)
        (folder / _SUCCESSOR).unlink(missing_ok=True)
        self._old = _File(folder / _JOURNAL, "r")
        self._file = _open(folder / _SUCCESSOR)
        self.write(bytes(START_BYTES))

    def close(self) -> None:
        """Close the files, and with them let others make a successor."""
        for file in (self._file, self._old, self._lock):
            file.close()

    def write(self, lines: bytes) -> None:
        """Append a part of what is there. When this fails, it is over."""
        try:
            write_all(self._file, lines)
        except BaseException:
            self.close()
            raise

    def take_over(self, damaged: Sequence[bytes]) -> bool:
        """
        Take the place of the other journal, durably, and set its *damaged* lines aside. It is over then.

        Return False, with everything left as it is, when the other one is not the file it was.
        """
        try:
            self._begin()
            for _ in range(_ROUNDS):
                if self._copy(self._committed()) < _FEW:
                    break
            sync_file(self._file.fileno())
            with locked(self._folder / _LOCK, LOCK_SECONDS):
                return self._is_in_place(damaged)
        finally:
            self.close()

    def _begin(self) -> None:
        """Write the first line, now that it is known where the part is that it speaks of."""
        here = self._file.tell()
        self._file.seek(0)
        write_all(self._file, start_line(self._inode, self._start, here))
        self._file.seek(0, os.SEEK_END)

    def _is_in_place(self, damaged: Sequence[bytes]) -> bool:
        """Under the lock: copy the rest, rename the file; return False where the other one was replaced."""
        stat = (self._folder / _JOURNAL).stat()
        if stat.st_ino != self._inode or stat.st_size < self._copied:
            return False
        self._copy(stat.st_size)
        sync_file(self._file.fileno())
        _set_aside(self._folder / _REJECTED, damaged)
        (self._folder / _SUCCESSOR).replace(self._folder / _JOURNAL)
        sync_folder(self._folder)
        return True

    def _committed(self) -> int:
        # Asked for under the lock: what a writer is adding may be cut off again when its disk is full.
        with locked(self._folder / _LOCK, LOCK_SECONDS):
            return os.fstat(self._old.fileno()).st_size

    def _copy(self, size: int) -> int:
        """Copy what was appended up to *size*, but nothing half-written; return how many bytes that were."""
        content = _read_bytes(self._old, self._copied, size)
        lines = Lines(content)
        for _ in lines:
            pass
        write_all(self._file, content[: lines.good_bytes])
        self._copied += lines.good_bytes
        return lines.good_bytes


def load_journal(folder: Path, now: int) -> tuple[Journal, Tables]:
    """Return the journal in *folder*, both created when missing, and what it says. This is for threads."""
    make_folders(folder)
    path = folder / _JOURNAL
    with locked(folder / _LOCK, LOCK_SECONDS):
        if not path.exists():
            _create(path)
        file = _File(path, "a+")
        # Asked for under the lock, as in Successor.
        size = os.fstat(file.fileno()).st_size
    journal, tables = Journal(folder, file), Tables()
    journal.read_all(size, tables, now)
    return journal, tables


def sync(folder: Path) -> None:
    """Make durable what was appended, by whomever. This is for threads."""
    with (folder / _JOURNAL).open("r+b", buffering=0) as file:
        sync_file(file.fileno())


class _File(FileIO):
    """A file to let go of: with an event loop that is gone, in a forked child, in a cancelled task."""

    def __del__(self) -> None:
        self.close()  # And so without a ResourceWarning.


def _open(path: Path) -> _File:
    with open_or_create(path):
        return _File(path, "r+")


def _create(path: Path) -> None:
    with create(path) as file:
        write_all(file, start_line())
        sync_file(file.fileno())
    sync_folder(path.parent)


def _set_aside(path: Path, damaged: Sequence[bytes]) -> None:
    if damaged:
        with open_or_create(path) as file:
            file.seek(0, os.SEEK_END)
            write_all(file, b"".join(each + b"\n" for each in damaged))
            sync_file(file.fileno())


def _read_bytes(file: FileIO, start: int, end: int) -> bytes:
    """Return the bytes from *start* to *end*, fewer where the file ends before."""
    file.seek(start)
    parts = []
    while start < end and (part := file.read(end - start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)

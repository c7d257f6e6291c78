"""Journal: a file of lines that only grows, durable with every append and repaired after a crash."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from multidb._core.files import open_or_create, sync_file, sync_folder, translating, write_all
from multidb._core.values import load
from multidb.errors import BackendError

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

_log = logging.getLogger("multidb")

_BLOCK: Final = 64 * 1024


class JournalChangedError(Exception):
    """Somebody else removed the file or cut it short."""


class Journal:
    """
    A file of lines; *size* is how much of it is whole and durable.

    What is behind *size* was left by a failed append; it is never read, and cut before the next one.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; it is created by the first append."""
        self.path = path
        self.size = 0
        self._file: FileIO | None = None

    def recover(self) -> None:
        """Take over a file of an earlier process, and set aside what follows its last whole line."""
        with open_or_create(self.path) as file:
            size = file.seek(0, os.SEEK_END)
            tail = _after_last_newline(file, size)
            if tail and _is_whole(tail):
                file.seek(size)
                write_all(file, b"\n")
                size += 1
            elif tail:
                self._set_aside(tail)
                size -= len(tail)
                file.truncate(size)
            sync_file(file.fileno())
        self.size = size

    def append(self, lines: bytes) -> int:
        """
        Add whole *lines*, durably; return the offset they begin at.

        Raises JournalChangedError, BackendError. When it fails nothing is added, or `ambiguous` is set.
        """
        try:
            with translating():
                file = self._writable()
                write_all(file, lines)
                sync_file(file.fileno())
        except BackendError as error:
            error.ambiguous = not self._undone()
            raise
        offset = self.size
        self.size += len(lines)
        return offset

    def close(self) -> None:
        """Close the file; the next append opens it again."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # All that counts is synced.
                file.close()

    def _writable(self) -> FileIO:
        """Return the file, open at its end."""
        if self._file is None:
            self._file = open_or_create(self.path)
            if self.size == 0:
                sync_folder(self.path.parent)
            self._cut(self._file)
        elif os.fstat(self._file.fileno()).st_nlink == 0:
            self.close()
            raise JournalChangedError
        return self._file

    def _cut(self, file: FileIO) -> None:
        """Drop what lies behind the good end, and go there."""
        end = file.seek(0, os.SEEK_END)
        if end < self.size:
            self.close()
            raise JournalChangedError
        if end > self.size:
            file.truncate(self.size)
        file.seek(self.size)

    def _undone(self) -> bool:
        """Take back a failed append through another descriptor; return whether it is gone for good."""
        # After a failed sync the kernel takes the pages for clean: the old descriptor would sync nothing.
        self.close()
        with suppress(OSError, JournalChangedError):
            sync_file(self._writable().fileno())
            return True
        self.close()
        return False

    def _set_aside(self, tail: bytes) -> None:
        aside = self.path.with_suffix(".torn")
        with open_or_create(aside) as file:
            file.seek(0, os.SEEK_END)
            write_all(file, tail + b"\n")
            sync_file(file.fileno())
        sync_folder(aside.parent)
        _log.warning("%s ends in %d bytes of an unfinished line: moved to %s", self.path, len(tail), aside)


def _after_last_newline(file: FileIO, size: int) -> bytes:
    tail = b""
    while len(tail) < size and b"\n" not in tail:
        step = min(_BLOCK, size - len(tail))
        file.seek(size - len(tail) - step)
        tail = file.read(step) + tail
    return tail.rpartition(b"\n")[2]


def _is_whole(line: bytes) -> bool:
    """Return whether only the newline is missing: the beginning of a JSON object is never one itself."""
    try:
        return isinstance(load(line), dict)
    except ValueError:
        return False

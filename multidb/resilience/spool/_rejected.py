"""Rejected records: set aside with the reason, so that they stand in nobody's way and can be looked at."""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from multidb._core import files
from multidb._core.values import dump, load
from multidb.resilience.spool._lines import BadLineError, header_line, lines_of, parse
from multidb.resilience.spool._owners import REJECTED, remove_empty
from multidb.resilience.spool._segments import read_header, read_lines, scan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import FileIO
    from pathlib import Path

    from multidb.resilience.spool._lines import Header

_FILE_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rejection:
    """What is set aside: a *record*, or a line that is none, from which place in the spool, and why."""

    reason: str
    where: str
    time: float
    """When it was spooled, in seconds since 1970; 0 where that is not known."""
    record: bytes | None
    raw: bytes = b""
    """The line, where it holds no record."""


class RejectedFiles:
    """
    Appends to files `<name>.<number>.jsonl`, which have the form of segments. This is for one thread.

    A file is locked as long as it is used: another process may be moving its records back.
    """

    def __init__(self, folder: Path, name: str, header: Header) -> None:
        """Choose the folder, which is created when it is needed."""
        self._folder = folder
        self._name = name
        self._header = header
        self._number = 0

    def add(self, rejections: Sequence[Rejection], millis: int) -> None:
        """Write *rejections*, durably: all of them, or none when this fails. Raises OSError."""
        lines = lines_of([_encode(rejection) for rejection in rejections], millis)
        try:
            self._add(lines)
        except FileNotFoundError:
            self._add(lines)  # Another process has just put everything back, and removed the folder.

    def _add(self, lines: bytes) -> None:
        files.make_folders(self._folder)
        while not self._added(lines):
            self._number += 1

    def _added(self, lines: bytes) -> bool:
        """Append to the file of the present number; return False where it is busy, full or just being removed."""
        path = self._folder / f"{self._name}.{self._number}.jsonl"
        with files.open_or_create(path) as file:
            if not files.try_lock(file.fileno()) or not is_in_place(file, path):
                return False
            try:
                size = _good_size(file, path)
                if size > _FILE_BYTES:
                    return False
                self._append(file, size, lines)
            finally:
                files.unlock(file.fileno())
        return True

    def _append(self, file: FileIO, size: int, lines: bytes) -> None:
        try:
            file.truncate(size)
            file.seek(size)
            files.write_all(file, lines if size else header_line(self._header) + lines)
            files.sync_file(file.fileno())
            files.sync_folder(self._folder)
        except BaseException:
            with suppress(OSError):
                file.truncate(size)
            raise


class RejectedCount:
    """How many records are set aside for a store and namespace, by whatever process."""

    def __init__(self, root: Path, header: Header) -> None:
        """Start at 0."""
        self.records = 0
        self._root = root
        self._header = header
        self._known: dict[Path, tuple[tuple[int, int], int]] = {}

    def refresh(self) -> None:
        """Count again, where anything changed."""
        self._known = {
            path: self._counted(path)
            for path in rejected_paths(self._root)
            if path.parent.name == self._header.store
        }
        self.records = sum(records for _, records in self._known.values())

    def _counted(self, path: Path) -> tuple[tuple[int, int], int]:
        with suppress(OSError):
            stat = path.stat()
            mark = (stat.st_size, stat.st_mtime_ns)
            known = self._known.get(path)
            if known is not None and known[0] == mark:
                return known
            return mark, scan(0, path).records if read_header(path) == self._header else 0
        return (0, 0), 0


def rejected_paths(root: Path) -> list[Path]:
    """Return all files of rejected records."""
    return sorted(root.glob(f"*/{REJECTED}/*/*.jsonl"))


def read_rejections(path: Path) -> Iterator[tuple[bytes, Rejection | None]]:
    """Yield the lines of a file with what they say; None for one that is damaged. Raises OSError."""
    segment = scan(0, path)
    for line in read_lines(segment, segment.start):
        try:
            yield line, _decode(load(parse(line)[1]))
        except (BadLineError, KeyError, TypeError, ValueError):
            yield line, None


def remove_rejected(path: Path) -> None:
    """Remove a file, and the folders that are empty then."""
    path.unlink(missing_ok=True)
    store = path.parent
    remove_empty(store, store.parent, store.parent.parent, store.parent.parent.parent)


def is_in_place(file: FileIO, path: Path) -> bool:
    """Return whether *file*, locked now, is still what is at *path*."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _good_size(file: FileIO, path: Path) -> int:
    """Return how much of a file is whole: behind that is what a process that died left half-written."""
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return size
    segment = scan(0, path)
    return segment.size if segment.records else 0


def _encode(rejection: Rejection) -> bytes:
    fields: dict[str, Any] = {"reason": rejection.reason, "time": rejection.time, "where": rejection.where}
    if rejection.record is None:
        fields["raw"] = b64encode(rejection.raw).decode()
    else:
        fields["record"] = load(rejection.record)
    return dump(fields)


def _decode(fields: dict[str, Any]) -> Rejection:
    reason, where, time = str(fields["reason"]), str(fields["where"]), float(fields["time"])
    if "record" in fields:
        return Rejection(reason, where, time, dump(fields["record"]))
    return Rejection(reason, where, time, None, b64decode(fields["raw"]))

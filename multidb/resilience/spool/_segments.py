"""Segments: the numbered files of an owner, each written once from its beginning to its end."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from multidb._core import files
from multidb.resilience.spool._lines import MAX_LINE_BYTES, parse_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

    from multidb.resilience.spool._lines import Header

_NAME: Final = re.compile(r"(\d{10})\.jsonl")
_CHUNK: Final = 256 * 1024
_START: Final = 64 * 1024


@dataclass(slots=True)
class Segment:
    """A file, and how much of it counts: what is behind *size* was never acknowledged."""

    number: int
    path: Path
    start: int = 0
    """Where the first record begins, behind the header."""
    size: int = 0
    records: int = 0
    torn: int = 0
    """Bytes behind *size*, of a write that was never finished."""
    sealed: bool = True
    """Whether nothing is going to be added."""


def segment_path(folder: Path, number: int) -> Path:
    """Return where the segment of that number is."""
    return folder / f"{number:010d}.jsonl"


def segment_paths(folder: Path) -> list[tuple[int, Path]]:
    """Return the segments in *folder*, in order. Raises FileNotFoundError when there is no such folder."""
    found = ((_NAME.fullmatch(name), folder / name) for name in os.listdir(folder))  # noqa: PTH208 -- names will do
    return sorted((int(match[1]), path) for match, path in found if match is not None)


def read_header(path: Path) -> Header | None:
    """Return the header of a file; None when it is damaged or was not written whole."""
    with path.open("rb") as file:
        return parse_header(file.readline(_START))


def scan(number: int, path: Path) -> Segment:
    """Measure a segment that somebody else wrote. Raises OSError."""
    segment = Segment(number, path)
    with path.open("rb") as file:
        first = file.readline(_START)
        if parse_header(first) is not None:
            segment.start = segment.size = len(first)
        end = file.seek(segment.start)
        while chunk := file.read(_CHUNK):
            if lines := chunk.count(b"\n"):
                segment.records += lines
                segment.size = end + chunk.rindex(b"\n") + 1
            end += len(chunk)
    segment.torn = end - segment.size
    return segment


def read_lines(segment: Segment, offset: int, size: int | None = None) -> Iterator[bytes]:
    """
    Yield the lines from *offset* to *size*, or to that of *segment*.

    A file that is shorter by now, or gone, ends in an empty line. Raises OSError.
    """
    size = segment.size if size is None else size
    try:
        with segment.path.open("rb", buffering=_CHUNK) as file:
            file.seek(offset)
            while offset < size and (line := file.readline(min(MAX_LINE_BYTES, size - offset))):
                offset += len(line)
                yield line
    except FileNotFoundError:
        pass
    if offset < size:
        yield b""


def read_start(segment: Segment, offset: int) -> bytes:
    """Return the first bytes of the line at *offset*; none when they cannot be read."""
    with suppress(OSError), segment.path.open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(64)
    return b""


class Appender:
    """The segment that is being written. Every append is durable when it returns; after one that failed, `cut()`."""

    def __init__(self, folder: Path, number: int) -> None:
        """Create the file, durably. Raises OSError, and leaves nothing behind."""
        self.segment = Segment(number, segment_path(folder, number), sealed=False)
        self._file: FileIO | None = files.create(self.segment.path)
        try:
            files.sync_folder(folder)
        except BaseException:
            self.cut()
            raise

    @property
    def is_removed(self) -> bool:
        """Whether somebody removed the file: what is written to it goes nowhere."""
        return self._file is None or os.fstat(self._file.fileno()).st_nlink == 0

    def append(self, lines: bytes) -> None:
        """Write *lines* and sync them. Raises OSError."""
        if self._file is None:
            raise ValueError(self.segment.number)
        files.write_all(self._file, lines)
        files.sync_file(self._file.fileno())

    def cut(self) -> bool:
        """Take back what follows the good end; return whether it is gone for good. The segment is over."""
        # After a failed sync the kernel takes the pages for clean: the old descriptor would sync nothing.
        self.close()
        with suppress(OSError):
            if self.segment.size == 0:
                self.segment.path.unlink(missing_ok=True)
                return True
            with self.segment.path.open("r+b", buffering=0) as file:
                file.truncate(self.segment.size)
                files.sync_file(file.fileno())
            return True
        return False

    def close(self) -> None:
        """Close the file; all that counts is synced."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()

"""Full disks without a disk of one's own, and files with a torn tail."""

from __future__ import annotations

import shutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

from multidb.errors import ConfigurationError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """
    Let no file of this process grow beyond *size_bytes* (RLIMIT_FSIZE).

    The write to there is short, the next one fails with EFBIG. It holds for all threads, and for children started in
    the block. Files that are larger already can be read. Not on Windows.
    """
    if sys.platform == "win32":
        msg = "there is no limit on file sizes on Windows"
        raise ConfigurationError(msg)
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TornCopy(NamedTuple):
    """A copy whose tail is torn at *size* bytes."""

    size: int
    path: Path
    """The file; where a folder was copied, the file in the copy."""
    folder: Path
    """The copied folder, or the one with the file."""


def torn_copies(
    file: Path,
    into: Path,
    *,
    folder: Path | None = None,
    start: int | None = None,
    tail: Literal["missing", "zeros"] = "missing",
    step: int = 1,
) -> Iterator[TornCopy]:
    """
    Yield copies of *file*, torn at each offset (every *step*-th) from *start* to one before its end.

    *start* is by default that of the last line, where records are lines. *folder*: copy all of it, with *file* torn,
    for a store that reads a folder. *tail* `zeros`: the rest is there, as zeros, as after a power cut that the size
    survived and the content did not. Each copy is a folder in *into*, removed before the next.
    """
    content = file.read_bytes()
    first = start_of_last_line(content) if start is None else start
    if step < 1 or not 0 <= first <= len(content):
        msg = "start, step: must lie within the file"
        raise InvalidArgumentError(msg)
    for size in range(first, len(content), step):
        copy = into / f"torn-{size}"
        torn = _copied(file, copy, folder)
        torn.write_bytes(content[:size] + (bytes(len(content) - size) if tail == "zeros" else b""))
        try:
            yield TornCopy(size, torn, copy)
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def start_of_last_line(content: bytes) -> int:
    """Return the offset at which the last line of *content* begins, 0 where it is the only one."""
    return content.rstrip(b"\n").rfind(b"\n") + 1


def _copied(file: Path, copy: Path, folder: Path | None) -> Path:
    if folder is None:
        copy.mkdir(parents=True)
        return copy / file.name
    shutil.copytree(folder, copy, symlinks=True)
    return copy / file.relative_to(folder)

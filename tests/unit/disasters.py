"""What the tests of files do to them: a full disk, and a process that is killed."""

from __future__ import annotations

import resource
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """No file of this process may grow beyond *size* bytes: the write to there is short, the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def printed_until_killed(program: str, folder: Path, lines: int) -> list[int]:
    """Run *program* on *folder*, kill it after it printed that many lines of a number each; return all it printed."""
    process = subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as out:
        numbers = [int(out.readline()) for _ in range(lines)]
        process.kill()
        numbers += [int(line) for line in out.read().splitlines()]
    process.wait()
    return numbers

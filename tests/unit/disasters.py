"""What the tests of files do to them: a process that is killed."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


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

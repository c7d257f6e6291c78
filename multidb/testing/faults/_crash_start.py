"""
Run a Python program that does not outlive its parent: `python _crash_start.py PARENT PROGRAM [ARGUMENTS…]`.

PROGRAM is a path, or `-c` and then the source.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def _main() -> None:
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        # Fires when the thread that started us ends: a Crasher's waits for us.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    program, sys.argv = sys.argv[2], sys.argv[2:]
    sys.path.pop(0)
    if program == "-c":
        source = sys.argv.pop(1)
        exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102 -- the test's own program
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(program)))  # noqa: PTH100, PTH120 -- as python does
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    _main()

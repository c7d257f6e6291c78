"""One supervised process: started, watched and ended by pid, see `_supervisor`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from multidb.errors import ConfigurationError
from multidb.testing.servers import _supervisor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from multidb.testing.servers._account import Account


class SupervisedProcess:
    """
    A place for one process at a time that ends, with all its children, no later than this interpreter.

    *remove* is a folder to remove at the end. The end is signal *farewell*, SIGKILL after *grace_seconds*.
    """

    def __init__(
        self, *, remove: Path, log: Path, farewell: int, grace_seconds: float, keep_open: Sequence[int] = ()
    ) -> None:
        """Start the supervisor, no server yet. It inherits the files *keep_open* and so any lock on them."""
        self.pid: int | None = None
        self._exit_code: int | None = None
        self._log = log
        self._unread = b""
        self._end_seconds = grace_seconds + 10
        orders = {
            "parent": os.getpid(),
            "remove": str(remove),
            "farewell": farewell,
            "grace_seconds": grace_seconds,
        }
        with log.open("ab") as stderr:
            self._supervisor = subprocess.Popen(  # noqa: S603 -- this interpreter, a script of ours
                [sys.executable, "-I", "-S", _supervisor.__file__, json.dumps(orders)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                pass_fds=keep_open,
                cwd="/",
                # A Ctrl-C in the terminal is for the test run, which then stops its servers in order.
                start_new_session=True,
            )

    def run(self, argv: Sequence[str], *, cwd: Path, account: Account | None = None) -> int:
        """Start *argv* in folder *cwd*, as *account* if given, with output to the log; return its pid."""
        order: dict[str, object] = {
            "argv": list(argv),
            "cwd": str(cwd),
            "log": str(self._log),
            "env": _environment(cwd),
            "account": None if account is None else [account.uid, account.gid],
        }
        self._send(order)
        answer = self._receive(time.monotonic() + 10)
        if answer is None or "pid" not in answer:
            msg = f"the supervisor of {argv[0]} is gone"
            raise ConfigurationError(msg)
        self.pid, self._exit_code = answer["pid"], None
        return answer["pid"]

    def exit_code(self, timeout_seconds: float = 0.0) -> int | None:
        """Wait up to *timeout_seconds* for the process to end; return its exit code, None if it runs on."""
        if self.pid is not None:
            answer = self._receive(time.monotonic() + timeout_seconds)
            if answer is not None:
                self.pid, self._exit_code = None, answer["exit"]
        return self._exit_code

    def close(self) -> None:
        """End the process, its children and the supervisor, and remove the folder."""
        # Said in words: a child forked by the test run holds our end of the pipe open.
        with contextlib.suppress(ConfigurationError):
            self._send({"end": True})
        try:
            self._supervisor.wait(self._end_seconds)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()
        for pipe in (self._supervisor.stdin, self._supervisor.stdout):
            if pipe is not None:
                pipe.close()
        self.pid = None

    def _send(self, order: dict[str, object]) -> None:
        assert self._supervisor.stdin is not None  # noqa: S101 -- for mypy: it is a pipe
        try:
            self._supervisor.stdin.write(json.dumps(order).encode() + b"\n")
        except BrokenPipeError as error:
            msg = "a server's supervisor was killed"
            raise ConfigurationError(msg) from error

    def _receive(self, deadline: float) -> dict[str, int] | None:
        """Return the supervisor's next answer; None at *deadline*; an exit when it is gone itself."""
        assert self._supervisor.stdout is not None  # noqa: S101 -- for mypy: it is a pipe
        file = self._supervisor.stdout.fileno()
        poll = select.poll()  # not select.select(), which refuses files above 1023
        poll.register(file, select.POLLIN)
        while b"\n" not in self._unread:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            received = os.read(file, 4096)
            if not received:
                return {"exit": self._supervisor.wait()}
            self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, int] = json.loads(line)
        return answer


def _environment(home: Path) -> dict[str, str]:
    """Return an environment in which no PGOPTIONS or locale of the developer changes what a test sees."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "HOME": str(home), "LC_ALL": "C", "TZ": "UTC"}

"""
The process between a test run and one server: however the run ends, the server and its files go with it.

Started as a script, `python -I -S _supervisor.py ORDERS`; only stdlib, so it is up in a few milliseconds.
It reads a JSON object a line: `{"argv": …}` starts the server, `{"end": true}` ends everything. It answers
`{"pid": n}` and, once the server and every process below it are gone, `{"exit": code}`.

Why a process of its own: PR_SET_PDEATHSIG fires when the *thread* that forked ends, so a server started from
a worker thread would die with that thread, and setting it takes a preexec_fn, which may deadlock in a program
with threads. This process has one thread. It watches its parent through a pidfd, and as a subreaper it
inherits a killed PostgreSQL's backends, so that "everything below me is dead" is a fact and not a guess.
"""

# ruff: noqa: PTH123, PTH208 -- importing pathlib takes longer than all the rest of the start
from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
IPC_RMID = 0


def descendants(root: int) -> list[int]:
    """Return the pids of the live processes below *root*, parents first; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(FileNotFoundError):
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                state, parent = process_state(int(entry))
                if state not in {"", "Z"}:
                    children.setdefault(parent, []).append(int(entry))
    found = list(children.get(root, ()))
    for pid in found:
        found += children.get(pid, ())
    return found


def process_state(pid: int) -> tuple[str, int]:
    """Return the letter of *pid* in /proc, T when it is stopped, and its parent; "" and 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return "", 0
    return state, int(parent)


def send_signal(pid: int, number: int) -> None:
    """Send signal *number* to *pid*, which may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Supervisor:
    """Runs one server at a time for *parent*; see the module."""

    def __init__(self, *, parent: int, remove: str, farewell: int, grace_seconds: float) -> None:
        """End the server by signal *farewell*, SIGKILL after *grace_seconds*; then remove folder *remove*."""
        self._remove = remove
        self._farewell = farewell
        self._grace_seconds = grace_seconds
        self._server: int | None = None
        self._started: set[int] = set()
        self._unread = b""
        self._ended = False
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._signals = _signal_pipe()
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self._poll.register(self._signals, select.POLLIN)
        self._parent = _open_process(parent)
        if self._parent is not None:
            self._poll.register(self._parent, select.POLLIN)
        # Dead before it was watched: the pidfd, if any, is somebody else's.
        self._ended = os.getppid() != parent

    def serve(self) -> None:
        """Obey until the parent hangs up or dies, then end everything."""
        while not self._ended:
            self._wait(None)
        self._end_server()
        if self._remove:
            import shutil

            shutil.rmtree(self._remove, ignore_errors=True)

    def _wait(self, timeout_seconds: float | None) -> None:
        """Handle what happens next, for at most *timeout_seconds*."""
        for file, _ in self._poll.poll(None if timeout_seconds is None else timeout_seconds * 1000):
            if file == self._signals:
                self._ended |= any(number != signal.SIGCHLD for number in os.read(file, 4096))
                self._reap()
            elif file == 0:
                self._read_orders()
            else:
                self._ended = True
                self._poll.unregister(file)

    def _read_orders(self) -> None:
        received = os.read(0, 65536)
        if not received:
            self._ended = True
            self._poll.unregister(0)
        *lines, self._unread = (self._unread + received).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "argv" in order and not self._ended:
                self._server = self._start(**order)
                self._started.add(self._server)
                _answer(pid=self._server)
            else:
                self._ended = True

    def _start(
        self, *, argv: list[str], cwd: str, log: str, env: dict[str, str], account: list[int] | None
    ) -> int:
        supervisor = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), 1)
            os.dup2(1, 2)
            os.chdir(cwd)
            if account is not None:
                os.setgroups([])
                os.setgid(account[1])
                os.setuid(account[0])
            # After setuid, which clears it: the server does not outlive a supervisor that was killed itself.
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != supervisor:
                os._exit(1)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execve(argv[0], argv, env)  # noqa: S606 -- what the order names
        except OSError as error:
            os.write(2, f"cannot run {argv[0]}: {error}\n".encode())
        finally:
            os._exit(127)

    def _reap(self) -> None:
        exited: int | None = None
        with contextlib.suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                if reaped[0] == self._server:
                    exited = os.waitstatus_to_exitcode(reaped[1])
        if exited is not None:
            self._server = None
            self._kill_everything()
            _answer(exit=exited)

    def _end_server(self) -> None:
        deadline = time.monotonic() + self._grace_seconds
        if self._server is not None:
            perhaps_paused = [self._server, *descendants(self._server)]
            self._started.update(perhaps_paused)
            send_signal(self._server, self._farewell)
            for pid in perhaps_paused:
                send_signal(pid, signal.SIGCONT)
        while self._server is not None and (left := deadline - time.monotonic()) > 0:
            self._wait(left)
        self._kill_everything()

    def _kill_everything(self) -> None:
        """Kill and reap until there is no child: the children of one that dies become ours."""
        if self._server is not None:
            send_signal(self._server, signal.SIGKILL)
            self._server = None
        with contextlib.suppress(ChildProcessError):
            while True:
                living = descendants(os.getpid())
                self._started.update(living)
                for pid in living:
                    send_signal(pid, signal.SIGKILL)
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
                time.sleep(0.002)
        _remove_shared_memory(self._started)


def _remove_shared_memory(creators: set[int]) -> None:
    """Remove the System V shared memory of dead processes, which the kernel keeps if they were killed."""
    with contextlib.suppress(FileNotFoundError), open("/proc/sysvipc/shm", encoding="ascii") as file:
        for _, number, _, _, creator, _, users, *_ in map(str.split, file.readlines()[1:]):
            if int(creator) in creators and users == "0":
                _libc().shmctl(int(number), IPC_RMID, None)


def _answer(**message: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")


def _signal_pipe() -> int:
    """Return a file that gets a byte, the signal's number, when a child ends or this process is told to."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reading


def _open_process(pid: int) -> int | None:
    """Return a file that is readable once *pid* ended; None without pidfds, where its closed pipe must do."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _libc().prctl(option, value)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


if __name__ == "__main__":
    Supervisor(**json.loads(sys.argv[1])).serve()

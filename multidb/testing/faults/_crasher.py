"""A program that is killed over and over, and the ledger of what it was promised."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import IO, TYPE_CHECKING, Any, Self

from multidb.errors import InvalidArgumentError
from multidb.testing.faults import _crash_start, child
from multidb.testing.faults._seed import note_seed, pick_seed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

_POLL_SECONDS = 0.02
_SHOWN_CHARACTERS = 2000
_SHOWN_IDENTIFIERS = 5


class CrasherError(AssertionError):
    """A program ended by itself, or said nothing in time. The message has the end of what it printed."""


class _StoppedError(Exception):
    """Another worker has failed, or the run was cancelled."""


@dataclass
class Ledger:
    """What the programs said, over all rounds and workers; order is kept within a worker."""

    seed: int
    sent: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    points: Counter[str] = field(default_factory=Counter)
    """How often each named point was passed."""
    kills: int = 0
    kills_by: Counter[str] = field(default_factory=Counter)
    """The same by how: `seconds`, `acknowledgements`, `point NAME`."""
    seconds: float = 0.0

    def lost(self, stored: Iterable[str]) -> list[str]:
        """Return the identifiers that were acknowledged and are not *stored*."""
        there = set(stored)
        return [each for each in dict.fromkeys(self.acknowledged) if each not in there]

    def doubled(self, stored: Iterable[str]) -> list[str]:
        """Return the identifiers that are *stored* more than once."""
        return [each for each, count in Counter(stored).items() if count > 1]

    def unknown(self, stored: Iterable[str]) -> list[str]:
        """Return the identifiers that are *stored* and that nobody sent."""
        known = {*self.sent, *self.acknowledged}
        return [each for each in dict.fromkeys(stored) if each not in known]

    def check(self, stored: Iterable[str]) -> None:
        """Raise AssertionError, with the seed, unless nothing in *stored* is lost, doubled or unknown."""
        stored = list(stored)
        wrong = {"lost": self.lost(stored), "doubled": self.doubled(stored), "unknown": self.unknown(stored)}
        if any(wrong.values()):
            parts = [
                f"{len(found)} {what} {found[:_SHOWN_IDENTIFIERS]}" for what, found in wrong.items() if found
            ]
            error = AssertionError(f"{self}: {', '.join(parts)}")
            note_seed(error, self.seed)
            raise error

    def __str__(self) -> str:
        return (
            f"{len(self.sent)} sent, {len(self.acknowledged)} acknowledged, {self.kills} kills in"
            f" {self.seconds:.1f} s, seed {self.seed}"
        )


class Crasher:
    """
    Runs a Python program, kills it, and runs it again, in one or several *workers* at once.

    *program* is a path, or source text where it has a newline; it gets *arguments*, and *environment* on top of ours.
    It says what it does by `multidb.testing.faults.child`; what it prints is shown when something goes wrong. Each
    round draws one of the ways to die that are given, from the *seed* (see `pick_seed()`) and the number of the worker:

    *seconds*: (least, most) after its first word; *acknowledgements*: after (least, most) of them in a round; *points*:
    names of points, at one of the first *passes* times it comes there. The last two are exact; with seconds, the seed
    repeats the plan and not the moment.

    A round in which it says nothing for *silent_seconds*, or ends before it is killed, is a CrasherError. What the
    program starts in its own process group is killed with it. On Linux it does not outlive this process, however that
    ends.

        crasher = Crasher(Path("bot.py"), [folder], seconds=(0.0, 0.3), seed=7)
        ledger = crasher.run(kills=200)
        ledger.check(stored)
    """

    def __init__(
        self,
        program: Path | str,
        arguments: Sequence[str | os.PathLike[str]] = (),
        *,
        workers: int = 1,
        seconds: tuple[float, float] | None = None,
        acknowledgements: tuple[int, int] | None = None,
        points: Sequence[str] = (),
        passes: int = 3,
        environment: Mapping[str, str] | None = None,
        silent_seconds: float = 30.0,
        seed: int | None = None,
    ) -> None:
        """Remember how; nothing runs before `run()`."""
        if seconds is None and acknowledgements is None and not points:
            msg = "seconds, acknowledgements, points: give at least one way to die"
            raise InvalidArgumentError(msg)
        if workers < 1 or passes < 1:
            msg = "workers, passes: must be at least 1"
            raise InvalidArgumentError(msg)
        self.seed = pick_seed(seed)
        self._program = program
        self._arguments = [os.fspath(each) for each in arguments]
        self._workers = workers
        self._seconds = seconds
        self._acknowledgements = acknowledgements
        self._points = tuple(points)
        self._passes = passes
        self._environment = dict(environment or {})
        self._silent_seconds = silent_seconds

    def run(self, kills: int, *, finish_seconds: float | None = 60.0) -> Ledger:
        """
        Kill so many times, over all workers; return what was said.

        Then one worker after the other runs once more, with `child.is_last()`, and must end well within
        *finish_seconds*: to replay what is pending. None leaves that out. Blocks; in an event loop see `run_async()`.
        """
        return self._run(kills, finish_seconds, threading.Event())

    async def run_async(self, kills: int, *, finish_seconds: float | None = 60.0) -> Ledger:
        """Do as `run()`, in a thread. Cancelled, it kills what runs, and returns when that is gone."""
        stopping = threading.Event()
        running = asyncio.ensure_future(asyncio.to_thread(self._run, kills, finish_seconds, stopping))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stopping.set()
            await asyncio.wait({running})
            running.exception()
            raise

    def _run(self, kills: int, finish_seconds: float | None, stopping: threading.Event) -> Ledger:
        started = time.monotonic()
        ledger = Ledger(self.seed)
        workers = [_Worker(self, number, ledger, stopping) for number in range(self._workers)]
        with ThreadPoolExecutor(self._workers, thread_name_prefix="multidb-crasher") as pool:
            try:
                shares = [(kills + number) // self._workers for number in range(self._workers)]
                list(pool.map(self._work, workers, shares))
                for worker in workers:
                    if finish_seconds is not None and not stopping.is_set():
                        pool.submit(worker.finish, finish_seconds).result()
            except BaseException as error:
                stopping.set()  # Or leaving the block would wait for all that was planned.
                note_seed(error, self.seed)
                raise
        ledger.seconds = time.monotonic() - started
        return ledger

    def _work(self, worker: _Worker, kills: int) -> None:
        try:
            for _ in range(kills):
                worker.run_until_killed(self._ways())
        except _StoppedError:
            return  # Whoever stopped it has the reason.
        except BaseException:
            worker.stopping.set()
            raise

    def _ways(self) -> list[tuple[str, Any]]:
        ways: list[tuple[str, Any]] = [(f"point {name}", self._passes) for name in self._points]
        if self._seconds is not None:
            ways.append(("seconds", self._seconds))
        if self._acknowledgements is not None:
            ways.append(("acknowledgements", self._acknowledgements))
        return ways


class _Worker:
    """Runs one process after the other. Belongs to one thread at a time."""

    def __init__(self, crasher: Crasher, number: int, ledger: Ledger, stopping: threading.Event) -> None:
        self.stopping = stopping
        self._crasher = crasher
        self._number = number
        self._ledger = ledger
        self._random = Random(f"{crasher.seed}/{number}")  # noqa: S311 -- to be repeated, not to be secret
        self._round = 0

    def run_until_killed(self, ways: list[tuple[str, Any]]) -> None:
        """Start the program, and see it die in one of *ways*."""
        way, limits = self._random.choice(ways)
        kill_after_seconds = float("inf")
        extra = {}
        if way == "seconds":
            kill_after_seconds = self._random.uniform(*limits)
        elif way == "acknowledgements":
            extra = {child.ACKNOWLEDGEMENTS: str(self._random.randint(*limits))}
        else:
            extra = {child.POINT: f"{self._random.randint(1, limits)} {way.removeprefix('point ')}"}
        with self._process(extra) as process:
            process.follow(kill_after_seconds)
            code = process.end()
        if code != -signal.SIGKILL:
            raise self._failed(process, f"ended by itself with {code}")
        self._ledger.kills += 1
        self._ledger.kills_by[way] += 1

    def finish(self, seconds: float) -> None:
        """Run the program to its end."""
        with self._process({child.LAST: "1"}) as process:
            code = process.wait(seconds)
        if code != 0:
            raise self._failed(process, "did not end in time" if code is None else f"ended with {code}")

    def _process(self, extra: dict[str, str]) -> _Process:
        crasher = self._crasher
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
            **crasher._environment,  # noqa: SLF001 -- its own worker
            **extra,
            child.ROUND: str(self._round),
            child.WORKER: str(self._number),
        }
        self._round += 1
        argv = _argv(crasher._program, crasher._arguments)  # noqa: SLF001
        silent_seconds = crasher._silent_seconds  # noqa: SLF001
        return _Process(argv, environment, self._ledger, self.stopping, silent_seconds)

    def _failed(self, process: _Process, how: str) -> CrasherError:
        error = CrasherError(
            f"worker {self._number}, round {self._round - 1}: the program {how}; it printed:\n{process.printed}"
        )
        note_seed(error, self._ledger.seed)
        return error


class _Process:
    """One run of the program; for `with`, which leaves nothing of it."""

    def __init__(
        self,
        argv: list[str],
        environment: dict[str, str],
        ledger: Ledger,
        stopping: threading.Event,
        silent_seconds: float,
    ) -> None:
        self.printed = ""
        self._ledger = ledger
        self._stopping = stopping
        self._silent_seconds = silent_seconds
        self._unread = b""
        self._first_word: float | None = None
        self._ended = False
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the rest
        self._words, theirs = os.pipe()
        try:
            self._popen = subprocess.Popen(  # noqa: S603 -- this interpreter and the test's own program
                argv,
                env={**environment, child.FILE: str(theirs)},
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._words)
            self._output.close()
            raise
        finally:
            os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - _SHOWN_CHARACTERS))
        self.printed = self._output.read().decode(errors="replace")
        self._output.close()
        os.close(self._words)

    def follow(self, kill_after_seconds: float) -> None:
        """Listen until it is time to kill it, or it has ended."""
        heard = time.monotonic()
        while not self._ended:
            now = time.monotonic()
            if self._first_word is not None and now >= self._first_word + kill_after_seconds:
                return
            if self._stopping.is_set():
                raise _StoppedError
            if now > heard + self._silent_seconds:
                self.end()
                msg = f"the program said nothing for {self._silent_seconds:g} s"
                raise CrasherError(msg)
            if self._listen(self._wait_seconds(kill_after_seconds)):
                heard = time.monotonic()

    def wait(self, seconds: float) -> int | None:
        """Listen until it has ended; return its exit code, None when that takes longer than *seconds*."""
        deadline = time.monotonic() + seconds
        while not self._ended and time.monotonic() < deadline and not self._stopping.is_set():
            self._listen(_POLL_SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(max(0.0, deadline - time.monotonic()))
        return None

    def end(self) -> int:
        """Kill it and all that it started; hear what it said to the end; return its exit code."""
        if self._popen.returncode is None:
            # Not reaped yet, so that its number, and its group's, can be nobody else's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
        while not self._ended and self._listen(_POLL_SECONDS):
            pass
        return self._popen.returncode

    def _wait_seconds(self, kill_after_seconds: float) -> float:
        if self._first_word is None:
            return _POLL_SECONDS
        return min(_POLL_SECONDS, max(0.0, self._first_word + kill_after_seconds - time.monotonic()))

    def _listen(self, seconds: float) -> bool:
        """Take in what comes within *seconds*; return whether something came."""
        poll = select.poll()
        poll.register(self._words, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return False
        received = os.read(self._words, 65536)
        self._ended = not received
        if received and self._first_word is None:
            self._first_word = time.monotonic()
        *lines, self._unread = (self._unread + received).split(b"\n")
        for line in lines:
            self._note(line.decode(errors="replace"))
        return bool(received)

    def _note(self, line: str) -> None:
        what, _, rest = line.partition(" ")
        if what == "sent":
            self._ledger.sent.append(rest)
        elif what == "ack":
            self._ledger.acknowledged.append(rest)
        elif what == "point":
            self._ledger.points[rest] += 1


def _argv(program: Path | str, arguments: list[str]) -> list[str]:
    is_source = isinstance(program, str) and "\n" in program
    what = ["-c", str(program)] if is_source else [str(program)]
    return [sys.executable, _crash_start.__file__, str(os.getpid()), *what, *arguments]

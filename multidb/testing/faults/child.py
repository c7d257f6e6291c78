"""
What a program says that a `Crasher` runs: imported by the program itself, and without effect where nobody listens.

    from multidb.testing.faults import child

    child.sent(event_id)
    await multidb.logs.log_event(…, id=event_id)
    child.acknowledged(event_id)
    child.point("before the flush")

It writes lines to a pipe: `sent ID`, `ack ID`, `point NAME`. A program in another language does the same, to the file
whose number is in MULTIDB_CRASHER_FILE.
"""

from __future__ import annotations

import os
import signal

FILE = "MULTIDB_CRASHER_FILE"
POINT = "MULTIDB_CRASHER_POINT"
ACKNOWLEDGEMENTS = "MULTIDB_CRASHER_ACKNOWLEDGEMENTS"
ROUND = "MULTIDB_CRASHER_ROUND"
WORKER = "MULTIDB_CRASHER_WORKER"
LAST = "MULTIDB_CRASHER_LAST"


def sent(identifier: str) -> None:
    """Say that *identifier* is about to be written: from now on it may be stored."""
    _say(f"sent {identifier}")


def acknowledged(identifier: str) -> None:
    """Say that the write of *identifier* was acknowledged: from now on it must be stored."""
    _say(f"ack {identifier}")
    if ACKNOWLEDGEMENTS in os.environ:
        _count_down(ACKNOWLEDGEMENTS, os.environ[ACKNOWLEDGEMENTS])


def point(name: str) -> None:
    """Say that the program is at *name*; it is killed here when it is this point's turn. Costs some microseconds."""
    _say(f"point {name}")
    turn = os.environ.get(POINT)
    if turn is None:
        return
    times, _, place = turn.partition(" ")
    if place == name:
        _count_down(POINT, times, f" {place}")


def round_number() -> int:
    """Return how often this worker was started before: 0 in the first round."""
    return int(os.environ.get(ROUND, "0"))


def worker_number() -> int:
    """Return which of the workers this is, from 0 on."""
    return int(os.environ.get(WORKER, "0"))


def is_last() -> bool:
    """Return whether this round ends by itself: finish what is pending, and return."""
    return os.environ.get(LAST) == "1"


def _count_down(variable: str, times: str, rest: str = "") -> None:
    """Die when it is time, else take note that it is once less."""
    if int(times) <= 1:
        # Its own hand, as only this is exact: whoever else kills it comes a little later.
        os.kill(os.getpid(), signal.SIGKILL)
    os.environ[variable] = f"{int(times) - 1}{rest}"


def _say(line: str) -> None:
    file = os.environ.get(FILE)
    if file is None:
        return
    if "\n" in line:
        msg = "an identifier, or a name, of one line"
        raise ValueError(msg)
    # One write, unbuffered: whole or not at all, also under SIGKILL.
    os.write(int(file), f"{line}\n".encode())

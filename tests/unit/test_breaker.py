"""The breaker: when it opens, how it finds its way back, and that a server that comes and goes is left alone longer."""

from __future__ import annotations

import pytest

from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ConflictError,
    OverloadedError,
)
from multidb.resilience.breaker import Breaker, BreakerPolicy, BreakerState

CLOSED, OPEN, RECOVERING = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.RECOVERING

LOST = BackendUnavailableError("lost", ambiguous=True)
REFUSED = BackendUnavailableError("refused")
LATE = BackendTimeoutError("late", ambiguous=True)
LOCKED = BackendTimeoutError("a lock")
POOL = OverloadedError("our own pool")


def full() -> OverloadedError:
    error = OverloadedError("the disk")
    error.condition = "full"
    return error


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def changes() -> list[tuple[BreakerState, BreakerState]]:
    return []


@pytest.fixture
def breaker(clock: Clock, changes: list[tuple[BreakerState, BreakerState]]) -> Breaker:
    return Breaker(now=clock, on_change=lambda *change: changes.append(change), seed=1)


def recover(breaker: Breaker) -> None:
    while not breaker.probed():
        pass
    breaker.recovered()


def test_starts_closed(breaker: Breaker, clock: Clock) -> None:
    """Calls go to a server of which nothing is known."""
    assert breaker.allows
    assert (CLOSED, 100.0, None) == (breaker.state, breaker.since, breaker.last_error)


def test_three_in_a_row(breaker: Breaker, clock: Clock, changes: list[object]) -> None:
    """A bot that sees a message a minute notices, too: the third failure in a row opens it, however far apart."""
    for _ in range(2):
        breaker.failed(LOST)
        clock.now += 60
        assert breaker.allows
    breaker.failed(LOST)

    assert (OPEN, 220.0, LOST) == (breaker.state, breaker.since, breaker.last_error)
    assert [(CLOSED, OPEN)] == changes


def test_success_between(breaker: Breaker) -> None:
    """Two failures and a success, over and over, are no outage as long as most calls succeed."""
    for _ in range(20):
        breaker.failed(LOST)
        breaker.failed(LOST)
        for _ in range(4):
            breaker.succeeded()

    assert breaker.allows


def test_share_of_many(breaker: Breaker) -> None:
    """Among many calls, one half of failures opens it."""
    for _ in range(4):
        breaker.succeeded()
        breaker.failed(LOST)
    assert breaker.allows
    breaker.succeeded()
    breaker.failed(LOST)

    assert not breaker.allows


def test_window(breaker: Breaker, clock: Clock) -> None:
    """Failures of long ago do not count any more."""
    for _ in range(4):
        breaker.succeeded()
        breaker.failed(LOST)
    clock.now += 10.1
    breaker.succeeded()
    breaker.failed(LOST)

    assert breaker.allows


@pytest.mark.parametrize("error", [REFUSED, full()], ids=["refused", "full"])
def test_definite(breaker: Breaker, error: Exception) -> None:
    """A server that refuses to serve has said it all."""
    breaker.failed(error)

    assert OPEN is breaker.state


@pytest.mark.parametrize(
    "error",
    [POOL, ConflictError("no"), BackendError("bad data"), ValueError("a bug")],
    ids=lambda error: type(error).__name__,
)
def test_not_the_server(breaker: Breaker, error: Exception) -> None:
    """What is not the server's fault does not count, however often."""
    for _ in range(100):
        breaker.failed(error)

    assert breaker.allows


def test_pool_is_no_success(breaker: Breaker) -> None:
    """A pool that is empty because the server hangs does not make it look alive."""
    breaker.failed(LOST)
    breaker.failed(POOL)
    breaker.failed(LOST)
    breaker.failed(POOL)
    breaker.failed(LOST)

    assert OPEN is breaker.state


def test_refused_data_is_an_answer(breaker: Breaker) -> None:
    """A server that refuses data is there."""
    breaker.failed(LOST)
    breaker.failed(LOST)
    breaker.failed(ConflictError("no"))
    breaker.failed(LOST)

    assert breaker.allows


def test_hang(breaker: Breaker, clock: Clock) -> None:
    """The first call without an answer opens it, when nobody else got one since it began."""
    clock.now += 1
    breaker.failed(LATE, began=100.5)

    assert OPEN is breaker.state


def test_hang_of_one(breaker: Breaker, clock: Clock) -> None:
    """While others are answered, one that is not is one failure; so is one that waited for a lock."""
    clock.now += 1
    breaker.succeeded()
    breaker.failed(LATE, began=100.5)
    breaker.failed(LOCKED, began=101.0)

    assert breaker.allows


def test_late_failures(breaker: Breaker, changes: list[object]) -> None:
    """Calls that were under way when it opened change nothing when they fail, nor when they succeed."""
    breaker.failed(REFUSED)
    for _ in range(5):
        breaker.failed(LOST)
        breaker.succeeded()

    assert (OPEN, REFUSED) == (breaker.state, breaker.last_error)
    assert 1 == len(changes)


def test_probes(breaker: Breaker, changes: list[object]) -> None:
    """Two good probes in a row, then what it missed, then it is closed."""
    breaker.failed(REFUSED)

    assert [False, False, False, True] == [breaker.probed(error) for error in (None, LOST, None, None)]
    assert RECOVERING is breaker.state
    assert not breaker.allows
    breaker.recovered()
    assert breaker.allows
    assert [(CLOSED, OPEN), (OPEN, RECOVERING), (RECOVERING, CLOSED)] == changes


def test_starts_anew(breaker: Breaker) -> None:
    """After an outage it takes as many failures as before it."""
    breaker.failed(REFUSED)
    recover(breaker)
    breaker.failed(LOST)
    breaker.failed(LOST)

    assert breaker.allows


def test_fails_while_recovering(breaker: Breaker) -> None:
    """One failure of any kind while it recovers, and it is open; the pauses go on from where they were."""
    breaker.failed(REFUSED)
    pauses = [breaker.pause() for _ in range(5)]
    breaker.probed()
    breaker.probed()
    breaker.failed(LATE)

    assert (OPEN, LATE) == (breaker.state, breaker.last_error)
    assert breaker.pause() > min(pauses)
    assert not breaker.probed()


def test_pauses(breaker: Breaker) -> None:
    """Pauses start at a quarter of a second, grow to one, and are not the same for everybody."""
    breaker.failed(REFUSED)
    pauses = [breaker.pause() for _ in range(50)]
    other = Breaker(seed=2)
    other.failed(REFUSED)

    assert 0.25 == pauses[0]
    assert all(0.25 <= pause <= 1.0 for pause in pauses)
    assert max(pauses) > 0.9
    assert pauses != [other.pause() for _ in range(50)]


def test_pause_after_good_probe(breaker: Breaker) -> None:
    """The second probe comes soon after the first good one."""
    breaker.failed(REFUSED)
    for _ in range(20):
        breaker.pause()
    breaker.probed()

    assert 0.25 == breaker.pause()


def test_flapping(breaker: Breaker, clock: Clock) -> None:
    """A server that is gone again within a minute is left alone twice as long, up to 15 seconds."""
    holds = []
    for _ in range(9):
        breaker.failed(REFUSED)
        holds.append(breaker.pause())
        recover(breaker)
        clock.now += 1
    clock.now += 60
    breaker.failed(REFUSED)

    assert [0.25, 0.5, 1, 2, 4, 8, 15, 15, 15] == holds
    assert 0.25 == breaker.pause()


def test_trip(breaker: Breaker) -> None:
    """It may be told."""
    breaker.trip(LOST)

    assert (OPEN, LOST) == (breaker.state, breaker.last_error)


def test_policy(clock: Clock) -> None:
    """Every number is a setting."""
    policy = BreakerPolicy(failures=1, probe_seconds=2, probe_max_seconds=2, probe_successes=1)
    breaker = Breaker(policy, now=clock)
    breaker.failed(LOST)

    assert OPEN is breaker.state
    assert 2 == breaker.pause()
    assert breaker.probed()

"""
Logs in the simulator: whatever servers, disks, clocks and programs do, no promise is broken.

MULTIDB_TEST_RESILIENCE_SCALE=1 lets 2,000 seeds go by; the default is as many as take some twenty seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from simulator import Figures, simulate

from multidb.testing.faults import note_seed, pick_seed

pytestmark = pytest.mark.timeout(3600)

SCALE = float(os.environ.get("MULTIDB_TEST_RESILIENCE_SCALE", "0.02"))
SEEDS = max(80, round(2000 * SCALE))

KEPT = [
    277,  # A folder whose sync failed was taken for durable the next time: what was in it was lost with the power.
    9,  # The search for a record that is refused began at the first one after every start, and never ended.
]
"""Seeds that found something, in the order in which they did."""

_SHOWN_LINES = 40


def checked(seed: int) -> Figures:
    """Simulate *seed*; where that fails, say how to do it again, and what had happened."""
    log: list[str] = []
    try:
        return simulate(seed, log=log)
    except Exception as error:
        note_seed(error, seed)
        error.add_note(
            f"MULTIDB_TEST_SEED={seed} {sys.executable} -m pytest {Path(__file__)} -k test_seeds; keep it in KEPT"
        )
        error.add_note("\n".join(log[-_SHOWN_LINES:]))
        raise


@pytest.mark.parametrize("seed", KEPT)
def test_kept(seed: int) -> None:
    """What was found once is not found again."""
    checked(seed)


def test_seeds() -> None:
    """Of what was acknowledged nothing is lost, doubled or left, no call is late, and health tells the truth."""
    first = pick_seed()
    figures = Figures()
    began = time.monotonic()
    for seed in range(first, first + SEEDS):
        figures.add(checked(seed))
    print(
        f"\nlost 0, doubled 0, livelocks 0: {figures}; seeds from {first} on in {time.monotonic() - began:.0f} s"
    )

    assert figures.acknowledged > 100 * SEEDS
    assert figures.kills > SEEDS
    assert {"up", "degraded", "recovering", "read_only", "down"} <= figures.statuses.keys()


def test_repeatable() -> None:
    """A seed is the same run each time, also in another process."""
    program = "import sys; sys.path[:0] = sys.argv[1:3]; from test_simulator import fingerprint; print(fingerprint(5))"
    here = Path(__file__).parent
    other = subprocess.run(
        [sys.executable, "-c", program, str(here), str(here.parent)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )

    assert fingerprint(5) == fingerprint(5) == other.stdout.strip()


def fingerprint(seed: int) -> str:
    """Return what tells one run from another."""
    log: list[str] = []
    figures = simulate(seed, log=log)
    return sha256("\n".join([*log, str(figures)]).encode()).hexdigest()

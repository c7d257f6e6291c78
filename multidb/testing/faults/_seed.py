"""Seeds: chance that can be repeated."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

from multidb.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "MULTIDB_TEST_SEED"


def pick_seed(seed: int | None = None) -> int:
    """Return *seed*; without one that of the variable MULTIDB_TEST_SEED, or else a fresh one of 32 bits."""
    if seed is not None:
        return seed
    given = os.environ.get(VARIABLE)
    if not given:
        return secrets.randbits(32)
    try:
        return int(given)
    except ValueError as exc:
        msg = f"{VARIABLE}: not a whole number"
        raise InvalidArgumentError(msg) from exc


@contextmanager
def seeded(seed: int | None = None) -> Iterator[int]:
    """
    Yield a seed, see `pick_seed()`; an exception that leaves the block says which one it was.

        with faults.seeded() as seed:
            plan = faults.by_chance({faults.Fail(): 0.05}, seed=seed)
    """
    seed = pick_seed(seed)
    try:
        yield seed
    except BaseException as error:
        note_seed(error, seed)
        raise


def note_seed(error: BaseException, seed: int) -> None:
    """Add a line to *error*, shown below its traceback, with what repeats the run. Once per seed."""
    note = f"seed {seed}: run again with {VARIABLE}={seed}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)

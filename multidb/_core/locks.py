"""A lock on a file that is waited for: it holds between processes and between threads."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from multidb._core.files import open_or_create, try_lock, unlock
from multidb.errors import BackendTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FIRST_PAUSE: Final = 0.0005
_LONGEST_PAUSE: Final = 0.01


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """
    Hold the lock on the file *path* inside the block. It waits, so it is for threads, not for an event loop.

    Raises BackendTimeoutError when another holds it for *seconds*, OSError.
    """
    give_up = time.monotonic() + seconds
    with open_or_create(path) as file:
        for pause in pauses():
            if try_lock(file.fileno()):
                break
            if time.monotonic() > give_up:
                raise held_elsewhere(path)
            time.sleep(pause)
        try:
            yield
        finally:
            unlock(file.fileno())


def pauses() -> Iterator[float]:
    """Yield the seconds to wait before each new attempt. A blocking flock has no timeout."""
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE)


def held_elsewhere(path: Path) -> BackendTimeoutError:
    """Return the error for a lock that was not to be had in time, so that nothing was written."""
    return BackendTimeoutError(f"another process holds {path.name}")

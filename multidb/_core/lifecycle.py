"""Where a MultiDB is in its life, and whether this task may use it."""

from __future__ import annotations

import asyncio
import os
import sys
from enum import Enum
from weakref import WeakSet

from multidb.errors import ClosedError


class Phase(Enum):
    """The life of a MultiDB. CLOSED is final."""

    NEW = "new"
    OPEN = "open"
    CLOSED = "closed"


class Lifecycle:
    """Remembers the event loop and the process a MultiDB was opened in, and refuses calls from anywhere else."""

    def __init__(self) -> None:
        """Start out NEW."""
        self.phase = Phase.NEW
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        # The loop that calls are welcome in: none unless OPEN, nor in a forked child. One comparison checks a call.
        self._home: asyncio.AbstractEventLoop | None = None

    def opening(self) -> None:
        """Bind it to the running loop and to this process."""
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()

    def opened(self) -> None:
        """Enter OPEN."""
        self.opening()
        self.phase = Phase.OPEN
        self._home = self._loop
        _open.add(self)

    def refused(self) -> None:
        """Undo `opening()`: it may be tried again, in another loop too."""
        self._loop = None

    def closed(self) -> None:
        """Enter CLOSED."""
        self.phase = Phase.CLOSED
        self._loop = None
        self.forget()

    def forget(self) -> None:
        """Welcome no more calls here."""
        self._home = None
        _open.discard(self)

    @property
    def elsewhere(self) -> bool:
        """Whether it was opened in another process or in another event loop than the running one."""
        return self._pid != os.getpid() or self._loop is not asyncio.get_running_loop()

    @property
    def in_use_elsewhere(self) -> bool:
        """Whether it is open in an event loop that runs now, in another thread."""
        loop = self._loop
        running = loop is not None and loop.is_running() and self._pid == os.getpid()
        return running and loop is not asyncio.get_running_loop()

    def check(self) -> None:
        """Raise ClosedError unless the MultiDB is open, here."""
        if self._home is not None and self._home is asyncio.get_running_loop():
            return
        if self.phase is Phase.NEW:
            msg = "this MultiDB is not open: use `async with` or `await db.open()`"
        elif self.phase is Phase.CLOSED:
            msg = "this MultiDB is closed: make a new one, or call `await multidb.init_all()`"
        elif self._pid != os.getpid():
            msg = "this MultiDB was opened before a fork: open another one in the child process"
        else:
            msg = "this MultiDB belongs to another event loop: call `await multidb.init_all()` in this one"
        raise ClosedError(msg)


_open: WeakSet[Lifecycle] = WeakSet()


def _forget_all() -> None:
    for lifecycle in list(_open):
        lifecycle.forget()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_all)

"""One server a data folder: two would destroy it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from multidb.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


class FolderLock:
    """A claim on *folder* that ends with `release()`, or with the last process that inherited *file*."""

    def __init__(self, folder: Path) -> None:
        """Claim *folder*; ConfigurationError when another process has it."""
        import fcntl

        self.file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self.file)
            msg = f"{folder} is in use by another server"
            raise ConfigurationError(msg) from error

    def release(self) -> None:
        """Give the folder up, also where a forked child still has the file."""
        import fcntl

        fcntl.flock(self.file, fcntl.LOCK_UN)
        os.close(self.file)

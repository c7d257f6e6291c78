"""Owners: the folder of one spool of one process, kept by a lock that ends with the process."""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from multidb._core import files
from multidb.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAME: Final = re.compile(r"\d+-[0-9a-f]{32}")
_ATTEMPTS: Final = 20

LOCK_NAME: Final = ".lock"
REJECTED: Final = "rejected"
"""The folder beside those of the owners of a host where records are set aside, with one for each store."""


class OwnerLock(files.FolderLock):
    """The lock on an owner's folder. It is not had on a lock file that somebody removed meanwhile."""

    def __init__(self, folder: Path) -> None:
        """Choose the folder."""
        super().__init__(folder)
        self._path = folder / LOCK_NAME

    def acquire(self) -> None:
        """Take the lock. Raises ConfigurationError when another has it, FileNotFoundError when the folder is gone."""
        super().acquire()
        if not self._is_in_place():
            self.forget()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _is_in_place(self) -> bool:
        if self._file is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False


def new_name() -> str:
    """Return a name for an owner. The process id is for people: the rest makes it unlike any before."""
    return f"{os.getpid()}-{uuid4().hex}"


def create_owner(host: Path, store: str) -> tuple[Path, OwnerLock]:
    """
    Create an owner's folder in the folder *host*, with one for *store* in it; return it, locked.

    Somebody who tidies up may take it for a leftover as long as it is not locked: then there is another one.
    """
    for attempt in count(1):
        folder = host / new_name()
        lock = OwnerLock(folder)
        try:
            files.make_folders(folder)
            _sync_names_of(host.parent, host)
            lock.acquire()
            files.make_folders(folder / store)
        except (FileNotFoundError, NotADirectoryError, ConfigurationError):
            lock.release()
            if attempt == _ATTEMPTS:
                raise
        except BaseException:
            remove_owner(folder, store, lock)
            raise
        else:
            break
    return folder, lock


def _sync_names_of(*folders: Path) -> None:
    """Make the names of *folders* durable: they are there, but who made them may not have come to that yet."""
    for folder in folders:
        with suppress(PermissionError):  # Above a spool that somebody else made for us.
            files.sync_folder(folder.parent)


def try_own(folder: Path) -> OwnerLock | None:
    """Lock an owner's folder, if its owner is dead; return the lock."""
    lock = OwnerLock(folder)
    try:
        lock.acquire()
    except (ConfigurationError, FileNotFoundError, NotADirectoryError):
        return None
    return lock


def is_alive(folder: Path) -> bool:
    """Return whether a process has the folder. For people: it is a guess as soon as it is known."""
    with suppress(FileNotFoundError), (folder / LOCK_NAME).open("r+b", buffering=0) as file:
        if not files.try_lock(file.fileno()):
            return True
        files.unlock(file.fileno())
    return False


def find_owners(root: Path) -> Iterator[Path]:
    """Yield the folders of all owners, of all hosts: a container has another name after every start."""
    for host in _folders(root):
        for folder in _folders(host):
            if _NAME.fullmatch(folder.name):
                yield folder


def remove_owner(folder: Path, store: str, lock: OwnerLock) -> bool:
    """
    Remove the folder of an owner that has nothing more to say, and give up the lock; return whether that worked.

    Wherever this is killed there remains what the next one to come removes. Where it fails the lock is kept: others
    would replay everything once more.
    """
    records = folder / store
    try:
        if records.is_dir():
            for path in sorted(records.iterdir(), key=_segments_first):
                path.unlink(missing_ok=True)
            records.rmdir()
        # The lock goes last: who has it open already sees that it is not in its place any more.
        (folder / LOCK_NAME).unlink(missing_ok=True)
    except OSError:
        return False
    lock.release()
    remove_empty(folder, folder.parent, folder.parent.parent)
    return True


def _segments_first(path: Path) -> tuple[bool, str]:
    return path.suffix != ".jsonl", path.name


def sweep(root: Path) -> None:
    """Remove the folders above those of the owners where a process was killed before it could."""
    for host in _folders(root):
        for folder in (*_folders(host / REJECTED), host / REJECTED, host):
            remove_empty(folder)
    remove_empty(root)


def remove_empty(*folders: Path) -> None:
    """Remove the first *folders* that are empty, and none from one on that is not."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return sorted(path / entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []

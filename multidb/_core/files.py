"""Files that survive a crash: folders, atomic writes, names for any identifier, and a lock on a folder."""

from __future__ import annotations

import errno
import os
import re
import sys
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from secrets import token_hex
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from multidb.errors import BackendTimeoutError, BackendUnavailableError, ConfigurationError, OverloadedError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from io import FileIO
    from pathlib import Path

_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_TEMPORARY_PREFIX: Final = ".tmp-"
_LOCK_NAME: Final = ".lock"
# At once; a process may often have no more than 256.
_OPEN_FILES: Final = 32

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.ENOMEM})
# Raised before anything was written, so nothing can have been applied.
_REFUSED: Final = frozenset(
    {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
)
# Some network and FUSE file systems cannot sync a folder; there is nothing to gain from failing on them.
_NO_FOLDER_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})

_MAX_NAME_BYTES: Final = 150
_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-")
_ENCODED: Final = tuple(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in range(256))
_RESERVED: Final = re.compile("con|prn|aux|nul|com[0-9]|lpt[0-9]")
_CUT_ESCAPE: Final = re.compile("%[0-9a-f]?$")


@contextmanager
def translating() -> Iterator[None]:
    """Raise a multidb error in place of an OSError: what is full is overloaded, the rest is unavailable."""
    try:
        yield
    except OSError as exc:
        # The text of an OSError names the file, and the file may be named after a user.
        what = (
            f"{os.strerror(exc.errno)} ({errno.errorcode.get(exc.errno, exc.errno)})"
            if exc.errno
            else "failed"
        )
        msg = f"the file system says: {what}"
        if exc.errno in _FULL:
            raise OverloadedError(msg) from exc
        if exc.errno == errno.ETIMEDOUT:
            raise BackendTimeoutError(msg, ambiguous=True) from exc
        raise BackendUnavailableError(msg, ambiguous=exc.errno not in _REFUSED) from exc


def make_folders(path: Path) -> None:
    """Create the folder *path* and its missing parents, durably, and open to this user only."""
    if path.is_dir():
        return
    if path.parent != path:
        make_folders(path.parent)
    with suppress(FileExistsError):
        path.mkdir(_FOLDER_MODE)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    try:
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            path.rmdir()  # Left there it would be taken for durable the next time.
        raise


def sync_folder(path: Path) -> None:
    """Make the names in the folder *path* durable. Does nothing on Windows, which has no such call."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_file(descriptor: int) -> None:
    """Make the content of an open file durable. After an error close it: what was written is unknown."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync() stops at the drive's cache.
    elif sys.platform == "win32":
        os.fsync(descriptor)
    else:
        os.fdatasync(descriptor)


def write_all(file: FileIO, data: bytes) -> None:
    """Write all of *data*. A full disk shows first as a short write, and only the next one raises."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def create(path: Path) -> FileIO:
    """Create the file *path*, open to this user only, for unbuffered use. Raises FileExistsError."""
    return open(path, "x+b", buffering=0, opener=_private)


def open_or_create(path: Path) -> FileIO:
    """Open the file *path* for unbuffered use, and create it, open to this user only, when it is missing."""
    return open(path, "r+b", buffering=0, opener=lambda name, flags: _private(name, flags | os.O_CREAT))


def write_atomic(path: Path, data: bytes) -> None:
    """
    Give the file *path* the content *data*, durably and in one step: a crash leaves the old or the new.

    When it fails, the old content stays, unless it was the last step that failed, the sync of the folder.
    """
    temporary = path.with_name(_TEMPORARY_PREFIX + token_hex(8))
    try:
        with create(temporary) as file:
            write_all(file, data)
            sync_file(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_all_atomic(folder: Path, contents: Mapping[str, bytes]) -> dict[str, OSError]:
    """
    Give files in *folder* new contents, each as `write_atomic()` does; return what failed, by name.

    All are written before the first is synced, so that the file system can bring many to the disk in one go. When
    the last step fails, the sync of the folder, which is for all, that is raised.
    """
    failed: dict[str, OSError] = {}
    names = list(contents)
    for start in range(0, len(names), _OPEN_FILES):
        _replace_all(folder, {name: contents[name] for name in names[start : start + _OPEN_FILES]}, failed)
    if len(failed) < len(names):
        sync_folder(folder)
    return failed


def _replace_all(folder: Path, contents: Mapping[str, bytes], failed: dict[str, OSError]) -> None:
    temporaries = {name: folder / (_TEMPORARY_PREFIX + token_hex(8)) for name in contents}
    replaced: set[str] = set()
    try:
        with ExitStack() as opened:
            files: dict[str, FileIO] = {}
            for name, data in contents.items():
                with _noting(failed, name):
                    file = opened.enter_context(create(temporaries[name]))
                    write_all(file, data)
                    files[name] = file
            for name, file in files.items():
                with _noting(failed, name):
                    sync_file(file.fileno())
        for name in contents.keys() - failed.keys():
            with _noting(failed, name):
                temporaries[name].replace(folder / name)
                replaced.add(name)
    finally:
        for name in contents.keys() - replaced:
            with suppress(OSError):
                temporaries[name].unlink()


@contextmanager
def _noting(failed: dict[str, OSError], name: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        failed[name] = exc


def remove_temporaries(folder: Path) -> None:
    """Remove what `write_atomic()` left in *folder* when a process died. Only for the owner of the folder."""
    for path in folder.glob(_TEMPORARY_PREFIX + "*"):
        path.unlink(missing_ok=True)


def safe_name(identifier: str) -> str:
    """
    Return a file name for *identifier*: different identifiers get different names, on every file system.

    The name has at most 150 characters out of `a-z0-9_-%~`, so that no disk that ignores case or normalises
    Unicode takes two for one. It is no device name of Windows, and has no dot, so any extension can follow.
    """
    encoded = "".join([_ENCODED[byte] for byte in identifier.encode("utf-8", "surrogatepass")])
    if not encoded:
        return "%"
    if _RESERVED.fullmatch(encoded):
        return f"%{ord(encoded[0]):02x}{encoded[1:]}"
    if len(encoded) <= _MAX_NAME_BYTES:
        return encoded
    tail = "~" + sha256(encoded.encode()).hexdigest()
    return _CUT_ESCAPE.sub("", encoded[: _MAX_NAME_BYTES - len(tail)]) + tail


class FolderLock:
    """
    Keeps a folder to one owner: an flock on its file `.lock`, which holds the owner's process id.

    The lock ends with the process, however it ends. A forked child does not share it.
    """

    def __init__(self, folder: Path) -> None:
        """Choose the folder; it must exist when the lock is acquired."""
        self._folder = folder
        self._file: FileIO | None = None

    def acquire(self) -> None:
        """Take the lock, or raise ConfigurationError at once. Does nothing when it is held already."""
        if self._file is not None:
            return
        file = open(self._folder / _LOCK_NAME, "a+b", buffering=0, opener=_private)  # noqa: SIM115 -- it stays open
        # Known before it is locked: a fork at any moment finds it.
        self._file = file
        _held.add(self)
        try:
            self._claim(file)
        except BaseException:
            self.forget()
            raise

    def release(self) -> None:
        """Give the lock back. Does nothing when it is not held."""
        if self._file is not None:
            # The close alone leaves it locked while a child that is being forked has the file, too.
            unlock(self._file.fileno())
        self.forget()

    def forget(self) -> None:
        """Close the file without unlocking it: in a forked child the lock is the parent's."""
        file, self._file = self._file, None
        _held.discard(self)
        if file is not None:
            file.close()

    def _claim(self, file: FileIO) -> None:
        if not try_lock(file.fileno()):
            raise ConfigurationError(self._taken(file))
        # The lock holds without it, and a full disk must not keep a program from starting.
        with suppress(OSError):
            file.truncate(0)
            file.write(str(os.getpid()).encode())

    def _taken(self, file: FileIO) -> str:
        file.seek(0)
        owner = file.read(20).decode("ascii", "replace")
        if owner == str(os.getpid()):
            who, do = "this process", "close the MultiDB that has it open"
        else:
            who = f"process {owner}" if owner.isdigit() else "another process"
            do = "stop that process"
        return f"the folder {self._folder} is in use by {who}: {do}, or use another folder"


_held: WeakSet[FolderLock] = WeakSet()


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()


if sys.platform == "win32":
    # Locked bytes cannot be read by others, so the lock is on one far behind the process id.
    _LOCKED_BYTE: Final = 1 << 30

    def try_lock(descriptor: int) -> bool:
        """Lock an open file without waiting; return whether that worked."""
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def unlock(descriptor: int) -> None:
        """Undo `try_lock()`."""
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
else:
    os.register_at_fork(after_in_child=_forget_all)

    def try_lock(descriptor: int) -> bool:
        """Lock an open file without waiting; return whether that worked."""
        # Not lockf(): a POSIX lock is lost when any descriptor of the file closes in this process.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(descriptor: int) -> None:
        """Undo `try_lock()`."""
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, _FILE_MODE)

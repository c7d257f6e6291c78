"""Profiles as JSON files that a person can read and edit; several processes may share the folder."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from urllib.parse import unquote
from zlib import crc32

import orjson

from multidb._core import values
from multidb._core.files import make_folders, safe_name, sync_folder, translating, write_all_atomic
from multidb._core.locks import locked
from multidb._core.operation import ambiguous_after, own_copy
from multidb.errors import BackendError, ClosedError, InvalidArgumentError
from multidb.profiles._records import RESERVED
from multidb.profiles.documents import MAX_BYTES, apply_patches, contains, copies, copy_value, count, select
from multidb.profiles.protocol import ProfileQuery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from multidb.profiles._records import Document, ProfileStats
    from multidb.profiles.protocol import Outcome, Patch

R = TypeVar("R")

_log = logging.getLogger("multidb")

_SUFFIX: Final = ".json"
_LOCKS: Final = ".locks"
_STRIPES: Final = 64
_LOCK_SECONDS: Final = 5.0
_READERS: Final = 2
_CACHE_BYTES: Final = 64 * 1024 * 1024
# A file may change twice within one tick of its file system's clock, which is 2 s at worst (FAT).
_SETTLED_SECONDS: Final = 2.0
_STALE_SECONDS: Final = 3600.0
_BOM: Final = b"\xef\xbb\xbf"


class FileProfileBackend:
    """
    One JSON file a profile in *folder*, named after the username; acknowledged means synced to the disk.

    Several processes may use the folder at once: a write locks a stripe of profiles in `.locks/`, a read
    needs no lock and always looks at the disk. Files may be edited, added and deleted by hand at any time;
    what is missing of the reserved fields is filled in. A file that is no profile is an error that names it
    where it is asked for or written to, and left out of all the rest, with a warning.
    """

    name: Final = "files"

    def __init__(self, folder: Path) -> None:
        """Keep profiles in *folder*, which `open()` creates."""
        self._folder = folder
        self._stripes = _Stripes(folder / _LOCKS)
        self._files = _Files(folder)
        # One thread for all writes: those to one profile stay in the order in which they were called.
        self._writer: ThreadPoolExecutor | None = None
        self._readers: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Create the folder."""
        self._writer = ThreadPoolExecutor(1, "multidb-profiles-write")
        self._readers = ThreadPoolExecutor(_READERS, "multidb-profiles-read")
        await self._run(self._writer, self._create)

    def _create(self) -> None:
        make_folders(self._folder / _LOCKS)
        self._files.remove_leftovers()

    async def close(self) -> None:
        """Wait for the writes under way."""
        writer, readers, self._writer, self._readers = self._writer, self._readers, None, None
        for executor in (writer, readers):
            if executor is not None:
                await asyncio.to_thread(executor.shutdown)

    async def apply(self, patches: Sequence[Patch], /) -> Sequence[Outcome]:
        """Apply *patches* in order; return what became of each."""
        return await self._run(self._writer, lambda: self._apply(patches))

    async def get(self, usernames: Sequence[str], /) -> dict[str, Document]:
        """Return the profiles there are among *usernames*. Raises BackendError for a file that is none."""
        return await self._run(self._readers, lambda: self._get(usernames))

    async def find(self, query: ProfileQuery, /) -> list[Document]:
        """Return the first `query.limit` profiles that fulfil every condition, in the query's order."""
        return await self._run(self._readers, lambda: copies(select(self._files.read_all(), query)))

    async def search(self, keyword: str, limit: int, /) -> list[Document]:
        """Return profiles whose username or top-level text, folded, contains *keyword*; by username."""
        return await self._run(self._readers, lambda: self._search(keyword, limit))

    async def delete(self, usernames: Sequence[str], /) -> Sequence[bool]:
        """Delete profiles; return for each whether it was there."""
        return await self._run(self._writer, lambda: self._delete(usernames))

    async def stats(self) -> ProfileStats:
        """Count the profiles."""
        return await self._run(self._readers, lambda: count(self._files.read_all()))

    async def _run(self, executor: ThreadPoolExecutor | None, work: Callable[[], R]) -> R:
        """Return what *work* returns in a thread of *executor*; when cancelled, it may still be done."""
        if executor is None:
            msg = "the folder is not open"
            raise ClosedError(msg)
        with translating():
            return await asyncio.get_running_loop().run_in_executor(executor, work)

    def _apply(self, patches: Sequence[Patch]) -> list[Outcome]:
        with self._stripes.locked(patch.username for patch in patches):
            outcomes, written = apply_patches(self._read_to_write, patches)
            failed = self._files.write_all(written) if written else {}
        if failed:
            outcomes = [
                own_copy(failed[patch.username]) if patch.username in failed else outcome
                for patch, outcome in zip(patches, outcomes, strict=True)
            ]
        return outcomes

    def _read_to_write(self, username: str) -> Document | None:
        try:
            with translating():
                return self._files.read(username)
        except _NoProfileError as exc:
            raise _broken(exc) from exc

    def _get(self, usernames: Sequence[str]) -> dict[str, Document]:
        found = {}
        for username in usernames:
            try:
                document = self._files.read(username)
            except _NoProfileError as exc:
                raise _broken(exc) from exc
            if document is not None:
                found[username] = copy_value(document)
        return found

    def _search(self, keyword: str, limit: int) -> list[Document]:
        found = (document for document in self._files.read_all() if contains(document, keyword))
        return copies(select(found, ProfileQuery(limit=limit)))

    def _delete(self, usernames: Sequence[str]) -> list[bool]:
        with self._stripes.locked(usernames):
            deleted: list[bool] = []
            for username in usernames:
                with ambiguous_after(any(deleted)), translating():
                    deleted.append(self._files.unlink(username))
            if any(deleted):
                sync_folder(self._folder)
        return deleted


class _Stripes:
    """
    Locks on profiles that hold between processes and between threads: an flock on one of 64 files.

    A lock file for each profile would have to be deleted with it, which cannot be done without a race.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def locked(self, usernames: Iterable[str]) -> Iterator[None]:
        """Hold the locks of *usernames*. Raises BackendTimeoutError when another process does not let go."""
        with ExitStack() as held:
            # Always in the same order, so that no two processes wait for each other.
            for stripe in sorted({_stripe(username) for username in usernames}):
                held.enter_context(locked(self._folder / stripe, _LOCK_SECONDS))
            yield


def _stripe(username: str) -> str:
    return f"{crc32(username.encode()) % _STRIPES:02x}"


class _NoProfileError(Exception):
    """A file is not a profile; the message names it and says why."""


def _broken(exc: _NoProfileError) -> BackendError:
    return BackendError(f"{exc}: repair the file, or remove it with delete_profile()")


_Signature: TypeAlias = tuple[int, int, int, int]


def _signature(stat: os.stat_result) -> _Signature:
    """Return what changes when a file's content does."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class _Files:
    """Reads and writes the files of a folder; remembers what it read as long as a file does not change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[_Signature, Document]] = {}
        self._known_bytes = 0
        self._lock = Lock()
        self._warned: set[tuple[str, _Signature]] = set()

    def read(self, username: str) -> Document | None:
        """Return a profile, not to be changed; None when there is none. Raises _NoProfileError, OSError."""
        return self._read(_file_name(username))

    def read_all(self) -> Iterator[Document]:
        """Yield all profiles, not to be changed; warn of files that are none."""
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(_SUFFIX)]
        self._forget_all_but(names)
        for name in names:
            try:
                document = self._read(name)
            except _NoProfileError as exc:
                self._warn(name, exc)
                continue
            if document is not None:
                yield document

    def write_all(self, documents: Mapping[str, Document]) -> dict[str, BackendError]:
        """Replace or create files; return what failed, by username."""
        names = {_file_name(username): username for username in documents}
        contents = {name: _encode(documents[username]) for name, username in names.items()}
        with ambiguous_after(contents), translating():
            failed = write_all_atomic(self._folder, contents)
        return {names[name]: _translated(exc) for name, exc in failed.items()}

    def unlink(self, username: str) -> bool:
        """Delete a file, whatever is in it; return whether it was there."""
        try:
            (self._folder / _file_name(username)).unlink()
        except FileNotFoundError:
            return False
        return True

    def remove_leftovers(self) -> None:
        """Delete what writes left behind whose process died. What is young may belong to one that lives."""
        for path in self._folder.glob(".tmp-*"):
            try:
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue

    def _read(self, name: str) -> Document | None:
        path = f"{self._folder}/{name}"
        try:
            known = self._known.get(name)
            if known is not None and known[0] == _signature(os.stat(path)):  # noqa: PTH116 -- half as fast
                return known[1]
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 -- as above
                stat = os.fstat(file.fileno())
                content = file.readall()
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            msg = f"{name} is a folder"
            raise _NoProfileError(msg) from None
        document = _decode(content, name, stat.st_mtime)
        if time.time() - stat.st_mtime > _SETTLED_SECONDS:
            self._remember(name, _signature(stat), document)
        return document

    def _remember(self, name: str, signature: _Signature, document: Document) -> None:
        _, size, *_ = signature
        with self._lock:
            self._forget(name)
            if self._known_bytes + size <= _CACHE_BYTES:
                self._known[name] = (signature, document)
                self._known_bytes += size

    def _forget_all_but(self, names: Iterable[str]) -> None:
        with self._lock:
            for name in self._known.keys() - names:
                self._forget(name)

    def _forget(self, name: str) -> None:
        if (known := self._known.pop(name, None)) is not None:
            (_, size, *_), _ = known
            self._known_bytes -= size

    def _warn(self, name: str, exc: _NoProfileError) -> None:
        """Warn of a file that is no profile, once for each content."""
        try:
            seen = (name, _signature((self._folder / name).stat()))
        except FileNotFoundError:
            return
        if seen not in self._warned:
            self._warned.add(seen)
            _log.warning("left out of the profiles: %s", exc)


def _translated(exc: OSError) -> BackendError:
    try:
        with translating():
            raise exc
    except BackendError as error:
        return error


def _file_name(username: str) -> str:
    return safe_name(username) + _SUFFIX


def _encode(document: Document) -> bytes:
    """Return what stands in the file: the reserved fields first, then the program's by name."""
    ordered = {name: document[name] for name in RESERVED}
    ordered |= {name: document[name] for name in sorted(document.keys() - ordered.keys())}
    return orjson.dumps(ordered, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _decode(content: bytes, name: str, modified: float) -> Document:
    """Return the profile in a file, which may be written by hand. Raises _NoProfileError."""
    try:
        loaded = values.load(content.removeprefix(_BOM))
    except ValueError:
        msg = f"{name} is not JSON"
        raise _NoProfileError(msg) from None
    if not isinstance(loaded, dict):
        msg = f"{name} is not a JSON object"
        raise _NoProfileError(msg)
    try:
        return _reserved(loaded, name, modified) | _fields(loaded)
    except InvalidArgumentError as exc:
        msg = f"{name} is not a profile: {exc}"
        raise _NoProfileError(msg) from None


def _fields(loaded: dict[str, Any]) -> Document:
    """Return the program's fields, held to the rule that those from a program are held to."""
    fields = {field: value for field, value in loaded.items() if field not in RESERVED}
    document: Document = values.load(values.encode(fields, "profile", max_bytes=MAX_BYTES, addressable=True))
    return document


def _reserved(loaded: dict[str, Any], name: str, modified: float) -> Document:
    """Return the reserved fields; those that are missing are taken from the file's name and time."""
    username = values.identifier(loaded.get("username") or unquote(name.removesuffix(_SUFFIX)), "username")
    if _file_name(username) != name:
        msg = "its username belongs to another file name"
        raise InvalidArgumentError(msg)
    edited = datetime.fromtimestamp(modified, UTC)
    return {
        "username": username,
        "created_at": _time(loaded, "created_at", edited),
        "updated_at": _time(loaded, "updated_at", edited),
        "version": values.whole_number(loaded.get("version", 1), "version", 1),
    }


def _time(loaded: dict[str, Any], field: str, default: datetime) -> datetime:
    if field not in loaded:
        return default
    try:
        return values.timestamp(datetime.fromisoformat(loaded[field]), field)
    except (TypeError, ValueError):
        msg = f"{field}: must be an ISO 8601 time with an offset"
        raise InvalidArgumentError(msg) from None

"""SpoolFiles: everything a `Spool` does that is not asyncio."""

from __future__ import annotations

import logging
import os
import shutil
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Final

from multidb._core.files import translating
from multidb.errors import BackendError
from multidb.resilience.spool._lines import lines_of
from multidb.resilience.spool._own import Own
from multidb.resilience.spool._owners import (
    LOCK_NAME,
    REJECTED,
    find_owners,
    is_alive,
    new_name,
    remove_owner,
    sweep,
    try_own,
)
from multidb.resilience.spool._places import waiting_paths
from multidb.resilience.spool._records import Batch, Reading, Room, SpoolStats, place_of
from multidb.resilience.spool._rejected import RejectedCount, RejectedFiles, Rejection
from multidb.resilience.spool._source import Source, whose

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from multidb._core.clock import Clock
    from multidb.resilience.spool._lines import Header
    from multidb.resilience.spool._records import Limits, SpooledRecord
    from multidb.resilience.spool._source import Position

_log = logging.getLogger("multidb")

_LINGER_SECONDS: Final = 1.0


class SpoolFiles:
    """
    The segments of one store: its own, and those adopted from dead processes.

    `commit()` is called by one thread, everything else by another one; `stats()` by any.
    """

    def __init__(self, root: Path, host: str, header: Header, limits: Limits, clock: Clock) -> None:
        """Set where everything is; nothing is created."""
        self._root = root
        self._header = header
        self._limits = limits
        self._clock = clock
        self._mutex = Lock()
        """Guards what is known of the segments; never held while a disk is waited for."""
        self._appending = Lock()
        self._own = Own(root / host, header, limits.segment_bytes, self._mutex)
        self._adopted: dict[str, Source] = {}
        self._rejected = RejectedFiles(root / host / REJECTED / header.store, new_name(), header)
        self._rejected_count = RejectedCount(root, header)
        self._others = 0
        self._strangers: set[str] = set()
        """The namespaces of others for which nobody is at work, once that was said."""
        self._found: list[str] = []
        self._free_bytes: int | None = None
        self._last_append = 0.0

    # Appending

    def commit(self, calls: Sequence[Sequence[bytes]]) -> list[BackendError | None]:
        """Append the records of several *calls* with one sync; return the error of each, None for those on the disk."""
        with self._appending:
            try:
                with translating():
                    room = self._room()
            except BackendError as exc:
                return [_copy(exc) for _ in calls]
            millis = self._millis()
            errors = [room.take(lines_of(call, millis), len(call)) for call in calls]
            if room.records:
                error = self._written(b"".join(room.taken), room.records, millis)
                errors = [
                    _copy(error) if refusal is None and error is not None else refusal for refusal in errors
                ]
        return errors

    def _written(self, lines: bytes, records: int, millis: int) -> BackendError | None:
        try:
            with translating():
                self._own.append(lines, records, millis)
        except BackendError as exc:
            exc.ambiguous = not self._own.undone
            return exc
        self._last_append = monotonic()
        return None

    def _room(self) -> Room:
        disk = shutil.disk_usage(existing(self._root))
        self._free_bytes = disk.free
        with self._mutex:
            held = sum(source.size for source in self._sources())
        return Room(self._header.store, self._limits, held, disk.free, disk.total)

    # Replaying

    def read(self, most: int, max_bytes: int) -> Batch | None:
        """
        Return the next records, up to *most* and to *max_bytes*, or one; None when there is none.

        The owner with the oldest record is first. Damaged records, and those that are too old, are set aside. A
        folder that cannot be read is passed over as long as there is another one. Raises OSError.
        """
        failure: OSError | None = None
        for source in self._oldest_first():
            try:
                batch = self._read_from(source, most, max_bytes)
            except OSError as exc:
                failure = exc
                continue
            if batch is not None:
                return batch
        if failure is not None:
            raise failure
        return None

    def done(self, position: Position) -> None:
        """Take everything up to *position* for done, durably."""
        source = self._source(position.owner)
        if source is None:
            return
        source.advance(position)
        if source.pending:
            return
        if source is not self._own.source:
            self._remove_adopted(source)
        elif monotonic() - self._last_append > _LINGER_SECONDS:
            self._remove_own()

    def reject(self, record: SpooledRecord, reason: str) -> None:
        """Set a *record* aside that is refused for *reason*. It is done with the batch it came in. Raises OSError."""
        self._set_aside([Rejection(reason, place_of(record.position), record.time, record.data)])

    def found(self) -> list[str]:
        """Return the reasons for what `read()` has set aside since the last time."""
        found, self._found = self._found, []
        return found

    def _read_from(self, source: Source, most: int, max_bytes: int) -> Batch | None:
        """Return the next records of *source*, with what is no good out of the way; None when there is none."""
        while True:
            reading = Reading(most, max_bytes, self._millis() - int(self._limits.max_age_seconds * 1000))
            for position, line in source.read():
                if not reading.takes(position, line):
                    break
            fresh = {at: each for at, each in reading.rejections.items() if at not in source.set_aside}
            if fresh:
                self._set_aside(list(fresh.values()))
                self._found += [rejection.reason for rejection in fresh.values()]
                source.set_aside |= fresh.keys()
            if reading.records and reading.end is not None:
                return Batch(tuple(reading.records), reading.end)
            if reading.end is None:
                return None
            self.done(reading.end)

    def _set_aside(self, rejections: list[Rejection]) -> None:
        self._rejected.add(rejections, self._millis())
        self._rejected_count.records += len(rejections)
        _log.warning(
            "%d records of the spool of %s were set aside: %s",
            len(rejections),
            self._header.store,
            "; ".join(sorted({rejection.reason for rejection in rejections})),
        )

    def _oldest_first(self) -> list[Source]:
        with self._mutex:
            waiting = [source for source in self._sources() if source.pending > 0]
        return sorted(waiting, key=lambda source: source.head_millis or 0)

    # Owners

    def adopt(self) -> int:
        """Take over what dead processes left, of this store and namespace; return how many records. Raises OSError."""
        self._others = 0
        adopted = 0
        for folder in find_owners(self._root):
            if self._source(folder.name) is not None:
                continue
            try:
                adopted += self._look_at(folder)
            except OSError as exc:
                # Of another user, perhaps; it is looked at again, and the others are not to wait for it.
                _log.warning("a folder of the spool cannot be read: %s: %s", folder, type(exc).__name__)
        sweep(self._root)
        self._rejected_count.refresh()
        return adopted

    def tidy(self) -> None:
        """Remove the folders in which nothing is left to be done."""
        if monotonic() - self._last_append > _LINGER_SECONDS:
            self._remove_own()
        for source in list(self._adopted.values()):
            if not source.pending:
                self._remove_adopted(source)

    def seal(self) -> None:
        """Finish the segment that is written; `commit()` is not called any more."""
        with self._appending:
            self._own.seal()

    def release(self) -> None:
        """Remove what is done, and leave the rest to whoever comes next."""
        self._remove_own()
        with self._appending:
            self._own.forget()
        with self._mutex:
            sources, self._adopted = list(self._adopted.values()), {}
        for source in sources:
            if source.pending or not source.remove():
                source.release()

    def stats(self) -> SpoolStats:
        """Return what there is, without a look at the disk."""
        limits, now = self._limits, self._millis()
        with self._mutex:
            sources = self._sources()
            heads = [source.head_millis for source in sources if source.head_millis is not None]
            segments = [segment for source in sources for segment in source.segments]
            size = sum(source.size for source in sources)
            records = sum(source.pending for source in sources)
        return SpoolStats(
            records=records,
            bytes=size,
            max_bytes=limits.max_bytes,
            is_high=size >= limits.high_share * limits.max_bytes,
            segments=len(segments),
            oldest_seconds=max(0, now - min(heads)) / 1000 if heads else None,
            adopted=len(self._adopted),
            others=self._others,
            rejected=self._rejected_count.records,
            torn_bytes=sum(segment.torn for segment in segments),
            free_bytes=self._free_bytes,
        )

    @property
    def records(self) -> int:
        """How many records are not done."""
        with self._mutex:
            return sum(source.pending for source in self._sources())

    def _look_at(self, folder: Path) -> int:
        """Take over what is in *folder*, if it is for this spool; return how many records."""
        if not (folder / self._header.store).is_dir():
            self._clear(folder)
            return 0
        header = whose(folder / self._header.store)
        if header is not None and header != self._header:
            self._note_stranger(folder, header.namespace)
            return 0
        lock = try_own(folder)
        if lock is None:
            self._others += 1
            return 0
        source = Source(folder, self._header.store, lock, self._mutex)
        try:
            adopted = self._adopt(source)
        except BaseException:
            source.release()
            raise
        if not adopted:
            source.release()
        return source.pending if adopted else 0

    def _note_stranger(self, folder: Path, namespace: str) -> None:
        """Say, once, that records wait for a server that this program does not use, and that nobody replays them."""
        if namespace == self._header.namespace or namespace in self._strangers:
            return
        if waiting_paths(folder / self._header.store) and not is_alive(folder):
            self._strangers.add(namespace)
            _log.warning(
                "the spool of %s has records for another server, %s, and no process replays them: "
                "start a program once that uses it; see `multidb spool ls`",
                self._header.store,
                namespace or "without a name",
            )

    def _adopt(self, source: Source) -> bool:
        """Take over a locked folder; return whether there is a reason to keep it."""
        if source.folder.is_dir():
            # Again: it may have been somebody else's between the first look and the lock.
            header = whose(source.folder)
            if header != self._header and (header is not None or _says_anything(source.folder)):
                return False
            source.load()
        if not source.pending and source.remove():
            return False
        with self._mutex:
            self._adopted[source.name] = source
        return True

    def _clear(self, folder: Path) -> None:
        """Remove what a process left that was killed as it created its folder, or removed it."""
        if _is_empty(folder) and (lock := try_own(folder)) is not None:
            if _is_empty(folder):
                remove_owner(folder, self._header.store, lock)
            lock.release()

    def _remove_own(self) -> None:
        with self._appending:
            source = self._own.source
            if source is not None and not source.pending:
                self._own.remove()

    def _remove_adopted(self, source: Source) -> None:
        if source.remove():
            with self._mutex:
                del self._adopted[source.name]

    def _sources(self) -> list[Source]:
        own = self._own.source
        return [*self._adopted.values()] if own is None else [own, *self._adopted.values()]

    def _source(self, name: str) -> Source | None:
        own = self._own.source
        return own if own is not None and own.name == name else self._adopted.get(name)

    def _millis(self) -> int:
        return int(self._clock.time() * 1000)


def existing(path: Path) -> Path:
    """Return the folder *path*, or the nearest one above it that is there."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _says_anything(folder: Path) -> bool:
    """Return whether there is a whole line in a folder of which nobody knows whose it is."""
    for path in folder.glob("*.jsonl"):
        with path.open("rb") as file:
            if file.readline().endswith(b"\n"):
                return True
    return False


def _is_empty(folder: Path) -> bool:
    """Return whether there is nothing in the folder of an owner but its lock."""
    try:
        return {LOCK_NAME}.issuperset(os.listdir(folder))  # noqa: PTH208 -- names will do
    except FileNotFoundError:
        return False


def _copy(error: BackendError | None) -> BackendError | None:
    """Return an error of its own for a caller: a raise changes it."""
    if error is None:
        return None
    copy = type(error)(f"the spool cannot be written: {error}", ambiguous=error.ambiguous)
    copy.__cause__ = error.__cause__
    return copy

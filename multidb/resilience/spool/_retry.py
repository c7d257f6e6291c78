"""Retry: puts back what was set aside."""

from __future__ import annotations

import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from threading import Lock
from typing import TYPE_CHECKING, Final

from multidb._core import files
from multidb._core.clock import SystemClock
from multidb._core.files import safe_name, translating
from multidb.errors import BackendUnavailableError
from multidb.resilience.spool._files import existing
from multidb.resilience.spool._lines import lines_of
from multidb.resilience.spool._own import Own
from multidb.resilience.spool._places import check_user, rejected_of, size_of
from multidb.resilience.spool._records import Limits, Room
from multidb.resilience.spool._rejected import is_in_place, read_rejections, remove_rejected
from multidb.resilience.spool._segments import read_header, scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from multidb._core.clock import Clock

_ABOUT_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Retried:
    """How many rejected records were put back, and how many of the lines that stay hold none."""

    records: int
    kept: int


def retry(
    root: Path,
    *,
    store: str | None = None,
    reason: str | None = None,
    clock: Clock | None = None,
    host: str | None = None,
    limits: Limits | None = None,
    advance: Callable[[int], None] | None = None,
) -> Retried:
    """
    Put back what was set aside, as new records: a process that is running, or the next one, replays them.

    With *reason* only what was set aside for one that contains it, whatever its case. Killed in between, some may
    come twice; that changes nothing, as with any replay. Lines that hold no record stay where they are.

    Raises BackendUnavailableError; OverloadedError when the disk is full, by *limits* too: what is not put back by
    then stays set aside; ConfigurationError, and puts nothing back, where the spool is another user's, who could not
    read what is put back.
    """
    clock = SystemClock() if clock is None else clock
    limits = Limits() if limits is None else limits
    home = root.absolute() / safe_name(socket.gethostname() if host is None else host)
    records = kept = 0
    with translating():
        paths = rejected_of(root, store)
        for path in paths:
            check_user(path)
        for path in paths:
            length = size_of(path)
            retried = _retry(path, home, clock, limits, reason)
            records += retried.records
            kept += retried.kept
            if advance is not None:
                advance(length)
    return Retried(records, kept)


def _retry(path: Path, home: Path, clock: Clock, limits: Limits, reason: str | None) -> Retried:
    """Put the records of a file back, then remove it, or all of it that is put back."""
    with suppress(FileNotFoundError), path.open("r+b", buffering=0) as file:
        if not files.try_lock(file.fileno()):
            raise BackendUnavailableError(
                "a file of rejected records is in use by another process: try again"
            )
        try:
            if not is_in_place(file, path):
                return Retried(0, 0)
            return _put_back(path, home, clock, limits, reason)
        finally:
            files.unlock(file.fileno())
    return Retried(0, 0)


def _put_back(path: Path, home: Path, clock: Clock, limits: Limits, reason: str | None) -> Retried:
    header = read_header(path)
    if header is None:
        kept_lines = scan(0, path).records
        if not kept_lines:  # Its writer was killed at the first one.
            remove_rejected(path)
        return Retried(0, kept_lines)
    own = Own(home, header, limits.segment_bytes, Lock())
    kept = _Kept(reason)
    records = 0
    try:
        for batch in _batches(kept.others(path)):
            millis = int(clock.time() * 1000)
            lines = lines_of(batch, millis)
            _check_room(home, header.store, limits, lines)
            own.append(lines, len(batch), millis)
            records += len(batch)
    finally:
        own.forget()
    if not kept.lines:
        remove_rejected(path)
    elif records:
        files.write_atomic(path, path.read_bytes()[: scan(0, path).start] + b"".join(kept.lines))
    return Retried(records, kept.unreadable)


def _check_room(home: Path, store: str, limits: Limits, lines: bytes) -> None:
    """Leave as much of the disk free as a program does."""
    disk = shutil.disk_usage(existing(home))
    refusal = Room(store, limits, 0, disk.free, disk.total).take(lines, 1)
    if refusal is not None:
        raise refusal


def _batches(records: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Yield *records*, a megabyte or so at once."""
    size = 0

    def number(record: bytes) -> int:
        nonlocal size
        size += len(record)
        return size // _ABOUT_BYTES

    for _, batch in groupby(records, number):
        yield list(batch)


class _Kept:
    """The lines of a file that stay: those set aside for another *reason*, and those that hold no record."""

    def __init__(self, reason: str | None) -> None:
        self.lines: list[bytes] = []
        self.unreadable = 0
        self._reason = "" if reason is None else reason.casefold()

    def others(self, path: Path) -> Iterator[bytes]:
        """Yield the records of the other lines."""
        for line, rejection in read_rejections(path):
            record = None if rejection is None else rejection.record
            if record is not None and rejection is not None and self._reason in rejection.reason.casefold():
                yield record
            elif line:
                self.lines.append(line)
                self.unreadable += record is None

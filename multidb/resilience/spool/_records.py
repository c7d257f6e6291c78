"""What goes into a spool at once, and what comes out of it; how much it may hold, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from multidb.errors import OverloadedError
from multidb.resilience.spool._lines import BadLineError, parse
from multidb.resilience.spool._rejected import Rejection

if TYPE_CHECKING:
    from multidb.errors import BackendError
    from multidb.resilience.spool._source import Position

_MEBIBYTE: Final = 1024 * 1024
_DAY_SECONDS: Final = 86400
_SET_ASIDE_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a spool may hold; past that, appends fail. They hold per process and store."""

    max_bytes: int = 256 * _MEBIBYTE
    max_age_seconds: float = 7 * _DAY_SECONDS
    """Older records are not replayed but set aside: by then the server may not know any more what it has."""
    min_free_bytes: int = 512 * _MEBIBYTE
    """What is left free on the disk for others, or *min_free_share* of the disk where that is less."""
    min_free_share: float = 0.05
    segment_bytes: int = 4 * _MEBIBYTE
    """A file that has grown to this size is followed by another one."""
    high_share: float = 0.8
    """From this share of *max_bytes* on, `SpoolStats.is_high`."""


@dataclass(frozen=True, slots=True)
class SpooledRecord:
    """A record to be replayed, when it was spooled (seconds since 1970), and the position behind it."""

    data: bytes
    time: float
    position: Position


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one owner in the order in which they were appended; *position* is behind them."""

    records: tuple[SpooledRecord, ...]
    position: Position


@dataclass(frozen=True, slots=True)
class SpoolStats:
    """What a spool holds. *rejected* counts what all processes set aside; the rest is what this one has."""

    records: int
    bytes: int
    max_bytes: int
    is_high: bool
    segments: int
    oldest_seconds: float | None
    """The age of the oldest record; None when there is none."""
    adopted: int
    """Folders that dead processes left and this one replays."""
    others: int
    """Folders that other processes have, when that was last looked at."""
    rejected: int
    torn_bytes: int
    """What processes that died left half-written. It was never acknowledged, and is not read."""
    free_bytes: int | None
    """What was free on the disk with the last append."""


class Room:
    """What goes into one write: as much as the limits leave room for."""

    def __init__(self, store: str, limits: Limits, held: int, free: int, total: int) -> None:
        self.taken: list[bytes] = []
        self.records = 0
        self._store = store
        self._held = held
        self._most = limits.max_bytes
        self._free = free
        self._floor = int(min(limits.min_free_bytes, limits.min_free_share * total))

    def take(self, lines: bytes, records: int) -> BackendError | None:
        """Take the lines of a call, or return why there is no room for them."""
        held, free = self._held + len(lines), self._free - len(lines)
        if held > self._most:
            return OverloadedError(
                f"the spool of {self._store} is full: {self._held:,} of {self._most:,} bytes are taken"
            )
        if free < self._floor:
            return OverloadedError(
                f"the disk of the spool is full: {self._free:,} bytes are free, and {self._floor:,} are kept free"
            )
        self._held, self._free = held, free
        self.taken.append(lines)
        self.records += records
        return None


class Reading:
    """What is read in one go: records, and what has to be set aside."""

    def __init__(self, most: int, max_bytes: int, too_old_millis: int) -> None:
        self.records: list[SpooledRecord] = []
        self.rejections: dict[Position, Rejection] = {}
        self.end: Position | None = None
        """Behind the last line that was taken."""
        self._most = most
        self._left = max_bytes
        self._too_old_millis = too_old_millis

    def takes(self, position: Position, line: bytes) -> bool:
        """Take a line, unless there are enough."""
        if len(self.records) >= self._most or len(self.rejections) >= _SET_ASIDE_AT_ONCE:
            return False
        if self.end is not None and len(line) > self._left:
            return False
        self._left -= len(line)
        self.end = position
        try:
            millis, data = parse(line)
        except BadLineError as exc:
            self.rejections[position] = Rejection(str(exc), place_of(position), 0, None, line)
            return True
        if millis < self._too_old_millis:
            self.rejections[position] = Rejection("too old", place_of(position), millis / 1000, data)
        else:
            self.records.append(SpooledRecord(data, millis / 1000, position))
        return True


def place_of(position: Position) -> str:
    """Return where a record is, for people."""
    return f"{position.owner}/{position.segment}@{position.offset}"

"""Own: the part of a spool that a process writes, in a folder that it creates with the first append."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multidb.resilience.spool._lines import header_line
from multidb.resilience.spool._owners import create_owner
from multidb.resilience.spool._segments import Appender
from multidb.resilience.spool._source import Source

if TYPE_CHECKING:
    from pathlib import Path
    from threading import Lock

    from multidb.resilience.spool._lines import Header


class Own:
    """
    Appends lines to segments, durably. It is used by one thread at a time; *mutex* guards what others read.

    *source* is where the records are read from: a new one after everything was removed, None before the first append.
    """

    def __init__(self, host: Path, header: Header, segment_bytes: int, mutex: Lock) -> None:
        """Set where the folder will be; nothing is created."""
        self.source: Source | None = None
        self.undone = True
        """Whether the last append, where it failed, left nothing behind."""
        self._host = host
        self._header = header
        self._segment_bytes = segment_bytes
        self._mutex = mutex
        self._active: Appender | None = None
        self._number = 0

    def append(self, lines: bytes, records: int, millis: int) -> None:
        """Add *lines*. Raises OSError, and nothing is added then, or *undone* is False."""
        self.undone = True
        active = self._writable()
        head = b"" if active.segment.size else header_line(self._header)
        try:
            active.append(head + lines)
        except BaseException:
            self._give_up(active)
            raise
        self._count(active, len(head), len(lines), records, millis)
        if active.segment.size >= self._segment_bytes:
            self.seal()

    def seal(self) -> None:
        """Finish the segment; the next append starts another one."""
        active, self._active = self._active, None
        if active is not None:
            active.close()
            with self._mutex:
                active.segment.sealed = True

    def remove(self) -> bool:
        """Remove the folder, in which nothing is left to be done; return whether that worked."""
        self.seal()
        source = self.source
        if source is None or not source.remove():
            return source is None
        self.source = None
        return True

    def forget(self) -> None:
        """Let go of the folder."""
        self.seal()
        source, self.source = self.source, None
        if source is not None:
            source.release()

    def _writable(self) -> Appender:
        """Return the segment to append to. Somebody may have removed it by hand: then it all starts again."""
        if self._active is not None and self._active.is_removed:
            self.forget()
        if self._active is None:
            try:
                self._active = self._start()
            except FileNotFoundError:
                self.forget()
                self._active = self._start()
        return self._active

    def _start(self) -> Appender:
        source = self.source
        if source is None:
            folder, lock = create_owner(self._host, self._header.store)
            source = self.source = Source(folder, self._header.store, lock, self._mutex)
        self._number += 1
        return Appender(source.folder, self._number)

    def _count(self, active: Appender, head: int, added: int, records: int, millis: int) -> None:
        source, segment = self.source, active.segment
        if source is None:
            raise ValueError(segment.number)
        with self._mutex:
            if not source.pending:
                source.head_millis = millis
            if head:
                segment.start = segment.size = head
                source.segments.append(segment)
            segment.size += added
            segment.records += records

    def _give_up(self, active: Appender) -> None:
        """Leave the segment as it was before; what comes goes to another one."""
        self._active = None
        self.undone = active.cut()
        with self._mutex:
            active.segment.sealed = True

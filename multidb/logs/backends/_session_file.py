"""SessionFile: the sessions, in memory and in a journal where the last line of a session counts."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import orjson

from multidb._core.files import translating, write_atomic
from multidb._core.values import load
from multidb.errors import BackendError
from multidb.logs._records import Session
from multidb.logs.backends._in_process import SessionTable, StoredSession
from multidb.logs.backends._journal import Journal, JournalChangedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_log = logging.getLogger("multidb")

_TIMES: Final = ("started_at", "last_seen_at", "expires_at", "ended_at")
_SPARE_LINES: Final = 10_000


class SessionFile:
    """The sessions. `load()` and `write()` are called by one thread; the rest by any."""

    def __init__(self, path: Path) -> None:
        """Name the file."""
        self._journal = Journal(path)
        self._table = SessionTable()
        self._lines = 0
        self._lock = Lock()
        self.bad_lines = 0

    def load(self) -> None:
        """Repair and read the file."""
        self._journal.recover()
        with self._journal.path.open("rb") as lines:
            for text in lines:
                self._lines += 1
                try:
                    self._table.put(_decode(text))
                except (ValueError, TypeError, KeyError, AttributeError):
                    self.bad_lines += 1
        if self.bad_lines:
            _log.warning("%s: %d lines are no sessions and are skipped", self._journal.path, self.bad_lines)

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def get(self, user_id: str, session_id: str) -> StoredSession | None:
        """Return a session, active or not."""
        return self._table.get(user_id, session_id)

    def write(self, sessions: Sequence[StoredSession]) -> None:
        """Add or replace *sessions*, durably. Raises BackendError."""
        try:
            self._journal.append(b"".join(map(_encode, sessions)))
        except JournalChangedError:
            # The truth is in memory.
            self._write_all([*self._table, *sessions])
        self._lines += len(sessions)
        with self._lock:
            for stored in sessions:
                self._table.put(stored)
        if self._lines > 2 * len(self._table) + _SPARE_LINES:
            self._compact()

    def active(self, user_id: str | None, now: datetime, limit: int) -> list[Session]:
        """Return active sessions, latest first."""
        with self._lock:
            return self._table.active(user_id, now, limit)

    def _compact(self) -> None:
        """Drop the lines that newer ones stand for. This may fail: all is in the file already."""
        try:
            self._write_all(list(self._table))
        except BackendError as exc:
            _log.warning("%s grows, as it cannot be written anew: %s", self._journal.path, exc)
            self._lines = 0

    def _write_all(self, sessions: Sequence[StoredSession]) -> None:
        content = b"".join(map(_encode, sessions))
        self._journal.close()
        with translating():
            write_atomic(self._journal.path, content)
        self._journal.size = len(content)
        self._lines = len(sessions)


def _encode(stored: StoredSession) -> bytes:
    fields = vars(stored.session) | {"context": orjson.Fragment(stored.context)}
    return orjson.dumps(fields, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)


def _decode(text: bytes) -> StoredSession:
    """Return the session in a line. Raises ValueError, TypeError, KeyError, AttributeError for any other."""
    fields: dict[str, Any] = load(text)
    for name in _TIMES:
        if fields[name] is not None:
            fields[name] = datetime.fromisoformat(fields[name])
            if fields[name].tzinfo is not UTC:
                raise ValueError(name)
    context = fields.pop("context")
    if not isinstance(context, dict):
        raise TypeError
    return StoredSession(Session.model_validate(fields), orjson.dumps(context))

"""Batch: calls on log files that share their writes and syncs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from multidb._core.files import translating
from multidb.errors import BackendError
from multidb.logs._records import Record, Sale, Session
from multidb.logs.backends._in_process import StoredSession, ended, steps_to, touched
from multidb.logs.backends._kind_files import KindFiles, Staged
from multidb.logs.backends._lines import Line, day_of, decode, encode, with_status
from multidb.logs.protocol import Appended, R

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from multidb.logs._records import SaleStatus
    from multidb.logs.backends._session_file import SessionFile
    from multidb.logs.protocol import Entry, SessionTouch

# A file: the one of a kind and a day, or the one of the sessions.
Target: TypeAlias = tuple[type[Record], int] | type[Session]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call."""

    result: Any = None
    error: Exception | None = None


class Batch:
    """
    Calls that are written together.

    Each is worked out on what is stored and on what those before it are about to store; nothing counts until
    the files it went to are synced. When one of these fails, so does every call that wrote to it, or built on
    it.
    """

    def __init__(self, kinds: Mapping[type[Record], KindFiles[Any]], sessions: SessionFile) -> None:
        """Work on these files."""
        self._kinds = kinds
        self._session_file = sessions
        self._staged: dict[tuple[type[Record], int], list[Staged[Any]]] = {}
        self._lines: dict[tuple[type[Record], UUID], Line[Any]] = {}
        self._sessions: dict[tuple[str, str], StoredSession] = {}
        self._session_lines: list[StoredSession] = []
        self._used: set[Target] = set()

    def run(self, calls: Iterable[Any]) -> list[Outcome]:
        """Do *calls*, write, and return what became of each."""
        worked_out = []
        for call in calls:
            self._used = set()
            worked_out.append((self._work_out(call), self._used))
        failed = self._write()
        return [_outcome(outcome, used, failed) for outcome, used in worked_out]

    def append(self, entries: Sequence[Entry[R]]) -> list[Appended]:
        """Store *entries*."""
        return [self._append(entry) for entry in entries]

    def _append(self, entry: Entry[R]) -> Appended:
        known = self._find(type(entry.record), entry.record.id)
        if known is not None:
            return Appended.DUPLICATE if known.digest == entry.digest else Appended.CONFLICT
        self._stage(Staged(encode(entry)))
        return Appended.STORED

    def set_sale_status(
        self, sale_id: UUID, status: SaleStatus, allowed_from: Sequence[SaleStatus]
    ) -> Sale | None:
        """Give a sale a new status. Raises ConflictError."""
        line = self._find(Sale, sale_id)
        if line is None:
            return None
        if steps_to(line.record, status, allowed_from):
            line = with_status(line, status)
            self._stage(Staged(line, again=True))
        # Not the record of the line: that may hold the context of the caller who appended it just now.
        return decode(Sale, line.text).record

    def touch_sessions(self, touches: Sequence[SessionTouch]) -> list[Session]:
        """Start or continue sessions."""
        return [self._touch(touch) for touch in touches]

    def _touch(self, touch: SessionTouch) -> Session:
        stored = touched(self._session(touch.user_id, touch.session_id), touch)
        self._stage_session(stored)
        return stored.copy()

    def end_session(self, user_id: str, session_id: str, now: datetime) -> bool:
        """End a session."""
        stored = ended(self._session(user_id, session_id), now)
        if stored is not None:
            self._stage_session(stored)
        return stored is not None

    def _find(self, kind: type[R], record_id: UUID) -> Line[R] | None:
        line = self._lines.get((kind, record_id))
        if line is None:
            return self._kinds[kind].find(record_id.bytes)
        self._used.add((kind, day_of(line.record.timestamp)))
        return line

    def _stage(self, staged: Staged[Any]) -> None:
        record = staged.line.record
        target = type(record), day_of(record.timestamp)
        self._used.add(target)
        self._staged.setdefault(target, []).append(staged)
        self._lines[type(record), record.id] = staged.line

    def _session(self, user_id: str, session_id: str) -> StoredSession | None:
        stored = self._sessions.get((user_id, session_id))
        if stored is None:
            return self._session_file.get(user_id, session_id)
        self._used.add(Session)
        return stored

    def _stage_session(self, stored: StoredSession) -> None:
        self._used.add(Session)
        self._session_lines.append(stored)
        self._sessions[stored.session.user_id, stored.session.session_id] = stored

    def _work_out(self, call: Callable[[Batch], Any]) -> Outcome:
        try:
            with translating():
                return Outcome(call(self))
        except Exception as exc:  # noqa: BLE001 -- whatever it is, the caller is told
            return Outcome(error=exc)

    def _write(self) -> dict[Target, BackendError]:
        failed: dict[Target, BackendError] = {}
        for (kind, day), staged in self._staged.items():
            try:
                self._kinds[kind].write(day, staged)
            except BackendError as exc:
                failed[kind, day] = exc
        if self._session_lines:
            try:
                self._session_file.write(self._session_lines)
            except BackendError as exc:
                failed[Session] = exc
        return failed


def _outcome(outcome: Outcome, used: set[Target], failed: Mapping[Target, BackendError]) -> Outcome:
    errors = [failed[target] for target in used if target in failed]
    if errors:
        # An error of its own for each call: the route writes the call's name into it.
        error = type(errors[0])(str(errors[0]), ambiguous=errors[0].ambiguous or len(used) > 1)
        error.__cause__ = errors[0].__cause__
        return Outcome(error=error)
    if used and isinstance(outcome.error, BackendError):
        outcome.error.ambiguous = True
    return outcome

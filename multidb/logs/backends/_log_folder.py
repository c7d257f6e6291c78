"""LogFolder: everything a `FileLogBackend` does that is not asyncio."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from multidb._core.files import (
    FolderLock,
    make_folders,
    remove_temporaries,
    sync_folder,
    translating,
    write_atomic,
)
from multidb._core.values import dump, load
from multidb.errors import ConfigurationError
from multidb.logs._records import Event, Message, Record, Sale
from multidb.logs.backends._batch import Batch, Outcome
from multidb.logs.backends._kind_files import KindFiles
from multidb.logs.backends._session_file import SessionFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_FOLDERS: Final[dict[type[Record], str]] = {Event: "events", Sale: "sales", Message: "messages"}
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Alone:
    """A call that shares its writes with no other."""

    call: Callable[[], Any]


Call: TypeAlias = "Callable[[Batch], Any] | Alone"


class LogFolder:
    """A folder of log files. `open()`, `commit()` and `close()` are called by one thread."""

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        self._folder = folder
        self._lock = FolderLock(folder)
        self.kinds: dict[type[Record], KindFiles[Any]] = {
            kind: KindFiles(kind, folder / name) for kind, name in _FOLDERS.items()
        }
        self.sessions = SessionFile(folder / "sessions.jsonl")

    def open(self) -> None:
        """Take the folder, create what is missing, repair and read the rest. Raises ConfigurationError."""
        with translating(), ExitStack() as opened:
            make_folders(self._folder)
            self._lock.acquire()
            opened.callback(self._lock.release)
            remove_temporaries(self._folder)
            self._check_format()
            for kind in self.kinds.values():
                kind.load()
            self.sessions.load()
            sync_folder(self._folder)
            opened.pop_all()

    def close(self) -> None:
        """Close the files and give the folder back."""
        for kind in self.kinds.values():
            kind.close()
        self.sessions.close()
        with translating():
            self._lock.release()

    @property
    def bad_lines(self) -> int:
        """How many lines are skipped because they are not what belongs there."""
        return self.sessions.bad_lines + sum(kind.bad_lines for kind in self.kinds.values())

    def commit(self, calls: Sequence[Call]) -> list[Outcome]:
        """Do *calls* in order. Those that follow each other share one write and one sync of each file."""
        outcomes: list[Outcome] = []
        for alone, group in groupby(calls, lambda call: isinstance(call, Alone)):
            if alone:
                outcomes += [_attempt(call) for call in group]
            else:
                outcomes += Batch(self.kinds, self.sessions).run(group)
        return outcomes

    def _check_format(self) -> None:
        path = self._folder / "format.json"
        if not path.exists():
            write_atomic(path, dump({"multidb": "logs", "format": _FORMAT}) + b"\n")
            return
        try:
            known = load(path.read_bytes())["format"] <= _FORMAT
        except (ValueError, TypeError, KeyError):
            msg = f"{path} is damaged: restore it, or use another folder"
            raise ConfigurationError(msg) from None
        if not known:
            msg = f"{self._folder} was written by a newer multidb: use that version or another folder"
            raise ConfigurationError(msg)


def _attempt(call: Any) -> Outcome:
    try:
        return Outcome(call.call())
    except Exception as exc:  # noqa: BLE001 -- whatever it is, the caller is told
        return Outcome(error=exc)

"""Places: what there is to look at in the folder of a spool, whoever has it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from multidb.errors import ConfigurationError
from multidb.resilience.spool._owners import find_owners
from multidb.resilience.spool._rejected import rejected_paths
from multidb.resilience.spool._segments import scan, segment_paths
from multidb.resilience.spool._source import read_progress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from multidb.resilience.spool._segments import Segment


def folders_of(root: Path, store: str | None) -> Iterator[Path]:
    """Yield the folders with segments; an owner has one, that of its store."""
    root = root.absolute()
    _check_readable(root)
    for owner in find_owners(root):
        with suppress(FileNotFoundError):
            for folder in sorted(owner.iterdir()):
                if folder.is_dir() and store in (None, folder.name):
                    yield folder


def rejected_of(root: Path, store: str | None) -> list[Path]:
    """Return the files of what was set aside."""
    root = root.absolute()
    _check_readable(root)
    return [path for path in rejected_paths(root) if store in (None, path.parent.name)]


def size_of(path: Path) -> int:
    """Return how many bytes a file has; none when it is gone."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def waiting_paths(folder: Path) -> list[tuple[int, Path]]:
    """Return the segments that are not done."""
    number, _ = read_progress(folder)
    with suppress(FileNotFoundError):
        return [(each, path) for each, path in segment_paths(folder) if each >= number]
    return []


def waiting_segments(folder: Path) -> Iterator[tuple[Segment, int]]:
    """Yield the segments that are not done, each with where to begin. The owner may remove some meanwhile."""
    number, offset = read_progress(folder)
    for each, path in waiting_paths(folder):
        with suppress(FileNotFoundError):
            segment = scan(each, path)
            yield segment, max(offset, segment.start) if each == number else segment.start


def check_user(path: Path) -> None:
    """Refuse to write for somebody who could not read it."""
    if sys.platform == "win32":
        return
    with suppress(FileNotFoundError):
        user = path.stat().st_uid
        if user != os.geteuid():
            msg = f"the spool is the user {_user(user)}'s, who could not read what others put back: retry as that user"
            raise ConfigurationError(msg)


def _user(number: int) -> str:
    if sys.platform != "win32":
        import pwd

        with suppress(KeyError):
            return pwd.getpwuid(number).pw_name
    return str(number)


def _check_readable(root: Path) -> None:
    """Refuse a spool that this user cannot look into: there would seem to be nothing in it."""
    try:
        with os.scandir(root) as entries:
            hosts = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for host in hosts:
            os.listdir(host)  # noqa: PTH208 -- to see whether it may be read
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ConfigurationError(f"{root} is no folder: name that of the spool") from None
    except PermissionError:
        raise ConfigurationError(
            f"this user may not read {root}: do it as the one whose program it is"
        ) from None

"""Whether a folder is on a disk: a spool in memory, or on another machine, keeps no promise."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from multidb.errors import ConfigurationError
from multidb.resilience.spool._files import existing

if TYPE_CHECKING:
    from collections.abc import Iterator

_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_ON_THE_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs"}
)
_MOUNTS: Final = Path("/proc/self/mountinfo")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


def check_place(root: Path, *, any_file_system: bool) -> None:
    """
    Raise ConfigurationError where a spool in *root* could not be written, or would not survive.

    In memory nothing outlives a restart of the machine; on a network's file system locks and syncs are somebody
    else's. Where the system does not say what it is (anything but Linux), it is taken for a disk.
    """
    folder = existing(root)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigurationError(f"the spool cannot be written: no permission for {folder}")
    kind = file_system_of(folder)
    if any_file_system or kind not in _IN_MEMORY | _ON_THE_NETWORK:
        return
    why = "is lost with a restart" if kind in _IN_MEMORY else "cannot be trusted with locks and syncs"
    raise ConfigurationError(
        f"the spool in {root} would be on {kind}, which {why}: choose another data folder, or allow any file system"
    )


def file_system_of(folder: Path) -> str:
    """Return the name of the file system that an existing *folder* is on; empty where that is not known."""
    path, kind, longest = folder.resolve(), "", -1
    for point, name in _mounts():
        # A later mount on the same point hides the one before.
        if path.is_relative_to(point) and len(point.parts) >= longest:
            kind, longest = name, len(point.parts)
    return kind


def _mounts() -> Iterator[tuple[Path, str]]:
    with suppress(OSError):
        for line in _MOUNTS.read_text("utf-8", "surrogateescape").splitlines():
            # See proc(5): the optional fields end with a dash.
            fields, _, rest = line.partition(" - ")
            point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields.split()[4])
            yield Path(point), rest.split()[0]

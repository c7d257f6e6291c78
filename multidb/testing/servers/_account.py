"""An unprivileged account for a server that refuses to run as root, and files that it can reach."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

from multidb.errors import ConfigurationError


class Account(NamedTuple):
    """A user that exists on this machine already."""

    uid: int
    gid: int


def unprivileged_account() -> Account | None:
    """Return the account to step down to: None unless this process is root, then `nobody` or another one."""
    if os.geteuid() != 0:
        return None
    import pwd

    # initdb looks its user up by name, so a made-up number will not do.
    accounts = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
    accounts.sort(key=lambda entry: entry.pw_name != "nobody")
    if not accounts:
        msg = "PostgreSQL refuses to run as root and there is no other account; run the tests as another user"
        raise ConfigurationError(msg)
    return Account(accounts[0].pw_uid, accounts[0].pw_gid)


def reachable(path: Path) -> bool:
    """Tell whether any account may enter *path* and every folder above it."""
    folders = [path, *path.parents]
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in folders)


def temporary_folder(prefix: str, account: Account | None) -> Path:
    """Make an empty folder that *account*, if given, may enter but not list."""
    if account is None:
        return Path(tempfile.mkdtemp(prefix=prefix))
    candidates = (Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp"))  # noqa: S108 -- mkdtemp makes a folder in it
    for base in candidates:
        if base.is_dir() and reachable(base):
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
            folder.chmod(0o711)
            return folder
    msg = f"no temporary folder that an unprivileged user can enter; tried {', '.join(map(str, candidates))}"
    raise ConfigurationError(msg)


def link_tree(source: Path, target: Path) -> None:
    """
    Make *source*, which may lie under a private /root, readable for everyone at *target*.

    Hard links where possible (40 MB of PostgreSQL in 30 ms); a copy of one on another disk or unreadable.
    """
    target.mkdir(parents=True, exist_ok=True)
    target.chmod(0o755)
    for entry in os.scandir(source):
        destination = target / entry.name
        if entry.is_dir():
            link_tree(Path(entry.path), destination)
        else:
            _link_file(Path(entry.path), destination)


def _link_file(source: Path, destination: Path) -> None:
    mode = stat.S_IMODE(source.stat().st_mode)
    if mode & stat.S_IROTH:
        try:
            destination.hardlink_to(source.resolve())
        except OSError:
            pass
        else:
            return
    shutil.copyfile(source, destination)
    # Never on a link: that would change the installed file.
    destination.chmod(0o755 if mode & stat.S_IXUSR else 0o644)

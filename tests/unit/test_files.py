"""Files that survive a crash."""

from __future__ import annotations

import errno
import os
import re
import resource
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multidb._core.files import (
    FolderLock,
    make_folders,
    open_or_create,
    remove_temporaries,
    safe_name,
    sync_folder,
    translating,
    write_atomic,
)
from multidb.errors import BackendTimeoutError, BackendUnavailableError, ConfigurationError, OverloadedError
from multidb.testing.conformance._data import AWKWARD_IDS

if TYPE_CHECKING:
    from collections.abc import Iterator


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _raise(error: Exception) -> None:
    raise error


class TestFolders:
    def test_make_folders(self, tmp_path: Path) -> None:
        """Folders that are created are open to this user only; those that were there keep their mode."""
        tmp_path.chmod(0o755)
        make_folders(tmp_path / "a" / "b")
        make_folders(tmp_path / "a" / "b")

        assert [0o755, 0o700, 0o700] == [mode(p) for p in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")]

    def test_parents_are_synced(self, tmp_path: Path, synced: list[str]) -> None:
        """Each new folder is named by its parent durably."""
        make_folders(tmp_path / "a" / "b")

        assert [str(tmp_path), str(tmp_path / "a")] == synced

    def test_sync_of_a_parent_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder that is not durable does not stay: the next attempt would take it for one that is."""
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: _raise(OSError(errno.EIO, os.strerror(errno.EIO))))
            with pytest.raises(OSError, match="Errno 5"):
                make_folders(tmp_path / "a" / "b")

        assert [] == names(tmp_path)
        make_folders(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()

    def test_file_in_the_way(self, tmp_path: Path) -> None:
        """A file where a folder should be is an error."""
        (tmp_path / "a").write_text("")

        with pytest.raises(NotADirectoryError):
            make_folders(tmp_path / "a")

    def test_file_system_without_folder_sync(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a folder cannot be synced that is not an error; where it fails it is."""
        failures = iter([errno.EINVAL, errno.EIO])

        def fsync(_: int) -> None:
            code = next(failures)
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)
        sync_folder(tmp_path)

        with pytest.raises(OSError, match="Errno 5"):
            sync_folder(tmp_path)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the files and folders that are synced, in order."""
    paths = []
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)

        def sync(descriptor: int, real: object = real) -> None:
            paths.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            real(descriptor)

        monkeypatch.setattr(os, name, sync)
    return paths


class TestWriteAtomic:
    def test_content(self, tmp_path: Path) -> None:
        """The new content is there, open to this user only, and nothing else."""
        path = tmp_path / "a"
        path.write_text("old")
        path.chmod(0o644)
        write_atomic(path, b"new")

        assert (b"new", 0o600, ["a"]) == (path.read_bytes(), mode(path), names(tmp_path))

    def test_order(self, tmp_path: Path, synced: list[str]) -> None:
        """The content is synced before the name, the name before the call returns."""
        write_atomic(tmp_path / "a", b"new")

        assert re.fullmatch(r"\.tmp-[0-9a-f]{16}", Path(synced[0]).name)
        assert [str(tmp_path)] == synced[1:]

    def test_full_disk(self, tmp_path: Path, size_limit: None) -> None:
        """A write that stops in the middle leaves the old content, and no temporary file."""
        path = tmp_path / "a"
        path.write_text("old")

        with pytest.raises(OSError, match="File too large"):
            write_atomic(path, b"x" * 10_000)

        assert ("old", ["a"]) == (path.read_text(), names(tmp_path))

    @pytest.mark.parametrize("step", ["fdatasync", "rename"])
    def test_failure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        """Whatever fails before the new name is there leaves the old content."""
        path = tmp_path / "a"
        path.write_text("old")

        def fail(*_: object) -> None:
            raise OSError(errno.EIO, "broken")

        monkeypatch.setattr(os, "replace" if step == "rename" else step, fail)
        monkeypatch.setattr("pathlib.os.replace", fail if step == "rename" else os.replace)
        with pytest.raises(OSError, match="broken"):
            write_atomic(path, b"new")

        assert ("old", ["a"]) == (path.read_text(), names(tmp_path))

    def test_leftovers(self, tmp_path: Path) -> None:
        """What a killed process left is found and removed; nothing else is."""
        for name in ("a", ".tmp-0123456789abcdef", ".lock"):
            (tmp_path / name).write_text("")
        remove_temporaries(tmp_path)

        assert [".lock", "a"] == sorted(names(tmp_path))


@pytest.fixture
def size_limit() -> Iterator[None]:
    """No file grows over 4,096 bytes: the first write is short, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_open_or_create(tmp_path: Path) -> None:
    """A missing file is created for this user only, one that is there is left as it is."""
    (tmp_path / "b").write_text("content")
    with open_or_create(tmp_path / "a") as a, open_or_create(tmp_path / "b") as b:
        assert (b"", b"content", 0o600) == (a.read(), b.read(), mode(tmp_path / "a"))


def seen_by_disk(name: str) -> str:
    """What a disk that ignores case, normalises Unicode and drops trailing dots and spaces makes of a name."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFD", name).casefold()).rstrip(". ")


class TestSafeName:
    @given(st.lists(st.text(max_size=100), min_size=2, max_size=5, unique=True))
    @example(["Ali", "ali", "ALİ", "alı"])
    @example(["é", "e\u0301"])
    @example(["a" * 150, "a" * 151, "a" * 152, "a" * 151 + "b", "A" * 60, "A" * 61, "a" * 85 + "~"])
    @example(["con", "CON", "Con", "%63on"])
    @example(["", "%", ".", "..", " ", "a.", "a ", "a"])
    def test_no_two_share_a_name(self, identifiers: list[str]) -> None:
        """Different identifiers get different names, whatever the disk does to names."""
        assert len(identifiers) == len({seen_by_disk(safe_name(identifier)) for identifier in identifiers})

    @given(st.text(max_size=300))
    def test_safe(self, identifier: str) -> None:
        """A name is short, plain, no path, and no device of Windows, whatever extension follows."""
        name = safe_name(identifier)

        assert re.fullmatch("[a-z0-9_%~-]{1,150}", name)
        assert not re.fullmatch(r"con|prn|aux|nul|com\d|lpt\d", name)
        assert not re.search("%(?![0-9a-f]{2})", name.partition("~")[0]) or name == "%"

    def test_awkward(self) -> None:
        """The identifiers of the conformance suite keep apart."""
        assert len(AWKWARD_IDS) == len({seen_by_disk(safe_name(name)) for name in AWKWARD_IDS})

    def test_readable(self) -> None:
        """A person finds a user's file."""
        assert ["user_123-x", "%41li", "%2e%2e%2fetc", "%63on", "%c4%b1%c5%9f%c4%b1k"] == [
            safe_name(name) for name in ("user_123-x", "Ali", "../etc", "con", "ışık")
        ]


class TestFolderLock:
    def test_one_owner(self, tmp_path: Path) -> None:
        """A second owner is refused with a message that names the folder, the owner and what to do."""
        first, second = FolderLock(tmp_path), FolderLock(tmp_path)
        first.acquire()
        with pytest.raises(ConfigurationError) as refused:
            second.acquire()

        assert f"the folder {tmp_path} is in use by this process: " in str(refused.value)
        assert str(os.getpid()) == (tmp_path / ".lock").read_text()

        first.release()
        second.acquire()
        second.release()

    def test_idempotent(self, tmp_path: Path) -> None:
        """Acquiring what is held and releasing what is not do nothing."""
        lock = FolderLock(tmp_path)
        lock.release()
        lock.acquire()
        lock.acquire()
        lock.release()
        lock.release()
        again = FolderLock(tmp_path)
        again.acquire()
        again.release()

    def test_other_process(self, tmp_path: Path) -> None:
        """The owner is named by its process id, and a killed one owns nothing."""
        code = "import pathlib, sys; from multidb._core.files import FolderLock\n"
        code += (
            "lock = FolderLock(pathlib.Path(sys.argv[1])); lock.acquire(); print('ok', flush=True); input()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as owner:
            assert owner.stdout is not None
            assert "ok\n" == owner.stdout.readline()
            with pytest.raises(
                ConfigurationError, match=rf"in use by process {owner.pid}: stop that process"
            ):
                FolderLock(tmp_path).acquire()
            owner.kill()
            owner.wait()
            lock = FolderLock(tmp_path)
            lock.acquire()

        assert str(os.getpid()) == (tmp_path / ".lock").read_text()
        lock.release()

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_forked_child_holds_nothing(self, tmp_path: Path) -> None:
        """A child that outlives its parent does not keep the lock, nor can it release the parent's."""
        lock = FolderLock(tmp_path)
        lock.acquire()
        from_child, in_child = os.pipe()
        until_closed, outer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(outer)
            lock.release()  # Not the child's to give back.
            os.write(in_child, b".")
            os.read(until_closed, 1)
            os._exit(0)
        os.read(from_child, 1)
        try:
            with pytest.raises(ConfigurationError):
                FolderLock(tmp_path).acquire()
            lock.forget()  # As if this process had died.
            other = FolderLock(tmp_path)
            other.acquire()
            other.release()
        finally:
            os.close(outer)
            os.waitpid(child, 0)
            for descriptor in (from_child, in_child, until_closed):
                os.close(descriptor)

    def test_not_inherited_by_programs(self, tmp_path: Path) -> None:
        """A program that is started does not keep the lock."""
        lock = FolderLock(tmp_path)
        lock.acquire()
        with subprocess.Popen(
            ["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
        ) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            # Its answer shows that it is running: until then it may still be closing what it inherited.
            program.stdin.write(b"x\n")
            program.stdin.flush()
            program.stdout.readline()
            lock.forget()
            other = FolderLock(tmp_path)
            other.acquire()
            other.release()

    def test_no_room_for_the_process_id(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A full disk keeps nobody from taking the lock."""
        _, hard = soft_hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        lock, other = FolderLock(tmp_path), FolderLock(tmp_path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            lock.acquire()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, soft_hard)

        with pytest.raises(ConfigurationError, match="in use by another process"):
            other.acquire()
        lock.release()


class TestTranslating:
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EFBIG])
    def test_full(self, code: int) -> None:
        """What is full is overloaded, and nothing was applied."""
        with pytest.raises(OverloadedError) as raised, translating():
            raise OSError(code, os.strerror(code), "secret-user.json")

        assert not raised.value.ambiguous
        assert errno.errorcode[code] in str(raised.value)

    @pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOENT, errno.ENOTDIR])
    def test_refused(self, code: int) -> None:
        """What the file system refuses is unavailable, and nothing was applied."""
        with pytest.raises(BackendUnavailableError) as raised, translating():
            raise OSError(code, os.strerror(code), "secret-user.json")

        assert not raised.value.ambiguous
        assert "secret-user" not in str(raised.value)

    def test_broken(self) -> None:
        """After an input/output error nobody knows what was applied."""
        with pytest.raises(BackendUnavailableError) as raised, translating():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        assert raised.value.ambiguous

    def test_timeout(self) -> None:
        """A network file system that gives up has timed out."""
        with pytest.raises(BackendTimeoutError), translating():
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def test_without_code(self) -> None:
        """An OSError that says nothing is unavailable."""
        with pytest.raises(BackendUnavailableError), translating():
            raise OSError

    def test_others_pass(self) -> None:
        """Whatever is no OSError passes."""
        with pytest.raises(ValueError, match="other"), translating():
            raise ValueError("other")

"""A file system that forgets what was not synced when its power is cut."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from multidb.errors import ConfigurationError, InvalidArgumentError
from multidb.testing.faults import _fuse
from multidb.testing.faults._seed import note_seed, pick_seed

if TYPE_CHECKING:
    from multidb.testing.faults._lossy_disk import Model, Survivors

_ANSWER_SECONDS = 30.0
_POLL_SECONDS = 0.005
_SHOWN_CHARACTERS = 2000
# The package as a mere name: its process needs three modules of it, and importing all takes ten times as long.
_START = """
import sys, types
folder = sys.argv.pop()
for name in ("multidb", "multidb.testing", "multidb.testing.faults"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from multidb.testing.faults._lossy_server import main
main()
"""

FileOperation: TypeAlias = Literal[
    "create",
    "mkdir",
    "unlink",
    "rmdir",
    "rename",
    "link",
    "open",
    "read",
    "write",
    "truncate",
    "fsync",
    "fsyncdir",
]


class LossyFS:
    """
    A folder, `path`, on a file system of its own, for `with` or `async with`: `power_cut()` loses what was not synced.

    The content of a file is safe after fsync() or fdatasync() of it, a name (made, renamed, removed) after fsync() of
    its folder. *model* `strict` means that and no more; `ordered` is like ext4: any sync makes all earlier names
    durable. Modes and owners are always durable. *survivors* `nothing`: all the rest is lost, the worst case;
    `something`: a part of it survives, drawn by *seed* (see `pick_seed()`): the first so many writes and a torn one,
    or any of them with zeros between, and the first so many names.

    It is FUSE, spoken by a small process of ours without libfuse: for Linux with /dev/fuse, as root or with
    fusermount3; `lossyfs_skip_reason()` says what is missing. Every call on the path costs some 50 µs. Everything is
    in that process's memory. Symbolic links and extended attributes are not there.

        with LossyFS() as disk:
            process = subprocess.Popen([sys.executable, "writes.py", disk.path])
            ...
            disk.power_cut()
            process.kill()
            assert acknowledged <= stored_in(disk.path)
    """

    def __init__(
        self, *, model: Model = "strict", survivors: Survivors = "nothing", seed: int | None = None
    ) -> None:
        """Remember how; nothing happens before `start()`."""
        self.seed = pick_seed(seed)
        self._model = model
        self._survivors = survivors
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> Path:
        """The folder to write in, the same also after a cut."""
        if self._folder is None:
            msg = "this file system is not started"
            raise ConfigurationError(msg)
        return self._folder / "disk"

    def start(self) -> Self:
        """Mount it, empty. Raises ConfigurationError where that cannot be."""
        if self._process is not None:
            return self
        self._folder = Path(tempfile.mkdtemp(prefix="multidb-lossy-"))
        self._folder.chmod(0o755)
        self.path.mkdir()
        options = {"path": str(self.path), "model": self._model, "seed": self.seed}
        argv = [sys.executable, "-I", "-S", "-c", _START, json.dumps(options), str(Path(__file__).parent)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 -- this interpreter, a module of ours
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                # A Ctrl-C in the terminal is for the test run, which then unmounts.
                start_new_session=True,
                cwd="/",
            )
        atexit.register(self.stop)
        try:
            self._check_mounted()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Unmount it, with everything; idempotent. What still has it open gets errors."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None  # noqa: S101 -- for mypy: it is a pipe
            assert process.stdout is not None  # noqa: S101
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b'{"do": "stop"}\n')
            process.stdin.close()
            try:
                process.wait(_ANSWER_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        if self._folder is not None:
            # Where its process was killed, the mount is still there.
            _fuse.unmount(self.path, by_helper=os.geteuid() != 0)
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            note_seed(error, self.seed)
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        await asyncio.to_thread(self.__exit__, _, error, __)

    def power_cut(self) -> None:
        """
        Cut the power and switch on again, within some milliseconds: `path` holds what had become durable.

        Whoever has a file open there gets an error from every call (ENOTCONN, ECONNABORTED), as its machine is gone:
        end it. Faults and limits stay.
        """
        self._order("cut", survivors=self._survivors)

    def freeze_after(self, changes: int) -> None:
        """
        Let so many more changes happen (anything but `open` and `read`), then answer nothing until `power_cut()`.

        That makes the moment of the cut exact: with 1, 2, 3, … every one in the life of a program can be tried.
        Programs that wait then can be killed.
        """
        if changes < 0:
            msg = "changes: must not be negative"
            raise InvalidArgumentError(msg)
        self._order("freeze_after", changes=changes)

    @property
    def frozen(self) -> bool:
        """Whether `freeze_after()` has struck."""
        return bool(self._order("status")["frozen"])

    def wait_frozen(self, seconds: float = 10.0) -> bool:
        """Wait until it is frozen, up to *seconds*; return whether it is."""
        deadline = time.monotonic() + seconds
        while not self.frozen:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def fail(
        self,
        operation: FileOperation,
        error: int,
        *,
        after_calls: int = 0,
        after_bytes: int = 0,
        times: int | None = None,
    ) -> None:
        """
        Let *operation* fail with *error*, a number of `errno` such as `errno.EIO`, until `heal()`, or so many *times*.

        The first *after_calls* go well, then as many writes as fill *after_bytes*; the last of them is short. After a
        failed `fsync` what was to be synced never becomes durable, although it can be read, and the next one says
        that all is well: so does Linux.
        """
        self._order(
            "fail",
            operation=operation,
            number=error,
            after_calls=after_calls,
            after_bytes=after_bytes,
            times=times,
        )

    def limit(self, size_bytes: int | None) -> None:
        """Let the contents of all files be at most so large: a write that does not fit is short, then ENOSPC."""
        self._order("limit", capacity=size_bytes)

    def heal(self) -> None:
        """End what `fail()` and `limit()` began."""
        self._order("heal")

    def counts(self) -> dict[str, int]:
        """Return how often each operation was asked for since the start, failed ones included."""
        counts: dict[str, int] = self._order("status")["counts"]
        return counts

    @property
    def _log(self) -> Path:
        return self.path.with_name("log")

    def _gone(self) -> ConfigurationError:
        printed = ""
        with contextlib.suppress(FileNotFoundError):
            printed = self._log.read_text(errors="replace")[-_SHOWN_CHARACTERS:]
        msg = f"the process of this file system has ended or does not answer; it printed: {printed}"
        return ConfigurationError(msg)

    def _check_mounted(self) -> None:
        answer = self._answer()
        if "error" in answer:
            raise ConfigurationError(answer["error"])

    def _order(self, what: str, **details: Any) -> Any:
        if self._process is None or self._process.stdin is None:
            msg = "this file system is not started"
            raise ConfigurationError(msg)
        try:
            self._process.stdin.write(json.dumps({"do": what, **details}).encode() + b"\n")
        except BrokenPipeError as exc:
            raise self._gone() from exc
        return self._answer()

    def _answer(self) -> Any:
        assert self._process is not None  # noqa: S101 -- for mypy: the callers have it
        assert self._process.stdout is not None  # noqa: S101
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        line = self._process.stdout.readline() if poll.poll(_ANSWER_SECONDS * 1000) else b""
        if not line:
            raise self._gone()
        return json.loads(line)


@functools.cache
def lossyfs_skip_reason() -> str | None:
    """Say why there can be no `LossyFS` here; None when there can. Tries it once, which takes half a second."""
    if sys.platform != "linux" or not _fuse.DEVICE.exists():
        return "LossyFS needs Linux with /dev/fuse"
    try:
        with LossyFS():
            return None
    except (ConfigurationError, OSError) as exc:
        return f"LossyFS needs to mount: be root, or install fuse3 ({exc})"

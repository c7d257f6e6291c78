"""A machine that is simulated: a disk that forgets what was not synced, programs that are killed, and their threads."""

from __future__ import annotations

import asyncio
import builtins
import errno
import os
import stat
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, Self
from uuid import UUID

from greenlet import getcurrent, greenlet
from virtual_time import VirtualLoop

from multidb._core import files, ids
from multidb.resilience.spool import _disks, _files, _owners, _rejected, _segments, _workers
from multidb.testing.faults._lossy_disk import ROOT, LossyDisk, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    import pytest

_TURNS = 200


class Killed(BaseException):
    """Where this is raised a program is not there any more: it does nothing that anybody else could see."""


class SimulatedLoop(VirtualLoop):
    """One for all programs. What would run in a thread runs in a greenlet, which can be left at any touch of the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(_owned_task)

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, call: Any, *args: Any) -> Any:
        program = PROGRAM.get()
        assert program is not None
        return asyncio.wrap_future(Executor(program).submit(lambda: call(*args)), loop=self)


PROGRAM: ContextVar[Program | None] = ContextVar("program", default=None)
"""Whose code runs."""


def _owned_task(
    loop: Any, coroutine: Any, context: Context | None = None, **others: Any
) -> asyncio.Task[Any]:
    """Make a task of the program that makes it, also where it has a context of its own."""
    program = PROGRAM.get()
    context = copy_context() if context is None else context
    context.run(PROGRAM.set, program)
    task = asyncio.Task(coroutine, loop=loop, context=context, **others)
    if program is not None:
        program.tasks[task] = None
        task.add_done_callback(lambda done: program.tasks.pop(done, None))
    return task


class Program:
    """A process of the machine. What it starts belongs to it, and ends with it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.pid = machine.next_pid()
        self.dead = False
        self.doom: int | None = None
        """It is killed when it touches the disk for the so many-th time from now on."""
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.threads: list[_Thread] = []
        machine.programs.append(self)

    def start(self, call: Any, name: str) -> asyncio.Task[Any]:
        """Run *call* as this program's."""
        context = Context()
        context.run(PROGRAM.set, self)
        return context.run(asyncio.create_task, call, name=name)

    def kill(self) -> None:
        """As kill -9: what it wrote is in the page cache, its locks are free, and nothing of it runs any more."""
        if self.dead:
            return
        self.dead = True
        self.machine.kills += 1
        self.machine.disk.close_all(self)
        Context().run(asyncio.get_running_loop().call_soon, self._end_threads)
        self.machine.burials.append(Context().run(asyncio.create_task, self._bury(), name="burial"))

    def died(self) -> NoReturn:
        self.kill()
        raise Killed

    def _end_threads(self) -> None:
        for thread in self.threads:
            thread.token += 1
            if thread and not thread.dead:
                thread.throw(Killed)
        self.threads.clear()

    async def _bury(self) -> None:
        """End its tasks, in no time: whatever they do now, nobody sees it."""
        for _ in range(_TURNS):
            tasks = [task for task in self.tasks if not task.done()]
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
        left = [task for task in self.tasks if not task.done()]
        assert not left, left
        loop = asyncio.get_running_loop()
        for timer in loop.timers():  # type: ignore[attr-defined]
            if timer._context.get(PROGRAM) is self:
                timer.cancel()
        self.machine.programs.remove(self)


class _Thread(greenlet):
    def __init__(self, program: Program, run: Callable[[], None]) -> None:
        super().__init__(run, program.machine.main)
        self.program = program
        self.token = 0
        self.gr_context = Context()
        self.gr_context.run(PROGRAM.set, program)
        program.threads.append(self)

    def wake(self, token: int) -> None:
        if token == self.token and not self.dead:
            self.switch()


def pause(seconds: float = 0.0) -> None:
    """In a thread: let others go on, and time pass."""
    thread = getcurrent()
    if not isinstance(thread, _Thread):
        return
    thread.token += 1
    loop = thread.program.machine.loop
    if seconds:
        loop.call_later(seconds, thread.wake, thread.token)
    else:
        loop.call_soon(thread.wake, thread.token)
    assert thread.parent is not None
    thread.parent.switch()
    if thread.program.dead:
        raise Killed


class Executor:
    """One thread, as `ThreadPoolExecutor(1)`."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._running = False
        self._is_over = False

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        if self._is_over:
            msg = "cannot schedule new futures after shutdown"
            raise RuntimeError(msg)
        future: Future[Any] = Future()
        self._calls.append((call, future))
        if not self._running:
            self._running = True
            thread = _Thread(self._program, self._run)
            self._program.machine.loop.call_soon(thread.wake, thread.token)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._is_over = True
        while cancel_futures and self._calls:
            self._calls.popleft()[1].cancel()
        while wait and self._running and not self._program.dead:
            if isinstance(getcurrent(), _Thread):
                pause(0.0005)
            else:  # The event loop waits, and with it all: the other threads go on all the same.
                for thread in [each for each in self._program.threads if not each.dead]:
                    thread.token += 1
                    thread.switch()

    def _run(self) -> None:
        while self._calls and not self._program.dead:
            call, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except Killed:
                return
            except BaseException as exc:  # noqa: BLE001
                future.set_exception(exc)
            else:
                future.set_result(result)
        self._running = False
        thread = getcurrent()
        assert isinstance(thread, _Thread)
        if thread in self._program.threads:
            self._program.threads.remove(thread)


class SimulatedLock:
    """A lock between threads."""

    def __init__(self) -> None:
        self._is_held = False

    def __enter__(self) -> None:
        while self._is_held:
            assert isinstance(getcurrent(), _Thread), "the event loop waits for a lock"
            pause(0.0001)
        self._is_held = True

    def __exit__(self, *_: object) -> None:
        self._is_held = False


class _Open:
    def __init__(self, program: Program | None, node: Node, flags: int) -> None:
        self.program = program
        self.node = node
        self.flags = flags
        self.at = 0


class SimulatedDisk:
    """
    The system calls that the spool makes, on a `LossyDisk`. Each is a moment at which others may go on.

    *failing* has the errors of operations, such as `{"fsync": errno.EIO}`; *slow* is what a sync takes.
    """

    def __init__(self, random: Random, *, model: Any) -> None:
        self.disk = LossyDisk(model, random)
        self.failing: dict[str, int] = {}
        self.slow = 0.001
        self.operations = 0
        self._random = random
        self._open: dict[int, _Open] = {}
        self._next = 1000
        self._locks: dict[int, int] = {}

    def heal(self) -> None:
        self.failing.clear()
        self.slow = 0.001
        self.disk.capacity = None

    def power_cut(self, survivors: Any) -> None:
        """Forget. Whoever was running is dead by now."""
        assert not self._open
        self.disk.cut_power(survivors)

    def close_all(self, program: Program) -> None:
        for number, each in list(self._open.items()):
            if each.program is program:
                self._closed(number)

    # What the os module has

    def open(self, path: SimulatedPath, flags: int, _: int = 0) -> int:
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        program = self._touch("create" if flags & os.O_CREAT else "write" if writes else "read")
        try:
            node = self.node(path)
        except OSError:
            if not flags & os.O_CREAT:
                raise
            node = self.disk.make(self.node(path.parent).number, _name(path), stat.S_IFREG | 0o600, 0, 0)
        else:
            if flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, "exists")
            if node.names is not None and writes:
                raise IsADirectoryError(errno.EISDIR, "a folder")
        node.opened += 1
        self._next += 1
        self._open[self._next] = _Open(program, node, flags)
        return self._next

    def close(self, number: int) -> None:
        self._alive()
        self._closed(number)

    def fsync(self, number: int) -> None:
        node = self._at(number).node
        try:
            self._touch("fsync", self.slow * (0.5 + self._random.random()))
        except OSError:
            self.disk.fail_sync(node.number)
            raise
        self.disk.sync(node.number)

    fdatasync = fsync

    def fstat(self, number: int) -> Any:
        return _stat(self._at(number).node)

    def mkdir(self, path: SimulatedPath) -> None:
        self._touch("create")
        self.disk.make(self.node(path.parent).number, _name(path), stat.S_IFDIR | 0o700, 0, 0)

    def remove(self, path: SimulatedPath, *, is_folder: bool) -> None:
        self._touch("unlink")
        self.disk.remove(self.node(path.parent).number, _name(path), is_folder=is_folder)

    def replace(self, old: SimulatedPath, new: SimulatedPath) -> None:
        self._touch("rename")
        source, target = self.node(old.parent).number, self.node(new.parent).number
        self.disk.rename(source, _name(old), target, _name(new))

    def listdir(self, path: SimulatedPath) -> list[str]:
        self._touch("read")
        return [name.decode() for name in self.node(path).folder]

    def stat(self, path: SimulatedPath) -> Any:
        self._touch("stat")
        return _stat(self.node(path))

    def usage(self, _: object) -> Any:
        free = self.disk.free
        total = 1 << 40 if self.disk.capacity is None else self.disk.capacity
        return SimpleNamespace(total=total, free=total if free is None else free)

    def lock(self, number: int) -> None:
        inode = self._at(number).node.number
        if self._locks.setdefault(inode, number) != number:
            raise BlockingIOError(errno.EWOULDBLOCK, "locked")

    def unlock(self, number: int) -> None:
        inode = self._at(number).node.number
        if self._locks.get(inode) == number:
            del self._locks[inode]

    # What files have

    def read(self, number: int, size: int = -1) -> bytes:
        file = self._at(number)
        self._touch("read")
        return self._taken(file, len(file.node.data) - file.at if size < 0 else size)

    def read_line(self, number: int, most: int = -1) -> bytes:
        """Part of a larger read: nobody comes in between."""
        file = self._at(number)
        if "read" in self.failing:
            self._touch("read")
        end = file.node.data.find(b"\n", file.at) + 1 or len(file.node.data)
        return self._taken(file, max(0, end - file.at if most < 0 else min(end - file.at, most)))

    def write(self, number: int, data: bytes) -> int:
        file = self._at(number)
        program = self._touch("write", may_die=False)
        if self._random.random() < 0.02 and len(data) > 1:
            data = data[: self._random.randint(1, len(data) - 1)]
        dies = program is not None and self._dies(program)
        if dies:
            data = data[: self._random.randint(0, len(data))]
        if file.flags & os.O_APPEND:
            file.at = len(file.node.data)
        written = self.disk.write(file.node.number, file.at, bytes(data)) if data else 0
        file.at += written
        if dies and program is not None:
            program.died()
        return written

    def truncate(self, number: int, size: int) -> None:
        file = self._at(number)
        self._touch("truncate")
        self.disk.resize(file.node.number, size)

    def seek(self, number: int, offset: int, whence: int) -> int:
        file = self._at(number)
        file.at = offset + (len(file.node.data) if whence == os.SEEK_END else 0)
        return file.at

    def node(self, path: SimulatedPath) -> Node:
        node = self.disk.node(ROOT)
        for name in path.parts[1:]:
            node = self.disk.look_up(node.number, name.encode())
        return node

    def files(self) -> list[str]:
        """The paths of all files there are."""
        return sorted(self._files(ROOT, ""))

    def _files(self, number: int, path: str) -> Iterator[str]:
        for name, child in self.disk.node(number).folder.items():
            below = f"{path}/{name.decode()}"
            if self.disk.node(child).names is None:
                yield below
            else:
                yield from self._files(child, below)

    def _taken(self, file: _Open, size: int) -> bytes:
        data = self.disk.read(file.node.number, file.at, size)
        file.at += len(data)
        return data

    def _at(self, number: int) -> _Open:
        self._alive()
        return self._open[number]

    def _closed(self, number: int) -> None:
        file = self._open.pop(number)
        if self._locks.get(file.node.number) == number:
            del self._locks[file.node.number]
        self.disk.close(file.node.number)

    def _alive(self) -> Program | None:
        thread = getcurrent()
        program = thread.program if isinstance(thread, _Thread) else PROGRAM.get()
        if program is not None and program.dead:
            raise Killed
        return program

    def _touch(self, kind: str, seconds: float = 0.0, *, may_die: bool = True) -> Program | None:
        program = self._alive()
        if program is None:
            return None
        self.operations += 1
        pause(seconds)
        if may_die and self._dies(program):
            program.died()
        if kind in self.failing:
            raise OSError(self.failing[kind], "simulated")
        return program

    def _dies(self, program: Program) -> bool:
        if program.doom is None:
            return False
        program.doom -= 1
        return program.doom < 0


class Machine:
    """A disk, and the programs on it. There is one at a time."""

    def __init__(self, random: Random, *, model: Any = "strict", survivors: Any = "something") -> None:
        self.random = random
        self.loop = asyncio.get_running_loop()
        self.main = getcurrent()
        self.disk = SimulatedDisk(random, model=model)
        self.programs: list[Program] = []
        self.burials: list[asyncio.Task[None]] = []
        self.kills = 0
        self.cuts = 0
        self._survivors = survivors
        self._pid = 100

    def next_pid(self) -> int:
        self._pid += 1
        return self._pid

    def power_cut(self) -> None:
        """All programs end at this moment, and what was not synced is lost."""
        for program in list(self.programs):
            program.kill()
        self.disk.power_cut(self._survivors)
        self.cuts += 1

    def mount(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put this machine under the code of the spool."""
        global _disk  # noqa: PLW0603
        _disk = self.disk
        system = _System(self)
        for module in (files, ids, _disks, _owners, _rejected, _segments):
            monkeypatch.setattr(module, "os", system)
        monkeypatch.setattr(files, "open", _open_file, raising=False)
        monkeypatch.setattr(files, "fcntl", _Locks(self.disk))
        monkeypatch.setattr(files, "token_hex", lambda size: self.random.randbytes(size).hex())
        monkeypatch.setattr(_files, "os", system)
        monkeypatch.setattr(_files, "shutil", SimpleNamespace(disk_usage=self.disk.usage))
        monkeypatch.setattr(_files, "monotonic", self.loop.time)
        monkeypatch.setattr(_files, "Lock", SimulatedLock)
        monkeypatch.setattr(_disks, "file_system_of", lambda _: "")
        monkeypatch.setattr(_owners, "uuid4", lambda: UUID(bytes=self.random.randbytes(16), version=4))
        monkeypatch.setattr(_workers, "ThreadPoolExecutor", lambda *_: Executor(_current()))


def _current() -> Program:
    program = PROGRAM.get()
    assert program is not None
    return program


_disk: SimulatedDisk


class _System:
    """In the place of the os module."""

    def __init__(self, machine: Machine) -> None:
        disk = machine.disk
        self.open, self.close, self.fsync, self.fdatasync = disk.open, disk.close, disk.fsync, disk.fdatasync
        self.fstat, self.listdir = disk.fstat, disk.listdir
        self.urandom = machine.random.randbytes

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def getpid(self) -> int:
        program = PROGRAM.get()
        return 1 if program is None else program.pid

    def access(self, *_: object) -> bool:
        return True

    @contextmanager
    def scandir(self, path: SimulatedPath) -> Iterator[list[Any]]:
        yield [
            SimpleNamespace(name=name, is_dir=lambda name=name, **_: (path / name).is_dir())
            for name in self.listdir(path)
        ]


class _Locks:
    LOCK_EX, LOCK_NB, LOCK_UN = 2, 4, 8

    def __init__(self, disk: SimulatedDisk) -> None:
        self._disk = disk

    def flock(self, number: int, operation: int) -> None:
        if operation == self.LOCK_UN:
            self._disk.unlock(number)
        else:
            self._disk.lock(number)


_FLAGS = {
    "rb": os.O_RDONLY,
    "r+b": os.O_RDWR,
    "x+b": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "a+b": os.O_RDWR | os.O_CREAT | os.O_APPEND,
}


def _open_file(path: Any, mode: str = "rb", buffering: int = -1, opener: Any = None) -> Any:
    if not isinstance(path, SimulatedPath):
        return builtins.open(path, mode, buffering, opener=opener)
    return SimulatedFile((_disk.open if opener is None else opener)(path, _FLAGS[mode]))


class SimulatedFile:
    def __init__(self, number: int) -> None:
        self._number = number
        self._is_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._number

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            _disk.close(self._number)

    def read(self, size: int = -1) -> bytes:
        return _disk.read(self._number, size)

    def readline(self, most: int = -1) -> bytes:
        return _disk.read_line(self._number, most)

    def write(self, data: bytes) -> int:
        return _disk.write(self._number, data)

    def truncate(self, size: int) -> None:
        _disk.truncate(self._number, size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return _disk.seek(self._number, offset, whence)


class SimulatedPath(PurePosixPath):
    """What the spool does with a path."""

    __slots__ = ()

    def absolute(self) -> SimulatedPath:
        return self

    def stat(self) -> Any:
        return _disk.stat(self)

    def is_dir(self) -> bool:
        try:
            return stat.S_ISDIR(self.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def exists(self) -> bool:
        try:
            self.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def mkdir(self, _: int = 0) -> None:
        _disk.mkdir(self)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            _disk.remove(self, is_folder=False)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        _disk.remove(self, is_folder=True)

    def replace(self, target: SimulatedPath) -> None:
        _disk.replace(self, target)

    def iterdir(self) -> Iterator[SimulatedPath]:
        return (self / name for name in _disk.listdir(self))

    def glob(self, pattern: str) -> Iterator[SimulatedPath]:
        first, _, rest = pattern.partition("/")
        if not self.is_dir():
            return
        for path in self.iterdir():
            if fnmatchcase(path.name, first):
                if rest:
                    yield from path.glob(rest)
                else:
                    yield path

    def open(self, mode: str = "rb", buffering: int = -1) -> SimulatedFile:
        return _open_file(self, mode)

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return file.read()


def _name(path: SimulatedPath) -> bytes:
    return path.name.encode()


def _stat(node: Node) -> Any:
    return SimpleNamespace(
        st_dev=1,
        st_ino=node.number,
        st_mode=node.mode,
        st_nlink=node.links,
        st_size=len(node.data),
        st_mtime=node.changed_ns / 1e9,
        st_mtime_ns=node.changed_ns,
    )

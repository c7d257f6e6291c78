"""The life of a server on a loopback port: start, stop, and the accidents that a test needs."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import time
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn, Self

from multidb.errors import ConfigurationError
from multidb.testing.servers._account import Account, temporary_folder
from multidb.testing.servers._lock import FolderLock
from multidb.testing.servers._ports import ReservedPort
from multidb.testing.servers._process import SupervisedProcess
from multidb.testing.servers._startable import Startable
from multidb.testing.servers._supervisor import descendants, process_state, send_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LOG_LINES = 20
_POLL_SECONDS = 0.02


class Server(Startable):
    """
    One server process with its port, data and log.

    *data_dir* keeps the data, and the port, from one run to the next; by default they are temporary.
    *arguments* are added to the server's command line. Not for use from several threads at once.
    """

    name: ClassVar[str]
    ports_needed: ClassVar[int] = 1
    clean_stop: ClassVar[signal.Signals] = signal.SIGTERM
    quick_stop: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(
        self,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        arguments: Sequence[str] = (),
        start_seconds: float = 60.0,
        stop_seconds: float = 20.0,
    ) -> None:
        """Remember how to run; nothing happens before `start()`."""
        self._data_dir = None if data_dir is None else Path(data_dir).absolute()
        self._arguments = tuple(arguments)
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self._folder: Path | None = None
        self._ports: list[ReservedPort] = []
        self._process: SupervisedProcess | None = None
        self._lock: FolderLock | None = None
        self._owner = 0
        self._has_served = False

    @property
    def folder(self) -> Path:
        """The temporary folder with the log, and with the data unless *data_dir* was given."""
        if self._folder is None:
            raise self._not_started()
        return self._folder

    @property
    def home(self) -> Path:
        """The folder with the data: *data_dir* or the temporary one."""
        return self._data_dir or self.folder

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1, the same until `stop()`."""
        if not self._ports:
            raise self._not_started()
        return self._ports[0].number

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if not self.running or self._process is None or self._process.pid is None:
            msg = f"{self.name} does not run"
            raise ConfigurationError(msg)
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server process exists, be it paused."""
        process = self._process
        return process is not None and process.pid is not None and process.exit_code() is None

    @property
    def log(self) -> str:
        """What the server and its set-up have printed since `start()`."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def start(self) -> Self:
        """Start the server, also after `kill()`; return once it answers, or raise with the end of its log."""
        if self.running:
            return self
        try:
            if self._process is None:
                self._acquire()
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server, cleanly if *data_dir* was given, and remove its temporary files; idempotent."""
        if self._owner not in {0, os.getpid()}:
            return  # a forked child has the object but not the server
        atexit.unregister(self.stop)
        if self._process is not None:
            self._process.close()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        self._release_ports()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._has_served = False

    def kill(self) -> None:
        """SIGKILL the server and all its processes; return when they are gone. `start()` brings it back."""
        if self.running:
            send_signal(self.pid, signal.SIGKILL)
            self._wait_gone()

    def restart(self) -> Self:
        """Shut the server down cleanly if it runs, and start it on the same port and data."""
        if self.running:
            self.resume()
            send_signal(self.pid, self.clean_stop)
            self._wait_gone()
        return self.start()

    def pause(self) -> None:
        """Freeze the server with SIGSTOP: connections stay open and nothing answers. `resume()` undoes it."""
        pid = self.pid
        send_signal(pid, signal.SIGSTOP)
        # PostgreSQL's children answer queries, and the last of them was perhaps just being made.
        while moving := [
            each for each in (pid, *descendants(pid)) if process_state(each)[0] not in {"", "T", "Z"}
        ]:
            for each in moving:
                send_signal(each, signal.SIGSTOP)
            time.sleep(0.001)

    def resume(self) -> None:
        """Let a paused server go on."""
        for pid in (*descendants(self.pid), self.pid):
            send_signal(pid, signal.SIGCONT)

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the program and its arguments."""

    @abstractmethod
    def _answers(self, pid: int) -> bool:
        """Connect once; tell whether the server with this *pid*, and not another one on its port, serves."""

    def _account(self) -> Account | None:
        """Return the account to run as; None for our own."""
        return None

    def _prepare(self) -> None:
        """Get empty data ready."""
        self._data.mkdir(exist_ok=True)

    def _settle(self) -> None:
        """Do what a server that answers still needs before it serves."""

    @property
    def _data(self) -> Path:
        return self.home / "data"

    @property
    def _log_path(self) -> Path:
        return self.folder / "server.log"

    @property
    def _supervised(self) -> SupervisedProcess:
        if self._process is None:
            raise self._not_started()
        return self._process

    def _not_started(self) -> ConfigurationError:
        return ConfigurationError(f"{self.name} is not started")

    def _acquire(self) -> None:
        """Get folders, ports and the supervisor that gives them back if this process dies."""
        self._owner = os.getpid()
        atexit.register(self.stop)
        self._folder = temporary_folder(f"multidb-{self.name.lower()}-", self._account())
        if self._data_dir is not None:
            self._data_dir.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self._data_dir)
        self._process = SupervisedProcess(
            remove=self._folder,
            log=self._log_path,
            farewell=self.clean_stop if self._data_dir else self.quick_stop,
            grace_seconds=self._stop_seconds,
            keep_open=() if self._lock is None else (self._lock.file,),
        )
        self._reserve_ports()
        self._prepare()

    def _reserve_ports(self) -> None:
        numbers = [0] * self.ports_needed
        remembered = self.home / "ports.json"
        if remembered.exists():
            numbers = json.loads(remembered.read_text())
        for number in numbers:
            self._ports.append(ReservedPort(number))
        if self._data_dir is not None:
            remembered.write_text(json.dumps([port.number for port in self._ports]))

    def _release_ports(self) -> None:
        while self._ports:
            self._ports.pop().close()

    def _launch(self) -> None:
        for attempts_left in (2, 1, 0):
            pid = self._run(self._command(), cwd=self._data)
            try:
                self._wait_until(functools.partial(self._answers, pid), "answers")
                break
            except ConfigurationError:
                if not attempts_left or not self._may_move():
                    raise
                self._release_ports()
                self._reserve_ports()
        self._settle()
        self._has_served = True

    def _may_move(self) -> bool:
        """Whether another port may help, which nobody knows the number of yet."""
        fresh = self._data_dir is None and not self._has_served
        return fresh and not self.running and "ddress already in use" in self.log

    def _run(self, argv: Sequence[str], *, cwd: Path) -> int:
        return self._supervised.run(argv, cwd=cwd, account=self._account())

    def _run_to_end(self, argv: Sequence[str], *, cwd: Path) -> None:
        """Run a set-up program, as the account of the server."""
        self._run(argv, cwd=cwd)
        code = self._supervised.exit_code(self._start_seconds)
        if code != 0:
            outcome = "did not end in time" if code is None else f"ended with {code}"
            self._fail(f"{Path(argv[0]).name} {outcome}")

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Poll until *condition*; raise with the log's last lines when the server ends or time runs out."""
        process = self._supervised
        deadline = time.monotonic() + self._start_seconds
        while not condition():
            code = process.exit_code(_POLL_SECONDS)
            if code is not None:
                self._fail(f"it ended with {code}")
            if time.monotonic() > deadline:
                self._fail(f"after {self._start_seconds:g} s it is not true that it {what}")

    def _wait_gone(self) -> None:
        if self._supervised.exit_code(self._stop_seconds) is None:
            msg = f"{self.name} did not end within {self._stop_seconds:g} s"
            raise ConfigurationError(msg)

    def _fail(self, reason: str) -> NoReturn:
        lines = self.log.splitlines()[-_LOG_LINES:]
        msg = "\n".join([f"{self.name} did not start: {reason}. Its log ends:", *lines])
        raise ConfigurationError(msg)

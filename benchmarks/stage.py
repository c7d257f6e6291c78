"""The servers that all contenders share, and a place of its own on them for each."""

from __future__ import annotations

import asyncio
import importlib.util
import tempfile
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from benchmarks import events
from multidb import MultiDB, Settings
from multidb.testing import servers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import TracebackType

T = TypeVar("T")

_MEMORY = "memory://"


class UnavailableError(Exception):
    """A contender or a scenario cannot be run here, and why."""


class Servers:
    """PostgreSQL, MongoDB (a replica set of one) and Valkey out of their wheels, each from its first use to the end."""

    def __init__(self, *, rows: int, appendonly: bool = False) -> None:
        """Start nothing yet. *rows* is what a large table has; with *appendonly* Valkey syncs every write."""
        self.rows = rows
        self._appendonly = appendonly
        self._large: dict[str, str] = {}
        self._running: dict[str, Any] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._running.clear()
        self._open.close()

    @property
    def running(self) -> dict[str, Any]:
        """Return the servers that were started, by kind."""
        return dict(self._running)

    def get(self, kind: servers.Kind) -> Any:
        """Return the server of a *kind*, started now if it was not."""
        if kind not in self._running:
            reason = servers.unavailable(kind)
            if reason is not None:
                raise UnavailableError(reason)
            self._running[kind] = self._open.enter_context(self._started(kind))
        return self._running[kind]

    def _started(self, kind: servers.Kind) -> AbstractContextManager[Any]:
        if kind == "postgres":
            return servers.postgres()
        if kind == "mongodb":
            return servers.mongodb(replica_set=True)
        return servers.valkey(fsync=self._appendonly)

    async def large(self, kind: str) -> str:
        """Return the URL of a database, `postgres` or `sqlite`, that has many events; it is made once and only read."""
        if kind not in self._large:
            self._large[kind] = await (self._large_postgres() if kind == "postgres" else self._large_sqlite())
        return self._large[kind]

    async def _large_postgres(self) -> str:
        url = await with_tables(self._open.enter_context(self.get("postgres").database()))
        await events.load_postgres(url, self.rows)
        return url

    async def _large_sqlite(self) -> str:
        path = self._open.enter_context(temporary_folder()) / "logs.db"
        url = await with_tables(f"sqlite:///{path}")
        await asyncio.to_thread(events.load_sqlite, str(path), self.rows)
        return url


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder that is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="multidb-bench-") as folder:
        yield Path(folder)


class Stage:
    """What a scenario runs on: databases, folders and open clients that are gone when it ends."""

    def __init__(self, running: Servers) -> None:
        """Hand out places on the servers *running*."""
        self._servers = running
        self.rows = running.rows
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._closing.aclose()

    def postgres(self) -> str:
        """Return the URL of an empty database."""
        return str(self._closing.enter_context(self._servers.get("postgres").database()))

    def mongodb(self) -> str:
        """Return the URI of an empty database, with the write concern that everybody has."""
        uri = self._closing.enter_context(self._servers.get("mongodb").database())
        return f"{uri}{'&' if '?' in uri else '?'}w=majority&journal=true"

    def valkey(self) -> str:
        """Return the URL of an empty database."""
        return str(self._closing.enter_context(self._servers.get("valkey").database()))

    def folder(self) -> Path:
        """Return an empty folder."""
        return self._closing.enter_context(temporary_folder())

    async def open(self, client: AbstractAsyncContextManager[T]) -> T:
        """Return *client*, entered; it is left when the scenario ends."""
        return await self._closing.enter_async_context(client)

    def at_end(self, close: Callable[[], Awaitable[object]]) -> None:
        """Await *close* when the scenario ends."""
        self._closing.push_async_callback(close)

    async def multidb(
        self, *, logs: str = _MEMORY, profiles: str = _MEMORY, state: str = _MEMORY, **others: Any
    ) -> MultiDB:
        """Return an open MultiDB on the URLs given, with the default settings but for *others*."""
        return await self.open(MultiDB(settings(logs=logs, profiles=profiles, state=state, **others)))

    async def large(self, kind: str) -> str:
        """Return the URL of a database that has many events and is only read; see `Servers.large()`."""
        return await self._servers.large(kind)

    async def events_database(self) -> str:
        """Return the URL of a PostgreSQL database with multidb's tables and indexes, all empty."""
        return await with_tables(self.postgres())

    async def events_place(self, kind: str) -> str:
        """Return the URL of empty tables of multidb's, on `postgres` or `sqlite`."""
        if kind == "postgres":
            return await self.events_database()
        return f"sqlite:///{await self.events_file()}"

    async def events_file(self) -> Path:
        """Return a SQLite file with multidb's tables and indexes, all empty."""
        path = self.folder() / "logs.db"
        await with_tables(f"sqlite:///{path}")
        return path


def settings(
    *, logs: str = _MEMORY, profiles: str = _MEMORY, state: str = _MEMORY, **others: Any
) -> Settings:
    """Return multidb's settings for these URLs."""
    return Settings(postgres_url=logs, mongodb_uri=profiles, redis_url=state, **others)


async def with_tables(url: str) -> str:
    """Return *url* when multidb has made its tables there."""
    async with MultiDB(settings(logs=url)):
        return url


def missing(modules: tuple[str, ...]) -> str | None:
    """Say which of *modules* is not installed; None when all are."""
    for name in modules:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"{name} is not installed: pip install -e '.[bench]'"
    return None

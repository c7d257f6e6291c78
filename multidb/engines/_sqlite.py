"""SQLite through SQLAlchemy and aiosqlite: how connections are made, checked, used and let go of."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from multidb._core.files import make_folders, open_or_create, sync_folder
from multidb.engines._drivers import require
from multidb.errors import BackendUnavailableError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    import aiosqlite
    from sqlalchemy import Connection
    from sqlalchemy.engine.interfaces import AdaptedConnection

    from multidb.engines._sql_pool import PoolOptions
    from multidb.engines._sql_urls import SqliteAddress

T = TypeVar("T")

_OLDEST: Final = (3, 35, 0)
_BUSY_SECONDS: Final = 5.0
_PATIENT_SECONDS: Final = 60.0
# How many steps of its machine SQLite makes between two looks at whether it should go on: some milliseconds.
_STEPS: Final = 500_000
# After these the file may be another one, or the system's idea of it wrong: a new connection looks again.
_SPOILED: Final = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
}


class SqliteDriver:
    """What is particular to SQLite about an SqlEngine."""

    name: Final = "sqlite"
    one_writer = True
    # In a child the threads are not there, and closing a file would end the locks of the parent.
    keeps_after_fork = True

    def __init__(self, address: SqliteAddress, options: PoolOptions) -> None:
        """Remember where the file is. Raises ConfigurationError when aiosqlite is not installed."""
        require("aiosqlite", "sqlite")
        self.address = address.path
        self._path = Path(address.path)
        # More of them would only wait for each other.
        self.most = min(options.pool_min, options.pool_max)

    def create(self) -> AsyncEngine:
        """Return what makes the connections of the pool, whose threads do not keep a program alive."""
        engine = self._create(_BUSY_SECONDS, cached_statements=256)
        event.listen(engine.sync_engine, "connect", _prepare_pooled)
        return engine

    def create_patient(self) -> AsyncEngine:
        """Return what makes connections for changes of the schema, which wait long for other processes."""
        engine = self._create(_PATIENT_SECONDS)
        event.listen(engine.sync_engine, "begin", _begin)
        return engine

    def _create(self, busy_seconds: float, **arguments: Any) -> AsyncEngine:
        return create_async_engine(
            URL.create("sqlite+aiosqlite", database=str(self._path)),
            connect_args={"timeout": busy_seconds, "isolation_level": None, **arguments},
            poolclass=NullPool,
            hide_parameters=True,
        )

    def prepare_to_open(self) -> None:
        """Create the file and its folder, durably, and open to this user only."""
        self._path = self._path.absolute()
        if self._path.is_dir():
            raise ConfigurationError("the path of the SQLite URL is a folder")
        if self._path.exists():
            return
        try:
            make_folders(self._path.parent)
            open_or_create(self._path).close()
            sync_folder(self._path.parent)
        except (PermissionError, NotADirectoryError) as exc:
            raise ConfigurationError("the file of the SQLite URL cannot be created") from exc

    async def check(self, connection: aiosqlite.Connection) -> None:
        """Refuse a library or a file that multidb cannot use. Raises ConfigurationError."""
        if sqlite3.sqlite_version_info < _OLDEST:
            raise ConfigurationError(f"SQLite {sqlite3.sqlite_version} is too old; multidb needs SQLite 3.35")
        look = "SELECT sqlite_compileoption_used('ENABLE_FTS5')"
        ((has_search,),) = await self.fetch(connection, look, (), False)
        if not has_search:
            raise ConfigurationError("the SQLite of this Python was built without FTS5, which multidb needs")

    def is_open(self, connection: aiosqlite.Connection) -> bool:  # noqa: ARG002
        """A file does not hang up."""
        return True

    async def ping(self, connection: aiosqlite.Connection) -> None:
        """Return when the file has been read, and is still where it was."""
        await self.fetch(connection, "SELECT count(*) FROM sqlite_master", (), False)
        if not self._path.exists():
            raise BackendUnavailableError("the database file is gone")

    async def fetch(
        self,
        connection: aiosqlite.Connection,
        sql: str,
        args: Sequence[Any],
        prepared: bool,  # noqa: ARG002
    ) -> Sequence[Any]:
        """Run one statement; return its rows."""
        return await _hop(connection, lambda db: db.execute(sql, args).fetchall(), interruptible=True)

    async def fetch_each(
        self, connection: aiosqlite.Connection, statements: Sequence[tuple[str, Sequence[Any]]]
    ) -> list[Sequence[Any]]:
        """Run statements one after the other; return the rows of each."""
        return await _hop(
            connection,
            lambda db: [db.execute(sql, args).fetchall() for sql, args in statements],
            interruptible=True,
        )

    def execute(
        self, connection: aiosqlite.Connection, sql: str, args: Sequence[Any]
    ) -> Coroutine[Any, Any, int]:
        """Run one statement; return how many rows it changed."""
        return _hop(connection, lambda db: db.execute(sql, args).rowcount)

    async def transaction(
        self, connection: aiosqlite.Connection, call: Callable[[sqlite3.Connection], T]
    ) -> T:
        """Return what *call* returns in one transaction."""
        return await _hop(connection, partial(_in_transaction, call))

    def is_usable(self, connection: aiosqlite.Connection, exc: BaseException) -> bool:  # noqa: ARG002
        """Whether *connection* is as good as new after *exc*; what was cancelled ends in its thread."""
        if isinstance(exc, asyncio.CancelledError):
            return True
        code: int = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_IOERR)
        return isinstance(exc, sqlite3.Error) and code & 0xFF not in _SPOILED

    async def close(self, connection: aiosqlite.Connection) -> None:
        """Close the file and end the thread."""
        await _hop(connection, lambda db: db.close())
        _stop(connection)

    def drop(self, connection: aiosqlite.Connection) -> None:
        """Have the thread break off what it does, close the file and end."""
        with suppress(ValueError):  # closed already
            connection._conn.interrupt()  # noqa: SLF001 -- the public way is asynchronous
        _stop(connection)

    def abandon(self, connection: aiosqlite.Connection) -> None:
        """Have the thread close the file and end: the event loop is gone."""
        _stop(connection)


def _stop(connection: aiosqlite.Connection) -> None:
    # In a thread without an event loop stop() finds none to report to, which might be gone by the time it
    # reports.
    stopping = Thread(target=connection.stop, daemon=True)
    stopping.start()
    stopping.join()


async def _hop(
    connection: aiosqlite.Connection, call: Callable[[sqlite3.Connection], T], *, interruptible: bool = False
) -> T:
    """
    Return what *call* returns in the thread of *connection*.

    When cancelled it does not begin; if it has begun it is ended if *interruptible*. What writes is not:
    tried again it would have to begin anew each time, where it finds that it was done.
    """
    ended = False
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        if ended:
            return
        # What the call before has set is still there, and its call may have been cancelled.
        db.set_progress_handler((lambda: ended) if interruptible else None, _STEPS)
        try:
            result = call(db)
        except BaseException as exc:  # noqa: BLE001 -- raised where it is awaited
            _tell(loop, future, future.set_exception, exc)
        else:
            _tell(loop, future, future.set_result, result)

    # Past aiosqlite's methods, which cannot do several things in one hop, though it costs more than most of
    # them, and whose thread dies of a loop that is gone.
    if not connection._running or connection._connection is None:  # noqa: SLF001
        raise sqlite3.ProgrammingError("the connection is closed")
    db = connection._connection  # noqa: SLF001
    connection._tx.put_nowait((None, run))  # noqa: SLF001
    try:
        return await future
    except asyncio.CancelledError:
        # An interrupt acts at once, but only on a statement that has begun; the flag on what begins after it.
        ended = True
        if interruptible:
            db.interrupt()
        raise


def _tell(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], settle: Callable[[Any], None], outcome: Any
) -> None:
    """Settle *future* in its loop, if both are still waiting."""
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(lambda: None if future.done() else settle(outcome))


def _in_transaction(call: Callable[[sqlite3.Connection], T], db: sqlite3.Connection) -> T:
    db.execute("BEGIN IMMEDIATE")
    try:
        result = call(db)
        db.execute("COMMIT")
    except BaseException:
        # SQLite ends a transaction by itself when the disk is full or fails.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _prepare_pooled(connection: AdaptedConnection, record: object) -> None:  # noqa: ARG001
    connection.run_async(lambda driver: _hop(driver, _prepare))


def _prepare(db: sqlite3.Connection) -> None:
    try:
        _use_wal(db)
    except sqlite3.DatabaseError as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise ConfigurationError("the file of the SQLite URL is no SQLite database") from exc
        raise
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")


def _use_wal(db: sqlite3.Connection) -> None:
    """Switch the file to a write-ahead log, which many processes may be about at once."""
    deadline = time.monotonic() + 2 * _BUSY_SECONDS
    while True:
        try:
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as exc:
            # SQLite does not wait here, as it would deadlock with another one that switches.
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        else:
            if mode == "wal":
                return
            raise ConfigurationError("the file system of the SQLite file cannot keep a write-ahead log (WAL)")
        time.sleep(random.uniform(0.001, 0.02))  # noqa: S311

"""SqlEngine: the connections to one PostgreSQL database or to one SQLite file."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from multidb.engines._sql_errors import translating
from multidb.engines._sql_pool import ConnectionPool, PoolOptions
from multidb.engines._sql_urls import PostgresAddress, parse
from multidb.errors import ClosedError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from multidb.engines._postgres import PostgresDriver
    from multidb.engines._sqlite import SqliteDriver

T = TypeVar("T")


class SqlEngine:
    """
    The connections of a process to one database, shared by the stores on it.

    *url* is as in `multidb.engines._sql_urls.parse()`. Up to *pool_max* calls run at once, on SQLite up to
    *pool_min*; a call waits *pool_timeout_seconds* for its turn. More than *pool_min* connections stay open only
    while they are needed. Calls go straight to the driver, each one statement or one transaction; a connection
    on which one was cut short is thrown away.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_min: int = 5,
        pool_max: int = 20,
        pool_timeout_seconds: float = 1.0,
        connect_timeout_seconds: float = 2.0,
        command_timeout_seconds: float = 2.0,
    ) -> None:
        """Read *url*; raises ConfigurationError, also for a driver that is not installed."""
        self._options = PoolOptions(
            pool_min, pool_max, pool_timeout_seconds, connect_timeout_seconds, command_timeout_seconds
        )
        self._driver = _driver(url, self._options)
        self._pool: ConnectionPool | None = None

    @property
    def name(self) -> str:
        """`postgresql` or `sqlite`."""
        return self._driver.name

    @property
    def address(self) -> str:
        """Which database it is, the same for everybody who means it by the same name; nothing of it is secret."""
        return self._driver.address

    async def open(self) -> None:
        """
        Connect once and look at the database; a SQLite file is created, with its folder.

        Raises BackendUnavailableError or BackendTimeoutError when it cannot be reached, ConfigurationError
        for a wrong password, database or certificate and for a server that is too old.
        """
        with translating():
            self._driver.prepare_to_open()
        self._pool = ConnectionPool(self._driver, self._options)
        try:
            # The first connection opens alone: a wrong address fails in one second, not in thirty.
            await self._pool.run(self._driver.check, writes=False)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connections within two seconds or so; calls under way fail. Closing twice is fine."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def abandon(self) -> None:
        """Let go of sockets, files and threads: the event loop is gone, or this is a forked child."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.abandon()

    async def ping(self) -> None:
        """Return when the database has answered. Raises what a call would raise."""
        await self._opened().run(self._driver.ping, writes=False)

    async def probe(self, sql: str) -> None:
        """PostgreSQL only: run statements that write, on a new connection of their own. Raises what a call would."""
        driver: Any = self._driver
        await self._opened().run_apart(driver.run_script, sql)

    def reset(self) -> None:
        """Drop every connection: calls under way fail, and the next ones connect anew."""
        if self._pool is not None:
            self._pool.reset()

    def fetch(
        self, sql: str, args: Sequence[Any] = (), *, writes: bool = False, prepared: bool = True
    ) -> Coroutine[Any, Any, Sequence[Any]]:
        """
        Run one statement, by itself a transaction; return its rows.

        *writes*: it may change data, so that losing the answer is ambiguous. Not *prepared*: PostgreSQL plans
        it for these *args*.
        """
        # No coroutine of its own, here and below: every call would pay for it.
        return self._opened().run(self._driver.fetch, sql, args, prepared, writes=writes)

    async def fetch_each(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> list[Sequence[Any]]:
        """SQLite only: run statements that change nothing in one hop to a thread; return the rows of each."""
        driver: Any = self._driver
        rows: list[Sequence[Any]] = await self._opened().run(driver.fetch_each, statements, writes=False)
        return rows

    def execute(self, sql: str, args: Sequence[Any] = ()) -> Coroutine[Any, Any, int]:
        """Run one statement that changes data, by itself a transaction; return how many rows it changed."""
        return self._opened().run(self._driver.execute, sql, args, writes=True)

    async def transaction(self, call: Callable[[sqlite3.Connection], T]) -> T:
        """SQLite only: return what *call* returns in one transaction, in the thread of a connection."""
        driver: Any = self._driver
        result: T = await self._opened().run(driver.transaction, call, writes=True)
        return result

    @asynccontextmanager
    async def schema_change(self, *, transaction: bool = True) -> AsyncIterator[AsyncConnection]:
        """Lend a connection of its own, in one *transaction* or none, for a change that may take minutes."""
        engine = self._driver.create_patient()
        try:
            with translating(writes=True):
                if transaction:
                    async with engine.begin() as connection:
                        yield connection
                else:
                    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                        yield connection
        finally:
            await engine.dispose()

    def _opened(self) -> ConnectionPool:
        if self._pool is None:
            raise ClosedError("the SQL engine is not open")
        return self._pool


def _driver(url: str, options: PoolOptions) -> PostgresDriver | SqliteDriver:
    address = parse(url)
    if isinstance(address, PostgresAddress):
        from multidb.engines._postgres import PostgresDriver

        return PostgresDriver(address, options)
    from multidb.engines._sqlite import SqliteDriver

    return SqliteDriver(address, options)

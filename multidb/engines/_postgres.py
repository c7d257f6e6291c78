"""PostgreSQL through SQLAlchemy and asyncpg: how connections are made, checked, used and let go of."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from multidb.engines._drivers import require
from multidb.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multidb.engines._sql_pool import PoolOptions
    from multidb.engines._sql_urls import PostgresAddress

_OLDEST: Final = 140_000
_PATIENT_SECONDS: Final = 600.0
_LOOK: Final = (
    "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'), current_schema()"
)


class PostgresDriver:
    """What is particular to PostgreSQL about an SqlEngine."""

    name: Final = "postgresql"
    one_writer = False
    keeps_after_fork = False

    def __init__(self, address: PostgresAddress, options: PoolOptions) -> None:
        """Remember how to connect. Raises ConfigurationError when asyncpg is not installed."""
        self._asyncpg: Any = require("asyncpg", "postgres")
        self._address = address
        self._options = options
        self.address = _place(address)
        self.most = options.pool_max
        self._unwanted: set[asyncio.Future[Any]] = set()

    def create(self) -> AsyncEngine:
        """Return what makes the connections of the pool."""
        return self._create(self._options.command_timeout_seconds)

    def create_patient(self) -> AsyncEngine:
        """Return what makes connections for changes of the schema, which may take minutes."""
        return self._create(_PATIENT_SECONDS)

    def _create(self, command_timeout_seconds: float) -> AsyncEngine:
        return create_async_engine(
            "postgresql+asyncpg://",
            connect_args=self._connect_args(command_timeout_seconds),
            poolclass=NullPool,
            hide_parameters=True,
        )

    def prepare_to_open(self) -> None:
        """Refuse what would otherwise look like a server that cannot be reached."""
        for name, path in self._address.files.items():
            if not Path(path).exists():
                raise ConfigurationError(f"POSTGRES_URL: there is no file at the path that {name} names")

    async def check(self, connection: Any) -> None:
        """Refuse a server or a database that multidb cannot use. Raises ConfigurationError."""
        version, encoding, schema = await connection.fetchrow(_LOOK)
        if version < _OLDEST:
            raise ConfigurationError(
                f"PostgreSQL {version // 10_000} is too old; multidb needs PostgreSQL 14"
            )
        if encoding != "UTF8":
            raise ConfigurationError(f"the database has the encoding {encoding}; multidb needs UTF8")
        if schema is None:
            raise ConfigurationError("no schema of the search_path exists, or the database user may use none")

    def is_open(self, connection: Any) -> bool:
        """Whether the connection is open as far as the system has said."""
        return not connection.is_closed()

    async def ping(self, connection: Any) -> None:
        """Return when the server has answered, within half of what a command may take."""
        await connection.fetchval("SELECT 1", timeout=self._options.command_timeout_seconds / 2)

    async def run_script(self, connection: Any, sql: str) -> None:
        """Run several statements, which may begin and end transactions."""
        await connection.execute(sql)

    async def fetch(self, connection: Any, sql: str, args: Sequence[Any], prepared: bool) -> Sequence[Any]:
        """Run one statement; return its rows. Not *prepared*: planned anew for these *args*."""
        if prepared:
            return await connection.fetch(sql, *args)  # type: ignore[no-any-return] # asyncpg has no types
        # A named statement gets a plan for any arguments after five runs, which for a search is a bad one.
        statement = await connection.prepare(sql, name="")
        return await statement.fetch(*args)  # type: ignore[no-any-return]

    async def execute(self, connection: Any, sql: str, args: Sequence[Any]) -> int:
        """Run one statement; return how many rows it changed."""
        status = await connection.execute(sql, *args)
        return int(status.rpartition(" ")[2])

    def is_usable(self, connection: Any, exc: BaseException) -> bool:
        """Whether *connection* is as good as new after *exc*: the server refused a statement, no more."""
        return (
            isinstance(exc, self._asyncpg.PostgresError)
            and not connection.is_closed()
            and not connection.is_in_transaction()
        )

    async def close(self, connection: Any) -> None:
        """Say goodbye to the server."""
        await connection.close()

    def drop(self, connection: Any) -> None:
        """Close the socket at once."""
        connection.terminate()

    def abandon(self, connection: Any) -> None:
        """Close the socket without a word: the event loop is gone or, after a fork, not ours."""
        # All of this is private; without it asyncpg and asyncio warn, and in a fork end the parent's session.
        connection._aborted = True  # noqa: SLF001
        transport = connection._transport  # noqa: SLF001
        with suppress(AttributeError):  # TLS
            transport._closed = True  # noqa: SLF001
            transport = transport._ssl_protocol._transport  # noqa: SLF001
        # Not transport.abort(): it speaks to the loop, and a forked loop shares its epoll with the parent.
        with suppress(AttributeError):
            transport._sock.close()  # noqa: SLF001
            transport._sock = None  # noqa: SLF001

    async def _connect(self, **arguments: Any) -> Any:
        """Connect. When cancelled, let it be made and drop it: asyncio complains of a cut handshake."""
        connecting = asyncio.ensure_future(self._asyncpg.connect(**arguments))
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            self._unwanted.add(connecting)
            connecting.add_done_callback(self._forget)
            raise

    def _forget(self, connecting: asyncio.Future[Any]) -> None:
        self._unwanted.discard(connecting)
        if not connecting.cancelled() and connecting.exception() is None:
            connecting.result().terminate()

    def _connect_args(self, command_timeout_seconds: float) -> dict[str, Any]:
        address, options = self._address, self._options
        arguments: dict[str, Any] = {
            "dsn": address.dsn,
            "host": list(address.hosts) or None,
            "port": list(address.ports) or None,
            "user": address.user,
            "password": address.password,
            "database": address.database,
            "timeout": address.connect_timeout_seconds or options.connect_timeout_seconds,
            "command_timeout": command_timeout_seconds,
            "async_creator_fn": self._connect,
            "server_settings": {"application_name": "multidb"}
            | self._session(command_timeout_seconds)
            | address.session,
        }
        if address.system_trust:
            arguments["ssl"] = True
        if address.pooler:
            # Each transaction may run on another server connection, which knows nothing of what was prepared.
            arguments["statement_cache_size"] = 0
            arguments["prepared_statement_cache_size"] = 0
            arguments["prepared_statement_name_func"] = lambda: f"__multidb_{uuid4()}__"
        return arguments

    def _session(self, command_timeout_seconds: float) -> dict[str, str]:
        if self._address.pooler:  # It refuses what it does not know, and would leave it set for others.
            return {}
        return {
            # Below the timeout for a command, so that the error that is definite comes first.
            "statement_timeout": f"{command_timeout_seconds * 750:.0f}",
            "lock_timeout": f"{command_timeout_seconds * 500:.0f}",
            "idle_in_transaction_session_timeout": "10000",
            "default_transaction_isolation": "read committed",
            "timezone": "UTC",
        }


def _place(address: PostgresAddress) -> str:
    """Return hosts, ports, database and schema, as far as the URL says them: what is in it is what a namespace is."""
    given = dict(parse_qsl(urlsplit(address.dsn).query))
    hosts = ",".join(address.hosts) or given.get("host", "")
    ports = ",".join(map(str, address.ports)) or given.get("port", "")
    database = address.database or given.get("dbname") or address.user or given.get("user") or ""
    parts = [f"postgresql://{hosts}:{ports or 5432}/{database}"]
    parts += [
        f"{name}={value}"
        for name, value in [
            ("service", given.get("service")),
            ("search_path", address.session.get("search_path")),
            ("options", address.session.get("options")),
        ]
        if value
    ]
    return " ".join(parts)

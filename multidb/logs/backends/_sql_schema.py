"""Creating and upgrading the tables of the logs, by any number of processes at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from multidb.errors import ConfigurationError
from multidb.logs.backends import _sql_search_index, migrations

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

    from multidb.engines.sql import SqlEngine

_VERSION_TABLE: Final = "multidb_schema_version"
_IS_THERE: Final = {
    "postgresql": "SELECT to_regclass('multidb_schema_version') IS NOT NULL",
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE name = 'multidb_schema_version'",
}
_REVISION: Final = "SELECT version_num FROM multidb_schema_version"
# Waiting for the one that creates everything must not count as a statement that takes too long.
_POSTGRES_LOCK: Final = (
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
    "SET LOCAL lock_timeout = '60s'",
    f"SELECT pg_advisory_xact_lock({int.from_bytes(b'multidb', 'big')})",
)


async def create_or_upgrade(engine: SqlEngine, *, search_index: bool) -> None:
    """
    Bring the schema to the latest revision, in one transaction and under a lock, if it is not there already.

    With *search_index* see to it that there is an index for searching; without, one that is there stays. Raises
    ConfigurationError for a schema that is newer than this library, for a missing privilege or extension.
    """
    if not await _is_latest(engine.name, engine.fetch):
        await _upgrade(engine, search_index=search_index)
    if search_index and not await _sql_search_index.is_there(engine):
        await _sql_search_index.build(engine)


async def _upgrade(engine: SqlEngine, *, search_index: bool) -> None:
    async with engine.schema_change() as connection:
        if engine.name == "postgresql":  # In SQLite the transaction is the lock.
            for statement in _POSTGRES_LOCK:
                await connection.exec_driver_sql(statement)
        if await _is_latest(engine.name, lambda sql: _fetch(connection, sql)):
            return
        is_new = not (await _fetch(connection, _IS_THERE[engine.name]))[0][0]
        await connection.run_sync(_run_migrations)
        if (
            is_new and search_index
        ):  # All or nothing: who may not install what it takes is left with no tables.
            await connection.run_sync(_sql_search_index.create)


async def _is_latest(database: str, fetch: Callable[[str], Awaitable[Sequence[Any]]]) -> bool:
    """Whether there is nothing to do. It takes one row to see that, and not Alembic."""
    if not (await fetch(_IS_THERE[database]))[0][0]:
        return False
    revisions = [row[0] for row in await fetch(_REVISION)]
    for revision in revisions:
        if revision not in migrations.REVISIONS:
            raise ConfigurationError(
                f"a newer multidb made the tables (revision {revision}): upgrade multidb"
            )
    return revisions == [migrations.REVISIONS[-1]]


async def _fetch(connection: AsyncConnection, sql: str) -> Sequence[Any]:
    return (await connection.exec_driver_sql(sql)).all()


def _run_migrations(connection: Connection) -> None:
    # Importing Alembic takes longer than a start without it. Its usual environment is one for the whole
    # process, which two databases that open at once would mix up.
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(Path(migrations.__file__).parent)
    options = {
        "version_table": _VERSION_TABLE,
        "fn": lambda revision, context: scripts._upgrade_revs("head", revision),  # noqa: ARG005, SLF001
    }
    context = MigrationContext.configure(connection, opts=options)
    context.run_migrations(connection=connection)

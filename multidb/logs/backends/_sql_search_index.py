"""The index that searches: trigrams of the folded texts of events. It is made where a setting asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError

from multidb.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from multidb.engines.sql import SqlEngine

# Anything but whole in PostgreSQL: under construction by another process, or left over by one that failed.
_IS_THERE: Final = {
    "postgresql": "SELECT count(*) FROM pg_index "
    "WHERE indexrelid = to_regclass('multidb_events_search') AND indisvalid",
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE name = 'multidb_events_search'",
}
_IS_EMPTY: Final = "SELECT NOT EXISTS (SELECT FROM multidb_events)"
# Not the lock of the schema: who waits for that one keeps a snapshot, which CREATE INDEX CONCURRENTLY would wait for.
_GUARD: Final = f"SELECT pg_try_advisory_xact_lock({int.from_bytes(b'mdbindex', 'big')})"
# Also ends the statement before it: its snapshot is another thing to wait for.
_STAY: Final = "SET LOCAL idle_in_transaction_session_timeout = 0"
_DROP: Final = "DROP INDEX CONCURRENTLY IF EXISTS multidb_events_search"
_CREATE: Final = (
    "CREATE INDEX {concurrently} multidb_events_search ON multidb_events USING gin (search {trigrams}) "
    "WITH (fastupdate)"
)
_MISSING: Final = (
    "PostgreSQL's extension pg_trgm is missing and this user cannot install it: "
    'have a superuser run "CREATE EXTENSION pg_trgm" in this database, or set MULTIDB_LOG_SEARCH_INDEX=false'
)
_SCHEMA: Final = (
    "SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace "
    "WHERE extname = 'pg_trgm'"
)
# Without their positions an index of trigrams is half as large; what it finds is looked at anyway.
_SQLITE: Final = (
    """
    CREATE VIRTUAL TABLE multidb_events_search USING fts5(
        search, content = 'multidb_events', content_rowid = 'seq',
        tokenize = 'trigram case_sensitive 1', detail = 'none', columnsize = 0
    )
    """,
    "DROP TABLE IF EXISTS multidb_events_trigrams",
    "CREATE VIRTUAL TABLE multidb_events_trigrams USING fts5vocab(multidb_events_search, instance)",
    "INSERT INTO multidb_events_search (multidb_events_search, rank) VALUES ('automerge', 8)",
    "INSERT INTO multidb_events_search (multidb_events_search) VALUES ('rebuild')",
    "DROP TRIGGER IF EXISTS multidb_events_inserted",
    "DROP TRIGGER IF EXISTS multidb_events_deleted",
    """
    CREATE TRIGGER multidb_events_inserted AFTER INSERT ON multidb_events WHEN new.search IS NOT NULL BEGIN
        INSERT INTO multidb_events_search (rowid, search) VALUES (new.seq, new.search);
    END
    """,
    """
    CREATE TRIGGER multidb_events_deleted AFTER DELETE ON multidb_events WHEN old.search IS NOT NULL BEGIN
        INSERT INTO multidb_events_search (multidb_events_search, rowid, search)
        VALUES ('delete', old.seq, old.search);
    END
    """,
)


async def is_there(engine: SqlEngine) -> bool:
    """Return whether searches have an index to use."""
    ((count,),) = await engine.fetch(_IS_THERE[engine.name])
    return bool(count)


async def build(engine: SqlEngine) -> None:
    """
    Make the index unless it is there, or another process is about it; nobody waits for that one.

    PostgreSQL goes on reading and writing meanwhile. SQLite does not write, and others that would wait.
    """
    async with engine.schema_change() as connection:
        if engine.name == "sqlite":  # The transaction is the lock.
            if not (await connection.exec_driver_sql(_IS_THERE["sqlite"])).scalar_one():
                await connection.run_sync(create)
            return
        if not (await connection.exec_driver_sql(_GUARD)).scalar_one() or await is_there(engine):
            return
        # Past the transaction: it would keep a lock on the table, which DROP INDEX CONCURRENTLY would wait for.
        ((is_empty,),) = await engine.fetch(_IS_EMPTY)
        if is_empty:
            await connection.exec_driver_sql(_DROP.replace("CONCURRENTLY ", ""))
            await connection.run_sync(create)
            return
        await connection.exec_driver_sql(_STAY)
        async with engine.schema_change() as other:
            trigrams = await other.run_sync(_trigrams)
        async with engine.schema_change(transaction=False) as other:
            await other.exec_driver_sql(_DROP)
            await other.exec_driver_sql(_CREATE.format(concurrently="CONCURRENTLY", trigrams=trigrams))


def create(connection: Connection) -> None:
    """Make the index as a part of a transaction: at once, where there is little to index."""
    if connection.dialect.name == "sqlite":
        for statement in _SQLITE:
            connection.exec_driver_sql(statement)
    else:
        connection.exec_driver_sql(_CREATE.format(concurrently="", trigrams=_trigrams(connection)))


def _trigrams(connection: Connection) -> str:
    """Return the name of what makes an index one of trigrams; its extension may be in a schema of its own."""
    try:
        with connection.begin_nested():
            connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    except DBAPIError as exc:
        # Not allowed; not there; not there on PostgreSQL 14.
        if getattr(exc.orig, "sqlstate", None) not in {"42501", "0A000", "58P01"}:
            raise
        raise ConfigurationError(_MISSING) from exc
    return f"{connection.exec_driver_sql(_SCHEMA).scalar_one()}.gin_trgm_ops"

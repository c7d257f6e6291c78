"""The first tables of the logs: events, sales, messages and sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError

from multidb.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection

revision: Final = "0001"
down_revision: Final = None

_MISSING: Final = (
    "PostgreSQL's extension pg_trgm is missing and this user cannot install it: "
    'have a superuser run "CREATE EXTENSION pg_trgm" in this database'
)

# Text compares by code points, whatever the locale of the database. The index that searches knows trigrams; what is too
# long for it is apart, as it would take longer to index than a statement may take.
_POSTGRES: Final = (
    """
    CREATE TABLE multidb_events (
        id uuid PRIMARY KEY,
        user_id text COLLATE "C" NOT NULL,
        timestamp timestamptz NOT NULL,
        context json NOT NULL,
        digest bytea NOT NULL,
        event_type text COLLATE "C" NOT NULL,
        message text COLLATE "C" NOT NULL,
        level text COLLATE "C" NOT NULL,
        username text COLLATE "C",
        search text COLLATE "C",
        long_search text COLLATE "C"
    )
    """,
    "CREATE INDEX multidb_events_user ON multidb_events (user_id, timestamp DESC, id DESC)",
    "CREATE INDEX multidb_events_type ON multidb_events (event_type, timestamp DESC, id DESC)",
    "CREATE INDEX multidb_events_time ON multidb_events (timestamp DESC, id DESC)",
    "CREATE INDEX multidb_events_search ON multidb_events USING gin (search {trigrams}) WITH (fastupdate)",
    "CREATE INDEX multidb_events_long ON multidb_events (timestamp DESC, id DESC) WHERE long_search IS NOT NULL",
    """
    CREATE TABLE multidb_sales (
        id uuid PRIMARY KEY,
        user_id text COLLATE "C" NOT NULL,
        timestamp timestamptz NOT NULL,
        context json NOT NULL,
        digest bytea NOT NULL,
        product_type text COLLATE "C" NOT NULL,
        amount numeric NOT NULL,
        currency text COLLATE "C" NOT NULL,
        status text COLLATE "C" NOT NULL
    )
    """,
    "CREATE INDEX multidb_sales_user ON multidb_sales (user_id, timestamp DESC, id DESC)",
    "CREATE INDEX multidb_sales_product ON multidb_sales (product_type, timestamp DESC, id DESC)",
    "CREATE INDEX multidb_sales_time ON multidb_sales (timestamp DESC, id DESC)",
    """
    CREATE TABLE multidb_messages (
        id uuid PRIMARY KEY,
        user_id text COLLATE "C" NOT NULL,
        timestamp timestamptz NOT NULL,
        context json NOT NULL,
        digest bytea NOT NULL,
        text text COLLATE "C" NOT NULL,
        role text COLLATE "C" NOT NULL,
        conversation_id text COLLATE "C"
    )
    """,
    "CREATE INDEX multidb_messages_user ON multidb_messages (user_id, timestamp DESC, id DESC)",
    "CREATE INDEX multidb_messages_talk ON multidb_messages (conversation_id, timestamp DESC, id DESC)",
    "CREATE INDEX multidb_messages_time ON multidb_messages (timestamp DESC, id DESC)",
    """
    CREATE TABLE multidb_sessions (
        user_id text COLLATE "C" NOT NULL,
        session_id text COLLATE "C" NOT NULL,
        started_at timestamptz NOT NULL,
        last_seen_at timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        ended_at timestamptz,
        context json,
        PRIMARY KEY (user_id, session_id)
    )
    """,
    """
    CREATE INDEX multidb_sessions_active ON multidb_sessions (last_seen_at DESC, user_id, session_id)
        WHERE ended_at IS NULL
    """,
)

# The explicit seq keeps its values through VACUUM, which the search relies on. Without their positions an
# index of trigrams is half as large; what it finds is looked at anyway.
_SQLITE: Final = (
    """
    CREATE TABLE multidb_events (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        user_id TEXT NOT NULL,
        timestamp INTEGER NOT NULL,
        context TEXT NOT NULL,
        digest BLOB NOT NULL,
        event_type TEXT NOT NULL,
        message TEXT NOT NULL,
        level TEXT NOT NULL,
        username TEXT,
        search TEXT,
        long_search TEXT
    )
    """,
    "CREATE INDEX multidb_events_user ON multidb_events (user_id, timestamp DESC, id DESC)",
    "CREATE INDEX multidb_events_type ON multidb_events (event_type, timestamp DESC, id DESC)",
    "CREATE INDEX multidb_events_time ON multidb_events (timestamp DESC, id DESC)",
    "CREATE INDEX multidb_events_long ON multidb_events (timestamp DESC, id DESC) WHERE long_search IS NOT NULL",
    """
    CREATE VIRTUAL TABLE multidb_events_search USING fts5(
        search, content = 'multidb_events', content_rowid = 'seq',
        tokenize = 'trigram case_sensitive 1', detail = 'none', columnsize = 0
    )
    """,
    "INSERT INTO multidb_events_search (multidb_events_search, rank) VALUES ('automerge', 8)",
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
    """
    CREATE TABLE multidb_sales (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        user_id TEXT NOT NULL,
        timestamp INTEGER NOT NULL,
        context TEXT NOT NULL,
        digest BLOB NOT NULL,
        product_type TEXT NOT NULL,
        amount TEXT NOT NULL,
        currency TEXT NOT NULL,
        status TEXT NOT NULL
    )
    """,
    "CREATE INDEX multidb_sales_user ON multidb_sales (user_id, timestamp DESC, id DESC)",
    "CREATE INDEX multidb_sales_product ON multidb_sales (product_type, timestamp DESC, id DESC)",
    "CREATE INDEX multidb_sales_time ON multidb_sales (timestamp DESC, id DESC)",
    """
    CREATE TABLE multidb_messages (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        user_id TEXT NOT NULL,
        timestamp INTEGER NOT NULL,
        context TEXT NOT NULL,
        digest BLOB NOT NULL,
        text TEXT NOT NULL,
        role TEXT NOT NULL,
        conversation_id TEXT
    )
    """,
    "CREATE INDEX multidb_messages_user ON multidb_messages (user_id, timestamp DESC, id DESC)",
    "CREATE INDEX multidb_messages_talk ON multidb_messages (conversation_id, timestamp DESC, id DESC)",
    "CREATE INDEX multidb_messages_time ON multidb_messages (timestamp DESC, id DESC)",
    """
    CREATE TABLE multidb_sessions (
        user_id TEXT NOT NULL,
        session_id TEXT NOT NULL,
        started_at INTEGER NOT NULL,
        last_seen_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        ended_at INTEGER,
        context TEXT,
        PRIMARY KEY (user_id, session_id)
    ) WITHOUT ROWID
    """,
    """
    CREATE INDEX multidb_sessions_active ON multidb_sessions (last_seen_at DESC, user_id, session_id)
        WHERE ended_at IS NULL
    """,
)


def upgrade(connection: Connection) -> None:
    """Create everything."""
    if connection.dialect.name == "sqlite":
        for statement in _SQLITE:
            connection.exec_driver_sql(statement)
        return
    trigrams = _trigram_operators(connection)
    for statement in _POSTGRES:
        connection.exec_driver_sql(statement.replace("{trigrams}", trigrams))


def _trigram_operators(connection: Connection) -> str:
    """Return the name of what makes an index one of trigrams; its extension may be in a schema of its own."""
    try:
        with connection.begin_nested():
            connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    except DBAPIError as exc:
        # Not allowed; not there; not there on PostgreSQL 14.
        if getattr(exc.orig, "sqlstate", None) not in {"42501", "0A000", "58P01"}:
            raise
        raise ConfigurationError(_MISSING) from exc
    schema = connection.exec_driver_sql(
        "SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace "
        "WHERE extname = 'pg_trgm'"
    ).scalar_one()
    return f"{schema}.gin_trgm_ops"

"""The first tables of the logs: events, sales, messages and sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sqlalchemy import Connection

revision: Final = "0001"
down_revision: Final = None

# Text compares by code points, whatever the locale of the database. What is too long for the index that searches is
# apart, as it would take longer to index than a statement may take.
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
    # Those of the searched texts: a keyword of two and each of these make the trigrams that it may be in.
    'CREATE TABLE multidb_characters (character text COLLATE "C" PRIMARY KEY)',
)

# The explicit seq keeps its values through VACUUM, which the search relies on.
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
    """Create everything but the index for searching, which a setting decides upon."""
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRES:
        connection.exec_driver_sql(statement)

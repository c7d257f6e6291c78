"""The tables of the logs as statements see them. The migrations make them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, Numeric, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import BYTEA, JSON, TIMESTAMP

from multidb.logs._records import Event, Message, Sale

if TYPE_CHECKING:
    from multidb.logs._records import Record

METADATA: Final = MetaData()

# Microseconds since 1970 in SQLite, which has no type for time, and 16 bytes for an id.
Time: Final = TIMESTAMP(timezone=True).with_variant(BigInteger(), "sqlite")
Id: Final = Uuid().with_variant(LargeBinary(16), "sqlite")
# json, not jsonb, which keeps 1e16 as an integer: what comes back must have the type that went in.
Context: Final = JSON().with_variant(Text(), "sqlite")
Amount: Final = Numeric().with_variant(Text(), "sqlite")
Digest: Final = BYTEA().with_variant(LargeBinary(16), "sqlite")


def _record_table(name: str, *columns: Column[Any]) -> Table:
    return Table(
        name,
        METADATA,
        Column("id", Id, primary_key=True),
        Column("user_id", Text(), nullable=False),
        Column("timestamp", Time, nullable=False),
        Column("context", Context, nullable=False),
        Column("digest", Digest, nullable=False),
        *columns,
    )


EVENTS: Final = _record_table(
    "multidb_events",
    Column("event_type", Text(), nullable=False),
    Column("message", Text(), nullable=False),
    Column("level", Text(), nullable=False),
    Column("username", Text()),
    Column("search", Text()),
    Column("long_search", Text()),
)
SALES: Final = _record_table(
    "multidb_sales",
    Column("product_type", Text(), nullable=False),
    Column("amount", Amount, nullable=False),
    Column("currency", Text(), nullable=False),
    Column("status", Text(), nullable=False),
)
MESSAGES: Final = _record_table(
    "multidb_messages",
    Column("text", Text(), nullable=False),
    Column("role", Text(), nullable=False),
    Column("conversation_id", Text()),
)
SESSIONS: Final = Table(
    "multidb_sessions",
    METADATA,
    Column("user_id", Text(), primary_key=True),
    Column("session_id", Text(), primary_key=True),
    Column("started_at", Time, nullable=False),
    Column("last_seen_at", Time, nullable=False),
    Column("expires_at", Time, nullable=False),
    Column("ended_at", Time),
    Column("context", Context),
)

TABLES: Final[dict[type[Record], Table]] = {Event: EVENTS, Sale: SALES, Message: MESSAGES}

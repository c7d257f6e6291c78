"""Multidb's table of events as one writes to it by hand, and filling it fast."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from benchmarks import data

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS = (
    "id", "user_id", "timestamp", "context", "digest", "event_type", "message", "level", "username", "search",
)  # fmt: skip
READ = "id, user_id, timestamp, context, event_type, message, level, username"
POSTGRES_INSERT = f"""
INSERT INTO multidb_events ({", ".join(COLUMNS)})
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (id) DO NOTHING
"""
SQLITE_INSERT = f"""
INSERT INTO multidb_events ({", ".join(COLUMNS)})
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING
"""
POOL = 10

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = datetime(2026, 1, 1, tzinfo=UTC)
_EVERY = timedelta(seconds=3)


def postgres_row(number: int) -> tuple[Any, ...]:
    """Return a row, as a program makes it that writes by hand to multidb's table on PostgreSQL."""
    return _row(number, data.uuid7(), datetime.now(UTC))


def sqlite_row(number: int) -> tuple[Any, ...]:
    """Return a row for SQLite: bytes for the id, microseconds for the time."""
    return _on_sqlite(postgres_row(number))


def as_dict(row: tuple[Any, ...]) -> dict[str, Any]:
    """Return a row as a mapper wants it, with its context as a dict."""
    values = dict(zip(COLUMNS, row, strict=True))
    return values | {"context": json.loads(values["context"])}


def _row(number: int, event_id: UUID, moment: datetime) -> tuple[Any, ...]:
    message, kind, encoded = data.text(number), data.event_type(number), json.dumps(data.context(number))
    digest = hashlib.blake2b(f"{message}{kind}{encoded}".encode(), digest_size=16).digest()
    search = f"{message.casefold()}\n{kind.casefold()}"
    return event_id, data.user(number), moment, encoded, digest, kind, message, "INFO", "ada", search


def _on_sqlite(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return row[0].bytes, row[1], (row[2] - _EPOCH) // timedelta(microseconds=1), *row[3:]


def history(rows: int) -> Iterator[tuple[Any, ...]]:
    """
    Yield *rows* rows, oldest first, of all users in turn: each has as many as any other, spread over all the time.

    Ids are UUIDv7 of the events' times.
    """
    dice = random.Random(2026)
    for number in range(rows):
        moment = _FIRST + number * _EVERY
        milliseconds = (moment - _EPOCH) // timedelta(milliseconds=1)
        value = milliseconds << 80 | 0x7 << 76 | dice.getrandbits(12) << 64 | 0x2 << 62 | dice.getrandbits(62)
        yield _row(number, UUID(int=value), moment)


async def load_postgres(url: str, rows: int) -> None:
    """COPY a history into the table at *url*. Its indexes are made afterwards, as one does."""
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        indexes = await connection.fetch(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'multidb_events' "
            "AND indexname NOT IN (SELECT conname FROM pg_constraint)"
        )
        for index in indexes:
            await connection.execute(f"DROP INDEX {index['indexname']}")
        await connection.copy_records_to_table(
            "multidb_events", records=history(rows), columns=COLUMNS, timeout=None
        )
        for index in indexes:
            await connection.execute(index["indexdef"], timeout=None)
        await connection.execute("VACUUM (ANALYZE) multidb_events", timeout=None)
        await connection.execute("CHECKPOINT", timeout=None)
    finally:
        await connection.close()


def load_sqlite(path: str, rows: int) -> None:
    """Insert a history into the table in *path*, past the search index, which reading one user's events ignores."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'multidb_events'"
        ).fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("BEGIN")
        connection.executemany(SQLITE_INSERT, map(_on_sqlite, history(rows)))
        connection.execute("COMMIT")
        connection.execute("ANALYZE")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

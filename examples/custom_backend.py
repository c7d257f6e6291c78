"""
A profile backend of your own, on the standard library's sqlite3, and the shipped suite run against it.

`pytest examples/custom_backend.py` puts it through everything the shipped backends go through. A program uses it with
`MultiDB(profiles=SqliteProfileBackend(Path("profiles.db")))`.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio

from multidb import BackendUnavailableError
from multidb.profiles import Document, ProfileStats
from multidb.profiles.documents import apply_patches, contains, count, select
from multidb.profiles.protocol import Outcome, Patch, ProfileQuery
from multidb.testing.conformance import ProfileBackendSuite

R = TypeVar("R")


class SqliteProfileBackend:
    """One row a profile: its username, and the document as JSON. What patches and queries mean is multidb's to know."""

    name = "sqlite3"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        # One thread, so calls are applied in their order, and the event loop is never blocked.
        self._thread = ThreadPoolExecutor(1)
        await self._run(self._connect)

    def _connect(self) -> None:
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS profiles (username TEXT PRIMARY KEY, document TEXT)"
        )

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            connection, self._connection = self._connection, None
            if connection is not None:
                await asyncio.wrap_future(thread.submit(connection.close))
            thread.shutdown()

    async def apply(self, patches: Sequence[Patch], /) -> Sequence[Outcome]:
        def write() -> Sequence[Outcome]:
            with self._transaction() as connection:
                results, written = apply_patches(self._read, patches)
                rows = [
                    (username, json.dumps(document, default=_dump)) for username, document in written.items()
                ]
                connection.executemany("INSERT OR REPLACE INTO profiles VALUES (?, ?)", rows)
            return results

        return await self._run(write)

    async def get(self, usernames: Sequence[str], /) -> dict[str, Document]:
        found = await self._run(lambda: [self._read(username) for username in usernames])
        return {document["username"]: document for document in found if document is not None}

    async def find(self, query: ProfileQuery, /) -> list[Document]:
        return await self._run(lambda: select(self._all(), query))

    async def search(self, keyword: str, limit: int, /) -> list[Document]:
        def search() -> list[Document]:
            found = [document for document in self._all() if contains(document, keyword)]
            return select(found, ProfileQuery(limit=limit))

        return await self._run(search)

    async def delete(self, usernames: Sequence[str], /) -> Sequence[bool]:
        def delete() -> list[bool]:
            with self._transaction() as connection:
                statement = "DELETE FROM profiles WHERE username = ?"
                return [connection.execute(statement, (username,)).rowcount == 1 for username in usernames]

        return await self._run(delete)

    async def stats(self) -> ProfileStats:
        return await self._run(lambda: count(self._all()))

    async def _run(self, call: Callable[[], R]) -> R:
        """Run *call* in the thread, and turn the driver's errors into multidb's, by type."""
        if self._thread is None:
            raise BackendUnavailableError("the backend is not open")
        try:
            return await asyncio.wrap_future(self._thread.submit(call))
        except sqlite3.Error as exc:
            raise BackendUnavailableError("sqlite3 refused the call") from exc

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise BackendUnavailableError("the backend is not open")
        return self._connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._open.execute("BEGIN IMMEDIATE")
        try:
            yield self._open
        except BaseException:
            self._open.execute("ROLLBACK")
            raise
        self._open.execute("COMMIT")

    def _read(self, username: str) -> Document | None:
        row = self._open.execute("SELECT document FROM profiles WHERE username = ?", (username,)).fetchone()
        return _load(row[0]) if row else None

    def _all(self) -> Iterator[Document]:
        return (_load(text) for (text,) in self._open.execute("SELECT document FROM profiles"))


def _dump(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError


def _load(text: str) -> Document:
    document: Document = json.loads(text)
    for field in ("created_at", "updated_at"):
        document[field] = datetime.fromisoformat(document[field])
    return document


class TestSqliteProfileBackend(ProfileBackendSuite):
    """The whole suite, in five lines."""

    @pytest_asyncio.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[SqliteProfileBackend]:
        backend = SqliteProfileBackend(tmp_path / "profiles.db")
        await backend.open()
        yield backend
        await backend.close()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-q"]))

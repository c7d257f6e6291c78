"""The pytest plugin, on by itself: the fixtures `multidb`, `multidb_clock` and `multidb_servers`."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import pytest

# Modules of multidb are imported by the fixtures that need them: a pytest run without them should not pay.
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from multidb import MultiDB, Settings
    from multidb.testing.clock import ManualClock
    from multidb.testing.servers import (
        ExternalMongo,
        ExternalPostgres,
        ExternalValkey,
        Kind,
        MongoServer,
        PostgresServer,
        ValkeyServer,
    )


def _async_fixture(function: Callable[..., AsyncIterator[MultiDB]]) -> object:
    try:
        import pytest_asyncio
    except ModuleNotFoundError:
        # The plugin loads wherever multidb is installed; most of those runs need none of it.
        return pytest.fixture(function)
    return pytest_asyncio.fixture(function)


@pytest.fixture
def multidb_clock() -> ManualClock:
    """A clock that the test moves: `multidb_clock.advance(60)`. The fixture `multidb` reads the time from it."""
    from multidb.testing.clock import ManualClock

    return ManualClock()


@_async_fixture
async def multidb(multidb_clock: ManualClock) -> AsyncIterator[MultiDB]:
    """A fresh MultiDB in memory, open, and the process default: `multidb.logs.log_event()` and the like work on it."""
    from multidb import MultiDB
    from multidb._core.current import get_default, set_default

    before = get_default()
    async with MultiDB.in_memory(clock=multidb_clock) as db:
        set_default(db)
        try:
            yield db
        finally:
            set_default(before)


class Servers:
    """Real servers, each started when first asked for. Where one cannot be had: a skip, with CI=true a failure."""

    def __init__(self) -> None:
        self._running = ExitStack()

    @cached_property
    def postgres(self) -> PostgresServer | ExternalPostgres:
        """A PostgreSQL server; `database()` yields the URL of a fresh database."""
        from multidb.testing import servers

        _require("postgres")
        return self._running.enter_context(servers.postgres())

    @cached_property
    def mongodb(self) -> MongoServer | ExternalMongo:
        """A MongoDB server; `database()` yields the URL of a fresh database."""
        from multidb.testing import servers

        _require("mongodb")
        return self._running.enter_context(servers.mongodb())

    @cached_property
    def valkey(self) -> ValkeyServer | ExternalValkey:
        """A Valkey server; `database()` yields its URL, emptied."""
        from multidb.testing import servers

        _require("valkey")
        return self._running.enter_context(servers.valkey())

    @contextmanager
    def settings(self) -> Iterator[Settings]:
        """Yield settings that name fresh databases on all three."""
        from multidb import Settings

        with (
            self.postgres.database() as postgres_url,
            self.mongodb.database() as mongodb_uri,
            self.valkey.database() as redis_url,
        ):
            yield Settings(postgres_url=postgres_url, mongodb_uri=mongodb_uri, redis_url=redis_url)

    def stop(self) -> None:
        """Stop what was started."""
        self._running.close()


def _require(kind: Kind) -> None:
    from multidb.testing import servers

    if reason := servers.skip_reason(kind):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def multidb_servers() -> Iterator[Servers]:
    """Real PostgreSQL, MongoDB and Valkey servers for the whole run, from wheels, see `Servers`."""
    servers = Servers()
    yield servers
    servers.stop()

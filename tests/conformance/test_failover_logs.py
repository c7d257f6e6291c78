"""The log suite through the failover: whoever stands before a server that is healthy changes nothing."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import fields
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from multidb import Settings
from multidb._backends import _failover_options
from multidb._core.clock import SystemClock
from multidb.engines.sql import SqlEngine
from multidb.instrumentation import Status
from multidb.logs._failover import FailoverLogBackend
from multidb.logs.backends.memory import MemoryLogBackend
from multidb.logs.backends.sql import SqlLogBackend
from multidb.resilience.breaker import BreakerPolicy
from multidb.resilience.failover import FailoverOptions, Primary, SupportsHealth
from multidb.resilience.guard import SupportsProbe
from multidb.resilience.spool import Limits, Spool
from multidb.resilience.watch import Watch
from multidb.testing import servers
from multidb.testing.conformance.logs import LogBackendSuite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from multidb.logs.protocol import LogBackend
    from multidb.testing.pytest_plugin import Servers

pytestmark = pytest.mark.timeout(120)


class ProbedMemory(MemoryLogBackend):
    """A backend that can be probed."""

    async def probe(self) -> None:
        pass

    def reset(self) -> None:
        pass


class TestOnMemory(LogBackendSuite):
    """On the backend in memory."""

    @pytest_asyncio.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[LogBackend]:
        inner = ProbedMemory()
        spool = Spool(tmp_path / "spool", "logs", any_file_system=True)
        watch = Watch("logs", inner.name, SystemClock())
        backend = FailoverLogBackend(inner, Primary(inner, inner), spool, watch)
        await backend.open()
        yield backend
        assert (Status.UP, 0) == (backend.health().status, backend.health().backlog_records)
        await backend.close()
        assert not (tmp_path / "spool").exists()


@pytest.mark.skipif(servers.skip_reason("postgres") is not None, reason=str(servers.skip_reason("postgres")))
class TestOnPostgres(LogBackendSuite):
    """On PostgreSQL, with a deadline that a busy machine keeps."""

    concurrent_instances = True

    @pytest_asyncio.fixture
    async def backend(self, multidb_servers: Servers, tmp_path: Path) -> AsyncIterator[LogBackend]:
        with multidb_servers.postgres.database() as url:
            self.url, self.folder = url, tmp_path / "spool"
            async with AsyncExitStack() as self.opened:
                yield await self.second_backend()
            assert not self.folder.exists()

    async def second_backend(self) -> LogBackend:
        engine = SqlEngine(self.url)
        inner = SqlLogBackend(engine)
        spool = Spool(self.folder, "logs", any_file_system=True)
        watch = Watch("logs", inner.name, SystemClock())
        backend = FailoverLogBackend(
            inner, Primary(inner, engine, inner), spool, watch, FailoverOptions(deadline_seconds=20.0)
        )
        await backend.open()
        self.opened.push_async_callback(backend.close)
        return backend


def test_settings(tmp_path: Path) -> None:
    """Every number of the breaker and the spool is a setting, and the defaults are theirs."""
    assert FailoverOptions() == _failover_options(Settings())
    for part, prefix in ((BreakerPolicy, "breaker"), (Limits, "spool")):
        for each in fields(part):
            assert getattr(part(), each.name) == getattr(Settings(), f"{prefix}_{each.name}")
    others = Settings(breaker_failures=7, primary_share=0.5, start="degraded", deadline_seconds=9)
    assert FailoverOptions(9, 0.5, True, BreakerPolicy(failures=7)) == _failover_options(others)


def test_namespace() -> None:
    """A spool is for one database and schema, under whatever user, and its name holds no secret."""
    places = {
        SqlEngine(url).address
        for url in (
            "postgresql://a:secret@h:5432/db",
            "postgres://b:other@h/db",
            "postgresql+asyncpg://h/db?sslmode=disable",
            "postgresql:///db?host=h",
        )
    }

    assert {"postgresql://h:5432/db"} == places
    for other in ("h:5433/db", "h/other", "i/db", "h/db?search_path=s", "h,i/db"):
        assert SqlEngine(f"postgresql://u:secret@{other}").address not in places
        assert "secret" not in SqlEngine(f"postgresql://u:secret@{other}").address


def test_powers() -> None:
    """What has a failover knows how it fares; what can have one can be probed."""
    assert issubclass(FailoverLogBackend, SupportsHealth)
    assert issubclass(SqlLogBackend, SupportsProbe)
    assert not issubclass(MemoryLogBackend, SupportsProbe)

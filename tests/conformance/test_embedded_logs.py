"""The log backends that need no server and no database, held to the suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from multidb.logs.backends.files import FileLogBackend
from multidb.logs.backends.memory import MemoryLogBackend
from multidb.testing.conformance.logs import LogBackendSuite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class TestMemoryLogs(LogBackendSuite):
    @pytest_asyncio.fixture
    async def backend(self) -> AsyncIterator[MemoryLogBackend]:
        self._backend = MemoryLogBackend()
        await self._backend.open()
        yield self._backend
        await self._backend.close()

    async def second_backend(self) -> MemoryLogBackend:
        """The data outlives a close."""
        await self._backend.close()
        await self._backend.open()
        return self._backend


class TestFileLogs(LogBackendSuite):
    @pytest_asyncio.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[FileLogBackend]:
        self._backend = FileLogBackend(tmp_path / "logs")
        await self._backend.open()
        yield self._backend
        await self._backend.close()

    async def second_backend(self) -> FileLogBackend:
        """Another process would find what this one finds after a restart."""
        folder = self._backend._path
        await self._backend.close()
        self._backend = FileLogBackend(folder)
        await self._backend.open()
        return self._backend

"""The profile suite on the backends that need no server."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest_asyncio

from multidb.profiles.backends.files import FileProfileBackend
from multidb.profiles.backends.memory import MemoryProfileBackend
from multidb.testing.conformance.profiles import ProfileBackendSuite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from multidb.profiles.protocol import ProfileBackend


class TestMemoryProfiles(ProfileBackendSuite):
    @pytest_asyncio.fixture
    async def backend(self) -> AsyncIterator[ProfileBackend]:
        self._backend = MemoryProfileBackend()
        await self._backend.open()
        yield self._backend
        await self._backend.close()

    async def second_backend(self) -> ProfileBackend:
        """The data outlives a close."""
        await self._backend.close()
        await self._backend.open()
        return self._backend


class TestFileProfiles(ProfileBackendSuite):
    concurrent_instances: ClassVar[bool] = True

    @pytest_asyncio.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[ProfileBackend]:
        self._folder = tmp_path / "profiles"
        self._opened: list[ProfileBackend] = []
        yield await self.second_backend()
        for backend in self._opened:
            await backend.close()

    async def second_backend(self) -> ProfileBackend:
        """Another one on the same folder, as another process would have."""
        backend = FileProfileBackend(self._folder)
        await backend.open()
        self._opened.append(backend)
        return backend

"""The state suite on the backends that need no server."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest_asyncio

from multidb.state.backends.memory import MemoryStateBackend
from multidb.testing.clock import ManualClock
from multidb.testing.conformance.state import StateBackendSuite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from multidb.state.protocol import StateBackend


class _EmbeddedStateSuite(StateBackendSuite):
    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


class TestMemoryState(_EmbeddedStateSuite):
    @pytest_asyncio.fixture
    async def backend(self) -> AsyncIterator[StateBackend]:
        self.clock = ManualClock()
        self._backend = MemoryStateBackend(clock=self.clock)
        await self._backend.open()
        yield self._backend
        await self._backend.close()

    async def second_backend(self) -> StateBackend:
        """The data outlives a close."""
        await self._backend.close()
        await self._backend.open()
        return self._backend


class TestFileState(_EmbeddedStateSuite):
    concurrent_instances: ClassVar[bool] = True

    @pytest_asyncio.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[StateBackend]:
        self.clock = ManualClock()
        self.folder = tmp_path / "state"
        self.opened: list[StateBackend] = []
        yield await self.second_backend()
        for backend in self.opened:
            await backend.close()

    async def second_backend(self) -> StateBackend:
        backend = MemoryStateBackend(clock=self.clock, folder=self.folder)
        await backend.open()
        self.opened.append(backend)
        return backend


class TestReopenedFileState(TestFileState):
    """The second backend is the first one again, closed and opened."""

    concurrent_instances: ClassVar[bool] = False

    async def second_backend(self) -> StateBackend:
        for backend in self.opened:
            await backend.close()
        return await super().second_backend()

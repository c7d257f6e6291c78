"""What every server has in common with a cluster of them: `with` and `async with`."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Startable(ABC):
    """Something to start and stop: call the methods, or use it in `with` or `async with`."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The address to connect to, with credentials."""

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether every process of it exists, be it paused."""

    @abstractmethod
    def start(self) -> Self:
        """Start, and return once it serves; nothing when it runs already."""

    @abstractmethod
    def stop(self) -> None:
        """End every process and remove every temporary file; idempotent."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.create_task(asyncio.to_thread(self.start))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A thread cannot be cancelled: let it finish, or what it starts would have nobody to stop it.
            await asyncio.wait({starting})
            await asyncio.to_thread(self.stop)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

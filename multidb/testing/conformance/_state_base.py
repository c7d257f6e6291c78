"""What the parts of the state suite share: the hooks that a subclass overrides, and how to name and ask."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

import pytest

from multidb.errors import ConflictError
from multidb.state.protocol import Entry, Key
from multidb.testing.conformance._data import unique

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multidb.state.protocol import StateBackend

T = TypeVar("T")

SHORT: Final = 0.2
"""A life span that a test waits out."""
PAST_SHORT: Final = 0.28
LONG: Final = 600.0
"""A life span that outlasts any test."""
ROOM: Final = 1 << 20
"""`max_bytes` of a merge that is about something else."""


@pytest.mark.asyncio
class StateSuite:
    """The hooks of the state suite."""

    concurrent_instances: ClassVar[bool] = False
    """Whether `second_backend()` leaves the first backend usable, so that the two can race."""

    async def pass_time(self, seconds: float) -> None:
        """Let *seconds* pass for the backend. Override it where the backend reads a clock moved by hand."""
        await asyncio.sleep(seconds)

    async def second_backend(self) -> StateBackend | None:
        """
        Return another open backend on the same data; None skips the tests that need one.

        It may be a second connection or what a reopened store yields. Close it in your fixture.
        """
        return None

    async def another(self) -> StateBackend:
        """Return `second_backend()`, or skip the test."""
        second = await self.second_backend()
        if second is None:
            pytest.skip("second_backend() is not overridden")
        return second


def fresh(name: str = "k") -> Key:
    """Return a key of a user that nobody used before."""
    return Key(unique(), name)


def everybody(key: Key) -> Key:
    """Return a global key that nobody used before, named after *key*."""
    return Key(None, f"{key.name}-{key.user_id}")


async def put(backend: StateBackend, key: Key, value: bytes, expire_seconds: float | None = None) -> None:
    """Store one value."""
    await backend.set([Entry(key, value, expire_seconds)])


async def value_of(backend: StateBackend, key: Key) -> bytes | None:
    """Return one value."""
    (value,) = await backend.get([key])
    return value


def outcomes(results: Sequence[T | ConflictError]) -> list[T | str]:
    """Return *results* with "conflict" in the place of every ConflictError, which equals nothing."""
    return ["conflict" if isinstance(result, ConflictError) else result for result in results]

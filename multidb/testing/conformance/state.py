"""The conformance suite of state backends."""

from __future__ import annotations

from multidb.testing.conformance._state_borders import BorderTests, SecondBackendTests
from multidb.testing.conformance._state_merge import MergeTests
from multidb.testing.conformance._state_others import CooldownTests, CounterTests, ListTests
from multidb.testing.conformance._state_spans import LifeSpanTests
from multidb.testing.conformance._state_values import ValueTests


class StateBackendSuite(
    ValueTests,
    MergeTests,
    LifeSpanTests,
    CooldownTests,
    CounterTests,
    ListTests,
    BorderTests,
    SecondBackendTests,
):
    """
    Tests of a `StateBackend`. Subclass it, and give it a fixture `backend` that yields an open one.

        class TestMyBackend(StateBackendSuite):
            @pytest_asyncio.fixture
            async def backend(self):
                backend = MyBackend(...)
                await backend.open()
                yield backend
                await backend.close()

    Override `pass_time()` where the backend reads a `ManualClock`, and `second_backend()` where its data can
    be opened twice or reopened. Every test uses names of its own, so the data may be shared and need not be
    empty; but the global values are cleared, so tests that run at the same time need a database each.
    """


__all__ = ["StateBackendSuite"]

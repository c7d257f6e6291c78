"""The conformance suite of the state store."""

from __future__ import annotations

from multidb.testing.conformance._stores_state_others import CooldownTests, CounterTests, ListTests, NameTests
from multidb.testing.conformance._stores_state_values import (
    ChangeTests,
    LifeSpanTests,
    ScopeTests,
    ValueTests,
)


class StateStoreSuite(
    ValueTests, ChangeTests, LifeSpanTests, ScopeTests, CooldownTests, CounterTests, ListTests, NameTests
):
    """
    Tests of what a program sees of state: every function of `StateStore`, and the rule for values.

    Subclass it, and give it a fixture `store`: the `state` of an open MultiDB, on any backend.

        class TestMyState(StateStoreSuite):
            @pytest_asyncio.fixture
            async def store(self):
                async with MultiDB(settings, state=MyBackend(...)) as db:
                    yield db.state

    Override `pass_time()` where the MultiDB reads a `ManualClock`. Every test uses names of its own, so the
    data may be shared and need not be empty; but the global values are cleared, so tests that run at the same
    time need a database each.
    """


__all__ = ["StateStoreSuite"]

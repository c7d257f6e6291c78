"""The conformance suite of the log store."""

from __future__ import annotations

from multidb.testing.conformance._stores_logs_events import (
    BadEventTests,
    BulkTests,
    EventTests,
    IdentityTests,
)
from multidb.testing.conformance._stores_logs_others import MessageTests, SaleTests, SessionTests
from multidb.testing.conformance._stores_logs_reading import CountTests, PageTests, ReadTests, SearchTests


class LogStoreSuite(
    EventTests,
    IdentityTests,
    BadEventTests,
    BulkTests,
    ReadTests,
    PageTests,
    SearchTests,
    CountTests,
    SaleTests,
    MessageTests,
    SessionTests,
):
    """
    Tests of what a program sees of logs: every function of `LogStore`, and the rule for values.

    Subclass it, and give it a fixture `store`: the `logs` of an open MultiDB, on any backend.

        class TestMyLogs(LogStoreSuite):
            @pytest_asyncio.fixture
            async def store(self):
                async with MultiDB(settings, logs=MyBackend(...)) as db:
                    yield db.logs

    Override `pass_time()` where the MultiDB reads a `ManualClock`. Every test uses names of its own, so the
    data may be shared and need not be empty.
    """


__all__ = ["LogStoreSuite"]

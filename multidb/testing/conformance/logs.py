"""The conformance suite of log backends."""

from __future__ import annotations

from multidb.testing.conformance._log_append import AppendTests, SecondBackendTests
from multidb.testing.conformance._log_count import CountTests
from multidb.testing.conformance._log_fields import FieldTests
from multidb.testing.conformance._log_query import QueryTests
from multidb.testing.conformance._log_sales import MessageStatsTests, SaleTests
from multidb.testing.conformance._log_search import SearchTests
from multidb.testing.conformance._log_sessions import SessionTests


class LogBackendSuite(
    AppendTests,
    FieldTests,
    QueryTests,
    CountTests,
    SearchTests,
    SaleTests,
    MessageStatsTests,
    SessionTests,
    SecondBackendTests,
):
    """
    Tests of a `LogBackend`. Subclass it, and give it a fixture `backend` that yields an open one.

        class TestMyBackend(LogBackendSuite):
            @pytest_asyncio.fixture
            async def backend(self):
                backend = MyBackend(...)
                await backend.open()
                yield backend
                await backend.close()

    Override `second_backend()` where the data can be opened twice or reopened. Every test uses names of its
    own, so the data may be shared and need not be empty.
    """


__all__ = ["LogBackendSuite"]

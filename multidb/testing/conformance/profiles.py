"""The conformance suite of profile backends."""

from __future__ import annotations

from multidb.testing.conformance._profile_apply import PatchTests
from multidb.testing.conformance._profile_batches import BatchRaceTests, BatchTests
from multidb.testing.conformance._profile_conflicts import ConflictTests
from multidb.testing.conformance._profile_find import FindTests
from multidb.testing.conformance._profile_keep import DeleteTests, KeepTests, SecondBackendTests
from multidb.testing.conformance._profile_many import ManyPatchesTests
from multidb.testing.conformance._profile_order import OrderTests
from multidb.testing.conformance._profile_search import SearchTests


class ProfileBackendSuite(
    PatchTests,
    ConflictTests,
    ManyPatchesTests,
    BatchTests,
    BatchRaceTests,
    KeepTests,
    FindTests,
    OrderTests,
    SearchTests,
    DeleteTests,
    SecondBackendTests,
):
    """
    Tests of a `ProfileBackend`. Subclass it, and give it a fixture `backend` that yields an open one.

        class TestMyBackend(ProfileBackendSuite):
            @pytest_asyncio.fixture
            async def backend(self):
                backend = MyBackend(...)
                await backend.open()
                yield backend
                await backend.close()

    Override `second_backend()` where the data can be opened twice or reopened. The data may be shared and
    need not be empty: tests use names of their own, but for a few that file systems know, such as `CON`, and
    take statistics by difference. Tests that run at the same time need a database each.
    """


__all__ = ["ProfileBackendSuite"]

"""The conformance suite of the profile store."""

from __future__ import annotations

from multidb.testing.conformance._stores_profiles_finding import FilterTests, KindTests, OrderTests
from multidb.testing.conformance._stores_profiles_together import TogetherTests
from multidb.testing.conformance._stores_profiles_writing import (
    BulkTests,
    DocumentTests,
    FieldTests,
    NameTests,
    ProfileValueTests,
)


class ProfileStoreSuite(
    DocumentTests,
    ProfileValueTests,
    FieldTests,
    BulkTests,
    TogetherTests,
    NameTests,
    FilterTests,
    OrderTests,
    KindTests,
):
    """
    Tests of what a program sees of profiles: every function of `ProfileStore`, and the rule for values.

    Subclass it, and give it a fixture `store`: the `profiles` of an open MultiDB, on any backend.

        class TestMyProfiles(ProfileStoreSuite):
            @pytest_asyncio.fixture
            async def store(self):
                async with MultiDB(settings, profiles=MyBackend(...)) as db:
                    yield db.profiles

    Override `pass_time()` where the MultiDB reads a `ManualClock`. Every test uses names of its own, so the
    data may be shared and need not be empty; but the counts over all profiles are compared, so tests that run
    at the same time need a database each.
    """


__all__ = ["ProfileStoreSuite"]

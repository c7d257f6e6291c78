"""The suites of the stores, on the backends that keep everything in process, with a clock moved by hand."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from multidb import MultiDB
from multidb.testing.clock import ManualClock
from multidb.testing.conformance.stores_logs import LogStoreSuite
from multidb.testing.conformance.stores_profiles import ProfileStoreSuite
from multidb.testing.conformance.stores_state import StateStoreSuite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from multidb.logs import LogStore
    from multidb.profiles import ProfileStore
    from multidb.state import StateStore


class OnManualClock:
    """What the three have in common."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        self._clock = ManualClock()
        return self._clock

    @pytest_asyncio.fixture
    async def db(self, clock: ManualClock) -> AsyncIterator[MultiDB]:
        async with MultiDB.in_memory(clock=clock) as db:
            yield db

    async def pass_time(self, seconds: float) -> None:
        self._clock.advance(seconds)


class TestLogStore(OnManualClock, LogStoreSuite):
    @pytest.fixture
    def store(self, db: MultiDB) -> LogStore:
        return db.logs


class TestProfileStore(OnManualClock, ProfileStoreSuite):
    @pytest.fixture
    def store(self, db: MultiDB) -> ProfileStore:
        return db.profiles

    async def test_more_than_a_thousand(self, store: ProfileStore) -> None:
        """Any number of profiles is updated, and any number comes back from one call, by username."""
        names = [f"bot-{number:04}" for number in range(2500)]
        for name in names:
            await store.create_or_update_profile(name, {"type": "bot"})

        assert 2500 == await store.bulk_update_profiles(
            {name: {"is_active": name[-1] == "7"} for name in names}
        )
        assert names == [document["username"] for document in await store.get_bot_profiles()]
        assert names[7::10] == [
            document["username"] for document in await store.get_all_profiles("bot", is_active=True)
        ]


class TestStateStore(OnManualClock, StateStoreSuite):
    @pytest.fixture
    def store(self, db: MultiDB) -> StateStore:
        return db.state


@pytest.mark.parametrize("suite", [LogStoreSuite, ProfileStoreSuite, StateStoreSuite])
def test_no_test_hides_another(suite: type) -> None:
    """The parts of a suite have tests of different names, so that all of them run."""
    names = Counter(name for part in suite.__mro__ for name in vars(part) if name.startswith("test_"))

    assert [] == [name for name, count in names.items() if count > 1]

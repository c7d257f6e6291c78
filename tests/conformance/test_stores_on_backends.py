"""The suites of the stores on everything that keeps data: files, SQLite, PostgreSQL, MongoDB (both drivers), Valkey."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from multidb import MultiDB, Settings
from multidb.testing.conformance import LogStoreSuite, ProfileStoreSuite, StateStoreSuite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from multidb.logs import LogStore
    from multidb.profiles import ProfileStore
    from multidb.state import StateStore
    from multidb.testing.pytest_plugin import Servers


@pytest.fixture(scope="module")
def on_embedded(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """What a program gets that sets nothing."""
    return Settings(data_dir=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def on_files(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Everything in files that a person can read."""
    folder = tmp_path_factory.mktemp("files")
    return Settings(data_dir=folder, postgres_url=f"file://{folder / 'logs'}")


@pytest.fixture(scope="module")
def on_servers(multidb_servers: Servers) -> Iterator[Settings]:
    """One database each on the three servers, for all tests of this module."""
    with multidb_servers.settings() as settings:
        yield settings


@pytest.fixture(scope="module")
def on_motor(on_servers: Settings) -> Settings:
    """The same servers through Motor."""
    return Settings(**dict(on_servers) | {"mongo_driver": "motor"})


@pytest_asyncio.fixture
async def db(request: pytest.FixtureRequest) -> AsyncIterator[MultiDB]:
    """A MultiDB on the settings that the class names."""
    async with MultiDB(request.getfixturevalue(request.cls.settings)) as db:
        yield db


class _Logs(LogStoreSuite):
    @pytest.fixture
    def store(self, db: MultiDB) -> LogStore:
        return db.logs


class _Profiles(ProfileStoreSuite):
    @pytest.fixture
    def store(self, db: MultiDB) -> ProfileStore:
        return db.profiles


class _State(StateStoreSuite):
    @pytest.fixture
    def store(self, db: MultiDB) -> StateStore:
        return db.state


class TestLogsEmbedded(_Logs):
    settings = "on_embedded"


class TestLogsInFiles(_Logs):
    settings = "on_files"


class TestLogsOnServer(_Logs):
    settings = "on_servers"


class TestProfilesEmbedded(_Profiles):
    settings = "on_embedded"


class TestProfilesOnServer(_Profiles):
    settings = "on_servers"


class TestProfilesThroughMotor(_Profiles):
    settings = "on_motor"


class TestStateEmbedded(_State):
    settings = "on_embedded"


class TestStateOnServer(_State):
    settings = "on_servers"

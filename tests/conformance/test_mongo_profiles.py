"""The profile suite on MongoDB: PyMongo on one server and on a replica set, Motor, and mongomock."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multidb._core.text import fold
from multidb.engines.mongo import MongoEngine
from multidb.profiles.backends.memory import MemoryProfileBackend
from multidb.profiles.backends.mongo import MongoProfileBackend
from multidb.profiles.protocol import Condition, Patch, ProfileQuery
from multidb.testing import servers
from multidb.testing.conformance._data import exact
from multidb.testing.conformance.profiles import ProfileBackendSuite
from multidb.testing.fakes_mongo import mongomock_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from multidb.profiles.protocol import ProfileBackend

pytestmark = pytest.mark.timeout(60)

needs_any_server = pytest.mark.skipif(
    servers.skip_reason("mongodb") is not None, reason=str(servers.skip_reason("mongodb"))
)
needs_own_server = pytest.mark.skipif(
    servers.own_skip_reason("mongodb") is not None, reason=str(servers.own_skip_reason("mongodb"))
)


class MongoSuite(ProfileBackendSuite):
    """The suite, on the engines that a fixture `new_engine` makes."""

    concurrent_instances = True

    @pytest_asyncio.fixture
    async def backend(self, new_engine: Callable[[], MongoEngine]) -> AsyncIterator[ProfileBackend]:
        async with AsyncExitStack() as self.opened:
            self.new_engine = new_engine
            yield await self.second_backend()

    async def second_backend(self) -> ProfileBackend:
        engine = self.new_engine()
        await engine.open()
        self.opened.push_async_callback(engine.close)
        backend = MongoProfileBackend(engine)
        await backend.open()
        self.opened.push_async_callback(backend.close)
        return backend


@pytest.fixture(scope="module")
def mongodb_url() -> Iterator[str]:
    with servers.mongodb() as server, server.database() as url:
        yield url


@needs_any_server
class TestPyMongo(MongoSuite):
    @pytest.fixture
    def new_engine(self, mongodb_url: str) -> Callable[[], MongoEngine]:
        return lambda: MongoEngine(mongodb_url)


@needs_any_server
class TestMotor(MongoSuite):
    @pytest.fixture
    def new_engine(self, mongodb_url: str) -> Callable[[], MongoEngine]:
        return lambda: MongoEngine(mongodb_url, driver="motor")


@needs_any_server
class TestPoolOfOne(MongoSuite):
    @pytest.fixture
    def new_engine(self, mongodb_url: str) -> Callable[[], MongoEngine]:
        return lambda: MongoEngine(mongodb_url, pool_max=1, timeout_seconds=10)


@pytest.fixture(scope="module")
def replica_set_url() -> Iterator[str]:
    with servers.MongoServer(replica_set=True) as server, server.database() as url:
        yield url


@needs_own_server
class TestReplicaSet(MongoSuite):
    @pytest.fixture
    def new_engine(self, replica_set_url: str) -> Callable[[], MongoEngine]:
        return lambda: MongoEngine(replica_set_url)


NUMBERS = (0, 1, -1, 2, 1.0, 1.5, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63), 1e300, 5e-324)
TEXTS = ("", "a", "A", "b", "ışık", "$a", "$$ROOT", "1", "true", "\uffff", "😀")
NAMES = st.sampled_from(["a", "b", "0", "1"])
FIELDS = st.sampled_from(["a", "b", "0", "type", "_multidb", "_multidb_"])
USERS = st.sampled_from(["u1", "u2", "U3", "ü4", "u1x"])
PATHS = st.tuples(FIELDS, st.lists(NAMES, max_size=2)).map(lambda parts: ".".join([parts[0], *parts[1]]))
SCALARS = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)
MOMENTS = st.integers(0, 10).map(lambda n: datetime(2026, 1, 1, microsecond=n, tzinfo=UTC))
RESERVED_VALUES = {"username": USERS, "version": st.sampled_from(NUMBERS), "created_at": MOMENTS}
ANY_PATHS = PATHS | st.sampled_from([*RESERVED_VALUES, "version.a", "created_at.a"])


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    path, operator = draw(ANY_PATHS), draw(st.sampled_from(["eq", "in", "gt", "gte", "lt", "lte", "exists"]))
    if operator == "exists":
        return Condition(path, operator, draw(st.booleans()))
    values = RESERVED_VALUES.get(path, SCALARS)
    if operator == "in":
        return Condition(path, operator, draw(st.lists(values, min_size=1, max_size=3)))
    return Condition(path, operator, draw(values.filter(lambda value: operator == "eq" or value is not None)))


def value_at(document: dict[str, Any], path: str) -> Any:
    value: Any = document
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


@needs_any_server
class TestAgainstMemory:
    """MongoDB itself is the measure of what the in-process backends say of conditions and orders."""

    @pytest_asyncio.fixture
    async def mongo(self, mongodb_url: str) -> AsyncIterator[MongoProfileBackend]:
        engine = MongoEngine(mongodb_url, timeout_seconds=10)
        backend = MongoProfileBackend(engine, collection="against_memory")
        await engine.open()
        await backend.open()
        yield backend
        await backend.close()
        await engine.close()

    @settings(
        max_examples=60, deadline=None, report_multiple_bugs=False, suppress_health_check=list(HealthCheck)
    )
    @given(
        documents=st.dictionaries(USERS, st.dictionaries(FIELDS, VALUES, max_size=4), min_size=2, max_size=5),
        wanted=st.lists(conditions(), min_size=4, max_size=8),
        sort=st.lists(st.tuples(ANY_PATHS, st.booleans()), min_size=1, max_size=2),
        limit=st.integers(1, 5),
        keyword=st.sampled_from(TEXTS[1:]).map(fold),
    )
    async def test_same_answers(
        self, mongo: MongoProfileBackend, documents: Any, wanted: Any, sort: Any, limit: int, keyword: str
    ) -> None:
        """Whatever is kept and asked for, MongoDB and the memory backend give the same answer."""
        memory = MemoryProfileBackend()
        await mongo.delete([profile["username"] for profile in await mongo.find(ProfileQuery())])
        for number, (username, fields) in enumerate(documents.items()):
            at = datetime(2026, 1, 1, microsecond=number, tzinfo=UTC)
            for backend in (memory, mongo):
                await backend.apply([Patch(username, at, set=fields, upsert=True)])
        queries = [ProfileQuery(), *(ProfileQuery([condition]) for condition in wanted)]
        for last in [None, *await memory.find(ProfileQuery())]:
            after = last and ([value_at(last, path) for path, _ in sort], last["username"])
            queries.append(ProfileQuery(sort=sort, after=after, limit=limit))
        for query in queries:
            assert exact(await memory.find(query)) == exact(await mongo.find(query)), query
        assert exact(await memory.search(keyword, limit)) == exact(await mongo.search(keyword, limit))
        assert await memory.stats() == await mongo.stats()


class TestMongomock(MongoSuite):
    @pytest.fixture
    def new_engine(self) -> Callable[[], MongoEngine]:
        client = mongomock_client()
        return lambda: MongoEngine("mongodb://fake", client=client)

"""The log suite on PostgreSQL and SQLite: with the usual pool, a pool of one, and the way a pooler needs it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import pytest_asyncio

from multidb.engines.sql import SqlEngine
from multidb.errors import BackendTimeoutError
from multidb.logs._records import Event, Message
from multidb.logs.backends.sql import SqlLogBackend
from multidb.logs.protocol import Appended, Query
from multidb.testing import servers
from multidb.testing.conformance._data import unique
from multidb.testing.conformance._log_data import (
    NOON,
    TICK,
    entries,
    event,
    ids,
    message,
    newest_first,
    of_user,
    seen,
    store,
    touch,
)
from multidb.testing.conformance.logs import LogBackendSuite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from multidb.logs.protocol import LogBackend

pytestmark = pytest.mark.timeout(120)

needs_postgres = pytest.mark.skipif(
    servers.skip_reason("postgres") is not None, reason=str(servers.skip_reason("postgres"))
)


class SqlSuite(LogBackendSuite):
    """The suite, on the engines that a fixture `new_engine` makes."""

    concurrent_instances = True

    @pytest_asyncio.fixture
    async def backend(self, new_engine: Callable[[], SqlEngine]) -> AsyncIterator[LogBackend]:
        async with AsyncExitStack() as self.opened:
            self.new_engine = new_engine
            yield await self.second_backend()

    async def second_backend(self) -> LogBackend:
        engine = self.new_engine()
        await engine.open()
        self.opened.push_async_callback(engine.close)
        backend = SqlLogBackend(engine)
        await backend.open()
        return backend


class SearchTests:
    """What only databases do: texts too long for their index, and words that nearly every record has."""

    async def test_long_messages(self, backend: LogBackend) -> None:
        """A message that is too long to be indexed is found all the same, and deleted."""
        user, word = unique(), unique("kelime")
        long = event(user, message="ş" * 300_000 + word)
        short = event(unique(), message=word, timestamp=NOON - TICK)
        await store(backend, [long, short])

        assert ids([long, short]) == ids(await backend.query(Query(Event, keyword=word)))
        assert ids([long]) == ids(await backend.query(of_user(user, Event, keyword=word)))
        assert ids([long]) == ids(await backend.query(Query(Event, keyword="ş" * 1000 + word)))
        assert [] == await backend.query(of_user(user, Event, keyword="x" + word))
        assert 1 == await backend.delete(of_user(user, Event))
        assert ids([short]) == ids(await backend.query(Query(Event, keyword=word)))

    async def test_batch_of_long_messages(self, backend: LogBackend) -> None:
        """A batch that is too much for one statement is stored, and recognised."""
        user = unique()
        batch = [
            event(user, message=f"{n}" + "ab " * 100_000, context={"k": "x" * 900_000}) for n in range(8)
        ]
        said = [message(user, text="y" * 1_000_000) for _ in range(3)]
        await store(backend, batch)
        await store(backend, said)

        assert [Appended.DUPLICATE] * 8 == list(await backend.append(entries(batch)))
        assert seen(newest_first(batch)) == seen(await backend.query(of_user(user, Event)))
        assert seen(newest_first(said)) == seen(await backend.query(of_user(user, Message)))

    async def test_common_words(self, backend: LogBackend) -> None:
        """What thousands of records have is found, too: the newest of them, of everybody or of one user."""
        users, word = [unique() for _ in range(3)], unique("word")
        happened = [
            event(users[number % 3], timestamp=NOON + TICK * number, message=f"{word} {number:04}")
            for number in range(3600)
        ]
        await store(backend, happened)
        newest = newest_first(happened)

        assert ids(newest[:1]) == ids(await backend.query(Query(Event, keyword=word, limit=1)))
        assert ids(newest[:2000]) == ids(await backend.query(Query(Event, keyword=word, limit=2000)))
        assert ids(newest) == ids(await backend.query(Query(Event, keyword=word, limit=10_000)))
        assert ids(newest[1::3][:2]) == ids(
            await backend.query(of_user(users[1], Event, keyword=word, limit=2))
        )
        assert ids([happened[17]]) == ids(await backend.query(Query(Event, keyword=f"{word} 0017", limit=1)))
        assert ids([happened[17]]) == ids(await backend.query(of_user(users[2], Event, keyword=" 0017")))
        assert {"": 3600} == await backend.count(Query(Event, keyword=word))
        assert [1200] * 3 == [await backend.delete(of_user(user, Event)) for user in users]

    async def test_delete_more_than_at_once(self, backend: LogBackend) -> None:
        """What takes several statements to delete is counted whole."""
        user = unique()
        await store(backend, [event(user, timestamp=NOON + TICK * number) for number in range(10_001)])

        assert 10_000 == await backend.delete(of_user(user, Event, until=NOON + TICK * 10_000))
        assert {"": 1} == await backend.count(of_user(user, Event))


class PartTests:
    """What is done in several steps."""

    async def test_failure_after_a_part(
        self, backend: SqlLogBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A batch that fails when a part of it is stored is ambiguous, and complete after a retry."""
        user = unique()
        batch = entries(event(user, message="x" * 400_000, id=each) for each in (uuid4() for _ in range(3)))
        flavour = backend._flavour
        insert, calls = flavour.insert, iter(range(10))

        async def fail_once(kind: Any, rows: Any) -> Any:
            if next(calls) == 1:
                raise BackendTimeoutError("not applied")
            return await insert(kind, rows)

        monkeypatch.setattr(flavour, "insert", fail_once)
        with pytest.raises(BackendTimeoutError) as caught:
            await backend.append(batch)

        assert caught.value.ambiguous
        assert {Appended.STORED, Appended.DUPLICATE} == set(await backend.append(batch))
        assert {"": 3} == await backend.count(of_user(user, Event))

    async def test_same_session_often_in_a_batch(self, backend: LogBackend) -> None:
        """A batch may touch a session several times: each answer is the session after that touch."""
        user, other = unique(), unique()
        touches = [
            touch(who, "s", NOON + TICK * number, context={"n": number})
            for number in range(5)
            for who in (user, other)
        ]
        sessions = await backend.touch_sessions(touches)

        assert [each.context["n"] for each in sessions] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert [each.user_id for each in sessions] == [user, other] * 5
        assert {NOON} == {each.started_at for each in sessions}
        assert [] == await backend.touch_sessions([])


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with servers.postgres(fsync=False) as server, server.database() as url:
        yield url


@needs_postgres
class TestPostgres(SqlSuite, SearchTests, PartTests):
    @pytest.fixture
    def new_engine(self, postgres_url: str) -> Callable[[], SqlEngine]:
        return lambda: SqlEngine(postgres_url)


@needs_postgres
class TestPostgresPoolOfOne(SqlSuite):
    @pytest.fixture
    def new_engine(self, postgres_url: str) -> Callable[[], SqlEngine]:
        return lambda: SqlEngine(postgres_url, pool_max=1, pool_timeout_seconds=20)


@needs_postgres
class TestPostgresBehindPooler(SqlSuite):
    """Without prepared statements and session settings, as for pgbouncer, though there is none here."""

    @pytest.fixture
    def new_engine(self, postgres_url: str) -> Callable[[], SqlEngine]:
        return lambda: SqlEngine(f"{postgres_url}?pgbouncer=true")


class TestSqlite(SqlSuite, SearchTests, PartTests):
    @pytest.fixture
    def new_engine(self, tmp_path: Path) -> Callable[[], SqlEngine]:
        return lambda: SqlEngine(f"sqlite:///{tmp_path}/a folder/100%#.db")


class TestSqlitePoolOfOne(SqlSuite):
    @pytest.fixture
    def new_engine(self, tmp_path: Path) -> Callable[[], SqlEngine]:
        return lambda: SqlEngine(f"sqlite:///{tmp_path}/multidb.db", pool_max=1, pool_timeout_seconds=20)

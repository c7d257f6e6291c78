"""Keywords of one and two characters, which the index of trigrams serves in a way of its own."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from multidb._core.text import SEPARATOR, fold
from multidb.engines.sql import SqlEngine
from multidb.errors import BackendTimeoutError
from multidb.logs._records import Event
from multidb.logs.backends import _sql_postgres
from multidb.logs.backends.sql import SqlLogBackend
from multidb.logs.protocol import Query
from multidb.testing import servers
from multidb.testing.conformance._data import round_trips, unique
from multidb.testing.conformance._log_data import event, ids, newest_first, store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

needs_postgres = pytest.mark.skipif(
    servers.own_skip_reason("postgres") is not None, reason=str(servers.own_skip_reason("postgres"))
)

# Letters of one to four bytes, and what means something in a pattern, a regular expression, or a query of FTS5.
ALPHABET = "abzıİşĞß0٣жΣق世界愛😀👍🏽\u0301\u200d“…€\u07ff\u0800%_\\[]^-.*\"' \n\x1e\x1d" + SEPARATOR
short_texts = st.text(ALPHABET, max_size=8)


@pytest.fixture(
    params=[
        pytest.param("postgresql", marks=needs_postgres),
        pytest.param("C", marks=needs_postgres),
        "sqlite",
    ],
    scope="module",
)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database; "C" is one that takes letters beyond ASCII for punctuation."""
    if request.param == "sqlite":
        path: Path = tmp_path_factory.mktemp("short")
        yield f"sqlite:///{path}/multidb.db"
        return
    server: servers.PostgresServer = request.getfixturevalue("server")
    with server.database() as made:
        if request.param != "C":
            yield made
            return
        asyncio.run(_execute(made, "CREATE DATABASE plain ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0"))
        try:
            yield made.rpartition("/")[0] + "/plain"
        finally:
            server.drop_database("plain")


async def _execute(url: str, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(autouse=True, scope="module")
def _always_by_index() -> Iterator[None]:
    """A table is never too small for the index, no keyword too common."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sql_postgres, "_FIRST_LOOK", 0)
        patch.setattr(_sql_postgres, "_COMMON", 2)
        yield


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[SqlLogBackend]:
    engine = SqlEngine(url, command_timeout_seconds=20)
    await engine.open()
    try:
        backend = SqlLogBackend(engine)
        await backend.open()
        yield backend
    finally:
        await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(url: str) -> AsyncIterator[SqlLogBackend]:
    async with opened(url) as backend:
        yield backend


def having(keyword: str, events: Iterable[Event]) -> list[Event]:
    return [each for each in events if keyword in fold(each.message) or keyword in fold(each.event_type)]


@round_trips
@given(messages=st.lists(short_texts, min_size=1, max_size=5), data=st.data())
async def test_any_one_or_two(backend: SqlLogBackend, messages: list[str], data: st.DataObject) -> None:
    """Every one and two characters find what contains them and nothing else, wherever these stand in it."""
    kind = "t" + unique()[-6:] + data.draw(short_texts, "ending of the type")
    happened = newest_first(event("u", message=text, event_type=kind) for text in messages)
    await store(backend, happened)
    text = fold(data.draw(st.sampled_from([*messages, kind])))
    start = data.draw(st.integers(0, len(text)))
    keywords = {
        text[start : start + 1],
        text[start : start + 2],
        fold(data.draw(st.text(ALPHABET, max_size=2))),
    }
    for keyword in keywords - {""}:
        query = Query(Event, {"event_type": kind}, keyword=keyword)

        assert ids(having(keyword, happened)) == ids(await backend.query(query)), repr(keyword)
        assert {"": len(having(keyword, happened))} == await backend.count(query)


async def test_by_index(backend: SqlLogBackend) -> None:
    """It is the index that finds them here."""
    await store(backend, [event("u", message="qxy")])
    query = Query(Event, keyword="qx")

    assert "short" == await backend._flavour.how(query, "qx")
    assert "short" != await backend._flavour.how(Query(Event, {"user_id": "u"}, keyword="qx"), "qx")


async def test_several_processes(url: str) -> None:
    """What one process brings the first of is found by the others, also next to what these bring."""
    async with AsyncExitStack() as stack:
        backends = [await stack.enter_async_context(opened(url)) for _ in range(3)]
        happened: list[Event] = []
        for number in range(60):
            # New letters, ASCII and Cyrillic and Chinese, after "k".
            letter = chr((0x61, 0x430, 0x4E00)[number % 3] + number // 3)
            happened.append(event("several", message=f"fk{letter}"))
            await store(backends[number % 3], happened[-1:])
            for keyword in ("k" + letter, letter, "fk"):
                found = await backends[(number + 1) % 3].query(
                    Query(Event, since=happened[0].timestamp, keyword=keyword, limit=1000)
                )

                assert {e.id for e in having(keyword, happened)} == {
                    e.id for e in found if e.user_id == "several"
                }


async def test_deleted(backend: SqlLogBackend) -> None:
    """What was deleted is not found, and what was not deleted is."""
    happened = newest_first(event(f"gone{number % 2}", message=f"ŵ{number}") for number in range(10))
    await store(backend, happened)

    assert 5 == await backend.delete(Query(Event, {"user_id": "gone0"}))
    for keyword in ("ŵ", "ŵ4", "ŵ5"):
        found = await backend.query(Query(Event, keyword=keyword))

        assert ids(having(keyword, [e for e in happened if e.user_id == "gone1"])) == ids(found)


async def test_long_texts(backend: SqlLogBackend) -> None:
    """A text that is too long for the index is searched, too."""
    happened = event("u", message="ab " * 100_000 + "ҕҗ")
    await store(backend, [happened])
    for keyword in ("ҕ", "ҕҗ"):
        assert ids([happened]) == ids(await backend.query(Query(Event, keyword=keyword)))


@pytest.mark.parametrize("fails", ["characters", "events"])
async def test_interrupted(url: str, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an append that was cancelled or failed midway the next one is found."""
    if url.startswith("sqlite"):
        pytest.skip("There it is one transaction.")
    letters = {"characters": ("ѩ", "ѫ"), "events": ("ѭ", "ѯ")}[fails]
    async with opened(url) as backend:
        fetch = backend._engine.fetch
        for letter, exc in zip(letters, (asyncio.CancelledError(), BackendTimeoutError("late")), strict=True):

            async def interrupted(sql: str, *args: Any, exc: BaseException = exc, **options: Any) -> Any:
                if f"INSERT INTO multidb_{fails}" in sql:
                    raise exc
                return await fetch(sql, *args, **options)

            with monkeypatch.context() as patched:
                patched.setattr(backend._engine, "fetch", interrupted)
                with pytest.raises(type(exc)):
                    await store(backend, [event("u", message=f"a{letter}a")])
            happened = event("u", message=f"b{letter}b")
            await store(backend, [happened])
            for keyword in (letter, f"b{letter}", f"{letter}b"):
                assert ids([happened]) == ids(await backend.query(Query(Event, keyword=keyword)))

"""Which index answers a question: the plans that PostgreSQL and SQLite make for what the log backend asks."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from multidb.engines.sql import SqlEngine
from multidb.logs._records import Event, Message, Sale
from multidb.logs.backends.sql import SqlLogBackend
from multidb.logs.protocol import Query
from multidb.testing import servers
from multidb.testing.conformance._log_data import NOON, TICK, entries, event, message, sale

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

needs_postgres = pytest.mark.skipif(
    servers.skip_reason("postgres") is not None, reason=str(servers.skip_reason("postgres"))
)

EVENTS = 40_000
OTHERS = 10_000
STEP = TICK * 1_000_000
LATE = NOON - STEP * 100
USER, TYPE = {"user_id": "user7"}, {"event_type": "type3"}

INDEXES = re.compile(r"\bmultidb_(?:events|sales|messages)_(?:user|type|time|search|long|product|talk)\b")

QUESTIONS: dict[str, tuple[Callable[[SqlLogBackend], Coroutine[Any, Any, Any]], str]] = {
    "events of a user": (lambda b: b.query(Query(Event, USER, limit=10)), "multidb_events_user"),
    "of a user since": (lambda b: b.query(Query(Event, USER, since=LATE, limit=10)), "multidb_events_user"),
    "of a user and a level": (
        lambda b: b.query(Query(Event, {**USER, "level": "ERROR"}, limit=10)),
        "multidb_events_user",
    ),
    "of a user, next page": (
        lambda b: b.query(Query(Event, USER, after=(LATE, uuid4()), limit=10)),
        "multidb_events_user",
    ),
    "of several users": (
        lambda b: b.query_all([Query(Event, {"user_id": f"user{n}"}, limit=10) for n in range(20)]),
        "multidb_events_user",
    ),
    "of several users, next page": (
        lambda b: b.query_all([Query(Event, USER, after=(LATE, uuid4()), limit=10)] * 20),
        "multidb_events_user",
    ),
    "of a type": (lambda b: b.query(Query(Event, TYPE, limit=10)), "multidb_events_type"),
    "of several types": (lambda b: b.query_all([Query(Event, TYPE, limit=10)] * 3), "multidb_events_type"),
    "of everybody": (lambda b: b.query(Query(Event, limit=10)), "multidb_events_time"),
    "of everybody, next page": (
        lambda b: b.query(Query(Event, after=(LATE, uuid4()), limit=1000)),
        "multidb_events_time",
    ),
    "search, rare": (lambda b: b.query(Query(Event, keyword="zebrafish", limit=50)), "multidb_events_search"),
    "search, absent": (
        lambda b: b.query(Query(Event, keyword="quetzalcoatl", limit=50)),
        "multidb_events_search",
    ),
    "search, common": (lambda b: b.query(Query(Event, keyword="happened", limit=1)), "multidb_events_time"),
    "search, short": (lambda b: b.query(Query(Event, keyword="ha", limit=1)), "multidb_events_time"),
    "search, short, rare": (lambda b: b.query(Query(Event, keyword="ze", limit=50)), "multidb_events_search"),
    "search, short, rare, one": (
        lambda b: b.query(Query(Event, keyword="ze", limit=1)),
        "multidb_events_search",
    ),
    "search, short, absent": (
        lambda b: b.query(Query(Event, keyword="zz", limit=1)),
        "multidb_events_search",
    ),
    "search, one letter": (lambda b: b.query(Query(Event, keyword="h", limit=1)), "multidb_events_time"),
    "count, short, rare": (lambda b: b.count(Query(Event, keyword="ze")), "multidb_events_search"),
    "search, short, of a user": (
        lambda b: b.query(Query(Event, USER, keyword="zq", limit=50)),
        "multidb_events_user",
    ),
    "count, of a user": (lambda b: b.count(Query(Event, USER)), "multidb_events_user"),
    "count, late": (lambda b: b.count(Query(Event, since=LATE)), "multidb_events_time"),
    "count, late, by level": (lambda b: b.count(Query(Event, since=LATE), "level"), "multidb_events_time"),
    "histogram, of a user": (lambda b: b.histogram(Query(Event, USER), "hour"), "multidb_events_user"),
    "histogram, late": (lambda b: b.histogram(Query(Event, since=LATE), "minute"), "multidb_events_time"),
    "sales of a user": (lambda b: b.query(Query(Sale, USER, limit=10)), "multidb_sales_user"),
    "sales of a product": (
        lambda b: b.query(Query(Sale, {"product_type": "p7"}, limit=10)),
        "multidb_sales_product",
    ),
    "sales": (lambda b: b.query(Query(Sale, limit=10)), "multidb_sales_time"),
    "messages of a user": (lambda b: b.query(Query(Message, USER, limit=10)), "multidb_messages_user"),
    "messages of a conversation": (
        lambda b: b.query(Query(Message, {"conversation_id": "c7"}, limit=10)),
        "multidb_messages_talk",
    ),
    "messages": (lambda b: b.query(Query(Message, limit=10)), "multidb_messages_time"),
    "stats of a user": (lambda b: b.message_stats(Query(Message, USER)), "multidb_messages_user"),
    "stats of a conversation": (
        lambda b: b.message_stats(Query(Message, {"conversation_id": "c7"})),
        "multidb_messages_talk",
    ),
    "stats, late": (lambda b: b.message_stats(Query(Message, since=LATE)), "multidb_messages_time"),
}


class Asked:
    """Notes the statements that read."""

    def __init__(self, engine: SqlEngine, patch: pytest.MonkeyPatch) -> None:
        self.statements: list[tuple[str, Any, bool]] = []
        fetch, fetch_each = engine.fetch, engine.fetch_each

        async def noting(sql: str, args: Any = (), **options: Any) -> Any:
            self.statements.append((sql, args, options.get("prepared", True)))
            return await fetch(sql, args, **options)

        async def noting_each(statements: Any) -> Any:
            self.statements += [(sql, args, True) for sql, args in statements]
            return await fetch_each(statements)

        patch.setattr(engine, "fetch", noting)
        patch.setattr(engine, "fetch_each", noting_each)


@asynccontextmanager
async def filled(url: str) -> AsyncIterator[SqlEngine]:
    """Open a database with many records of many users."""
    engine = SqlEngine(url, command_timeout_seconds=60)
    await engine.open()
    try:
        backend = SqlLogBackend(engine)
        await backend.open()
        happened = (
            event(
                f"user{n % 997}",
                timestamp=NOON - STEP * n,
                event_type=f"type{n % 20}",
                level="INFO" if n % 50 else "ERROR",
                message=f"something happened {n}" + (" zebrafish" if n == EVENTS // 2 else ""),
            )
            for n in range(EVENTS)
        )
        await backend.append(entries(happened))
        sold = (
            sale(f"user{n % 997}", timestamp=NOON - STEP * n, product_type=f"p{n % 50}")
            for n in range(OTHERS)
        )
        await backend.append(entries(sold))
        said = (
            message(f"user{n % 997}", timestamp=NOON - STEP * n, conversation_id=f"c{n % 100}")
            for n in range(OTHERS)
        )
        await backend.append(entries(said))
        yield engine
    finally:
        await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def postgres() -> AsyncIterator[tuple[SqlEngine, str]]:
    with servers.postgres(fsync=False) as server, server.database() as url:
        async with filled(url) as engine:
            await engine.fetch("VACUUM ANALYZE multidb_events, multidb_sales, multidb_messages")
            yield engine, url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sqlite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SqlEngine]:
    async with filled(f"sqlite:///{tmp_path_factory.mktemp('plans')}/multidb.db") as engine:
        yield engine


@needs_postgres
@pytest.mark.parametrize("question", QUESTIONS)
async def test_index_of_postgres(
    postgres: tuple[SqlEngine, str], question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every question is answered by its index, also by the plan for any arguments where that one is used."""
    engine, url = postgres
    ask, index = QUESTIONS[question]
    backend = SqlLogBackend(engine)
    await backend.open()
    asked = Asked(engine, monkeypatch)
    await ask(backend)

    assert 1 == len(asked.statements) or "short" in question or "letter" in question
    sql, args, prepared = asked.statements[-1]
    plans = [await engine.fetch(f"EXPLAIN {sql}", args)]
    if prepared:
        plans.append(await generic_plan(url, sql, len(args)))
    for plan in plans:
        text = "\n".join(row[0] for row in plan)

        assert {index} == set(INDEXES.findall(text)) - {"multidb_events_long"}, text
        assert "Seq Scan" not in text


@needs_postgres
@pytest.mark.parametrize("keyword", ["q", "qz", "😀"])
async def test_letters_that_no_event_has(
    postgres: tuple[SqlEngine, str], keyword: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no event has a letter of the keyword, no event is looked at."""
    engine, _ = postgres
    backend = SqlLogBackend(engine)
    await backend.open()
    asked = Asked(engine, monkeypatch)

    assert [] == await backend.query(Query(Event, keyword=keyword, limit=1))
    sql, args, _ = asked.statements[-1]
    text = "\n".join(row[0] for row in await engine.fetch(f"EXPLAIN {sql}", args))

    assert "Scan" not in text


async def generic_plan(url: str, sql: str, arguments: int) -> list[Any]:
    """Return the plan that PostgreSQL goes over to when a prepared statement has run five times."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE asked AS {sql}")
        nulls = ", ".join(["NULL"] * arguments)
        return list(await connection.fetch(f"EXPLAIN EXECUTE asked ({nulls})"))
    finally:
        await connection.close()


# PostgreSQL has a choice here: 18 skips through the index on types.
OF_SQLITE = {
    "count, late, by type": (
        lambda b: b.count(Query(Event, since=LATE), "event_type"),
        "multidb_events_time",
    ),
    "count, late, by user": (lambda b: b.count(Query(Event, since=LATE), "user_id"), "multidb_events_time"),
    "count, by type": (lambda b: b.count(Query(Event), "event_type"), "multidb_events_type"),
    # In PostgreSQL one letter is in too many trigrams.
    "search, one letter, rare": (
        lambda b: b.query(Query(Event, keyword="z", limit=50)),
        "multidb_events_search",
    ),
    "search, one letter, absent": (
        lambda b: b.query(Query(Event, keyword="q", limit=50)),
        "multidb_events_search",
    ),
}


@pytest.mark.parametrize("question", [*QUESTIONS, *OF_SQLITE])
async def test_index_of_sqlite(sqlite: SqlEngine, question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question is answered by its index, though SQLite has no statistics."""
    ask, index = (QUESTIONS | OF_SQLITE)[question]
    asked = Asked(sqlite, monkeypatch)
    await ask(SqlLogBackend(sqlite))
    sql, args, _ = asked.statements[-1]
    plan = "\n".join(row[3] for row in await sqlite.fetch(f"EXPLAIN QUERY PLAN {sql}", args))
    plan = plan.replace("multidb_events_trigrams", "multidb_events_search")  # What lists what is in it.

    assert {index} == set(INDEXES.findall(plan)) - {"multidb_events_long"}, plan
    assert "USE TEMP B-TREE FOR ORDER BY" not in plan or index == "multidb_events_search"

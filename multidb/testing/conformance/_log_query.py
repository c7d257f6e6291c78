"""The log suite's tests of asking: filters, order and paging."""

from __future__ import annotations

from itertools import product
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from multidb.logs._records import LEVELS, Event, Message, Sale
from multidb.logs.protocol import Query
from multidb.testing.conformance._data import AWKWARD_IDS, together, unique
from multidb.testing.conformance._log_data import (
    FIRST_MOMENT,
    LAST_MOMENT,
    NOON,
    TICK,
    LogSuite,
    entries,
    event,
    ids,
    matches,
    message,
    newest_first,
    of_user,
    sale,
    seen,
    store,
)

if TYPE_CHECKING:
    from multidb.logs.protocol import LogBackend


class QueryTests(LogSuite):
    """Filters, order and paging."""

    async def test_nothing_there(self, backend: LogBackend) -> None:
        """Where nothing matches every question has an empty answer."""
        query = of_user(unique(), Event)

        assert [] == await backend.query(query)
        assert 0 == (await backend.count(query)).get("", 0)
        assert {} == await backend.count(query, "level")
        assert {} == await backend.histogram(query, "day")
        assert 0 == await backend.delete(query)

    async def test_newest_first(self, backend: LogBackend) -> None:
        """Records come newest first, equal times by id as a number, however they were appended."""
        user = unique()
        happened = [event(user, timestamp=NOON + TICK * (number % 3)) for number in range(60)]
        for start in range(0, 60, 20):
            await store(backend, happened[start : start + 20])

        assert ids(newest_first(happened)) == ids(await backend.query(of_user(user, Event)))

    async def test_equal_times_by_id(self, backend: LogBackend) -> None:
        """Ids compare as unsigned 128-bit numbers, from the first byte to the last."""
        user = unique()
        base = uuid4().int
        numbers = sorted(base ^ (flip << (8 * place)) for place in range(16) for flip in (0x01, 0x80, 0xFF))
        happened = [event(user, id=UUID(int=number)) for number in numbers]
        shuffled = list(happened)
        Random(3).shuffle(shuffled)
        await store(backend, shuffled)

        assert ids(happened[::-1]) == ids(await backend.query(of_user(user, Event)))

    async def test_limit(self, backend: LogBackend) -> None:
        """A query returns the newest records up to its limit."""
        user = unique()
        happened = newest_first(event(user, timestamp=NOON - TICK * number) for number in range(10))
        await store(backend, happened)

        assert seen(happened[:1]) == seen(await backend.query(of_user(user, Event, limit=1)))
        assert seen(happened[:7]) == seen(await backend.query(of_user(user, Event, limit=7)))
        assert seen(happened) == seen(await backend.query(of_user(user, Event, limit=10_000)))

    async def test_since_and_until(self, backend: LogBackend) -> None:
        """`since` is inclusive, `until` is exclusive, to the microsecond."""
        user = unique()
        before, at, after = (event(user, timestamp=NOON + TICK * step) for step in (-1, 0, 1))
        await store(backend, [before, at, after])

        assert ids([after, at]) == ids(await backend.query(of_user(user, Event, since=NOON)))
        assert ids([before]) == ids(await backend.query(of_user(user, Event, until=NOON)))
        assert ids([at]) == ids(await backend.query(of_user(user, Event, since=NOON, until=NOON + TICK)))
        assert [] == await backend.query(of_user(user, Event, since=NOON, until=NOON))
        assert [] == await backend.query(of_user(user, Event, since=NOON + TICK, until=NOON))
        assert {"": 2} == await backend.count(of_user(user, Event, since=NOON))
        assert {"": 1} == await backend.count(of_user(user, Event, until=NOON))

    async def test_ends_of_time(self, backend: LogBackend) -> None:
        """The first and the last moment may be asked for."""
        user = unique()
        first, last = event(user, timestamp=FIRST_MOMENT), event(user, timestamp=LAST_MOMENT)
        await store(backend, [first, last])

        assert ids([last, first]) == ids(await backend.query(of_user(user, Event, since=FIRST_MOMENT)))
        assert ids([first]) == ids(await backend.query(of_user(user, Event, until=LAST_MOMENT)))
        assert ids([last]) == ids(await backend.query(of_user(user, Event, since=LAST_MOMENT)))
        assert [] == await backend.query(of_user(user, Event, until=FIRST_MOMENT))
        assert ids([first]) == ids(await backend.query(of_user(user, Event, after=(LAST_MOMENT, last.id))))

    async def test_event_filters(self, backend: LogBackend) -> None:
        """Events are found by user, type and level, and by every combination."""
        await self.check_filters(
            backend,
            Event,
            {
                "user_id": [unique(), unique()],
                "event_type": [unique("t"), unique("t")],
                "level": ["INFO", "ERROR"],
            },
        )

    async def test_sale_filters(self, backend: LogBackend) -> None:
        """Sales are found by user, product type and status, and by every combination."""
        await self.check_filters(
            backend,
            Sale,
            {
                "user_id": [unique(), unique()],
                "product_type": [unique("p"), unique("p")],
                "status": ["pending", "failed"],
            },
        )

    async def test_message_filters(self, backend: LogBackend) -> None:
        """Messages are found by user, conversation and role, and by every combination."""
        await self.check_filters(
            backend,
            Message,
            {
                "user_id": [unique(), unique()],
                "conversation_id": [unique("c"), unique("c")],
                "role": ["user", "tool"],
            },
        )

    async def check_filters(self, backend: LogBackend, kind: type[Any], domain: dict[str, list[str]]) -> None:
        """Store two records for each combination of values, and ask for each combination of filters."""
        build = {"Event": event, "Sale": sale, "Message": message}[kind.__name__]
        rows = [dict(zip(domain, values, strict=True)) for values in product(*domain.values())]
        stored = [
            build(row["user_id"], **{n: v for n, v in row.items() if n != "user_id"}) for row in rows * 2
        ]
        await store(backend, stored)
        mine = set(ids(stored))
        for chosen in product(*([None, *values] for values in domain.values())):
            equal = {name: value for name, value in zip(domain, chosen, strict=True) if value is not None}
            query = Query(kind, equal, limit=10_000)
            # Where no filter is this test's own, others may have records that match, too.
            found = [record for record in await backend.query(query) if record.id in mine]
            expected = newest_first(record for record in stored if matches(record, query))

            assert seen(expected) == seen(found)
            if any("-" in value for value in equal.values()):  # A unique name: nobody else's records match.
                assert {"": len(expected)} == await backend.count(query)

    async def test_awkward_users(self, backend: LogBackend) -> None:
        """A filter holds for what is exactly equal: no pattern, no case, no cut, no trailing space."""
        mark = unique()
        users = [mark + name for name in AWKWARD_IDS]
        happened = [event(user) for user in users]
        await store(backend, happened)
        found = await together(backend.query(of_user(user, Event)) for user in users)

        assert [[each.id] for each in happened] == [ids(records) for records in found]

    async def test_awkward_values_of_filters(self, backend: LogBackend) -> None:
        """The same holds for the other filters."""
        user = unique()
        happened = [event(user, event_type=name) for name in AWKWARD_IDS]
        sold = [sale(user, product_type=name) for name in AWKWARD_IDS]
        said = [message(user, role=name, conversation_id=name) for name in AWKWARD_IDS]
        await store(backend, happened)
        await store(backend, sold)
        await store(backend, said)
        for place, name in enumerate(AWKWARD_IDS):
            of_type = await backend.query(of_user(user, Event, equal={"event_type": name}))
            of_product = await backend.query(of_user(user, Sale, equal={"product_type": name}))
            of_role = await backend.query(of_user(user, Message, equal={"role": name}))
            of_conversation = await backend.query(of_user(user, Message, equal={"conversation_id": name}))

            assert ids([happened[place], sold[place], said[place], said[place]]) == ids(
                [*of_type, *of_product, *of_role, *of_conversation]
            )
        assert dict.fromkeys(AWKWARD_IDS, 1) == await backend.count(of_user(user, Event), "event_type")
        assert dict.fromkeys(AWKWARD_IDS, 1) == await backend.count(of_user(user, Message), "role")

    async def test_after(self, backend: LogBackend) -> None:
        """`after` continues behind a time and an id, whether or not a record has them, too."""
        user = unique()
        happened = newest_first(
            event(user, timestamp=NOON - TICK * (number // 4), level=LEVELS[number % 2])
            for number in range(16)
        )
        await store(backend, happened)
        for place, each in enumerate(happened):
            found = await backend.query(of_user(user, Event, after=(each.timestamp, each.id)))

            assert ids(happened[place + 1 :]) == ids(found)
        highest, lowest = UUID(int=(1 << 128) - 1), UUID(int=0)
        bounds = {"after": (NOON, lowest), "since": NOON - TICK * 2, "equal": {"level": "INFO"}}
        expected = [
            each for each in happened if NOON - TICK * 2 <= each.timestamp < NOON and each.level == "INFO"
        ]

        assert ids(happened) == ids(await backend.query(of_user(user, Event, after=(NOON, highest))))
        assert ids(happened[4:]) == ids(await backend.query(of_user(user, Event, after=(NOON, lowest))))
        assert ids(expected) == ids(await backend.query(of_user(user, Event, **bounds)))
        assert ids(expected[:1]) == ids(await backend.query(of_user(user, Event, **bounds, limit=1)))

    async def test_paging_while_others_append(self, backend: LogBackend) -> None:
        """Paging through equal times while others append skips nothing and repeats nothing."""
        user = unique()
        there = [event(user, timestamp=NOON + TICK * (number % 3)) for number in range(60)]
        await store(backend, there)
        found: list[Event] = []
        after = None
        while True:
            late = [event(user, timestamp=NOON + TICK * step) for step in (-1, 0, 1, 2, 3)]
            page, *_ = await together(
                [
                    backend.query(of_user(user, Event, after=after, limit=7)),
                    *(backend.append(entries([each])) for each in late),
                ]
            )
            if not page or len(found) > 500:
                break
            found += [each for each in page if isinstance(each, Event)]
            after = (found[-1].timestamp, found[-1].id)
            if after[0] < NOON:
                break
        mine = set(ids(there))

        assert len(set(ids(found))) == len(found)
        assert ids(newest_first(there)) == [each.id for each in found if each.id in mine]
        assert ids(newest_first(found)) == ids(found)

    async def test_query_all(self, backend: LogBackend) -> None:
        """Each of many queries gets its own answer, in their order, whatever they have in common."""
        users = [unique() for _ in range(4)]
        happened = newest_first(
            event(users[number % 3], timestamp=NOON - TICK * (number // 6), level=LEVELS[number % 2])
            for number in range(60)
        )
        await store(backend, happened)
        middle = happened[30]
        conditions: list[dict[str, Any]] = [
            {},
            {"limit": 1},
            {"limit": 7},
            {"since": middle.timestamp},
            {"until": middle.timestamp, "limit": 3},
            {"since": middle.timestamp - TICK, "until": middle.timestamp + TICK},
            {"after": (middle.timestamp, middle.id)},
            {"after": (middle.timestamp, middle.id), "since": middle.timestamp - TICK * 2, "limit": 2},
            {"equal": {"level": LEVELS[1]}, "limit": 4},
            {"equal": {"level": LEVELS[0], "event_type": "happened"}, "until": NOON},
            {"equal": {"event_type": "never"}},
        ]
        queries = [of_user(user, Event, **each) for each in conditions for user in [*users, users[0]]]
        Random(5).shuffle(queries)
        answers = await backend.query_all(queries)

        assert [seen(await backend.query(query)) for query in queries] == [seen(each) for each in answers]
        assert [] == list(await backend.query_all([]))
        assert [[]] == list(await backend.query_all([of_user(users[3], Event)]))
        assert [[], []] == list(await backend.query_all([of_user(users[3], Event)] * 2))

    async def test_query_all_without_a_user(self, backend: LogBackend) -> None:
        """Queries for what everybody did are answered together as well."""
        kinds = [unique("t") for _ in range(3)]
        happened = newest_first(
            event(unique(), event_type=kinds[number % 3], timestamp=NOON - TICK * number)
            for number in range(30)
        )
        await store(backend, happened)
        of_types: list[Query[Event]] = [
            Query(Event, {"event_type": kind}, limit=limit) for kind in kinds for limit in (3, 100)
        ]
        answers = await backend.query_all(of_types)
        newest = await backend.query_all([Query(Event, limit=limit) for limit in (1, 5)])

        for query, answer in zip(of_types, answers, strict=True):
            expected = [each for each in happened if each.event_type == query.equal["event_type"]]

            assert ids(expected[: query.limit]) == ids(answer)
        assert [1, 5] == [len(answer) for answer in newest]

    async def test_query_all_of_each_kind(self, backend: LogBackend) -> None:
        """Sales and messages are answered together, too."""
        users = [unique() for _ in range(3)]
        sold = {user: newest_first(sale(user, timestamp=NOON - TICK * n) for n in range(5)) for user in users}
        said = {
            user: newest_first(message(user, timestamp=NOON - TICK * n) for n in range(5)) for user in users
        }
        for user in users:
            await store(backend, sold[user])
            await store(backend, said[user])
        sales = await backend.query_all([of_user(user, Sale, limit=3) for user in users])
        messages = await backend.query_all([of_user(user, Message, limit=4) for user in users])

        assert [seen(sold[user][:3]) for user in users] == [seen(each) for each in sales]
        assert [seen(said[user][:4]) for user in users] == [seen(each) for each in messages]

    async def test_query_all_owns_its_records(self, backend: LogBackend) -> None:
        """The same query twice has two answers: what a caller does to one does not change the other."""
        user = unique()
        await store(backend, [event(user, context={"k": [1]})])
        first, second = await backend.query_all([of_user(user, Event)] * 2)
        first[0].context["k"].append(2)
        first.clear()

        assert [{"k": [1]}] == [each.context for each in second]

    async def test_concurrent_queries(self, backend: LogBackend) -> None:
        """Each of many different queries at once gets its own answer."""
        user = unique()
        happened = newest_first(event(user, timestamp=NOON - TICK * number) for number in range(60))
        await store(backend, happened)
        answers = await together(
            backend.query(of_user(user, Event, until=NOON - TICK * number, limit=3)) for number in range(50)
        )

        assert [ids(happened[number + 1 : number + 4]) for number in range(50)] == [
            ids(answer) for answer in answers
        ]

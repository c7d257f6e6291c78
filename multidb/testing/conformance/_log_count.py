"""The log suite's tests of counts, histograms, and deleting."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multidb.logs._records import LEVELS, Event, Message, Sale
from multidb.logs.protocol import BUCKETS, Appended, Query
from multidb.testing.conformance._data import round_trips, unique
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
    store,
)

if TYPE_CHECKING:
    from multidb.logs.protocol import Bucket, LogBackend

MONDAY: Final = datetime(1970, 1, 5, tzinfo=UTC)
"""Where buckets are counted from."""


def bucket_start(moment: datetime, bucket: Bucket) -> datetime:
    """Return the start of the bucket that *moment* falls into."""
    width = BUCKETS[bucket]
    return MONDAY + (moment - MONDAY) // width * width


class CountTests(LogSuite):
    """Counts, histograms, and deleting."""

    async def test_count(self, backend: LogBackend) -> None:
        """A count is of all that match, under the key "", whatever `after` and `limit` say."""
        user = unique()
        happened = [event(user, timestamp=NOON + TICK * number) for number in range(150)]
        await store(backend, happened)

        assert {"": 150} == await backend.count(of_user(user, Event))
        assert {"": 150} == await backend.count(of_user(user, Event, limit=1, after=(NOON, happened[0].id)))
        assert {"": 50} == await backend.count(of_user(user, Event, since=NOON + TICK * 100))

    async def test_count_by(self, backend: LogBackend) -> None:
        """Records are counted by any of the fields they are found by."""
        mark = unique()
        random = Random(5)
        users = [unique() for _ in range(3)]
        happened = [
            event(random.choice(users), event_type=mark, level=random.choice(LEVELS)) for _ in range(40)
        ]
        sold = [
            sale(random.choice(users), product_type=mark, status=random.choice(["pending", "failed"]))
            for _ in range(20)
        ]
        said = [
            message(random.choice(users), conversation_id=mark, role=random.choice("abc")) for _ in range(20)
        ]
        await store(backend, happened)
        await store(backend, sold)
        await store(backend, said)
        cases: list[tuple[Query[Any], list[Any], str]] = [
            *(
                (Query(Event, {"event_type": mark}, limit=1), happened, by)
                for by in ("user_id", "event_type", "level")
            ),
            *(
                (Query(Sale, {"product_type": mark}, limit=1), sold, by)
                for by in ("user_id", "product_type", "status")
            ),
            *(
                (Query(Message, {"conversation_id": mark}, limit=1), said, by)
                for by in ("user_id", "conversation_id", "role")
            ),
        ]
        for query, stored, by in cases:
            assert Counter(getattr(record, by) for record in stored) == await backend.count(query, by)

    async def test_count_by_with_conditions(self, backend: LogBackend) -> None:
        """Only what matches is counted."""
        user = unique()
        happened = [event(user, timestamp=NOON + TICK * n, level=LEVELS[n % 5]) for n in range(25)]
        await store(backend, happened)
        query = of_user(user, Event, since=NOON + TICK * 5, until=NOON + TICK * 9)

        assert Counter(each.level for each in happened[5:9]) == await backend.count(query, "level")

    @pytest.mark.parametrize("bucket", BUCKETS)
    async def test_histogram(self, backend: LogBackend, bucket: Bucket) -> None:
        """Buckets begin at whole widths from a Monday, also before 1970; oldest first, no empty ones."""
        user = unique()
        width = BUCKETS[bucket]
        edges = [MONDAY, MONDAY + width, MONDAY - width, MONDAY - 5 * width, MONDAY - timedelta(days=5)]
        edges += [
            bucket_start(NOON, bucket),
            datetime(1900, 1, 1, tzinfo=UTC),
            datetime(2400, 2, 29, 23, 59, 59, tzinfo=UTC),
        ]
        times = [edge + step for edge in edges for step in (-TICK, timedelta(0), TICK)]
        times += [NOON, NOON, FIRST_MOMENT, FIRST_MOMENT + TICK, LAST_MOMENT, MONDAY - timedelta(days=1.5)]
        await store(backend, [event(user, timestamp=time) for time in times])
        expected = sorted(Counter(bucket_start(time, bucket) for time in times).items())
        histogram = await backend.histogram(of_user(user, Event, limit=1), bucket)

        assert [(repr(start), count) for start, count in expected] == [
            (repr(s), c) for s, c in histogram.items()
        ]

    async def test_week_starts_on_monday(self, backend: LogBackend) -> None:
        """A week runs from Monday 00:00 UTC to Sunday."""
        user = unique()
        monday = datetime(2026, 3, 2, tzinfo=UTC)
        times = [monday - TICK, monday, monday + timedelta(days=7) - TICK, monday + timedelta(days=7)]
        await store(backend, [event(user, timestamp=time) for time in times])
        week = timedelta(weeks=1)

        assert {monday - week: 1, monday: 2, monday + week: 1} == await backend.histogram(
            of_user(user, Event), "week"
        )

    async def test_histogram_with_conditions(self, backend: LogBackend) -> None:
        """Only what matches is in a histogram, of any kind."""
        user = unique()
        sold = [sale(user, timestamp=NOON + timedelta(hours=hour), status="failed") for hour in range(4)]
        await store(backend, [*sold, sale(user)])
        query = of_user(user, Sale, equal={"status": "failed"}, since=NOON + timedelta(hours=2))
        hour = NOON.replace(minute=0, second=0, microsecond=0)

        assert {hour + timedelta(hours=2): 1, hour + timedelta(hours=3): 1} == await backend.histogram(
            query, "hour"
        )

    async def test_delete(self, backend: LogBackend) -> None:
        """Deleting takes all that match, whatever `after` and `limit` say, and says how many."""
        user, other = unique(), unique()
        old = [event(user, timestamp=NOON - TICK * number) for number in range(1, 151)]
        kept = [event(user), event(other, timestamp=NOON - TICK)]
        await store(backend, [*old, *kept])
        query = of_user(user, Event, until=NOON, limit=1, after=(NOON, UUID(int=0)))

        assert 150 == await backend.delete(query)
        assert 0 == await backend.delete(query)
        assert ids(kept[:1]) == ids(await backend.query(of_user(user, Event)))
        assert ids(kept[1:]) == ids(await backend.query(of_user(other, Event)))
        assert {"": 1} == await backend.count(of_user(user, Event))

    async def test_delete_by_fields(self, backend: LogBackend) -> None:
        """Every kind can be deleted by its fields, without a user, too."""
        mark, user = unique(), unique()
        happened = [event(user, event_type=mark, level=level) for level in LEVELS]
        sold = [sale(user, product_type=mark, status=status) for status in ("pending", "failed")]
        said = [message(user, conversation_id=mark, role=role) for role in "ab"]
        await store(backend, happened)
        await store(backend, sold)
        await store(backend, said)

        assert 1 == await backend.delete(Query(Event, {"event_type": mark, "level": "DEBUG"}))
        assert 1 == await backend.delete(Query(Sale, {"product_type": mark, "status": "failed"}))
        assert 1 == await backend.delete(Query(Message, {"conversation_id": mark, "role": "a"}))
        assert 4 == await backend.delete(Query(Event, {"event_type": mark}, since=NOON))
        assert ids(sold[:1]) == ids(await backend.query(of_user(user, Sale)))
        assert ids(said[1:]) == ids(await backend.query(of_user(user, Message)))

    async def test_deleted_is_not_found(self, backend: LogBackend) -> None:
        """What was deleted is in no answer, the search included."""
        user = unique()
        word = unique("word")
        gone, kept = event(user, message=word), event(user, message=word, level="ERROR")
        await store(backend, [gone, kept])
        await backend.delete(of_user(user, Event, equal={"level": "INFO"}))

        assert ids([kept]) == ids(await backend.query(Query(Event, keyword=word)))
        assert {"ERROR": 1} == await backend.count(of_user(user, Event), "level")
        assert [1] == list((await backend.histogram(of_user(user, Event), "day")).values())

    async def test_append_after_delete(self, backend: LogBackend) -> None:
        """After a delete new records are stored as before."""
        user = unique()
        await store(backend, [event(user)])
        await backend.delete(of_user(user, Event))
        new = event(user)

        assert [Appended.STORED] == list(await backend.append(entries([new])))
        assert ids([new]) == ids(await backend.query(of_user(user, Event)))

    @round_trips
    @given(data=st.data())
    async def test_any_query(self, backend: LogBackend, data: st.DataObject) -> None:
        """Queries, counts, histograms and deletes agree with what the records themselves say."""
        user = unique()
        steps = st.integers(-3, 3)
        times = steps.map(lambda step: NOON + TICK * step) | steps.map(
            lambda step: NOON + timedelta(hours=20) * step
        )
        rows = st.tuples(times, st.sampled_from(["a", "b", "A"]), st.sampled_from(LEVELS[:2]))
        stored = [
            event(user, timestamp=time, event_type=name, level=level)
            for time, name, level in data.draw(st.lists(rows, max_size=12))
        ]
        await store(backend, stored)
        equal = data.draw(
            st.fixed_dictionaries(
                {}, optional={"event_type": st.sampled_from(["a", "b"]), "level": st.sampled_from(LEVELS[:2])}
            )
        )
        bounds = {"since": data.draw(st.none() | times), "until": data.draw(st.none() | times)}
        limit = data.draw(st.integers(1, 12))
        query = of_user(user, Event, equal=equal, **bounds, limit=limit)
        expected = newest_first(each for each in stored if matches(each, query))
        day_counts = Counter(bucket_start(each.timestamp, "day") for each in expected)

        assert ids(expected[:limit]) == ids(await backend.query(query))
        assert Counter(each.event_type for each in expected) == await backend.count(query, "event_type")
        assert sorted(day_counts.items()) == list((await backend.histogram(query, "day")).items())
        assert len(expected) == await backend.delete(query)
        assert {each.id for each in stored if not matches(each, query)} == set(
            ids(await backend.query(of_user(user, Event)))
        )

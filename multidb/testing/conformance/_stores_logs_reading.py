"""The log store suite's tests of reading events: filters, pages, search, counts, retention."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from multidb.logs import Event, Sale
from multidb.testing.conformance._data import together, unique
from multidb.testing.conformance._poison import BAD_IDS, BAD_LABELS, BAD_LIMITS, BAD_TIMES, NAIVE
from multidb.testing.conformance._stores_base import StoreSuite, not_refused, only, without
from multidb.testing.conformance._stores_logs_events import BAD_TEXTS, NOON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multidb.logs import LogStore

BAD_HOURS: tuple[Any, ...] = (
    0,
    -1,
    float("nan"),
    float("inf"),
    1e12,
    True,
    "5",
    [1],
    {"$gt": 0},
    timedelta(hours=1),
)


async def at_minutes(store: LogStore, user: str, minutes: Sequence[int], **arguments: Any) -> list[Event]:
    """Log an event for each of *minutes* after noon; return them newest first."""
    rows = [
        Event(
            id=uuid4(),
            user_id=user,
            timestamp=NOON + timedelta(minutes=minute),
            message=str(minute),
            **({"event_type": "e"} | arguments),
        )
        for minute in minutes
    ]
    await store.log_events(rows)
    return sorted(rows, key=lambda event: (event.timestamp, event.id), reverse=True)


def messages(events: Sequence[Event]) -> list[str]:
    """Return the messages of *events*."""
    return [event.message for event in events]


class ReadTests(StoreSuite):
    """Finding events."""

    async def test_order(self, store: LogStore) -> None:
        """Events come newest first, those of one time by id, however they were stored."""
        user = unique()
        events = await at_minutes(store, user, [3, 1, 2, 1, 3, 1])

        assert events == await store.get_events(user)
        assert events[:4] == await store.get_events(user, limit=4)
        assert [] == await store.get_events(unique())

    async def test_filters(self, store: LogStore) -> None:
        """Every condition counts."""
        user, other = unique(), unique()
        await at_minutes(store, user, [1, 2], event_type="a")
        await at_minutes(store, user, [3], event_type="b")
        await at_minutes(store, user, [4], event_type="a", level="ERROR")
        await at_minutes(store, other, [5], event_type=user)

        assert ["4", "2", "1"] == messages(await store.get_events(user, event_type="a"))
        assert ["4"] == messages(await store.get_events(user, level="ERROR"))
        assert ["2", "1"] == messages(await store.get_events(user, event_type="a", level="INFO"))
        assert [] == await store.get_events(user, event_type="b", level="ERROR")
        assert ["5"] == messages(await store.get_events(event_type=user))
        assert 1 == len(await store.get_events(limit=1))

    async def test_since_and_until(self, store: LogStore) -> None:
        """*since* is inclusive, *until* exclusive, both to the microsecond and in any time zone."""
        user = unique()
        for microsecond in range(5):
            moment = NOON + timedelta(microseconds=microsecond)
            await store.log_event(user, "e", str(microsecond), timestamp=moment)
        since, until = NOON + timedelta(microseconds=1), NOON + timedelta(microseconds=3)

        assert ["4", "3", "2", "1"] == messages(await store.get_events(user, since=since))
        assert ["2", "1", "0"] == messages(await store.get_events(user, until=until))
        assert ["2", "1"] == messages(await store.get_events(user, since=since.astimezone(), until=until))
        assert [] == await store.get_events(user, since=until, until=since)

    async def test_hours_back(self, store: LogStore) -> None:
        """*hours_back* counts from now, and may be a fraction."""
        user = unique()
        now = (await store.log_event(user, "e", "now")).timestamp
        await store.log_event(user, "e", "earlier", timestamp=now - timedelta(minutes=40))
        await store.log_event(user, "e", "long ago", timestamp=now - timedelta(hours=30))

        assert ["now"] == messages(await store.get_events(user, hours_back=0.5))
        assert ["now", "earlier"] == messages(await store.get_events(user, hours_back=0.75))
        assert 2 == await store.count_events(user, hours_back=29)
        assert 3 == await store.count_events(user, hours_back=31)

    async def test_bad_filters(self, store: LogStore) -> None:
        """What does not fit is refused by name of the argument, by every function that takes it."""
        calls: list[Any] = [store.get_events, store.count_events, store.event_histogram, _all_of(store)]
        for call in calls:

            async def refused(bad: Any, name: str, call: Any = call) -> list[str]:
                return await not_refused(bad, name, lambda one: call(**{name: one}))

            assert [] == await refused(without(BAD_IDS, None), "user_identifier")
            assert [] == await refused(without(BAD_LABELS, None), "event_type")
            assert [] == await refused(("info", "", 20, ["INFO"], {"$gt": ""}), "level")
            assert [] == await refused(BAD_TIMES, "since")
            assert [] == await refused(BAD_TIMES, "until")
            assert [] == await refused(BAD_HOURS, "hours_back")
            assert [] == await not_refused(
                [1],
                "since and hours_back say the same",
                only("hours_back", call, since=NOON),
            )

    async def test_bad_pages(self, store: LogStore) -> None:
        """A page has 1 to 10,000 events, and continues behind an event."""
        sale = Sale(id=uuid4(), user_id="u", timestamp=NOON, product_type="p", amount=Decimal(1))
        naive = Event(id=uuid4(), user_id="u", timestamp=NAIVE, event_type="e")

        assert [] == await not_refused(BAD_LIMITS, "limit", lambda bad: store.get_events(limit=bad))
        assert [] == await not_refused(
            (1, "a", NOON, uuid4(), {"id": uuid4()}, sale), "after", lambda bad: store.get_events(after=bad)
        )
        assert [] == await not_refused([naive], "after.timestamp", lambda bad: store.get_events(after=bad))


class PageTests(StoreSuite):
    """Reading many events."""

    async def test_pages(self, store: LogStore) -> None:
        """Page after page gives every event once, also those of one time."""
        user = unique()
        events = await at_minutes(store, user, [number // 4 for number in range(25)])
        pages, after = [], None
        while page := await store.get_events(user, limit=7, after=after):
            pages.append(page)
            after = page[-1]

        assert [7, 7, 7, 4] == [len(page) for page in pages]
        assert events == [event for page in pages for event in page]

    async def test_pages_while_others_append(self, store: LogStore) -> None:
        """What is logged meanwhile shifts nothing: no event comes twice, none that was there is missing."""
        user = unique()
        events = await at_minutes(store, user, range(40))
        seen: list[Event] = []
        for round_ in range(10):
            seen += await store.get_events(user, limit=4, after=seen[-1] if seen else None)
            await at_minutes(store, user, [1000 + round_] * 3)

        assert events == seen
        assert [] == await store.get_events(user, after=seen[-1])

    async def test_after_what_is_gone(self, store: LogStore) -> None:
        """The event to continue behind need not be there any more, nor match."""
        user = unique()
        events = await at_minutes(store, user, range(5))
        elsewhere = events[1].model_copy(update={"id": UUID(int=0), "user_id": "somebody"})
        await store.delete_events(before=NOON + timedelta(minutes=2), user_identifier=user)

        assert [events[2]] == await store.get_events(user, after=elsewhere)
        assert [events[1], events[2]] == await store.get_events(user, after=events[0])

    async def test_iterate(self, store: LogStore) -> None:
        """Any number of events is streamed in order, while others append."""
        user = unique()
        events = await at_minutes(store, user, [number // 3 for number in range(2500)])
        seen = []
        async for event in store.iter_events(user):
            seen.append(event)
            if len(seen) in (1, 999, 1000, 1001, 2000):
                await at_minutes(store, user, [5000 + len(seen)])

        assert events == seen
        assert 2505 == await store.count_events(user)

    async def test_iterate_over_a_part(self, store: LogStore) -> None:
        """The filters, and an event to continue behind, count here, too; stopping early is fine."""
        user = unique()
        events = await at_minutes(store, user, range(20))
        await at_minutes(store, user, range(20), event_type="other")
        found = [
            event
            async for event in store.iter_events(
                user,
                event_type="e",
                level="INFO",
                since=NOON + timedelta(minutes=5),
                until=NOON + timedelta(minutes=15),
                after=events[8],
            )
        ]
        iterator = aiter(store.iter_events(user, event_type="e"))
        first = [await anext(iterator) for _ in range(3)]

        assert events[9:15] == found
        assert events[:3] == first
        assert [] == [event async for event in store.iter_events(unique())]

    async def test_full_pages(self, store: LogStore) -> None:
        """A number of events that is a multiple of the page size ends well."""
        user = unique()
        await store.log_events({"user_identifier": user, "event_type": "e"} for _ in range(1000))

        assert 1000 == len([event async for event in store.iter_events(user)])
        assert 1000 == len(await store.get_events(user, limit=10_000))


class SearchTests(StoreSuite):
    """Searching."""

    async def found(self, store: LogStore, user: str, keyword: str, **arguments: Any) -> set[str]:
        """Return the messages of *user* that *keyword* finds."""
        return set(messages(await store.search_events(keyword, user_identifier=user, **arguments)))

    async def logged(self, store: LogStore, *texts: str) -> str:
        """Log *texts* as messages; return whose they are."""
        user = unique()
        await together(store.log_event(user, "kind", text) for text in texts)
        return user

    async def test_search(self, store: LogStore) -> None:
        """A part of the message, or of the event type, finds an event; case does not count."""
        user = await self.logged(store, "Hello World", "goodbye", "")
        await store.log_event(user, "DM_Received", "x")

        assert {"Hello World"} == await self.found(store, user, "LO WO")
        assert {"x"} == await self.found(store, user, "m_rec")
        assert {"goodbye", "Hello World", ""} == await self.found(store, user, "KIND")
        assert set() == await self.found(store, user, "nowhere")

    async def test_turkish(self, store: LogStore) -> None:
        """The dot of an i does not count: every spelling finds every other."""
        lights = {"IŞIK", "Işık", "ışık", "işik", "İŞİK"}
        cities = {"İstanbul", "istanbul", "ISTANBUL", "I\u0307stanbul"}
        user = await self.logged(store, *lights, *cities)

        for keyword in (*lights, "şık", "IS\u0327I"):
            assert lights == await self.found(store, user, keyword)
        for keyword in (*cities, "TANBUL"):
            assert cities == await self.found(store, user, keyword)

    async def test_unicode(self, store: LogStore) -> None:
        """Forms of Unicode, full width, ligatures and ß do not count; marks do."""
        user = await self.logged(
            store, "STRASSE", "straße", "résumé", "re\u0301sume\u0301", "resume", "４２ ｋｍ", "ﬁne", "ΣΟΦΟΣ"
        )

        assert {"STRASSE", "straße"} == await self.found(store, user, "STRAẞE")
        assert {"résumé", "re\u0301sume\u0301"} == await self.found(store, user, "RÉSUMÉ")
        assert {"resume"} == await self.found(store, user, "resume")
        assert {"４２ ｋｍ"} == await self.found(store, user, "42 KM")
        assert {"ﬁne"} == await self.found(store, user, "FINE")
        assert {"ΣΟΦΟΣ"} == await self.found(store, user, "σοφος")

    async def test_ordinary_characters(self, store: LogStore) -> None:
        """No character of a keyword is special."""
        special = [
            "100%",
            "a_b",
            "a*b",
            "a?b",
            "[a]",
            "a\\b",
            "it's",
            '"quoted"',
            "^$",
            "a.b",
            "(a|b)",
            "{x}",
            "--",
            ";",
            "a\nb",
            "\t",
            "&",
            "😀",
        ]
        user = await self.logged(store, *special, "axb", "1000", "ab", "plain")
        for text in special:
            assert {text} == await self.found(store, user, text)
        assert {"100%"} == await self.found(store, user, "%")
        assert {"a_b"} == await self.found(store, user, "_")
        assert {"a*b"} == await self.found(store, user, "*")
        assert {"a\\b"} == await self.found(store, user, "\\")

    async def test_short_and_long(self, store: LogStore) -> None:
        """A keyword may be a single character, or as long as a message."""
        long = "çok uzun " * 500
        user = await self.logged(store, "q", "qu", "que", "ığ", long)

        assert {"q", "qu", "que"} == await self.found(store, user, "Q")
        assert {"qu", "que"} == await self.found(store, user, "qu")
        assert {"ığ"} == await self.found(store, user, "İĞ")
        assert {long} == await self.found(store, user, long.upper())
        assert set() == await self.found(store, user, long + "x")

    async def test_two_fields(self, store: LogStore) -> None:
        """A match does not span the event type and the message."""
        user = unique()
        await store.log_event(user, "alpha", "beta")
        for keyword in (
            "alphabeta",
            "betaalpha",
            "alpha beta",
            "beta alpha",
            "a b",
            "\x1f",
            "a\x1fb",
            "beta\nalpha",
        ):
            assert set() == await self.found(store, user, keyword)

    async def test_filters_of_a_search(self, store: LogStore) -> None:
        """The conditions count; the newest come first, up to the limit."""
        user, other = unique(), unique()
        word = f"word{uuid4().hex}"
        moments = [NOON + timedelta(minutes=minute) for minute in range(6)]
        for number, moment in enumerate(moments):
            await store.log_event(
                user if number else other,
                "odd" if number % 2 else "even",
                f"{word} {number}",
                level="ERROR" if number == 4 else "INFO",
                timestamp=moment,
            )

        async def numbers(**arguments: Any) -> list[str]:
            return [
                event.message.split()[1] for event in await store.search_events(word.upper(), **arguments)
            ]

        assert ["5", "4", "3", "2", "1", "0"] == await numbers()
        assert ["5", "4"] == await numbers(limit=2)
        assert ["5", "4", "3", "2", "1"] == await numbers(user_identifier=user)
        assert ["5", "3", "1"] == await numbers(event_type="odd")
        assert ["4"] == await numbers(level="ERROR")
        assert ["5", "4", "3"] == await numbers(after_date=moments[3])
        late = moments[2].astimezone()
        assert ["5", "3"] == await numbers(event_type="odd", after_date=late, limit=5, user_identifier=user)

    async def test_bad_searches(self, store: LogStore) -> None:
        """A keyword is a text that is not empty; the rest is as for reading."""
        assert [] == await not_refused(BAD_TEXTS, "keyword", store.search_events)
        assert [] == await not_refused([""], "keyword", store.search_events)
        assert [] == await not_refused(BAD_LIMITS, "limit", lambda bad: store.search_events("a", limit=bad))
        assert [] == await not_refused(
            BAD_TIMES, "after_date", lambda bad: store.search_events("a", after_date=bad)
        )
        assert [] == await not_refused(
            without(BAD_IDS, None),
            "user_identifier",
            lambda bad: store.search_events("a", user_identifier=bad),
        )
        assert [] == await not_refused(
            ["info", {"$gt": ""}], "level", lambda bad: store.search_events("a", level=bad)
        )


class CountTests(StoreSuite):
    """Counting and deleting."""

    async def test_count(self, store: LogStore) -> None:
        """Matching events are counted."""
        user = unique()
        await at_minutes(store, user, range(5))
        await at_minutes(store, user, range(3), event_type="other", level="ERROR")

        assert 0 == await store.count_events(unique())
        assert 8 == await store.count_events(user)
        assert 3 == await store.count_events(user, event_type="other")
        assert 3 == await store.count_events(user, level="ERROR", since=NOON)
        assert 4 == await store.count_events(user, until=NOON + timedelta(minutes=2))

    async def test_count_by(self, store: LogStore) -> None:
        """Counts by a field come largest first, equal ones by name."""
        kind = unique("kind")
        users = [f"{kind}-{name}" for name in ("b", "a", "C", "ç")]
        for user, number in zip(users, (2, 2, 3, 1), strict=True):
            await at_minutes(store, user, range(number), event_type=kind)
        await at_minutes(store, users[0], [9], event_type=kind, level="ERROR")

        by_user = await store.count_events(event_type=kind, by="user_id")
        assert sorted(by_user.items(), key=lambda item: (-item[1], item[0])) == list(by_user.items())
        assert {users[0]: 3, users[1]: 2, users[2]: 3, users[3]: 1} == by_user
        assert [("INFO", 8), ("ERROR", 1)] == list(
            (await store.count_events(event_type=kind, by="level")).items()
        )
        assert {kind: 9} == await store.count_events(event_type=kind, by="event_type")
        assert {} == await store.count_events(unique(), by="level")

    async def test_bad_by(self, store: LogStore) -> None:
        """Events are counted by three fields, and by no other."""
        assert [] == await not_refused(
            ("", "message", "id", "context", 1, ["level"], {"$gt": ""}, "level; --"),
            "by",
            lambda bad: store.count_events(by=bad),
        )

    async def test_histogram(self, store: LogStore) -> None:
        """Events are counted by minute, hour, day and week, oldest first, without the empty buckets."""
        user = unique()
        wednesday = datetime(2026, 3, 4, 23, 59, 59, 999999, tzinfo=UTC)
        for moment in (
            wednesday,
            wednesday + timedelta(microseconds=1),
            wednesday - timedelta(hours=1),
            wednesday - timedelta(days=2),
            datetime(2026, 3, 1, 12, tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC),
        ):
            await store.log_event(user, "e", timestamp=moment)

        def at(day: int, hour: int = 0, minute: int = 0, month: int = 3) -> datetime:
            return datetime(2026, month, day, hour, minute, tzinfo=UTC)

        old = datetime(1969, 12, 31, 23, 59, tzinfo=UTC)
        since = datetime(2026, 1, 1, tzinfo=UTC)
        hours = [
            (old.replace(minute=0), 1),
            (at(1, 12), 1),
            (at(2, 23), 1),
            (at(4, 22), 1),
            (at(4, 23), 1),
            (at(5), 1),
        ]
        assert hours == list((await store.event_histogram(user)).items())
        assert [
            (old, 1),
            (at(1, 12), 1),
            (at(2, 23, 59), 1),
            (at(4, 22, 59), 1),
            (at(4, 23, 59), 1),
            (at(5), 1),
        ] == list((await store.event_histogram(user, bucket="minute")).items())
        assert [(at(1), 1), (at(2), 1), (at(4), 2), (at(5), 1)] == list(
            (await store.event_histogram(user, bucket="day", since=since)).items()
        )
        # 2 March 2026 is a Monday, 29 December 1969 was one.
        assert [(datetime(1969, 12, 29, tzinfo=UTC), 1), (at(23, month=2), 1), (at(2), 4)] == list(
            (await store.event_histogram(user, bucket="week")).items()
        )
        assert {} == await store.event_histogram(unique())
        assert all(start.tzinfo is UTC for start in await store.event_histogram(user))
        assert [] == await not_refused(
            ("", "year", "month", 60, ["day"], {"$gt": ""}),
            "bucket",
            lambda bad: store.event_histogram(bucket=bad),
        )

    async def test_delete(self, store: LogStore) -> None:
        """Events older than a time are deleted, as far as they match; the number is returned."""
        user = unique()
        await at_minutes(store, user, range(6))
        await at_minutes(store, user, [0, 1], event_type="other", level="ERROR")
        before = NOON + timedelta(minutes=2)

        assert 0 == await store.delete_events(before=NOON, user_identifier=user)
        assert 1 == await store.delete_events(
            before=NOON + timedelta(minutes=1), event_type="other", user_identifier=user
        )
        assert 1 == await store.delete_events(before=before, level="ERROR", user_identifier=user)
        assert 2 == await store.delete_events(before=before, user_identifier=user)
        assert ["5", "4", "3", "2"] == messages(await store.get_events(user))
        assert [] == await store.search_events("0", user_identifier=user)

    async def test_bad_deletes(self, store: LogStore) -> None:
        """Without a time nothing is deleted."""
        assert [] == await not_refused(
            [None, *BAD_TIMES], "before", lambda bad: store.delete_events(before=bad)
        )
        assert [] == await not_refused(
            without(BAD_IDS, None),
            "user_identifier",
            lambda bad: store.delete_events(before=NOON, user_identifier=bad),
        )
        assert [] == await not_refused(
            without(BAD_LABELS, None),
            "event_type",
            lambda bad: store.delete_events(before=NOON, event_type=bad),
        )

    async def test_events_at_once(self, store: LogStore) -> None:
        """Of 200 events that are logged at once each is stored, and each call returns its own."""
        user = unique()
        events = await asyncio.gather(*(store.log_event(user, "e", str(number)) for number in range(200)))

        assert [str(number) for number in range(200)] == messages(events)
        assert sorted(
            events, key=lambda event: (event.timestamp, event.id), reverse=True
        ) == await store.get_events(user, limit=1000)


def _all_of(store: LogStore) -> Any:
    async def call(**arguments: Any) -> list[Event]:
        return [event async for event in store.iter_events(**arguments)]

    return call

"""The log suite's tests of searching events by a keyword."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypothesis import given
from hypothesis import strategies as st

from multidb._core.text import SEPARATOR, fold
from multidb.logs._records import Event
from multidb.logs.protocol import Query
from multidb.testing.conformance._data import round_trips, texts, together, unique
from multidb.testing.conformance._log_data import (
    NOON,
    TICK,
    LogSuite,
    event,
    ids,
    newest_first,
    of_user,
    store,
)

if TYPE_CHECKING:
    from multidb.logs.protocol import LogBackend

MESSAGES: Final = (
    "", " ", "100% sure", "1000 sure", "100 percent", "a_b", "axb", "a%b", "a*b", "aab", "a?b", "a.b", "a\\b", "a\\_b", "a\\%b",
    "c:\\dir\\file", "it's", 'say "hi"', "''", '""', "[a-z]", "(group)", "^start$", "a AND b", "a OR b", "NOT a", "NEAR(a b)",
    "message:abc", "-minus +plus", "{braces}", "#hash @user", "a|b", "a,b;c", "a  b", "a b", "a\tb", "a\nb", "x", "xy", "xyz", "yx",
    "IŞIK", "ışık", "Işık", "ISIK", "İSTANBUL", "istanbul", "ıstanbul", "I", "i", "ı", "İ", "Straße", "STRASSE", "ﬁne", "fine",
    "ｆｕｌｌ", "full", "É", "é", "e\u0301", "e", "Σίσυφος", "ΣΊΣΥΦΟΣ", "мир", "МИР", "世界", "世", "سلام", "👍🏽 ok", "👍", "👩\u200d👧",
    "%", "_", "\\", "*", "'", '"', "\u00a0nbsp", "½", "null", "\x1f", "unit\x1fseparated",
)  # fmt: skip

KEYWORDS: Final = (
    "100%", "100", "%", "_", "\\", "*", "?", "'", '"', "''", '""', "a_b", "a%b", "a*b", "a?b", "a.b", "a\\b", "\\_", "\\%", "\\d",
    "c:\\", "[a-z]", "[", "(", ")", "^", "$", "a and b", "and", "or", "not a", "near(", "message:", "-minus", "+", "{", "#", "@u",
    "|", ",b;", "a  b", "a b", "a\tb", "a\nb", " ", "x", "y", "xy", "yx", "xyz", "IŞIK", "ışık", "ışı", "şı", "istanbul", "İst", "ı",
    "I", "straße", "ss", "ﬁ", "fi", "full", "é", "e", "σίσυφος", "мир", "世界", "界", "سلا", "👍", "🏽", "👩\u200d👧", "\u200d", "½",
    "1⁄2", "absent everywhere", "null", "nobody", SEPARATOR, "unit separated", "typ", "happened", "eve", "__", "%%", "\\\\",
)  # fmt: skip


class SearchTests(LogSuite):
    """A keyword is a text that the folded message or the folded event type contains."""

    async def test_every_keyword_in_every_message(self, backend: LogBackend) -> None:
        """A keyword is found as it stands, whatever it means elsewhere; one and two letters are keywords, too."""
        user = unique()
        kinds = ("typ", "AND", "50%_off\\", "ışık")
        happened = newest_first(
            event(user, timestamp=NOON - TICK * number, message=text, event_type=kinds[number % 4])
            for number, text in enumerate(MESSAGES)
        )
        await store(backend, happened)
        keywords = sorted({fold(keyword) for keyword in KEYWORDS})
        answers = await together(
            backend.query(of_user(user, Event, keyword=keyword, limit=1000)) for keyword in keywords
        )
        expected = {
            keyword: [
                e.message for e in happened if keyword in fold(e.message) or keyword in fold(e.event_type)
            ]
            for keyword in keywords
        }

        assert expected == {k: [each.message for each in a] for k, a in zip(keywords, answers, strict=True)}

    async def test_search_without_a_user(self, backend: LogBackend) -> None:
        """A keyword alone finds the events of everybody, newest first, up to the limit."""
        word = unique("Kelime")
        happened = newest_first(
            event(unique(), timestamp=NOON - TICK * number, message=f"önce {word.upper()} sonra")
            for number in range(5)
        )
        await store(backend, happened)
        keyword = fold(word)

        assert ids(happened) == ids(await backend.query(Query(Event, keyword=keyword)))
        assert ids(happened[:2]) == ids(await backend.query(Query(Event, keyword=keyword, limit=2)))
        assert ids(happened[3:]) == ids(
            await backend.query(Query(Event, keyword=keyword, after=(happened[2].timestamp, happened[2].id)))
        )
        assert ids(happened[1:3]) == ids(
            await backend.query(Query(Event, keyword=keyword, since=NOON - TICK * 2, until=NOON))
        )

    async def test_search_in_event_types(self, backend: LogBackend) -> None:
        """The event type is searched like the message."""
        word = unique("TİP")
        happened = event(unique(), event_type=f"dm.{word}.received")
        await store(backend, [happened])

        assert ids([happened]) == ids(await backend.query(Query(Event, keyword=fold(f"M.{word}.r"))))

    async def test_not_across_the_fields(self, backend: LogBackend) -> None:
        """A keyword that begins in one field and ends in the other is in neither."""
        user = unique()
        await store(
            backend, [event(user, message="abc", event_type="def"), event(user, message="", event_type="g")]
        )
        keywords = ["cd", "c d", "bcdef", "fa", "f a", "efabc", "c\nd", "abcdef", "defabc", "gabc"]
        answers = await together(backend.query(of_user(user, Event, keyword=keyword)) for keyword in keywords)

        assert [[]] * len(keywords) == answers

    async def test_only_message_and_event_type(self, backend: LogBackend) -> None:
        """Neither the context nor a name is searched."""
        word = unique("word")
        await store(backend, [event(f"{word}-user", username=word, context={word: word})])

        assert [] == await backend.query(Query(Event, keyword=word))

    async def test_search_in_long_messages(self, backend: LogBackend) -> None:
        """A message is searched to its end, and a long keyword is a keyword."""
        user = unique()
        word = unique("end")
        happened = event(user, message="ğüş " * 20_000 + word)
        await store(backend, [happened, event(user, message="ğüş " * 100)])

        assert ids([happened]) == ids(await backend.query(Query(Event, keyword=word)))
        assert ids([happened]) == ids(
            await backend.query(of_user(user, Event, keyword=fold("ğüş " * 200 + word)))
        )

    async def test_search_with_conditions(self, backend: LogBackend) -> None:
        """A keyword goes with every other condition, in queries, counts and histograms."""
        user, word = unique(), unique("word")
        stored = [
            event(who, message=text, level=level, event_type=kind)
            for who in (user, unique())
            for text in (word, "other")
            for level in ("INFO", "ERROR")
            for kind in ("a", "b")
        ]
        await store(backend, stored)
        mine = [each for each in stored if each.user_id == user and each.message == word]
        errors = newest_first(each for each in mine if each.level == "ERROR")
        query = of_user(user, Event, keyword=word)

        assert ids(newest_first(mine)) == ids(await backend.query(query))
        assert ids(errors) == ids(
            await backend.query(of_user(user, Event, keyword=word, equal={"level": "ERROR"}))
        )
        assert 1 == len(
            await backend.query(
                of_user(user, Event, keyword=word, equal={"level": "INFO", "event_type": "b"})
            )
        )
        assert {"": 4} == await backend.count(query)
        assert {"a": 4, "b": 4} == await backend.count(Query(Event, keyword=word), "event_type")
        assert [4] == list((await backend.histogram(query, "day")).values())

    async def test_new_events_are_found_at_once(self, backend: LogBackend) -> None:
        """What was acknowledged is found by the next search."""
        word = unique("word")
        happened = []
        for number in range(5):
            happened.append(event(unique(), message=word, timestamp=NOON + TICK * number))
            await store(backend, happened[-1:])

            assert ids(happened[::-1]) == ids(await backend.query(Query(Event, keyword=word)))

    @round_trips
    @given(messages=st.lists(texts(40), min_size=1, max_size=4), data=st.data())
    async def test_any_part_of_any_message(
        self, backend: LogBackend, messages: list[str], data: st.DataObject
    ) -> None:
        """Any part of a message finds it, and finds no other than those that contain it."""
        user = unique()
        happened = newest_first(event(user, message=text, event_type="t") for text in messages)
        await store(backend, happened)
        source = data.draw(st.sampled_from(messages))
        start = data.draw(st.integers(0, len(source)))
        keyword = fold(source[start : data.draw(st.integers(start, len(source)))]) or "t"
        expected = [each for each in happened if keyword in fold(each.message) or keyword == "t"]

        assert ids(expected) == ids(await backend.query(of_user(user, Event, keyword=keyword)))

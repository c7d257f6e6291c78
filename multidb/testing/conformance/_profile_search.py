"""The profile suite's tests of searching."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hypothesis import given
from hypothesis import strategies as st

from multidb._core.text import fold
from multidb.profiles.protocol import Patch
from multidb.testing.conformance._data import exact, round_trips, together, unique
from multidb.testing.conformance._profile_data import (
    NOON,
    ProfileSuite,
    create_all,
    document,
    labelled,
    names,
    user,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multidb.profiles.protocol import ProfileBackend

KEYWORDS: Final = (
    "100%", "0%", "%", "_", "a_b", "a.b", "\\", "*", ".*", "^", "$", "[a-z]", "(", "'", '"', "x", "xy", "ışık", "IŞIK", "isik", "Iş",
    "straße", "ss", "fi", "é", "😀", "👩\u200d👧", "a b", "a  b", "line\nbreak", "absent everywhere", "nested", "listed", "42", "true",
    "null", "key", "cd", "2026", "İstanbul", "мир", "σίσυφος", "\u200d", "½",
)  # fmt: skip

SEARCHED: Final[tuple[dict[str, Any], ...]] = (
    *({"bio": text, "tag": "t"} for text in (
        "", "100% sure", "1000 sure", "a_b", "axb", "a.b", "a\\b", ".*", "^$", "[a-z]", "(x", "it's", 'say "hi"', "x", "xy", "IŞIK", "ışık",
        "Işık", "Straße", "STRASSE", "ﬁne", "é", "e\u0301", "😀", "👩\u200d👧", "a b", "a  b", "line\nbreak", "İSTANBUL", "МИР", "ΣΊΣΥΦΟΣ", "½",
    )),
    {"in": {"bio": "nested"}}, {"in": ["listed"]}, {"n": 42, "f": 1.5}, {"b": True, "z": None}, {"key": 1}, {"p": "abc", "q": "def"},
    {"q": "d", "p": "c"}, {"first": "second", "third": "FOURTH ışık"},
)  # fmt: skip
"""Profiles to search, of which only the text at the top level is searched."""


class SearchTests(ProfileSuite):
    """A keyword is looked for in the username and in text at the top level, folded."""

    async def test_every_keyword(self, backend: ProfileBackend) -> None:
        """A keyword is found as it stands, in text fields at the top level only."""
        profiles = {user(): fields for fields in SEARCHED}
        await create_all(backend, profiles)
        answers = await together(backend.search(fold(keyword), 10_000) for keyword in KEYWORDS)
        # Others may have profiles that match, too.
        mine = [[each for each in found if each["username"] in profiles] for found in answers]
        expected = [
            sorted(n for n, fields in profiles.items() if has(n, fields, fold(word))) for word in KEYWORDS
        ]

        assert labelled(KEYWORDS, expected) == labelled(KEYWORDS, map(names, mine))
        assert all(
            exact(document(each["username"], profiles[each["username"]])) == exact(each)
            for f in mine
            for each in f
        )

    async def test_usernames(self, backend: ProfileBackend) -> None:
        """A username is searched, folded; profiles come by username, up to the limit."""
        mark = unique("IŞIK")
        users = sorted(
            f"{head}{mark}{tail}"
            for head, tail in (("b", ""), ("a", "x"), ("", "ı"), ("B", ""), ("😀", ""), ("\uffff", ""))
        )
        await create_all(backend, {name: {} for name in users})

        assert users == names(await backend.search(fold(mark), 10))
        assert users[:2] == names(await backend.search(fold(mark), 2))
        assert [name for name in users if fold(mark) + "x" in fold(name)] == names(
            await backend.search(fold(mark) + "x", 10)
        )

    async def test_search_follows(self, backend: ProfileBackend) -> None:
        """Text is searched as it is now: after a set, a nested set, a remove, a replace, a delete."""
        word = unique("Kelime")
        keyword = fold(word)
        one, two, three, four, five = users = sorted(user() for _ in range(5))
        await create_all(backend, {name: {"bio": word, "in": {"x": 1}} for name in users})
        assert users == names(await backend.search(keyword, 10))

        await backend.apply(
            [
                Patch(one, NOON, set={"bio": "other"}),
                Patch(two, NOON, remove=["bio"]),
                Patch(three, NOON, set={"about": 1}, replace=True),
                Patch(five, NOON, set={"in.y": "z"}, increment={"n": 1}),
            ]
        )
        await backend.delete([four])
        assert [five] == names(await backend.search(keyword, 10))

        moved = [
            Patch(one, NOON, set={"title": f"x {word} y"}),
            Patch(two, NOON, set={"in.bio": word}),
            Patch(three, NOON, set={"bio": [word], word: 1}),
            Patch(five, NOON, set={"bio": {"x": word}}),
        ]
        await backend.apply(moved)
        assert [one] == names(await backend.search(keyword, 10))

    async def test_not_across_fields(self, backend: ProfileBackend) -> None:
        """A keyword that begins in one field and ends in another is in neither."""
        mark = unique("m")
        await create_all(backend, {user(): {"a": f"{mark}abc", "b": f"def{mark}"}})

        for keyword in (
            "abcdef",
            "abc def",
            "abc\ndef",
            f"abcdef{mark}",
            f"def{mark}{mark}abc",
            f"def{mark} {mark}abc",
        ):
            assert [] == [
                each for each in await backend.search(fold(keyword), 10_000) if mark in str(each.get("a"))
            ]

    async def test_long_text(self, backend: ProfileBackend) -> None:
        """A text is searched to its end."""
        word, name = unique("end"), user()
        await create_all(backend, {name: {"bio": "ğüş " * 50_000 + word}})

        assert [name] == names(await backend.search(word, 10))

    @round_trips
    @given(
        texts=st.lists(st.text(st.sampled_from("aAıİIşß%_. é\\*")), min_size=1, max_size=4), data=st.data()
    )
    async def test_any_part_of_any_text(
        self, backend: ProfileBackend, texts: list[str], data: st.DataObject
    ) -> None:
        """Any part of a text finds it."""
        mark = unique("q")
        profiles = {user(): {"bio": f"{mark}{text}"} for text in texts}
        await create_all(backend, profiles)
        source = data.draw(st.sampled_from(texts))
        keyword = fold(mark + source[: data.draw(st.integers(0, len(source)))])
        expected = sorted(name for name, fields in profiles.items() if keyword in fold(fields["bio"]))

        assert expected == names(await backend.search(keyword, 10))


def has(name: str, fields: Mapping[str, Any], keyword: str) -> bool:
    """Return whether a search for *keyword* finds a profile."""
    return any(keyword in fold(text) for text in (name, *fields.values()) if isinstance(text, str))

"""The profile suite's tests of conditions."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from hypothesis import given
from hypothesis import strategies as st

from multidb._core.values import MAX_INT, MIN_INT
from multidb.profiles.protocol import Condition, Patch, ProfileQuery
from multidb.testing.conformance._data import exact, round_trips, together, unique
from multidb.testing.conformance._profile_data import (
    LATER,
    NOON,
    ProfileSuite,
    create_all,
    document,
    labelled,
    names,
    user,
)
from multidb.testing.conformance._profile_rules import fulfils, in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multidb.profiles._records import Document
    from multidb.profiles.protocol import ProfileBackend

_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, 2, 1.0, 1.5, -1, 2**53, 2**53 + 1, float(2**53), MAX_INT, MIN_INT, 5e-324, 1e300, "", "1", "a", "A",
    "b", "true", "null", "\uffff", "😀", "é", "e\u0301", "ı", "$where", "a.b", {}, {"b": 1}, {"b": 1.0}, {"b": True}, {"b": "x"},
    {"b": None}, {"c": 1}, {"b": {"c": 1}}, {"b": [1, 2]}, {"b": []}, {"b": [{"c": 1}]}, {"0": 1}, [1], [1.0], [True], [1, 5],
    ["a", "b"], [None], [0, "a", True], [{"b": 1}], [{"b": 1}, {"b": 2}], [{"b": None}], [{"b": "x"}, 3], [{"b": [1, 2]}],
    [{"b": {"c": 1}}], [{"c": 1}],
)  # fmt: skip

FIELDS: Final[tuple[dict[str, Any], ...]] = ({}, *({"a": value} for value in _VALUES))
"""Profiles whose `a` is of every type, for conditions that compare within a type only."""

CONDITIONS: Final[tuple[Condition, ...]] = (
    *(Condition("a", "eq", value) for value in (
        None, True, False, 0, 1, 1.0, 2, 1.5, 2**53, 2**53 + 1, float(2**53), MAX_INT, MIN_INT, 5, "", "1", "a", "A", "é", "$where", "x",
    )),
    *(Condition("a", "in", values) for values in (
        (), (None,), (1,), (1.0, "a"), (True, "b"), (0, None), ("", "1", 2**53 + 1), (False, 1.5, "😀"), tuple(range(50)),
    )),
    *(Condition("a", comparison, value) for comparison in ("gt", "gte", "lt", "lte") for value in (
        True, False, 0, 1, 1.0, 1.5, 2**53, float(2**53), MAX_INT, MIN_INT, "", "a", "b", "\uffff", "😀",
    )),
    Condition("a", "exists", value=True), Condition("a", "exists", value=False),
    Condition("a.b", "exists", value=True), Condition("a.b", "exists", value=False), Condition("a.b.c", "exists", value=True),
    *(Condition("a.b", "eq", value) for value in (1, 1.0, True, "x", 2, 7)),
    Condition("a.b", "in", (2, "x")), Condition("a.b", "gt", 1), Condition("a.b", "gte", 1), Condition("a.b", "lt", 2),
    Condition("a.b", "lte", "x"), Condition("a.b.c", "eq", 1), Condition("a.b.c", "gt", 0), Condition("a.c", "eq", 1),
    Condition("b", "eq", None), Condition("b", "eq", 1), Condition("b", "exists", value=False), Condition("b.c", "eq", None),
)  # fmt: skip


class FindTests(ProfileSuite):
    """Conditions mean the same on every backend."""

    async def test_every_condition(self, backend: ProfileBackend) -> None:
        """Values compare within their type, in lists by item, and what is missing equals None."""
        tag = unique("t")
        profiles = {user(): {"tag": tag, **fields} for fields in FIELDS}
        await create_all(backend, profiles)
        stored = [document(name, fields) for name, fields in profiles.items()]
        answers = await self.ask(backend, tag, [[condition] for condition in CONDITIONS])
        expected = [[own(each) for each in stored if fulfils(each, condition)] for condition in CONDITIONS]

        assert labelled(CONDITIONS, map(by_repr, expected)) == labelled(
            CONDITIONS, (by_repr([own(each) for each in found]) for found in answers)
        )

    async def ask(
        self, backend: ProfileBackend, tag: str, conditions: Sequence[Sequence[Condition]]
    ) -> list[list[Document]]:
        """Find the profiles of *tag* that fulfil each of *conditions*."""
        mine = Condition("tag", "eq", tag)
        queries = [ProfileQuery([mine, *each], limit=1000) for each in conditions]
        return await together(backend.find(query) for query in queries)

    async def test_several_conditions(self, backend: ProfileBackend) -> None:
        """All conditions must hold, several on one path, too; in a list each may hold for another item."""
        tag = unique("t")
        rows = [{"a": a, "b": b} for a in (1, 5, "x", [0, 9], None) for b in (True, "x", {"c": 1})]
        profiles = {user(): {"tag": tag, **row} for row in rows}
        await create_all(backend, profiles)
        stored = [document(name, fields) for name, fields in profiles.items()]
        conditions = [
            [Condition("a", "gt", 0), Condition("a", "lt", 3)],
            [Condition("a", "gte", 1), Condition("b", "eq", value=True)],
            [Condition("a", "eq", None), Condition("b.c", "eq", 1)],
            [
                Condition("a", "in", (1, "x")),
                Condition("b", "in", ("x", True)),
                Condition("b.c", "exists", value=False),
            ],
            [Condition("a", "eq", 1), Condition("a", "eq", 5)],
            [Condition("a", "eq", 0), Condition("a", "eq", 9)],
            [Condition("a", "exists", value=True), Condition("a", "eq", None)],
        ]
        answers = await self.ask(backend, tag, conditions)
        expected = [
            [own(each) for each in stored if all(fulfils(each, c) for c in group)] for group in conditions
        ]

        assert labelled(conditions, map(by_repr, expected)) == labelled(
            conditions, (by_repr([own(each) for each in found]) for found in answers)
        )

    async def test_reserved_fields(self, backend: ProfileBackend) -> None:
        """The name, the version and the times can be asked for; times to the microsecond."""
        tag = unique("t")
        users = sorted(user() for _ in range(3))
        for number, name in enumerate(users):
            at = NOON + timedelta(microseconds=number)
            await backend.apply([Patch(name, at, set={"tag": tag}, upsert=True)])
        await backend.apply([Patch(users[2], NOON - timedelta(days=1), set={"x": 1})])
        conditions = [
            Condition("username", "eq", users[1]),
            Condition("username", "in", (users[0], users[2], "nobody")),
            Condition("username", "gt", users[0]),
            Condition("version", "eq", 2),
            Condition("version", "lt", 2),
            Condition("created_at", "eq", LATER),
            Condition("created_at", "gt", NOON),
            Condition("created_at", "gte", LATER),
            Condition("created_at", "lt", LATER),
            Condition("created_at", "lte", LATER),
            Condition("created_at", "in", (NOON, LATER)),
            Condition("updated_at", "lt", NOON),
            Condition("updated_at", "exists", value=True),
            Condition("updated_at", "eq", None),
        ]
        expected = [
            [1],
            [0, 2],
            [1, 2],
            [2],
            [0, 1],
            [1],
            [1, 2],
            [1, 2],
            [0],
            [0, 1],
            [0, 1],
            [2],
            [0, 1, 2],
            [],
        ]
        answers = await self.ask(backend, tag, [[condition] for condition in conditions])

        assert labelled(conditions, expected) == labelled(
            conditions, ([users.index(name) for name in names(found)] for found in answers)
        )

    async def test_paths_that_look_like_numbers(self, backend: ProfileBackend) -> None:
        """In a dict a part "0" is a key; in a list it is the place of an item, as it is in MongoDB."""
        tag = unique("t")
        users = sorted(user() for _ in range(4))
        rows: list[dict[str, Any]] = [
            {"a": {"0": 1}},
            {"a": {"0": {"0": 1}}},
            {"a": [1, 2]},
            {"a": [2, {"b": 1}]},
        ]
        await create_all(backend, {name: {"tag": tag, **row} for name, row in zip(users, rows, strict=True)})
        conditions = [
            Condition("a.0", "eq", 1),
            Condition("a.0.0", "eq", 1),
            Condition("a.1", "eq", 2),
            Condition("a.0", "gt", 1),
            Condition("a.1.b", "eq", 1),
        ]
        answers = await self.ask(backend, tag, [[condition] for condition in conditions])

        assert labelled(conditions, [[0, 2], [1], [2], [3], [3]]) == labelled(
            conditions, ([users.index(name) for name in names(found)] for found in answers)
        )

    async def test_find_follows(self, backend: ProfileBackend) -> None:
        """Profiles are found as they are now."""
        tag, new_tag = unique("t"), unique("t")
        one, two, three = sorted(user() for _ in range(3))
        await create_all(backend, {name: {"tag": tag, "n": 1} for name in (one, two, three)})
        await backend.apply([Patch(one, NOON, set={"tag": new_tag}), Patch(two, NOON, increment={"n": 1})])
        await backend.delete([three])

        assert [two] == names(await backend.find(ProfileQuery([Condition("tag", "eq", tag)])))
        assert [one] == names(await backend.find(ProfileQuery([Condition("tag", "eq", new_tag)])))
        assert [two] == names(
            await backend.find(ProfileQuery([Condition("tag", "eq", tag), Condition("n", "eq", 2)]))
        )
        assert [] == await backend.find(ProfileQuery([Condition("tag", "eq", unique("t"))]))

    async def test_without_conditions(self, backend: ProfileBackend) -> None:
        """A query without conditions finds all, by username, up to its limit."""
        await create_all(backend, {user(): {} for _ in range(5)})
        found = names(await backend.find(ProfileQuery(limit=5)))

        assert 5 == len(found)
        assert sorted(found) == found

    async def test_whole_profiles(self, backend: ProfileBackend) -> None:
        """What is found is the whole profile, with its types."""
        tag, name = unique("t"), user()
        fields = {"tag": tag, "a": [1, 1.0, True, {"b": None}], "n": 2**53 + 1}
        await create_all(backend, {name: fields})

        assert exact([document(name, fields)]) == exact(
            await backend.find(ProfileQuery([Condition("tag", "eq", tag)], [("a", True)]))
        )

    @round_trips
    @given(data=st.data())
    async def test_any_condition(self, backend: ProfileBackend, data: st.DataObject) -> None:
        """Whatever the profiles and the conditions are, those are found that fulfil them."""
        tag = unique("t")
        rows = data.draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=8))
        profiles = {user(): {"tag": tag, **row} for row in rows}
        await create_all(backend, profiles)
        stored = [document(name, fields) for name, fields in profiles.items()]
        conditions = data.draw(st.lists(st.sampled_from(CONDITIONS), min_size=1, max_size=3))
        descending = data.draw(st.booleans())
        limit = data.draw(st.integers(1, 8))
        expected = in_order(
            (each for each in stored if all(fulfils(each, c) for c in conditions)), [("a", descending)]
        )
        query = ProfileQuery([Condition("tag", "eq", tag), *conditions], [("a", descending)], limit=limit)

        assert names(expected[:limit]) == names(await backend.find(query))


def own(found: Document) -> Any:
    """Return what of a profile the conditions are about."""
    return exact(found.get("a", "nothing")), exact(found.get("b", "nothing"))


def by_repr(values: list[Any]) -> list[Any]:
    """Return *values* in an order that does not depend on usernames."""
    return sorted(values, key=repr)

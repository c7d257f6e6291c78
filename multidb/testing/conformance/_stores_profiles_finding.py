"""The profile store suite's tests of finding: filters, orders, pages, search and counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multidb.errors import InvalidArgumentError
from multidb.testing.conformance._data import round_trips, together, unique
from multidb.testing.conformance._poison import BAD_LEAVES, BAD_LIMITS, BAD_TIMES, NAIVE
from multidb.testing.conformance._stores_base import Item, StoreSuite, not_refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multidb.profiles import Document, ProfileStore

_ABSENT: Any = object()


class FindSuite(StoreSuite):
    """What the parts have in common: groups of profiles that are found by nobody else."""

    async def group(self, store: ProfileStore, values: Iterable[Any], name: str = "v") -> str:
        """Create profiles `…-00`, `…-01` with *values* in the field *name*; return their group."""
        group = unique("group")
        await together(
            store.create_or_update_profile(
                f"{group}-{number:02}", {"group": group} | ({} if value is _ABSENT else {name: value})
            )
            for number, value in enumerate(values)
        )
        return group

    async def found(
        self, store: ProfileStore, group: str, filter_: dict[str, Any] | None = None, **options: Any
    ) -> list[int]:
        """Return the numbers of the profiles of *group* that fulfil *filter_*, in the order they came."""
        documents = await store.find_profiles({"group": group} | (filter_ or {}), **options)
        return [int(document["username"].rpartition("-")[2]) for document in documents]


class FilterTests(FindSuite):
    """Filters."""

    async def test_equal(self, store: ProfileStore) -> None:
        """A value equals within its type: 1 is 1.0, and is not True; None is what is missing, too."""
        group = await self.group(
            store, [1, 1.0, True, "1", None, _ABSENT, [1, 2], {"a": 1}, 0, False, "", [], [None]]
        )
        expected: list[tuple[Any, list[int]]] = [
            (1, [0, 1, 6]),
            (1.0, [0, 1, 6]),
            (True, [2]),
            ("1", [3]),
            (None, [4, 5, 12]),
            (0, [8]),
            (-0.0, [8]),
            (False, [9]),
            ("", [10]),
            (2, [6]),
            (7, []),
        ]
        for value, numbers in expected:
            assert numbers == await self.found(store, group, {"v": value})
            assert numbers == await self.found(store, group, {"v": {"$eq": value}})

    async def test_in(self, store: ProfileStore) -> None:
        """One of several values, of any types."""
        group = await self.group(store, ["a", "b", 1, True, None, _ABSENT, ["a", "z"], 2**53 + 1])

        assert [0, 2, 6] == await self.found(store, group, {"v": {"$in": ["a", 1.0]}})
        assert [3, 4, 5] == await self.found(store, group, {"v": {"$in": (True, None)}})
        assert [7] == await self.found(store, group, {"v": {"$in": [2**53 + 1]}})
        assert [] == await self.found(store, group, {"v": {"$in": ["A", 0]}})

    async def test_compare(self, store: ProfileStore) -> None:
        """Values compare within their type: numbers by value, texts by code points."""
        group = await self.group(
            store, [1, 2.5, 3, -1, "a", "b", "é", "B", True, None, _ABSENT, "\uffff", "😀", [10]]
        )
        expected: list[tuple[dict[str, Any], list[int]]] = [
            ({"$gt": 1}, [1, 2, 13]),
            ({"$gte": 1}, [0, 1, 2, 13]),
            ({"$lt": 2.5}, [0, 3]),
            ({"$lte": 2.5}, [0, 1, 3]),
            ({"$gt": 1, "$lt": 3}, [1]),
            ({"$gt": "a"}, [5, 6, 11, 12]),
            ({"$lt": "a"}, [7]),
            ({"$gt": ""}, [4, 5, 6, 7, 11, 12]),
            ({"$gt": "\uffff"}, [12]),
            ({"$gte": True}, [8]),
            ({"$lt": True}, []),
            ({"$gt": 2, "$exists": True}, [1, 2, 13]),
            ({"$in": [1, 3], "$gt": 1}, [2]),
        ]
        for condition, numbers in expected:
            assert numbers == await self.found(store, group, {"v": condition}), condition

    async def test_large_numbers(self, store: ProfileStore) -> None:
        """Ints beyond what a float holds compare exactly."""
        group = await self.group(store, [2**53, 2**53 + 1, 2**53 + 2, 2**63 - 1, -(2**63)])

        assert [1] == await self.found(store, group, {"v": 2**53 + 1})
        assert [2, 3] == await self.found(store, group, {"v": {"$gt": 2**53 + 1}})
        assert [4] == await self.found(store, group, {"v": {"$lt": -(2**63) + 1}})

    async def test_exists(self, store: ProfileStore) -> None:
        """A field that holds None exists."""
        group = await self.group(store, [1, None, _ABSENT])

        assert [0, 1] == await self.found(store, group, {"v": {"$exists": True}})
        assert [2] == await self.found(store, group, {"v": {"$exists": False}})

    async def test_paths(self, store: ProfileStore) -> None:
        """A path leads into dicts, and into the dicts of a list."""
        values = [
            {"a": {"b": 1}},
            {"a": [{"b": 1}, {"b": 2}]},
            {"a": 1},
            {},
            {"a": {"b": None}},
            [{"a": {"b": 1}}],
        ]
        group = await self.group(store, values)

        assert [0, 1, 5] == await self.found(store, group, {"v.a.b": 1})
        assert [1] == await self.found(store, group, {"v.a.b": 2})
        assert [0, 1, 4, 5] == await self.found(store, group, {"v.a.b": {"$exists": True}})
        assert [0] == await self.found(store, group, {"v.a.b": 1, "username": f"{group}-00"})

    async def test_several_conditions(self, store: ProfileStore) -> None:
        """All conditions count."""
        group = unique("group")
        for number in range(8):
            data = {"group": group, "a": number % 2, "b": {"c": number // 2}}
            await store.create_or_update_profile(f"{group}-{number}", data)

        assert [3, 5] == await self.found(store, group, {"a": 1, "b.c": {"$gte": 1, "$lt": 3}})
        assert [] == await self.found(store, group, {"a": 1, "b.c": 9})
        assert list(range(8)) == await self.found(store, group)

    async def test_reserved_fields(self, store: ProfileStore) -> None:
        """What multidb keeps can be asked for, too: names, versions, and times as datetimes."""
        group = unique("group")
        documents = []
        for number in range(4):
            documents.append(await store.create_or_update_profile(f"{group}-{number}", {"group": group}))
            await self.pass_time(0.002)
        times = [document["created_at"] for document in documents]
        await store.update_profile_field(f"{group}-2", "a", 1)

        assert [2] == await self.found(store, group, {"version": {"$gt": 1}})
        assert [1, 3] == await self.found(store, group, {"username": {"$in": [f"{group}-1", f"{group}-3"]}})
        assert [2, 3] == await self.found(store, group, {"username": {"$gt": f"{group}-1"}})
        assert [1] == await self.found(store, group, {"created_at": times[1]})
        assert [2, 3] == await self.found(store, group, {"created_at": {"$gt": times[1].astimezone()}})
        assert [1, 2] == await self.found(store, group, {"created_at": {"$gte": times[1], "$lt": times[3]}})
        assert [2] == await self.found(store, group, {"updated_at": {"$gt": times[3]}})
        assert [] == await self.found(store, group, {"created_at": {"$lt": datetime(1970, 1, 1, tzinfo=UTC)}})
        assert [0] == await self.found(store, group, {"created_at": {"$in": [times[0]]}})

    async def test_names_are_normalised(self, store: ProfileStore) -> None:
        """A username in a filter is one like in any other call: an int, or text in any form."""
        number = uuid4().int >> 66
        await store.create_or_update_profile(number, {})

        assert 1 == len(await store.find_profiles({"username": number}))
        assert 1 == len(await store.find_profiles({"username": {"$in": [number]}}))
        assert [] == await store.find_profiles({"username": f"{number}x"})

    async def test_operators_from_outside(self, store: ProfileStore) -> None:
        """A dict where a value is expected is refused: nobody gets an operator in by way of a value."""
        group = await self.group(store, ["secret"], "token")
        await store.create_or_update_profile(f"{group}-01", {"group": group, "token": "other", "type": group})
        bad: list[Any] = [
            {"token": {"$ne": None}},
            {"token": {"$regex": "."}},
            {"token": {"$not": {"$gt": ""}}},
            {"token": {"$where": "1"}},
            {"token": {"$elemMatch": {"$gt": ""}}},
            {"token": {"$eq": {"$gt": ""}}},
            {"token": {"$in": [{"$gt": ""}]}},
            {"token": {"$in": {"$gt": ""}}},
            {"token": {"$gt": {"$gt": ""}}},
            {"token": {"$exists": {"$gt": ""}}},
            {"token": {"$gt": "", "$ne": None}},
            {"token": {"a": 1}},
            {"token": {}},
            {"token": []},
            {"token": ["secret"]},
            {"token": Item(name="x")},
            {"token": {"$eq": Item(name="x")}},
            {"token.$gt": ""},
            {"$where": "1"},
            {"$or": [{}]},
            {"$expr": {"$gt": ["$token", ""]}},
            {"": ""},
            {"a..b": 1},
            {"_id": "x"},
            {1: 1},
            {None: 1},
        ]
        for filter_ in bad:
            with pytest.raises(InvalidArgumentError, match=r"^filter"):
                await store.find_profiles({"group": group} | filter_)
        operator: Any = {"$gt": ""}
        for call in (
            store.get_profile_by_username(operator),
            store.get_profile_by_user_id(operator),
            store.get_all_profiles(operator),
            store.find_profiles({"username": {"$in": [operator]}}),
            store.delete_profile(operator),
            store.search_profiles(operator),
        ):
            with pytest.raises(InvalidArgumentError):
                await call

    async def test_bad_filters(self, store: ProfileStore) -> None:
        """A filter is a dict of paths to scalars that every backend can keep."""
        plain = [bad for bad in BAD_LEAVES if not hasattr(bad, "keys")]

        assert [] == await not_refused((1, "a", [], [("a", 1)], {"a"}, True), "filter", store.find_profiles)
        for where, wrap in (
            ("filter.a.b", lambda bad: bad),
            ("filter.a.b.$gt", lambda bad: {"$gt": bad}),
            ("filter.a.b.$in[1]", lambda bad: {"$in": [1, bad]}),
        ):
            assert [] == await not_refused(
                [{"a.b": wrap(bad)} for bad in plain], where, store.find_profiles, value=True
            )
        nothing_to_order: list[Any] = [None, [], {}]
        for operator in ("$gt", "$gte", "$lt", "$lte"):
            assert [] == await not_refused(
                [{"a": {operator: bad}} for bad in nothing_to_order],
                f"filter.a.{operator}",
                store.find_profiles,
            )
        assert [] == await not_refused(
            (1, None, "true", 1.0, []),
            "filter.a.$exists",
            lambda bad: store.find_profiles({"a": {"$exists": bad}}),
        )
        assert [] == await not_refused(
            ([], 1, "ab", {1}, None, range(2), [1] * 10_001),
            "filter.a.$in",
            lambda bad: store.find_profiles({"a": {"$in": bad}}),
        )
        times = [bad for bad in BAD_TIMES if not isinstance(bad, dict)]
        assert [] == await not_refused(
            times, "filter.created_at", lambda bad: store.find_profiles({"created_at": bad})
        )
        assert [] == await not_refused(
            [None, "", True, 1.5, "a\0"],
            "filter.username",
            lambda bad: store.find_profiles({"username": bad}),
        )
        assert [] == await not_refused(BAD_LIMITS, "limit", lambda bad: store.find_profiles(limit=bad))


class OrderTests(FindSuite):
    """Orders and pages."""

    async def test_default_order(self, store: ProfileStore) -> None:
        """Without a sort, profiles come by username, by code points."""
        group = unique("group")
        names = [f"{group}{name}" for name in ("b", "B", "a", "ç", "é", "10", "9", "\uffff", "😀", "_")]
        await together(store.create_or_update_profile(name, {"group": group}) for name in names)

        assert sorted(names) == [
            document["username"] for document in await store.find_profiles({"group": group})
        ]

    async def test_sort(self, store: ProfileStore) -> None:
        """By one path or several, each up or down, written in any of the ways."""
        group = unique("group")
        rows = [(3, "b"), (1, "b"), (2, "a"), (1, "a"), (2, "b")]
        for number, (a, b) in enumerate(rows):
            await store.create_or_update_profile(f"{group}-{number}", {"group": group, "a": a, "b": {"c": b}})
        expected: list[tuple[Any, list[int]]] = [
            ("a", [1, 3, 2, 4, 0]),
            ("-a", [0, 2, 4, 1, 3]),
            (["a"], [1, 3, 2, 4, 0]),
            (["a", "b.c"], [3, 1, 2, 4, 0]),
            (["-a", "-b.c"], [0, 4, 2, 1, 3]),
            ([("b.c", -1), ("a", 1)], [1, 4, 0, 3, 2]),
            ((["b.c", 1], "-a"), [2, 3, 0, 4, 1]),
            ("-username", [4, 3, 2, 1, 0]),
            ("nowhere", [0, 1, 2, 3, 4]),
            ([], [0, 1, 2, 3, 4]),
        ]
        for sort, numbers in expected:
            assert numbers == await self.found(store, group, sort=sort), sort

    async def test_order_of_types(self, store: ProfileStore) -> None:
        """Missing, None, lists and dicts come first, all alike; then bools, numbers, texts by code points."""
        values = [
            "b",
            2,
            True,
            None,
            [9],
            {"a": 1},
            _ABSENT,
            1.5,
            "a",
            False,
            -3,
            "",
            "é",
            "B",
            "\uffff",
            "😀",
            2**53 + 1,
            2.0**53,
            [],
        ]
        group = await self.group(store, values)
        up = [3, 4, 5, 6, 18, 9, 2, 10, 7, 1, 17, 16, 11, 13, 8, 0, 12, 14, 15]

        assert up == await self.found(store, group, sort="v")
        # What is equal still comes by username.
        assert [*up[:4:-1], *up[:5]] == await self.found(store, group, sort="-v")

    async def test_order_of_times(self, store: ProfileStore) -> None:
        """The times that multidb keeps sort, too."""
        group = unique("group")
        for number in (2, 0, 1):
            await store.create_or_update_profile(f"{group}-{number}", {"group": group})
            await self.pass_time(0.002)

        assert [2, 0, 1] == await self.found(store, group, sort="created_at")
        assert [1, 0, 2] == await self.found(store, group, sort="-created_at")
        last: Document | None = None
        seen = []
        while page := await store.find_profiles({"group": group}, "-updated_at", 1, last):
            last = page[0]
            seen.append(int(last["username"][-1]))
        assert [1, 0, 2] == seen

    async def test_pages(self, store: ProfileStore) -> None:
        """Page after page gives every profile once, in order, whatever the sort, ties and types included."""
        values = [number // 3 for number in range(10)] + [
            None,
            _ABSENT,
            "x",
            "x",
            True,
            [1],
            {"a": 1},
            1.0,
            "y",
            False,
        ]
        group = await self.group(store, values)
        for sort in (None, "v", "-v", ["-v", "-username"], ["username"], ["nowhere", "-v"]):
            whole = await self.found(store, group, sort=sort)
            pages: list[list[Document]] = []
            while page := await store.find_profiles(
                {"group": group}, sort, 3, pages[-1][-1] if pages else None
            ):
                pages.append(page)

            assert len(values) == len(whole)
            assert whole == [int(document["username"][-2:]) for page in pages for document in page], sort

    async def test_pages_while_others_write(self, store: ProfileStore) -> None:
        """What is created or deleted meanwhile shifts nothing."""
        group = await self.group(store, range(10, 30))
        seen: list[int] = []
        last: Document | None = None
        number = 30
        while page := await store.find_profiles({"group": group}, "v", 4, last):
            seen += [document["v"] for document in page]
            last = page[-1]
            for _ in range(3):
                await store.create_or_update_profile(f"{group}-{number}", {"group": group, "v": 0})
                number += 1
            await store.delete_profile(page[0]["username"])
            await store.delete_profile(last["username"])

        assert list(range(10, 30)) == seen

    @round_trips
    @given(
        values=st.lists(
            st.none()
            | st.booleans()
            | st.integers(-5, 5)
            | st.floats(-5, 5)
            | st.text("aB\u00e9\U0001f600", max_size=2),
            max_size=8,
        )
    )
    async def test_any_order(self, store: ProfileStore, values: list[Any]) -> None:
        """Any values sort as the rule says, up and down."""
        group = await self.group(store, values)
        ranks: dict[type, int] = {type(None): 0, bool: 1, int: 2, float: 2, str: 3}

        def key(number: int) -> Any:
            value = values[number]
            return ranks[type(value)], 0 if value is None else value

        up = sorted(range(len(values)), key=key)
        down = sorted(range(len(values)), key=key, reverse=True)
        assert up == await self.found(store, group, sort="v")
        assert down == await self.found(store, group, sort="-v")

    async def test_bad_sorts(self, store: ProfileStore) -> None:
        """A sort is a path, or a list of paths, with a direction of 1 or -1."""
        bad: list[Any] = [
            1, True, {"a": 1}, {"a"}, b"a", [1], [None], [["a"]], [("a", 1, 2)], [("a", 0)], [("a", 2)],
            [("a", "1")], [("a", None)], [(1, 1)], [("$a", 1)], "$a", "a..b", ".", "-", "--a.", "a\0", [""],
            ["a", "$b"], "_id", [{"a": 1}],
        ]  # fmt: skip

        assert [] == await not_refused(bad, "sort", lambda one: store.find_profiles(sort=one))

    async def test_bad_cursors(self, store: ProfileStore) -> None:
        """A page continues behind a profile; what it holds is checked like a value."""
        assert [] == await not_refused(
            (1, "a", [], {}, {"a": 1}, True), "after", lambda bad: store.find_profiles(after=bad)
        )
        for username in ("", None, {"$gt": ""}, True, "a\0"):
            assert [] == await not_refused(
                [username], "after.username", lambda bad: store.find_profiles(after={"username": bad})
            )
        unkeepable = [bad for bad in BAD_LEAVES if not isinstance(bad, datetime) and not hasattr(bad, "keys")]
        assert [] == await not_refused(
            [*unkeepable, NAIVE],
            "after",
            lambda bad: store.find_profiles(sort="a.b", after={"username": "u", "a": {"b": bad}}),
        )


class KindTests(FindSuite):
    """All profiles, bots, search, counts."""

    async def test_all_profiles(self, store: ProfileStore) -> None:
        """All profiles, of a type, active or not, by username."""
        kind = unique("kind")
        rows: list[dict[str, Any]] = [
            {"type": kind, "is_active": True},
            {"type": kind, "is_active": False},
            {"type": kind},
            {"type": kind, "is_active": 1},
            {"type": [kind], "is_active": True},
            {"type": f"{kind}2", "is_active": True},
        ]
        for number, row in enumerate(rows):
            await store.create_or_update_profile(f"{kind}-{number}", row)

        async def numbers(*arguments: Any, **options: Any) -> list[int]:
            documents = await store.get_all_profiles(*arguments, **options)
            return [int(one["username"][-1]) for one in documents if one["username"].startswith(kind)]

        assert [0, 1, 2, 3, 4] == await numbers(kind)
        assert [0, 4] == await numbers(kind, True)
        assert [1] == await numbers(kind, is_active=False)
        assert [0, 4, 5] == await numbers(is_active=True)
        assert [0, 1, 2, 3, 4, 5] == await numbers()
        assert [] == await store.get_all_profiles(unique("kind"))
        assert [] == await not_refused((1, True, ["bot"], {"$gt": ""}, "a\0"), "type", store.get_all_profiles)
        assert [] == await not_refused(
            (1, 0, "true", [], {"$exists": True}),
            "is_active",
            lambda bad: store.get_all_profiles(is_active=bad),
        )

    async def test_bots(self, store: ProfileStore) -> None:
        """Bots are profiles of type `bot`; on request only those whose `autospam` is true."""
        prefix = unique()
        rows: list[dict[str, Any]] = [
            {"type": "bot", "autospam": True},
            {"type": "bot", "autospam": False},
            {"type": "bot"},
            {"type": "bot", "autospam": 1},
            {"type": "Bot", "autospam": True},
            {"autospam": True},
        ]
        for number, row in enumerate(rows):
            await store.create_or_update_profile(f"{prefix}-{number}", row)

        async def numbers(*arguments: Any) -> list[int]:
            documents = await store.get_bot_profiles(*arguments)
            return [int(one["username"][-1]) for one in documents if one["username"].startswith(prefix)]

        assert [0, 1, 2, 3] == await numbers()
        assert [0, 1, 2, 3] == await numbers(False)
        assert [0] == await numbers(True)
        assert [] == await not_refused((1, "yes", None), "autospam_only", store.get_bot_profiles)

    async def test_search(self, store: ProfileStore) -> None:
        """A part of the username, or of a text at the top level, finds a profile; deeper texts do not."""
        word = f"W{uuid4().hex}"
        rows: list[dict[str, Any]] = [
            {"bio": f"xx{word.upper()}yy"},
            {"nested": {"bio": word}},
            {"list": [word]},
            {word: "a key"},
            {"bio": 5, "other": word},
            {"bio": "nothing"},
        ]
        names = [unique(f"n{number}") for number in range(len(rows))]
        for name, row in zip(names, rows, strict=True):
            await store.create_or_update_profile(name, row)
        await store.create_or_update_profile(f"z{word}", {})

        async def found(keyword: str, **options: Any) -> list[str]:
            return [document["username"] for document in await store.search_profiles(keyword, **options)]

        assert [names[0], names[4], f"z{word}"] == await found(word.lower())
        assert [names[0], names[4]] == await found(word, limit=2)
        assert [names[0]] == await found(f"x{word}")
        assert [] == await found(f"{word}%")

    async def test_search_folds(self, store: ProfileStore) -> None:
        """As in the search of events, case, the dot of an i and forms of Unicode do not count."""
        token = uuid4().hex
        texts = {"a": "IŞIK", "b": "ışık", "c": "isik", "d": "%_*", "e": "re\u0301sume\u0301"}
        for name, text in texts.items():
            await store.create_or_update_profile(f"{token}-{name}", {"bio": f"{token}{text} and more"})
        await store.create_or_update_profile(f"İ{token}", {})
        found = {
            "İŞİK": "ab",
            "Isik": "c",
            "%": "d",
            "%_*": "d",
            "_": "",
            "*": "",
            "résumé": "e",
            "RÉSUMÉ": "e",
            "resume": "",
        }
        for keyword, names in found.items():
            documents = await store.search_profiles(f"{token.upper()}{keyword}")

            assert [f"{token}-{name}" for name in names] == [
                document["username"] for document in documents
            ], keyword
        assert [f"İ{token}"] == [
            document["username"] for document in await store.search_profiles(f"i{token}")
        ]

    async def test_search_after_changes(self, store: ProfileStore) -> None:
        """What was changed or removed is not found any more; what took its place is."""
        name, old, new = unique(), uuid4().hex, uuid4().hex
        await store.create_or_update_profile(name, {"bio": old, "b": old})
        await store.update_profile_field(name, "bio", new)

        assert 1 == len(await store.search_profiles(old))
        await store.remove_profile_field(name, "b")
        assert [] == await store.search_profiles(old)
        assert 1 == len(await store.search_profiles(new))
        await store.delete_profile(name)
        assert [] == await store.search_profiles(new)

    async def test_bad_searches(self, store: ProfileStore) -> None:
        """A keyword is a text that is not empty."""
        assert [] == await not_refused(
            ("", None, 1, b"a", ["a"], {"$gt": ""}, "a\0", "\ud800"), "keyword", store.search_profiles
        )
        assert [] == await not_refused(BAD_LIMITS, "limit", lambda bad: store.search_profiles("a", limit=bad))

    async def test_stats(self, store: ProfileStore) -> None:
        """The counts go by what a field is, not by what it looks like."""
        kind = unique("kind")
        before = await store.get_profile_stats()
        rows: list[dict[str, Any]] = [
            {"type": kind, "is_active": True},
            {"type": kind, "is_active": 1},
            {"type": kind, "is_active": "true"},
            {"type": [kind]},
            {"type": 5},
            {"type": "bot", "autospam": True},
            {"type": "bot", "autospam": "yes"},
            {"autospam": True},
        ]
        for number, row in enumerate(rows):
            await store.create_or_update_profile(f"{kind}-{number}", row)
        after = await store.get_profile_stats()

        assert 3 == after.by_type[kind]
        assert 2 == after.by_type["bot"] - before.by_type.get("bot", 0)
        assert (8, 1, 1) == (
            after.total - before.total,
            after.active - before.active,
            after.autospam_bots - before.autospam_bots,
        )
        assert {"bot", kind} == set(after.by_type) - (set(before.by_type) - {"bot"})

    async def test_time_that_passes(self, store: ProfileStore) -> None:
        """`updated_at` finds what has changed since a point in time."""
        group = await self.group(store, range(3))
        await self.pass_time(0.01)
        since = (await store.create_or_update_profile(f"{group}-03", {"group": group}))["updated_at"]
        await self.pass_time(0.01)
        await store.update_profile_field(f"{group}-01", "v", 9)

        assert [1, 3] == await self.found(store, group, {"updated_at": {"$gte": since}})
        assert [3] == await self.found(
            store, group, {"created_at": {"$gte": since - timedelta(milliseconds=5)}}
        )

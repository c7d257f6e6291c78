"""The rules for documents in memory, as pure functions."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multidb._core.text import fold
from multidb._core.values import MAX_INT, MIN_INT
from multidb.errors import ConflictError, InvalidValueError
from multidb.profiles.documents import (
    apply_patch,
    apply_patches,
    contains,
    copies,
    count,
    matcher,
    select,
    sort_key,
)
from multidb.profiles.protocol import Condition, Patch, ProfileQuery

THEN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = THEN + timedelta(days=1)


def profile(username: str = "u", /, **fields: Any) -> dict[str, Any]:
    return {"username": username, "created_at": THEN, "updated_at": THEN, "version": 7, **fields}


def patch(**parts: Any) -> Patch:
    return Patch("u", at=NOW, **parts)


def fields_after(document: dict[str, Any], change: Patch) -> dict[str, Any]:
    """Return the program's fields after a write, once it is clear that it is a write, and that the input is whole."""
    before = deepcopy(document)
    after = apply_patch(document, change)
    assert after is not None
    assert before == document
    assert {"username": "u", "created_at": THEN, "updated_at": NOW, "version": 8}.items() <= after.items()
    return {name: value for name, value in after.items() if name not in before or name not in profile()}


def holds(document: dict[str, Any], path: str, operator: Any, value: Any) -> bool:
    return matcher([Condition(path, operator, value)])(document)


class TestPatches:
    def test_new(self) -> None:
        """A new profile has version 1, and both times are the patch's."""
        created = {"username": "u", "created_at": NOW, "updated_at": NOW, "version": 1}

        assert created == apply_patch(None, patch(upsert=True))
        assert created | {"a": {"b": 1}, "n": 2.5} == apply_patch(
            None, patch(set={"a.b": 1}, increment={"n": 2.5}, upsert=True)
        )
        assert apply_patch(None, patch(set={"a": 1})) is None

    def test_set(self) -> None:
        """A path is created where it is missing; what is beside it stays."""
        document = profile(a={"b": {"c": 1}, "d": 2}, e=3)

        assert {"a": {"b": {"c": 9}, "d": 2}, "e": 3} == fields_after(document, patch(set={"a.b.c": 9}))
        assert {"a": {"b": {"c": 1, "x": 1, "y": 2}, "d": 2, "z": {"w": 3}}, "e": 3} == fields_after(
            document, patch(set={"a.b.x": 1, "a.b.y": 2, "a.z.w": 3})
        )
        assert {"a": None, "e": [1]} == fields_after(document, patch(set={"a": None, "e": [1]}))

    def test_replace(self) -> None:
        """A replacement drops what it does not set, increments start at 0 again."""
        assert {"b": 1, "n": 2} == fields_after(
            profile(a=1, n=5), patch(set={"b": 1}, increment={"n": 2}, replace=True)
        )
        assert {} == fields_after(profile(a=1), patch(replace=True))

    @pytest.mark.parametrize(
        ("stored", "amount", "expected"),
        [
            (1, 2, 3), (1, 0.5, 1.5), (0.5, 1, 1.5), (1, -1, 0), (1.0, -1.0, 0.0), (0.0, -0.0, 0.0), (MAX_INT - 1, 1, MAX_INT),
            (MIN_INT + 1, -1, MIN_INT), (MAX_INT, 1.0, 9.223372036854775807e18), (-1, MIN_INT + 1, MIN_INT), (2**53, 1, 2**53 + 1),
        ],
    )  # fmt: skip
    def test_increment(self, stored: float, amount: float, expected: float) -> None:
        """Ints stay exact ints; with a float the sum is a float; -0.0 is 0.0."""
        result = fields_after(profile(n=stored), patch(increment={"n": amount}))["n"]

        assert (type(expected), repr(expected)) == (type(result), repr(result))

    @pytest.mark.parametrize(
        ("stored", "amount"),
        [
            (MAX_INT, 1), (MIN_INT, -1), (1.7e308, 1.7e308), (True, 1), (False, 1), (None, 1), ("1", 1), ([1], 1), ({}, 1),
        ],
    )  # fmt: skip
    def test_increment_conflicts(self, stored: Any, amount: float) -> None:
        """What is no number, or would be none any more, is a conflict."""
        with pytest.raises(ConflictError):
            apply_patch(profile(n=stored), patch(increment={"n": amount}))

    def test_remove(self) -> None:
        """What is there goes, and a dict that is empty then stays."""
        document = profile(a={"b": {"c": 1}}, d=2)

        assert {"a": {"b": {}}} == fields_after(document, patch(remove=["a.b.c", "d", "x", "a.x.y"]))
        assert {"a": {"b": {"c": 1}}, "d": 2, "e": 1} == fields_after(
            document, patch(set={"e": 1}, remove=["x"])
        )
        assert apply_patch(document, patch(remove=["x", "a.x", "a.b.x.y"])) is document
        assert apply_patch(None, patch(remove=["x"])) is None

    @pytest.mark.parametrize("inside", [None, 1, 1.5, True, "text", [], [{"b": 1}], [[1]]])
    def test_paths_through_no_dict(self, inside: Any) -> None:
        """A path that leads through, or into, anything but a dict is a conflict, also behind one that is fine."""
        document = profile(a=inside, d={"a": inside}, e=1)
        for path in ("a.b", "a.0", "a.b.c", "d.a.b"):
            for change in (
                patch(set={path: 1}),
                patch(increment={path: 1}),
                patch(remove=[path]),
                patch(remove=["e", path]),
                patch(remove=["x", path]),
            ):
                with pytest.raises(ConflictError):
                    apply_patch(document, change)

    def test_versions(self) -> None:
        """The stored version must be the expected one; none stored counts as 0."""
        assert apply_patch(profile(), patch(set={"a": 1}, expected_version=7)) is not None
        assert apply_patch(None, patch(upsert=True, expected_version=0)) is not None
        assert apply_patch(None, patch(expected_version=0)) is None
        for document, version in ((profile(), 6), (profile(), 0), (None, 1)):
            for change in (patch(upsert=True), patch(remove=["x"])):
                with pytest.raises(ConflictError):
                    apply_patch(document, replace(change, expected_version=version))

    def test_too_large(self) -> None:
        """15 MiB as JSON is the limit."""
        room = 15 * 1024 * 1024 - len(
            '{"created_at":"2026-01-02T00:00:00+00:00","text":"","updated_at":"2026-01-02T00:00:00+00:00","username":"u","version":1}'
        )

        assert apply_patch(None, patch(set={"text": "x" * room}, upsert=True)) is not None
        with pytest.raises(InvalidValueError, match="profile"):
            apply_patch(None, patch(set={"text": "x" * (room + 1)}, upsert=True))

    def test_batch(self) -> None:
        """Each patch finds what those before it left, a conflict is its own, and all results are copies."""
        stored = {"u": profile(a={"n": 1})}
        values = [1]
        results, written = apply_patches(
            stored.get,
            [
                patch(set={"a.list": values}),
                patch(increment={"a.n.x": 1}),
                patch(increment={"a.n": 1}),
                replace(patch(set={"b": 1}), username="nobody"),
                patch(remove=["x"]),
            ],
        )
        first, conflict, second, nobody, nothing = results
        values.append(2)
        for result in (first, second, nothing):
            result.document["a"]["list"].append(3)  # type: ignore[union-attr, index]

        assert isinstance(conflict, ConflictError)
        assert [True, True, False, False] == [each.changed for each in (first, second, nobody, nothing)]  # type: ignore[union-attr]
        assert nobody.document is None  # type: ignore[union-attr]
        assert {"u": profile(a={"n": 2, "list": [1]}) | {"updated_at": NOW, "version": 9}} == written
        assert {"u": profile(a={"n": 1})} == stored


class TestConditions:
    """Every line was asked of MongoDB 6.0 too."""

    @pytest.mark.parametrize(
        ("fields", "path", "operator", "value", "expected"),
        [
            ({"a": 1}, "a", "eq", 1.0, True), ({"a": True}, "a", "eq", 1, False), ({"a": 1}, "a", "eq", True, False),
            ({"a": 2**53 + 1}, "a", "eq", float(2**53), False), ({"a": 2**53 + 1}, "a", "gt", float(2**53), True),
            ({"a": "1"}, "a", "eq", 1, False), ({"a": "b"}, "a", "gt", "a", True), ({"a": "b"}, "a", "gt", 1, False),
            ({"a": "\uffff"}, "a", "lt", "😀", True), ({"a": True}, "a", "gt", False, True), ({"a": 1}, "a", "gt", False, False),
            ({}, "a", "eq", None, True), ({"a": None}, "a", "eq", None, True), ({"a": 0}, "a", "eq", None, False),
            ({"a": [None]}, "a", "eq", None, True), ({"a": []}, "a", "eq", None, False), ({"a": []}, "a.b", "eq", None, False),
            ({"a": [1]}, "a.b", "eq", None, False), ({"a": 5}, "a.b", "eq", None, True), ({"a": [{"c": 1}]}, "a.b", "eq", None, True),
            ({}, "a", "gte", None, True), ({"a": 1}, "a", "gt", None, False), ({"a": None}, "a", "lt", None, False),
            ({"a": [1, 5]}, "a", "gt", 4, True), ({"a": [1, 5]}, "a", "lt", 2, True), ({"a": [[1]]}, "a", "eq", 1, False),
            ({"a": [{"b": 1}, {"b": 2}]}, "a.b", "eq", 2, True), ({"a": [[{"b": 1}]]}, "a.b", "eq", 1, False),
            ({"a": [[{"b": 1}]]}, "a.0.b", "eq", 1, True), ({"a": [{"b": 1}, {"b": 2}]}, "a.1.b", "eq", 2, True),
            ({"a": [{"b": 1}, {"b": 2}]}, "a.0.b", "eq", 2, False), ({"a": [7, 8]}, "a.1", "eq", 8, True),
            ({"a": [7, 8]}, "a.01", "eq", 8, False), ({"a": [[1]]}, "a.0", "eq", 1, False), ({"a": [[1]]}, "a.0.0", "eq", 1, True),
            ({"a": [{"0": 5}]}, "a.0", "eq", 5, True), ({"a": [{"0": 5}]}, "a.0.0", "eq", 5, True), ({"a": {"0": 5}}, "a.0", "eq", 5, True),
            ({"a": [[None]]}, "a.0", "eq", None, False), ({"a": [1]}, "a.1", "exists", True, False), ({"a": [[]]}, "a.0", "exists", True, True),
            ({"a": None}, "a", "exists", True, True), ({}, "a", "exists", False, True), ({"a": []}, "a", "exists", True, True),
            ({"a": [1]}, "a.b", "exists", False, True), ({"a": [{"b": 1}, 2]}, "a.b", "exists", False, False),
            ({"a": 2}, "a", "in", [1, 2.0], True), ({"a": [3, 1]}, "a", "in", [1], True), ({}, "a", "in", [None], True),
            ({"a": 1}, "a", "in", [], False), ({"a": 1}, "a", "in", [True, "1"], False), ({"a": {"b": 1}}, "a", "eq", 1, False),
        ],
    )  # fmt: skip
    def test_one(self, fields: dict[str, Any], path: str, operator: Any, value: Any, expected: bool) -> None:
        """A condition holds as it does in MongoDB."""
        assert expected is holds(profile() | fields, path, operator, value)

    def test_reserved_fields(self) -> None:
        """The reserved fields can be asked for, the times by datetimes."""
        document = profile()

        assert holds(document, "created_at", "gte", THEN)
        assert not holds(document, "created_at", "gt", THEN)
        assert holds(document, "version", "lt", 8)
        assert holds(document, "username", "in", ["x", "u"])
        assert not holds(document | {"a": THEN.isoformat()}, "a", "eq", THEN)

    def test_all_must_hold(self) -> None:
        """Every condition must hold; without one, every profile is found."""
        conditions = [Condition("a", "eq", 1), Condition("b", "eq", 2)]

        assert matcher(conditions)(profile(a=1, b=2))
        assert not matcher(conditions)(profile(a=1, b=3))
        assert matcher([])(profile())


class TestOrder:
    def test_types(self) -> None:
        """Values sort by type first; what has no order is all equal, and first."""
        ordered = [
            None,
            False,
            True,
            MIN_INT,
            -1.5,
            0,
            2**53,
            2**53 + 1,
            1e300,
            "",
            "A",
            "a",
            "\uffff",
            "😀",
            THEN,
            NOW,
        ]

        shuffled = Random(1).sample(ordered, len(ordered))

        assert ordered == sorted(shuffled, key=sort_key)
        assert sort_key(None) == sort_key([5]) == sort_key({"a": 1})
        assert sort_key(1) == sort_key(1.0) != sort_key(True)

    def test_equal_by_username(self) -> None:
        """What is equal comes by username ascending, also where the order is descending."""
        documents = [profile(name, n=n) for name, n in (("c", 1), ("a", 1), ("b", 2), ("d", None))]

        def names(*sort: tuple[str, bool]) -> str:
            return "".join(document["username"] for document in select(documents, ProfileQuery(sort=sort)))

        assert ["abcd", "dacb", "bacd"] == [names(), names(("n", False)), names(("n", True))]

    @given(
        values=st.lists(
            st.tuples(*[st.sampled_from([None, True, False, 0, 1, 1.0, -2.5, "", "a", "B", [1], {"x": 1}, "gone"])] * 2), max_size=12
        ),
        sort=st.lists(st.tuples(st.sampled_from(["a", "b.c", "version"]), st.booleans()), max_size=3, unique_by=lambda pair: pair[0]),
        size=st.integers(1, 5),
        seed=st.integers(0, 9),
    )  # fmt: skip
    def test_paging(
        self, values: list[tuple[Any, Any]], sort: list[tuple[str, bool]], size: int, seed: int
    ) -> None:
        """Page behind page, each from the last profile of the one before, gives every profile once, in order."""
        documents = [profile(f"u{number:02}", a=a, b={"c": c}) for number, (a, c) in enumerate(values)]
        for document in documents:
            if document["a"] == "gone":
                del document["a"]
        Random(seed).shuffle(documents)
        query = ProfileQuery(sort=sort, limit=size)
        found: list[dict[str, Any]] = []
        while page := select(documents, query):
            found += page
            last = page[-1]
            at = {"a": last.get("a"), "b.c": last["b"]["c"], "version": last["version"]}
            query = replace(query, after=([at[path] for path, _ in sort], last["username"]))

        assert select(documents, ProfileQuery(sort=sort)) == found


def test_contains() -> None:
    """The username and every text at the top level are searched, each by itself."""
    document = profile("IŞIK", name="Ali Veli", n=5, tags=["x"], deep={"text": "y"})

    assert contains(document, fold("ışık"))
    assert contains(document, fold("VELİ"))
    for keyword in ("5", "x", "y", "2026", fold("veliışık")):
        assert not contains(document, keyword)


def test_count() -> None:
    """Only what is exactly true, and a type that is text, counts."""
    documents = [
        profile(type="bot", is_active=True, autospam=True),
        profile(type="bot", is_active=1, autospam="true"),
        profile(type="user", is_active=True, autospam=True),
        profile(type=["bot"], is_active=False),
        profile(),
    ]
    stats = count(documents)

    assert (5, 2, {"bot": 2, "user": 1}, 1) == (stats.total, stats.active, stats.by_type, stats.autospam_bots)


def test_copies() -> None:
    """A copy shares no dict and no list."""
    document = profile(a={"b": [{"c": [1]}]})
    (copy,) = copies([document])
    copy["a"]["b"][0]["c"].append(2)

    assert profile(a={"b": [{"c": [1]}]}) == document

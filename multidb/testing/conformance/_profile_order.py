"""The profile suite's tests of order, limits, and paging."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from multidb.profiles.protocol import Condition, Patch, ProfileQuery
from multidb.testing.conformance._data import exact, together, unique
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
from multidb.testing.conformance._profile_rules import in_order, value_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multidb.profiles._records import Document
    from multidb.profiles.protocol import ProfileBackend

SORTS: Final[tuple[Sequence[tuple[str, bool]], ...]] = (
    (),
    (("a", False),),
    (("a", True),),
    (("a.b", False),),
    (("a.b", True),),
    (("n", False), ("a", True)),
    (("n", True), ("a", False)),
    (("a", False), ("n", False)),
    (("username", True),),
    (("n", False), ("username", True)),
    (("created_at", False), ("a", True)),
    (("updated_at", True), ("version", False)),
    (("version", True), ("n", True)),
    (("nowhere", True),),
    (("a", True), ("n", False), ("a.b", True)),
)


class OrderTests(ProfileSuite):
    """Order, limits, and paging."""

    async def mixed(self, backend: ProfileBackend, tag: str) -> list[Document]:
        """Store profiles whose fields are of every type, with many ties; return them."""
        values: tuple[Any, ...] = (
            None, True, False, 0, 1, 1.0, 1.5, -1, 2**53, 2**53 + 1, float(2**53), "", "a", "A", "b",
            "\uffff", "😀", "é", "ı",
            {"b": 1}, {"b": "x"}, {"b": None}, {"b": True}, {"b": 2.5}, [], {}, [1], [2], "a", "a", 1, True,
        )  # fmt: skip
        rows: list[dict[str, Any]] = [{"a": value, "n": place % 3} for place, value in enumerate(values)]
        rows += [{}, {"n": 1}, {"n": 1.0}, {"n": "1"}, {"a": 1}]
        tails = ("", "a", "B", "b", "é", "_", "\uffff", "😀", " ", "-")
        stored = []
        for place, row in enumerate(rows):
            name, at = f"{unique('p')}{tails[place % len(tails)]}", NOON + timedelta(microseconds=place % 4)
            stored.append(document(name, {"tag": tag, **row}, created=at))
            await backend.apply([Patch(name, at, set={"tag": tag, **row}, upsert=True)])
        for each in stored[::5]:
            await backend.apply([Patch(each["username"], LATER, set={"tag": tag})])
            each |= {"updated_at": LATER, "version": 2}
        return stored

    async def test_sort(self, backend: ProfileBackend) -> None:
        """Values sort by type, then by value; what is equal sorts by username, ascending."""
        tag = unique("t")
        stored = await self.mixed(backend, tag)
        of_tag = [Condition("tag", "eq", tag)]
        found = await together(backend.find(ProfileQuery(of_tag, sort, limit=1000)) for sort in SORTS)

        assert labelled(SORTS, (names(in_order(stored, sort)) for sort in SORTS)) == labelled(
            SORTS, map(names, found)
        )

    async def test_limit(self, backend: ProfileBackend) -> None:
        """A query returns the first profiles up to its limit."""
        tag = unique("t")
        stored = await self.mixed(backend, tag)
        sort = [("a", True)]
        found = await backend.find(ProfileQuery([Condition("tag", "eq", tag)], sort, limit=7))

        assert exact(in_order(stored, sort)[:7]) == exact(found)

    @pytest.mark.parametrize("limit", [1, 4, 17])
    async def test_paging(self, backend: ProfileBackend, limit: int) -> None:
        """Page by page, behind the last of the page before, nothing is skipped and nothing comes twice."""
        tag = unique("t")
        stored = await self.mixed(backend, tag)
        found = await together(self.pages(backend, tag, sort, limit, len(stored)) for sort in SORTS)

        assert labelled(SORTS, (names(in_order(stored, sort)) for sort in SORTS)) == labelled(SORTS, found)

    async def pages(
        self, backend: ProfileBackend, tag: str, sort: Sequence[tuple[str, bool]], limit: int, most: int
    ) -> list[str]:
        """Return the usernames of all pages."""
        found: list[Document] = []
        after = None
        while len(found) <= most:
            page = await backend.find(ProfileQuery([Condition("tag", "eq", tag)], sort, after, limit))
            if not page:
                break
            found += page
            after = ([value_at(page[-1], path) for path, _ in sort], page[-1]["username"])
        return names(found)

    async def test_after_what_is_not_there(self, backend: ProfileBackend) -> None:
        """The profile to continue behind need not be there any more."""
        tag = unique("t")
        users = sorted(user() for _ in range(6))
        await create_all(backend, {name: {"tag": tag, "n": place // 2} for place, name in enumerate(users)})
        await backend.delete(users[2:3])
        query = ProfileQuery([Condition("tag", "eq", tag)], [("n", False)], ([1], users[2]))

        assert users[3:] == names(await backend.find(query))

    async def test_paging_while_others_write(self, backend: ProfileBackend) -> None:
        """While others create profiles, paging skips none that was there, and repeats none."""
        tag = unique("t")
        users = [user() for _ in range(30)]
        await create_all(backend, {name: {"tag": tag, "n": place % 4} for place, name in enumerate(users)})
        found: list[Document] = []
        after = None
        for _ in range(100):
            query = ProfileQuery([Condition("tag", "eq", tag)], [("n", True)], after, 4)
            late = {user(): {"tag": tag, "n": number} for number in (0, 3, 9)}
            page, _none = await together([backend.find(query), create_all(backend, late)])
            assert page is not None
            found += page
            after = ([found[-1]["n"]], found[-1]["username"])
            if len(set(names(found)) & set(users)) == len(users):
                break

        assert len(set(names(found))) == len(found)
        assert set(users) <= set(names(found))

"""The profile store suite's tests of calls that are made at the same time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from multidb.errors import ConflictError
from multidb.testing.conformance._data import exact, together, unique
from multidb.testing.conformance._stores_base import StoreSuite
from multidb.testing.conformance._stores_profiles_writing import fields

if TYPE_CHECKING:
    from multidb.profiles import ProfileStore


class TogetherTests(StoreSuite):
    """Calls that are made at the same time: each is as if it had been alone."""

    async def test_each_its_own_result(self, store: ProfileStore) -> None:
        """What is written, what is not there and what is in conflict is told to who asked, and to nobody else."""
        names = [unique() for _ in range(60)]
        await together(store.create_or_update_profile(name, {"a": {}, "n": 5}) for name in names[::2])
        calls: list[Any] = []
        for number, name in enumerate(names):
            calls += [
                store.update_profile_field(name, "a.b", number),
                store.increment_profile_field(name, "n", number),
                store.update_profile_field(name, "n.x", 1),
                store.remove_profile_field(name, "unknown"),
            ]
        results = await asyncio.gather(*calls, return_exceptions=True)
        for number, name in enumerate(names):
            set_, added, conflict, removed = results[4 * number : 4 * number + 4]
            there = number % 2 == 0

            assert exact((there, 5 + number if there else None, False)) == exact((set_, added, removed))
            assert isinstance(conflict, ConflictError) if there else conflict is False
            expected = {"a": {"b": number}, "n": 5 + number} if there else None
            found = await store.get_profile_by_username(name)
            assert expected == (fields(found) if found else None)

    async def test_order(self, store: ProfileStore) -> None:
        """Calls for one profile are applied in the order in which they were made."""
        names = [unique() for _ in range(8)]
        calls: list[Any] = []
        for number in range(8):
            for name in names:
                calls += [
                    store.create_or_update_profile(name, {"a": {"first": number}, "gone": 1}),
                    store.update_profile_field(name, "a.second", number),
                    store.remove_profile_field(name, "gone"),
                    store.increment_profile_field(name, "a.first", 10),
                    *([store.delete_profile(name)] if number == 5 else []),
                    store.update_profile_fields(name, {f"f{number}": number}),
                ]
        results = await together(calls)

        assert 8 == results.count(True) - 8 * (3 * 8 - 1)
        for name in names:
            found = await store.get_profile_by_username(name)
            assert found is not None
            assert {"a": {"first": 17, "second": 7}, "f6": 6, "f7": 7} == fields(found)
            assert 10 == found["version"]

    async def test_own_documents(self, store: ProfileStore) -> None:
        """Of many who ask for the same profile each has a document that he may change."""
        name, absent = unique(), unique()
        await store.create_or_update_profile(name, {"a": {"b": [{}]}})
        asked = [name, absent, name, name] * 10
        found = await together(store.get_profile_by_username(each) for each in asked)
        for each, document in zip(asked, found, strict=True):
            if each == absent:
                assert document is None
                continue
            assert document is not None
            assert {"a": {"b": [{}]}} == fields(document)
            document["a"]["b"][0]["spoilt"] = True
            document["a"]["b"].append(1)
            document["a"]["spoilt"] = True
        assert {"a": {"b": [{}]}} == fields(await store.get_profile_by_username(name))

    async def test_returned_documents(self, store: ProfileStore) -> None:
        """What one writer gets back another cannot change, and each has at least his own write in it."""
        name = unique()
        documents = await together(store.create_or_update_profile(name, {f"f{n}": [n]}) for n in range(30))
        for number, document in enumerate(documents):
            assert [number] == document[f"f{number}"]
            for n in range(30):
                document.get(f"f{n}", []).append("spoilt")
        found = await store.get_profile_by_username(name)

        assert {f"f{n}": [n] for n in range(30)} == fields(found)
        assert sorted(document["version"] for document in documents) == list(range(1, 31))

    async def test_cancelled(self, store: ProfileStore) -> None:
        """Who is cancelled takes nobody along, and leaves all of his write or nothing."""
        names = [unique() for _ in range(40)]
        await together(store.create_or_update_profile(name, {"n": 0}) for name in names)
        tasks = [asyncio.ensure_future(store.increment_profile_field(name, "n")) for name in names]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        numbers = [(await store.increment_profile_field(name, "n", 0)) for name in names]

        for place, (result, number) in enumerate(zip(results, numbers, strict=True)):
            if place % 3 == 0 and isinstance(result, asyncio.CancelledError):
                assert number in {0, 1}
            else:
                assert (1, 1) == (result, number)

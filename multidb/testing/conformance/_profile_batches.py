"""The profile suite's tests of batches: the calls of many, which share what they can, and no more."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multidb._core.values import MAX_INT, MIN_INT
from multidb.profiles.protocol import Applied, Patch
from multidb.testing.conformance._data import exact, round_trips, together
from multidb.testing.conformance._profile_data import (
    CONFLICT,
    LATER,
    NOON,
    TOO_LARGE,
    ProfileSuite,
    apply,
    brief_outcome,
    create,
    create_all,
    document,
    fields_of,
    outcome,
    told,
    user,
)
from multidb.testing.conformance._profile_keep import spoil
from multidb.testing.conformance._profile_many import any_patch
from multidb.testing.conformance._profile_rules import RefusedError, patched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multidb.profiles._records import Document
    from multidb.profiles.protocol import Outcome, ProfileBackend


def brief(patch: Patch) -> Patch:
    """Return *patch* for a caller who does not want to see the profile."""
    return replace(patch, wants_document=False)


class BatchTests(ProfileSuite):
    """Each patch of a batch has its own outcome, as if it had been alone."""

    async def test_outcomes(self, backend: ProfileBackend) -> None:
        """What is written, what is not there, what is in conflict and what changes nothing are told apart."""
        users = [user() for _ in range(12)]
        await create_all(backend, {name: {"a": 1, "d": {"x": 1}} for name in users[::2]})
        kinds: list[dict[str, Any]] = [
            {"set": {"a": 2}},
            {"set": {"a": 2}},
            {"set": {"a.b": 2}},
            {"set": {"d.x": 2}, "upsert": True},
            {"set": {"d.x": 2}},
            {"remove": ["x"]},
            {"remove": ["x", "d.y"]},
            {"remove": ["a"]},
            {"set": {"a": 3}, "expected_version": 1},
            {"set": {"a": 3}, "expected_version": 1},
            {"set": {"a": 3}, "expected_version": 2, "upsert": True},
            {"set": {"a": 3}, "expected_version": 0, "upsert": True},
        ]
        patches = [Patch(name, LATER, **kind) for name, kind in zip(users, kinds, strict=True)]
        expected = [True, False, CONFLICT, True, True, False, False, False, True, CONFLICT, CONFLICT, True]

        assert expected == brief_outcome(await backend.apply([brief(patch) for patch in patches]))
        versions = {name: each["version"] for name, each in (await backend.get(users)).items()}
        assert [2, None, 1, 1, 2, None, 1, None, 2, None, 1, 1] == [versions.get(name) for name in users]

    async def test_documents_in_a_batch(self, backend: ProfileBackend) -> None:
        """Who wants to see the profile sees it, whether it was written or not; each sees one of his own."""
        users = [user() for _ in range(8)]
        await create_all(backend, {name: {"a": {"b": [1]}} for name in users[:6]})
        patches = [
            Patch(users[0], LATER, set={"a.c": 1}),
            Patch(users[1], LATER, remove=["a.b"]),
            Patch(users[2], LATER, remove=["x"]),
            Patch(users[3], LATER, set={"z": {}}, replace=True, upsert=True),
            Patch(users[4], LATER, set={"a.b.c": 1}),
            Patch(users[5], LATER, set={"a.c": 1}, increment={"n": 2}),
            Patch(users[6], NOON, set={"a": 1}, upsert=True),
            Patch(users[7], LATER, set={"a": 1}),
        ]
        expected = [
            (exact(document(users[0], {"a": {"b": [1], "c": 1}}, version=2, updated=LATER)), True),
            (exact(document(users[1], {"a": {}}, version=2, updated=LATER)), True),
            (exact(document(users[2], {"a": {"b": [1]}})), False),
            (exact(document(users[3], {"z": {}}, version=2, updated=LATER)), True),
            CONFLICT,
            (exact(document(users[5], {"a": {"b": [1], "c": 1}, "n": 2}, version=2, updated=LATER)), True),
            (exact(document(users[6], {"a": 1})), True),
            (exact(None), False),
        ]
        results = await backend.apply(patches)

        assert expected == outcome(results)
        for each in results:
            if isinstance(each, Applied) and each.document is not None:
                spoil(each.document)
        assert exact({"a": {"b": [1], "c": 1}}) == await fields_of(backend, users[0])
        assert exact({"a": {"b": [1], "c": 1}, "n": 2}) == await fields_of(backend, users[5])

    async def test_too_large_in_a_batch(self, backend: ProfileBackend) -> None:
        """A patch that makes a profile too large is refused alone; its neighbours are written."""
        large, others = user(), [user() for _ in range(4)]
        await create_all(backend, {large: {"f": ["x" * 9_000_000]}, **{name: {} for name in others}})
        patch = brief(Patch(large, LATER, set={"g": ["x" * 9_000_000]}))
        if TOO_LARGE != await apply(backend, patch):
            pytest.skip("this backend keeps documents of any size")
        patches = [brief(Patch(name, LATER, set={"a": 1})) for name in others]
        patches[2:2] = [
            brief(Patch(large, LATER, set={"h": 1})),
            patch,
            brief(Patch(large, LATER, set={"i": 1})),
        ]

        assert [True, True, True, TOO_LARGE, True, True, True] == brief_outcome(await backend.apply(patches))
        found = await backend.get([large, *others])
        assert [3, 2, 2, 2, 2] == [found[name]["version"] for name in (large, *others)]
        assert {"f", "h", "i"} == {field for field in found[large] if len(field) == 1}

    async def test_order_in_a_batch(self, backend: ProfileBackend) -> None:
        """Patches of one profile are applied in their order, whatever stands between them."""
        one, two, absent = await create(backend, user()), await create(backend, user()), user()
        patches = [
            Patch(one, NOON, set={"a": 1, "b": 1}),
            Patch(two, NOON, set={"a": 1}),
            Patch(absent, NOON, set={"a": 1}),
            Patch(one, NOON, remove=["a"]),
            Patch(one, NOON, remove=["a"]),
            Patch(absent, NOON, set={"a": 2}, upsert=True),
            Patch(two, NOON, set={"a.b": 1}),
            Patch(one, NOON, set={"a": {}}),
            Patch(two, NOON, remove=["a"]),
            Patch(one, NOON, set={"a.c": 3}),
            Patch(two, NOON, set={"a.b": 2}),
            Patch(absent, NOON, set={"a": 3}, expected_version=1),
            Patch(absent, NOON, set={"a": 4}, expected_version=1),
            Patch(one, LATER, set={"b": 2}),
        ]
        expected = [
            True,
            True,
            False,
            True,
            False,
            True,
            CONFLICT,
            True,
            True,
            True,
            True,
            True,
            CONFLICT,
            True,
        ]

        assert expected == brief_outcome(await backend.apply([brief(patch) for patch in patches]))
        assert {
            one: exact(document(one, {"a": {"c": 3}, "b": 2}, version=6, updated=LATER)),
            two: exact(document(two, {"a": {"b": 2}}, version=4)),
            absent: exact(document(absent, {"a": 3}, version=2)),
        } == {name: exact(found) for name, found in (await backend.get([one, two, absent])).items()}

    async def test_increments_in_a_batch(self, backend: ProfileBackend) -> None:
        """Increments of one profile in a batch each return the number that they made."""
        names = [await create(backend, user(), {"n": 5}) for _ in range(6)]
        amounts: dict[str, list[float]] = {
            names[0]: [1] * 9,
            names[1]: [-1, -2],
            names[2]: [1, -1, 3],
            names[3]: [0.5, 2],
            names[4]: [7],
        }
        patches = [
            Patch(name, NOON, increment={"n": each}) for name, some in amounts.items() for each in some
        ]
        Random(7).shuffle(patches)
        absent = user()
        patches += [Patch(absent, NOON, increment={"n": 1}), Patch(absent, NOON, increment={"n": 1})]
        patches += [Patch(names[5], NOON, increment={"n.m": 1}), Patch(names[5], NOON, increment={"m.n": 1})]
        results = await backend.apply(patches)
        numbers: dict[str, Any] = dict.fromkeys(names, 5)
        for patch, result in zip(patches[:-4], results[:-4], strict=True):
            numbers[patch.username] += patch.increment["n"]

            assert isinstance(result, Applied)
            assert result.document is not None
            assert exact(numbers[patch.username]) == exact(result.document["n"])
        assert [False, False, CONFLICT, True] == brief_outcome(results[-4:])
        found = await backend.get(names)
        assert [exact(numbers[name]) for name in names] == [exact(found[name]["n"]) for name in names]
        assert [10, 3, 4, 3, 2, 2] == [found[name]["version"] for name in names]

    async def test_increments_that_do_not_fit(self, backend: ProfileBackend) -> None:
        """Of increments of one profile those that leave 64 bits are conflicts, not those before and behind them."""
        top = await create(backend, user(), {"n": MAX_INT - 2})
        bottom = await create(backend, user(), {"n": MIN_INT + 1})
        patches = [Patch(top, NOON, increment={"n": amount}) for amount in (1, 2, 1, 1, MAX_INT, MAX_INT, -1)]
        patches += [Patch(bottom, NOON, increment={"n": -1}) for _ in range(2)]
        patches += [Patch(bottom, NOON, increment={path: 1}) for path in ("n.m", "m.n", "m", "m.n.o", "m.n")]

        expected = [True, CONFLICT, True, CONFLICT, CONFLICT, CONFLICT, True]
        expected += [True, CONFLICT, CONFLICT, True, CONFLICT, CONFLICT, True]

        assert expected == brief_outcome(await backend.apply(patches))
        assert exact({"n": MAX_INT - 1}) == await fields_of(backend, top)
        assert exact({"n": MIN_INT, "m": {"n": 2}}) == await fields_of(backend, bottom)

    async def test_many_that_are_not_there(self, backend: ProfileBackend) -> None:
        """A batch of patches for profiles that do not exist creates none."""
        users = [user() for _ in range(100)]
        patches = [brief(Patch(name, NOON, set={"a": 1})) for name in users]

        assert [False] * 100 == brief_outcome(await backend.apply(patches))
        assert {} == await backend.get(users)
        assert [False] * 100 == brief_outcome(
            await backend.apply([replace(patch, set={}, increment={"n": 1}) for patch in patches])
        )
        assert {} == await backend.get(users)

    @round_trips
    @given(data=st.data())
    async def test_any_batch(self, backend: ProfileBackend, data: st.DataObject) -> None:
        """Whatever patches of a few profiles come together, each does what it would do alone, in its turn."""
        users = [user() for _ in range(4)]
        states: dict[str, Document | None] = dict.fromkeys(users)
        chosen = data.draw(st.lists(st.sampled_from(users), max_size=12))
        patches = [
            replace(data.draw(any_patch(name)), wants_document=data.draw(st.booleans())) for name in chosen
        ]
        expected: list[Any] = []
        for patch in patches:
            try:
                states[patch.username], changed = patched(states[patch.username], patch)
            except RefusedError:
                expected.append(CONFLICT)
            else:
                expected.append((exact(states[patch.username]) if patch.wants_document else None, changed))
        cut = data.draw(st.integers(0, len(patches)))
        results = [*await backend.apply(patches[:cut]), *await backend.apply(patches[cut:])]
        seen = [
            each if isinstance(each, str) or patch.wants_document else (None, each[1])
            for patch, each in zip(patches, outcome(results), strict=True)
        ]

        assert expected == seen
        found = await backend.get(users)
        assert {name: exact(state) for name, state in states.items()} == {
            name: exact(found.get(name)) for name in users
        }


class BatchRaceTests(ProfileSuite):
    """Batches of two connections for the same profiles at the same time."""

    async def test_everything_adds_up(self, backend: ProfileBackend) -> None:
        """What each was told and what is there in the end agree, whoever came first."""
        second = await self._racing()
        random = Random(23)
        users = [user() for _ in range(5)]
        await create_all(backend, {name: {"n": 0, "text": "x"} for name in users})
        batches = [[_any_of(random, users, number) for _ in range(24)] for number in range(24)]

        async def in_turn(place: int) -> list[Sequence[Outcome]]:
            return [await (backend, second)[place % 2].apply(batch) for batch in batches[place::4]]

        # No more at once than a pool of connections serves in time on a slow machine.
        results = await together(in_turn(place) for place in range(4))
        told_of = [
            (patch, told(each))
            for place in range(4)
            for batch, outcomes in zip(batches[place::4], results[place], strict=True)
            for patch, each in zip(batch, outcomes, strict=True)
        ]
        versions, sums, numbers = Counter(users), Counter[str](), []
        for patch, each in told_of:
            if isinstance(each, Applied) and each.changed:
                versions[patch.username] += 1
                if patch.increment:
                    assert each.document is not None
                    sums[patch.username] += 1
                    numbers.append((patch.username, each.document["n"]))
            elif isinstance(each, Applied):
                assert patch.remove
            else:
                assert patch.expected_version is not None or "text.x" in patch.set
        found = await backend.get(users)

        assert dict(versions) == {name: found[name]["version"] for name in users}
        assert {name: sums[name] for name in users} == {name: found[name]["n"] for name in users}
        assert sorted((name, n + 1) for name in users for n in range(sums[name])) == sorted(numbers)

    async def test_one_creates(self, backend: ProfileBackend) -> None:
        """Of batches that all want to create the same profiles, and to find none there, one creates each."""
        second = await self._racing()
        users = [user() for _ in range(20)]
        batches = [
            [Patch(name, NOON, set={"by": number}, upsert=True, expected_version=0) for name in users]
            for number in range(6)
        ]
        results = await together(
            (backend if number % 2 else second).apply(batch) for number, batch in enumerate(batches)
        )
        found = await backend.get(users)

        for place, name in enumerate(users):
            winners = [n for n, outcomes in enumerate(results) if isinstance(outcomes[place], Applied)]
            assert [found[name]["by"]] == winners
            assert 1 == found[name]["version"]

    async def _racing(self) -> ProfileBackend:
        if not self.concurrent_instances:
            pytest.skip("concurrent_instances is not set")
        return await self.another()


def _any_of(random: Random, users: list[str], number: int) -> Patch:
    """Return a patch that others get in the way of."""
    name = random.choice(users)
    kind = random.randrange(6)
    if kind == 0:
        return Patch(name, NOON, increment={"n": 1})
    if kind == 1:
        return Patch(
            name, NOON, set={f"f{number}": 1}, expected_version=random.randrange(1, 40), wants_document=False
        )
    if kind == 2:
        return Patch(name, NOON, set={"text.x": 1}, wants_document=False)
    if kind == 3:
        return Patch(name, NOON, remove=[f"f{number}"], wants_document=False)
    return Patch(
        name, NOON, set={f"f{number}": random.random()}, wants_document=random.random() < 0.5, upsert=True
    )

"""The profile suite's tests of many patches: at once, in batches, and one after the other."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Final

from hypothesis import given
from hypothesis import strategies as st

from multidb._core.values import MAX_INT
from multidb.profiles.protocol import Applied, Patch
from multidb.testing.conformance._data import cancelled_midway, exact, nested, round_trips, together
from multidb.testing.conformance._profile_data import (
    CONFLICT,
    LATER,
    NOON,
    ProfileSuite,
    apply,
    create,
    document,
    fields_of,
    outcome,
    user,
)
from multidb.testing.conformance._profile_rules import RefusedError, patched

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from multidb.profiles._records import Document
    from multidb.profiles.protocol import ProfileBackend

PATHS: Final = ("a", "b", "a.x", "a.0", "b.x", "b.x.y", "c.x.y.z")
VALUES: Final[tuple[Any, ...]] = (
    0,
    1,
    2.5,
    MAX_INT,
    "text",
    True,
    None,
    [],
    [1],
    {},
    {"x": 1},
    {"x": {"y": 1.5}},
    nested(5),
)


def apart(paths: list[str]) -> list[str]:
    """Return those of *paths* of which none leads through another, as a store lets them through."""
    kept: list[str] = []
    for path in paths:
        if not any(
            f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.") for other in kept
        ):
            kept.append(path)
    return kept


@st.composite
def any_patch(draw: st.DrawFn, username: str) -> Patch:
    """Return any patch that leads to a place that others lead to, too."""
    upsert = draw(st.booleans())
    at = draw(st.sampled_from([NOON, LATER]))
    expected = draw(st.none() | st.none() | st.integers(0, 4))
    if draw(st.integers(0, 5)) == 0:
        fields = draw(st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(VALUES), max_size=2))
        return Patch(username, at, set=fields, replace=True, upsert=upsert, expected_version=expected)
    paths = apart(draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=4, unique=True)))
    uses = [(path, draw(st.sampled_from(["set", "set", "increment", "remove"]))) for path in paths]
    return Patch(
        username,
        at,
        set={path: draw(_values()) for path, use in uses if use == "set"},
        increment={path: draw(st.sampled_from([1, -1, 2, 0.5])) for path, use in uses if use == "increment"},
        remove=[path for path, use in uses if use == "remove"],
        # What only removes creates nothing worth having: whether it does is not said.
        upsert=upsert and any(use != "remove" for _, use in uses),
        expected_version=expected,
    )


def _values() -> SearchStrategy[Any]:
    return st.sampled_from(VALUES)


class ManyPatchesTests(ProfileSuite):
    """Patches of many callers at once."""

    async def test_different_fields(self, backend: ProfileBackend) -> None:
        """Of fifty who set different fields of one profile at once all win, and each is a version."""
        name = await create(backend, user(), {"there": True})
        results = await together(
            backend.apply([Patch(name, NOON, set={f"f{number}": number}, upsert=True)])
            for number in range(50)
        )
        fields = {"there": True, **{f"f{number}": number for number in range(50)}}
        versions = [
            each.document["version"] for (each,) in results if isinstance(each, Applied) and each.document
        ]

        assert exact(document(name, fields, version=51)) == exact((await backend.get([name]))[name])
        assert list(range(2, 52)) == sorted(versions)

    async def test_increments(self, backend: ProfileBackend) -> None:
        """Fifty increments at once add up, and each returns a value of its own."""
        name = await create(backend, user())
        results = await together(backend.apply([Patch(name, NOON, increment={"n": 1})]) for _ in range(50))
        values = [each.document["n"] for (each,) in results if isinstance(each, Applied) and each.document]

        assert exact({"n": 50}) == await fields_of(backend, name)
        assert list(range(1, 51)) == sorted(values)

    async def test_upserts(self, backend: ProfileBackend) -> None:
        """Of many upserts of one name at once one creates the profile, and the others go on from there."""
        name = user()
        await together(
            backend.apply([Patch(name, NOON, set={f"f{number}": 1}, increment={"n": 1}, upsert=True)])
            for number in range(20)
        )
        expected = document(name, {"n": 20, **{f"f{number}": 1 for number in range(20)}}, version=20)

        assert exact(expected) == exact((await backend.get([name]))[name])

    async def test_race_to_create(self, backend: ProfileBackend) -> None:
        """Of many who want to create a profile, and to find none there, one does."""
        name = user()
        patches = [Patch(name, NOON, set={"by": n}, upsert=True, expected_version=0) for n in range(20)]
        results = await together(apply(backend, patch) for patch in patches)

        assert 19 == results.count(CONFLICT)
        (winner,) = [number for number, result in enumerate(results) if result != CONFLICT]
        assert exact(document(name, {"by": winner})) == exact((await backend.get([name]))[name])

    async def test_race_for_a_version(self, backend: ProfileBackend) -> None:
        """Of many who go on from the same version one does."""
        name = await create(backend, user())
        patches = [Patch(name, NOON, set={"by": number}, expected_version=1) for number in range(20)]
        results = await together(apply(backend, patch) for patch in patches)

        assert 19 == results.count(CONFLICT)
        (winner,) = [number for number, result in enumerate(results) if result != CONFLICT]
        assert exact(document(name, {"by": winner}, version=2)) == exact((await backend.get([name]))[name])

    async def test_batches_in_other_orders(self, backend: ProfileBackend) -> None:
        """Batches for the same profiles in other orders do not block each other."""
        users = [user() for _ in range(20)]
        patches = [Patch(name, NOON, increment={"n": 1}, upsert=True) for name in users]
        await together(backend.apply(each) for each in [patches, patches[::-1]] * 3)

        assert {name: exact(document(name, {"n": 6}, version=6)) for name in users} == {
            name: exact(found) for name, found in (await backend.get(users)).items()
        }

    async def test_large_batch(self, backend: ProfileBackend) -> None:
        """A batch may be of 1,000 patches of as many profiles."""
        users = [user() for _ in range(1000)]
        results = await backend.apply(
            [Patch(name, NOON, set={"n": n}, upsert=True) for n, name in enumerate(users)]
        )
        expected = [exact(document(name, {"n": number})) for number, name in enumerate(users)]
        found = await backend.get(users)

        assert [(each, True) for each in expected] == outcome(results)
        assert expected == [exact(found[name]) for name in users]

    async def test_many_patches_of_one_profile(self, backend: ProfileBackend) -> None:
        """A batch may hold many patches of one profile."""
        name = user()
        patches = [
            Patch(name, NOON, set={f"f{n % 7}": n}, increment={"n": 1}, upsert=True) for n in range(100)
        ]
        await backend.apply(patches)
        expected = {"n": 100, **{f"f{number % 7}": number for number in range(93, 100)}}

        assert exact(document(name, expected, version=100)) == exact((await backend.get([name]))[name])

    async def test_cancelled_patches(self, backend: ProfileBackend) -> None:
        """A patch that is cancelled midway counts once or not at all, and takes no other along."""
        random = Random(19)
        name, other = await create(backend, user()), user()
        calls = [backend.apply([Patch(name, NOON, increment={"n": 1})]) for _ in range(30)]
        kept = [backend.apply([Patch(other, NOON, increment={"n": 1}, upsert=True)]) for _ in range(20)]
        await together([cancelled_midway(calls, [random.randrange(20) for _ in calls]), *kept])
        after = await backend.apply([Patch(name, NOON, increment={"n": 1})])
        (last,) = [each.document for each in after if isinstance(each, Applied) and each.document]

        assert exact({"n": 20}) == await fields_of(backend, other)
        assert 1 <= last["n"] <= 31
        assert last["n"] + 1 == last["version"]

    @round_trips
    @given(data=st.data())
    async def test_any_patches(self, backend: ProfileBackend, data: st.DataObject) -> None:
        """Whatever patches come one after the other, each does what the contract says."""
        name = user()
        state: Document | None = None
        patches = data.draw(st.lists(any_patch(name), max_size=8))
        expected: list[Any] = []
        for patch in patches:
            try:
                state, changed = patched(state, patch)
            except RefusedError:
                expected.append(CONFLICT)
            else:
                expected.append((exact(state), changed))
        cut = data.draw(st.integers(0, len(patches)))
        results = [*await backend.apply(patches[:cut]), *await backend.apply(patches[cut:])]

        assert expected == outcome(results)
        assert exact(state) == exact((await backend.get([name])).get(name))

"""The profile suite's tests of patches that are conflicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from multidb._core.values import MAX_INT, MIN_INT
from multidb.profiles.protocol import Patch
from multidb.testing.conformance._data import exact
from multidb.testing.conformance._profile_data import (
    CONFLICT,
    LATER,
    NOON,
    ProfileSuite,
    apply,
    brief_outcome,
    create,
    document,
    outcome,
    user,
)

if TYPE_CHECKING:
    from multidb.profiles.protocol import ProfileBackend

NOT_DICTS: Final[tuple[Any, ...]] = (1, 1.5, True, "text", "", None, [], [1], [{"x": 1}], [[]])
"""What no path leads through."""


class ConflictTests(ProfileSuite):
    """A conflict leaves its profile alone, and the other patches too."""

    @pytest.mark.parametrize("wrong", NOT_DICTS, ids=repr)
    async def test_path_through_no_dict(self, backend: ProfileBackend, wrong: Any) -> None:
        """A path that leads through what is no dict, or into it, is a conflict, whatever is done there."""
        fields = {"a": wrong, "b": {"c": wrong}, "n": 1}
        name = await create(backend, user(), fields)
        patches = [
            Patch(name, LATER, set={"a.x": 1}),
            Patch(name, LATER, set={"a.x.y": 1}),
            Patch(name, LATER, set={"a.0": 1}),
            Patch(name, LATER, set={"a.0.x": 1}),
            Patch(name, LATER, set={"b.c.x": 1, "n": 2}),
            Patch(name, LATER, increment={"a.x": 1}),
            Patch(name, LATER, increment={"n": 1, "b.c.0": 1}),
            Patch(name, LATER, remove=["a.x"]),
            Patch(name, LATER, remove=["n", "b.c.0"]),
        ]

        assert [CONFLICT] * len(patches) == outcome(await backend.apply(patches))
        assert exact(document(name, fields)) == exact((await backend.get([name]))[name])

    @pytest.mark.parametrize("wrong", ["1", "", True, False, None, [1], {}, {"x": 1}], ids=repr)
    async def test_increment_of_no_number(self, backend: ProfileBackend, wrong: Any) -> None:
        """An increment of what is no number is a conflict; a bool is none."""
        name = await create(backend, user(), {"a": wrong, "b": {"c": wrong}, "n": 1})
        patches = [
            Patch(name, LATER, increment={"a": 1}),
            Patch(name, LATER, increment={"a": 1.5}),
            Patch(name, LATER, increment={"n": 1, "b.c": 1}, set={"x": 1}),
        ]

        assert [CONFLICT] * 3 == outcome(await backend.apply(patches))
        assert exact(document(name, {"a": wrong, "b": {"c": wrong}, "n": 1})) == exact(
            (await backend.get([name]))[name]
        )

    async def test_increment_beyond_64_bits(self, backend: ProfileBackend) -> None:
        """An int that would leave 64 bits is a conflict: it neither wraps around nor becomes a float."""
        name = await create(backend, user(), {"top": MAX_INT, "bottom": MIN_INT, "n": 0})
        patches = [
            Patch(name, LATER, increment={"top": 1}),
            Patch(name, LATER, increment={"bottom": -1}),
            Patch(name, LATER, increment={"top": MAX_INT}),
            Patch(name, LATER, increment={"bottom": MIN_INT}),
            Patch(name, LATER, increment={"n": 1, "top": 1}),
        ]

        assert [CONFLICT] * 5 == outcome(await backend.apply(patches))
        expected = document(name, {"top": MAX_INT, "bottom": MIN_INT, "n": 0})
        assert exact(expected) == exact((await backend.get([name]))[name])

    async def test_increment_beyond_finite(self, backend: ProfileBackend) -> None:
        """A float that would become infinite is a conflict, too."""
        name = await create(backend, user(), {"f": 1.7e308})

        assert CONFLICT == await apply(backend, Patch(name, LATER, increment={"f": 1.7e308}))
        assert exact(document(name, {"f": 1.7e308})) == exact((await backend.get([name]))[name])

    async def test_conflict_is_its_own(self, backend: ProfileBackend) -> None:
        """A conflict keeps no other patch of its batch out, be it of the same profile or of another."""
        one, two = await create(backend, user(), {"a": "text"}), user()
        results = await backend.apply(
            [
                Patch(one, NOON, set={"b": 1}),
                Patch(one, NOON, increment={"a": 1}),
                Patch(two, NOON, set={"a": 1}, upsert=True),
                Patch(two, NOON, set={"a.b": 1}),
                Patch(one, NOON, set={"c": 1}),
                Patch(two, NOON, set={"c": 1}, expected_version=7),
            ]
        )

        assert [True, CONFLICT, True, CONFLICT, True, CONFLICT] == brief_outcome(results)
        assert exact(document(one, {"a": "text", "b": 1, "c": 1}, version=3)) == exact(
            (await backend.get([one]))[one]
        )
        assert exact(document(two, {"a": 1})) == exact((await backend.get([two]))[two])

    async def test_no_half_patch(self, backend: ProfileBackend) -> None:
        """Of a patch that is a conflict nothing is written, not even a profile."""
        name = await create(backend, user(), {"z": "text"})
        absent = user()
        patches = [
            Patch(name, LATER, set={"a": 1, "b.c": 2}, remove=["z"], increment={"n": 1}, expected_version=5),
            Patch(absent, LATER, set={"a": 1}, upsert=True, expected_version=5),
        ]

        assert [CONFLICT, CONFLICT] == outcome(await backend.apply(patches))
        assert exact(document(name, {"z": "text"})) == exact((await backend.get([name]))[name])
        assert {} == await backend.get([absent])

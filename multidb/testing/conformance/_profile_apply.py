"""The profile suite's tests of patches: what each part of one writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multidb._core.values import MAX_INT, MIN_INT
from multidb.profiles.protocol import Applied, Patch
from multidb.testing.conformance._data import exact
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

if TYPE_CHECKING:
    from multidb.profiles.protocol import ProfileBackend


class PatchTests(ProfileSuite):
    """Each part of a patch does what it says, in one step."""

    async def test_name(self, backend: ProfileBackend) -> None:
        """A backend has a short constant name for metrics and errors."""
        name = backend.name

        assert name == backend.name
        assert 0 < len(name) <= 30
        assert name.isascii()
        assert name == name.lower().strip()

    async def test_no_patches(self, backend: ProfileBackend) -> None:
        """An empty batch is a batch."""
        assert [] == list(await backend.apply([]))

    async def test_create(self, backend: ProfileBackend) -> None:
        """An upsert creates a profile with version 1 and both times; the patch and a get return it."""
        name = user()
        expected = exact(document(name, {"type": "bot", "settings": {"theme": "dark"}}))
        patch = Patch(name, NOON, set={"type": "bot", "settings": {"theme": "dark"}}, upsert=True)

        assert [(expected, True)] == outcome(await backend.apply([patch]))
        assert expected == exact((await backend.get([name]))[name])

    async def test_create_without_fields(self, backend: ProfileBackend) -> None:
        """A profile may have no fields but the reserved ones."""
        name = user()
        expected = exact(document(name, {}))

        assert [(expected, True)] == outcome(await backend.apply([Patch(name, NOON, upsert=True)]))
        assert expected == exact((await backend.get([name]))[name])

    async def test_create_with_everything(self, backend: ProfileBackend) -> None:
        """In a new profile paths are created, increments start at 0, and there is nothing to remove."""
        name = user()
        patch = Patch(
            name,
            NOON,
            set={"a.b.c": 1, "x": {"y": 2}},
            increment={"n": 5, "m.f": 0.5},
            remove=["gone"],
            upsert=True,
        )
        expected = exact(document(name, {"a": {"b": {"c": 1}}, "x": {"y": 2}, "n": 5, "m": {"f": 0.5}}))

        assert [(expected, True)] == outcome(await backend.apply([patch]))

    async def test_no_profile_and_no_upsert(self, backend: ProfileBackend) -> None:
        """Without upsert nothing happens where there is no profile."""
        name = user()
        patches = [
            Patch(name, NOON, set={"a": 1}),
            Patch(name, NOON, increment={"a": 1}),
            Patch(name, NOON, remove=["a"]),
            Patch(name, NOON, set={"a": 1}, replace=True),
        ]

        assert [(exact(None), False)] * 4 == outcome(await backend.apply(patches))
        assert {} == await backend.get([name])

    async def test_set(self, backend: ProfileBackend) -> None:
        """A write sets fields and keeps the others; version and updated_at go on, created_at stays."""
        name = await create(backend, user(), {"a": 1, "b": 2})
        expected = exact(document(name, {"a": 1, "b": "two", "c": [3]}, version=2, updated=LATER))
        patch = Patch(name, LATER, set={"b": "two", "c": [3]}, upsert=True)

        assert [(expected, True)] == outcome(await backend.apply([patch]))
        assert expected == exact((await backend.get([name]))[name])

    async def test_set_the_same_again(self, backend: ProfileBackend) -> None:
        """Setting what is there already is a write."""
        name = await create(backend, user(), {"a": 1})
        expected = exact(document(name, {"a": 1}, version=2, updated=LATER))

        assert [(expected, True)] == outcome(await backend.apply([Patch(name, LATER, set={"a": 1})]))

    async def test_time_is_the_patchs(self, backend: ProfileBackend) -> None:
        """`updated_at` is what the patch says, be it before the last."""
        name = user()
        await backend.apply([Patch(name, LATER, upsert=True)])
        expected = exact(document(name, {"a": 1}, version=2, created=LATER, updated=NOON))

        assert [(expected, True)] == outcome(await backend.apply([Patch(name, NOON, set={"a": 1})]))

    async def test_nested_paths(self, backend: ProfileBackend) -> None:
        """A path sets one place, creates what is missing on the way, and leaves its neighbours alone."""
        name = await create(backend, user(), {"a": {"b": {"x": 1}, "c": 2}, "d": {}})
        await backend.apply(
            [Patch(name, NOON, set={"a.b.y": 2, "a.n.m.o": [], "d.e": {"f": None}, "g.h": 1})]
        )
        expected = {
            "a": {"b": {"x": 1, "y": 2}, "c": 2, "n": {"m": {"o": []}}},
            "d": {"e": {"f": None}},
            "g": {"h": 1},
        }

        assert exact(expected) == await fields_of(backend, name)

    async def test_set_replaces_the_value(self, backend: ProfileBackend) -> None:
        """What is set takes the place of what was there, whatever its type; dicts are not merged."""
        name = user()
        values = [{"x": 1}, {"y": 2}, [1], {}, None, "text", 1, True, 1.0, [{"x": 1}], []]
        for value in values:
            await backend.apply([Patch(name, NOON, set={"a": value, "b.c": value}, upsert=True)])

            assert exact({"a": value, "b": {"c": value}}) == await fields_of(backend, name)

    async def test_path_parts_that_look_like_numbers(self, backend: ProfileBackend) -> None:
        """In a dict "0" is a key like any other, and what is created on the way is a dict."""
        name = await create(backend, user(), {"a": {"0": "zero", "1": {}}})
        patch = Patch(
            name, NOON, set={"a.0": 1, "a.1.2": 3, "b.0.0": 4, "7": 5}, increment={"c.0": 6}, remove=["a.9"]
        )
        await backend.apply([patch])
        expected = {"a": {"0": 1, "1": {"2": 3}}, "b": {"0": {"0": 4}}, "7": 5, "c": {"0": 6}}

        assert exact(expected) == await fields_of(backend, name)

    async def test_names_that_are_reserved_above(self, backend: ProfileBackend) -> None:
        """Below the top level a field may be named as a reserved one."""
        inner = {"username": 1, "version": "x", "created_at": None, "updated_at": [1]}
        name = await create(backend, user(), {"a": inner})
        patch = Patch(
            name,
            NOON,
            set={"a.version": 2, "b.username": "u"},
            increment={"a.username": 1},
            remove=["a.created_at"],
        )
        await backend.apply([patch])
        expected = {"a": {"username": 2, "version": 2, "updated_at": [1]}, "b": {"username": "u"}}

        assert exact(expected) == await fields_of(backend, name)

    async def test_increment(self, backend: ProfileBackend) -> None:
        """An increment adds to a number, keeps ints ints, and starts at 0 where nothing is."""
        name = await create(backend, user(), {"i": 5, "f": 1.5, "z": 1.0, "n": {"i": -1}})
        increments = {"i": 2, "f": 0.25, "z": 1, "n.i": -1, "new": 3, "new_float": 0.5, "o.p": 1}
        expected = {"i": 7, "f": 1.75, "z": 2.0, "n": {"i": -2}, "new": 3, "new_float": 0.5, "o": {"p": 1}}

        assert [(exact(document(name, expected, version=2)), True)] == outcome(
            await backend.apply([Patch(name, NOON, increment=increments)])
        )
        await backend.apply([Patch(name, NOON, increment={"i": 0.5, "f": 1, "new": -4})])
        assert exact({**expected, "i": 7.5, "f": 2.75, "new": -1}) == await fields_of(backend, name)

    async def test_large_increments(self, backend: ProfileBackend) -> None:
        """Ints are exact up to the ends of 64 bits."""
        name = await create(
            backend, user(), {"a": 2**53, "b": MAX_INT - 1, "c": MIN_INT + 1, "d": 2**31 - 1, "e": -5}
        )
        patch = Patch(name, NOON, increment={"a": 1, "b": 1, "c": -1, "d": 1, "e": MAX_INT, "new": MIN_INT})
        await backend.apply([patch])
        expected = {"a": 2**53 + 1, "b": MAX_INT, "c": MIN_INT, "d": 2**31, "e": MAX_INT - 5, "new": MIN_INT}

        assert exact(expected) == await fields_of(backend, name)

    async def test_remove(self, backend: ProfileBackend) -> None:
        """A remove takes a field away, whatever is in it, and leaves the dict it was in."""
        name = await create(backend, user(), {"a": 1, "b": {"c": {"d": 1}, "e": 2}, "f": None, "g": [1]})
        expected = {"b": {"c": {}, "e": 2}}

        assert [(exact(document(name, expected, version=2, updated=LATER)), True)] == outcome(
            await backend.apply([Patch(name, LATER, remove=["a", "b.c.d", "f", "g", "unknown", "un.known"])])
        )

    async def test_nothing_to_remove(self, backend: ProfileBackend) -> None:
        """A patch that only removes, and finds nothing, writes nothing; one that sets, too, writes."""
        name = await create(backend, user(), {"a": {"b": 1}})
        expected = exact(document(name, {"a": {"b": 1}}))
        nothing = Patch(name, LATER, remove=["x", "a.x", "x.y.z", "a.b2"])

        assert [(expected, False)] == outcome(await backend.apply([nothing]))
        assert expected == exact((await backend.get([name]))[name])
        written = document(name, {"a": {"b": 1}, "c": 1}, version=2, updated=LATER)
        assert [(exact(written), True)] == outcome(
            await backend.apply([Patch(name, LATER, set={"c": 1}, remove=["x"])])
        )

    async def test_everything_at_once(self, backend: ProfileBackend) -> None:
        """One patch sets, increments and removes, and is one write."""
        name = await create(backend, user(), {"a": 1, "n": 1, "gone": 1, "d": {"x": 1, "y": 2, "z": 3}})
        patch = Patch(
            name, LATER, set={"a": 2, "d.x": 5}, increment={"n": 1, "d.y": 1}, remove=["gone", "d.z"]
        )
        expected = document(name, {"a": 2, "n": 2, "d": {"x": 5, "y": 3}}, version=2, updated=LATER)

        assert [(exact(expected), True)] == outcome(await backend.apply([patch]))

    async def test_replace(self, backend: ProfileBackend) -> None:
        """A replace drops what is not set, and keeps the name, the creation time and the version's count."""
        name = await create(backend, user(), {"a": 1, "b": {"c": 1}})
        expected = document(name, {"b": {"d": 2}}, version=2, updated=LATER)

        assert [(exact(expected), True)] == outcome(
            await backend.apply([Patch(name, LATER, set={"b": {"d": 2}}, replace=True, upsert=True)])
        )
        assert exact(expected) == exact((await backend.get([name]))[name])
        await backend.apply([Patch(name, LATER, replace=True)])
        assert exact(document(name, {}, version=3, updated=LATER)) == exact((await backend.get([name]))[name])

    async def test_replace_creates(self, backend: ProfileBackend) -> None:
        """A replace with upsert creates a profile where there is none."""
        name = user()

        assert [(exact(document(name, {"a": 1})), True)] == outcome(
            await backend.apply([Patch(name, NOON, set={"a": 1}, replace=True, upsert=True)])
        )

    async def test_expected_version(self, backend: ProfileBackend) -> None:
        """A patch may ask for a version; 0 is that of a profile that does not exist."""
        name, absent = user(), user()

        def patch(username: str, version: int, *, upsert: bool = True) -> Patch:
            return Patch(username, NOON, set={"v": version}, upsert=upsert, expected_version=version)

        assert CONFLICT == await apply(backend, patch(name, 1))
        assert {} == await backend.get([name])
        assert isinstance(await apply(backend, patch(name, 0)), Applied)
        assert [CONFLICT, CONFLICT] == [
            await apply(backend, patch(name, 0)),
            await apply(backend, patch(name, 2)),
        ]
        assert exact(document(name, {"v": 0})) == exact((await backend.get([name]))[name])
        assert isinstance(await apply(backend, patch(name, 1, upsert=False)), Applied)
        assert exact(document(name, {"v": 1}, version=2)) == exact((await backend.get([name]))[name])
        assert CONFLICT == await apply(backend, patch(absent, 1, upsert=False))

    async def test_expected_version_of_every_write(self, backend: ProfileBackend) -> None:
        """An increment, a remove and a replace ask for a version like a set does."""
        name = await create(backend, user(), {"a": 1})
        for version, expected in ((2, CONFLICT), (0, CONFLICT)):
            patches = [
                Patch(name, LATER, increment={"a": 1}, expected_version=version),
                Patch(name, LATER, remove=["a"], expected_version=version),
                Patch(name, LATER, remove=["unknown"], expected_version=version),
                Patch(name, LATER, replace=True, expected_version=version),
            ]

            assert [expected] * 4 == outcome(await backend.apply(patches))
        assert exact(document(name, {"a": 1})) == exact((await backend.get([name]))[name])
        await backend.apply([Patch(name, NOON, replace=True, expected_version=1)])
        assert exact(document(name, {}, version=2)) == exact((await backend.get([name]))[name])

    async def test_patches_in_order(self, backend: ProfileBackend) -> None:
        """Patches of one batch build on each other, in order."""
        name = user()
        patches = [
            Patch(name, NOON, set={"a": 1}),
            Patch(name, NOON, set={"a": 2}, upsert=True, expected_version=0),
            Patch(name, NOON, increment={"a": 1}, expected_version=1),
            Patch(name, NOON, set={"a": 9}, expected_version=1),
            Patch(name, LATER, set={"b.c": 1}),
            Patch(name, NOON, remove=["unknown"]),
            Patch(name, NOON, set={"d": 1}, replace=True, expected_version=3),
        ]
        expected = [
            (exact(None), False),
            (exact(document(name, {"a": 2})), True),
            (exact(document(name, {"a": 3}, version=2)), True),
            CONFLICT,
            (exact(document(name, {"a": 3, "b": {"c": 1}}, version=3, updated=LATER)), True),
            (exact(document(name, {"a": 3, "b": {"c": 1}}, version=3, updated=LATER)), False),
            (exact(document(name, {"d": 1}, version=4)), True),
        ]

        assert expected == outcome(await backend.apply(patches))
        assert exact(document(name, {"d": 1}, version=4)) == exact((await backend.get([name]))[name])

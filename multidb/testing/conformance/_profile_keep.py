"""The profile suite's tests of keeping, deleting and counting."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given

from multidb.profiles._records import ProfileStats
from multidb.profiles.protocol import Applied, Condition, Patch, ProfileQuery
from multidb.testing.conformance._data import (
    AWKWARD_IDS,
    AWKWARD_TEXTS,
    AWKWARD_VALUES,
    DEEPEST,
    addressable_dicts,
    exact,
    moments,
    round_trips,
    together,
    unique,
)
from multidb.testing.conformance._profile_data import (
    LATER,
    NOON,
    TOO_LARGE,
    ProfileSuite,
    apply,
    create,
    create_all,
    document,
    fields_of,
    names,
    outcome,
    own_fields,
    user,
)

if TYPE_CHECKING:
    from multidb.profiles.protocol import ProfileBackend

FIELD_NAMES: Final = (
    "a", "A", "0", "00", "-1", "a$b", "a$", "_", "__proto__", "constructor", "__class__", "_ID", "id", "_v", "_w", "_t", "_s",
    "é", "e\u0301", "ışık", "İ", "שלום", "😀", "👩\u200d👧", "\uffff", " ", "  ", "a b", "'", '"', "\\", "\n", "\t", "\x01", "/", "%",
    "k" * 128, "ğ" * 128, "😀" * 128, "null", "true", "set", "*", "[0]", "{}", ",", ":", "#", "&", "Username", "usernames",
)  # fmt: skip
"""Names that a profile's fields may have."""

FILE_NAMES: Final = (
    "../../etc/passwd", "/etc/passwd", ".", "..", "...", "~", "a/b", "a\\b", "a%2Fb", "a%2fb", "CON", "con", "con.", "con.json", "NUL",
    "aux.txt", "COM1", "lpt9.json", "Ali", "ali", "ALI", "alı", "ali.", "ali ", " ali", "ali.json", "ali.json.tmp", ".ali", "-ali", "a:b",
    "a?b*c", "a<b>|", "a\u200bb", "ﬁ", "fi", "é", "😀", "\ufffd", "A" * 256, "a" * 256, "a" * 255 + "b", "é" * 128, "😀" * 64, "_index", "_lock",
)  # fmt: skip
"""Usernames that are no good names of files, or that a disk takes for one another."""


class KeepTests(ProfileSuite):
    """What is stored comes back equal, with its type, under its name."""

    async def test_get(self, backend: ProfileBackend) -> None:
        """Those profiles are returned that exist, each once."""
        one, two, absent = (
            await create(backend, user(), {"a": 1}),
            await create(backend, user(), {"a": 2}),
            user(),
        )
        found = await backend.get([two, absent, one, two])

        assert {} == await backend.get([])
        assert {} == await backend.get([absent])
        assert exact({one: document(one, {"a": 1}), two: document(two, {"a": 2})}) == exact(found)

    async def test_awkward_values(self, backend: ProfileBackend) -> None:
        """Values come back with their types: 1.0 stays a float, large numbers keep every digit."""
        fields = {f"f{place}": value for place, value in enumerate(AWKWARD_VALUES)}
        fields |= {"list": list(AWKWARD_VALUES), "dict": {"in": {"side": dict(fields)}}}
        name = user()
        results = await backend.apply([Patch(name, NOON, set=fields, upsert=True)])

        assert [(exact(document(name, fields)), True)] == outcome(results)
        assert exact(document(name, fields)) == exact((await backend.get([name]))[name])
        assert exact([document(name, fields)]) == exact(await backend.find(of_name(name)))

    async def test_deep_values(self, backend: ProfileBackend) -> None:
        """A profile may be 32 levels deep."""
        name = await create(backend, user(), DEEPEST)

        assert exact(DEEPEST) == await fields_of(backend, name)

    async def test_field_names(self, backend: ProfileBackend) -> None:
        """A field may have any name that a path can lead to; it is set, incremented and removed by it."""
        name = await create(backend, user(), {"d": {}, **dict.fromkeys(FIELD_NAMES, 1)})
        nested = {f"d.{field}": 1 for field in FIELD_NAMES}
        await backend.apply([Patch(name, NOON, set=nested)])
        same = dict.fromkeys(FIELD_NAMES, 1)
        assert exact({"d": same, **same}) == await fields_of(backend, name)

        await backend.apply([Patch(name, NOON, increment={**nested, **same})])
        more = dict.fromkeys(FIELD_NAMES, 2)
        assert exact({"d": more, **more}) == await fields_of(backend, name)

        await backend.apply([Patch(name, NOON, remove=[*nested, *FIELD_NAMES[1:]])])
        assert exact({"d": {}, FIELD_NAMES[0]: 2}) == await fields_of(backend, name)

    async def test_large_profile(self, backend: ProfileBackend) -> None:
        """A profile of nearly 4 MiB comes back."""
        fields = {
            "text": "ğ" * 900_000,
            "list": list(range(200_000)),
            "dict": {f"k{n}": n for n in range(20_000)},
        }
        name = await create(backend, user(), fields)

        assert exact(fields) == await fields_of(backend, name)

    async def test_too_large_profile(self, backend: ProfileBackend) -> None:
        """A patch that makes a profile larger than the backend can keep is refused, and writes nothing."""
        name = await create(backend, user(), {"f0": "x" * 3_900_000})
        size = 1
        while size < 5:
            if TOO_LARGE == await apply(backend, Patch(name, NOON, set={f"f{size}": "x" * 3_900_000})):
                break
            size += 1
        found = (await backend.get([name]))[name]

        assert size == found["version"]
        assert {f"f{number}": 3_900_000 for number in range(size)} == {
            field: len(value) for field, value in found.items() if field.startswith("f")
        }

    async def test_times(self, backend: ProfileBackend) -> None:
        """Times are kept to the microsecond, from year 1 to 9999, and come back in UTC."""
        name = user()
        times = [datetime.min.replace(tzinfo=UTC), NOON, datetime.max.replace(tzinfo=UTC), LATER]
        times += [datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)]
        await backend.apply([Patch(name, times[0], upsert=True)])
        for version, time in enumerate(times[1:], 2):
            await backend.apply([Patch(name, time, set={"a": version})])
            expected = document(name, {"a": version}, version=version, created=times[0], updated=time)

            assert exact(expected) == exact((await backend.get([name]))[name])

    async def test_awkward_usernames(self, backend: ProfileBackend) -> None:
        """No username can be mistaken for another, whatever characters it holds."""
        mark = unique("x")
        users = [f"{mark}{name}" for name in AWKWARD_IDS] + [f"{name}{mark}" for name in AWKWARD_IDS]
        await create_all(backend, {name: {"is": name} for name in users})
        found = await backend.get(users)

        assert {name: exact(document(name, {"is": name})) for name in users} == {
            n: exact(d) for n, d in found.items()
        }
        assert [True] * len(users) == list(await backend.delete(users))

    async def test_usernames_that_are_no_file_names(self, backend: ProfileBackend) -> None:
        """A username is a username, whatever it would mean as the name of a file."""
        await backend.delete(FILE_NAMES)
        try:
            await create_all(backend, {name: {"is": name} for name in FILE_NAMES})
            found = await backend.get(FILE_NAMES)

            assert {name: exact(document(name, {"is": name})) for name in FILE_NAMES} == {
                name: exact(each) for name, each in found.items()
            }
            assert [True] * 2 == list(await backend.delete(["Ali", ".."]))
            assert len(FILE_NAMES) - 2 == len(await backend.get(FILE_NAMES))
        finally:
            await backend.delete(FILE_NAMES)

        assert {} == await backend.get(FILE_NAMES)

    async def test_copies(self, backend: ProfileBackend) -> None:
        """What was passed in and what came out are the caller's: changing them changes nothing here."""
        given_fields: dict[str, Any] = {"tag": user(), "a": {"b": [1, {"c": 2}]}}
        expected = exact(copy.deepcopy(given_fields))
        name = user()
        (result,) = await backend.apply([Patch(name, NOON, set=given_fields, upsert=True)])
        assert isinstance(result, Applied)
        spoil(given_fields)
        (again,) = await backend.apply([Patch(name, NOON, remove=["unknown"])])
        assert isinstance(again, Applied)
        for found in (
            result.document,
            again.document,
            (await backend.get([name]))[name],
            *await backend.find(of_name(name)),
            *await backend.search(name, 10),
        ):
            assert found is not None
            assert expected == exact(own_fields(found))
            spoil(found)

        assert expected == await fields_of(backend, name)

    @round_trips
    @given(fields=addressable_dicts(), more=addressable_dicts(), at=moments())
    async def test_any_profile(
        self, backend: ProfileBackend, fields: dict[str, Any], more: dict[str, Any], at: datetime
    ) -> None:
        """Whatever profile the store lets through comes back equal, with its types."""
        name = user()
        await backend.apply([Patch(name, at, set=fields, upsert=True)])
        assert exact(document(name, fields, created=at)) == exact((await backend.get([name]))[name])

        results = await backend.apply([Patch(name, at, set=more)])
        expected = exact(document(name, {**fields, **more}, version=2, created=at))
        assert [(expected, True)] == outcome(results)
        assert expected == exact((await backend.get([name]))[name])

    async def test_concurrent_gets(self, backend: ProfileBackend) -> None:
        """Each of many gets at once gets its own answer."""
        users = [user() for _ in range(50)]
        await create_all(backend, {name: {"is": name} for name in users})
        found = await together(backend.get([name]) for name in users)

        assert [[name] for name in users] == [list(each) for each in found]
        assert users == [each[name]["is"] for name, each in zip(users, found, strict=True)]


class DeleteTests(ProfileSuite):
    """Deleting, and counting what is there."""

    async def test_delete(self, backend: ProfileBackend) -> None:
        """Deleting says for each profile whether it was there; the second of two equal names finds none."""
        tag = user()
        one, two = await create(backend, user(), {"tag": tag}), await create(backend, user(), {"tag": tag})
        absent = user()

        assert [] == list(await backend.delete([]))
        assert [True, False, False] == list(await backend.delete([one, absent, one]))
        assert [two] == list(await backend.get([one, two]))
        assert [two] == names(await backend.find(ProfileQuery([Condition("tag", "eq", tag)])))
        assert [] == await backend.search(one, 10)

    async def test_create_after_delete(self, backend: ProfileBackend) -> None:
        """A profile that is created again is a new one."""
        name = await create(backend, user(), {"a": 1})
        await backend.apply([Patch(name, NOON, set={"b": 1})])
        await backend.delete([name])
        patches = [
            Patch(name, LATER, set={"x": 1}),
            Patch(name, LATER, set={"c": 1}, upsert=True, expected_version=0),
        ]
        expected = exact(document(name, {"c": 1}, created=LATER))

        assert [(exact(None), False), (expected, True)] == outcome(await backend.apply(patches))
        assert expected == exact((await backend.get([name]))[name])

    async def test_race_of_deletes(self, backend: ProfileBackend) -> None:
        """Of many who delete a profile at once one finds it."""
        name = await create(backend, user())
        results = await together(backend.delete([name]) for _ in range(20))

        assert 1 == [found for (found,) in results].count(True)

    async def test_many(self, backend: ProfileBackend) -> None:
        """1,000 profiles are deleted in one call."""
        users = [user() for _ in range(1000)]
        await create_all(backend, {name: {} for name in users[::2]})

        assert [number % 2 == 0 for number in range(1000)] == list(await backend.delete(users))
        assert {} == await backend.get(users)

    async def test_stats(self, backend: ProfileBackend) -> None:
        """Statistics count true booleans and types that are text, and nothing that only looks like them."""
        kind = unique("Type")
        before = await backend.stats()
        rows: list[dict[str, Any]] = [
            {"type": kind, "is_active": True},
            {"type": kind, "is_active": False, "autospam": True},
            {"type": kind.lower(), "is_active": 1},
            {"type": "bot", "autospam": True, "is_active": "true"},
            {"type": "bot", "autospam": 1, "is_active": [True]},
            {"type": "bot", "autospam": False, "is_active": 1.0},
            {"type": "bot", "autospam": "true", "is_active": {"x": True}},
            {"type": ["bot", kind], "autospam": True, "is_active": None},
            {"type": None, "is_active": True},
            {"type": 7, "autospam": True},
            {"type": {"x": kind}},
            {"type": "", "x": {"is_active": True, "type": kind}},
            {},
        ]
        await create_all(backend, {user(): row for row in rows})
        after = await backend.stats()
        new = {key: n - before.by_type.get(key, 0) for key, n in after.by_type.items()}

        assert isinstance(after, ProfileStats)
        assert (13, 2, 1) == (
            after.total - before.total,
            after.active - before.active,
            after.autospam_bots - before.autospam_bots,
        )
        assert {kind: 2, kind.lower(): 1, "bot": 4, "": 1} == {key: n for key, n in new.items() if n}

    async def test_stats_follow(self, backend: ProfileBackend) -> None:
        """Statistics are of the profiles as they are now."""
        kind = unique("type")
        users = [user() for _ in range(3)]
        before = await backend.stats()
        await create_all(backend, {name: {"type": kind, "is_active": True} for name in users})
        await backend.apply(
            [Patch(users[0], NOON, set={"is_active": False}), Patch(users[1], NOON, remove=["type"])]
        )
        await backend.delete(users[2:])
        after = await backend.stats()

        assert (2, 1) == (after.total - before.total, after.active - before.active)
        assert 1 == after.by_type[kind]


class SecondBackendTests(ProfileSuite):
    """What another connection sees, or the same data after a reopen."""

    async def test_second_backend_sees_everything(self, backend: ProfileBackend) -> None:
        """Profiles are there for another backend on the same data, with every type, name and time."""
        users = [f"{user()}{name}" for name in AWKWARD_IDS[:20]]
        fields = {
            "list": list(AWKWARD_VALUES),
            "texts": {f"t{n}": text for n, text in enumerate(AWKWARD_TEXTS)},
        }
        await create_all(backend, {name: {"is": name, **fields} for name in users})
        await backend.apply([Patch(users[0], LATER, set={"a.b": 1}, remove=["is"])])
        await backend.delete(users[1:2])
        second = await self.another()
        found = await second.get(users)
        first = document(users[0], {**fields, "a": {"b": 1}}, version=2, updated=LATER)

        assert exact(first) == exact(found.get(users[0]))
        assert [users[0], *users[2:]] == sorted(found, key=users.index)
        assert exact(document(users[2], {"is": users[2], **fields})) == exact(found[users[2]])
        assert [exact(first)] == [exact(each) for each in await second.find(of_name(users[0]))]
        assert users[2:3] == names(await second.search(users[2].casefold(), 10))

    async def test_second_backend_goes_on(self, backend: ProfileBackend) -> None:
        """Another backend goes on from the version that is there."""
        name = await create(backend, user(), {"n": 1})
        second = await self.another()
        patches = [
            Patch(name, LATER, set={"x": 1}, expected_version=0, upsert=True),
            Patch(name, LATER, increment={"n": 1}, expected_version=1),
        ]
        expected = exact(document(name, {"n": 2}, version=2, updated=LATER))

        assert ["conflict", (expected, True)] == outcome(await second.apply(patches))

    async def test_two_backends_race(self, backend: ProfileBackend) -> None:
        """Patches that two connections make at once all count."""
        if not self.concurrent_instances:
            pytest.skip("concurrent_instances is not set")
        second = await self.another()
        name = user()
        both = [backend, second] * 20
        await together(
            each.apply([Patch(name, NOON, set={f"f{n}": n}, increment={"n": 1}, upsert=True)])
            for n, each in enumerate(both)
        )
        expected = document(name, {"n": 40, **{f"f{number}": number for number in range(40)}}, version=40)

        assert (
            exact(expected)
            == exact((await backend.get([name]))[name])
            == exact((await second.get([name]))[name])
        )


def of_name(name: str) -> ProfileQuery:
    """Return a query for one profile."""
    return ProfileQuery([Condition("username", "eq", name)])


def spoil(value: Any) -> None:
    """Change everything in *value* that can be changed."""
    for item in list(value.values() if isinstance(value, dict) else value):
        if isinstance(item, dict | list):
            spoil(item)
    if isinstance(value, dict):
        value.clear()
        value["spoilt"] = True
    else:
        value.append("spoilt")

"""The profile store suite's tests of writing: whole documents, single fields, many profiles."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import given
from pydantic import BaseModel, ConfigDict, RootModel

from multidb._core.values import MAX_INT, MIN_INT
from multidb.errors import ConflictError
from multidb.profiles import _store
from multidb.testing.conformance._data import (
    AWKWARD_IDS,
    AWKWARD_VALUES,
    addressable_dicts,
    exact,
    nested,
    round_trips,
    scalars,
    together,
    unique,
)
from multidb.testing.conformance._poison import (
    BAD_FIELD_NAMES,
    BAD_IDS,
    BAD_KEYS,
    BAD_LEAVES,
    TOO_DEEP,
    Poisoned,
    poisoned,
)
from multidb.testing.conformance._stores_base import (
    NFC,
    NFD,
    Item,
    Order,
    StoreSuite,
    not_refused,
    only,
    refusal,
    without,
)

if TYPE_CHECKING:
    from multidb.profiles import Document, ProfileStore

_MEBIBYTE = 1024 * 1024
RESERVED = ("username", "created_at", "updated_at", "version")

BAD_PATHS: tuple[Any, ...] = (
    "", ".", "a.", ".a", "a..b", "$a", "a.$b", "_id", "a._id", "k" * 129, "a." + "k" * 129, "a\0",
    "a.\ud800", ".".join("a" * 32), 1, None, True, b"a", ["a"], ("a", "b"), {"$set": 1}, {"a"},
)  # fmt: skip
"""What names no field that a profile may have."""

OWN_PATHS = ("username", "version", "created_at", "updated_at", "version.a", "created_at.x")
"""What multidb keeps itself."""

BAD_VERSIONS: tuple[Any, ...] = (-1, True, 1.0, "1", MAX_INT + 1, [1], {"$gt": 0})
BAD_DATA: tuple[Any, ...] = (None, [], [("a", 1)], "text", 1, True, {"a"}, RootModel[list[int]]([1]))


class Settings(BaseModel):
    """A part of a profile."""

    theme: str = "dark"
    level: int = 1


class BotProfile(BaseModel):
    """A profile as a program sees it."""

    type: str
    reply_mode: str = "manual"
    settings: Settings = Settings()
    seen_at: datetime | None = None


class WholeProfile(BotProfile):
    """A profile with what multidb keeps, and whatever else there is."""

    model_config = ConfigDict(extra="allow")

    username: str
    created_at: datetime
    updated_at: datetime
    version: int


def fields(document: Document | None) -> dict[str, Any] | None:
    """Return the program's part of a document."""
    return (
        None
        if document is None
        else {name: value for name, value in document.items() if name not in RESERVED}
    )


class DocumentTests(StoreSuite):
    """Whole documents."""

    async def test_create(self, store: ProfileStore) -> None:
        """A profile is created with the four fields that multidb keeps, and comes back as it was returned."""
        name = unique()
        created = await store.create_or_update_profile(name, {"type": "bot", "reply_mode": "hybrid"})

        assert {"type": "bot", "reply_mode": "hybrid"} == fields(created)
        assert exact((name, 1)) == exact((created["username"], created["version"]))
        assert UTC is created["created_at"].tzinfo
        assert created["created_at"] == created["updated_at"]
        assert exact(created) == exact(await store.get_profile_by_username(name))
        assert await store.get_profile_by_username(unique()) is None

    async def test_merge(self, store: ProfileStore) -> None:
        """Top-level fields join those there are; a dict replaces a dict. Each write is a version."""
        name = unique()
        first = await store.create_or_update_profile(name, {"a": 1, "b": {"x": 1}})
        await self.pass_time(0.002)
        second = await store.create_or_update_profile(name, {"b": {"y": 2}, "c": None})
        third = await store.create_or_update_profile(name, {})

        assert {"a": 1, "b": {"y": 2}, "c": None} == fields(second) == fields(third)
        assert [1, 2, 3] == [document["version"] for document in (first, second, third)]
        assert first["created_at"] == second["created_at"]
        assert first["updated_at"] < second["updated_at"] <= third["updated_at"]
        assert exact(third) == exact(await store.get_profile_by_username(name))

    async def test_replace(self, store: ProfileStore) -> None:
        """A replaced profile has the new fields only, and goes on counting; there need not be one."""
        name = unique()
        first = await store.replace_profile(name, {"a": 1, "b": 2})
        second = await store.replace_profile(name, {"b": 3})

        assert [{"a": 1, "b": 2}, {"b": 3}] == [fields(first), fields(second)]
        assert (2, first["created_at"]) == (second["version"], second["created_at"])
        assert exact(second) == exact(await store.get_profile_by_username(name))

    async def test_delete(self, store: ProfileStore) -> None:
        """Deleting says whether there was a profile; a new one starts at version 1."""
        name = unique()
        await store.create_or_update_profile(name, {"a": 1})
        await store.create_or_update_profile(name, {"a": 2})

        assert await store.delete_profile(name) is True
        assert await store.delete_profile(name) is False
        assert await store.get_profile_by_username(name) is None
        again = await store.create_or_update_profile(name, {"b": 1})
        assert ({"b": 1}, 1) == (fields(again), again["version"])

    async def test_documents_are_copies(self, store: ProfileStore) -> None:
        """What is done to data after it was stored, or after it came back, changes nothing that is stored."""
        name = unique()
        data: dict[str, Any] = {"items": [], "group": name}
        created = await store.create_or_update_profile(name, data)
        data["items"].append("later")
        found = await store.find_profiles({"group": name})
        for document in (created, await store.get_profile_by_username(name), *found):
            assert document is not None
            document["items"].append("outside")
            document["other"] = 1

        assert {"items": [], "group": name} == fields(await store.get_profile_by_username(name))

    async def test_writing_back(self, store: ProfileStore) -> None:
        """What was read can be changed and written back: what multidb keeps is ignored on the way in."""
        name = unique()
        await store.create_or_update_profile(name, {"a": 1, "b": 2})
        document = await store.get_profile_by_username(name)
        assert document is not None
        del document["b"]
        document["c"] = 3
        replaced = await store.replace_profile(name, document, expected_version=document["version"])
        nonsense = {"created_at": "never", "updated_at": object(), "version": -5, "d": 4}
        merged = await store.create_or_update_profile(name, nonsense)

        assert {"a": 1, "c": 3} == fields(replaced)
        assert {"a": 1, "c": 3, "d": 4} == fields(merged)
        assert (3, document["created_at"]) == (merged["version"], merged["created_at"])

    async def test_models(self, store: ProfileStore) -> None:
        """A profile may be written as a model and read as one, with or without what multidb keeps."""
        name = unique()
        bot = BotProfile(
            type="bot", settings=Settings(level=7), seen_at=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
        )
        written = await store.create_or_update_profile(name, bot)
        whole = await store.get_profile_by_username(name, as_model=WholeProfile)
        assert whole is not None
        changed = whole.model_copy(update={"reply_mode": "auto", "more": 1, "user_id": name})
        rewritten = await store.replace_profile(name, changed)

        assert {
            "type": "bot",
            "reply_mode": "manual",
            "settings": {"theme": "dark", "level": 7},
            "seen_at": "2026-01-02T03:04:05.000006Z",
        } == fields(written)
        assert (name, 1, written["created_at"]) == (whole.username, whole.version, whole.created_at)
        auto = bot.model_copy(update={"reply_mode": "auto"})
        assert auto == await store.get_profile_by_username(name, as_model=BotProfile)
        assert auto == await store.get_profile_by_user_id(name, as_model=BotProfile)
        assert (1, 2) == (rewritten["more"], rewritten["version"])
        assert await store.get_profile_by_username(unique(), as_model=BotProfile) is None

    async def test_model_that_does_not_fit(self, store: ProfileStore) -> None:
        """A profile that the model does not take is refused by name of path, without what is stored."""
        name = unique()
        await store.create_or_update_profile(name, {"type": "bot", "reply_mode": ["private words"]})
        refused = await refusal(store.get_profile_by_username(name, as_model=BotProfile))

        assert "profile.reply_mode" == refused.path
        assert "private" not in f"{refused}{refused.__cause__}{refused.__context__}"

    async def test_writers_at_once(self, store: ProfileStore) -> None:
        """Of 50 writers of different fields of a new profile all win; each makes a version."""
        name = unique()
        documents = await together(
            store.create_or_update_profile(name, {f"f{number}": number}) for number in range(50)
        )
        stored = await store.get_profile_by_username(name)

        assert {f"f{number}": number for number in range(50)} == fields(stored)
        assert list(range(1, 51)) == sorted(document["version"] for document in documents)
        assert all(document[f"f{number}"] == number for number, document in enumerate(documents))

    async def test_expected_version(self, store: ProfileStore) -> None:
        """With an expected version any other is a conflict that writes nothing; 0 stands for no profile."""
        name = unique()
        writes: list[Any] = [
            store.create_or_update_profile,
            store.replace_profile,
            store.update_profile_fields,
        ]
        for write in writes[:2]:
            with pytest.raises(ConflictError):
                await write(name, {"a": 0}, expected_version=1)
        assert await store.get_profile_by_username(name) is None
        first = await store.create_or_update_profile(name, {"a": 1}, expected_version=0)
        for write in writes:
            for wrong in (0, 2, MAX_INT):
                with pytest.raises(ConflictError):
                    await write(name, {"a": 2}, expected_version=wrong)
        with pytest.raises(ConflictError):
            await store.update_profile_field(name, "a", 2, expected_version=2)
        assert exact(first) == exact(await store.get_profile_by_username(name))
        await store.create_or_update_profile(name, {"b": 1}, expected_version=1)
        await store.replace_profile(name, {"c": 1}, expected_version=2)
        assert await store.update_profile_fields(name, {"d": 1}, expected_version=3) is True
        assert await store.update_profile_field(name, "e", 1, expected_version=4) is True
        assert {"c": 1, "d": 1, "e": 1} == fields(await store.get_profile_by_username(name))

    async def test_expected_version_at_once(self, store: ProfileStore) -> None:
        """Of many who expect the same version one wins, for a new profile as for an old one."""
        name = unique()

        async def write(number: int, version: int) -> bool:
            try:
                await store.create_or_update_profile(name, {"winner": number}, expected_version=version)
            except ConflictError:
                return False
            return True

        for version in (0, 1):
            won = await asyncio.gather(*(write(number, version) for number in range(20)))
            document = await store.get_profile_by_username(name)

            assert 1 == won.count(True)
            assert {"winner": won.index(True)} == fields(document)
            assert document is not None
            assert version + 1 == document["version"]

    async def test_bad_expected_versions(self, store: ProfileStore) -> None:
        """A version is an int of 0 or more."""
        name, where = unique(), "expected_version"
        writes: list[Any] = [
            store.create_or_update_profile,
            store.replace_profile,
            store.update_profile_fields,
        ]
        for write in writes:
            assert [] == await not_refused(BAD_VERSIONS, where, only(where, write, name, {"a": 1}))
        assert [] == await not_refused(
            BAD_VERSIONS, where, lambda bad: store.update_profile_field(name, "a", 1, expected_version=bad)
        )
        assert await store.get_profile_by_username(name) is None


class ProfileValueTests(StoreSuite):
    """What a profile may hold."""

    async def test_awkward_values(self, store: ProfileStore) -> None:
        """Values come back equal, with their types, by every way in."""
        name = unique()
        data = {f"f{number}": value for number, value in enumerate(AWKWARD_VALUES)} | {"deep": nested(31)}
        created = await store.create_or_update_profile(name, data)
        stored = await store.get_profile_by_username(name)
        await store.replace_profile(name, {"all": {}})
        await store.update_profile_fields(
            name, {f"all.{key}": value for key, value in data.items() if key != "deep"}
        )
        one_by_one = await store.get_profile_by_username(name)

        assert exact(data) == exact(fields(created)) == exact(fields(stored))
        assert one_by_one is not None
        assert exact({key: value for key, value in data.items() if key != "deep"}) == exact(one_by_one["all"])

    @round_trips
    @given(data=addressable_dicts())
    async def test_any_profile(self, store: ProfileStore, data: dict[str, Any]) -> None:
        """Whatever is accepted comes back equal, with its type, all the way down."""
        name = unique()
        created = await store.create_or_update_profile(name, data)

        assert (
            exact(data) == exact(fields(created)) == exact(fields(await store.get_profile_by_username(name)))
        )

    @round_trips
    @given(data=addressable_dicts())
    async def test_any_field(self, store: ProfileStore, data: dict[str, Any]) -> None:
        """So does whatever is written by a path."""
        name = unique()
        await store.create_or_update_profile(name, {})
        if data:
            await store.update_profile_fields(name, {f"in.{key}": value for key, value in data.items()})
        await store.update_profile_field(name, "whole.thing", data)
        expected = {"whole": {"thing": data}} | ({"in": data} if data else {})

        assert exact(expected) == exact(fields(await store.get_profile_by_username(name)))

    @round_trips
    @given(bad=poisoned(addressable_dicts() | scalars(), addressable=True))
    async def test_any_poison(self, store: ProfileStore, bad: Poisoned) -> None:
        """A bad leaf or key is found at any place in any profile, and named; no profile is created."""
        name = unique()

        assert f"data{bad.where}" == (await refusal(store.create_or_update_profile(name, bad.value))).path
        assert f"a.b{bad.where}" == (await refusal(store.update_profile_field(name, "a.b", bad.value))).path
        assert await store.get_profile_by_username(name) is None

    async def test_what_is_made_plain(self, store: ProfileStore) -> None:
        """Tuples become lists, models dicts, -0.0 becomes 0.0."""
        name = unique()
        order = Order(items=(Item(name="çay"),), total=-0.0)
        plain = {"items": [{"name": "çay", "at": None}], "total": 0.0}
        await store.create_or_update_profile(name, {"o": (order, -0.0)})
        await store.update_profile_field(name, "p", order)

        assert exact({"o": [plain, 0.0], "p": plain}) == exact(
            fields(await store.get_profile_by_username(name))
        )

    async def test_bad_data(self, store: ProfileStore) -> None:
        """A profile is a dict, or a model that dumps to one, of values that every backend can keep."""
        name, undumpable = unique(), Order.model_validate({"extra": b"\xff"})
        writes: list[Any] = [store.create_or_update_profile, store.replace_profile]
        for write in writes:

            async def refused(bad: Any, where: str, wrap: Any, write: Any = write) -> list[str]:
                return await not_refused(bad, where, lambda one: write(name, wrap(one)), value=True)

            assert [] == await refused(BAD_DATA, "data", lambda one: one)
            assert [] == await refused(
                BAD_LEAVES, "data.order.items[2]", lambda one: {"order": {"items": [1, 2, one]}}
            )
            assert [] == await refused(BAD_KEYS, "data", lambda one: {one: 1})
            assert [] == await refused(BAD_FIELD_NAMES, "data", lambda one: {one: 1})
            assert [] == await refused(BAD_FIELD_NAMES, "data.a[0]", lambda one: {"a": [{one: 1}]})
            assert [] == await refused(("\ud800", "a\udfff"), "data (a key)", lambda one: {one: 1})
            assert [] == await refused(TOO_DEEP, "data" + ".n[0]" * 16, lambda one: one)
            assert [] == await refused(
                [undumpable, Order.model_validate({"extra": object()})], "data", lambda one: one
            )
            assert [] == await refused([undumpable], "data.o", lambda one: {"o": one})
        assert await store.get_profile_by_username(name) is None

    async def test_size(self, store: ProfileStore) -> None:
        """4 MiB as JSON are allowed, one byte more is not."""
        name = unique()
        largest = "ğ" * (2 * _MEBIBYTE - 4)
        await store.create_or_update_profile(name, {"a": largest})
        for write in (
            store.create_or_update_profile(name, {"a": largest + "x"}),
            store.replace_profile(name, {"a": largest + "x"}),
        ):
            assert "data" == (await refusal(write)).path
        assert "a" == (await refusal(store.update_profile_field(name, "a", largest * 2))).path
        halves = {"b": largest, "c": "x" * 16}
        assert "changes" == (await refusal(store.update_profile_fields(name, halves))).path

        assert {"a": largest} == fields(await store.get_profile_by_username(name))


class FieldTests(StoreSuite):
    """Single fields."""

    async def test_update_field(self, store: ProfileStore) -> None:
        """A field is set by its path; dicts on the way are created; what is beside it stays."""
        name = unique()
        created = await store.create_or_update_profile(name, {"settings": {"level": 1}, "a": 1})

        assert await store.update_profile_field(name, "settings.theme", "dark") is True
        assert await store.update_profile_field(name, "x.y.z", [1]) is True
        assert await store.update_profile_field(name, "a", {"b": None}) is True
        document = await store.get_profile_by_username(name)
        assert {
            "settings": {"level": 1, "theme": "dark"},
            "a": {"b": None},
            "x": {"y": {"z": [1]}},
        } == fields(document)
        assert document is not None
        assert (4, created["created_at"]) == (document["version"], document["created_at"])

    async def test_update_fields(self, store: ProfileStore) -> None:
        """Several fields are set in one step, which is one version."""
        name = unique()
        await store.create_or_update_profile(name, {})

        assert await store.update_profile_fields(name, {"a.b": 1, "a.c": 2, "d": 3}) is True
        document = await store.get_profile_by_username(name)
        assert {"a": {"b": 1, "c": 2}, "d": 3} == fields(document)
        assert document is not None
        assert 2 == document["version"]

    async def test_no_profile(self, store: ProfileStore) -> None:
        """Where there is no profile nothing is written, and the answer says so."""
        name = unique()

        assert await store.update_profile_field(name, "a", 1) is False
        assert await store.update_profile_fields(name, {"a": 1}) is False
        assert await store.increment_profile_field(name, "a") is None
        assert await store.remove_profile_field(name, "a") is False
        assert await store.get_profile_by_username(name) is None

    async def test_path_through_something_else(self, store: ProfileStore) -> None:
        """A path that leads through what is no dict is a conflict, and nothing of the call is written."""
        name = unique()
        created = await store.create_or_update_profile(
            name, {"n": 1, "t": "text", "l": [{"a": 1}], "none": None}
        )
        for path in ("n.a", "t.a", "l.a", "l.0", "l.0.a", "none.a"):
            with pytest.raises(ConflictError):
                await store.update_profile_fields(name, {"fine": 1, path: 2})
            with pytest.raises(ConflictError):
                await store.increment_profile_field(name, path)

        assert exact(created) == exact(await store.get_profile_by_username(name))

    async def test_bad_paths(self, store: ProfileStore) -> None:
        """A path has 1 to 31 parts that can be fields; what multidb keeps cannot be written by one."""
        name = unique()
        created = await store.create_or_update_profile(name, {"a": {}})
        bad = [*BAD_PATHS, *OWN_PATHS]

        assert [] == await not_refused(bad, "path", lambda one: store.update_profile_field(name, one, 1))
        assert [] == await not_refused(bad, "path", lambda one: store.increment_profile_field(name, one))
        assert [] == await not_refused(bad, "path", lambda one: store.remove_profile_field(name, one))
        hashable = [one for one in bad if not isinstance(one, list | dict | set)]
        assert [] == await not_refused(
            hashable, "path", lambda one: store.update_profile_fields(name, {"a": 1, one: 1})
        )
        assert exact(created) == exact(await store.get_profile_by_username(name))

    async def test_bad_changes(self, store: ProfileStore) -> None:
        """Changes are a dict that is not empty, without a path above another one."""
        name = unique()
        await store.create_or_update_profile(name, {})
        overlaps: list[Any] = [{"a": 1, "a.b": 2}, {"a.b.c.d": 1, "x": 1, "a.b": {}}, {"a.b": 1, "a": 2}]

        assert [] == await not_refused(
            [{}, None, [], [("a", 1)], "a", 1, *overlaps],
            "changes",
            lambda one: store.update_profile_fields(name, one),
        )
        assert await store.update_profile_fields(name, {"a.b": 1, "a.bc": 2, "ab": 3}) is True
        document = await store.get_profile_by_username(name)
        assert {"a": {"b": 1, "bc": 2}, "ab": 3} == fields(document)
        assert document is not None
        assert 2 == document["version"]

    async def test_bad_values_of_fields(self, store: ProfileStore) -> None:
        """A value is held to the rule; the error names the path, and the place below it."""
        name = unique()
        created = await store.create_or_update_profile(name, {})

        assert [] == await not_refused(
            BAD_LEAVES, "a.b", lambda bad: store.update_profile_field(name, "a.b", bad), value=True
        )
        assert [] == await not_refused(
            BAD_LEAVES,
            "a.b.c[1]",
            lambda bad: store.update_profile_field(name, "a.b", {"c": [0, bad]}),
            value=True,
        )
        assert [] == await not_refused(
            [*BAD_KEYS, *BAD_FIELD_NAMES],
            "a.b",
            lambda bad: store.update_profile_field(name, "a.b", {bad: 1}),
            value=True,
        )
        assert exact(created) == exact(await store.get_profile_by_username(name))

    async def test_depth_of_fields(self, store: ProfileStore) -> None:
        """A document has 32 levels, whichever way they are written."""
        name = unique()
        await store.create_or_update_profile(name, {})
        path = ".".join("a" * 31)
        await store.update_profile_field(name, "x.y", nested(30))
        await store.update_profile_field(name, path, 1)

        assert [] == await not_refused(
            [nested(31), nested(32)],
            "x.y" + ".n[0]" * 15,
            lambda bad: store.update_profile_field(name, "x.y", bad),
        )
        await store.update_profile_field(name, path, [])
        assert [] == await not_refused(
            [[[]], [{}]], f"{path}[0]", lambda bad: store.update_profile_field(name, path, bad)
        )

    async def test_increment(self, store: ProfileStore) -> None:
        """A number is added to, from 0 where there is none; ints stay ints; the new number is returned."""
        name = unique()
        await store.create_or_update_profile(name, {"n": 5, "x": 1.5})
        sums = [
            await store.increment_profile_field(name, "n"),
            await store.increment_profile_field(name, "n", -7),
            await store.increment_profile_field(name, "n", 0.5),
            await store.increment_profile_field(name, "x", 1),
            await store.increment_profile_field(name, "x", -2.5),
            await store.increment_profile_field(name, "stats.seen", 3),
            await store.increment_profile_field(name, "stats.rate", 0.25),
        ]
        document = await store.get_profile_by_username(name)

        assert exact([6, -1, -0.5, 2.5, 0.0, 3, 0.25]) == exact(sums)
        assert exact({"n": -0.5, "x": 0.0, "stats": {"seen": 3, "rate": 0.25}}) == exact(fields(document))
        assert document is not None
        assert 8 == document["version"]

    async def test_increments_at_once(self, store: ProfileStore) -> None:
        """Of 50 increments at once each counts."""
        name = unique()
        await store.create_or_update_profile(name, {})
        sums = await together(store.increment_profile_field(name, "a.n", 2) for _ in range(50))

        assert list(range(2, 101, 2)) == sorted(number for number in sums if number is not None)
        assert {"a": {"n": 100}} == fields(await store.get_profile_by_username(name))

    async def test_increment_of_something_else(self, store: ProfileStore) -> None:
        """What is no number cannot be added to, nor can a sum leave 64 bits; nothing is written."""
        name = unique()
        others = {
            "text": "1",
            "true": True,
            "none": None,
            "list": [1],
            "dict": {},
            "high": MAX_INT,
            "low": MIN_INT,
            "big": 1.7e308,
        }
        created = await store.create_or_update_profile(name, others)
        amounts: dict[str, Any] = {"low": -1, "big": 1.7e308}
        for path in others:
            with pytest.raises(ConflictError):
                await store.increment_profile_field(name, path, amounts.get(path, 1))

        assert exact(created) == exact(await store.get_profile_by_username(name))
        assert [] == await not_refused(
            (True, "1", None, float("nan"), float("inf"), MAX_INT + 1, [1], {"$inc": 1}, 1j),
            "amount",
            lambda bad: store.increment_profile_field(name, "n", bad),
        )

    async def test_remove(self, store: ProfileStore) -> None:
        """A field is removed, and whether it was there is returned; where it was not, no version is made."""
        name = unique()
        await store.create_or_update_profile(name, {"a": {"b": 1, "c": None}, "d": 1})

        assert await store.remove_profile_field(name, "a.b") is True
        assert await store.remove_profile_field(name, "a.b") is False
        assert await store.remove_profile_field(name, "x.y") is False
        assert await store.remove_profile_field(name, "a.c") is True
        assert await store.remove_profile_field(name, "d") is True
        document = await store.get_profile_by_username(name)
        assert {"a": {}} == fields(document)
        assert document is not None
        assert 4 == document["version"]


class BulkTests(StoreSuite):
    """Many profiles."""

    async def test_bulk_update(self, store: ProfileStore) -> None:
        """Fields of many profiles are set; those that do not exist are not created, nor counted."""
        prefix = unique()
        number = uuid4().int >> 66
        for username in (f"{prefix}a", f"{prefix}b", number):
            await store.create_or_update_profile(username, {"n": 0})
        updates: dict[Any, Any] = {
            f"{prefix}a": {"n": 1, "s.t": 2},
            f"{prefix}b": {"m": (1,)},
            f"{prefix}c": {"n": 1},
            number: {"n": 3},
        }

        assert exact(3) == exact(await store.bulk_update_profiles(updates))
        assert {"n": 1, "s": {"t": 2}} == fields(await store.get_profile_by_username(f"{prefix}a"))
        assert {"n": 0, "m": [1]} == fields(await store.get_profile_by_username(f"{prefix}b"))
        assert await store.get_profile_by_username(f"{prefix}c") is None
        assert {"n": 3} == fields(await store.get_profile_by_username(str(number)))
        assert 0 == await store.bulk_update_profiles({})
        assert 0 == await store.bulk_update_profiles({unique(): {"a": 1}})

    async def test_bulk_conflicts(self, store: ProfileStore) -> None:
        """Where some are in conflict the others are updated, and the error says how many."""
        names = [unique() for _ in range(4)]
        for number, name in enumerate(names):
            await store.create_or_update_profile(name, {"a": 1 if number == 1 else {}})
        with pytest.raises(ConflictError, match="1 of 4"):
            await store.bulk_update_profiles({name: {"a.b": 1, "c": 1} for name in names})

        assert [{"a": {"b": 1}, "c": 1}, {"a": 1}, {"a": {"b": 1}, "c": 1}, {"a": {"b": 1}, "c": 1}] == [
            fields(await store.get_profile_by_username(name)) for name in names
        ]

    async def test_bulk_refused(self, store: ProfileStore) -> None:
        """Everything is checked before anything is written."""
        name = unique()
        created = await store.create_or_update_profile(name, {"a": 1})
        good: dict[Any, Any] = {name: {"a": 2}}

        assert [] == await not_refused(
            [{"a.b": b""}, {"a": {"b": b""}}],
            "updates[1].a.b",
            lambda bad: store.bulk_update_profiles(good | {"x": bad}),
            value=True,
        )
        assert [] == await not_refused(
            [{}, None, [], "a", {"a": 1, "a.b": 1}],
            "updates[1].changes",
            lambda bad: store.bulk_update_profiles(good | {"x": bad}),
        )
        assert [] == await not_refused(
            [{"version": 1}, {"": 1}, {1: 1}],
            "updates[1].path",
            lambda bad: store.bulk_update_profiles(good | {"x": bad}),
        )
        hashable = [bad for bad in BAD_IDS if not isinstance(bad, list | dict)]
        assert [] == await not_refused(
            hashable, "username", lambda bad: store.bulk_update_profiles(good | {bad: {"a": 1}})
        )
        assert [] == await not_refused((None, [], [name], name, 1), "updates", store.bulk_update_profiles)
        assert exact(created) == exact(await store.get_profile_by_username(name))

    async def test_more_than_a_page(self, store: ProfileStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """Any number of profiles is updated, and any number comes back from one call, by username."""
        monkeypatch.setattr(_store, "_CHUNK", 20)
        monkeypatch.setattr(_store, "_BULK_CHUNK", 20)
        kind = unique("kind")
        names = [f"{kind}-{number:02}" for number in range(60)]
        await together(
            store.create_or_update_profile(name, {"type": kind, "is_active": True}) for name in names
        )

        assert 60 == await store.bulk_update_profiles(
            {name: {"is_active": name[-1] != "7"} for name in names}
        )
        assert names == [document["username"] for document in await store.get_all_profiles(kind)]
        assert [name for name in names if name[-1] != "7"] == [
            document["username"] for document in await store.get_all_profiles(kind, is_active=True)
        ]
        assert [] == await store.get_all_profiles(unique("kind"))


class NameTests(StoreSuite):
    """What a profile is called."""

    async def test_ints_and_texts(self, store: ProfileStore) -> None:
        """A username is the same as an int and as a text."""
        number = uuid4().int >> 66
        created = await store.create_or_update_profile(number, {"a": 1})

        assert str(number) == created["username"]
        assert exact(created) == exact(await store.get_profile_by_username(str(number)))
        assert await store.delete_profile(str(number)) is True

    async def test_normal_form(self, store: ProfileStore) -> None:
        """Names that look the same are the same; those that differ in case are not, on any file system."""
        name = unique()
        await store.create_or_update_profile(name + NFD, {"a": 1, "username": name + NFC})
        await store.create_or_update_profile(f"{name}Ali", {"n": 1})
        await store.create_or_update_profile(f"{name}ali", {"n": 2})

        assert {"a": 1} == fields(await store.get_profile_by_username(name + NFC))
        assert [{"n": 1}, {"n": 2}] == [
            fields(await store.get_profile_by_username(f"{name}{twin}")) for twin in ("Ali", "ali")
        ]
        assert await store.get_profile_by_username(f"{name}ALI") is None

    async def test_awkward_names(self, store: ProfileStore) -> None:
        """No name is mistaken for another, or for a path, or for a pattern, whatever is in it."""
        prefix = unique()
        names = [
            *AWKWARD_IDS,
            *(f"../../{name}" for name in ("etc/passwd", "x")),
            "a" * 200,
            "A" * 200,
            "aux.txt",
            "a.",
            "a ",
            "a",
        ]
        wanted = {prefix + name: number for number, name in enumerate(dict.fromkeys(names))}
        await together(
            store.create_or_update_profile(name, {"n": n, "group": prefix}) for name, n in wanted.items()
        )
        got = await together(store.get_profile_by_username(name) for name in wanted)
        found = await store.find_profiles({"group": prefix}, limit=1000)

        assert list(wanted.values()) == [document and document["n"] for document in got]
        assert sorted(wanted) == [document["username"] for document in found]

    async def test_reserved_names(self, store: ProfileStore) -> None:
        """A name that an operating system keeps for itself is a name like any other."""
        for name in (
            "CON",
            "con",
            "nul.json",
            "..",
            ".",
            "../../etc/passwd",
            "a/b",
            "a\\b",
            "~",
            "*",
            "%",
            '{"$gt": ""}',
        ):
            if await store.get_profile_by_username(name) is not None:
                continue  # Somebody else's.
            token = unique()
            await store.create_or_update_profile(name, {"token": token})

            assert [name] == [
                document["username"] for document in await store.find_profiles({"token": token})
            ]
            assert await store.delete_profile(name) is True

    async def test_bad_names(self, store: ProfileStore) -> None:
        """What is no identifier is no username, for any function."""
        calls: list[Any] = [
            lambda bad: store.create_or_update_profile(bad, {}),
            lambda bad: store.replace_profile(bad, {}),
            lambda bad: store.update_profile_field(bad, "a", 1),
            lambda bad: store.update_profile_fields(bad, {"a": 1}),
            lambda bad: store.increment_profile_field(bad, "a"),
            lambda bad: store.remove_profile_field(bad, "a"),
            store.delete_profile,
            store.get_profile_by_username,
        ]
        for call in calls:
            assert [] == await not_refused(BAD_IDS, "username", call)
        assert [] == await not_refused(BAD_IDS, "user_id", store.get_profile_by_user_id)

    async def test_another_name_in_the_data(self, store: ProfileStore) -> None:
        """Data that says it is somebody else's is refused."""
        name = unique()
        writes: list[Any] = [store.create_or_update_profile, store.replace_profile]
        for write in writes:
            assert [] == await not_refused(
                [{"username": bad} for bad in (f"{name}2", "", name.upper(), *without(BAD_IDS))],
                "data.username",
                partial(write, name),
            )
        assert await store.get_profile_by_username(name) is None

    async def test_user_id(self, store: ProfileStore) -> None:
        """A profile is found by its field `user_id`, kept as a number or as text, asked for as either."""
        prefix = unique()
        as_int, as_text, handle = uuid4().int >> 66, str(uuid4().int >> 66), unique("handle")
        await store.create_or_update_profile(f"{prefix}b", {"user_id": as_int, "type": "bot"})
        await store.create_or_update_profile(f"{prefix}a", {"user_id": as_text})
        await store.create_or_update_profile(f"{prefix}c", {"user_id": handle})
        await store.create_or_update_profile(f"{prefix}d", {"user_id": f"0{as_int}"})
        await store.create_or_update_profile(f"{prefix}e", {"user_id": -as_int})
        expected: dict[str | int, str] = {
            as_int: "b",
            str(as_int): "b",
            int(as_text): "a",
            as_text: "a",
            handle: "c",
            f"0{as_int}": "d",
            -as_int: "e",
            f"-{as_int}": "e",
        }
        for user_id, name in expected.items():
            document = await store.get_profile_by_user_id(user_id)

            assert document is not None
            assert f"{prefix}{name}" == document["username"]
        for nobody in (f"+{as_int}", f"{as_int}.0", f" {as_int}", f"-0{as_int}", unique()):
            assert await store.get_profile_by_user_id(nobody) is None
        bot = await store.get_profile_by_user_id(as_int, as_model=BotProfile)
        assert BotProfile(type="bot") == bot

    async def test_several_with_a_user_id(self, store: ProfileStore) -> None:
        """Of several profiles with one user id it is the first by name."""
        prefix, number = unique(), uuid4().int >> 66
        for name, user_id in (("c", number), ("a", str(number)), ("b", number)):
            await store.create_or_update_profile(prefix + name, {"user_id": user_id})
        document = await store.get_profile_by_user_id(number)

        assert document is not None
        assert f"{prefix}a" == document["username"]

    async def test_times(self, store: ProfileStore) -> None:
        """Times are kept to the microsecond, and grow."""
        name = unique()
        documents = [await store.create_or_update_profile(name, {"n": number}) for number in range(20)]
        stored = await store.get_profile_by_username(name)

        assert stored is not None
        assert exact(documents[-1]) == exact(stored)
        assert {documents[0]["created_at"]} == {document["created_at"] for document in documents}
        assert documents == sorted(documents, key=lambda document: document["updated_at"])

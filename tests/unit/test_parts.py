"""Calls that are sent in parts: what their errors say when a later part fails."""

from __future__ import annotations

import unicodedata
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from multidb import (
    BackendUnavailableError,
    ConflictError,
    InvalidArgumentError,
    InvalidValueError,
    MultiDB,
    Settings,
)
from multidb.logs.backends.memory import MemoryLogBackend
from multidb.profiles.backends.memory import MemoryProfileBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MEMORY = Settings(postgres_url="memory://", mongodb_uri="memory://", redis_url="memory://")


class FailsLater(MemoryLogBackend):
    """Takes one append, then is gone; remembers how large the appends were."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good
        self.sizes: list[int] = []

    async def append(self, entries: Any, /) -> Any:
        if len(self.sizes) == self.good:
            raise BackendUnavailableError("gone")
        self.sizes.append(len(entries))
        return await super().append(entries)


class ProfilesFailLater(MemoryProfileBackend):
    """Takes one batch of more than one patch, then is gone."""

    batches = 0

    async def apply(self, patches: Any, /) -> Any:
        self.batches += len(patches) > 1
        if self.batches > 1:
            raise BackendUnavailableError("gone")
        return await super().apply(patches)


def events(count: int, message: str = "") -> list[dict[str, Any]]:
    return [{"user_identifier": "u", "event_type": "t", "message": message} for _ in range(count)]


@pytest.mark.parametrize(("good", "ambiguous"), [(0, False), (1, True)])
async def test_a_later_part_of_log_events_fails(good, ambiguous) -> None:
    """Once a part is stored the error is ambiguous: sending events without ids again would double it."""
    async with MultiDB(MEMORY, logs=FailsLater(good)) as db:
        with pytest.raises(BackendUnavailableError) as told:
            await db.logs.log_events(events(1500))

        assert ambiguous is told.value.ambiguous
        assert 1000 * good == await db.logs.count_events()


async def test_a_later_part_of_an_iterator_fails() -> None:
    """The caller's iterator is closed at once, not when it is collected."""
    closed = []

    async def source() -> AsyncIterator[dict[str, Any]]:
        try:
            for event in events(5000):
                yield event
        finally:
            closed.append(True)

    async with MultiDB(MEMORY, logs=FailsLater(1)) as db:
        iterator = source()
        with pytest.raises(BackendUnavailableError):
            await db.logs.log_events(iterator)
        await iterator.aclose()

    assert [True] == closed


async def test_a_part_is_bounded_in_bytes() -> None:
    """Large events are sent in smaller parts, so that each keeps its deadline."""
    backend = FailsLater(100)
    async with MultiDB(MEMORY, logs=backend) as db:
        assert 100 == await db.logs.log_events(events(100, "x" * 100_000))

    assert max(backend.sizes) <= 21
    assert 100 == sum(backend.sizes)


async def test_conflicts_are_named() -> None:
    """Who is in conflict is in the error; the others are done."""
    async with MultiDB(MEMORY) as db:
        known = await db.logs.log_event("u", "t", "first")
        with pytest.raises(ConflictError) as told:
            await db.logs.log_events(
                [{"user_identifier": "u", "event_type": "t", "event_id": known.id}, *events(2)]
            )
        assert (str(known.id),) == told.value.conflicts
        assert 3 == await db.logs.count_events()

        for name in ("a", "b"):
            await db.profiles.create_or_update_profile(name, {"n": 1 if name == "a" else {}})
        with pytest.raises(ConflictError) as told:
            await db.profiles.bulk_update_profiles({"a": {"n.m": 1}, "b": {"n.m": 1}})
        assert ("a",) == told.value.conflicts
        assert {"m": 1} == (await db.profiles.get_profile_by_username("b"))["n"]


async def test_a_later_part_of_bulk_update_fails() -> None:
    """As with events: a part may be written."""
    async with MultiDB(MEMORY, profiles=ProfilesFailLater()) as db:
        for n in range(150):
            await db.profiles.create_or_update_profile(f"p{n}", {})
        with pytest.raises(BackendUnavailableError) as told:
            await db.profiles.bulk_update_profiles({f"p{n}": {"x": n} for n in range(150)})

        assert told.value.ambiguous
        assert 100 == len(await db.profiles.find_profiles({"x": {"$exists": True}}, limit=1000))


async def test_wrong_fields_of_an_event() -> None:
    """An unknown or a missing field is named as the caller knows it, in bounded length."""
    async with MultiDB(MEMORY) as db:
        for wrong, says in (
            ({"user": 1, "event_type": "t"}, "no such field: 'user'"),
            ({"user_identifier": 1}, "missing: event_type"),
            ({"k" * 10**6: 1}, "no such field: 'kkk"),
        ):
            with pytest.raises(InvalidArgumentError, match=says) as told:
                await db.logs.log_events([wrong])
            assert str(told.value).startswith("events[0]: ")
            assert len(str(told.value)) < 500


async def test_any_mapping_is_a_dict() -> None:
    """What a type checker accepts is accepted."""
    given = MappingProxyType({"a": 1})
    async with MultiDB(MEMORY) as db:
        assert {"a": 1} == (await db.logs.log_event("u", "t", context=given)).context
        assert 1 == (await db.profiles.create_or_update_profile("p", given))["a"]
        assert {"a": 1} == await db.state.update_state("u", "k", given)


async def test_a_long_key_is_not_quoted_whole() -> None:
    """An error stays short whatever it is about."""
    async with MultiDB(MEMORY) as db:
        with pytest.raises(InvalidValueError) as told:
            await db.state.set_state("u", "k", {"k" * 10**6: ["\0"]})

        assert len(str(told.value)) < 500


async def test_user_id_of_either_normal_form() -> None:
    """A profile is found by the user id it was given, composed or decomposed."""
    decomposed = unicodedata.normalize("NFD", "Süleyman")
    async with MultiDB(MEMORY) as db:
        await db.profiles.create_or_update_profile("p", {"user_id": decomposed, "type": decomposed})

        for asked in (decomposed, "Süleyman"):
            assert "p" == (await db.profiles.get_profile_by_user_id(asked))["username"]
        assert ["p"] == [p["username"] for p in await db.profiles.get_all_profiles(type=decomposed)]

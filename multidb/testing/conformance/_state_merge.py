"""The state suite's tests of merging, and of comparing and setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given

from multidb._core.values import dump, load
from multidb.state.protocol import KEEP, Entry, Merge
from multidb.testing.conformance._data import (
    AWKWARD_KEYS,
    AWKWARD_VALUES,
    DEEPEST,
    free_dicts,
    nested,
    round_trips,
    together,
)
from multidb.testing.conformance._state_base import (
    PAST_SHORT,
    ROOM,
    SHORT,
    StateSuite,
    fresh,
    outcomes,
    put,
    value_of,
)

if TYPE_CHECKING:
    from multidb.state.protocol import StateBackend


class MergeTests(StateSuite):
    """Putting fields into stored dicts, and comparing and setting."""

    async def test_merge(self, backend: StateBackend) -> None:
        """A merge puts in and replaces top-level fields, keeps the others, and returns the dict as it is."""
        key = fresh()
        await put(backend, key, b'{"a":1,"b":{"x":1,"y":2},"d":[1]}')
        merged = await backend.merge([Merge(key, {"c": b"true", "b": b'{"x":9}'}, KEEP, ROOM)])
        expected = b'{"a":1,"b":{"x":9},"c":true,"d":[1]}'

        assert [expected] == merged
        assert expected == await value_of(backend, key)
        assert {key.name: expected} == await backend.get_all(key.user_id)

    async def test_merge_into_nothing(self, backend: StateBackend) -> None:
        """What is absent counts as an empty dict, so a merge creates it."""
        key = fresh()

        assert [b'{"a":1}'] == await backend.merge([Merge(key, {"a": b"1"}, None, ROOM)])
        assert b'{"a":1}' == await value_of(backend, key)
        assert {key.name: b'{"a":1}'} == await backend.get_all(key.user_id)

    async def test_merge_of_nothing(self, backend: StateBackend) -> None:
        """A merge without changes returns the dict as it is."""
        key = fresh()
        await put(backend, key, b'{"a":1}')

        assert [b'{"a":1}'] == await backend.merge([Merge(key, {}, KEEP, ROOM)])
        assert b'{"a":1}' == await value_of(backend, key)

    async def test_merge_twice_in_one_batch(self, backend: StateBackend) -> None:
        """Of two merges of one dict in one batch the later one builds on the earlier one."""
        key = fresh()
        merges = [Merge(key, {"a": b"1", "b": b"1"}, KEEP, ROOM), Merge(key, {"b": b"2"}, KEEP, ROOM)]

        assert [b'{"a":1,"b":1}', b'{"a":1,"b":2}'] == await backend.merge(merges)

    async def test_merge_is_canonical(self, backend: StateBackend) -> None:
        """A merged dict is canonical whatever is in it, and what comes back can be compared and set."""
        key = fresh()
        values = [*AWKWARD_VALUES, nested(31)]
        old = {name: values[place % len(values)] for place, name in enumerate(AWKWARD_KEYS[::2])}
        new = {name: values[-place % len(values)] for place, name in enumerate(AWKWARD_KEYS[::-1])}
        new |= {f"v{place}": value for place, value in enumerate(values)}
        await put(backend, key, dump(old))
        (merged,) = await backend.merge([Merge(key, {k: dump(v) for k, v in new.items()}, KEEP, ROOM)])

        assert dump({**old, **new}) == merged
        assert isinstance(merged, bytes)
        assert merged == await value_of(backend, key)
        assert await backend.compare_and_set(key, merged, b"{}", None)

    async def test_merge_keeps_the_other_fields_as_they_are(self, backend: StateBackend) -> None:
        """A merge does not change fields it leaves alone, such as empty lists and large numbers."""
        key = fresh()
        old = {f"v{place}": value for place, value in enumerate([*AWKWARD_VALUES, nested(31)])}
        await put(backend, key, dump(old))
        merged = await backend.merge([Merge(key, {"z": b"[]"}, KEEP, ROOM)])

        assert [dump({**old, "z": []})] == merged

    @round_trips
    @given(old=free_dicts(), new=free_dicts(), newer=free_dicts())
    async def test_any_merge(
        self, backend: StateBackend, old: dict[str, Any], new: dict[str, Any], newer: dict[str, Any]
    ) -> None:
        """Merging is what `|` does to dicts, and what comes back is canonical."""
        key = fresh()
        await put(backend, key, dump(old))
        merges = [
            Merge(key, {k: dump(v) for k, v in changes.items()}, KEEP, ROOM) for changes in (new, newer)
        ]

        assert [dump(old | new), dump(old | new | newer)] == await backend.merge(merges)
        assert dump(old | new | newer) == await value_of(backend, key)

    async def test_merge_into_no_dict(self, backend: StateBackend) -> None:
        """A merge into what is no dict is a conflict, which changes nothing, not even the life span."""
        values = [b"1", b"1.5", b'"{}"', b'""', b"[]", b"[{}]", b"true", b"null", b'"{\\"a\\":1}"']
        keys = [fresh() for _ in values]
        await backend.set([Entry(key, value) for key, value in zip(keys, values, strict=True)])
        merged = await backend.merge([Merge(key, {"a": b"1"}, SHORT, ROOM) for key in keys])
        await self.pass_time(PAST_SHORT)

        assert ["conflict"] * len(values) == outcomes(merged)
        assert values == await backend.get(keys)

    async def test_merge_size(self, backend: StateBackend) -> None:
        """A merge that would make more bytes of UTF-8 than allowed is a conflict that changes nothing."""
        key = fresh()
        await put(backend, key, b'{"a":1}')
        larger = dump({"a": 1, "b": "ğ😀"})
        changes = {"b": dump("ğ😀")}

        assert ["conflict"] == outcomes(await backend.merge([Merge(key, changes, None, len(larger) - 1)]))
        assert b'{"a":1}' == await value_of(backend, key)
        assert [larger] == await backend.merge([Merge(key, changes, None, len(larger))])

    async def test_merge_size_of_a_new_dict(self, backend: StateBackend) -> None:
        """The limit holds for a dict that the merge creates, too: nothing is created then."""
        key = fresh()

        assert ["conflict"] == outcomes(await backend.merge([Merge(key, {"a": b'"xxxx"'}, None, 11)]))
        assert await value_of(backend, key) is None
        assert {} == await backend.get_all(key.user_id)

    async def test_merge_conflict_is_its_own(self, backend: StateBackend) -> None:
        """In a batch across many users a conflict keeps no other merge out."""
        keys = [fresh() for _ in range(40)]
        await put(backend, keys[7], b"[1]")
        expected = [b'{"a":1}' if number != 7 else "conflict" for number in range(40)]
        merged = await backend.merge([Merge(key, {"a": b"1"}, None, ROOM) for key in keys])

        assert expected == outcomes(merged)
        assert [b"[1]" if number == 7 else b'{"a":1}' for number in range(40)] == await backend.get(keys)

    async def test_concurrent_merges(self, backend: StateBackend) -> None:
        """Of fifty merges of different fields at once none is lost."""
        key = fresh()
        fields = {f"field {number}": dump(number) for number in range(50)}
        merged = await together(
            backend.merge([Merge(key, {name: value}, KEEP, ROOM)]) for name, value in fields.items()
        )
        expected = {name: load(value) for name, value in fields.items()}

        assert dump(expected) == await value_of(backend, key)
        assert list(range(1, 51)) == sorted(
            len(load(value)) for (value,) in merged if isinstance(value, bytes)
        )

    async def test_compare_and_set(self, backend: StateBackend) -> None:
        """A value is replaced if it is the expected one, byte for byte, else it stays."""
        key = fresh()
        await put(backend, key, b'{"a":1}')

        assert not await backend.compare_and_set(key, b'{"a":1.0}', b"2", None)
        assert not await backend.compare_and_set(key, b'{"a":1', b"2", None)
        assert not await backend.compare_and_set(key, b"null", b"2", None)
        assert b'{"a":1}' == await value_of(backend, key)
        assert await backend.compare_and_set(key, b'{"a":1}', b"2", None)
        assert b"2" == await value_of(backend, key)

    async def test_compare_with_absence(self, backend: StateBackend) -> None:
        """An absent key counts as null, and so does a stored null."""
        key = fresh()

        assert not await backend.compare_and_set(key, b"1", b"2", None)
        assert not await backend.compare_and_set(key, b'""', b"2", None)
        assert await value_of(backend, key) is None
        assert await backend.compare_and_set(key, b"null", b"null", None)
        assert await backend.compare_and_set(key, b"null", b"3", None)
        assert not await backend.compare_and_set(key, b"null", b"4", None)
        assert {key.name: b"3"} == await backend.get_all(key.user_id)

    async def test_compare_awkward_values(self, backend: StateBackend) -> None:
        """Whatever a value is, what `get()` returned is what `compare_and_set()` expects."""
        values = [*AWKWARD_VALUES, DEEPEST, dict.fromkeys(AWKWARD_KEYS, 0.1)]
        keys = [fresh() for _ in values]
        await backend.set([Entry(key, dump(value)) for key, value in zip(keys, values, strict=True)])
        stored = await backend.get(keys)
        done = await together(
            backend.compare_and_set(key, value or b"", b'"new"', None)
            for key, value in zip(keys, stored, strict=True)
        )

        assert [True] * len(values) == done
        assert [b'"new"'] * len(values) == await backend.get(keys)

    async def test_race_of_compare_and_set(self, backend: StateBackend) -> None:
        """Of fifty who expect the same value exactly one replaces it."""
        for start in (None, b"0"):
            key = fresh()
            if start is not None:
                await put(backend, key, start)
            won = await together(
                backend.compare_and_set(key, start or b"null", dump(number), None) for number in range(1, 51)
            )

            assert 1 == won.count(True)
            assert dump(won.index(True) + 1) == await value_of(backend, key)

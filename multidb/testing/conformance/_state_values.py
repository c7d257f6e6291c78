"""The state suite's tests of values: set, get, delete, get_all, clear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given

from multidb._core.values import dump
from multidb.state.protocol import Entry, Key
from multidb.testing.conformance._data import (
    AWKWARD_KEYS,
    AWKWARD_VALUES,
    DEEPEST,
    free_json,
    nested,
    round_trips,
    together,
    unique,
)
from multidb.testing.conformance._state_base import (
    StateSuite,
    fresh,
    put,
    value_of,
)

if TYPE_CHECKING:
    from multidb.state.protocol import StateBackend


class ValueTests(StateSuite):
    """Values: what is stored is what comes back."""

    async def test_name(self, backend: StateBackend) -> None:
        """A backend has a short constant name for metrics and errors."""
        name = backend.name

        assert name == backend.name
        assert 0 < len(name) <= 30
        assert name.isascii()
        assert name == name.lower().strip()

    async def test_set_and_get(self, backend: StateBackend) -> None:
        """What is stored comes back; where nothing is stored there is None, in the order of the keys."""
        first, second, absent = fresh(), fresh(), fresh()
        await backend.set([Entry(first, b'"one"'), Entry(second, b'"two"')])

        assert [b'"two"', None, b'"one"', b'"two"'] == await backend.get([second, absent, first, second])

    async def test_nothing_asked(self, backend: StateBackend) -> None:
        """A batch verb takes an empty batch."""
        await backend.set([])

        assert [] == await backend.get([])
        assert [] == list(await backend.merge([]))
        assert [] == list(await backend.delete([]))

    async def test_awkward_values(self, backend: StateBackend) -> None:
        """A value comes back byte for byte: numbers with type and digits, texts with every character."""
        values = [*AWKWARD_VALUES, DEEPEST, nested(31, []), dict.fromkeys(AWKWARD_KEYS, 1.0)]
        user = unique()
        keys = [Key(user, f"k{number}") for number in range(len(values))]
        await backend.set([Entry(key, dump(value)) for key, value in zip(keys, values, strict=True)])

        assert [dump(value) for value in values] == await backend.get(keys)

    async def test_large_value(self, backend: StateBackend) -> None:
        """A value of 1 MiB, the largest that the store lets through, comes back."""
        key = fresh()
        value = dump("ğ😀" * ((1 << 20) // 6 - 1))
        await put(backend, key, value)

        assert value == await value_of(backend, key)

    @round_trips
    @given(value=free_json())
    async def test_any_value(self, backend: StateBackend, value: Any) -> None:
        """Whatever the store lets through comes back byte for byte."""
        key = fresh()
        await put(backend, key, dump(value))

        assert dump(value) == await value_of(backend, key)

    async def test_overwrite(self, backend: StateBackend) -> None:
        """A value takes the place of the one before; of two in one batch the later one stays."""
        key = fresh()
        await put(backend, key, b'{"a":1}')
        await put(backend, key, b"[]")
        await backend.set([Entry(key, b"1"), Entry(key, b"2")])

        assert b"2" == await value_of(backend, key)
        assert {key.name: b"2"} == await backend.get_all(key.user_id)

    async def test_null_is_a_value(self, backend: StateBackend) -> None:
        """A stored null is there; absence is None."""
        key = fresh()
        await put(backend, key, b"null")

        assert b"null" == await value_of(backend, key)
        assert [True] == list(await backend.delete([key]))
        assert await value_of(backend, key) is None

    async def test_delete(self, backend: StateBackend) -> None:
        """Deleting says for each key whether there was a value; the second of two equal keys finds none."""
        key, other, absent = fresh(), fresh(), fresh()
        await backend.set([Entry(key, b"1"), Entry(other, b"2")])

        assert [True, False, False] == list(await backend.delete([key, absent, key]))
        assert [None, b"2"] == await backend.get([key, other])
        assert {} == await backend.get_all(key.user_id)

    async def test_get_all_and_clear(self, backend: StateBackend) -> None:
        """All values of a user are that user's only; clearing them returns how many there were."""
        user, other = unique(), unique()
        await backend.set([Entry(Key(user, name), dump(name)) for name in ("a", "b", "c")])
        await put(backend, Key(other, "a"), b'"other"')
        await backend.delete([Key(user, "b")])
        await put(backend, Key(user, "a"), b"1")

        assert {"a": b"1", "c": b'"c"'} == await backend.get_all(user)
        assert 2 == await backend.clear(user)
        assert {} == await backend.get_all(user)
        assert 0 == await backend.clear(user)
        assert [None, b'"other"'] == await backend.get([Key(user, "a"), Key(other, "a")])

    async def test_store_again_after_clear(self, backend: StateBackend) -> None:
        """A user whose values were cleared is a user like any other."""
        key = fresh()
        await put(backend, key, b"1")
        await backend.clear(key.user_id)
        await put(backend, key, b"2")

        assert {key.name: b"2"} == await backend.get_all(key.user_id)
        assert 1 == await backend.clear(key.user_id)

    async def test_many_keys(self, backend: StateBackend) -> None:
        """A user may have many values; all of them are found and cleared."""
        user = unique()
        values = {f"key {number}": dump(number) for number in range(500)}
        await backend.set([Entry(Key(user, name), value) for name, value in values.items()])

        assert values == await backend.get_all(user)
        assert 500 == await backend.clear(user)
        assert {} == await backend.get_all(user)

    async def test_many_users_in_one_batch(self, backend: StateBackend) -> None:
        """A batch may go across many users, wherever a cluster keeps them; answers are in order."""
        keys = [fresh() for _ in range(100)]
        await backend.set([Entry(key, dump(number)) for number, key in enumerate(keys)])
        await backend.delete(keys[::3])
        expected = [dump(number) if number % 3 else None for number in range(100)]

        assert expected == await backend.get(keys)

    async def test_concurrent_calls_get_their_own_answers(self, backend: StateBackend) -> None:
        """Each of many calls made at once gets its own answer."""
        user = unique()
        keys = [Key(user, f"k{number}") for number in range(100)]
        await together(put(backend, key, dump(key.name)) for key in keys)
        values = await together(value_of(backend, key) for key in keys)

        assert [dump(key.name) for key in keys] == values
        assert {key.name: dump(key.name) for key in keys} == await backend.get_all(user)

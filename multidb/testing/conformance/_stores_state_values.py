"""The state store suite's tests of values, of a user and global."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given

from multidb.errors import ConflictError, InvalidValueError
from multidb.state.protocol import KEEP
from multidb.testing.conformance._data import (
    AWKWARD_IDS,
    AWKWARD_KEYS,
    AWKWARD_VALUES,
    DEEPEST,
    exact,
    free_dicts,
    free_json,
    nested,
    round_trips,
    together,
    unique,
)
from multidb.testing.conformance._poison import (
    BAD_KEYS,
    BAD_LEAVES,
    BAD_SECONDS,
    BAD_TEXT_KEYS,
    TOO_DEEP,
    Poisoned,
    poisoned,
)
from multidb.testing.conformance._stores_base import (
    LONG,
    NFC,
    NFD,
    PAST_SHORT,
    SHORT,
    Item,
    Order,
    StoreSuite,
    not_refused,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from multidb.state import StateStore

_MEBIBYTE = 1024 * 1024


class ValueTests(StoreSuite):
    """What is stored comes back equal, with its type; what not every backend can keep is not stored."""

    async def test_set_and_get(self, store: StateStore) -> None:
        """A value comes back under its key; elsewhere there is the default."""
        user, default = unique(), object()
        await store.set_state(user, "conversation", {"phase": "active", "step": 2})
        await store.set_state(user, "nothing", None)

        assert {"phase": "active", "step": 2} == await store.get_state(user, "conversation")
        assert await store.get_state(user, "absent") is None
        assert default is await store.get_state(user, "absent", default)
        assert default is await store.get_state(unique(), "conversation", default)
        assert await store.get_state(user, "nothing", default) is None

    async def test_overwrite(self, store: StateStore) -> None:
        """A value takes the place of the one before, whatever its type."""
        user = unique()
        values: tuple[Any, ...] = ({"a": 1}, [], "text", 1, None, False)
        for value in values:
            await store.set_state(user, "k", value)

            assert exact(value) == exact(await store.get_state(user, "k"))

    async def test_delete(self, store: StateStore) -> None:
        """Deleting says whether there was a value."""
        user = unique()
        await store.set_state(user, "k", None)

        assert await store.delete_state(user, "k") is True
        assert await store.delete_state(user, "k") is False
        assert "gone" == await store.get_state(user, "k", "gone")

    async def test_text_that_looks_like_something_else(self, store: StateStore) -> None:
        """A text stays a text, a number a number: nothing is guessed on the way out."""
        user = unique()
        values = [
            "123",
            123,
            123.0,
            "1.5",
            1.5,
            "true",
            True,
            "null",
            None,
            "[]",
            [],
            "{}",
            {},
            "",
            "0",
            0,
            0.0,
            False,
        ]
        for number, value in enumerate(values):
            await store.set_state(user, f"k{number}", value)

        assert [exact(value) for value in values] == [
            exact(await store.get_state(user, f"k{number}")) for number in range(len(values))
        ]

    async def test_awkward_values(self, store: StateStore) -> None:
        """So do the values that one backend or another is tempted to change."""
        user = unique()
        values = dict(enumerate([*AWKWARD_VALUES, DEEPEST, nested(31, []), dict.fromkeys(AWKWARD_KEYS, 1.0)]))
        await together(store.set_state(user, f"k{number}", value) for number, value in values.items())
        got = await together(store.get_state(user, f"k{number}") for number in values)

        assert [exact(value) for value in values.values()] == [exact(value) for value in got]

    @round_trips
    @given(value=free_json())
    async def test_any_value(self, store: StateStore, value: Any) -> None:
        """Whatever is accepted comes back equal, with its type, all the way down."""
        user = unique()
        await store.set_state(user, "k", value)

        assert exact(value) == exact(await store.get_state(user, "k"))
        assert exact({"k": value}) == exact(await store.get_all_user_states(user))

    async def test_what_is_made_plain(self, store: StateStore) -> None:
        """Tuples become lists, models dicts, -0.0 becomes 0.0."""
        user = unique()
        order = Order(items=(Item(name="çay", at=datetime(2026, 1, 2, tzinfo=UTC)),), total=-0.0)
        plain = {"items": [{"name": "çay", "at": "2026-01-02T00:00:00Z"}], "total": 0.0}
        await store.set_state(user, "model", order)
        await store.set_state(user, "inside", {"orders": (order, order), "zero": -0.0})

        assert exact(plain) == exact(await store.get_state(user, "model"))
        assert exact({"orders": [plain, plain], "zero": 0.0}) == exact(await store.get_state(user, "inside"))

    async def test_values_are_copies(self, store: StateStore) -> None:
        """Changing a value after it was stored, or after it came back, changes nothing that is stored."""
        user = unique()
        value: dict[str, Any] = {"items": []}
        await store.set_state(user, "k", value)
        value["items"].append("later")
        for got in (await store.get_state(user, "k"), (await store.get_all_user_states(user))["k"]):
            got["items"].append("outside")
        merged = await store.update_state(user, "k", {"a": value})
        merged["a"]["items"].append("outside")

        assert {"items": [], "a": {"items": ["later"]}} == await store.get_state(user, "k")

    async def test_bad_values(self, store: StateStore) -> None:
        """A value that not every backend can keep is refused by name of its place, and nothing is stored."""
        user = unique()
        places: list[tuple[str, Callable[[Any], Any]]] = [
            ("value", lambda bad: bad),
            ("value.order.items[2]", lambda bad: {"order": {"items": [1, 2, bad]}}),
        ]
        for where, wrap in places:
            bad_values = [wrap(bad) for bad in BAD_LEAVES]
            assert [] == await not_refused(bad_values, where, partial(store.set_state, user, "k"), value=True)
            assert [] == await not_refused(
                bad_values, where, partial(store.compare_and_set_state, user, "k", None), value=True
            )
        assert [] == await not_refused(
            BAD_LEAVES, "changes.a", lambda bad: store.update_state(user, "k", {"a": bad}), value=True
        )
        assert [] == await not_refused(
            BAD_LEAVES, "expected", lambda bad: store.compare_and_set_state(user, "k", bad, 1), value=True
        )
        assert {} == await store.get_all_user_states(user)

    async def test_bad_keys(self, store: StateStore) -> None:
        """Keys are texts; any text will do."""
        user = unique()

        assert [] == await not_refused(
            BAD_KEYS, "value.a[0]", lambda bad: store.set_state(user, "k", {"a": [{bad: 1}]}), value=True
        )
        assert [] == await not_refused(
            BAD_KEYS, "changes", lambda bad: store.update_state(user, "k", {bad: 1}), value=True
        )
        assert [] == await not_refused(
            BAD_TEXT_KEYS, "value (a key)", lambda bad: store.set_state(user, "k", {bad: 1}), value=True
        )
        assert {} == await store.get_all_user_states(user)

    async def test_bad_value_beside_good_ones(self, store: StateStore) -> None:
        """Of three values that are stored at the same time, the middle one bad, two are stored."""
        user = unique()
        results = await asyncio.gather(
            store.set_state(user, "first", 1),
            store.set_state(user, "second", {"a": ["x", "\0"]}),
            store.set_state(user, "third", 3),
            return_exceptions=True,
        )

        assert [type(None), InvalidValueError, type(None)] == [type(result) for result in results]
        assert "value.a[1]: NUL character; remove it" == str(results[1])
        assert {"first": 1, "third": 3} == await store.get_all_user_states(user)

    @round_trips
    @given(bad=poisoned(free_json()))
    async def test_any_poison(self, store: StateStore, bad: Poisoned) -> None:
        """A bad leaf or key is found at any place in any value, and named."""
        user = unique()

        assert f"value{bad.where}" == (await refusal(store.set_state(user, "k", bad.value))).path
        assert {} == await store.get_all_user_states(user)

    async def test_depth(self, store: StateStore) -> None:
        """32 levels are allowed; 33, 101 and 5,000 are not."""
        user = unique()
        await store.set_state(user, "k", nested(32))

        assert [] == await not_refused(
            TOO_DEEP, "value" + ".n[0]" * 16, lambda bad: store.set_state(user, "k", bad), value=True
        )
        assert nested(32) == await store.get_state(user, "k")

    async def test_size(self, store: StateStore) -> None:
        """1 MiB as JSON is allowed, one byte more is not; an item of a list is held to the same."""
        user = unique()
        largest = "x" * (_MEBIBYTE - 2)
        await store.set_state(user, "k", largest)
        await store.add_to_list(user, "l", largest)

        assert largest == await store.get_state(user, "k")
        assert [largest] == await store.get_list(user, "l")
        for too_large in (f"{largest}x", "ğ" * _MEBIBYTE):
            assert "value" == (await refusal(store.set_state(user, "k", too_large))).path
            assert "item" == (await refusal(store.add_to_list(user, "l", too_large))).path
            assert "changes" == (await refusal(store.update_state(user, "new", {"a": too_large}))).path
        assert ["k"] == list(await store.get_all_user_states(user))


class ChangeTests(StoreSuite):
    """Values that change: merged, compared, touched."""

    async def test_update(self, store: StateStore) -> None:
        """Fields are put into the stored dict, at the top level only; the result is returned."""
        user = unique()

        assert {"a": 1, "b": {"x": 1}} == await store.update_state(user, "k", {"a": 1, "b": {"x": 1}})
        assert {"a": 1, "b": {"y": 2}} == await store.update_state(user, "k", {"b": {"y": 2}})
        assert {"a": 1, "b": {"y": 2}} == await store.update_state(user, "k", {})
        assert {"a": 1, "b": {"y": 2}} == await store.get_state(user, "k")
        assert {} == await store.update_state(user, "empty", {})

    async def test_update_with_a_model(self, store: StateStore) -> None:
        """A model counts as the dict that it dumps to."""
        user = unique()
        await store.update_state(user, "k", {"total": 7, "note": "x"})

        assert {"items": [], "total": 2.5, "note": "x"} == await store.update_state(
            user, "k", Order(total=2.5)
        )

    @round_trips
    @given(before=free_dicts(), changes=free_dicts())
    async def test_any_update(
        self, store: StateStore, before: dict[str, Any], changes: dict[str, Any]
    ) -> None:
        """A merge is what `before | changes` is, types included."""
        user = unique()
        await store.set_state(user, "k", before)
        merged = await store.update_state(user, "k", changes)

        assert exact(before | changes) == exact(merged) == exact(await store.get_state(user, "k"))

    async def test_update_of_something_else(self, store: StateStore) -> None:
        """What is no dict cannot be merged into, and stays."""
        user = unique()
        values: tuple[Any, ...] = ([], "text", 1, True, None)
        for value in values:
            await store.set_state(user, "k", value)
            with pytest.raises(ConflictError):
                await store.update_state(user, "k", {"a": 1})

            assert exact(value) == exact(await store.get_state(user, "k"))

    async def test_update_with_something_else(self, store: StateStore) -> None:
        """Nor can anything but a dict or a model be merged."""
        user = unique()
        bad = ([("a", 1)], "a", 1, None, True, {"a"}, b"a", {"a": 1}.items())

        assert [] == await not_refused(
            bad, "changes", lambda one: store.update_state(user, "k", one), value=True
        )
        assert {} == await store.get_all_user_states(user)

    async def test_update_beyond_the_size(self, store: StateStore) -> None:
        """A merge that would make the value too large is a conflict, and changes nothing."""
        user = unique()
        half = "x" * (_MEBIBYTE // 2)
        await store.update_state(user, "k", {"a": half})
        with pytest.raises(ConflictError):
            await store.update_state(user, "k", {"b": half})

        assert {"a": half} == await store.get_state(user, "k")

    async def test_updates_at_once(self, store: StateStore) -> None:
        """Of 50 tasks that update different fields at once, 50 fields are kept; each is told its own."""
        user = unique()
        merged = await together(store.update_state(user, "k", {f"f{number}": number}) for number in range(50))

        assert {f"f{number}": number for number in range(50)} == await store.get_state(user, "k")
        assert all(fields[f"f{number}"] == number for number, fields in enumerate(merged))
        assert list(range(1, 51)) == sorted(len(fields) for fields in merged)

    async def test_compare_and_set(self, store: StateStore) -> None:
        """A value is stored if the expected one is, and whether it was is returned."""
        user = unique()
        await store.set_state(user, "k", {"step": 1})

        assert await store.compare_and_set_state(user, "k", {"step": 2}, {"step": 3}) is False
        assert await store.compare_and_set_state(user, "k", {"step": 1}, {"step": 2}) is True
        assert {"step": 2} == await store.get_state(user, "k")

    async def test_compare_types(self, store: StateStore) -> None:
        """Equal means equal with its type, all the way down; the order of keys does not count."""
        user = unique()
        different = [
            0,
            0.0,
            False,
            "0",
            None,
            "",
            [],
            {},
            1,
            1.0,
            True,
            "1",
            [1],
            [1.0],
            [True],
            {"a": 1},
            {"a": 1.0},
        ]
        for stored in different:
            await store.set_state(user, "k", stored)
            for expected in different:
                fits = await store.compare_and_set_state(user, "k", expected, stored)

                assert (exact(expected) == exact(stored)) is fits
        await store.set_state(user, "k", {"a": (1, 2), "b": -0.0})
        assert await store.compare_and_set_state(user, "k", {"b": 0.0, "a": [1, 2]}, 1)

    async def test_compare_with_nothing(self, store: StateStore) -> None:
        """None fits a key that is absent, a stored None, and nothing else."""
        user = unique()

        assert await store.compare_and_set_state(user, "k", False, 1) is False
        assert await store.compare_and_set_state(user, "k", None, None) is True
        assert await store.compare_and_set_state(user, "k", None, 1) is True
        assert await store.compare_and_set_state(user, "k", None, 2) is False
        assert 1 == await store.get_state(user, "k")

    async def test_compare_at_once(self, store: StateStore) -> None:
        """Of many who expect the same one wins; a loop of reading and comparing loses nothing."""
        user = unique()
        won = await together(store.compare_and_set_state(user, "k", None, number) for number in range(50))

        assert 1 == won.count(True)
        assert won.index(True) == await store.get_state(user, "k")

        async def add_one() -> None:
            done = False
            while not done:
                before = await store.get_state(user, "total")
                done = await store.compare_and_set_state(user, "total", before, (before or 0) + 1)

        await asyncio.gather(*(add_one() for _ in range(10)))
        assert 10 == await store.get_state(user, "total")


class LifeSpanTests(StoreSuite):
    """Values that end."""

    async def test_expiry(self, store: StateStore) -> None:
        """What has expired is never returned, listed, counted or compared with; what has not is."""
        user = unique()
        await store.set_state(user, "short", {"a": 1}, expire_seconds=SHORT)
        await store.set_state(user, "long", 1, expire_seconds=LONG)
        await store.set_state(user, "endless", 2)
        before = await store.get_all_user_states(user)
        await self.pass_time(PAST_SHORT)

        assert {"short": {"a": 1}, "long": 1, "endless": 2} == before
        assert {"long": 1, "endless": 2} == await store.get_all_user_states(user)
        assert "gone" == await store.get_state(user, "short", "gone")
        assert await store.delete_state(user, "short") is False
        assert await store.touch_state(user, "short", LONG) is False
        assert await store.compare_and_set_state(user, "short", {"a": 1}, 2) is False
        assert {"b": 2} == await store.update_state(user, "short", {"b": 2})
        assert 3 == await store.clear_state(user)

    async def test_fraction_of_a_second(self, store: StateStore) -> None:
        """A life span of 1.9 seconds is 1.9 seconds."""
        user = unique()
        await store.set_state(user, "k", 1, expire_seconds=1.9)
        await store.set_cooldown(user, "a", 1.9)
        left = await store.check_cooldown(user, "a")
        await self.pass_time(1.2)
        late = await store.get_state(user, "k")
        await self.pass_time(0.8)

        assert left is not None
        assert 1.5 < left <= 1.901
        assert 1 == late
        assert await store.get_state(user, "k") is None

    async def test_set_ends_a_life_span(self, store: StateStore) -> None:
        """Storing without a life span removes the one there was."""
        user = unique()
        await store.set_state(user, "k", 1, expire_seconds=SHORT)
        await store.set_state(user, "k", 2)
        await self.pass_time(PAST_SHORT)

        assert 2 == await store.get_state(user, "k")

    async def test_life_span_of_changes(self, store: StateStore) -> None:
        """A merge and a compare keep the life span, remove it with None, or set another one."""
        user = unique()
        spans: dict[str, tuple[float | None, Any]] = {
            "kept": (SHORT, KEEP),
            "kept endless": (None, KEEP),
            "removed": (SHORT, None),
            "longer": (SHORT, LONG),
            "shorter": (LONG, SHORT),
        }
        for name, (first, second) in spans.items():
            await store.set_state(user, f"{name} merge", {}, expire_seconds=first)
            await store.update_state(user, f"{name} merge", {"a": 1}, expire_seconds=second)
            await store.set_state(user, f"{name} compare", 1, expire_seconds=first)
            await store.compare_and_set_state(user, f"{name} compare", 1, 2, expire_seconds=second)
        await store.update_state(user, "new merge", {}, expire_seconds=SHORT)
        await store.compare_and_set_state(user, "new compare", None, 1, expire_seconds=SHORT)
        await self.pass_time(PAST_SHORT)

        alive = ("kept endless", "longer", "removed")
        assert sorted(f"{name} {kind}" for name in alive for kind in ("compare", "merge")) == list(
            await store.get_all_user_states(user)
        )

    async def test_touch(self, store: StateStore) -> None:
        """Touching gives a new life span from now, or none, and says whether there is a value."""
        user = unique()
        for name in ("longer", "endless", "untouched"):
            await store.set_state(user, name, name, expire_seconds=SHORT)
        await store.set_state(user, "shorter", 1)

        assert await store.touch_state(user, "absent", LONG) is False
        assert [True] * 3 == [
            await store.touch_state(user, "longer", LONG),
            await store.touch_state(user, "endless", None),
            await store.touch_state(user, "shorter", SHORT),
        ]
        await self.pass_time(PAST_SHORT)
        assert {"longer": "longer", "endless": "endless"} == await store.get_all_user_states(user)

    async def test_borders(self, store: StateStore) -> None:
        """A millisecond and ten years are life spans."""
        user = unique()
        await store.set_state(user, "shortest", 1, expire_seconds=0.001)
        await store.set_state(user, "longest", 2, expire_seconds=315_576_000)
        await self.pass_time(0.01)

        assert {"longest": 2} == await store.get_all_user_states(user)

    async def test_bad_life_spans(self, store: StateStore) -> None:
        """Anything below, above or else is refused by every function that takes one, and changes nothing."""
        user = unique()
        await store.set_state(user, "k", {})
        name = "expire_seconds"

        async def refused(call: Any) -> list[str]:
            return await not_refused(BAD_SECONDS, name, call)

        assert [] == await refused(lambda bad: store.set_state(user, "new", 1, expire_seconds=bad))
        assert [] == await refused(lambda bad: store.update_state(user, "k", {"a": 1}, expire_seconds=bad))
        assert [] == await refused(
            lambda bad: store.compare_and_set_state(user, "k", {}, 1, expire_seconds=bad)
        )
        assert [] == await refused(lambda bad: store.touch_state(user, "k", bad))
        assert [] == await refused(lambda bad: store.set_global_state(user, 1, expire_seconds=bad))
        assert [] == await refused(lambda bad: store.increment_counter(user, "c", expire_seconds=bad))
        assert {"k": {}} == await store.get_all_user_states(user)
        assert 0 == await store.get_counter(user, "c")


class ScopeTests(StoreSuite):
    """Whose a value is."""

    async def test_all_of_a_user(self, store: StateStore) -> None:
        """All values of a user come sorted by key; clearing says how many there were."""
        user, other = unique(), unique()
        for key in ("b", "a", "ç", "c", "10", "9"):
            await store.set_state(user, key, key.upper())
        await store.set_state(other, "a", 1)

        assert [("10", "10"), ("9", "9"), ("a", "A"), ("b", "B"), ("c", "C"), ("ç", "Ç")] == list(
            (await store.get_all_user_states(user)).items()
        )
        assert 6 == await store.clear_state(user)
        assert 0 == await store.clear_state(user)
        assert {} == await store.get_all_user_states(user)
        assert {"a": 1} == await store.get_all_user_states(other)

    async def test_clear_leaves_the_rest(self, store: StateStore) -> None:
        """Clearing the values of a user leaves the cooldowns, counters and lists of the same names."""
        user = unique()
        await store.set_state(user, "x", 1)
        await store.try_cooldown(user, "x", LONG)
        await store.increment_counter(user, "x")
        await store.add_to_list(user, "x", 1)

        assert {"x": 1} == await store.get_all_user_states(user)
        assert 1 == await store.clear_state(user)
        assert await store.check_cooldown(user, "x") is not None
        assert 1 == await store.get_counter(user, "x")
        assert [1] == await store.get_list(user, "x")

    async def test_ints_and_texts(self, store: StateStore) -> None:
        """A user id is the same as an int and as a text, for every kind of thing."""
        number = int(unique("1").partition("-")[2][:14], 16)
        await store.set_state(number, "k", 1)
        await store.increment_counter(number, "k")
        await store.add_to_list(number, "k", 1)
        claimed = [await store.try_cooldown(one, "k", LONG) for one in (number, str(number))]

        assert [True, False] == claimed
        assert {"k": 1} == await store.get_all_user_states(str(number))
        assert 2 == await store.increment_counter(str(number), "k")
        assert 2 == await store.add_to_list(str(number), "k", 2)

    async def test_normal_form(self, store: StateStore) -> None:
        """Ids and keys that look the same are the same; those that differ in case are not."""
        user = unique()
        await store.set_state(user + NFD, NFD, 1)
        await store.set_state(f"{user}Ali", "Ali", 2)

        assert 1 == await store.get_state(user + NFC, NFC)
        assert {NFC: 1} == await store.get_all_user_states(user + NFC)
        assert await store.get_state(f"{user}ali", "Ali") is None
        assert await store.get_state(f"{user}Ali", "ali") is None

    async def test_awkward_names(self, store: StateStore) -> None:
        """No user and key is mistaken for another, whatever is in them."""
        prefix = unique()
        names = [(prefix + user, key) for user in AWKWARD_IDS for key in ("k", "k:v", "v")]
        pairs = [*names, *((prefix, key) for key in AWKWARD_IDS)]
        await together(store.set_state(user, key, [user, key]) for user, key in pairs)
        got = await together(store.get_state(user, key) for user, key in pairs)
        of_users = await together(store.get_all_user_states(prefix + user) for user in AWKWARD_IDS)

        assert [[user, key] for user, key in pairs] == got
        assert [{"k", "k:v", "v"}] * len(AWKWARD_IDS) == [set(values) for values in of_users]

    async def test_joined_names(self, store: StateStore) -> None:
        """User `a:b` with key `c` is not user `a` with key `b:c`, for any kind of thing."""
        prefix = unique()
        pairs = [(f"{prefix}:b", "c"), (prefix, "b:c"), (f"{prefix}:b:c", "c"), (prefix, "b:c:c")]
        for user, key in pairs:
            await store.set_state(user, key, key)

            assert 1 == await store.increment_counter(user, key)
            assert 1 == await store.add_to_list(user, key, key)
            assert await store.try_cooldown(user, key, LONG)
        assert [key for _, key in pairs] == [await store.get_state(user, key) for user, key in pairs]

    async def test_global_values(self, store: StateStore) -> None:
        """Global values have functions of their own, which do what those of a user do."""
        key = unique("g")
        await store.set_global_state(key, (1, "1"))

        assert exact([1, "1"]) == exact(await store.get_global_state(key))
        assert "default" == await store.get_global_state(f"{key}2", "default")
        assert await store.compare_and_set_global_state(key, [1, 1], {}) is False
        assert await store.compare_and_set_global_state(key, [1, "1"], {"a": 1}) is True
        assert {"a": 1, "b": 2} == await store.update_global_state(key, {"b": 2})
        assert {"a": 1, "b": 2} == (await store.get_all_global_states())[key]
        assert await store.touch_global_state(f"{key}2", 1) is False
        assert await store.touch_global_state(key, SHORT) is True
        await self.pass_time(PAST_SHORT)
        assert await store.get_global_state(key) is None
        assert key not in await store.get_all_global_states()
        await store.set_global_state(key, 1, expire_seconds=LONG)
        assert await store.delete_global_state(key) is True
        assert await store.delete_global_state(key) is False

    async def test_global_and_user(self, store: StateStore) -> None:
        """A global value belongs to nobody, whatever a user is called."""
        key = unique("g")
        await store.set_global_state(key, "global")
        for user in ("None", "null", "global", "*", "_"):
            assert await store.get_state(user, key) is None
            await store.set_state(user, key, user)
            assert 1 <= await store.clear_state(user)

        assert "global" == await store.get_global_state(key)

    async def test_clear_global(self, store: StateStore) -> None:
        """Clearing the global values leaves those of users alone."""
        user, key = unique(), unique("g")
        await store.set_state(user, key, 1)
        for number in range(3):
            await store.set_global_state(f"{key}{number}", number)

        assert 3 <= await store.clear_global_state()
        assert [None] * 3 == [await store.get_global_state(f"{key}{number}") for number in range(3)]
        assert 1 == await store.get_state(user, key)

    async def test_bad_global_values(self, store: StateStore) -> None:
        """They are held to the same rule."""
        key = unique("g")

        assert [] == await not_refused(
            BAD_LEAVES, "value", lambda bad: store.set_global_state(key, bad), value=True
        )
        assert [] == await not_refused(
            BAD_LEAVES, "changes.a", lambda bad: store.update_global_state(key, {"a": bad}), value=True
        )
        assert [] == await not_refused(
            BAD_LEAVES, "value", lambda bad: store.compare_and_set_global_state(key, None, bad), value=True
        )
        assert await store.get_global_state(key) is None

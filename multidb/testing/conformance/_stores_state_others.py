"""The state store suite's tests of cooldowns, counters and lists, and of the names of all things."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multidb._core.values import MAX_INT, MIN_INT
from multidb.errors import ConflictError
from multidb.testing.conformance._data import (
    AWKWARD_VALUES,
    exact,
    free_json,
    nested,
    round_trips,
    together,
    unique,
)
from multidb.testing.conformance._poison import (
    BAD_IDS,
    BAD_LABELS,
    BAD_LEAVES,
    BAD_SECONDS,
    TOO_DEEP,
    Poisoned,
    poisoned,
)
from multidb.testing.conformance._stores_base import (
    LONG,
    PAST_SHORT,
    SHORT,
    Item,
    StoreSuite,
    not_refused,
    refusal,
)

if TYPE_CHECKING:
    from multidb.state import StateStore


class CooldownTests(StoreSuite):
    """Cooldowns."""

    async def test_cooldown(self, store: StateStore) -> None:
        """The first claim starts a cooldown, the next ones do not, until it is over."""
        user = unique()

        assert await store.try_cooldown(user, "spam", SHORT) is True
        assert await store.try_cooldown(user, "spam", LONG) is False
        assert await store.try_cooldown(user, "other", LONG) is True
        assert await store.try_cooldown(unique(), "spam", LONG) is True
        await self.pass_time(PAST_SHORT)
        assert await store.check_cooldown(user, "spam") is None
        assert await store.try_cooldown(user, "spam", LONG) is True

    async def test_claims_at_once(self, store: StateStore) -> None:
        """Of 100 tasks that claim at once exactly one gets it."""
        user = unique()
        claims = await together(store.try_cooldown(user, "spam", LONG) for _ in range(100))

        assert 1 == claims.count(True)
        assert 99 == claims.count(False)

    async def test_seconds_left(self, store: StateStore) -> None:
        """A running cooldown says how long, as a float."""
        user = unique()
        await store.try_cooldown(user, "a", 5)
        left = await store.check_cooldown(user, "a")
        await self.pass_time(0.1)
        later = await store.check_cooldown(user, "a")

        assert type(left) is float
        assert 4 < left <= 5.001
        assert type(later) is float
        assert later < left
        assert await store.check_cooldown(user, "absent") is None

    async def test_set_and_clear(self, store: StateStore) -> None:
        """A cooldown can be started anew, shorter or longer, and ended; ending says whether it ran."""
        user = unique()
        await store.set_cooldown(user, "a", LONG)
        await store.set_cooldown(user, "a", 5)
        left = await store.check_cooldown(user, "a")

        assert left is not None
        assert 4 < left <= 5.001
        assert await store.try_cooldown(user, "a", 1) is False
        assert await store.clear_cooldown(user, "a") is True
        assert await store.clear_cooldown(user, "a") is False
        assert await store.check_cooldown(user, "a") is None
        assert await store.try_cooldown(user, "a", LONG) is True

    async def test_bad_seconds(self, store: StateStore) -> None:
        """A cooldown has a life span like any other, and always one."""
        user = unique()
        bad = [*BAD_SECONDS, None]

        assert [] == await not_refused(bad, "seconds", lambda one: store.try_cooldown(user, "a", one))
        assert [] == await not_refused(bad, "seconds", lambda one: store.set_cooldown(user, "a", one))
        assert await store.check_cooldown(user, "a") is None


class CounterTests(StoreSuite):
    """Counters."""

    async def test_counter(self, store: StateStore) -> None:
        """A counter starts at 0 and returns its new value; resetting says whether there was one."""
        user = unique()
        values = [await store.increment_counter(user, "c", amount) for amount in (1, 1, 40, -50, 0)]
        by_default = await store.increment_counter(user, "c")

        assert exact([1, 2, 42, -8, -8]) == exact(values)
        assert -7 == by_default
        assert exact(-7) == exact(await store.get_counter(user, "c"))
        assert exact(0) == exact(await store.get_counter(user, "absent"))
        assert await store.reset_counter(user, "c") is True
        assert await store.reset_counter(user, "c") is False
        assert 0 == await store.get_counter(user, "c")

    async def test_counter_at_zero(self, store: StateStore) -> None:
        """A counter that is back at 0 is there."""
        user = unique()
        await store.increment_counter(user, "c", 0)

        assert 0 == await store.get_counter(user, "c")
        assert await store.reset_counter(user, "c") is True

    @round_trips
    @given(amounts=st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=5))
    async def test_any_amounts(self, store: StateStore, amounts: list[int]) -> None:
        """A counter is the sum of what was added, exactly."""
        user = unique()
        values = [await store.increment_counter(user, "c", amount) for amount in amounts]

        assert [sum(amounts[: number + 1]) for number in range(len(amounts))] == values
        assert sum(amounts) == await store.get_counter(user, "c")

    async def test_increments_at_once(self, store: StateStore) -> None:
        """Of 100 increments at once each counts, and each gets a value of its own."""
        user = unique()
        values = await together(store.increment_counter(user, "c") for _ in range(100))

        assert list(range(1, 101)) == sorted(values)
        assert 100 == await store.get_counter(user, "c")

    async def test_sixty_four_bits(self, store: StateStore) -> None:
        """A counter keeps 64 bits exactly; leaving them is a conflict that changes nothing."""
        user = unique()
        for name, amount, step in (("high", MAX_INT, 1), ("low", MIN_INT, -1)):
            assert exact(amount) == exact(await store.increment_counter(user, name, amount))
            for beyond in (step, amount):
                with pytest.raises(ConflictError):
                    await store.increment_counter(user, name, beyond)
            assert exact(amount) == exact(await store.get_counter(user, name))
            assert amount - step == await store.increment_counter(user, name, -step)

    async def test_life_span(self, store: StateStore) -> None:
        """The life span starts with the first increment; later ones do not prolong it."""
        user = unique()
        await store.increment_counter(user, "c", expire_seconds=SHORT)
        await store.increment_counter(user, "c", expire_seconds=LONG)
        await store.increment_counter(user, "endless")
        await store.increment_counter(user, "endless", expire_seconds=SHORT)
        await self.pass_time(PAST_SHORT)

        assert 0 == await store.get_counter(user, "c")
        assert 1 == await store.increment_counter(user, "c", expire_seconds=LONG)
        assert 2 == await store.get_counter(user, "endless")

    async def test_bad_amounts(self, store: StateStore) -> None:
        """An amount is an int of 64 bits."""
        user = unique()
        bad = (MAX_INT + 1, MIN_INT - 1, True, 1.0, 1.5, float("nan"), "1", None, [1], {"$inc": 1})

        assert [] == await not_refused(bad, "amount", lambda one: store.increment_counter(user, "c", one))
        assert 0 == await store.get_counter(user, "c")


class ListTests(StoreSuite):
    """Lists."""

    async def test_list(self, store: StateStore) -> None:
        """Items come back oldest first; adding returns the length; deleting says whether there was a list."""
        user = unique()
        lengths = [await store.add_to_list(user, "l", item) for item in ("a", "b", "a")]

        assert exact([1, 2, 3]) == exact(lengths)
        assert ["a", "b", "a"] == await store.get_list(user, "l")
        assert [] == await store.get_list(user, "absent")
        assert await store.delete_list(user, "l") is True
        assert await store.delete_list(user, "l") is False
        assert [] == await store.get_list(user, "l")

    async def test_max_length(self, store: StateStore) -> None:
        """With a maximum the newest items are kept, also where a list was longer before."""
        user = unique()
        lengths = [await store.add_to_list(user, "l", number, max_length=3) for number in range(5)]

        assert [1, 2, 3, 3, 3] == lengths
        assert [2, 3, 4] == await store.get_list(user, "l")
        assert 4 == await store.add_to_list(user, "l", 5)
        assert 1 == await store.add_to_list(user, "l", 6, max_length=1)
        assert [6] == await store.get_list(user, "l")

    async def test_items_at_once(self, store: StateStore) -> None:
        """Of 50 items added at once all are kept, once; with a maximum the list never grows beyond it."""
        user = unique()
        lengths = await together(store.add_to_list(user, "l", number) for number in range(50))
        bounded = await together(store.add_to_list(user, "b", number, max_length=10) for number in range(50))

        assert list(range(1, 51)) == sorted(lengths)
        assert list(range(50)) == sorted(await store.get_list(user, "l"))
        assert 10 == max(bounded)
        assert 10 == len(set(await store.get_list(user, "b")))

    async def test_awkward_items(self, store: StateStore) -> None:
        """Items keep their types."""
        user = unique()
        items = [*AWKWARD_VALUES, nested(32)]
        for item in items:
            await store.add_to_list(user, "l", item)

        assert exact(items) == exact(await store.get_list(user, "l"))

    @round_trips
    @given(items=st.lists(free_json(), max_size=4))
    async def test_any_items(self, store: StateStore, items: list[Any]) -> None:
        """Whatever is accepted comes back equal, with its type."""
        user = unique()
        for item in items:
            await store.add_to_list(user, "l", item)

        assert exact(items) == exact(await store.get_list(user, "l"))

    async def test_items_made_plain(self, store: StateStore) -> None:
        """Tuples become lists, models dicts, -0.0 becomes 0.0."""
        user = unique()
        for item in ((1, -0.0), Item(name="x")):
            await store.add_to_list(user, "l", item)

        assert exact([[1, 0.0], {"name": "x", "at": None}]) == exact(await store.get_list(user, "l"))

    @round_trips
    @given(bad=poisoned(free_json()))
    async def test_any_poisoned_item(self, store: StateStore, bad: Poisoned) -> None:
        """A bad leaf or key is found at any place in any item, and named."""
        user = unique()

        assert f"item{bad.where}" == (await refusal(store.add_to_list(user, "l", bad.value))).path
        assert [] == await store.get_list(user, "l")

    async def test_bad_items(self, store: StateStore) -> None:
        """An item that not every backend can keep is refused, and so is a maximum that is none."""
        user = unique()

        assert [] == await not_refused(
            BAD_LEAVES, "item", lambda bad: store.add_to_list(user, "l", bad), value=True
        )
        assert [] == await not_refused(
            TOO_DEEP, "item" + ".n[0]" * 16, lambda bad: store.add_to_list(user, "l", bad), value=True
        )
        assert [] == await not_refused(
            (0, -1, True, 1.0, "1", MAX_INT + 1),
            "max_length",
            lambda bad: store.add_to_list(user, "l", 1, max_length=bad),
        )
        assert [] == await store.get_list(user, "l")


class NameTests(StoreSuite):
    """How things are named."""

    async def test_kinds(self, store: StateStore) -> None:
        """A value, a cooldown, a counter and a list of one name are four things."""
        user = unique()
        await store.set_state(user, "x", "value")
        await store.add_to_list(user, "x", "item")

        assert await store.try_cooldown(user, "x", LONG) is True
        assert 1 == await store.increment_counter(user, "x")
        assert "value" == await store.get_state(user, "x")
        assert ["item"] == await store.get_list(user, "x")
        assert await store.delete_state(user, "x") is True
        assert await store.delete_list(user, "x") is True
        assert await store.reset_counter(user, "x") is True
        assert await store.clear_cooldown(user, "x") is True

    async def test_bad_users(self, store: StateStore) -> None:
        """What is no identifier is no user, for any function."""
        for call in _calls(store).values():
            assert [] == await not_refused(BAD_IDS, "user_id", _of_user(call))
        for of_user in (store.get_all_user_states, store.clear_state):
            assert [] == await not_refused(BAD_IDS, "user_id", of_user)

    async def test_bad_names(self, store: StateStore) -> None:
        """What is no identifier, or an int, is no key, action, counter or list, for any function."""
        user = unique()
        for call, argument in ((call, name.split()[0]) for name, call in _calls(store).items()):
            assert [] == await not_refused(BAD_LABELS, argument, partial(call, user))
        assert [] == await not_refused(BAD_LABELS, "key", lambda bad: store.set_global_state(bad, 1))
        assert [] == await not_refused(BAD_LABELS, "key", store.get_global_state)
        assert [] == await not_refused(BAD_LABELS, "key", store.delete_global_state)
        assert {} == await store.get_all_user_states(user)

    async def test_names_that_look_bad(self, store: StateStore) -> None:
        """Everything else is a name like any other: paths, patterns, reserved words."""
        user = unique()
        names = [
            "../../etc/passwd",
            "CON",
            ".",
            "..",
            "a/b",
            "\\",
            "*",
            "%",
            "_",
            "?",
            "{a}",
            "x" * 256,
            "😀" * 64,
            " ",
            '{"$gt": ""}',
        ]
        for name in names:
            await store.set_state(user + name[:50], name, name)

        assert names == [await store.get_state(user + name[:50], name) for name in names]


def _of_user(call: Any) -> Any:
    """Return *call* as a function of the user alone."""
    return lambda user: call(user, "k")


def _calls(store: StateStore) -> dict[str, Any]:
    """Return every function that takes a user and a name, by what it calls the name, and its own."""
    return {
        "key set": lambda user, name: store.set_state(user, name, 1),
        "key get": store.get_state,
        "key update": lambda user, name: store.update_state(user, name, {}),
        "key compare": lambda user, name: store.compare_and_set_state(user, name, None, 1),
        "key touch": lambda user, name: store.touch_state(user, name, None),
        "key delete": store.delete_state,
        "action try": lambda user, name: store.try_cooldown(user, name, 1),
        "action set": lambda user, name: store.set_cooldown(user, name, 1),
        "action check": store.check_cooldown,
        "action clear": store.clear_cooldown,
        "counter increment": store.increment_counter,
        "counter get": store.get_counter,
        "counter reset": store.reset_counter,
        "name add": lambda user, name: store.add_to_list(user, name, 1),
        "name get": store.get_list,
        "name delete": store.delete_list,
    }

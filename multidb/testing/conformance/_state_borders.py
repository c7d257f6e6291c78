"""The state suite's tests of the borders between users, kinds, callers and connections."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from multidb._core.values import dump
from multidb.state.protocol import KEEP, Claim, Entry, Increment, Key, Merge, Push
from multidb.testing.conformance._data import (
    AWKWARD_IDS,
    cancelled_midway,
    together,
    unique,
)
from multidb.testing.conformance._state_base import (
    LONG,
    PAST_SHORT,
    ROOM,
    SHORT,
    StateSuite,
    everybody,
    fresh,
    put,
    value_of,
)

if TYPE_CHECKING:
    from multidb.state.protocol import StateBackend


class BorderTests(StateSuite):
    """What belongs to one user, name or kind is never mistaken for what belongs to another."""

    async def test_awkward_names(self, backend: StateBackend) -> None:
        """No user id and name can be mistaken for another pair, whatever characters they hold."""
        mark = unique("x")
        users = [None, *(f"{mark}{name}" for name in AWKWARD_IDS)]
        names = [f"{name}{mark}" for name in ("c", "b:c", "a:b", ":", "*", "{a}", "a}", "%", "\\", "C", "c ")]
        keys = [Key(user, name) for user in users for name in names]
        await backend.set([Entry(key, dump([key.user_id, key.name])) for key in keys])
        stored = await backend.get(keys)
        of_each = [await backend.get_all(user) for user in users[1:]]

        assert [dump([key.user_id, key.name]) for key in keys] == stored
        assert [{name: dump([user, name]) for name in names} for user in users[1:]] == of_each

    async def test_names_that_join_alike(self, backend: StateBackend) -> None:
        """Pairs that are the same once joined are different things, of every kind."""
        mark = unique("x")
        pairs = [
            ("a:b", "c"),
            ("a", "b:c"),
            ("a", "b"),
            ("ab", "c"),
            ("a", "bc"),
            ("a%3Ab", "c"),
            ("a\\:b", "c"),
            ("a::b", "c"),
        ]
        keys = [Key(mark + user, name) for user, name in pairs]
        await backend.set([Entry(key, dump(number)) for number, key in enumerate(keys)])
        await backend.increment([Increment(key, number) for number, key in enumerate(keys, 1)])
        await backend.push([Push(key, dump(number)) for number, key in enumerate(keys)])

        assert [dump(number) for number in range(len(keys))] == await backend.get(keys)
        assert list(range(1, len(keys) + 1)) == [await backend.counter(key) for key in keys]
        assert [[dump(number)] for number in range(len(keys))] == [await backend.items(key) for key in keys]
        assert [True] * len(keys) == list(await backend.claim([Claim(key, LONG) for key in keys]))
        assert [True] * len(keys) == list(await backend.delete(keys))

    async def test_clear_is_one_users(self, backend: StateBackend) -> None:
        """Clearing the values of a user whose id looks like a pattern clears nobody else's."""
        mark = unique("x")
        users = [mark + tail for tail in ("*", "?", "a", "ab", "[ab]", "%", "_", "", ":", "{a}", "A")]
        await backend.set([Entry(Key(user, name), b"1") for user in users for name in ("k", "l")])

        assert [2] * len(users) == [await backend.clear(user) for user in users]

    async def test_kinds_are_apart(self, backend: StateBackend) -> None:
        """A value, a cooldown, a counter and a list of the same name do not know of each other."""
        user = unique()
        names = [
            "k",
            "value",
            "v",
            "values",
            "state",
            "cooldown",
            "cd",
            "counter",
            "c",
            "list",
            "l",
            "index",
            "keys",
            "_",
            ":",
            "i",
            "s",
        ]
        keys = [Key(user, name) for name in names]
        await backend.increment([Increment(key, 7) for key in keys])
        await backend.push([Push(key, b'"item"') for key in keys])
        await backend.claim([Claim(key, LONG) for key in keys])

        assert [None] * len(keys) == await backend.get(keys)
        assert {} == await backend.get_all(user)
        await backend.set([Entry(key, dump(key.name)) for key in keys])
        assert {name: dump(name) for name in names} == await backend.get_all(user)
        assert len(names) == await backend.clear(user)
        assert [7] * len(keys) == [await backend.counter(key) for key in keys]
        assert [[b'"item"']] * len(keys) == [await backend.items(key) for key in keys]
        assert [False] * len(keys) == list(await backend.claim([Claim(key, LONG) for key in keys]))
        assert [False] * len(keys) == list(await backend.delete(keys))

    async def test_deleting_one_kind(self, backend: StateBackend) -> None:
        """Deleting what has a name in one kind leaves the other kinds alone."""
        key = fresh()
        await put(backend, key, b"1")
        await backend.increment([Increment(key, 1)])
        await backend.push([Push(key, b"1")])
        await backend.set_cooldown(Claim(key, LONG))

        assert [True] == list(await backend.delete([key]))
        assert not await backend.touch(key, LONG)
        assert await backend.reset_counter(key)
        assert await backend.cooldown(key) is not None
        assert await backend.clear_cooldown(key)
        assert [b"1"] == await backend.items(key)
        assert await backend.delete_list(key)

    async def test_global_things(self, backend: StateBackend) -> None:
        """What is global is nobody's, whatever a user is called."""
        name = unique("g")
        key = Key(None, name)
        users = ["None", "null", "global", "*", "0", "-", "_", "@", "~", "__global__"]
        await put(backend, key, b'"everybody"')
        await backend.increment([Increment(key, 1)])
        await backend.push([Push(key, b"1")])
        await backend.claim([Claim(key, LONG)])
        same_name = [Key(user, name) for user in users]

        assert [None] * len(users) == await backend.get(same_name)
        assert [0] * len(users) == [await backend.counter(each) for each in same_name]
        assert [[]] * len(users) == [await backend.items(each) for each in same_name]
        assert [True] * len(users) == list(await backend.claim([Claim(each, SHORT) for each in same_name]))
        assert b'"everybody"' == await value_of(backend, key)

    async def test_every_verb_on_global_things(self, backend: StateBackend) -> None:
        """Every verb takes a global key."""
        key, other = everybody(fresh()), everybody(fresh())
        await put(backend, key, b'{"a":1}', LONG)

        assert [b'{"a":1,"b":2}'] == await backend.merge([Merge(key, {"b": b"2"}, KEEP, ROOM)])
        assert await backend.compare_and_set(key, b'{"a":1,"b":2}', b"3", KEEP)
        assert await backend.touch(key, None)
        assert [True, False] == list(await backend.claim([Claim(key, LONG), Claim(key, LONG)]))
        await backend.set_cooldown(Claim(key, LONG))
        assert await backend.cooldown(key) is not None
        assert await backend.clear_cooldown(key)
        assert [1, 2] == await backend.increment([Increment(key, 1), Increment(key, 1)])
        assert await backend.reset_counter(key)
        assert [1] == list(await backend.push([Push(key, b"1", 5)]))
        assert await backend.delete_list(key)
        assert [b"3", None] == await backend.get([key, other])
        assert [True, False] == list(await backend.delete([key, other]))

    async def test_get_all_and_clear_of_global_values(self, backend: StateBackend) -> None:
        """The global values are found and cleared like a user's, and the users' values stay."""
        mine = fresh()
        keys = [everybody(fresh()) for _ in range(3)]
        await backend.set([Entry(key, dump(key.name)) for key in (*keys, mine)])
        values = await backend.get_all(None)

        assert {key.name: dump(key.name) for key in keys}.items() <= values.items()
        assert mine.name not in values
        # Others may keep global values on the same server, so the number is a lower bound.
        assert await backend.clear(None) >= len(keys)
        assert [None, None, None, dump(mine.name)] == await backend.get([*keys, mine])

    async def test_case_matters(self, backend: StateBackend) -> None:
        """Names that differ in case, or in characters that look alike, are different names."""
        user = unique()
        names = ["ali", "Ali", "ALI", "alı", "ALİ", "alİ", "ａｌｉ", "ﬁ", "fi", "ß", "ss", "é", "e"]
        await backend.set([Entry(Key(user, name), dump(name)) for name in names])

        assert {name: dump(name) for name in names} == await backend.get_all(user)

    async def test_cancelled_calls(self, backend: StateBackend) -> None:
        """A call that is cancelled midway happens once or not at all, and no other call gets its answer."""
        random = Random(7)
        user = unique()
        keys = [Key(user, f"k{number}") for number in range(20)]
        counters = [fresh() for _ in range(20)]
        await backend.set([Entry(key, dump(key.name)) for key in keys])
        for _ in range(5):
            reads = [value_of(backend, key) for key in keys]
            adds = [backend.increment([Increment(key, 1)]) for key in counters]
            await cancelled_midway([*reads, *adds], [random.randrange(12) for _ in (*keys, *counters)])
            again = await together(value_of(backend, key) for key in keys)

            assert [dump(key.name) for key in keys] == again
        added = [await backend.counter(key) for key in counters]

        assert all(0 <= count <= 5 for count in added)
        assert [count + 1 for count in added] == await backend.increment(
            [Increment(key, 1) for key in counters]
        )

    async def test_nobody_is_taken_along(self, backend: StateBackend) -> None:
        """Calls made at the same time as one that is cancelled succeed."""
        keys = [fresh() for _ in range(20)]
        lost = [put(backend, fresh(), b"0") for _ in range(10)]
        await together(
            [
                cancelled_midway(lost, [number % 5 for number in range(10)]),
                *(put(backend, key, b"1") for key in keys),
            ]
        )

        assert [b"1"] * 20 == await backend.get(keys)


class SecondBackendTests(StateSuite):
    """What another connection sees, or the same data after a reopen."""

    async def test_second_backend_sees_everything(self, backend: StateBackend) -> None:
        """Everything is there for another backend on the same data, life spans included."""
        key, ending, deleted = fresh(), fresh(), fresh()
        await backend.set([Entry(key, b'{"a":1.0}'), Entry(ending, b"1", LONG), Entry(deleted, b"1")])
        await backend.merge([Merge(key, {"b": b"2"}, KEEP, ROOM)])
        await backend.delete([deleted])
        await backend.increment([Increment(key, 3), Increment(key, 4)])
        await backend.push([Push(key, dump(number), 2) for number in range(4)])
        await backend.claim([Claim(key, LONG)])
        second = await self.another()

        assert [b'{"a":1.0,"b":2}', b"1", None] == await second.get([key, ending, deleted])
        assert {key.name: b'{"a":1.0,"b":2}'} == await second.get_all(key.user_id)
        assert 7 == await second.counter(key)
        assert [b"2", b"3"] == await second.items(key)
        assert [False] == list(await second.claim([Claim(key, LONG)]))
        assert LONG / 2 < (await second.cooldown(key) or 0) <= LONG
        assert await second.compare_and_set(key, b'{"a":1.0,"b":2}', b"[]", KEEP)

    async def test_second_backend_sees_nothing_expired(self, backend: StateBackend) -> None:
        """What expires does not come back, and a life span goes on where it was."""
        key, counted = fresh(), fresh()
        await put(backend, key, b"1", SHORT)
        await backend.increment([Increment(counted, 1, SHORT)])
        await backend.claim([Claim(key, SHORT)])
        second = await self.another()
        await self.pass_time(PAST_SHORT)

        assert await value_of(second, key) is None
        assert {} == await second.get_all(key.user_id)
        assert 0 == await second.counter(counted)
        assert await second.cooldown(key) is None
        assert [True] == list(await second.claim([Claim(key, LONG)]))

    async def test_second_backend_sees_what_was_cleared(self, backend: StateBackend) -> None:
        """What was cleared, reset and ended stays so."""
        key = fresh()
        await put(backend, key, b"1")
        await backend.increment([Increment(key, 1)])
        await backend.push([Push(key, b"1")])
        await backend.claim([Claim(key, LONG)])
        await backend.clear(key.user_id)
        await backend.reset_counter(key)
        await backend.delete_list(key)
        await backend.clear_cooldown(key)
        second = await self.another()

        assert await value_of(second, key) is None
        assert 0 == await second.counter(key)
        assert [] == await second.items(key)
        assert [True] == list(await second.claim([Claim(key, LONG)]))

    async def test_two_backends_race(self, backend: StateBackend) -> None:
        """Two connections that claim, count and merge at once are no worse than two tasks of one."""
        if not self.concurrent_instances:
            pytest.skip("concurrent_instances is not set")
        second = await self.another()
        key = fresh()
        both = [backend, second] * 20
        claims = await together(each.claim([Claim(key, LONG)]) for each in both)
        await together(each.increment([Increment(key, 1)]) for each in both)
        await together(each.merge([Merge(key, {f"f{n}": b"1"}, KEEP, ROOM)]) for n, each in enumerate(both))

        assert 1 == [won for (won,) in claims].count(True)
        assert 40 == await backend.counter(key)
        assert dump({f"f{number}": 1 for number in range(40)}) == await value_of(second, key)

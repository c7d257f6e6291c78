"""The state suite's tests of cooldowns, counters and lists."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from multidb._core.values import MAX_INT, MAX_SECONDS, MIN_INT, MIN_SECONDS, dump
from multidb.errors import ConflictError
from multidb.state.protocol import Claim, Increment, Push
from multidb.testing.conformance._data import (
    AWKWARD_VALUES,
    DEEPEST,
    free_json,
    round_trips,
    together,
)
from multidb.testing.conformance._state_base import (
    LONG,
    PAST_SHORT,
    SHORT,
    StateSuite,
    fresh,
    outcomes,
)

if TYPE_CHECKING:
    from multidb.state.protocol import StateBackend


class CooldownTests(StateSuite):
    """Cooldowns."""

    async def test_claim(self, backend: StateBackend) -> None:
        """A claim starts a cooldown that is not running; the next one does not."""
        key, other = fresh(), fresh()

        assert [] == list(await backend.claim([]))
        assert [True] == list(await backend.claim([Claim(key, LONG)]))
        assert [False, True, False] == list(
            await backend.claim([Claim(key, LONG), Claim(other, LONG), Claim(other, LONG)])
        )

    async def test_seconds_left(self, backend: StateBackend) -> None:
        """A cooldown says how long it still runs, to the millisecond; None when it does not run."""
        key, absent = fresh(), fresh()
        started = monotonic()
        await backend.claim([Claim(key, 5.75)])
        at_first = await backend.cooldown(key)
        await self.pass_time(0.2)
        later = await backend.cooldown(key)
        # A slow machine takes time of its own.
        taken = monotonic() - started + 0.01

        assert at_first is not None
        assert 5.75 - taken <= at_first <= 5.751
        assert later is not None
        assert 5.55 - taken <= later <= 5.551
        assert await backend.cooldown(absent) is None

    async def test_refused_claim_changes_nothing(self, backend: StateBackend) -> None:
        """A claim that comes too early neither lengthens nor shortens the cooldown."""
        long, short = fresh(), fresh()
        await backend.claim([Claim(long, LONG), Claim(short, SHORT)])
        early = await backend.claim([Claim(long, SHORT), Claim(short, LONG)])
        await self.pass_time(PAST_SHORT)
        left = await backend.cooldown(long)

        assert [False, False] == list(early)
        assert left is not None
        assert left > LONG / 2
        assert await backend.cooldown(short) is None
        assert [True] == list(await backend.claim([Claim(short, LONG)]))

    async def test_race_of_claims(self, backend: StateBackend) -> None:
        """Of a hundred claims at once exactly one wins, and again when the cooldown is over."""
        new, over = fresh(), fresh()
        await backend.claim([Claim(over, SHORT)])
        await self.pass_time(PAST_SHORT)
        for key in (new, over):
            results = await together(backend.claim([Claim(key, LONG)]) for _ in range(100))

            assert 1 == [won for (won,) in results].count(True)

    async def test_race_of_many_claims(self, backend: StateBackend) -> None:
        """Of claims of the same keys in batches each key is won once."""
        keys = [fresh() for _ in range(20)]
        results = await together(backend.claim([Claim(key, LONG) for key in keys]) for _ in range(10))

        assert [1] * 20 == [list(column).count(True) for column in zip(*results, strict=True)]

    async def test_set_cooldown(self, backend: StateBackend) -> None:
        """Setting a cooldown starts it anew, be it longer or shorter than what ran."""
        longer, shorter = fresh(), fresh()
        await backend.claim([Claim(longer, SHORT), Claim(shorter, LONG)])
        await backend.set_cooldown(Claim(longer, LONG))
        await backend.set_cooldown(Claim(shorter, SHORT))
        await self.pass_time(PAST_SHORT)

        assert [False, True] == list(await backend.claim([Claim(longer, LONG), Claim(shorter, LONG)]))

    async def test_set_cooldown_where_none_runs(self, backend: StateBackend) -> None:
        """Setting a cooldown starts it where none runs."""
        key = fresh()
        await backend.set_cooldown(Claim(key, LONG))
        left = await backend.cooldown(key)

        assert left is not None
        assert LONG - 30 < left <= LONG
        assert [False] == list(await backend.claim([Claim(key, LONG)]))

    async def test_clear_cooldown(self, backend: StateBackend) -> None:
        """Clearing a cooldown ends it, and says whether it was running."""
        running, over, absent = fresh(), fresh(), fresh()
        await backend.claim([Claim(running, LONG), Claim(over, SHORT)])
        await self.pass_time(PAST_SHORT)

        assert await backend.clear_cooldown(running)
        assert not await backend.clear_cooldown(running)
        assert not await backend.clear_cooldown(over)
        assert not await backend.clear_cooldown(absent)
        assert await backend.cooldown(running) is None
        assert [True] == list(await backend.claim([Claim(running, LONG)]))

    async def test_cooldown_of_parts_of_a_second(self, backend: StateBackend) -> None:
        """1.9 s are not 1 s, 0.25 s are not nothing, and the shortest and the longest cooldown are taken."""
        claimed, anew, short, shortest, longest = (fresh() for _ in range(5))
        begun = monotonic()
        await backend.claim([Claim(claimed, 1.9), Claim(longest, MAX_SECONDS), Claim(shortest, MIN_SECONDS)])
        await backend.set_cooldown(Claim(anew, 1.9))
        left = [await backend.cooldown(claimed), await backend.cooldown(anew)]
        taken = monotonic() - begun + 0.01
        started = monotonic()
        await backend.claim([Claim(short, 0.25)])
        seen = await backend.cooldown(short)
        late = monotonic() - started >= 0.25
        await self.pass_time(0.3)

        assert all(seconds is not None and 1.9 - taken <= seconds <= 1.901 for seconds in left)
        assert late or (seen is not None and 0 < seen <= 0.251)
        assert await backend.cooldown(short) is None
        assert await backend.cooldown(shortest) is None
        assert MAX_SECONDS - 60 < (await backend.cooldown(longest) or 0) <= MAX_SECONDS

    async def test_claims_across_users(self, backend: StateBackend) -> None:
        """A batch of claims may go across many users."""
        keys = [fresh() for _ in range(100)]
        await backend.claim([Claim(key, LONG) for key in keys[::3]])

        assert [number % 3 != 0 for number in range(100)] == list(
            await backend.claim([Claim(key, LONG) for key in keys])
        )


class CounterTests(StateSuite):
    """Counters."""

    async def test_increment(self, backend: StateBackend) -> None:
        """A counter starts at 0, and goes up and down; every increment returns its value."""
        key, absent = fresh(), fresh()

        assert [] == await backend.increment([])
        assert [1] == await backend.increment([Increment(key, 1)])
        assert [42, 40, 40, -3] == await backend.increment(
            [Increment(key, amount) for amount in (41, -2, 0, -43)]
        )
        assert -3 == await backend.counter(key)
        assert 0 == await backend.counter(absent)

    async def test_reset_counter(self, backend: StateBackend) -> None:
        """A reset deletes a counter, and says whether there was one; one that stands at 0 is one."""
        key, zero, absent = fresh(), fresh(), fresh()
        await backend.increment([Increment(key, 5), Increment(zero, 1), Increment(zero, -1)])

        assert [True, True, False] == [await backend.reset_counter(each) for each in (key, zero, absent)]
        assert not await backend.reset_counter(key)
        assert 0 == await backend.counter(key)
        assert [1] == await backend.increment([Increment(key, 1)])

    async def test_concurrent_increments(self, backend: StateBackend) -> None:
        """A hundred increments at once add up, and each returns a value of its own."""
        key = fresh()
        results = await together(backend.increment([Increment(key, 1, LONG)]) for _ in range(100))

        assert list(range(1, 101)) == sorted(value for (value,) in results if isinstance(value, int))
        assert 100 == await backend.counter(key)

    async def test_large_counters(self, backend: StateBackend) -> None:
        """A counter is exact up to the ends of 64 bits."""
        key, top, bottom = fresh(), fresh(), fresh()

        assert [2**53, 2**53 + 1] == await backend.increment([Increment(key, 2**53), Increment(key, 1)])
        assert [MAX_INT - 1, MAX_INT] == await backend.increment(
            [Increment(top, MAX_INT - 1), Increment(top, 1)]
        )
        assert [MIN_INT, MIN_INT + 1] == await backend.increment(
            [Increment(bottom, MIN_INT), Increment(bottom, 1)]
        )
        assert [MAX_INT, MIN_INT + 1] == [await backend.counter(top), await backend.counter(bottom)]

    async def test_overflow(self, backend: StateBackend) -> None:
        """Leaving 64 bits is a conflict that changes neither the counter, nor its life span, nor others."""
        top, bottom, other = fresh(), fresh(), fresh()
        await backend.increment([Increment(top, MAX_INT), Increment(bottom, MIN_INT)])
        results = await backend.increment(
            [
                Increment(top, 1, SHORT),
                Increment(other, 1),
                Increment(bottom, -1, SHORT),
                Increment(top, MAX_INT, SHORT),
                Increment(bottom, MIN_INT, SHORT),
                Increment(other, 1),
            ]
        )
        await self.pass_time(PAST_SHORT)

        assert ["conflict", 1, "conflict", "conflict", "conflict", 2] == outcomes(results)
        assert isinstance(results[0], ConflictError)
        assert [MAX_INT, MIN_INT, 2] == [await backend.counter(key) for key in (top, bottom, other)]

    async def test_life_span_starts_with_the_first(self, backend: StateBackend) -> None:
        """A counter lives from its first increment on; later ones leave its life span alone."""
        ending, ending_too, endless, down = keys = [fresh() for _ in range(4)]
        first = [Increment(key, 1, 0.3) for key in (ending, ending_too, down)]
        later = [
            Increment(ending, 1, LONG),
            Increment(ending_too, 1),
            Increment(endless, 1, SHORT),
            Increment(down, -1, LONG),
        ]
        started = monotonic()
        await backend.increment([*first, Increment(endless, 1)])
        counted = await backend.increment(later)
        # On a machine too slow to come back in time the later ones are first ones.
        late = monotonic() - started >= 0.3
        await self.pass_time(0.4)

        assert late or [2, 2, 2, 0] == counted
        assert late or [0, 0, 2, 0] == [await backend.counter(key) for key in keys]

    async def test_counter_after_its_end(self, backend: StateBackend) -> None:
        """After its end a counter starts at 0 again, with a life span of its own."""
        again, endless, reset = fresh(), fresh(), fresh()
        await backend.increment(
            [Increment(again, 5, SHORT), Increment(endless, 5, SHORT), Increment(reset, 5, SHORT)]
        )
        await self.pass_time(PAST_SHORT)
        restarted = await backend.increment([Increment(again, 1, SHORT), Increment(endless, 1)])
        was_there = await backend.reset_counter(reset)
        await self.pass_time(PAST_SHORT)

        assert [1, 1] == restarted
        assert not was_there
        assert [0, 1] == [await backend.counter(again), await backend.counter(endless)]

    async def test_counter_of_parts_of_a_second(self, backend: StateBackend) -> None:
        """A counter's life span is kept to the millisecond, too, and may be ten years."""
        lives, ends, longest = fresh(), fresh(), fresh()
        started = monotonic()
        await backend.increment(
            [Increment(lives, 1, 0.9), Increment(ends, 1, 0.3), Increment(longest, 1, MAX_SECONDS)]
        )
        at_first = await backend.counter(ends)
        late_at_first = monotonic() - started >= 0.3
        await self.pass_time(0.4)
        living = await backend.counter(lives)
        late = monotonic() - started >= 0.9

        assert late_at_first or 1 == at_first
        assert late or 1 == living
        assert [0, 1] == [await backend.counter(ends), await backend.counter(longest)]

    async def test_increments_across_users(self, backend: StateBackend) -> None:
        """In a batch across many users a conflict keeps no other increment out."""
        keys = [fresh() for _ in range(60)]
        await backend.increment([Increment(keys[7], MAX_INT)])
        results = await backend.increment([Increment(key, number) for number, key in enumerate(keys)])

        assert [number if number != 7 else "conflict" for number in range(60)] == outcomes(results)


class ListTests(StateSuite):
    """Lists."""

    async def test_push_and_items(self, backend: StateBackend) -> None:
        """Items come back oldest first; a push returns the length after it."""
        key, absent = fresh(), fresh()

        assert [] == list(await backend.push([]))
        assert [1] == list(await backend.push([Push(key, b'"a"')]))
        assert [2, 3] == list(await backend.push([Push(key, b'"b"'), Push(key, b'"a"')]))
        assert [b'"a"', b'"b"', b'"a"'] == await backend.items(key)
        assert [] == await backend.items(absent)

    async def test_max_length(self, backend: StateBackend) -> None:
        """A list keeps its newest items when it has a length to keep; the length is the push's."""
        key, single = fresh(), fresh()
        lengths = await backend.push([Push(key, dump(number), 3) for number in range(5)])

        assert [1, 2, 3, 3, 3] == list(lengths)
        assert [b"2", b"3", b"4"] == await backend.items(key)
        assert [4] == list(await backend.push([Push(key, b"5")]))
        assert [2] == list(await backend.push([Push(key, b"6", 2)]))
        assert [b"5", b"6"] == await backend.items(key)
        assert [1, 1] == list(await backend.push([Push(single, b"1", 1), Push(single, b"2", 1)]))
        assert [b"2"] == await backend.items(single)

    async def test_delete_list(self, backend: StateBackend) -> None:
        """Deleting a list says whether there was one."""
        key, absent = fresh(), fresh()
        await backend.push([Push(key, b"1")])

        assert [True, False, False] == [await backend.delete_list(each) for each in (key, key, absent)]
        assert [] == await backend.items(key)
        assert [1] == list(await backend.push([Push(key, b"2")]))

    async def test_awkward_items(self, backend: StateBackend) -> None:
        """Items come back byte for byte, in order."""
        key = fresh()
        items = [dump(value) for value in (*AWKWARD_VALUES, DEEPEST)]
        await backend.push([Push(key, item, 1000) for item in items])

        assert items == await backend.items(key)

    @round_trips
    @given(values=st.lists(free_json(), max_size=6), max_length=st.integers(1, 5))
    async def test_any_items(self, backend: StateBackend, values: list[object], max_length: int) -> None:
        """Whatever is pushed, the newest items are there, byte for byte."""
        key = fresh()
        items = [dump(value) for value in values]
        lengths = await backend.push([Push(key, item, max_length) for item in items])

        assert [min(number, max_length) for number in range(1, len(items) + 1)] == list(lengths)
        assert items[-max_length:] == await backend.items(key)

    async def test_concurrent_pushes(self, backend: StateBackend) -> None:
        """Of many pushes at once none is lost, and each returns a length of its own."""
        key, bounded = fresh(), fresh()
        lengths = await together(backend.push([Push(key, dump(number))]) for number in range(50))
        await together(backend.push([Push(bounded, dump(number), 10)]) for number in range(50))

        assert list(range(1, 51)) == sorted(length for (length,) in lengths)
        assert {dump(number) for number in range(50)} == set(await backend.items(key))
        assert 10 == len(set(await backend.items(bounded)))

    async def test_long_list(self, backend: StateBackend) -> None:
        """A batch of 1,000 pushes over a few users keeps each list's order."""
        keys = [fresh() for _ in range(4)]
        await backend.push([Push(keys[number % 4], dump(number)) for number in range(1000)])

        assert [[dump(number) for number in range(start, 1000, 4)] for start in range(4)] == [
            await backend.items(key) for key in keys
        ]

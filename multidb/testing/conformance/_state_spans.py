"""The state suite's tests of the life spans of values."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from multidb._core.values import MAX_SECONDS, MIN_SECONDS, dump
from multidb.errors import ConflictError
from multidb.state.protocol import KEEP, Entry, Key, Merge
from multidb.testing.conformance._data import (
    round_trips,
)
from multidb.testing.conformance._state_base import (
    LONG,
    PAST_SHORT,
    ROOM,
    SHORT,
    StateSuite,
    fresh,
    put,
    value_of,
)

if TYPE_CHECKING:
    from multidb.state.protocol import StateBackend


class LifeSpanTests(StateSuite):
    """Life spans of values: what replaces them, what keeps them, and how exact they are."""

    async def test_expired_is_gone(self, backend: StateBackend) -> None:
        """What is expired is not returned, not counted, not found by any verb."""
        key, other = fresh(), fresh()
        stays = Key(key.user_id, "stays")
        await backend.set(
            [Entry(key, b"1", SHORT), Entry(other, b'{"a":1}', SHORT), Entry(stays, b"2", LONG)]
        )
        await self.pass_time(PAST_SHORT)

        assert [None, None, b"2"] == await backend.get([key, other, stays])
        assert {"stays": b"2"} == await backend.get_all(key.user_id)
        assert not await backend.touch(key, LONG)
        assert not await backend.touch(key, None)
        assert [False] == list(await backend.delete([key]))
        assert not await backend.compare_and_set(key, b"1", b"3", None)
        assert 1 == await backend.clear(key.user_id)
        assert [b'{"b":2}'] == await backend.merge([Merge(other, {"b": b"2"}, KEEP, ROOM)])

    async def test_expired_counts_as_absent(self, backend: StateBackend) -> None:
        """After its end a value counts as absent, and what is stored then lives its own life."""
        compared, merged, stored = fresh(), fresh(), fresh()
        await backend.set([Entry(key, b"[]", SHORT) for key in (compared, merged, stored)])
        await self.pass_time(PAST_SHORT)
        await put(backend, stored, b"1")

        assert await backend.compare_and_set(compared, b"null", b"1", KEEP)
        assert [b'{"a":1}'] == await backend.merge([Merge(merged, {"a": b"1"}, KEEP, ROOM)])
        await self.pass_time(PAST_SHORT)
        assert [b"1", b'{"a":1}', b"1"] == await backend.get([compared, merged, stored])

    async def test_set_replaces_the_life_span(self, backend: StateBackend) -> None:
        """Storing over a value stores its life span, too: a longer one, a shorter one, none."""
        longer, shorter, endless, ended = fresh(), fresh(), fresh(), fresh()
        await backend.set([Entry(longer, b"1", SHORT), Entry(shorter, b"1", LONG)])
        await backend.set([Entry(endless, b"1", SHORT), Entry(ended, b"1")])
        await backend.set([Entry(longer, b"2", LONG), Entry(shorter, b"2", SHORT)])
        await backend.set([Entry(endless, b"2"), Entry(ended, b"2", SHORT)])
        await self.pass_time(PAST_SHORT)

        assert [b"2", None, b"2", None] == await backend.get([longer, shorter, endless, ended])

    async def test_merge_and_the_life_span(self, backend: StateBackend) -> None:
        """A merge keeps the life span (KEEP), ends it (None) or sets one; a new dict has none to keep."""
        kept, freed, longer, shorter, new, short_lived = (fresh() for _ in range(6))
        await backend.set([Entry(kept, b"{}", SHORT), Entry(freed, b"{}", SHORT)])
        await backend.set([Entry(longer, b"{}", SHORT), Entry(shorter, b"{}")])
        changes = {"a": b"1"}
        spans = (
            (kept, KEEP),
            (freed, None),
            (longer, LONG),
            (shorter, SHORT),
            (new, KEEP),
            (short_lived, SHORT),
        )
        merged = await backend.merge([Merge(key, changes, span, ROOM) for key, span in spans])
        await self.pass_time(PAST_SHORT)
        there = b'{"a":1}'

        assert [there] * 6 == merged
        assert [None, there, there, None, there, None] == await backend.get([key for key, _ in spans])

    async def test_compare_and_set_and_the_life_span(self, backend: StateBackend) -> None:
        """A compare and set treats the life span as a merge does."""
        kept, freed, longer, shorter, new, short_lived = (fresh() for _ in range(6))
        await backend.set([Entry(kept, b"null", SHORT), Entry(freed, b"null", SHORT)])
        await backend.set([Entry(longer, b"null", SHORT), Entry(shorter, b"null")])
        spans = (
            (kept, KEEP),
            (freed, None),
            (longer, LONG),
            (shorter, SHORT),
            (new, KEEP),
            (short_lived, SHORT),
        )
        done = [await backend.compare_and_set(key, b"null", b"1", span) for key, span in spans]
        await self.pass_time(PAST_SHORT)

        assert [True] * 6 == done
        assert [None, b"1", b"1", None, b"1", None] == await backend.get([key for key, _ in spans])

    async def test_failed_compare_keeps_the_life_span(self, backend: StateBackend) -> None:
        """What does not happen does not change the life span either."""
        endless, ending = fresh(), fresh()
        await backend.set([Entry(endless, b"1"), Entry(ending, b"1", SHORT)])
        await backend.compare_and_set(endless, b"2", b"3", SHORT)
        await backend.compare_and_set(ending, b"2", b"3", None)
        await backend.merge([Merge(ending, {"a": b"1"}, None, ROOM)])
        await self.pass_time(PAST_SHORT)

        assert [b"1", None] == await backend.get([endless, ending])

    async def test_touch(self, backend: StateBackend) -> None:
        """A touch gives a value a new life span from now, or none, and leaves the value alone."""
        longer, shorter, freed, absent = fresh(), fresh(), fresh(), fresh()
        await backend.set([Entry(longer, b"1", SHORT), Entry(shorter, b"2", LONG), Entry(freed, b"3", SHORT)])
        touched = [
            await backend.touch(longer, LONG),
            await backend.touch(shorter, SHORT),
            await backend.touch(freed, None),
            await backend.touch(absent, LONG),
        ]
        await self.pass_time(PAST_SHORT)

        assert [True, True, True, False] == touched
        assert [b"1", None, b"3", None] == await backend.get([longer, shorter, freed, absent])

    async def test_touch_after_delete(self, backend: StateBackend) -> None:
        """A touch brings nothing back."""
        key = fresh()
        await put(backend, key, b"1", LONG)
        await backend.delete([key])

        assert not await backend.touch(key, LONG)
        assert await value_of(backend, key) is None

    async def test_milliseconds(self, backend: StateBackend) -> None:
        """A life span is kept to the millisecond: 0.25 s is neither nothing nor a whole second."""
        key = fresh()
        started = monotonic()
        await put(backend, key, b"1", 0.25)
        await self.pass_time(0.1)
        seen = await value_of(backend, key)
        # On a machine too slow to look in time there is nothing to see.
        late = monotonic() - started >= 0.25
        await self.pass_time(0.3)

        assert late or b"1" == seen
        assert await value_of(backend, key) is None

    async def test_no_whole_seconds(self, backend: StateBackend) -> None:
        """1.9 s are not cut to 1 s and 1.1 s are not rounded to 2 s, whichever verb sets them."""
        lives, ends = [fresh() for _ in range(4)], [fresh() for _ in range(4)]
        started = monotonic()
        for keys, seconds in ((lives, 1.9), (ends, 1.1)):
            await backend.set([Entry(keys[0], b"1", seconds), Entry(keys[1], b"1")])
            await backend.touch(keys[1], seconds)
            await backend.merge([Merge(keys[2], {}, seconds, ROOM), Merge(keys[2], {"a": b"1"}, KEEP, ROOM)])
            await backend.compare_and_set(keys[3], b"null", b"1", seconds)
        await self.pass_time(1.2)
        living, ended = await backend.get(lives), await backend.get(ends)
        late = monotonic() - started >= 1.9

        assert late or [b"1", b"1", b'{"a":1}', b"1"] == living
        assert [None] * 4 == ended

    async def test_longest_and_shortest(self, backend: StateBackend) -> None:
        """A life span may be ten years or one millisecond."""
        longest, shortest = fresh(), fresh()
        await put(backend, longest, b"1", MAX_SECONDS)
        await put(backend, shortest, b"1", MIN_SECONDS)
        await self.pass_time(0.02)

        assert [b"1", None] == await backend.get([longest, shortest])
        assert await backend.touch(longest, MAX_SECONDS)
        assert await backend.compare_and_set(longest, b"1", b"{}", MAX_SECONDS)
        assert [b"{}"] == await backend.merge([Merge(longest, {}, MAX_SECONDS, ROOM)])
        assert b"{}" == await value_of(backend, longest)

    @round_trips
    @given(spans=st.lists(st.sampled_from([None, 60.0, 0.5 * LONG, MAX_SECONDS]), min_size=1, max_size=6))
    async def test_last_span_counts(self, backend: StateBackend, spans: list[float | None]) -> None:
        """However often a value is stored and touched, it is there once, as it was stored last."""
        key = fresh()
        for number, span in enumerate(spans):
            await put(backend, key, dump(number), span)
            await backend.touch(key, span)

        assert {key.name: dump(len(spans) - 1)} == await backend.get_all(key.user_id)
        assert 1 == await backend.clear(key.user_id)

    async def test_conflicts_are_returned(self, backend: StateBackend) -> None:
        """A merge's conflict is returned as a ConflictError in its place; nothing is raised."""
        key = fresh()
        await put(backend, key, b"1")
        (result,) = await backend.merge([Merge(key, {"a": b"1"}, KEEP, ROOM)])

        assert isinstance(result, ConflictError)

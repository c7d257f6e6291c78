"""Identifiers of events: UUIDv7, growing."""

from __future__ import annotations

import copy
import pickle
import time
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multidb._core.ids import IdFactory, uuid_of

NOW = 1_767_312_000.123


def made(count: int, seconds: float = NOW) -> list[UUID]:
    ids = IdFactory()
    return [ids.new(seconds) for _ in range(count)]


def milliseconds(uuid: UUID) -> int:
    return uuid.int >> 80


def test_version() -> None:
    """An id is a UUID of version 7, of the variant of RFC 9562."""
    for uuid in made(1000):
        assert 7 == uuid.version
        assert "specified in RFC 4122" == uuid.variant


def test_time() -> None:
    """It starts with the milliseconds since 1970."""
    (uuid,) = made(1)

    assert 1_767_312_000_123 == milliseconds(uuid)
    assert str(uuid).startswith(f"{1_767_312_000_123:012x}"[:8])


def test_clock_stands_still() -> None:
    """Within one millisecond ids grow strictly, as numbers and as texts."""
    ids = made(100_000)

    assert 100_000 == len(set(ids))
    assert ids == sorted(ids)
    assert [str(uuid) for uuid in ids] == sorted(str(uuid) for uuid in ids)
    assert {milliseconds(ids[0])} == {milliseconds(uuid) for uuid in ids}


@given(steps=st.lists(st.integers(0, 3), min_size=1, max_size=200))
def test_clock_goes_on(steps: list[int]) -> None:
    """They grow strictly while the clock stands still or goes on."""
    ids, seconds, grown = IdFactory(), 1000, []
    for step in steps:
        seconds += step
        grown.append(ids.new(seconds / 1000))

    assert grown == sorted(set(grown))


def test_clock_goes_back() -> None:
    """When the clock goes back ids say so, and stay unique."""
    ids = IdFactory()
    back = [ids.new(NOW - second) for second in range(1000)]
    again = [ids.new(NOW - second) for second in range(1000)]

    assert back == sorted(back, reverse=True)
    assert 2000 == len({*back, *again})


def test_real_clock() -> None:
    """With the machine's clock they grow strictly."""
    ids = IdFactory()
    grown = [ids.new(time.time()) for _ in range(50_000)]

    assert grown == sorted(set(grown))


def test_two_factories() -> None:
    """Two processes at the same millisecond do not make the same ids."""
    assert 20_000 == len({*made(10_000), *made(10_000)})


def test_room_to_count_up() -> None:
    """What is counted up starts with its top bit at zero, so that it never reaches the version and the variant."""
    for second in range(2000):
        assert 0 == IdFactory().new(NOW + second).int >> 61 & 1


def test_a_fast_uuid_is_a_uuid() -> None:
    """It is what the constructor of UUID makes: equal, of the same hash and text, and it can be copied and pickled."""
    slow = UUID(int=made(1)[0].int)
    fast = uuid_of(slow.int)

    assert type(slow) is type(fast)
    assert (slow, hash(slow), repr(slow), slow.hex, slow.bytes, slow.fields, slow.is_safe) == (
        (fast, hash(fast), repr(fast), fast.hex, fast.bytes, fast.fields, fast.is_safe)
    )
    assert slow == pickle.loads(pickle.dumps(fast)) == copy.copy(fast) == copy.deepcopy(fast)
    assert pickle.dumps(slow) == pickle.dumps(fast)
    with pytest.raises(TypeError):
        fast.int = 1  # type: ignore[misc]


def test_strange_clocks() -> None:
    """A time before 1970, or after what 48 bits of milliseconds hold, still gives a valid id."""
    ids = IdFactory()

    for seconds in (-1.0, -62_135_596_800.0, 0.0, 253_402_300_799.999, 1e15):
        assert 7 == ids.new(seconds).version
    assert 0 == milliseconds(ids.new(-1.0))
    assert (1 << 48) - 1 == milliseconds(ids.new(1e15))

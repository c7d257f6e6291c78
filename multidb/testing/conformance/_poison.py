"""What no value may hold, and how an error names the place."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from hypothesis import strategies as st

from multidb._core.values import MAX_DEPTH, MAX_INT, MIN_INT
from multidb.testing.conformance._data import field_names, nested, texts

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy


class Colour(Enum):
    """An enumeration."""

    RED = "red"


class Size(IntEnum):
    """An enumeration whose members are ints."""

    LARGE = 3


class Mood(StrEnum):
    """An enumeration whose members are texts."""

    GOOD = "good"


class Text(str):
    """A text of a class of its own."""

    __slots__ = ()


class Number(int):
    """An int of a class of its own."""


class Ratio(float):
    """A float of a class of its own."""


NAIVE: Final = datetime(2026, 1, 2)  # noqa: DTZ001 -- no time zone is what is wrong with it
"""No point in time."""

BAD_LEAVES: Final[tuple[Any, ...]] = (
    "a\0b", "\0", "\ud800", "a\udfffb", float("nan"), float("inf"), float("-inf"), MAX_INT + 1, MIN_INT - 1,
    10**400, b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), {1, 2}, frozenset({"a"}), Decimal("1.5"),
    Fraction(1, 3), 1j, NAIVE, datetime(2026, 1, 2, tzinfo=UTC),
    datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=3))), date(2026, 1, 2), time_of_day(1, 2),
    timedelta(seconds=1), UUID(int=7), Colour.RED, Size.LARGE, Mood.GOOD, Text("text"), Number(1),
    Ratio(1.5), deque([1]), SimpleNamespace(a=1), PurePosixPath("a"), range(3),
    iter([1]), {"a": 1}.items(), object(), object, len, ...,
)  # fmt: skip
"""Values that not every backend can keep and give back equal, with their type."""

BAD_KEYS: Final[tuple[Any, ...]] = (
    1, 0, -1, None, True, False, 1.5, b"key", ("a", "b"), Colour.RED, Mood.GOOD, Text("key"), UUID(int=7),
    date(2026, 1, 2),
)  # fmt: skip
"""Keys that are no plain str."""

BAD_TEXT_KEYS: Final = ("a\0b", "\0", "\ud800", "a\udfffb")
"""Keys that are a str, and yet not one that every backend can keep."""

BAD_FIELD_NAMES: Final = ("", "$a", "$", "a.b", ".", ".a", "a.", "_id", "k" * 129, "a\0b")
"""Keys that a dotted path cannot name, beside what is refused everywhere."""

BAD_SECONDS: Final[tuple[Any, ...]] = (
    0, 0.0, -0.0, -1, 0.0009, float("nan"), float("inf"), float("-inf"), 1e12, 10**400, True, "5", b"5",
    Decimal(5), timedelta(seconds=5), Number(5), Ratio(5.0), [5], {"$gt": ""},
)  # fmt: skip
"""What is no life span. None has a meaning of its own where a life span is optional."""

BAD_LIMITS: Final[tuple[Any, ...]] = (
    0, -1, 10_001, 10**9, True, 1.5, 1.0, "5", None, Number(5), [5], {"$gt": 0},
)  # fmt: skip
"""What is no number of rows."""

BAD_IDS: Final[tuple[Any, ...]] = (
    "", None, True, 1.0, b"user", "a\0b", "a\nb", "\x7f", "a\x85b", "\ud800", "x" * 257, "x" * 300, "é" * 129,
    MAX_INT + 1, MIN_INT - 1, {"$gt": ""}, ["a"], ("a",), Text("user"), Number(1), Colour.RED, Mood.GOOD,
    UUID(int=7), object(),
)  # fmt: skip
"""What is no identifier of a user."""

BAD_LABELS: Final[tuple[Any, ...]] = (*BAD_IDS, 42, 0)
"""What is no event type, key or action."""

BAD_TIMES: Final[tuple[Any, ...]] = (
    NAIVE, date(2026, 1, 2), "2026-01-02T00:00:00Z", 1767312000, 1767312000.5, True,
    {"$gt": ""}, datetime.max.replace(tzinfo=timezone(-timedelta(hours=1))),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
)  # fmt: skip
"""What is no point in time: naive, no datetime at all, or outside the years 1 to 9999 in UTC."""

TOO_DEEP: Final[tuple[Any, ...]] = (nested(MAX_DEPTH + 1), nested(101), nested(5000))
"""Values nested too deeply, a dict outermost."""


@dataclass(frozen=True, slots=True)
class Poisoned:
    """A value with one bad leaf or key, and where that is: what an error says behind the argument's name."""

    value: Any
    where: str


@st.composite
def poisoned(
    draw: DrawFn, inner: SearchStrategy[Any], *, addressable: bool = False, wraps: int = 0
) -> Poisoned:
    """
    Return values that keep the rule, made of *inner*, but for one bad leaf or key at a random place.

    With *addressable* the keys are a profile's. The place is at least *wraps* levels deep, a dict outermost.
    """
    # Short ones: the place in an error is cut where it gets long.
    names = (field_names() if addressable else texts()).map(lambda name: name[:20])
    bad = draw(
        _bad_dicts(inner, names, addressable=addressable)
        | st.sampled_from(BAD_LEAVES).map(lambda leaf: Poisoned(leaf, ""))
    )
    for step in range(draw(st.integers(wraps, 5)), 0, -1):
        bad = draw(_in_dict(bad, inner, names) if step == 1 or draw(st.booleans()) else _in_list(bad, inner))
    return bad


@st.composite
def _bad_dicts(
    draw: DrawFn, inner: SearchStrategy[Any], names: SearchStrategy[str], *, addressable: bool
) -> Poisoned:
    by_type = [*BAD_KEYS, *(BAD_FIELD_NAMES if addressable else ())]
    key = draw(st.sampled_from([*by_type, *(() if addressable else BAD_TEXT_KEYS)]))
    where = "" if any(key is bad for bad in by_type) else " (a key)"
    return Poisoned(_shuffled(draw, draw(st.dictionaries(names, inner, max_size=3)), key, draw(inner)), where)


@st.composite
def _in_dict(draw: DrawFn, bad: Poisoned, inner: SearchStrategy[Any], names: SearchStrategy[str]) -> Poisoned:
    key = draw(names)
    siblings = draw(st.dictionaries(names.filter(lambda name: name != key), inner, max_size=3))
    return Poisoned(_shuffled(draw, siblings, key, bad.value), f".{key}{bad.where}")


@st.composite
def _in_list(draw: DrawFn, bad: Poisoned, inner: SearchStrategy[Any]) -> Poisoned:
    items = draw(st.lists(inner, max_size=3))
    at = draw(st.integers(0, len(items)))
    return Poisoned([*items[:at], bad.value, *items[at:]], f"[{at}]{bad.where}")


def _shuffled(draw: DrawFn, siblings: dict[str, Any], key: Any, value: Any) -> dict[Any, Any]:
    items = [*siblings.items(), (key, value)]
    return dict(draw(st.permutations(items)))

"""What the conformance suites write: unique names, awkward names and values, and strategies for the rest."""

from __future__ import annotations

import asyncio
import unicodedata
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from uuid import uuid4

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from multidb._core.values import MAX_DEPTH, MAX_INT, MIN_INT

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from hypothesis.strategies import SearchStrategy

T = TypeVar("T")

Exact: TypeAlias = tuple[str, Any]


def nfc(text: str) -> str:
    """Return *text* as identifiers arrive at a backend."""
    return unicodedata.normalize("NFC", text)


# A backend fixture may live as long as the test function: every example writes under names of its own.
# The suites are inherited, so that one test runs on instances of several classes.
round_trips = settings(
    max_examples=30,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
"""The hypothesis settings of the suites."""

AWKWARD_IDS: Final = tuple(nfc(name) for name in (
    "a:b", "a", "a:", ":a", "a/b", "a%3Ab", "a%b", "a_b", "a\\b", "a\\:b", "a'b", "a''b", 'a"b', "a b", "a b ", "A", "a.b",
    "a*", "a?", "[ab]", "{a}", "{a", "a}", "$a", "$where", "a|b", "a,b", "a;b", "a~b", "a#b", "a^b", "a\u00a0b", "\u200b",
    "'; DROP TABLE events; --", "' OR '1'='1", '{"$gt": ""}', "{'$ne': None}", "*", "None", "null",
    "global", "../../etc/passwd", "..", ".", "CON", "con.", "nul.json", "a%2Fb", "~root", "İstanbul", "ışık", "IŞIK", "ß", "ẞ",
    "السلام", "👩\u200d👩\u200d👧\u200d👦", "e\u0327\u0302", "q\u0307\u0323", "0", "00", "-1", "1e3", "true", "é" * 60,
))  # fmt: skip
"""Identifiers that one backend or another is tempted to mistake for something else, or for each other."""

AWKWARD_KEYS: Final = (
    "", ".", "..", "$a", "$set", "a.b", "_id", "a", "A", "0", "00", "-1", '"', "#", "\\", "]", "'", "\n", "\t", "\x01", "\x1f",
    "!", "/", "\x7f", "\x85", "\u2028", "é", "e\u0301", "z", "\ud7ff", "\ue000", "\uffff", "😀", "👩\u200d👧", "ışık", "İ",
    "שלום", "__proto__", "__class__", "a b", " ", "null", "k" * 300,
)  # fmt: skip
"""Keys of free-form JSON. Sorted by code points they stand elsewhere than escaped, or as UTF-16."""

AWKWARD_TEXTS: Final = (
    "", " ", "  padded  ", "Mesaj alındı, İYİ GÜNLER ığüşöç", "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 👍🏽", "مرحبا \u202eabc\u202c",
    "e\u0301 é \ufb01 \u1e9e", "\u0301leading mark", "100% _sure_ \\ * ? [a-z] ^$ .*", "'; DROP TABLE events; --", '{"$gt": ""}',
    "line\nbreak\r\n\ttab", "\x01\x1f\x7f\x85\u2028\u2029", "\ufeffbom", "\uffff\ue000\U0010ffff", "\\u0000 \\x00", "null", "1", "1.0",
)  # fmt: skip
"""Texts that come back changed from a backend that escapes, trims, normalises or guesses."""

AWKWARD_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**53 + 1, -(2**53) - 1, MAX_INT, MIN_INT, MAX_INT - 1, MIN_INT + 1, 0.0, 1.0, -1.0,
    0.1, 0.1 + 0.2, 1e16, 1e15, 1e22, 1e23, 123456789012345680.0, 9007199254740993.0, 9.223372036854776e18, 1e-7, 1e300, 5e-324,
    2.2250738585072014e-308, 1.7976931348623157e308, -1.7976931348623157e308, *AWKWARD_TEXTS, [], {}, [[]], [{}], [None],
    [1, 1.0, True, "1", None], [[1, [2, [3]]], []],
)  # fmt: skip
"""Values that come back changed from a backend that goes through doubles, SQL numbers or a scripting language."""


def nested(levels: int, leaf: Any = 1) -> Any:
    """Return *leaf* inside *levels* dicts and lists by turns, a dict outermost."""
    value = leaf
    for level in range(levels, 0, -1):
        value = {"n": value} if level % 2 else [value]
    return value


DEEPEST: Final[dict[str, Any]] = nested(MAX_DEPTH)


def unique(label: str = "u") -> str:
    """Return an identifier that nobody used before."""
    return f"{label}-{uuid4().hex}"


def exact(value: Any) -> Exact:
    """Return *value* with the types of everything in it, so that 1, 1.0 and True differ when compared."""
    if isinstance(value, dict):
        return "dict", {key: exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value).__name__, [exact(item) for item in value]
    # repr tells 0.0 from -0.0, and a datetime in UTC from one that only equals it.
    return type(value).__name__, repr(value)


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run *calls* at the same time; return their results in order. A failure waits for the others."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, asyncio.CancelledError):
            msg = "a call was cancelled that nobody cancelled"
            raise AssertionError(msg) from result  # noqa: TRY004 -- the call is wrong, not a type
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


async def cancelled_midway(calls: Sequence[Coroutine[Any, Any, Any]], steps: Sequence[int]) -> None:
    """Start *calls*, cancel each after its number of *steps*, some long enough for an answer; wait for all."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    waiting = sorted(zip(steps, tasks, strict=True), key=lambda pair: pair[0])
    now = 0
    for step, task in waiting:
        for tick in range(now, step):
            await asyncio.sleep(0.0003 if tick % 3 == 2 else 0)
        now = max(now, step)
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome


def texts(max_size: int = 20) -> SearchStrategy[str]:
    """Return any text that a value may hold: no NUL, no lone surrogate."""
    return st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=max_size)


def scalars() -> SearchStrategy[Any]:
    """Return any JSON value that is neither list nor dict."""
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(MIN_INT, MAX_INT),
        # The store turns -0.0 into 0.0 before a backend sees it.
        st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number or 0.0),
        texts(),
    )


def moments() -> SearchStrategy[datetime]:
    """Return any time that a backend may be given: in UTC a fold means nothing, and not all keep it."""
    return st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(fold=0))


def free_json() -> SearchStrategy[Any]:
    """Return any value that a state may hold."""
    return st.recursive(
        scalars(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts(), inner, max_size=4),
        max_leaves=12,
    )


def free_dicts() -> SearchStrategy[dict[str, Any]]:
    """Return any dict that an event's context may be."""
    return st.dictionaries(texts() | st.sampled_from(AWKWARD_KEYS), free_json(), max_size=5)


def field_names() -> SearchStrategy[str]:
    """Return any key that a profile may hold."""
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0.")
    return st.text(characters, min_size=1, max_size=128).filter(lambda key: key[0] != "$" and key != "_id")


def addressable_dicts() -> SearchStrategy[dict[str, Any]]:
    """Return any dict of a program's fields that a profile may be."""
    values = st.recursive(
        scalars(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(field_names(), inner, max_size=4),
        max_leaves=12,
    )
    reserved = {"username", "created_at", "updated_at", "version"}
    return st.dictionaries(field_names().filter(lambda key: key not in reserved), values, max_size=5)

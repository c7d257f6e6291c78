"""The one rule for values and identifiers."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import OrderedDict, defaultdict
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, RootModel

from multidb._core import values
from multidb.errors import InvalidArgumentError, InvalidValueError, MultiDBError
from multidb.testing.conformance._data import (
    AWKWARD_IDS,
    AWKWARD_KEYS,
    AWKWARD_VALUES,
    addressable_dicts,
    exact,
    free_json,
    nested,
)
from multidb.testing.conformance._poison import (
    BAD_FIELD_NAMES,
    BAD_IDS,
    BAD_KEYS,
    BAD_LABELS,
    BAD_LEAVES,
    BAD_LIMITS,
    BAD_SECONDS,
    BAD_TEXT_KEYS,
    BAD_TIMES,
    Poisoned,
    poisoned,
)

MEBIBYTE = 1024 * 1024
many = settings(max_examples=300, deadline=None)


def encode(value: object, path: str = "value", **options: Any) -> bytes:
    return values.encode(value, path, **({"max_bytes": MEBIBYTE} | options))


def round_trip(value: object, **options: Any) -> Any:
    return values.load(encode(value, **options))


def refusal(value: object, path: str = "value", **options: Any) -> InvalidValueError:
    with pytest.raises(InvalidValueError) as caught:
        encode(value, path, **options)
    return caught.value


class Order(BaseModel):
    item: str
    at: datetime
    price: float = 0.0


class Circle(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    anything: Any


class Point(NamedTuple):
    x: int
    y: int


# What is accepted


@pytest.mark.parametrize("value", AWKWARD_VALUES, ids=ascii)
def test_awkward_value(value: Any) -> None:
    """A value comes back equal, with its type."""
    assert exact(value) == exact(round_trip(value))
    assert exact({"k": [value]}) == exact(round_trip({"k": [value]}))


@many
@given(value=free_json())
def test_any_value(value: Any) -> None:
    """Whatever keeps the rule comes back equal, with its type, all the way down."""
    assert exact(value) == exact(round_trip(value))


@many
@given(value=addressable_dicts())
def test_any_profile(value: Any) -> None:
    """So do the fields of a profile."""
    assert exact(value) == exact(round_trip(value, addressable=True))


@many
@given(value=free_json())
def test_canonical(value: Any) -> None:
    """The bytes of a value are canonical: encoding what came back gives the same bytes, and they are plain JSON."""
    encoded = encode(value)

    assert encoded == encode(values.load(encoded)) == values.dump(values.load(encoded))
    assert value == json.loads(encoded)


def test_canonical_bytes() -> None:
    """Canonical JSON is UTF-8 without spaces, the keys sorted by code points at every level."""
    value = {"é": 1, "b": [1, {"z": None, "a": True}], "a": 0.5, "": "ı", "\uffff": 2, "😀": 3}

    assert '{"":"ı","a":0.5,"b":[1,{"a":true,"z":null}],"é":1,"\uffff":2,"😀":3}'.encode() == encode(value)
    assert encode(value) == encode(dict(reversed(value.items())))


def test_any_key() -> None:
    """Free-form JSON takes any text as a key."""
    value = dict.fromkeys(AWKWARD_KEYS, 1)

    assert value == round_trip(value)


def test_negative_zero() -> None:
    """-0.0 becomes 0.0, everywhere."""
    assert exact({"a": [0.0, {"b": 0.0}]}) == exact(round_trip({"a": [-0.0, {"b": -0.0}]}))
    assert exact(0.0) == exact(round_trip(-0.0))


def test_tuples() -> None:
    """Tuples, named ones too, become lists."""
    assert exact({"a": [1, [2, []]], "p": [3, 4]}) == exact(round_trip({"a": (1, (2, ())), "p": Point(3, 4)}))


def test_kinds_of_dicts() -> None:
    """Classes that derive from dict and list count as dict and list."""
    counted: defaultdict[str, int] = defaultdict(int, {"a": 1})

    assert exact({"b": 2, "c": {"a": 1}}) == exact(round_trip(OrderedDict(c=counted, b=2)))


def test_models() -> None:
    """A pydantic model is dumped in JSON mode, at any place."""
    order = Order(item="çay", at=datetime(2026, 1, 2, tzinfo=UTC), price=-0.0)
    plain = {"item": "çay", "at": "2026-01-02T00:00:00Z", "price": 0.0}

    assert exact(plain) == exact(round_trip(order))
    assert exact({"orders": [plain]}) == exact(round_trip({"orders": (order,)}))
    assert [1, 2] == round_trip(RootModel[list[int]]([1, 2]))


def test_input_stays_as_it_is() -> None:
    """Checking a value changes nothing in it."""
    value = {"b": (1, -0.0), "a": []}
    encode(value)

    assert [("b", (1, -0.0)), ("a", [])] == list(value.items())
    assert math.copysign(1, value["b"][1]) == -1


def test_same_object_twice() -> None:
    """The same object at several places is no cycle."""
    shared = {"a": [1]}

    assert {"x": shared, "y": [shared, shared]} == round_trip({"x": shared, "y": [shared, shared]})


# What is refused


@pytest.mark.parametrize("leaf", BAD_LEAVES, ids=ascii)
def test_bad_leaf(leaf: Any) -> None:
    """What not every backend can keep is refused, by name of the place."""
    assert "value" == refusal(leaf).path
    assert "context.order.items[2]" == refusal({"order": {"items": [1, 2, leaf]}}, "context").path


@pytest.mark.parametrize("key", BAD_KEYS, ids=ascii)
def test_bad_key(key: Any) -> None:
    """Keys are plain texts; nothing is turned into one."""
    assert "value" == refusal({key: 1}).path
    assert "value.a[0]" == refusal({"a": [{"ok": 1, key: 2}]}).path


@pytest.mark.parametrize("key", BAD_TEXT_KEYS, ids=ascii)
def test_bad_text_key(key: str) -> None:
    """A key is held to the same rule as any other text."""
    assert "value.a[0] (a key)" == refusal({"a": [{"ok": 1, key: 2}]}).path


@pytest.mark.parametrize("key", BAD_FIELD_NAMES, ids=ascii)
def test_bad_field_name(key: str) -> None:
    """A profile's keys can be named by a dotted path; free-form JSON may have others."""
    assert "data.a[0]" == refusal({"a": [{"ok": 1, key: 2}]}, "data", addressable=True).path
    if "\0" not in key:
        assert {key: 2} == round_trip({key: 2})


@many
@given(bad=poisoned(free_json()))
def test_any_poison(bad: Poisoned) -> None:
    """A bad leaf or key is found wherever it is, and named."""
    assert f"value{bad.where}" == refusal(bad.value).path


@many
@given(bad=poisoned(free_json(), addressable=True))
def test_any_poison_in_a_profile(bad: Poisoned) -> None:
    """So it is in a profile. The good parts of this one may have keys that no profile may have, which is refused too."""
    refusal(bad.value, addressable=True)


def test_errors() -> None:
    """A refused value is a refused argument, which is a ValueError."""
    error = refusal({"a": b""})

    assert isinstance(error, InvalidArgumentError)
    assert isinstance(error, MultiDBError)
    assert isinstance(error, ValueError)
    assert "value.a: bytes; pass base64 text" == str(error)
    assert ("value.a", "bytes; pass base64 text") == (error.path, error.reason)


@pytest.mark.parametrize("leaf", BAD_LEAVES, ids=ascii)
def test_error_without_data(leaf: Any) -> None:
    """An error says what is wrong with a value; it does not quote it."""
    error = refusal({"order": {"secret-value": [0], "items": ["secret-item", leaf]}})

    assert "value.order.items[1]" == error.path
    assert "secret" not in str(error)


def test_hints() -> None:
    """The error for a common mistake says what to do."""
    hints = {leaf.__class__.__name__: refusal(leaf).reason for leaf in BAD_LEAVES}

    assert {
        "Decimal": "Decimal; pass str(value)",
        "datetime": "datetime; pass value.isoformat()",
        "date": "date; pass value.isoformat()",
        "set": "set; pass sorted(value)",
        "Colour": "Colour; pass its .value",
        "Mood": "Mood; pass its .value",
        "Text": "Text; pass the plain str",
        "Number": "Number; pass the plain int",
        "Ratio": "Ratio; pass the plain float",
        "int": "int outside 64 bits; pass str(value)",
        "float": "-inf is not a JSON number; pass None or a str",
    }.items() <= hints.items()


def test_depth() -> None:
    """32 levels are allowed, one more is not."""
    assert nested(32) == round_trip(nested(32))
    assert nested(31, []) == round_trip(nested(31, []))
    assert "value" + ".n[0]" * 16 == refusal(nested(32, [])).path
    for levels in (33, 101, 100_000):
        assert "more than 32 levels deep" == refusal(nested(levels)).reason


def test_depth_below_a_path() -> None:
    """What is stored deep inside a document has fewer levels left."""
    assert nested(2) == round_trip(nested(2), depth=31)
    refusal(nested(3), depth=31)
    assert 1 == round_trip(1, depth=33)


def test_cycle() -> None:
    """A value that holds itself is too deep."""
    cycle: list[Any] = []
    cycle.append({"again": cycle})

    assert "more than 32 levels deep" == refusal(cycle).reason


def test_long_path() -> None:
    """The place in an error is cut where keys are huge."""
    value: Any = {}
    for _ in range(40):
        value = {"k" * 1000: value}

    assert 300 > len(str(refusal(value)))


def test_unprintable_path() -> None:
    """A key that no log can write is written as an escape in an error."""
    error = refusal({"a\ud800": {"b": b""}})

    assert "value.a\\ud800.b" == error.path
    assert b"value.a\\ud800.b: bytes; pass base64 text" == str(error).encode()


def test_size() -> None:
    """The size is that of the canonical JSON, in bytes."""
    assert b'"' + b"a" * 98 + b'"' == encode("a" * 98, max_bytes=100)
    assert "101 bytes as JSON, more than the 100 allowed" == refusal("a" * 99, max_bytes=100).reason
    assert "2,097,154 bytes as JSON, more than the 1,048,576 allowed" == refusal("ğ" * MEBIBYTE).reason
    assert 100 == len(encode(["\n" * 48], max_bytes=100))
    refusal(["\n" * 49], max_bytes=100)


def test_escaped_nul_is_text() -> None:
    """Six characters that look like an escaped NUL are six characters."""
    assert ["\\u0000", "\\\\u0000"] == round_trip(["\\u0000", "\\\\u0000"])
    assert "value[1]" == refusal(["\\u0000", "\\\0"]).path


@pytest.mark.parametrize(
    "inner", [b"\xff", object(), float("nan"), 2**63, "a\0b", "\ud800", {1: 2}], ids=ascii
)
def test_model_with_a_bad_value(inner: Any) -> None:
    """What pydantic cannot dump, or dumps to something bad, is refused like anything else."""
    if isinstance(inner, float) or (isinstance(inner, dict) and round_trip(Circle(anything=inner))):
        return  # pydantic dumps NaN as None and the key 1 as "1"; that is the model's own business.

    assert refusal({"a": [Circle(anything=inner)]}).path.startswith("value.a[0]")


# Identifiers


@pytest.mark.parametrize("value", AWKWARD_IDS, ids=ascii)
def test_identifier(value: str) -> None:
    """An identifier is any text of 1 to 256 bytes."""
    assert value == values.identifier(value, "user_id")


@pytest.mark.parametrize(
    "value", ["x" * 256, "é" * 128, "😀" * 64, " ", "\u200b", "\u2028", "/", "%", "CON", "."], ids=ascii
)
def test_identifier_at_the_border(value: str) -> None:
    """256 bytes are allowed, and everything that is no control character."""
    assert value == values.identifier(value, "user_id")


@pytest.mark.parametrize("value", BAD_IDS, ids=ascii)
def test_bad_identifier(value: Any) -> None:
    """Anything else is refused, by name of the argument."""
    with pytest.raises(InvalidArgumentError, match=r"^user_id: "):
        values.identifier(value, "user_id")


@pytest.mark.parametrize("value", BAD_LABELS, ids=ascii)
def test_bad_label(value: Any) -> None:
    """A label is an identifier that is no int."""
    with pytest.raises(InvalidArgumentError, match=r"^key: "):
        values.label(value, "key")


def test_int_identifiers() -> None:
    """An int, as Telegram gives it, is its decimal digits."""
    numbers = [0, 42, -1001234567890, 2**63 - 1, -(2**63)]

    assert [str(number) for number in numbers] == [values.identifier(number, "user_id") for number in numbers]


@many
@given(text=st.text(min_size=1, max_size=100))
def test_normal_form(text: str) -> None:
    """Texts that look the same are the same identifier; an identifier is an identifier of itself."""
    outcomes = set()
    for form in ("NFC", "NFD"):
        try:
            outcomes.add(values.identifier(unicodedata.normalize(form, text), "user_id"))
        except InvalidArgumentError:
            outcomes.add("refused")

    assert 1 == len(outcomes)
    assert outcomes == {values.identifier(outcome, "user_id") for outcome in outcomes}


def test_case_counts() -> None:
    """Identifiers that differ in case, or look alike without being the same, are different."""
    alike = ["Ali", "ali", "ALI", "ALİ", "alı", "\uff21li", "ﬁ", "fi"]

    assert alike == [values.identifier(value, "username") for value in alike]


# Other arguments


@pytest.mark.parametrize("value", BAD_SECONDS, ids=ascii)
def test_bad_seconds(value: Any) -> None:
    """A life span is a number of seconds from a millisecond to ten years."""
    with pytest.raises(InvalidArgumentError, match=r"^seconds: "):
        values.seconds(value, "seconds")


def test_seconds() -> None:
    """Both ends are included, and the result is a float."""
    spans = [0.001, 1, 1.9, 315576000, 315576000.0]

    assert exact([0.001, 1.0, 1.9, 315576000.0, 315576000.0]) == exact(
        [values.seconds(span, "seconds") for span in spans]
    )
    with pytest.raises(InvalidArgumentError):
        values.seconds(math.nextafter(315576000.0, math.inf), "seconds")


@pytest.mark.parametrize("value", BAD_LIMITS, ids=ascii)
def test_bad_limit(value: Any) -> None:
    """A limit is an int from 1 to 10,000."""
    with pytest.raises(InvalidArgumentError, match=r"^limit: must be an int from 1 to 10,000$"):
        values.limit(value)


def test_limit() -> None:
    """Both ends are included."""
    assert [1, 100, 10_000] == [values.limit(value) for value in (1, 100, 10_000)]


@pytest.mark.parametrize("value", BAD_TIMES, ids=ascii)
def test_bad_timestamp(value: Any) -> None:
    """A time is an aware datetime."""
    with pytest.raises(InvalidArgumentError, match=r"^since: "):
        values.timestamp(value, "since")


@many
@given(
    moment=st.datetimes(
        datetime(2, 1, 1),  # noqa: DTZ001 -- hypothesis takes naive bounds
        datetime(9998, 1, 1),  # noqa: DTZ001 -- likewise
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
    )
)
def test_timestamp(moment: datetime) -> None:
    """It comes out in UTC, the same point in time to the microsecond."""
    utc = values.timestamp(moment, "since")

    assert moment == utc
    assert UTC is utc.tzinfo
    assert moment.microsecond == utc.microsecond


def test_choice() -> None:
    """A choice is one of the words, not something that equals one."""
    assert "INFO" == values.choice("INFO", "level", ("INFO", "ERROR"))
    for bad in ("info", "", "INFO ", None, 1, ["INFO"], {"$gt": ""}, b"INFO"):
        with pytest.raises(InvalidArgumentError, match=r"^level: must be one of INFO, ERROR$"):
            values.choice(bad, "level", ("INFO", "ERROR"))


def test_whole_number() -> None:
    """A whole number is a plain int within its bounds."""
    assert [0, 5] == [values.whole_number(value, "amount", 0, 5) for value in (0, 5)]
    for bad in (-1, 6, True, 1.0, "1", None, 10**30):
        with pytest.raises(InvalidArgumentError, match=r"^amount: must be an int from 0 to 5$"):
            values.whole_number(bad, "amount", 0, 5)


def test_text_size() -> None:
    """A text is measured in bytes of UTF-8."""
    assert "ğ" * 5 == values.check_text("ğ" * 5, "message", max_bytes=10)
    with pytest.raises(InvalidValueError, match=r"^message: 12 bytes, more than the 10 allowed$"):
        values.check_text("ğ" * 6, "message", max_bytes=10)

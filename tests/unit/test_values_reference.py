"""values.encode() takes a short way for what needs no copy; it must yield what the plain way yields, bytes and errors."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, UserDict
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, RootModel

from multidb._core import values
from multidb.errors import InvalidValueError
from multidb.testing.conformance._data import AWKWARD_KEYS, AWKWARD_VALUES, free_json, nested, texts
from multidb.testing.conformance._poison import BAD_FIELD_NAMES, BAD_KEYS, BAD_LEAVES, BAD_TEXT_KEYS, poisoned

MIB = 1024 * 1024


class RefusedError(Exception):
    """Where, and why."""


# The plain way: one walk that copies everything.


def reference(value: object, path: str, max_bytes: int, depth: int, addressable: bool) -> bytes:
    plain = copied(value, path, depth, addressable)
    check_strings(plain, path)
    encoded = orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)
    if len(encoded) > max_bytes:
        raise RefusedError(path, f"{len(encoded):,} bytes as JSON, more than the {max_bytes:,} allowed")
    return encoded


def copied(value: Any, path: str, depth: int, addressable: bool) -> Any:
    if value is None or type(value) in (str, bool, int, float):
        return copied_scalar(value, path)
    if isinstance(value, BaseModel):
        try:
            dumped = value.model_dump(mode="json")
        except ValueError:
            raise RefusedError(path, f"{type(value).__name__} cannot be dumped in JSON mode") from None
        return copied(dumped, path, depth, addressable)
    if not isinstance(value, dict | list | tuple):
        raise RefusedError(path, values._refusal(value))
    if depth > 32:
        raise RefusedError(path, "more than 32 levels deep")
    if not isinstance(value, dict):
        return [copied(item, f"{path}[{i}]", depth + 1, addressable) for i, item in enumerate(value)]
    items = {}
    for key, item in value.items():
        check_key(key, path, addressable)
        items[key] = copied(item, f"{path}.{key}", depth + 1, addressable)
    return items


def copied_scalar(value: Any, path: str) -> Any:
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise RefusedError(path, "int outside 64 bits; pass str(value)")
    if type(value) is float and not math.isfinite(value):
        raise RefusedError(path, f"{value} is not a JSON number; pass None or a str")
    return 0.0 if type(value) is float and value == 0 else value


def check_key(key: Any, path: str, addressable: bool) -> None:
    if type(key) is not str:
        raise RefusedError(path, f"key of type {type(key).__name__}; keys must be str")
    if addressable and not 1 <= len(key) <= 128:
        raise RefusedError(path, f"key of {len(key)} characters; 1 to 128 are allowed in a profile")
    if addressable and ("." in key or "\0" in key or key[0] == "$" or key == "_id"):
        raise RefusedError(
            path, f"the key {key!a}: a profile's keys have no '.', no NUL, no leading '$', and are not '_id'"
        )


def check_strings(value: Any, path: str) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise RefusedError(path, "NUL character; remove it")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise RefusedError(path, "lone surrogate; decode the text with errors='replace'")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            check_strings(item, f"{path}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_strings(key, f"{cut(path)} (a key)")
            check_strings(item, f"{path}.{key}")


def cut(path: str) -> str:
    return path if len(path) <= 256 or path.endswith(" (a key)") else path[:256] + "…"


def outcome(value: object, max_bytes: int, depth: int, addressable: bool) -> tuple[object, ...]:
    try:
        return (
            values.encode(value, "value", max_bytes=max_bytes, depth=depth, addressable=addressable),
            "",
            "",
        )
    except InvalidValueError as error:
        return None, error.path, error.reason


def expected(value: object, max_bytes: int, depth: int, addressable: bool) -> tuple[object, ...]:
    try:
        return reference(value, "value", max_bytes, depth, addressable), "", ""
    except RefusedError as refused:
        path, reason = refused.args
        return None, cut(path).encode(errors="backslashreplace").decode(), reason


# What is encoded


class Point(NamedTuple):
    x: Any
    y: Any


class Card(BaseModel):
    anything: Any


LEAVES = (
    *AWKWARD_VALUES, *BAD_LEAVES, 0.0, -0.0, 2**63 - 1, 2**63, -(2**63), 2**64 - 1, 2**64, 5e-324, 1e308,
    (), Point(1, (2.5, -0.0)), Card(anything=1), Card(anything=b"\xff"), Card(anything={1: 2}), RootModel[int](3),
    RootModel[list[float]]([-0.0]), orjson.Fragment(b"[1]"), UUID(int=1), datetime(2026, 1, 2, tzinfo=UTC),
    OrderedDict(a=1), OrderedDict({"a": {1, 2}}), UserDict(a=1), "\\u0000", "\\\0", nested(31), nested(32), nested(40),
)  # fmt: skip
KEYS = (
    *AWKWARD_KEYS,
    *BAD_KEYS,
    *BAD_TEXT_KEYS,
    *BAD_FIELD_NAMES,
    "_id",
    "a-b",
    "12",
    "é",
    "k" * 128,
    "k" * 300,
)

good_keys = st.sampled_from(("a", "b", "name", "x1", "user_id", "_x")) | texts(8)
any_keys = good_keys | st.sampled_from(KEYS)
any_leaves = free_json() | st.sampled_from(LEAVES) | st.integers(-(2**70), 2**70) | st.floats()


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(good_keys, inner, max_size=4)
        | st.dictionaries(any_keys, inner, max_size=4)
        | st.dictionaries(any_keys, inner, max_size=3).map(OrderedDict)
        | st.lists(inner, min_size=2, max_size=2).map(lambda pair: Point(*pair))
    )


anything = st.recursive(any_leaves, containers, max_leaves=8)


@settings(max_examples=1500, deadline=None)
@given(
    value=anything,
    max_bytes=st.sampled_from((MIB, MIB, 20)),
    depth=st.sampled_from((1, 1, 2, 31, 32, 33)),
    addressable=st.booleans(),
)
@example(value=[float("nan"), None], max_bytes=MIB, depth=1, addressable=False)
@example(value={"a": -0.0, "b": (1,)}, max_bytes=MIB, depth=1, addressable=False)
@example(value={"a\ud800": 1, "b": object()}, max_bytes=MIB, depth=1, addressable=False)
def test_like_the_plain_way(value: Any, max_bytes: int, depth: int, addressable: bool) -> None:
    """Same bytes, or the same error at the same place."""
    assert expected(value, max_bytes, depth, addressable) == outcome(value, max_bytes, depth, addressable)


@settings(max_examples=500, deadline=None)
@given(bad=poisoned(free_json()), addressable=st.booleans())
def test_poison_like_the_plain_way(bad: Any, addressable: bool) -> None:
    """That goes for values with one thing wrong at some place, too."""
    assert expected(bad.value, MIB, 1, addressable) == outcome(bad.value, MIB, 1, addressable)


@pytest.mark.parametrize("leaf", LEAVES, ids=ascii)
@pytest.mark.parametrize("addressable", [False, True])
def test_every_leaf(leaf: Any, addressable: bool) -> None:
    """Every kind of leaf, at the top, in a dict, in a list and in a tuple."""
    for value in (leaf, {"a": leaf}, [leaf], (leaf,), {"a": [1, {"b": leaf}]}, {"b": (leaf,), "a": leaf}):
        assert expected(value, MIB, 1, addressable) == outcome(value, MIB, 1, addressable)


@pytest.mark.parametrize("key", KEYS, ids=ascii)
@pytest.mark.parametrize("addressable", [False, True])
def test_every_key(key: Any, addressable: bool) -> None:
    """Every kind of key, at the top and below, alone and beside others."""
    for value in ({key: 1}, {"a": 1, key: 2}, {"a": [{key: (1,)}]}, {"a": {"b": 1, key: b""}}):
        assert expected(value, MIB, 1, addressable) == outcome(value, MIB, 1, addressable)


def test_nothing_is_copied_nor_changed() -> None:
    """A value that needs no copy is dumped as it is; one that needs it stays as it was."""
    value = {"b": (1, -0.0), "a": [], "c": OrderedDict(x=1)}
    before = json.dumps(value)

    assert b'{"a":[],"b":[1,0.0],"c":{"x":1}}' == values.encode(value, "value", max_bytes=MIB)
    assert before == json.dumps(value)

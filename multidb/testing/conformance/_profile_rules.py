"""The contract of profile backends as code, for tests that compare a backend with it."""

from __future__ import annotations

import operator
from datetime import datetime
from functools import cmp_to_key
from typing import TYPE_CHECKING, Any, Final

from multidb._core.values import MAX_INT, MIN_INT
from multidb.testing.conformance._profile_data import document, own_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from multidb.profiles._records import Document
    from multidb.profiles.protocol import Condition, Patch

MISSING: Final = object()


class RefusedError(Exception):
    """A patch is a conflict."""


def patched(old: Document | None, patch: Patch) -> tuple[Document | None, bool]:
    """Return what *patch* makes of *old*, and whether it writes. Raises RefusedError."""
    stored_version = old["version"] if old else 0
    if patch.expected_version is not None and patch.expected_version != stored_version:
        raise RefusedError
    if old is None and not patch.upsert:
        return None, False
    fields: dict[str, Any] = {} if old is None or patch.replace else _copy(own_fields(old))
    for path, value in patch.set.items():
        parent, name = _parent(fields, path, create=True)
        parent[name] = _copy(value)
    for path, amount in patch.increment.items():
        parent, name = _parent(fields, path, create=True)
        parent[name] = _sum(parent.get(name, 0), amount)
    removed = [_remove(fields, path) for path in patch.remove]
    only_removes = patch.remove and not (patch.set or patch.increment or patch.replace)
    if old is not None and only_removes and not any(removed):
        return old, False
    created = old["created_at"] if old else patch.at
    new = document(patch.username, fields, version=stored_version + 1, created=created, updated=patch.at)
    return new, True


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _parent(fields: dict[str, Any], path: str, *, create: bool) -> tuple[dict[str, Any], str]:
    *way, name = path.split(".")
    at: Any = fields
    for part in way:
        at = at.setdefault(part, {}) if create else at.get(part, {})
        if not isinstance(at, dict):
            raise RefusedError
    return at, name


def _sum(value: Any, amount: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError
    total = value + amount
    if isinstance(total, int) and not MIN_INT <= total <= MAX_INT:
        raise RefusedError
    return total


def _remove(fields: dict[str, Any], path: str) -> bool:
    parent, name = _parent(fields, path, create=False)
    return parent.pop(name, MISSING) is not MISSING


def fulfils(found: Document, condition: Condition) -> bool:
    """Return whether a profile fulfils *condition*."""
    values = list(_values_at(found, condition.path.split(".")))
    if condition.operator == "exists":
        return bool(any(value is not MISSING for value in values) == condition.value)
    wanted = condition.value if condition.operator == "in" else (condition.value,)
    test = _TESTS[condition.operator]
    return any(test(value, each) for value in values for each in wanted)


def _values_at(value: Any, way: list[str]) -> Iterable[Any]:
    """Yield the values at a path: a list stands for its items, and on the way for the dicts in it."""
    if not way:
        yield value
        if isinstance(value, list):
            yield from value
    elif isinstance(value, dict):
        yield from _values_at(value.get(way[0], MISSING), way[1:])
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from _values_at(item, way)
    else:
        yield MISSING


def kind(value: Any) -> str:
    """Return the type within which *value* compares."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return {str: "text", datetime: "time"}.get(type(value), "none" if value is None else "other")


def _comparison(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def test(value: Any, wanted: Any) -> bool:
        if wanted is None:
            return compare is operator.eq and (value is None or value is MISSING)
        return kind(value) == kind(wanted) and compare(value, wanted)

    return test


_TESTS: Final = {
    "eq": _comparison(operator.eq),
    "in": _comparison(operator.eq),
    "gt": _comparison(operator.gt),
    "gte": _comparison(operator.ge),
    "lt": _comparison(operator.lt),
    "lte": _comparison(operator.le),
}

_RANKS: Final = {"none": 0, "other": 0, "bool": 1, "number": 2, "text": 3, "time": 4}


def value_at(found: Document, path: str) -> Any:
    """Return the value at a path through dicts, None where there is none."""
    value: Any = found
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def in_order(found: Iterable[Document], sort: Sequence[tuple[str, bool]]) -> list[Document]:
    """Return profiles in the order of a query."""

    def compare(one: Document, other: Document) -> int:
        for path, descending in sort:
            way = _compare(value_at(one, path), value_at(other, path))
            if way:
                return -way if descending else way
        return -1 if one["username"] < other["username"] else 1

    return sorted(found, key=cmp_to_key(compare))


def _compare(one: Any, other: Any) -> int:
    ranks = _RANKS[kind(one)], _RANKS[kind(other)]
    if ranks[0] != ranks[1]:
        return -1 if ranks[0] < ranks[1] else 1
    if ranks[0] == 0 or one == other:
        return 0
    return -1 if one < other else 1

"""
What patches, conditions and orders mean on a document in memory: the protocol's rules as pure functions.

The memory and the file backend share them, and a backend of your own may use them, too. Conditions mean what they
mean to MongoDB.
"""

from __future__ import annotations

import math
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson

from multidb._core.text import fold
from multidb._core.values import MAX_INT, MIN_INT
from multidb.errors import BackendError, ConflictError, InvalidValueError
from multidb.profiles._records import RESERVED, Document, ProfileStats
from multidb.profiles.protocol import Applied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from multidb.profiles.protocol import Condition, Operator, Outcome, Patch, ProfileQuery

MAX_BYTES: Final = 15 * 1024 * 1024
"""The largest document, as canonical JSON: it must fit into the 16 MiB of BSON that MongoDB takes."""

Test: TypeAlias = "Callable[[Any], bool]"
Matcher: TypeAlias = "Callable[[Document], bool]"
_SortKey: TypeAlias = tuple[int, Any]

_MISSING: Final = object()
_ABSENT_RANK: Final = 0
_RANKS: Final[dict[type, int]] = {bool: 1, int: 2, float: 2, str: 3, datetime: 4}


def apply_patches(
    read: Callable[[str], Document | None], patches: Sequence[Patch]
) -> tuple[list[Outcome], dict[str, Document]]:
    """
    Return what each of *patches* does, in order, and the documents that are then to be written, by username.

    *read* returns what is stored; a BackendError from it is that patch's result.
    """
    results: list[Outcome] = []
    written: dict[str, Document] = {}
    for patch in patches:
        try:
            before = written.get(patch.username) or read(patch.username)
            after = apply_patch(before, patch)
        except (ConflictError, InvalidValueError, BackendError) as error:
            results.append(error)
            continue
        if after is not None and after is not before:
            written[patch.username] = after
        document = copy_value(after) if patch.wants_document else None
        results.append(Applied(document, changed=after is not before))
    return results, written


def apply_patch(document: Document | None, patch: Patch) -> Document | None:
    """
    Return what *patch* makes of *document*, which stays as it is; that very object where it writes nothing.

    The result shares with *document* what the patch left alone. Raises ConflictError, and InvalidValueError
    for a result larger than 15 MiB.
    """
    _check_version(document, patch)
    if document is None and not patch.upsert:
        return None
    if document is not None and _finds_nothing(document, patch):
        return document
    draft = _Draft(_start(document, patch))
    for path, value in patch.set.items():
        draft.set(path, copy_value(value))
    for path, amount in patch.increment.items():
        draft.increment(path, amount)
    for path in patch.remove:
        draft.remove(path)
    _check_size(draft.document)
    return draft.document


def _check_version(document: Document | None, patch: Patch) -> None:
    if patch.expected_version is None:
        return
    version = document["version"] if document is not None else 0
    if version != patch.expected_version:
        msg = f"the profile has version {version}, not {patch.expected_version}"
        raise ConflictError(msg)


def _finds_nothing(document: Document, patch: Patch) -> bool:
    """Return whether *patch* only removes and there is nothing to remove. Raises ConflictError."""
    if not patch.remove or patch.set or patch.increment or patch.replace:
        return False
    draft = _Draft(document)
    # All of them: a conflict behind the first one that is there is a conflict, too.
    found = [draft.parent_of(path) is not None for path in patch.remove]
    return not any(found)


def _start(document: Document | None, patch: Patch) -> Document:
    """Return a new document: the reserved fields as after *patch*, the others as before."""
    if document is None:
        return {"username": patch.username, "created_at": patch.at, "updated_at": patch.at, "version": 1}
    kept = {name: document[name] for name in RESERVED} if patch.replace else dict(document)
    return kept | {"updated_at": patch.at, "version": document["version"] + 1}


def _check_size(document: Document) -> None:
    # In MongoDB other programs may have put in what is no JSON.
    size = len(orjson.dumps(document, default=str))
    if size > MAX_BYTES:
        raise InvalidValueError("profile", f"{size:,} bytes as JSON, more than the {MAX_BYTES:,} allowed")


class _Draft:
    """A document being written. The dicts inside it are copied when they are first written to."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._own = {id(document)}

    def set(self, path: str, value: Any) -> None:
        parent, name = self._make_parent(path)
        parent[name] = value

    def increment(self, path: str, amount: float) -> None:
        parent, name = self._make_parent(path)
        parent[name] = _sum(parent.get(name, 0), amount)

    def remove(self, path: str) -> None:
        if self.parent_of(path) is not None:
            parent, name = self._make_parent(path)
            del parent[name]

    def parent_of(self, path: str) -> dict[str, Any] | None:
        """Return the dict that holds the value at *path*; None when there is none. Raises ConflictError."""
        *outer, name = path.split(".")
        inside: Any = self.document
        for part in outer:
            if part not in inside:
                return None
            inside = _as_dict(inside[part])
        return inside if name in inside else None

    def _make_parent(self, path: str) -> tuple[dict[str, Any], str]:
        """Return the dict to write the last part of *path* to, and that part. Raises ConflictError."""
        *outer, name = path.split(".")
        inside = self.document
        for part in outer:
            below = _as_dict(inside.get(part, {}))
            if id(below) not in self._own:
                below = dict(below)
                self._own.add(id(below))
            inside[part] = below
            inside = below
        return inside, name


def _as_dict(value: Any) -> dict[str, Any]:
    if type(value) is dict:
        return value
    # Neither the path nor the value: both may be personal.
    msg = "a path leads through a value that is not a dict"
    raise ConflictError(msg)


def _sum(current: Any, amount: float) -> float:
    if type(current) is not int and type(current) is not float:
        msg = "the value to increment is not a number"
        raise ConflictError(msg)
    total = current + amount
    if type(total) is int:
        if MIN_INT <= total <= MAX_INT:
            return total
    elif math.isfinite(total):
        return total + 0.0  # turns -0.0 into 0.0
    msg = "the incremented value would leave the range of 64 bits"
    raise ConflictError(msg)


def copy_value(value: Any) -> Any:
    """Return a copy of a JSON value that shares no dict and no list with it."""
    if type(value) is dict:
        return {key: copy_value(item) if type(item) in _CONTAINERS else item for key, item in value.items()}
    if type(value) is list:
        return [copy_value(item) if type(item) in _CONTAINERS else item for item in value]
    return value


_CONTAINERS: Final = (dict, list)


def copies(documents: Iterable[Document]) -> list[Document]:
    """Return copies of *documents*, for callers to change as they like."""
    return [copy_value(document) for document in documents]


def select(documents: Iterable[Document], query: ProfileQuery) -> list[Document]:
    """Return those of *documents* that *query* asks for, in its order, themselves and not copies."""
    matches = matcher(query.conditions)
    found = [document for document in documents if matches(document)]
    if query.after is not None:
        values, username = query.after
        position = [sort_key(value) for value in values]
        found = [document for document in found if _comes_after(document, query.sort, position, username)]
    found.sort(key=lambda document: document["username"])
    # Sorting is stable, also in reverse: the last path first, the first path last.
    for path, descending in reversed(query.sort):
        found.sort(key=_sort_key_at(path.split(".")), reverse=descending)
    return found[: query.limit]


def _comes_after(
    document: Document, sort: Sequence[tuple[str, bool]], position: Sequence[_SortKey], username: str
) -> bool:
    for (path, descending), there in zip(sort, position, strict=True):
        here = sort_key(_value_at(document, path.split(".")))
        if here != there:
            return (here < there) is descending
    return bool(document["username"] > username)


def sort_key(value: Any) -> _SortKey:
    """Return what *value* sorts by, its type first. What is missing, None, a list or a dict is equal."""
    rank = _RANKS.get(type(value), _ABSENT_RANK)
    return (rank, value) if rank else (_ABSENT_RANK, None)


def _sort_key_at(parts: Sequence[str]) -> Callable[[Document], _SortKey]:
    return lambda document: sort_key(_value_at(document, parts))


def value_at(document: Document, path: str) -> Any:
    """Return the value at a dotted path through dicts; None where there is none."""
    return _value_at(document, path.split("."))


def _value_at(document: Document, parts: Sequence[str]) -> Any:
    value: Any = document
    for part in parts:
        if type(value) is not dict:
            return None
        value = value.get(part)
    return value


def matcher(conditions: Sequence[Condition]) -> Matcher:
    """Return a function that says whether a document fulfils all of *conditions*."""
    matchers = [_matcher(condition) for condition in conditions]
    return lambda document: all(matches(document) for matches in matchers)


def _matcher(condition: Condition) -> Matcher:
    parts = condition.path.split(".")
    if condition.operator == "exists":
        wanted = condition.value
        return lambda document: _holds(document, parts, _is_there) is wanted
    test = _test(condition.operator, condition.value)
    return lambda document: _holds(document, parts, test)


def _holds(value: Any, parts: Sequence[str], test: Test) -> bool:
    """Return whether *test* holds for a value that MongoDB sees at the path *parts* in the dict *value*."""
    for depth, part in enumerate(parts):
        if type(value) is dict:
            value = value.get(part, _MISSING)
        elif type(value) is list:
            return _holds_in_list(value, parts[depth:], test)
        else:
            return test(_MISSING)
    return test(value) or (type(value) is list and any(map(test, value)))


def _holds_in_list(items: list[Any], parts: Sequence[str], test: Test) -> bool:
    """As `_holds()`: the path goes on in the dicts among *items*, and in the item its next part numbers."""
    index, below = parts[0], parts[1:]
    for position, item in enumerate(items):
        if type(item) is dict and _holds(item, parts, test):
            return True
        if index == str(position) and _holds_at_index(item, below, test):
            return True
    return False


def _holds_at_index(item: Any, below: Sequence[str], test: Test) -> bool:
    if not below:
        return test(item)
    if type(item) is list:
        return _holds_in_list(item, below, test)
    return type(item) is dict and _holds(item, below, test)


def _is_there(value: Any) -> bool:
    return value is not _MISSING


def _is_null(value: Any) -> bool:
    return value is None or value is _MISSING


def _never(_: Any) -> bool:
    return False


def _test(operator: Operator, wanted: Any) -> Test:
    """Return a function that says whether one value fulfils a condition."""
    if operator == "in":
        tests = [_test("eq", each) for each in wanted]
        return lambda value: any(test(value) for test in tests)
    if wanted is None:
        return _is_null if operator in {"eq", "gte", "lte"} else _never
    compares = _COMPARISONS[operator]
    rank = _RANKS[type(wanted)]
    return lambda value: _RANKS.get(type(value)) == rank and compares(value, wanted)


_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "eq": lambda value, wanted: value == wanted,
    "gt": lambda value, wanted: value > wanted,
    "gte": lambda value, wanted: value >= wanted,
    "lt": lambda value, wanted: value < wanted,
    "lte": lambda value, wanted: value <= wanted,
}


def contains(document: Document, keyword: str) -> bool:
    """Return whether the username or a text field at the top level, folded, contains the folded *keyword*."""
    return any(type(value) is str and keyword in fold(value) for value in document.values())


def count(documents: Iterable[Document]) -> ProfileStats:
    """Count *documents*."""
    total = active = autospam_bots = 0
    by_type: Counter[str] = Counter()
    for document in documents:
        kind = document.get("type")
        total += 1
        active += document.get("is_active") is True
        autospam_bots += kind == "bot" and document.get("autospam") is True
        if type(kind) is str:
            by_type[kind] += 1
    return ProfileStats(total=total, active=active, by_type=dict(by_type), autospam_bots=autospam_bots)

"""How a profile is kept in MongoDB, and the update that makes a patch."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from multidb._core.text import fold
from multidb._core.values import MAX_INT, MIN_INT

if TYPE_CHECKING:
    from collections.abc import Collection

    from multidb.profiles._records import Document
    from multidb.profiles.protocol import Patch

OWN: Final = "_multidb"
"""The sub-document that is multidb's own: beside the program's fields, which other tools read as they are."""
FOLDED: Final = f"{OWN}.text"
"""The folded text of the username and of each text field at the top level, by field: for search."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

# Every BSON type that is not a document, and every one that is not a number. `$type: "object"` would not do:
# it holds for a list of documents too.
_NO_DOCUMENT: Final = (
    "array", "binData", "bool", "date", "dbPointer", "decimal", "double", "int", "javascript",
    "javascriptWithScope", "long", "maxKey", "minKey", "null", "objectId", "regex", "string", "symbol",
    "timestamp", "undefined",
)  # fmt: skip
_NO_NUMBER: Final = (
    "object",
    *(name for name in _NO_DOCUMENT if name not in {"decimal", "double", "int", "long"}),
)
# From here on, a float added to the largest float rounds to infinity.
_MAY_OVERFLOW: Final = 2.0**970


def microseconds(moment: datetime) -> int:
    """Return *moment* as microseconds since 1970: MongoDB's own dates end at the millisecond."""
    return (moment - _EPOCH) // _MICROSECOND


def stored_path(path: str) -> str:
    """
    Return where the field at a dotted path is kept.

    The username is the `_id`. A program's field that is named as ours, with or without underscores behind,
    has one underscore more.
    """
    if path == "username":
        return "_id"
    if not path.startswith(OWN):
        return path
    name, dot, rest = path.partition(".")
    return f"{_stored_name(name)}{dot}{rest}"


def _stored_name(name: str) -> str:
    return f"{name}_" if name.rstrip("_") == OWN else name


def to_document(stored: dict[str, Any]) -> Document:
    """Return the profile that *stored* holds, which is used up."""
    stored.pop(OWN, None)
    if OWN in "".join(stored):
        _restore_names(stored)
    stored["username"] = stored.pop("_id")
    stored["created_at"] = _EPOCH + timedelta(microseconds=stored.get("created_at", 0))
    stored["updated_at"] = _EPOCH + timedelta(microseconds=stored.get("updated_at", 0))
    stored.setdefault("version", 0)
    return stored


def _restore_names(stored: dict[str, Any]) -> None:
    escaped = [name for name in stored if name.startswith(OWN) and name.rstrip("_") == OWN]
    for name in sorted(escaped, key=len):
        stored[name.removesuffix("_")] = stored.pop(name)


def filter_for(patch: Patch) -> dict[str, Any]:
    """Return the filter that finds the profile of *patch* unless the two are in conflict."""
    conditions: dict[str, Any] = {"_id": patch.username}
    if patch.expected_version is not None:
        # 0 stands for no profile at all: then none may be found, and inserting fails where there is one.
        conditions["version"] = patch.expected_version or {"$lt": 0}
    if patch.replace:
        return conditions
    for path in (*patch.set, *patch.increment, *patch.remove):
        if "." in path:
            for outer in _outer_paths(stored_path(path)):
                conditions[outer] = {"$not": {"$type": _NO_DOCUMENT}}
    clauses: list[dict[str, Any]] = []
    for path, amount in patch.increment.items():
        conditions[stored_path(path)] = {"$not": {"$type": _NO_NUMBER}}
        clauses += _within_range(stored_path(path), amount)
    if only_removes(patch):
        clauses.append({"$or": [{stored_path(path): {"$exists": True}} for path in patch.remove]})
    if clauses:
        conditions["$and"] = clauses
    return conditions


def only_removes(patch: Patch) -> bool:
    """Return whether *patch* writes nothing where there is nothing to remove."""
    return bool(patch.remove) and not (patch.set or patch.increment or patch.replace)


def may_insert(patch: Patch) -> bool:
    """Return whether *patch* creates the profile where there is none."""
    return patch.upsert and not patch.expected_version


def may_conflict(patch: Patch) -> bool:
    """Return whether a profile can be in conflict with *patch*."""
    if patch.expected_version is not None or patch.increment:
        return True
    return not patch.replace and any("." in path for path in (*patch.set, *patch.remove))


def _outer_paths(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _within_range(path: str, amount: float) -> list[dict[str, Any]]:
    """Return the conditions that *amount* can be added to the number at *path*."""
    if isinstance(amount, int):
        limit = {"$gt": MAX_INT - amount} if amount > 0 else {"$lt": MIN_INT - amount}
        return [{"$or": [{path: {"$type": "double"}}, {path: {"$not": limit}}]}]
    # MongoDB itself would store infinity. ($expr could do the sum, but is not allowed in an upsert.)
    if abs(amount) < _MAY_OVERFLOW:
        return []
    room = _room_beside(abs(amount))
    return [{path: {"$not": {"$gt": room} if amount > 0 else {"$lt": -room}}}]


def _room_beside(amount: float) -> float:
    """Return the largest float that can be added to *amount*, which is large, without reaching infinity."""
    too_much = int(sys.float_info.max) + int(_MAY_OVERFLOW) - int(amount)
    room = float(too_much)
    return room if room < too_much else math.nextafter(room, 0)


def update_for(patch: Patch) -> dict[str, Any] | list[dict[str, Any]]:
    """Return the update for *patch*: operators, or for a replacement, which drops fields, a pipeline."""
    return _replacement(patch) if patch.replace else operators_for(patch)


def operators_for(patch: Patch) -> dict[str, Any]:
    """Return the update for *patch*, which is no replacement."""
    at = microseconds(patch.at)
    sets: dict[str, Any] = {"updated_at": at}
    unsets: dict[str, Any] = {}
    for path, value in patch.set.items():
        sets[stored_path(path)] = value
        if "." not in path:
            if isinstance(value, str):
                sets[f"{FOLDED}.{path}"] = fold(value)
            else:
                unsets[f"{FOLDED}.{path}"] = ""
    for path in outermost(patch.remove):
        unsets[stored_path(path)] = ""
        if "." not in path:
            unsets[f"{FOLDED}.{path}"] = ""
    increments = {stored_path(path): _unsigned_zero(amount) for path, amount in patch.increment.items()}
    increments["version"] = 1
    update: dict[str, Any] = {"$set": sets, "$inc": increments}
    if unsets:
        update["$unset"] = unsets
    if patch.upsert:
        update["$setOnInsert"] = {"created_at": at, f"{FOLDED}.username": fold(patch.username)}
    return update


def outermost(paths: Collection[str]) -> list[str]:
    """Return those of *paths* that lead through no other: MongoDB refuses to remove both."""
    return [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]


def _replacement(patch: Patch) -> list[dict[str, Any]]:
    fields: dict[str, Any] = {}
    for path, value in (*patch.set.items(), *patch.increment.items()):
        _put(fields, stored_path(path).split("."), _unsigned_zero(value))
    texts = {
        path: fold(value) for path, value in patch.set.items() if isinstance(value, str) and "." not in path
    }
    at = microseconds(patch.at)
    # $literal: else a text that starts with a dollar sign would be taken for a path.
    kept = {
        "_id": "$_id",
        "created_at": {"$ifNull": ["$created_at", at]},
        "updated_at": at,
        "version": {"$add": [{"$ifNull": ["$version", 0]}, 1]},
        OWN: {
            "$mergeObjects": [f"${OWN}", {"$literal": {"text": texts | {"username": fold(patch.username)}}}]
        },
    }
    return [{"$replaceWith": {"$mergeObjects": [{"$literal": fields}, kept]}}]


def _put(fields: dict[str, Any], parts: list[str], value: object) -> None:
    for part in parts[:-1]:
        fields = fields.setdefault(part, {})
    fields[parts[-1]] = value


def _unsigned_zero(value: Any) -> Any:
    return 0.0 if isinstance(value, float) and value == 0 else value

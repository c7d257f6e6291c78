"""Questions to MongoDB: conditions, orders, search and counts as filters and pipelines."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from multidb.profiles._records import ProfileStats
from multidb.profiles.backends._mongo_documents import FOLDED, OWN, microseconds, stored_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from multidb.profiles.protocol import Condition, ProfileQuery

_TIMES: Final = ("created_at", "updated_at")
# A value sorts by its type first. MongoDB's own order of types is another, and takes a list for one of its items.
_RANK_OF_NOTHING: Final = {"rank": 0, "value": None}
_RANKS: Final[Mapping[type, int]] = {bool: 1, int: 2, float: 2, str: 3, datetime: 4}
_RANKED_TYPES: Final = ((1, ("bool",)), (2, ("int", "long", "double", "decimal")), (3, ("string",)))


def filter_of(conditions: Iterable[Condition]) -> dict[str, Any]:
    """Return the filter that *conditions* make together."""
    clauses = [_clause(condition) for condition in conditions]
    return {"$and": clauses} if clauses else {}


def _clause(condition: Condition) -> dict[str, Any]:
    # Always behind an operator: a bare value that is a dict could bring in operators of its own.
    value = condition.value
    if condition.operator == "in":
        value = [_stored_value(item) for item in value]
    return {stored_path(condition.path): {f"${condition.operator}": _stored_value(value)}}


def _stored_value(value: Any) -> Any:
    return microseconds(value) if isinstance(value, datetime) else value


def is_by_username(query: ProfileQuery) -> bool:
    """Return whether the order of *query* is that of the `_id` index, one way or the other."""
    return not query.sort or query.sort[0][0] == "username"


def page_by_username(query: ProfileQuery) -> tuple[dict[str, Any], int]:
    """Return the filter of a query in the order of usernames, and the direction of the order."""
    descending = bool(query.sort) and query.sort[0][1]
    found = filter_of(query.conditions)
    if query.after is not None:
        beyond = {"_id": {"$lt" if descending else "$gt": query.after[1]}}
        found = {"$and": [found, beyond]}
    return found, -1 if descending else 1


def page_by_values(query: ProfileQuery) -> list[dict[str, Any]]:
    """Return the pipeline of a query with an order of its own, which is computed for each document."""
    keys = [f"{OWN}.sort{i}" for i in range(len(query.sort))]
    order = {key: -1 if descending else 1 for key, (_, descending) in zip(keys, query.sort, strict=True)}
    computed = {key: _sort_value(path) for key, (path, _) in zip(keys, query.sort, strict=True)}
    behind = [{"$match": _behind(query.after, order)}] if query.after is not None else []
    return [
        {"$match": filter_of(query.conditions)},
        {"$set": computed},
        *behind,
        {"$sort": order | {"_id": 1}},
        {"$limit": query.limit},
        {"$unset": OWN},
    ]


def _sort_value(path: str) -> dict[str, Any]:
    field = f"${stored_path(path)}"
    if path in _TIMES:
        return {"rank": {"$literal": 4}, "value": field}
    branches = [
        {
            "case": {"$in": [{"$type": field}, list(types)]},
            "then": {"rank": {"$literal": rank}, "value": field},
        }
        for rank, types in _RANKED_TYPES
    ]
    return {"$switch": {"branches": branches, "default": {"$literal": _RANK_OF_NOTHING}}}


def _behind(after: tuple[Sequence[Any], str], order: Mapping[str, int]) -> dict[str, Any]:
    """Return the filter for what comes behind a document with the sort values and the username *after*."""
    values, username = after
    ways: list[dict[str, Any]] = []
    same: list[dict[str, Any]] = []
    for (key, direction), value in zip(order.items(), values, strict=True):
        there = _sort_position(value)
        ways.append({"$and": [*same, {key: {"$gt" if direction > 0 else "$lt": there}}]})
        same.append({key: {"$eq": there}})
    ways.append({"$and": [*same, {"_id": {"$gt": username}}]})
    return {"$or": ways}


def _sort_position(value: Any) -> dict[str, Any]:
    rank = _RANKS.get(type(value))
    return _RANK_OF_NOTHING if rank is None else {"rank": rank, "value": _stored_value(value)}


def search_for(keyword: str) -> dict[str, Any]:
    """Return the filter for profiles with *keyword*, folded, in one of their folded texts."""
    texts = {"$objectToArray": {"$ifNull": [f"${FOLDED}", {}]}}
    # Of bytes, not of characters: UTF-8 cannot match in the middle of a character, and it is faster.
    holds = {"$gte": [{"$indexOfBytes": ["$$text.v", {"$literal": keyword}]}, 0]}
    return {"$expr": {"$anyElementTrue": [{"$map": {"input": texts, "as": "text", "in": holds}}]}}


def counts_by_type() -> list[dict[str, Any]]:
    """Return the pipeline that counts profiles by type; those whose type is no text as None."""
    autospam_bot = {"$and": [{"$eq": ["$type", "bot"]}, {"$eq": ["$autospam", True]}]}
    return [
        {
            "$group": {
                "_id": {"$cond": [{"$eq": [{"$type": "$type"}, "string"]}, "$type", None]},
                "total": {"$sum": 1},
                "active": {"$sum": {"$cond": [{"$eq": ["$is_active", True]}, 1, 0]}},
                "autospam_bots": {"$sum": {"$cond": [autospam_bot, 1, 0]}},
            }
        }
    ]


def stats_of(groups: Sequence[Mapping[str, Any]]) -> ProfileStats:
    """Return the statistics that the groups of `counts_by_type()` add up to."""
    return ProfileStats(
        total=sum(group["total"] for group in groups),
        active=sum(group["active"] for group in groups),
        by_type={group["_id"]: group["total"] for group in groups if group["_id"] is not None},
        autospam_bots=sum(group["autospam_bots"] for group in groups),
    )

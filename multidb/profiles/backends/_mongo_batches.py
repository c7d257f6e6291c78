"""Which patches share a command to MongoDB, and the filters and updates that they have there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from multidb._core.values import MAX_INT, MIN_INT, dump
from multidb.profiles.backends._mongo_documents import (
    filter_for,
    may_insert,
    operators_for,
    outermost,
    stored_path,
    update_for,
)
from multidb.profiles.documents import value_at
from multidb.profiles.protocol import Patch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from multidb.profiles._records import Document

# As JSON. As BSON, with the folded text, it may be twelve times as much, which still goes in one message: when a
# patch cannot be sent, none of its command has been.
_SHARED_BYTES: Final = 1024 * 1024
# From so many increments on two commands cost less than one for each.
_WORTH_READING: Final = 3
# A username is text.
_NOT_INSERTABLE: Final = {"_id": 0}


@dataclass(slots=True)
class Ways:
    """Which patches of a batch go which way, by index."""

    together: list[int] = field(default_factory=list)
    """One of a profile: they share a command in any order."""
    counted: list[int] = field(default_factory=list)
    """One of a profile, which increments: they share a command that asks for the numbers read before."""
    in_order: list[int] = field(default_factory=list)
    """Several of a profile, whose callers want no documents: they share a command that keeps their order."""
    singly: list[int] = field(default_factory=list)
    """The rest."""


def ways_of(patches: Sequence[Patch]) -> Ways:
    """Return which of *patches* go which way."""
    ways = Ways()
    room = _SHARED_BYTES
    for group in by_name(range(len(patches)), [patch.username for patch in patches]):
        way = _way_of([patches[i] for i in group], ways)
        if way is not ways.singly:
            size = sum([len(dump(patches[i].set)) for i in group])
            way = way if size <= room else ways.singly
            room -= size if size <= room else 0
        way += group
    if len(ways.together) == 1:
        ways.singly += ways.together
        ways.together = []
    if len(ways.counted) < _WORTH_READING:
        ways.singly += ways.counted
        ways.counted = []
    ways.in_order.sort()
    ways.singly.sort()
    return ways


def by_name(indexes: Iterable[int], names: Iterable[str]) -> list[list[int]]:
    """Return *indexes* in groups of equal *names*."""
    groups: dict[str, list[int]] = {}
    for index, name in zip(indexes, names, strict=True):
        groups.setdefault(name, []).append(index)
    return list(groups.values())


def _way_of(patches: Sequence[Patch], ways: Ways) -> list[int]:
    """Return the way of all patches of one profile."""
    if not all([not patch.replace or may_insert(patch) for patch in patches]):  # noqa: C419 -- faster
        return ways.singly
    if len(patches) > 1:
        brief = not any(patch.increment or patch.wants_document for patch in patches)
        return ways.in_order if brief else ways.singly
    if not patches[0].increment:
        return ways.together
    return ways.singly if patches[0].replace else ways.counted


def shared_update_for(patch: Patch) -> dict[str, Any] | list[dict[str, Any]]:
    """
    Return the update for *patch*, to be sent as an upsert that fails where it finds no profile to update.

    Of many updates in one command the server counts those that found something, and names only those that failed.
    So one that may not insert is made to fail on inserting: it would have to have another `_id` than it asked for.
    """
    if may_insert(patch):
        return update_for(patch)
    return operators_for(patch) | {"$setOnInsert": _NOT_INSERTABLE}


def as_known(patch: Patch, known: Document | None) -> tuple[Patch, dict[str, Any]]:
    """
    Return *patch*, which increments, and its filter, to be done only while the profile is what is *known* of it.

    So the new numbers are known, too. The version tells; of those who write without it, the numbers themselves do.
    """
    patch = replace(patch, expected_version=known["version"] if known else 0)
    conditions = filter_for(patch)
    for path in patch.increment:
        number = value_at(known or {}, path)
        is_same = {"$exists": False} if number is None else {"$eq": number}
        conditions[stored_path(path)] = conditions[stored_path(path)] | is_same
    return patch, conditions


def merged(patches: Sequence[Patch]) -> Patch | None:
    """
    Return the one patch that is all of *patches*, of one profile; None where there is none.

    There is one for increments by ints that go the same way: where the last sum fits, so do those before it.
    """
    plain = Patch(patches[0].username, patches[0].at)
    sums: dict[str, int | float] = {}
    for patch in patches:
        if replace(patch, at=plain.at, increment={}, wants_document=True) != plain:
            return None
        for path, amount in patch.increment.items():
            sums[path] = sums.get(path, 0) + amount
    amounts = [amount for patch in patches for amount in patch.increment.values()]
    if not all(type(amount) is int and MIN_INT <= amount <= MAX_INT for amount in (*amounts, *sums.values())):
        return None
    if min(amounts, default=0) < 0 < max(amounts, default=0) or len(outermost(sums)) < len(sums):
        return None
    return replace(plain, at=patches[-1].at, increment=sums)


def merged_update_for(patch: Patch, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the filter and the update for *patch*, which is *count* of them in one."""
    conditions, update = filter_for(patch), operators_for(patch)
    for path in patch.increment:
        # A number of somebody else's, whose sums only the server knows.
        conditions.setdefault("$nor", []).append({stored_path(path): {"$type": "decimal"}})
    update["$inc"]["version"] = count
    return conditions, update

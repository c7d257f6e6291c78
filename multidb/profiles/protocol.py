"""What a profile backend has to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from multidb.errors import BackendError, ConflictError, InvalidValueError
    from multidb.profiles._records import Document, ProfileStats

Operator: TypeAlias = Literal["eq", "in", "gt", "gte", "lt", "lte", "exists"]


@dataclass(frozen=True, slots=True)
class Patch:
    """
    One write to one profile, applied as one atomic step. Paths are dotted; values are plain JSON already checked.

    A path that leads through, or into, anything but a dict (a list, a number, None) is a conflict, and so is an
    increment of what is not a number, or beyond 64 bits. A path that does not exist is created, an increment starts
    at 0.
    """

    username: str
    at: datetime
    """Becomes `updated_at`, and `created_at` of a new profile."""
    set: Mapping[str, Any] = field(default_factory=dict)
    increment: Mapping[str, int | float] = field(default_factory=dict)
    remove: Sequence[str] = ()
    """A patch that only removes, and finds nothing to remove, writes nothing: the version stays."""
    replace: bool = False
    """Drop every field of the program's that is not in *set*."""
    upsert: bool = False
    """Create the profile where there is none; otherwise nothing happens then."""
    expected_version: int | None = None
    """Conflict unless the stored version is this one; 0 stands for a profile that does not exist."""
    wants_document: bool = True
    """Whether the caller looks at the profile after it, which may cost more than the write."""


@dataclass(frozen=True, slots=True)
class Applied:
    """
    What a patch did: *document* is the profile after it (None: there is none), *changed* whether it wrote.

    The document may be None, too, where the patch does not want one. What others write at the same time may be in
    it already, but no later patch of its own batch.
    """

    document: Document | None
    changed: bool


Outcome: TypeAlias = "Applied | ConflictError | InvalidValueError | BackendError"
"""
What became of one patch. InvalidValueError: the profile would become larger than the backend can keep. BackendError:
what failed is this patch's alone.
"""


@dataclass(frozen=True, slots=True)
class Condition:
    """
    One condition on the value at a dotted path, with MongoDB's meaning.

    *value* is a scalar (for `in` a sequence of scalars, for `exists` a bool; for the reserved time fields a datetime).
    Values compare only within their type (bool, number, text, time): 1 equals 1.0 but not True. `eq None` holds where
    the field is missing, too. A condition on a list holds when one of its items, or of the dicts in it, fulfils it.
    """

    path: str
    operator: Operator
    value: Any


@dataclass(frozen=True, slots=True)
class ProfileQuery:
    """
    Which profiles, in which order.

    *sort*: (path, descending) pairs. Values sort by type first: missing, None, lists and dicts (all equal), then bool,
    number, text (by code points), time; descending turns all of it round. What is equal sorts by username, ascending.
    *after*: the values at the sort paths, and the username, of the document to continue behind.
    """

    conditions: Sequence[Condition] = ()
    sort: Sequence[tuple[str, bool]] = ()
    after: tuple[Sequence[Any], str] | None = None
    limit: int = 100


class ProfileBackend(Protocol):
    """
    Documents by username.

    Gets arguments already checked. Raises only `multidb.errors.BackendError` and its children. Documents carry the
    four reserved fields; no two that a call returns share a dict or a list.
    """

    @property
    def name(self) -> str:
        """A short constant name for metrics and errors, such as `mongodb`."""
        ...

    async def open(self) -> None:
        """Create what is missing: folders, indexes. Called once, after its engine is open."""
        ...

    async def close(self) -> None:
        """Release what `open()` took. Called once, before its engine closes."""
        ...

    async def apply(self, patches: Sequence[Patch], /) -> Sequence[Outcome]:
        """
        Apply *patches*, those of one profile in order; return what became of each.

        One that is in conflict, or too large, leaves its profile alone and the other patches too. A write adds 1 to
        `version` and sets `updated_at`; a new profile has version 1. Raises BackendError where it holds for all.
        """
        ...

    async def get(self, usernames: Sequence[str], /) -> dict[str, Document]:
        """Return the profiles that exist among *usernames*."""
        ...

    async def find(self, query: ProfileQuery, /) -> list[Document]:
        """Return the first `query.limit` profiles that fulfil every condition, in the query's order."""
        ...

    async def search(self, keyword: str, limit: int, /) -> list[Document]:
        """Return profiles whose username or a text field at the top level, folded, contains *keyword*; by username."""
        ...

    async def delete(self, usernames: Sequence[str], /) -> Sequence[bool]:
        """Delete profiles; return for each whether it was there."""
        ...

    async def stats(self) -> ProfileStats:
        """Count the profiles where they are kept."""
        ...


__all__ = ["Applied", "Condition", "Operator", "Outcome", "Patch", "ProfileBackend", "ProfileQuery"]

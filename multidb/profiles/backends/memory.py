"""Profiles in this process: gone when it ends. Also the fake for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multidb.profiles.documents import apply_patches, contains, copies, copy_value, count, select
from multidb.profiles.protocol import ProfileQuery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multidb.profiles._records import Document, ProfileStats
    from multidb.profiles.protocol import Outcome, Patch


class MemoryProfileBackend:
    """Profiles in a dict by username. Every call is one step without an await, so it is atomic."""

    name: Final = "memory"

    def __init__(self) -> None:
        """Start without profiles."""
        # What is in here is never changed, only replaced: no caller has a part of it.
        self._documents: dict[str, Document] = {}

    async def open(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing: the profiles stay until this object goes."""

    async def apply(self, patches: Sequence[Patch], /) -> Sequence[Outcome]:
        """Apply *patches* in order; return what became of each."""
        results, written = apply_patches(self._documents.get, patches)
        self._documents |= written
        return results

    async def get(self, usernames: Sequence[str], /) -> dict[str, Document]:
        """Return the profiles that exist among *usernames*."""
        documents = self._documents
        return {name: copy_value(documents[name]) for name in usernames if name in documents}

    async def find(self, query: ProfileQuery, /) -> list[Document]:
        """Return the first `query.limit` profiles that fulfil every condition, in the query's order."""
        return copies(select(self._documents.values(), query))

    async def search(self, keyword: str, limit: int, /) -> list[Document]:
        """Return profiles whose username or top-level text, folded, contains *keyword*; by username."""
        found = (document for document in self._documents.values() if contains(document, keyword))
        return copies(select(found, ProfileQuery(limit=limit)))

    async def delete(self, usernames: Sequence[str], /) -> Sequence[bool]:
        """Delete profiles; return for each whether it was there."""
        return [self._documents.pop(name, None) is not None for name in usernames]

    async def stats(self) -> ProfileStats:
        """Count the profiles."""
        return count(self._documents.values())

"""MongoProfileBackend: profiles as MongoDB documents, one document a profile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pymongo
from pymongo import IndexModel, ReturnDocument

from multidb.engines.mongo import rows
from multidb.errors import BackendError, ConflictError, InvalidValueError
from multidb.profiles.backends._mongo_documents import OWN, filter_for, to_document, update_for
from multidb.profiles.backends._mongo_queries import (
    counts_by_type,
    is_by_username,
    page_by_username,
    page_by_values,
    search_for,
    stats_of,
)
from multidb.profiles.documents import apply_patch
from multidb.profiles.protocol import Applied

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from pymongo.asynchronous.collection import AsyncCollection

    from multidb.engines.mongo import MongoEngine
    from multidb.profiles._records import Document, ProfileStats
    from multidb.profiles.protocol import Patch, ProfileQuery

T = TypeVar("T")
R = TypeVar("R")

_HIDDEN: Final = {OWN: 0}
_INDEXES: Final = (
    IndexModel("user_id"),
    IndexModel("type"),
    # Partial, as MongoDB cannot index a document with lists in two of the fields: it would refuse to keep it.
    IndexModel(
        [("type", 1), ("autospam", 1), ("is_active", 1)],
        partialFilterExpression={"type": "bot", "autospam": True},
    ),
)
# Building an index on a large collection takes longer than a call may.
_INDEX_SECONDS: Final = 600
# Each attempt after the first means that somebody else wrote the profile in between.
_ATTEMPTS: Final = 5


class MongoProfileBackend:
    """
    Profiles in one collection: `_id` is the username, the program's fields stand at the top level.

    Beside them are `created_at` and `updated_at` (microseconds since 1970), `version`, and `_multidb`, which
    holds the folded text for search.
    """

    name: Final = "mongodb"

    def __init__(self, engine: MongoEngine, *, collection: str = "multidb_profiles") -> None:
        """Keep profiles in *collection* of the database of *engine*."""
        self._engine = engine
        self._collection_name = collection
        self._opened: AsyncCollection[dict[str, Any]] | None = None

    async def open(self) -> None:
        """Create the indexes that are missing; any number of processes may do so at once."""
        collection = self._engine.collection(self._collection_name)
        with self._engine.translated(writes=True):
            there = await collection.index_information()
            missing = [index for index in _INDEXES if index.document["name"] not in there]
            if missing:
                with pymongo.timeout(_INDEX_SECONDS):
                    await collection.create_indexes(missing)
        self._opened = collection

    async def close(self) -> None:
        """Forget the collection; the connections are the engine's."""
        self._opened = None

    @property
    def _profiles(self) -> AsyncCollection[dict[str, Any]]:
        # Not open, the engine says so.
        return self._opened if self._opened is not None else self._engine.collection(self._collection_name)

    async def apply(self, patches: Sequence[Patch], /) -> Sequence[Applied | ConflictError]:
        """Apply *patches*, those of one profile in order, those of different profiles at the same time."""
        return await self._each(patches, [patch.username for patch in patches], self._apply)

    async def _apply(self, patch: Patch) -> Applied | ConflictError:
        for _ in range(_ATTEMPTS):
            document = await self._update(patch)
            if document is not None:
                return Applied(document, changed=True)
            current = (await self.get([patch.username])).get(patch.username)
            try:
                wanted = apply_patch(current, patch)
            except ConflictError as conflict:
                return conflict
            if wanted is current:
                return Applied(current, changed=False)
            # Nothing is in the way any more: the profile was written in between.
        return ConflictError(
            "the profile is changed too often by others, or another unique index is in the way"
        )

    async def _update(self, patch: Patch) -> Document | None:
        """Make *patch* in one atomic step; return the profile after it, None where there was none to find."""
        try:
            with self._engine.translated(writes=True):
                stored = await self._profiles.find_one_and_update(
                    filter_for(patch),
                    update_for(patch),
                    projection=_HIDDEN,
                    upsert=patch.upsert and not patch.expected_version,
                    return_document=ReturnDocument.AFTER,
                )
        except ConflictError:
            # An upsert whose filter finds nothing inserts, and meets a profile in conflict, or a very new one.
            return None
        return None if stored is None else to_document(stored)

    async def get(self, usernames: Sequence[str], /) -> dict[str, Document]:
        """Return the profiles that exist among *usernames*, in one question."""
        wanted: Any = usernames[0] if len(usernames) == 1 else {"$in": list(usernames)}
        with self._engine.translated():
            found = await rows(self._profiles.find({"_id": wanted}, _HIDDEN))
        return {stored["_id"]: to_document(stored) for stored in found}

    async def find(self, query: ProfileQuery, /) -> list[Document]:
        """Return a page of profiles, filtered and sorted by the server."""
        with self._engine.translated():
            if is_by_username(query):
                filter_, direction = page_by_username(query)
                cursor: Any = self._profiles.find(filter_, _HIDDEN).sort("_id", direction).limit(query.limit)
            else:
                cursor = self._profiles.aggregate(page_by_values(query))
            found = await rows(cursor)
        return [to_document(stored) for stored in found]

    async def search(self, keyword: str, limit: int, /) -> list[Document]:
        """Return profiles with *keyword* in their folded text. The server reads all up to the last found."""
        with self._engine.translated():
            found = await rows(self._profiles.find(search_for(keyword), _HIDDEN).sort("_id", 1).limit(limit))
        return [to_document(stored) for stored in found]

    async def delete(self, usernames: Sequence[str], /) -> Sequence[bool]:
        """Delete profiles; return for each whether it was there."""
        return await self._each(usernames, usernames, self._delete)

    async def _delete(self, username: str) -> bool:
        with self._engine.translated(writes=True):
            return (await self._profiles.delete_one({"_id": username})).deleted_count == 1

    async def stats(self) -> ProfileStats:
        """Count the profiles in one aggregation."""
        with self._engine.translated():
            return stats_of(await rows(self._profiles.aggregate(counts_by_type())))

    async def _each(
        self, items: Sequence[T], names: Sequence[str], work: Callable[[T], Awaitable[R]]
    ) -> Sequence[R]:
        """
        Return what *work* returns for each of *items*: those of one name in order, others at the same time.

        A BackendError stops what has not begun. As the rest may be done, it is ambiguous then.
        """
        if len(items) == 1:
            return [await work(items[0])]
        done: dict[int, R] = {}
        failed: list[BackendError | InvalidValueError] = []
        waiting = iter(_by_name(names))

        async def worker() -> None:
            for indexes in waiting:
                for index in indexes:
                    try:
                        done[index] = await work(items[index])
                    except InvalidValueError as exc:
                        failed.append(exc)
                    except BackendError as exc:
                        exc.ambiguous = True
                        failed.insert(0, exc)
                    if failed and isinstance(failed[0], BackendError):
                        return

        workers = min(len(items), self._engine.pool_max)
        await asyncio.gather(*(worker() for _ in range(workers)))
        if failed:
            raise failed[0]
        return [done[index] for index in range(len(items))]


def _by_name(names: Iterable[str]) -> Iterable[list[int]]:
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return groups.values()

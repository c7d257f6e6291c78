"""MongoProfileBackend: profiles as MongoDB documents, one document a profile."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pymongo
from pymongo import IndexModel, ReturnDocument

from multidb._core.operation import ambiguous_after, own_copy
from multidb.engines.mongo import make_plain, rows
from multidb.errors import BackendError, ConflictError, InvalidValueError
from multidb.profiles.backends._mongo_batches import (
    as_known,
    by_name,
    merged,
    merged_update_for,
    shared_update_for,
    ways_of,
)
from multidb.profiles.backends._mongo_documents import (
    OWN,
    filter_for,
    may_conflict,
    may_insert,
    to_document,
    update_for,
)
from multidb.profiles.backends._mongo_queries import (
    counts_by_type,
    is_by_username,
    page_by_username,
    page_by_values,
    search_for,
    stats_of,
)
from multidb.profiles.documents import apply_patch, apply_patches
from multidb.profiles.protocol import Applied

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    from pymongo.asynchronous.collection import AsyncCollection

    from multidb.engines.mongo import MongoEngine
    from multidb.profiles._records import Document, ProfileStats
    from multidb.profiles.protocol import Outcome, Patch, ProfileQuery

I = TypeVar("I")  # noqa: E741 -- an item, as R is a result
R = TypeVar("R")

_HIDDEN: Final = {OWN: 0}
_WRITTEN: Final = Applied(None, changed=True)
_UNCHANGED: Final = Applied(None, changed=False)
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
        async with self._engine.call():
            there = await collection.index_information()
        missing = [index for index in _INDEXES if index.document["name"] not in there]
        if missing:
            # As long as it takes: of many profiles there may already be a million.
            with self._engine.translated(writes=True), pymongo.timeout(_INDEX_SECONDS):
                await collection.create_indexes(missing)
        self._opened = collection

    async def close(self) -> None:
        """Forget the collection; the connections are the engine's."""
        self._opened = None

    async def dangers(self) -> Sequence[str]:
        """Return what about the deployment endangers what it acknowledged."""
        return await self._engine.dangers()

    @property
    def _profiles(self) -> AsyncCollection[dict[str, Any]]:
        # Not open, the engine says so.
        return self._opened if self._opened is not None else self._engine.collection(self._collection_name)

    async def apply(self, patches: Sequence[Patch], /) -> Sequence[Outcome]:
        """
        Apply *patches*, those of one profile in order, those of different profiles at the same time.

        Most share a command. What cannot is sent by itself, and so is what the shared command did not do.
        """
        if len(patches) == 1:
            return [await self._apply(patches[0])]
        ways = ways_of(patches)
        work: list[Coroutine[Any, Any, dict[int, Outcome]]] = []
        if ways.together:
            work.append(self._apply_together(patches, ways.together))
        if ways.counted:
            work.append(self._count(patches, ways.counted))
        if ways.in_order:
            work.append(self._apply_in_order(patches, ways.in_order))
        if ways.singly:
            work.append(self._apply_singly(patches, ways.singly))
        done: dict[int, Outcome] = {}
        for part in await all_of(work):
            done |= part
        return [done[i] for i in range(len(patches))]

    async def _apply_together(self, patches: Sequence[Patch], indexes: Sequence[int]) -> dict[int, Outcome]:
        """Apply patches of different profiles in one command; read what is to be known of them in another."""
        try:
            missed = await self._send((patches[i], filter_for(patches[i])) for i in indexes)
        except BackendError as exc:
            return {i: _own(exc) for i in indexes}
        left = {indexes[position] for position in missed}
        done: dict[int, Outcome] = {i: _WRITTEN for i in indexes if i not in left}
        names = {i: patches[i].username for i in indexes if i in left or patches[i].wants_document}
        try:
            found = await self.get(list(names.values())) if names else {}
        except BackendError as exc:
            return done | {i: _own(exc, ambiguous=i not in left) for i in names}
        for i, name in names.items():
            outcome = (_unwritten if i in left else _written)(patches[i], found.get(name))
            if outcome is not None:
                done[i] = outcome
        return done | await self._apply_singly(patches, sorted(left - done.keys()))

    async def _count(self, patches: Sequence[Patch], indexes: Sequence[int]) -> dict[int, Outcome]:
        """
        Apply increments of different profiles in two commands, one that reads and one that writes.

        Their callers want the very numbers that they made. Those are known where what was read still holds.
        """
        try:
            known = await self.get([patches[i].username for i in indexes])
        except BackendError as exc:
            return {i: _own(exc, ambiguous=False) for i in indexes}
        outcomes, written = apply_patches(known.get, [patches[i] for i in indexes])
        done = dict(zip(indexes, outcomes, strict=True))
        sent = [i for i in indexes if patches[i].username in written]
        # Where it is no number for us, it may be one for the server.
        left = [i for i in indexes if isinstance(done[i], ConflictError)]
        try:
            missed = await self._send(as_known(patches[i], known.get(patches[i].username)) for i in sent)
        except BackendError as exc:
            return done | {i: _own(exc) for i in sent}
        left += [sent[position] for position in missed]
        return done | await self._apply_singly(patches, left)

    async def _apply_in_order(self, patches: Sequence[Patch], indexes: Sequence[int]) -> dict[int, Outcome]:
        """Apply patches, several of a profile among them, in one command, up to the first that does nothing."""
        try:
            missed = await self._send(((patches[i], filter_for(patches[i])) for i in indexes), ordered=True)
        except BackendError as exc:
            return {i: _own(exc) for i in indexes}
        first = min(missed, default=len(indexes))
        done: dict[int, Outcome] = dict.fromkeys(indexes[:first], _WRITTEN)
        return done | await self._apply_singly(patches, indexes[first:])

    async def _send(
        self, patches: Iterable[tuple[Patch, dict[str, Any]]], *, ordered: bool = False
    ) -> list[int]:
        """Send patches with their filters in one command; return the positions of those that did nothing."""
        updates = [(filter_, shared_update_for(patch)) for patch, filter_ in patches]
        if not updates:
            return []
        return await self._engine.upsert_each(self._profiles, updates, ordered=ordered)

    async def _apply_singly(self, patches: Sequence[Patch], indexes: Sequence[int]) -> dict[int, Outcome]:
        """Apply each patch in a command of its own, those of different profiles at the same time."""
        done: dict[int, Outcome] = {}
        groups = by_name(indexes, [patches[i].username for i in indexes])
        await self._each(groups, lambda group: self._apply_in_turn(patches, group, done), done)
        return done

    async def _apply_in_turn(
        self, patches: Sequence[Patch], indexes: Sequence[int], done: dict[int, Outcome]
    ) -> None:
        """Apply patches of one profile, in one command where they can be merged."""
        if len(indexes) > 1:
            outcomes = await self._apply_merged([patches[i] for i in indexes])
            if outcomes is not None:
                done.update(zip(indexes, outcomes, strict=True))
                return
        for i in indexes:
            done[i] = await self._apply(patches[i])

    async def _apply_merged(self, patches: Sequence[Patch]) -> Sequence[Outcome] | None:
        """Apply increments of one profile as one; None where that cannot be, or found nothing to do."""
        together = merged(patches)
        if together is None:
            return None
        filter_, update = merged_update_for(together, len(patches))
        try:
            async with self._engine.call(writes=True):
                before = await self._profiles.find_one_and_update(filter_, update, _HIDDEN)
        except (ConflictError, InvalidValueError):  # One by one it shows whose it is.
            return None
        if before is None:
            return None
        make_plain(before)
        document = to_document(before)
        outcomes, _ = apply_patches(lambda _: document, patches)
        return outcomes

    async def _apply(self, patch: Patch) -> Outcome:
        for _ in range(_ATTEMPTS):
            try:
                if (applied := await self._update(patch)) is not None:
                    return applied
            except InvalidValueError as exc:
                return exc
            current = (await self.get([patch.username])).get(patch.username)
            if (outcome := _unwritten(patch, current)) is not None:
                return outcome
            # Nothing is in the way any more: the profile was written in between.
        return ConflictError(
            "the profile is changed too often by others, or another unique index is in the way"
        )

    async def _update(self, patch: Patch) -> Applied | None:
        """Make *patch* in one atomic step; None where that found nothing to do, for reasons still to be seen."""
        filter_, upsert = filter_for(patch), may_insert(patch)
        try:
            async with self._engine.call(writes=True):
                if not patch.wants_document:
                    result = await self._profiles.update_one(filter_, update_for(patch), upsert=upsert)
                    if result.matched_count or result.upserted_id is not None:
                        return _WRITTEN
                    # Without a conflict it can only be that there is nothing to update, or to remove.
                    return None if upsert or may_conflict(patch) else _UNCHANGED
                stored = await self._profiles.find_one_and_update(
                    filter_,
                    update_for(patch),
                    _HIDDEN,
                    upsert=upsert,
                    return_document=ReturnDocument.AFTER,
                )
        except ConflictError:
            # An upsert whose filter finds nothing inserts, and meets a profile in conflict, or a very new one.
            return None
        if stored is None:
            return None
        make_plain(stored)
        return Applied(to_document(stored), changed=True)

    async def get(self, usernames: Sequence[str], /) -> dict[str, Document]:
        """Return the profiles that exist among *usernames*, in one question."""
        if len(usernames) == 1:
            stored = await self._engine.find_one(self._profiles, usernames[0], _HIDDEN)
            return {} if stored is None else {usernames[0]: to_document(stored)}
        wanted = {"_id": {"$in": list(usernames)}}
        async with self._engine.call():
            # One more than there can be, so that the server knows that it is at the end.
            found = await rows(self._profiles.find(wanted, _HIDDEN, batch_size=len(usernames) + 1))
        return {stored["_id"]: to_document(stored) for stored in found}

    async def find(self, query: ProfileQuery, /) -> list[Document]:
        """Return a page of profiles, filtered and sorted by the server."""
        async with self._engine.call():
            if is_by_username(query):
                filter_, direction = page_by_username(query)
                cursor: Any = self._profiles.find(filter_, _HIDDEN).sort("_id", direction).limit(query.limit)
            else:
                cursor = self._profiles.aggregate(page_by_values(query))
            found = await rows(cursor)
        return [to_document(stored) for stored in found]

    async def search(self, keyword: str, limit: int, /) -> list[Document]:
        """Return profiles with *keyword* in their folded text. The server reads all up to the last found."""
        async with self._engine.call():
            found = await rows(self._profiles.find(search_for(keyword), _HIDDEN).sort("_id", 1).limit(limit))
        return [to_document(stored) for stored in found]

    async def delete(self, usernames: Sequence[str], /) -> Sequence[bool]:
        """Delete profiles; return for each whether it was there."""
        deleted: dict[str, bool | BackendError] = {}
        groups = [[name] for name in dict.fromkeys(usernames)]
        await self._each(groups, lambda group: self._delete(group[0], deleted), deleted)
        for outcome in deleted.values():
            if isinstance(outcome, BackendError):
                with ambiguous_after(True in deleted.values()):
                    raise outcome
        # The second of two equal names finds none.
        return [deleted.pop(name, False) is True for name in usernames]

    async def _delete(self, username: str, done: dict[str, bool | BackendError]) -> None:
        async with self._engine.call(writes=True):
            done[username] = (await self._profiles.delete_one({"_id": username})).deleted_count == 1

    async def stats(self) -> ProfileStats:
        """Count the profiles in one aggregation."""
        async with self._engine.call():
            return stats_of(await rows(self._profiles.aggregate(counts_by_type())))

    async def _each(
        self,
        groups: Sequence[Sequence[I]],
        work: Callable[[Sequence[I]], Awaitable[None]],
        done: dict[I, Any],
    ) -> None:
        """
        Do *work*, which notes in *done* what became of each item, on each group, on several at the same time.

        A BackendError is what becomes of the rest of its group, and of all that has not begun then.
        """
        waiting = iter(groups)
        failed: list[BackendError] = []

        async def worker() -> None:
            for group in waiting:
                if failed:
                    done.update({item: _own(failed[0], ambiguous=False) for item in group})
                    continue
                try:
                    await work(group)
                except BackendError as exc:
                    failed.append(exc)
                    done.update({item: _own(exc) for item in group if item not in done})

        await all_of(worker() for _ in groups[: self._engine.pool_max])


async def all_of(work: Iterable[Awaitable[R]]) -> list[R]:
    """Return what each of *work*, at the same time, returns; when one fails, wait for the others and raise that."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


def _written(patch: Patch, document: Document | None) -> Outcome:
    # Deleted since by somebody else, it is what the patch alone makes.
    alone = replace(patch, upsert=True, expected_version=None)
    return Applied(document or apply_patch(None, alone), changed=True)


def _unwritten(patch: Patch, document: Document | None) -> Outcome | None:
    """Return why *patch* did nothing to a profile; None where nothing speaks against it now."""
    try:
        after = apply_patch(document, patch)
    except (ConflictError, InvalidValueError) as error:
        return error
    return Applied(document, changed=False) if after is document else None


def _own(error: BackendError, *, ambiguous: bool | None = None) -> BackendError:
    again = own_copy(error)
    again.ambiguous = error.ambiguous if ambiguous is None else ambiguous
    return again

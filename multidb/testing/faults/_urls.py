"""The address in a URL: read, and replaced by that of a proxy."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit

from multidb.errors import InvalidArgumentError

_PORTS = {"postgresql": 5432, "postgres": 5432, "mongodb": 27017, "redis": 6379, "valkey": 6379}
_TLS_PORTS = {"rediss": 6379, "valkeys": 6379}


def address(url: str) -> tuple[str, int]:
    """Return the host and the port in *url*. Raises InvalidArgumentError unless it names exactly one of each."""
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]
    default = {**_PORTS, **_TLS_PORTS}.get(scheme)
    place = parts.netloc.rpartition("@")[2]
    if default is None or not place or "," in place or parts.scheme == "mongodb+srv":
        # Not the URL itself: it may hold a password.
        msg = "url: a proxy stands before one host and port of PostgreSQL, MongoDB, Redis or Valkey"
        raise InvalidArgumentError(msg)
    host = parts.hostname or ""
    return host, parts.port or default


def moved(url: str, host: str, port: int) -> str:
    """
    Return *url* with another address; user, password, database and options stay.

    A MongoDB URL becomes a direct connection: from a replica set's name the driver would learn the members' own
    addresses and go there past the proxy.
    """
    address(url)
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    query, path = parts.query, parts.path
    if parts.scheme == "mongodb":
        kept = [(name, value) for name, value in parse_qsl(query) if name.lower() not in _TOPOLOGY]
        query = urlencode([*kept, ("directConnection", "true")])
        path = path or "/"  # What follows the hosts begins with one.
    return parts._replace(netloc=f"{user}{at}{host}:{port}", path=path, query=query).geturl()


_TOPOLOGY = {"replicaset", "directconnection", "loadbalanced"}

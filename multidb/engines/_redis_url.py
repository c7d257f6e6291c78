"""What a Redis or Valkey URL says, and nothing else: no driver, no I/O, and no secret in an error."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from multidb.errors import ConfigurationError

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_PLAIN: Final = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_MAX_PORT: Final = 65535
_CERT_REQS: Final = ("none", "optional", "required")
TLS_FILES: Final = frozenset({"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"})
"""The TLS options that name a file or a folder."""
_TLS_OPTIONS: Final = TLS_FILES | {"ssl_cert_reqs", "ssl_check_hostname"}
_OPTION: Final = re.compile("[a-z]+(_[a-z]+)*")


class Topology(Enum):
    """How the servers behind a URL are found."""

    SINGLE = ""
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where the servers are, and how to log in. *path*: a Unix socket; *service*: the name Sentinels know."""

    topology: Topology
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_options: dict[str, str | bool] = field(default_factory=dict)


def parse(url: str) -> RedisAddress:
    """
    Return what *url* says. Raises ConfigurationError, which never quotes the URL.

    `redis://[user:password@]host[:port][/db]`, with TLS `rediss://`; `unix:///path[?db=0]`;
    `redis+cluster://host:port[,host:port]`; `redis+sentinel://host:port[,host:port]/service[/db]`, whose user
    and password are those of the data servers (those of the Sentinels are the options `sentinel_username` and
    `sentinel_password`). `valkey` works in the place of `redis`, `valkeys` in the place of `rediss`. With TLS
    there are the options `ssl_ca_certs`, `ssl_ca_path`, `ssl_cert_reqs`, `ssl_certfile`, `ssl_keyfile` and
    `ssl_check_hostname`, as redis-py knows them.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:  # Its message may quote the part with the password.
        _refuse("malformed; percent-encode what is special in the password")
    if parts.fragment:
        _refuse("'#' in it; percent-encode it")
    scheme, _, kind = parts.scheme.partition("+")
    if parts.scheme == "unix":
        return _unix(parts, options)
    if scheme not in _PLAIN or kind not in {one.value for one in Topology} or parts.scheme.endswith("+"):
        _refuse(
            "its scheme must be unix, or redis, rediss, valkey or valkeys, then maybe +cluster or +sentinel"
        )
    return _tcp(parts, Topology(kind), options, tls=_PLAIN[scheme])


def _unix(parts: SplitResult, options: dict[str, str]) -> RedisAddress:
    userinfo, _, host = parts.netloc.rpartition("@")
    if host or not parts.path.strip("/"):
        _refuse("a Unix socket is written unix:///path/to/socket")
    username, password = _login(userinfo)
    db = _number(options.pop("db", "0"))
    _refuse_unknown(options)
    return RedisAddress(
        Topology.SINGLE, path=unquote(parts.path), db=db, username=username, password=password
    )


def _tcp(parts: SplitResult, topology: Topology, options: dict[str, str], *, tls: bool) -> RedisAddress:
    userinfo, _, netloc = parts.netloc.rpartition("@")
    default_port = _SENTINEL_PORT if topology is Topology.SENTINEL else _PORT
    hosts = tuple(_host(text, default_port) for text in netloc.split(","))
    if topology is Topology.SINGLE and len(hosts) > 1:
        _refuse("several hosts; write +cluster or +sentinel after the scheme")
    username, password = _login(userinfo)
    service, db = _path(parts.path, topology)
    if topology is not Topology.CLUSTER:
        db = _number(options.pop("db", str(db)))
    sentinel_username = sentinel_password = None
    if topology is Topology.SENTINEL:
        sentinel_username = options.pop("sentinel_username", None)
        sentinel_password = options.pop("sentinel_password", None)
    tls_options = _tls_options(options) if tls else {}
    _refuse_unknown(options)
    return RedisAddress(
        topology,
        hosts,
        service=service,
        db=db,
        username=username,
        password=password,
        sentinel_username=sentinel_username,
        sentinel_password=sentinel_password,
        tls=tls,
        tls_options=tls_options,
    )


def _login(userinfo: str) -> tuple[str | None, str | None]:
    username, _, password = userinfo.partition(":")
    return unquote(username) or None, unquote(password) or None


def _host(text: str, default_port: int) -> tuple[str, int]:
    """Return host and port of `host`, `host:port`, `[v6]` or `[v6]:port`."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
        valid = rest in ("", f":{port}")
    else:
        host, colon, port = text.partition(":")
        valid = bool(port) or not colon
    if not host or not valid:
        _refuse("every server is written host, host:port or [IPv6]:port")
    if not port:
        return unquote(host), default_port
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= _MAX_PORT:
        _refuse("a port that is no number from 1 to 65535; percent-encode what is special in the password")
    return unquote(host), int(port)


def _path(path: str, topology: Topology) -> tuple[str, int]:
    """Return the Sentinel service and the database number."""
    first, *more = path.removeprefix("/").split("/")
    if topology is Topology.SENTINEL:
        if not first or len(more) > 1:
            _refuse("the path of a Sentinel URL is /service or /service/db")
        return unquote(first), _number(more[0] if more and more[0] else "0")
    if more and more != [""]:
        _refuse("its path is the number of the database")
    db = _number(first or "0")
    if db and topology is Topology.CLUSTER:
        _refuse("a cluster has no numbered databases")
    return "", db


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        _refuse("the database must be a whole number")
    return int(text)


def _tls_options(options: dict[str, str]) -> dict[str, str | bool]:
    chosen: dict[str, str | bool] = {name: options.pop(name) for name in _TLS_OPTIONS & set(options)}
    if chosen.get("ssl_cert_reqs", "required") not in _CERT_REQS:
        _refuse("ssl_cert_reqs must be none, optional or required")
    if "ssl_check_hostname" in chosen:
        choice = str(chosen["ssl_check_hostname"]).lower()
        if choice not in {"true", "false", "1", "0", "yes", "no"}:
            _refuse("ssl_check_hostname must be true or false")
        chosen["ssl_check_hostname"] = choice in {"true", "1", "yes"}
    return chosen


def _refuse_unknown(options: dict[str, str]) -> None:
    for name in options:
        if name in _TLS_OPTIONS:
            _refuse(f"the option {name} needs TLS, which rediss:// has")
        # What follows a '?' that a password was not to have reads as options: name only what looks like one.
        _refuse(f"unknown option {name}" if _OPTION.fullmatch(name) else "an unknown option")


def _refuse(reason: str) -> NoReturn:
    msg = f"REDIS_URL: {reason}"
    raise ConfigurationError(msg) from None

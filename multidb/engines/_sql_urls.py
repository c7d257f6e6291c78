"""What a PostgreSQL or SQLite URL says, and nothing else: no driver, no I/O, and no secret in an error."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, NoReturn, TypeAlias
from urllib.parse import parse_qsl, unquote, urlencode

from multidb.errors import ConfigurationError

_POSTGRES: Final = {"postgres", "postgresql", "postgres+asyncpg", "postgresql+asyncpg"}
_SQLITE: Final = {"sqlite", "sqlite+aiosqlite"}

_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_FILES: Final = ("passfile", "sslcert", "sslcrl", "sslkey", "sslrootcert")
# What asyncpg reads from a URL the way libpq does.
_LIBPQ: Final = {
    *_FILES,
    "dbname",
    "gsslib",
    "host",
    "krbsrvname",
    "password",
    "port",
    "service",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslmode",
    "sslnegotiation",
    "sslpassword",
    "target_session_attrs",
    "user",
}
# Sent to the server when a session starts.
_SESSION: Final = {"application_name", "options", "search_path"}
# What other drivers can do and asyncpg cannot, with the values that ask for nothing.
_HARMLESS: Final = {
    "channel_binding": {"disable", "prefer"},
    "client_encoding": {"auto", "utf8", "utf-8", "unicode"},
    "gssencmode": {"disable", "prefer"},
    "sslsni": {"0", "1"},
}
_STATEMENT_CACHES: Final = ("statement_cache_size", "prepared_statement_cache_size")

_POOLER_PORT: Final = 6543
_MAX_PORT: Final = 65535
_PARAMETER: Final = re.compile("[A-Za-z]+(_[A-Za-z]+)*")
_HOST: Final = re.compile(r"(?P<host>\[[^][@/?#\s]+\]|[^][:@/?#\s]+)(:(?P<port>[^:]+))?")


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """Where a PostgreSQL server is and how to log in, for `asyncpg.connect()`."""

    dsn: str = field(repr=False)
    """The parameters, as a URL."""
    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
    system_trust: bool = False
    """Whether the certificate is checked against the authorities that this machine trusts."""
    session: dict[str, str] = field(default_factory=dict)
    """Settings of the session."""
    files: dict[str, str] = field(default_factory=dict)
    """The files that the parameters name."""
    connect_timeout_seconds: float | None = None
    pooler: bool = False
    """Whether a pgbouncer or Supavisor in transaction mode is in front, so that no session state lasts."""


@dataclass(frozen=True, slots=True)
class SqliteAddress:
    """Where the database file is."""

    path: str


Address: TypeAlias = PostgresAddress | SqliteAddress


def parse(url: str) -> Address:
    """
    Return what *url* says. Raises ConfigurationError, which never quotes the URL.

    `postgresql://[user:password@]host[:port][,host[:port]]/database` with the parameters of libpq, and with
    `pgbouncer=true`, which port 6543 implies; `sqlite:///relative.db`, `sqlite:////absolute.db`.
    """
    scheme, found, rest = url.partition("://")
    if found and scheme.lower() in _POSTGRES:
        return _postgres(rest)
    if not found or scheme.lower() not in _SQLITE:
        _refuse("its scheme must be postgresql, postgres, postgresql+asyncpg, sqlite or sqlite+aiosqlite")
    return SqliteAddress(_sqlite_path(rest))


def _sqlite_path(rest: str) -> str:
    path, _, query = rest.partition("?")
    if query:
        _refuse("a SQLite URL has no parameters")
    if path in {"", "/", "/:memory:"}:
        _refuse("no path in the SQLite URL; to keep the data in memory, write memory://")
    if not path.startswith("/"):
        _refuse("a SQLite URL is written sqlite:///relative.db or sqlite:////absolute.db")
    return _decoded(path[1:]) or ""


def _postgres(rest: str) -> PostgresAddress:
    before, _, query = rest.partition("?")
    authority, _, path = before.partition("/")
    # Else the end of a password with a raw '/' or '?' in it would be taken for what an error may name.
    if "#" in rest or ("@" in rest and "@" not in authority):
        _refuse("percent-encode '/', '?' and '#' in the user, the password and the database")
    userinfo, _, servers = authority.rpartition("@")
    user, _, password = userinfo.partition(":")
    parameters = _parameters(query)
    hosts, ports = _hosts(servers)
    pooler = _is_pooler(ports, parameters)
    session = {name: parameters.pop(name) for name in _SESSION & parameters.keys()}
    seconds = _connect_timeout(parameters.pop("connect_timeout", None))
    system_trust = _check_tls(parameters)
    for name, value in parameters.items():
        _check_parameter(name, value)
    return PostgresAddress(
        dsn="postgresql:///?" + urlencode({k: v for k, v in parameters.items() if k in _LIBPQ}),
        hosts=hosts,
        ports=ports,
        user=_decoded(user),
        password=_decoded(password),
        database=_decoded(path),
        system_trust=system_trust,
        session=session,
        files={name: parameters[name] for name in _FILES if parameters.get(name)},
        connect_timeout_seconds=seconds,
        pooler=pooler,
    )


def _parameters(query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        _refuse("what follows the '?' is malformed")


def _decoded(text: str) -> str | None:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        _refuse("a percent-encoding that is no UTF-8")
    if "\0" in decoded:
        _refuse("NUL in it")
    return decoded or None


def _hosts(text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the hosts, and their ports if any of them has one."""
    if not text:
        return (), ()
    found = [_HOST.fullmatch(part) for part in text.split(",")]
    if not all(match and match["host"] for match in found):
        _refuse("every server is written host, host:port or [IPv6]:port")
    servers = [(unquote(match["host"].strip("[]")), match["port"]) for match in found if match]
    hosts = tuple(host for host, _ in servers)
    if not any(port for _, port in servers):
        return hosts, ()
    return hosts, tuple(_port(port or "5432") for _, port in servers)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MAX_PORT):
        _refuse("a port is a number from 1 to 65535")
    return int(text)


def _is_pooler(ports: tuple[int, ...], parameters: dict[str, str]) -> bool:
    """Whether this is a pooler. Takes from *parameters* what says so."""
    given = parameters.get("port")
    ports += tuple(_port(text) for text in given.split(",")) if given is not None else ()
    caches = [parameters.pop(name, None) for name in _STATEMENT_CACHES]
    pooler = parameters.pop("pgbouncer", "").lower()
    if pooler not in {"true", "1", "false", "0", ""}:
        _refuse("pgbouncer must be true or false")
    return pooler in {"true", "1"} or (pooler == "" and (_POOLER_PORT in ports or "0" in caches))


def _connect_timeout(text: str | None) -> float | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        _refuse("connect_timeout must be a whole number of seconds")
    return float(text) or None  # libpq waits without end for 0; we go by the setting.


def _check_tls(parameters: dict[str, str]) -> bool:
    """Check sslmode and its old name ssl; return whether the machine's own authorities are to be trusted."""
    mode = parameters.pop("ssl", None)
    if mode is not None:
        parameters.setdefault("sslmode", {"true": "require", "false": "disable"}.get(mode.lower(), mode))
    if parameters.get("sslmode", "prefer") not in _SSL_MODES:
        _refuse(f"sslmode must be one of {', '.join(_SSL_MODES)}")
    if parameters.get("sslrootcert") != "system":
        return False
    if parameters.get("sslmode", "verify-full") != "verify-full":
        _refuse("sslrootcert=system goes with sslmode=verify-full")
    del parameters["sslrootcert"]
    parameters.pop("sslmode", None)
    return True


def _check_parameter(name: str, value: str) -> None:
    if name in _LIBPQ or value.lower() in _HARMLESS.get(name, ()):
        return
    if name == "channel_binding":
        _refuse("asyncpg has no channel_binding; sslmode=verify-full is what protects the connection")
    # What follows a '?' in a password that is not encoded looks otherwise.
    _refuse(f"unknown parameter {name}" if _PARAMETER.fullmatch(name) else "an unknown parameter")


def _refuse(reason: str) -> NoReturn:
    msg = f"POSTGRES_URL: {reason}"
    raise ConfigurationError(msg) from None

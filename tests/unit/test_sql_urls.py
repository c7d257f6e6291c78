"""What the URLs of PostgreSQL and SQLite say, and that no error quotes them."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multidb.engines._sql_urls import PostgresAddress, SqliteAddress, parse
from multidb.engines.sql import SqlEngine
from multidb.errors import ConfigurationError

NOTHING = "postgresql:///?"


def postgres(url: str) -> PostgresAddress:
    address = parse(url)
    assert isinstance(address, PostgresAddress)
    return address


def dsn_parameters(url: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(urlsplit(postgres(url).dsn).query).items()}


@pytest.mark.parametrize(
    "scheme", ["postgres", "postgresql", "postgresql+asyncpg", "POSTGRES", "postgres+asyncpg"]
)
def test_postgres_schemes(scheme: str) -> None:
    """Every way to write PostgreSQL means asyncpg."""
    address = postgres(f"{scheme}://ada:secret@db.example:5433/bots")

    assert ("ada", "secret", "bots") == (address.user, address.password, address.database)
    assert (("db.example",), (5433,)) == (address.hosts, address.ports)
    assert NOTHING == address.dsn
    assert SqlEngine(f"{scheme}://ada:secret@db.example:5433/bots").name == "postgresql"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///relative.db", "relative.db"),
        ("sqlite:///./data/multidb.db", "./data/multidb.db"),
        ("sqlite:////srv/absolute.db", "/srv/absolute.db"),
        ("sqlite+aiosqlite:///relative.db", "relative.db"),
        ("SQLite:///C:/bots/multidb.db", "C:/bots/multidb.db"),
        ("sqlite:///with%20space #and@more%3F.db", "with space #and@more?.db"),
    ],
)
def test_sqlite_paths(url: str, path: str) -> None:
    """Three slashes are relative, four absolute, as SQLAlchemy has it; what is special may be percent-encoded."""
    assert SqliteAddress(path) == parse(url)
    assert SqlEngine(url).name == "sqlite"


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:"],
)
def test_sqlite_without_a_file(url: str) -> None:
    """A database in memory would be another one for each connection: there is memory:// for that."""
    with pytest.raises(ConfigurationError, match="memory://"):
        parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "postgresql",
        "postgresql:/host/db",
        "mysql://host/db",
        "postgresql+psycopg://host/db",
        "sqlite://relative.db",
        "sqlite:///a.db?mode=ro",
        "sqlite:///a\0.db",
        "sqlite:///a%00.db",
        "postgresql://host:port/db",
        "postgresql://host:0/db",
        "postgresql://host:65536/db",
        "postgresql://host:5432:5433/db",
        "postgresql://[::1/db",
        "postgresql://host one/db",
        "postgresql://one,,two/db",
        "postgresql://:5432/db",
        "postgresql://host/db?port=none",
        "postgresql://host/db?connect_timeout=soon",
        "postgresql://host/db?sslmode=on",
        "postgresql://host/db?ssl=yes",
        "postgresql://host/db?pgbouncer=perhaps",
        "postgresql://host/db?sslmode",
        "postgresql://host/d%FFb",
        "postgresql://ho%st:5432@host/db%00",
        "postgresql://host/db?sslmode=require&sslrootcert=system",
        "postgresql://host/db?channel_binding=require",
        "postgresql://host/db#fragment",
    ],
)
def test_refused(url: str) -> None:
    """What is malformed, or asks for what asyncpg cannot do, is refused before anything is tried."""
    with pytest.raises(ConfigurationError, match=r"^POSTGRES_URL: "):
        parse(url)


@given(user=st.text(min_size=1), password=st.text(min_size=1), database=st.text(min_size=1))
def test_anything_percent_encoded(user: str, password: str, database: str) -> None:
    """Percent-encoded, any name and any password is possible."""
    user, password, database = (
        text.replace("\0", "").encode(errors="replace").decode() or "x" for text in (user, password, database)
    )
    address = postgres(f"postgres://{quote(user, '')}:{quote(password, '')}@host/{quote(database, '')}")

    assert (user, password, database) == (address.user, address.password, address.database)


def test_what_is_left_out() -> None:
    """What a URL does not say is left to asyncpg, which looks at PGHOST and its like."""
    assert PostgresAddress(NOTHING) == parse("postgresql://")
    assert PostgresAddress(NOTHING, database="db") == parse("postgresql:///db")
    assert PostgresAddress(NOTHING, ("host",), user="ada") == parse("postgresql://ada@host")


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        ("postgresql://one/db", ("one",), ()),
        ("postgresql://one,two:5433/db", ("one", "two"), (5432, 5433)),
        ("postgresql://one,two/db?port=1,2", ("one", "two"), ()),
        ("postgresql://ada:x@[::1]:5433,[fe80::1%25eth0]/db", ("::1", "fe80::1%eth0"), (5433, 5432)),
        ("postgresql://%2Fvar%2Frun%2Fpostgresql/db", ("/var/run/postgresql",), ()),
        ("postgresql:///db?host=/tmp", (), ()),
    ],
)
def test_hosts(url: str, hosts: tuple[str, ...], ports: tuple[int, ...]) -> None:
    """Several hosts, IPv6 and the folder of a socket; a host without a port has the usual one."""
    address = postgres(url)

    assert (hosts, ports) == (address.hosts, address.ports)


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
def test_sslmode(mode: str) -> None:
    """All modes of libpq, also under the name that users of SQLAlchemy write."""
    assert {"sslmode": mode} == dsn_parameters(f"postgresql://host/db?sslmode={mode}")
    assert {"sslmode": mode} == dsn_parameters(f"postgresql://host/db?ssl={mode}")


def test_certificates() -> None:
    """Files are passed on, and known so that a missing one can be told from a missing server."""
    url = (
        "postgresql://host/db?sslmode=verify-full&sslrootcert=/etc/ca%20one.pem&sslcert=me.pem&sslkey=me.key"
    )
    files = {"sslrootcert": "/etc/ca one.pem", "sslcert": "me.pem", "sslkey": "me.key"}

    assert {"sslmode": "verify-full", **files} == dsn_parameters(url)
    assert files == postgres(url).files


@pytest.mark.parametrize("query", ["sslrootcert=system", "sslmode=verify-full&sslrootcert=system"])
def test_the_machines_authorities(query: str) -> None:
    """sslrootcert=system checks against what the machine trusts, and the name, as in libpq."""
    address = postgres(f"postgresql://host/db?{query}")

    assert address.system_trust
    assert (address.dsn, address.files) == (NOTHING, {})


def test_session_settings() -> None:
    """What the server is told when a session starts is kept apart."""
    address = postgres(
        "postgresql://host/db?application_name=bot&options=-c%20work_mem%3D8MB&search_path=bots"
    )

    assert {"application_name": "bot", "options": "-c work_mem=8MB", "search_path": "bots"} == address.session
    assert address.dsn == NOTHING


def test_connect_timeout() -> None:
    """libpq's connect_timeout is in seconds, and 0 leaves it to the setting."""
    assert postgres("postgresql://host/db?connect_timeout=7").connect_timeout_seconds == 7
    assert postgres("postgresql://host/db?connect_timeout=0").connect_timeout_seconds is None
    assert postgres("postgresql://host/db").connect_timeout_seconds is None


@pytest.mark.parametrize(
    ("url", "pooler"),
    [
        ("postgresql://host/db", False),
        ("postgresql://host/db?pgbouncer=true", True),
        ("postgresql://host:6543/db", True),
        ("postgresql://one,two:6543/db", True),
        ("postgresql://host/db?port=6543", True),
        ("postgresql://host:6543/db?pgbouncer=false", False),
        ("postgresql://host/db?prepared_statement_cache_size=0", True),
        ("postgresql://host/db?statement_cache_size=0", True),
        ("postgresql://host/db?statement_cache_size=100", False),
        ("postgresql://u:p6543@host/db6543", False),
    ],
)
def test_poolers(url: str, pooler: bool) -> None:
    """A pooler is known by what the URL says, else by its port."""
    address = postgres(url)

    assert pooler == address.pooler
    assert "cache_size" not in address.dsn
    assert "pgbouncer" not in address.dsn


@pytest.mark.parametrize(
    "query", ["gssencmode=disable", "channel_binding=prefer", "client_encoding=UTF8", "sslsni=1"]
)
def test_harmless_parameters(query: str) -> None:
    """What asks for nothing that asyncpg lacks may stand there."""
    assert postgres(f"postgresql://host/db?{query}").dsn == NOTHING


@pytest.mark.parametrize("name", ["sslmod", "connection_limit", "keepalives_idle", "schema"])
def test_unknown_parameter_is_named(name: str) -> None:
    """A typo should not be silent."""
    with pytest.raises(ConfigurationError, match=f"unknown parameter {name}$"):
        parse(f"postgresql://host/db?{name}=1")


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "hunter2://x",
        "mysql://ada:hunter2@host/db",
        "postgresql://ada:hunter2",
        "postgresql://ada:hunter2@host:x/db",
        "postgresql://ada:hunter2@host/db?hunter2=1&x-hunter2=2",
        "postgresql://ada:a/hunter2@host/db",
        "postgresql://ada:a?hunter2=1@host/db",
        "postgresql://ada:a#hunter2@host/db",
        "postgresql://ada:a%FFhunter2@host/db",
        "postgresql://ada:hunter2@host/db?sslmode=hunter2",
        "postgresql://ada:hunter2@host/db?connect_timeout=hunter2",
        "sqlite:///hunter2.db?hunter2",
    ],
)
def test_errors_do_not_quote(url: str) -> None:
    """Whatever is wrong with a URL, its password is in no error; a name that looks like a parameter may be."""
    with pytest.raises(ConfigurationError) as caught:
        parse(url)
    told = str(caught.value).replace("unknown parameter hunter2", "")

    assert "hunter2" not in told
    assert caught.value.__cause__ is None


def test_nothing_shows_the_password() -> None:
    """Neither the address nor the engine has the password in its repr."""
    url = "postgresql://ada:hunter2@host/db?sslpassword=hunter2&password=hunter2"

    assert "hunter2" not in repr(parse(url))
    assert "hunter2" not in repr(SqlEngine(url))


def test_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without asyncpg the error says what to install, when the engine is made."""
    import sys

    monkeypatch.setitem(sys.modules, "asyncpg", None)

    with pytest.raises(
        ConfigurationError, match=r'^asyncpg is not installed: pip install "multidb\[postgres\]"$'
    ):
        SqlEngine("postgresql://host/db")


def test_constructor_does_nothing(tmp_path: Any) -> None:
    """Constructing an engine needs no event loop, connects to nothing and creates no file."""
    SqlEngine("postgresql://127.0.0.1:1/db")
    SqlEngine(f"sqlite:///{tmp_path}/new/multidb.db")

    assert list(tmp_path.iterdir()) == []

"""Settings: where they come from, what is refused, and that no secret gets out."""

from __future__ import annotations

import logging
import pickle
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
from pydantic import ValidationError

from multidb import MultiDB
from multidb.errors import ConfigurationError
from multidb.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "C4nary"
PASSWORDS = ["p@ss:w/rd?#[]%25 +&=", "ığüşöç", "'\"\\", "%", "a%40b", "@", ":", "/", "😀"]


def from_env(**environ: str) -> Settings:
    return Settings.from_env(environ)


def postgres_url(**environ: str) -> str:
    secret = from_env(**environ).postgres_url
    assert secret is not None
    return secret.get_secret_value()


def refused(**environ: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        from_env(**environ)
    return str(caught.value)


# Where they come from


def test_nothing_set() -> None:
    """Without an environment there are the embedded defaults."""
    settings = from_env()

    assert (None, None, None) == (settings.postgres_url, settings.mongodb_uri, settings.redis_url)
    assert (Path("data"), 2.0, 10.0) == (
        settings.data_dir,
        settings.deadline_seconds,
        settings.close_timeout_seconds,
    )
    assert settings == Settings()


def test_names() -> None:
    """The URLs have the names that everybody gives them; everything else starts with MULTIDB_."""
    settings = from_env(
        POSTGRES_URL="postgresql://h/db",
        MONGODB_URI="mongodb://h",
        MONGODB_DB="bots",
        REDIS_URL="redis://h",
        MULTIDB_DATA_DIR="/srv/data",
        MULTIDB_MONGO_DRIVER="motor",
        MULTIDB_REDIS_PREFIX="bots",
        MULTIDB_DEADLINE_SECONDS="0.5",
        MULTIDB_POSTGRES_POOL_MAX="7",
        MULTIDB_MAX_STATE_BYTES="2048",
    )

    assert (
        Settings(
            postgres_url="postgresql://h/db",
            mongodb_uri="mongodb://h",
            mongodb_db="bots",
            redis_url="redis://h",
            data_dir="/srv/data",
            mongo_driver="motor",
            redis_prefix="bots",
            deadline_seconds=0.5,
            postgres_pool_max=7,
            max_state_bytes=2048,
        )
        == settings
    )


def test_every_setting_has_a_name() -> None:
    """Each setting can be given by the environment."""
    unprefixed = {"postgres_url", "mongodb_uri", "mongodb_db", "redis_url"}
    for name, value in Settings(
        mongodb_db="db", redis_url="r", mongodb_uri="m", postgres_url="p", spool_dir="s"
    ):
        text = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        settings = from_env(**{name.upper() if name in unprefixed else f"MULTIDB_{name.upper()}": text})

        assert value == getattr(settings, name)


def test_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the environment of the process counts, as it is when asked."""
    for name in ("POSTGRES_URL", "DATABASE_URL", "DATABASE_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MULTIDB_REDIS_PREFIX", "first")
    first = Settings.from_env()
    monkeypatch.setenv("MULTIDB_REDIS_PREFIX", "second")

    assert ("first", "second") == (first.redis_prefix, Settings.from_env().redis_prefix)


def test_keywords_win() -> None:
    """A keyword wins over the environment; None unsets what the environment sets."""
    environ = {"REDIS_URL": "redis://h", "POSTGRES_URL": "postgresql://h/db", "MULTIDB_REDIS_PREFIX": "env"}
    settings = Settings.from_env(environ, redis_url="memory://", postgres_url=None, redis_prefix="keyword")

    assert Settings(redis_url="memory://", redis_prefix="keyword") == settings


def test_database_url() -> None:
    """DATABASE_URL counts where POSTGRES_URL is not set."""
    assert "postgres://h/b" == postgres_url(DATABASE_URL="postgres://h/b")
    assert "postgres://h/b" == postgres_url(DATABASE_URL="postgres://h/b", POSTGRES_URL="")
    assert "postgresql://h/a" == postgres_url(DATABASE_URL="postgres://h/b", POSTGRES_URL="postgresql://h/a")
    assert "postgres://h/b" == postgres_url(
        DATABASE_URL="postgres://h/b", DATABASE_TYPE="postgresql", POSTGRES_HOST="x"
    )


def test_database_type() -> None:
    """DATABASE_TYPE=postgresql makes the URL out of its parts."""
    assert "postgresql://postgres@localhost:5432/postgres" == postgres_url(DATABASE_TYPE="postgresql")
    assert "postgresql://bot:pw@db:5433/bots" == postgres_url(
        DATABASE_TYPE="PostgreSQL",
        POSTGRES_HOST="db",
        POSTGRES_PORT="5433",
        POSTGRES_USER="bot",
        POSTGRES_PASSWORD="pw",
        POSTGRES_DB="bots",
    )
    assert "postgresql://postgres@[::1]:5432/postgres" == postgres_url(
        DATABASE_TYPE="postgres", POSTGRES_HOST="::1"
    )
    assert from_env(DATABASE_TYPE="sqlite", POSTGRES_HOST="db").postgres_url is None
    assert from_env(POSTGRES_HOST="db", POSTGRES_PASSWORD="pw").postgres_url is None


@pytest.mark.parametrize("password", PASSWORDS, ids=ascii)
def test_password_of_any_characters(password: str) -> None:
    """Whatever the parts hold, taking the URL apart gives them back."""
    url = urlsplit(
        postgres_url(
            DATABASE_TYPE="postgresql",
            POSTGRES_USER=password,
            POSTGRES_PASSWORD=password,
            POSTGRES_DB=password,
        )
    )

    assert ("localhost", 5432) == (url.hostname, url.port)
    assert [password] * 3 == [
        unquote(part) for part in (url.username or "", url.password or "", url.path[1:])
    ]


def test_empty_is_unset() -> None:
    """An empty text is as good as none, which is how compose files write it."""
    names = ["POSTGRES_URL", "DATABASE_URL", "DATABASE_TYPE", "MONGODB_URI", "MONGODB_DB", "REDIS_URL"]
    prefixed = [
        f"MULTIDB_{field.upper()}" for field in Settings.model_fields if f"{field.upper()}" not in names
    ]
    parts = dict.fromkeys([f"POSTGRES_{part}" for part in ("HOST", "PORT", "USER", "PASSWORD", "DB")], "")

    assert Settings() == from_env(**dict.fromkeys([*names, *prefixed], ""))
    assert Settings() == Settings(postgres_url="", mongodb_uri="", redis_url="")
    assert "postgresql://postgres@localhost:5432/postgres" == postgres_url(
        DATABASE_TYPE="postgresql", **parts
    )


# What is refused


def test_unknown_name() -> None:
    """A typo in the environment is an error that lists the names there are; the test servers have names of their own."""
    message = refused(MULTIDB_DEADLINE="2")

    assert message.startswith("MULTIDB_DEADLINE: no such setting; there are ")
    assert "MULTIDB_DEADLINE_SECONDS" in message
    assert refused(MULTIDB_POSTGRES_URL="postgresql://h/db").startswith(
        "MULTIDB_POSTGRES_URL: no such setting"
    )
    assert Settings() == from_env(MULTIDB_TEST_REDIS_URL="redis://h", PATH="/bin", multidb_lower="x")


def test_unknown_keyword() -> None:
    """So is a typo in a keyword."""
    with pytest.raises(ConfigurationError, match=r"^settings: redis_ur: "):
        Settings(redis_ur="redis://h")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deadline_seconds", 0),
        ("deadline_seconds", -1),
        ("deadline_seconds", "nan"),
        ("deadline_seconds", "inf"),
        ("deadline_seconds", "soon"),
        ("close_timeout_seconds", 0),
        ("postgres_pool_max", 0),
        ("postgres_pool_max", "many"),
        ("redis_pool_max", 1001),
        ("max_state_bytes", 10),
        ("max_profile_bytes", 16 * 1024 * 1024),
        ("mongo_driver", "mongoengine"),
        ("mongodb_db", "a/b"),
        ("mongodb_db", "a b"),
        ("mongodb_db", "$a"),
        ("mongodb_db", "a\0"),
        ("mongodb_db", "x" * 64),
        ("redis_prefix", ""),
        ("redis_prefix", "a:b"),
        ("redis_prefix", "{a}"),
        ("redis_url", 6379),
    ],
)
def test_bad_value(name: str, value: Any) -> None:
    """A value that does not fit is an error that names the setting."""
    with pytest.raises(ConfigurationError, match=rf"^settings: {name}: "):
        Settings(**{name: value})


def test_several_bad_values() -> None:
    """All problems are told at once."""
    with pytest.raises(ConfigurationError) as caught:
        Settings(deadline_seconds=0, redis_prefix="")

    assert "deadline_seconds: " in str(caught.value)
    assert "redis_prefix: " in str(caught.value)


def test_bad_database_type() -> None:
    """Another kind of database than multidb knows is refused."""
    assert "DATABASE_TYPE: must be postgresql or sqlite" == refused(DATABASE_TYPE="mysql")


def test_frozen() -> None:
    """Settings do not change."""
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.redis_prefix = "other"  # type: ignore[misc]

    assert "multidb" == settings.redis_prefix


# Secrets


def told(exc: BaseException) -> Iterator[str]:
    """Yield everything that a log, a tracker or a debugger shows of an exception and of what led to it."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [exc]
    while waiting:
        one = waiting.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        waiting += [one.__cause__, one.__context__]
        yield from (str(one), repr(one), repr(one.args), repr(vars(one)))
        if isinstance(one, ValidationError):
            yield repr(one.errors())
    yield "".join(traceback.format_exception(exc))


MEMORY = {"postgres_url": "memory://", "mongodb_uri": "memory://", "redis_url": "memory://"}
BAD_URLS = [
    f"mysql://u:{CANARY}@h/db",
    f"postgresql//u:{CANARY}@h/db",
    f":{CANARY}@h",
    CANARY,
    f"{CANARY}://h",
]


@pytest.mark.parametrize("name", ["postgres_url", "mongodb_uri", "redis_url"])
@pytest.mark.parametrize("url", BAD_URLS)
def test_no_secret_in_the_error_of_a_url(name: str, url: str) -> None:
    """A URL that nothing serves is named by its setting, not quoted."""
    with pytest.raises(ConfigurationError) as caught:
        MultiDB(Settings(**(MEMORY | {name: url})))

    assert str(caught.value).startswith(f"{name.upper()}: ")
    # The source line of this file that a traceback quotes holds no secret either.
    assert [] == [text for text in told(caught.value) if CANARY in text]


def test_no_secret_in_the_error_of_a_setting() -> None:
    """An error about one setting quotes neither it nor the others, nor does anything that is chained to it."""
    secret = f"redis://:{CANARY}@h"
    bad: list[dict[str, Any]] = [
        {"redis_url": secret, "redis_prefix": ""},
        {"redis_url": secret, "deadline_seconds": "soon"},
        {"redis_url": [secret]},
        {"redis_url": {"url": secret}},
        {"redis_url": secret.encode() + b"\xff"},
        {"redis_url": secret, "redis_ur": secret},
        {"mongo_driver": secret},
        {"mongodb_db": secret},
        {"redis_pool_max": secret},
    ]
    for values in bad:
        with pytest.raises(ConfigurationError) as caught:
            Settings(**values)

        assert [] == [text for text in told(caught.value) if CANARY in text]


def test_no_secret_in_what_is_shown() -> None:
    """Settings show no secret: not their repr, their str, their dumps, nor when they are logged."""
    url = f"redis://:{CANARY}@h"
    settings = Settings(postgres_url=url, mongodb_uri=url, redis_url=url)
    record = logging.LogRecord("x", logging.INFO, "x", 1, "%s %r", (settings, settings), None)
    shown = [
        repr(settings),
        str(settings),
        f"{settings}",
        repr(settings.model_dump()),
        settings.model_dump_json(),
    ]

    assert [] == [text for text in [*shown, record.getMessage(), repr(dict(settings))] if CANARY in text]
    assert settings == pickle.loads(pickle.dumps(settings))
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate([url])
    assert CANARY not in str(caught.value) + "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["POSTGRES_URL", "DATABASE_URL", "MONGODB_URI", "REDIS_URL"])
def test_no_secret_in_a_multidb(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does a MultiDB, whose locations are what its repr and its log show."""
    scheme = {"MONGODB_URI": "mongodb", "REDIS_URL": "redis"}.get(name, "postgresql")
    environ = {"POSTGRES_URL": "memory://", "MONGODB_URI": "memory://", "REDIS_URL": "memory://"}
    if name == "DATABASE_URL":
        environ["POSTGRES_URL"] = ""
    with caplog.at_level(logging.DEBUG):
        for password in (CANARY, f"{CANARY}%40", f"x%2F{CANARY}"):
            db = MultiDB(Settings.from_env(environ | {name: f"{scheme}://user:{password}@db.example:1234/1"}))

            assert CANARY not in repr(db) + str(db.locations) + str(vars(db)) + caplog.text
            assert "db.example:1234" in repr(db)


@pytest.mark.parametrize(
    "password", [f"{CANARY}/", f"x/{CANARY}", f"{CANARY}?", f"x#{CANARY}", f"{CANARY}@x/y", f"[{CANARY}"]
)
@pytest.mark.parametrize("name", ["postgres_url", "mongodb_uri", "redis_url"])
def test_no_secret_where_a_password_is_not_escaped(name: str, password: str) -> None:
    """A URL whose password is written without escapes is refused, or works; in neither case is a part of it shown."""
    scheme = {"mongodb_uri": "mongodb", "redis_url": "redis"}.get(name, "postgresql")
    settings = Settings(**(MEMORY | {name: f"{scheme}://user:{password}@db.example/1"}))
    try:
        shown = [repr(MultiDB(settings))]
    except ConfigurationError as exc:
        shown = list(told(exc))

    assert [] == [text for text in shown if CANARY in text]

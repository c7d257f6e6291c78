"""Every setting of multidb, from keywords or from the environment; no I/O, and nothing is read at import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from multidb.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MEBIBYTE: Final = 1024 * 1024
_UNPREFIXED: Final = {
    "postgres_url": ("POSTGRES_URL", "DATABASE_URL"),
    "mongodb_uri": ("MONGODB_URI",),
    "mongodb_db": ("MONGODB_DB",),
    "redis_url": ("REDIS_URL",),
}


class Settings(BaseModel):
    """
    What a MultiDB is made from.

    Keywords have the names below. The environment has them in capitals: the three URLs and `MONGODB_DB` as they are,
    everything else behind `MULTIDB_`. A URL is kept as a secret: no repr, log or error shows it.
    Raises ConfigurationError, naming the setting, for a value that does not fit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    postgres_url: SecretStr | None = None
    """Logs: `postgresql://…`, `sqlite:///path`, `file://folder` or `memory://`. Unset: SQLite in *data_dir*."""
    mongodb_uri: SecretStr | None = None
    """Profiles: `mongodb://…`, `mongodb+srv://…`, `file://folder` or `memory://`. Unset: files in *data_dir*."""
    redis_url: SecretStr | None = None
    """State: `redis://…`, `rediss://…`, `redis+cluster://…`, `redis+sentinel://…`, `file://folder` or `memory://`.
    Unset: in process, with a journal in *data_dir*."""

    data_dir: Path = Path("data")
    """The folder of the embedded defaults."""
    mongodb_db: str | None = Field(
        default=None, min_length=1, max_length=63, pattern=r"^[^/\\. \"$*<>:|?\x00]+$"
    )
    """MongoDB database; unset: the one in the URI, else `multidb`."""
    mongo_driver: Literal["pymongo", "motor"] = "pymongo"
    redis_prefix: str = Field(default="multidb", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    """What every Redis key starts with; programs that share a server need different ones."""

    deadline_seconds: float = Field(default=2.0, gt=0, le=3600, allow_inf_nan=False)
    """How long a call may take on a server."""
    connect_timeout_seconds: float = Field(default=2.0, gt=0, le=3600, allow_inf_nan=False)
    close_timeout_seconds: float = Field(default=10.0, gt=0, le=3600, allow_inf_nan=False)
    """How long `close_all()` may take."""
    postgres_pool_min: int = Field(default=5, ge=1, le=1000)
    postgres_pool_max: int = Field(default=20, ge=1, le=1000)
    mongo_pool_max: int = Field(default=20, ge=1, le=1000)
    redis_pool_max: int = Field(default=20, ge=1, le=1000)

    queue_max_calls: int = Field(default=10_000, ge=1, le=1_000_000)
    """How many calls of a kind may wait to be sent in one batch with others; those beyond wait for their turn."""
    queue_max_bytes: int = Field(default=64 * _MEBIBYTE, ge=_MEBIBYTE, le=4096 * _MEBIBYTE)
    """How large the waiting calls may be together."""

    fallback: Literal["on", "off"] = "on"
    """Whether writes go to the local disk while their server is away; off: they raise what the server's absence is."""
    start: Literal["strict", "degraded"] = "strict"
    """Whether a server that is away when a MultiDB is opened is an error, or one that may come later."""
    primary_share: float = Field(default=0.6, ge=0.1, le=0.9)
    """What the server gets of a call's time, before the local disk does."""
    spool_dir: Path | None = None
    """The folder for what waits for a server; unset: `spool` in *data_dir*."""
    spool_max_bytes: int = Field(default=256 * _MEBIBYTE, ge=_MEBIBYTE)
    """How large the spool of a process and store may be; past that, writes fail."""
    spool_max_age_seconds: float = Field(default=7 * 86400, gt=0, allow_inf_nan=False)
    """What is older when its server is back is set aside."""
    spool_min_free_bytes: int = Field(default=512 * _MEBIBYTE, ge=0)
    spool_min_free_share: float = Field(default=0.05, ge=0, lt=1)
    """What the spool leaves free on the disk: so many bytes, or this share of the disk where that is less."""
    spool_segment_bytes: int = Field(default=4 * _MEBIBYTE, ge=4096)
    """How large one of its files gets."""
    spool_high_share: float = Field(default=0.8, gt=0, le=1)
    """From this share of its size on, health says that the spool is getting full."""
    spool_any_file_system: bool = False
    """Whether the spool may be in memory or on a network's file system, where it may be lost."""

    breaker_failures: int = Field(default=3, ge=1)
    """After so many failures in a row a server counts as away."""
    breaker_window_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    breaker_window_calls: int = Field(default=10, ge=1)
    breaker_window_share: float = Field(default=0.5, gt=0, le=1)
    """It does so, too, when of at least so many calls in so many seconds this share fails."""
    breaker_probe_seconds: float = Field(default=0.25, gt=0, allow_inf_nan=False)
    breaker_probe_max_seconds: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """The first pause between probes of a server that is away, and the longest one."""
    breaker_probe_successes: int = Field(default=2, ge=1)
    """After so many good probes it counts as back."""
    breaker_flap_seconds: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    breaker_flap_max_seconds: float = Field(default=15.0, gt=0, allow_inf_nan=False)
    """Away again so soon after it was back, the first pause doubles, up to the second of these."""

    log_search_index: bool = True
    """Whether the logs on PostgreSQL and SQLite get an index for searching, which is most of what an append costs."""

    max_context_bytes: int = Field(default=_MEBIBYTE, ge=1024, le=15 * _MEBIBYTE)
    """Largest context and largest text of a log record, as UTF-8."""
    max_state_bytes: int = Field(default=_MEBIBYTE, ge=1024, le=15 * _MEBIBYTE)
    """Largest state value and list item, as JSON."""
    max_profile_bytes: int = Field(default=4 * _MEBIBYTE, ge=1024, le=15 * _MEBIBYTE)
    """Largest profile, or part of one, that a single call may write, as JSON."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as exc:
            problems = "; ".join(
                f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
                for error in exc.errors(include_url=False, include_context=False, include_input=False)
            )
        else:
            return
        # Raised out here: pydantic's own exception keeps the input, which may hold a password, so it is no context.
        msg = f"settings: {problems}"
        raise ConfigurationError(msg)

    @field_validator("postgres_url", "mongodb_uri", "redis_url", mode="before")
    @classmethod
    def _unset_when_empty(cls, value: object) -> object:
        return None if value == "" else value

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """
        Read the settings from *environ* (default: the process environment); *overrides* win.

        Besides the names in the class: `DATABASE_URL` where `POSTGRES_URL` is unset, or `DATABASE_TYPE=postgresql` with
        `POSTGRES_HOST`, `POSTGRES_PORT`, `POSTGRES_USER`, `POSTGRES_PASSWORD` and `POSTGRES_DB`.
        Raises ConfigurationError for an unknown `MULTIDB_*` name, too: a typo should not be silent.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for field in cls.model_fields:
            for name in _UNPREFIXED.get(field, (f"MULTIDB_{field.upper()}",)):
                if environ.get(name):
                    values[field] = environ[name]
                    break
        if "postgres_url" not in values and (url := _url_from_parts(environ)):
            values["postgres_url"] = url
        _refuse_unknown(environ, set(cls.model_fields))
        return cls(**(values | overrides))


def _url_from_parts(environ: Mapping[str, str]) -> str | None:
    kind = environ.get("DATABASE_TYPE", "").lower()
    if kind in ("", "sqlite"):
        return None
    if kind not in ("postgres", "postgresql"):
        msg = "DATABASE_TYPE: must be postgresql or sqlite"
        raise ConfigurationError(msg)
    host, port, user, password, database = (
        environ.get(f"POSTGRES_{part}") or default
        for part, default in (
            ("HOST", "localhost"),
            ("PORT", "5432"),
            ("USER", "postgres"),
            ("PASSWORD", ""),
            ("DB", "postgres"),
        )
    )
    credentials = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    address = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"postgresql://{credentials}@{address}:{port}/{quote(database, safe='')}"


def _refuse_unknown(environ: Mapping[str, str], fields: set[str]) -> None:
    known = {f"MULTIDB_{field.upper()}" for field in fields - _UNPREFIXED.keys()}
    for name in environ:
        if name.startswith("MULTIDB_") and not name.startswith("MULTIDB_TEST_") and name not in known:
            plain = name.removeprefix("MULTIDB_")
            meant = (
                f"it is called {plain}"
                if plain in {each for names in _UNPREFIXED.values() for each in names}
                else f"there are {', '.join(sorted(known))}"
            )
            msg = f"{name}: no such setting; {meant}"
            raise ConfigurationError(msg)

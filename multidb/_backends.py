"""Which backend serves which URL. The drivers are imported by what is built, not by this module."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable
from urllib.parse import quote, unquote

from multidb._core.clock import Clock
from multidb._core.registry import Registry, folder_of
from multidb.errors import BackendError, ConfigurationError, MultiDBError
from multidb.instrumentation import Hook
from multidb.resilience.breaker import BreakerPolicy
from multidb.resilience.failover import FailoverOptions, Primary
from multidb.resilience.spool import Limits, Spool
from multidb.resilience.watch import Watch
from multidb.settings import Settings

OWN: Final = "own backend"
_IN_PROCESS: Final = "in process"


@runtime_checkable
class SupportsAbandon(Protocol):
    """An engine, or a backend that holds what outlives its event loop: a lock, a thread."""

    def abandon(self) -> None:
        """Let go of everything without the event loop, which is gone, and without talking to a server."""
        ...


class Engine(SupportsAbandon, Protocol):
    """The pool to one server."""

    async def open(self) -> None:
        """Connect."""
        ...

    async def close(self) -> None:
        """Disconnect, in bounded time."""
        ...


@dataclass(frozen=True, slots=True)
class Built:
    """A backend, what it stands on, and where its data is, in words without a secret."""

    backend: Any
    engine: Engine | None = None
    location: str = _IN_PROCESS
    setting: str = ""
    """The setting that names the server, where there is one."""
    keeps_deadlines: bool = False
    """It ends every call in time by itself, and lets calls share what they can."""
    prompt: bool = False
    """A call of its that is cancelled ends at once, whatever its server or disk does."""

    @property
    def can_hang(self) -> bool:
        """Whether its calls need a deadline."""
        return self.location != _IN_PROCESS and not self.keeps_deadlines

    @property
    def is_on_files(self) -> bool:
        """Whether it stands on files of this machine."""
        return not self.setting and self.location not in (OWN, _IN_PROCESS)


def explained(error: MultiDBError, store: str, built: Built) -> MultiDBError:
    """Return *error*, which *built* met when it was opened, with what it concerns and what to do next."""
    name, cause = built.backend.name, error.__cause__
    where = f"{store} ({name}, {built.location})"
    if isinstance(error, BackendError) and built.is_on_files and isinstance(cause, OSError):
        # No server that may come back: a folder that is not there, or not ours.
        reason = cause.strerror or type(cause).__name__
        return ConfigurationError(f"{where}: {reason}; check the path, and that this user may write there")
    if isinstance(error, BackendError):
        error.store, error.backend, error.operation = store, name, "open"
        hint = f"; is it running, and is {built.setting} right?" if built.setting else ""
        error.args = (f"{built.location}: {error.args[0]}{hint}",)
    else:
        error.args = (f"{where}: {error}",)
    return error


_Factory: TypeAlias = Callable[[str, Settings, Clock, Sequence[Hook]], Built]
_LOGS: Registry[_Factory] = Registry("POSTGRES_URL")
_PROFILES: Registry[_Factory] = Registry("MONGODB_URI")
_STATE: Registry[_Factory] = Registry("REDIS_URL")


# How much of the deadline a call may wait for a connection: then it knows that nothing was sent.
_POOL_SHARE = 0.9
_REDIS = ("redis", "rediss", "valkey", "valkeys")


def own(backend: object) -> Built:
    """Return *backend* as the program's own: multidb opens and closes it, and knows nothing of its engine."""
    return Built(backend, location=OWN)


def build_logs(settings: Settings, clock: Clock, hooks: Sequence[Hook]) -> Built:
    """Return the log backend that *settings* name, or that on SQLite. Raises ConfigurationError."""
    url = _reveal(settings.postgres_url) or f"sqlite:///{quote(str(settings.data_dir / 'multidb.db'))}"
    return _LOGS.find(url)(url, settings, clock, hooks)


def build_profiles(settings: Settings, clock: Clock, hooks: Sequence[Hook]) -> Built:
    """Return the profile backend that *settings* name, or that on files. Raises ConfigurationError."""
    url = _reveal(settings.mongodb_uri) or f"file://{quote(str(settings.data_dir / 'profiles'))}"
    return _PROFILES.find(url)(url, settings, clock, hooks)


def build_state(settings: Settings, clock: Clock, hooks: Sequence[Hook]) -> Built:
    """Return the state backend that *settings* name, or that with a journal. Raises ConfigurationError."""
    url = _reveal(settings.redis_url) or f"file://{quote(str(settings.data_dir / 'state'))}"
    return _STATE.find(url)(url, settings, clock, hooks)


def _spool(store: str, namespace: str, settings: Settings, clock: Clock) -> Spool:
    limits = Limits(
        max_bytes=settings.spool_max_bytes,
        max_age_seconds=settings.spool_max_age_seconds,
        min_free_bytes=settings.spool_min_free_bytes,
        min_free_share=settings.spool_min_free_share,
        segment_bytes=settings.spool_segment_bytes,
        high_share=settings.spool_high_share,
    )
    return Spool(
        settings.spool_dir or settings.data_dir / "spool",
        store,
        namespace=namespace,
        limits=limits,
        clock=clock,
        any_file_system=settings.spool_any_file_system,
    )


def _failover_options(settings: Settings) -> FailoverOptions:
    policy = BreakerPolicy(
        failures=settings.breaker_failures,
        window_seconds=settings.breaker_window_seconds,
        window_calls=settings.breaker_window_calls,
        window_share=settings.breaker_window_share,
        probe_seconds=settings.breaker_probe_seconds,
        probe_max_seconds=settings.breaker_probe_max_seconds,
        probe_successes=settings.breaker_probe_successes,
        flap_seconds=settings.breaker_flap_seconds,
        flap_max_seconds=settings.breaker_flap_max_seconds,
    )
    return FailoverOptions(
        settings.deadline_seconds, settings.primary_share, settings.start == "degraded", policy
    )


def _reveal(secret: Any) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _hosts(url: str) -> str:
    """Return the hosts of a URL, without what may be secret."""
    rest = url.partition("://")[2]
    netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # A password that is not escaped may reach behind what looks like the hosts.
    if "@" in rest[len(netloc) :]:
        return "a server"
    return netloc.rpartition("@")[2] or "local socket"


@_LOGS.add("postgresql", "postgres", "postgresql+asyncpg", "postgres+asyncpg")
def _postgres_logs(url: str, settings: Settings, clock: Clock, hooks: Sequence[Hook]) -> Built:
    from multidb.engines.sql import SqlEngine
    from multidb.logs.backends.sql import SqlLogBackend

    share = settings.primary_share if settings.fallback == "on" else 1.0
    engine = SqlEngine(
        url,
        pool_min=settings.postgres_pool_min,
        pool_max=settings.postgres_pool_max,
        pool_timeout_seconds=_POOL_SHARE * share * settings.deadline_seconds,
        connect_timeout_seconds=settings.connect_timeout_seconds,
        command_timeout_seconds=settings.deadline_seconds,
    )
    backend = SqlLogBackend(engine, search_index=settings.log_search_index)
    if settings.fallback == "off":
        return Built(backend, engine, _hosts(url), "POSTGRES_URL")
    from multidb.logs._failover import FailoverLogBackend

    spool = _spool("logs", engine.address, settings, clock)
    watch = Watch("logs", backend.name, clock, hooks)
    guarded = FailoverLogBackend(
        backend, Primary(backend, engine, backend), spool, watch, _failover_options(settings)
    )
    return Built(guarded, None, _hosts(url), "POSTGRES_URL")


@_LOGS.add("sqlite", "sqlite+aiosqlite")
def _sqlite_logs(url: str, settings: Settings, clock: Clock, hooks: Sequence[Hook]) -> Built:
    from multidb.engines.sql import SqlEngine
    from multidb.logs.backends.sql import SqlLogBackend

    engine = SqlEngine(
        url,
        pool_timeout_seconds=_POOL_SHARE * settings.deadline_seconds,
        command_timeout_seconds=settings.deadline_seconds,
    )
    return Built(
        SqlLogBackend(engine, search_index=settings.log_search_index),
        engine,
        unquote(url.partition(":///")[2]),
        prompt=True,
    )


@_LOGS.add("file")
def _file_logs(url: str, settings: Settings, clock: Clock, hooks: Sequence[Hook]) -> Built:
    from multidb.logs.backends.files import FileLogBackend

    folder = Path(folder_of(url, "POSTGRES_URL"))
    return Built(FileLogBackend(folder), location=str(folder), prompt=True)


@_LOGS.add("memory")
def _memory_logs(url: str, settings: Settings, clock: Clock, hooks: Sequence[Hook]) -> Built:
    from multidb.logs.backends.memory import MemoryLogBackend

    return Built(MemoryLogBackend())


@_PROFILES.add("mongodb", "mongodb+srv")
def _mongo_profiles(url: str, settings: Settings, clock: Clock, hooks: Sequence[Hook]) -> Built:
    from multidb.engines._drivers import require

    if settings.mongo_driver == "motor":
        require("motor", "motor")
    from multidb.engines.mongo import MongoEngine
    from multidb.profiles.backends.mongo import MongoProfileBackend

    engine = MongoEngine(
        url,
        settings.mongodb_db,
        driver=settings.mongo_driver,
        pool_max=settings.mongo_pool_max,
        timeout_seconds=settings.deadline_seconds,
        connect_timeout_seconds=settings.connect_timeout_seconds,
    )
    return Built(MongoProfileBackend(engine), engine, _hosts(url), "MONGODB_URI", prompt=True)


@_PROFILES.add("file")
def _file_profiles(url: str, settings: Settings, clock: Clock, hooks: Sequence[Hook]) -> Built:
    from multidb.profiles.backends.files import FileProfileBackend

    folder = Path(folder_of(url, "MONGODB_URI"))
    return Built(FileProfileBackend(folder), location=str(folder), prompt=True)


@_PROFILES.add("memory")
def _memory_profiles(url: str, settings: Settings, clock: Clock, hooks: Sequence[Hook]) -> Built:
    from multidb.profiles.backends.memory import MemoryProfileBackend

    return Built(MemoryProfileBackend())


@_STATE.add("unix", *(name + kind for name in _REDIS for kind in ("", "+cluster", "+sentinel")))
def _redis_state(url: str, settings: Settings, clock: Clock, hooks: Sequence[Hook]) -> Built:
    from multidb.engines.redis import RedisEngine
    from multidb.state.backends.redis import RedisStateBackend

    engine = RedisEngine(
        url,
        pool_max=settings.redis_pool_max,
        timeout_seconds=settings.deadline_seconds,
        connect_timeout_seconds=settings.connect_timeout_seconds,
        queue_max_calls=settings.queue_max_calls,
        queue_max_bytes=settings.queue_max_bytes,
    )
    backend = RedisStateBackend(engine, prefix=settings.redis_prefix)
    return Built(backend, engine, _hosts(url), "REDIS_URL", keeps_deadlines=True)


@_STATE.add("file")
def _file_state(url: str, settings: Settings, clock: Clock, hooks: Sequence[Hook]) -> Built:
    from multidb.state.backends.memory import MemoryStateBackend

    folder = Path(folder_of(url, "REDIS_URL"))
    backend = MemoryStateBackend(clock=clock, folder=folder, timeout_seconds=settings.deadline_seconds)
    return Built(backend, location=str(folder), keeps_deadlines=True)


@_STATE.add("memory")
def _memory_state(url: str, settings: Settings, clock: Clock, hooks: Sequence[Hook]) -> Built:
    from multidb.state.backends.memory import MemoryStateBackend

    return Built(MemoryStateBackend(clock=clock))

"""MultiDB: the one place that knows every store, backend and engine, and opens and closes them together."""

from __future__ import annotations

import asyncio
import logging
import re
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias
from urllib.parse import quote, unquote

from multidb._core.clock import Clock, SystemClock
from multidb._core.current import get_default, set_default
from multidb._core.lifecycle import Lifecycle, Phase
from multidb._core.registry import Registry, folder_of
from multidb.errors import ClosedError, ConfigurationError
from multidb.logs._store import LogStore
from multidb.profiles._store import ProfileStore
from multidb.resilience.route import Route
from multidb.settings import Settings
from multidb.state._store import StateStore

if TYPE_CHECKING:
    from types import TracebackType

    from multidb.instrumentation import Hook
    from multidb.logs.protocol import LogBackend
    from multidb.profiles.protocol import ProfileBackend
    from multidb.state.protocol import StateBackend

_log = logging.getLogger("multidb")


class Engine(Protocol):
    """The pool to one server."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def abandon(self) -> None:
        """Let go of everything without the event loop, which is gone, and without talking to the server."""
        ...


class _Opened(Protocol):
    """What an engine and a backend have in common."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Built:
    """A backend, what it stands on, and where its data is, in words without a secret."""

    backend: Any
    engine: Engine | None = None
    location: str = "in process"

    @property
    def can_hang(self) -> bool:
        return self.location != "in process"


_Factory: TypeAlias = Callable[[str, Settings, Clock], _Built]
_LOGS: Registry[_Factory] = Registry("POSTGRES_URL")
_PROFILES: Registry[_Factory] = Registry("MONGODB_URI")
_STATE: Registry[_Factory] = Registry("REDIS_URL")


class MultiDB:
    """
    The three stores: `logs`, `profiles`, `state`.

    Use it as `async with MultiDB(settings) as db:`, or `await db.open()` and `await db.close()`; it lives once, in one
    event loop of one process. *settings* default to the environment. *logs*, *profiles* and *state* take a backend of
    your own in place of the one that the settings name. Constructing it does no I/O; ConfigurationError tells of a
    URL that nothing serves and of a driver that is not installed.
    """

    logs: LogStore
    profiles: ProfileStore
    state: StateStore

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        logs: LogBackend | None = None,
        profiles: ProfileBackend | None = None,
        state: StateBackend | None = None,
        hooks: Sequence[Hook] = (),
        clock: Clock | None = None,
    ) -> None:
        """Build the stores on what *settings* name."""
        self._lifecycle = Lifecycle()
        self.settings = settings = Settings.from_env() if settings is None else settings
        clock = clock or SystemClock()
        built = {
            "logs": _build_logs(settings, clock) if logs is None else _own(logs),
            "profiles": _build_profiles(settings, clock) if profiles is None else _own(profiles),
            "state": _build_state(settings, clock) if state is None else _own(state),
        }
        self.locations = {store: f"{one.backend.name}, {one.location}" for store, one in built.items()}
        """Where each store keeps its data, in words, without a secret."""
        self._parts: list[_Opened] = [
            part for one in built.values() for part in (one.engine, one.backend) if part is not None
        ]
        self._engines = [one.engine for one in built.values() if one.engine is not None]
        self._routes: dict[str, Route[Any]] = {
            store: Route(
                one.backend,
                self._lifecycle,
                deadline_seconds=settings.deadline_seconds if one.can_hang else None,
                hooks=hooks,
            )
            for store, one in built.items()
        }
        self.logs = LogStore(self._routes["logs"], clock, max_context_bytes=settings.max_context_bytes)
        self.profiles = ProfileStore(
            self._routes["profiles"], clock, max_profile_bytes=settings.max_profile_bytes
        )
        self.state = StateStore(self._routes["state"], max_state_bytes=settings.max_state_bytes)
        self._closing: AsyncExitStack | None = None
        self._opening: asyncio.Future[None] | None = None

    @classmethod
    def in_memory(cls, *, hooks: Sequence[Hook] = (), clock: Clock | None = None) -> Self:
        """Return a MultiDB that keeps everything in this process, for tests. It is opened and closed like any other."""
        settings = Settings(postgres_url="memory://", mongodb_uri="memory://", redis_url="memory://")
        return cls(settings, hooks=hooks, clock=clock)

    def __repr__(self) -> str:
        return f"<MultiDB {self._lifecycle.phase.value}: {self.locations}>"

    async def open(self) -> None:
        """
        Connect, create or upgrade what is missing. Opening what is open, or is being opened, changes nothing.

        If one part fails to open, the opened ones are closed. Raises ConfigurationError, BackendError, ClosedError.
        """
        if self._lifecycle.phase is not Phase.NEW:
            self._lifecycle.check()
            return
        if self._opening is not None:
            await asyncio.shield(self._opening)
            return
        self._opening = asyncio.get_running_loop().create_future()
        try:
            await self._open_parts()
        except BaseException as exc:
            refused = exc if isinstance(exc, Exception) else ClosedError("opening this MultiDB was cancelled")
            self._opening.set_exception(refused)
            self._opening.exception()  # Retrieved here, as mostly nobody else is waiting.
            self._opening = None
            raise
        self._opening.set_result(None)
        _log.info("multidb is open: %s", "; ".join(f"{k}: {v}" for k, v in self.locations.items()))

    async def _open_parts(self) -> None:
        async with AsyncExitStack() as opened:
            for part in self._parts:
                # Pushed first: a part that fails half-way, or is cancelled, has something to close.
                opened.push_async_callback(part.close)
                await part.open()
            if self._lifecycle.phase is not Phase.NEW:
                msg = "this MultiDB was closed while it was being opened"
                raise ClosedError(msg)
            self._lifecycle.opened()
            self._closing = opened.pop_all()

    async def close(self) -> None:
        """
        Wait for the calls under way, then close everything, within `close_timeout_seconds`. Closing twice is fine.

        In a forked child, or when the event loop it was opened in is gone, everything is let go of without a word to
        the servers.
        """
        if self._lifecycle.phase is Phase.OPEN and self._lifecycle.elsewhere:
            self.abandon()
        closing, self._closing = self._closing, None
        self._lifecycle.closed()
        if closing is None:
            return
        task = asyncio.create_task(self._close_parts(closing), name="multidb-close")
        done, _ = await asyncio.wait((task,), timeout=self.settings.close_timeout_seconds)
        if done:
            task.result()
            return
        task.cancel()
        _log.warning("multidb did not close within %g seconds", self.settings.close_timeout_seconds)
        self._abandon_engines()

    async def _close_parts(self, closing: AsyncExitStack) -> None:
        async with closing:
            seconds = min(self.settings.deadline_seconds, self.settings.close_timeout_seconds / 2)
            await asyncio.gather(*(route.drain(seconds) for route in self._routes.values()))

    def abandon(self) -> None:
        """Let go of everything at once: for a forked child, or when the event loop is gone."""
        self._closing = None
        self._lifecycle.closed()
        self._abandon_engines()

    def _abandon_engines(self) -> None:
        for engine in self._engines:
            engine.abandon()

    @property
    def usable(self) -> bool:
        """Whether it is open, or may be opened, in the running event loop."""
        phase = self._lifecycle.phase
        return phase is Phase.NEW or (phase is Phase.OPEN and not self._lifecycle.elsewhere)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        lifecycle: Lifecycle | None = self.__dict__.get("_lifecycle")
        if lifecycle is not None and lifecycle.phase is Phase.OPEN:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)


async def init_all(
    settings: Settings | None = None,
    *,
    hooks: Sequence[Hook] = (),
    clock: Clock | None = None,
    **overrides: Any,
) -> MultiDB:
    """
    Open the process default MultiDB and return it, as in `await multidb.init_all(redis_url="memory://")`.

    Settings come from *settings*, else from the environment; *overrides* win. Again with the same settings: the same
    MultiDB; with others: ConfigurationError. Where an earlier one is left over from an event loop that is gone, or
    from before a fork, it is let go of and a new one is opened.
    """
    wanted = Settings.from_env(**overrides) if settings is None else Settings(**(dict(settings) | overrides))
    db = get_default()
    if db is not None and db.usable:
        if db.settings != wanted:
            msg = "multidb is initialized with other settings: call `await multidb.close_all()` first"
            raise ConfigurationError(msg)
        await db.open()
        return db
    if db is not None:
        db.abandon()
    db = MultiDB(wanted, hooks=hooks, clock=clock)
    set_default(db)
    try:
        await db.open()
    except BaseException:
        if get_default() is db:
            set_default(None)
        raise
    return db


async def close_all() -> None:
    """Close the process default MultiDB, within `close_timeout_seconds`. Without one, nothing happens."""
    db = get_default()
    set_default(None)
    if db is not None:
        await db.close()


@asynccontextmanager
async def lifespan(
    app: object = None,
    *,
    settings: Settings | None = None,
    hooks: Sequence[Hook] = (),
    **overrides: Any,
) -> AsyncIterator[None]:
    """
    Initialize multidb for the block and close it afterwards.

    `async with multidb.lifespan():` in a program, `FastAPI(lifespan=multidb.lifespan)` in an ASGI application, which
    is why there is an *app*.
    """
    await init_all(settings, hooks=hooks, **overrides)
    try:
        yield
    finally:
        await close_all()


# How much of the deadline a call may wait for a connection: then it knows that nothing was sent.
_POOL_SHARE = 0.9
_REDIS = ("redis", "rediss", "valkey", "valkeys")

# Which backend for which URL. The drivers are imported by what is built, not here.


def _own(backend: object) -> _Built:
    return _Built(backend, location="own backend")


def _build_logs(settings: Settings, clock: Clock) -> _Built:
    url = _reveal(settings.postgres_url) or f"sqlite:///{quote(str(settings.data_dir / 'multidb.db'))}"
    return _LOGS.find(url)(url, settings, clock)


def _build_profiles(settings: Settings, clock: Clock) -> _Built:
    url = _reveal(settings.mongodb_uri) or f"file://{quote(str(settings.data_dir / 'profiles'))}"
    return _PROFILES.find(url)(url, settings, clock)


def _build_state(settings: Settings, clock: Clock) -> _Built:
    url = _reveal(settings.redis_url) or f"file://{quote(str(settings.data_dir / 'state'))}"
    return _STATE.find(url)(url, settings, clock)


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
def _postgres_logs(url: str, settings: Settings, clock: Clock) -> _Built:
    from multidb.engines.sql import SqlEngine
    from multidb.logs.backends.sql import SqlLogBackend

    engine = SqlEngine(
        url,
        pool_min=settings.postgres_pool_min,
        pool_max=settings.postgres_pool_max,
        pool_timeout_seconds=_POOL_SHARE * settings.deadline_seconds,
        connect_timeout_seconds=settings.connect_timeout_seconds,
        command_timeout_seconds=settings.deadline_seconds,
    )
    return _Built(SqlLogBackend(engine), engine, _hosts(url))


@_LOGS.add("sqlite", "sqlite+aiosqlite")
def _sqlite_logs(url: str, settings: Settings, clock: Clock) -> _Built:
    from multidb.engines.sql import SqlEngine
    from multidb.logs.backends.sql import SqlLogBackend

    engine = SqlEngine(
        url,
        pool_timeout_seconds=_POOL_SHARE * settings.deadline_seconds,
        command_timeout_seconds=settings.deadline_seconds,
    )
    return _Built(SqlLogBackend(engine), engine, unquote(url.partition(":///")[2]))


@_LOGS.add("file")
def _file_logs(url: str, settings: Settings, clock: Clock) -> _Built:
    from multidb.logs.backends.files import FileLogBackend

    folder = Path(folder_of(url, "POSTGRES_URL"))
    return _Built(FileLogBackend(folder), location=str(folder))


@_LOGS.add("memory")
def _memory_logs(url: str, settings: Settings, clock: Clock) -> _Built:
    from multidb.logs.backends.memory import MemoryLogBackend

    return _Built(MemoryLogBackend())


@_PROFILES.add("mongodb", "mongodb+srv")
def _mongo_profiles(url: str, settings: Settings, clock: Clock) -> _Built:
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
    return _Built(MongoProfileBackend(engine), engine, _hosts(url))


@_PROFILES.add("file")
def _file_profiles(url: str, settings: Settings, clock: Clock) -> _Built:
    from multidb.profiles.backends.files import FileProfileBackend

    folder = Path(folder_of(url, "MONGODB_URI"))
    return _Built(FileProfileBackend(folder), location=str(folder))


@_PROFILES.add("memory")
def _memory_profiles(url: str, settings: Settings, clock: Clock) -> _Built:
    from multidb.profiles.backends.memory import MemoryProfileBackend

    return _Built(MemoryProfileBackend())


@_STATE.add("unix", *(name + kind for name in _REDIS for kind in ("", "+cluster", "+sentinel")))
def _redis_state(url: str, settings: Settings, clock: Clock) -> _Built:
    from multidb.engines.redis import RedisEngine
    from multidb.state.backends.redis import RedisStateBackend

    engine = RedisEngine(
        url,
        pool_max=settings.redis_pool_max,
        timeout_seconds=settings.deadline_seconds,
        connect_timeout_seconds=settings.connect_timeout_seconds,
    )
    return _Built(RedisStateBackend(engine, prefix=settings.redis_prefix), engine, _hosts(url))


@_STATE.add("file")
def _file_state(url: str, settings: Settings, clock: Clock) -> _Built:
    from multidb.state.backends.memory import MemoryStateBackend

    folder = Path(folder_of(url, "REDIS_URL"))
    return _Built(MemoryStateBackend(clock=clock, folder=folder), location=str(folder))


@_STATE.add("memory")
def _memory_state(url: str, settings: Settings, clock: Clock) -> _Built:
    from multidb.state.backends.memory import MemoryStateBackend

    return _Built(MemoryStateBackend(clock=clock))

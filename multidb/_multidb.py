"""MultiDB and the process default: the three stores, opened and closed together."""

from __future__ import annotations

import asyncio
import logging
import warnings
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, Self

from multidb._backends import Built, SupportsAbandon, build_logs, build_profiles, build_state, explained, own
from multidb._core.batcher import Bounds
from multidb._core.clock import Clock, SystemClock, utc_now
from multidb._core.current import get_default, set_default
from multidb._core.lifecycle import Lifecycle, Phase
from multidb.errors import ClosedError, ConfigurationError, InvalidArgumentError, MultiDBError
from multidb.instrumentation import Health, Status
from multidb.logs._store import LogStore
from multidb.profiles._store import ProfileStore
from multidb.resilience.dangers import Dangers
from multidb.resilience.failover import SupportsHealth
from multidb.resilience.route import Route
from multidb.settings import Settings
from multidb.state._store import StateStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from types import TracebackType

    from multidb.instrumentation import Hook
    from multidb.logs.protocol import LogBackend
    from multidb.profiles.protocol import ProfileBackend
    from multidb.state.protocol import StateBackend

_log = logging.getLogger("multidb")

# What a close that was given up on gets to notice that it was cancelled.
_GRACE_SECONDS = 0.5


class _Opened(Protocol):
    """What an engine and a backend have in common."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...


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
        _check_settings(settings)
        self._lifecycle = Lifecycle()
        self._hooks, self._clock = tuple(hooks), clock
        self.settings = settings = Settings.from_env() if settings is None else settings
        clock = SystemClock() if clock is None else clock
        built = {
            "logs": build_logs(settings, clock, self._hooks) if logs is None else own(logs),
            "profiles": build_profiles(settings, clock, self._hooks) if profiles is None else own(profiles),
            "state": build_state(settings, clock, self._hooks) if state is None else own(state),
        }
        self.locations = {store: f"{one.backend.name}, {one.location}" for store, one in built.items()}
        """Where each store keeps its data, in words, without a secret."""
        self._built = built
        self._dangers = {
            store: Dangers(one.backend, store, settings.deadline_seconds) for store, one in built.items()
        }
        self._routes: dict[str, Route[Any]] = {
            store: Route(
                one.backend,
                self._lifecycle,
                deadline_seconds=settings.deadline_seconds if one.can_hang else None,
                hooks=hooks,
                bounds=Bounds(queue_calls=settings.queue_max_calls, queue_bytes=settings.queue_max_bytes),
                prompt=one.prompt,
            )
            for store, one in built.items()
        }
        self.logs = LogStore(self._routes["logs"], clock, max_context_bytes=settings.max_context_bytes)
        self.profiles = ProfileStore(
            self._routes["profiles"], clock, max_profile_bytes=settings.max_profile_bytes
        )
        self.state = StateStore(self._routes["state"], max_state_bytes=settings.max_state_bytes)
        self._utc: Clock = clock
        self._since = utc_now(clock)
        self._opened: AsyncExitStack | None = None
        self._closing: asyncio.Task[None] | None = None
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
        self.refuse_other_thread()
        if self._opening is not None:
            await asyncio.shield(self._opening)
            return
        self._opening = asyncio.get_running_loop().create_future()
        self._lifecycle.opening()
        try:
            await self._open_parts()
        except BaseException as exc:
            refused = exc if isinstance(exc, Exception) else ClosedError("opening this MultiDB was cancelled")
            self._opening.set_exception(refused)
            self._opening.exception()  # Retrieved here, as mostly nobody else is waiting.
            self._opening = None
            self._lifecycle.refused()
            raise
        self._opening.set_result(None)
        _log.info("multidb is open: %s", "; ".join(f"{k}: {v}" for k, v in self.locations.items()))

    async def _open_parts(self) -> None:
        async with AsyncExitStack() as opened:
            for store, one in self._built.items():
                for part in (one.engine, one.backend):
                    if part is not None:
                        await _open_part(opened, part, store, one)
                await self._dangers[store].look()
            if self._lifecycle.phase is not Phase.NEW:
                msg = "this MultiDB was closed while it was being opened"
                raise ClosedError(msg)
            self._lifecycle.opened()
            self._since = utc_now(self._utc)
            self._opened = opened.pop_all()

    async def close(self) -> None:
        """
        Wait for the calls under way, then close everything, within `close_timeout_seconds`. Closing twice is fine.

        In a forked child, or when the event loop it was opened in is gone, everything is let go of without a word to
        the servers.
        """
        self.refuse_other_thread()
        if self._lifecycle.phase is Phase.OPEN and self._lifecycle.elsewhere:
            self.abandon()
        opened, self._opened = self._opened, None
        self._ended()
        if opened is not None:
            self._closing = asyncio.create_task(self._close_parts(opened), name="multidb-close")
        # Whoever closes waits for it, also the second one, and the one after a close that was cancelled.
        if self._closing is None or self._closing.get_loop() is not asyncio.get_running_loop():
            return
        done, _ = await asyncio.wait((self._closing,), timeout=self.settings.close_timeout_seconds)
        if done:
            if opened is not None:  # How it ended is told once, to the one that began it.
                self._closing.result()
            return
        self._closing.cancel()
        _log.warning("multidb did not close within %g seconds", self.settings.close_timeout_seconds)
        self._abandon_parts()
        await asyncio.wait((self._closing,), timeout=_GRACE_SECONDS)

    def refuse_other_thread(self) -> None:
        """Raise ClosedError when this MultiDB is in use by an event loop that runs in another thread."""
        if self._lifecycle.in_use_elsewhere:
            msg = (
                "this MultiDB is in use by the event loop of another thread: leave it to that thread, and in this one "
                "open another: `async with MultiDB(…) as db:`, and inside it `with multidb.using(db):`"
            )
            raise ClosedError(msg)

    async def _close_parts(self, closing: AsyncExitStack) -> None:
        async with closing:
            seconds = min(self.settings.deadline_seconds, self.settings.close_timeout_seconds / 2)
            await asyncio.gather(*(route.drain(seconds) for route in self._routes.values()))

    def abandon(self) -> None:
        """Let go of everything at once: for a forked child, or when the event loop is gone."""
        self._opened = None
        self._ended()
        self._abandon_parts()

    def _ended(self) -> None:
        if self._lifecycle.phase is not Phase.CLOSED:
            self._since = utc_now(self._utc)
        self._lifecycle.closed()

    def _abandon_parts(self) -> None:
        for one in self._built.values():
            for part in (one.backend, one.engine):
                if isinstance(part, SupportsAbandon):
                    part.abandon()

    def health(self) -> dict[str, Health]:
        """
        Return how each store fares, by its name, as far as is known without asking a server.

        A store without a failover is UP as long as this MultiDB is open.
        """
        return {store: self._health_of(store, one.backend) for store, one in self._built.items()}

    def _health_of(self, store: str, backend: Any) -> Health:
        is_open = self._lifecycle.phase is Phase.OPEN
        if isinstance(backend, SupportsHealth) and is_open:
            with suppress(ClosedError):  # In a forked child it is the parent's.
                return backend.health()
            is_open = False
        if not is_open:
            return Health(store, backend.name, Status.CLOSED, self._since)
        return Health(store, backend.name, Status.UP, self._since, warnings=self._dangers[store].found)

    def has(self, hooks: Sequence[Hook], clock: Clock | None) -> bool:
        """Whether it was made with these, where they are given."""
        return (not hooks or tuple(hooks) == self._hooks) and (clock is None or clock is self._clock)

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


async def _open_part(opened: AsyncExitStack, part: _Opened, store: str, built: Built) -> None:
    # Pushed first: a part that fails half-way, or is cancelled, has something to close.
    opened.push_async_callback(part.close)
    try:
        await part.open()
    except MultiDBError as exc:
        error = explained(exc, store, built)
        if error is exc:
            raise
        raise error from exc


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
    _check_settings(settings)
    wanted = Settings.from_env(**overrides) if settings is None else Settings(**(dict(settings) | overrides))
    db = get_default()
    if db is not None and db.usable:
        if db.settings != wanted or not db.has(hooks, clock):
            msg = "multidb is initialized with other settings, hooks or clock: call `await multidb.close_all()` first"
            raise ConfigurationError(msg)
        await db.open()
        return db
    if db is not None:
        db.refuse_other_thread()
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


def _check_settings(settings: object) -> None:
    if settings is not None and not isinstance(settings, Settings):
        msg = (
            f'settings: {type(settings).__name__}; pass a Settings, or keywords such as redis_url="redis://…"'
        )
        raise InvalidArgumentError(msg)


async def close_all() -> None:
    """Close the process default MultiDB, within `close_timeout_seconds`. Without one, nothing happens."""
    db = get_default()
    if db is not None:
        db.refuse_other_thread()
        set_default(None)
        await db.close()


@asynccontextmanager
async def lifespan(
    app: object = None,  # noqa: ARG001 -- what an ASGI framework passes
    *,
    settings: Settings | None = None,
    hooks: Sequence[Hook] = (),
    **overrides: Any,
) -> AsyncIterator[None]:
    """
    Initialize multidb for the block and close it afterwards, unless it was initialized before.

    `async with multidb.lifespan():` in a program, `FastAPI(lifespan=multidb.lifespan)` in an ASGI application, which
    is why there is an *app*.
    """
    before = get_default()
    db = await init_all(settings, hooks=hooks, **overrides)
    try:
        yield
    finally:
        if db is not before:
            if db is get_default():
                set_default(None)
            await db.close()

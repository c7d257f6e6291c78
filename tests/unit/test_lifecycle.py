"""Opening and closing: half open is impossible, and everything opened is closed."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import textwrap
import warnings
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest

import multidb
from multidb import (
    ClosedError,
    ConfigurationError,
    MultiDB,
    NotInitializedError,
    Settings,
    logs,
    profiles,
    state,
)
from multidb import _backends as composition
from multidb._core import current as current_module
from multidb.errors import BackendError, BackendTimeoutError, BackendUnavailableError, InvalidArgumentError
from multidb.instrumentation import LoggingHook
from multidb.testing.clock import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

MEMORY: dict[str, Any] = {"postgres_url": "memory://", "mongodb_uri": "memory://", "redis_url": "memory://"}


@pytest.fixture(autouse=True)
def _no_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start without a default, and see that no test leaves one."""
    monkeypatch.setattr(current_module, "_default", None)
    yield
    assert current_module._default is None


@pytest.fixture
async def closing() -> AsyncIterator[None]:
    """Close the default after the test, in the test's own event loop."""
    yield
    await multidb.close_all()


class Part:
    """A backend, or an engine, that writes down what is done to it."""

    def __init__(
        self, name: str, journal: list[str], *, fail: BaseException | None = None, close_fails: bool = False
    ) -> None:
        self.name = name
        self.journal = journal
        self.fail = fail
        self.close_fails = close_fails
        self.gate: asyncio.Event | None = None
        self.close_gate: asyncio.Event | None = None

    async def open(self) -> None:
        self.journal.append(f"open {self.name}")
        if self.gate:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.fail:
            raise self.fail

    async def close(self) -> None:
        self.journal.append(f"close {self.name}")
        if self.close_gate:
            await self.close_gate.wait()
        await asyncio.sleep(0)
        if self.close_fails:
            raise OSError(self.name)

    def abandon(self) -> None:
        self.journal.append(f"abandon {self.name}")

    async def count(self, *_: object) -> dict[str, int]:
        self.journal.append(f"count on {self.name}")
        return {"": 7}

    async def get(self, *_: object) -> None:
        await asyncio.sleep(60)


@dataclass
class Program:
    """A MultiDB on parts, behind URLs of its own, as `init_all()` would build it."""

    journal: list[str] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("logs engine", "logs", "profiles", "state"):
            self.parts[name] = Part(name, self.journal)

    def own(self, settings: Settings | None = None) -> MultiDB:
        backends: dict[str, Any] = {name: self.parts[name] for name in ("logs", "profiles", "state")}
        return MultiDB(settings or Settings(**MEMORY), **backends)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    """Serve `part://` in every registry with the parts of a Program."""
    program = Program()
    for store, registry in (
        ("logs", composition._LOGS),
        ("profiles", composition._PROFILES),
        ("state", composition._STATE),
    ):

        def build(*_: object, store: str = store) -> composition.Built:
            engine: Any = program.parts.get(f"{store} engine")
            return composition.Built(program.parts[store], engine, "a server")

        monkeypatch.setattr(registry, "_factories", registry._factories | {"part": build})
    return program


PARTS: dict[str, Any] = {"postgres_url": "part://", "mongodb_uri": "part://", "redis_url": "part://"}
OPENED = ["open logs engine", "open logs", "open profiles", "open state"]
ABANDONED = ["abandon logs", "abandon logs engine", "abandon profiles", "abandon state"]
CLOSED = ["close state", "close profiles", "close logs", "close logs engine"]

CALLS: list[Callable[[], Awaitable[object]]] = [
    lambda: logs.log_event("u", "e"),
    lambda: logs.get_events("u"),
    logs.get_message_stats,
    lambda: profiles.create_or_update_profile("u", {}),
    profiles.find_profiles,
    lambda: state.set_state("u", "k", 1),
    lambda: state.try_cooldown("u", "a", 1),
]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# Before, after, and again


@pytest.mark.parametrize("call", CALLS)
async def test_before_init(call: Callable[[], Awaitable[object]]) -> None:
    """A module function before `init_all()` says what to do."""
    with pytest.raises(NotInitializedError, match=r"call `await multidb\.init_all\(\)` first"):
        await call()


async def test_iterate_before_init() -> None:
    """So does the one that is no coroutine."""
    with pytest.raises(NotInitializedError):
        logs.iter_events()
    with pytest.raises(NotInitializedError):
        multidb.current()


@pytest.mark.parametrize("call", CALLS)
async def test_after_close_all(call: Callable[[], Awaitable[object]]) -> None:
    """After `close_all()` it is as before."""
    await multidb.init_all(**MEMORY)
    await multidb.close_all()
    with pytest.raises(NotInitializedError):
        await call()


async def test_a_kept_multidb() -> None:
    """A MultiDB that somebody kept says that it is not open, or that it is closed."""
    db = MultiDB.in_memory()
    for _ in range(2):
        with pytest.raises(ClosedError, match="not open"):
            await db.logs.log_event("u", "e")
        async with db:
            await db.logs.log_event("u", "e")
            break
    for call in (db.logs.get_events(), db.profiles.get_profile_stats(), db.state.get_state("u", "k")):
        with pytest.raises(ClosedError, match="closed"):
            await call
    with pytest.raises(ClosedError, match="closed"):
        async for _ in db.logs.iter_events():
            pass
    with pytest.raises(ClosedError, match="closed"):
        await db.open()


@pytest.mark.usefixtures("closing")
async def test_init_twice() -> None:
    """Initializing again with the same settings is the same MultiDB, as with equal settings given otherwise."""
    db = await multidb.init_all(**MEMORY)

    assert db is await multidb.init_all(**MEMORY)
    assert db is await multidb.init_all(Settings(**MEMORY))
    assert db is await multidb.init_all(Settings(redis_url="redis://h"), **MEMORY)
    assert db is multidb.current()


@pytest.mark.usefixtures("closing")
async def test_init_with_other_settings() -> None:
    """With other settings it is an error, and the first one stays."""
    db = await multidb.init_all(**MEMORY)
    with pytest.raises(ConfigurationError, match="other settings"):
        await multidb.init_all(**MEMORY, redis_prefix="other")

    assert db is multidb.current()
    await logs.log_event("u", "e")


@pytest.mark.usefixtures("closing")
async def test_init_after_close() -> None:
    """After a close, of the program or of the object alone, a new one is made, with any settings."""
    first = await multidb.init_all(**MEMORY)
    await multidb.close_all()
    second = await multidb.init_all(**MEMORY, redis_prefix="second")
    await second.close()
    third = await multidb.init_all(**MEMORY)
    await logs.log_event("u", "e")

    assert 3 == len({id(first), id(second), id(third)})
    assert third is multidb.current()


@pytest.mark.usefixtures("closing")
async def test_init_from_several_tasks(program: Program) -> None:
    """Of several tasks that initialize at once all get the same MultiDB, open, and it is opened once."""
    program.parts["logs"].gate = gate = asyncio.Event()
    tasks = [asyncio.create_task(multidb.init_all(**PARTS)) for _ in range(10)]
    await asyncio.sleep(0.01)
    early = [task.done() for task in tasks]
    gate.set()
    dbs = await asyncio.gather(*tasks)

    assert not any(early)
    assert {id(multidb.current())} == {id(db) for db in dbs}
    assert OPENED == program.journal
    assert 7 == await logs.count_events()


async def test_failing_init_from_several_tasks(program: Program) -> None:
    """Where opening fails all of them are told, and there is no default."""
    program.parts["profiles"].fail = BackendUnavailableError("refused")
    results = await asyncio.gather(*(multidb.init_all(**PARTS) for _ in range(5)), return_exceptions=True)

    assert {BackendUnavailableError} == {type(result) for result in results}
    assert multidb._core.current.get_default() is None
    assert 1 == program.journal.count("open logs")


async def test_open_twice(program: Program) -> None:
    """Opening what is open, or is being opened, changes nothing."""
    db = program.own()
    await asyncio.gather(*(db.open() for _ in range(3)))
    await db.open()
    await db.close()

    assert [
        "open logs",
        "open profiles",
        "open state",
        "close state",
        "close profiles",
        "close logs",
    ] == program.journal


# Order and failures


async def test_order(program: Program) -> None:
    """Parts are opened in their order, an engine before its backend, and closed in reverse."""
    async with MultiDB(Settings(**PARTS)):
        assert OPENED == program.journal

    assert OPENED + CLOSED == program.journal


async def test_constructor_does_nothing(program: Program) -> None:
    """Making a MultiDB and throwing it away does nothing."""
    db = MultiDB(Settings(**PARTS))
    await db.close()

    assert [] == program.journal
    with pytest.raises(ClosedError):
        await db.open()


@pytest.mark.parametrize("failing", ["logs engine", "logs", "profiles", "state"])
@pytest.mark.parametrize(
    "error", [BackendUnavailableError("refused"), ConfigurationError("wrong password"), ZeroDivisionError()]
)
async def test_failing_open(program: Program, failing: str, error: Exception) -> None:
    """If a part fails to open, what was opened is closed in reverse, the failing part included; no default is left."""
    program.parts[failing].fail = error
    with pytest.raises(type(error)) as caught:
        await multidb.init_all(**PARTS)

    position = OPENED.index(f"open {failing}")
    assert error is caught.value
    assert OPENED[: position + 1] + CLOSED[len(CLOSED) - position - 1 :] == program.journal
    assert multidb._core.current.get_default() is None
    program.parts[failing].fail = None
    await multidb.init_all(**PARTS)
    assert 7 == await logs.count_events()
    await multidb.close_all()


async def test_failing_open_and_close(program: Program) -> None:
    """The error of the opening is told where the closing after it fails too; the other parts are closed all the same."""
    program.parts["state"].fail = BackendUnavailableError("refused")
    program.parts["profiles"].close_fails = True
    with pytest.raises((BackendUnavailableError, OSError)) as caught:
        await MultiDB(Settings(**PARTS)).open()

    assert isinstance(caught.value, BackendUnavailableError) or isinstance(
        caught.value.__context__, BackendUnavailableError
    )
    assert OPENED + CLOSED == program.journal


async def test_failing_close(program: Program) -> None:
    """If a part fails to close the others are closed, and the MultiDB counts as closed."""
    for name in ("state", "logs"):
        program.parts[name].close_fails = True
    db = MultiDB(Settings(**PARTS))
    await db.open()
    with pytest.raises(OSError, match="logs"):
        await db.close()
    await db.close()

    assert OPENED + CLOSED == program.journal


async def test_close_twice(program: Program) -> None:
    """Closing is idempotent: one after the other, at once, by name of the program."""
    db = await multidb.init_all(**PARTS)
    await asyncio.gather(db.close(), db.close(), multidb.close_all())
    await db.close()
    await multidb.close_all()

    assert CLOSED == program.journal[len(OPENED) :]


async def test_hanging_close(program: Program, caplog: pytest.LogCaptureFixture) -> None:
    """A close that hangs is given up in time: engines are abandoned, and the log says so."""
    program.parts["profiles"].close_gate = asyncio.Event()
    db = MultiDB(Settings(**PARTS, close_timeout_seconds=0.1))
    await db.open()
    started = perf_counter()
    await db.close()
    took = perf_counter() - started
    await asyncio.sleep(0.01)

    assert 0.09 <= took < 0.4
    assert "abandon logs engine" in program.journal
    assert ["multidb did not close within 0.1 seconds"] == [
        r.getMessage() for r in caplog.records if r.levelno == logging.WARNING
    ]


async def test_close_waits_for_abandoned_calls(program: Program) -> None:
    """A call that was left behind at its deadline has ended before its backend is closed."""
    journal = program.journal

    async def get(*_: object) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            journal.append("call ended")
            raise

    program.parts["state"].get = get  # type: ignore[method-assign]
    db = MultiDB(Settings(**PARTS, deadline_seconds=0.05))
    await db.open()
    with pytest.raises(BackendTimeoutError):
        await db.state.get_state("u", "k")
    await db.close()

    assert ["call ended", *CLOSED] == journal[len(OPENED) :]


# Cancelling


async def test_cancelled_open(program: Program) -> None:
    """A cancelled opening closes what it opened, the part under way included; opening again works."""
    program.parts["profiles"].gate = gate = asyncio.Event()
    task = asyncio.create_task(multidb.init_all(**PARTS))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [
        "open logs engine",
        "open logs",
        "open profiles",
        "close profiles",
        "close logs",
        "close logs engine",
    ] == program.journal
    assert multidb._core.current.get_default() is None
    gate.set()
    await multidb.init_all(**PARTS)
    await multidb.close_all()


async def test_cancelled_open_that_others_wait_for(program: Program) -> None:
    """Who waits for an opening that is cancelled is told so; nothing is left half open."""
    program.parts["profiles"].gate = asyncio.Event()
    first = asyncio.create_task(multidb.init_all(**PARTS))
    second = asyncio.create_task(multidb.init_all(**PARTS))
    await asyncio.sleep(0.01)
    first.cancel()
    results = await asyncio.gather(first, second, return_exceptions=True)

    assert [asyncio.CancelledError, ClosedError] == [type(result) for result in results]
    assert multidb._core.current.get_default() is None


async def test_cancelled_waiting_for_open(program: Program) -> None:
    """Cancelling one who waits for an opening does not cancel the opening."""
    program.parts["profiles"].gate = gate = asyncio.Event()
    first = asyncio.create_task(multidb.init_all(**PARTS))
    await asyncio.sleep(0)
    second = asyncio.create_task(multidb.init_all(**PARTS))
    await asyncio.sleep(0.01)
    second.cancel()
    await asyncio.sleep(0.01)
    gate.set()
    db = await first

    assert second.cancelled()
    assert db is multidb.current()
    assert 7 == await db.logs.count_events()
    await multidb.close_all()


async def test_close_while_opening(program: Program) -> None:
    """A close that comes while a MultiDB is being opened wins: everything is closed again, and who opened it is told."""
    program.parts["profiles"].gate = gate = asyncio.Event()
    opening = asyncio.create_task(multidb.init_all(**PARTS))
    await asyncio.sleep(0.01)
    await multidb.close_all()
    gate.set()
    with pytest.raises(ClosedError, match="while it was being opened"):
        await opening

    assert OPENED + CLOSED == program.journal
    assert multidb._core.current.get_default() is None


async def test_cancelled_close(program: Program) -> None:
    """Cancelling a close does not leave parts open: it goes on by itself."""
    program.parts["state"].close_gate = gate = asyncio.Event()
    db = MultiDB(Settings(**PARTS))
    await db.open()
    closing = asyncio.create_task(db.close())
    await asyncio.sleep(0.01)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    gate.set()
    await asyncio.sleep(0.05)

    assert CLOSED == program.journal[len(OPENED) :]


# Loops, processes, forgetting


def test_run_twice() -> None:
    """A program may call `asyncio.run` again after `close_all()`."""

    async def main() -> int:
        await multidb.init_all(**MEMORY)
        await logs.log_event("u", "e")
        count = await logs.count_events("u")
        await multidb.close_all()
        return count

    assert [1, 1] == [asyncio.run(main()), asyncio.run(main())]


def test_run_twice_without_close(program: Program) -> None:
    """Without it the next `init_all()` lets go of the first, without a word to its server, and opens a new one."""
    dbs = []

    async def main() -> None:
        dbs.append(await multidb.init_all(**PARTS))
        await logs.count_events("u")

    asyncio.run(main())
    asyncio.run(main())

    assert [*OPENED, "count on logs", *ABANDONED, *OPENED, "count on logs"] == program.journal
    assert dbs[0] is not dbs[1]

    asyncio.run(multidb.close_all())
    assert ABANDONED == program.journal[-len(ABANDONED) :]


def test_use_in_another_loop() -> None:
    """Using a MultiDB in another event loop than its own says what to do."""
    db = MultiDB.in_memory()

    async def call() -> None:
        await db.state.set_state("u", "k", 1)

    asyncio.run(db.open())
    with pytest.raises(ClosedError, match=r"another event loop: call `await multidb\.init_all\(\)`"):
        asyncio.run(call())
    asyncio.run(db.close())
    with pytest.raises(ClosedError, match="closed"):
        asyncio.run(call())


def test_close_in_another_loop(program: Program) -> None:
    """Closing it there lets go of it."""
    db = MultiDB(Settings(**PARTS))
    asyncio.run(db.open())
    asyncio.run(db.close())

    assert [*OPENED, *ABANDONED] == program.journal


def test_default_seen_by_every_task() -> None:
    """A default set in one task is there in every other, as an ASGI lifespan and its requests need it."""

    async def request() -> MultiDB:
        return multidb.current()

    async def main() -> None:
        db = await asyncio.create_task(multidb.init_all(**MEMORY))

        assert db is await asyncio.create_task(request())
        await multidb.close_all()

    asyncio.run(main())


FORK = """
    import asyncio, os, sys
    import multidb
    from multidb import logs, state

    memory = dict(postgres_url="memory://", mongodb_uri="memory://", redis_url="memory://")

    async def child(db):
        try:
            await state.get_state("u", "k")
        except multidb.ClosedError as exc:
            assert "before a fork" in str(exc), exc
        else:
            raise SystemExit("the parent's MultiDB works in the child")
        if sys.argv[1:] == ["close"]:
            await multidb.close_all()
            await db.close()
        new = await multidb.init_all(**memory)
        assert new is not db
        await logs.log_event("u", "in the child")
        assert await logs.count_events("u") == 1
        await multidb.close_all()

    async def main():
        db = await multidb.init_all(**memory)
        await logs.log_event("u", "before")
        pid = os.fork()
        if pid == 0:
            try:
                state.get_state("u", "k").send(None)
            except multidb.ClosedError as exc:
                assert "before a fork" in str(exc), exc
            else:
                os._exit(2)
            # The child is still inside the parent's loop, which nobody may run any further.
            asyncio.events._set_running_loop(None)
            status = 1
            try:
                asyncio.run(child(db))
                status = 0
            finally:
                sys.stdout.flush()
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        await logs.log_event("u", "after")
        assert await logs.count_events("u") == 2
        await multidb.close_all()
        print("done")

    asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs os.fork")
@pytest.mark.parametrize("how", ["init", "close"])
def test_fork(how: str) -> None:
    """A forked child gets a clear error from the parent's MultiDB, and may open one of its own; the parent goes on."""
    done = run(FORK, how)

    assert (0, "done\n", "") == (done.returncode, done.stdout, done.stderr)


def test_unclosed() -> None:
    """A MultiDB that is forgotten while it is open warns."""

    async def main() -> None:
        db = MultiDB.in_memory()
        await db.open()
        await db.state.set_state("u", "k", 1)

    def forget() -> None:
        asyncio.run(main())
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed <MultiDB open: "):
        forget()


def test_not_unclosed() -> None:
    """One that was never opened, could not be built, or is closed, does not."""

    async def main() -> None:
        MultiDB.in_memory()
        async with MultiDB.in_memory():
            pass
        with pytest.raises(ConfigurationError):
            MultiDB(Settings(**(MEMORY | {"redis_url": "nonsense://"})))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
        gc.collect()


def test_exit_without_close(tmp_path: Path) -> None:
    """A program that forgets `close_all()` ends all the same, quietly, in memory and on the embedded defaults."""
    script = """
        import asyncio, sys, multidb
        from multidb import logs, profiles, state

        async def main():
            await multidb.init_all(**eval(sys.argv[1]))
            await logs.log_event("u", "e")
            await profiles.create_or_update_profile("u", {})
            await state.set_state("u", "k", 1)

        asyncio.run(main())
    """
    for settings in (MEMORY, {"data_dir": str(tmp_path)}):
        done = run(script, repr(settings))

        assert (0, "") == (done.returncode, done.stderr)


# Parts of one's own


async def test_own_backends(program: Program) -> None:
    """A backend object takes the place of the one that the settings name, however it looks."""

    class Empty(Part):
        def __len__(self) -> int:
            return 0

    program.parts["logs"] = Empty("logs", program.journal)
    db = program.own(Settings(postgres_url="nonsense://", mongodb_uri="nonsense://", redis_url="nonsense://"))
    async with db:
        assert 7 == await db.logs.count_events()

    assert "logs, own backend" == db.locations["logs"]
    assert ["open logs", "open profiles", "open state"] == program.journal[:3]


async def test_clock() -> None:
    """The clock that is passed is the one that is read."""
    clock = ManualClock()
    async with MultiDB.in_memory(clock=clock) as db:
        event = await db.logs.log_event("u", "e")
        await db.state.set_state("u", "k", 1, expire_seconds=10)
        clock.advance(10)

        assert "2026-01-01T00:00:00+00:00" == event.timestamp.isoformat()
        assert await db.state.get_state("u", "k") is None


async def test_several_instances() -> None:
    """Several MultiDBs in one program have nothing in common."""
    async with MultiDB.in_memory() as one, MultiDB.in_memory() as two:
        await one.state.set_state("u", "k", 1)

        assert await two.state.get_state("u", "k") is None
        assert 1 == await one.state.get_state("u", "k")


async def test_hooks() -> None:
    """The hooks of a MultiDB are told of the calls of all three stores."""
    told = []

    class Hook:
        def on_operation(self, details: multidb.instrumentation.OperationDetails, /) -> None:  # type: ignore[name-defined]
            told.append((details.store, details.operation, details.outcome))

    async with MultiDB.in_memory(hooks=[Hook()]) as db:
        await db.logs.log_event("u", "e")
        await db.profiles.get_profile_by_username("u")
        await db.state.set_state("u", "k", 1)

    assert [
        ("logs", "log_event", "ok"),
        ("profiles", "get_profile_by_username", "ok"),
        ("state", "set_state", "ok"),
    ] == told


async def test_lifespan() -> None:
    """`lifespan()` initializes for the block, closes after it, and takes the application that ASGI passes."""
    async with multidb.lifespan(**MEMORY):
        await logs.log_event("u", "e")
        db = multidb.current()
    with pytest.raises(NotInitializedError):
        multidb.current()
    with pytest.raises(ZeroDivisionError):
        async with multidb.lifespan(object(), settings=Settings(**MEMORY)):
            raise ZeroDivisionError
    with pytest.raises(NotInitializedError):
        multidb.current()
    with pytest.raises(ClosedError):
        await db.logs.get_events()


async def test_another_thread_leaves_it_alone(tmp_path) -> None:
    """What an event loop that runs in another thread has open is neither replaced nor closed; both are told."""
    settings = Settings(data_dir=tmp_path)
    db = await multidb.init_all(settings)
    for call in (multidb.init_all, multidb.close_all, db.close):
        with pytest.raises(ClosedError, match="another thread"):
            await asyncio.to_thread(lambda call=call: asyncio.run(call()))

    await multidb.state.set_state(1, "still", "here")
    assert "here" == await db.state.get_state(1, "still")
    await multidb.close_all()


@pytest.mark.parametrize(
    ("setting", "url", "says"),
    [
        ("postgres_url", "postgresql://u:c4nary@127.0.0.1:1/x", "POSTGRES_URL"),
        ("mongodb_uri", "mongodb://u:c4nary@127.0.0.1:1/x", "MONGODB_URI"),
        ("redis_url", "redis://:c4nary@127.0.0.1:1/0", "REDIS_URL"),
    ],
)
async def test_a_server_that_is_down_is_named(tmp_path, setting, url, says) -> None:
    """The error of the start says which store, which server and which setting, and no password."""
    with pytest.raises(BackendError) as told:
        await MultiDB(Settings(data_dir=tmp_path, **{setting: url})).open()

    assert "127.0.0.1:1: " in str(told.value)
    assert f"is it running, and is {says} right?" in str(told.value)
    assert "c4nary" not in str(told.value)
    assert ("open", True) == (told.value.operation, bool(told.value.store and told.value.backend))


@pytest.mark.parametrize(
    "memory", [{}, {"postgres_url": "memory://"}, {"postgres_url": "memory://", "mongodb_uri": "memory://"}]
)
async def test_a_folder_that_cannot_be_made_is_named(tmp_path, memory) -> None:
    """A wrong data folder is a matter of the settings, not of a server that may come back."""
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "data"
    with pytest.raises(ConfigurationError, match="file/data"):
        await MultiDB(Settings(data_dir=folder, **memory)).open()


async def test_settings_of_another_type() -> None:
    """What is no Settings is refused with what to pass."""
    for call in (lambda: MultiDB("memory://"), lambda: MultiDB({"redis_url": "x"})):
        with pytest.raises(InvalidArgumentError, match="pass a Settings"):
            call()
    with pytest.raises(InvalidArgumentError, match="pass a Settings"):
        await multidb.init_all("redis://x")


async def test_every_close_waits_for_the_first(program: Program) -> None:
    """A second close, and the one after a close that was cancelled, return when everything is closed."""
    db = MultiDB(Settings(**PARTS))
    await db.open()
    first = asyncio.create_task(db.close())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(db.close(), db.close())

    assert "close logs engine" == program.journal[-1]


def test_file_logs_run_twice_without_close(tmp_path) -> None:
    """A backend that holds a lock gives it back when its event loop is gone, whoever still refers to the old one."""
    kept = []

    async def main() -> int:
        kept.append(await multidb.init_all(data_dir=tmp_path, postgres_url=f"file://{tmp_path / 'logs'}"))
        await logs.log_event("u", "run")
        return await logs.count_events("u")

    assert [1, 2] == [asyncio.run(main()), asyncio.run(main())]
    asyncio.run(multidb.close_all())
    kept.clear()


async def test_lifespan_leaves_what_it_did_not_open(tmp_path) -> None:
    """What the program initialized itself outlives a lifespan inside it."""
    db = await multidb.init_all(data_dir=tmp_path)
    async with multidb.lifespan(data_dir=tmp_path):
        assert multidb.current() is db

    assert multidb.current() is db
    await multidb.close_all()


async def test_init_all_with_other_hooks(tmp_path) -> None:
    """Hooks and a clock that would be ignored are refused."""
    hook = LoggingHook()
    db = await multidb.init_all(data_dir=tmp_path, hooks=[hook])

    assert await multidb.init_all(data_dir=tmp_path) is db
    assert await multidb.init_all(data_dir=tmp_path, hooks=[hook]) is db
    for other in ({"hooks": [LoggingHook()]}, {"clock": ManualClock()}):
        with pytest.raises(ConfigurationError, match="other settings, hooks or clock"):
            await multidb.init_all(data_dir=tmp_path, **other)
    await multidb.close_all()

"""The route: one deadline around every call, its errors filled in, the hooks told."""

from __future__ import annotations

import asyncio
import gc
import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest

from multidb._core.lifecycle import Lifecycle
from multidb._core.operation import Operation
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    ConflictError,
    InvalidValueError,
    OverloadedError,
)
from multidb.instrumentation import Hook, LoggingHook, OperationDetails
from multidb.resilience.route import Route

if TYPE_CHECKING:
    from collections.abc import Iterator

READ = Operation("logs", "get_events")
WRITE = Operation("logs", "log_event", writes=True)
DEADLINE = 0.05


class Backend:
    """A backend that does what a test tells it to."""

    name = "fake"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.release = asyncio.Event()

    async def answer(self, value: object = None, *, after: float = 0.0) -> object:
        await asyncio.sleep(after)
        return value

    async def fail(self, error: BaseException) -> None:
        await asyncio.sleep(0)
        raise error

    async def hang(self) -> None:
        self.calls.append("started")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.calls.append("cancelled")
            raise

    async def hang_when_cancelled(self) -> None:
        """Wait, and keep waiting when cancelled, as asyncpg does for a server that was stopped."""
        self.calls.append("started")
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.calls.append("ignored")

    async def fail_when_cancelled(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionResetError from None


class Recorder:
    """A hook that keeps what it is told."""

    def __init__(self) -> None:
        self.details: list[OperationDetails] = []

    def on_operation(self, details: OperationDetails, /) -> None:
        self.details.append(details)

    @property
    def outcomes(self) -> list[tuple[str, str, str | None]]:
        return [(details.operation, details.outcome, details.error) for details in self.details]


class Broken:
    """A hook that fails."""

    def on_operation(self, details: OperationDetails, /) -> None:
        raise RuntimeError("a broken hook")


def opened() -> Lifecycle:
    lifecycle = Lifecycle()
    lifecycle.opened()
    return lifecycle


def make(
    *hooks: Hook, deadline_seconds: float | None = DEADLINE, lifecycle: Lifecycle | None = None
) -> Route[Backend]:
    return Route(Backend(), lifecycle or opened(), deadline_seconds=deadline_seconds, hooks=hooks)


@pytest.fixture(params=[None, 5.0], ids=["without deadline", "with deadline"])
def deadline(request: pytest.FixtureRequest) -> float | None:
    seconds: float | None = request.param
    return seconds


@pytest.fixture(autouse=True)
def _no_complaint(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test leaves a task whose exception nobody took, which asyncio logs when the task is collected."""
    yield
    gc.collect()
    records = [*caplog.get_records("call"), *caplog.records]
    assert [] == [record.getMessage() for record in records if record.name == "asyncio"]


# Results and errors


async def test_result(deadline: float | None) -> None:
    """What the backend returns is returned."""
    route = make(deadline_seconds=deadline)

    assert 42 == await route.run(READ, lambda backend: backend.answer(42))
    assert await route.run(READ, lambda backend: backend.answer(after=0.01)) is None


@pytest.mark.parametrize(
    "kind", [BackendError, BackendUnavailableError, BackendTimeoutError, OverloadedError]
)
async def test_error_of_the_backend(deadline: float | None, kind: type[BackendError]) -> None:
    """An error of the backend comes out as it is, and says where it happened."""
    error = kind("refused", ambiguous=True)
    with pytest.raises(kind) as caught:
        await make(deadline_seconds=deadline).run(WRITE, lambda backend: backend.fail(error))

    assert error is caught.value
    assert ("logs", "fake", "log_event", True) == (
        error.store,
        error.backend,
        error.operation,
        error.ambiguous,
    )
    assert "logs.log_event on fake: refused" == str(error)


@pytest.mark.parametrize(
    "error",
    [ConflictError("no"), InvalidValueError("data", "too large"), ZeroDivisionError(), KeyError("x")],
    ids=repr,
)
async def test_other_error(deadline: float | None, error: Exception) -> None:
    """So does any other exception: a conflict, a refused value, a bug in the backend."""
    with pytest.raises(type(error)) as caught:
        await make(deadline_seconds=deadline).run(WRITE, lambda backend: backend.fail(error))

    assert error is caught.value


async def test_closed() -> None:
    """Where the MultiDB is not open, the backend is not called."""
    called: list[Backend] = []

    def call(backend: Backend) -> Any:
        called.append(backend)

    lifecycle = Lifecycle()
    route = make(lifecycle=lifecycle)
    with pytest.raises(ClosedError, match="not open"):
        await route.run(READ, call)
    lifecycle.opened()
    lifecycle.closed()
    with pytest.raises(ClosedError, match="closed"):
        await route.run(READ, call)

    assert [] == called


# The deadline


@pytest.mark.parametrize(("operation", "ambiguous"), [(READ, False), (WRITE, True)])
async def test_deadline(operation: Operation, ambiguous: bool) -> None:
    """Without an answer within the deadline there is an error that says so; a write may have been applied."""
    route = make()
    started = perf_counter()
    with pytest.raises(BackendTimeoutError) as caught:
        await route.run(operation, lambda backend: backend.hang())
    took = perf_counter() - started
    await route.drain(1)

    assert DEADLINE * 0.9 <= took < DEADLINE + 0.25
    assert ("logs", "fake", operation.name) == (
        caught.value.store,
        caught.value.backend,
        caught.value.operation,
    )
    assert (ambiguous, True) == (caught.value.ambiguous, caught.value.retryable)
    assert str(caught.value).endswith(": no answer within 0.05 seconds")
    assert ["started", "cancelled"] == route.backend.calls


async def test_cancellation_that_hangs() -> None:
    """A call whose own cancellation hangs is left behind in time, and ends on its own."""
    route = make()
    started = perf_counter()
    with pytest.raises(BackendTimeoutError):
        await route.run(WRITE, lambda backend: backend.hang_when_cancelled())
    took = perf_counter() - started
    draining = perf_counter()
    await route.drain(0.05)
    drained = perf_counter() - draining
    route.backend.release.set()
    await route.drain(1)

    assert took < DEADLINE + 0.25
    assert 0.04 <= drained < 0.3
    assert ["started", "ignored"] == route.backend.calls
    assert set() == route._running


async def test_error_after_the_deadline() -> None:
    """What an abandoned call raises afterwards bothers nobody."""
    route = make()
    with pytest.raises(BackendTimeoutError):
        await route.run(WRITE, lambda backend: backend.fail_when_cancelled())
    await route.drain(1)

    assert set() == route._running


async def test_calls_do_not_wait_for_each_other() -> None:
    """Calls that hang do not hold up one that does not, and each has a deadline of its own."""
    route = make()
    hanging = [asyncio.create_task(route.run(READ, lambda backend: backend.hang())) for _ in range(50)]
    answer = await route.run(READ, lambda backend: backend.answer(1, after=0.01))
    results = await asyncio.gather(*hanging, return_exceptions=True)
    await route.drain(1)

    assert 1 == answer
    assert {BackendTimeoutError} == {type(result) for result in results}
    assert 50 == len({id(result) for result in results})


async def test_without_deadline() -> None:
    """A backend in process has no deadline; its calls run in the caller's own task."""
    route = make(deadline_seconds=None)
    task = asyncio.current_task()

    async def call() -> bool:
        await asyncio.sleep(DEADLINE * 2)
        return asyncio.current_task() is task

    assert await route.run(READ, lambda _: call())


# Cancelling


async def test_cancel(deadline: float | None) -> None:
    """Cancelling a call cancels what it does on the backend, and raises CancelledError."""
    route = make(deadline_seconds=deadline)
    task = asyncio.create_task(route.run(READ, lambda backend: backend.hang()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await route.drain(1)

    assert task.cancelled()
    assert ["started", "cancelled"] == route.backend.calls


async def test_cancel_what_does_not_let_go() -> None:
    """A cancelled caller does not wait for a backend that hangs in its own cancellation."""
    route = make(deadline_seconds=5.0)
    task = asyncio.create_task(route.run(READ, lambda backend: backend.hang_when_cancelled()))
    await asyncio.sleep(0.01)
    started = perf_counter()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    took = perf_counter() - started
    route.backend.release.set()
    await route.drain(1)

    assert took < 0.25


async def test_cancel_at_once() -> None:
    """A task that is cancelled before it ran leaves nothing behind."""
    route = make()
    task = asyncio.create_task(route.run(READ, lambda backend: backend.hang()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [] == route.backend.calls


@pytest.mark.parametrize("error", [None, BackendUnavailableError("gone"), ZeroDivisionError()], ids=repr)
async def test_cancel_when_the_answer_is_there(error: Exception | None) -> None:
    """A cancellation that meets the answer, or the error, is still a cancellation, and the error is taken note of."""
    ready = asyncio.Event()
    route = make(deadline_seconds=5.0)

    async def call(_: Backend) -> None:
        await ready.wait()
        task.cancel()
        if error is not None:
            raise error

    task = asyncio.create_task(route.run(WRITE, call))
    await asyncio.sleep(0.01)
    ready.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await route.drain(1)

    assert task.cancelled()


async def test_timeout_of_the_caller() -> None:
    """A shorter timeout around the call works."""
    route = make(deadline_seconds=5.0)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.02):
            await route.run(READ, lambda backend: backend.hang())
    await route.drain(1)

    assert not isinstance(caught.value, BackendTimeoutError)
    assert ["started", "cancelled"] == route.backend.calls


# Hooks


async def test_hooks(deadline: float | None) -> None:
    """Every hook is told of every call: which, where, how it ended, how long it took."""
    first, second = Recorder(), Recorder()
    route = make(first, second, deadline_seconds=deadline)
    await route.run(WRITE, lambda backend: backend.answer(after=0.02))
    for error in (BackendUnavailableError("x"), ConflictError("x"), ZeroDivisionError("x")):
        with pytest.raises(type(error)):
            await route.run(READ, lambda backend, error=error: backend.fail(error))  # type: ignore[misc]

    assert first.details == second.details
    assert [
        ("log_event", "ok", None),
        ("get_events", "error", "BackendUnavailableError"),
        ("get_events", "error", "ConflictError"),
        ("get_events", "error", "ZeroDivisionError"),
    ] == first.outcomes
    done = first.details[0]
    assert ("logs", "fake", True) == (done.store, done.backend, done.writes)
    assert 0.015 <= done.duration_seconds < 1
    assert not first.details[1].writes


async def test_hooks_of_a_timeout() -> None:
    """A deadline that passed has an outcome of its own, wherever it was noticed."""
    hook = Recorder()
    route = make(hook)
    with pytest.raises(BackendTimeoutError):
        await route.run(READ, lambda backend: backend.hang())
    with pytest.raises(BackendTimeoutError):
        await route.run(READ, lambda backend: backend.fail(BackendTimeoutError("the driver's own")))
    await route.drain(1)

    assert [("get_events", "timeout", "BackendTimeoutError")] * 2 == hook.outcomes
    assert hook.details[0].duration_seconds >= DEADLINE * 0.9


async def test_hooks_of_a_cancellation(deadline: float | None) -> None:
    """So has a cancelled call."""
    hook = Recorder()
    route = make(hook, deadline_seconds=deadline)
    task = asyncio.create_task(route.run(READ, lambda backend: backend.hang()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await route.drain(1)

    assert [("get_events", "cancelled", None)] == hook.outcomes


async def test_broken_hook(caplog: pytest.LogCaptureFixture) -> None:
    """A hook that fails is logged and ignored; the call and the other hooks go on."""
    hook = Recorder()
    route = make(Broken(), hook)

    assert 1 == await route.run(READ, lambda backend: backend.answer(1))
    with pytest.raises(ConflictError):
        await route.run(READ, lambda backend: backend.fail(ConflictError("x")))
    assert ["ok", "error"] == [details.outcome for details in hook.details]
    assert ["a hook failed on logs.get_events"] * 2 == [record.getMessage() for record in caplog.records]
    assert all(record.exc_info for record in caplog.records)


async def test_logging_hook(caplog: pytest.LogCaptureFixture) -> None:
    """The logging hook writes a line for a call that failed, and for a slow one; none for the others."""
    route = make(LoggingHook(slow_seconds=0.01))
    with caplog.at_level(logging.DEBUG, logger="multidb"):
        await route.run(READ, lambda backend: backend.answer())
        await route.run(READ, lambda backend: backend.answer(after=0.02))
        with pytest.raises(BackendTimeoutError):
            await route.run(WRITE, lambda backend: backend.hang())
        with pytest.raises(ConflictError):
            await route.run(WRITE, lambda backend: backend.fail(ConflictError("secret")))
    await route.drain(1)

    lines = [(record.levelname, record.getMessage().rpartition(" in ")[0]) for record in caplog.records]
    assert [
        ("INFO", "logs.get_events on fake: ok"),
        ("WARNING", "logs.log_event on fake: BackendTimeoutError"),
        ("WARNING", "logs.log_event on fake: ConflictError"),
    ] == lines
    assert "secret" not in caplog.text


# Calls that share a flush


async def flush(backend: Backend, items: list[Any]) -> list[Any]:
    """Note the items; answer each with its double, what is an error with that error."""
    backend.calls.append(",".join(str(item) for item in items))
    await asyncio.sleep(0)
    return [item if isinstance(item, Exception) else item * 2 for item in items]


async def test_batched(deadline: float | None) -> None:
    """Calls at once share a flush; where there is no deadline, that is, in process, each runs alone and at once."""
    route = make(deadline_seconds=deadline)
    batched = route.batched(flush)

    assert [2, 4, 6] == await asyncio.gather(*(batched.run(READ, item) for item in (1, 2, 3)))
    assert (["1", "2", "3"] if deadline is None else ["1,2,3"]) == route.backend.calls
    await route.drain(1)


async def test_batched_errors(deadline: float | None) -> None:
    """An error of one item says where it happened, and is its caller's alone."""
    route = make(deadline_seconds=deadline)
    batched = route.batched(flush, writes=True)
    good, bad, other = await asyncio.gather(
        batched.run(WRITE, 1),
        batched.run(WRITE, BackendUnavailableError("gone", ambiguous=True)),
        batched.run(WRITE, ConflictError("taken")),
        return_exceptions=True,
    )
    await route.drain(1)

    assert 2 == good
    assert isinstance(bad, BackendUnavailableError)
    assert ("logs.log_event on fake: gone", True) == (str(bad), bad.ambiguous)
    assert ("ConflictError", "taken") == (type(other).__name__, str(other))


async def test_batched_timeout() -> None:
    """Those that share a flush that hangs time out, each for itself, and each is told to the hooks."""
    hook = Recorder()
    route = make(hook)

    async def hang(backend: Backend, _: list[int]) -> list[int]:
        await backend.hang()
        return []

    batched = route.batched(hang, writes=True)
    errors = await asyncio.gather(*(batched.run(WRITE, item) for item in range(3)), return_exceptions=True)
    await route.drain(1)

    assert {BackendTimeoutError} == {type(error) for error in errors}
    assert all(isinstance(error, BackendError) and error.ambiguous for error in errors)
    assert 3 == len({id(error) for error in errors})
    assert [("log_event", "timeout", "BackendTimeoutError")] * 3 == hook.outcomes
    assert ["started", "cancelled"] == route.backend.calls


async def test_batched_hooks(deadline: float | None) -> None:
    """A hook is told of each call, also of one that was cancelled."""
    hook = Recorder()
    route = make(hook, deadline_seconds=deadline)
    batched = route.batched(flush)

    async def call(item: object) -> object:
        return await batched.run(READ, item)

    tasks = [asyncio.create_task(call(item)) for item in (1, ConflictError("x"), 3)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    await asyncio.wait(tasks)
    await asyncio.gather(*tasks, return_exceptions=True)
    await route.drain(1)

    assert ["cancelled", "error", "ok"] == sorted(outcome for _, outcome, _ in hook.outcomes)


async def test_batched_when_closed(deadline: float | None) -> None:
    """A closed MultiDB sends nothing."""
    lifecycle = opened()
    route = make(deadline_seconds=deadline, lifecycle=lifecycle)
    batched = route.batched(flush)
    lifecycle.closed()
    with pytest.raises(ClosedError):
        await batched.run(READ, 1)
    await route.drain(1)

    assert [] == route.backend.calls


async def test_drain_of_batched() -> None:
    """Draining waits for what is under way, for all kinds of calls at once, and for no longer than it is given."""
    route = make(deadline_seconds=5.0)

    async def hang(backend: Backend, _: list[int]) -> list[int]:
        await backend.hang()
        return []

    kinds = [route.batched(hang) for _ in range(3)]
    calls = [asyncio.ensure_future(kind.run(READ, 1)) for kind in kinds]
    calls.append(asyncio.ensure_future(route.batched(flush).run(READ, 1)))
    await asyncio.sleep(0.01)
    started = perf_counter()
    await route.drain(0.1)
    took = perf_counter() - started
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert 0.09 < took < 0.28
    assert [BackendUnavailableError] * 3 + [int] == [type(result) for result in results]
    assert {asyncio.current_task()} == asyncio.all_tasks()

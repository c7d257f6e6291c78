"""A backend that fails on demand, around any other."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from multidb.errors import InvalidArgumentError
from multidb.testing.faults._plans import Delay, Fail, Hang, Wrong, methods

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator

    from multidb.errors import BackendError
    from multidb.logs.protocol import LogBackend
    from multidb.profiles.protocol import ProfileBackend
    from multidb.state.protocol import StateBackend
    from multidb.testing.faults._plans import Fault, Plan

B = TypeVar("B", "LogBackend", "ProfileBackend", "StateBackend")

READS = frozenset(
    {
        *("query", "count", "histogram", "message_stats", "active_sessions"),
        *("get", "find", "search", "stats"),
        *("get_all", "cooldown", "counter", "items"),
    }
)
LIFE = frozenset({"open", "close"})


@dataclass
class Call:
    """One call of a backend's method, as `FaultyBackend.calls` keeps it."""

    number: int
    """From 0 on, over all methods."""
    method: str
    args: tuple[Any, ...]
    fault: Fault | None = None
    applied: bool = False
    """Whether the inner backend did it and returned."""
    error: str | None = None
    """The class of what was raised, `CancelledError` included."""
    ended: bool = False

    @property
    def writes(self) -> bool:
        """Whether it changes data. A method that this kit does not know is taken for one that does."""
        return self.method not in READS | LIFE


class FaultyBackend(Generic[B]):
    """
    Any backend, with faults: pass `.backend` where *inner* would go.

        faulty = FaultyBackend(MemoryStateBackend(clock), faults.by_chance({faults.Fail(applied=True): 0.05}, seed=7))
        db = MultiDB(settings, state=faulty.backend)

    *plan* is asked for a fault before each call. `inject()` comes before it, and ends by `heal()`. `open()` and
    `close()` suffer only where `inject()` names them. *inner* never sees a call with `Fail(applied=False)`. Methods of
    *inner* beyond the protocol are there, too; those that are coroutine functions can fail like the others.
    """

    def __init__(self, inner: B, plan: Plan | None = None) -> None:
        """Wrap *inner*; nothing is opened."""
        self.inner: B = inner
        self.plan = plan
        self.calls: list[Call] = []
        """Every call so far, oldest first; `open()` and `close()` too."""
        self._injected: list[_Injected] = []
        self._healed = asyncio.Event()
        # On the instance, where isinstance() of a runtime_checkable protocol sees them.
        for name, method in _public_methods(inner):
            can_fail = inspect.iscoroutinefunction(method)
            setattr(self, name, partial(self._call, name, method) if can_fail else method)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def backend(self) -> B:
        """The same object, typed as the backend that it wraps."""
        return cast("B", self)

    def inject(self, fault: Fault, *, only: Collection[str] = (), times: int | None = None) -> None:
        """
        Let calls fail from now on, until `heal()`, or for so many *times*.

        *only*: the names of methods; without any, all but `open` and `close`. What was injected first comes first.
        """
        names = methods(only)
        if unknown := sorted(name for name in names if not callable(getattr(self, name, None))):
            msg = f"only: {self.inner.name} has no method {unknown[0]}"
            raise InvalidArgumentError(msg)
        self._injected.append(_Injected(fault, names, times))

    def heal(self) -> None:
        """End what was injected, and the plan; calls that hang raise BackendUnavailableError."""
        self._injected.clear()
        self.plan = None
        self._healed.set()
        self._healed = asyncio.Event()

    def called(self, *methods: str) -> list[Call]:
        """Return the calls of *methods*, oldest first."""
        return [call for call in self.calls if call.method in methods]

    async def _call(
        self, name: str, method: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        call = Call(len(self.calls), name, args)
        self.calls.append(call)
        call.fault = self._fault_for(call)

        async def apply() -> Any:
            result = await method(*args, **kwargs)
            call.applied = True
            return result

        try:
            return await self._suffer(call, apply)
        except BaseException as error:
            call.error = type(error).__name__
            raise
        finally:
            call.ended = True

    def _fault_for(self, call: Call) -> Fault | None:
        for injected in self._injected:
            if injected.takes(call):
                return injected.fault
        return None if self.plan is None or call.method in LIFE else self.plan(call)

    async def _suffer(self, call: Call, apply: Callable[[], Awaitable[Any]]) -> Any:
        fault = call.fault
        if isinstance(fault, Wrong):
            return fault.change(await apply())
        if isinstance(fault, Delay):
            await asyncio.sleep(fault.seconds)
        if fault is None or isinstance(fault, Delay):
            return await apply()
        if fault.applied:
            await apply()
        if isinstance(fault, Hang):
            await self._hang(fault)
        raise _error(fault, call)

    async def _hang(self, fault: Hang) -> None:
        """Wait for `heal()`, or the end of the fault's time; where it says so through cancellations."""
        loop = asyncio.get_running_loop()
        healed, end = self._healed, loop.time() + fault.seconds
        while not healed.is_set() and (left := end - loop.time()) > 0:
            try:
                async with asyncio.timeout(left):
                    await healed.wait()
            except TimeoutError:
                return
            except asyncio.CancelledError:
                if not fault.ignores_cancellation:
                    raise


@dataclass
class _Injected:
    fault: Fault
    only: frozenset[str]
    times: int | None

    def takes(self, call: Call) -> bool:
        if self.times == 0 or not (call.method in self.only if self.only else call.method not in LIFE):
            return False
        if self.times is not None:
            self.times -= 1
        return True


def _public_methods(inner: object) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in dir(inner):
        # A property may raise before the backend is open; it is asked when somebody asks for it.
        if name.startswith("_") or isinstance(inspect.getattr_static(inner, name), property):
            continue
        value = getattr(inner, name)
        if callable(value):
            yield name, value


def _error(fault: Fail | Hang, call: Call) -> BackendError:
    ambiguous = fault.ambiguous if isinstance(fault, Fail) else None
    if ambiguous is None:
        ambiguous = call.writes and (fault.applied or isinstance(fault, Hang))
    return fault.error("a fault was injected", ambiguous=ambiguous)

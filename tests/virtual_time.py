"""An event loop whose clock jumps to the next timer when nothing else is left to do: seconds cost nothing."""

from __future__ import annotations

import asyncio
import selectors
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class VirtualLoop(asyncio.SelectorEventLoop):
    """Starts at second 1,000. A loop that would wait for ever raises AssertionError instead."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def pass_time(self, seconds: float) -> None:
        """Let *seconds* go by within this turn of the loop, as a turn does that takes long."""
        self._jumping.now += seconds

    def timers(self) -> list[asyncio.TimerHandle]:
        """What is still to come."""
        return [timer for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            raise AssertionError("everybody waits, and for nothing")
        if not events and timeout:
            self.now += timeout
        return events


def loop() -> VirtualLoop:
    """Return the running loop."""
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualLoop)
    return running


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in virtual time. It must not leave a task behind."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def check() -> None:
            await test(*args, **kwargs)
            assert {asyncio.current_task()} == asyncio.all_tasks()

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(check())

    return run


async def turns(count: int = 10) -> None:
    """Let the loop go round, in no time."""
    for _ in range(count):
        await asyncio.sleep(0)

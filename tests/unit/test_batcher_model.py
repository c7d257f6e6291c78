"""The batcher under everything at once: callers, cancellations, failures and time in any order, against a model."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_batcher import called
from virtual_time import VirtualLoop, turns

from multidb._core.batcher import Batcher, Bounds
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    OverloadedError,
)

DEADLINE = 2.0
SLACK = 0.05


@dataclass(eq=False)
class Item:
    """What a caller wants. *bad*: the server refuses any flush with it. *refused*: the server answers it with an error."""

    number: int
    key: int
    size: int
    bad: bool
    refused: bool


class RefusedError(Exception):
    """What an item is answered with that the server refuses."""


@dataclass(eq=False)
class Flush:
    """A flush that waits to be ended. *stubborn*: it goes on although it is cancelled."""

    items: list[Item]
    task: asyncio.Task[Any]
    stubborn: bool
    end: asyncio.Future[list[Any]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def abandoned(self) -> bool:
        return self.task.cancelling() > 0


@dataclass(eq=False)
class Caller:
    item: Item
    task: asyncio.Task[int]
    started: float
    ended: float = 0.0
    cancelled_unsent: bool = False


class BatcherMachine(RuleBasedStateMachine):
    """Drives a batcher, and remembers what was sent, what was applied and who heard of what."""

    @initialize(
        flights=st.integers(1, 3),
        flush_calls=st.integers(1, 6),
        share_calls=st.integers(1, 6),
        flush_bytes=st.integers(1, 40),
        queue_calls=st.integers(1, 8),
        queue_bytes=st.integers(1, 60),
        writes=st.booleans(),
        repeatable=st.booleans(),
        keyed=st.booleans(),
    )
    def begin(self, writes: bool, repeatable: bool, keyed: bool, **bounds: int) -> None:
        self.loop = VirtualLoop()
        self.bounds = Bounds(**bounds)
        self.repeatable = repeatable or not writes
        self.writes = writes
        self.keyed = keyed
        self.batcher: Batcher[Item, int] = Batcher(
            self.flush,
            deadline_seconds=DEADLINE,
            writes=writes,
            repeatable=self.repeatable,
            key=(lambda item: item.key) if keyed else None,
            bounds=self.bounds,
        )
        self.complaints: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.callers: list[Caller] = []
        self.flushes: list[Flush] = []
        self.under_way: list[Flush] = []
        self.sent: Counter[Item] = Counter()
        self.applied: list[Item] = []
        self.late: set[Item] = set()
        """Applied by a flush that had been given up."""
        self.stubborn = False
        self.lost = 0.0
        """Seconds of turns that took long."""

    # The server

    async def flush(self, items: list[Item]) -> list[Any]:
        task = asyncio.current_task()
        assert task is not None
        flush = Flush(items, task, self.stubborn)
        others = [other for other in self.under_way if not other.abandoned]
        assert len(others) < self.bounds.flights
        assert 0 < len(items) <= self.bounds.flush_calls
        assert len(items) == 1 or sum(item.size for item in items) <= self.bounds.flush_bytes
        if self.keyed:
            taken = {item.key for other in others for item in other.items}
            assert not taken & {item.key for item in items}
        self.flushes.append(flush)
        self.under_way.append(flush)
        self.sent.update(items)
        try:
            while True:
                try:
                    return await asyncio.shield(flush.end)
                except asyncio.CancelledError:
                    if flush.end.done() or not flush.stubborn:
                        raise
        finally:
            self.under_way.remove(flush)

    def apply(self, flush: Flush, items: list[Item]) -> None:
        for item in items:
            if not item.bad and not item.refused:
                self.applied.append(item)
                if flush.abandoned:
                    self.late.add(item)

    def answer(self, flush: Flush) -> None:
        if any(item.bad for item in flush.items):
            flush.end.set_exception(BackendError("bad"))
            return
        self.apply(flush, flush.items)
        flush.end.set_result([RefusedError() if item.refused else item.number for item in flush.items])

    # What happens

    def run(self, rounds: int) -> None:
        self.loop.run_until_complete(turns(rounds))

    @rule(
        items=st.lists(
            st.tuples(
                st.integers(0, 3), st.integers(0, 15), st.sampled_from(["good"] * 8 + ["bad", "refused"])
            ),
            min_size=1,
            max_size=8,
        ),
        at_once_cancelled=st.booleans(),
    )
    def call(self, items: list[tuple[int, int, str]], at_once_cancelled: bool) -> None:
        for key, size, kind in items:
            item = Item(len(self.callers), key, size, kind == "bad", kind == "refused")
            task = self.loop.create_task(called(self.batcher, item, size))
            caller = Caller(item, task, self.loop.time())
            task.add_done_callback(lambda _, caller=caller: setattr(caller, "ended", self.loop.time()))
            self.callers.append(caller)
        if at_once_cancelled:
            self.cancel(len(self.callers) - 1)

    @rule(rounds=st.integers(1, 4))
    def go_round(self, rounds: int) -> None:
        self.run(rounds)

    @rule(number=st.integers(0, 1000))
    def cancel(self, number: int) -> None:
        waiting = [caller for caller in self.callers if not caller.task.done()]
        if waiting:
            caller = waiting[-1 - number % len(waiting)]
            caller.cancelled_unsent = not self.sent[caller.item]
            caller.task.cancel()

    @rule(stubborn=st.booleans())
    def turn_stubborn(self, stubborn: bool) -> None:
        self.stubborn = stubborn

    @precondition(lambda self: self.under_way)
    @rule(
        number=st.integers(0, 5),
        how=st.sampled_from(
            ["answer"] * 5
            + ["definite", "ambiguous", "lost", "gone", "driver cancelled", "wrong count", "other", "part"]
        ),
    )
    def end(self, number: int, how: str) -> None:
        flush = self.under_way[number % len(self.under_way)]
        if flush.end.done():
            return
        good = [item for item in flush.items if not item.bad and not item.refused]
        if how == "answer":
            self.answer(flush)
        elif how == "definite":
            flush.end.set_exception(BackendError("refused"))
        elif how == "gone":
            flush.end.set_exception(BackendUnavailableError("gone"))
        elif how == "driver cancelled":
            flush.end.set_exception(asyncio.CancelledError())
        elif how == "wrong count":
            self.apply(flush, good)
            flush.end.set_result([0] * (len(flush.items) - 1))
        elif how == "other":
            flush.end.set_exception(ZeroDivisionError())
        else:
            self.apply(flush, good[: number % (len(good) + 1)] if how == "part" else good)
            kind = BackendTimeoutError if how == "lost" else BackendError
            flush.end.set_exception(kind("who knows", ambiguous=True))

    @rule(seconds=st.sampled_from([0.1, DEADLINE * 0.5, DEADLINE * 0.99, DEADLINE + SLACK]))
    def pass_time(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule(seconds=st.sampled_from([0.1, DEADLINE * 1.5]))
    def long_turn(self, seconds: float) -> None:
        async def turn() -> None:
            self.loop.pass_time(seconds)

        self.lost += seconds
        self.loop.run_until_complete(turn())

    @rule(before_it_began=st.booleans())
    def all_tasks_are_cancelled(self, before_it_began: bool) -> None:
        """As at the end of a program, but this one goes on."""
        if not before_it_began:
            self.run(3)
        mine = {caller.task for caller in self.callers}
        for flush in self.under_way:
            if flush.stubborn:  # It would count as given up, which it is not.
                return
        for task in asyncio.all_tasks(self.loop) - mine:
            task.cancel()
        self.run(3)

    # What must hold

    @invariant()
    def nobody_complains(self) -> None:
        assert [] == getattr(self, "complaints", [])

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.finish()
            for caller in self.callers:
                self.check(caller)
            self.check_order()
            assert [] == self.complaints
        finally:
            self.loop.close()

    def finish(self) -> None:
        """Answer everything that is still under way; then nobody may be left, nor anything else."""
        self.stubborn = False
        for _ in range(1000):
            self.run(3)
            if not self.under_way:
                break
            for flush in self.under_way:
                if not flush.end.done():
                    self.answer(flush)
        assert all(caller.task.done() for caller in self.callers)
        self.loop.run_until_complete(self.batcher.drain(0))
        assert not asyncio.all_tasks(self.loop)
        assert not self.loop.timers()

    def check(self, caller: Caller) -> None:
        item, sent, applied = caller.item, self.sent[caller.item], self.applied.count(caller.item)
        assert caller.ended - caller.started <= DEADLINE + SLACK + self.lost
        if caller.cancelled_unsent:
            assert caller.task.cancelled()
            assert sent == applied == 0
        if not self.repeatable and not self.late:
            assert applied <= 1
        if caller.task.cancelled():
            return
        error = caller.task.exception()
        if error is None:
            assert item.number == caller.task.result()
            assert applied == 1 or (applied > 1 and self.repeatable)
            assert item not in self.late
        elif isinstance(error, OverloadedError | ClosedError):
            assert sent == 0
            assert not getattr(error, "ambiguous", False)
        elif isinstance(error, RefusedError):
            assert item.refused
        else:
            assert sent
            if applied and self.writes and not self.repeatable and isinstance(error, BackendError):
                assert error.ambiguous

    def check_order(self) -> None:
        answered = [
            caller.item
            for caller in self.callers
            if not caller.task.cancelled() and caller.task.exception() is None
        ]
        errors = [
            caller.task.exception()
            for caller in self.callers
            if not caller.task.cancelled() and caller.task.exception()
        ]
        assert len(errors) == len({id(error) for error in errors})
        if not self.keyed:
            return
        for key in range(4):
            mine = {item for item in answered if item.key == key}
            order = [item.number for item in self.applied if item in mine]
            first = list(dict.fromkeys(order))
            last = list(dict.fromkeys(reversed(order)))
            assert first == sorted(first)
            assert last == sorted(last, reverse=True)


TestBatcherModel = BatcherMachine.TestCase
TestBatcherModel.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
pytestmark = pytest.mark.timeout(120)

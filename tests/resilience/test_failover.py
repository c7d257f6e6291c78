"""Failover of the logs, on backends and spools that fail on demand, in virtual time."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from fakes import FakeSpool
from hypothesis import given
from virtual_time import in_virtual_time, loop, turns

from multidb._core.batcher import Bounds
from multidb._core.carrier import carrier
from multidb._core.lifecycle import Lifecycle
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    ConflictError,
    OverloadedError,
)
from multidb.instrumentation import Status
from multidb.logs._failover import FailoverLogBackend
from multidb.logs._records import Event, Message, Sale
from multidb.logs._spooled import UnreadableError, decode, encode
from multidb.logs._store import LogStore
from multidb.logs.backends.memory import MemoryLogBackend
from multidb.logs.protocol import Appended, Query
from multidb.resilience.breaker import BreakerPolicy
from multidb.resilience.failover import FailoverOptions, Primary
from multidb.resilience.route import Route
from multidb.resilience.spool import Spool
from multidb.resilience.watch import Watch
from multidb.testing.clock import ManualClock
from multidb.testing.conformance._data import round_trips, texts, unique
from multidb.testing.conformance._log_data import NOON, entries, entry, event, message, of_user, sale, touch
from multidb.testing.faults import Delay, Fail, FaultyBackend, Hang, by_chance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from multidb.instrumentation import ReplayDetails, SetAsideDetails, TransitionDetails

UP, DEGRADED, RECOVERING = Status.UP, Status.DEGRADED, Status.RECOVERING
READ_ONLY, DOWN, CLOSED = Status.READ_ONLY, Status.DOWN, Status.CLOSED


class Probed(MemoryLogBackend):
    """The backend of a server: it can be probed, and its connections dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.resets = 0
        self.opens = 0

    async def open(self) -> None:
        self.opens += 1
        await super().open()

    async def probe(self) -> None:
        """Do nothing, unless it is told to fail."""

    def reset(self) -> None:
        self.resets += 1


class Told:
    """A hook that keeps what it is told."""

    def __init__(self) -> None:
        self.transitions: list[tuple[Status, Status, str | None]] = []
        self.replays: list[ReplayDetails] = []
        self.asides: list[str] = []

    def on_operation(self, details: Any) -> None:
        pass

    def on_transition(self, details: TransitionDetails) -> None:
        self.transitions.append((details.before, details.after, details.reason))

    def on_replay(self, details: ReplayDetails) -> None:
        self.replays.append(details)

    def on_set_aside(self, details: SetAsideDetails) -> None:
        self.asides.append(details.reason)

    @property
    def statuses(self) -> list[Status]:
        return [after for _, after, _ in self.transitions]


class Rig:
    """A failover of logs with everything around it."""

    def __init__(
        self, *, starts_degraded: bool = False, policy: BreakerPolicy | None = None, prompt: bool = False
    ) -> None:
        self.server = Probed()
        self.faulty: Any = FaultyBackend(self.server)
        self.spool: Any = FakeSpool()
        self.told = Told()
        options = FailoverOptions(2.0, 0.6, starts_degraded, policy or BreakerPolicy())
        primary = Primary(self.faulty, self.faulty)
        watch = Watch("logs", "memory", ManualClock(), [self.told])
        self.backend = FailoverLogBackend(
            self.faulty, primary, self.spool, watch, options, now=loop().time, seed=1
        )
        lifecycle = Lifecycle()
        lifecycle.opened()
        self.route: Route[Any] = Route(
            self.backend, lifecycle, deadline_seconds=2.0, bounds=Bounds(), prompt=prompt
        )
        self.logs = LogStore(self.route, ManualClock(), max_context_bytes=1 << 20)

    @property
    def status(self) -> Status:
        return self.backend.health().status

    def breaks(self, fault: Any = None) -> None:
        """Let the server be gone, for calls and probes."""
        self.faulty.inject(Fail() if fault is None else fault)

    async def stored(self) -> list[str]:
        """The messages on the server, oldest first."""
        found = await self.server.query(Query(Event, limit=10_000))
        return [each.message for each in reversed(found)]

    async def back(self, seconds: float = 10.0) -> float:
        """Wait until it is UP; return how long that took."""
        began = loop().time()
        while self.status is not UP:
            assert loop().time() < began + seconds, self.backend.health()
            await asyncio.sleep(0.01)
        return loop().time() - began


@asynccontextmanager
async def rig(**options: Any) -> AsyncIterator[Rig]:
    rig = Rig(**options)
    await rig.backend.open()
    try:
        yield rig
    finally:
        rig.faulty.heal()
        await rig.route.drain(2.0)
        await rig.backend.close()
        await turns()


# One call


@in_virtual_time
async def test_healthy() -> None:
    """Nothing is spooled while nothing is wrong, and no task but the one that waits for the spool is there."""
    async with rig() as it:
        one = await it.logs.log_event("u", "x", "1")

        assert not one.is_spooled
        assert UP is it.status
        assert 0 == it.spool.appends
        assert {"multidb-logs-replay"} == {
            task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()}
        }


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("error", [BackendUnavailableError, BackendTimeoutError, OverloadedError])
@in_virtual_time
async def test_one_failure(error: type[BackendError], applied: bool) -> None:
    """What fails once is in the spool in the same call, whether it was applied or not, and stored once."""
    async with rig() as it:
        it.faulty.inject(Fail(error, applied=applied, ambiguous=True), only=["append"], times=1)
        one = await it.logs.log_event("u", "x", "1")

        assert one.is_spooled
        await it.back()
        assert ["1"] == await it.stored()
        assert applied == it.backend.health().duplicates


@in_virtual_time
async def test_hang() -> None:
    """A server that says nothing has 60 % of the deadline; then the event is spooled, and the next ones at once."""
    async with rig() as it:
        it.breaks(Hang(ignores_cancellation=True))
        began = loop().time()
        one = await it.logs.log_event("u", "x", "1")
        first = loop().time() - began
        two = await it.logs.log_event("u", "x", "2")

        assert one.is_spooled
        assert two.is_spooled
        assert 1.2 == pytest.approx(first, abs=0.02)
        assert loop().time() - began - first < 0.001
        assert DEGRADED is it.status
        assert it.server.resets == 1
        it.faulty.heal()
        await it.back()
        assert ["1", "2"] == await it.stored()


@in_virtual_time
async def test_cancelled_with_another_error() -> None:
    """A call that was given up, and ends with an error of its own, is not spooled a second time."""
    async with rig() as it:

        async def hang(_: Any) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise BackendUnavailableError("the connection was lost") from None

        it.faulty.append = hang
        assert (await it.logs.log_event("u", "x", "1")).is_spooled
        await turns()

        assert 1 == it.spool.appends


@in_virtual_time
async def test_hang_among_those_with_no_time() -> None:
    """A call that hangs is given up in time, however many come meanwhile that have hardly any time left."""
    async with rig() as it:
        it.faulty.inject(Hang(), only=["append"], times=1)
        logging = asyncio.create_task(it.logs.log_event("u", "x", "1"))
        await asyncio.sleep(0.1)

        class Late:
            end = 0.0

            def hand_over(self, _: Any) -> None:
                raise AssertionError("it was answered in time")

        async def late() -> None:
            carrier.set(Late())
            await it.backend.append([entry(event("other"))])

        began = loop().time()
        it.faulty.inject(Delay(0.001), only=["append"])
        while not logging.done() and loop().time() < began + 1.9:
            await asyncio.create_task(late())
            await asyncio.sleep(0.004)

        assert loop().time() - began < 1.2
        assert (await logging).is_spooled


@in_virtual_time
async def test_queue_behind_a_hang() -> None:
    """Those that wait for a flush that hangs, some of them for the whole time, all end in time."""
    async with rig() as it:
        it.breaks(Hang(ignores_cancellation=True))
        durations = []

        async def call(number: int) -> None:
            await asyncio.sleep(0.01 * number)
            began = loop().time()
            assert (await it.logs.log_event("u", "x", str(number))).is_spooled
            durations.append(loop().time() - began)

        await asyncio.gather(*(call(number) for number in range(200)))

        assert max(durations) < 1.3
        it.faulty.heal()
        await it.back()
        assert sorted(map(str, range(200))) == sorted(await it.stored())


@in_virtual_time
async def test_slow_server() -> None:
    """A flush that starts late, behind a slow one, leaves the spool its time: nobody is over the deadline."""
    async with rig() as it:
        it.faulty.inject(Delay(1.1), only=["append"])

        async def call(number: int) -> float:
            began = loop().time()
            await asyncio.sleep(number * 0.1)
            began = loop().time()
            await it.logs.log_event("u", "x", str(number))
            return loop().time() - began

        durations = await asyncio.gather(*(call(number) for number in range(30)))
        assert max(durations) <= 2.0
        it.faulty.heal()
        await it.back()
        assert 30 == len(await it.stored())


@in_virtual_time
async def test_busy_loop() -> None:
    """A program that blocks the loop for longer than the deadline is not taken for a server that hangs."""
    async with rig() as it:
        append = it.faulty.append

        async def slow(batch: Any) -> Any:
            await asyncio.sleep(0.1)
            await turns(20)  # As many as a driver takes to read an answer that is there.
            return await append(batch)

        it.faulty.append = slow
        call = asyncio.create_task(it.logs.log_event("u", "x", "1"))
        await turns(5)
        loop().pass_time(5.0)

        assert not (await call).is_spooled
        assert UP is it.status


@in_virtual_time
async def test_configuration_never_falls_back() -> None:
    """A wrong password, or a missing right, is an error of the call, and nothing is spooled."""
    async with rig() as it:

        async def refuse(*_: Any) -> Any:
            raise ConfigurationError("wrong password")

        it.faulty.append = refuse
        for _ in range(10):
            with pytest.raises(ConfigurationError):
                await it.logs.log_event("u", "x")

        assert UP is it.status
        assert 0 == it.spool.appends


@in_virtual_time
async def test_configuration_after_an_outage() -> None:
    """A server that comes back and refuses the password is DOWN: calls raise that, until somebody sees to it."""
    async with rig() as it:
        it.breaks()
        one = await it.logs.log_event("u", "x", "1")

        async def refuse(*_: Any) -> Any:
            raise ConfigurationError("wrong password")

        right, it.faulty.probe = it.faulty.probe, refuse
        it.faulty.heal()
        await asyncio.sleep(3)
        for _ in range(3):
            with pytest.raises(ConfigurationError, match="wrong password"):
                await it.logs.log_event("u", "x", "2")
        with pytest.raises(ConfigurationError, match="wrong password"):
            await it.logs.get_events()
        assert (DOWN, "ConfigurationError") == (it.status, it.backend.health().reason)
        it.faulty.probe = right
        await it.back()

        assert one.is_spooled
        assert ["1"] == await it.stored()


@in_virtual_time
async def test_conflict_and_bad_data() -> None:
    """What the server answers is the caller's, healthy as it is."""
    async with rig() as it:
        one = await it.logs.log_event("u", "x", "1")
        with pytest.raises(ConflictError):
            await it.logs.log_event("u", "x", "other", event_id=one.id)
        it.faulty.inject(Fail(BackendError), only=["append"])
        for _ in range(20):
            with pytest.raises(BackendError):
                await it.logs.log_event("u", "x", "2")

        assert UP is it.status
        assert 0 == it.spool.appends


@in_virtual_time
async def test_spool_fails_too() -> None:
    """Where there is no room in the spool either, the call says so at once, and the health that it is DOWN."""
    async with rig() as it:
        it.breaks(Fail(ambiguous=True))
        it.spool.failure = OverloadedError("the spool is full")
        with pytest.raises(OverloadedError, match="the spool is full") as caught:
            await it.logs.log_event("u", "x", "1")
        assert caught.value.ambiguous
        for _ in range(3):
            with pytest.raises(OverloadedError):
                await it.logs.log_event("u", "x", "2")
        assert (DOWN, "OverloadedError") == (it.status, it.backend.health().reason)

        it.spool.failure = None
        assert (await it.logs.log_event("u", "x", "3")).is_spooled
        assert DEGRADED is it.status
        it.faulty.heal()
        await it.back()
        assert ["3"] == await it.stored()


@in_virtual_time
async def test_spool_hangs() -> None:
    """A disk that hangs does not keep a call past its deadline."""
    async with rig() as it:
        it.breaks()
        it.spool.slow = 100.0
        began = loop().time()
        with pytest.raises(BackendTimeoutError):
            await it.logs.log_event("u", "x", "1")

        assert loop().time() - began < 2.25


@in_virtual_time
async def test_too_large_for_the_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that the spool cannot take fails alone; those that share its flush are kept."""
    monkeypatch.setattr("multidb.resilience.failover.MAX_RECORD_BYTES", 1000)
    async with rig() as it:
        it.breaks()
        texts = ["a", "x" * 2000, "b"]
        said = await asyncio.gather(
            *(it.logs.log_event("u", "x", text) for text in texts), return_exceptions=True
        )

        assert [True, False, True] == [isinstance(each, Event) and each.is_spooled for each in said]
        assert "too large" in str(said[1])
        it.faulty.heal()
        await it.back()
        assert ["a", "b"] == sorted(await it.stored())


@pytest.mark.parametrize(
    "fault",
    [Fail(), Fail(applied=True), Hang(), Hang(ignores_cancellation=True), Hang(applied=True)],
    ids=str,
)
@in_virtual_time
async def test_many_at_once(fault: Any) -> None:
    """A flush that meets a dead server is one append to the spool, and each of its calls is told so."""
    async with rig() as it:
        it.breaks(fault)
        began = loop().time()
        said = await asyncio.gather(*(it.logs.log_event("u", "x", str(n)) for n in range(500)))

        assert all(event.is_spooled for event in said)
        assert loop().time() - began < 1.25
        assert 500 == it.spool.pending
        assert it.spool.appends <= 4
        it.faulty.heal()
        await it.back()
        assert sorted(map(str, range(500))) == sorted(await it.stored())


@in_virtual_time
async def test_cancelled_while_it_hangs() -> None:
    """Who is cancelled before the flush is given up is not in the spool; the others are."""
    async with rig() as it:
        it.breaks(Hang(ignores_cancellation=True))
        calls = [asyncio.create_task(it.logs.log_event("u", "x", str(n))) for n in range(10)]
        await asyncio.sleep(1)
        for call in calls[::2]:
            call.cancel()
        said = await asyncio.gather(*calls, return_exceptions=True)

        assert all(isinstance(each, asyncio.CancelledError) for each in said[::2])
        assert all(event.is_spooled for event in said[1::2])
        assert ["1", "3", "5", "7", "9"] == sorted(decode(data).record.message for data in it.spool.records)


@pytest.mark.parametrize("fault", [Fail(), Hang()], ids=str)
@in_virtual_time
async def test_alone_in_its_own_task(fault: Any) -> None:
    """A call that its caller's own task flushes is kept in time, too; a read there is told in time."""
    async with rig(prompt=True) as it:
        await it.logs.log_event("u", "x", "1")
        await it.logs.get_events("u")
        it.breaks(fault)
        began = loop().time()
        one = asyncio.create_task(it.logs.log_event("u", "x", "2"))
        read = asyncio.create_task(it.logs.get_events("u"))

        assert (await one).is_spooled
        with pytest.raises(BackendUnavailableError):
            await read
        assert loop().time() - began < 1.25
        assert not one.cancelling()
        it.faulty.heal()
        await it.back()
        assert ["1", "2"] == await it.stored()


@in_virtual_time
async def test_no_timer_and_no_task_of_its_own() -> None:
    """Calls that go well share one alarm, and run in the task that they have anyway."""
    async with rig(prompt=True) as it:
        await it.logs.log_event("u", "x", "0")
        timers, seen = len(loop().timers()), set()
        append = it.faulty.append

        async def watched(batch: Any) -> Any:
            seen.add(asyncio.current_task())
            return await append(batch)

        it.faulty.append = watched
        for number in range(20):
            await it.logs.log_event("u", "x", str(number))

        assert {asyncio.current_task()} == seen
        assert timers == len(loop().timers())


@in_virtual_time
async def test_bulk() -> None:
    """What `log_events()` spools counts as stored now."""
    async with rig() as it:
        it.breaks()
        count = await it.logs.log_events({"user_identifier": 1, "event_type": f"{n}"} for n in range(2500))

        assert 2500 == count == it.spool.pending
        it.faulty.heal()
        await it.back()
        assert 2500 == len(await it.stored())


@in_virtual_time
async def test_bulk_that_hangs() -> None:
    """A chunk that the server does not answer is in the spool before its deadline, and the others at once."""
    async with rig() as it:
        it.breaks(Hang(ignores_cancellation=True))
        began = loop().time()
        count = await it.logs.log_events({"user_identifier": 1, "event_type": f"{n}"} for n in range(2500))

        assert 2500 == count == it.spool.pending
        assert loop().time() - began < 1.25


@in_virtual_time
async def test_sales_and_messages() -> None:
    """Sales and messages are spooled and replayed as events are."""
    async with rig() as it:
        it.breaks()
        sold = await it.logs.log_sale("u", "coffee", "4.50", currency="EUR", context={"n": [1, 1.0]})
        said = await it.logs.log_message("u", "merhaba", conversation_id="c")
        happened = await it.logs.log_event("u", "x", "1")

        assert sold.is_spooled
        assert said.is_spooled
        it.faulty.heal()
        await it.back()
        assert [sold] == await it.logs.get_sales()
        assert [said] == await it.logs.get_messages()
        assert [happened] == await it.logs.get_events()
        assert not (await it.logs.get_sales())[0].is_spooled


# What else there is


@in_virtual_time
async def test_reads_while_away() -> None:
    """Reads, and writes that have no other place to go, fail at once while the server is away."""
    async with rig() as it:
        it.breaks()
        sold = await it.logs.log_sale("u", "coffee", "1")
        began, made = loop().time(), len(it.faulty.calls)
        for call in (
            it.logs.get_events(),
            it.logs.get_events("u"),
            it.logs.search_events("x"),
            it.logs.count_events(),
            it.logs.event_histogram(),
            it.logs.get_message_stats(),
            it.logs.get_active_sessions(),
            it.logs.delete_events(before=NOON),
            it.logs.update_sale_status(sold.id, "completed"),
            it.logs.create_or_update_session("u", "s"),
            it.logs.end_session("u", "s"),
        ):
            with pytest.raises(BackendUnavailableError, match="the server is away") as caught:
                await call
            assert not caught.value.ambiguous

        assert loop().time() - began < 0.001
        assert made == len(it.faulty.calls)


@in_virtual_time
async def test_sale_on_its_way() -> None:
    """The status of a sale that may be on its way to the server is refused, rather than the sale called unknown."""
    async with rig() as it:
        it.spool.read_failure = BackendUnavailableError("the disk")
        it.faulty.inject(Fail(), only=["append"], times=1)
        sold = await it.logs.log_sale("u", "coffee", "1")
        await asyncio.sleep(2)
        with pytest.raises(BackendUnavailableError, match="on their way"):
            await it.logs.update_sale_status(sold.id, "completed")
        it.spool.read_failure = None
        await it.back(30)

        assert "completed" == (await it.logs.update_sale_status(sold.id, "completed")).status


@in_virtual_time
async def test_sale_that_arrives_too_late() -> None:
    """A sale that gets to the server after it was looked for there, and before the answer came, is not unknown."""
    async with rig() as it:
        it.faulty.inject(Fail(ambiguous=True), only=["append"], times=1)
        it.spool.slow_read = 0.1
        sold = await it.logs.log_sale("u", "coffee", "1")
        find = it.server.set_sale_status

        async def slow(*args: Any) -> Any:
            found = await find(*args)
            await asyncio.sleep(1)
            return found

        it.faulty.set_sale_status = slow
        with pytest.raises(BackendUnavailableError, match="on their way"):
            await it.logs.update_sale_status(sold.id, "completed")

        assert 0 == it.spool.pending
        assert "completed" == (await it.logs.update_sale_status(sold.id, "completed")).status


@in_virtual_time
async def test_read_only() -> None:
    """A server that refuses writes is READ_ONLY: reads go on, writes are spooled."""
    async with rig() as it:
        before = await it.logs.log_event("u", "x", "0")
        error = BackendUnavailableError("read-only")
        error.condition = "read_only"

        async def refuse(*_: Any) -> Any:
            raise error

        right = it.faulty.append, it.faulty.probe
        it.faulty.append = it.faulty.probe = refuse
        assert (await it.logs.log_event("u", "x", "1")).is_spooled
        await asyncio.sleep(3)
        assert READ_ONLY is it.status
        assert [before] == await it.logs.get_events()
        assert it.server.resets == 0
        with pytest.raises(BackendUnavailableError):
            await it.logs.create_or_update_session("u", "s")
        it.faulty.append, it.faulty.probe = right
        await it.back()
        assert ["0", "1"] == await it.stored()


@in_virtual_time
async def test_reads_that_fail() -> None:
    """A read that times out makes the server be looked at; one that is just slow harms nobody."""
    async with rig() as it:
        it.faulty.inject(Hang(), only=["query"])
        for _ in range(5):
            with pytest.raises(BackendTimeoutError):
                await it.logs.get_events()
        await turns()
        assert UP is it.status
        assert 5 == len(it.faulty.called("probe"))

        it.faulty.heal()
        it.breaks(Hang(ignores_cancellation=True))
        with pytest.raises(BackendTimeoutError):
            await it.logs.get_events()
        await asyncio.sleep(1.3)
        assert DEGRADED is it.status


@in_virtual_time
async def test_others_under_way() -> None:
    """When the server turns out to be gone, those that wait for it are told, and not left to their deadline."""
    async with rig() as it:
        it.faulty.inject(Hang(ignores_cancellation=True), only=["query", "touch_sessions"])
        read = asyncio.create_task(it.logs.get_events())
        touched = asyncio.create_task(it.logs.create_or_update_session("u", "s"))
        await asyncio.sleep(0.1)
        began = loop().time()
        it.breaks()
        await it.logs.log_event("u", "x", "1")
        with pytest.raises(BackendUnavailableError) as first:
            await read
        with pytest.raises(BackendUnavailableError) as second:
            await touched

        assert loop().time() - began < 0.01
        assert (False, True) == (first.value.ambiguous, second.value.ambiguous)


# Coming back


@in_virtual_time
async def test_comes_back() -> None:
    """Two good probes, one record, ten, then all the others while new ones go to the server already."""
    async with rig() as it:
        it.breaks()
        for number in range(700):
            await it.logs.log_event("u", "x", f"{number:03}")
        await asyncio.sleep(20)
        it.faulty.heal()
        took = await it.back()

        assert took < 2
        assert [1, 10, 10, 60, 110, 160, 210, 139] == [replay.records for replay in it.told.replays]
        assert [f"{number:03}" for number in range(700)] == sorted(await it.stored())
        assert [UP, DEGRADED, RECOVERING, UP] == it.told.statuses
        assert not (await it.logs.log_event("u", "x")).is_spooled


@in_virtual_time
async def test_slow_recovery() -> None:
    """Each batch of a replay has a time of its own, however long ago the call began that found the server gone."""
    async with rig() as it:
        it.breaks()
        for number in range(100):
            await it.logs.log_event("u", "x", f"{number}")
        await asyncio.sleep(60)
        it.faulty.heal()
        it.faulty.inject(Delay(1.0), only=["append"])
        await it.back(15)

        assert 100 == len(await it.stored())
        assert 0 == it.backend.health().duplicates


@in_virtual_time
async def test_flapping() -> None:
    """A server that comes and goes is never lost, and left alone longer each time."""
    async with rig() as it:
        random, sent = Random(5), 0
        for _ in range(12):
            it.breaks(Fail(applied=random.random() < 0.5))
            for _ in range(20):
                await it.logs.log_event("u", "x", f"{sent}")
                sent += 1
            it.faulty.heal()
            await it.back(60)
        probes = len(it.faulty.called("probe"))

        assert sorted(map(str, range(sent))) == sorted(await it.stored())
        assert probes == 24


@in_virtual_time
async def test_canary_fails() -> None:
    """While the probe works and the records do not get there, calls stay away from the server."""
    async with rig() as it:
        it.breaks()
        await it.logs.log_event("u", "x", "1")
        it.faulty.heal()
        it.faulty.inject(Fail(), only=["append"])
        await asyncio.sleep(10)
        tried = len([call for call in it.faulty.called("append") if call.fault])

        assert it.status in (DEGRADED, RECOVERING)
        assert 3 <= tried <= 20
        it.faulty.heal()
        await it.back()
        assert ["1"] == await it.stored()


@in_virtual_time
async def test_refused_records() -> None:
    """A record that the server refuses, in the middle of many, is set aside and is in nobody's way."""
    async with rig() as it:
        it.breaks()
        for number in range(100):
            await it.logs.log_event("u", "bad" if number in (17, 60) else "x", f"{number}")
        append = it.faulty.append

        async def picky(batch: Any) -> Any:
            if any(each.record.event_type == "bad" for each in batch):
                raise BackendError("refused")
            return await append(batch)

        it.faulty.append = picky
        it.faulty.heal()
        await it.back()

        assert 98 == len(await it.stored())
        assert ["17", "60"] == sorted(decode(data).record.message for data, _ in it.spool.rejected)
        assert ["refused by the server: BackendError"] * 2 == it.told.asides
        assert 2 == it.backend.health().rejected
        assert 2 == sum(replay.set_aside for replay in it.told.replays)


@in_virtual_time
async def test_record_without_an_answer() -> None:
    """A record that hangs whenever it is sent, while the server looks well, is set aside in the end."""
    async with rig() as it:
        append = it.server.append

        async def hang(given: Any) -> Any:
            if any(each.record.message == "bad" for each in given):
                await asyncio.sleep(60)
            return await append(given)

        it.faulty.append = hang
        await it.logs.log_event("u", "x", "bad")
        for number in range(30):
            await it.logs.log_event("u", "x", f"{number}")
        await asyncio.sleep(800)
        assert not it.spool.rejected
        await it.back(200)

        assert 30 == len(await it.stored())
        assert ["failed again and again: BackendTimeoutError"] == [reason for _, reason in it.spool.rejected]
        assert not (await it.logs.log_event("u", "x")).is_spooled


@in_virtual_time
async def test_search_for_a_refused_record_is_cut_short() -> None:
    """What is delivered while a refused record is searched for is done: the next start goes on from there."""
    async with rig() as it:
        it.breaks()
        for number in range(10):
            await it.logs.log_event("u", "bad" if number == 9 else "x", f"{number}")
        append = it.faulty.append
        sizes: list[int] = []

        async def picky(batch: Any) -> Any:
            if any(each.record.event_type == "bad" for each in batch):
                raise BackendError("refused")
            if len(sizes) == 2:
                raise BackendUnavailableError("gone")
            sizes.append(len(batch))
            return await append(batch)

        it.faulty.append = picky
        it.faulty.heal()
        await asyncio.sleep(2)

        assert [1, 4] == sizes  # The canary, and the first half of the others.
        assert 5 == it.spool.pending
        it.faulty.append = append
        await it.back(30)
        assert 0 == it.spool.pending


@in_virtual_time
async def test_conflict_on_replay() -> None:
    """An event whose id the server has with other content is set aside; one with the same content is a duplicate."""
    async with rig() as it:
        one = await it.logs.log_event("u", "x", "1")
        it.breaks()
        await it.logs.log_event("u", "x", "1", event_id=one.id)
        await it.logs.log_event("u", "x", "other", event_id=one.id)
        await it.logs.log_event("u", "x", "2")
        it.faulty.heal()
        await it.back()

        assert ["1", "2"] == await it.stored()
        assert ["its id is stored with other content"] == it.told.asides
        assert 1 == it.backend.health().duplicates


@in_virtual_time
async def test_unreadable_records() -> None:
    """What a later version wrote, or somebody's hand, is set aside."""
    async with rig() as it:
        it.breaks()
        await it.logs.log_event("u", "x", "1")
        newer = it.spool.records[0].replace(b'"version":1', b'"version":2')
        it.spool.records += [newer, b"[]", b'{"version":1}']
        await it.logs.log_event("u", "x", "2")
        it.faulty.heal()
        await it.back()

        assert ["1", "2"] == await it.stored()
        assert 3 == len(it.spool.rejected)


@in_virtual_time
async def test_damaged_records() -> None:
    """What the spool itself sets aside is told to the hooks, too."""
    async with rig() as it:
        it.breaks()
        await it.logs.log_event("u", "x", "1")
        it.spool.damaged += ["too old", "a wrong checksum"]
        it.faulty.heal()
        await it.back()

        assert ["too old", "a wrong checksum"] == it.told.asides


@in_virtual_time
async def test_replay_is_cut_short() -> None:
    """A server that is gone again in the middle of a replay gets the rest next time, and nothing twice."""
    async with rig() as it:
        it.breaks()
        for number in range(300):
            await it.logs.log_event("u", "x", f"{number}")
        it.faulty.heal()
        plan = [None, None, Fail(applied=True), None, Fail()]
        appends = iter(plan)
        it.faulty.plan = lambda call: next(appends, None) if call.method == "append" else None
        await it.back(30)

        assert sorted(map(str, range(300))) == sorted(await it.stored())
        assert it.backend.health().duplicates > 0


@in_virtual_time
async def test_spool_cannot_be_read() -> None:
    """A disk that cannot be read keeps what was spooled waiting, and nobody else: appends go to the server."""
    async with rig() as it:
        it.breaks()
        await it.logs.log_event("u", "x", "1")
        it.faulty.heal()
        it.faulty.inject(Fail(), only=["append"], times=1)
        await it.back()
        it.spool.records.append(encode(entry(event("u", message="2"))))
        it.spool._note()
        it.spool.read_failure = BackendUnavailableError("the disk")
        await asyncio.sleep(30)

        assert RECOVERING is it.status
        assert not (await it.logs.log_event("u", "x", "3")).is_spooled
        it.spool.read_failure = None
        await it.back(20)
        assert 3 == len(await it.stored())


@in_virtual_time
async def test_spool_hangs_on_recovery() -> None:
    """A disk that hangs does not keep calls from a server that is back."""
    async with rig() as it:
        it.breaks()
        await it.logs.log_event("u", "x", "1")
        it.spool.slow_read = 1000.0
        it.faulty.heal()
        await asyncio.sleep(15)

        assert not (await it.logs.log_event("u", "x", "2")).is_spooled
        assert RECOVERING is it.status


@in_virtual_time
async def test_chance() -> None:
    """Whatever happens to the calls, what is acknowledged is stored, and once; no call is over its deadline."""
    for seed in range(30):
        async with rig() as it:
            it.faulty.plan = by_chance(
                {
                    Fail(): 0.05,
                    Fail(applied=True): 0.05,
                    Fail(BackendTimeoutError, applied=True): 0.02,
                    Hang(ignores_cancellation=True, seconds=3): 0.02,
                    Hang(applied=True, seconds=3): 0.02,
                    Delay(0.7): 0.05,
                    Fail(OverloadedError): 0.02,
                },
                seed=seed,
            )
            random = Random(seed)
            acknowledged, durations = [], []

            async def task(number: int) -> None:
                for turn in range(20):
                    began = loop().time()
                    said = await it.logs.log_event(number % 5, "x", f"{number} {turn}")
                    acknowledged.append(said.message)  # noqa: B023
                    durations.append(loop().time() - began)  # noqa: B023
                    await asyncio.sleep(random.random())  # noqa: B023

            await asyncio.gather(*(task(number) for number in range(15)))
            it.faulty.heal()
            await it.back(60)

            assert 300 == len(acknowledged)
            assert sorted(acknowledged) == sorted(await it.stored()), seed
            assert max(durations) < 2.25, seed


# Opening, closing, health


@in_virtual_time
async def test_start_strict() -> None:
    """A server that is away at the start is an error, and everything is closed."""
    it = Rig()
    it.faulty.inject(Fail(), only=["open"])
    with pytest.raises(BackendUnavailableError):
        await it.backend.open()

    assert not it.spool.is_open
    await it.backend.close()


@in_virtual_time
async def test_start_degraded() -> None:
    """If it was asked for, a server that is away at the start may come later, and is opened then."""
    it = Rig(starts_degraded=True)
    it.faulty.inject(Fail(), only=["open"])
    await it.backend.open()

    assert DEGRADED is it.status
    assert (await it.logs.log_event("u", "x", "1")).is_spooled
    await asyncio.sleep(10)
    assert 0 == it.server.opens
    it.faulty.heal()
    assert await it.back() < 2
    assert 1 == it.server.opens
    assert ["1"] == await it.stored()
    assert [DEGRADED, RECOVERING, UP] == it.told.statuses
    await it.backend.close()
    await turns()


@in_virtual_time
async def test_start_degraded_on_a_full_server() -> None:
    """A server that has no room for us at the start is not read from before it is open."""
    it = Rig(starts_degraded=True)
    error = OverloadedError("no connection left")
    error.condition = "full"

    async def refuse() -> None:
        raise error

    right, it.faulty.open = it.faulty.open, refuse
    await it.backend.open()
    await asyncio.sleep(1)
    with pytest.raises(BackendUnavailableError, match="away"):
        await it.logs.get_events()
    assert (await it.logs.log_event("u", "x", "1")).is_spooled
    it.faulty.open = right
    await it.back()
    assert ["1"] == await it.stored()
    await it.backend.close()
    await turns()


@in_virtual_time
async def test_start_degraded_with_wrong_password() -> None:
    """A wrong password is an error at the start, whatever was asked for, and later no reason to spool."""
    it = Rig(starts_degraded=True)
    opens = it.faulty.open

    async def refuse() -> None:
        raise ConfigurationError("wrong password")

    it.faulty.open = refuse
    with pytest.raises(ConfigurationError):
        await it.backend.open()
    assert not it.spool.is_open

    it.faulty.open = opens
    it.faulty.inject(Fail(), only=["open"])
    await it.backend.open()
    it.faulty.open = refuse
    await asyncio.sleep(2)
    assert DOWN is it.status
    with pytest.raises(ConfigurationError):
        await it.logs.log_event("u", "x")
    await it.backend.close()
    await turns()


@in_virtual_time
async def test_opened_again() -> None:
    """An outage that began before a close, as where another store could not be opened, is no part of the next open."""
    it = Rig(starts_degraded=True)
    it.faulty.inject(Fail(), only=["open"])
    await it.backend.open()
    it.spool.failure = OverloadedError("full")
    with pytest.raises(OverloadedError):
        await it.logs.log_event("u", "x", "0")
    it.spool.failure = None
    await it.backend.close()
    await it.backend.open()
    assert DEGRADED is it.status
    await it.logs.log_event("u", "x", "1")
    it.faulty.heal()
    await it.back()
    assert ["1"] == await it.stored()
    it.breaks()
    await it.logs.log_event("u", "x", "2")
    await it.backend.close()
    it.faulty.heal()
    await it.backend.open()

    assert not (await it.logs.log_event("u", "x", "3")).is_spooled
    await it.back()
    assert ["1", "2", "3"] == sorted(await it.stored())
    await it.backend.close()
    await turns()


def test_opened_again_in_another_loop() -> None:
    """What is left of a loop that is gone, such as somebody who waited in it, is in nobody's way."""
    rigs: list[Rig] = []

    @in_virtual_time
    async def first() -> None:
        rigs.append(it := Rig(starts_degraded=True))
        it.faulty.inject(Fail(), only=["open"])
        await it.backend.open()
        await it.logs.log_event("u", "x", "1")
        await asyncio.sleep(1)
        await it.backend.close()

    @in_virtual_time
    async def second() -> None:
        it = rigs[0]
        it.spool._waiting = asyncio.Event()
        await it.backend.open()
        await asyncio.sleep(1)
        it.faulty.heal()
        await it.back()

        assert ["1"] == await it.stored()
        await it.backend.close()

    first()
    second()


def test_health_in_a_forked_child(tmp_path: Path) -> None:
    """It raises, whatever the threads of the parent were at: their locks are held for ever in the child."""

    async def check() -> int:
        server, spool = Probed(), Spool(tmp_path / "spool", "logs", any_file_system=True)
        backend = FailoverLogBackend(
            server, Primary(server, server), spool, Watch("logs", "memory", ManualClock())
        )
        await backend.open()
        with spool._opened.files._mutex:
            child = os.fork()
            if not child:
                signal.alarm(5)
                with suppress(ClosedError):
                    backend.health()
                    os._exit(1)
                os._exit(0)
        status = os.waitpid(child, 0)[1]  # noqa: ASYNC222 -- it ends at once
        await backend.close()
        return status

    assert 0 == asyncio.run(check())


@in_virtual_time
async def test_close_while_it_opens() -> None:
    """A server whose opening hangs, and cannot be cancelled, is not waited for, nor open after all."""
    it = Rig(starts_degraded=True)
    it.faulty.inject(Fail(), only=["open"])
    await it.backend.open()
    it.faulty.heal()
    right, opened = it.faulty.open, asyncio.Event()

    async def stubborn() -> None:
        while not opened.is_set():
            with suppress(asyncio.CancelledError):
                await opened.wait()
        await right()

    it.faulty.open = stubborn
    await asyncio.sleep(2)
    began = loop().time()
    await it.backend.close()
    took = loop().time() - began
    opened.set()
    await turns()

    assert took < 0.3
    assert ["open", "close"] == [call.method for call in it.faulty.calls if call.fault is None][-2:]


@in_virtual_time
async def test_driver_cancels_the_opening() -> None:
    """A driver that cancels what it was asked for does not end the search for the server."""
    it = Rig(starts_degraded=True)
    it.faulty.inject(Fail(), only=["open"])
    await it.backend.open()
    it.faulty.heal()
    right = it.faulty.open

    async def cancelled() -> None:
        it.faulty.open = right
        raise asyncio.CancelledError

    it.faulty.open = cancelled
    await it.back()
    await it.backend.close()
    await turns()


@in_virtual_time
async def test_close_while_away() -> None:
    """Closing during an outage waits for nobody; what is spooled stays there."""
    it = Rig()
    await it.backend.open()
    it.breaks(Hang(ignores_cancellation=True))
    await it.logs.log_event("u", "x", "1")
    await asyncio.sleep(2)
    began = loop().time()
    await it.backend.close()

    assert loop().time() - began < 1.5
    assert 1 == it.spool.pending
    assert CLOSED is it.status
    it.faulty.heal()
    await asyncio.sleep(0.1)


@in_virtual_time
async def test_hooks_fail() -> None:
    """A hook that fails, or knows only operations, is in nobody's way."""

    class Bad:
        def on_operation(self, details: Any) -> None:
            pass

        def on_transition(self, details: Any) -> None:
            raise ValueError("a bug")

        on_replay = on_set_aside = on_transition

    class Old:
        def on_operation(self, details: Any) -> None:
            pass

    told = Told()
    watch = Watch("logs", "memory", ManualClock(), [Bad(), Old(), told])
    watch.become(UP)
    watch.become(UP)
    watch.become(DEGRADED, BackendUnavailableError("away"))
    watch.replayed(3, 1, 1, 0, 0.1)
    watch.set_aside("reason")

    assert [(CLOSED, UP, None), (UP, DEGRADED, "BackendUnavailableError")] == told.transitions
    assert 1 == len(told.replays)
    assert ["reason"] == told.asides


@in_virtual_time
async def test_health() -> None:
    """It says since when, why, and what waits; an outage is never UP."""
    async with rig() as it:
        up = it.backend.health()
        it.breaks(Fail(BackendTimeoutError))
        for _ in range(3):
            await it.logs.log_event("u", "x", "1")
        away = it.backend.health()

        assert (UP, None, 0, 0, None) == (
            up.status,
            up.reason,
            up.backlog_records,
            up.backlog_bytes,
            up.backlog_oldest_seconds,
        )
        assert up.since.tzinfo is not None
        assert (DEGRADED, "BackendTimeoutError", 3, 1.0) == (
            away.status,
            away.reason,
            away.backlog_records,
            away.backlog_oldest_seconds,
        )
        assert away.backlog_bytes > 0


# Records on the disk


@round_trips
@given(text=texts())
def test_round_trip_of_messages(text: str) -> None:
    """What is spooled comes back equal."""
    for record in (
        event("u", message=text, context={"k": [text, 1, 1.0, 1e16, 1e22, None, {"": -5}]}, username=text),
        sale("u", amount="1.50", context={"ı": {}}),
        message("u", text=text, conversation_id=None),
    ):
        given_entry = entry(type(record)(**record.model_dump()))
        again = decode(encode(given_entry))

        assert given_entry == again
        assert (given_entry.context, given_entry.digest) == (again.context, again.digest)
        assert b"\n" not in encode(given_entry)


def test_exact_amounts() -> None:
    """Amounts keep their digits."""
    for amount in ("0", "0.00", "99999999999999999999.999999999999999999", "1"):
        assert amount == str(decode(encode(entry(sale("u", amount=amount)))).record.amount)


@pytest.mark.parametrize(
    "data",
    [b"{}", b"1", b"nonsense", b'{"version":1,"kind":"x"}', b'{"version":1,"kind":"event","record":{}}'],
)
def test_no_record(data: bytes) -> None:
    """What is no record is said to be none, without quoting it."""
    with pytest.raises(UnreadableError):
        decode(data)


def test_is_spooled_changes_nothing() -> None:
    """Where a record is, is no part of it: not of equality, its hash, its JSON, its copies."""
    from multidb.logs._records import mark_spooled

    plain, spooled = event("u"), None
    spooled = plain.model_copy()
    mark_spooled(spooled)

    assert (False, True) == (plain.is_spooled, spooled.is_spooled)
    assert plain == spooled
    assert plain.model_dump_json() == spooled.model_dump_json()
    assert repr(plain) == repr(spooled)
    for kind in (Event, Sale, Message):
        assert "is_spooled" not in kind.model_fields


async def test_kinds_of_a_batch() -> None:
    """All outcomes of a spooled batch are SPOOLED, and nothing else says so."""
    user = unique()
    backend = MemoryLogBackend()
    await backend.open()

    assert [Appended.STORED] == list(await backend.append(entries([event(user)])))
    assert 1 == len(await backend.query(of_user(user, Event)))
    assert touch is not None

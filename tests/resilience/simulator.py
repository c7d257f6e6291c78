"""
The simulator: programs, their disk and their servers in one event loop and in virtual time, by the dice of one seed.

`simulate(seed, workloads)` lets everything go wrong for a while, then heals it, and raises a FlawError where a promise was
broken. A workload is what one store is for: what it builds, does, and holds against what is there in the end.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, Self
from uuid import UUID

import pytest
from simulated_machine import PROGRAM, Killed, Machine, Program, SimulatedLoop, SimulatedPath
from simulated_server import MODES, POISON, LogClient, LogServer, Switchboard

from multidb import MultiDB, Settings
from multidb._core.lifecycle import Phase
from multidb.errors import BackendError, ClosedError, ConfigurationError, MultiDBError
from multidb.instrumentation import Status
from multidb.logs._failover import FailoverLogBackend
from multidb.resilience import guard
from multidb.resilience.failover import FailoverOptions, Primary
from multidb.resilience.spool import Limits, Spool, tools
from multidb.resilience.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from multidb.instrumentation import TransitionDetails

DEADLINE = 2.0
MOST_SECONDS = DEADLINE + 0.25
CLOSE_SECONDS = 10.0
SETTLE_SECONDS = 150.0
"""Once all is well again: adoption after 30 s, the longest pause of a probe, and of a replay, and some time to work."""
FULL_SECONDS = 10_000.0
ROOT = "/data/spool"
_EPOCH = 1_800_000_000.0
_SHORT_LIVES = 8
_SETTINGS = Settings(
    postgres_url="memory://",
    mongodb_uri="memory://",
    redis_url="memory://",
    deadline_seconds=DEADLINE,
    close_timeout_seconds=CLOSE_SECONDS,
)


class FlawError(AssertionError):
    """A promise that was broken."""


class SkewedClock:
    """The clock on the wall, which somebody sets now and then."""

    def __init__(self) -> None:
        self.offset = 0.0
        self._loop = asyncio.get_running_loop()

    def time(self) -> float:
        return _EPOCH + self._loop.time() + self.offset


@dataclass
class Figures:
    """What was tried, and what was found."""

    seeds: int = 0
    calls: int = 0
    acknowledged: int = 0
    spooled: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    power_cuts: int = 0
    outages: int = 0
    disk_operations: int = 0
    virtual_seconds: float = 0.0
    slowest: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)

    def add(self, other: Figures) -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            setattr(self, name, max(mine, value) if name == "slowest" else mine + value)

    def __str__(self) -> str:
        seen = ", ".join(f"{name} {count:,}" for name, count in sorted(self.statuses.items()))
        return (
            f"{self.seeds:,} seeds, {self.calls:,} calls, {self.acknowledged:,} acknowledged ({self.spooled:,} calls by the"
            f" spool), {self.errors.total():,} errors, {self.outages:,} outages, {self.kills:,} kills,"
            f" {self.power_cuts:,} power cuts, {self.disk_operations:,} disk operations, {self.virtual_seconds:,.0f} virtual"
            f" seconds, slowest call {self.slowest:.3f} s; health: {seen}"
        )


class Workload(Protocol):
    """What one store is put through. Add one for another store, and pass it to `simulate()`."""

    board: Switchboard

    def build(self, app: App) -> dict[str, Any]:
        """Return the backend for a new MultiDB of *app*, under its keyword."""
        ...

    async def act(self, app: App, db: MultiDB) -> None:
        """Do something at random."""
        ...

    def look(self, app: App, db: MultiDB) -> None:
        """Raise FlawError where *db* does not tell the truth about itself."""
        ...

    def is_settled(self, db: MultiDB) -> bool:
        """Whether nothing waits any more."""
        ...

    def done(self) -> int:
        """Return what the server has: it grows while there is something to replay."""
        ...

    def check(self) -> None:
        """Raise FlawError where something is lost, doubled, or left. All programs are closed."""
        ...


class App(Program):
    """A program that uses multidb until it is killed, or closes it and opens it anew."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world.machine)
        self.world = world
        self.number = number
        self.db: MultiDB | None = None
        self.ends = asyncio.Event()
        self.users: list[asyncio.Task[None]] = []
        self.notes: dict[str, Any] = {}
        """What workloads remember of a life."""

    async def run(self) -> None:
        while not self.world.is_over:
            db = MultiDB(
                _SETTINGS,
                clock=self.world.clock,
                **{store: one for load in self.world.workloads for store, one in load.build(self).items()},
            )
            try:
                await db.open()
            except MultiDBError as exc:
                self.world.figures.errors[f"open {type(exc).__name__}"] += 1
                await asyncio.sleep(0.5 + self.world.random.random())
                continue
            await self._live(db)
            await asyncio.sleep(self.world.random.random())

    async def _live(self, db: MultiDB) -> None:
        self.db, world = db, self.world
        self.ends.clear()
        self.users = users = [
            asyncio.create_task(self._use(db), name=f"user {n}") for n in range(world.random.randint(1, 3))
        ]
        await self.ends.wait()
        if world.random.random() < 0.7 or world.is_calm:
            await asyncio.gather(*users)
        began = world.loop.time()
        await db.close()
        world.expect(
            world.loop.time() - began <= CLOSE_SECONDS + 0.75, f"close took {world.loop.time() - began:.3f} s"
        )
        self.db = None
        await asyncio.gather(*users)

    async def _use(self, db: MultiDB) -> None:
        world = self.world
        while not world.is_calm and not self.ends.is_set():
            try:
                await world.random.choice(world.workloads).act(self, db)
            except (FlawError, AssertionError) as exc:
                world.flaw(exc)
            except Exception as exc:  # noqa: BLE001 -- a call that raises what it should not
                world.flaw(exc)
            await asyncio.sleep(world.pause * world.random.random())

    def kill(self) -> None:
        if not self.dead and self.db is not None:
            self.db._lifecycle.phase = Phase.CLOSED  # Nobody is told that it was not closed.
        self.db = None
        super().kill()

    async def timed(self, call: Any) -> Any:
        """Await a *call* that has a deadline."""
        world = self.world
        began = world.loop.time()
        world.figures.calls += 1
        try:
            result = await call
        except Exception:
            if not self.dead:
                world.note_seconds(world.loop.time() - began)
            raise
        if not self.dead:
            world.note_seconds(world.loop.time() - began)
        return result


class World:
    """A machine with programs, servers, and what befalls them."""

    def __init__(self, seed: int, workloads: Sequence[Callable[[World], Workload]]) -> None:
        self.random = Random(seed)
        chance = self.random
        self.loop = asyncio.get_running_loop()
        self.machine = Machine(
            Random(chance.random()),
            model=chance.choice(("strict", "ordered")),
            survivors=chance.choice(("nothing", "something")),
        )
        self.clock = SkewedClock()
        self.figures = Figures(seeds=1)
        self.flaws: list[BaseException] = []
        self.failed = asyncio.Event()
        self.is_calm = self.is_over = False
        self.workloads = [make(self) for make in workloads]
        self.apps: list[App | None] = [None] * chance.choice((1, 1, 2, 3))
        self.limits = Limits(
            max_bytes=chance.choice((20_000, 1 << 28, 1 << 28)),
            segment_bytes=chance.choice((500, 5_000, 50_000)),
            min_free_bytes=0,
        )
        self.pause = chance.choice((0.2, 1.0, 3.0))
        self.disk_was_bad = -FULL_SECONDS
        self._began = self.loop.time()
        self.log: list[str] = []

    # What is promised

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.flaw(FlawError(what))

    def flaw(self, error: BaseException) -> None:
        self.say(f"FLAW {error!r}")
        self.flaws.append(error)
        self.failed.set()

    def note_seconds(self, seconds: float) -> None:
        self.figures.slowest = max(self.figures.slowest, seconds)
        self.expect(seconds <= MOST_SECONDS, f"a call took {seconds:.3f} s")

    def say(self, what: str) -> None:
        self.log.append(f"{self.loop.time() - 1000:10.4f} {what}")

    @property
    def disk_is_bad(self) -> bool:
        disk = self.machine.disk
        return bool(disk.failing) or disk.slow > 0.1 or disk.disk.capacity is not None

    def disk_was_bad_within(self, seconds: float) -> bool:
        if self.disk_is_bad:
            self.disk_was_bad = self.loop.time()
        return self.loop.time() - self.disk_was_bad <= seconds

    # What happens

    async def run(self) -> None:
        chance = self.random
        tasks = [
            asyncio.create_task(call, name=name)
            for call, name in (
                (self._weather(), "weather"),
                (self._disk_weather(), "disk"),
                (self._fates(), "fates"),
                (self._watch(), "watch"),
            )
        ]
        for number in range(len(self.apps)):
            self.start(number)
        await self._unless_failed(chance.uniform(10, 40))
        for task in tasks[:3]:
            task.cancel()
        await asyncio.gather(*tasks[:3], return_exceptions=True)
        self.is_calm = True
        self.heal()
        self.say("all is healed")
        if chance.random() < 0.25 and not self.flaws:
            await self._short_lives()
        await self._settle()
        self.is_over = True
        tasks[3].cancel()
        await asyncio.gather(tasks[3], return_exceptions=True)
        await self._end()
        self.figures.kills = self.machine.kills
        self.figures.power_cuts = self.machine.cuts
        self.figures.disk_operations = self.machine.disk.operations
        self.figures.virtual_seconds = self.loop.time() - self._began
        if self.flaws:
            raise self.flaws[0]
        for load in self.workloads:
            load.check()

    def start(self, number: int) -> None:
        app = self.apps[number] = App(self, number)
        self.say(f"app {number} is pid {app.pid}")
        app.start(app.run(), f"app {number}")

    def heal(self) -> None:
        self.machine.disk.heal()
        for load in self.workloads:
            load.board.become("up")
            load.board.latency = 0.001
        for app in self.apps:
            if app is not None:
                app.doom = None

    async def _weather(self) -> None:
        """What happens to servers."""
        chance = self.random
        modes = chance.sample(MODES[1:], chance.randint(1, 4))
        calm, rough = chance.choice(((4.0, 4.0), (1.0, 10.0), (0.3, 0.6), (10.0, 2.0), (2.0, 25.0)))
        while True:
            await asyncio.sleep(calm * chance.expovariate(1))
            load = chance.choice(self.workloads)
            load.board.latency = chance.choice((0.0005, 0.005, 0.05))
            load.board.become(chance.choice(modes))
            self.figures.outages += 1
            self.say(f"server: {load.board.mode}")
            await asyncio.sleep(rough * chance.expovariate(1))
            load.board.become("up")
            self.say("server: up")

    async def _disk_weather(self) -> None:
        """What happens to the disk, and to the clock."""
        chance, disk = self.random, self.machine.disk
        kinds = chance.sample(("full", "fsync", "write", "read", "unlink", "slow", "clock", "create"), 3)
        if chance.random() < 0.4:
            return
        while True:
            await asyncio.sleep(chance.uniform(1, 12))
            kind = chance.choice(kinds)
            self.say(f"disk: {kind}")
            if kind == "clock":
                self.clock.offset += chance.choice((-86400, -30, -0.5, 0.5, 30, 3600, 86400))
                continue
            if kind == "full":
                used = sum(len(node.data) for node in disk.disk.nodes.values())
                disk.disk.capacity = used + chance.choice((0, 100, 2000))
            elif kind == "slow":
                disk.slow = chance.choice((0.2, 1.0, 3.0))
            else:
                disk.failing[kind] = errno.EIO
            self.disk_was_bad_within(0)
            await asyncio.sleep(chance.choice((0.01, 0.3, 3.0)))
            self.disk_was_bad_within(0)
            disk.heal()

    async def _fates(self) -> None:
        """What happens to programs."""
        chance = self.random
        ways = chance.sample(("kill", "doom", "close", "cut"), chance.randint(1, 4))
        mean = chance.choice((1.0, 4.0, 15.0))
        while True:
            await asyncio.sleep(mean * chance.expovariate(1))
            number = chance.randrange(len(self.apps))
            app, way = self.apps[number], chance.choice(ways)
            self.say(f"app {number}: {way}" + ("" if app is None else f" pid {app.pid}"))
            if app is None or app.dead:
                continue
            if way == "close":
                app.ends.set()
            elif way == "doom":
                app.doom = chance.randint(0, 60)
            elif way == "kill":
                app.kill()
            else:
                self.machine.power_cut()
            await asyncio.sleep(chance.choice((0.0, 0.5, 3.0)))
            self._raise_the_dead()

    def _raise_the_dead(self) -> None:
        for number, app in enumerate(self.apps):
            if app is None or app.dead:
                self.start(number)

    async def _watch(self) -> None:
        """Look at what the programs say about themselves."""
        while True:
            await asyncio.sleep(0.25)
            self.disk_was_bad_within(0)
            for app in self.apps:
                if app is not None and app.db is not None and not app.dead:
                    self.look(app, app.db)

    def look(self, app: App, db: MultiDB) -> None:
        for load in self.workloads:
            try:
                load.look(app, db)
            except AssertionError as exc:
                self.flaw(exc)

    async def _short_lives(self) -> None:
        """The server is slow and the programs die soon: what they replay has to get less all the same."""
        for load in self.workloads:
            load.board.latency = 0.3
        best = lives = 0
        while lives < _SHORT_LIVES:
            self._raise_the_dead()
            await self._unless_failed(2.0)
            if self.flaws or all(self._is_settled(app) for app in self.apps):
                break
            done = sum(load.done() for load in self.workloads)
            best, lives = max(best, done), 0 if done > best else lives + 1
            for app in self.apps:
                if app is not None:
                    app.kill()
        self.expect(lives < _SHORT_LIVES, f"livelock: {_SHORT_LIVES} lives of a program replayed nothing new")
        self.heal()

    async def _settle(self) -> None:
        end = self.loop.time() + SETTLE_SECONDS
        while not self.flaws:
            self._raise_the_dead()
            if all(self._is_settled(app) for app in self.apps) and not self._is_on_the_disk():
                return
            if self.loop.time() > end:
                self.flaw(FlawError(f"livelock: after {SETTLE_SECONDS} s: {self._states()}"))
                return
            await self._unless_failed(0.5)

    def _is_on_the_disk(self) -> bool:
        return any(path.endswith(".jsonl") and "/rejected/" not in path for path in self.machine.disk.files())

    def _is_settled(self, app: App | None) -> bool:
        return (
            app is not None
            and app.db is not None
            and all(user.done() for user in app.users)
            and not app.threads
            and all(load.is_settled(app.db) for load in self.workloads)
        )

    def _states(self) -> str:
        states = [
            "closed" if app is None or app.db is None else str(app.db.health()["logs"]) for app in self.apps
        ]
        return f"{states}, {self.machine.disk.files()}"

    async def _end(self) -> None:
        """Let the programs close what they have open, and see that nothing of them goes on."""
        apps = [app for app in self.apps if app is not None and not app.dead]
        for app in apps:
            app.ends.set()
        if tasks := [task for app in apps for task in app.tasks]:
            await asyncio.wait(tasks, timeout=2 * CLOSE_SECONDS)
        left = [task.get_name() for app in apps for task in app.tasks if not task.done()]
        self.expect(not left, f"closed, and {left} go on")
        await asyncio.gather(*self.machine.burials)

    async def _unless_failed(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.failed.wait(), seconds)


@dataclass
class _Sent:
    """What became of an event."""

    app: App
    is_poison: bool = False
    acknowledged: bool = False
    how: str = ""
    """When and by whom it was acknowledged, for people."""
    unclear: int = 0
    """Attempts that were cancelled, or cut short, or ended in an error that was ambiguous."""
    refused: int = 0
    """Attempts that were definitely not applied."""


class LogWorkload:
    """Events, one by one, in bursts and in bulk; cancelled, and tried again under the same id."""

    def __init__(self, world: World) -> None:
        self.board = Switchboard(Random(world.random.random()))
        self.server = LogServer(self.board)
        self.world = world
        self.sent: dict[UUID, _Sent] = {}
        self._failed: list[UUID] = []

    def build(self, app: App) -> dict[str, Any]:
        world, chance = self.world, self.world.random
        client = LogClient(self.server)
        spool = Spool(
            SimulatedPath(ROOT),
            "logs",
            namespace="db",
            limits=world.limits,
            clock=world.clock,
            host="here",
            any_file_system=True,
        )
        options = FailoverOptions(deadline_seconds=DEADLINE, starts_degraded=chance.random() < 0.8)
        watch = Watch("logs", client.name, world.clock, [_Transitions(self, app)])
        app.notes["waiting"] = {}
        app.notes["ended"] = 0
        app.notes["away"] = None
        backend = FailoverLogBackend(
            client,
            Primary(client, client),
            spool,
            watch,
            options,
            now=world.loop.time,
            seed=chance.getrandbits(30),
        )
        return {"logs": backend}

    # Calls

    async def act(self, app: App, db: MultiDB) -> None:
        chance = self.world.random
        drawn = chance.random()
        if drawn < 0.6:
            await self._log(app, db, self._new_id(app))
        elif drawn < 0.72:
            await asyncio.gather(
                *(self._log(app, db, self._new_id(app)) for _ in range(chance.choice((2, 5, 20))))
            )
        elif drawn < 0.8:
            await self._log_many(app, db, [self._new_id(app) for _ in range(chance.choice((1, 20, 150)))])
        elif drawn < 0.9:
            await self._cancelled(app, db)
        elif drawn < 0.95 and self._failed:
            await self._log(app, db, chance.choice(self._failed))
        else:
            await self._read(app, db)

    def _new_id(self, app: App) -> UUID:
        chance = self.world.random
        number = UUID(bytes=chance.randbytes(16), version=4)
        self.sent[number] = _Sent(app, is_poison=chance.random() < 0.003)
        return number

    def _type(self, number: UUID) -> str:
        return POISON if self.sent[number].is_poison else "x"

    async def _log(self, app: App, db: MultiDB, number: UUID) -> None:
        sent = self.sent[number]
        async with _Attempt(self, app, [number]) as attempt:
            event = await app.timed(
                db.logs.log_event(number.node % 7, self._type(number), str(number), event_id=number)
            )
            attempt.acknowledged(spooled=event.is_spooled)
            if sent.is_poison:
                self.world.expect(event.is_spooled, "the server took what it never takes")

    async def _log_many(self, app: App, db: MultiDB, numbers: list[UUID]) -> None:
        events = [
            {
                "user_identifier": number.node % 7,
                "event_type": self._type(number),
                "message": str(number),
                "event_id": number,
            }
            for number in numbers
        ]
        async with _Attempt(self, app, numbers) as attempt:
            await app.timed(db.logs.log_events(events))
            attempt.acknowledged(spooled=False)

    async def _cancelled(self, app: App, db: MultiDB) -> None:
        world = self.world
        task = asyncio.create_task(self._log(app, db, self._new_id(app)), name="to be cancelled")
        await asyncio.sleep(world.random.choice((0, 0.001, 0.1, 1.3)))
        task.cancel()
        began = world.loop.time()
        await asyncio.wait((task,))
        world.expect(world.loop.time() - began <= 0.25 or app.dead, "a cancelled call went on")
        if not task.cancelled():
            task.result()

    async def _read(self, app: App, db: MultiDB) -> None:
        try:
            await app.timed(db.logs.get_events(limit=3))
        except (BackendError, ConfigurationError, ClosedError) as exc:
            self.world.figures.errors[type(exc).__name__] += 1

    # Health

    def look(self, app: App, db: MultiDB) -> None:
        world, board = self.world, self.board
        health = db.health()["logs"]
        status = health.status
        world.figures.statuses[status.value] += 1
        waiting: dict[UUID, None] = app.notes["waiting"]
        if status is Status.UP:
            for number in [each for each in waiting if self.server.stored[each]]:
                del waiting[number]
            assert not health.backlog_records, health
            assert not waiting, f"UP, and {len(waiting)} records wait"
            # A password that is wrong is an error of every call, and nothing else.
            if board.away_seconds > 20 and not board.was("password", 20):
                assert self._ended_since_away(app) < 3, "UP, and the server is away"
        if status is Status.READ_ONLY:
            assert board.was("read_only", 40), "READ_ONLY, and the server never said so"
        if status is Status.DOWN:
            assert (
                board.was("password", 40) or world.disk_was_bad_within(60) or world.limits.max_bytes < 1 << 28
            ), "DOWN, and nothing is wrong with the disk or the password"

    def transition(self, app: App, details: TransitionDetails) -> None:
        self.world.say(
            f"app {app.number}: {details.before.value} -> {details.after.value} {details.reason or ''}"
        )
        if details.after is Status.RECOVERING and details.before not in (Status.CLOSED, Status.UP):
            # It knew that the server was away, and says now that it is back.
            away = self.board.away_seconds
            self.world.expect(away <= 5, f"RECOVERING, and the server is away since {away:.1f} s")

    def ended(self, app: App, began: float) -> None:
        """Take note of a write that ended."""
        notes, world, board = app.notes, self.world, self.board
        seconds = world.loop.time() - began
        if board.away_since is None or began < board.away_since:
            return
        if notes["away"] != board.away_since:
            notes["away"], notes["ended"] = board.away_since, 0
        if notes["ended"] >= 5 and began - board.away_since > 5 and not world.disk_was_bad_within(10):
            world.expect(
                seconds <= 0.5, f"in an outage a call waited {seconds:.3f} s for a server that is away"
            )
        notes["ended"] += 1

    def _ended_since_away(self, app: App) -> int:
        return app.notes["ended"] if app.notes["away"] == self.board.away_since else 0

    def is_settled(self, db: MultiDB) -> bool:
        health = db.health()["logs"]
        return health.status is Status.UP and not health.backlog_records

    def done(self) -> int:
        return len(self.server.stored) + len(self.server.refused)

    # What is there

    def check(self) -> None:
        set_aside = self._set_aside()
        stored = self.server.stored
        good = [number for number, sent in self.sent.items() if sent.acknowledged and not sent.is_poison]
        lost = [number for number in good if not stored[number]]
        if lost:
            raise FlawError(
                f"{len(lost)} of {len(good)} acknowledged events are lost, for one {lost[0]}: {self.sent[lost[0]].how}"
            )
        doubled = [number for number, count in stored.items() if count > 1]
        if doubled:
            raise FlawError(f"{len(doubled)} events are stored twice, {doubled[0]} for one")
        if unknown := stored.keys() - self.sent.keys():
            raise FlawError(f"{len(unknown)} events are stored that nobody sent")
        poison = {str(number) for number, sent in self.sent.items() if sent.is_poison}
        if lost := [
            number
            for number, sent in self.sent.items()
            if sent.is_poison and sent.acknowledged and str(number) not in set_aside
        ]:
            raise FlawError(f"{len(lost)} events that the server refuses are lost: they are not set aside")
        if wrong := set_aside - poison:
            raise FlawError(f"{len(wrong)} events were set aside, and nothing is wrong with them")
        for number, sent in self.sent.items():
            if sent.refused and not sent.unclear and not sent.acknowledged and stored[number]:
                raise FlawError(f"{number} is stored, and its error said that it was not")
        files = self.world.machine.disk.files()
        left = [path for path in files if "/rejected/" not in path]
        if left:
            raise FlawError(f"in the spool there is left: {left}")

    def _set_aside(self) -> set[str]:
        found = set()
        for _, rejection in tools.rejections(SimulatedPath(ROOT)):
            assert rejection.record is not None, rejection
            found.add(tools.load(rejection.record)["record"]["id"])
        return found


class _Attempt:
    """A write of some events, and what is known of it afterwards."""

    def __init__(self, load: LogWorkload, app: App, numbers: list[UUID]) -> None:
        self._load = load
        self._app = app
        self._numbers = numbers
        self._acknowledged = False

    def acknowledged(self, *, spooled: bool) -> None:
        load, app = self._load, self._app
        if app.dead:
            return
        self._acknowledged = True
        load.world.figures.acknowledged += len(self._numbers)
        load.world.figures.spooled += spooled
        for number in self._numbers:
            sent = load.sent[number]
            sent.acknowledged = True
            sent.how = f"{load.world.loop.time() - 1000:.4f} s, pid {app.pid}, {len(self._numbers)} at once"
            sent.how += ", spooled" * spooled
            if not load.server.stored[number] and not sent.is_poison:
                app.notes["waiting"][number] = None

    async def __aenter__(self) -> Self:
        self._began = self._load.world.loop.time()
        for number in self._numbers:
            self._load.sent[number].unclear += 1
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        load, app = self._load, self._app
        if app.dead or isinstance(error, asyncio.CancelledError | Killed):
            return False
        definite = isinstance(error, BackendError) and not error.ambiguous
        for number in self._numbers:
            sent = load.sent[number]
            if error is None or definite:
                sent.unclear -= 1
            sent.refused += definite
            if error is not None and len(load._failed) < 100:
                load._failed.append(number)
        load.ended(app, self._began)
        if app.db is not None and load.world.random.random() < 0.2:
            load.world.look(app, app.db)
        if error is None:
            return False
        load.world.figures.errors[type(error).__name__] += 1
        return isinstance(error, BackendError | ConfigurationError | ClosedError)


class _Transitions:
    def __init__(self, load: LogWorkload, app: App) -> None:
        self._load = load
        self._app = app

    def on_operation(self, _: object) -> None:
        pass

    def on_transition(self, details: TransitionDetails) -> None:
        if not self._app.dead:
            self._load.transition(self._app, details)


class _OrderedTicket(guard._Ticket):
    """Sets of them have the same order in every run."""

    __slots__ = ("_number",)
    _last = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        _OrderedTicket._last += 1
        self._number = _OrderedTicket._last

    def __hash__(self) -> int:
        return self._number

    __eq__ = object.__eq__


class _Errors(logging.Handler):
    """An error in the log is a flaw: it says that something happened that was not thought of."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        program = PROGRAM.get()
        if program is None or not program.dead:
            error = record.exc_info[1] if record.exc_info else None
            self._world.flaw(FlawError(f"logged: {record.getMessage()} {error!r}"))


def simulate(
    seed: int,
    workloads: Sequence[Callable[[World], Workload]] = (LogWorkload,),
    *,
    log: list[str] | None = None,
) -> Figures:
    """Let the world of *seed* go by; return the figures. Raises FlawError, or whatever was raised that should not be."""
    logger = logging.getLogger("multidb")

    async def run() -> Figures:
        world = World(seed, workloads)
        if log is not None:
            world.log = log

        def unhandled(_: object, context: dict[str, Any]) -> None:
            error = context.get("exception")
            if not isinstance(error, Killed):
                world.flaw(FlawError(f"{context['message']}: {error!r}"))

        world.loop.set_exception_handler(unhandled)
        world.machine.mount(monkeypatch)
        handler = _Errors(world)
        logger.addHandler(handler)
        try:
            await world.run()
        finally:
            logger.removeHandler(handler)
        return world.figures

    _OrderedTicket._last = 0
    propagates, logger.propagate = logger.propagate, False
    try:
        with (
            pytest.MonkeyPatch.context() as monkeypatch,
            asyncio.Runner(loop_factory=SimulatedLoop) as runner,
        ):
            monkeypatch.setattr(guard, "_Ticket", _OrderedTicket)
            return runner.run(run())
    finally:
        logger.propagate = propagates

"""
A soak: a hundred tasks that call everything that is hot, and are cancelled at any moment, for some seconds.

MULTIDB_TEST_SOAK_SECONDS sets how long each of the two runs takes; 60 is a good minute.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from random import Random
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from multidb import ClosedError, MultiDB, Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from uuid import UUID

    from multidb.testing.pytest_plugin import Servers

SECONDS = float(os.environ.get("MULTIDB_TEST_SOAK_SECONDS", "4"))
TASKS = 120
CANCELLED = 0.25

pytestmark = pytest.mark.timeout(SECONDS * 3 + 120)


class Register:
    """One place that one task writes growing numbers to. What it holds is never older than what was acknowledged."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.unknown: set[int] = set()
        """Written by calls that were cancelled, after what was acknowledged last."""

    def next(self) -> int:
        return max(self.acknowledged, *self.unknown, 0) + 1 if self.unknown else self.acknowledged + 1

    def wrote(self, number: int, *, acknowledged: bool) -> None:
        if acknowledged:
            self.acknowledged = number
            self.unknown.clear()
        else:
            self.unknown.add(number)

    def check(self, number: int) -> None:
        assert number in {self.acknowledged, *self.unknown}, (number, self.acknowledged, self.unknown)


class Count:
    """A counter that one task increments."""

    def __init__(self) -> None:
        self.acknowledged = self.cancelled = self.seen = 0

    def check(self, value: int) -> None:
        assert self.acknowledged <= value <= self.acknowledged + self.cancelled


class Person:
    """One task, with what it was told of what it wrote."""

    def __init__(self, number: int, soak: Soak) -> None:
        self.user, self.soak = f"user {number}", soak
        self.random = Random(number)
        self.events: dict[UUID, bool] = {}
        self.sales: dict[UUID, bool] = {}
        self.states = {key: Register() for key in ("a", "b", "c")}
        self.fields = {path: Register() for path in ("n", "settings.theme", "top")}
        self.counter = Count()

    async def run(self, until: float) -> None:
        await self.soak.db.profiles.create_or_update_profile(
            self.user, {"n": 0, "top": 0, "settings": {"theme": 0}, "user_id": self.user}
        )
        calls = (
            self.log_event,
            self.log_event,
            self.log_sale,
            self.set_state,
            self.get_state,
            self.increment_counter,
            self.update_profile_field,
            self.create_or_update_profile,
            self.get_profile,
        )
        while perf_counter() < until:
            await self.random.choice(calls)()

    async def perhaps(self, call: Awaitable[Any]) -> tuple[bool, Any]:
        """Return whether *call* was answered, and how. Some are cancelled, in one of two ways, after a moment."""
        kind = "answered"
        answer = None
        if self.random.random() >= CANCELLED:
            answer = await call
        elif self.random.random() < 0.5:
            try:
                async with asyncio.timeout(self._moment()):
                    answer = await call
            except TimeoutError:
                kind = "timed out"
        else:
            task = asyncio.ensure_future(call)
            moment = self._moment()
            if moment:
                await asyncio.wait((task,), timeout=moment)
            else:
                await asyncio.sleep(0)
            task.cancel()
            try:
                answer = await task
            except asyncio.CancelledError:
                kind = "cancelled"
        self.soak.kinds[kind] += 1
        return kind == "answered", answer

    def _moment(self) -> float:
        return self.random.choice((0, 0.0001, 0.0005, 0.001, 0.002, 0.005, 0.02)) * self.random.random()

    async def log_event(self) -> None:
        number = uuid4()
        self.events[number] = False
        self.events[number], _ = await self.perhaps(
            self.soak.db.logs.log_event(
                self.user,
                "said",
                f"message {number}",
                context={"n": len(self.events)},
                event_id=number,
            )
        )

    async def log_sale(self) -> None:
        number = uuid4()
        self.sales[number] = False
        self.sales[number], _ = await self.perhaps(
            self.soak.db.logs.log_sale(self.user, "coffee", Decimal("4.50"), currency="EUR", sale_id=number)
        )

    async def set_state(self) -> None:
        key = self.random.choice(tuple(self.states))
        register = self.states[key]
        number = register.next()
        acknowledged, _ = await self.perhaps(self.soak.db.state.set_state(self.user, key, {"n": number}))
        register.wrote(number, acknowledged=acknowledged)

    async def get_state(self) -> None:
        key = self.random.choice(tuple(self.states))
        answered, value = await self.perhaps(self.soak.db.state.get_state(self.user, key, {"n": 0}))
        if answered:
            self.states[key].check(value["n"])

    async def increment_counter(self) -> None:
        counter = self.counter
        acknowledged, value = await self.perhaps(self.soak.db.state.increment_counter(self.user, "count"))
        if not acknowledged:
            counter.cancelled += 1
            return
        counter.acknowledged += 1
        assert counter.seen < value
        counter.check(value)
        counter.seen = value

    async def update_profile_field(self) -> None:
        path = self.random.choice(("n", "settings.theme"))
        register = self.fields[path]
        number = register.next()
        acknowledged, there = await self.perhaps(
            self.soak.db.profiles.update_profile_field(self.user, path, number)
        )
        assert there or not acknowledged
        register.wrote(number, acknowledged=acknowledged)

    async def create_or_update_profile(self) -> None:
        register = self.fields["top"]
        number = register.next()
        acknowledged, profile = await self.perhaps(
            self.soak.db.profiles.create_or_update_profile(self.user, {"top": number})
        )
        register.wrote(number, acknowledged=acknowledged)
        if acknowledged:
            self.check_profile(profile)

    async def get_profile(self) -> None:
        answered, profile = await self.perhaps(self.soak.db.profiles.get_profile_by_username(self.user))
        if answered:
            self.check_profile(profile)

    def check_profile(self, profile: dict[str, Any]) -> None:
        assert self.user == profile["username"]
        self.fields["n"].check(profile["n"])
        self.fields["top"].check(profile["top"])
        self.fields["settings.theme"].check(profile["settings"]["theme"])

    async def check(self, db: MultiDB) -> None:
        """What is stored is what it was told."""
        _check_ids(self.events, [event.id async for event in db.logs.iter_events(self.user)])
        _check_ids(self.sales, [sale.id for sale in await db.logs.get_sales(self.user, limit=10_000)])
        for key, register in self.states.items():
            register.check((await db.state.get_state(self.user, key, {"n": 0}))["n"])
        self.counter.check(await db.state.get_counter(self.user, "count"))
        profile = await db.profiles.get_profile_by_username(self.user)
        assert profile is not None
        self.check_profile(profile)


def _check_ids(told: dict[UUID, bool], stored: list[UUID]) -> None:
    assert len(stored) == len(set(stored))
    assert {each for each, acknowledged in told.items() if acknowledged} <= set(stored) <= set(told)


class Soak:
    """A hundred persons on one MultiDB."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.kinds: Counter[str] = Counter()
        self.persons = [Person(number, self) for number in range(TASKS)]
        self.db: MultiDB

    async def run(self, seconds: float) -> None:
        async with MultiDB(self.settings) as self.db:
            until = perf_counter() + seconds
            await asyncio.gather(*(person.run(until) for person in self.persons))
            # Some are in the middle of something when it closes.
            last = [asyncio.create_task(person.log_event()) for person in self.persons[:20]]
            await asyncio.sleep(0)
        ends = await asyncio.gather(*last, return_exceptions=True)
        assert {type(None), ClosedError} >= {type(end) for end in ends}
        await asyncio.sleep(0)
        assert {asyncio.current_task()} == asyncio.all_tasks()

    async def check(self) -> None:
        async with MultiDB(self.settings) as db:
            for person in self.persons:
                await person.check(db)


async def _soak(settings: Settings, clients: Callable[[], Counter[str]]) -> None:
    gc.collect()
    before = _held() + clients()
    soak = Soak(settings)
    await soak.run(SECONDS)
    gc.collect()
    for _ in range(40):
        left = (_held() + clients()) - before
        if not left:
            break
        await asyncio.sleep(0.05)  # A server takes a moment to note that a client is gone.
    await soak.check()
    calls = soak.kinds.total()
    kinds = ", ".join(f"{kind}: {count:,}" for kind, count in soak.kinds.most_common())
    print(f"\nsoak of {SECONDS:g} s: {calls:,} calls ({calls / SECONDS:,.0f}/s), {kinds}")

    assert Counter() == left
    assert soak.kinds["answered"] > 1000
    assert min(soak.kinds["timed out"], soak.kinds["cancelled"]) > 50


def _held() -> Counter[str]:
    """The open files, pipes and sockets of this process by kind, and its threads but those of the event loop."""
    held: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        try:
            held[link.readlink().as_posix().partition(":[")[0]] += 1
        except FileNotFoundError:
            continue
    held.update(thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_"))
    return held


@pytest.fixture(autouse=True)
def _no_complaint(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither asyncio nor multidb has anything to complain of, but of servers that have no replica."""
    yield
    gc.collect()
    records = [*caplog.get_records("call"), *caplog.records]
    serious = [record for record in records if record.levelname in ("WARNING", "ERROR", "CRITICAL")]
    complaints = [f"{record.name}: {record.getMessage()}" for record in serious]
    assert [] == [each for each in complaints if "acknowledged data is in danger" not in each]


async def test_servers(multidb_servers: Servers) -> None:
    """On PostgreSQL, MongoDB and Valkey: what was acknowledged is there, once, and nothing else is left."""
    with multidb_servers.settings() as settings:
        # A call that is slow on a busy machine is no failure here.
        patient = settings.model_copy(update={"deadline_seconds": 20.0})
        await _soak(patient, lambda: _clients(settings))


def _clients(settings: Settings) -> Counter[str]:
    """The connections of multidb that the servers see."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _look(settings)).result()


async def _look(settings: Settings) -> Counter[str]:
    import asyncpg
    from pymongo import AsyncMongoClient
    from redis.asyncio import Redis

    assert settings.postgres_url is not None
    assert settings.mongodb_uri is not None
    assert settings.redis_url is not None
    postgresql = await asyncpg.connect(settings.postgres_url.get_secret_value())
    names = await postgresql.fetch("SELECT application_name FROM pg_stat_activity")
    await postgresql.close()
    found = Counter(f"postgresql: {name}" for (name,) in names if name == "multidb")
    async with AsyncMongoClient(settings.mongodb_uri.get_secret_value()) as mongodb:
        pipeline = [{"$currentOp": {"allUsers": True, "idleConnections": True}}]
        operations = await (await mongodb.admin.aggregate(pipeline)).to_list()
    found.update("mongodb" for each in operations if each.get("appName") == "multidb")
    async with Redis.from_url(settings.redis_url.get_secret_value()) as valkey:
        clients = await valkey.client_list()
    found.update("valkey" for each in clients if each["name"] == "multidb")
    return found


async def test_embedded(tmp_path: Path) -> None:
    """The same on what a program gets that sets nothing: SQLite, files, and a journal."""
    await _soak(Settings(data_dir=tmp_path, deadline_seconds=20.0), Counter)

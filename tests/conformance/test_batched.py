"""Calls that share a flush, through the whole store: on a backend that fails in every way, and on real ones."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtual_time import VirtualLoop, in_virtual_time, turns

from multidb import MultiDB, Settings
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ConflictError,
    InvalidValueError,
    MultiDBError,
)
from multidb.logs._records import Event
from multidb.logs.backends.memory import MemoryLogBackend
from multidb.logs.protocol import Appended, Entry, Query
from multidb.profiles.backends.memory import MemoryProfileBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from multidb.testing.pytest_plugin import Servers

pytestmark = pytest.mark.timeout(120)

NAMESPACE = UUID(int=7)
WHEN = datetime(2026, 1, 2, tzinfo=UTC)
REFUSED = "refused"
"""The type of an event that the server refuses, although every check lets it through."""


@dataclass(frozen=True)
class Step:
    """One call of a task. *shared*: an id that others use, too, with one content or another."""

    user: int
    shared: int | None = None
    content: int = 0
    refused: bool = False
    cancel_after: int | None = None
    pause: int = 0


@dataclass
class Said:
    """What a caller asked for, and what it was told: an event, an error, or nothing when it was cancelled."""

    step: Step
    id: UUID
    message: str
    told: Event | Exception | None = None


class Program:
    """Tasks that log, and an account of what they were told."""

    def __init__(self, db: MultiDB, pause: Callable[[int], Awaitable[None]]) -> None:
        self.db = db
        self.pause = pause
        self.said: list[Said] = []

    async def run(self, tasks: Sequence[Sequence[Step]]) -> None:
        await asyncio.gather(*(self._task(f"t{number}", steps) for number, steps in enumerate(tasks)))

    async def _task(self, name: str, steps: Sequence[Step]) -> None:
        for number, step in enumerate(steps):
            if step.shared is None:
                said = Said(step, uuid5(NAMESPACE, f"{name} {number}"), f"{name} {number}")
            else:
                said = Said(step, UUID(int=1000 + step.shared), f"shared {step.content}")
            self.said.append(said)
            await self._call(said)
            await self.pause(step.pause)

    async def _call(self, said: Said) -> None:
        step = said.step
        call = asyncio.create_task(
            self.db.logs.log_event(
                f"user {step.user}",
                REFUSED if step.refused else "said",
                said.message,
                event_id=said.id,
                timestamp=WHEN,
            )
        )
        if step.cancel_after is not None:
            await self.pause(step.cancel_after)
            call.cancel()
        try:
            said.told = await call
        except asyncio.CancelledError:
            pass
        except MultiDBError as exc:
            said.told = exc
        except ZeroDivisionError as exc:
            said.told = exc

    def check(self, stored: Sequence[Event]) -> None:
        """Everybody was told the truth."""
        times = Counter(event.id for event in stored)
        kept = {event.id: event for event in stored}
        asked = {(said.id, said.message, f"user {said.step.user}") for said in self.said}

        assert set(times.values()) <= {1}
        assert asked >= {(event.id, event.message, event.user_id) for event in stored}
        assert REFUSED not in {event.event_type for event in stored}
        for said in self.said:
            there = kept.get(said.id)
            mine = there is not None and (there.message, there.user_id) == (
                said.message,
                f"user {said.step.user}",
            )
            if isinstance(said.told, Event):
                assert said.id == said.told.id
                assert said.message == said.told.message
                assert mine
            elif isinstance(said.told, ConflictError) and not said.step.refused:
                assert there is not None
                assert not mine
            elif said.step.refused:
                assert said.told is None or isinstance(said.told, MultiDBError | ZeroDivisionError)
        errors = [said.told for said in self.said if isinstance(said.told, Exception)]
        assert len(errors) == len({id(error) for error in errors})


# On a backend that fails

FAULTS = ("definite", "gone", "gone before", "lost", "part", "hang", "stubborn", "count", "other", "driver")


class FaultyBackend(MemoryLogBackend):
    """Fails its appends as it is told to, one after the other, then no more."""

    def __init__(self, faults: Sequence[tuple[str, int]]) -> None:
        super().__init__()
        self._faults = iter(faults)
        self.order: list[UUID] = []
        self.batches: list[int] = []

    async def append(self, entries: Sequence[Entry[Any]], /) -> Sequence[Appended]:
        self.batches.append(len(entries))
        fault, number = next(self._faults, ("", 0))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        if any(entry.record.event_type == REFUSED for entry in entries):
            raise BackendError("the database refused the data")
        if fault in ("definite", "other", "gone before", "driver"):
            raise {
                "definite": BackendError("refused"),
                "other": ZeroDivisionError(),
                "gone before": BackendUnavailableError("gone"),
                "driver": asyncio.CancelledError(),
            }[fault]
        if fault == "part":
            await self._store(entries[: number % len(entries)])
            raise BackendError("failed in the middle", ambiguous=True)
        if fault == "hang":
            await asyncio.Event().wait()
        if fault == "stubborn":
            await self._sleep_whatever_happens(number)
        outcomes = await self._store(entries)
        if fault in ("gone", "lost"):
            kind = BackendTimeoutError if fault == "lost" else BackendUnavailableError
            raise kind("the answer was lost", ambiguous=True)
        return outcomes[1:] if fault == "count" else outcomes

    async def _store(self, entries: Sequence[Entry[Any]]) -> Sequence[Appended]:
        outcomes = await super().append(entries)
        for entry, outcome in zip(entries, outcomes, strict=True):
            if outcome is Appended.STORED:
                self.order.append(entry.record.id)
        return outcomes

    async def _sleep_whatever_happens(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue


steps = st.builds(
    Step,
    user=st.integers(0, 2),
    shared=st.one_of(st.none(), st.none(), st.integers(0, 3)),
    content=st.integers(0, 1),
    refused=st.sampled_from([False] * 9 + [True]),
    cancel_after=st.one_of(st.none(), st.none(), st.integers(0, 8)),
    pause=st.integers(0, 4),
)
EVERYTHING = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


async def _play(backend: FaultyBackend, tasks: Sequence[Sequence[Step]], queue_max_calls: int) -> Program:
    settings = Settings(
        postgres_url="memory://",
        mongodb_uri="memory://",
        redis_url="memory://",
        queue_max_calls=queue_max_calls,
    )
    async with MultiDB(settings, logs=backend) as db:
        program = Program(db, turns)
        await program.run(tasks)
    await asyncio.sleep(60)  # What the backend does although it was cancelled.
    assert {asyncio.current_task()} == asyncio.all_tasks()
    return program


@EVERYTHING
@given(
    tasks=st.lists(st.lists(steps, max_size=6), min_size=1, max_size=12),
    faults=st.lists(st.tuples(st.sampled_from(["", *FAULTS]), st.integers(0, 20)), max_size=12),
    queue_max_calls=st.sampled_from([1, 3, 100]),
)
def test_backend_that_fails(
    tasks: list[list[Step]], faults: list[tuple[str, int]], queue_max_calls: int
) -> None:
    """Whatever a backend does: who is told that its event is stored, or in conflict, is told the truth."""

    async def test() -> None:
        backend = FaultyBackend(faults)
        program = await _play(backend, tasks, queue_max_calls)
        stored = await backend.query(Query(Event, limit=10_000))

        program.check(stored)
        # What one task had answered for one user came in its order.
        place = {each: number for number, each in enumerate(backend.order)}
        for user in range(3):
            for name in {said.message.split()[0] for said in program.said if said.step.shared is None}:
                mine = [
                    place[said.id]
                    for said in program.said
                    if isinstance(said.told, Event)
                    and said.step.user == user
                    and said.message.startswith(f"{name} ")
                ]
                assert sorted(mine) == mine

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(test())


@in_virtual_time
async def test_refused_event_among_good_ones() -> None:
    """Calls at once share an append; one that is refused fails alone, without a trial of each."""
    backend = FaultyBackend([])
    tasks = [[Step(user, refused=user == 20)] for user in range(100)]
    program = await _play(backend, tasks, 100)
    kinds = Counter(type(said.told).__name__ for said in program.said)
    program.check(await backend.query(Query(Event, limit=100)))

    assert {"Event": 99, "BackendError": 1} == kinds
    assert len(backend.batches) < 20


@in_virtual_time
async def test_errors_say_where() -> None:
    """An error of a shared flush names store, backend and operation for every caller."""
    backend = FaultyBackend([("gone", 0)] * 3)
    program = await _play(backend, [[Step(user)] for user in range(20)], 100)
    told = [said.told for said in program.said]

    assert {"logs.log_event on memory: the answer was lost"} == {str(error) for error in told}
    assert {("logs", "memory", "log_event", True)} == {
        (error.store, error.backend, error.operation, error.ambiguous)
        for error in told
        if isinstance(error, BackendError)
    }


@in_virtual_time
async def test_results_are_ones_own() -> None:
    """Whoever asks for the same thing in one flush gets an object of its own, and may change it."""
    settings = Settings(postgres_url="memory://", mongodb_uri="memory://", redis_url="memory://")
    async with MultiDB(settings, profiles=MemoryProfileBackend(), logs=MemoryLogBackend()) as db:
        profiles, sessions = db.profiles, db.logs
        written = await asyncio.gather(
            *(profiles.create_or_update_profile("a", {"x": {"y": [1]}}) for _ in range(5))
        )
        read = await asyncio.gather(*(profiles.get_profile_by_username("a") for _ in range(5)))
        touched = await asyncio.gather(
            *(sessions.create_or_update_session("a", context={"x": [1]}) for _ in range(5))
        )

    assert [1, 2, 3, 4, 5] == [document["version"] for document in written]
    assert 10 == len({id(document["x"]["y"]) for document in (*written, *read) if document})
    assert 5 == len({id(session.context["x"]) for session in touched})


# On real ones


def _tasks(seed: int, *, refused: bool) -> list[list[Step]]:
    random = Random(seed)

    def step() -> Step:
        return Step(
            user=random.randrange(8),
            shared=random.randrange(20) if random.random() < 0.2 else None,
            content=random.randrange(2),
            refused=refused and random.random() < 0.02,
            cancel_after=random.randrange(12) if random.random() < 0.15 else None,
            pause=random.randrange(3),
        )

    return [[step() for _ in range(12)] for _ in range(80)]


async def _half_milliseconds(count: int) -> None:
    await asyncio.sleep(count / 2000)


async def _check_on(settings: Settings, *, seed: int, refused: bool) -> Counter[str]:
    async with MultiDB(settings) as db:
        program = Program(db, _half_milliseconds)
        await program.run(_tasks(seed, refused=refused))
    async with MultiDB(settings) as db:
        stored = [event async for event in db.logs.iter_events()]

    program.check(stored)
    return Counter(type(said.told).__name__ for said in program.said)


@pytest.mark.parametrize("seed", range(2))
async def test_postgresql(multidb_servers: Servers, seed: int) -> None:
    """On PostgreSQL, where a constraint refuses some rows: each caller is told of its own event, and truly."""
    import asyncpg

    with multidb_servers.postgres.database() as url:
        settings = Settings(postgres_url=url, mongodb_uri="memory://", redis_url="memory://")
        async with MultiDB(settings):
            pass
        connection = await asyncpg.connect(url)
        await connection.execute(f"ALTER TABLE multidb_events ADD CHECK (event_type <> '{REFUSED}')")
        await connection.close()
        told = await _check_on(settings, seed=seed, refused=True)

    assert told["Event"] > 500
    assert told["ConflictError"] > 20
    assert {"Event", "ConflictError", "BackendError", "NoneType"} >= set(told)


async def test_sqlite(tmp_path: Path) -> None:
    """The same on SQLite, with a trigger."""
    settings = Settings(data_dir=tmp_path, mongodb_uri="memory://", redis_url="memory://")
    async with MultiDB(settings):
        pass
    connection = sqlite3.connect(tmp_path / "multidb.db")
    connection.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON multidb_events "
        f"WHEN NEW.event_type = '{REFUSED}' BEGIN SELECT RAISE(ABORT, 'refused'); END"
    )
    connection.close()
    told = await _check_on(settings, seed=0, refused=True)

    assert told["Event"] > 500
    assert told["ConflictError"] > 20
    assert {"Event", "ConflictError", "BackendError", "NoneType"} >= set(told)


async def test_files(tmp_path: Path) -> None:
    """The same on files, which refuse nothing."""
    settings = Settings(
        data_dir=tmp_path,
        postgres_url=f"file://{tmp_path / 'logs'}",
        mongodb_uri="memory://",
        redis_url="memory://",
    )
    told = await _check_on(settings, seed=1, refused=False)

    assert told["Event"] > 500
    assert told["ConflictError"] > 20
    assert {"Event", "ConflictError", "NoneType"} >= set(told)


# Profiles, whose writes must not be applied twice


async def _check_profiles(settings: Settings, *, too_large: type[MultiDBError] | None) -> None:
    async with MultiDB(Settings(**dict(settings) | {"deadline_seconds": 20.0})) as db:
        profiles = db.profiles
        users = [f"user {number}" for number in range(40)]
        for user in (*users, "large", "taken", "full"):
            await profiles.create_or_update_profile(user, {"name": "x", "full": 2**63 - 1})
        for name in "ab" if too_large else "":
            await profiles.update_profile_field("large", name, "x" * 4_000_000)
        results = await asyncio.gather(
            *(profiles.increment_profile_field(user, "n") for user in users[:20]),
            profiles.update_profile_field("taken", "name.x", 1),
            *(profiles.increment_profile_field(user, "n") for user in users),
            profiles.increment_profile_field("full", "full"),
            profiles.update_profile_field("large", "e", "x" * 4_000_000),
            *(profiles.increment_profile_field(user, "n") for user in users[20:]),
            profiles.increment_profile_field("nobody", "n"),
            return_exceptions=True,
        )
        kept = await asyncio.gather(*(profiles.get_profile_by_username(user) for user in users))

    numbers = [result for result in results if type(result) is int]
    assert [1] * 20 == numbers[:20]
    assert [2] * 20 + [1] * 20 == numbers[20:60]
    assert [2] * 20 == numbers[60:]
    assert [2] * 40 == [profile["n"] for profile in kept if profile]
    assert [3] * 40 == [profile["version"] for profile in kept if profile]
    assert ConflictError is type(results[20])
    assert ConflictError is type(results[61])
    assert (too_large or bool) is type(results[62])
    assert results[-1] is None


async def test_profiles_on_mongodb(multidb_servers: Servers) -> None:
    """On MongoDB writes that are refused, also for the size of the document, fail alone; the others count once."""
    with multidb_servers.mongodb.database() as url:
        settings = Settings(postgres_url="memory://", mongodb_uri=url, redis_url="memory://")
        await _check_profiles(settings, too_large=InvalidValueError)


async def test_profiles_in_files(tmp_path: Path) -> None:
    """The same in files, where a document may grow."""
    settings = Settings(data_dir=tmp_path, postgres_url="memory://", redis_url="memory://")
    await _check_profiles(settings, too_large=None)

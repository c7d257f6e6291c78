"""
Work that is measured in a process of its own, for its memory: `python -m benchmarks.alone` gets a job on its input.

The job is JSON: what to do, where, and how much of it; the answer is too.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sqlite3
import sys
import time
from collections import Counter
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import data, events, loops
from benchmarks.stage import settings
from benchmarks.statistics import Sample
from multidb import MultiDB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

_PREFETCH = 1000


@dataclass(frozen=True)
class Job:
    """Do *what*, a function of this module, at *place*, with so many *rows* or tasks."""

    what: str
    place: str
    rows: int
    loop: str = "asyncio"


async def run(job: Job) -> Sample:
    """Do a job in another process; raise RuntimeError with what it said when it failed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.alone",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    try:
        answer, said = await process.communicate(json.dumps(asdict(job)).encode())
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"{job.what} ended with {process.returncode}: {' '.join(last)}")
    return Sample(**json.loads(answer))


async def count(place: str) -> int:
    """Return how many events there are at a URL."""
    if place.startswith("sqlite"):
        with closing(sqlite3.connect(place.removeprefix("sqlite:///"))) as connection:
            return int(connection.execute("SELECT count(*) FROM multidb_events").fetchone()[0])
    import asyncpg

    connection = await asyncpg.connect(place)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM multidb_events"))
    finally:
        await connection.close()


class Meter:
    """What a piece of work takes: time, CPU, memory."""

    def __init__(self) -> None:
        self._base = _memory("VmRSS")
        self._cpu, self._started = time.process_time(), time.perf_counter()

    def sample(
        self, calls: int, latencies: list[float] | None = None, errors: dict[str, int] | None = None
    ) -> Sample:
        """Return what was needed since this was made."""
        seconds, cpu = time.perf_counter() - self._started, time.process_time() - self._cpu
        found = Sample.of(latencies or (), seconds, cpu, errors or {})
        memory = {"calls": calls, "base_mib": self._base, "peak_mib": _memory("VmHWM")}
        return Sample(**(asdict(found) | memory))


def _memory(name: str) -> float:
    """Return a line of this process's status, in MiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # Elsewhere the peak is known, though a child may be told its parent's.
        scale = 2**20 if sys.platform == "darwin" else 2**10
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale, 1)
    (kib,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return round(int(kib) / 1024, 1)


# Writing many


async def multidb_log_events(job: Job) -> Sample:
    """log_events() of an async generator."""

    async def all_events() -> AsyncIterator[dict[str, Any]]:
        for number in range(job.rows):
            yield {
                "user_identifier": data.user(number),
                "event_type": data.event_type(number),
                "message": data.text(number),
                "context": data.context(number),
                "username": "ada",
            }

    async with MultiDB(settings(logs=job.place)) as db:
        meter = Meter()
        return meter.sample(await db.logs.log_events(all_events()))


async def copy_of_ready_rows(job: Job) -> Sample:
    """One COPY of rows that were made before."""
    return await _copy(job, list(_rows(job.rows)))


async def copy_of_fresh_rows(job: Job) -> Sample:
    """One COPY of rows that are made on the way, as multidb has to."""
    return await _copy(job, _rows(job.rows))


async def _copy(job: Job, rows: Any) -> Sample:
    async with _asyncpg(job) as connection:
        meter = Meter()
        done = await connection.copy_records_to_table(
            "multidb_events", records=rows, columns=events.COLUMNS, timeout=None
        )
        return meter.sample(int(done.split()[-1]))


async def executemany_of_ready_rows(job: Job) -> Sample:
    """One executemany in one transaction, of rows that were made before; without aiosqlite's thread."""
    rows = [events.sqlite_row(number) for number in range(job.rows)]
    connection = sqlite3.connect(job.place.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    meter = Meter()
    connection.execute("BEGIN IMMEDIATE")
    done = connection.executemany(events.SQLITE_INSERT, rows).rowcount
    connection.execute("COMMIT")
    sample = meter.sample(done)
    connection.close()
    return sample


def _rows(count: int) -> Iterator[tuple[Any, ...]]:
    return (events.postgres_row(number) for number in range(count))


# Reading all


async def multidb_iter_events(job: Job) -> Sample:
    """iter_events() over everything."""
    async with MultiDB(settings(logs=job.place)) as db:
        meter = Meter()
        seen = 0
        async with aclosing(db.logs.iter_events()) as found:  # type: ignore[type-var]
            async for event in found:
                seen += bool(event.context)
        return meter.sample(seen)


async def asyncpg_cursor(job: Job) -> Sample:
    """A cursor over everything, in the same order; rows to dicts."""
    sql = f"SELECT {events.READ} FROM multidb_events ORDER BY timestamp DESC, id DESC"
    async with _asyncpg(job) as connection, connection.transaction():
        meter = Meter()
        seen = 0
        async for row in connection.cursor(sql, prefetch=_PREFETCH):
            event = dict(row)
            event["context"] = json.loads(event["context"])
            seen += bool(event["context"])
        return meter.sample(seen)


async def aiosqlite_cursor(job: Job) -> Sample:
    """The same with aiosqlite."""
    import aiosqlite

    sql = f"SELECT {events.READ} FROM multidb_events ORDER BY timestamp DESC, id DESC"
    async with aiosqlite.connect(
        job.place.removeprefix("sqlite:///"), iter_chunk_size=_PREFETCH
    ) as connection:
        connection.row_factory = aiosqlite.Row
        meter = Meter()
        seen = 0
        async with connection.execute(sql) as cursor:
            async for row in cursor:
                event: dict[str, Any] = dict(row)
                event["context"] = json.loads(event["context"])
                seen += bool(event["context"])
        return meter.sample(seen)


# Everybody at once


async def multidb_burst(job: Job) -> Sample:
    """As many tasks as rows, each of which calls log_event() once, all at the same time."""
    return await _multidb_burst(job)


async def multidb_patient_burst(job: Job) -> Sample:
    """The same with a deadline that is long enough."""
    return await _multidb_burst(job, deadline_seconds=60)


async def _multidb_burst(job: Job, **options: Any) -> Sample:
    async with MultiDB(settings(logs=job.place, **options)) as db:

        async def call(number: int) -> None:
            await db.logs.log_event(
                data.user(number),
                data.event_type(number),
                data.text(number),
                context=data.context(number),
                username="ada",
            )

        return await _burst(job.rows, call)


async def asyncpg_burst(job: Job) -> Sample:
    """The same with a pool of ten."""
    import asyncpg

    async with asyncpg.create_pool(job.place, min_size=events.POOL, max_size=events.POOL) as pool:

        async def call(number: int) -> None:
            await pool.execute(events.POSTGRES_INSERT, *events.postgres_row(number))

        return await _burst(job.rows, call)


async def aiosqlite_burst(job: Job) -> Sample:
    """The same with one connection that commits each statement."""
    import aiosqlite

    async with aiosqlite.connect(job.place.removeprefix("sqlite:///"), isolation_level=None) as connection:
        await connection.execute("PRAGMA synchronous = FULL")

        async def call(number: int) -> None:
            await connection.execute(events.SQLITE_INSERT, events.sqlite_row(number))

        return await _burst(job.rows, call)


async def _burst(tasks: int, call: Callable[[int], Awaitable[None]]) -> Sample:
    latencies: list[float] = []
    errors: Counter[str] = Counter()

    async def one(number: int) -> None:
        started = time.perf_counter()
        try:
            await call(number)
        except Exception as exc:  # noqa: BLE001 -- counted
            errors[type(exc).__name__] += 1
        else:
            latencies.append(time.perf_counter() - started)

    await call(tasks)  # A connection, and a prepared statement.
    meter = Meter()
    await asyncio.gather(*(one(number) for number in range(tasks)))
    return meter.sample(len(latencies), latencies, dict(errors))


@asynccontextmanager
async def _asyncpg(job: Job) -> AsyncIterator[Any]:
    import asyncpg

    connection = await asyncpg.connect(job.place)
    try:
        yield connection
    finally:
        await connection.close()


def main() -> None:
    """Do the job on standard input, print the sample."""
    job = Job(**json.load(sys.stdin))
    work: Callable[[Job], Awaitable[Sample]] = globals()[job.what]
    with asyncio.Runner(loop_factory=loops.factory(job.loop)) as runner:
        print(json.dumps(asdict(runner.run(_called(work, job)))))


async def _called(work: Callable[[Job], Awaitable[Sample]], job: Job) -> Sample:
    return await work(job)


if __name__ == "__main__":
    main()

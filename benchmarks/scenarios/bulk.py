"""Moving many events, each contender in a process of its own: writing all, reading all, and everybody at once."""

from __future__ import annotations

from benchmarks.scenario import OURS, AloneScenario

_PATIENT = "multidb, deadline_seconds=60"

writing_postgres = AloneScenario(
    "bulk_postgres",
    "log_events() of an async generator, PostgreSQL, the same table and indexes",
    baseline="one COPY",
    kind="postgres",
    jobs={
        OURS: ("multidb_log_events", None),
        "one COPY": ("copy_of_ready_rows", "asyncpg"),
        "one COPY, rows made on the way": ("copy_of_fresh_rows", "asyncpg"),
    },
)
writing_sqlite = AloneScenario(
    "bulk_sqlite",
    "log_events() of an async generator, SQLite, the same schema",
    baseline="one executemany",
    kind="sqlite",
    jobs={OURS: ("multidb_log_events", None), "one executemany": ("executemany_of_ready_rows", None)},
)
reading_postgres = AloneScenario(
    "iter_postgres",
    "iter_events() over everything, PostgreSQL",
    baseline="asyncpg cursor",
    kind="postgres",
    reads=True,
    jobs={OURS: ("multidb_iter_events", None), "asyncpg cursor": ("asyncpg_cursor", "asyncpg")},
)
reading_sqlite = AloneScenario(
    "iter_sqlite",
    "iter_events() over everything, SQLite",
    baseline="aiosqlite cursor",
    kind="sqlite",
    reads=True,
    jobs={OURS: ("multidb_iter_events", None), "aiosqlite cursor": ("aiosqlite_cursor", "aiosqlite")},
)
burst_postgres = AloneScenario(
    "burst_postgres",
    "So many tasks call log_event() at once, PostgreSQL",
    baseline="asyncpg pool",
    kind="postgres",
    unit="tasks",
    jobs={
        OURS: ("multidb_burst", None),
        _PATIENT: ("multidb_patient_burst", None),
        "asyncpg pool": ("asyncpg_burst", "asyncpg"),
    },
)
burst_sqlite = AloneScenario(
    "burst_sqlite",
    "So many tasks call log_event() at once, SQLite",
    baseline="aiosqlite",
    kind="sqlite",
    unit="tasks",
    jobs={
        OURS: ("multidb_burst", None),
        _PATIENT: ("multidb_patient_burst", None),
        "aiosqlite": ("aiosqlite_burst", "aiosqlite"),
    },
)

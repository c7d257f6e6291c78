"""Every scenario, in the order in which they are run and shown."""

from benchmarks.scenario import Scenario
from benchmarks.scenarios import (
    bulk,
    get_events,
    handler,
    log_event_postgres,
    log_event_sqlite,
    profiles,
    state,
    state_memory,
)

SCENARIOS: list[Scenario] = [
    log_event_postgres.scenario,
    log_event_sqlite.scenario,
    state.writing,
    state.reading,
    state_memory.scenario,
    profiles.saving,
    profiles.setting,
    profiles.getting,
    get_events.postgres,
    get_events.sqlite,
    handler.scenario,
    bulk.writing_postgres,
    bulk.writing_sqlite,
    bulk.reading_postgres,
    bulk.reading_sqlite,
    bulk.burst_postgres,
    bulk.burst_sqlite,
]

"""
Mutants: multidb with one mistake each. A test that no mistake fails proves nothing.

Each is caught by the simulator, at a seed at which it says nothing without the mistake. The default run tries two of them,
MULTIDB_TEST_RESILIENCE_SCALE=1 all.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest
from simulated_server import LogClient
from simulator import FlawError, simulate

from multidb._core import files
from multidb.logs.backends.memory import MemoryLogBackend
from multidb.logs.protocol import Appended
from multidb.resilience.breaker import Breaker
from multidb.resilience.replay import Replayer
from multidb.resilience.spool import Spool, _source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.timeout(3600)

SCALE = float(os.environ.get("MULTIDB_TEST_RESILIENCE_SCALE", "0.02"))
SEEDS = 80
FEW = ("acknowledge before the write", "no id constraint")


def _acknowledge_first(monkeypatch: pytest.MonkeyPatch) -> None:
    append = Spool.append

    async def at_once(self: Spool, records: Sequence[bytes]) -> None:
        task = asyncio.create_task(append(self, records))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.__dict__.setdefault("kept", []).append(task)

    monkeypatch.setattr(Spool, "append", at_once)


def _no_id_constraint(monkeypatch: pytest.MonkeyPatch) -> None:
    async def append(_: MemoryLogBackend, entries: Sequence[Any]) -> list[Appended]:
        return [Appended.STORED] * len(entries)

    monkeypatch.setattr(MemoryLogBackend, "append", append)


def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "sync_file", lambda _: None)


def _delete_first(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = Replayer._replay

    async def after_done(self: Replayer, records: Sequence[Any]) -> None:
        await self._spool.done(records[-1].position)
        await replay(self, records)

    monkeypatch.setattr(Replayer, "_replay", after_done)


def _all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is done is known in memory; on the disk it is when all of a folder is.
    monkeypatch.setattr(_source.Source, "_write_progress", lambda *_: None)
    monkeypatch.setattr(_source, "_unlink", lambda _: None)


def _ping(monkeypatch: pytest.MonkeyPatch) -> None:
    async def probe(self: LogClient) -> None:
        await self._line.call(self._nothing, writes=False)

    monkeypatch.setattr(LogClient, "probe", probe)


def _never_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Breaker, "trip", lambda *_: None)


MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None] | None] = {
    "acknowledge before the write": _acknowledge_first,
    "no id constraint": _no_id_constraint,
    "no sync": _no_sync,
    "delete before the replay": _delete_first,
    "replay all or nothing": _all_or_nothing,
    "retry an increment": None,  # Comes with the failover of state: logs have no increment.
    "probe that only reads": _ping,
    "breaker that never opens": _never_opens,
}


def caught(mutate: Callable[[pytest.MonkeyPatch], None]) -> tuple[int, FlawError]:
    """Return the first seed that finds a mistake, and what it says."""
    for seed in range(SEEDS):
        with pytest.MonkeyPatch.context() as monkeypatch:
            mutate(monkeypatch)
            try:
                simulate(seed)
            except FlawError as flaw:
                return seed, flaw
    msg = f"{SEEDS} seeds say nothing"
    raise AssertionError(msg)


def test_mutants() -> None:
    """Every mistake is found, and none where there is none."""
    tried = MUTANTS if SCALE >= 1 else {name: MUTANTS[name] for name in FEW}
    found: dict[str, str] = {}
    for name, mutate in tried.items():
        if mutate is None:
            continue
        seed, flaw = caught(mutate)
        simulate(seed)
        found[name] = f"seed {seed}: {str(flaw)[:100]}"
    print(f"\n{len(found)} of {len(MUTANTS)} caught" + ("" if SCALE >= 1 else f" ({len(tried)} tried)"))
    for name, how in found.items():
        print(f"  {name}: {how}")

    assert [name for name, mutate in tried.items() if mutate is not None] == list(found)

"""State in a folder: what survives a crash, a full disk, damage, a rewrite, and other processes."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from disasters import printed_until_killed

from multidb._core.clock import SystemClock
from multidb._core.locks import locked
from multidb._core.values import dump
from multidb.errors import (
    BackendTimeoutError,
    BackendUnavailableError,
    ConfigurationError,
    ConflictError,
    OverloadedError,
)
from multidb.state.backends import _shared
from multidb.state.backends._records import line
from multidb.state.backends.memory import MemoryStateBackend
from multidb.state.protocol import KEEP, Claim, Entry, Increment, Key, Merge, Push
from multidb.testing import faults
from multidb.testing.clock import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEY = Key("u", "k")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The upkeep of the journal comes at once, and a rewrite as soon as anything is obsolete."""
    monkeypatch.setattr(_shared, "_SYNC_SECONDS", 0.001)
    monkeypatch.setattr("multidb.state.backends._journal._SMALL", 0)


@asynccontextmanager
async def opened(folder: Path | None, clock: Any = None) -> AsyncIterator[MemoryStateBackend]:
    backend = MemoryStateBackend(clock=clock or SystemClock(), folder=folder)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


async def put(backend: MemoryStateBackend, name: str, value: bytes, seconds: float | None = None) -> None:
    await backend.set([Entry(Key("u", name), value, seconds)])


async def values(folder: Path, clock: Any = None) -> dict[str, bytes]:
    async with opened(folder, clock) as backend:
        return await backend.get_all("u")


async def until(condition: Any) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise TimeoutError


class TestCrash:
    async def test_tail_torn_at_every_byte(self, folder: Path) -> None:
        """Wherever a write was cut off, what came before is there, and what comes after is kept."""
        journal = folder / "state.journal"
        async with opened(folder) as backend:
            await put(backend, "before", b'"\\u00e7"')
            whole = journal.stat().st_size
            await put(backend, "torn", b'[1,{"a":2}]', 3600)
        content = journal.read_bytes()
        for size in range(whole, len(content)):
            journal.write_bytes(content[:size])
            async with opened(folder) as backend:
                await put(backend, "after", b"1")

            assert {"before", "after"} == (await values(folder)).keys()

    async def test_garbage_behind_the_end(self, folder: Path) -> None:
        """A power cut may leave zeros, or anything, behind the last write."""
        journal = folder / "state.journal"
        for garbage in (bytes(5000), b"\n\n\n", b"00000000 \n", os.urandom(3000)):
            async with opened(folder) as backend:
                await put(backend, "a", b"1")
            with journal.open("ab") as file:
                file.write(garbage)
            async with opened(folder) as backend:
                await put(backend, "b", b"2")

            assert {"a": b"1", "b": b"2"} == await values(folder)

    async def test_half_a_write_by_a_living_process(self, folder: Path, clock: ManualClock) -> None:
        """What another process left half-written is cut off before anything is appended to it."""
        async with opened(folder, clock) as backend:
            await put(backend, "a", b"1")
            with (folder / "state.journal").open("ab") as file:
                file.write(line(["v", "u", "b", None, 2])[:-5])

            assert {"a": b"1"} == await backend.get_all("u")
            await put(backend, "c", b"3")
        assert {"a": b"1", "c": b"3"} == await values(folder, clock)

    async def test_killed(self, folder: Path) -> None:
        """What was acknowledged survives kill -9; nothing is there that was not written."""
        program = (
            "import asyncio, pathlib, sys\n"
            "from multidb._core.clock import SystemClock\n"
            "from multidb.state.backends.memory import MemoryStateBackend\n"
            "from multidb.state.protocol import Increment, Key\n"
            "async def main():\n"
            "    backend = MemoryStateBackend(clock=SystemClock(), folder=pathlib.Path(sys.argv[1]))\n"
            "    await backend.open()\n"
            "    while True:\n"
            "        print(*await backend.increment([Increment(Key('u', 'n'), 1)]), flush=True)\n"
            "asyncio.run(main())\n"
        )
        for lines in (1, 200, 1000):
            acknowledged = printed_until_killed(program, folder, lines)
            async with opened(folder) as backend:
                kept = await backend.counter(Key("u", "n"))

            assert acknowledged[-1] <= kept <= acknowledged[-1] + 1

    async def test_not_closed(self, folder: Path) -> None:
        """A backend that is let go of, as after a fork or with an event loop that is gone, loses nothing."""
        backend = MemoryStateBackend(clock=SystemClock(), folder=folder)
        await backend.open()
        await put(backend, "a", b"1")
        del backend

        assert {"a": b"1"} == await values(folder)

    def test_another_event_loop(self, folder: Path) -> None:
        """The same folder, and the same object, work in the next event loop."""
        backend = MemoryStateBackend(clock=SystemClock(), folder=folder)

        async def visit(number: int) -> int:
            await backend.open()
            await backend.increment([Increment(KEY, number)])
            await backend.close()
            return await count()

        async def count() -> int:
            async with opened(folder) as other:
                return await other.counter(KEY)

        assert [1, 3, 6] == [asyncio.run(visit(number)) for number in (1, 2, 3)]


class TestDamage:
    async def test_damaged_line(self, folder: Path, caplog: pytest.LogCaptureFixture, hasty: None) -> None:
        """A damaged line costs what it said, with one warning; a rewrite sets it aside."""
        async with opened(folder) as backend:
            for name in "abc":
                await put(backend, name, b"1")
        journal = folder / "state.journal"
        lines = journal.read_bytes().splitlines(keepends=True)
        lines[2] = lines[2].replace(b'"b"', b'"x"')
        journal.write_bytes(b"".join(lines))
        with caplog.at_level(logging.WARNING, "multidb"):
            async with opened(folder) as backend:
                assert {"a": b"1", "c": b"1"} == await backend.get_all("u")
                await put(backend, "d", b"1")
                await until((folder / "state.rejected").exists)

        assert [
            "the journal of the state has 1 damaged lines, which count for nothing; its next rewrite sets them aside"
        ] == caplog.messages
        assert lines[2] == (folder / "state.rejected").read_bytes()
        assert lines[2] not in journal.read_bytes()
        assert {"a", "c", "d"} == (await values(folder)).keys()

    async def test_newer_format(self, folder: Path) -> None:
        """A journal of a later version is refused, and left as it is."""
        async with opened(folder):
            journal = folder / "state.journal"
        for record in (["state", 2, 0, 0, 128], ["new", "u", "a"]):
            journal.write_bytes(line(record))

            with pytest.raises(ConfigurationError, match="newer multidb"):
                await values(folder)
            assert line(record) == journal.read_bytes()

    async def test_emptied_by_hand(self, folder: Path, clock: ManualClock) -> None:
        """A journal that somebody emptied or put another one in the place of says what is true now."""
        async with opened(folder, clock) as backend:
            await put(backend, "a", b"1")
            (folder / "state.journal").write_bytes(b"")
            assert {} == await backend.get_all("u")
            await put(backend, "b", b"2")
            (folder / "other").write_bytes(line(["v", "u", "c", None, 3]) * 1000)
            (folder / "other").replace(folder / "state.journal")
            assert {"c": b"3"} == await backend.get_all("u")

    async def test_deleted_by_hand(self, folder: Path, clock: ManualClock) -> None:
        """A journal that somebody deleted is an error, on every call and on close, until the next start."""
        backend = MemoryStateBackend(clock=clock, folder=folder)
        await backend.open()
        await put(backend, "a", b"1")
        (folder / "state.journal").unlink()

        with pytest.raises(BackendUnavailableError):
            await backend.get_all("u")
        with pytest.raises(BackendUnavailableError):
            await put(backend, "b", b"1")
        with pytest.raises(BackendUnavailableError):
            await backend.close()
        assert {} == await values(folder, clock)


class TestFullDisk:
    async def test_refused_and_undone(self, folder: Path, clock: ManualClock) -> None:
        """A write without room is refused as a whole; what was there stays, and what comes later is kept."""
        text = dump("x" * 200)
        async with opened(folder, clock) as backend:
            await backend.set([Entry(KEY, b'{"a":1}', 60), Entry(Key("u", "gone"), b"1", 1)])
            await backend.push([Push(KEY, dump(number), 3) for number in range(5)])
            await backend.increment([Increment(KEY, 5)])
            before = await self._everything(backend)
            size = (folder / "state.journal").stat().st_size
            refused = [
                lambda: backend.set([Entry(KEY, text), Entry(Key("u", "new"), text)]),
                lambda: backend.merge([Merge(KEY, {"b": text}, None, 1000)] * 2),
                lambda: backend.compare_and_set(KEY, b'{"a":1}', text, None),
                lambda: backend.push([Push(KEY, text, 2)] * 3),
                lambda: backend.push([Push(Key("u", "new"), text)]),
                lambda: backend.increment([Increment(KEY, 1)] * 3 + [Increment(Key("u", "new"), 1, 5)]),
                lambda: backend.claim([Claim(KEY, 9), Claim(Key("u", "new"), 9)]),
                lambda: backend.touch(KEY, 90),
                lambda: backend.delete([KEY]),
                lambda: backend.clear("u"),
                lambda: backend.delete_list(KEY),
                lambda: backend.reset_counter(KEY),
            ]
            for call in refused:
                with faults.file_size_limit(size + 20), pytest.raises(OverloadedError) as error:
                    await call()

                assert not error.value.ambiguous
                assert size == (folder / "state.journal").stat().st_size
                assert before == await self._everything(backend)
            await backend.push([Push(KEY, b'"kept"', 9), Push(Key("u", "new"), b'"kept"')])
            assert [b"2", b"3", b"4", b'"kept"'] == await backend.items(KEY)
            assert [b'"kept"'] == await backend.items(Key("u", "new"))
            for call in refused:
                await call()
            after = await self._everything(backend)
        async with opened(folder, clock) as backend:
            assert before != after == await self._everything(backend)

    async def _everything(self, backend: MemoryStateBackend) -> Any:
        new = Key("u", "new")
        return [
            await backend.get_all("u"),
            [await backend.items(KEY), await backend.items(new)],
            [await backend.counter(KEY), await backend.counter(new)],
            [await backend.cooldown(KEY), await backend.cooldown(new)],
        ]

    async def test_rewrite_without_room(self, folder: Path, clock: ManualClock, hasty: None) -> None:
        """A rewrite that has no room leaves everything as it is, and writes go on."""
        journal = folder / "state.journal"
        async with opened(folder, clock) as backend:
            await backend.set([Entry(Key("u", "a"), dump("x" * 100_000))] * 3)
            inode, size = journal.stat().st_ino, journal.stat().st_size
            with faults.file_size_limit(50_000):
                await until(lambda: not backend._shared._unsynced and backend._shared._upkeep is None)

                assert (inode, size) == (journal.stat().st_ino, journal.stat().st_size)
            await put(backend, "b", b"1")

            assert {"a", "b"} == (await backend.get_all("u")).keys()
        assert {"a", "b"} == (await values(folder, clock)).keys()


class TestRewrite:
    async def test_stays_small(self, folder: Path, clock: ManualClock, hasty: None) -> None:
        """However often a value is written, the journal and the memory hold little more than the value."""
        journal = folder / "state.journal"
        async with opened(folder, clock) as backend:
            for number in range(20):
                await backend.set([Entry(KEY, dump("x" * 1000), 60)] * 50)
                await backend.push([Push(KEY, dump(number), 2)] * 50)
                await until(lambda: journal.stat().st_size < 10_000)

            assert [b"19", b"19"] == await backend.items(KEY)
        assert 10_000 > journal.stat().st_size
        assert {"k"} == (await values(folder, clock)).keys()

    async def test_others_follow(self, folder: Path, clock: ManualClock, hasty: None) -> None:
        """Another process finds its place in the rewritten journal, without reading it anew."""
        async with opened(folder, clock) as reader, opened(folder, clock) as writer:
            for number in range(5):
                await writer.set([Entry(Key("u", f"k{each}"), dump(number)) for each in range(300)] * 3)
                inode = (folder / "state.journal").stat().st_ino
                await until(lambda inode=inode: (folder / "state.journal").stat().st_ino != inode)
                tables = reader._shared._tables

                assert [dump(number)] == await reader.get([Key("u", "k7")])
                assert tables is reader._shared._tables

    async def test_far_behind(self, folder: Path, clock: ManualClock, hasty: None) -> None:
        """A process that slept through several rewrites and megabytes reads the journal anew."""
        async with opened(folder, clock) as reader, opened(folder, clock) as writer:
            for number in range(4):
                await writer.set([Entry(Key("u", f"k{each}"), dump("x" * 9000)) for each in range(200)])
                await writer.increment([Increment(KEY, 1)])
                inode = (folder / "state.journal").stat().st_ino
                if number % 2:
                    await until(lambda inode=inode: (folder / "state.journal").stat().st_ino != inode)
            counts = await asyncio.gather(*(reader.counter(KEY) for _ in range(10)))

            assert [4] * 10 == counts
            assert [[5]] * 1 == [await reader.increment([Increment(KEY, 1)])]
            assert 5 == await writer.counter(KEY)

    async def test_closed_meanwhile(self, folder: Path, clock: ManualClock, hasty: None) -> None:
        """Closing waits for a rewrite under way."""
        for number in range(5):
            async with opened(folder, clock) as backend:
                await backend.set([Entry(Key("u", f"k{each}"), b"1") for each in range(500)] * 3)
                await asyncio.sleep(0.002 * number)

            assert 500 == len(await values(folder, clock))

    async def test_cancelled_upkeep(self, folder: Path, clock: ManualClock, hasty: None) -> None:
        """A program that cancels every task it finds does not harm the journal."""
        async with opened(folder, clock) as backend:
            for number in range(30):
                await backend.set([Entry(Key("u", f"k{each}"), dump(number)) for each in range(200)])
                await asyncio.sleep(0.0005 * (number % 7))
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()
        found = await values(folder, clock)

        assert {f"k{each}": b"29" for each in range(200)} == found

    async def test_sync_that_fails(
        self, folder: Path, clock: ManualClock, hasty: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When the disk fails to sync, writes are refused until a new file is on the disk."""
        real, broken = os.fdatasync, []

        def fdatasync(descriptor: int) -> None:
            if broken:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(descriptor)

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        async with opened(folder, clock) as backend:
            broken.append(True)
            await put(backend, "a", b"1")
            await until(lambda: backend._shared._sync_error is not None)
            inode = (folder / "state.journal").stat().st_ino
            with pytest.raises(BackendUnavailableError, match="durable"):
                await put(backend, "b", b"1")
            broken.clear()
            await until(lambda: backend._shared._sync_error is None)

            assert inode != (folder / "state.journal").stat().st_ino
            await put(backend, "b", b"1")
            assert {"a", "b"} == (await backend.get_all("u")).keys()

    async def test_synced_on_close(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The disk has everything once a backend is closed, and is not asked before a second is over."""
        synced: list[int] = []
        real = os.fdatasync
        async with opened(folder) as backend:
            monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(1) or real(descriptor))
            for _ in range(50):
                await put(backend, "a", b"1")
            before = list(synced)

        assert ([], [1]) == (before, synced)


class TestSharing:
    async def test_lock_held_elsewhere(
        self, folder: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process that does not give the lock back costs the others a timeout, not their event loop."""
        async with opened(folder, clock) as backend:
            monkeypatch.setattr(backend._shared, "_timeout", 0.05)
            await put(backend, "a", b"1")
            with locked(folder / "state.lock", 1):
                with pytest.raises(BackendTimeoutError) as error:
                    await put(backend, "b", b"1")
                waiting = [asyncio.ensure_future(put(backend, "c", b"1")) for _ in range(3)]
                await asyncio.sleep(0.01)
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
                assert {"a": b"1"} == await backend.get_all("u")
            await put(backend, "d", b"1")

            assert not error.value.ambiguous
            assert {"a", "d"} == (await backend.get_all("u")).keys()

    async def test_in_turn(self, folder: Path, clock: ManualClock) -> None:
        """Who waits for the lock gets it in the order of the calls."""
        async with opened(folder, clock) as backend:
            with locked(folder / "state.lock", 1):
                pushes = [asyncio.ensure_future(backend.push([Push(KEY, dump(n))])) for n in range(20)]
                await asyncio.sleep(0.01)
            pushes.append(asyncio.ensure_future(backend.push([Push(KEY, dump(20))])))
            await asyncio.gather(*pushes)

            assert [dump(number) for number in range(21)] == await backend.items(KEY)

    async def test_processes(self, folder: Path, hasty: None) -> None:
        """Processes that count and push at once, while the journal is rewritten all the time, lose nothing."""
        program = (
            "import asyncio, pathlib, sys\n"
            "from multidb._core.clock import SystemClock\n"
            "from multidb._core.values import dump\n"
            "from multidb.state.backends import _journal, _shared\n"
            "from multidb.state.backends.memory import MemoryStateBackend\n"
            "from multidb.state.protocol import Increment, Key, Push\n"
            "_shared._SYNC_SECONDS, _journal._SMALL = 0.02, 0\n"
            "key, me = Key('u', 'k'), sys.argv[2]\n"
            "async def main():\n"
            "    backend = MemoryStateBackend(clock=SystemClock(), folder=pathlib.Path(sys.argv[1]))\n"
            "    await backend.open()\n"
            "    for number in range(400):\n"
            "        await backend.increment([Increment(key, 1)])\n"
            "        await backend.push([Push(key, dump(me + str(number)))])\n"
            "        await asyncio.sleep(0)\n"
            "    await backend.close()\n"
            "asyncio.run(main())\n"
        )
        async with opened(folder) as backend:
            processes = [
                await asyncio.create_subprocess_exec(sys.executable, "-c", program, folder, name)
                for name in "xyz"
            ]
            ended = asyncio.gather(*(process.wait() for process in processes))
            while not ended.done():
                await put(backend, "mine", b"1")
                await asyncio.sleep(0.001)

            assert [0, 0, 0] == await ended
            assert 1200 == await backend.counter(KEY)
            items = await backend.items(KEY)
        async with opened(folder) as backend:
            assert items == await backend.items(KEY)
        for name in "xyz":
            mine = [item for item in items if item.startswith(f'"{name}'.encode())]
            assert [dump(f"{name}{number}") for number in range(400)] == mine

    @pytest.mark.parametrize("seed", range(6))
    async def test_any_calls(self, folder: Path, clock: ManualClock, hasty: None, seed: int) -> None:
        """Whatever is called, with rewrites, restarts and another process, the answers are those of the memory."""
        chance = random.Random(seed)
        async with opened(None, clock) as model, opened(folder, clock) as other:
            for _ in range(6):
                async with opened(folder, clock) as backend:
                    for _ in range(250):
                        name, arguments = any_call(chance)
                        real = await getattr(chance.choice([backend, other]), name)(*arguments)
                        assert comparable(real) == comparable(await getattr(model, name)(*arguments))
                        if chance.random() < 0.1:
                            clock.advance(chance.choice([0.5, 3.0, 11.0]))
                        if chance.random() < 0.1:
                            await asyncio.sleep(0.002)


def any_call(chance: random.Random) -> tuple[str, tuple[Any, ...]]:
    def key() -> Key:
        return Key(chance.choice(["a", "b", None]), chance.choice("xyz"))

    def seconds() -> float | None:
        return chance.choice([None, 0.25, 1.0, 5.5, 100.0])

    value = dump(chance.choice([None, {"a": 1}, {"b": 2.5}, "text", [1]]))
    keys = [key() for _ in range(chance.randint(1, 3))]
    calls: dict[str, tuple[Any, ...]] = {
        "set": ([Entry(each, value, seconds()) for each in keys],),
        "get": (keys,),
        "merge": (
            [
                Merge(each, {chance.choice("ab"): value}, chance.choice([KEEP, seconds()]), 60)
                for each in keys
            ],
        ),
        "compare_and_set": (key(), dump({"a": 1}), value, chance.choice([KEEP, seconds()])),
        "touch": (key(), seconds()),
        "delete": (keys,),
        "get_all": (chance.choice(["a", None]),),
        "clear": (chance.choice(["a", "b", None]),),
        "claim": ([Claim(each, seconds() or 2.0) for each in keys],),
        "set_cooldown": (Claim(key(), seconds() or 2.0),),
        "cooldown": (key(),),
        "clear_cooldown": (key(),),
        "increment": ([Increment(each, chance.choice([1, 2**62, -5]), seconds()) for each in keys],),
        "counter": (key(),),
        "reset_counter": (key(),),
        "push": ([Push(each, value, chance.choice([None, 1, 3])) for each in keys * 2],),
        "items": (key(),),
        "delete_list": (key(),),
    }
    return chance.choice(list(calls.items()))


def comparable(result: Any) -> Any:
    if isinstance(result, list):
        return [str(each) if isinstance(each, ConflictError) else each for each in result]
    return result


class TestMemory:
    async def test_expired_is_freed(self, clock: ManualClock) -> None:
        """Writes free what has expired, many at a time but not all at once."""
        async with opened(None, clock) as backend:
            await backend.set([Entry(Key(f"u{number}", "k"), b"1", 1.0) for number in range(10_000)])
            await backend.claim([Claim(Key(f"u{number}", "k"), 1.0) for number in range(1000)])
            clock.advance(1)
            for _ in range(1000):
                await put(backend, "other", b"1")

            assert 1 == len(backend._tables)
            assert [] == backend._tables._heap

    @pytest.mark.parametrize("deleted", [False, True])
    async def test_heap_stays_small(self, clock: ManualClock, deleted: bool) -> None:
        """Writing a key again and again, deleted in between or not, does not fill the memory."""
        async with opened(None, clock) as backend:
            await put(backend, "other", b"1", 9.0)
            for number in range(20_000):
                await put(backend, "k", b"1", 100.0 - number % 7)
                clock.advance(0.0001)
                if deleted:
                    await backend.delete([Key("u", "k")])

            assert 3000 > len(backend._tables._heap)
            clock.advance(200)
            await put(backend, "last", b"1")
            for _ in range(300):
                await put(backend, "last", b"1")
            assert 1 == len(backend._tables)

    async def test_shorter_life(self, clock: ManualClock) -> None:
        """A life span that was shortened, prolonged or ended is the last one that was given."""
        async with opened(None, clock) as backend:
            for seconds in (50.0, 5.0, 20.0):
                await put(backend, "k", b"1", seconds)
            await put(backend, "ends", b"1", 1.0)
            await put(backend, "ends", b"1", 6.0)
            await put(backend, "endless", b"1", 5.0)
            await backend.touch(Key("u", "endless"), None)
            for passed, there in ((6, {"k", "endless"}), (13.9, {"k", "endless"}), (0.1, {"endless"})):
                clock.advance(passed)
                await put(backend, "other", b"1")
                assert there | {"other"} == (await backend.get_all("u")).keys()

            assert 2 == len(backend._tables)

"""The spool: what is acknowledged is kept, in order, through full disks, damage, forks and other processes."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import shutil
import signal
import stat
import threading
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multidb._core import files
from multidb._core.clock import SystemClock
from multidb.errors import (
    BackendError,
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    InvalidArgumentError,
    OverloadedError,
)
from multidb.resilience.spool import Limits, Spool, _disks, _files, _owners, tools
from multidb.resilience.spool._lines import Header, header_line, lines_of, parse
from multidb.resilience.spool._owners import OwnerLock
from multidb.resilience.spool._rejected import rejected_paths
from multidb.testing import faults
from multidb.testing.clock import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

DAY = 86400


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "spool"


def spool_in(root: Path, store: str = "logs", **options: Any) -> Spool:
    options = {"namespace": "db", "host": "here", "any_file_system": True} | options
    return Spool(root, store, **options)


@asynccontextmanager
async def opened(root: Path, store: str = "logs", **options: Any) -> AsyncIterator[Spool]:
    spool = spool_in(root, store, **options)
    await spool.open()
    try:
        yield spool
    finally:
        await spool.close()


def record(number: int, size: int = 0) -> bytes:
    return json.dumps({"n": number, "text": "ç" * size}, ensure_ascii=False).encode()


def records(*numbers: int) -> list[bytes]:
    return [record(number) for number in numbers]


def number_of(data: bytes) -> int:
    return json.loads(data)["n"]


async def drained(spool: Spool, most: int = 500) -> list[int]:
    """Replay everything; return the numbers."""
    numbers = []
    while (batch := await spool.read_batch(most)) is not None:
        numbers += [number_of(each.data) for each in batch.records]
        await spool.done(batch.position)
    return numbers


async def replayed(root: Path, **options: Any) -> list[int]:
    async with opened(root, **options) as spool:
        return await drained(spool)


def taken_over(root: Path) -> list[int]:
    """As `replayed()`, without the threads, which take most of its time."""
    spool = _files.SpoolFiles(root, "here", Header("logs", "db"), Limits(), SystemClock())
    spool.adopt()
    numbers = []
    while (batch := spool.read(500, 10**6)) is not None:
        numbers += [number_of(each.data) for each in batch.records]
        spool.done(batch.position)
    spool.release()
    return numbers


def segments(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*/*/*/*.jsonl") if path.parent.parent.name != "rejected")


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def is_there(path: Path) -> bool:
    return path.exists()


@contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, name: str, error: int, *, first: int = 0, times: int = 10**9
) -> Iterator[None]:
    """The calls of a function for files fail, from the *first* on."""
    original = getattr(files, name)
    calls = 0

    def fail(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if first < calls <= first + times:
            if name == "write_all":
                file, data = arguments
                file.write(data[: len(data) // 2])
            raise OSError(error, os.strerror(error), "a name")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files, name, fail)
        yield


class TestKeeping:
    async def test_nothing_wrong_nothing_there(self, root: Path) -> None:
        """No file, no folder and no thread exists before the first append."""
        async with opened(root) as spool:
            await spool.append([])

            assert await spool.read_batch() is None
            assert 0 == spool.pending

        assert not root.parent.exists()

    async def test_form(self, root: Path) -> None:
        """A person can read a segment, and nobody else can."""
        clock = ManualClock()
        async with opened(root, clock=clock) as spool:
            await spool.append([b'{"event":"paid","n":1}', '{"text":"ışık"}'.encode()])
            (segment,) = segments(root)

            header, *lines = segment.read_text().splitlines()
            assert header.endswith(' spool {"format":1,"namespace":"db","store":"logs"}')
            millis = int(clock.time() * 1000)
            assert [f'{millis} {{"event":"paid","n":1}}', f'{millis} {{"text":"ışık"}}'] == [
                line[9:] for line in lines
            ]
            owner = segment.parent.parent
            assert ("logs", "here") == (segment.parent.name, owner.parent.name)
            assert owner.name.startswith(f"{os.getpid()}-")
            for path in (root, *(root / name for name in everything(root))):
                assert (0o700 if path.is_dir() else 0o600) == stat.S_IMODE(path.stat().st_mode), path

    async def test_order_and_end(self, root: Path) -> None:
        """Records come back as they were appended; what is done does not come again, and then nothing is left."""
        async with opened(root) as spool:
            for number in range(10):
                await spool.append(records(number))
            await spool.append(records(10, 11, 12))

            assert 13 == spool.pending
            assert list(range(13)) == await drained(spool, most=4)
            assert 0 == spool.pending

        assert [] == everything(root.parent)

    async def test_until_done(self, root: Path) -> None:
        """A batch comes again until it is done, and a part of it may be done alone."""
        async with opened(root) as spool:
            await spool.append(records(1, 2, 3, 4))
            first = await spool.read_batch(3)
            again = await spool.read_batch(3)
            assert first == again
            assert first is not None
            await spool.done(first.records[1].position)

            assert [3, 4] == await drained(spool)
            await spool.done(first.position)  # Late, and of no consequence.
            await spool.append(records(5))

            assert [5] == await drained(spool)

    async def test_batch_bounds(self, root: Path) -> None:
        """A batch is not larger than asked for, but for a single record."""
        async with opened(root) as spool:
            await spool.append([record(1), record(2, 5000), record(3), record(4)])
            sizes = []
            while (batch := await spool.read_batch(2, 1000)) is not None:
                sizes.append(len(batch.records))
                await spool.done(batch.position)

            assert [1, 1, 2] == sizes

    async def test_large_record(self, root: Path) -> None:
        """16 MiB fit, and not a byte more; a newline does not."""
        largest = b'"' + b"x" * (16 * 1024 * 1024 - 2) + b'"'
        async with opened(root) as spool:
            await spool.append([largest])
            for bad in (largest + b" ", b'{"a":\n1}', b""):
                with pytest.raises(InvalidArgumentError):
                    await spool.append([bad])
            batch = await spool.read_batch()

            assert batch is not None
            assert [largest] == [each.data for each in batch.records]

    async def test_rotation(self, root: Path) -> None:
        """A segment that is large enough is followed by another one, and goes as soon as it is done."""
        async with opened(root, limits=Limits(segment_bytes=300)) as spool:
            for number in range(30):
                await spool.append(records(number))
            before = len(segments(root))
            batch = await spool.read_batch(15)
            assert batch is not None
            await spool.done(batch.position)

            assert before > 3
            assert before / 2 + 1 >= len(segments(root))
            assert spool.stats().segments == len(segments(root))
            assert sum(path.stat().st_size for path in segments(root)) == spool.stats().bytes
            assert list(range(15, 30)) == await drained(spool)

    async def test_next_start(self, root: Path) -> None:
        """What one process leaves the next one replays, from where it was done."""
        async with opened(root, limits=Limits(segment_bytes=200)) as spool:
            await spool.append(records(*range(10)))
            await spool.append(records(*range(10, 20)))
            batch = await spool.read_batch(7)
            assert batch is not None
            await spool.done(batch.position)
        async with opened(root) as spool:
            assert 13 == spool.pending
            assert 1 == spool.stats().adopted
            await spool.append(records(20))
            batch = await spool.read_batch(6)
            assert batch is not None
            await spool.done(batch.position)

        assert list(range(13, 21)) == await replayed(root)
        assert [] == everything(root.parent)

    async def test_appends_while_replaying(self, root: Path) -> None:
        """Appending goes on while a replay reads: each record once, in the order of its writer."""
        seen: list[int] = []
        writers = 4

        async def write(spool: Spool, writer: int) -> None:
            for i in range(50):
                await spool.append(records(writer * 1000 + i))

        async with opened(root, limits=Limits(segment_bytes=2000)) as spool:
            writing = asyncio.gather(*(write(spool, writer) for writer in range(writers)))
            while not writing.done() or spool.pending:
                if not writing.done():
                    await asyncio.wait(
                        [asyncio.ensure_future(spool.wait()), writing], return_when=asyncio.FIRST_COMPLETED
                    )
                seen += await drained(spool, most=7)
            await writing
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        assert sorted(seen) == sorted(writer * 1000 + i for writer in range(writers) for i in range(50))
        for writer in range(writers):
            mine = [number for number in seen if number // 1000 == writer]
            assert mine == sorted(mine)

    async def test_shared_sync(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Appends made at the same time share a sync; none returns before it."""
        synced = 0
        original = files.sync_file

        def count(descriptor: int) -> None:
            nonlocal synced
            time.sleep(0.01)
            synced += 1
            original(descriptor)

        monkeypatch.setattr(files, "sync_file", count)
        async with opened(root) as spool:
            await asyncio.gather(*(spool.append(records(number)) for number in range(300)))

            assert 1 <= synced <= 3
            assert list(range(300)) == await drained(spool)

    async def test_loop_is_free(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A slow disk holds up those that append, and nobody else."""
        monkeypatch.setattr(files, "sync_file", lambda _: time.sleep(0.3))
        async with opened(root) as spool:
            append = asyncio.create_task(spool.append(records(1)))
            started, turns = time.monotonic(), 0
            while not append.done():
                await asyncio.sleep(0.005)
                spool.stats()
                turns += 1

            assert time.monotonic() - started >= 0.3
            assert turns > 10

    async def test_cancelled_too_late(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is kept although its call was cancelled is replayed at once, as anything else."""
        began, go_on, commit = asyncio.Event(), threading.Event(), _files.SpoolFiles.commit
        loop = asyncio.get_running_loop()

        def slow(*args: Any) -> Any:
            loop.call_soon_threadsafe(began.set)
            go_on.wait(10)
            return commit(*args)

        monkeypatch.setattr(_files.SpoolFiles, "commit", slow)
        async with opened(root) as spool:
            task = asyncio.create_task(spool.append(records(1)))
            await began.wait()
            task.cancel()
            await asyncio.wait((task,))
            go_on.set()
            async with asyncio.timeout(5):
                await spool.wait()

            assert 1 == spool.pending

    async def test_cancelled(self, root: Path) -> None:
        """One that is cancelled takes nobody along."""
        async with opened(root) as spool:
            tasks = [asyncio.create_task(spool.append(records(number))) for number in range(10)]
            await asyncio.sleep(0)
            tasks[3].cancel()
            await asyncio.wait(tasks)

            assert [number for number in range(10) if number != 3] == await drained(spool)

    async def test_close_waits_for_appends(self, root: Path) -> None:
        spool = spool_in(root)
        await spool.open()
        tasks = [asyncio.create_task(spool.append(records(number))) for number in range(50)]
        await asyncio.sleep(0)
        await spool.close()
        await asyncio.gather(*tasks)
        with pytest.raises(ClosedError):
            await spool.append(records(99))

        assert list(range(50)) == await replayed(root)

    def test_abandoned(self, root: Path) -> None:
        """Without its event loop a spool gives its folders up, and another one has the records."""
        spool = spool_in(root)

        async def start() -> None:
            await spool.open()
            await spool.append(records(1, 2))

        asyncio.run(start())
        spool.abandon()

        assert [1, 2] == asyncio.run(replayed(root))

    async def test_removed_by_hand(self, root: Path) -> None:
        """Somebody removes the folder under a running process: what is appended then is kept."""
        async with opened(root) as spool:
            await spool.append(records(1))
            shutil.rmtree(root)
            await spool.append(records(2))

            assert [2] == await drained(spool)

    async def test_stats(self, root: Path) -> None:
        clock = ManualClock()
        async with opened(root, clock=clock, limits=Limits(max_bytes=1000)) as spool:
            assert (0, 0, None, False) == (
                (stats := spool.stats()).records,
                stats.bytes,
                stats.oldest_seconds,
                stats.is_high,
            )
            await spool.append(records(1, 2))
            clock.advance(60)
            await spool.append([record(3, 330)])
            stats = spool.stats()
            assert (3, 1, 60.0, True) == (stats.records, stats.segments, stats.oldest_seconds, stats.is_high)
            assert stats.bytes == segments(root)[0].stat().st_size
            assert (stats.free_bytes or 0) > 0
            batch = await spool.read_batch(2)
            assert batch is not None
            await spool.done(batch.position)

            assert 0.0 == spool.stats().oldest_seconds


class TestDamage:
    async def test_tail_torn_at_every_byte(self, root: Path) -> None:
        """Wherever the last write was cut off, everything before it is there."""
        async with opened(root) as spool:
            await spool.append(records(1, 2))
            (segment,) = segments(root)
            whole = segment.stat().st_size
            await spool.append(records(3))
        content = segment.read_bytes()
        for size in range(len(content)):
            lost = size < len(header_line(Header("logs", "db")))
            segment.parent.mkdir(parents=True, exist_ok=True)
            segment.write_bytes(content[:size])
            before = [] if lost else list(range(1, content[:size].count(b"\n")))
            expected = [1, 2] if size >= whole else before

            assert expected == taken_over(root), size
            assert [] == everything(root), size

    async def test_garbage_behind_the_end(self, root: Path) -> None:
        """A power cut may leave zeros, or anything, behind the last write. Whole lines of it are set aside."""
        for garbage, lines in ((bytes(5000), 0), (b"\n\n", 2), (b"00000000 \nx", 1), (b"00000000 1 {}\n", 1)):
            async with opened(root) as spool:
                await spool.append(records(1))
                (segment,) = segments(root)
            with segment.open("ab") as file:
                file.write(garbage)
            async with opened(root) as spool:
                before = spool.stats().rejected
                assert [1] == await drained(spool)
                assert lines == spool.stats().rejected - before

    async def test_damaged_records(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A record that is damaged, or none, is set aside with the reason; the others come."""
        async with opened(root) as spool:
            await spool.append([*records(1, 2, 3), b"no JSON", *records(4)])
            (segment,) = segments(root)
        segment.write_bytes(segment.read_bytes().replace(b'{"n": 2', b'{"n": 7'))
        async with opened(root) as spool:
            assert [1, 3, 4] == await drained(spool, most=2)
            assert 2 == spool.stats().rejected
        found = [rejection for _, rejection in tools.rejections(root)]

        assert ["wrong checksum", "no record"] == [rejection.reason for rejection in found]
        assert b'{"n": 7' in found[0].raw
        assert "no JSON" not in caplog.text
        assert tools.Retried(0, 2) == tools.retry(root)
        assert 2 == len(list(tools.rejections(root)))

    async def test_only_damaged(self, root: Path) -> None:
        """A segment of nothing but damage does not come again."""
        async with opened(root) as spool:
            await spool.append(records(1, 2))
            (segment,) = segments(root)
        segment.write_bytes(segment.read_bytes().replace(b'"n"', b'"m"'))
        for _ in range(2):
            assert [] == await replayed(root)

        assert 2 == len(list(tools.rejections(root)))
        assert [] == segments(root)

    async def test_set_aside_once(self, root: Path) -> None:
        """Reading a batch again does not set its bad records aside again."""
        async with opened(root) as spool:
            await spool.append([record(1), b"bad", record(2)])
            for _ in range(3):
                batch = await spool.read_batch()

            assert batch is not None
            assert 2 == len(batch.records)
            assert 1 == spool.stats().rejected == len(list(tools.rejections(root)))

    async def test_damaged_header(self, root: Path) -> None:
        """Of a folder that does not say whose it is nothing is taken, and nothing is removed."""
        async with opened(root) as spool:
            await spool.append(records(1))
            (segment,) = segments(root)
        content = segment.read_bytes()
        segment.write_bytes(b"x" + content[1:])

        assert [] == await replayed(root)
        (problem, *_) = tools.verify(root).problems
        assert "whose" in problem.what
        segment.write_bytes(content)
        assert [1] == await replayed(root)

    async def test_shortened(self, root: Path) -> None:
        """Somebody cuts a file that is being replayed: what is gone is said to be, and the rest comes."""
        async with opened(root, limits=Limits(segment_bytes=100)) as spool:
            await spool.append(records(1, 2, 3))
            await spool.append(records(4))
            first, _ = segments(root)
            first.write_bytes(first.read_bytes()[:-30])

            assert [1, 2, 4] == await drained(spool)
            assert 2 == spool.stats().rejected  # What is left of the third, and what is missing.
            await spool.append(records(5))
            segments(root)[-1].unlink()
            await spool.append(records(6))

            assert [6] == await drained(spool)

    async def test_progress_damaged(self, root: Path) -> None:
        """Without its progress a replay begins at the beginning."""
        async with opened(root) as spool:
            await spool.append(records(1, 2, 3))
            batch = await spool.read_batch(1)
            assert batch is not None
            await spool.done(batch.position)
        progress = segments(root)[0].with_name("progress")
        progress.write_bytes(b"\0" * 20)

        assert [1, 2, 3] == await replayed(root)

    async def test_unreadable_owner(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder on a bad sector is passed over, and raises only when there is nothing else."""
        for number in (1, 2):
            async with opened(root) as spool:
                await spool.append(records(number))
            await asyncio.sleep(0.002)
        bad = next(path for path in segments(root) if b'"n": 1' in path.read_bytes())
        from multidb.resilience.spool import _source

        original = _source.read_lines

        def read_lines(segment: Any, *rest: Any) -> Any:
            if segment.path == bad:
                raise OSError(errno.EIO, "EIO")
            return original(segment, *rest)

        async with opened(root) as spool:
            monkeypatch.setattr(_source, "read_lines", read_lines)
            batch = await spool.read_batch()
            assert batch is not None
            assert [2] == [number_of(each.data) for each in batch.records]
            await spool.done(batch.position)
            with pytest.raises(BackendUnavailableError):
                await spool.read_batch()


class TestFullDisk:
    async def test_short_write(self, root: Path) -> None:
        """A disk that is full: nothing that was acknowledged is lost, and with room again it goes on."""
        acknowledged = []
        async with opened(root) as spool:
            await spool.append(records(0))
            size = segments(root)[0].stat().st_size
            with faults.file_size_limit(size + 150):
                refused = []
                for number in range(1, 40):
                    try:
                        await spool.append([record(number, 20)])
                        acknowledged.append(number)
                    except OverloadedError as exc:
                        refused.append(exc)
                assert refused
                assert not any(exc.ambiguous or "ç" in str(exc) for exc in refused)
            await spool.append(records(99))

            assert [0, *acknowledged, 99] == await drained(spool)
        assert [] == everything(root)

    async def test_no_room_at_all(self, root: Path) -> None:
        """Not even the first line fits: nothing stays behind but the folder, and that goes with the close."""
        async with opened(root) as spool:
            with faults.file_size_limit(10):
                for _ in range(3):
                    with pytest.raises(
                        OverloadedError,
                        match="the spool cannot be written: the file system says: File too large",
                    ):
                        await spool.append(records(1))
                assert [] == segments(root)
            await spool.append(records(2))
            assert 1 == len(segments(root))

        assert [2] == await replayed(root)

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
    @pytest.mark.parametrize("name", ["write_all", "sync_file"])
    async def test_failing_write(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
    ) -> None:
        """A write or a sync that fails is taken back, and not tried again on the same file."""
        async with opened(root) as spool:
            await spool.append(records(1))
            with failing(monkeypatch, name, code, times=1):
                results = await asyncio.gather(
                    spool.append(records(2)), spool.append(records(3, 4)), return_exceptions=True
                )
            errors = [BackendUnavailableError if code == errno.EIO else OverloadedError] * 2
            assert errors == [type(result) for result in results]
            assert [False, False] == [
                result.ambiguous for result in results if isinstance(result, BackendError)
            ]
            assert results[0] is not results[1]
            assert 1 == spool.pending
            await spool.append(records(5))
            assert 2 == len(segments(root))

        assert [1, 5] == await replayed(root)

    async def test_cannot_be_taken_back(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk that fails for good: the error says that the records may come all the same."""
        async with opened(root) as spool:
            await spool.append(records(1))
            with (
                failing(monkeypatch, "sync_file", errno.EIO),
                pytest.raises(BackendUnavailableError) as caught,
            ):
                await spool.append(records(2))
            assert caught.value.ambiguous
            assert 1 == spool.pending

    async def test_first_append_fails_at_every_step(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever cannot be created: an error, nothing left behind after the close, and it works again."""
        for name, steps in (("sync_folder", 8), ("create", 1), ("make_folders", 2)):
            for step in range(steps):
                async with opened(root) as spool:
                    fail = failing(monkeypatch, name, errno.ENOSPC, first=step, times=1)
                    with fail, pytest.raises(OverloadedError):
                        await spool.append(records(1))
                    await spool.append(records(2))
                    assert [2] == await drained(spool)
                assert [] == everything(root.parent), (name, step)
                for folder in (root, root.parent):
                    if folder.is_dir():
                        folder.rmdir()

    async def test_folders_that_others_made(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who made the folders above may not have synced them yet, or have failed to: they are synced in any case."""
        (root / "here").mkdir(parents=True)
        synced: list[Path] = []
        sync_folder = files.sync_folder
        monkeypatch.setattr(files, "sync_folder", lambda path: (synced.append(path), sync_folder(path)))
        async with opened(root) as spool:
            await spool.append(records(1))

        assert {root.parent, root, root / "here"} <= set(synced)

    async def test_bound(self, root: Path) -> None:
        """Past its bound a spool refuses whole calls; what was refused is not kept, and done makes room."""
        limits = Limits(max_bytes=600, segment_bytes=200)
        async with opened(root, limits=limits) as spool:
            await spool.append([record(1, 60)])
            with pytest.raises(
                OverloadedError, match=r"the spool of logs is full: [0-9]+ of 600 bytes are taken"
            ):
                await spool.append([record(2, 10), record(3, 250)])
            await spool.append([record(4, 60)])
            assert spool.stats().bytes <= 600
            batch = await spool.read_batch(1)
            assert batch is not None
            await spool.done(batch.position)
            await spool.append([record(5, 60)])

            assert [4, 5] == await drained(spool)

    async def test_bound_counts_what_was_adopted(self, root: Path) -> None:
        """A process that restarts over and over does not fill the disk."""
        async with opened(root) as spool:
            await spool.append([record(1, 300)])
        async with opened(root, limits=Limits(max_bytes=600)) as spool:
            with pytest.raises(OverloadedError):
                await spool.append(records(2))

    async def test_free_disk(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Room is left on the disk for others: 512 MiB, or 5 % of a small disk."""
        usage = type(_files.shutil.disk_usage("/"))
        for total, floor in ((10**12, 512 * 1024 * 1024), (10**9, 5 * 10**7)):
            async with opened(root) as spool:
                monkeypatch.setattr(
                    _files.shutil, "disk_usage", lambda _, t=total, f=floor: usage(t, 0, f + 100)
                )
                await spool.append(records(1))
                with pytest.raises(OverloadedError, match=f"bytes are free, and {floor:,} are kept free"):
                    await spool.append([record(2, 100)])
                assert floor + 100 == spool.stats().free_bytes
                assert [1] == await drained(spool)

    async def test_progress_cannot_be_written(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A full disk does not hold a replay up, which is what makes room."""
        async with opened(root, limits=Limits(segment_bytes=200)) as spool:
            for number in range(20):
                await spool.append(records(number))
            with failing(monkeypatch, "write_atomic", errno.ENOSPC):
                assert list(range(20)) == await drained(spool, most=3)
            assert 1 >= len(segments(root))

    async def test_rejection_cannot_be_written(self, root: Path) -> None:
        """What cannot be set aside is not lost: it stays in the spool until it can."""
        async with opened(root) as spool:
            await spool.append([b"bad", *records(1)])
            with faults.file_size_limit(10), pytest.raises(OverloadedError):
                await spool.read_batch()

            assert [1] == await drained(spool)
            assert 1 == spool.stats().rejected


class TestAge:
    async def test_too_old(self, root: Path) -> None:
        """Records older than a week are not replayed but set aside, and can be put back by hand."""
        clock = ManualClock()
        async with opened(root, clock=clock) as spool:
            await spool.append(records(*range(5)))
            clock.advance(7 * DAY - 10)
            await spool.append(records(5))
            clock.advance(20)

            assert [5] == await drained(spool)
            assert 5 == spool.stats().rejected
            assert {"too old"} == {rejection.reason for _, rejection in tools.rejections(root)}
            assert tools.Retried(5, 0) == tools.retry(root, clock=clock, host="here")
            await spool.adopt()
            assert list(range(5)) == await drained(spool)
            assert 0 == spool.stats().rejected


class TestRejected:
    async def test_round_trip(self, root: Path) -> None:
        """What the server refuses is set aside with the reason, and comes again byte for byte when it is put back."""
        data = '{"a":-0.5,"text":"ışık\\n","z":[1,2.0,null,9223372036854775807]}'.encode()
        async with opened(root) as spool:
            await spool.append([data, *records(1)])
            batch = await spool.read_batch()
            assert batch is not None
            await spool.reject(batch.records[0], "22P05")
            await spool.done(batch.position)
            assert 1 == spool.stats().rejected
        ((store, rejection),) = tools.rejections(root)
        assert ("logs", "22P05", data) == (store, rejection.reason, rejection.record)
        assert [] == await replayed(root)
        assert tools.Retried(1, 0) == tools.retry(root, host="there")
        assert [] == list(tools.rejections(root))

        async with opened(root) as spool:
            batch = await spool.read_batch()
            assert batch is not None
            assert [data] == [each.data for each in batch.records]
            await spool.done(batch.position)
        assert [] == everything(root)

    async def test_retry_under_a_running_process(self, root: Path) -> None:
        """Putting back while a process goes on setting aside loses nothing."""
        async with opened(root, limits=Limits(max_age_seconds=1e9)) as spool:
            await spool.append(records(*range(24)))
            moved = 0
            while (batch := await spool.read_batch(3)) is not None and moved < 60:
                for each in batch.records:
                    await spool.reject(each, "no")
                    moved += 1
                await spool.done(batch.position)
                if moved % 2:
                    await asyncio.to_thread(tools.retry, root)
                    await spool.adopt()
            await asyncio.to_thread(tools.retry, root)
            await spool.adopt()

            assert set(range(24)) == set(await drained(spool))

    async def test_torn(self, root: Path) -> None:
        """What a process that died left half-written in a file of rejected records is overwritten."""
        async with opened(root) as spool:
            await spool.append(records(1, 2))
            batch = await spool.read_batch()
            assert batch is not None
            await spool.reject(batch.records[0], "a")
            (path,) = rejected_paths(root)
            with path.open("ab") as file:
                file.write(b"00000000 {torn")
            await spool.reject(batch.records[1], "b")

            assert ["a", "b"] == [rejection.reason for _, rejection in tools.rejections(root)]
            assert [] == tools.verify(root).problems

    async def test_counts_are_of_the_namespace(self, root: Path) -> None:
        for namespace in ("db", "other"):
            async with opened(root, namespace=namespace) as spool:
                await spool.append(records(1))
                batch = await spool.read_batch()
                assert batch is not None
                await spool.reject(batch.records[0], "no")
                await spool.done(batch.position)
        async with opened(root) as spool:
            assert 1 == spool.stats().rejected


class TestOwners:
    async def test_living_owner(self, root: Path) -> None:
        """What a living process has nobody else takes; once it closes, anybody may."""
        async with opened(root) as first, opened(root) as second:
            await first.append(records(1))
            await second.append(records(2))
            assert 0 == await second.adopt()
            assert (0, 1) == (second.stats().adopted, second.stats().others)
            await first.close()
            assert 1 == await second.adopt()

            assert [1, 2] == await drained(second)

    async def test_oldest_owner_first(self, root: Path) -> None:
        clock = ManualClock()
        for number in (1, 3, 5):
            async with opened(root, clock=clock, namespace=f"db{number}") as spool:
                await spool.append(records(number, number + 1))
            clock.advance(1)
        for path in segments(root):  # Now they are one namespace, and one after the other.
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(header_line(Header("logs", "db")) + b"".join(lines[1:]))
        async with opened(root, clock=clock) as spool:
            await spool.append(records(7))

            assert list(range(1, 8)) == await drained(spool, most=1)

    async def test_other_namespace_store_and_format(self, root: Path) -> None:
        """What is for another database, another store or a newer multidb is left alone."""
        async with opened(root) as spool:
            await spool.append(records(1))
        for options in ({"namespace": "other"}, {"store": "profiles"}):
            assert [] == await replayed(root, **options)
        (segment,) = segments(root)
        content = segment.read_bytes()
        segment.write_bytes(header_line(Header("logs", "db", 2)) + content.split(b"\n", 1)[1])
        assert [] == await replayed(root)
        segment.write_bytes(content)

        assert [1] == await replayed(root)

    async def test_other_host(self, root: Path) -> None:
        """A container has another name after each start, and the same disk."""
        async with opened(root, host="a1b2c3") as spool:
            await spool.append(records(1))

        assert [1] == await replayed(root, host="d4e5f6")
        assert [] == everything(root)

    async def test_adopted_by_itself(self, root: Path) -> None:
        """A running process notices what another one left, and wakes up who waits for it."""
        async with opened(root, adopt_seconds=0.05) as spool:
            waiting = asyncio.create_task(spool.wait())
            async with opened(root) as other:
                await other.append(records(1))
            await asyncio.wait_for(waiting, 10)

            assert [1] == await drained(spool)

    async def test_tidied_by_itself(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Once all is done the folder goes, at once or a little later."""
        monkeypatch.setattr(_files, "_LINGER_SECONDS", 0.2)
        async with opened(root, adopt_seconds=0.05) as spool:
            await spool.append(records(1))
            assert [1] == await drained(spool)
            assert everything(root)
            for _ in range(500):
                if not is_there(root):
                    break
                await asyncio.sleep(0.01)
            assert [] == everything(root.parent)
            await spool.append(records(2))

            assert [2] == await drained(spool)

    async def test_leftovers_of_a_kill(self, root: Path) -> None:
        """What is left of a folder that was being created, or removed, goes with the next look."""
        names = [f"1-{i:032x}" for i in range(6)]
        host = root / "here"
        (host / names[0]).mkdir(parents=True)
        (host / names[1]).mkdir()
        (host / names[1] / ".lock").touch()
        (host / names[2] / "logs").mkdir(parents=True)
        (host / names[3] / "logs").mkdir(parents=True)
        (host / names[3] / "logs" / "0000000001.jsonl").touch()
        (host / names[4] / "logs").mkdir(parents=True)
        (host / names[4] / "logs" / "progress").write_bytes(lines_of([b'{"offset":99,"segment":7}'], 0))
        (host / names[4] / "logs" / ".tmp-0011").write_bytes(b"x")
        (host / names[5] / "logs").mkdir(parents=True)
        (host / names[5] / "logs" / "0000000001.jsonl").write_bytes(
            header_line(Header("logs", "db")) + b"0000"
        )
        assert [] == await replayed(root)

        assert [] == everything(root.parent)

    async def test_lock_file_that_was_removed(self, root: Path) -> None:
        """A lock on a file that somebody removed meanwhile is none."""
        folder = root / "here" / f"1-{0:032x}"
        folder.mkdir(parents=True)
        lock = OwnerLock(folder)
        original = files.FolderLock.acquire

        def acquire(self: Any) -> None:
            original(self)
            (folder / ".lock").unlink()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.FolderLock, "acquire", acquire)
            with pytest.raises(FileNotFoundError):
                lock.acquire()
        again = _owners.try_own(folder)
        assert again is not None
        again.release()

    async def test_robbed_while_it_creates(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Somebody tidies away a folder that is just being created: there is another one."""
        original = OwnerLock.acquire
        robbed = []

        def acquire(self: Any) -> None:
            if len(robbed) < 3:
                robbed.append(self._path.parent)
                self._path.parent.rmdir()
            original(self)

        async with opened(root) as spool:
            monkeypatch.setattr(OwnerLock, "acquire", acquire)
            await spool.append(records(1))

            assert 3 == len(robbed)
            assert [1] == await drained(spool)

    async def test_cannot_be_removed(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is done but cannot be removed is kept from others, who would replay it all again."""
        async with opened(root) as spool:
            await spool.append(records(1))
        async with opened(root) as spool:
            from multidb.resilience.spool import _source

            with monkeypatch.context() as patch:
                patch.setattr(_source, "remove_owner", lambda *_: False)
                assert [1] == await drained(spool)
                await spool.adopt()
            async with opened(root) as other:
                assert 0 == other.pending
            await spool.adopt()
            assert [] == everything(root)

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    async def test_fork(self, root: Path) -> None:
        """A forked child may not use the parent's spool, nor does it keep it or give it up."""
        async with opened(root) as spool:
            await spool.append(records(1))
            from_child, in_child = os.pipe()
            until_closed, outer = os.pipe()
            child = os.fork()
            if child == 0:
                verdict = b"?"
                try:
                    os.close(outer)
                    coroutine = spool.append(records(2))
                    try:
                        coroutine.send(None)
                    except ClosedError:
                        verdict = b"."
                    spool.abandon()
                finally:
                    os.write(in_child, verdict)
                    os.read(until_closed, 1)
                    os._exit(0)
            assert b"." == os.read(from_child, 1)
            try:
                async with opened(root) as other:
                    assert 0 == other.pending
                await spool.append(records(3))
                spool.abandon()  # As the child lives on, it must not keep the folder.
                assert [1, 3] == await replayed(root)
            finally:
                os.close(outer)
                os.waitpid(child, 0)  # noqa: ASYNC222 -- it has ended
                for descriptor in (from_child, in_child, until_closed):
                    os.close(descriptor)


class TestPlace:
    MOUNTS = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "23 22 0:20 / /dev/shm rw - tmpfs tmpfs rw\n"
        "24 22 0:44 / /mnt/my\\040share rw,relatime shared:9 master:2 - nfs4 server:/x rw\n"
    )

    @pytest.mark.parametrize(
        ("folder", "kind"),
        [("/", "ext4"), ("/dev/shm", "tmpfs"), ("/dev/shmx", "ext4"), ("/mnt/my share/a", "nfs4")],
    )
    def test_file_system_of(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, kind: str
    ) -> None:
        mounts = tmp_path / "mounts"
        mounts.write_text(self.MOUNTS)
        monkeypatch.setattr(_disks, "_MOUNTS", mounts)

        assert kind == _disks.file_system_of(type(tmp_path)(folder))

    @pytest.mark.parametrize(
        ("kind", "why"), [("tmpfs", "is lost with a restart"), ("nfs4", "locks and syncs")]
    )
    async def test_refused(self, root: Path, monkeypatch: pytest.MonkeyPatch, kind: str, why: str) -> None:
        """Memory and the network are refused at the start, not at three in the morning, unless that is wanted."""
        monkeypatch.setattr(_disks, "file_system_of", lambda _: kind)
        with pytest.raises(ConfigurationError, match=why):
            await spool_in(root, any_file_system=False).open()
        async with opened(root, any_file_system=True) as spool:
            await spool.append(records(1))

    async def test_no_permission(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(ConfigurationError, match="no permission"):
            await spool_in(root).open()


class TestTools:
    async def test_owners(self, root: Path) -> None:
        clock = ManualClock()
        async with opened(root, clock=clock) as spool:
            await spool.append(records(1, 2, 3))
            batch = await spool.read_batch(1)
            assert batch is not None
            await spool.done(batch.position)
            (owner,) = tools.owners(root)
            assert owner.is_alive
            assert (os.getpid(), "here", "logs", "db", 1, 2) == (
                owner.process_id,
                owner.host,
                owner.store,
                owner.namespace,
                owner.segments,
                owner.records,
            )
            assert owner.oldest is not None
            assert clock.time() == owner.oldest.timestamp()
        (owner,) = tools.owners(root)

        assert not owner.is_alive
        assert [] == tools.owners(root, store="state")

    async def test_verify(self, root: Path) -> None:
        async with opened(root) as spool:
            await spool.append(records(1, 2, 3))
            assert (3, []) == ((report := tools.verify(root)).records, report.problems)
        (segment,) = segments(root)
        content = segment.read_bytes()
        segment.write_bytes(content.replace(b'{"n": 2', b'{"n": 7') + b"torn")
        report = tools.verify(root)

        assert (2, 4) == (report.records, report.torn_bytes)
        (problem,) = report.problems
        assert (segment, "wrong checksum") == (problem.path, problem.what)
        assert content[problem.offset :].split(b" ", 2)[2].startswith(b'{"n": 2')

    async def test_export(self, root: Path) -> None:
        """What comes out is JSON, a line each, and pure."""
        async with opened(root) as spool:
            await spool.append([*records(1), b"bad", *records(2)])
            lines = [json.loads(line) for line in tools.export(root)]
            assert [1, 2] == [line["record"]["n"] for line in lines]
            assert {"reason", "record", "store", "time", "where"} == lines[0].keys()
            batch = await spool.read_batch()
            assert batch is not None
            await spool.reject(batch.records[0], "no")
            lines = [json.loads(line) for line in tools.export(root, rejected=True)]

            assert ["no record", "no"] == [line["reason"] for line in lines]
            assert ("logs", 1) == (lines[1]["store"], lines[1]["record"]["n"])

    def test_nothing_there(self, root: Path) -> None:
        assert [] == tools.owners(root)
        assert 0 == tools.verify(root).records
        assert [] == list(tools.export(root))
        assert tools.Retried(0, 0) == tools.retry(root)
        assert not root.parent.exists()

    async def test_retry_keeps_what_does_not_fit(self, root: Path) -> None:
        """With a full disk nothing is put back, and nothing is lost."""
        async with opened(root) as spool:
            await spool.append(records(1, 2))
            batch = await spool.read_batch()
            assert batch is not None
            for each in batch.records:
                await spool.reject(each, "no")
            await spool.done(batch.position)
        with faults.file_size_limit(20), pytest.raises(OverloadedError):
            tools.retry(root)
        assert 2 == len(list(tools.rejections(root)))
        assert tools.Retried(2, 0) == tools.retry(root)

        assert [1, 2] == await replayed(root)


class Model:
    """A spool, and what it should hold, however often it is closed and damaged at its end."""

    def __init__(self, root: Path, segment_bytes: int) -> None:
        self.root = root
        self.limits = Limits(segment_bytes=segment_bytes)
        self.waiting: list[int] = []
        self.numbers = itertools.count()

    async def append(self, count: int) -> None:
        numbers = list(itertools.islice(self.numbers, count))
        await self.spool.append(records(*numbers))
        self.waiting += numbers

    async def fail(self, amount: int) -> None:
        with faults.file_size_limit(amount * 50), suppress(OverloadedError):
            await self.append(3)

    async def read(self, most: int) -> Any:
        batch = await self.spool.read_batch(most)
        read = [] if batch is None else [number_of(each.data) for each in batch.records]
        assert read == self.waiting[: len(read)]
        assert bool(read) == bool(self.waiting)
        return batch

    async def replay(self, most: int) -> None:
        if (batch := await self.read(most)) is not None:
            await self.spool.done(batch.position)
            del self.waiting[: len(batch.records)]

    async def adopt(self, _: int) -> None:
        await self.spool.adopt()

    async def open(self, _: int = 0) -> None:
        self.spool = spool_in(self.root, limits=self.limits)
        await self.spool.open()

    async def close(self, _: int) -> None:
        await self.spool.close()
        await self.open()

    async def abandon(self, amount: int) -> None:
        self.spool.abandon()
        for path in segments(self.root)[-1:]:
            path.write_bytes(path.read_bytes() + b"0" * amount)
        await self.open()

    async def run(self, steps: Sequence[tuple[str, int]]) -> None:
        await self.open()
        for step, amount in steps:
            await getattr(self, step)(amount)
            assert len(self.waiting) == self.spool.pending
            assert bool(self.waiting) == (self.spool.stats().oldest_seconds is not None)
        assert self.waiting == await drained(self.spool)
        await self.spool.close()
        assert [] == everything(self.root.parent)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["append", "append", "replay", "read", "close", "abandon", "fail", "adopt"]),
            st.integers(1, 7),
        ),
        max_size=25,
    ),
    st.integers(60, 400),
)
def test_model(
    tmp_path_factory: pytest.TempPathFactory, steps: Sequence[tuple[str, int]], segment_bytes: int
) -> None:
    """Whatever is done in whatever order: the records come in order, none is lost, and none comes twice."""
    asyncio.run(Model(tmp_path_factory.mktemp("model") / "spool", segment_bytes).run(steps))


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=0, max_size=60), st.integers(0, 2**45), st.integers(0, 100), st.integers(0, 255))
def test_any_damage_is_seen(text: bytes, millis: int, at: int, byte: int) -> None:
    """A line with one byte changed is never taken for a record."""
    data = json.dumps({"t": text.hex()}).encode()
    line = lines_of([data], millis)
    assert (millis, data) == parse(line)
    damaged = bytearray(line)
    damaged[at % len(line)] = byte
    if damaged != line:
        with pytest.raises(ValueError, match=r"torn|checksum|no record"):
            parse(bytes(damaged))


class TestAnotherServer:
    async def test_said_once(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Records for a server that the program does not use any more are left alone, and that is said, once."""
        async with opened(root, namespace="old") as spool:
            await spool.append(records(1, 2))
        async with opened(root, namespace="new") as spool:
            await spool.adopt()
            await spool.adopt()
            assert 0 == spool.pending
        said = [record.getMessage() for record in caplog.records if "another server" in record.getMessage()]

        assert 1 == len(said)
        assert "old" in said[0]
        assert "multidb spool ls" in said[0]
        assert [1, 2] == await replayed(root, namespace="old")

    async def test_of_a_live_process(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        """What a process with another server is at work on is nobody else's business."""
        async with opened(root, namespace="old") as spool:
            await spool.append(records(1))
            async with opened(root, namespace="new") as other:
                await other.append(records(2))
        assert "another server" not in caplog.text
        assert [1] == await replayed(root, namespace="old")
        assert [2] == await replayed(root, namespace="new")


class TestAbandon:
    async def test_while_the_disk_hangs(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It does not wait for a disk that hangs; the folder is given up when that ends, and not before."""
        spool = spool_in(root)
        await spool.open()
        await spool.append(records(1))
        hanging, on = threading.Event(), threading.Event()
        sync = files.sync_file

        def hang(descriptor: int) -> None:
            hanging.set()
            on.wait(30)
            sync(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(files, "sync_file", hang)
            appending = asyncio.create_task(spool.append(records(2)))
            await asyncio.to_thread(hanging.wait, 10)
            began = time.monotonic()
            spool.abandon()
            assert time.monotonic() - began < 1.5
        assert "given up when that ends" in caplog.text
        assert [True] == [owner.is_alive for owner in tools.owners(root)]
        on.set()
        await appending
        end = time.monotonic() + 10
        while tools.owners(root)[0].is_alive:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)

        assert [1, 2] == await replayed(root)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_fork_while_a_lock_is_held(root: Path) -> None:
    """A child that is forked at any moment gets an answer, and does not wait for a thread that it does not have."""
    async with opened(root) as spool:
        await spool.append(records(1))
        here = spool._opened
        assert here is not None
        with here.files._mutex:
            child = os.fork()
            if child == 0:
                signal.alarm(10)
                with suppress(ClosedError):
                    spool.stats()
                    os._exit(1)
                ok = spool.pending == 0
                spool.abandon()
                os._exit(0 if ok else 2)
        _, code = await asyncio.to_thread(os.waitpid, child, 0)

        assert 0 == os.waitstatus_to_exitcode(code)
        assert 1 == spool.pending

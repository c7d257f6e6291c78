"""Log files under fire: torn lines, full and failing disks, killed processes, cut power, cancelled callers."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multidb.errors import (
    BackendError,
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    ConflictError,
    OverloadedError,
)
from multidb.logs._records import Event, Message, Sale
from multidb.logs.backends import _id_index, _session_file
from multidb.logs.backends._id_index import IdIndex
from multidb.logs.backends._in_process import SessionTable, touched
from multidb.logs.backends._journal import Journal, JournalChangedError
from multidb.logs.backends.files import FileLogBackend
from multidb.logs.backends.memory import MemoryLogBackend
from multidb.logs.protocol import Appended, Query
from multidb.testing.conformance._log_data import (
    NOON,
    TICK,
    entries,
    entry,
    event,
    ids,
    message,
    newest_first,
    sale,
    touch,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from multidb.logs._records import Record

TODAY = "2026-03-04.jsonl"
DAY = timedelta(days=1)
ALL: Query[Event] = Query(Event, limit=10_000)
STORED, DUPLICATE, CONFLICT = Appended.STORED, Appended.DUPLICATE, Appended.CONFLICT


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[FileLogBackend]:
    backend = FileLogBackend(folder)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


def moments(count: int, step: timedelta = TICK) -> list[Event]:
    """Return events, oldest first."""
    return [event(f"u{i}", timestamp=NOON + i * step, message=f"m{i} ğüş") for i in range(count)]


async def stored(folder: Path) -> list[Event]:
    """Return the events in *folder*, oldest first."""
    async with opened(folder) as backend:
        return (await backend.query(ALL))[::-1]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def lines_of(path: Path) -> list[Any]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file grow over *size* bytes: a write is cut short first, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Syncs:
    """Counts and fails the syncs of files."""

    def __init__(self) -> None:
        self.count = 0
        self.fail: Callable[[int], bool] = lambda _: False
        self.failed: list[int] = []
        self._real = os.fdatasync

    def __call__(self, descriptor: int) -> None:
        self.count += 1
        if self.fail(self.count):
            self.failed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._real(descriptor)


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    syncs = Syncs()
    monkeypatch.setattr(os, "fdatasync", syncs)
    return syncs


class TestOnDisk:
    async def test_readable(self, tmp_path: Path) -> None:
        """A day is a file of plain JSON lines, open to this user only."""
        sold = sale("u1", amount=Decimal("9.90"), context={"a": [1, "ç"]})
        async with opened(tmp_path / "logs") as backend:
            await backend.append([entry(sold)])
            await backend.append(entries([event("u1", timestamp=datetime.min.replace(tzinfo=UTC))]))
            await backend.append(entries([message("u1", timestamp=datetime.max.replace(tzinfo=UTC))]))
            given = entry(sold)

        (line,) = lines_of(tmp_path / "logs" / "sales" / TODAY)
        assert {
            "timestamp": "2026-03-04T12:00:00.123456Z",
            "id": str(sold.id),
            "user_id": "u1",
            "product_type": "gift",
            "amount": "9.90",
            "currency": "USD",
            "status": "pending",
            "context": {"a": [1, "ç"]},
            "digest": given.digest.hex(),
        } == line
        assert (tmp_path / "logs" / "events" / "0001-01-01.jsonl").exists()
        assert (tmp_path / "logs" / "messages" / "9999-12-31.jsonl").exists()
        for path in (tmp_path / "logs").rglob("*"):
            assert (0o700 if path.is_dir() else 0o600) == stat.S_IMODE(path.stat().st_mode)

    async def test_status_steps_stay_in_the_file(self, tmp_path: Path) -> None:
        """A new status is a new line, the last one counts, and the append that is repeated is a duplicate."""
        sold = sale("u1")
        async with opened(tmp_path) as backend:
            await backend.append([entry(sold)])
            await backend.set_sale_status(sold.id, "completed", ("pending",))
            await backend.set_sale_status(sold.id, "refunded", ("completed",))
        async with opened(tmp_path) as backend:
            assert [DUPLICATE] == await backend.append([entry(sold)])
            assert ["refunded"] == [s.status for s in await backend.query(Query(Sale))]
            assert {"refunded": 1} == await backend.count(Query(Sale), "status")
            with pytest.raises(ConflictError):
                await backend.set_sale_status(sold.id, "completed", ("pending",))

        assert ["pending", "completed", "refunded"] == [
            line["status"] for line in lines_of(tmp_path / "sales" / TODAY)
        ]

    async def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        """What is no day file is neither read nor touched."""
        async with opened(tmp_path):
            pass
        for name in ("notes.txt", "20260304.jsonl", "2026-W10-3.jsonl", "x.jsonl"):
            (tmp_path / "events" / name).write_text("mine")

        assert [] == await stored(tmp_path)
        assert ["mine"] * 4 == [path.read_text() for path in sorted((tmp_path / "events").iterdir())]

    async def test_newer_format(self, tmp_path: Path) -> None:
        """A folder of a later multidb is refused, and not kept locked."""
        async with opened(tmp_path):
            pass
        (tmp_path / "format.json").write_text('{"format": 2}')
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="newer multidb"):
                await FileLogBackend(tmp_path).open()

    async def test_damaged_format(self, tmp_path: Path) -> None:
        """A folder that does not say what it is, is refused."""
        (tmp_path / "format.json").write_text("[]")
        with pytest.raises(ConfigurationError, match="damaged"):
            await FileLogBackend(tmp_path).open()


class TestOneOwner:
    async def test_second_owner(self, tmp_path: Path) -> None:
        """A folder that is open is refused to everybody else, and free after the close."""
        async with opened(tmp_path):
            with pytest.raises(ConfigurationError, match="in use by this process"):
                await FileLogBackend(tmp_path).open()
        async with opened(tmp_path):
            pass

    async def test_folder_that_cannot_be(self, tmp_path: Path) -> None:
        """A file in the way is an error of the backend, and nothing stays open."""
        (tmp_path / "logs").write_text("")
        with pytest.raises(BackendUnavailableError):
            await FileLogBackend(tmp_path / "logs").open()

    async def test_closed(self, tmp_path: Path) -> None:
        """Before the open and after the close there is nothing to work on."""
        backend = FileLogBackend(tmp_path)
        with pytest.raises(ClosedError):
            await backend.query(ALL)
        await backend.open()
        await backend.close()
        await backend.close()
        with pytest.raises(ClosedError):
            await backend.append(entries(moments(1)))

        assert 0 == backend.bad_lines

    async def test_cancelled_open(self, tmp_path: Path) -> None:
        """An open that is given up on gives the folder back."""
        for steps in range(5):
            opening = asyncio.create_task(FileLogBackend(tmp_path).open())
            for _ in range(steps):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.wait([opening])
            if not opening.cancelled():
                break
            async with opened(tmp_path):
                pass

    async def test_cancelled_close(self, tmp_path: Path) -> None:
        """A close that is given up on still ends, with everything written."""
        backend = FileLogBackend(tmp_path)
        await backend.open()
        writing = asyncio.create_task(backend.append(entries(moments(3))))
        await asyncio.sleep(0)
        closing = asyncio.create_task(backend.close())
        await asyncio.sleep(0)
        closing.cancel()

        assert [STORED] * 3 == await writing
        for _ in range(100):
            try:
                assert 3 == len(await stored(tmp_path))
                break
            except ConfigurationError:
                await asyncio.sleep(0.01)

    def test_another_loop(self, tmp_path: Path) -> None:
        """The same object works again in another event loop, and finds everything."""
        backend = FileLogBackend(tmp_path)

        async def append_one() -> int:
            await backend.open()
            await backend.append(entries([event("u")]))
            count = await backend.count(ALL)
            await backend.close()
            return count[""]

        assert [1, 2, 3] == [asyncio.run(append_one()) for _ in range(3)]


class TestTornLines:
    async def test_every_byte(self, tmp_path: Path) -> None:
        """Wherever the last line was torn, all before it are there, the rest is kept aside, and writing goes on."""
        happened = moments(3)
        async with opened(tmp_path / "whole") as backend:
            for each in happened:
                await backend.append([entry(each)])
        whole = (tmp_path / "whole" / "events" / TODAY).read_bytes()
        start = whole[:-1].rindex(b"\n") + 1
        for end in range(start, len(whole)):
            folder = tmp_path / f"cut-{end}"
            shutil.copytree(tmp_path / "whole", folder)
            (folder / "events" / TODAY).write_bytes(whole[:end])
            complete = end == len(whole) - 1
            async with opened(folder) as backend:
                expected = happened if complete else happened[:2]
                assert expected == (await backend.query(ALL))[::-1]
                assert [DUPLICATE if complete else STORED] == await backend.append([entry(happened[2])])
            assert happened == await stored(folder)
            torn = folder / "events" / "2026-03-04.torn"
            assert (whole[start:end] + b"\n" if start < end and not complete else None) == (
                torn.read_bytes() if torn.exists() else None
            )

    async def test_warned_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A torn line is reported when it is found, and not again."""
        async with opened(tmp_path) as backend:
            await backend.append(entries(moments(2)))
        with (tmp_path / "events" / TODAY).open("ab") as file:
            file.write(b'{"timestamp":"2026')
        for _ in range(2):
            assert 2 == len(await stored(tmp_path))

        assert ["18 bytes of an unfinished line" in r.message for r in caplog.records] == [True]
        assert "m0" not in caplog.text

    async def test_long_fragment(self, tmp_path: Path) -> None:
        """A fragment may be longer than what is read at once, or the whole file."""
        async with opened(tmp_path) as backend:
            await backend.append(entries(moments(1)))
        with (tmp_path / "events" / TODAY).open("ab") as file:
            file.write(b"\0" * 200_000)
        (tmp_path / "events" / "2026-03-05.jsonl").write_bytes(b"{" * 70_000)

        assert 1 == len(await stored(tmp_path))
        assert 200_001 == (tmp_path / "events" / "2026-03-04.torn").stat().st_size
        assert 0 == (tmp_path / "events" / "2026-03-05.jsonl").stat().st_size

    async def test_bad_lines(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Lines that are no records are skipped, counted and reported; the others are not harmed."""
        happened = moments(4)
        async with opened(tmp_path) as backend:
            await backend.append(entries(happened))
        path = tmp_path / "events" / TODAY
        good = path.read_bytes().splitlines(keepends=True)
        strange = [
            b"garbage\n", b"\n", b"[]\n", b"null\n", b"{}\n", b"\xff\xfe\n", b"\0\0\0\n",
            good[0].replace(b"2026-03-04T", b"2026-03-05T"),  # another day
            good[0].replace(b"123456Z", b"123456"),  # no time zone
            good[0].replace(b'"user_id":"u0"', b'"user_id":7'),
            good[0].replace(b'"level":"INFO"', b'"level":"LOUD"'),
            good[0].replace(b'"digest":"', b'"digest":"x'),
            good[0].replace(b'"context":{}', b'"context":[]'),
        ]  # fmt: skip
        path.write_bytes(b"".join([good[0], *strange[:6], good[1], *strange[6:], good[2], good[3]]))
        async with opened(tmp_path) as backend:
            assert len(strange) == backend.bad_lines
            assert happened == (await backend.query(ALL))[::-1]
            assert {"": 4} == await backend.count(ALL)
            assert [DUPLICATE] == await backend.append([entry(happened[1])])
            # A rewrite does not take sides on what it cannot read.
            assert 1 == await backend.delete(Query(Event, {"user_id": "u1"}))
            assert len(strange) == backend.bad_lines

        assert [f"{len(strange)} lines are no records" in r.message for r in caplog.records] == [True]
        assert [happened[0], *happened[2:]] == await stored(tmp_path)
        # But what is too old goes with its file.
        async with opened(tmp_path) as backend:
            assert 3 == await backend.delete(Query(Event, until=NOON + DAY))
        assert not path.exists()

    async def test_damaged_while_open(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A line damaged under our feet is skipped, counted and reported once; a page is full all the same."""
        happened = moments(4)
        async with opened(tmp_path) as backend:
            await backend.append(entries(happened))
            path = tmp_path / "events" / TODAY
            with path.open("r+b") as file:
                file.write(b"XX")
            for _ in range(2):
                assert happened[1:] == (await backend.query(Query(Event, limit=3)))[::-1]
                assert happened[1:] == (await backend.query(ALL))[::-1]
            assert 1 == backend.bad_lines
            # Its id is not taken for stored: whoever sends it again stores it again.
            assert [STORED, DUPLICATE] == await backend.append(entries(happened[:2]))
            assert happened == (await backend.query(ALL))[::-1]
            await backend.delete(Query(Event, {"user_id": "u3"}))
            assert happened[:3] == (await backend.query(ALL))[::-1]

        assert ["is no record any more" in r.message for r in caplog.records] == [True]
        assert happened[:3] == await stored(tmp_path)

    async def test_sessions(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The journal of the sessions is repaired and read like the others."""
        async with opened(tmp_path) as backend:
            await backend.touch_sessions([touch("a", "s", NOON, context={"n": 1}), touch("b", "s", NOON)])
            await backend.end_session("b", "s", NOON)
        path = tmp_path / "sessions.jsonl"
        good = path.read_bytes()
        for damage in (
            b'{"user',
            b"garbage\n",
            b"[]\n",
            b"{}\n",
            good.splitlines()[0].replace(b'{"n":1}', b"[]"),
        ):
            path.write_bytes(damage + b"\n" + good + damage)
            async with opened(tmp_path) as backend:
                (session,) = await backend.active_sessions(None, NOON, 10)
                assert ("a", {"n": 1}) == (session.user_id, session.context)
                assert backend.bad_lines
        assert "are no sessions" in caplog.text


class TestIds:
    async def test_across_days_and_restarts(self, tmp_path: Path) -> None:
        """An id is known wherever it was stored; the digest tells a duplicate from a conflict."""
        happened = [event("u", timestamp=NOON - i * DAY) for i in range(5)]
        moved = happened[3].model_copy(update={"timestamp": NOON + DAY})
        async with opened(tmp_path) as backend:
            assert [STORED] * 5 == await backend.append(entries(happened))
            assert [CONFLICT, DUPLICATE] == await backend.append(entries([moved, happened[3]]))
        async with opened(tmp_path) as backend:
            assert [CONFLICT, DUPLICATE] == await backend.append(entries([moved, happened[3]]))
            assert [DUPLICATE] * 5 == await backend.append(entries(happened))

        assert newest_first(happened)[::-1] == await stored(tmp_path)

    async def test_deleted_ids_are_free(self, tmp_path: Path) -> None:
        """What is deleted may be stored again, also on another day."""
        happened = moments(5, DAY)
        async with opened(tmp_path) as backend:
            await backend.append(entries(happened))
            assert 2 == await backend.delete(Query(Event, until=NOON + 2 * DAY))
            again = [each.model_copy(update={"timestamp": NOON + 9 * DAY}) for each in happened[:2]]
            assert [STORED] * 2 == await backend.append(entries(again))
            assert [DUPLICATE] * 2 == await backend.append(entries(again))
            assert [DUPLICATE] * 3 == await backend.append(entries(happened[2:]))
            index = backend._open.folder.kinds[Event]._ids
            await backend.delete(Query(Event, {"user_id": "u2"}))
            assert 4 * 24 == sum(len(shard) for shard in index._shards.values())

        assert {*ids(happened[3:]), *ids(again)} == {*ids(await stored(tmp_path))}

    async def test_id_on_two_days(self, tmp_path: Path) -> None:
        """A line copied by hand to another day's file does not make two of one."""
        (first,) = moments(1)
        async with opened(tmp_path) as backend:
            await backend.append([entry(first)])
        text = (tmp_path / "events" / TODAY).read_text()
        (tmp_path / "events" / "2026-03-05.jsonl").write_text(text.replace("2026-03-04", "2026-03-05"))
        async with opened(tmp_path) as backend:
            assert ([first], 1) == (await backend.query(ALL), backend.bad_lines)

    @given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3_652_059), st.integers(0, 2**40 - 1))))
    def test_index(self, puts: list[tuple[int, int, int]]) -> None:
        """The index of ids is a dict."""
        index, model = IdIndex(), {}
        for number, day, offset in puts:
            # Ids that share bytes at other places than their own.
            key = bytes([number % 3, number % 5]) * 8
            index.put(key, day, offset)
            model[key] = day, offset

        assert model == {key: index.get(key) for key in model}
        index.sweep(lambda day, offset: (day + offset) % 2 == 0)
        assert {k: v if sum(v) % 2 == 0 else None for k, v in model.items()} == {
            k: index.get(k) for k in model
        }
        assert index.get(b"x" * 16) is None

    def test_index_between_entries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An id that lies across two parts of the index is not taken for an entry."""
        monkeypatch.setattr(_id_index, "_SHARDS", 1)
        index = IdIndex()
        index.put(b"a" * 8 + b"b" * 8, 1, 2)
        across = b"b" * 8 + (1 << 40 | 2).to_bytes(8, "big")

        assert index.get(across) is None
        index.put(across, 3, 4)
        assert [(1, 2), (3, 4)] == [index.get(b"a" * 8 + b"b" * 8), index.get(across)]


class TestFullDisk:
    async def test_every_size(self, tmp_path: Path) -> None:
        """A write that the disk cuts short anywhere is taken back whole: refused, and writing goes on with room."""
        happened = moments(3)
        async with opened(tmp_path) as backend:
            await backend.append([entry(happened[0])])
            path = tmp_path / "events" / TODAY
            size = path.stat().st_size
            for room in range(0, size, 7):
                with files_up_to(size + room), pytest.raises(OverloadedError) as refused:
                    await backend.append([entry(happened[1])])
                assert not refused.value.ambiguous
                assert size == path.stat().st_size
                assert happened[:1] == await backend.query(ALL)
            assert [STORED, STORED] == await backend.append(entries(happened[1:]))

        assert happened == await stored(tmp_path)

    async def test_new_day(self, tmp_path: Path) -> None:
        """The first line of a day that has no room leaves an empty file at most."""
        async with opened(tmp_path) as backend:
            with files_up_to(10), pytest.raises(OverloadedError):
                await backend.append(entries(moments(1)))
            assert [] == await backend.query(ALL)
            happened = moments(2)
            await backend.append(entries(happened))

        assert happened == await stored(tmp_path)

    async def test_together(self, tmp_path: Path) -> None:
        """Calls that shared a failed write all fail, also one that only found its id there; others do not."""
        today, tomorrow = event("a"), event("b", timestamp=NOON + DAY)
        async with opened(tmp_path) as backend:
            await backend.append(entries([event("x", message="y" * 3000)]))
            size = (tmp_path / "events" / TODAY).stat().st_size
            with files_up_to(size + 10):
                results = await asyncio.gather(
                    *(backend.append([entry(each)]) for each in (today, tomorrow, today, tomorrow)),
                    backend.append(entries([today, tomorrow])),
                    backend.touch_sessions([touch("a", "s", NOON)]),
                    return_exceptions=True,
                )
            failures = [isinstance(result, OverloadedError) for result in results]
            assert [True, False, True, False, True, False] == failures
            assert [[STORED], [DUPLICATE]] == [results[1], results[3]]
            # The one that went to two files may have been applied in part.
            assert [False, False, True] == [results[i].ambiguous for i in (0, 2, 4)]
            assert 3 == len({id(results[i]) for i in (0, 2, 4)})
            assert [STORED, DUPLICATE] == await backend.append(entries([today, tomorrow]))

    async def test_sales_and_sessions(self, tmp_path: Path) -> None:
        """A step without room leaves the sale, and the session, as they were."""
        sold = sale("u", context={"x": "y" * 500})
        async with opened(tmp_path) as backend:
            await backend.append([entry(sold)])
            await backend.touch_sessions([touch("u", "s", NOON, context={"n": 1})])
            with files_up_to(64):
                for call in (
                    backend.set_sale_status(sold.id, "completed", ("pending",)),
                    backend.touch_sessions([touch("u", "s", NOON, context={"n": 2})]),
                    backend.end_session("u", "s", NOON),
                ):
                    with pytest.raises(OverloadedError):
                        await call
            assert [sold] == await backend.query(Query(Sale))
            assert [{"n": 1}] == [s.context for s in await backend.active_sessions("u", NOON, 9)]
            changed = await backend.set_sale_status(sold.id, "completed", ("pending",))
            assert (changed, "completed") == (
                (await backend.query(Query(Sale)))[0],
                changed and changed.status,
            )

    async def test_delete(self, tmp_path: Path) -> None:
        """A rewrite without room changes nothing; whole days go without any."""
        happened = [event(f"u{i}", message="x" * 500, timestamp=NOON + i // 4 * DAY) for i in range(8)]
        async with opened(tmp_path) as backend:
            await backend.append(entries(happened))
            with files_up_to(100):
                with pytest.raises(OverloadedError):
                    await backend.delete(Query(Event, {"user_id": "u5"}))
                assert 8 == len(await backend.query(ALL))
                assert 4 == await backend.delete(Query(Event, until=NOON + DAY))
            assert [DUPLICATE] * 4 == await backend.append(entries(happened[4:]))

        assert 4 == len(await stored(tmp_path))
        assert not list((tmp_path / "events").glob(".tmp-*"))


class TestFailingDisk:
    async def test_failed_sync(self, tmp_path: Path, syncs: Syncs) -> None:
        """After a failed sync the write is taken back, and its descriptor not used again."""
        happened = moments(4)
        async with opened(tmp_path) as backend:
            await backend.append([entry(happened[0])])
            journal = backend._open.folder.kinds[Event]._last.journal
            old = journal._file
            start = syncs.count
            syncs.fail = lambda count: count == start + 1
            with pytest.raises(BackendUnavailableError) as failed:
                await backend.append([entry(happened[1])])
            assert (False, True) == (failed.value.ambiguous, old.closed)
            assert happened[:1] == await backend.query(ALL)
            assert [STORED] * 3 == await backend.append(entries(happened[1:]))

        assert happened == await stored(tmp_path)

    async def test_sync_fails_for_good(self, tmp_path: Path, syncs: Syncs) -> None:
        """While syncs fail, calls fail as ambiguous; nobody reads the lines, and later ones take their place."""
        happened = moments(6)
        async with opened(tmp_path) as backend:
            await backend.append(entries(happened[:2]))
            syncs.fail = lambda _: True
            for each in happened[2:4]:
                with pytest.raises(BackendUnavailableError) as failed:
                    await backend.append([entry(each)])
                assert failed.value.ambiguous
                assert happened[:2] == (await backend.query(ALL))[::-1]
            syncs.fail = lambda _: False
            await backend.append(entries(happened[4:]))
            assert happened[:2] + happened[4:] == (await backend.query(ALL))[::-1]

        assert happened[:2] + happened[4:] == await stored(tmp_path)

    async def test_first_sync_of_a_day_fails_for_good(self, tmp_path: Path, syncs: Syncs) -> None:
        """A new day whose first write could not be taken back begins with what is in its file."""
        happened = moments(3)
        async with opened(tmp_path) as backend:
            syncs.fail = lambda _: True
            with pytest.raises(BackendUnavailableError):
                await backend.append([entry(happened[0])])
            syncs.fail = lambda _: False
            outcomes = await backend.append(entries(happened))
            assert happened == (await backend.query(ALL))[::-1]
            assert [STORED, STORED] == outcomes[1:]

        assert happened == await stored(tmp_path)

    async def test_every_third(self, tmp_path: Path, syncs: Syncs) -> None:
        """With every third sync failing, what is acknowledged is there, and what is not is not, or is ambiguous."""
        async with opened(tmp_path) as backend:
            syncs.fail = lambda count: count % 3 == 0
            good, unsure = [], []
            for each in moments(60):
                try:
                    await backend.append([entry(each)])
                    good.append(each.id)
                except BackendError as exc:
                    if exc.ambiguous:
                        unsure.append(each.id)
            syncs.fail = lambda _: False
        there = set(ids(await stored(tmp_path)))

        assert len(good) > 20
        assert there >= set(good)
        assert there <= {*good, *unsure}

    async def test_unreadable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that cannot be read is an error of the backend, for queries and where an id has to be checked."""
        (first,) = moments(1)
        async with opened(tmp_path) as backend:
            await backend.append([entry(first)])

            def fail(*_: object, **__: object) -> None:
                raise OSError(errno.EIO, "no")

            with monkeypatch.context() as patched:
                patched.setattr(Path, "open", fail)
                for call in (backend.query(ALL), backend.append([entry(first)]), backend.count(ALL, "level")):
                    with pytest.raises(BackendUnavailableError):
                        await call
            assert [first] == await backend.query(ALL)

            def refuse(*_: object, **__: object) -> None:
                raise OSError(errno.EACCES, "no")

            # What the call had worked out before that is written.
            second = event("second")
            with monkeypatch.context() as patched:
                patched.setattr(Path, "open", refuse)
                with pytest.raises(BackendUnavailableError) as failed:
                    await backend.append(entries([second, first]))
            assert failed.value.ambiguous
            assert [DUPLICATE, DUPLICATE] == await backend.append(entries([second, first]))

    async def test_failed_rename_of_a_delete(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A rewrite of which nobody knows whether it happened is looked up in the file."""
        happened = [each.model_copy(update={"username": "x" * i}) for i, each in enumerate(moments(4))]
        async with opened(tmp_path) as backend:
            await backend.append(entries(happened))
            real = os.fsync

            def fsync(descriptor: int) -> None:
                real(descriptor)
                raise OSError(errno.EIO, "no")

            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", fsync)
                with pytest.raises(BackendUnavailableError) as failed:
                    await backend.delete(Query(Event, {"user_id": "u1"}))
            left = [happened[0], *happened[2:]]
            assert (True, left) == (failed.value.ambiguous, (await backend.query(ALL))[::-1])
            assert [DUPLICATE, STORED] == await backend.append(entries(happened[:2]))

        assert happened == await stored(tmp_path)

    async def test_sessions_that_cannot_be_compacted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The journal of the sessions is written anew as it grows; where that fails it grows on."""
        monkeypatch.setattr(_session_file, "_SPARE_LINES", 10)
        async with opened(tmp_path) as backend:
            for i in range(30):
                await backend.touch_sessions([touch("u", "s", NOON + i * TICK)])
            assert 15 > len(lines_of(tmp_path / "sessions.jsonl"))

            def fail(*_: object) -> None:
                raise OSError(errno.ENOSPC, "no")

            with monkeypatch.context() as patched:
                patched.setattr(_session_file, "write_atomic", fail)
                for i in range(30, 60):
                    await backend.touch_sessions([touch("u", "s", NOON + i * TICK)])
            assert 30 < len(lines_of(tmp_path / "sessions.jsonl"))
            assert "cannot be written anew" in caplog.text
        async with opened(tmp_path) as backend:
            (session,) = await backend.active_sessions("u", NOON, 1)
            assert NOON + 59 * TICK == session.last_seen_at


class TestByHand:
    async def test_removed_day(self, tmp_path: Path) -> None:
        """A day that somebody removes is gone at once, and may be written to again."""
        happened = moments(4, DAY)
        async with opened(tmp_path) as backend:
            await backend.append(entries(happened))
            for i in (1, 3):
                (tmp_path / "events" / f"2026-03-0{4 + i}.jsonl").unlink()
            left = [happened[0], happened[2]]
            assert left == (await backend.query(ALL))[::-1]
            assert 0 == await backend.delete(Query(Event, {"user_id": "u1"}))
            # Of the last day the descriptor is still open, of the other it is not.
            assert [STORED, DUPLICATE] == await backend.append(entries(happened[3:1:-1]))
            assert [STORED] == await backend.append(entries(happened[1:2]))
            assert happened == (await backend.query(ALL))[::-1]

        assert happened == await stored(tmp_path)

    async def test_line_taken_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A status whose sale's line is taken out at that moment is the line of the sale from then on."""
        sold, other = sale("a"), sale("b")
        async with opened(tmp_path) as backend:
            await backend.append(entries([other, sold]))
            path = tmp_path / "sales" / TODAY
            real = Journal.append

            def append(journal: Journal, lines: bytes) -> int:
                monkeypatch.setattr(Journal, "append", real)
                kept = path.read_bytes().splitlines(keepends=True)[0]
                path.unlink()
                path.write_bytes(kept)
                return journal.append(lines)

            monkeypatch.setattr(Journal, "append", append)
            changed = await backend.set_sale_status(sold.id, "completed", ("pending",))
            assert {other.id: other, sold.id: changed} == {s.id: s for s in await backend.query(Query(Sale))}
            assert {"pending": 1, "completed": 1} == await backend.count(Query(Sale), "status")

    async def test_changed_again_and_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that somebody keeps changing is given up on, loudly."""

        def append(*_: object) -> int:
            raise JournalChangedError

        async with opened(tmp_path) as backend:
            with monkeypatch.context() as patched:
                patched.setattr(Journal, "append", append)
                with pytest.raises(BackendUnavailableError, match="another program"):
                    await backend.append(entries(moments(1)))
            assert [STORED] == await backend.append(entries(moments(1)))

    async def test_same_id_at_another_time(self, tmp_path: Path) -> None:
        """Of two lines with one id and different times the first counts."""
        (first,) = moments(1)
        async with opened(tmp_path) as backend:
            await backend.append([entry(first)])
        path = tmp_path / "events" / TODAY
        path.write_bytes(path.read_bytes() + path.read_bytes().replace(b"123456Z", b"123457Z"))
        async with opened(tmp_path) as backend:
            assert ([first], 1) == (await backend.query(ALL), backend.bad_lines)

    async def test_added_day(self, tmp_path: Path) -> None:
        """A file that somebody puts in is not written over; it is found with the first line that goes to it."""
        happened = moments(2)
        async with opened(tmp_path / "other") as backend:
            await backend.append(entries(happened[:1]))
        async with opened(tmp_path / "logs") as backend:
            shutil.copy(tmp_path / "other" / "events" / TODAY, tmp_path / "logs" / "events" / TODAY)
            await backend.append(entries(happened[1:]))
            assert happened == (await backend.query(ALL))[::-1]

    async def test_removed_sessions(self, tmp_path: Path) -> None:
        """The sessions are in memory: their file comes back with the next one."""
        async with opened(tmp_path) as backend:
            await backend.touch_sessions([touch("a", "s", NOON)])
            (tmp_path / "sessions.jsonl").unlink()
            await backend.touch_sessions([touch("b", "s", NOON)])
        async with opened(tmp_path) as backend:
            assert ["a", "b"] == [s.user_id for s in await backend.active_sessions(None, NOON, 9)]


class TestTogether:
    async def test_shared_syncs(self, tmp_path: Path, syncs: Syncs) -> None:
        """Calls made at the same time share a sync; each gets its own answer."""
        happened = moments(300)
        async with opened(tmp_path) as backend:
            start = syncs.count
            outcomes = await asyncio.gather(*(backend.append([entry(e)]) for e in [*happened, happened[0]]))
            assert 5 > syncs.count - start
            assert [[STORED]] * 300 + [[DUPLICATE]] == outcomes

        assert happened == await stored(tmp_path)

    async def test_cancelled_callers(self, tmp_path: Path) -> None:
        """A caller that is cancelled tears no line and takes nobody along, at whatever moment."""
        shuffle = random.Random(7)
        async with opened(tmp_path) as backend:
            happened = moments(400)
            tasks = [asyncio.create_task(backend.append([entry(each)])) for each in happened]
            for task in shuffle.sample(tasks, 200):
                await asyncio.sleep(shuffle.choice([0, 0, 0, 0.0002]))
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            acknowledged = {e.id for e, o in zip(happened, outcomes, strict=True) if o == [STORED]}
            assert len(acknowledged) >= 200
            assert acknowledged <= set(ids(await backend.query(ALL)))
            assert 0 == backend.bad_lines
            again = await backend.append(entries(happened))
            assert CONFLICT not in again

        assert happened == await stored(tmp_path)
        assert 400 == len(lines_of(tmp_path / "events" / TODAY))

    async def test_cancelled_in_time(self, tmp_path: Path) -> None:
        """A call that is cancelled before its batch begins is not made."""
        async with opened(tmp_path) as backend:
            task = asyncio.create_task(backend.append(entries(moments(1))))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await backend.append(entries(moments(2)))

            assert {"": 2} == await backend.count(ALL)

    async def test_reading_meanwhile(self, tmp_path: Path) -> None:
        """Readers see whole records, in order, while others append to any day, step sales and delete."""
        done = False
        seen: dict[UUID, Event] = {}

        async def read(backend: FileLogBackend) -> int:
            rounds = 0
            while not done:
                events = await backend.query(Query(Event, {"level": "INFO"}, limit=50))
                assert newest_first(events) == events
                assert all(seen[each.id] == each for each in events)
                await backend.query(Query(Sale))
                rounds += 1
            return rounds

        shuffle = random.Random(11)
        sold = [sale(f"s{i}") for i in range(20)]
        async with opened(tmp_path) as backend:
            await backend.append(entries(sold))
            readers = [asyncio.create_task(read(backend)) for _ in range(4)]
            for i in range(150):
                batch = [
                    event(f"u{i % 3}", message="x" * shuffle.randrange(3000), timestamp=NOON - n % 3 * DAY)
                    for n in range(shuffle.randrange(1, 6))
                ]
                seen |= {each.id: each for each in batch}
                await backend.append(entries(batch))
                if i % 10 == 0:
                    await backend.delete(Query(Event, {"user_id": f"u{shuffle.randrange(3)}"}))
                    await backend.set_sale_status(shuffle.choice(sold).id, "completed", ("pending",))
            done = True
            assert all(await asyncio.gather(*readers))
            assert 0 == backend.bad_lines

    async def test_many_callers(self, tmp_path: Path) -> None:
        """More calls than one batch takes are all made, in order; a batch of cancelled ones is none."""
        async with opened(tmp_path) as backend:
            happened = moments(2500)
            tasks = [asyncio.create_task(backend.append([entry(each)])) for each in happened]
            await asyncio.sleep(0)
            for task in tasks[:1500]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert happened[1500:] == (await backend.query(ALL))[::-1]

        texts = [line["message"] for line in lines_of(tmp_path / "events" / TODAY)]
        assert [each.message for each in happened[1500:]] == texts

    async def test_many_days(self, tmp_path: Path) -> None:
        """A batch over many days needs no descriptor for each."""
        happened = moments(600, DAY)
        before = open_files()
        async with opened(tmp_path) as backend:
            assert [STORED] * 600 == await backend.append(entries(happened))
            assert happened[-10:] == (await backend.query(Query(Event, limit=10)))[::-1]
            assert 10 > open_files() - before


class TestAgainstMemory:
    """A long random life, with restarts, ends in what the backend in memory says."""

    @pytest.mark.parametrize("seed", range(4))
    async def test_random_life(self, tmp_path: Path, seed: int) -> None:
        dice = random.Random(seed)
        model = MemoryLogBackend()
        backend = FileLogBackend(tmp_path)
        await backend.open()
        known: list[Record] = []
        for _ in range(150):
            step = dice.random()
            if step < 0.5:
                batch = [self._record(dice, known) for _ in range(dice.randrange(1, 8))]
                for kind in (Event, Sale, Message):
                    of_kind = entries(each for each in batch if type(each) is kind)
                    assert await model.append(of_kind) == await backend.append(of_kind)
                known += batch
            elif step < 0.65:
                await self._step_sale(dice, known, model, backend)
            elif step < 0.75:
                query = self._query(dice, paged=False)
                assert await model.delete(query) == await backend.delete(query)
            elif step < 0.8:
                await backend.close()
                backend = FileLogBackend(tmp_path)
                await backend.open()
            await self._compare(dice, model, backend)
        await backend.close()

    def _record(self, dice: random.Random, known: Sequence[Any]) -> Record:
        if known and dice.random() < 0.2:
            old = dice.choice(known)
            return old if dice.random() < 0.7 else old.model_copy(update={"user_id": "other"})
        make = dice.choice([event, sale, message])
        at = NOON + dice.choice([0, 0, 1, 2]) * DAY + dice.choice([0, 0, 1, 5]) * TICK
        return make(f"u{dice.randrange(3)}", timestamp=at, context={"n": dice.randrange(9)})

    def _query(self, dice: random.Random, *, paged: bool = True) -> Query[Any]:
        def time() -> datetime | None:
            return dice.choice([None, NOON + dice.randrange(3) * DAY + dice.randrange(3) * TICK])

        after = time() if paged else None
        return Query(
            dice.choice([Event, Sale, Message]),
            dice.choice([{}, {"user_id": f"u{dice.randrange(4)}"}]),
            since=time(),
            until=time(),
            after=after and (after, uuid4()),
            limit=dice.choice([1, 3, 10_000]),
        )

    async def _step_sale(
        self, dice: random.Random, known: Sequence[Any], model: MemoryLogBackend, backend: FileLogBackend
    ) -> None:
        sales = [each for each in known if type(each) is Sale] or [sale("nobody")]
        answers = []
        chosen, status = dice.choice(sales).id, dice.choice(["completed", "failed", "refunded"])
        for each in (model, backend):
            try:
                answers.append(await each.set_sale_status(chosen, status, ("pending", "completed")))
            except ConflictError as exc:
                answers.append(str(exc))

        assert answers[0] == answers[1]

    async def _compare(self, dice: random.Random, model: MemoryLogBackend, backend: FileLogBackend) -> None:
        query = self._query(dice)

        assert await model.query(query) == await backend.query(query)
        assert await model.count(query) == await backend.count(query)
        assert await model.count(query, "user_id") == await backend.count(query, "user_id")
        assert await model.histogram(query, "day") == await backend.histogram(query, "day")
        stats = Query(Message, query.equal, query.since, query.until)
        assert await model.message_stats(stats) == await backend.message_stats(stats)


class TestInMemory:
    async def test_in_any_order(self) -> None:
        """Large batches that belong before what is there are sorted in; the newest come first as ever."""
        backend = MemoryLogBackend()
        happened = moments(3000)
        for part in (happened[2000:], happened[:1000][::-1], happened[1000:1003], happened[1003:2000]):
            await backend.append(entries(part))

        assert happened == (await backend.query(ALL))[::-1]
        assert (
            happened[1000:1002]
            == (await backend.query(Query(Event, limit=2, until=happened[1002].timestamp)))[::-1]
        )

    async def test_others_get_their_turn(self) -> None:
        """A long search lets others append and delete, and misses nothing that was there all the time."""
        backend = MemoryLogBackend()
        happened = moments(5000)
        await backend.append(entries(happened))
        searching = asyncio.create_task(backend.query(Query(Event, keyword="gus", limit=10_000)))
        finding = asyncio.create_task(backend.query(Query(Event, keyword="ğüş", limit=10_000)))
        await asyncio.sleep(0)
        await backend.append(entries([event("new", message="ğüş")]))
        await backend.delete(Query(Event, {"user_id": "u100"}))

        assert [] == await searching
        there = {*ids(happened)} - {happened[100].id}
        assert there <= {*ids(await finding)}

    async def test_deleted_twice_at_once(self) -> None:
        """Each record is deleted by one of two calls."""
        backend = MemoryLogBackend()
        await backend.append(entries(moments(3000)))
        deleted = await asyncio.gather(*(backend.delete(ALL) for _ in range(2)))

        assert 3000 == sum(deleted)
        assert {"": 0} == await backend.count(ALL)

    def test_sessions_do_not_pile_up(self) -> None:
        """Sessions that are over for a week are dropped as others come."""
        table = SessionTable()
        for day in range(100):
            for i in range(100):
                table.put(touched(None, touch(f"u{day}-{i}", "s", NOON + day * DAY)))

        assert 10_000 > len(table) >= 800
        assert 100 == len(table.active(None, NOON + 99 * DAY, 1000))


class LossyDisk:
    """Remembers what was synced, and can write down what would be left of a folder after a power cut."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._sync)

    def _sync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if stat.S_ISDIR(status.st_mode):
            self._names[status.st_ino] = {each.name: each.stat().st_ino for each in path.iterdir()}
        elif not str(path).endswith("(deleted)"):
            self._content[status.st_ino] = path.read_bytes()

    def cut(self, to: Path) -> Path:
        """Write what is durable to the folder *to*."""
        self._restore(self._root.stat().st_ino, to)
        return to

    def _restore(self, inode: int, to: Path) -> None:
        to.mkdir()
        for name, child in self._names.get(inode, {}).items():
            if child in self._content:
                (to / name).write_bytes(self._content[child])
            elif child in self._names or not name.startswith("."):
                # A name without content is an empty file, or a folder nobody synced.
                if (self._root / name).is_dir() or child in self._names:
                    self._restore(child, to / name)
                else:
                    (to / name).write_bytes(b"")


async def test_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the power goes, all that was acknowledged is there: appends, steps, sessions and deletes."""
    root = tmp_path / "disk"
    root.mkdir()
    disk = LossyDisk(root, monkeypatch)
    dice = random.Random(3)
    backend = FileLogBackend(root / "a" / "logs")
    await backend.open()
    happened: list[Event] = []
    sold = sale("buyer")
    for i in range(40):
        batch = [event(f"u{dice.randrange(4)}", timestamp=NOON + dice.randrange(3) * DAY) for _ in range(3)]
        await backend.append(entries(batch))
        happened += batch
        if i == 10:
            await backend.append([entry(sold)])
        if i == 20:
            await backend.set_sale_status(sold.id, "completed", ("pending",))
        if i == 30:
            await backend.delete(Query(Event, {"user_id": "u1"}))
            await backend.delete(Query(Event, until=NOON + DAY))
            happened = [e for e in happened if e.user_id != "u1" and e.timestamp >= NOON + DAY]
        await backend.touch_sessions([touch("u", "s", NOON + i * TICK)])

        left = disk.cut(tmp_path / f"cut{i}")
        async with opened(left / "a" / "logs") as after:
            assert newest_first(happened) == await after.query(ALL)
            expected = [] if i < 10 else ["pending"] if i < 20 else ["completed"]
            assert expected == [s.status for s in await after.query(Query(Sale))]
            (session,) = await after.active_sessions("u", NOON, 9)
            assert NOON + i * TICK == session.last_seen_at
    await backend.close()


PROGRAM = """
import asyncio, sys
from pathlib import Path
from multidb.logs.backends._in_process import SessionTable, touched
from multidb.logs.backends._journal import Journal, JournalChangedError
from multidb.logs.backends.files import FileLogBackend
from multidb.testing.conformance._log_data import entry, event, sale, touch, NOON, TICK

async def main():
    backend = FileLogBackend(Path(sys.argv[1]))
    await backend.open()
    async def work(name):
        while True:
            each = event(name, message="x" * 300)
            await backend.append([entry(each)])
            print(each.id, flush=True)
    await asyncio.gather(*(work(f"u{i}") for i in range(20)))

asyncio.run(main())
"""


def test_killed(tmp_path: Path) -> None:
    """A process killed at any moment has lost nothing that it had acknowledged, and its folder is free."""
    acknowledged: set[str] = set()
    dice = random.Random(5)
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, tmp_path / "logs"], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(dice.randrange(20, 400)):
                acknowledged.add(process.stdout.readline().strip())
            process.send_signal(signal.SIGKILL)
            acknowledged.update(line.strip() for line in process.stdout.readlines() if line.endswith("\n"))
    there = {str(each) for each in ids(asyncio.run(stored(tmp_path / "logs")))}

    assert len(acknowledged) > 80
    assert acknowledged <= there


async def test_large(tmp_path: Path) -> None:
    """Records longer than what is read at once come back, between small ones."""
    happened = moments(9)
    happened[4] = happened[4].model_copy(update={"context": {"x": "y" * 1_000_000}})
    async with opened(tmp_path) as backend:
        await backend.append(entries(happened))
        assert happened == (await backend.query(ALL))[::-1]
        assert [happened[4]] == await backend.query(Query(Event, {"user_id": "u4"}))

    assert happened == await stored(tmp_path)

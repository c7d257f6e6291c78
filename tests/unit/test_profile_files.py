"""Profiles in files: what a person may do to them, a crash, a full disk, and other processes."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import shutil
import sys
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from disasters import printed_until_killed

from multidb._core import files as core_files
from multidb._core.files import safe_name
from multidb._core.locks import locked
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    InvalidValueError,
    OverloadedError,
)
from multidb.profiles.backends import files
from multidb.profiles.backends.files import FileProfileBackend
from multidb.profiles.protocol import Applied, Condition, Patch, ProfileQuery
from multidb.testing import faults

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
EVERYONE = ProfileQuery(limit=10_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "profiles"


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[FileProfileBackend]:
    backend = FileProfileBackend(folder)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


def change(username: str, **fields: Any) -> Patch:
    return Patch(username, at=NOW, set=fields, upsert=True)


async def names(backend: FileProfileBackend) -> list[str]:
    return [document["username"] for document in await backend.find(EVERYONE)]


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def edit(path: Path, text: str | bytes) -> None:
    path.write_bytes(text.encode() if isinstance(text, str) else text)


class TestByHand:
    async def test_readable(self, folder: Path) -> None:
        """A file is JSON that a person can read: named after the username, what is multidb's own first."""
        async with opened(folder) as backend:
            await backend.apply([change("ali", z=1, ad="Işık", settings={"theme": "dark"})])

        assert (folder / "ali.json").read_text(encoding="utf-8") == (
            "{\n"
            '  "username": "ali",\n'
            '  "created_at": "2026-01-02T03:04:05.678901+00:00",\n'
            '  "updated_at": "2026-01-02T03:04:05.678901+00:00",\n'
            '  "version": 1,\n'
            '  "ad": "Işık",\n'
            '  "settings": {\n'
            '    "theme": "dark"\n'
            "  },\n"
            '  "z": 1\n'
            "}\n"
        )

    async def test_edited(self, folder: Path) -> None:
        """What is changed in a file is what is there, at once."""
        async with opened(folder) as backend:
            await backend.apply([change("ali", color="red"), change("veli", color="red")])
            path = folder / "ali.json"
            for color in ("blue", "cyan", "pink"):
                edit(
                    path, path.read_text().replace("red", color).replace("blue", color).replace("cyan", color)
                )
                (document,) = await backend.find(ProfileQuery([Condition("color", "eq", color)]))

                assert ("ali", color) == (document["username"], document["color"])
                assert color == (await backend.get(["ali"]))["ali"]["color"]
            path.unlink()

            assert ["veli"] == await names(backend)

    async def test_edited_without_a_trace(self, folder: Path) -> None:
        """An edit is seen even where neither the size nor the time of the file tells of it."""
        async with opened(folder) as backend:
            await backend.apply([change("ali", color="red")])
            path = folder / "ali.json"
            for before, after in (("red", "tan"), ("tan", "red"), ("red", "tan")):
                os.utime(path, (1_000_000_000, 1_000_000_000))
                assert before == (await backend.get(["ali"]))["ali"]["color"]
                assert path.name in backend._files._known
                edit(path, path.read_text().replace(before, after))
                os.utime(path, (1_000_000_000, 1_000_000_000))

                assert after == (await backend.get(["ali"]))["ali"]["color"]

    async def test_written_by_hand(self, folder: Path) -> None:
        """A file that a person wrote needs none of multidb's own fields; the next write fills them in."""
        async with opened(folder) as backend:
            edit(folder / "ali.json", b'\xef\xbb\xbf{"type": "bot", "zero": -0.0}')
            edit(folder / f"{safe_name('Ay/şe')}.json", "{}")
            os.utime(folder / "ali.json", (1_700_000_000, 1_700_000_000))
            edited = datetime.fromtimestamp(1_700_000_000, UTC)
            document = (await backend.get(["ali"]))["ali"]
            expected = {"username": "ali", "version": 1, "created_at": edited, "updated_at": edited}

            assert expected | {"type": "bot", "zero": 0.0} == document
            assert "0.0" == str(document["zero"])
            assert ["Ay/şe", "ali"] == await names(backend)
            (applied,) = await backend.apply([Patch("ali", at=NOW, set={"n": 1}, expected_version=1)])
            assert isinstance(applied, Applied)
            assert {"created_at": edited, "updated_at": NOW, "version": 2}.items() <= applied.document.items()
            assert applied.document == (await backend.get(["ali"]))["ali"]

    async def test_other_times(self, folder: Path) -> None:
        """A time in a file may have any offset."""
        async with opened(folder) as backend:
            edit(
                folder / "a.json",
                '{"created_at": "2026-01-02T06:04:05.678901+03:00", "updated_at": "2026-01-02T03:04Z"}',
            )
            document = (await backend.get(["a"]))["a"]

            assert NOW == document["created_at"]
            assert timedelta(0) == document["created_at"].utcoffset()
            assert NOW.replace(second=0, microsecond=0) == document["updated_at"]

    @pytest.mark.parametrize(
        "content",
        [
            "", "{", "[]", "null", '"text"', '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', '{"a": "\\u0000"}', b"\xff{}",
            '{"a.b": 1}', '{"$a": 1}', '{"": 1}', '{"a": {"_id": 1}}', '{"a": 9223372036854775808}', "[" * 100_000,
            '{"a": ' + "[" * 40 + "]" * 40 + "}", '{"version": 0}', '{"version": true}', '{"version": "1"}', '{"created_at": 5}',
            '{"created_at": "2026-01-02T03:04:05"}', '{"updated_at": "yesterday"}', '{"username": "other"}', '{"username": 5}',
        ],
    )  # fmt: skip
    async def test_no_profile(
        self, folder: Path, content: str | bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A file that is no profile is named where it is asked for, kept, and left out of the rest with one warning."""
        path = folder / "broken.json"
        async with opened(folder) as backend:
            await backend.apply([change("good", type="bot")])
            edit(path, content)
            before = path.read_bytes()
            with pytest.raises(BackendError, match=r"broken\.json") as error:
                await backend.get(["good", "broken"])
            (alone,) = await backend.apply([change("broken", n=1)])
            written, refused = await backend.apply([change("good", n=1), change("broken", n=1)])
            with caplog.at_level(logging.WARNING, "multidb"):
                for _ in range(3):
                    assert ["good"] == await names(backend)
                    assert 1 == (await backend.stats()).total
                    assert 1 == len(await backend.search("o", 10))

            assert not error.value.retryable
            assert isinstance(written, Applied)
            for each in (alone, refused):
                assert isinstance(each, BackendError)
                assert not each.retryable
                assert "broken.json is not " in str(each)
                assert "delete_profile" in str(each)
            assert before == path.read_bytes()
            assert 1 == len(caplog.messages)
            assert "broken.json" in caplog.messages[0]
            assert [True, False] == list(await backend.delete(["broken", "broken"]))
            assert {} == await backend.get(["broken"])

    async def test_misnamed(self, folder: Path) -> None:
        """A file belongs to the username that its name says: a copy under another name is not a second profile."""
        async with opened(folder) as backend:
            await backend.apply([change("ali", n=1)])
            for name in ("ali (copy).json", "Ali.json", "ALI.json", "ali~.json", "%61li.json", "veli.json"):
                edit(folder / name, (folder / "ali.json").read_bytes())
            edit(folder / "ali.txt", "hello")
            edit(folder / "Veli.json", "{}")
            (folder / "folder.json").mkdir()

            assert ["ali"] == await names(backend)
            with pytest.raises(BackendError, match=r"veli\.json"):
                await backend.get(["veli"])
            with pytest.raises(BackendError, match=r"folder\.json is a folder"):
                await backend.get(["folder"])

    async def test_folder_deleted(self, folder: Path) -> None:
        """A folder that is gone is an error, and no empty store."""
        backend = FileProfileBackend(folder)
        await backend.open()
        shutil.rmtree(folder)
        for call in (
            backend.stats(),
            backend.find(EVERYONE),
            backend.apply([change("a")]),
            backend.delete(["a"]),
        ):
            with pytest.raises(BackendUnavailableError):
                await call
        await backend.close()

        with pytest.raises(ClosedError):
            await backend.stats()


class TestDisk:
    async def test_full(self, folder: Path) -> None:
        """A write without room is refused, and no other; the old profile stays, and nothing is left behind."""
        async with opened(folder) as backend:
            await backend.apply([change("ali", n=1)])
            with faults.file_size_limit(500):
                outcomes = await backend.apply(
                    [
                        change("first", n=1),
                        change("ali", text="x" * 1000),
                        change("new", text="x" * 1000),
                        change("new", n=1),
                        change("last"),
                    ]
                )

            assert [Applied, OverloadedError, OverloadedError, OverloadedError, Applied] == [
                *map(type, outcomes)
            ]
            assert not any(each.ambiguous for each in outcomes if isinstance(each, BackendError))
            assert outcomes[2] is not outcomes[3]
            assert ["ali", "first", "last"] == await names(backend)
            assert [1, 1, 1] == [document["version"] for document in await backend.find(EVERYONE)]
        assert {".locks", "ali.json", "first.json", "last.json"} == entries(folder)

    async def test_too_large(self, folder: Path) -> None:
        """A document too large for MongoDB is not written; the rest of its batch is."""
        large = "x" * (8 * 1024 * 1024)
        async with opened(folder) as backend:
            await backend.apply([change("ali", a=large)])
            outcomes = await backend.apply([change("veli"), change("ali", b=large), change("ali", n=1)])

            assert [Applied, InvalidValueError, Applied] == [*map(type, outcomes)]
            assert ["ali", "veli"] == await names(backend)
            document = (await backend.get(["ali"]))["ali"]
            assert (2, 1, False) == (document["version"], document["n"], "b" in document)

    async def test_many_files(self, folder: Path) -> None:
        """A batch may be of more files than are open at once."""
        async with opened(folder) as backend:
            outcomes = await backend.apply([change(f"u{number}", n=number) for number in range(200)])
            found = await backend.get([f"u{number}" for number in range(200)])

            assert all(isinstance(each, Applied) for each in outcomes)
            assert {f"u{number}": number for number in range(200)} == {
                name: each["n"] for name, each in found.items()
            }

    async def test_names_are_not_synced(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the last step fails, that is everybody's error, and what was written is not known."""
        async with opened(folder) as backend:

            def fails(_: object) -> None:
                raise OSError(errno.EIO, "no")

            monkeypatch.setattr(core_files, "sync_folder", fails)
            with pytest.raises(BackendUnavailableError) as caught:
                await backend.apply([change("ali"), change("veli")])

            assert caught.value.ambiguous

    async def test_leftovers(self, folder: Path) -> None:
        """What writes left behind whose process died goes at the next start; what is young may be in use."""
        async with opened(folder):
            for name, age in ((".tmp-old", 7200), (".tmp-young", 10)):
                edit(folder / name, "{")
                os.utime(folder / name, (time.time() - age,) * 2)
        async with opened(folder) as backend:
            assert [] == await names(backend)
        assert {".locks", ".tmp-young"} == entries(folder)

    async def test_one_write_a_profile(self, folder: Path) -> None:
        """Patches to one profile in a batch are one write to the disk, and each has its result."""
        async with opened(folder) as backend:
            patches = [Patch("ali", at=NOW, increment={"n": 1}, upsert=True) for _ in range(2000)]
            started = time.perf_counter()
            results = await backend.apply(patches)
            seconds = time.perf_counter() - started

            assert list(range(1, 2001)) == [
                result.document["n"] for result in results if isinstance(result, Applied)
            ]
            assert {"n": 2000, "version": 2000}.items() <= (await backend.get(["ali"]))["ali"].items()
        assert 5 > seconds  # Two thousand syncs take longer on any disk that keeps its word.

    async def test_killed(self, folder: Path) -> None:
        """What was acknowledged survives kill -9, and every file is whole."""
        program = (
            "import asyncio, pathlib, sys\n"
            "from datetime import UTC, datetime\n"
            "from multidb.profiles.backends.files import FileProfileBackend\n"
            "from multidb.profiles.protocol import Patch\n"
            "async def main():\n"
            "    backend = FileProfileBackend(pathlib.Path(sys.argv[1]))\n"
            "    await backend.open()\n"
            "    while True:\n"
            "        patch = Patch('u', at=datetime.now(UTC), increment={'n': 1}, upsert=True)\n"
            "        (applied,) = await backend.apply([patch])\n"
            "        print(applied.document['n'], flush=True)\n"
            "asyncio.run(main())\n"
        )
        for lines in (1, 20, 60):
            acknowledged = printed_until_killed(program, folder, lines)
            async with opened(folder) as backend:
                kept = (await backend.get(["u"]))["u"]["n"]

            assert acknowledged[-1] <= kept <= acknowledged[-1] + 1


class TestSharing:
    async def test_processes(self, folder: Path) -> None:
        """Processes that write to the same profiles at once lose nothing."""
        program = (
            "import asyncio, pathlib, sys\n"
            "from datetime import UTC, datetime\n"
            "from multidb.profiles.backends.files import FileProfileBackend\n"
            "from multidb.profiles.protocol import Patch\n"
            "async def main():\n"
            "    backend = FileProfileBackend(pathlib.Path(sys.argv[1]))\n"
            "    await backend.open()\n"
            "    for number in range(60):\n"
            "        await backend.apply([\n"
            "            Patch(name, at=datetime.now(UTC), increment={'n': 1}, set={f'f{number}': 1}, upsert=True)\n"
            "            for name in sys.argv[2:]\n"
            "        ])\n"
            "    await backend.close()\n"
            "asyncio.run(main())\n"
        )
        orders = (["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"])
        processes = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", program, folder, *order)
            for order in orders
        ]

        assert [0, 0, 0] == await asyncio.gather(*(process.wait() for process in processes))
        async with opened(folder) as backend:
            for document in (await backend.get(["a", "b", "c"])).values():
                assert {"n": 180, "version": 180}.items() <= document.items()
                assert {f"f{number}" for number in range(60)} <= document.keys()

    async def test_lock_held_elsewhere(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process that does not give a lock back costs a timeout; reads and other profiles need not wait."""
        monkeypatch.setattr(files, "_LOCK_SECONDS", 0.05)
        async with opened(folder) as backend:
            await backend.apply([change("ali", n=1)])
            with locked(folder / ".locks" / files._stripe("ali"), 1):
                for call in (backend.apply([change("ali", n=2)]), backend.delete(["ali"])):
                    with pytest.raises(BackendTimeoutError) as error:
                        await call
                    assert not error.value.ambiguous
                assert 1 == (await backend.get(["ali"]))["ali"]["n"]
                await backend.apply([change("veli")])
            await backend.apply([change("ali", n=3)])

            assert ["ali", "veli"] == await names(backend)
        assert 64 >= len(entries(folder / ".locks"))

    async def test_order(self, folder: Path) -> None:
        """Calls for one profile count in the order in which they were made, the cancelled ones too, if they count."""
        async with opened(folder) as backend:
            tasks = [
                asyncio.ensure_future(
                    backend.apply([change("ali", **{f"f{number}": number, "last": number})])
                )
                for number in range(40)
            ]
            await asyncio.sleep(0)
            for task in tasks[5:30:3]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            versions = [result[0].document["version"] for result in results if isinstance(result, list)]

            assert sorted(versions) == versions
            assert 39 == (await backend.get(["ali"]))["ali"]["last"]
            assert not [result for result in results if isinstance(result, Exception)]

    async def test_closing_waits(self, folder: Path) -> None:
        """A close lets the writes under way end."""
        async with opened(folder) as backend:
            tasks = [asyncio.ensure_future(backend.apply([change(f"u{number}")])) for number in range(20)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        async with opened(folder) as backend:
            assert 20 == len(await names(backend))

    def test_another_event_loop(self, folder: Path) -> None:
        """The same folder, and the same object, work in the next event loop."""
        backend = FileProfileBackend(folder)

        async def visit() -> int:
            await backend.open()
            await backend.apply([change("ali")])
            await backend.close()
            return json.loads((folder / "ali.json").read_text())["version"]

        assert [1, 2, 3] == [asyncio.run(visit()) for _ in range(3)]

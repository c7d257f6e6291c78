"""`multidb spool`, on spools that the class Spool made: whole, damaged, in use, and set aside."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from multidb.cli._app import app
from multidb.resilience.spool import Limits, Spool, tools
from multidb.resilience.spool._rejected import rejected_paths
from multidb.testing.clock import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from click.testing import Result

NAMESPACE = "postgresql://db.example:5432/bot"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a program keeps its data, as it says it by its environment."""
    for name in [name for name in os.environ if name.startswith("MULTIDB_") and "_TEST_" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MULTIDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MULTIDB_SPOOL_MIN_FREE_BYTES", "0")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "spool"


def record(number: int) -> bytes:
    return json.dumps({"n": number, "text": "ışık"}, ensure_ascii=False).encode()


@asynccontextmanager
async def opened(root: Path, store: str = "logs", **options: Any) -> AsyncIterator[Spool]:
    options = {"namespace": NAMESPACE, "host": "here", "any_file_system": True} | options
    spool = Spool(root, store, **options)
    await spool.open()
    try:
        yield spool
    finally:
        await spool.close()


async def set_aside(root: Path, reasons: dict[int, str], store: str = "logs") -> None:
    """Spool records and have them refused for *reasons*."""
    async with opened(root, store) as spool:
        await spool.append([record(number) for number in reasons])
        batch = await spool.read_batch()
        assert batch is not None
        for each, reason in zip(batch.records, reasons.values(), strict=True):
            await spool.reject(each, reason)
        await spool.done(batch.position)


async def leave(root: Path, *numbers: int, store: str = "logs", **options: Any) -> None:
    """Spool records and go, as a process that is killed does."""
    async with opened(root, store, **options) as spool:
        await spool.append([record(number) for number in numbers])


async def waiting(root: Path, store: str = "logs") -> list[int]:
    async with opened(root, store) as spool:
        batch = await spool.read_batch()
        return [] if batch is None else [json.loads(each.data)["n"] for each in batch.records]


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, ["spool", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def lines_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def content(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()
    }


def segment_in(root: Path) -> Path:
    (path,) = (path for path in root.rglob("0*.jsonl") if "rejected" not in path.parts)
    return path


class TestList:
    def test_nothing_there(self, root: Path) -> None:
        """No folder is as it should be; nothing is created."""
        shown = run("ls")

        assert 0 == shown.exit_code
        assert "Nothing waits" in shown.stdout
        assert str(root) in shown.stdout
        assert "MULTIDB_SPOOL_DIR" in shown.stdout
        assert not root.parent.exists()

    async def test_owners(self, root: Path) -> None:
        """Whose records they are: those of a live process, and those that a dead one left."""
        await leave(root, 1, 2, 3, clock=ManualClock(), store="state")
        async with opened(root) as spool:
            await spool.append([record(4)])
            shown = await asyncio.to_thread(run, "ls")

        assert 0 == shown.exit_code
        assert "4 records wait" in shown.stdout
        rows = " ".join(shown.stdout.split())
        assert "alive" in rows
        assert "orphaned" in rows
        assert f"process {os.getpid()}" in rows
        assert NAMESPACE in rows
        assert max(len(line) for line in shown.stdout.splitlines()[:-1]) <= 120

    async def test_narrow(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is wider than 80 columns, nor cut off."""
        monkeypatch.setenv("COLUMNS", "80")
        await leave(root, 1)
        await set_aside(root, {2: "its id is stored with other content"}, "state")
        shown = await asyncio.to_thread(run, "ls")

        assert max(len(line) for line in shown.stdout.splitlines()[:-1]) <= 80
        assert "…" not in shown.stdout
        assert "oldest" in shown.stdout.splitlines()[2]
        assert "its id is stored with other content" in shown.stdout

    async def test_another_server(self, root: Path) -> None:
        """Orphans that are for another server than the others stand out."""
        await leave(root, 1)
        assert "more than one server" not in (await asyncio.to_thread(run, "ls")).stdout
        await leave(root, 2, namespace="postgresql://old:5432/bot")
        shown = await asyncio.to_thread(run, "ls")

        assert "more than one server" in shown.stdout
        assert "postgresql://old:5432/bot" in shown.stdout

    async def test_set_aside(self, root: Path) -> None:
        """What was set aside is counted by store and reason, and what to do is said."""
        await set_aside(root, {1: "too old", 2: "too old", 3: "no record of the logs"})
        shown = await asyncio.to_thread(run, "ls")

        assert "3 records were set aside" in shown.stdout
        rows = [" ".join(line.split()) for line in shown.stdout.splitlines()]
        assert any("logs │ too old │ 2" in row for row in rows)
        assert "multidb spool export --rejected" in shown.stdout

    async def test_json(self, root: Path) -> None:
        """For programs, everything in one object, and nothing else on stdout."""
        await leave(root, 1, 2)
        await set_aside(root, {3: "no"}, "state")
        found = json.loads((await asyncio.to_thread(run, "ls", "--json")).stdout)

        assert (2, 1, str(root)) == (found["records"], found["rejected"], found["folder"])
        (owner,) = found["owners"]
        assert ("logs", "orphaned", NAMESPACE, 1, 2) == tuple(
            owner[key] for key in ("store", "state", "for", "segments", "records")
        )
        assert owner["oldest"].endswith("+00:00")
        assert [("state", "no", 1)] == [
            (each["store"], each["reason"], each["records"]) for each in found["set_aside"]
        ]

    async def test_store(self, root: Path) -> None:
        await leave(root, 1)
        await leave(root, 2, store="state")
        found = json.loads((await asyncio.to_thread(run, "ls", "--json", "--store", "state")).stdout)

        assert ["state"] == [owner["store"] for owner in found["owners"]]
        assert (
            "Nothing of profiles waits" in (await asyncio.to_thread(run, "ls", "--store", "profiles")).stdout
        )

    async def test_markup(self, root: Path) -> None:
        """Brackets in a reason are shown as they are."""
        await set_aside(root, {1: "[red]no[/]"})

        assert "[red]no[/]" in (await asyncio.to_thread(run, "ls")).stdout


class TestVerify:
    async def test_sound(self, root: Path) -> None:
        """Nothing is changed, also while the owner is at work."""
        await set_aside(root, {3: "no"})
        async with opened(root) as spool:
            await spool.append([record(1), record(2)])
            before = content(root)
            shown = await asyncio.to_thread(run, "verify")

            assert before == content(root)
        assert 0 == shown.exit_code
        assert "2 waiting and 1 set aside are sound, 0 damaged" in shown.stderr
        assert "" == shown.stdout

    async def test_damaged(self, root: Path) -> None:
        """A damaged record is named by file, line and bytes; nothing of it is quoted."""
        await leave(root, 1, 2, 3)
        path = segment_in(root)
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b'{"n": 2', b'{"n": 7') + b"torn")
        begin = whole.index(b"\n", whole.index(b'{"n": 1')) + 1
        end = whole.index(b"\n", begin) + 1
        before = content(root)
        shown = await asyncio.to_thread(run, "verify")

        assert 1 == shown.exit_code
        assert f"{path}: line 3, bytes {begin:,} to {end:,}: wrong checksum\n" == shown.stdout
        assert "2 waiting and 0 set aside are sound, 1 damaged" in shown.stderr
        assert "4 bytes are of writes that were never finished" in shown.stderr
        assert before == content(root)

    async def test_damaged_behind_what_is_done(self, root: Path) -> None:
        """The line is that of the file, also where the first ones are done."""
        async with opened(root) as spool:
            await spool.append([record(1), record(2), record(3)])
            batch = await spool.read_batch(1)
            assert batch is not None
            await spool.done(batch.position)
        path = segment_in(root)
        path.write_bytes(path.read_bytes().replace(b'{"n": 3', b'{"n": 7').replace(b'{"n": 1', b'{"n": 9'))
        shown = await asyncio.to_thread(run, "verify")

        assert f"{path}: line 4," in shown.stdout
        assert 1 == len(shown.stdout.splitlines())

    async def test_damaged_rejection(self, root: Path) -> None:
        await set_aside(root, {1: "no", 2: "no"})
        (path,) = rejected_paths(root)
        path.write_bytes(path.read_bytes().replace(b'"n":2', b'"n":7'))
        shown = await asyncio.to_thread(run, "verify")

        assert 1 == shown.exit_code
        assert f"{path}: line 3, bytes " in shown.stdout
        assert "no rejected record" in shown.stdout

    async def test_damaged_header(self, root: Path) -> None:
        """Nobody adopts what does not say whose it is: that is a problem, too."""
        await leave(root, 1)
        path = segment_in(root)
        path.write_bytes(b"x" + path.read_bytes()[1:])
        shown = await asyncio.to_thread(run, "verify")

        assert 1 == shown.exit_code
        assert "no file says whose this is" in shown.stdout
        assert "nobody: no header" in (await asyncio.to_thread(run, "ls")).stdout


class TestExport:
    async def test_both(self, root: Path) -> None:
        """Each line is JSON with store, reason, time and the record; what waits comes first, without a reason."""
        await set_aside(root, {2: "too old"}, "state")
        await leave(root, 1)
        lines = lines_of(await asyncio.to_thread(run, "export"))

        assert [("logs", None, 1), ("state", "too old", 2)] == [
            (line["store"], line["reason"], line["record"]["n"]) for line in lines
        ]
        assert all(line["time"].endswith("+00:00") for line in lines)
        assert "ışık" == lines[0]["record"]["text"]

    async def test_chosen(self, root: Path) -> None:
        await set_aside(root, {2: "too old"}, "state")
        await leave(root, 1)

        async def numbers(*arguments: str) -> list[int]:
            return [
                each["record"]["n"] for each in lines_of(await asyncio.to_thread(run, "export", *arguments))
            ]

        assert [2] == await numbers("--rejected")
        assert [1] == await numbers("--waiting")
        assert [1] == await numbers("--store", "logs")
        assert [] == await numbers("--store", "logs", "--rejected")

    async def test_while_the_owner_works(self, root: Path) -> None:
        """It goes on undisturbed, appends and replays, while it is exported over and over."""
        async with opened(root, limits=Limits(segment_bytes=2000)) as spool:
            exported: list[int] = []

            async def work() -> int:
                number = 0
                while len(exported) < 10 or number < 50:
                    await spool.append([record(number), record(number + 1)])
                    number += 2
                    if number % 8 == 0:
                        batch = await spool.read_batch(6)
                        assert batch is not None
                        await spool.done(batch.position)
                return number

            working = asyncio.create_task(work())
            while not working.done():
                shown = await asyncio.to_thread(run, "export", "--waiting")
                assert 0 == shown.exit_code
                numbers = [line["record"]["n"] for line in lines_of(shown)]
                assert numbers == sorted(set(numbers))
                assert "damaged" not in shown.stderr
                exported.append(len(numbers))

            assert await working >= 50
            assert max(exported) > 0

    async def test_to_a_file(self, root: Path, tmp_path: Path) -> None:
        """A new file, for its owner only; one that is there is not touched."""
        await leave(root, 1)
        path = tmp_path / "out.jsonl"
        shown = await asyncio.to_thread(run, "export", "-o", path)
        assert (0, "") == (shown.exit_code, shown.stdout)
        assert "1 records" in shown.stderr
        assert 1 == json.loads(path.read_text())["record"]["n"]
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)
        before = path.read_bytes()
        shown = await asyncio.to_thread(run, "export", "-o", path)

        assert 1 == shown.exit_code
        assert "name another file" in shown.stderr
        assert before == path.read_bytes()

    async def test_no_place_for_the_file(self, root: Path, tmp_path: Path) -> None:
        await leave(root, 1)
        shown = await asyncio.to_thread(run, "export", "-o", tmp_path / "none" / "out.jsonl")

        assert 1 == shown.exit_code
        assert "No such file" in shown.stderr

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
    async def test_full_disk(self, root: Path) -> None:
        """What cannot be written is an error in a line."""
        await leave(root, 1)
        done = await asyncio.to_thread(
            subprocess.run,
            f"exec '{sys.executable}' -c 'from multidb.cli import main; main()' spool export > /dev/full",
            shell=True,
            capture_output=True,
            text=True,
            check=False,
        )

        assert 1 == done.returncode
        assert "No space left" in done.stderr
        assert "Traceback" not in done.stderr

    async def test_into_a_pipe_that_is_closed(self, root: Path) -> None:
        """`| head -1` is no error to speak of."""
        await leave(root, *range(5000))
        done = await asyncio.to_thread(
            subprocess.run,
            f"'{sys.executable}' -c 'from multidb.cli import main; main()' spool export | head -1",
            shell=True,
            capture_output=True,
            text=True,
            check=False,
        )

        assert 1 == len(done.stdout.splitlines())
        assert "Traceback" not in done.stderr
        assert "Error" not in done.stderr

    async def test_damaged(self, root: Path) -> None:
        """Damaged lines are left out, and that is said."""
        await leave(root, 1, 2, 3)
        path = segment_in(root)
        path.write_bytes(path.read_bytes().replace(b'{"n": 2', b'{"n": 7'))
        shown = await asyncio.to_thread(run, "export")

        assert 0 == shown.exit_code
        assert [1, 3] == [line["record"]["n"] for line in lines_of(shown)]
        assert "1 damaged lines were left out" in shown.stderr
        assert "multidb spool verify" in shown.stderr

    async def test_raw(self, root: Path) -> None:
        """A set-aside line that holds no record is there as text."""
        async with opened(root) as spool:
            await spool.append([b"bad", record(1)])
            await spool.read_batch()
        (line,) = lines_of(await asyncio.to_thread(run, "export", "--rejected"))

        assert ("no record", True) == (line["reason"], line["raw"].endswith("bad\n"))


class TestRetry:
    async def test_all(self, root: Path) -> None:
        await set_aside(root, {1: "too old", 2: "no"})
        shown = await asyncio.to_thread(run, "retry")

        assert 0 == shown.exit_code
        assert "2 records are put back, 0 stay set aside" in shown.stdout
        assert "half a minute" in shown.stderr
        assert [1, 2] == await waiting(root)
        assert [] == rejected_paths(root)

    async def test_reason(self, root: Path) -> None:
        """Those with another reason stay as they are, also over and over."""
        await set_aside(root, {1: "Too old", 2: "no", 3: "too old"})
        shown = await asyncio.to_thread(run, "retry", "--reason", "TOO OLD")
        assert "2 records are put back, 1 stay set aside" in shown.stdout
        assert [1, 3] == await waiting(root)
        before = {path: path.read_bytes() for path in rejected_paths(root)}
        shown = await asyncio.to_thread(run, "retry", "--reason", "nothing like it")

        assert "0 records are put back, 1 stay set aside" in shown.stdout
        assert before == {path: path.read_bytes() for path in rejected_paths(root)}
        assert ["no"] == [rejection.reason for _, rejection in tools.rejections(root)]

    async def test_store(self, root: Path) -> None:
        await set_aside(root, {1: "no"})
        await set_aside(root, {2: "no"}, "state")
        shown = await asyncio.to_thread(run, "retry", "--store", "state")

        assert "1 records are put back, 0 stay set aside" in shown.stdout
        assert [2] == await waiting(root, "state")
        assert [] == await waiting(root)

    async def test_damaged(self, root: Path) -> None:
        """What holds no record stays, and how to see it is said."""
        async with opened(root) as spool:
            await spool.append([b"bad", record(1)])
            batch = await spool.read_batch()
            assert batch is not None
            await spool.reject(batch.records[0], "no")
            await spool.done(batch.position)
        shown = await asyncio.to_thread(run, "retry")

        assert "1 records are put back, 1 stay set aside" in shown.stdout
        assert "1 of them are damaged" in shown.stderr

    async def test_in_use(self, root: Path) -> None:
        """Not while a process is just setting aside: try again."""
        await set_aside(root, {1: "no"})
        (path,) = rejected_paths(root)
        with path.open("r+b") as file:
            from multidb._core import files

            assert files.try_lock(file.fileno())
            shown = await asyncio.to_thread(run, "retry")

        assert 1 == shown.exit_code
        assert "in use by another process: try again" in shown.stderr
        assert 1 == len(list(tools.rejections(root)))

    async def test_nearly_full_disk(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a program leaves free is left free: nothing is put back, and nothing lost."""
        await set_aside(root, {1: "no", 2: "no"})
        monkeypatch.setenv("MULTIDB_SPOOL_MIN_FREE_BYTES", str(1 << 60))
        monkeypatch.setenv("MULTIDB_SPOOL_MIN_FREE_SHARE", "0.9999999")
        shown = await asyncio.to_thread(run, "retry")

        assert 1 == shown.exit_code
        assert "OverloadedError" in shown.stderr
        assert "stays set aside" in shown.stderr
        assert 2 == len(list(tools.rejections(root)))
        assert [] == await waiting(root)

    @pytest.mark.skipif(
        os.name == "nt" or os.geteuid() != 0, reason="only root can give files to another user"
    )
    async def test_as_another_user(self, root: Path) -> None:
        """What root puts back the program could not read: refused, with the user to do it as."""
        await set_aside(root, {1: "no"})
        (path,) = rejected_paths(root)
        os.chown(path, 65534, 65534)
        shown = await asyncio.to_thread(run, "retry")

        assert 1 == shown.exit_code
        assert "retry as that user" in shown.stderr
        assert 1 == len(list(tools.rejections(root)))

    async def test_under_a_running_process(self, root: Path) -> None:
        """A process that is running takes over what is put back, without a restart."""
        await set_aside(root, {1: "no"})
        async with opened(root, adopt_seconds=0.05) as spool:
            await asyncio.to_thread(run, "retry")
            await asyncio.wait_for(spool.wait(), 5)
            batch = await spool.read_batch()

        assert batch is not None
        assert [1] == [json.loads(each.data)["n"] for each in batch.records]


class TestWhere:
    async def test_data_dir(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without anything it is ./data/spool."""
        monkeypatch.delenv("MULTIDB_DATA_DIR")
        await leave(tmp_path / "data" / "spool", 1)

        assert "1 records wait" in (await asyncio.to_thread(run, "ls")).stdout

    async def test_spool_dir(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        await leave(tmp_path / "a", 1)
        await leave(tmp_path / "b", 1, 2)
        monkeypatch.setenv("MULTIDB_SPOOL_DIR", str(tmp_path / "a"))

        assert "1 records wait" in (await asyncio.to_thread(run, "ls")).stdout
        for command in ("ls", "verify", "export", "retry"):
            shown = await asyncio.to_thread(run, command, "--spool-dir", tmp_path / "b")
            assert 0 == shown.exit_code, shown.stderr
        assert "2 waiting" in (await asyncio.to_thread(run, "verify", "--spool-dir", tmp_path / "b")).stderr

    @pytest.mark.parametrize("command", ["ls", "verify", "export", "retry"])
    def test_no_folder(self, command: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        shown = run(command, "--spool-dir", tmp_path / "file")

        assert 1 == shown.exit_code
        assert "--spool-dir" in shown.stderr

    @pytest.mark.parametrize("command", ["ls", "verify", "export", "retry"])
    def test_settings_that_do_not_fit(self, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A line that names the setting, and no secret."""
        monkeypatch.setenv("POSTGRES_URL", "postgresql://bot:canary@db/bot")
        monkeypatch.setenv("MULTIDB_SPOOL_DIRECTORY", "x")
        shown = run(command)

        assert 1 == shown.exit_code
        assert "MULTIDB_SPOOL_DIRECTORY: no such setting" in shown.stderr
        assert "canary" not in shown.output

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can become another user")
    @pytest.mark.parametrize("command", ["ls", "verify", "export", "retry"])
    async def test_folder_of_another_user(self, command: str) -> None:
        """A folder that this user may not read does not look like an empty one."""
        program = (
            "import os, sys\n"
            "from typer.testing import CliRunner\n"
            "from multidb.cli._app import app\n"
            "invoke = lambda *arguments: CliRunner().invoke(app, ['spool', *arguments])\n"
            "assert 1 == invoke('ls', '--spool-dir', '/dev/null').exit_code\n"  # What is needed is imported then.
            "os.seteuid(65534)\n"
            "result = invoke(*sys.argv[1:])\n"
            "sys.exit(result.stderr if result.exit_code == 1 else repr(result))"
        )
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)  # noqa: ASYNC240
            await leave(Path(folder) / "spool", 1)
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", program, command, "--spool-dir", f"{folder}/spool"],
                capture_output=True,
                text=True,
                check=False,
            )

        assert 1 == done.returncode
        assert "may not read" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["ls", "verify", "export", "retry"])
def test_help(command: str) -> None:
    """Every command has a help with an example, and says where it looks."""
    shown = run(command, "--help")

    assert 0 == shown.exit_code
    assert f"Example: multidb spool {command}" in shown.stdout
    assert "MULTIDB_SPOOL_DIR" in shown.stdout


def test_unknown_command() -> None:
    shown = run("lst")

    assert 2 == shown.exit_code
    assert "No such command" in shown.stderr


async def test_bar_only_on_a_terminal(root: Path) -> None:
    """Long work shows a bar to a person, and nothing of it to a file."""
    pty = pytest.importorskip("pty")
    await leave(root, *range(200))
    assert "checking" not in (await asyncio.to_thread(run, "verify")).output
    parent, child = pty.openpty()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", "from multidb.cli import main; main()", "spool", "verify"],
        stderr=child,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm"},
        check=False,
    )
    os.close(child)
    with os.fdopen(parent, "rb", buffering=0) as terminal:
        shown = terminal.read(65536)

    assert 0 == done.returncode
    assert b"checking" in shown

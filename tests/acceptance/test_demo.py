"""`multidb demo`, run as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multidb.testing.pytest_plugin import Servers

DIALOGS = Path(__file__).parents[3] / "shared" / "data" / "coffee_dialogs.jsonl"


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from multidb.cli import main; main()", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def dialog(n: int, **changes: object) -> str:
    conversation = {
        "conversation_id": f"dlg-{n}",
        "scenario": "test",
        "turns": [["user", f"a latte with oat milk {n}"], ["assistant", "sure"]],
        "order": {"order_id": "1", "items": ["latte "], "completed": True},
    }
    return json.dumps(conversation | changes)


def test_second_run_finds_the_first(tmp_path) -> None:
    """Profiles, events and unexpired state of the first run are there in the second."""
    first, second = run("demo", cwd=tmp_path), run("demo", cwd=tmp_path)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "Welcome! What can I get you?" in first.stdout
    assert "Welcome back, visit number 2! The usual espresso?" in second.stdout
    # The cooldown of the stamp is state that has not expired yet.
    assert "Here is your stamp number 1." in first.stdout
    assert "The next stamp is due in 24.0 hours." in second.stdout
    assert "4 events, 10 messages" in " ".join(first.stdout.split())
    assert "8 events, 20 messages" in " ".join(second.stdout.split())
    assert str(Path("data") / "multidb.db") in first.stdout
    assert (tmp_path / "data" / "profiles").is_dir()


def test_lines_fit_a_terminal(tmp_path) -> None:
    """Nothing is wider than 80 columns."""
    shown = run("demo", "--in-memory", cwd=tmp_path)

    assert max(len(line) for line in shown.stdout.splitlines()) <= 80
    assert not (tmp_path / "data").exists()


def test_replay_rejects_bad_lines_and_goes_on(tmp_path) -> None:
    """A bad line is named with its reason; the good ones are replayed; the exit code tells."""
    lines = [
        dialog(1),
        "{not json",
        dialog(2, turns=[["user", "nul \u0000 byte"]]),
        "",
        dialog(3, order=None),
        dialog(4, turns=[["user", "x", "y"]]),
        dialog(5, turns=[["", "no speaker"]]),
        dialog(6, turns=[]),
        dialog(1),
        dialog(7, order={"items": ["$5 St. Special", "  "], "completed": True}),
        json.dumps(["a", "list"]),
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")

    done = run("demo", "--input", str(path), cwd=tmp_path)

    assert done.returncode == 1
    for number in (2, 3, 6, 7, 11):
        assert f"line {number} rejected" in done.stderr
    assert "4 replayed, 1 were there already, 5 rejected" in done.stderr
    report = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert report["conversations"] == "4"
    assert report["turns"] == "6 (3 assistant, 3 user)"
    assert report["sales"] == "3"
    assert report["revenue"] == "13.00 EUR"
    again = run("demo", "--input", str(path), cwd=tmp_path)
    assert again.stdout == done.stdout


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_replay_that_was_stopped_goes_on(tmp_path, signal_number) -> None:
    """Whenever it is killed or stopped with Ctrl-C, running it again ends in the report of a run that was not."""
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(dialog(n) for n in range(400)), encoding="utf-8")
    whole = run("demo", "--in-memory", "--input", str(path), cwd=tmp_path)
    # A run in the background may have started with Ctrl-C ignored.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from multidb.cli import main; main()"
    command = [sys.executable, "-c", program, "demo", "--input", str(path)]
    stopped = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    profiles = tmp_path / "data" / "profiles"
    deadline = time.monotonic() + 60
    while stopped.poll() is None and time.monotonic() < deadline and not list(profiles.glob("*.json"))[20:]:
        time.sleep(0.01)
    stopped.send_signal(signal_number)
    _, told = stopped.communicate(timeout=60)

    assert stopped.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[signal_number], told
    assert ("a replay that is run again goes on" in told) is (signal_number == signal.SIGINT)
    again = run("demo", "--input", str(path), cwd=tmp_path)
    assert again.stdout == whole.stdout
    assert "0 rejected" in again.stderr


def test_the_same_id_with_other_content_is_rejected(tmp_path) -> None:
    """It is named as what it is, and leaves what is there alone."""
    path = tmp_path / "in.jsonl"
    path.write_text(
        "\n".join([dialog(1), dialog(1, turns=[["user", "something else"]]), dialog(1)]), encoding="utf-8"
    )

    done = run("demo", "--in-memory", "--input", str(path), cwd=tmp_path)

    assert "line 2 rejected: conversation_id: is there already, with other content" in done.stderr
    assert "1 replayed, 1 were there already, 1 rejected" in done.stderr
    assert "turns           2 (1 assistant, 1 user)" in done.stdout


def test_a_missing_file_is_an_error(tmp_path) -> None:
    """The message names the file."""
    done = run("demo", "--input", "nothing.jsonl", cwd=tmp_path)

    assert done.returncode == 2
    assert "nothing.jsonl" in done.stderr


def test_a_server_that_is_down_is_one_line(tmp_path) -> None:
    """No traceback, no password, exit code 1."""
    done = run("demo", cwd=tmp_path, REDIS_URL="redis://:s3cret@127.0.0.1:1/0")

    assert done.returncode == 1
    assert "BackendUnavailableError" in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr + done.stdout


def test_help_and_version(tmp_path) -> None:
    """`--help` says what the command does, `--version` which one it is."""
    told = " ".join(run("demo", "--help", cwd=tmp_path).stdout.split())
    assert "coffee-ordering" in told
    # Nothing in brackets was taken for markup.
    assert '"turns": [[speaker, text]' in told
    assert "[default: data]" in told
    assert run("--version", cwd=tmp_path).stdout.startswith("multidb ")


@pytest.mark.skipif(not DIALOGS.is_file(), reason="shared/data/coffee_dialogs.jsonl is not here")
def test_same_report_everywhere(tmp_path, multidb_servers: Servers) -> None:
    """All 2,000 conversations: embedded defaults, in memory, and the three servers report the same, line for line."""
    embedded = run("demo", "--input", str(DIALOGS), cwd=tmp_path)
    in_memory = run("demo", "--in-memory", "--input", str(DIALOGS), cwd=tmp_path)
    with multidb_servers.settings() as settings:
        urls = {
            "POSTGRES_URL": settings.postgres_url.get_secret_value(),
            "MONGODB_URI": settings.mongodb_uri.get_secret_value(),
            "REDIS_URL": settings.redis_url.get_secret_value(),
        }
        on_servers = run("demo", "--input", str(DIALOGS), cwd=tmp_path, **urls)

    assert (embedded.returncode, in_memory.returncode, on_servers.returncode) == (0, 0, 0), on_servers.stderr
    assert embedded.stdout == in_memory.stdout == on_servers.stdout
    assert "conversations   2,000" in embedded.stdout
    assert "turns           7,478 (3,720 assistant, 3,758 user)" in embedded.stdout
    assert "sales           1,477" in embedded.stdout

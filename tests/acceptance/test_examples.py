"""Every example runs, in a folder of its own, as a reader would run it."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# What proves that it did what it shows.
SHOWS = {
    "quickstart.py": "dm_received: Mesaj alındı",
    "telegram_dm.py": "a human has it: None",
    "coffee_bot.py": "That is 7.10 EUR",
    "two_instances.py": "blue knows: ['blue_bot']",
}
TESTED = ("test_with_fakes.py", "custom_backend.py")
ELSEWHERE = ("coffee_replay.py", "fastapi_app.py")


def test_every_example_is_tested() -> None:
    """A new example is added to one of the lists."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SHOWS, *TESTED, *ELSEWHERE}


@pytest.mark.parametrize("name", SHOWS)
def test_runs(name, tmp_path) -> None:
    """A program ends well, says what it should, and warns of nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert SHOWS[name] in done.stdout


@pytest.mark.parametrize("name", TESTED)
def test_passes(name, tmp_path) -> None:
    """A file of tests passes under pytest."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            tmp_path,
            EXAMPLES / name,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


async def test_fastapi(tmp_path, monkeypatch) -> None:
    """The application opens multidb with its lifespan and its requests see it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from fastapi_app import app

    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app") as client,
    ):
        created = await client.put("/members/ada", json={"city": "İzmir"})
        assert (created.status_code, created.json()["version"]) == (200, 1)
        assert (await client.put("/members/ada?expected_version=7", json={"city": "x"})).status_code == 409
        assert (await client.put("/members/ada", json={"$where": "1"})).status_code == 422
        assert (await client.get("/members/ada")).json()["city"] == "İzmir"
        assert (await client.get("/members/nobody")).status_code == 404
        codes = [(await client.post("/members/ada/messages?text=hi")).status_code for _ in range(6)]

    assert codes == [200] * 5 + [429]

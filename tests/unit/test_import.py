"""What `import multidb` does: nothing that takes long, and nothing that leaves a trace."""

from __future__ import annotations

import json
import subprocess
import sys

DRIVERS = [
    "sqlalchemy",
    "asyncpg",
    "aiosqlite",
    "alembic",
    "pymongo",
    "motor",
    "bson",
    "gridfs",
    "redis",
    "hiredis",
]
OTHERS = [
    "pytest",
    "hypothesis",
    "typer",
    "rich",
    "fakeredis",
    "mongomock",
    "greenlet",
    "multidb.testing",
    "multidb.cli",
]


def run(script: str) -> str:
    """Return what a fresh interpreter prints, which must say nothing on its standard error."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


def loaded(statement: str) -> set[str]:
    """Return the modules that are loaded after *statement*."""
    return set(json.loads(run(f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))")))


def test_no_driver() -> None:
    """Importing multidb imports no driver, nor what only tests and the command line need."""
    modules = loaded(
        "import multidb; from multidb import logs, profiles, state, errors, settings, instrumentation"
    )

    assert set() == modules & {*DRIVERS, *OTHERS}
    assert [] == [name for name in modules if ".backends" in name or name.startswith("multidb.engines")]


def test_no_driver_in_memory() -> None:
    """Nor does a MultiDB that keeps everything in process."""
    modules = loaded(
        "import asyncio, multidb\n"
        "async def main():\n"
        "    async with multidb.MultiDB.in_memory() as db:\n"
        "        await db.logs.log_event('u', 'e')\n"
        "        await db.profiles.create_or_update_profile('u', {})\n"
        "        await db.state.set_state('u', 'k', 1)\n"
        "asyncio.run(main())"
    )

    assert set() == modules & {*DRIVERS, *OTHERS}


def test_no_environment_read() -> None:
    """The environment is not read at import: a wrong setting in it is an error of `init_all()`."""
    run(
        "import os\n"
        "os.environ.update(MULTIDB_NO_SUCH='1', POSTGRES_URL='nonsense', REDIS_URL='nonsense')\n"
        "import multidb\n"
        "from multidb import logs, profiles, state\n"
        "try:\n"
        "    multidb.Settings.from_env()\n"
        "except multidb.ConfigurationError:\n"
        "    pass\n"
        "else:\n"
        "    raise SystemExit('the settings are not read')\n"
    )


def test_no_event_loop() -> None:
    """Nothing of asyncio is made at import, nor by constructing a MultiDB: both work in a thread without a loop."""
    run(
        "import threading, asyncio\n"
        "made = []\n"
        "asyncio.new_event_loop = lambda: made.append('loop')\n"
        "def work():\n"
        "    import multidb\n"
        "    made.append(multidb.MultiDB.in_memory())\n"
        "thread = threading.Thread(target=work)\n"
        "thread.start()\n"
        "thread.join()\n"
        "assert len(made) == 1 and made[0] != 'loop', made\n"
    )

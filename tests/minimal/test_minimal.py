"""multidb installed without any extra: the embedded defaults work, and what is missing is named."""

import importlib.util

import pytest

import multidb
from multidb import ConfigurationError, MultiDB, Settings

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("asyncpg") is not None,
    reason="for `tox -e minimal`: the extras are installed here",
)


@pytest.mark.asyncio
async def test_embedded_defaults(tmp_path) -> None:
    """The core alone keeps events, profiles and state, and finds them again."""
    settings = Settings(data_dir=tmp_path / "data")
    async with MultiDB(settings) as db:
        event = await db.logs.log_event("u1", "started", "Işık", context={"n": 1})
        await db.profiles.create_or_update_profile("bot", {"type": "bot"})
        await db.state.set_state("u1", "phase", "active", expire_seconds=60)

    async with MultiDB(settings) as db:
        assert await db.logs.search_events("IŞIK") == [event]
        assert (await db.profiles.get_profile_by_username("bot"))["type"] == "bot"
        assert await db.state.get_state("u1", "phase") == "active"


@pytest.mark.parametrize(
    ("setting", "url", "extra"),
    [
        ("postgres_url", "postgresql://localhost/x", "multidb[postgres]"),
        ("mongodb_uri", "mongodb://localhost/x", "multidb[mongo]"),
        ("redis_url", "redis://localhost/0", "multidb[redis]"),
    ],
)
def test_missing_driver(setting, url, extra) -> None:
    """A missing driver is told when the MultiDB is made, with the extra that installs it."""
    with pytest.raises(ConfigurationError) as told:
        MultiDB(Settings(**{setting: url}))

    assert extra in str(told.value)


def test_missing_motor() -> None:
    """Motor has an extra of its own."""
    with pytest.raises(ConfigurationError) as told:
        MultiDB(Settings(mongodb_uri="mongodb://localhost/x", mongo_driver="motor"))

    assert "multidb[motor]" in str(told.value)


def test_missing_cli(capsys) -> None:
    """The command says which extra it needs."""
    from multidb.cli import main

    with pytest.raises(SystemExit) as told:
        main()

    assert "multidb[cli]" in str(told.value)
    assert multidb.__version__

"""A MultiDB on the wrapped fakes."""

from multidb import MultiDB, Settings
from multidb.testing import fakes


async def test_a_multidb_on_the_fakes() -> None:
    """The real backends run on the fakes, through the public functions."""
    settings = Settings(postgres_url="memory://", mongodb_uri="memory://", redis_url="memory://")
    backends = {"profiles": fakes.mongo_profile_backend(), "state": fakes.redis_state_backend()}
    async with MultiDB(settings, **backends) as db:
        await db.profiles.create_or_update_profile("ada", {"type": "bot", "name": "Işık"})
        await db.state.set_state(42, "phase", {"n": 2**60}, expire_seconds=60)

        assert await db.profiles.increment_profile_field("ada", "visits") == 1
        assert [p["username"] for p in await db.profiles.search_profiles("IŞIK")] == ["ada"]
        assert await db.state.update_state(42, "phase", {"m": []}) == {"m": [], "n": 2**60}
        assert db.locations["profiles"] == "mongodb, own backend"


async def test_fakes_do_not_share() -> None:
    """Each has data of its own."""
    settings = Settings(postgres_url="memory://", mongodb_uri="memory://", redis_url="memory://")
    async with (
        MultiDB(settings, state=fakes.redis_state_backend()) as one,
        MultiDB(settings, state=fakes.redis_state_backend()) as other,
    ):
        await one.state.set_state(1, "k", 1)

        assert await other.state.get_state(1, "k") is None

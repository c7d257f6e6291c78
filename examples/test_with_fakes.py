"""How an application tests its own code: the fixtures come with multidb, no server, no mock. Run it with pytest."""

import pytest

from multidb import ClosedError, MultiDB, logs, state


async def daily_bonus(user_id: int) -> bool:
    """Give a bonus once a day: the application code under test."""
    if not await state.try_cooldown(user_id, "bonus", 86400):
        return False
    await state.increment_counter(user_id, "coins", 10)
    await logs.log_event(user_id, "bonus")
    return True


@pytest.mark.asyncio
async def test_bonus_once_a_day(multidb, multidb_clock) -> None:
    """The fixture `multidb` is the current MultiDB; the clock moves when the test says so."""
    assert await daily_bonus(7)
    assert not await daily_bonus(7)

    multidb_clock.advance(86400)

    assert await daily_bonus(7)
    assert await multidb.state.get_counter(7, "coins") == 20
    assert await multidb.logs.count_events(7, event_type="bonus") == 2


@pytest.mark.asyncio
async def test_without_the_fixture() -> None:
    """The same by hand."""
    async with MultiDB.in_memory() as db:
        await db.state.set_state(7, "phase", "active")

        assert await db.state.get_state(7, "phase") == "active"
    with pytest.raises(ClosedError):
        await db.state.get_state(7, "phase")

"""Two bots in one process, each with stores of its own: nothing of one is seen by the other."""

import asyncio

import multidb
from multidb import MultiDB, Settings, logs, profiles


async def greet(name: str) -> None:
    """Work on whichever MultiDB is current: the function need not know which."""
    await profiles.create_or_update_profile(name, {"type": "bot"})
    await logs.log_event(name, "started")


async def main() -> None:
    async with (
        MultiDB(Settings(data_dir="data/red")) as red,
        MultiDB(Settings(data_dir="data/blue")) as blue,
    ):
        # In a block and in the tasks it starts, `using()` decides.
        with multidb.using(red):
            await greet("red_bot")
        with multidb.using(blue):
            await greet("blue_bot")
        # Or name the instance.
        print("red knows:", [p["username"] for p in await red.profiles.get_all_profiles()])
        print("blue knows:", [p["username"] for p in await blue.profiles.get_all_profiles()])


if __name__ == "__main__":
    asyncio.run(main())

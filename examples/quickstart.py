"""The tour of the README: three stores, no server. Set the three URLs, and nothing else changes."""

import asyncio

import multidb
from multidb import logs, profiles, state


async def main() -> None:
    await multidb.init_all()

    # What happened.
    await logs.log_event("user123", "dm_received", "Mesaj alındı", context={"chat": 7}, level="INFO")
    for event in await logs.search_events("ALINDI", user_identifier="user123", limit=1):
        print(f"{event.timestamp:%H:%M} {event.event_type}: {event.message}")

    # Who someone is.
    await profiles.create_or_update_profile("bot123", {"type": "bot", "reply_mode": "hybrid"})
    await profiles.update_profile_field("bot123", "settings.theme", "dark")
    print(await profiles.get_profile_by_username("bot123"))

    # Where things stand right now.
    await state.set_state("user123", "conversation", {"phase": "active"}, expire_seconds=86400)
    await state.update_state("user123", "conversation", {"step": 2})
    print(await state.get_state("user123", "conversation"))
    if await state.try_cooldown("user123", "spam", 60):
        print("first message in a minute: answer it")

    await multidb.close_all()


if __name__ == "__main__":
    asyncio.run(main())

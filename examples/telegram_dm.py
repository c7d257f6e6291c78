"""
A handler for direct messages, as a Telegram bot has it, without Telegram.

A conversation has phases. A human can take over at any moment by setting a flag in the state: the bot notices, also
when the flag comes while it is thinking. Whoever writes too fast is not answered. After 24 hours without a message the
conversation is forgotten. Call `on_message()` from an aiogram or Telethon handler; ids may be ints.
"""

import asyncio
from collections.abc import Awaitable, Callable

import multidb
from multidb import logs, profiles, state

DAY = 86400
PHASES = {"new": "greeted", "greeted": "talking", "talking": "talking"}


async def on_message(bot: str, user_id: int, text: str, think: Callable[[str], Awaitable[str]]) -> str | None:
    """Return the answer of *bot* to a message, or None when it had better say nothing."""
    key = f"dm {bot}"
    await logs.log_message(user_id, text, conversation_id=f"{bot} {user_id}")
    # One atomic step: two messages at the same moment cannot both pass.
    if not await state.try_cooldown(user_id, f"spam {bot}", 2.0):
        await logs.log_event(user_id, "dm_ignored", "too fast", username=bot, level="WARNING")
        return None

    conversation = await state.get_state(user_id, key, {"phase": "new", "manual": False})
    if conversation.get("manual"):
        return None
    answer = await think(text)

    # Only our own fields are written, so a flag that was set meanwhile is still there, and we see it.
    phase = PHASES[conversation.get("phase", "new")]
    conversation = await state.update_state(user_id, key, {"phase": phase}, expire_seconds=DAY)
    if conversation.get("manual"):
        await logs.log_event(user_id, "dm_left_to_human", username=bot)
        return None
    await logs.log_message(user_id, answer, role="assistant", conversation_id=f"{bot} {user_id}")
    await profiles.increment_profile_field(bot, "stats.answers")
    return answer


async def take_over(bot: str, user_id: int) -> None:
    """Let a human talk to *user_id* from now on."""
    await state.update_state(user_id, f"dm {bot}", {"manual": True}, expire_seconds=DAY)
    await logs.log_event(user_id, "manual_intervention", username=bot)


async def hand_back(bot: str, user_id: int) -> None:
    """Let the bot talk again."""
    await state.update_state(user_id, f"dm {bot}", {"manual": False}, expire_seconds=DAY)


async def main() -> None:
    """Play one conversation."""

    async def think(text: str) -> str:
        return f"You said: {text}"

    async with multidb.lifespan(data_dir="data/telegram_dm"):
        await profiles.create_or_update_profile("kahve_bot", {"type": "bot", "is_active": True})
        user_id = 5_123_456_789
        await state.clear_state(user_id)
        await state.clear_cooldown(user_id, "spam kahve_bot")
        print("answered:", await on_message("kahve_bot", user_id, "Merhaba", think))
        print("too fast:", await on_message("kahve_bot", user_id, "Merhaba??", think))
        await take_over("kahve_bot", user_id)
        await state.clear_cooldown(user_id, "spam kahve_bot")
        print("a human has it:", await on_message("kahve_bot", user_id, "Orada mısın?", think))
        print("state:", await state.get_state(user_id, "dm kahve_bot"))


if __name__ == "__main__":
    asyncio.run(main())

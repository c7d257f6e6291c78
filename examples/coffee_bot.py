"""
A small coffee-ordering bot: what it keeps in which store, and why.

The state of an order lives in `state` (it should be forgotten after a day), what a customer likes in `profiles` (it
grows with every visit), what happened in `logs` (it is counted and searched later). `multidb demo` runs it.
"""

from __future__ import annotations

import asyncio
import re
from decimal import Decimal

import multidb
from multidb import MultiDB

MENU = {
    "latte": Decimal("4.50"),
    "mocha": Decimal("4.90"),
    "cortado": Decimal("3.80"),
    "cappuccino": Decimal("4.20"),
    "espresso": Decimal("2.60"),
}
CONVERSATION = (
    "Merhaba! Hello!",
    "Bir latte alabilir miyim? With oat milk, please",
    "and an espresso",
    "yes, that is right",
    "thanks!",
)
DAY = 86400
CUSTOMER = "ada"


class CoffeeBot:
    """Takes orders. Holds no data of its own, so any number of processes can answer the same customer."""

    def __init__(self, db: MultiDB) -> None:
        self._db = db

    async def handle(self, user_id: str, text: str) -> str:
        """Answer one message of a customer."""
        db = self._db
        await db.logs.log_message(user_id, text)
        order = await db.state.get_state(user_id, "order", {"phase": "greeting", "items": []})
        reply, order = await self._answer(user_id, text, order)
        await db.state.set_state(user_id, "order", order, expire_seconds=DAY)
        await db.logs.log_message(user_id, reply, role="assistant")
        return reply

    async def _answer(self, user_id: str, text: str, order: dict) -> tuple[str, dict]:
        drinks = [word for word in re.findall(r"\w+", text.lower()) if word in MENU]
        if drinks:
            order = {"phase": "confirming", "items": order["items"] + drinks}
            await self._db.logs.log_event(user_id, "item_added", text, context={"items": drinks})
            return f"I have {' and '.join(order['items'])}. Is that right?", order
        if order["phase"] == "confirming" and text.lower().startswith("yes"):
            return await self._finish(user_id, order["items"])
        if re.match(r"hello|hi\b|merhaba", text.lower()):
            return await self._greet(user_id), order
        return "You are welcome.", order

    async def _greet(self, user_id: str) -> str:
        await self._db.profiles.create_or_update_profile(user_id, {"type": "customer", "is_active": True})
        visits = await self._db.profiles.increment_profile_field(user_id, "visits")
        await self._db.logs.log_event(user_id, "visit", context={"visits": visits})
        if visits == 1:
            return "Welcome! What can I get you?"
        profile = await self._db.profiles.get_profile_by_username(user_id)
        drinks = profile.get("drinks", {})
        usual = min(drinks, key=lambda drink: (-drinks[drink], drink), default="coffee")
        return f"Welcome back, visit number {visits}! The usual {usual}?"

    async def _finish(self, user_id: str, items: list[str]) -> tuple[str, dict]:
        total = Decimal(0)
        for item in items:
            await self._db.profiles.increment_profile_field(user_id, f"drinks.{item}")
            sale = await self._db.logs.log_sale(user_id, item, MENU[item], currency="EUR")
            await self._db.logs.update_sale_status(sale.id, "completed")
            total += sale.amount
        await self._db.logs.log_event(
            user_id, "order_finished", context={"items": items, "total": str(total)}
        )
        return f"That is {total} EUR. {await self._stamp(user_id)}", {"phase": "greeting", "items": []}

    async def _stamp(self, user_id: str) -> str:
        # One atomic claim: however many orders arrive at once, there is one stamp a day.
        if await self._db.state.try_cooldown(user_id, "stamp", DAY):
            stamps = await self._db.profiles.increment_profile_field(user_id, "stamps")
            return f"Here is your stamp number {stamps}."
        left = await self._db.state.check_cooldown(user_id, "stamp") or 0
        return f"The next stamp is due in {left / 3600:.1f} hours."


async def main() -> None:
    """Serve one customer on the embedded defaults."""
    async with multidb.lifespan():
        bot = CoffeeBot(multidb.current())
        for text in CONVERSATION:
            print(f"  {CUSTOMER}: {text}")
            print(f"    bot: {await bot.handle(CUSTOMER, text)}")


if __name__ == "__main__":
    asyncio.run(main())

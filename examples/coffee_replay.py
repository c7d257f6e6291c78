"""
Replay recorded conversations into the three stores, and report what they hold afterwards.

One JSON object a line: `{"conversation_id", "turns": [[speaker, text], …], "order": {"items", "completed"}}`, where
`order` may be absent. The recordings have neither customers nor times, so both are derived from the conversation's id:
the same file gives the same data everywhere, and replaying it twice adds nothing.
`multidb demo --input FILE` runs it; `python examples/coffee_replay.py FILE` does so without the progress bar.
"""

from __future__ import annotations

import asyncio
import codecs
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Self
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import multidb
from multidb import ConflictError, InvalidArgumentError, MultiDB

PRICES = {
    "Americano": Decimal("3.20"),
    "Cappuccino": Decimal("4.20"),
    "Cortado": Decimal("3.80"),
    "Espresso": Decimal("2.60"),
    "Latte": Decimal("4.50"),
    "Macchiato": Decimal("3.90"),
    "Mocha": Decimal("4.90"),
}
OTHER_PRICE = Decimal("4.00")
FIRST_DAY = datetime(2026, 1, 5, tzinfo=UTC)
DAYS = 28
# How likely each hour is, from 7 in the morning: a coffee bar has a rush.
RUSH = (7, 8, 8, 8, 8, 9, 9, 9, 10, 10, 11, 12, 12, 13, 14, 15, 16, 17)
CUSTOMERS = 250
LANES = 16
DAY = 86400
# The event that says that a conversation is in the stores, all of it.
DONE = "coffee_conversation"
MOST = 10_000


Speaker = Annotated[str, Field(min_length=1, max_length=64)]
Name = Annotated[str, Field(max_length=1000)]


class Order(BaseModel):
    """What was ordered; *completed* says whether it was also paid."""

    model_config = ConfigDict(strict=True)

    items: list[Name] = Field(default=[], max_length=1000)
    completed: bool = False


class Conversation(BaseModel):
    """One recorded conversation."""

    model_config = ConfigDict(strict=True)

    conversation_id: Name
    turns: list[tuple[Speaker, str]]
    order: Order | None = None
    scenario: Name = ""

    @model_validator(mode="after")
    def _storable(self) -> Self:
        texts = [self.conversation_id, self.scenario, *(text for turn in self.turns for text in turn)]
        if any("\0" in text for text in texts + (self.order.items if self.order else [])):
            raise ValueError("NUL character; remove it")
        return self

    @property
    def digest(self) -> str:
        """Tell conversations with the same id and other content apart."""
        return sha256(self.model_dump_json().encode()).hexdigest()[:32]

    @property
    def _hash(self) -> bytes:
        return sha256(self.conversation_id.encode(errors="replace")).digest()

    @property
    def customer(self) -> str:
        """Whose conversation it is."""
        return f"customer-{int.from_bytes(self._hash[:4], 'big') % CUSTOMERS:03d}"

    @property
    def started_at(self) -> datetime:
        """When it started."""
        h = self._hash
        return FIRST_DAY + timedelta(
            days=h[4] % DAYS,
            hours=RUSH[h[5] % len(RUSH)],
            seconds=int.from_bytes(h[6:8], "big") % 3000,
            microseconds=int.from_bytes(h[8:12], "big") % 1_000_000,
        )

    @property
    def drinks(self) -> list[str]:
        """The ordered drinks, by one spelling each."""
        names = (" ".join(item.split()).title() for item in (self.order.items if self.order else ()))
        return ["House Drink" if name == "Var_Drink" else name for name in names if name]

    @property
    def finished(self) -> bool:
        """Whether an order was placed and completed."""
        return self.order is not None and self.order.completed

    def id(self, part: str) -> UUID:
        """Return the id of a record of this conversation: the same whenever it is replayed."""
        return uuid5(
            NAMESPACE_URL, f"multidb:coffee:{len(self.conversation_id)}:{self.conversation_id}:{part}"
        )


@dataclass
class Progress:
    """How far a replay got. *rejected*: line number and reason."""

    replayed: int = 0
    known: int = 0
    rejected: list[tuple[int, str]] = field(default_factory=list)


async def replay(db: MultiDB, conversation: Conversation) -> bool:
    """
    Put one conversation into the stores; return False when it is there already.

    Every step can be done twice and counts once, and the event that says it is done comes last: a replay that was
    killed in the middle goes on when it is run again. One replay at a time: two of the same file count visits twice.
    Raises ConflictError for a known id with other content.
    """
    if await _is_known(db, conversation):
        return False
    who, start = conversation.customer, conversation.started_at
    times = [start + timedelta(seconds=20 * i) for i in range(len(conversation.turns) + 1)]
    # The texts are checked here, all before the first is sent.
    await db.logs.log_events(
        [
            {
                "user_identifier": who,
                "event_type": f"coffee_{speaker}_turn",
                "message": text,
                "context": {"conversation": conversation.conversation_id, "turn": i},
                "event_id": conversation.id(f"turn {i}"),
                "timestamp": times[i],
            }
            for i, (speaker, text) in enumerate(conversation.turns)
        ]
    )
    for i, (speaker, text) in enumerate(conversation.turns):
        await db.logs.log_message(
            who,
            text,
            role=speaker,
            conversation_id=conversation.id("conversation").hex,
            message_id=conversation.id(f"message {i}"),
            timestamp=times[i],
        )
    if conversation.finished:
        await _sell(db, conversation, times[-1])
    await db.state.set_state(
        who,
        f"conversation {conversation.id('conversation').hex}",
        {"phase": "finished" if conversation.finished else "open", "turns": len(conversation.turns)},
        expire_seconds=DAY,
    )
    await _remember(db, conversation)
    # At most one a day, however many conversations there are at once.
    await db.state.try_cooldown(who, "loyalty stamp", DAY)
    await db.logs.log_event(
        who,
        DONE,
        context={"scenario": conversation.scenario, "digest": conversation.digest},
        event_id=conversation.id("conversation"),
        timestamp=start,
    )
    return True


async def _is_known(db: MultiDB, conversation: Conversation) -> bool:
    start = conversation.started_at
    done = await db.logs.get_events(
        conversation.customer, event_type=DONE, since=start, until=start + timedelta(microseconds=1)
    )
    for event in done:
        if event.id == conversation.id("conversation"):
            if event.context["digest"] != conversation.digest:
                raise ConflictError("conversation_id: is there already, with other content")
            return True
    return False


async def _remember(db: MultiDB, conversation: Conversation) -> None:
    """
    Let the customer's profile grow, in one write that counts once.

    The profile says which conversation it counted last; the expected version keeps others from writing in between.
    """
    who, this = conversation.customer, conversation.id("conversation").hex
    while True:
        profile = await db.profiles.get_profile_by_username(who) or {"version": 0}
        if profile.get("last_conversation") == this:
            return
        drinks = Counter(profile.get("drinks", {}))
        if conversation.finished:
            drinks.update(map(_field, conversation.drinks))
        grown = {
            "type": "customer",
            "is_active": True,
            "visits": profile.get("visits", 0) + 1,
            "drinks": dict(drinks),
            "last_conversation": this,
        }
        with suppress(ConflictError):  # Somebody else was faster: read again.
            await db.profiles.create_or_update_profile(who, grown, expected_version=profile["version"])
            return


def _field(drink: str) -> str:
    """Return a name that a profile's field may have: no dot, no leading dollar sign, at most 128 characters."""
    return drink.replace(".", " ").lstrip("$")[:128] or "Drink"


async def _sell(db: MultiDB, conversation: Conversation, at: datetime) -> None:
    """Record the sale: one for the order, at the price of all its drinks."""
    await db.logs.log_sale(
        conversation.customer,
        "coffee_order",
        sum((PRICES.get(drink, OTHER_PRICE) for drink in conversation.drinks), Decimal(0)),
        currency="EUR",
        status="completed",
        context={"drinks": conversation.drinks},
        sale_id=conversation.id("sale"),
        timestamp=at,
    )


async def replay_lines(
    db: MultiDB, lines: Iterable[bytes], *, advance: Callable[[], None] = lambda: None
) -> Progress:
    """
    Replay conversations, one JSON a line, and return how far it got. A bad line is rejected, the others go on.

    Each customer's conversations are replayed in their order, those of different customers at the same time.
    """
    progress = Progress()
    lanes: list[asyncio.Queue[tuple[int, Conversation] | None]] = [
        asyncio.Queue(maxsize=8) for _ in range(LANES)
    ]
    try:
        async with asyncio.TaskGroup() as workers:
            for lane in lanes:
                workers.create_task(_work(db, lane, progress, advance))
            await _deal(lines, lanes, progress, advance)
    except ExceptionGroup as failed:  # A server went away: one reason is enough.
        raise failed.exceptions[0] from None
    progress.rejected.sort()
    return progress


async def _deal(
    lines: Iterable[bytes],
    lanes: list[asyncio.Queue[tuple[int, Conversation] | None]],
    progress: Progress,
    advance: Callable[[], None],
) -> None:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            conversation = Conversation.model_validate_json(line.removeprefix(codecs.BOM_UTF8))
        except ValidationError as exc:
            progress.rejected.append((number, _reason(exc)))
            advance()
            continue
        await lanes[int(conversation.customer[-3:]) % LANES].put((number, conversation))
    for lane in lanes:
        await lane.put(None)


async def _work(
    db: MultiDB,
    lane: asyncio.Queue[tuple[int, Conversation] | None],
    progress: Progress,
    advance: Callable[[], None],
) -> None:
    while (item := await lane.get()) is not None:
        number, conversation = item
        try:
            if await replay(db, conversation):
                progress.replayed += 1
            else:
                progress.known += 1
        except (InvalidArgumentError, ConflictError) as exc:
            progress.rejected.append((number, str(exc)))
        advance()


def _reason(exc: ValidationError) -> str:
    error = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, error["loc"]))
    return f"{where}: {error['msg']}" if where else error["msg"]


async def report(db: MultiDB) -> list[str]:
    """Return what all replays so far left in the stores, line by line: the same lines on every backend."""
    window = {"since": FIRST_DAY, "until": FIRST_DAY + timedelta(days=DAYS + 1)}
    by_type = await db.logs.count_events(by="event_type", **window)
    turns = {
        kind.removeprefix("coffee_").removesuffix("_turn"): n
        for kind, n in by_type.items()
        if kind.endswith("_turn")
    }
    stats = await db.logs.get_message_stats(**window)
    drinks: Counter[str] = Counter()
    revenue, sales = Decimal(0), 0
    async for sale in _sales(db):
        drinks.update(sale.context["drinks"])
        revenue += sale.amount
        sales += 1
    top = sorted(drinks.items(), key=lambda item: (-item[1], item[0]))[:5]
    hours: Counter[int] = Counter()
    for hour, n in (await db.logs.event_histogram(event_type=DONE, bucket="hour", **window)).items():
        hours[hour.hour] += n
    busiest = min(hours, key=lambda hour: (-hours[hour], hour), default=None)
    customers = [
        p for p in await db.profiles.get_all_profiles(type="customer") if _is_replayed(p["username"])
    ]
    regular = min(customers, key=lambda p: (-p["visits"], p["username"]), default=None)
    states = [await db.state.get_all_user_states(p["username"]) for p in customers]
    stamps = [await db.state.check_cooldown(p["username"], "loyalty stamp") for p in customers]
    found = await db.logs.search_events("OAT MILK", after_date=FIRST_DAY, limit=MOST)
    found = [event for event in found if event.timestamp < window["until"]]
    return [
        f"conversations   {by_type.get(DONE, 0):,}",
        f"turns           {sum(turns.values()):,} ({', '.join(f'{turns[s]:,} {s}' for s in sorted(turns)) or 'none'})",
        f"messages        {stats.total:,} in {stats.conversations:,} conversations, {stats.characters:,} characters",
        f"customers       {len(customers):,}"
        + (f", most visits: {regular['username']} with {regular['visits']}" if regular else ""),
        f"loyalty stamps  {sum(left is not None for left in stamps):,} today",
        f"open states     {sum(map(len, states)):,}",
        f"sales           {sales:,}",
        f"revenue         {revenue:,.2f} EUR",
        f"top drinks      {', '.join(f'{name} {n:,}' for name, n in top) or 'none'}",
        "busiest hour    "
        + (f"{busiest:02d}:00 UTC with {hours[busiest]:,}" if busiest is not None else "none"),
        f"'oat milk'      {len(found):,}{' or more' if len(found) == MOST else ''} turns"
        + (f", the latest: {found[0].message!r}" if found else ""),
    ]


async def _sales(db: MultiDB) -> AsyncIterator[multidb.logs.Sale]:
    page = await db.logs.get_sales(product_type="coffee_order", limit=1000)
    while page:
        for sale in page:
            yield sale
        page = await db.logs.get_sales(product_type="coffee_order", limit=1000, after=page[-1])


def _is_replayed(username: str) -> bool:
    return username.startswith("customer-")


async def main(path: str) -> None:
    """Replay a file into whatever the environment names, and print the report."""
    async with multidb.lifespan():
        with Path(path).open("rb") as lines:
            progress = await replay_lines(multidb.current(), lines)
        for number, reason in progress.rejected:
            print(f"line {number}: {reason}", file=sys.stderr)
        print("\n".join(await report(multidb.current())))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))

"""The log store suite's tests of sales, messages and sessions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multidb.errors import ConflictError
from multidb.logs import Event, Message, MessageStats, Sale, Session
from multidb.testing.conformance._data import AWKWARD_TEXTS, exact, round_trips, together, unique
from multidb.testing.conformance._poison import (
    BAD_IDS,
    BAD_LABELS,
    BAD_LEAVES,
    BAD_LIMITS,
    BAD_SECONDS,
    BAD_TIMES,
)
from multidb.testing.conformance._stores_base import (
    LONG,
    NFC,
    NFD,
    PAST_SHORT,
    SHORT,
    Order,
    StoreSuite,
    not_refused,
    only,
    without,
)
from multidb.testing.conformance._stores_logs_events import BAD_CONTEXTS, BAD_TEXTS, BAD_UUIDS, NOON
from multidb.testing.conformance._stores_logs_reading import BAD_HOURS

if TYPE_CHECKING:
    from multidb.logs import LogStore, SaleStatus

AMOUNTS: dict[str, Any] = {
    "4.50": Decimal("4.50"),
    "4.5": 4.5,
    "0.1": "0.1",
    "3": 3,
    "0": 0,
    "0.00": "0.00",
    "0.0": -0.0,
    "0.30000000000000004": 0.1 + 0.2,
    "1000": Decimal("1E+3"),
    "10000000000000000000": 1e19,
    "0.000000000000000001": "1e-18",
    "99999999999999999999": 10**20 - 1,
    "99999999999999999999.999999999999999999": Decimal("99999999999999999999.999999999999999999"),
    "1234567.8900": " 1234567.8900 ",
    "0.10": "+0.10",
}
"""Amounts, by the digits that are kept of them."""

BAD_AMOUNTS: tuple[Any, ...] = (
    -1, "-0.01", Decimal("-1E-18"), float("nan"), "NaN", "sNaN", Decimal("sNaN"), float("inf"), "-Infinity",
    10**20, "1e20", 1e300, "1E+999999999", "1e-19", 1e-19, Decimal("0.1234567890123456789"), "0E-30", "",
    "abc", "1,5", "4.50 EUR", "0x10", "1\0", None, True, b"1", 1j, [1], {"$gt": 0},
)  # fmt: skip

STEPS: dict[SaleStatus, tuple[SaleStatus, ...]] = {
    "pending": ("pending", "completed", "failed", "refunded"),
    "completed": ("completed", "refunded"),
    "failed": ("failed",),
    "refunded": ("refunded",),
}
"""Which status a sale may be given next, by the one it has."""


def digits(amount: Decimal) -> Any:
    """Return an amount with its type and all its digits: 4.50 is not 4.5 here."""
    return type(amount), amount.as_tuple()


class SaleTests(StoreSuite):
    """Sales."""

    async def test_log_sale(self, store: LogStore) -> None:
        """A sale comes back as it was returned, the defaults filled in."""
        user = unique()
        sale = await store.log_sale(user, "coffee", "4.50")

        assert type(sale) is Sale
        assert 7 == sale.id.version
        assert (user, "coffee", Decimal("4.50"), "USD", "pending", {}) == (
            sale.user_id,
            sale.product_type,
            sale.amount,
            sale.currency,
            sale.status,
            sale.context,
        )
        assert [sale] == await store.get_sales(user)

    async def test_all_of_a_sale(self, store: LogStore) -> None:
        """Every argument is kept; the currency in capitals."""
        user, id_ = unique(), uuid4()
        sale = await store.log_sale(
            user,
            "coffee",
            Decimal("4.50"),
            currency="try",
            status="completed",
            context=Order(total=4.5),
            sale_id=str(id_),
            timestamp=NOON,
        )
        (stored,) = await store.get_sales(user)

        assert exact(sale.model_dump()) == exact(stored.model_dump())
        assert exact(
            {
                "id": id_,
                "user_id": user,
                "timestamp": NOON,
                "context": {"items": [], "total": 4.5},
                "product_type": "coffee",
                "amount": Decimal("4.50"),
                "currency": "TRY",
                "status": "completed",
            }
        ) == exact(stored.model_dump())

    async def test_amounts(self, store: LogStore) -> None:
        """An amount is kept exactly, with its digits; a float counts as what Python prints."""
        user = unique()
        for number, (written, amount) in enumerate(AMOUNTS.items()):
            sale = await store.log_sale(user, f"p{number}", amount)
            (stored,) = await store.get_sales(user, product_type=f"p{number}")
            (changed,) = [await store.update_sale_status(sale.id, "completed")]

            assert changed is not None
            assert [digits(Decimal(written))] * 3 == [digits(one.amount) for one in (sale, stored, changed)]

    async def test_decimal_context_of_the_program(self, store: LogStore) -> None:
        """A program that computes with few digits keeps its amounts all the same."""
        user = unique()
        with localcontext(prec=2):
            for amount in (Decimal("1E+10"), "12345.678901"):
                await store.log_sale(user, "p", amount)
            amounts = sorted(sale.amount for sale in await store.get_sales(user))

        assert [digits(Decimal("12345.678901")), digits(Decimal(10000000000))] == [
            digits(amount) for amount in amounts
        ]

    @round_trips
    @given(
        amount=st.builds(
            lambda whole, decimals: Decimal(f"{whole}.{decimals}" if decimals else whole),
            st.integers(0, 10**20 - 1),
            st.text("0123456789", max_size=18),
        )
    )
    async def test_any_amount(self, store: LogStore, amount: Decimal) -> None:
        """Any amount with up to 20 digits before the point and 18 behind it comes back digit for digit."""
        user = unique()
        await store.log_sale(user, "p", amount)
        (stored,) = await store.get_sales(user)

        assert digits(amount) == digits(stored.amount)

    async def test_bad_sales(self, store: LogStore) -> None:
        """What does not fit is refused by name of the argument, and nothing is stored."""
        user = unique()

        async def refused(bad: Any, name: str) -> list[str]:
            good: dict[str, Any] = {"user_id": user, "product_type": "p", "amount": 1}
            return await not_refused(bad, name, lambda one: store.log_sale(**(good | {name: one})))

        assert [] == await refused(BAD_IDS, "user_id")
        assert [] == await refused(BAD_LABELS, "product_type")
        assert [] == await refused(BAD_AMOUNTS, "amount")
        assert [] == await refused(
            ("", "EU", "E R", "€€€", "ışı", "A" * 13, None, 949, b"EUR", {"$gt": ""}), "currency"
        )
        assert [] == await refused(("", "paid", "PENDING", None, 1, ["pending"], {"$gt": ""}), "status")
        assert [] == await refused(BAD_CONTEXTS, "context")
        assert [] == await refused(BAD_UUIDS, "sale_id")
        assert [] == await refused(BAD_TIMES, "timestamp")
        assert [] == await not_refused(
            BAD_LEAVES, "context.a", lambda bad: store.log_sale(user, "p", 1, context={"a": bad}), value=True
        )
        assert [] == await store.get_sales(user)

    async def test_steps(self, store: LogStore) -> None:
        """A status moves on, or stays; any other step is a conflict, and the sale is unchanged."""
        user = unique()
        for before, allowed in STEPS.items():
            for after in STEPS:
                sale = await store.log_sale(
                    user, f"{before}-{after}", "1.50", status=before, context={"a": 1}
                )
                if after in allowed:
                    changed = await store.update_sale_status(sale.id, after)

                    assert sale.model_copy(update={"status": after}) == changed
                else:
                    with pytest.raises(ConflictError):
                        await store.update_sale_status(str(sale.id), after)
                expected = after if after in allowed else before
                assert [expected] == [
                    one.status for one in await store.get_sales(user, product_type=f"{before}-{after}")
                ]

    async def test_steps_at_once(self, store: LogStore) -> None:
        """Of several steps at once that exclude each other one is taken."""
        sale = await store.log_sale(unique(), "p", 1)

        async def step(status: SaleStatus) -> str:
            try:
                changed = await store.update_sale_status(sale.id, status)
            except ConflictError:
                return "conflict"
            assert changed is not None
            return changed.status

        outcomes = await together(
            step(status) for status in ("failed", "failed", "completed", "failed", "completed")
        )
        (stored,) = await store.get_sales(sale.user_id)

        assert {"conflict", stored.status} == set(outcomes)

    async def test_unknown_sale(self, store: LogStore) -> None:
        """A sale that nobody logged is None; what is no id, or no status, is refused."""
        assert await store.update_sale_status(uuid4(), "completed") is None
        assert [] == await not_refused(
            [*BAD_UUIDS, None], "sale_id", lambda bad: store.update_sale_status(bad, "failed")
        )
        assert [] == await not_refused(
            ("", "paid", None, ["failed"], {"$gt": ""}),
            "status",
            lambda bad: store.update_sale_status(uuid4(), bad),
        )

    async def test_same_sale_again(self, store: LogStore) -> None:
        """The same sale is stored once, whatever became of it; another one under its id is a conflict."""
        user, id_ = unique(), uuid4()
        await store.log_sale(user, "p", "1.0", sale_id=id_)
        await store.update_sale_status(id_, "completed")
        await store.log_sale(user, "p", "1.0", sale_id=id_)
        for other in ({"amount": "1.00"}, {"amount": 2}, {"currency": "EUR"}, {"product_type": "q"}):
            arguments: dict[str, Any] = {"product_type": "p", "amount": "1.0"} | other
            with pytest.raises(ConflictError):
                await store.log_sale(user, **arguments, sale_id=id_)

        assert ["completed"] == [sale.status for sale in await store.get_sales(user)]

    async def test_filters_of_sales(self, store: LogStore) -> None:
        """Sales are found by user, product, status and time, newest first, page by page."""
        user = unique()
        sales = [
            await store.log_sale(
                user,
                "tea" if number % 2 else "coffee",
                number,
                status="completed" if number > 3 else "pending",
                timestamp=NOON + timedelta(minutes=number),
            )
            for number in range(6)
        ][::-1]

        async def amounts(**arguments: Any) -> list[int]:
            return [int(sale.amount) for sale in await store.get_sales(user, **arguments)]

        assert sales == await store.get_sales(user)
        assert [5, 3, 1] == await amounts(product_type="tea")
        assert [3, 2, 1, 0] == await amounts(status="pending")
        assert [4, 3] == await amounts(since=NOON + timedelta(minutes=3), until=NOON + timedelta(minutes=5))
        assert [5, 4] == await amounts(limit=2)
        assert [3, 2] == await amounts(limit=2, after=sales[1])
        assert [] == await amounts(product_type="tea", status="failed")
        assert [] == await store.get_events(user)

    async def test_bad_filters_of_sales(self, store: LogStore) -> None:
        """What does not fit is refused."""
        event = Event(id=uuid4(), user_id="u", timestamp=NOON, event_type="e")
        for name, bad in {
            "user_id": without(BAD_IDS, None),
            "product_type": without(BAD_LABELS, None),
            "status": ("paid", 1, ["failed"], {"$gt": ""}),
            "since": BAD_TIMES,
            "until": BAD_TIMES,
            "hours_back": BAD_HOURS,
            "limit": BAD_LIMITS,
            "after": (event, 1, {"id": uuid4()}),
        }.items():
            assert [] == await not_refused(bad, name, only(name, store.get_sales))


class MessageTests(StoreSuite):
    """Messages."""

    async def test_log_message(self, store: LogStore) -> None:
        """A message comes back as it was returned, the defaults filled in, and every argument kept."""
        user, id_ = unique(), uuid4()
        first = await store.log_message(user, "merhaba", timestamp=NOON)
        second = await store.log_message(
            user,
            "İyi günler",
            role="assistant",
            conversation_id=-1001234,
            context={"model": "x"},
            message_id=id_,
            timestamp=NOON + timedelta(1),
        )

        assert type(first) is Message
        assert (user, "merhaba", "user", None, {}) == (
            first.user_id,
            first.text,
            first.role,
            first.conversation_id,
            first.context,
        )
        assert (id_, "assistant", "-1001234", {"model": "x"}) == (
            second.id,
            second.role,
            second.conversation_id,
            second.context,
        )
        assert [second, first] == await store.get_messages(user)

    async def test_texts_of_messages(self, store: LogStore) -> None:
        """Texts come back as they went in."""
        user = unique()
        await together(store.log_message(user, text) for text in AWKWARD_TEXTS)

        assert sorted(AWKWARD_TEXTS) == sorted(message.text for message in await store.get_messages(user))

    async def test_same_message_again(self, store: LogStore) -> None:
        """The same message again is stored once; another one under its id is a conflict."""
        user, id_ = unique(), uuid4()
        first = await store.log_message(user, "a", conversation_id=5, message_id=id_)
        await store.log_message(user, "a", conversation_id="5", message_id=id_)
        for other in ({"text": "b"}, {"role": "assistant"}, {"conversation_id": None}, {"context": {"a": 1}}):
            arguments: dict[str, Any] = {"text": "a", "conversation_id": 5} | other
            with pytest.raises(ConflictError):
                await store.log_message(user, **arguments, message_id=id_)

        assert [first] == await store.get_messages(user)

    async def test_filters_of_messages(self, store: LogStore) -> None:
        """Messages are found by user, conversation, role and time, newest first, page by page."""
        user = unique()
        conversation = unique("chat")
        messages = [
            await store.log_message(
                user if number < 5 else f"{user}2",
                str(number),
                role="assistant" if number % 2 else "user",
                conversation_id=conversation if number > 1 else None,
                timestamp=NOON + timedelta(minutes=number),
            )
            for number in range(6)
        ][::-1]

        async def texts(**arguments: Any) -> list[str]:
            return [message.text for message in await store.get_messages(**arguments)]

        assert messages[1:] == await store.get_messages(user)
        assert ["5", "4", "3", "2"] == await texts(conversation_id=conversation)
        assert ["4", "2"] == await texts(conversation_id=conversation, role="user")
        assert ["3", "2"] == await texts(
            user_id=user, since=NOON + timedelta(minutes=2), until=NOON + timedelta(minutes=4)
        )
        assert ["4", "3"] == await texts(user_id=user, limit=2)
        assert ["2", "1"] == await texts(user_id=user, limit=2, after=messages[2])
        assert [] == await store.get_events(user)

    async def test_message_stats(self, store: LogStore) -> None:
        """Totals over the matching messages; characters are code points, not bytes."""
        user = unique()
        nothing = MessageStats(
            total=0, by_role={}, users=0, conversations=0, characters=0, first_at=None, last_at=None
        )
        chat = unique("chat")
        rows: list[Any] = [
            (user, "ab", "user", chat, 0),
            (user, "ğ😀", "assistant", chat, 2),
            (f"{user}2", "", "user", chat, 1),
            (f"{user}2", "e\u0301", "user", f"{chat}2", 5),
            (user, "x" * 100, "tool", None, 9),
        ]
        for owner, text, role, conversation, minute in rows:
            await store.log_message(
                owner,
                text,
                role=role,
                conversation_id=conversation,
                timestamp=NOON + timedelta(minutes=minute, microseconds=minute),
            )

        def at(minute: int) -> datetime:
            return NOON + timedelta(minutes=minute, microseconds=minute)

        assert nothing == await store.get_message_stats(unique())
        assert MessageStats(
            total=3,
            by_role={"user": 2, "assistant": 1},
            users=2,
            conversations=1,
            characters=4,
            first_at=at(0),
            last_at=at(2),
        ) == await store.get_message_stats(conversation_id=chat)
        assert MessageStats(
            total=3,
            by_role={"user": 1, "assistant": 1, "tool": 1},
            users=1,
            conversations=1,
            characters=104,
            first_at=at(0),
            last_at=at(9),
        ) == await store.get_message_stats(user)
        stats = await store.get_message_stats(user, role="assistant", since=at(1), until=at(3))
        assert (1, {"assistant": 1}, 2, at(2), at(2)) == (
            stats.total,
            stats.by_role,
            stats.characters,
            stats.first_at,
            stats.last_at,
        )
        assert exact(stats.model_dump()) == exact(
            MessageStats.model_validate(stats.model_dump()).model_dump()
        )
        assert stats.first_at is not None
        assert UTC is stats.first_at.tzinfo

    async def test_bad_messages(self, store: LogStore) -> None:
        """What does not fit is refused by name of the argument."""
        user = unique()
        good: dict[str, Any] = {"user_id": user, "text": "t"}
        for name, bad in {
            "user_id": BAD_IDS,
            "text": BAD_TEXTS,
            "role": BAD_LABELS,
            "conversation_id": without(BAD_IDS, None),
            "context": BAD_CONTEXTS,
            "message_id": BAD_UUIDS,
            "timestamp": BAD_TIMES,
        }.items():
            assert [] == await not_refused(bad, name, only(name, store.log_message, **good))
        assert [] == await not_refused(
            BAD_LEAVES, "context.a", lambda bad: store.log_message(user, "t", context={"a": bad}), value=True
        )
        filters: dict[str, Any] = {
            "user_id": without(BAD_IDS, None),
            "conversation_id": without(BAD_IDS, None),
            "role": without(BAD_LABELS, None),
            "since": BAD_TIMES,
            "until": BAD_TIMES,
            "hours_back": BAD_HOURS,
        }
        for name, bad in filters.items():
            assert [] == await not_refused(bad, name, only(name, store.get_messages))
            assert [] == await not_refused(bad, name, only(name, store.get_message_stats))
        assert [] == await not_refused(BAD_LIMITS, "limit", lambda bad: store.get_messages(limit=bad))
        assert [] == await store.get_messages(user)


class SessionTests(StoreSuite):
    """Sessions."""

    async def test_session(self, store: LogStore) -> None:
        """A session starts, goes on, and ends."""
        user = unique()
        started = await store.create_or_update_session(user, context={"a": (1, 2)})
        await self.pass_time(0.01)
        touched = await store.create_or_update_session(user, idle_seconds=60.5)

        assert type(started) is Session
        assert (user, "default", None, {"a": [1, 2]}) == (
            started.user_id,
            started.session_id,
            started.ended_at,
            started.context,
        )
        assert started.started_at == started.last_seen_at == started.expires_at - timedelta(seconds=1800)
        assert UTC is started.started_at.tzinfo
        assert (started.started_at, {"a": [1, 2]}) == (touched.started_at, touched.context)
        assert touched.last_seen_at > started.last_seen_at
        # It never ends earlier than it was said before.
        assert started.expires_at == touched.expires_at
        assert [touched] == await store.get_active_sessions(user)
        assert await store.end_session(user) is True
        assert await store.end_session(user) is False
        assert [] == await store.get_active_sessions(user)

    async def test_context_of_a_session(self, store: LogStore) -> None:
        """A context takes the place of the one before; none keeps it; a new session starts without."""
        user = unique()
        contexts = [{"a": 1, "b": 2}, None, {"c": Order()}, {}, None]
        sessions = [await store.create_or_update_session(user, context=context) for context in contexts]
        await store.create_or_update_session(user, context={"a": 1})
        await store.end_session(user)
        again = await store.create_or_update_session(user)

        plain: Any = {"c": {"items": [], "total": 0.0}}
        assert exact([{"a": 1, "b": 2}, {"a": 1, "b": 2}, plain, {}, {}]) == exact(
            [one.context for one in sessions]
        )
        assert {} == again.context

    async def test_idle(self, store: LogStore) -> None:
        """A session idles out; the next sign of life starts a new one."""
        user = unique()
        first = await store.create_or_update_session(user, "short", idle_seconds=SHORT, context={"a": 1})
        await store.create_or_update_session(user, "long", idle_seconds=LONG)
        await self.pass_time(PAST_SHORT)

        assert ["long"] == [session.session_id for session in await store.get_active_sessions(user)]
        assert await store.end_session(user, "short") is False
        second = await store.create_or_update_session(user, "short", idle_seconds=SHORT)
        assert second.started_at > first.expires_at
        assert ({}, None) == (second.context, second.ended_at)

    async def test_end_and_start(self, store: LogStore) -> None:
        """An ended session starts anew."""
        user = unique()
        first = await store.create_or_update_session(user)
        await self.pass_time(0.01)
        await store.end_session(user)
        second = await store.create_or_update_session(user)

        assert second.started_at > first.started_at
        assert second.ended_at is None
        assert [second] == await store.get_active_sessions(user)

    async def test_several(self, store: LogStore) -> None:
        """A user has several sessions; the latest come first, up to a limit."""
        user = unique()
        for name in ("a", "b", "c", "a"):
            await store.create_or_update_session(user, name)
            await self.pass_time(0.002)
        await store.create_or_update_session(f"{user}2", "d")

        assert ["a", "c", "b"] == [session.session_id for session in await store.get_active_sessions(user)]
        assert ["a"] == [session.session_id for session in await store.get_active_sessions(user, limit=1)]
        assert await store.end_session(f"{user}2", "a") is False
        everybody = await store.get_active_sessions(limit=10_000)
        assert {(user, "a"), (user, "b"), (user, "c"), (f"{user}2", "d")} <= {
            (one.user_id, one.session_id) for one in everybody
        }

    async def test_names_of_sessions(self, store: LogStore) -> None:
        """Users and sessions are named like users everywhere."""
        user = unique()
        number = uuid4().int >> 66
        await store.create_or_update_session(number, 7)
        await store.create_or_update_session(user + NFD, NFD)
        await store.create_or_update_session(f"{user}:b", "c")
        await store.create_or_update_session(user, "b:c")

        assert [("7", str(number))] == [
            (one.session_id, one.user_id) for one in await store.get_active_sessions(str(number))
        ]
        assert [NFC] == [one.session_id for one in await store.get_active_sessions(user + NFC)]
        assert ["b:c"] == [one.session_id for one in await store.get_active_sessions(user)]
        assert await store.end_session(str(number), "7") is True
        assert await store.end_session(f"{user}:b:c", "c") is False

    async def test_sessions_at_once(self, store: LogStore) -> None:
        """Many signs of life at once are one session."""
        user = unique()
        sessions = await together(store.create_or_update_session(user) for _ in range(20))

        assert 1 == len({session.started_at for session in sessions})
        assert 1 == len(await store.get_active_sessions(user))
        ended = await together(store.end_session(user) for _ in range(20))
        assert 1 == ended.count(True)

    async def test_bad_sessions(self, store: LogStore) -> None:
        """What does not fit is refused by name of the argument."""
        user = unique()
        good: dict[str, Any] = {"user_id": user}
        for name, bad in {
            "user_id": BAD_IDS,
            "session_id": BAD_IDS,
            "context": BAD_CONTEXTS,
            "idle_seconds": [*BAD_SECONDS, None],
        }.items():
            assert [] == await not_refused(bad, name, only(name, store.create_or_update_session, **good))
        assert [] == await not_refused(
            BAD_LEAVES,
            "context.a",
            lambda bad: store.create_or_update_session(user, context={"a": bad}),
            value=True,
        )
        assert [] == await not_refused(BAD_IDS, "user_id", store.end_session)
        assert [] == await not_refused(BAD_IDS, "session_id", lambda bad: store.end_session(user, bad))
        assert [] == await not_refused(without(BAD_IDS, None), "user_id", store.get_active_sessions)
        assert [] == await not_refused(
            BAD_LIMITS, "limit", lambda bad: store.get_active_sessions(user, limit=bad)
        )
        assert [] == await store.get_active_sessions(user)

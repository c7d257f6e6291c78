"""The log suite's tests of the status of sales, and of message statistics."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multidb.errors import ConflictError
from multidb.logs._records import STATUS_STEPS, Message, MessageStats, Sale, SaleStatus
from multidb.logs.protocol import Query
from multidb.testing.conformance._data import AWKWARD_TEXTS, round_trips, texts, together, unique
from multidb.testing.conformance._log_data import (
    FIRST_MOMENT,
    LAST_MOMENT,
    NOON,
    TICK,
    LogSuite,
    event,
    ids,
    message,
    of_user,
    sale,
    seen,
    store,
)

if TYPE_CHECKING:
    from uuid import UUID

    from multidb.logs.protocol import LogBackend

NOTHING = MessageStats(
    total=0, by_role={}, users=0, conversations=0, characters=0, first_at=None, last_at=None
)


class SaleTests(LogSuite):
    """The status of a sale changes in one atomic step, or not at all."""

    async def test_every_step(self, backend: LogBackend) -> None:
        """A step from an allowed status succeeds, one to the same changes nothing, others are conflicts."""
        for old in STATUS_STEPS:
            for new, allowed_from in STATUS_STEPS.items():
                sold = sale(unique(), status=old, amount=Decimal("1.10"), context={"v": 1.0})
                await store(backend, [sold])
                becomes = new if old == new or old in allowed_from else old
                expected = sold.model_copy(update={"status": becomes})
                if becomes == new:
                    changed = await backend.set_sale_status(sold.id, new, allowed_from)

                    assert seen([expected]) == seen([changed])
                else:
                    with pytest.raises(ConflictError):
                        await backend.set_sale_status(sold.id, new, allowed_from)

                assert seen([expected]) == seen(await backend.query(of_user(sold.user_id, Sale)))

    async def test_one_step_after_the_other(self, backend: LogBackend) -> None:
        """A sale goes its way step by step, and every answer is of the sale as it is now."""
        user = unique()
        sold, other = sale(user), sale(user, timestamp=NOON - TICK)
        await store(backend, [sold, other])
        steps: list[SaleStatus] = ["completed", "completed", "refunded", "refunded"]
        changed = [await backend.set_sale_status(sold.id, step, STATUS_STEPS[step]) for step in steps]

        assert seen([sold.model_copy(update={"status": step}) for step in steps]) == seen(changed)
        with pytest.raises(ConflictError):
            await backend.set_sale_status(sold.id, "completed", STATUS_STEPS["completed"])
        assert ["refunded", "pending"] == [each.status for each in await backend.query(of_user(user, Sale))]

    async def test_unknown_sale(self, backend: LogBackend) -> None:
        """Where there is no such sale the answer is None; an event's id is no sale's."""
        happened = event(unique())
        await store(backend, [happened])

        assert await backend.set_sale_status(uuid4(), "completed", ("pending",)) is None
        assert await backend.set_sale_status(happened.id, "completed", ("pending",)) is None

    async def test_new_status_is_found(self, backend: LogBackend) -> None:
        """Filters, counts and deletes go by the status that a sale has now."""
        user = unique()
        first, second = sale(user), sale(user, timestamp=NOON - TICK)
        await store(backend, [first, second])
        await backend.set_sale_status(second.id, "failed", ("pending",))
        failed = of_user(user, Sale, equal={"status": "failed"})

        assert ids([second]) == ids(await backend.query(failed))
        assert {"pending": 1, "failed": 1} == await backend.count(of_user(user, Sale), "status")
        assert 1 == await backend.delete(failed)
        assert await backend.set_sale_status(second.id, "failed", ("pending",)) is None

    async def test_race_of_status_changes(self, backend: LogBackend) -> None:
        """Of twenty who want to decide about a sale one decides; those who wanted the same are told so."""
        sold = sale(unique())
        await store(backend, [sold])
        wanted: list[SaleStatus] = ["completed", "failed"] * 10

        async def decide(status: SaleStatus) -> str:
            try:
                changed = await backend.set_sale_status(sold.id, status, ("pending",))
            except ConflictError:
                return "conflict"
            return changed.status if changed else "none"

        results = await together(decide(status) for status in wanted)
        (now,) = await backend.query(of_user(sold.user_id, Sale))

        assert now.status in {"completed", "failed"}
        assert [now.status if status == now.status else "conflict" for status in wanted] == results

    async def test_many_sales_at_once(self, backend: LogBackend) -> None:
        """Many sales change their status at once, each its own."""
        user = unique()
        sold = [sale(user) for _ in range(40)]
        await store(backend, sold)

        async def complete(sale_id: UUID) -> Sale | None:
            return await backend.set_sale_status(sale_id, "completed", ("pending",))

        changed = await together(complete(each.id) for each in sold)

        assert seen([each.model_copy(update={"status": "completed"}) for each in sold]) == seen(changed)


class MessageStatsTests(LogSuite):
    """Statistics are computed over all messages that match."""

    async def test_no_messages(self, backend: LogBackend) -> None:
        """Where no message matches every number is 0 and there are no times."""
        assert seen([NOTHING]) == seen([await backend.message_stats(of_user(unique(), Message))])

    async def test_stats(self, backend: LogBackend) -> None:
        """Messages, roles, users, conversations, characters are counted, whatever `after` and `limit` say."""
        role = unique("role")
        users = [unique(), unique(), unique()]
        told = unique("c")
        said = [
            message(users[0], text="merhaba", conversation_id=told, timestamp=NOON + TICK),
            message(users[0], text="ığüşöç 👩\u200d👧", conversation_id=told),
            message(users[1], text="", conversation_id=unique("c"), timestamp=NOON - TICK),
            message(users[2], text="e\u0301", conversation_id=None, timestamp=NOON + TICK * 2),
            message(users[2], text="\U0010ffff" * 1000, conversation_id=None),
        ]
        said = [each.model_copy(update={"role": role}) for each in said]
        await store(backend, [*said, message(users[0], role=unique("role"))])
        expected = MessageStats(
            total=5,
            by_role={role: 5},
            users=3,
            conversations=2,
            characters=sum(len(each.text) for each in said),
            first_at=NOON - TICK,
            last_at=NOON + TICK * 2,
        )
        query = Query(Message, {"role": role}, limit=1, after=(NOON, said[0].id))

        assert seen([expected]) == seen([await backend.message_stats(query)])

    async def test_stats_of_a_part(self, backend: LogBackend) -> None:
        """Only what matches is counted: by user, conversation, role and time."""
        user = unique()
        said = [
            message(
                user,
                text="x" * number,
                role="ab"[number % 2],
                conversation_id="cd"[number // 4],
                timestamp=NOON + TICK * number,
            )
            for number in range(8)
        ]
        await store(backend, said)
        queries = [
            of_user(user, Message),
            of_user(user, Message, equal={"conversation_id": "d"}),
            of_user(user, Message, equal={"role": "b", "conversation_id": "c"}),
            of_user(user, Message, since=NOON + TICK * 2, until=NOON + TICK * 5),
        ]
        parts = [said, said[4:], said[1:4:2], said[2:5]]

        assert seen([stats_of(part) for part in parts]) == seen(
            [await backend.message_stats(q) for q in queries]
        )

    async def test_characters_are_code_points(self, backend: LogBackend) -> None:
        """A text is as long as it has code points, whatever it is encoded in."""
        for text in AWKWARD_TEXTS:
            user = unique()
            await store(backend, [message(user, text=text)])

            assert len(text) == (await backend.message_stats(of_user(user, Message))).characters

    async def test_first_and_last(self, backend: LogBackend) -> None:
        """The times of the first and the last message may be any."""
        user = unique()
        await store(backend, [message(user, timestamp=time) for time in (LAST_MOMENT, FIRST_MOMENT, NOON)])
        stats = await backend.message_stats(of_user(user, Message))

        assert (repr(FIRST_MOMENT), repr(LAST_MOMENT)) == (repr(stats.first_at), repr(stats.last_at))

    @round_trips
    @given(
        rows=st.lists(
            st.tuples(texts(30), st.sampled_from("ab"), st.sampled_from([None, "c", "d"])), max_size=6
        )
    )
    async def test_any_messages(self, backend: LogBackend, rows: list[tuple[str, str, str | None]]) -> None:
        """Statistics agree with what the messages themselves say."""
        user = unique()
        said = [message(user, text=text, role=role, conversation_id=told) for text, role, told in rows]
        await store(backend, said)

        assert seen([stats_of(said)]) == seen([await backend.message_stats(of_user(user, Message))])


def stats_of(messages: list[Message]) -> MessageStats:
    """Return the statistics of *messages* of one user."""
    times = [each.timestamp for each in messages]
    return MessageStats(
        total=len(messages),
        by_role=Counter(each.role for each in messages),
        users=len({each.user_id for each in messages}),
        conversations=len({each.conversation_id for each in messages} - {None}),
        characters=sum(len(each.text) for each in messages),
        first_at=min(times, default=None),
        last_at=max(times, default=None),
    )

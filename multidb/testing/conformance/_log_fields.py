"""The log suite's tests of fields: every one comes back equal, with its type."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from multidb.logs._records import LEVELS, Event, Message, Sale
from multidb.logs.protocol import Appended, Query
from multidb.testing.conformance._data import (
    AWKWARD_IDS,
    AWKWARD_KEYS,
    AWKWARD_TEXTS,
    AWKWARD_VALUES,
    DEEPEST,
    free_dicts,
    moments,
    round_trips,
    unique,
)
from multidb.testing.conformance._log_data import (
    FIRST_MOMENT,
    LAST_MOMENT,
    NOON,
    TICK,
    LogSuite,
    amounts,
    event,
    events_of,
    identifiers,
    message,
    newest_first,
    of_user,
    sale,
    seen,
    store,
)

if TYPE_CHECKING:
    from multidb.logs.protocol import LogBackend

STORED, DUPLICATE, CONFLICT = Appended.STORED, Appended.DUPLICATE, Appended.CONFLICT


class FieldTests(LogSuite):
    """Every field comes back equal, with its type."""

    async def test_awkward_texts(self, backend: LogBackend) -> None:
        """Texts come back character by character: nothing is trimmed, escaped or normalised."""
        user = unique()
        happened = [event(user, message=text, username=text or None) for text in AWKWARD_TEXTS]
        said = [message(user, text=text) for text in AWKWARD_TEXTS]
        await store(backend, happened)
        await store(backend, said)

        assert seen(newest_first(happened)) == seen(await backend.query(of_user(user, Event)))
        assert seen(newest_first(said)) == seen(await backend.query(of_user(user, Message)))

    async def test_awkward_batches(self, backend: LogBackend) -> None:
        """What a batch has beside it changes nothing of a record, whatever its texts and its time are."""
        user = unique()
        texts = [*AWKWARD_TEXTS, "", *(chr(number) for number in range(1, 32)), "a\x1eb\x1dc\x1f"]
        moments = [FIRST_MOMENT, datetime(1684, 1, 1, tzinfo=UTC), NOON, datetime(2255, 12, 31, tzinfo=UTC)]
        stored: list[Any] = []
        for number, text in enumerate(texts):
            at = NOON - TICK * number
            pair = [event(user, message=text, timestamp=at), event(user, username="", timestamp=at)]
            await store(backend, pair)
            stored += pair
        for number, moment in enumerate([*moments, LAST_MOMENT]):
            pair = [event(user, timestamp=moment), event(user, message=f"{number}", timestamp=NOON)]
            await store(backend, pair)
            stored += pair
        said = [message(user, text=text, conversation_id=text or None) for text in texts]
        sold = [
            sale(user, amount=Decimal(amount)) for amount in ("0", "0.10", "1E-18", "99999999999999999999")
        ]
        await store(backend, said)
        await store(backend, sold)

        assert seen(newest_first(stored)) == seen(await backend.query(of_user(user, Event, limit=1000)))
        assert seen(newest_first(said)) == seen(await backend.query(of_user(user, Message, limit=1000)))
        assert seen(newest_first(sold)) == seen(await backend.query(of_user(user, Sale)))

    async def test_awkward_identifiers(self, backend: LogBackend) -> None:
        """Every field that names something comes back as it was."""
        user = unique()
        happened = [event(user, event_type=name, username=name) for name in AWKWARD_IDS]
        sold = [sale(user, product_type=name) for name in AWKWARD_IDS]
        said = [message(user, role=name, conversation_id=name) for name in AWKWARD_IDS]
        await store(backend, happened)
        await store(backend, sold)
        await store(backend, said)

        assert seen(newest_first(happened)) == seen(await backend.query(of_user(user, Event)))
        assert seen(newest_first(sold)) == seen(await backend.query(of_user(user, Sale)))
        assert seen(newest_first(said)) == seen(await backend.query(of_user(user, Message)))

    async def test_none_is_not_empty(self, backend: LogBackend) -> None:
        """An absent username or conversation is None, and every level and an empty text are kept."""
        user = unique()
        happened = [event(user, level=level, message="", username=None) for level in LEVELS]
        said = [message(user, conversation_id=None), message(user, conversation_id="c", text="")]
        await store(backend, happened)
        await store(backend, said)

        assert seen(newest_first(happened)) == seen(await backend.query(of_user(user, Event)))
        assert seen(newest_first(said)) == seen(await backend.query(of_user(user, Message)))

    async def test_times(self, backend: LogBackend) -> None:
        """Times are kept to the microsecond, from year 1 to 9999, and come back in UTC."""
        user = unique()
        epoch = NOON.replace(year=1970, month=1, day=1, hour=0, microsecond=0)
        times = [FIRST_MOMENT, FIRST_MOMENT + TICK, epoch - TICK, epoch, epoch + TICK, NOON, NOON + TICK]
        times += [
            NOON.replace(year=1900),
            NOON.replace(year=2262, month=4, day=12),
            LAST_MOMENT - TICK,
            LAST_MOMENT,
        ]
        happened = [event(user, timestamp=time) for time in times]
        await store(backend, happened)

        assert seen(newest_first(happened)) == seen(await backend.query(of_user(user, Event)))

    async def test_amounts(self, backend: LogBackend) -> None:
        """An amount is exact and keeps its digits: 1.10 does not become 1.1."""
        user = unique()
        amounts = [
            "0",
            "0.00",
            "1",
            "1.0",
            "1.10",
            "-5.25",
            "0.1",
            "19.99",
            "100",
            "1000000",
            "0.000000000000000001",
        ]
        amounts += [
            "99999999999999999999.99",
            "123456789012345678901234567890.123456789",
            "9007199254740993.0",
        ]
        sold = [sale(user, amount=Decimal(amount), currency="TRY") for amount in amounts]
        await store(backend, sold)

        assert seen(newest_first(sold)) == seen(await backend.query(of_user(user, Sale)))

    async def test_sale_fields(self, backend: LogBackend) -> None:
        """A sale keeps its status, currency and context."""
        user = unique()
        states = ("pending", "completed", "failed", "refunded")
        sold = [sale(user, status=status, currency="EUR", context={"order": status}) for status in states]
        await store(backend, sold)

        assert seen(newest_first(sold)) == seen(await backend.query(of_user(user, Sale)))

    async def test_ids(self, backend: LogBackend) -> None:
        """Any UUID is an id, whatever its version."""
        user = unique()
        low = uuid4().int
        numbers = [low, low ^ 1, low ^ (1 << 127), low ^ (1 << 63), low ^ (1 << 64), low ^ (0xFF << 56)]
        happened = [event(user, id=UUID(int=number)) for number in numbers]
        await store(backend, happened)

        assert seen(newest_first(happened)) == seen(await backend.query(of_user(user, Event)))

    async def test_large_texts(self, backend: LogBackend) -> None:
        """A message of 100,000 characters and a context of nearly 1 MiB come back."""
        user = unique()
        happened = event(user, message="ğ😀 " * 33_000, context={"text": "x" * 1_000_000})
        await store(backend, [happened])

        assert seen([happened]) == seen(await backend.query(of_user(user, Event)))

    async def test_awkward_context(self, backend: LogBackend) -> None:
        """A context comes back with every type: 1.0 stays a float, large numbers keep every digit."""
        user = unique()
        contexts: list[dict[str, Any]] = [{"v": value} for value in AWKWARD_VALUES]
        contexts += [dict.fromkeys(AWKWARD_KEYS, 1.0), {"all": list(AWKWARD_VALUES)}, DEEPEST, {}]
        happened = [event(user, context=context) for context in contexts]
        sold, said = sale(user, context=contexts[-3]), message(user, context=contexts[-2])
        await store(backend, happened)
        await store(backend, [sold])
        await store(backend, [said])

        assert seen(newest_first(happened)) == seen(await backend.query(of_user(user, Event)))
        assert seen([sold]) == seen(await backend.query(of_user(user, Sale)))
        assert seen([said]) == seen(await backend.query(of_user(user, Message)))

    @round_trips
    @given(context=free_dicts())
    async def test_any_context(self, backend: LogBackend, context: dict[str, Any]) -> None:
        """Whatever context the store lets through comes back equal, with its types."""
        user = unique()
        happened = event(user, context=context)
        await store(backend, [happened])

        assert seen([happened]) == seen(await backend.query(of_user(user, Event)))

    @round_trips
    @given(happened=st.lists(events_of("nobody"), max_size=3, unique_by=lambda each: each.id))
    async def test_any_event(self, backend: LogBackend, happened: list[Event]) -> None:
        """Whatever event the store lets through comes back equal, with its types."""
        user = unique()
        # The ids that hypothesis draws come again in the next example.
        mine = [each.model_copy(update={"user_id": user, "id": uuid4()}) for each in happened]
        await store(backend, mine)

        assert seen(newest_first(mine)) == seen(await backend.query(of_user(user, Event)))

    @round_trips
    @given(name=identifiers(), moment=moments(), amount=amounts())
    async def test_any_sale(self, backend: LogBackend, name: str, moment: datetime, amount: Decimal) -> None:
        """Whatever sale the store lets through comes back equal, with its types."""
        user = unique()
        sold = sale(user, product_type=name, timestamp=moment, amount=amount)
        await store(backend, [sold])

        assert seen([sold]) == seen(await backend.query(of_user(user, Sale)))
        assert seen([sold]) == seen(await backend.query(Query(Sale, {"user_id": user, "product_type": name})))

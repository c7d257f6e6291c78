"""The log store suite's tests of writing events: one, many, twice, and bad ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4, uuid5

import pytest
from hypothesis import given
from pydantic import RootModel, ValidationError

from multidb.errors import ConflictError
from multidb.logs import Event
from multidb.testing.conformance._data import (
    AWKWARD_IDS,
    AWKWARD_KEYS,
    AWKWARD_TEXTS,
    AWKWARD_VALUES,
    exact,
    free_dicts,
    free_json,
    nested,
    round_trips,
    texts,
    together,
    unique,
)
from multidb.testing.conformance._poison import (
    BAD_IDS,
    BAD_KEYS,
    BAD_LABELS,
    BAD_LEAVES,
    BAD_TIMES,
    NAIVE,
    TOO_DEEP,
    Poisoned,
    poisoned,
)
from multidb.testing.conformance._stores_base import (
    NFC,
    NFD,
    Item,
    Order,
    StoreSuite,
    not_refused,
    refusal,
    without,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from multidb.logs import LogStore

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
_MEBIBYTE = 1024 * 1024

BAD_TEXTS: tuple[Any, ...] = (
    None,
    1,
    b"text",
    ["text"],
    {"$gt": ""},
    "a\0b",
    "\ud800",
    "x" * (_MEBIBYTE + 1),
)
BAD_UUIDS: tuple[Any, ...] = ("", "nonsense", 7, True, b"x" * 16, {"$gt": ""}, "1" * 31, ["a"])
BAD_CONTEXTS: tuple[Any, ...] = ([], [("a", 1)], "text", 1, True, b"{}", {"a"}, RootModel[list[int]]([1]))


class EventTests(StoreSuite):
    """Logging one event."""

    async def test_log_event(self, store: LogStore) -> None:
        """An event comes back as it was returned: an id, the time, and the defaults filled in."""
        user = unique()
        event = await store.log_event(user, "dm_received")

        assert type(event) is Event
        assert 7 == event.id.version
        assert UTC is event.timestamp.tzinfo
        assert (user, "dm_received", "", "INFO", None, {}) == (
            event.user_id,
            event.event_type,
            event.message,
            event.level,
            event.username,
            event.context,
        )
        assert [event] == await store.get_events(user)

    async def test_all_arguments(self, store: LogStore) -> None:
        """Every argument is kept."""
        user, id_ = unique(), uuid4()
        event = await store.log_event(
            user,
            "dm_received",
            "Mesaj alındı",
            context={"chat": 7},
            level="WARNING",
            username="Ali",
            event_id=id_,
            timestamp=NOON,
        )
        (stored,) = await store.get_events(user)

        assert event == stored
        assert exact(event.model_dump()) == exact(stored.model_dump())
        assert exact(
            {
                "id": id_,
                "user_id": user,
                "timestamp": NOON,
                "context": {"chat": 7},
                "event_type": "dm_received",
                "message": "Mesaj alındı",
                "level": "WARNING",
                "username": "Ali",
            }
        ) == exact(stored.model_dump())

    async def test_frozen(self, store: LogStore) -> None:
        """A record does not change, and what is done to its context changes nothing that is stored."""
        user = unique()
        context: dict[str, Any] = {"items": []}
        event = await store.log_event(user, "e", context=context)
        context["items"].append("later")
        event.context["items"].append("outside")
        (await store.get_events(user))[0].context["items"].append("outside")
        with pytest.raises(ValidationError):
            event.message = "other"

        assert [{"items": []}] == [event.context for event in await store.get_events(user)]

    async def test_levels(self, store: LogStore) -> None:
        """There are five levels."""
        user = unique()
        levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
        for level in levels:
            await store.log_event(user, "e", level=level)  # type: ignore[arg-type]

        assert sorted(levels) == sorted(event.level for event in await store.get_events(user))

    async def test_texts(self, store: LogStore) -> None:
        """Texts come back as they went in: controls, emoji, Unicode forms, and patterns."""
        user = unique()
        await together(store.log_event(user, "e", text, timestamp=NOON) for text in AWKWARD_TEXTS)

        assert sorted(AWKWARD_TEXTS) == sorted(event.message for event in await store.get_events(user))

    @round_trips
    @given(message=texts(50))
    async def test_any_text(self, store: LogStore, message: str) -> None:
        """So does any other text."""
        user = unique()
        await store.log_event(user, "e", message)

        assert [message] == [event.message for event in await store.get_events(user)]

    async def test_contexts(self, store: LogStore) -> None:
        """A context comes back equal, with its types, whatever its keys are."""
        user = unique()
        contexts = [
            {"value": list(AWKWARD_VALUES)},
            dict.fromkeys(AWKWARD_KEYS, 1.0),
            nested(32),
            {"a.b": 1, "$set": {"$gt": ""}, "": None, "a": {".": 1, "$": 2, "_id": 3}},
        ]
        for number, context in enumerate(contexts):
            await store.log_event(user, f"e{number}", context=context)
        for number, context in enumerate(contexts):
            (event,) = await store.get_events(user, event_type=f"e{number}")

            assert exact(context) == exact(event.context)

    @round_trips
    @given(context=free_dicts())
    async def test_any_context(self, store: LogStore, context: dict[str, Any]) -> None:
        """Whatever is accepted comes back equal, with its type, all the way down."""
        user = unique()
        event = await store.log_event(user, "e", context=context)
        (stored,) = await store.get_events(user)

        assert exact(context) == exact(event.context) == exact(stored.context)

    async def test_what_is_made_plain(self, store: LogStore) -> None:
        """Tuples become lists, models dicts, -0.0 becomes 0.0, in what is returned as in what is stored."""
        user = unique()
        order = Order(items=(Item(name="çay"),), total=-0.0)
        plain = {"items": [{"name": "çay", "at": None}], "total": 0.0}
        returned = [
            await store.log_event(user, "e", context=order, timestamp=NOON),
            await store.log_event(user, "e", context={"o": (order, -0.0)}, timestamp=NOON - timedelta(1)),
        ]

        assert exact([plain, {"o": [plain, 0.0]}]) == exact([event.context for event in returned])
        assert returned == await store.get_events(user)

    async def test_times(self, store: LogStore) -> None:
        """Times are kept in UTC, to the microsecond, from the year 1 to 9999."""
        user = unique()
        moments = [
            datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5, minutes=30))),
            datetime(2026, 1, 2, 3, 4, 5, 1, tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(1900, 1, 1, 0, 0, 0, 999, tzinfo=UTC),
            datetime.min.replace(tzinfo=UTC),
            datetime.max.replace(tzinfo=UTC),
        ]
        for number, moment in enumerate(moments):
            event = await store.log_event(user, f"e{number}", timestamp=moment)
            (stored,) = await store.get_events(user, event_type=f"e{number}")

            assert exact(moment.astimezone(UTC)) == exact(event.timestamp) == exact(stored.timestamp)
        assert sorted(moments, reverse=True) == [event.timestamp for event in await store.get_events(user)]

    async def test_size(self, store: LogStore) -> None:
        """A context has up to 1 MiB as JSON, a message up to 1 MiB as UTF-8."""
        user = unique()
        context = {"a": "ğ" * ((_MEBIBYTE - 8) // 2)}
        await store.log_event(user, "e", "ğ" * (_MEBIBYTE // 2), context=context)
        for too_large in ("x" * (_MEBIBYTE - 7), "x" * 2 * _MEBIBYTE):
            assert "context" == (await refusal(store.log_event(user, "e", context={"a": too_large}))).path
        assert "message" == (await refusal(store.log_event(user, "e", "x" * (_MEBIBYTE + 1)))).path
        (event,) = await store.get_events(user)

        assert context == event.context
        assert "ğ" * (_MEBIBYTE // 2) == event.message


class IdentityTests(StoreSuite):
    """Whose an event is, and which one it is."""

    async def test_ints_and_texts(self, store: LogStore) -> None:
        """A user id is the same as an int and as a text."""
        number = uuid4().int >> 66
        await store.log_event(number, "e")
        await store.log_event(str(number), "e")

        assert [str(number)] * 2 == [event.user_id for event in await store.get_events(number)]
        assert 2 == await store.count_events(str(number))

    async def test_normal_form(self, store: LogStore) -> None:
        """Ids that look the same are the same; those that differ in case are not."""
        user = unique()
        await store.log_event(user + NFD, NFD, username=NFD)
        await store.log_event(f"{user}Ali", "e")
        (event,) = await store.get_events(user + NFC, event_type=NFC)

        assert (user + NFC, NFC, NFC) == (event.user_id, event.event_type, event.username)
        assert [] == await store.get_events(f"{user}ali")

    async def test_awkward_names(self, store: LogStore) -> None:
        """No user and event type is mistaken for another, whatever is in them."""
        prefix = unique()
        await together(store.log_event(prefix + name, prefix + name, username=name) for name in AWKWARD_IDS)
        await together(store.log_event(prefix, prefix + name) for name in AWKWARD_IDS)
        of_user = await together(store.get_events(prefix + name) for name in AWKWARD_IDS)

        assert [[name] for name in AWKWARD_IDS] == [
            [event.username for event in events] for events in of_user
        ]
        assert {prefix + name: 1 for name in AWKWARD_IDS} == await store.count_events(prefix, by="event_type")
        for name in ("a%b", "a_b", "a\\b", "a'b", "a*", "A", "a b ", "ışık", '{"$gt": ""}'):
            assert [prefix + name] == [
                event.event_type for event in await store.get_events(prefix, event_type=prefix + name)
            ]

    async def test_ids_grow(self, store: LogStore) -> None:
        """Events that one program logs one after the other come back in that order."""
        user = unique()
        events = [await store.log_event(user, "e", str(number)) for number in range(50)]

        assert [event.id for event in events] == sorted(event.id for event in events)
        assert events[::-1] == await store.get_events(user)

    async def test_same_id_again(self, store: LogStore) -> None:
        """The same event under the same id is stored once, as a retry is: at another time, too."""
        user = unique()
        id_ = uuid5(UUID(int=0), user)
        first = await store.log_event(user, "e", "m", context={"a": 1, "b": 2}, event_id=id_)
        await self.pass_time(0.01)
        await store.log_event(user, "e", "m", context={"b": 2, "a": 1}, event_id=str(id_))
        await store.log_event(
            user, "e", "m", context={"a": 1, "b": 2}, event_id=str(id_).upper(), timestamp=NOON
        )
        at_once = await together(
            store.log_event(user, "e", "m", context={"a": 1, "b": 2}, event_id=id_) for _ in range(20)
        )

        assert {id_} == {event.id for event in at_once}
        assert [first] == await store.get_events(user)

    async def test_same_id_with_other_content(self, store: LogStore) -> None:
        """Another event under the same id is a conflict; the first one stays as it was."""
        user, id_ = unique(), uuid4()
        same: dict[str, Any] = {
            "event_type": "e",
            "message": "m",
            "context": {"a": 1},
            "level": "INFO",
            "username": "u",
        }
        first = await store.log_event(user, **same, event_id=id_, timestamp=NOON)
        others: list[dict[str, Any]] = [
            {"event_type": "f"},
            {"message": "n"},
            {"context": {"a": 1.0}},
            {"context": None},
            {"level": "ERROR"},
            {"username": None},
        ]
        for other in others:
            with pytest.raises(ConflictError):
                await store.log_event(user, **(same | other), event_id=id_, timestamp=NOON)
        with pytest.raises(ConflictError):
            await store.log_event(f"{user}2", **same, event_id=id_, timestamp=NOON)

        assert [first] == await store.get_events(user)
        assert [] == await store.get_events(f"{user}2")


class BadEventTests(StoreSuite):
    """Events that are refused; none of them is stored."""

    async def test_bad_events(self, store: LogStore) -> None:
        """What does not fit is refused by name of the argument."""
        user = unique()

        async def refused(bad: Any, where: str, **arguments: Any) -> list[str]:
            name = next(iter(arguments))

            async def call(one: Any) -> object:
                return await store.log_event(**({"user_identifier": user, "event_type": "e", name: one}))

            return await not_refused(bad, where, call)

        assert [] == await refused(BAD_IDS, "user_identifier", user_identifier=...)
        assert [] == await refused(BAD_LABELS, "event_type", event_type=...)
        assert [] == await refused(BAD_TEXTS, "message", message=...)
        assert [] == await refused(without(BAD_LABELS, None), "username", username=...)
        assert [] == await refused(("info", "", None, 20, "TRACE", ["INFO"], {"$gt": ""}), "level", level=...)
        assert [] == await refused(BAD_UUIDS, "event_id", event_id=...)
        assert [] == await refused(BAD_TIMES, "timestamp", timestamp=...)
        assert [] == await refused(BAD_CONTEXTS, "context", context=...)
        assert [] == await store.get_events(user)

    async def test_bad_contexts(self, store: LogStore) -> None:
        """A context that not every backend can keep is refused by name of the place."""
        user = unique()

        assert [] == await not_refused(
            BAD_LEAVES,
            "context.order.items[2]",
            lambda bad: store.log_event(user, "e", context={"order": {"items": [1, 2, bad]}}),
            value=True,
        )
        assert [] == await not_refused(
            BAD_KEYS, "context", lambda bad: store.log_event(user, "e", context={bad: 1}), value=True
        )
        assert [] == await not_refused(
            TOO_DEEP,
            "context" + ".n[0]" * 16,
            lambda bad: store.log_event(user, "e", context=bad),
            value=True,
        )
        assert [] == await store.get_events(user)

    @round_trips
    @given(bad=poisoned(free_json(), wraps=1))
    async def test_any_poison(self, store: LogStore, bad: Poisoned) -> None:
        """A bad leaf or key is found at any place in any context, and named."""
        user = unique()

        assert f"context{bad.where}" == (await refusal(store.log_event(user, "e", context=bad.value))).path
        assert [] == await store.get_events(user)


class BulkTests(StoreSuite):
    """Logging many events."""

    async def test_kinds_of_input(self, store: LogStore) -> None:
        """Lists, tuples, generators, async generators, of dicts and Events: the number is returned."""
        user = unique()
        event = Event(
            id=uuid4(), user_id=user, timestamp=NOON, event_type="an event", context={"a": [1, 1.0]}
        )

        def rows(kind: str) -> Iterator[dict[str, Any]]:
            for number in range(3):
                yield {"user_identifier": user, "event_type": kind, "message": str(number)}

        async def async_rows() -> AsyncIterator[Any]:
            for row in rows("async generator"):
                yield row
            yield event

        assert 3 == await store.log_events(list(rows("list")))
        assert 3 == await store.log_events(tuple(rows("tuple")))
        assert 3 == await store.log_events(rows("generator"))
        assert 4 == await store.log_events(async_rows())
        assert 0 == await store.log_events([])
        assert 0 == await store.log_events(iter(()))
        assert {"async generator": 3, "generator": 3, "list": 3, "tuple": 3, "an event": 1} == (
            await store.count_events(user, by="event_type")
        )
        assert [event] == await store.get_events(user, event_type="an event")

    async def test_arguments_of_a_dict(self, store: LogStore) -> None:
        """A dict has the arguments of `log_event()`, and they do what they do there."""
        user, id_ = unique("1").replace("-", ""), uuid4()
        row = {
            "user_identifier": user,
            "event_type": "e",
            "message": "m",
            "context": Order(items=(Item(name="x"),)),
            "level": "ERROR",
            "username": "u",
            "event_id": str(id_),
            "timestamp": NOON.astimezone(timezone(timedelta(hours=3))),
        }
        await store.log_events([row])

        assert [
            Event(
                id=id_,
                user_id=user,
                timestamp=NOON,
                context={"items": [{"name": "x", "at": None}], "total": 0.0},
                event_type="e",
                message="m",
                level="ERROR",
                username="u",
            )
        ] == await store.get_events(user)

    async def test_again(self, store: LogStore) -> None:
        """Events that are there are not stored again, nor counted: what was read can be written back."""
        user = unique()
        rows = [{"user_identifier": user, "event_type": "e", "event_id": uuid4()} for _ in range(5)]

        assert 5 == await store.log_events(rows)
        assert 0 == await store.log_events(rows)
        events = await store.get_events(user)
        assert 0 == await store.log_events(events)
        assert 1 == await store.log_events(
            [*rows, *events, rows[0], {"user_identifier": user, "event_type": "new"}]
        )
        assert 6 == await store.count_events(user)

    async def test_more_than_a_chunk(self, store: LogStore) -> None:
        """Any number is stored, from a list as from a stream."""
        user = unique()
        rows = [
            {"user_identifier": user, "event_type": "e", "message": str(number)} for number in range(2100)
        ]

        assert 2100 == await store.log_events(rows)
        assert 2100 == await store.log_events(dict(row) for row in rows)
        assert 4200 == await store.count_events(user)

    async def test_conflicts(self, store: LogStore) -> None:
        """Events in conflict are told of at the end; all others are stored."""
        user, taken = unique(), uuid4()
        await store.log_event(user, "first", event_id=taken)
        rows: list[dict[str, Any]] = [{"user_identifier": user, "event_type": "e"} for _ in range(1500)]
        rows[700] |= {"event_id": taken}
        with pytest.raises(ConflictError, match="1 "):
            await store.log_events(rows)

        assert {"e": 1499, "first": 1} == await store.count_events(user, by="event_type")

    async def test_bad_row_in_a_list(self, store: LogStore) -> None:
        """A list is checked whole before anything is stored; the error names the row and the place in it."""
        user = unique()
        good = {"user_identifier": user, "event_type": "e"}
        for bad, where in (
            ({"context": {"a": [1, b""]}}, "events[1200].context.a[1]"),
            ({"message": "\0"}, "events[1200].message"),
        ):
            error = await refusal(store.log_events([*[good] * 1200, good | bad, good]))

            assert where == error.path
        assert [] == await store.get_events(user)

    async def test_bad_row_in_a_stream(self, store: LogStore) -> None:
        """Of a stream the chunks of 1,000 before a bad row are stored, and nothing after it is read."""
        user = unique()
        read = []

        async def rows() -> AsyncIterator[dict[str, Any]]:
            for number in range(3000):
                read.append(number)
                yield {
                    "user_identifier": user,
                    "event_type": "e",
                    "context": {"a": b"" if number == 1500 else 1},
                }

        error = await refusal(store.log_events(rows()))

        assert "events[1500].context.a" == error.path
        assert 1501 == len(read)
        assert 1000 == await store.count_events(user)

    async def test_failing_stream(self, store: LogStore) -> None:
        """What a stream raises comes out."""
        user = unique()

        def rows() -> Iterator[dict[str, Any]]:
            yield {"user_identifier": user, "event_type": "e"}
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await store.log_events(rows())

        assert [] == await store.get_events(user)

    async def test_bad_rows(self, store: LogStore) -> None:
        """A row is refused that is no event, has a name too many or too few, or a bad value."""
        user = unique()
        good = {"user_identifier": user, "event_type": "e"}
        bad: list[Any] = [
            None,
            1,
            "text",
            [],
            ("user", "e"),
            {},
            {"user_identifier": user},
            good | {"event": 1},
            {1: 2} | good,
            good | {"level": "loud"},
            good | {"user_identifier": {"$gt": ""}},
            good | {"timestamp": NAIVE},
            good | {"event_id": "x"},
            Event.model_construct(id=uuid4(), user_id="", timestamp=NOON, event_type="e"),
            Event(id=uuid4(), user_id=user, timestamp=NAIVE, event_type="e"),
            Event(id=uuid4(), user_id=user, timestamp=NOON, event_type="e\0"),
            Event(id=uuid4(), user_id=user, timestamp=NOON, event_type="e", context={"a": object()}),
        ]
        for row in bad:
            assert [] == await not_refused(
                [[good, row]], "events[1]", store.log_events
            ) or [] == await not_refused([[good, row]], "events[1].context.a", store.log_events)
        assert [] == await store.get_events(user)

    async def test_no_events_at_all(self, store: LogStore) -> None:
        """What holds no events is refused."""
        assert [] == await not_refused((None, 1, True), "events", store.log_events)
        assert [] == await not_refused(
            ("text", {"user_identifier": "u", "event_type": "e"}), "events[0]", store.log_events
        )

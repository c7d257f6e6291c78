"""Records of the logs that are made without validating what is known to be valid, and what identifies their content."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from multidb import MultiDB, Settings
from multidb.logs._records import Event, Message, MessageStats, Sale, Session, made
from multidb.logs.backends.memory import MemoryLogBackend

NOON = datetime(2026, 3, 4, 12, 0, 0, 5, tzinfo=UTC)
ID = UUID("019b7c01-047b-7631-8c8d-055616979472")
RECORD = {"id": ID, "user_id": "u", "timestamp": NOON, "context": {"a": [1, 1.0, None]}}
SPAN = {"started_at": NOON, "last_seen_at": NOON, "expires_at": NOON, "ended_at": None, "context": {}}
EVERY_KIND: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (Event, RECORD | {"event_type": "e", "message": "m", "level": "ERROR", "username": None}),
    (Sale, RECORD | {"product_type": "p", "amount": Decimal("4.50"), "currency": "EUR", "status": "pending"}),
    (Message, RECORD | {"text": "t", "role": "user", "conversation_id": "c"}),
    (Session, {"user_id": "u", "session_id": "s"} | SPAN),
    (
        MessageStats,
        {
            "total": 1,
            "by_role": {"user": 1},
            "users": 1,
            "conversations": 0,
            "characters": 3,
            "first_at": NOON,
            "last_at": NOON,
        },
    ),
]
DIGESTS = [
    "27b50ef6337ba107a43d43a606ca5855",
    "3cb90120b0dd4530cd2d9c836a21e27a",
    "81d889e682d91d90dff16b7e9ac02efa",
    "48c18393e3271cb3cbf53402d7f0c8f9",
]
every_kind = pytest.mark.parametrize(
    ("kind", "fields"), EVERY_KIND, ids=lambda value: getattr(value, "__name__", "")
)


class KeepsEntries(MemoryLogBackend):
    """Remembers the entries that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Any] = []

    async def append(self, entries: Any, /) -> Any:
        self.entries += entries
        return await super().append(entries)


def in_memory(logs: MemoryLogBackend) -> MultiDB:
    return MultiDB(Settings(mongodb_uri="memory://", redis_url="memory://"), logs=logs)


@every_kind
def test_like_a_validated_one(kind: type[BaseModel], fields: dict[str, Any]) -> None:
    """It equals the validated one in everything that a program can see."""
    fast, slow = made(kind, dict(fields)), kind(**fields)

    assert type(slow) is type(fast)
    assert slow == fast
    assert fast == slow
    assert repr(slow) == repr(fast)
    assert str(slow) == str(fast)
    assert list(slow) == list(fast)
    assert slow.model_dump() == fast.model_dump()
    assert slow.model_dump(mode="json", exclude_unset=True) == fast.model_dump(
        mode="json", exclude_unset=True
    )
    assert slow.model_dump(exclude_defaults=True) == fast.model_dump(exclude_defaults=True)
    assert slow.model_dump_json() == fast.model_dump_json()
    assert slow.model_fields_set == fast.model_fields_set
    assert slow.model_extra == fast.model_extra
    assert slow.__pydantic_private__ == fast.__pydantic_private__
    assert vars(slow) == vars(fast)
    assert list(vars(slow)) == list(vars(fast)) == list(kind.model_fields)


@every_kind
def test_every_slot_is_set(kind: type[BaseModel], fields: dict[str, Any]) -> None:
    """Nothing that pydantic keeps in a model is left out, in whatever version is installed."""
    fast, slow = made(kind, dict(fields)), kind(**fields)
    slots = {name for base in kind.__mro__ for name in getattr(base, "__slots__", ())}

    assert {name: getattr(slow, name) for name in slots if hasattr(slow, name)} == {
        name: getattr(fast, name) for name in slots if hasattr(fast, name)
    }


@every_kind
def test_copies(kind: type[BaseModel], fields: dict[str, Any]) -> None:
    """It can be copied, pickled and validated as the validated one can; a changed copy leaves the fields of others alone."""
    fast, slow = made(kind, dict(fields)), kind(**fields)
    name = next(iter(fields))

    for again in (
        copy.copy(fast),
        copy.deepcopy(fast),
        pickle.loads(pickle.dumps(fast)),
        fast.model_copy(),
        fast.model_copy(deep=True),
        kind.model_validate(fast),
        kind.model_validate_json(fast.model_dump_json()),
        TypeAdapter(kind).validate_python(fast.model_dump()),
    ):
        assert slow == again
        assert slow.model_fields_set == again.model_fields_set
    assert slow.model_copy(update={name: 1}) == fast.model_copy(update={name: 1})
    assert slow.model_fields_set == made(kind, dict(fields)).model_fields_set


@every_kind
def test_frozen(kind: type[BaseModel], fields: dict[str, Any]) -> None:
    """It is frozen, and has a hash where the validated one has one: where all its fields do."""
    fast, slow = made(kind, dict(fields)), kind(**fields)
    name = next(iter(fields))

    with pytest.raises(ValidationError):
        setattr(fast, name, 1)
    with pytest.raises(ValidationError):
        delattr(fast, name)
    for one in (fast, slow):
        with pytest.raises(TypeError):
            hash(one)


async def test_what_a_store_returns() -> None:
    """The records that the store makes are those that pydantic would make."""
    logs = KeepsEntries()
    async with in_memory(logs) as db:
        records: list[BaseModel] = [
            await db.logs.log_event(1, "e", "m", context={"a": (1, -0.0)}, username="n", timestamp=NOON),
            await db.logs.log_event("u", "e"),
            await db.logs.log_sale("u", "coffee", 4.5, context={}),
            await db.logs.log_message("u", "hi", conversation_id=7, context=Settings(postgres_url=None)),
        ]

    assert records == [entry.record for entry in logs.entries]
    for record in records:
        validated = type(record)(**record.model_dump())

        assert repr(validated) == repr(record)
        assert validated.model_dump_json() == record.model_dump_json()
        assert validated.model_fields_set == record.model_fields_set == set(type(record).model_fields)


async def test_digests_stay_the_same() -> None:
    """The digests that are stored beside records stay comparable: the bytes never change from version to version."""
    logs = KeepsEntries()
    async with in_memory(logs) as db:
        await db.logs.log_event(7, "dm", "Işık", context={"b": 1, "a": [None]}, level="ERROR", username="Ali")
        await db.logs.log_events([{"user_identifier": "7", "event_type": "dm"}])
        await db.logs.log_sale("7", "coffee", "4.50", currency="eur", status="completed")
        await db.logs.log_message("7", "hi", role="tool", conversation_id="c", context={"x": 1.5})

    assert DIGESTS == [entry.digest.hex() for entry in logs.entries]

"""What the calls of all contenders write: alike in size and kind, never twice the same."""

from __future__ import annotations

import os
import time
from typing import Any
from uuid import UUID

USERS = 1000
DAY = 86400
EVENT_TYPES = ("message_received", "message_sent", "button_pressed", "order_placed", "payment_done")
_WORDS = (
    "latte", "mocha", "cortado", "espresso", "oat", "milk", "two", "please", "thanks", "merhaba", "evet", "kahve",
    "sugar", "large", "small", "to go",
)  # fmt: skip


def user(number: int) -> str:
    """Return the user whose turn call *number* is."""
    return f"user-{number % USERS}"


def text(number: int) -> str:
    """Return a message of some 60 characters."""
    words = (_WORDS[(number >> shift) % len(_WORDS)] for shift in range(0, 18, 2))
    return f"{' '.join(words)} {number}"


def event_type(number: int) -> str:
    """Return one of five event types."""
    return EVENT_TYPES[number % len(EVENT_TYPES)]


def context(number: int) -> dict[str, Any]:
    """Return the context of an event, about 80 bytes of JSON."""
    return {
        "chat": 100_000 + number % USERS,
        "update": number,
        "language": "tr",
        "premium": False,
        "items": 3,
    }


def state(number: int) -> dict[str, Any]:
    """Return what a bot keeps between two messages, about 100 bytes of JSON."""
    return {
        "phase": "confirming",
        "items": ["latte", "mocha"],
        "step": number,
        "total": 9.4,
        "address": "Istiklal 12",
        "note": None,
    }


def profile(number: int) -> dict[str, Any]:
    """Return a profile of about 600 bytes of JSON."""
    return {
        "type": "customer",
        "is_active": True,
        "user_id": number % USERS,
        "first_name": "Ada",
        "last_name": f"Yılmaz {number % USERS}",
        "bio": f"Coffee first. Then everything else, in no particular order. Update {number}.",
        "visits": number,
        "balance": number / 8,
        "tags": ["regular", "newsletter", "beta", "oat milk"],
        "settings": {
            "theme": "dark",
            "language": "tr",
            "notify": True,
            "font_size": 14,
            "timezone": "Europe/Istanbul",
        },
        "drinks": {"latte": 12, "mocha": 3, "cortado": 7, "espresso": number % 50},
        "address": {"street": "Istiklal Caddesi 12", "city": "Istanbul", "zip": "34430", "country": "TR"},
        "last_order": {
            "id": f"order-{number}",
            "total": "9.40",
            "currency": "EUR",
            "items": ["latte", "mocha"],
        },
    }


def uuid7() -> UUID:
    """Return a UUIDv7 as one makes it by hand."""
    value = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)

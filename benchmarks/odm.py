"""A profile as a Beanie document."""

from __future__ import annotations

from typing import Any

from beanie import Document, init_beanie


class Profile(Document):
    """A profile."""

    id: str  # type: ignore[assignment]
    type: str
    is_active: bool
    user_id: int
    first_name: str
    last_name: str
    bio: str
    visits: int
    balance: float
    tags: list[str]
    settings: dict[str, Any]
    drinks: dict[str, int]
    address: dict[str, str]
    last_order: dict[str, Any]
    last_seen: int | None = None

    class Settings:
        """Where it is kept."""

        name = "profiles"


async def prepare(database: Any) -> None:
    """Keep the documents in *database*."""
    await init_beanie(database=database, document_models=[Profile])

"""What the profile store keeps beside the documents themselves, which are plain dicts."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from pydantic import BaseModel, ConfigDict

Document: TypeAlias = dict[str, Any]
"""A profile: the fields the program put in, and `username`, `created_at`, `updated_at` (aware UTC) and `version`."""

RESERVED: Final = ("username", "created_at", "updated_at", "version")
"""The fields that multidb keeps itself."""


class ProfileStats(BaseModel):
    """What `get_profile_stats()` counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    total: int
    active: int
    """Profiles whose `is_active` is true."""
    by_type: dict[str, int]
    """Profiles by their `type`; those whose type is not text are left out."""
    autospam_bots: int
    """Profiles of type `bot` whose `autospam` is true."""

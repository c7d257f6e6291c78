"""Profiles: who someone is. The functions here work on the current MultiDB, see `multidb.init_all()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from pydantic import BaseModel

from multidb._core.current import current
from multidb.profiles._records import Document, ProfileStats
from multidb.profiles._store import ProfileStore
from multidb.profiles.protocol import ProfileBackend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multidb._core.values import UserId

M = TypeVar("M", bound=BaseModel)

__all__ = [
    "Document",
    "ProfileBackend",
    "ProfileStats",
    "ProfileStore",
    "bulk_update_profiles",
    "create_or_update_profile",
    "delete_profile",
    "find_profiles",
    "get_all_profiles",
    "get_bot_profiles",
    "get_profile_by_user_id",
    "get_profile_by_username",
    "get_profile_stats",
    "increment_profile_field",
    "remove_profile_field",
    "replace_profile",
    "search_profiles",
    "update_profile_field",
    "update_profile_fields",
]


async def create_or_update_profile(
    username: UserId, data: Mapping[str, Any] | BaseModel, *, expected_version: int | None = None
) -> Document:
    """Same as `ProfileStore.create_or_update_profile()`, on the current MultiDB."""
    return await current().profiles.create_or_update_profile(
        username, data, expected_version=expected_version
    )


async def replace_profile(
    username: UserId, data: Mapping[str, Any] | BaseModel, *, expected_version: int | None = None
) -> Document:
    """Same as `ProfileStore.replace_profile()`, on the current MultiDB."""
    return await current().profiles.replace_profile(username, data, expected_version=expected_version)


async def update_profile_field(
    username: UserId, path: str, value: Any, *, expected_version: int | None = None
) -> bool:
    """Same as `ProfileStore.update_profile_field()`, on the current MultiDB."""
    return await current().profiles.update_profile_field(
        username, path, value, expected_version=expected_version
    )


async def update_profile_fields(
    username: UserId, changes: Mapping[str, Any], *, expected_version: int | None = None
) -> bool:
    """Same as `ProfileStore.update_profile_fields()`, on the current MultiDB."""
    return await current().profiles.update_profile_fields(
        username, changes, expected_version=expected_version
    )


async def increment_profile_field(username: UserId, path: str, amount: float = 1) -> int | float | None:
    """Same as `ProfileStore.increment_profile_field()`, on the current MultiDB."""
    return await current().profiles.increment_profile_field(username, path, amount)


async def remove_profile_field(username: UserId, path: str) -> bool:
    """Same as `ProfileStore.remove_profile_field()`, on the current MultiDB."""
    return await current().profiles.remove_profile_field(username, path)


async def bulk_update_profiles(updates: Mapping[UserId, Mapping[str, Any]]) -> int:
    """Same as `ProfileStore.bulk_update_profiles()`, on the current MultiDB."""
    return await current().profiles.bulk_update_profiles(updates)


async def delete_profile(username: UserId) -> bool:
    """Same as `ProfileStore.delete_profile()`, on the current MultiDB."""
    return await current().profiles.delete_profile(username)


@overload
async def get_profile_by_username(username: UserId, *, as_model: None = None) -> Document | None: ...


@overload
async def get_profile_by_username(username: UserId, *, as_model: type[M]) -> M | None: ...


@overload
async def get_profile_by_username(username: UserId, *, as_model: type[M] | None) -> Document | M | None: ...


async def get_profile_by_username(
    username: UserId, *, as_model: type[M] | None = None
) -> Document | M | None:
    """Same as `ProfileStore.get_profile_by_username()`, on the current MultiDB."""
    return await current().profiles.get_profile_by_username(username, as_model=as_model)


@overload
async def get_profile_by_user_id(user_id: UserId, *, as_model: None = None) -> Document | None: ...


@overload
async def get_profile_by_user_id(user_id: UserId, *, as_model: type[M]) -> M | None: ...


@overload
async def get_profile_by_user_id(user_id: UserId, *, as_model: type[M] | None) -> Document | M | None: ...


async def get_profile_by_user_id(user_id: UserId, *, as_model: type[M] | None = None) -> Document | M | None:
    """Same as `ProfileStore.get_profile_by_user_id()`, on the current MultiDB."""
    return await current().profiles.get_profile_by_user_id(user_id, as_model=as_model)


async def get_all_profiles(type: str | None = None, is_active: bool | None = None) -> list[Document]:
    """Same as `ProfileStore.get_all_profiles()`, on the current MultiDB."""
    return await current().profiles.get_all_profiles(type, is_active)


async def get_bot_profiles(autospam_only: bool = False) -> list[Document]:
    """Same as `ProfileStore.get_bot_profiles()`, on the current MultiDB."""
    return await current().profiles.get_bot_profiles(autospam_only)


async def find_profiles(
    filter: Mapping[str, Any] | None = None,
    sort: str | Sequence[str | tuple[str, int]] | None = None,
    limit: int = 100,
    after: Mapping[str, Any] | None = None,
) -> list[Document]:
    """Same as `ProfileStore.find_profiles()`, on the current MultiDB."""
    return await current().profiles.find_profiles(filter, sort, limit, after)


async def search_profiles(keyword: str, *, limit: int = 50) -> list[Document]:
    """Same as `ProfileStore.search_profiles()`, on the current MultiDB."""
    return await current().profiles.search_profiles(keyword, limit=limit)


async def get_profile_stats() -> ProfileStats:
    """Same as `ProfileStore.get_profile_stats()`, on the current MultiDB."""
    return await current().profiles.get_profile_stats()

"""What the parts of the profile suite share: the hooks that a subclass overrides, and builders."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest

from multidb.errors import BackendError, ConflictError, InvalidValueError
from multidb.profiles.protocol import Applied, Patch
from multidb.testing.conformance._data import Exact, exact, unique

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from multidb.profiles._records import Document
    from multidb.profiles.protocol import Outcome, ProfileBackend

NOON: Final = datetime(2026, 3, 4, 12, 0, 0, 123457, tzinfo=UTC)
LATER: Final = NOON + timedelta(microseconds=1)
CONFLICT: Final = "conflict"
TOO_LARGE: Final = "too large"


@pytest.mark.asyncio
class ProfileSuite:
    """The hooks of the profile suite."""

    concurrent_instances: ClassVar[bool] = False
    """Whether `second_backend()` leaves the first backend usable, so that the two can race."""

    async def second_backend(self) -> ProfileBackend | None:
        """
        Return another open backend on the same data; None skips the tests that need one.

        It may be a second connection or what a reopened store yields. Close it in your fixture.
        """
        return None

    async def another(self) -> ProfileBackend:
        """Return `second_backend()`, or skip the test."""
        second = await self.second_backend()
        if second is None:
            pytest.skip("second_backend() is not overridden")
        return second


def document(
    username: str,
    fields: Mapping[str, Any],
    *,
    version: int = 1,
    created: datetime = NOON,
    updated: datetime | None = None,
) -> Document:
    """Return the profile that a backend returns."""
    reserved = {
        "username": username,
        "created_at": created,
        "updated_at": updated or created,
        "version": version,
    }
    return {**fields, **reserved}


async def create(backend: ProfileBackend, username: str, fields: Mapping[str, Any] | None = None) -> str:
    """Create a profile at NOON; return its name."""
    await backend.apply([Patch(username, NOON, set=fields or {}, upsert=True)])
    return username


async def create_all(backend: ProfileBackend, profiles: Mapping[str, Mapping[str, Any]]) -> None:
    """Create profiles at NOON."""
    await backend.apply(
        [Patch(username, NOON, set=fields, upsert=True) for username, fields in profiles.items()]
    )


async def apply(backend: ProfileBackend, patch: Patch) -> Applied | str:
    """Apply one patch; return what it did, or "conflict", or "too large"."""
    (result,) = await backend.apply([patch])
    return told(result)


def told(result: Outcome) -> Applied | str:
    """Return what a patch did, or "conflict", or "too large"."""
    if isinstance(result, BackendError):
        raise result
    if isinstance(result, ConflictError):
        return CONFLICT
    return TOO_LARGE if isinstance(result, InvalidValueError) else result


async def fields_of(backend: ProfileBackend, username: str) -> Exact | None:
    """Return a profile's fields but the reserved ones, with their types; None where there is no profile."""
    found = (await backend.get([username])).get(username)
    return None if found is None else exact(own_fields(found))


def own_fields(found: Document) -> dict[str, Any]:
    """Return what of a profile is the program's."""
    return {k: v for k, v in found.items() if k not in {"username", "created_at", "updated_at", "version"}}


def outcome(results: Iterable[Outcome]) -> list[Any]:
    """Return what became of patches, with types: "conflict", "too large", or (document, changed)."""
    return [
        each if isinstance(each, str) else (exact(each.document), each.changed) for each in map(told, results)
    ]


def brief_outcome(results: Iterable[Outcome]) -> list[Any]:
    """Return what became of patches whose document nobody wants: "conflict", "too large", or changed."""
    return [each if isinstance(each, str) else each.changed for each in map(told, results)]


def names(found: Iterable[Document]) -> list[str]:
    """Return the usernames of profiles."""
    return [each["username"] for each in found]


def user() -> str:
    """Return a username that nobody used before."""
    return unique("p")


def labelled(labels: Sequence[Any], answers: Any) -> list[tuple[str, Any]]:
    """Return each answer beside its question, so that a difference says what it is about."""
    return [(repr(label), answer) for label, answer in zip(labels, answers, strict=True)]

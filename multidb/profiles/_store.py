"""ProfileStore: checks what it is given and makes one call to the backend."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast, overload
from unicodedata import normalize

from pydantic import BaseModel, ValidationError

from multidb._core import values
from multidb._core.clock import Clock, utc_now
from multidb._core.operation import Operation, ambiguous_after, own_copy
from multidb._core.text import fold
from multidb.errors import BackendError, ConflictError, InvalidArgumentError, InvalidValueError
from multidb.profiles._records import RESERVED, Document, ProfileStats
from multidb.profiles.documents import copy_value
from multidb.profiles.protocol import Applied, Condition, Operator, Patch, ProfileBackend, ProfileQuery

if TYPE_CHECKING:
    from multidb._core.values import UserId
    from multidb.profiles.protocol import Outcome
    from multidb.resilience.route import Batched, Route

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class _Deletion:
    """A profile to be deleted, among the patches of others and of the same."""

    username: str


_Write: TypeAlias = Patch | _Deletion
_Written: TypeAlias = Applied | bool

_CREATE_OR_UPDATE: Final = Operation("profiles", "create_or_update_profile", writes=True)
_REPLACE: Final = Operation("profiles", "replace_profile", writes=True)
_UPDATE_FIELD: Final = Operation("profiles", "update_profile_field", writes=True)
_UPDATE_FIELDS: Final = Operation("profiles", "update_profile_fields", writes=True)
_INCREMENT_FIELD: Final = Operation("profiles", "increment_profile_field", writes=True)
_REMOVE_FIELD: Final = Operation("profiles", "remove_profile_field", writes=True)
_BULK_UPDATE: Final = Operation("profiles", "bulk_update_profiles", writes=True)
_GET: Final = Operation("profiles", "get_profile_by_username")
_GET_BY_USER_ID: Final = Operation("profiles", "get_profile_by_user_id")
_GET_ALL: Final = Operation("profiles", "get_all_profiles")
_GET_BOTS: Final = Operation("profiles", "get_bot_profiles")
_FIND: Final = Operation("profiles", "find_profiles")
_SEARCH: Final = Operation("profiles", "search_profiles")
_DELETE: Final = Operation("profiles", "delete_profile", writes=True)
_STATS: Final = Operation("profiles", "get_profile_stats")

_CHUNK: Final = 1000
# What a profile that is read counts as: nobody knows before, and 128 of the largest are enough in one answer.
_DOCUMENT_BYTES: Final = 8 * 1024
_BULK_CHUNK: Final = 100  # One call has one deadline, and a disk may need milliseconds for each profile.
# What needs no copy. (A float does: -0.0 becomes 0.0.)
_ATOMS: Final = frozenset({str, int, bool, type(None)})
_OPERATORS: Final[Mapping[str, Operator]] = {
    "$eq": "eq",
    "$in": "in",
    "$gt": "gt",
    "$gte": "gte",
    "$lt": "lt",
    "$lte": "lte",
    "$exists": "exists",
}


class ProfileStore:
    """
    Who someone is: one document per username, which grows fields.

    Every document carries `username`, `created_at`, `updated_at` (aware UTC) and `version` (1, and 1 more per write).
    Those four are multidb's: where whole documents come in they are ignored, so that what was read can be written back.
    """

    def __init__(self, route: Route[ProfileBackend], clock: Clock, *, max_profile_bytes: int) -> None:
        """Work on the backend of *route*."""
        self._route = route
        self._clock = clock
        self._max_bytes = max_profile_bytes
        self._writes: Batched[ProfileBackend, _Write, _Written] = route.batched(
            _write, writes=True, key=_username_of
        )
        self._reads: Batched[ProfileBackend, str, Document | None] = route.batched(_read, at_once=True)

    # Writing

    async def create_or_update_profile(
        self, username: UserId, data: Mapping[str, Any] | BaseModel, *, expected_version: int | None = None
    ) -> Document:
        """
        Merge the top-level fields of *data* into a profile, or create it; return the profile as it is now.

        Two writers of different fields both win. With *expected_version* a profile of another version is a
        ConflictError (0: there must be none yet). Raises InvalidValueError, BackendError.
        """
        fields, size = self._fields(username, data)
        patch = self._patch(username, set=fields, upsert=True, expected_version=expected_version)
        return _document(await self._apply(_CREATE_OR_UPDATE, patch, size))

    async def replace_profile(
        self, username: UserId, data: Mapping[str, Any] | BaseModel, *, expected_version: int | None = None
    ) -> Document:
        """Make *data* the whole profile: fields not in it are gone. Otherwise as `create_or_update_profile()`."""
        fields, size = self._fields(username, data)
        patch = self._patch(
            username, set=fields, replace=True, upsert=True, expected_version=expected_version
        )
        return _document(await self._apply(_REPLACE, patch, size))

    async def update_profile_field(
        self,
        username: UserId,
        path: str,
        value: Any,
        *,
        expected_version: int | None = None,
    ) -> bool:
        """
        Set one field, named by a dotted path such as `settings.theme`; return whether there is such a profile.

        Dicts on the way are created. Raises ConflictError where the path leads through something that is no dict.
        """
        _path(path)
        return await self._set(_UPDATE_FIELD, username, {path: value}, expected_version)

    async def update_profile_fields(
        self, username: UserId, changes: Mapping[str, Any], *, expected_version: int | None = None
    ) -> bool:
        """Set several fields, by dotted paths, in one atomic step; return whether there is such a profile."""
        return await self._set(_UPDATE_FIELDS, username, changes, expected_version)

    async def increment_profile_field(
        self, username: UserId, path: str, amount: float = 1
    ) -> int | float | None:
        """
        Add *amount* to a number, which starts at 0; return the new number, or None when there is no such profile.

        Raises ConflictError where something else is stored, or when the result would not fit 64 bits.
        """
        parts = _path(path)
        if type(amount) not in (int, float) or not math.isfinite(amount):
            msg = "amount: must be an int within 64 bits or a finite float"
            raise InvalidArgumentError(msg)
        if type(amount) is int:
            values.whole_number(amount, "amount")
        applied = await self._apply(_INCREMENT_FIELD, self._patch(username, increment={path: amount}))
        if applied.document is None:
            return None
        number: int | float = _value_at(applied.document, parts)
        return number

    async def remove_profile_field(self, username: UserId, path: str) -> bool:
        """Remove one field, named by a dotted path; return whether it was there."""
        _path(path)
        patch = self._patch(username, remove=(path,), wants_document=False)
        return (await self._apply(_REMOVE_FIELD, patch)).changed

    async def bulk_update_profiles(self, updates: Mapping[UserId, Mapping[str, Any]]) -> int:
        """
        Set fields, by dotted paths, of many profiles; return how many of them exist and were updated.

        Everything is checked before anything is sent; errors name an update by its position. Each profile is one
        atomic step. Where some are in conflict the others are updated, and the `conflicts` of the ConflictError names
        them; so it is where one would become larger than the backend can keep, which is an InvalidValueError.
        """
        if not isinstance(updates, Mapping):
            msg = f"updates: {type(updates).__name__}; pass a dict of username to changes"
            raise InvalidArgumentError(msg)
        patches = [self._bulk_patch(i, *update) for i, update in enumerate(updates.items())]
        outcomes: list[Outcome] = []
        for start in range(0, len(patches), _BULK_CHUNK):
            chunk = patches[start : start + _BULK_CHUNK]
            with ambiguous_after(start):
                outcomes += await self._apply_all(chunk)
            _raise_backend_error(outcomes, only_retryable=True)
        return _updated(patches, outcomes)

    def _bulk_patch(self, i: int, username: UserId, changes: Mapping[str, Any]) -> Patch:
        name = values.identifier(username, "username")
        try:
            return self._patch(name, set=self._changes(changes)[0], wants_document=False)
        except InvalidValueError as exc:
            raise InvalidValueError(f"updates[{i}].{exc.path}", exc.reason) from exc
        except InvalidArgumentError as exc:
            msg = f"updates[{i}].{exc}"
            raise InvalidArgumentError(msg) from exc

    async def delete_profile(self, username: UserId) -> bool:
        """Delete a profile; return whether there was one."""
        deletion = _Deletion(values.identifier(username, "username"))
        return cast("bool", await self._writes.run(_DELETE, deletion))

    # Reading

    @overload
    async def get_profile_by_username(
        self, username: UserId, *, as_model: None = None
    ) -> Document | None: ...

    @overload
    async def get_profile_by_username(self, username: UserId, *, as_model: type[M]) -> M | None: ...

    @overload
    async def get_profile_by_username(
        self, username: UserId, *, as_model: type[M] | None
    ) -> Document | M | None: ...

    async def get_profile_by_username(
        self, username: UserId, *, as_model: type[M] | None = None
    ) -> Document | M | None:
        """Return a profile, as a dict or validated as the pydantic model *as_model*; None when there is none."""
        name = values.identifier(username, "username")
        document = await self._reads.run(_GET, name, _DOCUMENT_BYTES)
        return document if as_model is None else _as_model(document, as_model)

    @overload
    async def get_profile_by_user_id(self, user_id: UserId, *, as_model: None = None) -> Document | None: ...

    @overload
    async def get_profile_by_user_id(self, user_id: UserId, *, as_model: type[M]) -> M | None: ...

    @overload
    async def get_profile_by_user_id(
        self, user_id: UserId, *, as_model: type[M] | None
    ) -> Document | M | None: ...

    async def get_profile_by_user_id(
        self, user_id: UserId, *, as_model: type[M] | None = None
    ) -> Document | M | None:
        """
        Return the profile whose field `user_id` is *user_id*, kept as text or as a number; None when there is none.

        Of several, the first by username.
        """
        text = values.identifier(user_id, "user_id")
        # The stored field is what the program put in, normalised or not.
        candidates: list[str | int] = list({text, str(user_id), normalize("NFD", text)})
        if text.isascii() and text.removeprefix("-").isdigit() and str(int(text)) == text:
            candidates += [int(text)] if values.MIN_INT <= int(text) <= values.MAX_INT else []
        query = ProfileQuery((Condition("user_id", "in", candidates),), limit=1)
        documents = await self._find(_GET_BY_USER_ID, query)
        return _as_model(documents[0] if documents else None, as_model)

    async def get_all_profiles(
        self, type: str | None = None, is_active: bool | None = None
    ) -> list[Document]:
        """Return all profiles, of a type and activity where given, by username. For pages: `find_profiles()`."""
        filter_: dict[str, Any] = {}
        if type is not None:
            filter_["type"] = values.check_text(type, "type")
        if is_active is not None:
            filter_["is_active"] = _bool(is_active, "is_active")
        return await self._find_all(_GET_ALL, filter_)

    async def get_bot_profiles(self, autospam_only: bool = False) -> list[Document]:
        """Return all profiles of type `bot`, by username; with *autospam_only* those whose `autospam` is true."""
        autospam = {"autospam": True} if _bool(autospam_only, "autospam_only") else {}
        return await self._find_all(_GET_BOTS, {"type": "bot"} | autospam)

    async def find_profiles(
        self,
        filter: Mapping[str, Any] | None = None,
        sort: str | Sequence[str | tuple[str, int]] | None = None,
        limit: int = 100,
        after: Mapping[str, Any] | None = None,
    ) -> list[Document]:
        """
        Return the profiles that fulfil *filter*: `{"type": "bot", "settings.level": {"$gte": 3}}`.

        A value is a scalar to equal, or a dict of `$eq`, `$in`, `$gt`, `$gte`, `$lt`, `$lte` and `$exists`. *sort* is a
        path, `-path` for descending, or a list of those or of (path, 1 or -1); default: by username. `after=page[-1]`
        continues behind that profile. Raises InvalidArgumentError for anything else in a filter.
        """
        query = ProfileQuery(_conditions(filter), _sort(sort), limit=values.limit(limit))
        if after is not None:
            query = replace(query, after=_cursor(query.sort, after, self._max_bytes))
        return await self._find(_FIND, query)

    async def search_profiles(self, keyword: str, *, limit: int = 50) -> list[Document]:
        """Return profiles whose username or a top-level text field contains *keyword*, case aside; by username."""
        folded = fold(values.check_text(keyword, "keyword", max_bytes=self._max_bytes))
        if not folded:
            msg = "keyword: must not be empty"
            raise InvalidArgumentError(msg)
        rows = values.limit(limit)
        return await self._route.run(_SEARCH, lambda backend: backend.search(folded, rows))

    async def get_profile_stats(self) -> ProfileStats:
        """Return counts over all profiles, computed by the database."""
        stats = await self._route.run(_STATS, lambda backend: backend.stats())
        return stats.model_copy(update={"by_type": dict(sorted(stats.by_type.items()))})

    # What they share

    def _patch(self, username: UserId, *, expected_version: int | None = None, **parts: Any) -> Patch:
        if expected_version is not None:
            values.whole_number(expected_version, "expected_version", 0)
        name = values.identifier(username, "username")
        return Patch(name, at=utc_now(self._clock), expected_version=expected_version, **parts)

    async def _set(
        self, operation: Operation, username: UserId, changes: Mapping[str, Any], expected_version: int | None
    ) -> bool:
        """Set fields; return whether there is such a profile: then it is written, whatever it held."""
        fields, size = self._changes(changes)
        patch = self._patch(username, set=fields, expected_version=expected_version, wants_document=False)
        return (await self._apply(operation, patch, size)).changed

    async def _apply(self, operation: Operation, patch: Patch, size: int = 0) -> Applied:
        return cast("Applied", await self._writes.run(operation, patch, size))

    async def _apply_all(self, patches: Sequence[Patch]) -> Sequence[Outcome]:
        return await self._route.run(_BULK_UPDATE, lambda backend: backend.apply(patches))

    async def _find(self, operation: Operation, query: ProfileQuery) -> list[Document]:
        return await self._route.run(operation, lambda backend: backend.find(query))

    async def _find_all(self, operation: Operation, filter_: Mapping[str, Any]) -> list[Document]:
        query = ProfileQuery(_conditions(filter_), limit=_CHUNK)
        found = page = await self._find(operation, query)
        while len(page) == _CHUNK:
            page = await self._find(operation, replace(query, after=((), page[-1]["username"])))
            found += page
        return found

    def _fields(self, username: UserId, data: Mapping[str, Any] | BaseModel) -> tuple[dict[str, Any], int]:
        """Return the program's fields of a whole document, checked and in plain types, and their size as JSON."""
        if isinstance(data, BaseModel):
            # By way of the rule, which refuses what pydantic cannot dump.
            data = values.load(values.encode(data, "data", max_bytes=self._max_bytes, addressable=True))
        if not isinstance(data, Mapping):
            raise InvalidValueError("data", f"{type(data).__name__}; pass a dict or a pydantic model")
        name = values.identifier(username, "username")
        if "username" in data and values.identifier(data["username"], "data.username") != name:
            msg = "data.username: is not the username of this call"
            raise InvalidArgumentError(msg)
        fields = {key: value for key, value in data.items() if key not in RESERVED}
        encoded = values.encode(fields, "data", max_bytes=self._max_bytes, addressable=True)
        return values.load(encoded), len(encoded)

    def _changes(self, changes: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Return changes by dotted path, checked and in plain types, and their size as JSON."""
        if not isinstance(changes, (dict, Mapping)) or not changes:
            msg = "changes: pass a dict of dotted path to value, with at least one"
            raise InvalidArgumentError(msg)
        paths = {path: _path(path) for path in changes}
        if len(paths) > 1:
            _refuse_overlaps(paths)
        plain: dict[str, Any] = {}
        size = 0
        for path, parts in paths.items():
            value = changes[path]
            encoded = values.encode(
                value, path, max_bytes=self._max_bytes, depth=len(parts) + 1, addressable=True
            )
            plain[path] = value if type(value) in _ATOMS else values.load(encoded)
            size += len(encoded)
        if size > self._max_bytes:
            raise InvalidValueError(
                "changes", f"{size:,} bytes as JSON, more than the {self._max_bytes:,} allowed"
            )
        return plain, size


def _username_of(write: _Write) -> str:
    return write.username


async def _write(backend: ProfileBackend, writes: list[_Write]) -> Sequence[_Written | Exception]:
    """Apply patches and deletions in order: a deletion and a patch may be of the same profile."""
    if len(writes) == 1 or all(type(write) is Patch for write in writes):
        return await _write_alike(backend, writes)
    written: list[_Written | Exception] = []
    for _, alike in groupby(writes, type):
        part = list(alike)
        try:
            written += await _write_alike(backend, part)
        except BackendError as exc:
            # Not raised: what is written before it is.
            written += [own_copy(exc) for _ in part]
    return written


async def _write_alike(
    backend: ProfileBackend, writes: Sequence[_Write]
) -> Sequence[Outcome] | Sequence[bool]:
    if type(writes[0]) is Patch:
        return await backend.apply(cast("Sequence[Patch]", writes))
    return await backend.delete([write.username for write in writes])


async def _read(backend: ProfileBackend, usernames: list[str]) -> list[Document | None]:
    """Return the profiles that callers asked for, to each one of its own."""
    if len(usernames) == 1:
        return [(await backend.get(usernames)).get(usernames[0])]
    found = await backend.get(list(dict.fromkeys(usernames)))
    if len(found) == len(usernames):
        return [found[name] for name in usernames]
    given: set[str] = set()
    documents = []
    for name in usernames:
        documents.append(copy_value(found.get(name)) if name in given else found.get(name))
        given.add(name)
    return documents


def _raise_backend_error(outcomes: Sequence[Outcome], *, only_retryable: bool = False) -> None:
    for outcome in outcomes:
        if isinstance(outcome, BackendError) and (outcome.retryable or not only_retryable):
            with ambiguous_after(any(isinstance(each, Applied) for each in outcomes)):
                raise outcome


def _updated(patches: Sequence[Patch], outcomes: Sequence[Outcome]) -> int:
    """Return how many of *patches* were written; raise what kept others from it."""
    _raise_backend_error(outcomes)
    names = [patch.username for patch in patches]
    conflicts = [name for name, each in zip(names, outcomes, strict=True) if isinstance(each, ConflictError)]
    conflict = None
    if conflicts:
        msg = f"{len(conflicts)} of {len(patches)} profiles are in conflict; the others are updated"
        conflict = ConflictError(msg, conflicts=conflicts)
    for i, outcome in enumerate(outcomes):
        if isinstance(outcome, InvalidValueError):
            reason = f"{outcome.reason}; the other profiles are updated"
            raise InvalidValueError(f"updates[{i}].{outcome.path}", reason) from conflict
    if conflict is not None:
        raise conflict
    return sum(outcome.changed for outcome in outcomes if isinstance(outcome, Applied))


def _path(path: object, name: str = "path") -> tuple[str, ...]:
    """Return the parts of a dotted path that a program may write."""
    parts = _readable_path(path, name)
    if parts[0] in RESERVED:
        msg = f"{name}: {parts[0]} is kept by multidb"
        raise InvalidArgumentError(msg)
    return parts


def _readable_path(path: object, name: str) -> tuple[str, ...]:
    if type(path) is not str:
        msg = f"{name}: {type(path).__name__}; pass a dotted path"
        raise InvalidArgumentError(msg)
    return _parts(path, name)


@lru_cache(512)
def _parts(path: str, name: str) -> tuple[str, ...]:
    parts = tuple(values.check_text(path, name).split("."))
    if len(parts) >= values.MAX_DEPTH:
        raise InvalidValueError(name, f"more than {values.MAX_DEPTH - 1} parts")
    for part in parts:
        values.check_field_name(part, name)
    return parts


def _refuse_overlaps(paths: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse `a` beside `a.b`: which of them wins would depend on the backend."""
    written = set(paths.values())
    for parts in written:
        if any(parts[:i] in written for i in range(1, len(parts))):
            msg = f"changes: {'.'.join(parts)} and a path above it in one call"
            raise InvalidArgumentError(msg)


def _value_at(document: Mapping[str, Any], parts: Sequence[str]) -> Any:
    value: Any = document
    for part in parts:
        value = value[part] if isinstance(value, Mapping) and part in value else None
    return value


def _bool(value: object, name: str) -> bool:
    if type(value) is not bool:
        msg = f"{name}: must be True or False"
        raise InvalidArgumentError(msg)
    return value


def _document(applied: Applied) -> Document:
    if applied.document is None:
        msg = "a patch with upsert leaves a document"
        raise AssertionError(msg)
    return applied.document


def _as_model(document: Document | None, model: type[M] | None) -> Document | M | None:
    if model is not None and not (isinstance(model, type) and issubclass(model, BaseModel)):
        msg = "as_model: pass a pydantic model class"
        raise InvalidArgumentError(msg)
    if document is None or model is None:
        return document
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join(map(str, ("profile", *error["loc"])))
        refused = InvalidValueError(path, f"{error['msg']}; the stored profile does not fit {model.__name__}")
    # Not chained: pydantic's own exception quotes what is stored.
    raise refused


def _conditions(filter_: Mapping[str, Any] | None) -> tuple[Condition, ...]:
    if filter_ is None:
        return ()
    if not isinstance(filter_, Mapping):
        msg = f"filter: {type(filter_).__name__}; pass a dict of dotted path to value"
        raise InvalidArgumentError(msg)
    return tuple(condition for path, value in filter_.items() for condition in _conditions_on(path, value))


def _conditions_on(path: str, value: object) -> Iterator[Condition]:
    name = f"filter.{path}" if isinstance(path, str) else "filter"
    _readable_path(path, name)
    if not isinstance(value, Mapping):
        yield Condition(path, "eq", _scalar(path, value, name))
        return
    if not value:
        msg = f"{name}: an empty dict; pass a scalar, or operators such as $in"
        raise InvalidArgumentError(msg)
    for key, operand in value.items():
        if key not in _OPERATORS:
            msg = f"{name}: a filter takes scalars and {', '.join(_OPERATORS)}"
            raise InvalidArgumentError(msg)
        yield Condition(path, _OPERATORS[key], _operand(path, _OPERATORS[key], operand, f"{name}.{key}"))


def _operand(path: str, operator: Operator, operand: object, name: str) -> Any:
    if operator == "exists":
        return _bool(operand, name)
    if operator == "in":
        if not isinstance(operand, list | tuple) or not 1 <= len(operand) <= values.MAX_LIMIT:
            msg = f"{name}: pass a list of 1 to {values.MAX_LIMIT:,} scalars"
            raise InvalidArgumentError(msg)
        return [_scalar(path, item, f"{name}[{i}]") for i, item in enumerate(operand)]
    if operator != "eq" and operand is None:
        msg = f"{name}: None has no order; use $exists"
        raise InvalidArgumentError(msg)
    return _scalar(path, operand, name)


def _scalar(path: str, value: object, name: str) -> Any:
    """Return a plain value to compare with. A dict here could smuggle in an operator, so it is refused."""
    if path in ("created_at", "updated_at"):
        return values.timestamp(value, name)
    if isinstance(value, dict | list | tuple | BaseModel):
        msg = f"{name}: {type(value).__name__}; a filter compares with scalars"
        raise InvalidArgumentError(msg)
    plain = values.load(values.encode(value, name, max_bytes=values.MAX_KEY_CHARACTERS * 1024))
    return values.identifier(plain, name) if path == "username" else plain


def _sort(sort: str | Sequence[str | tuple[str, int]] | None) -> tuple[tuple[str, bool], ...]:
    keys = [sort] if isinstance(sort, str) else sort or ()
    if not isinstance(keys, list | tuple):
        msg = "sort: pass a path, '-path', or a list of those or of (path, 1 or -1)"
        raise InvalidArgumentError(msg)
    return tuple(_sort_key(key) for key in keys)


def _sort_key(key: object) -> tuple[str, bool]:
    if isinstance(key, str):
        path, direction = key.removeprefix("-"), -1 if key.startswith("-") else 1
    elif isinstance(key, list | tuple) and len(key) == 2:  # noqa: PLR2004 -- a pair
        path, direction = key
    else:
        path, direction = "", 0
    if direction not in (1, -1):
        msg = "sort: pass a path, '-path', or a list of those or of (path, 1 or -1)"
        raise InvalidArgumentError(msg)
    _readable_path(path, "sort")
    return path, direction == -1


def _cursor(
    sort: Sequence[tuple[str, bool]], after: Mapping[str, Any], max_bytes: int
) -> tuple[Sequence[Any], str]:
    if not isinstance(after, Mapping) or "username" not in after:
        msg = "after: pass the last profile of the page before"
        raise InvalidArgumentError(msg)
    at = tuple(_cursor_value(_value_at(after, path.split(".")), max_bytes) for path, _ in sort)
    return at, values.identifier(after["username"], "after.username")


def _cursor_value(value: object, max_bytes: int) -> Any:
    if isinstance(value, datetime):
        return values.timestamp(value, "after")
    if isinstance(value, dict | list | tuple):
        return None  # They all sort alike.
    return values.load(values.encode(value, "after", max_bytes=max_bytes))

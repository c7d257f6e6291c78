"""
The one rule for values and identifiers, and the canonical bytes it yields.

The rule is what PostgreSQL, MongoDB, Redis, SQLite and JSON files can all keep and give back equal, with its type.
Every backend, the spool and the checksums use the same bytes, so that they agree by construction.
"""

from __future__ import annotations

import unicodedata
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from math import copysign, isfinite
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson
from pydantic import BaseModel

from multidb.errors import InvalidArgumentError, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# What may come back out. What may go in is wider: tuples and pydantic models too.
JSON: TypeAlias = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]
UserId: TypeAlias = str | int

MAX_DEPTH: Final = 32
MAX_INT: Final = 2**63 - 1
MIN_INT: Final = -(2**63)
MAX_ID_BYTES: Final = 256
MAX_KEY_CHARACTERS: Final = 128
MAX_LIMIT: Final = 10_000
MAX_SECONDS: Final = 10 * 365.25 * 86400
MIN_SECONDS: Final = 0.001

# NFC makes no text shorter than a quarter, in code points.
_NFC_SHRINKS: Final = 4
_BACKSLASH: Final = ord("\\")
_NUL_ESCAPE: Final = b"\\u0000"
_BUFFER: Final = 4096
_SORTED: Final = orjson.OPT_SORT_KEYS


def encode(value: object, path: str, *, max_bytes: int, depth: int = 1, addressable: bool = False) -> bytes:
    """
    Return the canonical JSON of *value*: UTF-8, no spaces, keys sorted.

    *path* names the value in errors. *depth* is the level it will stand at. With *addressable* the keys of every dict
    must fit into dotted paths. Raises InvalidValueError.
    """
    kind = type(value)
    if kind is not str and not (
        _all_plain(value.values(), depth + 1, addressable)  # type: ignore[attr-defined]
        if kind is dict and not addressable and depth <= MAX_DEPTH
        else _all_plain((value,), depth, addressable)
    ):
        value = _made_plain(value, path, depth, addressable)
    try:
        encoded = orjson.dumps(value, None, _SORTED)
    except TypeError:  # The walk has seen every type, so what is left are keys, and lone surrogates.
        _check_strings(_made_plain(value, path, depth, addressable), path)
        raise
    # One byte is searched ten times as fast as several, and is nearly never there.
    if _BACKSLASH in encoded and _NUL_ESCAPE in encoded:
        _check_strings(_made_plain(value, path, depth, addressable), path)
    size = len(encoded)
    if size > max_bytes:
        raise InvalidValueError(path, f"{size:,} bytes as JSON, more than the {max_bytes:,} allowed")
    # orjson leaves its buffer as large as it began, 4 KiB: too much to keep for a small value.
    return b"%b" % encoded if size < _BUFFER else encoded


def dump(plain: object, default: Callable[[Any], Any] | None = None) -> bytes:
    """Return the canonical JSON of a value that is known to keep the rule, but for what *default* makes plain."""
    return orjson.dumps(plain, default, _SORTED)


def load(encoded: bytes | str) -> Any:
    """Return the value that canonical JSON stands for."""
    return orjson.loads(encoded)


def _all_plain(items: Iterable[Any], depth: int, addressable: bool) -> bool:
    """
    Return whether *items* keep the rule as they are: nothing to make plain, nothing to refuse that `dump()` would not.

    Nearly all values do, and need no copy. It says no to all others, good and bad; `_made_plain()` tells them apart.
    """
    for item in items:
        kind = type(item)
        if kind is str or kind is bool or item is None:
            continue
        if kind is int:
            if MIN_INT <= item <= MAX_INT:
                continue
        elif kind is dict:
            if (
                depth <= MAX_DEPTH
                and (not addressable or _all_addressable(item))
                and _all_plain(item.values(), depth + 1, addressable)
            ):
                continue
        elif kind is list:
            if depth <= MAX_DEPTH and _all_plain(item, depth + 1, addressable):
                continue
        elif kind is float and isfinite(item) and (item or copysign(1.0, item) > 0):
            continue
        return False
    return True


class _RefusedError(Exception):
    """A refusal on its way up: each level adds its step, so that a good value costs no path."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.steps: list[str] = []


def _made_plain(value: object, path: str, depth: int, addressable: bool) -> object:
    """Return a copy of *value* in plain Python types. Raises InvalidValueError."""
    try:
        return _plain(value, depth, addressable)
    except _RefusedError as refused:
        raise InvalidValueError(_short(path + "".join(reversed(refused.steps))), refused.reason) from None


def _plain(value: object, depth: int, addressable: bool) -> object:
    """Return *value* in plain Python types, or refuse it. The depth limit bounds the recursion."""
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return value
    if kind is int:
        if not MIN_INT <= value <= MAX_INT:  # type: ignore[operator]
            raise _RefusedError("int outside 64 bits; pass str(value)")
        return value
    if kind is float:
        if not isfinite(value):  # type: ignore[arg-type]
            raise _RefusedError(f"{value} is not a JSON number; pass None or a str")
        return value or 0.0
    if isinstance(value, BaseModel):
        return _plain(_dumped(value), depth, addressable)
    if not isinstance(value, dict | list | tuple):
        raise _RefusedError(_refusal(value))
    if depth > MAX_DEPTH:
        raise _RefusedError(f"more than {MAX_DEPTH} levels deep")
    return (
        _plain_dict(value, depth, addressable)
        if isinstance(value, dict)
        else _plain_list(value, depth, addressable)
    )


def _dumped(model: BaseModel) -> object:
    try:
        return model.model_dump(mode="json")
    except ValueError:  # pydantic's serialization error, and its decoding of bytes
        raise _RefusedError(f"{type(model).__name__} cannot be dumped in JSON mode") from None


def _plain_dict(value: dict[Any, Any], depth: int, addressable: bool) -> dict[str, object]:
    items = {}
    for key, item in value.items():
        if type(key) is not str:
            raise _RefusedError(f"key of type {type(key).__name__}; keys must be str")
        if addressable:
            _check_addressable(key)
        try:
            items[key] = item if type(item) is str else _plain(item, depth + 1, addressable)
        except _RefusedError as refused:
            refused.steps.append(f".{key}")
            raise
    return items


def _plain_list(value: list[Any] | tuple[Any, ...], depth: int, addressable: bool) -> list[object]:
    items = []
    for i, item in enumerate(value):
        try:
            items.append(item if type(item) is str else _plain(item, depth + 1, addressable))
        except _RefusedError as refused:
            refused.steps.append(f"[{i}]")
            raise
    return items


def _all_addressable(names: Iterable[Any]) -> bool:
    for name in names:
        if type(name) is not str:
            return False
        if name.isidentifier() and len(name) <= MAX_KEY_CHARACTERS and name != "_id":
            continue  # Faster to ask: what Python takes for a name has no dot, no NUL and no dollar.
        if not _is_addressable(name):
            return False
    return True


def _is_addressable(name: str) -> bool:
    return (
        1 <= len(name) <= MAX_KEY_CHARACTERS
        and "." not in name
        and "\0" not in name
        and name[0] != "$"
        and name != "_id"
    )


def _check_addressable(name: str) -> None:
    if _is_addressable(name):
        return
    if not 1 <= len(name) <= MAX_KEY_CHARACTERS:
        raise _RefusedError(
            f"key of {len(name)} characters; 1 to {MAX_KEY_CHARACTERS} are allowed in a profile"
        )
    raise _RefusedError(
        f"the key {name!a}: a profile's keys have no '.', no NUL, no leading '$', and are not '_id'"
    )


def check_field_name(name: str, path: str) -> None:
    """Refuse a key that a dotted path cannot name on every backend. Raises InvalidValueError."""
    try:
        _check_addressable(name)
    except _RefusedError as refused:
        raise InvalidValueError(path, refused.reason) from None


def _refusal(value: object) -> str:  # noqa: PLR0911 -- a table in effect
    name = type(value).__name__
    if isinstance(value, Enum):
        return f"{name}; pass its .value"
    if isinstance(value, datetime | date):
        return f"{name}; pass value.isoformat()"
    if isinstance(value, Decimal):
        return f"{name}; pass str(value)"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{name}; pass base64 text"
    if isinstance(value, set | frozenset):
        return f"{name}; pass sorted(value)"
    if isinstance(value, str | int | float):
        return f"{name}; pass the plain {type(value).__mro__[-2].__name__}"
    return f"{name}; pass None, bool, int, float, str, list or dict"


def _check_strings(value: object, path: str) -> None:
    """Refuse the first string or key in *value* that holds a NUL or a lone surrogate."""
    if isinstance(value, str):
        check_text(value, _short(path))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_strings(item, f"{path}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key, f"{_short(path)} (a key)")
            _check_strings(item, f"{path}.{key}")


def _short(path: str) -> str:
    return path if len(path) <= MAX_ID_BYTES else path[:MAX_ID_BYTES] + "…"


def check_text(value: object, path: str, *, max_bytes: int | None = None) -> str:
    """Return *value* when it is text that every backend can keep. Raises InvalidValueError."""
    if type(value) is not str:
        raise InvalidValueError(path, f"{type(value).__name__}; pass a str")
    if "\0" in value:
        raise InvalidValueError(path, "NUL character; remove it")
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise InvalidValueError(path, "lone surrogate; decode the text with errors='replace'") from None
    if max_bytes is not None and size > max_bytes:
        raise InvalidValueError(path, f"{size:,} bytes, more than the {max_bytes:,} allowed")
    return value


def identifier(value: object, name: str) -> str:
    """
    Return *value* (str, or int as Telegram gives it) as an identifier: NFC, 1 to 256 bytes, no control characters.

    Raises InvalidArgumentError.
    """
    if type(value) is int:
        if not MIN_INT <= value <= MAX_INT:
            msg = f"{name}: int outside 64 bits; pass a str"
            raise InvalidArgumentError(msg)
        return str(value)
    if type(value) is not str:
        msg = f"{name}: {type(value).__name__}; pass a str or an int"
        raise InvalidArgumentError(msg)
    size = len(value)
    if value.isascii():
        if 1 <= size <= MAX_ID_BYTES and value.isprintable():
            return value
    elif size <= _NFC_SHRINKS * MAX_ID_BYTES:  # A megabyte is not worth normalising.
        value = unicodedata.normalize("NFC", value)
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            msg = f"{name}: lone surrogate; decode the text with errors='replace'"
            raise InvalidArgumentError(msg) from None
        if size <= MAX_ID_BYTES and (
            value.isprintable() or not any(unicodedata.category(c) == "Cc" for c in value)
        ):
            return value
    wrong = "a control character" if 1 <= size <= MAX_ID_BYTES else f"{size:,} bytes"
    msg = f"{name}: {wrong}; an identifier has 1 to {MAX_ID_BYTES} bytes of UTF-8 and no control characters"
    raise InvalidArgumentError(msg)


def label(value: object, name: str) -> str:
    """Return *value* as an identifier that must be a str, such as a key. Raises InvalidArgumentError."""
    if type(value) is not str:
        msg = f"{name}: {type(value).__name__}; pass a str"
        raise InvalidArgumentError(msg)
    # As in identifier(), which takes twice the time by way of a second call.
    if value.isascii() and value.isprintable() and 1 <= len(value) <= MAX_ID_BYTES:
        return value
    return identifier(value, name)


def timestamp(value: object, name: str) -> datetime:
    """Return an aware datetime in UTC. Raises InvalidArgumentError."""
    if type(value) is datetime and value.tzinfo is UTC and value.fold == 0:
        return value
    if not isinstance(value, datetime):
        msg = f"{name}: {type(value).__name__}; pass an aware datetime"
        raise InvalidArgumentError(msg)
    if value.tzinfo is None or value.utcoffset() is None:
        msg = f"{name}: naive datetime; pass an aware one, such as datetime.now(UTC)"
        raise InvalidArgumentError(msg)
    try:
        return value.astimezone(UTC).replace(fold=0)
    except OverflowError:
        msg = f"{name}: outside the years 1 to 9999 in UTC"
        raise InvalidArgumentError(msg) from None


def seconds(value: object, name: str) -> float:
    """Return a duration of 1 millisecond to 10 years. Raises InvalidArgumentError."""
    kind = type(value)
    if kind is not float and kind is not int:
        msg = f"{name}: {kind.__name__}; pass the seconds as int or float"
        raise InvalidArgumentError(msg)
    if not MIN_SECONDS <= value <= MAX_SECONDS:  # type: ignore[operator] # NaN fails too
        msg = f"{name}: must be from 0.001 seconds to 10 years"
        raise InvalidArgumentError(msg)
    return float(value)  # type: ignore[arg-type]


def limit(value: object, name: str = "limit") -> int:
    """Return a number of rows from 1 to 10,000. Raises InvalidArgumentError."""
    return whole_number(value, name, 1, MAX_LIMIT)


def whole_number(value: object, name: str, low: int = MIN_INT, high: int = MAX_INT) -> int:
    """Return an int from *low* to *high*. Raises InvalidArgumentError."""
    if type(value) is not int or not low <= value <= high:
        msg = f"{name}: must be an int from {low:,} to {high:,}"
        raise InvalidArgumentError(msg)
    return value


def choice(value: object, name: str, allowed: Mapping[Any, Any] | tuple[Any, ...]) -> Any:
    """Return *value* when it is one of *allowed*. Raises InvalidArgumentError."""
    if type(value) is not str or value not in allowed:
        msg = f"{name}: must be one of {', '.join(allowed)}"
        raise InvalidArgumentError(msg)
    return value

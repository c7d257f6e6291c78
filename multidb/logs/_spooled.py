"""Spooled entries: how a record of the logs is written down until the server takes it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from multidb._core import values
from multidb.logs._records import Event, Message, Record, Sale
from multidb.logs.protocol import Entry

if TYPE_CHECKING:
    from collections.abc import Mapping

_VERSION: Final = 1
_KINDS: Final[Mapping[str, type[Record]]] = {"event": Event, "sale": Sale, "message": Message}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


class UnreadableError(Exception):
    """A spooled record is of another version, or is none."""


def encode(entry: Entry[Any]) -> bytes:
    """Return *entry* as JSON on one line, keys sorted; its context is there byte for byte."""
    record: Record = entry.record
    fields = {name: value for name, value in record.__dict__.items() if name != "context"}
    return values.dump(
        {
            "context": orjson.Fragment(entry.context),
            "digest": entry.digest.hex(),
            "kind": _NAMES[type(record)],
            "record": fields | {"timestamp": record.timestamp.isoformat()},
            "version": _VERSION,
        },
        str,  # The amount of a sale is no JSON.
    )


def decode(data: bytes) -> Entry[Any]:
    """Return the entry that *data* stands for. Raises UnreadableError."""
    try:
        spooled = values.load(data)
        version = spooled["version"]
        if version != _VERSION:
            msg = "written by another version of multidb"
            raise UnreadableError(msg)
        kind, fields = _KINDS[spooled["kind"]], spooled["record"]
        at = datetime.fromisoformat(fields["timestamp"])
        context = spooled["context"]
        record = kind(**fields | {"context": context, "timestamp": at})
        return Entry(record, values.dump(context), bytes.fromhex(spooled["digest"]))
    except (KeyError, TypeError, ValueError) as exc:
        msg = "no record of the logs"
        raise UnreadableError(msg) from exc

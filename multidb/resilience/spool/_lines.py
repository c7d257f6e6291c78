"""The lines of a segment: a record with its time and a checksum, and the line that says whose they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from zlib import crc32

from multidb._core.values import dump, load

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_RECORD_BYTES: Final = 16 * 1024 * 1024
"""The largest record."""

MAX_LINE_BYTES: Final = MAX_RECORD_BYTES + 64
"""The length of the longest line."""

FORMAT: Final = 1

_HEADER: Final = b"spool"
_CRC_BYTES: Final = 9


class BadLineError(ValueError):
    """A line that holds no record; the message says why without quoting it."""


@dataclass(frozen=True, slots=True)
class Header:
    """Whose records a file holds: those of a store, for one place where they are to go."""

    store: str
    namespace: str
    format: int = FORMAT


def lines_of(records: Sequence[bytes], millis: int) -> bytes:
    """Return the lines for *records* of a time in milliseconds since 1970: `checksum milliseconds record`."""
    stamp = b"%d " % millis
    start = crc32(stamp)
    return b"".join([b"%08x %b%b\n" % (crc32(record, start), stamp, record) for record in records])


def parse(line: bytes) -> tuple[int, bytes]:
    """Return the time and the record on a line. Raises BadLineError."""
    if line[-1:] != b"\n":
        raise BadLineError("the line is torn" if line else "the line is missing")
    if not _is_sound(line):
        raise BadLineError("wrong checksum")
    stamp, _, record = line[_CRC_BYTES:-1].partition(b" ")
    try:
        load(record)
        return int(stamp), record
    except ValueError:
        raise BadLineError("no record") from None


def millis_of(start: bytes) -> int | None:
    """Return the time on a line of which only the start is known, unchecked."""
    words = start.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else None


def header_line(header: Header) -> bytes:
    """Return the first line of a file."""
    text = b"%b %b" % (
        _HEADER,
        dump({"format": header.format, "namespace": header.namespace, "store": header.store}),
    )
    return b"%08x %b\n" % (crc32(text), text)


def parse_header(line: bytes) -> Header | None:
    """Return what the first line of a file says; None when it is no header, or damaged."""
    word, _, text = line[_CRC_BYTES:-1].partition(b" ")
    if word != _HEADER or line[-1:] != b"\n" or not _is_sound(line):
        return None
    match load(text):
        case {"format": int(form), "namespace": str(namespace), "store": str(store)}:
            return Header(store, namespace, form)
    return None


def _is_sound(line: bytes) -> bool:
    return line[:_CRC_BYTES] == b"%08x " % crc32(memoryview(line)[_CRC_BYTES:-1])

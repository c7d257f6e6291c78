"""What the configuration of a Redis or Valkey is worth: what it keeps through a crash, and what it throws away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from multidb.engines._redis_commands import Command

# Many a host forbids CONFIG: INFO knows the two that matter most.
QUESTIONS: Final[Sequence[Command]] = (
    ("CONFIG", "GET", "appendonly", "appendfsync", "maxmemory-policy"),
    ("INFO", "persistence", "memory"),
)
_IN_INFO: Final = {"aof_enabled": "appendonly", "maxmemory_policy": "maxmemory-policy"}
_YES_OR_NO: Final = {"1": "yes", "0": "no"}

NO_AOF: Final = "appendonly is no: a crash loses what was written since the last snapshot, if there are any"
NO_SYNC: Final = "appendfsync is no: a power cut loses what the system had not yet written to the disk"
EVICTS: Final = "maxmemory-policy is not noeviction: keys vanish before their time when the memory is full"
UNKNOWN: Final = "appendonly and maxmemory-policy are unknown: the server does not tell"


def configuration(replies: Sequence[Any]) -> dict[str, str]:
    """Return what a server tells in reply to the questions; those that it refused are errors."""
    config, info = replies
    known: dict[str, str] = {}
    if not isinstance(info, BaseException):
        for line in _text(info).splitlines():
            name, _, value = line.partition(":")
            if name in _IN_INFO:
                known[_IN_INFO[name]] = _YES_OR_NO.get(value, value)
    if not isinstance(config, BaseException):
        words = [_text(word) for word in config]
        known |= dict(zip(words[::2], words[1::2], strict=False))
    return known


def dangers(servers: Iterable[Mapping[str, str]]) -> list[str]:
    """Return what endangers acknowledged data on any of *servers*, by their configurations."""
    found = set()
    for known in servers:
        if known.get("appendonly") == "no":
            found.add(NO_AOF)
        elif known.get("appendfsync") == "no":
            found.add(NO_SYNC)
        if known.get("maxmemory-policy", "noeviction") != "noeviction":
            found.add(EVICTS)
        if not {"appendonly", "maxmemory-policy"} <= known.keys():
            found.add(UNKNOWN)
    return [each for each in (NO_AOF, NO_SYNC, EVICTS, UNKNOWN) if each in found]


def _text(reply: Any) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)

"""What a proxy does to the bytes that pass it, at the moment."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from multidb.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

Way: TypeAlias = Literal["to_server", "to_client"]
Direction: TypeAlias = Literal["both", "to_server", "to_client"]
Matching: TypeAlias = "bytes | Callable[[bytes], bool]"
"""Bytes that occur in a request, or a function that is given a request and tells."""

WAYS: tuple[Way, Way] = ("to_server", "to_client")


@dataclass
class ProxyStats:
    """What a proxy has seen."""

    connections: int = 0
    """Accepted since the start."""
    open: int = 0
    """Those that are open now."""
    requests: int = 0
    counted: int = 0
    """Requests that the proxy's *count* matches, such as writes."""
    replies: int = 0
    bytes_to_server: int = 0
    """Forwarded; what was swallowed is not in it."""
    bytes_to_client: int = 0
    swallowed: int = 0
    """Replies lost."""
    halved: int = 0
    """Replies cut."""
    dropped: int = 0
    """Connections closed by `drop()` and `refuse()`."""
    bytes_lost: int = 0


@dataclass
class ReplyFault:
    """Which replies are lost, and how."""

    chosen: Callable[[], bool]
    """Asked once for each reply that could be."""
    matches: Callable[[bytes], bool]
    spare: int
    times: int | None
    hangs: bool
    halves: bool

    def strikes(self, request: bytes, number: int) -> bool:
        """Tell whether the reply to *request* is hit, the *number*-th of its connection from 1 on."""
        if self.times == 0 or number <= self.spare or not self.matches(request) or not self.chosen():
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Weather:
    """The faults in force, for every connection of a proxy. Lives in the proxy's event loop."""

    def __init__(self) -> None:
        """Begin without any."""
        self.reply_fault: ReplyFault | None = None
        self.delays: dict[Way, tuple[float, float]] = {}
        self.rates: dict[Way, float] = {}
        self.swallows: set[Way] = set()
        self.passable: dict[Way, asyncio.Event] = {way: asyncio.Event() for way in WAYS}
        self.clear()

    def clear(self) -> None:
        """End all of them."""
        self.reply_fault = None
        self.delays.clear()
        self.rates.clear()
        self.swallows.clear()
        for event in self.passable.values():
            event.set()

    def set_delay(self, direction: Direction, seconds: float, jitter_seconds: float) -> None:
        """Delay each byte."""
        self.delays.update(dict.fromkeys(_ways(direction), (seconds, jitter_seconds)))

    def set_rate(self, direction: Direction, bytes_per_second: float) -> None:
        """Let no more than this through, on each connection."""
        self.rates.update(dict.fromkeys(_ways(direction), bytes_per_second))

    def hold(self, direction: Direction) -> None:
        """Let nothing through for now."""
        for way in _ways(direction):
            self.passable[way].clear()

    def swallow(self, direction: Direction) -> None:
        """Lose everything."""
        self.swallows.update(_ways(direction))


def matcher(matching: Matching | None) -> Callable[[bytes], bool]:
    """Return the function that *matching* stands for; None matches everything."""
    if matching is None:
        return lambda _: True
    if isinstance(matching, bytes):
        return lambda request: matching in request
    return matching


def chooser(random: Random, every: int | None, share: float | None) -> Callable[[], bool]:
    """Return what says of one reply after the other whether it is hit."""
    if (every is None) == (share is None):
        msg = "every, share: give one of them"
        raise InvalidArgumentError(msg)
    if share is not None:
        if not 0 <= share <= 1:
            msg = "share: must be from 0 to 1"
            raise InvalidArgumentError(msg)
        probability = share
        return lambda: random.random() < probability
    if every is None or every < 1:
        msg = "every: must be at least 1"
        raise InvalidArgumentError(msg)
    return _Counter(every)


class _Counter:
    def __init__(self, every: int) -> None:
        self._every = every
        self._seen = 0

    def __call__(self) -> bool:
        self._seen += 1
        return self._seen % self._every == 0


def _ways(direction: Direction) -> tuple[Way, ...]:
    if direction == "both":
        return WAYS
    if direction not in WAYS:
        msg = "direction: both, to_server or to_client"
        raise InvalidArgumentError(msg)
    return (direction,)

"""Lane: the calls of many tasks over one connection of redis-py, written together and answered in order."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from redis.exceptions import InvalidResponse

from multidb._core.operation import own_copy
from multidb.engines._redis_commands import merged
from multidb.engines._redis_connections import HEALTH_CHECK_SECONDS, NOTHING, pack
from multidb.engines._redis_errors import DRIVER_ERRORS, translate
from multidb.errors import (
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    MultiDBError,
    OverloadedError,
)

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from multidb.engines._redis_commands import Command
    from multidb.engines._redis_connections import OwnConnection

CLOSED: Final = "the Redis engine is not open"
PING: Final = pack(("PING",))

_READ_BYTES: Final = 64 * 1024
_WRITE_BYTES: Final = 256 * 1024
# The server does nothing else while it is at calls that were merged: for a third of a millisecond.
_MERGE_CALLS: Final = 64
_MERGE_BYTES: Final = 64 * 1024
# The program did something else for longer than this: the server may have hung up meanwhile.
_IDLE_SECONDS: Final = 0.05
# Deadlines are kept to this: calls that time out one after the other are looked through once.
_TICK_SECONDS: Final = 0.02

_WRITE: Final = 0
_READ: Final = 1
_READ_AGAIN: Final = 2
"""A read whose first connection broke."""

_Call: TypeAlias = "tuple[Future[Any], Any, float, int]"
"""Who waits for the reply, what goes over the wire (or a command that may be merged), the deadline, and its kind."""


class _Merged:
    """The futures of calls that go as one, in the place of a future."""

    __slots__ = ("_futures", "_wire")

    def __init__(self, wire: _Wire, futures: Sequence[Future[Any]]) -> None:
        self._wire = wire
        self._futures = futures
        wire.merged += len(futures) - 1

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any) -> None:
        self._wire.merged -= len(self._futures) - 1
        replies = reply if type(reply) is list else [reply] * len(self._futures)
        for future, own in zip(self._futures, replies, strict=True):
            if not future.done():
                future.set_result(own)

    def set_exception(self, exc: MultiDBError) -> None:
        for future in self._futures:
            if not future.done():
                future.set_exception(own_copy(exc))


class _Wire(asyncio.BufferedProtocol):
    """
    One connection of a lane: what was written to it and is not answered, in order.

    It takes the transport of a connection that redis-py made over, once that has logged in.
    """

    def __init__(self, lane: Lane, connection: OwnConnection) -> None:
        self.connection = connection
        self.sent: deque[_Call] = deque()
        self.sent_bytes = 0
        self.merged = 0
        """How many calls are outstanding beyond the length of *sent*."""
        self.is_full = False
        """The transport asks to wait: what was written is still here."""
        self.is_asked = False
        """Nothing is written before it is known whether the connection still works."""
        self.is_worn = False
        """It is to be replaced as soon as nothing is outstanding."""
        self.heard = monotonic()
        self.ended: Future[None] = asyncio.get_running_loop().create_future()
        self._lane = lane
        self._queue = lane.queue
        self._buffer = bytearray(_READ_BYTES)
        reader = connection.new_reader()
        self._feed: Callable[[bytearray, int, int], None] = reader.feed  # type: ignore[assignment] # its stub is wrong
        self._gets = reader.gets
        transport = connection.transport
        self.write, self.is_closing = transport.write, transport.is_closing
        self._stream = transport.get_protocol()
        transport.set_protocol(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return where the bytes from the server go."""
        del sizehint
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Hand out the replies that are complete."""
        self.heard = heard = monotonic()
        self.connection.next_health_check = heard + HEALTH_CHECK_SECONDS
        self._feed(self._buffer, 0, nbytes)
        gets, sent = self._gets, self.sent
        answered = 0
        try:
            while (reply := gets()) is not NOTHING:
                call = sent.popleft()
                answered += len(call[1])
                if not call[0].done():  # Who was cancelled, or waited too long, has left.
                    call[0].set_result(reply)
        except (InvalidResponse, IndexError) as exc:  # No RESP, or a reply to nothing.
            self._lane.lose(self, exc)
            return
        self.sent_bytes -= answered
        if self._queue or self.is_worn:
            self._lane.wake()

    def eof_received(self) -> None:
        """Take note that the server hung up."""
        self._lane.lose(self, None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that the connection is gone, and tell redis-py's stream."""
        self._lane.lose(self, exc)
        self._stream.connection_lost(exc)
        if not self.ended.done():
            self.ended.set_result(None)

    def pause_writing(self) -> None:
        """Wait with what comes next."""
        self.is_full = True

    def resume_writing(self) -> None:
        """Go on."""
        self.is_full = False
        self._lane.wake()


class Lane:
    """
    Sends what is called in one tick of the event loop in one write, and hands out the replies in order.

    *connect* returns a connection that has logged in; it is called when there is none and somebody waits.
    *greeting* returns commands that go first over every connection, and whose replies are of no interest.
    *on_failure* is told when a connection broke or could not be made. *merges*: calls of a script that takes many at
    once go as one, also where their keys belong to several hash tags.

    Every call ends within *timeout_seconds*: what was not written by then fails for certain, what was may have been
    applied. A connection over which nothing at all arrived for that long is dropped. At most *max_calls* and
    *max_bytes* are outstanding; what comes then waits, first come first served.

    When a connection breaks, what was written and not answered fails, except that what only reads is written once
    more; what was not written goes over the next connection. Who is cancelled leaves: the command is not written if
    it was not yet, and else its reply is thrown away.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[OwnConnection]],
        *,
        timeout_seconds: float,
        max_calls: int,
        max_bytes: int,
        greeting: Callable[[], Iterable[bytes]] = tuple,
        on_failure: Callable[[], object] | None = None,
        merges: bool = True,
    ) -> None:
        """Connect later."""
        self.queue: deque[_Call] = deque()
        """What is not written yet."""
        self._connect = connect
        self._timeout = timeout_seconds
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._greeting = greeting
        self._on_failure = on_failure
        self._merge_max = _MERGE_CALLS if merges else 1
        self._loop = asyncio.get_running_loop()
        self._new_future = self._loop.create_future
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._ending: set[_Wire] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_awake = False
        self._is_closed = False
        self.deadline = 0.0
        """That of the latest call."""

    def call(self, packed: bytes | Command, *, writes: bool) -> Future[Any]:
        """
        Send a command as `pack()` makes it, or the call of a `weighty` script; return what gets the reply.

        An error of the server is a reply as any other. What is raised are errors of multidb. *writes*: it may change
        data.
        """
        if not self._is_awake:
            self.wake()
        future = self._new_future()
        self.queue.append((future, packed, self.deadline, _WRITE if writes else _READ))
        return future

    @property
    def is_busy(self) -> bool:
        """Whether anything is outstanding."""
        return bool(self.queue or (self._wire is not None and self._wire.sent))

    def wear(self) -> None:
        """Use another connection from the next call on; those outstanding on this one get their replies."""
        if self._wire is not None:
            self._wire.is_worn = True
            self.wake()

    async def drain(self, seconds: float) -> None:
        """Wait until all that was called is answered, for *seconds* at most."""
        if self.is_busy:  # Replies come in order: when this one is there, the others are.
            pong = self.call(PING, writes=False)
            await asyncio.wait((pong,), timeout=seconds)
            pong.cancel()  # Nobody will look at how it ends.

    async def close(self, seconds: float) -> None:
        """Fail what is outstanding with ClosedError, and let go of the connection, within *seconds*."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait((self._connecting,), timeout=seconds)
        if self._wire is not None:
            self.lose(self._wire, None)
        self._fail_unsent(ClosedError(CLOSED))
        if self._ending:
            await asyncio.wait([wire.ended for wire in self._ending], timeout=seconds)

    def wake(self) -> None:
        """Look on the next tick for what is to be written."""
        if self._is_awake:
            return
        self._is_awake = True
        now = monotonic()
        self.deadline = now + self._timeout
        wire = self._wire
        if wire is not None and not wire.sent and now - wire.heard > _IDLE_SECONDS:
            # In one more round the loop reads what arrived: the end of the connection to a server that restarted.
            self._loop.call_soon(self._loop.call_soon, self._flush)
        else:
            self._loop.call_soon(self._flush)
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._keep_deadlines)

    def _flush(self) -> None:
        self._is_awake = False
        wire = self._wire
        if self._is_closed:
            self._fail_unsent(ClosedError(CLOSED))
        elif wire is None:
            if self.queue and self._connecting is None:
                self._connecting = self._loop.create_task(self._reconnect(), name="multidb-redis-lane")
        elif wire.is_closing() or (wire.is_worn and not wire.sent):
            self.lose(wire, None)
        elif self.queue and not wire.is_full and not wire.is_worn:
            self._write(wire)

    def _write(self, wire: _Wire) -> None:
        if not wire.sent:
            if monotonic() > wire.connection.next_health_check:
                self._ask(wire)
                return
            wire.is_asked = False
        if wire.is_asked:
            return
        while not wire.is_full:
            packed = self._take(wire)
            if not packed:
                return
            wire.write(packed)

    def _take(self, wire: _Wire) -> bytes:
        """Return the next commands to be written; b"" when there are none, or as many as may be outstanding."""
        queue, sent = self.queue, wire.sent
        room = self._max_calls - len(sent) - wire.merged
        size = 0
        most = min(_WRITE_BYTES, self._max_bytes - wire.sent_bytes)
        chunks = []
        while queue and room > 0 and size < most:
            future, packed, deadline, kind = queue.popleft()
            if future.done():
                continue
            room -= 1
            if type(packed) is tuple:
                futures, packed = self._merge(future, packed, deadline, room)
                room -= len(futures) - 1
                future = cast("Future[Any]", _Merged(wire, futures))
            sent.append((future, packed, deadline, kind))
            chunks.append(packed)
            size += len(packed)
        wire.sent_bytes += size
        return b"".join(chunks)

    def _merge(
        self, future: Future[Any], command: Command, deadline: float, room: int
    ) -> tuple[list[Future[Any]], bytes]:
        """Take what can go as one with *command* from the queue; return who waits, and what goes over the wire."""
        queue, futures, commands = self.queue, [future], [command]
        script = command[0]
        weight = len(command[script.weighty])
        room = min(room, self._merge_max - 1)
        while queue and room > 0 and weight < _MERGE_BYTES:
            other, following, other_deadline, _ = queue[0]
            if type(following) is not tuple or following[0] is not script or other_deadline != deadline:
                break
            queue.popleft()
            if not other.done():
                futures.append(other)
                commands.append(following)
                weight += len(following[script.weighty])
                room -= 1
        return futures, merged(commands)

    def _ask(self, wire: _Wire) -> None:
        """Ask over an idle connection whether it still works, before anything is sent that may not be sent twice."""
        wire.is_asked = True
        self._send_for_nobody(wire, PING)
        self._loop.call_later(self._timeout / 2, self._give_up_asking, wire)

    def _give_up_asking(self, wire: _Wire) -> None:
        if wire.is_asked:
            self.lose(wire, None)

    def _send_for_nobody(self, wire: _Wire, packed: bytes) -> None:
        nobody = self._new_future()
        nobody.cancel()
        wire.sent.append((nobody, packed, monotonic() + self._timeout, _READ_AGAIN))
        wire.sent_bytes += len(packed)
        wire.connection.next_health_check = monotonic() + HEALTH_CHECK_SECONDS
        wire.write(packed)

    async def _reconnect(self) -> None:
        try:
            connection = await self._connect()
        except asyncio.CancelledError:
            raise
        except Exception as exc:  # noqa: BLE001 -- whoever waits for the connection has to hear of it
            self._fail_unsent(exc)
            self._tell_failure()
            return
        finally:
            self._connecting = None
        self._wire = wire = _Wire(self, connection)
        if self._is_closed:
            self.lose(wire, None)
            return
        for packed in self._greeting():
            self._send_for_nobody(wire, packed)
        self._flush()

    def lose(self, wire: _Wire, exc: Exception | None, *, timed_out: bool = False) -> None:
        """Let go of a connection that broke, or that is of no more use."""
        if wire is not self._wire:
            return
        self._wire = None
        self._ending.add(wire)
        wire.ended.add_done_callback(lambda _: self._ending.discard(wire))
        wire.is_asked = False
        wire.connection.abandon(loop_gone=False)
        again = []
        for future, packed, deadline, kind in wire.sent:
            if future.done():
                continue
            if kind == _READ and not timed_out and not self._is_closed:
                again.append((future, packed, deadline, _READ_AGAIN))
            else:
                future.set_exception(self._why(exc, writes=kind == _WRITE, timed_out=timed_out))
        wire.sent.clear()
        self.queue.extendleft(reversed(again))
        if not wire.is_worn:
            self._tell_failure()
        if self.queue:
            self.wake()

    def _why(self, exc: Exception | None, *, writes: bool, timed_out: bool) -> MultiDBError:
        if self._is_closed:
            return ClosedError("the Redis engine was closed before the server answered")
        error = (
            BackendTimeoutError("no answer from the server", ambiguous=writes)
            if timed_out
            else BackendUnavailableError("the connection was lost", ambiguous=writes)
        )
        error.__cause__ = exc
        return error

    def _fail_unsent(self, exc: Exception) -> None:
        calls = tuple(self.queue)
        self.queue.clear()
        for future, *_ in calls:
            if not future.done():
                future.set_exception(self._why_unsent(exc))

    def _why_unsent(self, exc: Exception) -> Exception:
        if self._is_closed:
            error: MultiDBError = ClosedError(CLOSED)
        elif isinstance(exc, DRIVER_ERRORS):
            error = translate(exc, writes=False)
        else:
            return own_copy(exc)
        error.__cause__ = exc
        return error

    def _tell_failure(self) -> None:
        if self._on_failure is not None:
            self._on_failure()

    def _keep_deadlines(self) -> None:
        """Fail the calls that are past their deadlines; come again for the next."""
        self._timer = None
        now = monotonic() + 0.001
        self._expire_unsent(now)
        following = [self.queue[0][2]] if self.queue else []
        wire = self._wire
        if wire is not None and wire.sent:
            following += self._expire_sent(wire, now)
        if following:
            if self._timer is not None:  # A connection was lost meanwhile, and what is sent again set one.
                self._timer.cancel()
            seconds = max(min(following) - now, _TICK_SECONDS)
            self._timer = self._loop.call_later(seconds, self._keep_deadlines)

    def _expire_unsent(self, now: float) -> None:
        while self.queue and (self.queue[0][2] <= now or self.queue[0][0].done()):
            future, *_ = self.queue.popleft()
            if not future.done():
                future.set_exception(self._not_written())

    def _not_written(self) -> MultiDBError:
        if self._wire is None:
            return BackendUnavailableError("there was no connection to the server in time")
        return OverloadedError("too much is outstanding on the connection to the server")

    def _expire_sent(self, wire: _Wire, now: float) -> list[float]:
        """Fail what waited too long for its reply; return when to look again, if there is anything to look at."""
        for future, _, deadline, kind in wire.sent:
            if deadline > now:
                if future.done():  # Of somebody who left, or of nobody: the next one may be older.
                    continue
                return [deadline]
            if wire.heard + self._timeout <= now:
                self.lose(wire, None, timed_out=True)
                return []
            if not future.done():
                future.set_exception(
                    BackendTimeoutError("no answer from the server", ambiguous=kind == _WRITE)
                )
        return [wire.heard + self._timeout]

    def abandon(self, *, loop_gone: bool) -> None:
        """Let go of everything at once; with *loop_gone* without the loop."""
        self._is_closed = True
        if loop_gone:
            self._wire = None
            self.queue.clear()
            return
        if self._connecting is not None:
            self._connecting.cancel()
        if self._wire is not None:
            self.lose(self._wire, None)
        self._fail_unsent(ClosedError(CLOSED))

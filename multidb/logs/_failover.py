"""FailoverLogBackend: logs on a server, and on the local disk while the server is away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multidb.errors import BackendUnavailableError
from multidb.logs._spooled import UnreadableError, decode, encode
from multidb.logs.protocol import Appended, R
from multidb.resilience.failover import Failover
from multidb.resilience.guard import Kind
from multidb.resilience.replay import DUPLICATE, TAKEN, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from multidb.instrumentation import Health
    from multidb.logs._records import MessageStats, Record, Sale, SaleStatus, Session
    from multidb.logs.protocol import Bucket, Entry, LogBackend, Query, SessionTouch
    from multidb.resilience.failover import FailoverOptions, Primary
    from multidb.resilience.spool import Spool
    from multidb.resilience.watch import Watch


class FailoverLogBackend:
    """
    A log backend on a server: what it cannot append there now it keeps in *spool* until it can.

    Ids make that safe: whatever is stored already is not stored again, be it after a lost answer or by a replay. An
    entry that turns out to be in conflict with one on the server, or that the server refuses, is set aside in the
    spool. Anything but an append needs the server: while it is away, that fails at once.
    """

    def __init__(
        self,
        backend: LogBackend,
        primary: Primary,
        spool: Spool,
        watch: Watch,
        options: FailoverOptions | None = None,
        **guard_options: Any,
    ) -> None:
        """Stand before *backend*, which *primary* opens."""
        self._backend = backend
        self._failover = Failover(primary, spool, watch, self._deliver, options, **guard_options)

    @property
    def name(self) -> str:
        """That of the backend on the server."""
        return self._backend.name

    async def open(self) -> None:
        """Open the spool and the server."""
        await self._failover.open()

    async def close(self) -> None:
        """Close them."""
        await self._failover.close()

    def abandon(self) -> None:
        """Let go of them without the event loop."""
        self._failover.abandon()

    def health(self) -> Health:
        """Return how the logs fare."""
        return self._failover.health()

    async def append(self, entries: Sequence[Entry[R]], /) -> Sequence[Appended]:
        """Store *entries* on the server or, as it cannot take them now, on the disk: then all are SPOOLED."""
        return await self._failover.run_or_keep(
            lambda: self._backend.append(entries), entries, encode, Appended.SPOOLED
        )

    async def query(self, query: Query[R], /) -> list[R]:
        """Return the matching records on the server."""
        return await self._failover.run(lambda: self._backend.query(query), Kind.READ)

    async def query_all(self, queries: Sequence[Query[R]], /) -> Sequence[list[R]]:
        """Return the matching records on the server, for each of *queries*."""
        return await self._failover.run(lambda: self._backend.query_all(queries), Kind.READ)

    async def count(self, query: Query[R], by: str | None = None, /) -> dict[str, int]:
        """Count the matching records on the server."""
        return await self._failover.run(lambda: self._backend.count(query, by), Kind.READ)

    async def histogram(self, query: Query[R], bucket: Bucket, /) -> dict[datetime, int]:
        """Count the matching records on the server by time."""
        return await self._failover.run(lambda: self._backend.histogram(query, bucket), Kind.READ)

    async def delete(self, query: Query[R], /) -> int:
        """Delete the matching records on the server. What is on its way there stays."""
        return await self._failover.run(lambda: self._backend.delete(query), Kind.SLOW)

    async def set_sale_status(
        self, sale_id: UUID, status: SaleStatus, allowed_from: Sequence[SaleStatus], /
    ) -> Sale | None:
        """Give a sale on the server a new status. Raises BackendUnavailableError, too, while it may be on its way."""
        pending = self._failover.pending  # Afterwards it may have got there, too late to be found.
        sale = await self._failover.run(
            lambda: self._backend.set_sale_status(sale_id, status, allowed_from), Kind.WRITE
        )
        if sale is None and pending:
            msg = "there is no such sale on the server yet, and records are on their way there"
            raise BackendUnavailableError(msg)
        return sale

    async def message_stats(self, query: Query[R], /) -> MessageStats:
        """Aggregate the matching messages on the server."""
        return await self._failover.run(lambda: self._backend.message_stats(query), Kind.READ)

    async def touch_sessions(self, touches: Sequence[SessionTouch], /) -> list[Session]:
        """Start or continue sessions on the server."""
        return await self._failover.run(lambda: self._backend.touch_sessions(touches), Kind.WRITE)

    async def active_sessions(self, user_id: str | None, now: datetime, limit: int, /) -> list[Session]:
        """Return the sessions on the server that are active at *now*."""
        return await self._failover.run(lambda: self._backend.active_sessions(user_id, now, limit), Kind.READ)

    async def end_session(self, user_id: str, session_id: str, now: datetime, /) -> bool:
        """End a session on the server."""
        return await self._failover.run(
            lambda: self._backend.end_session(user_id, session_id, now), Kind.WRITE
        )

    async def _deliver(self, records: Sequence[bytes]) -> Sequence[Outcome]:
        """Append spooled *records* to the server: those of a kind together, as a backend wants them."""
        outcomes: list[Outcome] = [TAKEN] * len(records)
        kinds: dict[type[Record], list[tuple[int, Entry[Any]]]] = {}
        for place, data in enumerate(records):
            try:
                entry = decode(data)
            except UnreadableError as exc:
                outcomes[place] = Outcome(refused=str(exc))
            else:
                kinds.setdefault(type(entry.record), []).append((place, entry))
        for placed in kinds.values():
            entries = [entry for _, entry in placed]
            appended = await self._failover.attempt(lambda: self._backend.append(entries))  # noqa: B023
            for (place, _), outcome in zip(placed, appended, strict=True):
                outcomes[place] = _OUTCOMES[outcome]
        return outcomes


_OUTCOMES = {
    Appended.STORED: TAKEN,
    Appended.DUPLICATE: DUPLICATE,
    Appended.CONFLICT: Outcome(refused="its id is stored with other content"),
}

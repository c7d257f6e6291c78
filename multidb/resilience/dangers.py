"""Dangers: what about a server's own settings may lose what it has acknowledged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from multidb._core.carrier import Errand

if TYPE_CHECKING:
    import asyncio

_log = logging.getLogger("multidb")

_looking: Final[set[asyncio.Task[None]]] = set()


@runtime_checkable
class SupportsDangers(Protocol):
    """Optional power of a backend: it knows what its server's settings are worth."""

    async def dangers(self) -> Sequence[str]:
        """
        Return what endangers acknowledged data, in short texts that are always the same; in one round trip.

        What the server does not tell is one of them. Raises what a call raises.
        """
        ...


class Dangers:
    """What is known of the dangers of one store's server: `found`, as of the last `look()`."""

    def __init__(self, backend: object, store: str, seconds: float) -> None:
        """Look at nothing. One without the power has none; a look takes up to *seconds*."""
        self.found: tuple[str, ...] = ()
        self._backend = backend
        self._store = store
        self._seconds = seconds

    async def look(self) -> None:
        """Ask the server. Whatever comes of it, this does not fail; what was not known before is logged."""
        backend = self._backend
        if not isinstance(backend, SupportsDangers):
            return
        name = str(getattr(backend, "name", "its server"))
        errand = Errand[Sequence[str]](f"multidb-{self._store}-dangers", _looking, writes=False)
        try:
            found = tuple(await errand.run(backend.dangers(), self._seconds))
        except Exception as exc:  # noqa: BLE001 -- no reason to do without the server
            # The calls meet the same, and say more about it.
            _log.info("%s on %s: its settings are unknown: %s", self._store, name, type(exc).__name__)
            return
        before, self.found = self.found, found
        if found and found != before:
            _log.warning("%s on %s: acknowledged data is in danger: %s", self._store, name, "; ".join(found))

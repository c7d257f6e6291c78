"""What the stores say of a call before it is made: which one it is, and what may be done when it fails."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of backend call. *idempotent*: doing it twice leaves what doing it once leaves."""

    store: str
    name: str
    writes: bool = False
    idempotent: bool = True

"""What the stores say of a call, and of calls that have several parts."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from multidb.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of backend call, by the name of the function that a program calls."""

    store: str
    name: str
    writes: bool = False


@contextmanager
def ambiguous_after(done: object) -> Iterator[None]:
    """What fails in the block was applied in part when something was *done* before it."""
    try:
        yield
    except BackendError as exc:
        exc.ambiguous = exc.ambiguous or bool(done)
        raise

"""What the stores say of a call, and of calls that have several parts."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TypeVar

from multidb.errors import BackendError

E = TypeVar("E", bound=Exception)


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of backend call, by the name of the function that a program calls."""

    store: str
    name: str
    writes: bool = False


class ambiguous_after:  # noqa: N801 -- a context manager; made by @contextmanager it costs three times as much
    """What fails in the block was applied in part when something was *done* before it."""

    __slots__ = ("_done",)

    def __init__(self, done: object) -> None:
        self._done = done

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if isinstance(exc, BackendError):
            exc.ambiguous = exc.ambiguous or bool(self._done)


def own_copy(error: E) -> E:
    """Return *error* for one more caller: raising it changes it, so that each needs its own."""
    try:
        again = copy(error)
    except Exception:  # noqa: BLE001 -- some cannot be made again from their arguments
        return error
    again.__cause__, again.__context__ = error.__cause__, error.__context__
    again.__suppress_context__ = error.__suppress_context__
    if hasattr(error, "__notes__"):
        again.__notes__ = [*error.__notes__]
    return again.with_traceback(error.__traceback__)

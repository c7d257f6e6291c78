"""Which MultiDB the module functions work on: the override of this context, else the process default."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from multidb.errors import NotInitializedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multidb._multidb import MultiDB

_override: ContextVar[MultiDB | None] = ContextVar("multidb_override", default=None)
# Not a context variable: one set in an ASGI lifespan is not seen by the requests.
_default: MultiDB | None = None


def current() -> MultiDB:
    """Return the MultiDB of the innermost `using()` block, else the one of `init_all()`. Raises NotInitializedError."""
    db = _override.get() or _default
    if db is None:
        msg = "multidb is not initialized: call `await multidb.init_all()` first"
        raise NotInitializedError(msg)
    return db


@contextmanager
def using(db: MultiDB) -> Iterator[MultiDB]:
    """Make *db* the current MultiDB inside the block, for this task and the tasks it starts there."""
    token = _override.set(db)
    try:
        yield db
    finally:
        _override.reset(token)


def get_default() -> MultiDB | None:
    """Return the process default, if there is one."""
    return _default


def set_default(db: MultiDB | None) -> None:
    """Make *db* the process default."""
    global _default  # noqa: PLW0603 -- the one process-wide variable of the package
    _default = db

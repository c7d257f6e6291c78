"""
Every exception multidb raises.

    MultiDBError
    ├── InvalidArgumentError (ValueError)     a wrong argument; the message names it
    │   └── InvalidValueError                 a value that not every backend can keep; .path says where
    ├── NotInitializedError                   no MultiDB is current: call init_all() first
    ├── ClosedError                           used after close, or in a forked child
    ├── ConfigurationError                    wrong URL, password or database, missing driver, schema too new
    ├── ConflictError                         version, compare-and-set, status step, same id with other content
    └── BackendError                          .store .backend .operation .retryable .ambiguous
        ├── BackendUnavailableError           refused, dropped, shutting down, read-only, loading
        ├── BackendTimeoutError               no answer within the deadline
        └── OverloadedError                   a queue, a pool, memory or a disk is full

Messages never quote a user's data or the password of a URL; the driver's exception is chained as the cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BackendError",
    "BackendTimeoutError",
    "BackendUnavailableError",
    "ClosedError",
    "ConfigurationError",
    "ConflictError",
    "InvalidArgumentError",
    "InvalidValueError",
    "MultiDBError",
    "NotInitializedError",
    "OverloadedError",
]


class MultiDBError(Exception):
    """The root: `except MultiDBError` catches everything multidb raises on purpose."""


class InvalidArgumentError(MultiDBError, ValueError):
    """An argument is outside what the function accepts. Nothing was sent."""


class InvalidValueError(InvalidArgumentError):
    """
    A value, or something inside it, that not every backend can keep. Nothing was sent.

    *path* names the place (`context.order.items[2]`), *reason* what is wrong and what to do.
    """

    def __init__(self, path: str, reason: str) -> None:
        """Say that the value at *path* is refused for *reason*."""
        super().__init__(path, reason)
        # Its keys may hold a lone surrogate, which no log could write.
        self.path = path.encode(errors="backslashreplace").decode()
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class NotInitializedError(MultiDBError):
    """A module function was called while no MultiDB is current."""


class ClosedError(MultiDBError):
    """A MultiDB was used after its close, before its open, or in a process forked after it opened."""


class ConfigurationError(MultiDBError):
    """Only a change of settings helps: a wrong URL, password or database, a missing driver, a newer schema."""


class ConflictError(MultiDBError):
    """
    The stored data is not what the call requires; nothing was changed by this call.

    Of a call for many, *conflicts* names those in conflict (ids of events, usernames); the others were done.
    """

    def __init__(self, message: str, *, conflicts: Iterable[str] = ()) -> None:
        """Say what is in the way without quoting data."""
        super().__init__(message)
        self.conflicts = tuple(conflicts)


class BackendError(MultiDBError):
    """
    A backend could not do what was asked.

    *retryable*: the same call may succeed later. *ambiguous*: a write may have been applied although it failed.
    *condition*: `read_only` or `full` where a server that answers says so of itself, else empty.
    *store*, *backend* and *operation* are filled in by the route.
    """

    retryable = False
    condition = ""

    def __init__(self, message: str, *, ambiguous: bool = False) -> None:
        """Describe the failure without quoting data."""
        super().__init__(message)
        self.ambiguous = ambiguous
        self.store = ""
        self.backend = ""
        self.operation = ""

    def __str__(self) -> str:
        where = f"{self.store}.{self.operation} on {self.backend}: " if self.operation else ""
        return where + super().__str__()


class BackendUnavailableError(BackendError):
    """The server refused, dropped the connection, is starting, stopping or read-only."""

    retryable = True


class BackendTimeoutError(BackendError):
    """No answer arrived within the deadline; a write may have been applied."""

    retryable = True


class OverloadedError(BackendError):
    """A queue, a connection pool, the server's memory or a disk is full."""

    retryable = True

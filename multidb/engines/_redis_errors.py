"""What redis-py raises, told as errors of multidb: by type, and by the code that heads a server's reply."""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    ClusterError,
    ConnectionError,  # noqa: A004 -- redis-py's name
    InvalidResponse,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TimeoutError,  # noqa: A004 -- redis-py's name
    TryAgainError,
)

from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ConfigurationError,
    MultiDBError,
    OverloadedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

DRIVER_ERRORS: Final = (RedisError, RedisClusterException, OSError)
"""Everything that redis-py lets out."""

_LOGIN: Final = (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    NoPermissionError,
)
# LOADING, READONLY, MOVED, ASK, TRYAGAIN, CLUSTERDOWN, MASTERDOWN, endless redirection: nothing was done.
_ELSEWHERE: Final = (
    AskError,
    BusyLoadingError,
    ClusterError,
    MasterNotFoundError,
    ReadOnlyError,
    TryAgainError,
)
# Codes for which redis-py has no classes; with each the server says that it will not write now.
_NOT_NOW: Final = frozenset({"BUSY", "MISCONF", "NOREPLICAS", "UNKILLABLE"})
_REFUSED_LOGIN: Final = (
    "Redis refused the login, or what its user may do: see the user and password in the URL"
)


class UnsentError(ConnectionError):
    """There is no connection, so nothing of the command was sent. The cause says why."""


@contextmanager
def translated(*, writes: bool) -> Iterator[None]:
    """Turn what redis-py raises in the block into errors of multidb; *writes*: the block may change data."""
    try:
        yield
    except DRIVER_ERRORS as exc:
        raise translate(exc, writes=writes) from exc


def translate(exc: BaseException, *, writes: bool) -> MultiDBError:
    """Return the error of multidb for *exc*, which redis-py raised."""
    if isinstance(exc, UnsentError | RedisClusterException):
        return _no_connection(exc)
    if _is_answer(exc):
        return _answer(exc)
    if isinstance(exc, TimeoutError):
        return BackendTimeoutError("no answer from the server", ambiguous=writes)
    return BackendUnavailableError("the connection was lost", ambiguous=writes)


def is_dropped(exc: BaseException) -> bool:
    """Whether the connection broke after the command may have been sent."""
    return isinstance(exc, ConnectionError) and not isinstance(exc, UnsentError) and not _is_answer(exc)


def code_of(exc: BaseException) -> str:
    """Return the code at the head of a server's error, such as `WRONGTYPE`; "" where there is none."""
    code: str = getattr(exc, "status_code", None) or str(exc).partition(" ")[0]
    return code if code.isalpha() and code.isupper() else ""


def _is_answer(exc: BaseException) -> bool:
    """Whether a server, or our own pool, said this in the place of carrying a command out."""
    if not isinstance(exc, ConnectionError):
        return not isinstance(exc, TimeoutError | InvalidResponse | OSError | RedisClusterException)
    if isinstance(exc, (*_LOGIN, BusyLoadingError, MasterNotFoundError, MaxConnectionsError)):
        return True
    # Too many clients has a code. For READONLY from what Sentinels call the master, redis-py raises its own.
    return exc.status_code is not None or isinstance(exc.__context__, ReadOnlyError)


def _answer(exc: BaseException) -> MultiDBError:
    code = code_of(exc)
    if isinstance(exc, _LOGIN):
        return ConfigurationError(_REFUSED_LOGIN)
    if isinstance(exc, OutOfMemoryError):
        return OverloadedError("the server's memory is full")
    if isinstance(exc, _ELSEWHERE) or isinstance(exc.__context__, ReadOnlyError) or code in _NOT_NOW:
        return BackendUnavailableError(f"the server does not serve this now ({code or type(exc).__name__})")
    if isinstance(exc, ConnectionError):
        return OverloadedError("the server has too many clients, or our pool too few connections")
    return BackendError(f"the server refused the command ({code or type(exc).__name__})")


def _no_connection(exc: BaseException) -> MultiDBError:
    """Return the error for a connection that could not be made, or for a cluster that could not be found."""
    cause = exc.__cause__
    if isinstance(exc, UnsentError | RedisClusterException) and cause is not None:
        if isinstance(cause, RedisClusterException):
            return ConfigurationError(
                "the server is not part of a cluster: write redis:// for redis+cluster://"
            )
        return _no_connection(cause)
    if _is_answer(exc):
        error = _answer(exc)
        if type(error) is not BackendError:
            return error
        # Refused while connecting: SELECT of a database, or the server's protected mode.
        return ConfigurationError(
            f"Redis refused the connection ({code_of(exc)}): see the database in the URL"
        )
    if _is_tls_setup(exc.__context__) or _is_tls_setup(cause):
        return ConfigurationError(
            "TLS with Redis failed: see its certificate, and the ssl_ options of the URL"
        )
    return BackendUnavailableError("the server, or the whole of the cluster, cannot be reached")


def _is_tls_setup(exc: BaseException | None) -> bool:
    """Whether the two sides do not agree, as opposed to one side hanging up."""
    hung_up = ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError
    return isinstance(exc, ssl.SSLError) and not isinstance(exc, hung_up)

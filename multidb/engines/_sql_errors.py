"""What asyncpg, sqlite3 and SQLAlchemy raise, told as errors of multidb: by type or by code."""

from __future__ import annotations

import errno
import sqlite3
import ssl
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError, EmulatedDBAPIException

from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ConfigurationError,
    ConflictError,
    MultiDBError,
    OverloadedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a code means; *ambiguous*: a write that ends so may have been applied."""

    error: type[MultiDBError]
    text: str
    ambiguous: bool = False
    condition: str = ""

    def build(self, code: str, *, writes: bool) -> MultiDBError:
        msg = f"{self.text} ({code})"
        if issubclass(self.error, BackendError):
            error = self.error(msg, ambiguous=self.ambiguous and writes)
            error.condition = self.condition
            return error
        return self.error(msg)


_LOST: Final = _Rule(BackendUnavailableError, "the connection was lost", ambiguous=True)
_STOPPING: Final = _Rule(BackendUnavailableError, "the server is stopping", ambiguous=True)
_BROKEN: Final = _Rule(BackendUnavailableError, "the server failed", ambiguous=True)
_POOLER: Final = _Rule(ConfigurationError, "behind a connection pooler add pgbouncer=true to the URL")
_REFUSED_DATA: Final = _Rule(BackendError, "the database refused the data")
_NOT_NOW: Final = _Rule(OverloadedError, "too many calls change the same rows; nothing was changed")

# By SQLSTATE, else by its class, the first two characters. A refused statement is rolled back.
_POSTGRES: Final = {
    "08": _LOST,
    "22": _REFUSED_DATA,
    "23": _Rule(ConflictError, "the database refused the data"),
    "25006": _Rule(BackendUnavailableError, "the server is read-only", condition="read_only"),
    "25P03": _LOST,
    "26000": _POOLER,
    "28": _Rule(ConfigurationError, "PostgreSQL refused the user, the password or the host"),
    "3D": _Rule(ConfigurationError, "there is no such database"),
    "3F": _Rule(ConfigurationError, "there is no such schema"),
    "40": _NOT_NOW,
    "40003": _LOST,
    "42": _Rule(ConfigurationError, "PostgreSQL refused the statement: the tables are not those of multidb"),
    "42501": _Rule(
        ConfigurationError,
        "the database user lacks a privilege on the tables or, to create them, on the schema",
    ),
    "42P05": _POOLER,
    "53": _Rule(OverloadedError, "the server is out of memory or disk", condition="full"),
    # No condition of the server's: the connections that there are go on.
    "53300": _Rule(OverloadedError, "the server is out of connections"),
    "54": _REFUSED_DATA,
    "55P03": _Rule(BackendTimeoutError, "waited too long for a lock"),
    "57014": _Rule(BackendTimeoutError, "the statement took too long"),
    "57P01": _STOPPING,
    "57P02": _STOPPING,
    "57P03": _Rule(BackendUnavailableError, "the server is starting or stopping"),
    "57P04": _Rule(ConfigurationError, "the database was dropped"),
    "57P05": _LOST,
    "58": _BROKEN,
    "XX": _BROKEN,
}

# By primary result code.
_SQLITE: Final = {
    sqlite3.SQLITE_AUTH: _Rule(ConfigurationError, "SQLite may not do this"),
    sqlite3.SQLITE_BUSY: _Rule(OverloadedError, "another process kept the database locked"),
    sqlite3.SQLITE_CANTOPEN: _Rule(BackendUnavailableError, "the database file cannot be opened"),
    sqlite3.SQLITE_CONSTRAINT: _Rule(ConflictError, "the database refused the data"),
    sqlite3.SQLITE_CORRUPT: _Rule(BackendUnavailableError, "the database file is damaged"),
    sqlite3.SQLITE_FULL: _Rule(OverloadedError, "the disk is full"),
    sqlite3.SQLITE_INTERRUPT: _Rule(BackendTimeoutError, "the statement was interrupted"),
    sqlite3.SQLITE_IOERR: _Rule(BackendUnavailableError, "the disk failed", ambiguous=True),
    sqlite3.SQLITE_LOCKED: _Rule(OverloadedError, "another connection kept the table locked"),
    sqlite3.SQLITE_NOMEM: _Rule(OverloadedError, "out of memory"),
    sqlite3.SQLITE_NOTADB: _Rule(BackendUnavailableError, "the file is no SQLite database"),
    sqlite3.SQLITE_PERM: _Rule(ConfigurationError, "the database file may not be used"),
    sqlite3.SQLITE_READONLY: _Rule(BackendUnavailableError, "the database file is read-only"),
}

_FULL: Final = {errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}


@contextmanager
def translating(*, writes: bool = False) -> Iterator[None]:
    """Turn what drivers raise in the block into errors of multidb; *writes*: the block may change data."""
    try:
        yield
    except MultiDBError:
        raise
    except Exception as exc:
        error = translate(exc, writes=writes)
        if error is None:
            raise
        raise error from root_of(exc)


def translate(exc: BaseException, *, writes: bool) -> MultiDBError | None:
    """Return the error of multidb for *exc*; None when it comes from no driver."""
    root = root_of(exc)
    state = getattr(root, "sqlstate", None)
    if isinstance(state, str):
        return _by_sqlstate(state, writes=writes)
    if isinstance(root, sqlite3.Error):
        return _by_result_code(root, writes=writes)
    if isinstance(root, OSError):
        return _os_error(root, writes=writes)
    if isinstance(root, DBAPIError):
        return _LOST.build(type(root).__name__, writes=writes)
    return _asyncpg_error(root, writes=writes)


def root_of(exc: BaseException) -> BaseException:
    """Return what the driver raised, out of what SQLAlchemy made of it."""
    if isinstance(exc, DBAPIError) and exc.orig is not None:
        exc = exc.orig
    if isinstance(exc, EmulatedDBAPIException) and exc.__cause__ is not None:
        return exc.__cause__
    return exc


def _by_sqlstate(state: str, *, writes: bool) -> MultiDBError:
    rule = _POSTGRES.get(state) or _POSTGRES.get(state[:2])
    if rule is None:
        return BackendError(f"PostgreSQL refused the statement ({state})")
    return rule.build(state, writes=writes)


def _by_result_code(exc: sqlite3.Error, *, writes: bool) -> MultiDBError:
    # Missing where the module itself refused the call, as it does when the connection was closed meanwhile.
    code: int | None = getattr(exc, "sqlite_errorcode", None)
    if code is None:
        return _LOST.build(type(exc).__name__, writes=writes)
    rule = _SQLITE.get(code & 0xFF)
    if rule is None:
        return BackendError(f"SQLite refused the statement ({exc.sqlite_errorname})")
    return rule.build(exc.sqlite_errorname, writes=writes)


def _os_error(exc: OSError, *, writes: bool) -> MultiDBError:
    if isinstance(exc, TimeoutError):
        return BackendTimeoutError("no answer from the server", ambiguous=writes)
    if isinstance(exc, ssl.SSLError):
        return _tls_error(exc, writes=writes)
    if exc.errno in _FULL:
        return OverloadedError(f"out of files, memory or disk ({errno.errorcode[exc.errno]})")
    if isinstance(exc, PermissionError):
        return ConfigurationError("the socket or the file of the database may not be used")
    # asyncpg has no class for it, and an encrypted connection was demanded of a server that has none.
    if type(exc) is ConnectionError and str(exc).endswith("rejected SSL upgrade"):
        return ConfigurationError("the server has no TLS, which sslmode demands")
    sent = not isinstance(exc, ConnectionRefusedError)
    return BackendUnavailableError("the server cannot be reached", ambiguous=writes and sent)


def _tls_error(exc: ssl.SSLError, *, writes: bool) -> MultiDBError:
    if isinstance(exc, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
        return _LOST.build("TLS", writes=writes)
    return ConfigurationError(
        "TLS with the server failed: see its certificate and the ssl parameters of the URL"
    )


def _asyncpg_error(exc: BaseException, *, writes: bool) -> MultiDBError | None:
    asyncpg = sys.modules.get("asyncpg")
    if asyncpg is None:  # Not installed, or nothing has used it yet.
        return None
    errors = asyncpg.exceptions
    if isinstance(exc, errors.UnsupportedClientFeatureError | errors.UnsupportedServerFeatureError):
        return ConfigurationError("asyncpg cannot do what the server demands")
    if isinstance(exc, errors.ClientConfigurationError):
        return ConfigurationError("asyncpg refused the parameters of the URL")
    if not isinstance(exc, errors.InterfaceError | errors.InternalClientError):
        return None
    if isinstance(exc, ValueError):  # What asyncpg cannot encode, and so never sent.
        return BackendError("asyncpg refused the data")
    return _LOST.build(type(exc).__name__, writes=writes)

"""What PyMongo raises, as multidb's errors: by type and by the server's code, never by message."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from bson.errors import BSONError, InvalidDocument
from pymongo import errors as driver

from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    ConflictError,
    InvalidValueError,
    MultiDBError,
    OverloadedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DRIVER_ERRORS: Final = (driver.PyMongoError, BSONError, OSError)
"""Everything that a call into PyMongo or Motor raises."""

_Translation: TypeAlias = "Callable[[Any, bool], MultiDBError]"


def translate(
    exc: BaseException, *, writes: bool, refusals: Iterable[MultiDBError | None] = ()
) -> MultiDBError:
    """
    Return the multidb error for *exc*, one of `DRIVER_ERRORS`.

    *writes*: the call may have written, so that without an answer nobody knows whether it did. *refusals*:
    what `refusal()` says of the errors of servers, which ServerSelectionTimeoutError tells in words only.
    """
    if isinstance(exc, driver.ServerSelectionTimeoutError):
        # Definite, whatever its labels say: after an attempt that was sent PyMongo raises that one's error.
        return next(filter(None, refusals), None) or BackendUnavailableError("no usable MongoDB server")
    for types, translation in _BY_TYPE:
        if isinstance(exc, types):
            return translation(exc, writes)
    return refusal(exc) or BackendUnavailableError("the connection to MongoDB failed", ambiguous=writes)


def refusal(error: object) -> MultiDBError | None:
    """Return a ConfigurationError where *error*, or what caused it, will not go away by itself."""
    while isinstance(error, BaseException):
        if isinstance(error, ssl.SSLCertVerificationError):
            return ConfigurationError("the TLS certificate of the MongoDB server is not trusted")
        if isinstance(error, driver.OperationFailure) and error.code in _REFUSED:
            return _refused(error, False)
        error = error.__cause__
    return None


def _by_code(exc: driver.OperationFailure, writes: bool) -> MultiDBError:
    if isinstance(exc, driver.WriteConcernError) and exc.code not in _REFUSED:
        # The primary has it; what failed is waiting for the majority.
        return _unavailable(exc, True)
    for codes, translation in _BY_CODE:
        if exc.code in codes:
            return translation(exc, writes)
    if exc.has_error_label("SystemOverloadedError"):
        return _full(exc, writes)
    return BackendError(f"MongoDB refused the call (code {exc.code})", ambiguous=writes)


def _refused(exc: driver.OperationFailure, _: bool) -> MultiDBError:
    return ConfigurationError(f"MongoDB refused the login, its rights, or an option (code {exc.code})")


def _conflict(exc: driver.OperationFailure, _: bool) -> MultiDBError:
    return ConflictError(f"MongoDB found a document or a change in the way (code {exc.code})")


def _timeout(_: BaseException, writes: bool) -> MultiDBError:
    return BackendTimeoutError("MongoDB did not answer in time", ambiguous=writes)


def _unavailable(exc: driver.OperationFailure, writes: bool) -> MultiDBError:
    return BackendUnavailableError(f"MongoDB is not usable now (code {exc.code})", ambiguous=writes)


def _full(exc: driver.OperationFailure, _: bool) -> MultiDBError:
    return OverloadedError(f"MongoDB is full or overloaded (code {exc.code})")


def _own_pool_is_empty(_: BaseException, __: bool) -> MultiDBError:
    return OverloadedError("no connection to MongoDB became free in time")


def _too_large(_: BaseException, __: bool) -> MultiDBError:
    return InvalidValueError("profile", "larger than the 16 MiB that MongoDB keeps, its search text included")


def _unfit(exc: BaseException, _: bool) -> MultiDBError:
    return InvalidValueError("profile", f"refused by MongoDB (code {getattr(exc, 'code', 'none')})")


def _configuration(exc: BaseException, _: bool) -> MultiDBError:
    if _is_dns_failure(exc.__cause__):
        return BackendUnavailableError("the DNS did not answer for the hosts of MongoDB")
    return ConfigurationError("MONGODB_URI: its hosts, its options or the version of the server do not fit")


def _is_dns_failure(cause: BaseException | None) -> bool:
    """Return whether the DNS failed over a mongodb+srv URI, rather than say that it has no hosts."""
    if cause is None:
        return False
    from dns.exception import Timeout
    from dns.resolver import NoNameservers

    return isinstance(cause, Timeout | NoNameservers | OSError)


def _closed(_: BaseException, __: bool) -> MultiDBError:
    return ClosedError("the MongoDB client is closed")


# By https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml
_REFUSED: Final = frozenset(
    {
        11,  # UserNotFound
        13,  # Unauthorized
        18,  # AuthenticationFailed
        79,  # UnknownReplWriteConcern
        85,  # IndexOptionsConflict
        86,  # IndexKeySpecsConflict
        100,  # UnsatisfiableWriteConcern
        323,  # APIStrictError
        334,  # MechanismUnavailable
        391,  # ReauthenticationRequired
        8000,  # AtlasError: Atlas' answer to a wrong password
    }
)
_BY_CODE: Final[tuple[tuple[frozenset[int], _Translation], ...]] = (
    (_REFUSED, _refused),
    (
        frozenset(
            {
                112,  # WriteConflict
                251,  # NoSuchTransaction
                11000,  # DuplicateKey, as are the next two
                11001,
                12582,
            }
        ),
        _conflict,
    ),
    (
        frozenset(
            {
                50,  # MaxTimeMSExpired
                202,  # NetworkInterfaceExceededTimeLimit
                262,  # ExceededTimeLimit
            }
        ),
        _timeout,
    ),
    (
        frozenset(
            {
                6,  # HostUnreachable
                7,  # HostNotFound
                43,  # CursorNotFound: the server restarted between two batches
                64,  # WriteConcernTimeout
                89,  # NetworkTimeout
                91,  # ShutdownInProgress
                133,  # FailedToSatisfyReadPreference
                134,  # ReadConcernMajorityNotAvailableYet
                175,  # QueryPlanKilled
                189,  # PrimarySteppedDown
                237,  # CursorKilled
                276,  # IndexBuildAborted
                9001,  # SocketException
                10058,  # not primary, as servers before 3.2 said it
                10107,  # NotWritablePrimary
                11600,  # InterruptedAtShutdown
                11601,  # Interrupted
                11602,  # InterruptedDueToReplStateChange
                13435,  # NotPrimaryNoSecondaryOk
                13436,  # NotPrimaryOrSecondary
            }
        ),
        _unavailable,
    ),
    (
        frozenset(
            {
                146,  # ExceededMemoryLimit
                292,  # QueryExceededMemoryLimitNoDiskUseAllowed
                365,  # TemporarilyUnavailable: the cache of the storage engine is full
                462,  # IngressRequestRateLimitExceeded
                14031,  # OutOfDiskSpace
            }
        ),
        _full,
    ),
    (
        frozenset(
            {
                10334,  # BSONObjectTooLarge
                17280,  # KeyTooLong
                17419,  # a document after an update
                17420,  # a document to insert
            }
        ),
        _too_large,
    ),
    (
        frozenset(
            {
                2,  # BadValue
                9,  # FailedToParse
                14,  # TypeMismatch
                28,  # PathNotViable
                52,  # DollarPrefixedFieldName
                56,  # EmptyFieldName
                57,  # DottedFieldName
                121,  # DocumentValidationFailure
                171,  # CannotIndexParallelArrays
            }
        ),
        _unfit,
    ),
)
# Narrowest first.
_BY_TYPE: Final[tuple[tuple[type[BaseException], _Translation], ...]] = (
    (driver.OperationFailure, _by_code),
    (driver.WaitQueueTimeoutError, _own_pool_is_empty),
    (driver.NetworkTimeout, _timeout),
    (TimeoutError, _timeout),
    (driver.DocumentTooLarge, _too_large),
    (InvalidDocument, _unfit),
    (driver.ConfigurationError, _configuration),
    (driver.InvalidOperation, _closed),
)

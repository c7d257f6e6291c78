"""What the exceptions of PyMongo become."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest
from bson.errors import InvalidDocument
from pymongo import errors as driver

from multidb.engines._mongo_errors import refusal, translate
from multidb.engines.mongo import MongoEngine
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


def failure(
    code: int, kind: type[driver.OperationFailure] = driver.OperationFailure, **details: Any
) -> Exception:
    return kind("message", code, {"code": code, "errmsg": "message", **details})


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


OVERLOADED = {"errorLabels": ["SystemOverloadedError", "RetryableError"]}
ERRORS: list[tuple[Exception, type[MultiDBError], bool | None]] = [
    (driver.ServerSelectionTimeoutError("m"), BackendUnavailableError, False),
    (driver.AutoReconnect("m"), BackendUnavailableError, True),
    (driver.ConnectionFailure("m"), BackendUnavailableError, True),
    (driver.NotPrimaryError("m", {"code": 10107}), BackendUnavailableError, True),
    (driver.NetworkTimeout("m"), BackendTimeoutError, True),
    (driver.WaitQueueTimeoutError("m"), OverloadedError, False),
    (failure(50, driver.ExecutionTimeout), BackendTimeoutError, True),
    (failure(262), BackendTimeoutError, True),
    (failure(64, driver.WTimeoutError), BackendUnavailableError, True),
    (failure(91, driver.WriteConcernError), BackendUnavailableError, True),
    (failure(11602, driver.WriteConcernError), BackendUnavailableError, True),
    (failure(79, driver.WriteConcernError), ConfigurationError, None),
    (failure(100, driver.WriteConcernError), ConfigurationError, None),
    (failure(189), BackendUnavailableError, True),
    (failure(43, driver.CursorNotFound), BackendUnavailableError, True),
    (failure(18), ConfigurationError, None),
    (failure(13), ConfigurationError, None),
    (failure(8000), ConfigurationError, None),
    (failure(86), ConfigurationError, None),
    (failure(11000, driver.DuplicateKeyError), ConflictError, None),
    (failure(112), ConflictError, None),
    (failure(14031), OverloadedError, False),
    (failure(462), OverloadedError, False),
    (failure(999999, **OVERLOADED), OverloadedError, False),
    (failure(10334), InvalidValueError, None),
    (failure(17419), InvalidValueError, None),
    (failure(17420), InvalidValueError, None),
    (failure(17280), InvalidValueError, None),
    (driver.DocumentTooLarge("m"), InvalidValueError, None),
    (InvalidDocument("m"), InvalidValueError, None),
    (failure(121), InvalidValueError, None),
    (failure(171), InvalidValueError, None),
    (failure(999999), BackendError, True),
    (driver.OperationFailure("m"), BackendError, True),
    (driver.ConfigurationError("m"), ConfigurationError, None),
    (caused(driver.ConfigurationError("m"), OSError()), BackendUnavailableError, False),
    (driver.InvalidURI("m"), ConfigurationError, None),
    (driver.InvalidOperation("m"), ClosedError, None),
    (driver.ProtocolError("m"), BackendUnavailableError, True),
    (driver.PyMongoError("m"), BackendUnavailableError, True),
    (TimeoutError("m"), BackendTimeoutError, True),
    (ConnectionRefusedError("m"), BackendUnavailableError, True),
    (socket.gaierror("m"), BackendUnavailableError, True),
    (caused(driver.AutoReconnect("m"), ssl.SSLCertVerificationError()), ConfigurationError, None),
]


class TestTranslation:
    """Every exception of the driver has its place."""

    @pytest.mark.parametrize(("error", "kind", "ambiguous"), ERRORS, ids=lambda value: repr(value)[:60])
    def test_error(self, error: Exception, kind: type[MultiDBError], ambiguous: bool | None) -> None:
        """The class says what to do; a write that may have been applied says so, a read never does."""
        writing, reading = translate(error, writes=True), translate(error, writes=False)

        assert (type(writing), getattr(writing, "ambiguous", None)) == (kind, ambiguous)
        unconfirmed = isinstance(error, driver.WriteConcernError)
        assert getattr(reading, "ambiguous", None) == (ambiguous and unconfirmed)
        assert "message" not in str(writing)

    def test_why_there_is_no_server(self) -> None:
        """A refused login of a server is found, a dropped connection is not taken for one."""
        error = driver.ServerSelectionTimeoutError("m")
        dropped = [refusal(None), refusal(driver.AutoReconnect("m"))]

        assert isinstance(translate(error, writes=True, refusals=dropped), BackendUnavailableError)
        assert isinstance(
            translate(error, writes=True, refusals=[*dropped, refusal(failure(18))]), ConfigurationError
        )

    def test_cause(self) -> None:
        """The driver's exception is the cause."""
        engine = MongoEngine("mongodb://localhost")
        error = driver.NetworkTimeout("m")

        with pytest.raises(BackendTimeoutError) as caught, engine.translated():
            raise error
        assert caught.value.__cause__ is error

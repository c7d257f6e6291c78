"""
Three async stores for bots, chat assistants and agents: event logs, profiles, state.

    import multidb
    from multidb import logs, profiles, state

    await multidb.init_all()
    await logs.log_event("user123", "dm_received", "Mesaj alındı")
    await multidb.close_all()
"""

from multidb import errors, logs, profiles, state
from multidb._core.current import current, using
from multidb._multidb import MultiDB, close_all, init_all, lifespan
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    ConflictError,
    InvalidArgumentError,
    InvalidValueError,
    MultiDBError,
    NotInitializedError,
    OverloadedError,
)
from multidb.instrumentation import Health, Status
from multidb.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BackendTimeoutError",
    "BackendUnavailableError",
    "ClosedError",
    "ConfigurationError",
    "ConflictError",
    "Health",
    "InvalidArgumentError",
    "InvalidValueError",
    "MultiDB",
    "MultiDBError",
    "NotInitializedError",
    "OverloadedError",
    "Settings",
    "Status",
    "__version__",
    "close_all",
    "current",
    "errors",
    "init_all",
    "lifespan",
    "logs",
    "profiles",
    "state",
    "using",
]

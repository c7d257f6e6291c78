"""What a hook is told of every backend call, and of how the stores fare."""

from multidb.instrumentation._health import Health, ReplayDetails, SetAsideDetails, Status, TransitionDetails
from multidb.instrumentation._hooks import (
    Hook,
    LoggingHook,
    OperationDetails,
    Outcome,
    SupportsReplay,
    SupportsSetAside,
    SupportsTransition,
)

__all__ = [
    "Health",
    "Hook",
    "LoggingHook",
    "OperationDetails",
    "Outcome",
    "ReplayDetails",
    "SetAsideDetails",
    "Status",
    "SupportsReplay",
    "SupportsSetAside",
    "SupportsTransition",
    "TransitionDetails",
]

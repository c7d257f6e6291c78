"""What a hook is told of every backend call."""

from multidb.instrumentation._hooks import Hook, LoggingHook, OperationDetails, Outcome

__all__ = ["Hook", "LoggingHook", "OperationDetails", "Outcome"]

"""Importing a driver, or saying which extra brings it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from multidb.errors import ConfigurationError

if TYPE_CHECKING:
    from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import *module*. Raises ConfigurationError, which names the *extra* to install, where it is missing."""
    try:
        return import_module(module)
    except ModuleNotFoundError as exc:
        package = module.partition(".")[0]
        if exc.name is None or exc.name.partition(".")[0] != package:
            raise
        msg = f'{package} is not installed: pip install "multidb[{extra}]"'
        raise ConfigurationError(msg) from exc

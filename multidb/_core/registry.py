"""Which URL scheme is served by what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import unquote

from multidb.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., object]")


class Registry(Generic[F]):
    """The factories of one setting, by URL scheme. Errors name the setting, never the URL: it may hold a password."""

    def __init__(self, setting: str) -> None:
        """Start without factories; *setting* is what errors call the URL."""
        self._setting = setting
        self._factories: dict[str, F] = {}

    def add(self, *schemes: str) -> Callable[[F], F]:
        """Return a decorator that makes a factory serve *schemes*."""

        def register(factory: F) -> F:
            self._factories.update(dict.fromkeys(schemes, factory))
            return factory

        return register

    def find(self, url: str) -> F:
        """Return the factory for *url*. Raises ConfigurationError for a scheme that nothing serves."""
        scheme, found, _ = url.partition("://")
        factory = self._factories.get(scheme.lower()) if found else None
        if factory is None:
            msg = f"{self._setting}: its scheme must be one of {', '.join(sorted(self._factories))} (as in memory://)"
            raise ConfigurationError(msg)
        return factory


def folder_of(url: str, setting: str) -> str:
    """Return the folder that `file://./data`, `file:///srv/data` or `file://data` names. Raises ConfigurationError."""
    path = unquote(url.partition("://")[2])
    if not path or "\0" in path:
        msg = f"{setting}: file:// needs a folder, such as file://./data/profiles"
        raise ConfigurationError(msg)
    return path

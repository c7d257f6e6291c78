"""Reading a MongoDB URI strictly: PyMongo ignores, with a warning, what it does not know."""

from __future__ import annotations

import re
import warnings
from typing import Any, Final, NoReturn

from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri, split_options

from multidb.errors import ConfigurationError

_SCHEME: Final = "mongodb://"
_SRV_SCHEME: Final = "mongodb+srv://"
# Options that only a mongodb+srv URI may have; they say how to look the hosts up.
_SRV_OPTIONS: Final = frozenset({"srvservicename", "srvmaxhosts", "srvallowedhostssuffix"})
# What PyMongo raises for a wrong value: KeyError for an unknown name, OSError for an unreadable certificate.
_REFUSALS: Final = (PyMongoError, ValueError, TypeError, KeyError, OSError)
_OPTION_NAME: Final = re.compile(r"[A-Za-z_]{1,64}")


def read_uri(uri: str) -> dict[str, Any]:
    """
    Return what PyMongo's `parse_uri()` makes of *uri*, without looking up the hosts of a mongodb+srv URI.

    Raises ConfigurationError, also for an option that is unknown or has a wrong value. It names the option
    and never quotes the URI, nor is PyMongo's exception chained, which may quote it: it may hold a password.
    """
    address, _, query = uri.partition("?")
    options = query.split("&" if "&" in query else ";") if query else []
    for option in options:
        _check_option(option, nameable="@" not in query)
    if address.startswith(_SRV_SCHEME):
        address = _SCHEME + _srv_host(address.removeprefix(_SRV_SCHEME))
        options = [option for option in options if _name(option).lower() not in _SRV_OPTIONS]
    parsed = _parse(f"{address}?{'&'.join(options)}" if options else address)
    if parsed is None:
        _refuse("not a MongoDB URI; user name and password must be percent-encoded (urllib.parse.quote_plus)")
    return parsed


def _parse(uri: str) -> dict[str, Any] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Every option has been checked by itself.
            return parse_uri(uri)
    except _REFUSALS:
        return None


def _check_option(option: str, *, nameable: bool) -> None:
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            split_options(option, validate=True, warn=False)
    except _REFUSALS:
        pass
    else:
        if not any(issubclass(warning.category, UserWarning) for warning in warned):
            return
    name = _name(option)
    # With a stray @ the "options" may be the rest of a password.
    shown = f"option {name}" if nameable and _OPTION_NAME.fullmatch(name) else "an option"
    _refuse(f"{shown} is unknown to PyMongo, or its value is")


def _srv_host(address: str) -> str:
    host = address.partition("/")[0].rpartition("@")[2]
    if "," in host or ":" in host:
        _refuse("a mongodb+srv URI has one host, and no port")
    return address


def _name(option: str) -> str:
    return option.partition("=")[0]


def _refuse(reason: str) -> NoReturn:
    msg = f"MONGODB_URI: {reason}"
    raise ConfigurationError(msg)

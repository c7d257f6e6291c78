"""
Conformance suites: the promises of the backends and of the stores as tests that any backend can be put through.

Importing one imports pytest, pytest-asyncio and hypothesis. The suites work in pytest-asyncio's strict mode
and its auto mode. Every test runs in an event loop of its own, as a fixture of function scope does; a backend
that tests share needs the option `asyncio_default_test_loop_scope` to be the scope of its fixture.
"""

# ruff: noqa: E402 -- the suites register for assert rewriting before they are imported
from __future__ import annotations

from pkgutil import iter_modules

import pytest

# Else a failed assert would say only that it failed, not what was expected and what came.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in iter_modules(__path__)))

from multidb.testing.conformance.logs import LogBackendSuite
from multidb.testing.conformance.profiles import ProfileBackendSuite
from multidb.testing.conformance.state import StateBackendSuite
from multidb.testing.conformance.stores_logs import LogStoreSuite
from multidb.testing.conformance.stores_profiles import ProfileStoreSuite
from multidb.testing.conformance.stores_state import StateStoreSuite

__all__ = [
    "LogBackendSuite",
    "LogStoreSuite",
    "ProfileBackendSuite",
    "ProfileStoreSuite",
    "StateBackendSuite",
    "StateStoreSuite",
]

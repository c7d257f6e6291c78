"""What all tests share: nothing of the developer's environment reaches them."""

import os

import pytest

_OURS = ("POSTGRES_", "DATABASE_", "MONGODB_", "REDIS_", "MULTIDB_")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come from the test alone."""
    for name in os.environ:
        if name.startswith(_OURS) and not name.startswith("MULTIDB_TEST_"):
            monkeypatch.delenv(name)

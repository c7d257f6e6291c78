"""The databases that the tests of SQL share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from multidb.testing import servers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NO_POSTGRES = servers.own_skip_reason("postgres")


@pytest.fixture(scope="module")
def server() -> Iterator[servers.PostgresServer]:
    with servers.PostgresServer(fsync=False) as server:
        yield server


@pytest.fixture
def postgres_url(server: servers.PostgresServer) -> Iterator[str]:
    with server.database() as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/multidb.db"


@pytest.fixture(
    params=[
        pytest.param(
            "postgres_url", marks=pytest.mark.skipif(_NO_POSTGRES is not None, reason=str(_NO_POSTGRES))
        ),
        "sqlite_url",
    ]
)
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)

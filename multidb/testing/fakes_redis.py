"""Redis without a server: fakeredis, in this process, with what multidb asks of a server added to it."""

from __future__ import annotations

from typing import Any

from multidb.engines._drivers import require

require("fakeredis", "fakes")
require("lupa", "fakes")

from fakeredis import FakeAsyncRedis, FakeServer  # noqa: E402 -- after the lines that say how to install it

_VERSION = (7,)
_SCRIPT_HEAD = b"#!lua\n"


class _FakeRedis(FakeAsyncRedis):
    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] == "EVAL":  # fakeredis takes the first line of a script that has one for Lua.
            args = ("EVAL", args[1].removeprefix(_SCRIPT_HEAD), *args[2:])
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call] # redis-py's


def fakeredis_client(server: FakeServer | None = None) -> Any:
    """
    Return a client that an engine takes: `RedisEngine("redis://fake", client=fakeredis_client())`.

    Clients of one *server* share its data; without one, a client has its own. Nothing has to be closed.
    """
    return _FakeRedis(server=server or FakeServer(version=_VERSION), version=_VERSION)


__all__ = ["FakeServer", "fakeredis_client"]

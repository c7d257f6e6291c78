"""
The drivers' own code on fakes of the servers: fakeredis and mongomock-motor, wrapped (extra `fakes`).

For tests that should go through the real backends without a server. `MultiDB.in_memory()` is faster and has no gaps;
those of these fakes are listed with each function. Both pass the shipped suites but for the gaps.

    MultiDB(settings, profiles=fakes.mongo_profile_backend(), state=fakes.redis_state_backend())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multidb.profiles.protocol import ProfileBackend
    from multidb.state.protocol import StateBackend


def mongo_profile_backend() -> ProfileBackend:
    """
    Return the MongoDB backend on mongomock-motor, with data of its own, for `MultiDB(profiles=…)`.

    What it lacks: MongoDB's limit of 16 MiB, waiting, failing.
    """
    from multidb.engines.mongo import MongoEngine
    from multidb.profiles.backends.mongo import MongoProfileBackend
    from multidb.testing.fakes_mongo import mongomock_client

    engine = MongoEngine("mongodb://fake", None, client=mongomock_client())

    class FakeMongoProfileBackend(MongoProfileBackend):
        """Opens and closes its engine itself, as no MultiDB knows of it."""

        async def open(self) -> None:
            await engine.open()
            await super().open()

        async def close(self) -> None:
            await super().close()
            await engine.close()

    return FakeMongoProfileBackend(engine)


def redis_state_backend() -> StateBackend:
    """
    Return the Redis backend on fakeredis, with data of its own, for `MultiDB(state=…)`.

    What it lacks: memory limits, eviction, waiting, failing; its clock is the machine's and cannot be moved.
    """
    from multidb.engines.redis import RedisEngine
    from multidb.state.backends.redis import RedisStateBackend
    from multidb.testing.fakes_redis import fakeredis_client

    engine = RedisEngine("redis://fake", client=fakeredis_client(), timeout_seconds=10)

    class FakeRedisStateBackend(RedisStateBackend):
        """Opens and closes its engine itself, as no MultiDB knows of it."""

        async def open(self) -> None:
            await engine.open()
            await super().open()

        async def close(self) -> None:
            await super().close()
            await engine.close()

    return FakeRedisStateBackend(engine)


__all__ = ["mongo_profile_backend", "redis_state_backend"]

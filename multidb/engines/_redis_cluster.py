"""The lanes to the nodes of a cluster, one to each; which node is whose is redis-py's knowledge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from multidb.engines._redis_commands import key_of
from multidb.engines._redis_errors import translated
from multidb.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import RedisCluster
    from redis.asyncio.cluster import ClusterNode

    from multidb.engines._redis_commands import Command
    from multidb.engines._redis_connections import OwnConnection
    from multidb.engines._redis_lane import Lane


class _NewLane(Protocol):
    def __call__(
        self, make_connection: Callable[[], OwnConnection], on_failure: Callable[[], object]
    ) -> Lane: ...


class ClusterLanes:
    """Finds the lane to the node that has a key, as *client* sees the cluster."""

    def __init__(self, client: RedisCluster, new_lane: _NewLane) -> None:
        """Make lanes when they are needed."""
        self.lanes: dict[str, Lane] = {}
        self._client = client
        self._new_lane = new_lane

    def find(self, command: Command) -> Lane | None:
        """Return the lane for *command*; None when the client has to look at the cluster anew."""
        client = self._client
        if client._initialize:  # noqa: SLF001 -- redis-py offers no other way to ask
            return None
        nodes = client.nodes_manager.slots_cache.get(client.keyslot(key_of(command)))
        if not nodes:
            return None
        return self.lanes.get(nodes[0].name) or self._lane_to(nodes[0])

    async def found(self, command: Command) -> Lane:
        """Return the lane for *command*, after a look at the cluster where that is needed."""
        lane = self.find(command)
        if lane is None:
            with translated(writes=False):
                await self._client.initialize()
            await self._drop_strangers()
            lane = self.find(command)
        if lane is None:
            raise BackendUnavailableError("no node of the cluster serves this now")
        return lane

    def masters(self) -> list[Lane]:
        """Return the lanes to all nodes that have keys."""
        nodes = self._client.get_primaries()
        return [self.lanes.get(node.name) or self._lane_to(node) for node in nodes]

    def _lane_to(self, node: ClusterNode) -> Lane:
        options: dict[str, Any] = {**node.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
        # Those of our own: `make_client()` saw to that.
        make = cast("Callable[..., OwnConnection]", node.connection_class)
        lane = self._new_lane(lambda: make(**options), self._look_anew)
        self.lanes[node.name] = lane
        return lane

    def _look_anew(self) -> None:
        """A node failed: another one may have its slots by now."""
        self._client._initialize = True  # noqa: SLF001 -- as redis-py does for its own connections

    async def _drop_strangers(self) -> None:
        for name in set(self.lanes) - set(self._client.nodes_manager.nodes_cache):
            lane = self.lanes.get(name)  # Another task may be at the same.
            if lane is not None and not lane.is_busy:
                del self.lanes[name]
                lane.wear()  # Closing it is no failure of a node, after which to look at the cluster anew.
                await lane.close(1)

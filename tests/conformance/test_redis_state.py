"""The state suite on Redis: on one Valkey server, a cluster of three, the master of a Sentinel, and fakeredis."""

from __future__ import annotations

import asyncio
import math
import socket
import subprocess
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from multidb._core.values import dump
from multidb.engines.redis import RedisEngine
from multidb.errors import BackendError, BackendUnavailableError, ConflictError
from multidb.state.backends.redis import RedisStateBackend
from multidb.state.protocol import KEEP, Claim, Entry, Increment, Key, Merge, Push
from multidb.testing import servers
from multidb.testing.conformance._data import AWKWARD_IDS, AWKWARD_KEYS, free_json, round_trips, texts, unique
from multidb.testing.conformance.state import StateBackendSuite
from multidb.testing.fakes_redis import FakeServer, fakeredis_client
from multidb.testing.servers._binaries import program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from hypothesis.strategies import SearchStrategy

    from multidb.state.protocol import StateBackend

pytestmark = pytest.mark.timeout(60)

needs_any_server = pytest.mark.skipif(
    servers.skip_reason("valkey") is not None, reason=str(servers.skip_reason("valkey"))
)
needs_own_server = pytest.mark.skipif(
    servers.own_skip_reason("valkey") is not None, reason=str(servers.own_skip_reason("valkey"))
)


class RedisSuite(StateBackendSuite):
    """The suite, on the engines that a fixture `new_engine` makes."""

    concurrent_instances = True

    @pytest_asyncio.fixture
    async def backend(self, new_engine: Callable[[], RedisEngine]) -> AsyncIterator[StateBackend]:
        async with AsyncExitStack() as self.opened:
            self.new_engine = new_engine
            yield await self.second_backend()

    async def second_backend(self) -> StateBackend:
        engine = self.new_engine()
        await engine.open()
        self.opened.push_async_callback(engine.close)
        return RedisStateBackend(engine)


@pytest.fixture(scope="module")
def valkey_url() -> Iterator[str]:
    with servers.valkey(fsync=False) as server, server.database() as url:
        yield url


@needs_any_server
class TestValkey(RedisSuite):
    @pytest.fixture
    def new_engine(self, valkey_url: str) -> Callable[[], RedisEngine]:
        return lambda: RedisEngine(valkey_url)


@needs_any_server
class TestPoolOfOne(RedisSuite):
    @pytest.fixture
    def new_engine(self, valkey_url: str) -> Callable[[], RedisEngine]:
        return lambda: RedisEngine(valkey_url, pool_max=1, timeout_seconds=10)


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    with servers.ValkeyCluster(fsync=False) as cluster:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)
        yield f"redis+cluster://{hosts}"


@needs_own_server
class TestCluster(RedisSuite):
    @pytest.fixture
    def new_engine(self, cluster_url: str) -> Callable[[], RedisEngine]:
        return lambda: RedisEngine(cluster_url)


@contextmanager
def sentinel_of(master_port: int, folder: Path) -> Iterator[int]:
    """Run one Sentinel that watches a master and what replicates it; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    conf = folder / "sentinel.conf"
    conf.write_text(
        f"bind 127.0.0.1\nport {port}\ndir {folder}\nsentinel monitor main 127.0.0.1 {master_port} 1\n"
        "sentinel down-after-milliseconds main 300\nsentinel failover-timeout main 1000\n"
    )
    with subprocess.Popen([program("valkey"), conf, "--sentinel"], stdout=subprocess.DEVNULL) as process:
        try:
            wait_for_pong(port)
            yield port
        finally:
            process.kill()


def wait_for_pong(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            if connection.recv(100).startswith(b"+PONG"):
                return
        time.sleep(0.02)
    pytest.fail("the Sentinel does not answer")


@pytest.fixture(scope="module")
def sentinel_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("sentinel")
    with servers.ValkeyServer(fsync=False) as master, sentinel_of(master.port, folder) as port:
        yield f"redis+sentinel://127.0.0.1:{port}/main"


@needs_own_server
class TestSentinel(RedisSuite):
    @pytest.fixture
    def new_engine(self, sentinel_url: str) -> Callable[[], RedisEngine]:
        return lambda: RedisEngine(sentinel_url)


class TestFakeRedis(RedisSuite):
    @pytest.fixture
    def new_engine(self) -> Callable[[], RedisEngine]:
        server = FakeServer(version=(7,))
        return lambda: RedisEngine("redis://fake", client=fakeredis_client(server), timeout_seconds=10)

    async def test_probe(self, new_engine: Callable[[], RedisEngine]) -> None:
        """The engine finds that the fake takes writes."""
        engine = new_engine()
        await engine.open()
        await engine.ping()
        await engine.close()


@needs_own_server
async def test_failover(tmp_path: Path) -> None:
    """When the Sentinel makes the replica the master, calls go there, and what was replicated is there."""
    key = Key("user", "k")
    with (
        servers.ValkeyServer(fsync=False, arguments=["--repl-diskless-sync-delay", "0"]) as master,
        servers.ValkeyServer(fsync=False, arguments=["--replicaof", f"127.0.0.1 {master.port}"]) as replica,
        sentinel_of(master.port, tmp_path) as port,
    ):
        async with engine_at(f"redis+sentinel://127.0.0.1:{port}/main", timeout_seconds=0.5) as engine:
            backend = RedisStateBackend(engine)
            await backend.set([Entry(key, b'"before"')])
            await until(lambda: replicated(engine))
            await until(lambda: seen_by(port, replica.port))
            master.kill()
            error = await failure(backend.set([Entry(key, b'"lost"')]))
            await until(lambda: works(backend))
            values = await backend.get([key])
        role = replica.command("INFO replication")

    assert type(error) is BackendUnavailableError
    assert [b'"before"'] == values
    assert "role:master" in role


async def replicated(engine: RedisEngine) -> bool:
    return bool(await engine.run(("WAIT", 1, 100), writes=False))


async def seen_by(sentinel_port: int, replica_port: int) -> bool:
    async with Redis(port=sentinel_port) as sentinel:
        replicas = await sentinel.sentinel_slaves("main")
    return any(each["port"] == replica_port and each["flags"] == "slave" for each in replicas)


async def works(backend: RedisStateBackend) -> bool:
    try:
        await backend.set([Entry(Key("other", "k"), b"1")])
    except BackendError:
        return False
    return True


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 20
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def failure(call: Awaitable[object]) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await call
    return caught.value


@pytest_asyncio.fixture
async def raw(valkey_url: str) -> AsyncIterator[Redis]:
    """What redis-cli would see, with nothing in it."""
    async with Redis.from_url(valkey_url) as client:
        await client.flushdb()
        yield client


@pytest_asyncio.fixture
async def backend(valkey_url: str) -> AsyncIterator[RedisStateBackend]:
    async with engine_at(valkey_url) as engine:
        yield RedisStateBackend(engine)


@needs_any_server
class TestKeys:
    """What stands on the server."""

    async def test_readable(self, raw: Redis, backend: RedisStateBackend) -> None:
        """redis-cli shows a value as JSON, under a key that says whose it is."""
        await backend.set(
            [Entry(Key("42", "conversation"), b'{"phase":"active"}'), Entry(Key(None, "motd"), b'"hi"')]
        )
        await backend.increment([Increment(Key("a:{b}", "n"), 7)])

        assert await raw.get("multidb:{u:42}:v:conversation") == b'{"phase":"active"}'
        assert await raw.get("multidb:{g}:v:motd") == b'"hi"'
        assert await raw.get("multidb:{u:a%3A%7Bb%7D}:n:n") == b"7"

    async def test_prefixes_are_apart(self, raw: Redis, backend: RedisStateBackend) -> None:
        other = RedisStateBackend(backend._engine, prefix="multidb:{u")
        key = Key("a", "k")
        await backend.set([Entry(key, b"1")])
        await other.set([Entry(key, b"2")])

        assert [b"1"] == await backend.get([key])
        assert await other.clear("a") == 1
        assert {"k": b"1"} == await backend.get_all("a")
        assert len(await raw.keys()) == 2

    async def test_index_does_not_grow(self, raw: Redis, backend: RedisStateBackend) -> None:
        """Values under ever new names that end do not pile up in the index, while one that stays keeps it alive."""
        await backend.set([Entry(Key("a", "stays"), b"1")])
        for batch in range(10):
            await backend.set([Entry(Key("a", f"{batch}-{i}"), b"1", 0.01) for i in range(100)])
            await asyncio.sleep(0.02)
        await backend.set([Entry(Key("a", "last"), b"1", 0.01)])

        assert await raw.zcard("multidb:{u:a}:i") == 2

    async def test_index_ends(self, raw: Redis, backend: RedisStateBackend) -> None:
        """When the last value of a user ends nothing of that user is left."""
        await backend.set([Entry(Key("a", str(i)), b"1", 0.05 + i / 100) for i in range(10)])
        await backend.set([Entry(Key("a", "long"), b"1", 600.0), Entry(Key("a", "ever"), b"1")])
        await backend.delete([Key("a", "long"), Key("a", "ever")])
        await asyncio.sleep(0.4)

        assert await raw.keys() == []

    async def test_index_moves_now_and_then(self, raw: Redis, backend: RedisStateBackend) -> None:
        """A value that is stored again and again moves in the index only where it would outlive its place there."""
        places = set()
        for _ in range(20):
            await backend.set([Entry(Key("a", "k"), b"1", 600.0)])
            places.add(await raw.zscore("multidb:{u:a}:i", "k"))
        await backend.set([Entry(Key("a", "k"), b"1", 700.0)])
        later = await raw.zscore("multidb:{u:a}:i", "k")
        await backend.set([Entry(Key("a", "k"), b"1", 10.0)])

        assert len(places) == 1
        assert later == pytest.approx(places.pop() + 100_000, abs=5_000)
        assert await raw.zscore("multidb:{u:a}:i", "k") == pytest.approx(
            await raw.pexpiretime("multidb:{u:a}:v:k") + 10_000, abs=5_000
        )
        assert await raw.pttl("multidb:{u:a}:i") <= 20_000

    async def test_index_agrees(self, raw: Redis, backend: RedisStateBackend) -> None:
        """After any calls the index names the values that there are, and ends a minute after the last at most."""
        random = Random(3)
        names = [str(i) for i in range(6)]
        for _ in range(300):
            key = Key("a", random.choice(names))
            span = random.choice([None, 60.0, 120.0, 600.0])
            kept = random.choice([KEEP, span])
            calls = {
                "set": lambda key, span, _: backend.set([Entry(key, b'{"a":1}', span)]),
                "merge": lambda key, _, kept: backend.merge([Merge(key, {"b": b"2"}, kept, 1000)]),
                "swap": lambda key, _, kept: backend.compare_and_set(key, b'{"a":1}', b"null", kept),
                "touch": lambda key, span, _: backend.touch(key, span),
                "delete": lambda key, *_: backend.delete([key]),
                "delete again": lambda key, *_: backend.delete([key]),
            }
            await calls[random.choice(list(calls))](key, span, kept)
            ends = {name: await raw.pexpiretime(f"multidb:{{u:a}}:v:{name}") for name in names}
            index = {
                name.decode(): end
                for name, end in await raw.zrange("multidb:{u:a}:i", 0, -1, withscores=True)
            }
            last = await raw.pexpiretime("multidb:{u:a}:i")

            assert {name for name, end in ends.items() if end != -2} == index.keys()
            for name, end in index.items():
                assert (end == math.inf) == (ends[name] == -1)
                assert ends[name] == -1 or ends[name] <= end <= ends[name] + 60_000
            assert last == (
                -2 if not index else -1 if max(index.values()) == math.inf else max(index.values())
            )

    async def test_index_agrees_when_many_set(self, raw: Redis, backend: RedisStateBackend) -> None:
        """Values of one user that are stored at the same time, in one call of the script, leave the same index."""
        random = Random(4)
        for _ in range(20):
            entries = [
                Entry(Key("a", str(random.randrange(8))), b"1", random.choice([None, 60.0, 120.0, 600.0]))
                for _ in range(30)
            ]
            await asyncio.gather(*(backend.set([entry]) for entry in entries))
            spans = {entry.key.name: entry.expire_seconds for entry in entries}
            left = {name: await raw.pttl(f"multidb:{{u:a}}:v:{name}") for name in spans}
            ends = [await raw.pexpiretime(f"multidb:{{u:a}}:v:{n}") for n in await backend.get_all("a")]

            assert all(
                left[name] == -1 if span is None else span * 1000 - 5000 < left[name] <= span * 1000
                for name, span in spans.items()
            )
            last = await raw.pexpiretime("multidb:{u:a}:i")
            assert last == -1 if -1 in ends else max(ends) <= last <= max(ends) + 60_000

    async def test_removed_by_hand(self, raw: Redis, backend: RedisStateBackend) -> None:
        """A value that somebody deleted with redis-cli is neither returned nor counted."""
        await backend.set([Entry(Key("a", name), b"1") for name in ("x", "y")])
        await raw.delete("multidb:{u:a}:v:x")

        assert {"y": b"1"} == await backend.get_all("a")
        assert [False] == await backend.delete([Key("a", "x")])
        await backend.set([Entry(Key("a", "x"), b"1")])
        await raw.delete("multidb:{u:a}:v:x")
        assert await backend.clear("a") == 1
        assert await raw.keys() == []

    async def test_index_removed_by_hand(self, raw: Redis, backend: RedisStateBackend) -> None:
        """A value whose index was lost enters it again with the next write."""
        key = Key("a", "x")
        await backend.set([Entry(key, b"{}", 60.0)])
        await raw.delete("multidb:{u:a}:i")

        assert [b"{}"] == await backend.get([key])
        await backend.merge([Merge(key, {}, KEEP, 100)])
        assert {"x": b"{}"} == await backend.get_all("a")
        assert 59_000 < await raw.pttl("multidb:{u:a}:i") <= 120_000

    async def test_other_things_by_hand(self, raw: Redis, backend: RedisStateBackend) -> None:
        """What is not of the kind, or no canonical JSON, is a conflict, and stays as it is."""
        for number, broken in enumerate(
            [b"[]", b'{"a":1', b'{"a"}', b'{"a":}', b' {"a":1}', b'{"a": {}', b"{a:1}", b""]
        ):
            await raw.set(f"multidb:{{u:a}}:v:{number}", broken)
            (result,) = await backend.merge([Merge(Key("a", str(number)), {"b": b"2"}, KEEP, 100)])

            assert isinstance(result, ConflictError)
            assert await raw.get(f"multidb:{{u:a}}:v:{number}") == broken
        await raw.lpush("multidb:{u:a}:v:l", "x")
        await raw.lpush("multidb:{u:a}:n:l", "x")
        await raw.set("multidb:{u:a}:n:s", "text")
        (merged,) = await backend.merge([Merge(Key("a", "l"), {"b": b"2"}, KEEP, 100)])
        counted = await backend.increment([Increment(Key("a", name), 1) for name in "ls"])

        assert [ConflictError] * 3 == [type(one) for one in (merged, *counted)]

    async def test_cost(self, raw: Redis, backend: RedisStateBackend) -> None:
        """Going through one user's values costs the same whatever others there are."""
        await backend.set([Entry(Key(str(user), name), b"1") for user in range(500) for name in "ab"])
        await raw.config_resetstat()
        values = await backend.get_all("7")
        cleared = await backend.clear("7")
        calls = {name: each["calls"] for name, each in (await raw.info("commandstats")).items()}

        assert {"a": b"1", "b": b"1"} == values
        assert cleared == 2
        assert not {"cmdstat_keys", "cmdstat_scan"} & set(calls)
        assert sum(calls.values()) < 15

    async def test_many_values(self, raw: Redis, backend: RedisStateBackend) -> None:
        """A user with more values than a Lua call takes arguments gets all of them back."""
        names = [str(i) for i in range(9001)]
        await backend.set([Entry(Key("a", name), b"1") for name in names])

        assert dict.fromkeys(names, b"1") == await backend.get_all("a")
        assert await backend.clear("a") == len(names)
        assert await raw.keys() == []

    async def test_last_millisecond(self, raw: Redis, backend: RedisStateBackend) -> None:
        """A cooldown is running or it is not: what refuses a claim has time left."""
        key = Key("a", "k")
        await backend.set_cooldown(Claim(key, 0.05))
        while await raw.exists("multidb:{u:a}:c:k"):
            left = await backend.cooldown(key)

            assert left is None or 0 < left <= 0.05
        assert await backend.cooldown(key) is None

    async def test_scripts_are_forgotten(self, raw: Redis, backend: RedisStateBackend) -> None:
        """Every verb works on a server that has just forgotten all scripts, alone and in a batch."""
        key = Key("a", "k")
        verbs = [
            lambda: backend.set([Entry(key, b"{}")]),
            lambda: backend.set([Entry(key, b"{}")] * 2),
            lambda: backend.merge([Merge(key, {"a": b"1"}, KEEP, 100)]),
            lambda: backend.merge([Merge(key, {"a": b"1"}, KEEP, 100)] * 2),
            lambda: backend.compare_and_set(key, b"1", b"2", None),
            lambda: backend.touch(key, None),
            lambda: backend.get_all("a"),
            lambda: backend.increment([Increment(key, 1, 60.0)]),
            lambda: backend.increment([Increment(key, 1, 60.0)] * 2),
            lambda: backend.push([Push(key, b"1", 1)]),
            lambda: backend.push([Push(key, b"1", 1)] * 2),
            lambda: backend.delete([key]),
            lambda: backend.clear("a"),
        ]
        for verb in verbs:
            await raw.script_flush()
            await verb()

        assert await backend.counter(key) == 3


def tricky() -> SearchStrategy[str]:
    """Text of what a scanner of JSON may trip over."""
    return st.text('\\"{}[],:u0 \n\t\x01\x1f\x7fé\u2028\ud7ff\ue000\uffff😀', max_size=6)


def dicts() -> SearchStrategy[dict[str, Any]]:
    names = tricky() | texts() | st.sampled_from(AWKWARD_KEYS)
    return st.dictionaries(
        names, free_json() | tricky() | st.dictionaries(names, tricky(), max_size=2), max_size=6
    )


@needs_any_server
@settings(parent=round_trips, max_examples=150)
@given(dicts(), dicts())
async def test_merge_is_what_python_makes(
    backend: RedisStateBackend, stored: dict[str, Any], changes: dict[str, Any]
) -> None:
    """The script's bytes are those that Python would have written: compare_and_set compares them."""
    key = Key(unique(), "k")
    await backend.set([Entry(key, dump(stored))])
    await backend.merge([Merge(key, {name: dump(value) for name, value in changes.items()}, KEEP, 1 << 20)])

    assert [dump(stored | changes)] == await backend.get([key])


@needs_own_server
async def test_one_slot_for_a_user(cluster_url: str) -> None:
    """All keys of a user share a slot, whatever the user is called, and users are spread over the nodes."""
    users = [None, *AWKWARD_IDS]
    async with engine_at(cluster_url) as engine:
        backend = RedisStateBackend(engine)
        slots = {
            user: {
                engine._client.keyslot(key)
                for name in ("}{", "k")
                for key in keys_of(backend, Key(user, name))
            }
            for user in users
        }

    assert [1] * len(users) == [len(each) for each in slots.values()]
    assert len(set.union(*slots.values())) > len(users) - 3


def keys_of(backend: RedisStateBackend, key: Key) -> list[str]:
    return [*(backend._key(key, kind) for kind in "vcnl"), f"{backend._scope(key.user_id)}:i"]


@needs_any_server
class TestFiftyTasks:
    @pytest.fixture(params=["one server", "cluster"])
    def url(self, request: pytest.FixtureRequest) -> str:
        return request.getfixturevalue("valkey_url" if request.param == "one server" else "cluster_url")

    def test_new_loop_each_time(self, url: str) -> None:
        """The same backend works in one event loop after another, as under pytest-asyncio."""
        engine = RedisEngine(url)
        backend = RedisStateBackend(engine)
        key = Key(unique(), "k")

        async def once() -> int | ConflictError:
            await engine.open()
            (count,) = await backend.increment([Increment(key, 1)])
            await engine.close()
            return count

        assert [1, 2, 3] == [asyncio.run(once()) for _ in range(3)]

    async def test_merging_different_fields(self, url: str) -> None:
        """Of 50 tasks that put different fields into one dict all 50 are kept."""
        key = Key(unique(), "k")
        async with engine_at(url, timeout_seconds=5) as engine:
            backend = RedisStateBackend(engine)
            await asyncio.gather(
                *(backend.merge([Merge(key, {f"f{i}": b"1"}, KEEP, 10_000)]) for i in range(50))
            )
            (stored,) = await backend.get([key])

        assert dump({f"f{i}": 1 for i in range(50)}) == stored

    async def test_claiming_one_cooldown(self, url: str) -> None:
        """Of 100 tasks that claim one cooldown exactly one gets it."""
        key = Key(unique(), "k")
        async with engine_at(url, timeout_seconds=5) as engine:
            backend = RedisStateBackend(engine)
            claims = await asyncio.gather(*(backend.claim([Claim(key, 60.0)]) for _ in range(100)))

        assert sum(won for (won,) in claims) == 1


@asynccontextmanager
async def engine_at(url: str, **options: Any) -> AsyncIterator[RedisEngine]:
    engine = RedisEngine(url, **options)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()

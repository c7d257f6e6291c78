"""The MongoDB engine: options, opening, closing and letting go, and calls that fail on a real server."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bson import Decimal128, ObjectId
from pymongo import MongoClient

from multidb.engines._drivers import require
from multidb.engines._mongo_uri import read_uri
from multidb.engines.mongo import MongoEngine
from multidb.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    ConflictError,
    InvalidValueError,
    MultiDBError,
    OverloadedError,
)
from multidb.profiles.backends.mongo import MongoProfileBackend
from multidb.profiles.protocol import Applied, Patch
from multidb.testing import servers
from multidb.testing.fakes_mongo import mongomock_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from multidb.testing.servers import MongoServer

pytestmark = pytest.mark.timeout(60)

needs_own_server = pytest.mark.skipif(
    servers.own_skip_reason("mongodb") is not None, reason=str(servers.own_skip_reason("mongodb"))
)
SECRET = "s3cret-canary"
NOW = datetime(2026, 3, 4, 12, 0, 0, 123457, tzinfo=UTC)
DRIVERS = ("pymongo", "motor")


def nothing_leaks(error: BaseException) -> bool:
    """Return whether the secret is nowhere in *error* nor in what it is chained to."""
    while error is not None:
        if SECRET in f"{error!r}{error}":
            return False
        error = error.__cause__ or error.__context__
    return True


class FakeServer:
    """A client of a server that only says its version."""

    def __init__(self, *version: int) -> None:
        self._version = version

    async def server_info(self) -> dict[str, Any]:
        return {"versionArray": [*self._version]}


class TestMissingDriver:
    """A driver that is not installed is named, with what installs it."""

    def test_motor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The constructor tells."""
        monkeypatch.setitem(sys.modules, "motor.motor_asyncio", None)

        with pytest.raises(
            ConfigurationError, match=r'motor is not installed: pip install "multidb\[motor\]"'
        ):
            MongoEngine("mongodb://localhost", driver="motor")

    def test_broken(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A driver that is there, and itself misses something, is not said to be missing."""
        (tmp_path / "needy_driver.py").write_text("import absent_dependency")
        monkeypatch.syspath_prepend(tmp_path)

        with pytest.raises(ModuleNotFoundError, match="absent_dependency"):
            require("needy_driver", "mongo")


class TestGivenClient:
    """A client of one's own is used, and left alone."""

    async def test_life(self) -> None:
        """It is not closed, and serves another engine later."""
        client = mongomock_client()
        for _ in range(2):
            engine = MongoEngine("mongodb://fake", client=client)
            await engine.open()
            await engine.ping()
            await engine.close()
            await engine.close()
            engine.abandon()
        with pytest.raises(ClosedError):
            await engine.ping()
        with pytest.raises(ClosedError):
            engine.collection("multidb_profiles")

    async def test_database(self) -> None:
        """The database is `multidb` unless one is given."""
        client = mongomock_client()
        for database, expected in ((None, "multidb"), ("bots", "bots")):
            engine = MongoEngine("mongodb://fake", database, client=client)
            await engine.open()
            await engine.collection("multidb_profiles").insert_one({"_id": "a"})

            assert await client[expected]["multidb_profiles"].find_one({}) == {"_id": "a"}

    @pytest.mark.parametrize("version", [(4, 4, 29), (5, 0, 0), (5, 9)])
    async def test_old_server(self, version: tuple[int, ...]) -> None:
        """A server older than 6.0 is refused."""
        engine = MongoEngine("mongodb://fake", client=FakeServer(*version))

        with pytest.raises(
            ConfigurationError, match=r"MongoDB 6\.0 or newer is needed; the server is \d\.\d"
        ):
            await engine.open()
        with pytest.raises(ClosedError):
            await engine.ping()

    async def test_new_servers(self) -> None:
        """6.0 and everything after it is welcome."""
        for version in ((6, 0), (6, 0, 5), (7, 0, 1), (10, 1)):
            await MongoEngine("mongodb://fake", client=FakeServer(*version)).open()


class TestOptions:
    """What is promised does not depend on the URI."""

    async def test_checked_when_opening(self) -> None:
        """Constructing does nothing; opening tells."""
        engine = MongoEngine("mongodb://localhost/?bogus=1")

        with pytest.raises(ConfigurationError, match="bogus"):
            await engine.open()
        await engine.close()

    @pytest.mark.parametrize("options", ["minPoolSize=50", "fsync=true", "maxConnecting=0"])
    @pytest.mark.parametrize("which", DRIVERS)
    async def test_options_that_do_not_fit(self, options: str, which: Any) -> None:
        """Options that are good by themselves, and not together with ours, are an error too."""
        engine = MongoEngine(f"mongodb://user:{SECRET}@localhost/?{options}", driver=which)

        with pytest.raises(ConfigurationError, match="MONGODB_URI") as caught:
            await engine.open()
        assert nothing_leaks(caught.value)

    URI = (
        "mongodb://localhost/bots?w=1&journal=false&retryWrites=false&timeoutMS=60000&maxPoolSize=3&tls=false"
        "&readPreference=secondary&readPreferenceTags=dc:ny&wTimeoutMS=5"
    )

    @pytest.mark.parametrize("which", DRIVERS)
    async def test_overruled(self, which: Any) -> None:
        """Writes wait for the journals of a majority, reads go to the primary, calls end within the timeout."""
        engine = MongoEngine(self.URI, driver=which, pool_max=7, timeout_seconds=3.0)
        engine._loop, engine._database = asyncio.get_running_loop(), "bots"
        client = engine._client = engine._connect({})
        try:
            options = client.options
            collection = engine.collection("multidb_profiles")

            assert {"w": "majority", "j": True} == {k: options.write_concern.document[k] for k in ("w", "j")}
            assert collection.write_concern.document == {"w": "majority", "j": True}
            assert collection.read_preference.name == "Primary"
            in_threads = 2.45 if which == "motor" else 0
            assert (options.retry_writes, options.timeout, options.pool_options.max_pool_size) == (
                True,
                in_threads,
                7,
            )
            assert options.pool_options.appname == "multidb"
        finally:
            await engine.close()

    async def test_app_name(self) -> None:
        """A name for the program in the URI stays."""
        engine = MongoEngine("mongodb://localhost/?appName=coffee")
        client = engine._client = engine._connect(read_uri("mongodb://localhost/?appName=coffee")["options"])

        assert client.options.pool_options.appname == "coffee"
        await engine.close()

    @pytest.mark.parametrize(
        ("timeout", "expected"), [(2.0, 1450), (1.0, 450), (0.5, 450), (0.1, 90), (3.0, 2450), (10, 9450)]
    )
    def test_time_for_a_call(self, timeout: float, expected: int) -> None:
        """The driver ends at the last half second within the timeout, as it looks for a server only that often."""
        assert MongoEngine("mongodb://localhost", timeout_seconds=timeout)._call_milliseconds == expected

    def test_repr(self) -> None:
        """There is nothing of the URI in the repr."""
        assert repr(MongoEngine(f"mongodb://user:{SECRET}@host/")) == "<MongoEngine pymongo closed>"


@asynccontextmanager
async def opened(uri: str, **options: Any) -> AsyncIterator[tuple[MongoEngine, MongoProfileBackend]]:
    engine = MongoEngine(uri, **options)
    await engine.open()
    backend = MongoProfileBackend(engine)
    try:
        await backend.open()
        yield engine, backend
    finally:
        await backend.close()
        await engine.close()


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """The default timeout is 2 seconds; the third is for a busy machine."""
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < 3


class TestUnreachable:
    """Without a server, opening fails in time."""

    @pytest.mark.parametrize("which", DRIVERS)
    async def test_refused(self, which: Any) -> None:
        """Nobody listens."""
        engine = MongoEngine("mongodb://127.0.0.1:1/", driver=which)

        async with in_time():
            with pytest.raises(BackendUnavailableError) as caught:
                await engine.open()
        assert caught.value.ambiguous is False
        assert caught.value.retryable

    @pytest.mark.parametrize("which", DRIVERS)
    async def test_silent(self, which: Any) -> None:
        """Somebody listens and says nothing."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            engine = MongoEngine(f"mongodb://127.0.0.1:{listener.getsockname()[1]}/", driver=which)

            async with in_time():
                with pytest.raises(BackendUnavailableError):
                    await engine.open()

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
    @pytest.mark.parametrize("which", DRIVERS)
    async def test_untrusted(self, tmp_path: Path, which: Any) -> None:
        """A server whose certificate nobody vouches for will not be reached by waiting."""
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
        command += " -addext subjectAltName=DNS:localhost"
        command = [*command.split(), "-keyout", key, "-out", certificate]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        async with await asyncio.start_server(lambda *_: None, "localhost", 0, ssl=context) as listener:
            port = listener.sockets[0].getsockname()[1]
            engine = MongoEngine(f"mongodb://localhost:{port}/?tls=true", driver=which)

            async with in_time():
                with pytest.raises(ConfigurationError, match="certificate"):
                    await engine.open()

    async def test_cancelled(self) -> None:
        """A cancelled open leaves nothing behind."""
        engine = MongoEngine("mongodb://127.0.0.1:1/")
        task = asyncio.create_task(engine.open())
        await asyncio.sleep(0.2)
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture(scope="module")
def server() -> Iterator[MongoServer]:
    """A server whose commands can be made to fail."""
    with servers.MongoServer(arguments=["--setParameter=enableTestCommands=1"]) as started:
        with MongoClient(started.url) as client:
            client["admin"].command("createUser", "reader", pwd="right", roles=["read"])
        yield started


@pytest.fixture
def uri(server: MongoServer) -> Iterator[str]:
    with server.database() as url:
        yield url


@contextmanager
def failing(server: MongoServer, times: int = 1, **data: Any) -> Iterator[None]:
    """Make the next findAndModify fail."""
    data = {"failCommands": ["findAndModify"], **data}
    with MongoClient(server.url) as client:
        client.admin.command("configureFailPoint", "failCommand", mode={"times": times}, data=data)
        try:
            yield
        finally:
            client.admin.command("configureFailPoint", "failCommand", mode="off")


def increment(name: str = "u") -> list[Patch]:
    return [Patch(name, NOW, increment={"n": 1}, upsert=True)]


async def count(backend: MongoProfileBackend, name: str = "u") -> int:
    found = (await backend.get([name])).get(name, {})
    return int(found.get("n", 0))


@needs_own_server
class TestServer:
    """With a server."""

    async def test_database_of_the_uri(self, uri: str) -> None:
        """The URI may name the database; an explicit one wins."""
        for database in (None, f"{uri.rpartition('/')[2]}_2"):
            async with opened(uri, database=database) as (_, backend):
                await backend.apply([Patch("a", NOW, set={"database": database}, upsert=True)])
        with MongoClient(uri) as client:
            name = uri.rpartition("/")[2]

            assert client[name]["multidb_profiles"].find_one({})["database"] is None
            assert client[f"{name}_2"]["multidb_profiles"].find_one({})["database"] == f"{name}_2"
            client.drop_database(f"{name}_2")

    @pytest.mark.parametrize("which", DRIVERS)
    async def test_wrong_password(self, server: MongoServer, which: Any) -> None:
        """A wrong password is a ConfigurationError at once, also for many at once."""
        wrong = f"mongodb://reader:{SECRET}@127.0.0.1:{server.port}/?authSource=admin"
        engines = [MongoEngine(wrong, driver=which) for _ in range(5)]

        async with in_time():
            results = await asyncio.gather(*(engine.open() for engine in engines), return_exceptions=True)
        assert [type(result) for result in results] == [ConfigurationError] * 5
        assert all(nothing_leaks(result) for result in results if result)

    async def test_right_password(self, server: MongoServer) -> None:
        """A right one is fine."""
        engine = MongoEngine(f"mongodb://reader:right@127.0.0.1:{server.port}/?authSource=admin")
        await engine.open()
        await engine.ping()
        await engine.close()

    @pytest.mark.parametrize("which", DRIVERS)
    @pytest.mark.parametrize(
        ("data", "kind", "ambiguous"),
        [
            ({"errorCode": 13}, ConfigurationError, None),
            ({"errorCode": 91}, BackendUnavailableError, True),
            ({"errorCode": 10107}, BackendUnavailableError, True),
            ({"errorCode": 11600}, BackendUnavailableError, True),
            ({"errorCode": 50}, BackendTimeoutError, True),
            ({"errorCode": 14031}, OverloadedError, False),
            ({"errorCode": 999999}, BackendError, True),
            ({"closeConnection": True}, BackendUnavailableError, True),
            ({"writeConcernError": {"code": 64, "errmsg": "waiting"}}, BackendUnavailableError, True),
            ({"blockConnection": True, "blockTimeMS": 3000}, BackendTimeoutError, True),
        ],
        ids=lambda value: str(value)[:50],
    )
    async def test_failing_write(
        self,
        server: MongoServer,
        uri: str,
        which: Any,
        data: Any,
        kind: type[MultiDBError],
        ambiguous: bool | None,
    ) -> None:
        """What goes wrong on the server is told by class, in time, and the next call works."""
        # A server that only pretends to stop would not tell a streaming monitor that it is back.
        async with opened(f"{uri}?serverMonitoringMode=poll", driver=which) as (_, backend):
            await backend.apply(increment())
            with failing(server, **data):
                async with in_time():
                    with pytest.raises(kind) as caught:
                        await backend.apply(increment())
            before = await count(backend)
            await backend.apply(increment())

            assert type(caught.value) is kind
            assert getattr(caught.value, "ambiguous", None) == ambiguous
            assert await count(backend) == before + 1

    @pytest.mark.parametrize("which", DRIVERS)
    async def test_pool_is_empty(self, server: MongoServer, uri: str, which: Any) -> None:
        """Who gets no connection in time was not heard: OverloadedError, and nothing is written."""
        names = [f"u{number}" for number in range(8)]
        async with opened(uri, driver=which, pool_max=1) as (_, backend):
            with failing(server, times=8, blockConnection=True, blockTimeMS=1300):
                async with in_time():
                    calls = [backend.apply(increment(name)) for name in names]
                    results = await asyncio.gather(*calls, return_exceptions=True)
            unheard = [
                n for n, result in zip(names, results, strict=True) if isinstance(result, OverloadedError)
            ]

            assert unheard
            assert not any(result.ambiguous for result in results if isinstance(result, OverloadedError))
            assert await backend.get(unheard) == {}

    @pytest.mark.parametrize("which", DRIVERS)
    async def test_cancelled_on_the_only_connection(self, server: MongoServer, uri: str, which: Any) -> None:
        """A call cancelled in the middle leaves a pool of one usable, and its answer to nobody else."""
        async with opened(uri, driver=which, pool_max=1) as (_, backend):
            for number in range(5):
                with failing(server, blockConnection=True, blockTimeMS=200):
                    task = asyncio.create_task(backend.apply(increment("cancelled")))
                    await asyncio.sleep(0.05)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                (result,) = await backend.apply([Patch("other", NOW, set={"number": number}, upsert=True)])

                assert isinstance(result, Applied)
                assert result.document is not None
                assert (result.document["username"], result.document["number"]) == ("other", number)

    @pytest.mark.parametrize(
        ("data", "kind", "ambiguous"),
        [
            ({"errorCode": 91}, BackendUnavailableError, True),
            ({"errorCode": 14031}, OverloadedError, False),
            ({"closeConnection": True}, BackendUnavailableError, True),
            ({"writeConcernError": {"code": 64, "errmsg": "waiting"}}, BackendUnavailableError, True),
        ],
        ids=lambda value: str(value)[:50],
    )
    async def test_shared_command_fails(
        self, server: MongoServer, uri: str, data: Any, kind: type[BackendError], ambiguous: bool
    ) -> None:
        """When the command of many fails, each has an error of its own; those that went another way have none."""
        patches = [
            Patch(f"u{n}", NOW, set={"a": n}, upsert=True, wants_document=n % 2 > 0) for n in range(20)
        ]
        patches += [Patch("n", NOW, increment={"n": 1}, upsert=True) for _ in range(2)]
        async with opened(f"{uri}?serverMonitoringMode=poll") as (_, backend):
            with failing(server, failCommands=["update"], **data):
                outcomes = await backend.apply(patches)
            errors = [each for each in outcomes if isinstance(each, BackendError)]

            assert [kind] * 20 + [Applied] * 2 == [*map(type, outcomes)]
            assert [ambiguous] * 20 == [each.ambiguous for each in errors]
            assert 20 == len(set(map(id, errors)))
            assert await count(backend, "n") == 2
            assert [Applied] * 22 == [*map(type, await backend.apply(patches))]

    @pytest.mark.parametrize("which", DRIVERS)
    async def test_lost_read(self, server: MongoServer, uri: str, which: Any) -> None:
        """A read whose connection is lost is made again, be it of one profile or of several."""
        async with opened(uri, driver=which) as (_, backend):
            await backend.apply([Patch(name, NOW, upsert=True) for name in "ab"])
            for names in (["a"], ["a", "b"]):
                with failing(server, failCommands=["find"], closeConnection=True):
                    assert list(await backend.get(names)) == names

    async def test_only_the_look_fails(self, server: MongoServer, uri: str) -> None:
        """What is written and cannot be read is an error for those who want to read, and it is ambiguous."""
        patches = [Patch(f"u{n}", NOW, set={"a": n}, upsert=n < 6, wants_document=n < 3) for n in range(8)]
        async with opened(uri) as (_, backend):
            with failing(server, failCommands=["find"], errorCode=50):
                outcomes = await backend.apply(patches)

            assert [BackendTimeoutError] * 3 + [Applied] * 3 + [BackendTimeoutError] * 2 == [
                *map(type, outcomes)
            ]
            assert [True] * 3 + [False] * 2 == [e.ambiguous for e in outcomes if isinstance(e, BackendError)]
            assert 6 == len(await backend.get([patch.username for patch in patches]))
            with failing(server, failCommands=["find"], errorCode=50):
                counted = await backend.apply([Patch(f"u{n}", NOW, increment={"n": 1}) for n in range(4)])
            assert [False] * 4 == [each.ambiguous for each in counted if isinstance(each, BackendError)]

    async def test_one_of_many_fails(self, server: MongoServer, uri: str) -> None:
        """What goes singly fails singly; what has not begun then is not tried, and not ambiguous."""
        patches = [Patch(f"u{n // 2}", NOW, set={"a": 1}, upsert=True) for n in range(40)]
        async with opened(uri, pool_max=2) as (_, backend):
            with failing(server, errorCode=50):
                outcomes = await backend.apply(patches)
            errors = [each for each in outcomes if isinstance(each, BackendError)]
            found = await backend.get([patch.username for patch in patches])

            assert 0 < len(errors) < 40
            assert len(outcomes) - len(errors) == sum(each["version"] for each in found.values())
            assert 2 >= sum(each.ambiguous for each in errors)

    async def test_too_large_in_a_batch(self, uri: str) -> None:
        """A patch that is too large does not keep the others of its batch from being written."""
        patches = [Patch(f"u{number}", NOW, set={"a": "x"}, upsert=True) for number in range(6)]
        patches[2].set["a"] = "ş" * 9_000_000  # type: ignore[index]
        patches[4].set["a"] = "\ufdfa" * 300_000  # type: ignore[index]
        async with opened(uri, timeout_seconds=20) as (_, backend):
            outcomes = await backend.apply(patches)

            assert isinstance(outcomes[2], InvalidValueError)
            assert "16 MiB" in str(outcomes[2])
            assert sorted(await backend.get([patch.username for patch in patches])) == [
                "u0",
                "u1",
                "u3",
                "u4",
                "u5",
            ]

    async def test_nothing_is_inserted(self, uri: str) -> None:
        """A batch for profiles that are not there, or in conflict, leaves no document behind."""
        async with opened(uri) as (engine, backend):
            await backend.apply([Patch("a", NOW, set={"x": 1}, upsert=True)])
            patches = [Patch(f"u{n}", NOW, set={"a": n}, wants_document=False) for n in range(20)]
            patches += [Patch("a", NOW, set={"x.y": 1}), Patch("b", NOW, remove=["x"], expected_version=3)]
            patches += [Patch(f"i{n}", NOW, increment={"n": 1}) for n in range(5)]
            await backend.apply(patches)

            assert await engine.collection("multidb_profiles").distinct("_id") == ["a"]

    async def test_foreign_values(self, uri: str) -> None:
        """What other programs put in, which is no JSON, is in nobody's way, and comes back as it is."""
        async with opened(uri) as (engine, backend):
            foreign = {"id": ObjectId(), "raw": b"x", "price": Decimal128("1.5"), "n": 1}
            await engine.collection("multidb_profiles").insert_many(
                [{"_id": name, **foreign} for name in "abcd"]
            )
            prices = [Patch(name, NOW, increment={"price": 1}) for name in "aabcd"]
            numbers = [Patch(name, NOW, increment={"n": 1}) for name in "aabcd"]
            for path, patches in (("price", prices), ("n", numbers)):
                outcomes = await backend.apply(patches)
                documents = [each.document or {} for each in outcomes if isinstance(each, Applied)]

                assert ["2.5", "3.5", "2.5", "2.5", "2.5"] == [
                    str(each["price"]) for each in documents
                ] or path == "n"
                assert [2, 3, 2, 2, 2] == [each["n"] for each in documents] or path == "price"
                assert {foreign["id"]} == {each["id"] for each in documents}
            await backend.apply([Patch(name, NOW, set={"n": 5}) for name in "abcd"])
            found = await backend.get(list("abcd"))

            assert [(5, 5), (5, 3), (5, 3), (5, 3)] == [
                (each["n"], each["version"]) for each in found.values()
            ]

    async def test_numbers_changed_by_hand(self, uri: str) -> None:
        """Who writes without counting versions does not make increments return wrong numbers."""
        names = [f"u{n}" for n in range(20)]
        async with opened(uri) as (engine, backend):
            await backend.apply([Patch(name, NOW, set={"n": 0}, upsert=True) for name in names])
            collection = engine.collection("multidb_profiles")

            async def by_hand() -> None:
                for _ in range(10):
                    await collection.update_many({}, {"$inc": {"n": 1000}})

            async def by_us() -> list[int]:
                outcomes = await backend.apply([Patch(name, NOW, increment={"n": 1}) for name in names])
                return [
                    each.document["n"] % 1000
                    for each in outcomes
                    if isinstance(each, Applied) and each.document
                ]

            results = await asyncio.gather(by_hand(), *(by_us() for _ in range(10)))
            found = await backend.get(names)

            assert [10_010] * 20 == [found[name]["n"] for name in names]
            assert [list(range(1, 11))] * 20 == [sorted(each) for each in zip(*results[1:], strict=True)]

    async def test_other_unique_index(self, uri: str) -> None:
        """Where a unique index of somebody else is in the way, that is a conflict."""
        async with opened(uri) as (engine, backend):
            await engine.collection("multidb_profiles").create_index("mail", unique=True, sparse=True)
            patches = [Patch(name, NOW, set={"mail": "a@b"}, upsert=True) for name in ("one", "two")]
            results = [(await backend.apply([patch]))[0] for patch in patches]

            assert [isinstance(result, ConflictError) for result in results] == [False, True]

    async def test_own_documents(self, uri: str) -> None:
        """Other tools find the fields at the top level; what others put in without ours is a profile, too."""
        async with opened(uri) as (engine, backend):
            await backend.apply([Patch("Işık", NOW, set={"type": "Bot", "a": {"b": 1}}, upsert=True)])
            stored = await engine.collection("multidb_profiles").find_one({"_id": "Işık"})
            await engine.collection("multidb_profiles").insert_one({"_id": "foreign", "a": 2**40})
            foreign = (await backend.get(["foreign"]))["foreign"]

            assert stored == {
                "_id": "Işık",
                "type": "Bot",
                "a": {"b": 1},
                "created_at": 1772625600123457,
                "updated_at": 1772625600123457,
                "version": 1,
                "_multidb": {"text": {"username": "işik", "type": "bot"}},
            }
            assert (foreign["a"], type(foreign["a"]), foreign["version"]) == (2**40, int, 0)

    async def test_indexes(self, uri: str) -> None:
        """20 at once create them; they are there, and used."""
        async with opened(uri) as (engine, backend):
            await asyncio.gather(*(MongoProfileBackend(engine).open() for _ in range(20)))
            collection = engine.collection("multidb_profiles")
            keys = [
                list(index["key"])
                for index in (await collection.index_information()).values()
                if "key" in index
            ]
            await backend.apply([Patch("b", NOW, set={"type": "bot", "autospam": True}, upsert=True)])
            plan = (
                await collection.find({"$and": [{"type": {"$eq": "bot"}}, {"autospam": {"$eq": True}}]})
                .hint("type_1_autospam_1_is_active_1")
                .to_list(None)
            )

            assert sorted(map(str, keys)) == sorted(
                map(
                    str,
                    [
                        [("_id", 1)],
                        [("user_id", 1)],
                        [("type", 1)],
                        [("type", 1), ("autospam", 1), ("is_active", 1)],
                    ],
                )
            )
            assert [each["_id"] for each in plan] == ["b"]

    @pytest.mark.parametrize("which", DRIVERS)
    async def test_killed(self, which: Any) -> None:
        """Through kills of the server no acknowledged write is lost, and none that failed for certain is there."""
        acknowledged: set[str] = set()
        refused: set[str] = set()
        unknown: set[str] = set()

        async def write(backend: MongoProfileBackend, worker: int, stop: asyncio.Event) -> None:
            number = 0
            while not stop.is_set():
                name = f"{worker}-{number}-{len(acknowledged)}"
                number += 1
                try:
                    await backend.apply([Patch(name, NOW, set={"a": 1}, upsert=True)])
                except BackendError as error:
                    (unknown if error.ambiguous else refused).add(name)
                else:
                    acknowledged.add(name)

        with servers.MongoServer() as own, own.database() as url:
            async with opened(url, driver=which) as (_, backend):
                stop = asyncio.Event()
                tasks = [asyncio.create_task(write(backend, worker, stop)) for worker in range(8)]
                for _ in range(3):
                    await asyncio.sleep(0.7)
                    await asyncio.to_thread(own.kill)
                    await asyncio.to_thread(own.start)
                await asyncio.sleep(0.7)
                stop.set()
                await asyncio.gather(*tasks)
                names = [*acknowledged, *refused, *unknown]
                found = set(await backend.get(names))

        assert not acknowledged - found
        assert not refused & found
        assert len(acknowledged) > 100
        assert unknown


@needs_own_server
class TestLettingGo:
    """Closing is bounded, and an engine whose event loop is gone can be let go of."""

    @pytest.mark.parametrize("which", DRIVERS)
    def test_stopped_server(self, which: Any) -> None:
        """A call and a close end in time although the server is stopped and answers nothing."""

        async def main(server: MongoServer) -> None:
            async with opened(server.url, driver=which) as (engine, backend):
                await asyncio.gather(*(backend.apply(increment(f"u{number}")) for number in range(5)))
                await asyncio.to_thread(server.pause)
                async with in_time():
                    with pytest.raises(BackendTimeoutError) as caught:
                        await backend.apply(increment())
                async with in_time():
                    await engine.close()
                    await engine.close()

                assert caught.value.ambiguous

        with servers.MongoServer() as own:
            try:
                asyncio.run(main(own))
            finally:
                own.resume()

    @pytest.mark.parametrize("which", DRIVERS)
    @pytest.mark.parametrize("ending", ["run", "close"])
    def test_loop_is_gone(self, server: MongoServer, which: Any, ending: str) -> None:
        """Let go of after its loop ended, cancelled or not, it leaves no warning and no file descriptor; another works."""
        before = descriptors()
        for _ in range(3):
            engine = MongoEngine(server.url, driver=which)
            in_loop(ending, use(engine))
            engine.abandon()
            engine.abandon()
            del engine
            gc.collect()

        assert_soon(lambda: descriptors() <= before)

    @pytest.mark.parametrize("which", DRIVERS)
    def test_fork(self, server: MongoServer, which: Any) -> None:
        """A child lets go of what it inherited, and the parent goes on."""

        async def main() -> None:
            engine = MongoEngine(server.url, driver=which)
            await use(engine)
            child = os.fork()
            if child == 0:
                engine.abandon()
                os._exit(0)
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            await asyncio.gather(*(engine.ping() for _ in range(10)))
            await engine.close()

            assert status == 0

        asyncio.run(main())

    @pytest.mark.parametrize("which", DRIVERS)
    async def test_own_loop(self, server: MongoServer, which: Any) -> None:
        """Let go of in its own loop, it leaves no task behind."""
        engine = MongoEngine(server.url, driver=which)
        await use(engine)
        engine.abandon()
        await asyncio.sleep(0.1)

        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(ClosedError):
            await engine.ping()

    @pytest.mark.parametrize("which", DRIVERS)
    def test_one_loop_after_the_other(self, server: MongoServer, which: Any) -> None:
        """The same engine opens again in another loop."""
        engine = MongoEngine(server.url, driver=which)
        for _ in range(3):
            asyncio.run(use_and_close(engine))

    @pytest.mark.parametrize("which", DRIVERS)
    async def test_closed(self, server: MongoServer, which: Any) -> None:
        """What is used after its close says so."""
        async with opened(server.url, driver=which) as (engine, backend):
            await engine.close()

            with pytest.raises(ClosedError):
                await backend.get(["u"])
            with pytest.raises(ClosedError):
                await backend.apply(increment())


async def use(engine: MongoEngine) -> None:
    await engine.open()
    await asyncio.gather(*(engine.ping() for _ in range(5)))


async def use_and_close(engine: MongoEngine) -> None:
    await use(engine)
    await engine.close()


def in_loop(ending: str, work: Any) -> None:
    """Do *work* in an event loop of its own, which ends as `asyncio.run()` ends it, or is just closed."""
    if ending == "run":
        asyncio.run(work)
        return
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def assert_soon(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_own_server
async def test_lost_answer_to_many() -> None:
    """On a replica set the driver asks again for the answer to a batch that was lost; nothing is done twice."""
    with servers.MongoServer(replica_set=True, arguments=["--setParameter=enableTestCommands=1"]) as server:
        async with opened(f"{server.url}&serverMonitoringMode=poll") as (_, backend):
            patches = [
                Patch(f"u{n}", NOW, set={"a": n}, upsert=True, wants_document=False) for n in range(20)
            ]
            await backend.apply(patches)
            lost = {
                "writeConcernError": {
                    "code": 91,
                    "errmsg": "stopping",
                    "errorLabels": ["RetryableWriteError"],
                }
            }
            for data in (
                lost,
                {"closeConnection": True},
                {"errorCode": 10107, "errorLabels": ["RetryableWriteError"]},
            ):
                with failing(server, failCommands=["update"], **data):
                    outcomes = await backend.apply(patches)

                assert [Applied] * 20 == [*map(type, outcomes)], data
            found = await backend.get([patch.username for patch in patches])
            assert {4} == {each["version"] for each in found.values()}

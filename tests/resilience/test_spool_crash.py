"""The spool and kill -9: at every step, at random moments, and by several processes that adopt from each other."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from multidb._core import files
from multidb._core.clock import SystemClock
from multidb.resilience.spool import Limits, Spool, tools
from multidb.resilience.spool._files import SpoolFiles
from multidb.resilience.spool._lines import Header
from multidb.testing.faults import pick_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

LIMITS = Limits(segment_bytes=400)
# 1 tries every moment there is, and takes a minute.
KILL_EVERY = int(os.environ.get("MULTIDB_TEST_SPOOL_KILL_EVERY", "2"))
CUT_EVERY = int(os.environ.get("MULTIDB_TEST_SPOOL_CUT_EVERY", "8"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def seed() -> int:
    seed = pick_seed()
    print(f"seed {seed}")
    return seed


class Child:
    """A process that runs *program*, which says what it did; what it said is here once it is gone."""

    def __init__(self, program: Callable[[Callable[[str], None]], None]) -> None:
        reading, writing = os.pipe()
        self.said = ""
        self._reading = reading
        self.pid = os.fork()
        if self.pid == 0:
            self._run(program, reading, writing)
        os.close(writing)
        os.set_blocking(reading, False)

    def _run(self, program: Any, reading: int, writing: int) -> NoReturn:
        code = 1
        try:
            os.close(reading)
            program(lambda text: os.write(writing, f"{text}\n".encode()))
            code = 0
        except BaseException as exc:  # noqa: BLE001
            os.write(writing, f"failed {exc!r}\n".encode())
        finally:
            os._exit(code)

    def listen(self) -> None:
        """Take note of what it said so far."""
        with suppress(BlockingIOError):
            while data := os.read(self._reading, 1 << 16):
                self.said += data.decode()

    def wait(self, seconds: float = 30) -> int:
        """Return how it ended."""
        end = time.monotonic() + seconds
        while True:
            self.listen()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(self.said[-500:])
            time.sleep(0.001)
        self.listen()
        os.close(self._reading)
        return status

    @property
    def has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def words(self, verb: str) -> list[str]:
        """Return what it said it did, but for a line that was torn."""
        lines = self.said.split("\n")[:-1]
        assert not [line for line in lines if line.startswith("failed")], lines[-1]
        return [each for line in lines if line.startswith(verb + " ") for each in line.split()[1:]]


@contextmanager
def killed_at(step: int) -> Iterator[list[str]]:
    """End this process for good before the disk is touched for the *step*th time; half of a write is a step, too."""
    steps: list[str] = []

    def count(name: str) -> None:
        steps.append(name)
        if len(steps) == step:
            os._exit(9)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"os.mkdir", "os.rename", "os.remove", "os.rmdir"} or (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
        ):
            count(event)

    def wrapped(name: str, original: Any) -> Any:
        def call(*arguments: Any) -> Any:
            count(name)
            if name == "write_all":
                file, data = arguments
                original(file, data[: len(data) // 2])
                count("half")
                return original(file, data[len(data) // 2 :])
            return None  # What is killed needs no sync: see the power cuts for that.

        return call

    for name in ("write_all", "sync_file", "sync_folder"):
        setattr(files, name, wrapped(name, getattr(files, name)))
    sys.addaudithook(hook)
    yield steps


def spool_files(root: Path) -> SpoolFiles:
    return SpoolFiles(root, "here", Header("logs", "db"), LIMITS, SystemClock())


def drained(root: Path) -> list[str]:
    """Replay what is left; return it."""
    spool = spool_files(root)
    spool.adopt()
    left = []
    while (batch := spool.read(1000, 10**6)) is not None:
        left += [each.data.decode() for each in batch.records]
        spool.done(batch.position)
    spool.release()
    return left


def set_aside(root: Path) -> set[str]:
    return {
        rejection.record.decode() for _, rejection in tools.rejections(root) if rejection.record is not None
    }


def life(root: Path, say: Callable[[str], None]) -> None:
    """Everything a spool does, once: create, append, rotate, set aside, replay, checkpoint, remove, leave, adopt."""
    numbers = iter(range(1000))

    def append(spool: SpoolFiles, calls: int) -> None:
        batch = [[b"%d" % next(numbers) for _ in range(3)] for _ in range(calls)]
        assert [None] * calls == spool.commit(batch)
        say("kept " + " ".join(record.decode() for call in batch for record in call))

    def replay(spool: SpoolFiles, most: int) -> bool:
        batch = spool.read(most, 10**6)
        if batch is None:
            return False
        say("replayed " + " ".join(each.data.decode() for each in batch.records))
        if batch.records[0].data == b"4":
            spool.reject(batch.records[0], "no")
        spool.done(batch.position)
        say("done " + " ".join(each.data.decode() for each in batch.records))
        return True

    first = spool_files(root)
    first.adopt()
    append(first, 1)
    append(first, 2)
    replay(first, 4)
    for _ in range(4):
        append(first, 1)
    replay(first, 3)
    replay(first, 20)
    first.seal()
    first.release()
    second = spool_files(root)
    second.adopt()
    append(second, 2)
    replay(second, 5)
    while replay(second, 9):
        pass
    append(second, 1)
    while replay(second, 9):
        pass
    second.release()


def test_killed_at_every_step(root: Path, seed: int) -> None:
    """
    Whenever the process ends, the next one has all that was acknowledged and not replayed, and repeats one batch.

    When that is replayed there are no leftovers.
    """

    def whole(say: Callable[[str], None]) -> None:
        with killed_at(0) as steps:
            life(root, say)
        say(f"steps {len(steps)}")

    child = Child(whole)
    assert 0 == child.wait()
    (steps,) = child.words("steps")
    assert child.words("kept") == child.words("done")
    assert ["rejected"] == [path.name for path in (root / "here").iterdir()]
    tools.retry(root)
    drained(root)
    assert not root.exists()
    for step in range(1 + seed % KILL_EVERY, int(steps) + 1, KILL_EVERY):
        _kill_at(root, step)
    print(f"0 lost in kills at every {KILL_EVERY} of {steps} steps")


def _kill_at(root: Path, step: int) -> None:
    def program(say: Callable[[str], None]) -> None:
        with killed_at(step):
            life(root, say)

    child = Child(program)
    assert 9 == os.waitstatus_to_exitcode(child.wait())
    kept, done, replayed = (child.words(verb) for verb in ("kept", "done", "replayed"))
    left = drained(root)
    where = f"step {step}: {left} left, {kept} kept, {done} done"

    assert set(kept) <= {*replayed, *left}, where
    assert not set(done) & set(left), where
    assert left == sorted(left, key=int), where
    assert len(left) == len(set(left)), where
    assert set_aside(root) <= {"4"}, where
    assert "4" not in done or set_aside(root), where
    tools.retry(root)
    drained(root)
    assert not root.exists(), (where, sorted(root.rglob("*")))


@pytest.mark.parametrize(("model", "survivors"), [("strict", "nothing"), ("ordered", "something")])
def test_power_cuts(seed: int, model: Any, survivors: Any) -> None:
    """
    Wherever the power is cut, on a file system that forgets what was not synced: nothing acknowledged is lost.

    What was done may come again: it is removed without a sync.
    """
    faults = pytest.importorskip("multidb.testing.faults")
    if reason := faults.lossyfs_skip_reason():
        pytest.skip(reason)
    kept = 0
    with faults.LossyFS(model=model, survivors=survivors, seed=seed) as disk:
        cuts = 0
        while (acknowledged := _cut_after(1 + seed % CUT_EVERY + CUT_EVERY * cuts, disk)) is not None:
            kept += acknowledged
            cuts += 1
    print(f"{kept} acknowledged, 0 lost in {cuts} power cuts")

    assert cuts > 80 / CUT_EVERY


def _cut_after(change: int, disk: Any) -> int | None:
    """Cut the power at a moment, and see what is left; None: by then all was over."""
    root = disk.path / str(change)
    disk.freeze_after(change)
    child = Child(lambda say: life(root, say))
    while not disk.frozen:
        if child.has_ended:
            disk.power_cut()
            assert 0 == child.wait()
            return None
        time.sleep(0.002)
    child.kill()  # Before it hears of the cut.
    disk.power_cut()
    child.wait()
    kept, done = set(child.words("kept")), set(child.words("done"))
    left = drained(root)
    where = f"change {change}: {left} left, {kept} kept, {done} done"

    assert kept <= {*child.words("replayed"), *left}, where
    assert left == sorted(left, key=int), where
    assert len(left) == len(set(left)), where
    assert {"4"} & done <= set_aside(root) | set(left), where
    tools.retry(root)
    drained(root)
    assert not root.exists(), where
    return len(kept)


def appending(root: Path, start: int) -> Callable[[Callable[[str], None]], None]:
    """Return a program in which ten tasks append, and one replays a part of it."""

    async def run(say: Callable[[str], None]) -> None:
        spool = Spool(root, "logs", namespace="db", limits=Limits(segment_bytes=2000), any_file_system=True)
        await spool.open()
        numbers = iter(range(start, start + 10**6))

        async def write() -> None:
            while True:
                batch = [b"%d" % next(numbers) for _ in range(random.randint(1, 5))]
                await spool.append(batch)
                say("kept " + b" ".join(batch).decode())

        async def replay() -> None:
            while True:
                await spool.wait()
                batch = await spool.read_batch(random.randint(1, 20))
                if batch is not None:
                    say("replayed " + " ".join(each.data.decode() for each in batch.records))
                    await spool.done(batch.position)
                await asyncio.sleep(random.random() * 0.01)

        say("ready")
        await asyncio.gather(replay(), *(write() for _ in range(10)))

    return lambda say: asyncio.run(run(say))


def test_killed_at_random(root: Path, seed: int) -> None:
    """40 kills while ten tasks append and one replays: nothing acknowledged is lost, nothing torn is read."""
    chance = random.Random(seed)
    kept: set[str] = set()
    replayed: set[str] = set()
    for life_number in range(40):
        child = Child(appending(root, life_number * 10**6))
        end = time.monotonic() + 30
        while "ready" not in child.said and time.monotonic() < end:
            child.listen()
            time.sleep(0.001)
        time.sleep(chance.random() * 0.05)
        child.kill()
        child.wait()
        kept |= set(child.words("kept"))
        replayed |= set(child.words("replayed"))
    left = drained(root)
    print(f"{len(kept)} acknowledged, {len(replayed)} replayed, {len(left)} left after 40 kills")

    assert 500 < len(kept)
    assert kept <= replayed | set(left)
    assert len(left) == len(set(left))
    assert [] == list(tools.rejections(root))
    assert not root.exists()


def adopting(root: Path, claims: Path) -> Callable[[Callable[[str], None]], None]:
    """Return a program that adopts and replays until nothing is left, with a lock of its own on what it replays."""

    def run(say: Callable[[str], None]) -> None:
        idle = 0
        while idle < 3:
            spool = spool_files(root)
            spool.adopt()
            found = False
            while (batch := spool.read(2, 10**6)) is not None:
                found = True
                with (claims / batch.position.owner).open("a+b", buffering=0) as claim:
                    if not files.try_lock(claim.fileno()):
                        say(f"doubled {batch.position.owner}")
                    time.sleep(0.001)
                    say("replayed " + " ".join(each.data.decode() for each in batch.records))
                spool.done(batch.position)
            spool.release()
            idle = 0 if found else idle + 1
            time.sleep(0.002)

    return run


@pytest.mark.parametrize("kills", [0, 15])
def test_adopted_by_several(root: Path, tmp_path: Path, seed: int, kills: int) -> None:
    """Three processes adopt what thirty dead ones left: each record is read by one at a time, and none is lost."""
    claims = tmp_path / "claims"
    claims.mkdir()
    numbers = [str(number) for number in range(240)]
    for owner in range(30):
        spool = spool_files(root)
        mine = numbers[owner * 8 : owner * 8 + 8]
        assert [None] * 2 == spool.commit([[n.encode() for n in mine[:4]], [n.encode() for n in mine[4:]]])
        spool.seal()
        with spool._appending:
            spool._own.forget()
    chance = random.Random(seed)
    children = [Child(adopting(root, claims)) for _ in range(3)]
    gone = []
    for _ in range(kills):
        time.sleep(chance.random() * 0.02)
        victim = children.pop(0)
        victim.kill()
        victim.wait()
        gone.append(victim)
        children.append(Child(adopting(root, claims)))
    for child in children:
        assert 0 == child.wait()
    replayed = [number for child in children + gone for number in child.words("replayed")]

    assert [] == [word for child in children + gone for word in child.words("doubled")]
    assert set(numbers) == set(replayed)
    if not kills:
        assert sorted(numbers) == sorted(replayed)
    assert len(replayed) <= len(numbers) + 2 * kills
    assert not root.exists()

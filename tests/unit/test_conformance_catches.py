"""The conformance suites can fail: each of these backends has one mistake, and the suite finds it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from multidb._core.text import fold
from multidb._core.values import dump, load
from multidb.errors import ConflictError
from multidb.logs._records import Sale
from multidb.logs.backends.memory import MemoryLogBackend
from multidb.logs.protocol import Appended, Query
from multidb.profiles.backends.memory import MemoryProfileBackend
from multidb.profiles.protocol import Applied, Condition
from multidb.state.backends.memory import MemoryStateBackend
from multidb.state.protocol import KEEP, Increment, Key
from multidb.testing.clock import ManualClock
from multidb.testing.conformance import LogBackendSuite, ProfileBackendSuite, StateBackendSuite

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


class StoresTwice(MemoryLogBackend):
    """Has no unique key."""

    async def append(self, entries, /):
        results = list(await super().append(entries))
        again = [each for each, result in zip(entries, results, strict=True) if result is Appended.DUPLICATE]
        await super().append([e._replace(record=e.record.model_copy(update={"id": uuid4()})) for e in again])
        return results


class OneConflictForAll(MemoryLogBackend):
    """Rolls the whole batch back."""

    async def append(self, entries, /):
        results = []
        for each in entries:
            results += await super().append([each])
            if results[-1] is Appended.CONFLICT:
                return [Appended.CONFLICT] * len(entries)
        return results


class ForgetsDigests(MemoryLogBackend):
    """Takes every known id for the same content."""

    async def append(self, entries, /):
        results = await super().append(entries)
        return [Appended.DUPLICATE if each is Appended.CONFLICT else each for each in results]


class Milliseconds(MemoryLogBackend):
    """Keeps times as MongoDB does."""

    async def append(self, entries, /):
        def cut(moment):
            return moment.replace(microsecond=moment.microsecond // 1000 * 1000)

        return await super().append(
            [
                e._replace(record=e.record.model_copy(update={"timestamp": cut(e.record.timestamp)}))
                for e in entries
            ]
        )


class FloatAmounts(MemoryLogBackend):
    """Keeps amounts in a column of floats."""

    async def query(self, query, /):
        return [
            each.model_copy(update={"amount": Decimal(str(float(each.amount)))})
            if hasattr(each, "amount")
            else each
            for each in await super().query(query)
        ]


class ContextOfDoubles(MemoryLogBackend):
    """Keeps contexts as a language does whose numbers are all doubles."""

    async def append(self, entries, /):
        def doubled(encoded):
            return dump(json.loads(encoded, parse_int=lambda digits: int(float(digits)) % 2**63))

        return await super().append([each._replace(context=doubled(each.context)) for each in entries])


class SinceExclusive(MemoryLogBackend):
    """Compares with > where it should with >=."""

    async def query(self, query, /):
        since = query.since + timedelta(microseconds=1) if query.since else None
        return await super().query(replace(query, since=since))


class TiesAnyhow(MemoryLogBackend):
    """Sorts by the time alone."""

    async def query(self, query, /):
        found = await super().query(query)
        found.reverse()
        return sorted(found, key=lambda record: record.timestamp, reverse=True)


class PagesByTime(MemoryLogBackend):
    """Continues behind a time, not behind a record."""

    async def query(self, query, /):
        until = query.after[0] if query.after else query.until
        return await super().query(replace(query, after=None, until=until))


class AnswersByUser(MemoryLogBackend):
    """Gives queries of one user the same answer."""

    async def query_all(self, queries, /):
        answers = {}
        for query in queries:
            answers.setdefault(query.equal.get("user_id"), await self.query(query))
        return [answers[query.equal.get("user_id")] for query in queries]


class AnswersAsFound(MemoryLogBackend):
    """Groups queries by what they ask for, and returns the answers in that order."""

    async def query_all(self, queries, /):
        return [await self.query(query) for query in sorted(queries, key=lambda query: sorted(query.equal))]


class LargestLimit(MemoryLogBackend):
    """Has one limit for all queries of a round trip."""

    async def query_all(self, queries, /):
        limit = max((query.limit for query in queries), default=0)
        return [await self.query(replace(query, limit=limit)) for query in queries]


class SharesAnswers(MemoryLogBackend):
    """Asks once what is asked twice."""

    async def query_all(self, queries, /):
        answers = {repr(query): await self.query(query) for query in queries}
        return [answers[repr(query)] for query in queries]


class Like(MemoryLogBackend):
    """Searches with LIKE and does not escape the keyword."""

    async def query(self, query, /):
        if query.keyword is None:
            return await super().query(query)
        pattern = re.escape(query.keyword).replace("%", ".*").replace("_", ".")
        found = await super().query(replace(query, keyword=None, limit=10_000))
        return [
            e for e in found if re.search(pattern, fold(e.message)) or re.search(pattern, fold(e.event_type))
        ]


class JoinedSearch(MemoryLogBackend):
    """Searches message and event type as one text, without anything between them."""

    async def query(self, query, /):
        if query.keyword is None:
            return await super().query(query)
        found = await super().query(replace(query, keyword=None))
        return [each for each in found if query.keyword in fold(each.message + each.event_type)]


class WeeksFromSunday(MemoryLogBackend):
    """Begins its weeks a day early."""

    async def histogram(self, query, bucket, /):
        histogram = await super().histogram(query, bucket)
        day = timedelta(days=1 if bucket == "week" else 0)
        return {start - day: count for start, count in histogram.items()}


class LimitedDelete(MemoryLogBackend):
    """Deletes a page."""

    async def delete(self, query, /):
        page = await self.query(query)
        rest = await super().delete(query)
        return min(rest, len(page))


class StatusCheckedThenSet(MemoryLogBackend):
    """Looks at a sale, waits, changes it."""

    async def set_sale_status(self, sale_id, status, allowed_from, /):
        found = [each for each in await self.query(Query(Sale, limit=10_000)) if each.id == sale_id]
        if found and found[0].status not in {*allowed_from, status}:
            raise ConflictError
        await asyncio.sleep(0)
        return await super().set_sale_status(sale_id, status, ("pending", "completed", "failed", "refunded"))


class CancelsAll(MemoryLogBackend):
    """Flushes for all callers at once, and lets one who is cancelled cancel the flush."""

    flush = None

    async def append(self, entries, /):
        if self.flush is None or self.flush.done():
            self.flush = asyncio.ensure_future(asyncio.sleep(0.0002))
        await self.flush
        return await super().append(entries)


class EndlessSessions(MemoryLogBackend):
    """Takes an idle session for an active one."""

    async def touch_sessions(self, touches, /):
        return await super().touch_sessions(
            [replace(each, expires_at=each.expires_at + timedelta(hours=1)) for each in touches]
        )


LOGS = [
    (StoresTwice, "test_append_twice"),
    (StoresTwice, "test_race_for_an_id"),
    (OneConflictForAll, "test_conflict_keeps_nobody_out"),
    (ForgetsDigests, "test_append_the_same_id_with_other_content"),
    (ForgetsDigests, "test_digest_decides"),
    (Milliseconds, "test_times"),
    (FloatAmounts, "test_amounts"),
    (ContextOfDoubles, "test_awkward_context"),
    (SinceExclusive, "test_since_and_until"),
    (TiesAnyhow, "test_newest_first"),
    (TiesAnyhow, "test_equal_times_by_id"),
    (PagesByTime, "test_after"),
    (PagesByTime, "test_paging_while_others_append"),
    (AnswersByUser, "test_query_all"),
    (AnswersAsFound, "test_query_all"),
    (LargestLimit, "test_query_all"),
    (SharesAnswers, "test_query_all_owns_its_records"),
    (Like, "test_every_keyword_in_every_message"),
    (JoinedSearch, "test_not_across_the_fields"),
    (WeeksFromSunday, "test_week_starts_on_monday"),
    (LimitedDelete, "test_delete"),
    (StatusCheckedThenSet, "test_race_of_status_changes"),
    (CancelsAll, "test_cancelled_appends"),
    (EndlessSessions, "test_idle_out"),
]


class MergeLosesFields(MemoryStateBackend):
    """Reads, waits, writes."""

    async def merge(self, merges, /):
        results = []
        for each in merges:
            (old,) = await self.get([each.key])
            await asyncio.sleep(0)
            await self.compare_and_set(
                each.key, (await self.get([each.key]))[0] or b"null", old or b"{}", KEEP
            )
            results += await super().merge([each])
        return results


class MergeInDoubles(MemoryStateBackend):
    """Merges in a script whose numbers are all doubles, and whose empty list is an empty dict."""

    async def merge(self, merges, /):
        def scripted(encoded):
            text = re.sub(r"\[\]", "{}", encoded.decode())
            return dump(json.loads(text, parse_int=lambda digits: int(float(digits)) % 2**63))

        results = await super().merge(merges)
        return [each if isinstance(each, ConflictError) else scripted(each) for each in results]


class MergeUnsorted(MemoryStateBackend):
    """Puts new fields behind the old ones."""

    async def merge(self, merges, /):
        results = await super().merge(merges)
        for place, (each, merged) in enumerate(zip(merges, results, strict=True)):
            if isinstance(merged, bytes):
                kept = {name: value for name, value in load(merged).items() if name not in each.changes}
                new = {name: load(value) for name, value in each.changes.items()}
                results[place] = json.dumps(kept | new, separators=(",", ":"), ensure_ascii=False).encode()
        return results


class NoLimit(MemoryStateBackend):
    """Merges whatever comes."""

    async def merge(self, merges, /):
        return await super().merge([replace(each, max_bytes=1 << 30) for each in merges])


class KeepsNothing(MemoryStateBackend):
    """Takes KEEP for None."""

    async def merge(self, merges, /):
        return await super().merge(
            [
                replace(e, expire_seconds=None if e.expire_seconds is KEEP else e.expire_seconds)
                for e in merges
            ]
        )

    async def compare_and_set(self, key, expected, value, expire_seconds, /):
        span = None if expire_seconds is KEEP else expire_seconds
        return await super().compare_and_set(key, expected, value, span)


class WholeSeconds(MemoryStateBackend):
    """Uses EX where it should PX."""

    async def set(self, entries, /):
        await super().set(
            [replace(e, expire_seconds=e.expire_seconds and e.expire_seconds // 1) for e in entries]
        )


class WholeSecondsUp(MemoryStateBackend):
    """Rounds life spans up."""

    async def set(self, entries, /):
        await super().set(
            [replace(e, expire_seconds=e.expire_seconds and -(-e.expire_seconds // 1)) for e in entries]
        )


class WholeSecondsLeft(MemoryStateBackend):
    """Uses TTL where it should PTTL."""

    async def cooldown(self, key, /):
        left = await super().cooldown(key)
        return left and float(int(left))


class ClaimsCheckedThenSet(MemoryStateBackend):
    """Looks, waits, claims."""

    async def claim(self, claims, /):
        free = [await self.cooldown(each.key) is None for each in claims]
        await asyncio.sleep(0)
        for each, is_free in zip(claims, free, strict=True):
            if is_free:
                await self.set_cooldown(each)
        return free


class ProlongingCounter(MemoryStateBackend):
    """Gives a counter a new life span with every increment."""

    async def increment(self, increments, /):
        results = []
        for each in increments:
            value = await self.counter(each.key)
            await self.reset_counter(each.key)
            results += await super().increment(
                [Increment(each.key, value + each.amount, each.expire_seconds)]
            )
        return results


class JoinedKeys(MemoryStateBackend):
    """Joins user and name with a colon."""

    async def set(self, entries, /):
        await super().set([replace(each, key=joined(each.key)) for each in entries])

    async def get(self, keys, /):
        return await super().get([joined(key) for key in keys])


def joined(key: Key) -> Key:
    """Return a key that others have, too."""
    return Key(None, f"{key.user_id}:{key.name}")


class OneKind(MemoryStateBackend):
    """Clears whatever is the user's."""

    async def clear(self, user_id, /):
        for name in await self.get_all(user_id):
            await self.reset_counter(Key(user_id, name))
        return await super().clear(user_id)


class OldestItems(MemoryStateBackend):
    """Keeps the oldest items of a list instead of the newest."""

    async def push(self, pushes, /):
        results = []
        for each in pushes:
            length = len(await self.items(each.key))
            full = each.max_length is not None and length >= each.max_length
            results += [length] if full else await super().push([each])
        return results


STATE = [
    (MergeLosesFields, "test_concurrent_merges"),
    (MergeInDoubles, "test_merge_is_canonical"),
    (MergeInDoubles, "test_merge_keeps_the_other_fields_as_they_are"),
    (MergeUnsorted, "test_merge_is_canonical"),
    (NoLimit, "test_merge_size"),
    (KeepsNothing, "test_merge_and_the_life_span"),
    (KeepsNothing, "test_compare_and_set_and_the_life_span"),
    (WholeSeconds, "test_no_whole_seconds"),
    (WholeSeconds, "test_milliseconds"),
    (WholeSecondsUp, "test_no_whole_seconds"),
    (WholeSecondsUp, "test_milliseconds"),
    (WholeSecondsLeft, "test_cooldown_of_parts_of_a_second"),
    (ClaimsCheckedThenSet, "test_race_of_claims"),
    (ProlongingCounter, "test_life_span_starts_with_the_first"),
    (JoinedKeys, "test_awkward_names"),
    (OneKind, "test_kinds_are_apart"),
    (OldestItems, "test_max_length"),
]


class TrueIsOne(MemoryProfileBackend):
    """Compares as Python does."""

    async def find(self, query, /):
        def widened(condition: Condition) -> Condition:
            if condition.operator == "eq" and condition.value in (0, 1):
                return Condition(condition.path, "in", (int(condition.value), bool(condition.value)))
            return condition

        return await super().find(replace(query, conditions=[widened(each) for each in query.conditions]))


class MissingIsNotNone(MemoryProfileBackend):
    """Compares as SQL does."""

    async def find(self, query, /):
        there = [
            Condition(each.path, "exists", value=True) for each in query.conditions if each.value is None
        ]
        return await super().find(replace(query, conditions=[*query.conditions, *there]))


class TiesTurnedRound(MemoryProfileBackend):
    """Turns the order of usernames round together with the rest."""

    async def find(self, query, /):
        found = await super().find(replace(query, limit=10_000))
        if query.sort and query.sort[-1][1]:
            found = await super().find(replace(query, sort=[*query.sort, ("username", True)], limit=10_000))
        return found[: query.limit]


class ReadsThenWrites(MemoryProfileBackend):
    """Reads a profile, waits, writes all of it."""

    async def apply(self, patches, /):
        results = []
        for each in patches:
            old = (await self.get([each.username])).get(each.username, {})
            await asyncio.sleep(0)
            fields = {
                k: v for k, v in old.items() if k not in {"username", "created_at", "updated_at", "version"}
            }
            sums = {name: fields.get(name, 0) + amount for name, amount in each.increment.items()}
            results += await super().apply(
                [replace(each, set={**fields, **each.set, **sums}, increment={}, replace=True)]
            )
        return results


class AnyVersion(MemoryProfileBackend):
    """Does not look at the version."""

    async def apply(self, patches, /):
        return await super().apply([replace(each, expected_version=None) for each in patches])


class StopsAtConflicts(MemoryProfileBackend):
    """Sends an ordered bulk write and forgets what came behind a conflict."""

    async def apply(self, patches, /):
        results: list[Any] = []
        for each in patches:
            stopped = any(isinstance(result, ConflictError) for result in results)
            results += [ConflictError("not tried")] if stopped else await super().apply([each])
        return results


class FailsTogether(MemoryProfileBackend):
    """Makes one patch's error everybody's."""

    async def apply(self, patches, /):
        results = await super().apply(patches)
        errors = [result for result in results if isinstance(result, Exception)]
        return [errors[0]] * len(results) if errors else results


class FirstsFirst(MemoryProfileBackend):
    """Sorts a batch by what its patches do, as an unordered bulk write may."""

    async def apply(self, patches, /):
        order = sorted(range(len(patches)), key=lambda i: (bool(patches[i].remove), i))
        results = dict(zip(order, await super().apply([patches[i] for i in order]), strict=True))
        return [results[i] for i in range(len(patches))]


class LastNumber(MemoryProfileBackend):
    """Reads what it returns when all of a batch is written."""

    async def apply(self, patches, /):
        results = await super().apply(patches)
        found = await self.get([patch.username for patch in patches])
        return [
            replace(result, document=found.get(patch.username)) if isinstance(result, Applied) else result
            for patch, result in zip(patches, results, strict=True)
        ]


class InsertsWhatIsMissing(MemoryProfileBackend):
    """Sends every patch as an upsert."""

    async def apply(self, patches, /):
        return await super().apply([replace(each, upsert=True) for each in patches])


class AlwaysWrites(MemoryProfileBackend):
    """Counts a version for a remove that finds nothing."""

    async def apply(self, patches, /):
        return await super().apply(
            [replace(e, set={"seen": True} if e.remove and not e.set else e.set) for e in patches]
        )


class SharesDocuments(MemoryProfileBackend):
    """Hands out what it keeps."""

    async def get(self, usernames, /):
        self.kept = getattr(self, "kept", {})
        found = await super().get(usernames)
        return {name: self.kept.setdefault((name, each["version"]), each) for name, each in found.items()}


class CaselessNames(MemoryProfileBackend):
    """Keeps profiles on a disk that does not tell Ali from ali."""

    async def apply(self, patches, /):
        return await super().apply([replace(each, username=each.username.lower()) for each in patches])


class CaselessSearch(MemoryProfileBackend):
    """Lowers where it should fold."""

    async def search(self, keyword, limit, /):
        found = await super().search("", 10_000)
        return [
            each
            for each in found
            if any(isinstance(text, str) and keyword in text.lower() for text in each.values())
        ][:limit]


class TruthyStats(MemoryProfileBackend):
    """Counts what Python takes for true."""

    async def stats(self):
        everybody = await super().search("", 10_000)
        stats = await super().stats()
        return stats.model_copy(update={"active": sum(bool(each.get("is_active")) for each in everybody)})


PROFILES = [
    (TrueIsOne, "test_every_condition"),
    (MissingIsNotNone, "test_every_condition"),
    (TiesTurnedRound, "test_sort"),
    (ReadsThenWrites, "test_different_fields"),
    (ReadsThenWrites, "test_upserts"),
    (ReadsThenWrites, "test_increments"),
    (AnyVersion, "test_expected_version"),
    (AnyVersion, "test_race_for_a_version"),
    (AnyVersion, "test_race_to_create"),
    (StopsAtConflicts, "test_conflict_is_its_own"),
    (StopsAtConflicts, "test_patches_in_order"),
    (FailsTogether, "test_outcomes"),
    (FailsTogether, "test_too_large_in_a_batch"),
    (FirstsFirst, "test_order_in_a_batch"),
    (LastNumber, "test_increments_in_a_batch"),
    (InsertsWhatIsMissing, "test_many_that_are_not_there"),
    (AlwaysWrites, "test_nothing_to_remove"),
    (SharesDocuments, "test_copies"),
    (CaselessNames, "test_usernames_that_are_no_file_names"),
    (CaselessSearch, "test_every_keyword"),
    (TruthyStats, "test_stats"),
]


def run(suite: object, test: str, backend: Any) -> None:
    """Run one test of a suite on a backend."""

    async def opened() -> None:
        await backend.open()
        try:
            await getattr(suite, test)(backend)
        finally:
            await backend.close()

    asyncio.run(opened())


def fails(run_on: Callable[[], None]) -> None:
    """Assert that a test fails, and by an assert: a mistake that breaks the test itself proves nothing."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_on()


def labels(cases: list[tuple[type, str]]) -> list[str]:
    """Return names for the parameters."""
    return [f"{broken.__name__}-{test}" for broken, test in cases]


@pytest.mark.parametrize(("broken", "test"), LOGS, ids=labels(LOGS))
def test_log_suite_catches(broken: type[MemoryLogBackend], test: str) -> None:
    """The log suite fails on a broken backend, and not on the one it was made from."""
    run(LogBackendSuite(), test, MemoryLogBackend())
    fails(lambda: run(LogBackendSuite(), test, broken()))


class InProcessStateSuite(StateBackendSuite):
    """The state suite by a clock that is moved by hand."""

    def __init__(self) -> None:
        self.clock = ManualClock()

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


@pytest.mark.parametrize(("broken", "test"), STATE, ids=labels(STATE))
def test_state_suite_catches(broken: type[MemoryStateBackend], test: str) -> None:
    """The state suite fails on a broken backend, and not on the one it was made from."""
    for kind in (MemoryStateBackend, broken):
        suite = InProcessStateSuite()
        backend = kind(clock=suite.clock)
        if kind is broken:
            fails(lambda suite=suite, backend=backend: run(suite, test, backend))
        else:
            run(suite, test, backend)


@pytest.mark.parametrize(("broken", "test"), PROFILES, ids=labels(PROFILES))
def test_profile_suite_catches(broken: type[MemoryProfileBackend], test: str) -> None:
    """The profile suite fails on a broken backend, and not on the one it was made from."""
    run(ProfileBackendSuite(), test, MemoryProfileBackend())
    fails(lambda: run(ProfileBackendSuite(), test, broken()))


@pytest.mark.parametrize("suite", [LogBackendSuite, StateBackendSuite, ProfileBackendSuite])
def test_suites_catch_lost_data(suite: type[Any]) -> None:
    """The suites fail when a reopened backend has forgotten what it kept."""
    kinds = {
        LogBackendSuite: MemoryLogBackend,
        StateBackendSuite: lambda: MemoryStateBackend(clock=ManualClock()),
        ProfileBackendSuite: MemoryProfileBackend,
    }

    class Reopened(suite):
        async def second_backend(self) -> object:
            return kinds[suite]()

    fails(lambda: run(Reopened(), "test_second_backend_sees_everything", kinds[suite]()))


USERS_FILE = """
import pytest_asyncio
from multidb.logs.backends.memory import MemoryLogBackend
from multidb.testing.conformance import LogBackendSuite

class Forgetful(MemoryLogBackend):
    async def append(self, entries, /):
        results = await super().append(entries)
        return results if len(entries) < {most} else results[:-1]

class TestMyBackend(LogBackendSuite):
    @pytest_asyncio.fixture
    async def backend(self):
        yield Forgetful()
"""


@pytest.mark.parametrize("mode", ["strict", "auto"])
@pytest.mark.parametrize("broken", [False, True], ids=["sound", "broken"])
def test_suite_of_a_user(tmp_path: Path, mode: str, *, broken: bool) -> None:
    """Five lines test a backend, by pytest's own rules, in both modes of pytest-asyncio; a failure shows the difference."""
    (tmp_path / "test_mine.py").write_text(USERS_FILE.format(most=1000 if broken else 10**9))
    options = [
        "asyncio_default_fixture_loop_scope = function",
        "filterwarnings = error",
        f"asyncio_mode = {mode}",
    ]
    (tmp_path / "pytest.ini").write_text("\n".join(["[pytest]", *options]))
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-k",
            "batch or any_context or append_twice",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    failed = re.findall(r"FAILED \S+::(\w+)", ran.stdout)

    assert (["test_large_batch"] if broken else []) == failed, ran.stdout
    assert (1 if broken else 0) == ran.returncode
    if broken:
        assert "At index" in ran.stdout or "Left contains one more item" in ran.stdout

"""The log suite's tests of appending: what is stored, and what became of each entry."""

from __future__ import annotations

from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from multidb.logs._records import Event, Message, Sale
from multidb.logs.protocol import Appended
from multidb.testing.conformance._data import (
    AWKWARD_VALUES,
    cancelled_midway,
    together,
    unique,
)
from multidb.testing.conformance._log_data import (
    NOON,
    TICK,
    LogSuite,
    entries,
    entry,
    event,
    ids,
    message,
    newest_first,
    of_user,
    sale,
    seen,
    store,
)

if TYPE_CHECKING:
    from multidb.logs.protocol import LogBackend

STORED, DUPLICATE, CONFLICT = Appended.STORED, Appended.DUPLICATE, Appended.CONFLICT


class AppendTests(LogSuite):
    """Each id is stored once, and each entry is told what became of it."""

    async def test_name(self, backend: LogBackend) -> None:
        """A backend has a short constant name for metrics and errors."""
        name = backend.name

        assert name == backend.name
        assert 0 < len(name) <= 30
        assert name.isascii()
        assert name == name.lower().strip()

    async def test_append_nothing(self, backend: LogBackend) -> None:
        """An empty batch is a batch."""
        assert [] == list(await backend.append([]))

    async def test_append_and_query(self, backend: LogBackend) -> None:
        """What is appended comes back."""
        user = unique()
        stored = event(user, message="Mesaj alındı", level="WARNING", username="ali", context={"chat": 7})

        assert [STORED] == list(await backend.append([entry(stored)]))
        assert seen([stored]) == seen(await backend.query(of_user(user, Event)))

    async def test_append_twice(self, backend: LogBackend) -> None:
        """Replaying an event after a lost answer does not store it twice."""
        user = unique()
        stored = event(user)
        await store(backend, [stored])

        assert [DUPLICATE] == list(await backend.append([entry(stored)]))
        assert [DUPLICATE, DUPLICATE] == list(await backend.append([entry(stored), entry(stored)]))
        assert seen([stored]) == seen(await backend.query(of_user(user, Event)))

    async def test_append_the_same_id_with_other_content(self, backend: LogBackend) -> None:
        """An id that stands for something else is a conflict; what was stored first stays."""
        user = unique()
        stored = event(user, message="first")
        other = event(user, id=stored.id, message="second")
        elsewhere = event(unique(), id=stored.id)
        await store(backend, [stored])

        assert [CONFLICT] == list(await backend.append([entry(other)]))
        assert [CONFLICT, DUPLICATE] == list(await backend.append([entry(elsewhere), entry(stored)]))
        assert seen([stored]) == seen(await backend.query(of_user(user, Event)))
        assert [] == await backend.query(of_user(elsewhere.user_id, Event))

    async def test_same_id_twice_in_a_batch(self, backend: LogBackend) -> None:
        """An id that comes twice in one batch is stored once, as it came first."""
        user = unique()
        first = event(user, message="first")
        second = event(user, id=first.id, message="second")
        batch = entries([first, first, second, event(user), first])

        assert [STORED, DUPLICATE, CONFLICT, STORED, DUPLICATE] == list(await backend.append(batch))
        stored = await backend.query(of_user(user, Event))
        assert seen([first]) == seen([each for each in stored if each.id == first.id])
        assert 2 == len(stored)

    async def test_conflict_keeps_nobody_out(self, backend: LogBackend) -> None:
        """What became of each entry is told in its place, and a conflict does not keep the others out."""
        user = unique()
        old = [event(user) for _ in range(10)]
        await store(backend, old)
        new = [event(user) for _ in range(10)]
        wrong = [event(user, id=each.id, message="other") for each in old]
        batch = [each for three in zip(new, wrong, old, strict=True) for each in three]

        assert [STORED, CONFLICT, DUPLICATE] * 10 == list(await backend.append(entries(batch)))
        assert seen(newest_first(old + new)) == seen(await backend.query(of_user(user, Event)))

    async def test_digest_decides(self, backend: LogBackend) -> None:
        """Whether an id stands for the same is said by the digest alone."""
        user = unique()
        stored, other = event(user, message="1"), event(user, message="2")
        same_digest = entry(other)
        await backend.append([same_digest])
        again = entry(event(user, id=other.id, message="2"))
        nearly = type(again)(other, again.context, again.digest[:-1] + bytes([again.digest[-1] ^ 1]))
        zeros = type(again)(stored, b"{}", bytes(16))

        assert [DUPLICATE, CONFLICT] == list(await backend.append([again, nearly]))
        assert [STORED, DUPLICATE, CONFLICT] == list(await backend.append([zeros, zeros, entry(stored)]))

    async def test_replay_of_a_sale_that_went_on(self, backend: LogBackend) -> None:
        """A sale appended again after its status changed is the same sale, and keeps its new status."""
        user = unique()
        sold = sale(user)
        await store(backend, [sold])
        await backend.set_sale_status(sold.id, "completed", ("pending",))

        assert [DUPLICATE] == list(await backend.append([entry(sold)]))
        assert ["completed"] == [each.status for each in await backend.query(of_user(user, Sale))]

    async def test_race_for_an_id(self, backend: LogBackend) -> None:
        """Of many who append the same id at once one stores it; the others are told whether it is theirs."""
        user = unique()
        same = event(user)
        shared = uuid4()
        different = [event(user, id=shared, message=str(number)) for number in range(20)]
        outcomes = [result for (result,) in await together(backend.append([entry(same)]) for _ in range(20))]
        others = [result for (result,) in await together(backend.append([entry(each)]) for each in different)]
        stored = {each.id: each for each in await backend.query(of_user(user, Event))}

        assert (1, 19) == (outcomes.count(STORED), outcomes.count(DUPLICATE))
        assert (1, 19) == (others.count(STORED), others.count(CONFLICT))
        assert 2 == len(stored)
        assert different[others.index(STORED)] == stored[shared]

    async def test_race_of_batches(self, backend: LogBackend) -> None:
        """Batches with the same ids in other orders do not block each other, and store each id once."""
        user = unique()
        batch = entries([event(user) for _ in range(100)])
        turned = batch[::-1]
        results = await together(backend.append(each) for each in (batch, turned) * 4)
        in_order = [list(result)[:: 1 if number % 2 == 0 else -1] for number, result in enumerate(results)]

        assert [1] * 100 == [column.count(STORED) for column in zip(*in_order, strict=True)]
        assert [7] * 100 == [column.count(DUPLICATE) for column in zip(*in_order, strict=True)]
        assert {"": 100} == await backend.count(of_user(user, Event))

    async def test_concurrent_appends(self, backend: LogBackend) -> None:
        """A hundred appends at once are all stored, each with its own outcome."""
        user = unique()
        old, new = [event(user) for _ in range(20)], [event(user) for _ in range(80)]
        await store(backend, old)
        given_events = [each for pair in zip(old, new[:20], strict=True) for each in pair] + new[20:]
        results = await together(backend.append([entry(each)]) for each in given_events)
        expected = [DUPLICATE if each in old else STORED for each in given_events]

        assert expected == [result for (result,) in results]
        assert ids(newest_first(old + new)) == ids(await backend.query(of_user(user, Event)))

    async def test_large_batch(self, backend: LogBackend) -> None:
        """A batch of 1,000 is stored, and recognised a second time, a stray conflict told in its place."""
        user = unique()
        batch = [event(user, message=f"{number}", context={"n": number}) for number in range(1000)]
        await store(backend, batch)
        again = [*batch[:500], event(user, id=batch[500].id, message="other"), *batch[501:]]
        results = list(await backend.append(entries(again)))

        assert [number for number, result in enumerate(results) if result is not DUPLICATE] == [500]
        assert results[500] is CONFLICT
        assert seen(newest_first(batch)) == seen(await backend.query(of_user(user, Event, limit=10_000)))

    async def test_kinds_are_apart(self, backend: LogBackend) -> None:
        """Events, sales and messages of one user do not mix."""
        user = unique()
        happened, sold, said = event(user), sale(user), message(user)
        await store(backend, [happened])
        await store(backend, [sold])
        await store(backend, [said])

        assert seen([happened]) == seen(await backend.query(of_user(user, Event)))
        assert seen([sold]) == seen(await backend.query(of_user(user, Sale)))
        assert seen([said]) == seen(await backend.query(of_user(user, Message)))
        assert 1 == await backend.delete(of_user(user, Sale))
        assert [1, 0, 1] == [
            len(await backend.query(of_user(user, Event))),
            len(await backend.query(of_user(user, Sale))),
            len(await backend.query(of_user(user, Message))),
        ]

    async def test_cancelled_appends(self, backend: LogBackend) -> None:
        """An append cancelled midway stores its event once or not at all; a retry makes it once."""
        random = Random(11)
        user = unique()
        batch = [event(user, message=str(number)) for number in range(60)]
        kept = [event(user) for _ in range(20)]
        calls = [backend.append([entry(each)]) for each in batch]
        cancelled = cancelled_midway(calls, [random.randrange(20) for _ in calls])
        await together([cancelled, *(store(backend, [each]) for each in kept)])
        there = ids(await backend.query(of_user(user, Event)))
        await together(backend.append([entry(each)]) for each in batch)

        assert len(set(there)) == len(there)
        assert set(ids(kept)) <= set(there) <= set(ids(kept + batch))
        assert seen(newest_first(kept + batch)) == seen(await backend.query(of_user(user, Event)))

    async def test_cancelled_reads(self, backend: LogBackend) -> None:
        """After reads were cancelled midway every other read gets its own answer."""
        random = Random(13)
        users = [unique() for _ in range(20)]
        await store(backend, [event(user, message=user) for user in users])
        for _ in range(3):
            calls = [backend.query(of_user(user, Event)) for user in users]
            await cancelled_midway(calls, [random.randrange(20) for _ in calls])
            answers = await together(backend.query(of_user(user, Event)) for user in users)

            assert [[user] for user in users] == [[each.message for each in answer] for answer in answers]


class SecondBackendTests(LogSuite):
    """What another connection sees, or the same data after a reopen."""

    async def test_second_backend_sees_everything(self, backend: LogBackend) -> None:
        """What one backend stored is there for another on the same data, types included, and known to it."""
        user = unique()
        happened = [event(user, context={"v": value}) for value in AWKWARD_VALUES]
        sold = sale(user, amount=Decimal("1.10"))
        await store(backend, happened)
        await store(backend, [sold])
        await backend.set_sale_status(sold.id, "completed", ("pending",))
        second = await self.another()
        wrong = event(user, id=happened[0].id, message="other")

        assert [DUPLICATE, CONFLICT] == list(await second.append([entry(happened[0]), entry(wrong)]))
        assert [DUPLICATE] == list(await second.append([entry(sold)]))
        assert seen(newest_first(happened)) == seen(await second.query(of_user(user, Event)))
        assert seen([sold.model_copy(update={"status": "completed"})]) == seen(
            await second.query(of_user(user, Sale))
        )
        assert {"": len(happened)} == await second.count(of_user(user, Event))

    async def test_second_backend_sees_what_was_deleted(self, backend: LogBackend) -> None:
        """What was deleted stays deleted, and the rest stays."""
        user = unique()
        old, new = event(user, timestamp=NOON - TICK), event(user)
        await store(backend, [old, new])
        await backend.delete(of_user(user, Event, until=NOON))
        second = await self.another()

        assert seen([new]) == seen(await second.query(of_user(user, Event)))

    async def test_two_backends_race(self, backend: LogBackend) -> None:
        """Two connections that append the same ids at once store each once."""
        if not self.concurrent_instances:
            pytest.skip("concurrent_instances is not set")
        second = await self.another()
        user = unique()
        batch = [event(user) for _ in range(100)]
        results = await together(
            each.append(entries(batch[start::5])) for start in range(5) for each in (backend, second)
        )

        assert 100 == sum(list(result).count(STORED) for result in results)
        assert seen(newest_first(batch)) == seen(await second.query(of_user(user, Event)))

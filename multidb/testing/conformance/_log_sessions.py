"""The log suite's tests of sessions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from hypothesis import given

from multidb.logs._records import Session
from multidb.testing.conformance._data import (
    AWKWARD_IDS,
    AWKWARD_KEYS,
    AWKWARD_VALUES,
    DEEPEST,
    free_dicts,
    round_trips,
    together,
    unique,
)
from multidb.testing.conformance._log_data import NOON, TICK, LogSuite, seen, touch

if TYPE_CHECKING:
    from multidb.logs.protocol import LogBackend, SessionTouch

MINUTE = timedelta(minutes=1)


def started(sign: SessionTouch, **fields: Any) -> Session:
    """Return the session that *sign* starts; *fields* say what is different."""
    session = Session(
        user_id=sign.user_id,
        session_id=sign.session_id,
        started_at=sign.at,
        last_seen_at=sign.at,
        expires_at=sign.expires_at,
    )
    return session.model_copy(update=fields)


class SessionTests(LogSuite):
    """A session goes on as long as signs of life come in time, until it is ended."""

    async def test_start(self, backend: LogBackend) -> None:
        """The first sign of life starts a session, with an empty context unless it has one."""
        user = unique()
        plain, told = touch(user, "a", NOON), touch(user, "b", NOON, context={"page": 1.0})
        expected = [started(plain), started(told, context={"page": 1.0})]

        assert [] == await backend.touch_sessions([])
        assert seen(expected) == seen(await backend.touch_sessions([plain, told]))
        assert seen(expected) == seen(await backend.active_sessions(user, NOON, 10))

    async def test_go_on(self, backend: LogBackend) -> None:
        """A sign of life before its end prolongs a session, which keeps its start."""
        user = unique()
        first, second = touch(user, "s", NOON), touch(user, "s", NOON + MINUTE - TICK)
        await backend.touch_sessions([first])
        expected = [started(first, last_seen_at=second.at, expires_at=second.expires_at)]

        assert seen(expected) == seen(await backend.touch_sessions([second]))
        assert seen(expected) == seen(await backend.active_sessions(user, second.at, 10))

    async def test_never_back(self, backend: LogBackend) -> None:
        """A sign of life that arrives late, or promises less, does not take time back."""
        user = unique()
        first = touch(user, "s", NOON, idle_seconds=600)
        late, short = touch(user, "s", NOON - MINUTE), touch(user, "s", NOON + MINUTE)
        await backend.touch_sessions([first])

        assert seen([started(first)]) == seen(await backend.touch_sessions([late]))
        assert seen([started(first, last_seen_at=short.at)]) == seen(await backend.touch_sessions([short]))

    async def test_context(self, backend: LogBackend) -> None:
        """A context replaces the one before, as a whole; a sign of life without one keeps it."""
        user = unique()
        contexts: list[dict[str, Any] | None] = [{"a": 1, "b": 2}, None, {"c": [1.0]}, None, {}, None]
        signs = [touch(user, "s", NOON + TICK * n, context=context) for n, context in enumerate(contexts)]
        sessions = [(await backend.touch_sessions([sign]))[0] for sign in signs]
        expected = [{"a": 1, "b": 2}, {"a": 1, "b": 2}, {"c": [1.0]}, {"c": [1.0]}, {}, {}]

        assert expected == [session.context for session in sessions]

    async def test_idle_out(self, backend: LogBackend) -> None:
        """A session that nothing touched until its end is over at that moment, and replaced by a new one."""
        user = unique()
        first, second = touch(user, "s", NOON, context={"old": True}), touch(user, "s", NOON + MINUTE)
        await backend.touch_sessions([first])

        assert 1 == len(await backend.active_sessions(user, NOON + MINUTE - TICK, 10))
        assert [] == await backend.active_sessions(user, NOON + MINUTE, 10)
        assert not await backend.end_session(user, "s", NOON + MINUTE)
        assert seen([started(second)]) == seen(await backend.touch_sessions([second]))
        assert seen([started(second)]) == seen(await backend.active_sessions(user, second.at, 10))

    async def test_end(self, backend: LogBackend) -> None:
        """An ended session is not active any more, at no time; it ends once."""
        user = unique()
        signs = [touch(user, "s", NOON), touch(user, "other", NOON)]
        await backend.touch_sessions(signs)

        assert await backend.end_session(user, "s", NOON + TICK)
        assert not await backend.end_session(user, "s", NOON + TICK)
        assert not await backend.end_session(user, "unknown", NOON)
        assert not await backend.end_session(unique(), "other", NOON)
        assert seen([started(signs[1])]) == seen(await backend.active_sessions(user, NOON + TICK, 10))
        assert seen([started(signs[1])]) == seen(await backend.active_sessions(user, NOON, 10))

    async def test_start_again_after_the_end(self, backend: LogBackend) -> None:
        """A sign of life after the end starts a new session, without the old context."""
        user = unique()
        first, second = touch(user, "s", NOON, context={"old": True}), touch(user, "s", NOON + TICK * 5)
        third = touch(user, "s", NOON + TICK * 9, context={"new": True})
        await backend.touch_sessions([first])
        await backend.end_session(user, "s", NOON + TICK)

        assert seen([started(second)]) == seen(await backend.touch_sessions([second]))
        assert await backend.end_session(user, "s", NOON + TICK * 6)
        assert seen([started(third, context={"new": True})]) == seen(await backend.touch_sessions([third]))
        assert seen([started(third, context={"new": True})]) == seen(
            await backend.active_sessions(user, third.at, 10)
        )

    async def test_new_session_may_be_shorter(self, backend: LogBackend) -> None:
        """What took the place of an ended session has its own end, be it before the old one's."""
        user = unique()
        first, second = (
            touch(user, "s", NOON, idle_seconds=6000),
            touch(user, "s", NOON + TICK, idle_seconds=1),
        )
        await backend.touch_sessions([first])
        await backend.end_session(user, "s", NOON)

        assert seen([started(second)]) == seen(await backend.touch_sessions([second]))

    async def test_order_and_limit(self, backend: LogBackend) -> None:
        """Active sessions come by time last seen, newest first, then by session id, up to a limit."""
        user = unique()
        names = ["b", "a", "B", "ı", "i", "İ", "_", "Z", "é", "zz", "10", "9", "\uffff", "😀"]
        signs = [touch(user, name, NOON) for name in names]
        signs += [touch(user, f"newer {number}", NOON + TICK * number) for number in (2, 3, 1)]
        await backend.touch_sessions(signs)
        expected = ["newer 3", "newer 2", "newer 1", *sorted(names)]

        assert expected == [each.session_id for each in await backend.active_sessions(user, NOON, 100)]
        assert expected[:2] == [each.session_id for each in await backend.active_sessions(user, NOON, 2)]

    async def test_everybodys_sessions(self, backend: LogBackend) -> None:
        """Without a user the sessions of all are found: by time last seen, then by user, then by session."""
        # A time of its own, where no other test has sessions.
        era = datetime(3000, 1, 1, tzinfo=UTC) + timedelta(seconds=Random().randrange(10**10))
        mark = unique()
        users = [f"{mark}{name}" for name in ("b", "a", "B", "é", "\uffff", "😀", "_")]
        signs = [
            touch(user, session, era + TICK * (place % 2))
            for place, user in enumerate(users)
            for session in "ba"
        ]
        await backend.touch_sessions(signs)
        await backend.end_session(users[0], "a", era)
        expected = sorted(
            ((sign.at, sign.user_id, sign.session_id) for sign in signs), key=lambda key: key[1:]
        )
        expected.sort(key=lambda key: key[0], reverse=True)
        found = [each for each in await backend.active_sessions(None, era, 10_000) if each.user_id in users]

        assert [key for key in expected if key[1:] != (users[0], "a")] == [
            (each.last_seen_at, each.user_id, each.session_id) for each in found
        ]

    async def test_awkward_names(self, backend: LogBackend) -> None:
        """No user and session can be mistaken for another pair."""
        mark = unique()
        pairs = [
            ("a:b", "c"),
            ("a", "b:c"),
            ("a", "c"),
            ("ab", "c"),
            ("a", "bc"),
            ("A", "c"),
            ("a ", "c"),
            ("a", "C"),
        ]
        pairs += [("u", name) for name in AWKWARD_IDS] + [(name, "u") for name in AWKWARD_IDS]
        pairs = list(dict.fromkeys(pairs))
        signs = [
            touch(mark + user, session, NOON, context={"is": [user, session]}) for user, session in pairs
        ]
        touched = await backend.touch_sessions(signs)
        users = list(dict.fromkeys(sign.user_id for sign in signs))
        found = {user: await backend.active_sessions(user, NOON, 1000) for user in users}

        assert [{"is": [user, session]} for user, session in pairs] == [
            session.context for session in touched
        ]
        assert len(pairs) == sum(len(sessions) for sessions in found.values())
        assert [True] * len(pairs) == [
            await backend.end_session(sign.user_id, sign.session_id, NOON) for sign in signs
        ]

    async def test_twice_in_one_batch(self, backend: LogBackend) -> None:
        """Of several signs of life for one session in one batch each counts."""
        user = unique()
        signs = [touch(user, "s", NOON + TICK * n, context={"n": n} if n < 3 else None) for n in range(5)]
        sessions = await backend.touch_sessions([signs[0], touch(user, "other", NOON), *signs[1:]])
        last = started(signs[0], last_seen_at=signs[-1].at, expires_at=signs[-1].expires_at, context={"n": 2})

        assert ["s", "other", "s", "s", "s", "s"] == [session.session_id for session in sessions]
        assert seen([last]) == seen(sessions[-1:])
        assert seen([last]) == seen(await backend.active_sessions(user, NOON, 9))[:1]

    async def test_new_session_within_a_batch(self, backend: LogBackend) -> None:
        """A sign of life that comes too late for the one before it in the batch starts a new session."""
        user = unique()
        first, second = touch(user, "s", NOON, context={"old": 1}), touch(user, "s", NOON + MINUTE * 2)
        sessions = await backend.touch_sessions([first, second])

        assert seen([started(second)]) == seen(sessions[-1:])
        assert seen([started(second)]) == seen(await backend.active_sessions(user, second.at, 10))

    async def test_concurrent_touches(self, backend: LogBackend) -> None:
        """Of many signs of life at once one starts the session; the latest says when it was seen last."""
        user = unique()
        signs = [touch(user, "s", NOON + TICK * number) for number in range(50)]
        Random(17).shuffle(signs)
        sessions = [
            session for (session,) in await together(backend.touch_sessions([sign]) for sign in signs)
        ]
        (now,) = await backend.active_sessions(user, NOON, 10)
        latest = max(sign.at for sign in signs)

        assert {now.started_at} == {session.started_at for session in sessions}
        assert (latest, latest + MINUTE) == (now.last_seen_at, now.expires_at)

    async def test_concurrent_batches(self, backend: LogBackend) -> None:
        """Batches for the same sessions in other orders do not block each other."""
        user = unique()
        signs = [touch(user, f"s{number}", NOON) for number in range(40)]
        results = await together(backend.touch_sessions(each) for each in [signs, signs[::-1]] * 4)

        assert [40] * 8 == [len(result) for result in results]
        assert 40 == len(await backend.active_sessions(user, NOON, 100))

    async def test_race_of_ends(self, backend: LogBackend) -> None:
        """Of many who end a session at once one does."""
        user = unique()
        await backend.touch_sessions([touch(user, "s", NOON)])

        assert 1 == (await together(backend.end_session(user, "s", NOON) for _ in range(20))).count(True)

    async def test_many_sessions(self, backend: LogBackend) -> None:
        """A batch may touch 1,000 sessions."""
        user = unique()
        signs = [touch(user, f"s{number}", NOON + TICK * number) for number in range(1000)]

        assert seen([started(sign) for sign in signs]) == seen(await backend.touch_sessions(signs))
        assert 1000 == len(await backend.active_sessions(user, NOON, 10_000))

    async def test_awkward_context_of_a_session(self, backend: LogBackend) -> None:
        """A session's context comes back with the type of every value."""
        user = unique()
        contexts: list[dict[str, Any]] = [
            {"v": list(AWKWARD_VALUES)},
            dict.fromkeys(AWKWARD_KEYS, 1.0),
            DEEPEST,
        ]
        signs = [touch(user, f"s{n}", NOON - TICK * n, context=context) for n, context in enumerate(contexts)]
        expected = [started(sign, context=context) for sign, context in zip(signs, contexts, strict=True)]

        assert seen(expected) == seen(await backend.touch_sessions(signs))
        assert seen(expected) == seen(await backend.active_sessions(user, NOON, 10))

    @round_trips
    @given(context=free_dicts(), newer=free_dicts())
    async def test_any_context_of_a_session(
        self, backend: LogBackend, context: dict[str, Any], newer: dict[str, Any]
    ) -> None:
        """Whatever context the store lets through comes back equal, with its types."""
        user = unique()
        for given_context in (context, newer):
            sign = touch(user, "s", NOON, context=given_context)
            expected = seen([started(sign, context=given_context)])

            assert expected == seen(await backend.touch_sessions([sign]))
            assert expected == seen(await backend.active_sessions(user, NOON, 10))

    async def test_second_backend_sees_sessions(self, backend: LogBackend) -> None:
        """Sessions are there for another backend on the same data; ended ones are not."""
        user = unique()
        signs = [touch(user, "a", NOON, context={"v": 1.0}), touch(user, "b", NOON)]
        await backend.touch_sessions(signs)
        await backend.end_session(user, "b", NOON)
        second = await self.another()
        again = touch(user, "a", NOON + TICK)

        assert seen([started(signs[0], context={"v": 1.0})]) == seen(
            await second.active_sessions(user, NOON, 10)
        )
        assert not await second.end_session(user, "b", NOON)
        assert [NOON] == [session.started_at for session in await second.touch_sessions([again])]

"""State in memory: rows by kind, user and name, and a heap that knows which expire next."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multidb._core.clock import Clock

VALUE: Final = "v"
COOLDOWN: Final = "c"
COUNTER: Final = "n"
LIST: Final = "l"

NEVER: Final = 1 << 62
"""The deadline of what does not expire. Deadlines and times are microseconds since 1970: exact as ints."""

Row: TypeAlias = tuple[Any, int, int]
"""What is stored, its deadline, and the deadline under which the heap knows it: that or an earlier one."""

Run: TypeAlias = tuple[list[bytes], int, int, int]
"""A list: a buffer, the window of it that counts (from, to), and how many items were ever pushed."""

PRUNED_AT_ONCE: Final = 16
"""How many heap entries a write looks at: more than it adds, so that the dead never pile up."""

_STALE_ALLOWED: Final = 1024
_MICROSECONDS: Final = 1_000_000


class Tables:
    """
    Rows by kind, user and name. A row is alive before its deadline; `prune()` removes the dead stepwise.

    Rows are never changed, only replaced, so that putting the old one back undoes a write.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._kinds: dict[str, dict[str, dict[str, Row]]] = {
            kind: {} for kind in (VALUE, COOLDOWN, COUNTER, LIST)
        }
        self._heap: list[tuple[int, str, str, str]] = []
        self._stale = 0

    def find(self, kind: str, user: str, name: str, now: int) -> Row | None:
        """Return a row that is alive at *now*."""
        rows = self._kinds[kind].get(user)
        if rows is None:
            return None
        row = rows.get(name)
        return row if row is not None and row[1] > now else None

    def of_user(self, kind: str, user: str, now: int) -> dict[str, Any]:
        """Return what a user has that is alive at *now*, by name."""
        rows = self._kinds[kind].get(user, {})
        return {name: value for name, (value, deadline, _) in rows.items() if deadline > now}

    def put(self, kind: str, user: str, name: str, value: Any, deadline: int) -> Row | None:
        """Store a row; return the one that was there, alive or dead."""
        users = self._kinds[kind]
        rows = users.get(user)
        if rows is None:
            rows = users[user] = {}
        before = rows.get(name)
        scheduled = NEVER if before is None else before[2]
        # A later deadline needs no new entry: when the earlier one comes up, the row is asked and put back.
        if deadline < scheduled:
            heappush(self._heap, (deadline, kind, user, name))
            self._stale += scheduled != NEVER
            scheduled = deadline
        rows[name] = (value, deadline, scheduled)
        return before

    def touch(self, user: str, name: str, deadline: int) -> Row | None:
        """Give a value that is there another deadline; return the row as it was."""
        value = self._kinds[VALUE][user][name][0]
        return self.put(VALUE, user, name, value, deadline)

    def push(self, user: str, name: str, item: bytes, keep: int | None) -> int:
        """Append to a list and keep its newest *keep* items; return its length."""
        row = self._kinds[LIST].get(user, {}).get(name)
        run = pushed(row[0] if row is not None else None, item, keep)
        self.put(LIST, user, name, run, NEVER)
        return run[2] - run[1]

    def remove(self, kind: str, user: str, name: str) -> Row | None:
        """Remove a row; return the one that was there, alive or dead."""
        users = self._kinds[kind]
        rows = users.get(user)
        row = rows.pop(name, None) if rows is not None else None
        if row is not None:
            self._stale += row[2] != NEVER
            if not rows:
                del users[user]
        return row

    def restore(self, kind: str, user: str, name: str, row: Row | None) -> None:
        """Put back what `put()` or `remove()` returned. Only before `prune()`: the heap still knows it."""
        if row is None:
            self.remove(kind, user, name)
        else:
            self._kinds[kind].setdefault(user, {})[name] = row

    def prune(self, now: int, most: int) -> None:
        """Take up to *most* entries off the heap that are due at *now*, and remove the rows that are dead."""
        heap = self._heap
        while most and heap and heap[0][0] <= now:
            most -= 1
            self._settle(heappop(heap), now)
        if self._stale > _STALE_ALLOWED and self._stale * 2 > len(heap):
            self._heap = [entry for entry in heap if self._row_of(entry) is not None]
            heapify(self._heap)
            self._stale = 0

    def _settle(self, entry: tuple[int, str, str, str], now: int) -> None:
        row = self._row_of(entry)
        if row is None:
            self._stale -= 1
            return
        _, kind, user, name = entry
        value, deadline, _ = row
        if deadline <= now:
            self.remove(kind, user, name)
            self._stale -= 1
        else:
            self._kinds[kind][user][name] = (value, deadline, deadline)
            if deadline != NEVER:
                heappush(self._heap, (deadline, kind, user, name))

    def _row_of(self, entry: tuple[int, str, str, str]) -> Row | None:
        """Return the row that *entry* stands for; None when the entry is obsolete."""
        scheduled, kind, user, name = entry
        row = self._kinds[kind].get(user, {}).get(name)
        return row if row is not None and row[2] == scheduled else None

    def rows(self, now: int) -> Iterator[tuple[str, str, str, Any, int]]:
        """Yield kind, user, name, value and deadline of what is alive. Rows may be written meanwhile."""
        for kind, users in self._kinds.items():
            for user in list(users):
                for name in list(users.get(user, ())):
                    row = self.find(kind, user, name, now)
                    if row is not None:
                        yield kind, user, name, row[0], row[1]

    def __len__(self) -> int:
        """Return the number of rows, dead ones included."""
        return sum(len(rows) for users in self._kinds.values() for rows in users.values())


def pushed(run: Run | None, item: bytes, keep: int | None) -> Run:
    """Return a list with *item* at its end and only its newest *keep* items. *run* stays what it was."""
    buffer, start, stop, count = run or ([], 0, 0, 0)
    # What an undone push left behind the window.
    del buffer[stop:]
    buffer.append(item)
    stop += 1
    if keep is not None and stop - start > keep:
        start = stop - keep
        if start > keep:
            return buffer[start:], 0, keep, count + 1
    return buffer, start, stop, count + 1


def items_of(run: Run | None) -> list[bytes]:
    """Return the items of a list, oldest first."""
    if run is None:
        return []
    buffer, start, stop, _ = run
    return buffer[start:stop]


def microseconds(clock: Clock) -> int:
    """Return the time of *clock*."""
    return round(clock.time() * _MICROSECONDS)


def deadline_after(now: int, seconds: float | None) -> int:
    """Return the deadline of what lives for *seconds* from *now*, or, with None, until it is deleted."""
    return NEVER if seconds is None else now + round(seconds * _MICROSECONDS)

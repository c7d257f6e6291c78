"""The SQL of the logs: written once for each shape of a query, then only given its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

from sqlalchemy import (
    ARRAY,
    Integer,
    Text,
    bindparam,
    cast,
    column,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    union_all,
)

from multidb.logs._records import Sale, Session
from multidb.logs.backends._sql_rows import fields_of
from multidb.logs.backends._sql_tables import MESSAGES, SALES, SESSIONS, TABLES, Id, Time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pydantic import BaseModel
    from sqlalchemy import BindParameter, ClauseElement, ColumnElement, Dialect, Select, Table
    from sqlalchemy.types import TypeEngine

    from multidb.logs._records import Record

DELETED_AT_ONCE: Final = 5000
# Where a value comes from, by its name and type.
Given: TypeAlias = "Callable[[str, TypeEngine[Any]], ColumnElement[Any]]"

TOUCH: Final = """
INSERT INTO multidb_sessions AS s
    (user_id, session_id, started_at, last_seen_at, expires_at, ended_at, context)
{values}
ON CONFLICT (user_id, session_id) DO UPDATE SET
    started_at = CASE WHEN s.ended_at IS NULL AND s.expires_at > excluded.started_at
        THEN s.started_at ELSE excluded.started_at END,
    last_seen_at = CASE WHEN s.ended_at IS NULL AND s.expires_at > excluded.started_at
        THEN {later}(s.last_seen_at, excluded.last_seen_at) ELSE excluded.last_seen_at END,
    expires_at = CASE WHEN s.ended_at IS NULL AND s.expires_at > excluded.started_at
        THEN {later}(s.expires_at, excluded.expires_at) ELSE excluded.expires_at END,
    ended_at = NULL,
    context = CASE WHEN s.ended_at IS NULL AND s.expires_at > excluded.started_at
        THEN coalesce(excluded.context, s.context) ELSE excluded.context END
RETURNING user_id, session_id, started_at, last_seen_at, expires_at, ended_at, CAST(context AS TEXT)
"""
"""A session that was active goes on, any other starts anew; *later* is a function of two times."""

_FIRST: Final[ColumnElement[int]] = literal_column("1")


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL, the names of its arguments in order, and the arguments that SQLAlchemy has added."""

    sql: str
    names: tuple[str, ...]
    added: Mapping[str, Any]

    def args(self, values: Mapping[str, Any]) -> list[Any]:
        """Return the arguments as the driver takes them."""
        return [values[name] if name in values else self.added[name] for name in self.names]


class Shape(NamedTuple):
    """What of a query is in the SQL."""

    kind: type[Record]
    equal: tuple[str, ...]
    since: bool
    until: bool
    after: bool
    keyword: str
    """How a keyword is looked for, in a word of the flavour; "" without one."""


class Flavour(Protocol):
    """What PostgreSQL and SQLite write differently."""

    @property
    def dialect(self) -> Dialect:
        """What SQLAlchemy knows of the database."""
        ...

    def contains(self, how: str) -> ColumnElement[bool]:
        """Return the condition for a keyword that is looked for in the way *how*."""
        ...

    def aside(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return *column*, where there is no telling, such that no index is chosen for it."""
        ...

    def bucket(self, timestamp: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the start of the bucket of a time."""
        ...


class Statements:
    """Writes statements for one database, each once."""

    def __init__(self, flavour: Flavour) -> None:
        """Write for *flavour*."""
        self._flavour = flavour
        self._written: dict[object, Statement] = {}

    def select(self, shape: Shape) -> Statement:
        """Return the records, newest first."""
        return self._once(("select", shape), lambda: self._select(shape, _given))

    def select_each(self, shape: Shape) -> Statement:
        """
        Return the records of many queries, given as arrays of their arguments: for each the newest first.

        The last column says of which query a record is, counted from 1.
        """
        return self._once(("select_each", shape), lambda: self._select_each(shape))

    def count(self, shape: Shape, by: str | None) -> Statement:
        """Return rows of a value of *by* and how many records have it; without *by* one row with a number."""
        return self._once(("count", shape, by), lambda: self._count(shape, by))

    def histogram(self, shape: Shape) -> Statement:
        """Return rows of a bucket's start and how many records are in it, oldest first."""
        return self._once(("histogram", shape), lambda: self._histogram(shape))

    def message_stats(self, shape: Shape) -> Statement:
        """Return a row of totals, with NULL for the role, and a row of each role and its number."""
        return self._once(("stats", shape), lambda: self._message_stats(shape))

    def delete(self, shape: Shape) -> Statement:
        """Delete some of the records, and all when done often enough."""
        return self._once(("delete", shape), lambda: self._delete(shape))

    def set_status(self, allowed: int) -> Statement:
        """Give a sale a status if it has one of *allowed* others; return it."""
        return self._once(("set_status", allowed), lambda: _set_status(allowed))

    def sale(self) -> Statement:
        """Return a sale by its id."""
        return self._once(
            "sale", lambda: select(*_columns(Sale, SALES)).where(SALES.c.id == _given("id", Id))
        )

    def active_sessions(self, *, of_user: bool) -> Statement:
        """Return the sessions active at a time, the last seen first."""
        return self._once(("sessions", of_user), lambda: _active_sessions(of_user=of_user))

    def end_session(self) -> Statement:
        """End a session that is active."""
        return self._once("end", _end_session)

    def _once(self, key: object, build: Callable[[], ClauseElement]) -> Statement:
        statement = self._written.get(key)
        if statement is None:
            compiled: Any = build().compile(dialect=self._flavour.dialect)
            statement = self._written[key] = Statement(
                compiled.string, tuple(compiled.positiontup), compiled.params
            )
        return statement

    def _select(self, shape: Shape, given: Given) -> Select[Any]:
        records = TABLES[shape.kind]
        return (
            select(*_columns(shape.kind, records))
            .where(*self._conditions(shape, given))
            .order_by(records.c.timestamp.desc(), records.c.id.desc())
            .limit(given("limit", Integer()))
        )

    def _select_each(self, shape: Shape) -> ClauseElement:
        kinds = _kinds(shape)
        asked = (
            func.unnest(*(_given(name, ARRAY(kind)) for name, kind in kinds.items()))
            .table_valued(*(column(name, kind) for name, kind in kinds.items()), with_ordinality="number")
            .render_derived(name="asked")
        )
        # Nothing but a nested loop can run this, which keeps what it finds for each in order.
        found = self._select(shape, lambda name, kind: asked.c[name]).lateral("found")  # noqa: ARG005
        return select(found, asked.c.number).select_from(asked.join(found, true()))

    def _count(self, shape: Shape, by: str | None) -> ClauseElement:
        records = TABLES[shape.kind]
        counted = func.count()
        if by is None:
            return select(counted).select_from(records).where(*self._conditions(shape))
        field: ColumnElement[Any] = records.c[by]
        if (
            shape.since or shape.until
        ):  # SQLite would rather look at all of an index than sort what it counts.
            field = self._flavour.aside(field)
        return select(field, counted).where(*self._conditions(shape)).group_by(field)

    def _histogram(self, shape: Shape) -> ClauseElement:
        bucket = self._flavour.bucket(TABLES[shape.kind].c.timestamp)
        counts = select(bucket, func.count()).where(*self._conditions(shape))
        return counts.group_by(_FIRST).order_by(_FIRST)

    def _message_stats(self, shape: Shape) -> ClauseElement:
        columns = MESSAGES.c
        said = (
            select(
                columns.role,
                columns.user_id,
                columns.conversation_id,
                columns.timestamp,
                func.length(columns.text).label("characters"),
            )
            .where(*self._conditions(shape))
            .cte("said")
            .c
        )
        totals = select(
            cast(null(), Text()),
            func.count(),
            func.count(said.user_id.distinct()),
            func.count(said.conversation_id.distinct()),
            func.coalesce(func.sum(said.characters), literal_column("0")),
            func.min(said.timestamp),
            func.max(said.timestamp),
        )
        roles = select(said.role, func.count(), null(), null(), null(), null(), null()).group_by(said.role)
        return union_all(totals, roles)

    def _delete(self, shape: Shape) -> ClauseElement:
        records = TABLES[shape.kind]
        some = (
            select(records.c.id).where(*self._conditions(shape)).limit(literal_column(str(DELETED_AT_ONCE)))
        )
        return records.delete().where(records.c.id.in_(some))

    def _conditions(self, shape: Shape, given: Given | None = None) -> Iterator[ColumnElement[bool]]:
        given = given or _given
        columns = TABLES[shape.kind].c
        for name in shape.equal:
            # A user has fewer records than there are of a type, which SQLite cannot know.
            has = (
                columns[name]
                if name == "user_id" or "user_id" not in shape.equal
                else self._flavour.aside(columns[name])
            )
            yield has == given(name, Text())
        if shape.since:
            yield columns.timestamp >= given("since", Time)
        if shape.until:
            yield columns.timestamp < given("until", Time)
        if shape.after:
            after = tuple_(given("after_time", Time), given("after_id", Id))
            yield tuple_(columns.timestamp, columns.id) < after
        if shape.keyword:
            yield self._flavour.contains(shape.keyword)


def _kinds(shape: Shape) -> dict[str, TypeEngine[Any]]:
    """Return the arguments of a select."""
    kinds: dict[str, TypeEngine[Any]] = {name: Text() for name in shape.equal}
    times = {"since": shape.since, "until": shape.until, "after_time": shape.after}
    kinds |= {name: Time for name, is_there in times.items() if is_there}
    if shape.after:
        kinds["after_id"] = Id
    return {**kinds, "limit": Integer()}


def _set_status(allowed: int) -> ClauseElement:
    before = (SALES.c.status == _given(f"allowed_{number}", Text()) for number in range(allowed))
    return (
        SALES.update()
        .where(SALES.c.id == _given("id", Id), or_(false(), *before))
        .values(status=_given("new_status", Text()))
        .returning(*_columns(Sale, SALES))
    )


def _active_sessions(*, of_user: bool) -> ClauseElement:
    columns = SESSIONS.c
    sessions = select(*_columns(Session, SESSIONS)).where(
        columns.ended_at.is_(None), columns.expires_at > _given("now", Time)
    )
    if of_user:
        sessions = sessions.where(columns.user_id == _given("user_id", Text()))
    return sessions.order_by(columns.last_seen_at.desc(), columns.user_id, columns.session_id).limit(
        _given("limit", Integer())
    )


def _end_session() -> ClauseElement:
    columns = SESSIONS.c
    return (
        SESSIONS.update()
        .where(
            columns.user_id == _given("user_id", Text()),
            columns.session_id == _given("session_id", Text()),
            columns.ended_at.is_(None),
            columns.expires_at > _given("now", Time),
        )
        .values(ended_at=_given("now", Time))
    )


def _columns(model: type[BaseModel], rows: Table) -> Iterator[ColumnElement[Any]]:
    for name in fields_of(model):
        # As text a context does not depend on how a connection decodes json, and an amount keeps its digits.
        yield cast(rows.c[name], Text()) if name in {"amount", "context"} else rows.c[name]


def _given(name: str, kind: TypeEngine[Any]) -> BindParameter[Any]:
    return bindparam(name, type_=kind)

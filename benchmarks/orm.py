"""Multidb's table of events as SQLAlchemy's ORM has it, and engines as its documentation makes them."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 -- SQLAlchemy reads it at run time
from typing import TYPE_CHECKING, Any
from uuid import UUID  # noqa: TC003 -- SQLAlchemy reads it at run time

from sqlalchemy import JSON, event
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

if TYPE_CHECKING:
    from benchmarks.stage import Stage


class Base(DeclarativeBase):
    """The models."""


class PostgresEvent(Base):
    """A row of multidb_events on PostgreSQL."""

    __tablename__ = "multidb_events"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    timestamp: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True))
    context: Mapped[dict[str, Any]] = mapped_column(JSON)
    digest: Mapped[bytes]
    event_type: Mapped[str]
    message: Mapped[str]
    level: Mapped[str]
    username: Mapped[str | None]
    search: Mapped[str | None]


class SqliteBase(DeclarativeBase):
    """The models on SQLite."""


class SqliteEvent(SqliteBase):
    """A row of multidb_events on SQLite."""

    __tablename__ = "multidb_events"

    seq: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[bytes]
    user_id: Mapped[str]
    timestamp: Mapped[int]
    context: Mapped[dict[str, Any]] = mapped_column(JSON)
    digest: Mapped[bytes]
    event_type: Mapped[str]
    message: Mapped[str]
    level: Mapped[str]
    username: Mapped[str | None]
    search: Mapped[str | None]


def engine(stage: Stage, url: str, **options: Any) -> AsyncEngine:
    """Return an engine with ten connections that stay, and ten more when needed."""
    place = url.replace("postgresql://", "postgresql+asyncpg://").replace("sqlite://", "sqlite+aiosqlite://")
    made = create_async_engine(place, **({"pool_size": 10, "max_overflow": 10} | options))
    stage.at_end(made.dispose)
    if place.startswith("sqlite"):
        event.listen(made.sync_engine, "connect", _durable)
    return made


def sessions(stage: Stage, url: str, **options: Any) -> async_sessionmaker[AsyncSession]:
    """Return what makes sessions."""
    return async_sessionmaker(engine(stage, url, **options), expire_on_commit=False)


def _durable(connection: Any, record: object) -> None:  # noqa: ARG001
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()

"""What the figures were measured on: the machine, the versions, and how durable the servers were."""

from __future__ import annotations

import os
import platform
import sqlite3
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.stage import settings, temporary_folder
from multidb import MultiDB

_LIBRARIES = (
    "multidb", "asyncpg", "aiosqlite", "sqlalchemy", "psycopg", "pymongo", "motor", "beanie", "redis", "hiredis",
    "valkey-glide", "langgraph-checkpoint-postgres", "eventsourcing", "aiogram", "cashews", "aiocache",
    "py-key-value-aio", "orjson", "pydantic", "uvloop",
)  # fmt: skip
_POSTGRES_SETTINGS = (
    "server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "shared_buffers",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Return facts about this machine."""
    return {
        "cpus": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "system": _system(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.platform()


def libraries() -> dict[str, str]:
    """Return the versions of what is installed of multidb, the drivers and the rivals."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


async def servers(running: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the versions of the *running* servers, and what they themselves say of their durability."""
    ask = {"postgres": _postgres, "mongodb": _mongodb, "valkey": _valkey}
    facts = {kind: await ask[kind](server.url) for kind, server in running.items()}
    return facts | {"sqlite": await _sqlite()}


async def _sqlite() -> dict[str, Any]:
    """Ask a connection of multidb's: SQLite's durability is a matter of the connection."""
    levels = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}
    with temporary_folder() as folder:
        async with MultiDB(settings(logs=f"sqlite:///{folder}/logs.db")) as db:
            engine: Any = db._built["logs"].engine  # noqa: SLF001 -- no store tells
            ((synchronous,),) = await engine.fetch("PRAGMA synchronous", ())
            ((journal,),) = await engine.fetch("PRAGMA journal_mode", ())
    return {"version": sqlite3.sqlite_version, "synchronous": levels[synchronous], "journal_mode": journal}


async def _postgres(url: str) -> dict[str, Any]:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        return {name: await connection.fetchval(f"SHOW {name}") for name in _POSTGRES_SETTINGS}
    finally:
        await connection.close()


async def _mongodb(uri: str) -> dict[str, Any]:
    from pymongo import AsyncMongoClient

    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        build = await client.admin.command("buildInfo")
        concern = await client.admin.command("getDefaultRWConcern")
        status = await client.admin.command("serverStatus")
        members = (await client.admin.command("replSetGetStatus"))["members"]
    return {
        "version": build["version"],
        "storage_engine": status["storageEngine"]["name"],
        "persistent": status["storageEngine"]["persistent"],
        "members": len(members),
        "default_write_concern": concern.get("defaultWriteConcern", {}).get("w", "majority"),
        "write_concern_of_the_clients": "w=majority&journal=true",
    }


async def _valkey(url: str) -> dict[str, Any]:
    import redis.asyncio

    async with redis.asyncio.from_url(url) as client:
        info = await client.info("server")
        told = await client.config_get("append*", "save")
    found = {name: told[name] for name in ("appendonly", "appendfsync", "save")}
    return {"version": info.get("valkey_version") or info["redis_version"], **found}

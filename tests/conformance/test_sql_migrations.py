"""The tables of the SQL logs: made by many processes at once, upgraded, refused, and opened without rights."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from alembic.script import ScriptDirectory

from multidb.engines.sql import SqlEngine
from multidb.errors import ConfigurationError
from multidb.logs._records import Event
from multidb.logs.backends import migrations
from multidb.logs.backends._sql_tables import METADATA
from multidb.logs.backends.sql import SqlLogBackend
from multidb.logs.protocol import Query
from multidb.testing import servers
from multidb.testing.conformance._log_data import entries, event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(120)

needs_postgres = pytest.mark.skipif(
    servers.own_skip_reason("postgres") is not None, reason=str(servers.own_skip_reason("postgres"))
)

# Everything is imported, then the children all start at the same moment.
MANY = """
    import asyncio, os, sys
    from multidb.engines.sql import SqlEngine
    from multidb.logs._records import Event
    from multidb.logs.backends.sql import SqlLogBackend
    from multidb.testing.conformance._log_data import entries, event

    url, processes = sys.argv[1], int(sys.argv[2])

    async def start():
        engine = SqlEngine(url, pool_timeout_seconds=30, connect_timeout_seconds=30, command_timeout_seconds=30)
        await engine.open()
        backend = SqlLogBackend(engine)
        await backend.open()
        await backend.append(entries([event("u", message=str(os.getpid()))]))
        await backend.close()
        await engine.close()

    ready, go = os.pipe()
    children = []
    for _ in range(processes):
        child = os.fork()
        if not child:
            os.close(go)
            os.read(ready, 1)
            try:
                asyncio.run(start())
            except BaseException as exc:
                print(repr(exc), repr(exc.__cause__), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        children.append(child)
    os.close(go)
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    sys.exit(f"{failed} processes failed" if failed else 0)
"""


def run(script: str, *arguments: object) -> str:
    """Run a Python script in a process of its own; return what it prints."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/new/multidb.db"


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[SqlLogBackend]:
    engine = SqlEngine(url, **options)
    await engine.open()
    try:
        backend = SqlLogBackend(engine)
        await backend.open()
        yield backend
    finally:
        await engine.close()


async def refusal(url: str) -> str:
    """Return what the ConfigurationError says with which opening fails."""
    with pytest.raises(ConfigurationError) as caught:
        async with opened(url):
            pass
    return str(caught.value)


async def execute(url: str, *statements: str) -> list[Any]:
    """Run statements past multidb; return the rows of the last."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as db:
            return [db.execute(statement).fetchall() for statement in statements][-1]
    connection = await asyncpg.connect(url)
    try:
        return [[tuple(row) for row in await connection.fetch(statement)] for statement in statements][-1]
    finally:
        await connection.close()


async def check_works(backend: SqlLogBackend) -> None:
    await backend.append(entries([event("u", message="İlk mesaj")]))

    assert ["İlk mesaj"] == [each.message for each in await backend.query(Query(Event, keyword="ilk m"))]


async def test_many_processes_start_at_once(url: str) -> None:
    """All of many processes that start at the same moment on an empty database succeed: 20, on a new file 40."""
    processes = 40 if url.startswith("sqlite") else 20
    run(MANY, url, processes)

    async with opened(url) as backend:
        assert {"": processes} == await backend.count(Query(Event))
    assert [(migrations.REVISIONS[-1],)] == await execute(
        url, "SELECT version_num FROM multidb_schema_version"
    )


async def test_current_schema_needs_no_alembic(url: str) -> None:
    """Where there is nothing to do, a start does not even import Alembic."""
    async with opened(url):
        pass
    script = """
        import asyncio, json, sys
        from multidb.engines.sql import SqlEngine
        from multidb.logs.backends.sql import SqlLogBackend

        async def start():
            engine = SqlEngine(sys.argv[1])
            await engine.open()
            await SqlLogBackend(engine).open()
            await engine.close()

        asyncio.run(start())
        print(json.dumps([name for name in sys.modules if name.startswith(("alembic", "mako"))]))
    """

    assert [] == json.loads(run(script, url))


async def test_newer_schema_is_refused(url: str) -> None:
    """Tables of a newer multidb are left alone."""
    async with opened(url):
        pass
    await execute(url, "UPDATE multidb_schema_version SET version_num = '9999'")

    assert "a newer multidb made the tables (revision 9999): upgrade multidb" == await refusal(url)


async def test_older_schema_is_upgraded(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A schema of an older version gets what it lacks, once, and keeps its data."""
    async with opened(url) as backend:
        await check_works(backend)
    versions = tmp_path / "versions"
    versions.mkdir()
    for script in (Path(migrations.__file__).parent / "versions").glob("logs_*.py"):
        (versions / script.name).write_text(script.read_text())
    (versions / "next.py").write_text(
        "revision, down_revision = 'next', '" + migrations.REVISIONS[-1] + "'\n"
        "def upgrade(connection):\n"
        "    connection.exec_driver_sql('CREATE TABLE multidb_next (one integer)')\n"
    )
    monkeypatch.setattr(migrations, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(migrations, "REVISIONS", (*migrations.REVISIONS, "next"))

    async with opened(url), opened(url) as backend:
        assert {"": 1} == await backend.count(Query(Event))
    assert [] == await execute(url, "SELECT * FROM multidb_next")
    assert [("next",)] == await execute(url, "SELECT version_num FROM multidb_schema_version")


async def test_failed_upgrade_leaves_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A change of the schema that fails midway is undone, and can be tried again."""
    broken = tmp_path / "broken"
    (broken / "versions").mkdir(parents=True)
    (broken / "versions" / "broken.py").write_text(
        "revision, down_revision = '0001', None\n"
        "def upgrade(connection):\n"
        "    connection.exec_driver_sql('CREATE TABLE multidb_events (one integer)')\n"
        "    connection.exec_driver_sql('CREATE TABLE multidb_events (one integer)')\n"
    )
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "__file__", str(broken / "__init__.py"))
        with pytest.raises(Exception, match="refused the statement"):
            async with opened(url):
                pass

    async with opened(url) as backend:
        await check_works(backend)


def test_revisions() -> None:
    """The list that spares Alembic is the one that Alembic knows."""
    scripts = ScriptDirectory(Path(migrations.__file__).parent)
    known = [script.revision for script in scripts.walk_revisions()]

    assert list(migrations.REVISIONS) == known[::-1]


async def test_tables_have_the_columns(url: str) -> None:
    """The migrations make the columns that the statements name, in that order."""
    async with opened(url):
        pass
    for table in METADATA.sorted_tables:
        listing = (
            f"SELECT name FROM pragma_table_info('{table.name}')"
            if url.startswith("sqlite")
            else f"SELECT column_name::text FROM information_schema.columns WHERE table_name = '{table.name}' ORDER BY ordinal_position"
        )
        columns = [row[0] for row in await execute(url, listing)]

        assert [column.name for column in table.columns] == [name for name in columns if name != "seq"]


async def test_search_survives_vacuum(sqlite_url: str) -> None:
    """VACUUM renumbers rows that have no explicit number; those of events do, so that a search still finds them."""
    async with opened(sqlite_url) as backend:
        happened = [event("u", message=f"word{number}") for number in range(50)]
        await backend.append(entries(happened))
        await backend.delete(Query(Event, {"user_id": "nobody"}))
        await execute(sqlite_url, "DELETE FROM multidb_events WHERE seq % 2 = 0", "VACUUM")
        await backend.append(entries([event("u", message="new")]))
        found = [each.message for each in await backend.query(Query(Event, keyword="word", limit=100))]
        await execute(
            sqlite_url, "INSERT INTO multidb_events_search (multidb_events_search) VALUES ('integrity-check')"
        )

    assert 25 == len(found)


@needs_postgres
class TestPostgresRights:
    """What a database user may and may not do."""

    async def test_without_ddl_rights(self, postgres_url: str) -> None:
        """A user who may only read and write rows can use tables that are up to date."""
        async with opened(postgres_url):
            pass
        await execute(
            postgres_url,
            "CREATE ROLE writer LOGIN PASSWORD 'w'",
            "REVOKE CREATE ON SCHEMA public FROM public",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO writer",
        )
        try:
            async with opened(as_user(postgres_url, "writer", "w")) as backend:
                await check_works(backend)
        finally:
            await execute(postgres_url, "DROP OWNED BY writer", "DROP ROLE writer")

    async def test_extension_is_missing(self, postgres_url: str) -> None:
        """Who may not install the extension that searches is told what a superuser has to do; nothing is half-made."""
        await execute(
            postgres_url, "CREATE ROLE maker LOGIN PASSWORD 'm'", "GRANT CREATE ON SCHEMA public TO maker"
        )
        try:
            assert 'have a superuser run "CREATE EXTENSION pg_trgm"' in await refusal(
                as_user(postgres_url, "maker", "m")
            )
            assert [(0,)] == await execute(
                postgres_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
            )

            await execute(
                postgres_url,
                "CREATE SCHEMA extensions",
                "CREATE EXTENSION pg_trgm SCHEMA extensions",
                "GRANT USAGE ON SCHEMA extensions TO maker",
            )
            async with opened(as_user(postgres_url, "maker", "m")) as backend:
                await check_works(backend)
        finally:
            await execute(postgres_url, "DROP OWNED BY maker CASCADE", "DROP ROLE maker")

    async def test_no_right_to_create(self, postgres_url: str) -> None:
        """Who may not create tables is told so."""
        await execute(postgres_url, "CREATE EXTENSION pg_trgm", "CREATE ROLE reader LOGIN PASSWORD 'r'")
        try:
            assert "lacks a privilege" in await refusal(as_user(postgres_url, "reader", "r"))
        finally:
            await execute(postgres_url, "DROP ROLE reader")

    async def test_a_schema_of_its_own(self, postgres_url: str) -> None:
        """The tables are made in the first schema of the search_path, several sets of them in one database."""
        await execute(postgres_url, 'CREATE SCHEMA "My Bots"', "CREATE SCHEMA other")
        for schema in ('"My Bots"', "other"):
            async with opened(f"{postgres_url}?search_path={schema.replace(' ', '%20')}") as backend:
                await check_works(backend)
        counted = 'SELECT (SELECT count(*) FROM "My Bots".multidb_events), (SELECT count(*) FROM other.multidb_events)'

        assert [(1, 1)] == await execute(postgres_url, counted)
        assert [(None,)] == await execute(postgres_url, "SELECT to_regclass('public.multidb_events')")

    async def test_no_schema(self, postgres_url: str) -> None:
        """A search_path that names nothing there is refused."""
        assert "no schema of the search_path" in await refusal(f"{postgres_url}?search_path=nowhere")

    async def test_other_encoding(self, server: servers.PostgresServer, postgres_url: str) -> None:
        """A database that cannot keep every character is refused."""
        await execute(postgres_url, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        try:
            url = urlsplit(postgres_url)._replace(path="/latin").geturl()

            assert "the database has the encoding LATIN1; multidb needs UTF8" == await refusal(url)
        finally:
            server.drop_database("latin")

    async def test_database_without_a_locale(self, server: servers.PostgresServer, postgres_url: str) -> None:
        """In a database that takes letters beyond ASCII for punctuation a search finds the same."""
        await execute(postgres_url, "CREATE DATABASE plain ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0")
        try:
            async with opened(urlsplit(postgres_url)._replace(path="/plain").geturl()) as backend:
                await check_works(backend)
                await backend.append(
                    entries(event("u", message=text) for text in ("GÜNEŞLİ ŞİŞLİ", "мир", "güneş"))
                )
                found = [
                    await backend.query(Query(Event, keyword=word))
                    for word in ("şli şiş", "мир", "güneş", "ş")
                ]

                assert [1, 1, 2, 2] == [len(each) for each in found]
        finally:
            server.drop_database("plain")

    async def test_waiting_is_no_slow_statement(self, postgres_url: str) -> None:
        """Who waits for another process to make the tables waits longer than a statement may take."""
        async with opened(postgres_url):
            pass
        await execute(
            postgres_url, "DROP TABLE multidb_schema_version", "DROP TABLE multidb_events, multidb_sales"
        )
        await execute(postgres_url, "DROP TABLE multidb_messages, multidb_sessions, multidb_characters")
        connection = await asyncpg.connect(postgres_url)
        try:
            lock = int.from_bytes(b"multidb", "big")
            await connection.execute(f"SELECT pg_advisory_lock({lock})")
            backend = opened(postgres_url, command_timeout_seconds=0.4)
            opening = asyncio.create_task(backend.__aenter__())
            await asyncio.sleep(1.5)

            assert not opening.done()
            await connection.execute(f"SELECT pg_advisory_unlock({lock})")
            await check_works(await opening)
            await backend.__aexit__(None, None, None)
        finally:
            await connection.close()


async def test_waiting_for_a_file(sqlite_url: str) -> None:
    """Who waits for another process to make the tables waits longer than a statement may take."""
    path = sqlite_url.removeprefix("sqlite:///")
    Path(path).parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        backend = opened(sqlite_url, command_timeout_seconds=0.4)
        opening = asyncio.create_task(backend.__aenter__())
        await asyncio.sleep(1)

        assert not opening.done()
        db.execute("ROLLBACK")
        await check_works(await opening)
        await backend.__aexit__(None, None, None)


def as_user(url: str, user: str, password: str) -> str:
    """Return *url* for another user."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()

"""`multidb demo`: a coffee-ordering bot, or recorded conversations, on whatever the settings name."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from multidb import MultiDB, Settings
from multidb.cli._examples import load_example
from multidb.cli._output import console, errors, failing

_MEMORY = {"postgres_url": "memory://", "mongodb_uri": "memory://", "redis_url": "memory://"}

# Rejected lines: enough to see what is wrong with a file.
_SHOWN = 10


def demo(
    input: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            readable=True,
            help="Replay recorded conversations, one JSON a line: "
            # A backslash keeps rich from taking a bracket for markup.
            r'{"conversation_id": …, "turns": \[\[speaker, text], …], "order": {"items": \[…], "completed": true}}. '
            '"order" may be absent.',
        ),
    ] = None,
    in_memory: Annotated[bool, typer.Option("--in-memory", help="Keep everything in this process.")] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            metavar="DIR",
            file_okay=False,
            help=r"Folder of the embedded defaults \[default: data].",
        ),
    ] = None,
) -> None:
    """
    Run a small coffee-ordering bot and show what each store holds afterwards.

    Without any setting it runs on the embedded defaults, in the folder
    ./data; run it twice and the bot remembers you. With POSTGRES_URL,
    MONGODB_URI and REDIS_URL set it runs on those.

    With --input it replays recorded conversations and prints a report;
    running it again adds nothing, and goes on where it was stopped.

    Exit code 1: some lines were rejected, or the stores could not be
    opened.
    """
    overrides: dict[str, Any] = dict(_MEMORY) if in_memory else {}
    if data_dir is not None:
        overrides["data_dir"] = data_dir
    with failing():
        settings = Settings.from_env(**overrides)
        raise typer.Exit(_run(_replay(settings, input)) if input else _run(_talk(settings)))


def _run(coroutine: Coroutine[Any, Any, int]) -> int:
    try:
        return asyncio.run(coroutine)
    except KeyboardInterrupt:
        errors.print("stopped; what is done is kept, and a replay that is run again goes on")
        return 130


async def _talk(settings: Settings) -> int:
    bot = load_example("coffee_bot")
    async with MultiDB(settings) as db:
        console.print("[bold]A conversation[/]")
        answering = bot.CoffeeBot(db)
        for text in bot.CONVERSATION:
            console.print(f"  {bot.CUSTOMER}: {text}", markup=False)
            console.print(
                f"     bot: {await answering.handle(bot.CUSTOMER, text)}", style="green", markup=False
            )
        console.print()
        for table in (
            await _events(db, bot.CUSTOMER),
            await _profile(db, bot.CUSTOMER),
            await _state(db, bot.CUSTOMER),
        ):
            console.print(table)
        _where(db, console)
    return 0


async def _events(db: MultiDB, customer: str) -> Table:
    stats = await db.logs.get_message_stats(customer)
    sales = await db.logs.get_sales(customer, limit=3)
    total = await db.logs.count_events(customer)
    table = _table(
        f"logs: {total} events, {stats.total} messages of {customer}; the newest",
        "time (UTC)",
        "what",
        "content",
    )
    for event in await db.logs.get_events(customer, limit=5):
        table.add_row(
            f"{event.timestamp:%Y-%m-%d %H:%M:%S}", event.event_type, event.message or str(event.context)
        )
    for sale in sales:
        table.add_row(
            f"{sale.timestamp:%Y-%m-%d %H:%M:%S}",
            f"sale, {sale.status}",
            f"{sale.product_type} {sale.amount} {sale.currency}",
        )
    return table


async def _profile(db: MultiDB, customer: str) -> Table:
    profile = await db.profiles.get_profile_by_username(customer) or {}
    table = _table(f"profiles: the document of {customer}", "field", "value")
    for name, value in profile.items():
        table.add_row(name, str(value))
    return table


async def _state(db: MultiDB, customer: str) -> Table:
    table = _table(f"state: what is known of {customer} right now", "what", "value")
    for key, value in (await db.state.get_all_user_states(customer)).items():
        table.add_row(key, str(value))
    if (left := await db.state.check_cooldown(customer, "stamp")) is not None:
        table.add_row("cooldown stamp", f"{left:,.1f} seconds left")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", expand=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


async def _replay(settings: Settings, path: Path) -> int:
    example = load_example("coffee_replay")
    async with MultiDB(settings) as db:
        with path.open("rb") as file, _progress() as bar:
            lines = file if file.seekable() else BytesIO(file.read())
            task = bar.add_task("replaying", total=sum(1 for line in lines if line.strip()))
            lines.seek(0)
            progress = await example.replay_lines(db, lines, advance=lambda: bar.advance(task))
        for number, reason in progress.rejected[:_SHOWN]:
            errors.print(f"line {number} rejected: {reason}", style="red", markup=False)
        if len(progress.rejected) > _SHOWN:
            errors.print(f"… and {len(progress.rejected) - _SHOWN} more lines rejected", style="red")
        errors.print(
            f"{progress.replayed:,} replayed, {progress.known:,} were there already, "
            f"{len(progress.rejected):,} rejected"
        )
        for line in await example.report(db):
            console.print(line, markup=False, soft_wrap=True)
        _where(db, errors)
    return 1 if progress.rejected else 0


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
    )


def _where(db: MultiDB, console: Console) -> None:
    for store, location in db.locations.items():
        console.print(f"{store + ':':<10}{location}", style="dim", markup=False, soft_wrap=True)

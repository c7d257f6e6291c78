"""The commands put together, and the options of `multidb` itself."""

from __future__ import annotations

from typing import Annotated

import typer

from multidb import __version__
from multidb.cli import spool
from multidb.cli.demo import demo

app = typer.Typer(
    name="multidb",
    help="Event logs, profiles and state for bots, on PostgreSQL, MongoDB and Redis, or on nothing at all.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.add_typer(spool.app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"multidb {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hold the options of `multidb` itself."""

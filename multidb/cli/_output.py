"""What commands share: where they print, how they fail, and the bar of what takes long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from multidb import BackendError, MultiDBError

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


@contextmanager
def failing(hint: str = "") -> Iterator[None]:
    """Turn an error of multidb into a line, with a *hint* unless it says what to do; exit code 1, of Ctrl-C 130."""
    try:
        yield
    except MultiDBError as exc:
        errors.print(f"[bold red]error:[/] {type(exc).__name__}:", end=" ")
        next_step = f"; {hint}" if hint and isinstance(exc, BackendError) else ""
        errors.print(f"{exc}{next_step}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print("stopped")
        raise typer.Exit(130) from None


def bar_of_bytes(*, hidden: bool = False) -> Progress:
    """Return a bar that counts bytes, for a terminal only."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=hidden or not errors.is_terminal,
    )

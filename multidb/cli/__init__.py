"""The command `multidb` (extra `cli`)."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from multidb.cli._app import app
    except ModuleNotFoundError as exc:
        if exc.name not in ("typer", "rich", "click"):
            raise
        sys.exit(f'{exc.name} is not installed: pip install "multidb[cli]"')
    app()

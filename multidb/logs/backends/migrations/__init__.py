"""
The schema of the SQL logs, version by version, as Alembic revisions.

To change the schema: add a file to `versions/` whose `upgrade(connection)` does it on both databases, and its
revision to `REVISIONS`. A revision that was released stays as it is.
"""

from __future__ import annotations

from typing import Final

REVISIONS: Final = ("0001",)
"""Every revision, oldest first. Here, too, so that an up-to-date schema is recognised without Alembic."""

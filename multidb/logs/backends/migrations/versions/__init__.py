"""The revisions, which Alembic finds here."""

"""For Alembic's env.py: our four tables as a target, with what PostgreSQL wants of them. And, for an Alembic that does not load our plugin,
the filter that leaves them alone, and how an `Instant` is written. Connects to nothing.
"""

from __future__ import annotations

from groundstate.store import kept_rows, postgres
from groundstate.store.autogenerate import include_name, render_item
from groundstate.store.tables import metadata

postgres.dress_tables()

# Statements for `op.execute` in the migration that makes our tables on PostgreSQL: the trigger that keeps the rows of calls that may have
# been made. `groundstate init` and `metadata.create_all` say them themselves; `groundstate check` tells where it is missing.
keep_rows = kept_rows.STATEMENTS

__all__ = ["include_name", "keep_rows", "metadata", "render_item"]

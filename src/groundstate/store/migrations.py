"""Offers Alembic's env.py our four tables as a target, with the options that they need on PostgreSQL.

For an Alembic that does not load our plugin, it also has the filter that leaves our tables alone, and the renderer of `UtcDateTime`.
Connects to nothing.
"""

from __future__ import annotations

from groundstate.store import delete_guard, postgres
from groundstate.store.autogenerate import include_name, render_item
from groundstate.store.tables import metadata

postgres.dress_tables()

# Statements for `op.execute` in the migration that creates our tables on PostgreSQL: the triggers that keep the rows of calls that may have
# been made. `groundstate init` and `metadata.create_all` run them by themselves; `groundstate check` reports missing triggers.
keep_rows = delete_guard.STATEMENTS

__all__ = ["include_name", "keep_rows", "metadata", "render_item"]

"""Provides groundstate's four tables as a target for Alembic's env.py, with the options that the tables need on PostgreSQL.

It also exports `include_name`, which leaves these tables alone, and `render_item`, which writes `UtcDateTime` columns, for an Alembic that
does not load groundstate's plugin. It does not connect.
"""

from __future__ import annotations

from groundstate.store import delete_guard, postgres
from groundstate.store.autogenerate import include_name, render_item
from groundstate.store.tables import metadata

postgres.add_postgres_options()

# Statements for `op.execute` in the migration that creates groundstate's tables on PostgreSQL. They create triggers that protect the rows
# of calls that may have been made. `groundstate init` and `metadata.create_all` run the statements too; `groundstate check` reports missing
# triggers.
keep_rows = delete_guard.STATEMENTS

__all__ = ["include_name", "keep_rows", "metadata", "render_item"]

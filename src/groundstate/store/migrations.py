"""For Alembic's env.py: our four tables as a target, with what PostgreSQL wants of them. And, for an Alembic that does not load our plugin,
the filter that leaves them alone, and how an `Instant` is written. Connects to nothing.
"""

from __future__ import annotations

from groundstate.store import postgres
from groundstate.store.autogenerate import include_name, render_item
from groundstate.store.tables import metadata

postgres.dress_tables()

__all__ = ["include_name", "metadata", "render_item"]

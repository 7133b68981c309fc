"""Our four tables as a target for Alembic, with what PostgreSQL wants of them. Nothing here connects."""

from __future__ import annotations

from groundstate.store import postgres
from groundstate.store.tables import metadata

postgres.dress_tables()

__all__ = ["metadata"]

"""Plugs into Alembic 1.18 or newer, which loads it by itself: `alembic revision --autogenerate` writes no DROP for groundstate's tables.

Alembic knows the tables of `target_metadata`, and takes every other table of the database for one to be dropped. Where env.py has
groundstate's metadata as a target, by itself or in a list, its tables are compared like all others. A `UtcDateTime` column, ours or the
project's, is written by its public name, with the import that it needs. Only Alembic imports this module.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from alembic.util import DispatchPriority, PriorityDispatchResult

from groundstate.store.autogenerate import left_alone, render_item, targets_of

if TYPE_CHECKING:  # Alembic imports this module while it is itself only partly imported
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps
    from alembic.runtime.plugins import Plugin

log = logging.getLogger("alembic.autogenerate.groundstate")  # shown beside Alembic's own line 'Detected removed table'


def setup(plugin: Plugin) -> None:
    """Register our comparators; Alembic calls this once, when it starts. Ours for tables runs last, after the others have found their
    operations.
    """
    plugin.add_autogenerate_comparator(leave_ours_alone, "schema", "groundstate_tables", priority=DispatchPriority.LAST)
    plugin.add_autogenerate_comparator(name_our_types, "schema", "groundstate_types")


def leave_ours_alone(context: AutogenContext, upgrade_ops: UpgradeOps, schemas: set[str | None]) -> PriorityDispatchResult:  # noqa: ARG001  # Alembic's signature
    """Remove each operation on a table of ours, or on its indexes, where the project's metadata does not contain the table."""
    targets = targets_of(context.sorted_tables, context.dialect.default_schema_name)
    spared: set[str] = set()
    kept: list[Any] = []
    for operation in upgrade_ops.ops:
        name, schema = getattr(operation, "table_name", None), getattr(operation, "schema", None)
        if isinstance(name, str) and left_alone((schema, name), targets):
            spared.add(name if schema is None else f"{schema}.{name}")
        else:
            kept.append(operation)
    if spared:
        upgrade_ops.ops[:] = kept
        left = sorted(spared)
        log.info("groundstate's own tables are left as they are: %s", ", ".join(left), extra={"event": "tables_left_alone", "tables": left})
    return PriorityDispatchResult.CONTINUE


def name_our_types(context: AutogenContext, upgrade_ops: UpgradeOps, schemas: set[str | None]) -> PriorityDispatchResult:  # noqa: ARG001  # Alembic's signature
    """Add our `render_item` to the project's own, which is called first."""
    theirs = context.opts.get("render_item")

    def render(type_: str, item: object, context: Any) -> str | Literal[False]:
        rendered: str | Literal[False] = theirs(type_, item, context) if theirs is not None else False
        return rendered if rendered is not False else render_item(type_, item, context)

    context.opts["render_item"] = render
    return PriorityDispatchResult.CONTINUE

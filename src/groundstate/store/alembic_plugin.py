"""A plugin that Alembic 1.18 and newer loads by itself, so that `alembic revision --autogenerate` writes no DROP for groundstate's tables.

Without the plugin, Alembic would drop every table that `target_metadata` does not contain. If env.py gives groundstate's metadata as a
target, groundstate's tables are compared like all others. The plugin also makes Alembic write each `UtcDateTime` column by its public name,
with the import for that name. Only Alembic imports this module.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from alembic.util import DispatchPriority, PriorityDispatchResult

from groundstate.store.autogenerate import is_left_alone, render_item, target_table_names

if TYPE_CHECKING:  # Alembic imports this module while it is itself only partly imported
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps
    from alembic.runtime.plugins import Plugin

log = logging.getLogger("alembic.autogenerate.groundstate")  # a child of Alembic's logger, so that the line is shown with Alembic's lines


def setup(plugin: Plugin) -> None:
    """Register groundstate's two comparators. Alembic calls this once, when it starts.

    The comparator for tables runs last, since it removes operations that the others found.
    """
    plugin.add_autogenerate_comparator(remove_operations_on_our_tables, "schema", "groundstate_tables", priority=DispatchPriority.LAST)
    plugin.add_autogenerate_comparator(install_type_renderer, "schema", "groundstate_types")


def remove_operations_on_our_tables(context: AutogenContext, upgrade_ops: UpgradeOps, schemas: set[str | None]) -> PriorityDispatchResult:  # noqa: ARG001  # Alembic passes all three arguments
    """Remove every operation on one of groundstate's tables, or on its indexes, unless the project's metadata contains that table."""
    targets = target_table_names(context.sorted_tables, context.dialect.default_schema_name)
    spared: set[str] = set()
    kept: list[Any] = []
    for operation in upgrade_ops.ops:
        name, schema = getattr(operation, "table_name", None), getattr(operation, "schema", None)
        if isinstance(name, str) and is_left_alone((schema, name), targets):
            spared.add(name if schema is None else f"{schema}.{name}")
        else:
            kept.append(operation)
    if spared:
        upgrade_ops.ops[:] = kept
        left = sorted(spared)
        log.info("groundstate's own tables are left as they are: %s", ", ".join(left), extra={"event": "tables_left_alone", "tables": left})
    return PriorityDispatchResult.CONTINUE


def install_type_renderer(context: AutogenContext, upgrade_ops: UpgradeOps, schemas: set[str | None]) -> PriorityDispatchResult:  # noqa: ARG001  # Alembic passes all three arguments
    """Install groundstate's `render_item`, which is asked after the project's own `render_item`, if env.py gives one."""
    theirs = context.opts.get("render_item")

    def render(type_: str, item: object, context: Any) -> str | Literal[False]:
        rendered: str | Literal[False] = theirs(type_, item, context) if theirs is not None else False
        return rendered if rendered is not False else render_item(type_, item, context)

    context.opts["render_item"] = render
    return PriorityDispatchResult.CONTINUE

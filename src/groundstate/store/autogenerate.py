"""Provides functions with which Alembic's autogenerate leaves groundstate's tables alone, and writes `UtcDateTime` columns.

The module does not import Alembic.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any, Literal

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from groundstate.store.tables import UtcDateTime, metadata
from groundstate.store.wrote_column import Xid8

OURS = frozenset(metadata.tables)
TableName = tuple[str | None, str]  # pair (schema, name of a table); None stands for the connection's default schema


def include_name(name: str | None, type_: str, parent_names: MutableMapping[str, str | None]) -> bool:  # noqa: ARG001  # Alembic passes all three arguments
    """Return False for groundstate's tables and True for everything else, for `context.configure(include_name=...)` in env.py.

    It is needed if Alembic is older than 1.18, or if `autogenerate_plugins` names other plugins but not groundstate's. Do not use it if
    `target_metadata` contains groundstate's tables: Alembic would then treat the tables as missing, and create them again.
    """
    return not (type_ == "table" and name in OURS)


def render_item(type_: str, item: object, context: Any) -> str | Literal[False]:
    """Return the Python source of groundstate's column types, for `context.configure(render_item=...)` in env.py; False for all other
    types.

    The source names `groundstate.UtcDateTime`, or `Xid8` for PostgreSQL's type xid8, and the import for the name is added. It is needed
    when `include_name` is needed. A subclass of `UtcDateTime` is the project's own type, so its env.py must handle it.
    """
    if type_ != "type":
        return False
    if type(item) is UtcDateTime:
        context.imports.add("import groundstate")
        return f"groundstate.{item!r}{_render_variants(item, context)}"
    if isinstance(item, postgresql.ARRAY) and type(item.item_type) is UtcDateTime:
        context.imports.update(("import groundstate", "from sqlalchemy.dialects import postgresql"))
        return (
            "postgresql." + repr(item).replace(repr(item.item_type), f"groundstate.{item.item_type!r}", 1) + _render_variants(item, context)
        )
    if isinstance(item, Xid8):
        context.imports.add(f"from {Xid8.__module__} import Xid8")
        return "Xid8()"
    return False


def _render_variants(item: TypeEngine[Any], context: Any) -> str:
    """Return the Python source of the `.with_variant(...)` calls of a type; '' if it has no variants. Alembic does not write them for
    types that `render_item` writes.
    """
    found: dict[str, TypeEngine[Any]] = dict(item._variant_mapping)  # noqa: SLF001  # SQLAlchemy has no public attribute for it
    return "".join(f".with_variant({_render_nested_type(found[dialect], context)}, {dialect!r})" for dialect in sorted(found))


def _render_nested_type(kind: TypeEngine[Any], context: Any) -> str:
    """Return the Python source of a type within another type, as Alembic would write it, and add the import that the source needs."""
    ours = render_item("type", kind, context)
    if ours is not False:
        return ours
    module = type(kind).__module__
    if module.startswith("sqlalchemy.dialects."):
        dialect = module.split(".")[2]
        context.imports.add(f"from sqlalchemy.dialects import {dialect}")
        return f"{dialect}.{kind!r}"
    if module.startswith("sqlalchemy."):
        return f"{context.opts.get('sqlalchemy_module_prefix') or ''}{kind!r}"
    context.imports.add(f"import {module}")
    return f"{module}.{kind!r}"


def is_left_alone(table: TableName, targets: frozenset[TableName]) -> bool:
    """Return whether autogenerate must leave this table alone: it has the name of one of groundstate's tables, and is not in `targets`.

    The schema does not matter: a worker's role may find the tables by its own `search_path`, in a schema that is not Alembic's default.
    """
    return table[1] in OURS and table not in targets


def target_table_names(tables: Iterable[Table], default_schema: str | None) -> frozenset[TableName]:
    """Return a pair (schema, name) for each table of the project's metadata. As in autogenerate, the default schema is None."""
    return frozenset((None if table.schema == default_schema else table.schema, table.name) for table in tables)

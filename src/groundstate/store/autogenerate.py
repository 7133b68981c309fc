"""Tells Alembic's autogenerate which of groundstate's tables it leaves alone, and how a `UtcDateTime` column is written.

Imports no Alembic.
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
TableName = tuple[str | None, str]  # (schema, name); the schema is None for the connection's default one


def include_name(name: str | None, type_: str, parent_names: MutableMapping[str, str | None]) -> bool:  # noqa: ARG001  # Alembic's form
    """Return False for groundstate's tables and True for everything else, for `context.configure(include_name=...)` in env.py.

    Needed where Alembic is older than 1.18, or where `autogenerate_plugins` names plugins, but not ours. Do not use it where
    `target_metadata` has groundstate's tables: Alembic would take them for missing, and create them once more.
    """
    return not (type_ == "table" and name in OURS)


def render_item(type_: str, item: object, context: Any) -> str | Literal[False]:
    """Return the Python source of groundstate's column types, for `context.configure(render_item=...)` in env.py; False for all other
    types.

    A `UtcDateTime` is written by its public name, and PostgreSQL's xid8, for which SQLAlchemy has no type, by our name for it; each with
    the import that it needs. Needed in the same cases as `include_name`. A subclass of `UtcDateTime` is the project's own type, and is left
    to the project's env.py.
    """
    if type_ != "type":
        return False
    if type(item) is UtcDateTime:
        context.imports.add("import groundstate")
        return f"groundstate.{item!r}{_variants(item, context)}"
    if isinstance(item, postgresql.ARRAY) and type(item.item_type) is UtcDateTime:
        context.imports.update(("import groundstate", "from sqlalchemy.dialects import postgresql"))
        return "postgresql." + repr(item).replace(repr(item.item_type), f"groundstate.{item.item_type!r}", 1) + _variants(item, context)
    if isinstance(item, Xid8):
        context.imports.add(f"from {Xid8.__module__} import Xid8")
        return "Xid8()"
    return False


def _variants(item: TypeEngine[Any], context: Any) -> str:
    """Return the `.with_variant(...)` calls that say what a type is on other databases. Alembic writes those only where it writes the type
    itself.
    """
    found: dict[str, TypeEngine[Any]] = dict(item._variant_mapping)  # noqa: SLF001  # SQLAlchemy has no public name for it
    return "".join(f".with_variant({_written(found[dialect], context)}, {dialect!r})" for dialect in sorted(found))


def _written(kind: TypeEngine[Any], context: Any) -> str:
    """Return a nested type as Alembic would write it."""
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


def left_alone(table: TableName, targets: frozenset[TableName]) -> bool:
    """Return whether autogenerate is to leave this table alone: it has the name of one of ours, and the project's metadata does not contain
    it.

    This holds in every schema: a worker's role may find our tables by its own `search_path`, in a schema that is not Alembic's default one.
    """
    return table[1] in OURS and table not in targets


def targets_of(tables: Iterable[Table], default_schema: str | None) -> frozenset[TableName]:
    """Return the tables of the project's metadata as autogenerate names them: without the default schema."""
    return frozenset((None if table.schema == default_schema else table.schema, table.name) for table in tables)

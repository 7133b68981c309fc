"""What Alembic's autogenerate is to know of groundstate: which tables it leaves alone, and how an `Instant` is written.

Imports no Alembic.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any, Literal

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from groundstate.store.tables import Instant, metadata
from groundstate.store.written import Xid8

OURS = frozenset(metadata.tables)
TableName = tuple[str | None, str]  # schema, None for the connection's default one; and name


def include_name(name: str | None, type_: str, parent_names: MutableMapping[str, str | None]) -> bool:  # noqa: ARG001  # Alembic calls it so
    """For `context.configure(include_name=...)` in env.py: False for groundstate's tables, True for everything else.

    Needed where Alembic is older than 1.18, or `autogenerate_plugins` names plugins and not ours. Not for an env.py whose
    `target_metadata` has groundstate's tables: Alembic would take them for missing, and create them once more.
    """
    return not (type_ == "table" and name in OURS)


def render_item(type_: str, item: object, context: Any) -> str | Literal[False]:
    """For `context.configure(render_item=...)` in env.py: an `Instant` is written by its public name, and PostgreSQL's xid8, for which
    SQLAlchemy has no type, by ours, each with the import that it needs; all else as usual. Needed where `include_name` is.

    A subclass of `Instant` is the project's own type, and is left to the project's own env.py as all others are.
    """
    if type_ != "type":
        return False
    if type(item) is Instant:
        context.imports.add("import groundstate")
        return f"groundstate.{item!r}{_variants(item, context)}"
    if isinstance(item, postgresql.ARRAY) and type(item.item_type) is Instant:
        context.imports.update(("import groundstate", "from sqlalchemy.dialects import postgresql"))
        return "postgresql." + repr(item).replace(repr(item.item_type), f"groundstate.{item.item_type!r}", 1) + _variants(item, context)
    if isinstance(item, Xid8):
        context.imports.add(f"from {Xid8.__module__} import Xid8")
        return "Xid8()"
    return False


def _variants(item: TypeEngine[Any], context: Any) -> str:
    """What it is on other databases. Alembic writes this by itself only where it writes the type as well."""
    found: dict[str, TypeEngine[Any]] = dict(item._variant_mapping)  # noqa: SLF001  # it has no public name
    return "".join(f".with_variant({_written(found[dialect], context)}, {dialect!r})" for dialect in sorted(found))


def _written(kind: TypeEngine[Any], context: Any) -> str:
    """A type within another one, as Alembic would write it."""
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
    """Whether autogenerate is to leave this table alone: it has the name of one of ours, and the project's metadata does not name it.

    In each schema: a worker's role may find our tables by its own `search_path`, in a schema that is not Alembic's default one.
    """
    return table[1] in OURS and table not in targets


def targets_of(tables: Iterable[Table], default_schema: str | None) -> frozenset[TableName]:
    """The tables that the project's metadata names, as autogenerate names them: without the default schema."""
    return frozenset((None if table.schema == default_schema else table.schema, table.name) for table in tables)

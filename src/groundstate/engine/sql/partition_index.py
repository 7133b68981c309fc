"""Writes the DDL of an index on a partitioned table of PostgreSQL, one partition after another, so that writers are not blocked. Runs no
DDL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

_ROOTS = text("""
    SELECT DISTINCT part.relname AS name, root.relname AS root FROM pg_class AS part
    JOIN pg_class AS root ON root.oid = pg_partition_root(part.oid)
    WHERE part.relispartition AND part.relkind IN ('r', 'p', 'f') AND part.relname = ANY(cast(:names AS text[]))
""")
_TREE = text("""
    SELECT format('%I.%I', n.nspname, c.relname) AS name, quote_ident(n.nspname) AS schema, tree.isleaf AS leaf, tree.level AS level,
           (SELECT format('%I.%I', pn.nspname, p.relname) FROM pg_class AS p JOIN pg_namespace AS pn ON pn.oid = p.relnamespace
            WHERE p.oid = tree.parentrelid) AS parent
    FROM pg_partition_tree(to_regclass(:name)) AS tree
    JOIN pg_class AS c ON c.oid = tree.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind <> 'f' ORDER BY tree.level, n.nspname, c.relname
""")
_NAME_MOST = 63


@dataclass(frozen=True)
class PartitionTreeTable:
    """One table of a partition tree: the root table or a partition. Its name is written as in SQL, with the schema."""

    name: str
    schema: str
    parent: str | None
    leaf: bool


def partition_roots(connection: Connection, names: Sequence[str]) -> dict[str, str]:
    """Return a dict from the name of each partition among these tables to the name of its root table."""
    return {row.name: row.root for row in connection.execute(_ROOTS, {"names": list(names)})}


def partition_tree(connection: Connection, name: str) -> list[PartitionTreeTable]:
    """Return the table with this name and all its partitions; an empty list if the table has no partitions."""
    found = [PartitionTreeTable(row.name, row.schema, row.parent, row.leaf) for row in connection.execute(_TREE, {"name": name})]
    return found if len(found) > 1 or any(not one.leaf for one in found) else []


def partitioned_index_ddl(parts: Sequence[PartitionTreeTable], name: str, what: str) -> str:
    """Return the DDL of an index on a partitioned table. Each partition gets an index of its own, since PostgreSQL refuses CREATE INDEX
    CONCURRENTLY on the whole table.

    name: The name of the index. what: Its columns and its WHERE, as SQL.
    """
    said, attached = [], []
    names: dict[str, str] = {}
    for number, part in enumerate(parts):
        own = name if part.parent is None or number == 0 else f"{name[: _NAME_MOST - 6]}_{number}"
        names[part.name] = f'{part.schema}."{own}"'
        how = "CONCURRENTLY " if part.leaf else ""
        said.append(f'CREATE INDEX {how}"{own}" ON {"" if part.leaf else "ONLY "}{part.name} {what};')
        if number:
            attached.append(f"ALTER INDEX {names[part.parent or '']} ATTACH PARTITION {names[part.name]};")
    return "\n".join([*said, *reversed(attached)])

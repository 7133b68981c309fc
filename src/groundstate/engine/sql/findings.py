"""Collects the findings of `groundstate check`. A worker that starts also looks for some of these findings. Runs only SELECTs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection
from sqlalchemy.exc import CompileError

from groundstate.engine.sql import explain, odd_due_times, row_security
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store.port import Database
from groundstate.store.tables import metadata as our_tables

# rows: if each sweep scans a table of at least this size, the finding is a 'problem'; for a smaller table it is 'advice'
LARGE = 10_000


@dataclass(frozen=True)
class Finding:
    """One thing that `groundstate check` has found. `level` is 'problem', which makes the command exit with 1, or 'advice', which does
    not.
    """

    level: Literal["problem", "advice"]
    kind: str
    subject: str
    words: str
    cure: str | None = None


def find_missing_indexes(database: Database, connection: Connection, query: ConditionQuery) -> Iterator[Finding]:
    """Yield one finding per table that the database reads or sorts as a whole for this condition, with the DDL of the missing index."""
    name = query.spec.name
    try:
        found = explain.find_table_scans(database, connection, query)
        sorted_ = explain.find_sort_by_due_time(database, connection, query)
        grouped = explain.find_sort_by_group(database, connection, query)
    except CompileError as error:
        yield Finding("advice", "index", name, f"its condition cannot be explained: {error}")
        return
    if grouped is not None:
        words = f"each search for the rows of {name}, value by value, sorts all rows of {grouped.table} that meet its condition"
        yield Finding("problem" if grouped.rows >= LARGE else "advice", "index", name, words, grouped.ddl)
    if sorted_ is not None:
        words = f"the next due records of {name} are found by sorting all rows of {sorted_.table} that meet its condition"
        yield Finding("problem" if sorted_.rows >= LARGE else "advice", "index", name, words, sorted_.ddl)
    if sorted_ is not None or grouped is not None:
        return
    for scan in found:
        many = f"at least {scan.rows:,}" if scan.rows >= explain.COUNTED_MOST else f"{scan.rows:,}"
        words = f"each sweep of {name} reads the whole table {scan.table} ({many} rows)"
        if scan.ddl is None:
            words += ": no index serves its condition; add one on the columns that it compares, or a clause that an index can answer"
        yield Finding("problem" if scan.rows >= LARGE else "advice", "index", name, words, scan.ddl)


def find_large_scans(database: Database, connection: Connection, queries: Sequence[ConditionQuery]) -> list[Finding]:
    """Return one problem per missing index. Without this index, each sweep (query of all records that meet a condition) reads a large
    table as a whole.
    """
    return [found for query in queries for found in find_missing_indexes(database, connection, query) if found.level == "problem"]


def find_hidden_rows(database: Database, connection: Connection, queries: Sequence[ConditionQuery]) -> list[Finding]:
    """Return one problem per table in which row-level security may hide rows from groundstate's role. No reaction is carried out for a
    hidden row.
    """
    asked = [table for query in queries for table in sorted(explain.tables_in_condition(query), key=lambda table: str(table.fullname))]
    return [
        Finding(
            "problem",
            "row security",
            name,
            f"policies may hide rows of {name} from {(role := row_security.current_role_name(connection))}: what it does not see it"
            " does not carry out, and `pending` of the table's owner shows it as left to do for ever",
            f"CREATE POLICY groundstate ON {name} TO {role} USING (true) WITH CHECK (true), and no RESTRICTIVE policy for it;"
            f" or ALTER ROLE {role} BYPASSRLS",
        )
        for name in row_security.tables_with_hidden_rows(database, connection, [*asked, *our_tables.sorted_tables])
    ]


def find_odd_due_times(connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield one problem per reaction for which SQLite stores a due time in a format that does not sort correctly among groundstate's own
    times. Another program wrote this due time.
    """
    for query in queries:
        words = odd_due_times.first_odd_due_time(connection, query)
        if words is not None:
            yield Finding("problem", "time", query.spec.name, words, odd_due_times.CURE)

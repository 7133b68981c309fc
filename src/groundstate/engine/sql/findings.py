"""Collects the findings of `groundstate check`, some of which a worker looks for at its start as well. Runs SELECTs only."""

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

LARGE = 10_000  # rows: a scan of a table of this size in each sweep is a problem, of a smaller one advice


@dataclass(frozen=True)
class Finding:
    """One thing that `groundstate check` found. level: a 'problem' makes the command exit with 1, an 'advice' does not."""

    level: Literal["problem", "advice"]
    kind: str
    subject: str
    words: str
    cure: str | None = None


def find_missing_indexes(database: Database, connection: Connection, query: ConditionQuery) -> Iterator[Finding]:
    name = query.spec.name
    try:
        found = explain.scans(database, connection, query)
        sorted_ = explain.unsorted(database, connection, query)
        grouped = explain.ungrouped(database, connection, query)
    except CompileError as error:
        yield Finding("advice", "index", name, f"its condition cannot be explained: {error}")
        return
    if grouped is not None:
        words = f"each look for the rows of {name}, value by value, sorts all rows of {grouped.table} of which its condition holds"
        yield Finding("problem" if grouped.rows >= LARGE else "advice", "index", name, words, grouped.ddl)
    if sorted_ is not None:
        words = f"what is due next of {name} is found by sorting all rows of {sorted_.table} of which its condition holds"
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
    """Return the problems with conditions that make each sweep read a whole large table."""
    return [found for query in queries for found in find_missing_indexes(database, connection, query) if found.level == "problem"]


def find_hidden_rows(database: Database, connection: Connection, queries: Sequence[ConditionQuery]) -> list[Finding]:
    """Return a problem for each table of which row-level security may hide rows from our role: rows that it does not see are not carried
    out.
    """
    asked = [table for query in queries for table in sorted(explain.tables_of(query), key=lambda table: str(table.fullname))]
    return [
        Finding(
            "problem",
            "row security",
            name,
            f"policies may hide rows of {name} from {(role := row_security.role(connection))}: what it does not see it does not carry out,"
            " and `pending` of the table's owner shows it as left to do for ever",
            f"CREATE POLICY groundstate ON {name} TO {role} USING (true) WITH CHECK (true), and no RESTRICTIVE policy for it;"
            f" or ALTER ROLE {role} BYPASSRLS",
        )
        for name in row_security.hidden(database, connection, [*asked, *our_tables.sorted_tables])
    ]


def find_odd_due_times(connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield a problem for each reaction with a due time in SQLite that others wrote in another format, which does not sort among ours."""
    for query in queries:
        words = odd_due_times.first_odd_due_time(connection, query)
        if words is not None:
            yield Finding("problem", "time", query.spec.name, words, odd_due_times.CURE)

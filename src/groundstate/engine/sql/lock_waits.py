"""Reports what other transactions keep locked on PostgreSQL. Runs only SELECTs.

A record that another transaction has locked is skipped until that transaction ends (hazard 19). If a table is locked against readers, no
worker can find its records.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, and_, literal_column, select, text
from sqlalchemy.exc import DBAPIError

from groundstate.engine.sql import db_errors
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.store import tables
from groundstate.store.port import Database

LONG = timedelta(seconds=5)
OURS = "groundstate"  # the application_name of groundstate's writing sessions, as the store sets it
_READ_MOST = 10_000  # how many records of one reaction are read at most
_SHOWN_MOST = 20
SHORT_WAIT = timedelta(milliseconds=200)  # how long a statement of a batch waits for a lock, after a handler has met one
MET_MOST = 3  # after so many records have met a lock, each in its own transaction, the rest is left for later
SEEN_WITHIN = timedelta(seconds=1)  # how long a report waits for a table that is locked

# A row's xmax is the number of the transaction that locked it last; each transaction that locks or writes holds a lock on its number.
_LONG = text("""
    SELECT l.transactionid::text AS xid, a.pid, a.xact_start AS since, a.application_name AS name, a.state AS state
    FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock' AND a.pid <> pg_backend_pid()
      AND a.datname = current_database() AND (a.xact_start IS NULL OR a.xact_start < now() - make_interval(secs => :age))
""")


# The list includes transactions that only wait for such a lock, since all later requests for locks wait behind them.
_TABLES = text("""
    SELECT c.relname AS "table", l.pid, l.granted, a.xact_start AS since, a.application_name AS name, a.state AS state
    FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'relation' AND l.mode = ANY(:modes) AND l.pid <> pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ORDER BY l.granted DESC, a.xact_start
""")


# A transaction that locks or writes rows of a table holds a lock on the table as well, in another mode than those that only read.
_HOLDERS = text("""
    SELECT DISTINCT c.relname AS "table", l.pid, a.xact_start AS since, a.application_name AS name, a.state AS state
    FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'relation' AND l.granted AND l.mode <> 'AccessShareLock' AND l.pid <> pg_backend_pid() AND c.relkind IN ('r', 'p')
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (a.xact_start IS NULL OR a.xact_start < now() - make_interval(secs => :age))
    ORDER BY a.xact_start
""")
HELD_FOR = timedelta(seconds=1)  # a younger transaction is not named as one that keeps handlers waiting
_HOLDERS_MOST = 3  # how many sessions one description names


_FOR_ITSELF = ["AccessExclusiveLock"]
_AGAINST_WRITERS = [*_FOR_ITSELF, "ExclusiveLock", "ShareRowExclusiveLock", "ShareLock"]  # CREATE INDEX takes a ShareLock


@dataclass(frozen=True)
class LockedRecord:
    """One record that is to be carried out, but that another transaction has kept locked for a while."""

    reaction: str
    record: str
    pid: int
    since: datetime | None  # the start of that transaction; None if groundstate's role may not see it (it lacks pg_read_all_stats)
    who: str
    ours: bool = False  # whether that transaction is one of groundstate's workers, by its application_name


def reactions_behind_locked_tables(connection: Connection, queries: Sequence[ConditionQuery]) -> dict[str, str]:
    """Return a dict from the name of each reaction whose condition cannot be queried to a description of the transaction that locks a table
    the condition reads. Empty on SQLite.
    """
    if connection.dialect.name != "postgresql":
        return {}
    holders = connection.execute(_TABLES, {"modes": _FOR_ITSELF}).all()
    found: dict[str, str] = {}
    met: set[str] = set()  # tables that were still locked after a wait: do not wait for the same table twice
    for query in queries if holders else ():
        named = _first_lock_on_tables_of(query, holders)
        by = named or holders[0]  # the condition may read the table under another name, such as that of a view
        if named is not None and named.table in met:
            found[query.spec.name] = f"{_describe_table_lock(by)}: its records cannot be read before that transaction ends"
            continue
        try:
            with connection.begin_nested():
                connection.execute(select(*query.keys.key_attributes).where(query.condition.is_ready).limit(0))
        except Exception as error:
            if db_errors.is_fault_of_statement(error):
                continue  # the condition fails for another reason, which the caller reports
            if not db_errors.is_lock_timeout(error):
                raise
            met.add(by.table)
            found[query.spec.name] = f"{_describe_table_lock(by)}: its records cannot be read before that transaction ends"
    return found


def describe_lock_against_our_writes(database: Database) -> str | None:
    """Return a description of the transaction that prevents writes to a table of groundstate; None if there is none, or if it cannot be
    seen.
    """
    if not database.locks_rows:
        return None
    try:
        with database.reading() as connection:
            words = describe_lock_against_writers(connection)
    except DBAPIError:
        return None
    return f"{words}: nothing is carried out before that ends" if words is not None else None


def describe_lock_against_our_reads(database: Database) -> str | None:
    """Return a description of the transaction that prevents reads of a table of groundstate; None if there is none, or if it cannot be
    seen.
    """
    if not database.locks_rows:
        return None
    try:
        with database.reading(wait=SEEN_WITHIN) as connection:
            found = connection.execute(_TABLES, {"modes": _FOR_ITSELF}).all()
    except DBAPIError:
        return None
    words = next((_describe_table_lock(one) for one in found if one.table in tables.metadata.tables), None)
    return None if words is None else f"{words}: nothing can be seen before that ends"


def describe_lock_against_writers(connection: Connection, names: Collection[str] = ()) -> str | None:
    """Return a description of the transaction that prevents writes to one of the tables `names` or to a table of groundstate; None if there
    is none, and on SQLite.
    """
    if connection.dialect.name != "postgresql":
        return None
    found = connection.execute(_TABLES, {"modes": _AGAINST_WRITERS})
    return next((_describe_table_lock(one) for one in found if one.table in names or one.table in tables.metadata.tables), None)


def describe_lock_on_tables_of(database: Database, query: ConditionQuery) -> str | None:
    """Return a description of the transaction that locks a table which this condition reads; None if there is none, or if it cannot be
    seen.
    """
    if not database.locks_rows:
        return None
    try:
        with database.reading() as connection:
            holders = connection.execute(_TABLES, {"modes": _AGAINST_WRITERS}).all()
    except DBAPIError:
        return None
    return _describe_table_lock(_first_lock_on_tables_of(query, holders)) if holders else None


def table_locks_against_writers(database: Database) -> Sequence[Any]:
    """Return the locks on whole tables that block readers or writers, one row per lock. Does not wait for any lock. Empty on SQLite."""
    if not database.locks_rows:
        return []
    with database.reading() as connection:
        return connection.execute(_TABLES, {"modes": _AGAINST_WRITERS}).all()


def tables_locked_by_others(database: Database, error: DBAPIError) -> set[str]:
    """Return the tables that this lock timeout names, in its statement or its message, and that another transaction has locked against
    writers, or waits to lock.
    """
    words = f"{error.statement} {error.orig}"
    return {lock.table for lock in table_locks_against_writers(database) if _occurs_as_word(lock.table, words)}


def describe_holders_of_lock(database: Database, error: DBAPIError) -> str | None:
    """Return a description of the sessions that hold locks on the table which this lock timeout names, or on rows of it, in a transaction
    that is older than `HELD_FOR`. None if there are none, or if they cannot be seen.
    """
    try:
        with database.reading(wait=SEEN_WITHIN) as connection:
            holders = connection.execute(_HOLDERS, {"age": HELD_FOR.total_seconds()}).all()
    except DBAPIError:
        return None
    for words in (str(error.orig), str(error.statement)):  # the message names the table itself, and the statement may name others too
        found = [by for by in holders if _occurs_as_word(by.table, words)]
        if found:
            each = [f"pid {by.pid} ({_describe_holder(by, ours=by.name == OURS)}){since_in_words(by.since)}" for by in found]
            named = ", ".join(dict.fromkeys(each[:_HOLDERS_MOST]))
            return f"locks on the table {found[0].table} are held by {named}"
    return None


def _occurs_as_word(name: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", words) is not None


def describe_first_lock_on_tables_of(query: ConditionQuery, locks: Sequence[Any], others: Collection[str] = ()) -> str | None:
    """Return a description of the first of these locks that is on a table which this condition reads by name, or on one of the tables
    `others`; None if there is no such lock.
    """
    by = _first_lock_on_tables_of(query, locks, others)
    return None if by is None else _describe_table_lock(by)


def _first_lock_on_tables_of(query: ConditionQuery, holders: Sequence[Any], others: Collection[str] = ()) -> Any:
    """Return the first of these locks that is on a table which this condition reads by name, or on one of the tables `others`; None if
    there is no such lock.
    """
    names = {name.rpartition(".")[2] for name in query.tables.names_of_tables_read} | set(others)
    return next((one for one in holders if one.table in names), None)


def _describe_table_lock(by: Any) -> str:
    locks = "has locked" if by.granted else "waits to lock"
    who = _describe_holder(by, ours=False)
    return f"pid {by.pid} ({who}) {locks} the table {by.table}, in a transaction{since_in_words(by.since)}"


def since_in_words(since: datetime | None) -> str:
    """Return a text such as ' since 2030-01-01 12:00:00 UTC'; empty if the time is None."""
    return "" if since is None else f" since {since:%Y-%m-%d %H:%M:%S} UTC"


def find_locked_records(
    connection: Connection, queries: Sequence[ConditionQuery], age: timedelta = LONG, key: PrimaryKey | None = None
) -> list[LockedRecord]:
    """Return the records that are ready, and that a transaction older than `age` keeps locked. Empty on SQLite, which locks no rows.

    key: Look only at the record with this key.
    """
    if connection.dialect.name != "postgresql":
        return []
    long: dict[str, Any] = {row.xid: row for row in connection.execute(_LONG, {"age": age.total_seconds()})}
    found: list[LockedRecord] = []
    for query in queries if long else ():
        which = query.condition.is_ready if key is None else and_(query.condition.is_ready, query.keys.has_key_among([key]))
        found += _locked_records_of(connection, query, long, which)
    return found


def describe_lock_on_record(connection: Connection, query: ConditionQuery, key: PrimaryKey) -> str | None:
    """Return a description of the transaction that keeps this record locked, whether or not the record's condition holds.

    Return None if there is none, if it cannot be seen, and on SQLite.
    """
    if connection.dialect.name != "postgresql":
        return None
    long: dict[str, Any] = {row.xid: row for row in connection.execute(_LONG, {"age": 0.0})}
    for one in _locked_records_of(connection, query, long, query.keys.has_key_among([key])) if long else ():
        return f"pid {one.pid} ({one.who}) has locked its row, in a transaction{since_in_words(one.since)}"
    return None


def _locked_records_of(
    connection: Connection, query: ConditionQuery, long: Mapping[str, Any], which: ColumnElement[bool]
) -> list[LockedRecord]:
    owner: Any = query.mapper.base_mapper.local_table
    table = connection.dialect.identifier_preparer.format_table(owner)
    xmax = literal_column(f"{table}.xmax::text", String).label("groundstate_xmax")
    some = select(*query.keys.key_columns_as_stored, xmax).where(which).limit(_READ_MOST).subquery()
    rows = connection.execute(select(some).where(some.c.groundstate_xmax.in_(list(long))).limit(_SHOWN_MOST)).all()
    found = []
    for row in rows:
        by = long[row[-1]]
        ours = by.name == OURS
        locked_by = LockedRecord(
            query.spec.name, query.keys.record_for_people(tuple(row[:-1])), by.pid, by.since, _describe_holder(by, ours=ours), ours
        )
        found.append(locked_by)
    return found


def describe_workers_in_long_transactions(connection: Connection) -> list[str]:
    """Return one description per groundstate worker, of any app, that has been in one transaction for longer than LONG. Empty on SQLite."""
    if connection.dialect.name != "postgresql":
        return []
    found = {by.pid: by for by in connection.execute(_LONG, {"age": LONG.total_seconds()}) if by.name == OURS and by.since is not None}
    return [
        f"pid {by.pid} ({_describe_holder(by, ours=True)}), in one transaction since {by.since:%Y-%m-%d %H:%M:%S} UTC"
        for by in found.values()
    ]


def _describe_holder(by: Any, *, ours: bool) -> str:
    """Return a phrase that says to whom the locking transaction belongs, and what it does."""
    if by.state is None:
        doing = "what it does, and since when, this role may not see: GRANT pg_read_all_stats shows it"
    elif not ours:
        doing = by.state
    elif by.state.startswith("idle in transaction"):
        doing = "whose handler has run since then, and waits for something that is not the database"
    else:
        doing = "whose handler has run since then"
    return f"{'a worker of groundstate' if ours else by.name or 'unnamed'}, {doing}"

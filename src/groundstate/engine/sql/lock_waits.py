"""Reports what other transactions keep locked on PostgreSQL. Runs SELECTs only.

A locked record is skipped until that transaction ends (hazard 19); behind a locked table no worker sees what is to be done.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, and_, literal_column, select, text
from sqlalchemy.exc import DBAPIError

from groundstate.engine.sql import db_errors
from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey
from groundstate.store import tables
from groundstate.store.port import Database

LONG = timedelta(seconds=5)
OURS = "groundstate"  # application_name of our sessions that write, as the store sets it
_READ_MOST = 10_000  # records of one reaction that are read
_SHOWN_MOST = 20
SEEN_WITHIN = timedelta(seconds=1)  # how long a report waits for a lock on a table

# A row's xmax is the transaction that locked it last, and each transaction that locks or writes holds the lock on its own number.
_LONG = text("""
    SELECT l.transactionid::text AS xid, a.pid, a.xact_start AS since, a.application_name AS name, a.state AS state
    FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock' AND a.pid <> pg_backend_pid()
      AND a.datname = current_database() AND (a.xact_start IS NULL OR a.xact_start < now() - make_interval(secs => :age))
""")


# Includes transactions that wait for such a lock, since all later ones wait behind them.
_TABLES = text("""
    SELECT c.relname AS "table", l.pid, l.granted, a.xact_start AS since, a.application_name AS name, a.state AS state
    FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'relation' AND l.mode = ANY(:modes) AND l.pid <> pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ORDER BY l.granted DESC, a.xact_start
""")


_FOR_ITSELF = ["AccessExclusiveLock"]
_AGAINST_WRITERS = [*_FOR_ITSELF, "ExclusiveLock", "ShareRowExclusiveLock", "ShareLock"]  # CREATE INDEX takes a ShareLock


@dataclass(frozen=True)
class Locked:
    """One record that is to be carried out, and that another transaction has kept locked for a while."""

    reaction: str
    record: str
    pid: int
    since: datetime | None  # None: our role may not see it (GRANT pg_read_all_stats shows it)
    who: str
    ours: bool = False  # by its application_name the holder is a worker of groundstate, in a handler


def unseen(connection: Connection, queries: Sequence[ConditionQuery]) -> dict[str, str]:
    """Return the reactions whose conditions cannot be queried, each with the transaction that locks a table they read. Empty on SQLite."""
    if connection.dialect.name != "postgresql":
        return {}
    holders = connection.execute(_TABLES, {"modes": _FOR_ITSELF}).all()
    found: dict[str, str] = {}
    met: set[str] = set()  # tables that were waited for in vain, so that each is waited for once
    for query in queries if holders else ():
        named = _holder(query, holders)
        by = named or holders[0]  # the condition may read the table by another name, such as that of a view
        if named is not None and named.table in met:
            found[query.spec.name] = f"{_held_by(by)}: nothing of it can be seen before that ends"
            continue
        try:
            with connection.begin_nested():
                connection.execute(select(*query.key_attributes).where(query.ready).limit(0))
        except Exception as error:
            if db_errors.is_its_own(error):
                continue  # why nothing can be asked of it is told by who asks
            if not db_errors.locked(error):
                raise
            met.add(by.table)
            found[query.spec.name] = f"{_held_by(by)}: nothing of it can be seen before that ends"
    return found


def who_locks_ours(database: Database) -> str | None:
    """Say which transaction keeps a table of ours from being written; None where there is none, or it cannot be seen."""
    if not database.locks_rows:
        return None
    try:
        with database.reading() as connection:
            words = against_writers(connection)
    except DBAPIError:
        return None
    return f"{words}: nothing is carried out before that ends" if words is not None else None


def who_hides_ours(database: Database) -> str | None:
    """Say which transaction keeps a table of ours from being read; None where there is none, or it cannot be seen."""
    if not database.locks_rows:
        return None
    try:
        with database.reading(wait=SEEN_WITHIN) as connection:
            found = connection.execute(_TABLES, {"modes": _FOR_ITSELF}).all()
    except DBAPIError:
        return None
    words = next((_held_by(one) for one in found if one.table in tables.metadata.tables), None)
    return None if words is None else f"{words}: nothing can be seen before that ends"


def against_writers(connection: Connection, names: Collection[str] = ()) -> str | None:
    """Say which transaction keeps others from writing to one of these tables or to one of ours; None where there is none, and on SQLite."""
    if connection.dialect.name != "postgresql":
        return None
    found = connection.execute(_TABLES, {"modes": _AGAINST_WRITERS})
    return next((_held_by(one) for one in found if one.table in names or one.table in tables.metadata.tables), None)


def who_locks_tables_of(database: Database, query: ConditionQuery) -> str | None:
    """Say which transaction locks a table that this condition reads; None where there is none, or it cannot be seen."""
    if not database.locks_rows:
        return None
    try:
        with database.reading() as connection:
            holders = connection.execute(_TABLES, {"modes": _AGAINST_WRITERS}).all()
    except DBAPIError:
        return None
    return _held_by(_holder(query, holders)) if holders else None


def holders(database: Database) -> Sequence[Any]:
    """Return the locks that keep a table from its readers or writers, without waiting for one. Empty on SQLite."""
    if not database.locks_rows:
        return []
    with database.reading() as connection:
        return connection.execute(_TABLES, {"modes": _AGAINST_WRITERS}).all()


def held_from(query: ConditionQuery, locks: Sequence[Any]) -> str | None:
    """Say which of these locks is on a table that this condition reads by name; None where none is."""
    by = _holder(query, locks)
    return None if by is None else _held_by(by)


def _holder(query: ConditionQuery, holders: Sequence[Any]) -> Any:
    """Return the first lock that is on a table which this condition reads by name; None where there is none."""
    names = {name.rpartition(".")[2] for name in query.tables_named}
    return next((one for one in holders if one.table in names), None)


def _held_by(by: Any) -> str:
    locks = "has locked" if by.granted else "waits to lock"
    who = _who(by, ours=False)
    return f"pid {by.pid} ({who}) {locks} the table {by.table}, in a transaction{since_in_words(by.since)}"


def since_in_words(since: datetime | None) -> str:
    """Return text such as ' since 2030-01-01 12:00:00 UTC'; empty where the time is unknown."""
    return "" if since is None else f" since {since:%Y-%m-%d %H:%M:%S} UTC"


def locked(connection: Connection, queries: Sequence[ConditionQuery], age: timedelta = LONG, key: PrimaryKey | None = None) -> list[Locked]:
    """Return records whose condition holds and that a transaction older than `age` keeps locked. Empty on SQLite, which locks no rows.

    key: check only this record.
    """
    if connection.dialect.name != "postgresql":
        return []
    long: dict[str, Any] = {row.xid: row for row in connection.execute(_LONG, {"age": age.total_seconds()})}
    found: list[Locked] = []
    for query in queries if long else ():
        which = query.ready if key is None else and_(query.ready, query.among([key]))
        found += _locked_of(connection, query, long, which)
    return found


def who_has(connection: Connection, query: ConditionQuery, key: PrimaryKey) -> str | None:
    """Say which transaction keeps this record locked, whether its condition holds or not.

    Returns None where no transaction does, on SQLite, and where the lock cannot be seen.
    """
    if connection.dialect.name != "postgresql":
        return None
    long: dict[str, Any] = {row.xid: row for row in connection.execute(_LONG, {"age": 0.0})}
    for one in _locked_of(connection, query, long, query.among([key])) if long else ():
        return f"pid {one.pid} ({one.who}) has locked its row, in a transaction{since_in_words(one.since)}"
    return None


def _locked_of(connection: Connection, query: ConditionQuery, long: Mapping[str, Any], which: ColumnElement[bool]) -> list[Locked]:
    owner: Any = query.mapper.base_mapper.local_table
    table = connection.dialect.identifier_preparer.format_table(owner)
    xmax = literal_column(f"{table}.xmax::text", String).label("groundstate_xmax")
    some = select(*query.keys_as_they_stand, xmax).where(which).limit(_READ_MOST).subquery()
    rows = connection.execute(select(some).where(some.c.groundstate_xmax.in_(list(long))).limit(_SHOWN_MOST)).all()
    found = []
    for row in rows:
        by = long[row[-1]]
        ours = by.name == OURS
        locked_by = Locked(query.spec.name, query.record_shown(tuple(row[:-1])), by.pid, by.since, _who(by, ours=ours), ours)
        found.append(locked_by)
    return found


def in_long_ones(connection: Connection) -> list[str]:
    """Describe the workers of groundstate, of any app, that have been in one transaction for longer than LONG. Empty on SQLite."""
    if connection.dialect.name != "postgresql":
        return []
    found = {by.pid: by for by in connection.execute(_LONG, {"age": LONG.total_seconds()}) if by.name == OURS and by.since is not None}
    return [f"pid {by.pid} ({_who(by, ours=True)}), in one transaction since {by.since:%Y-%m-%d %H:%M:%S} UTC" for by in found.values()]


def _who(by: Any, *, ours: bool) -> str:
    """Say whose transaction it is, and what it does."""
    if by.state is None:
        doing = "what it does, and since when, this role may not see: GRANT pg_read_all_stats shows it"
    elif not ours:
        doing = by.state
    elif by.state.startswith("idle in transaction"):
        doing = "whose handler has run since then, and waits for something that is not the database"
    else:
        doing = "whose handler has run since then"
    return f"{'a worker of groundstate' if ours else by.name or 'unnamed'}, {doing}"

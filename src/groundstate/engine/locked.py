"""Records that somebody else's long transaction keeps locked, on PostgreSQL: they are skipped until it ends (hazard 19). Reads alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, String, literal_column, select, text

from groundstate.engine.question import Question

LONG = timedelta(seconds=5)
OURS = "groundstate"  # the name of our sessions that write, as the store gives it
_READ_MOST = 10_000  # records of one reaction that are looked at
_SHOWN_MOST = 20

# A row's xmax is the transaction that locked it last, and each transaction that locks or writes holds the lock on its own number.
_LONG = text("""
    SELECT l.transactionid::text AS xid, a.pid, a.xact_start AS since, a.application_name AS name, a.state AS state
    FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock' AND a.pid <> pg_backend_pid()
      AND a.datname = current_database() AND (a.xact_start IS NULL OR a.xact_start < now() - make_interval(secs => :age))
""")


@dataclass(frozen=True)
class Locked:
    """One record that is to be carried out and that somebody else has locked for a while."""

    reaction: str
    record: str
    pid: int
    since: datetime | None  # None: this user may not see it (GRANT pg_read_all_stats shows it)
    who: str
    ours: bool = False  # by its name: a worker of groundstate, in a handler


def locked(connection: Connection, questions: Sequence[Question], age: timedelta = LONG) -> list[Locked]:
    """Records whose condition holds and that a transaction older than `age` keeps locked; nothing on SQLite, which locks no rows."""
    if connection.dialect.name != "postgresql":
        return []
    long: dict[str, Any] = {row.xid: row for row in connection.execute(_LONG, {"age": age.total_seconds()})}
    return [one for question in questions for one in _locked_of(connection, question, long)] if long else []


def _locked_of(connection: Connection, question: Question, long: dict[str, Any]) -> list[Locked]:
    owner: Any = question.mapper.base_mapper.local_table
    table = connection.dialect.identifier_preparer.format_table(owner)
    xmax = literal_column(f"{table}.xmax::text", String).label("groundstate_xmax")
    some = select(*question.key_attributes, xmax).where(question.ready).limit(_READ_MOST).subquery()
    rows = connection.execute(select(some).where(some.c.groundstate_xmax.in_(list(long))).limit(_SHOWN_MOST)).all()
    found = []
    for row in rows:
        by = long[row[-1]]
        ours = by.name == OURS
        locked_by = Locked(question.spec.name, question.record_text(tuple(row[:-1])), by.pid, by.since, _who(by, ours=ours), ours)
        found.append(locked_by)
    return found


def _who(by: Any, *, ours: bool) -> str:
    """Whose transaction it is, and what it does."""
    if by.state is None:
        doing = "what it does, and since when, this role may not see: GRANT pg_read_all_stats shows it"
    elif not ours:
        doing = by.state
    elif by.state.startswith("idle in transaction"):
        doing = "whose handler has run since then, and waits for something that is not the database"
    else:
        doing = "whose handler has run since then"
    return f"{'a worker of groundstate' if ours else by.name or 'unnamed'}, {doing}"

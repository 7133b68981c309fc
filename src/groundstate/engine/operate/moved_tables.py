"""Finds attempts that block records of another table than the one on which their reaction is declared today.

An attempt's column `blocks` has the table's name at the time of the call. If only today's table exists, the table was renamed or moved to
another schema, and at the next start the attempts are changed to the new name. If both exist, it is not known which is right, and the log
asks a person.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, inspect, select, update

from groundstate.engine.rows.attempt_text import counted
from groundstate.engine.sql import db_errors
from groundstate.engine.sql.condition_query import ConditionQuery, blocking
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.store.tables import attempt

log = logging.getLogger("groundstate")


@dataclass(frozen=True)
class Elsewhere:
    """Calls of one reaction that are in flight or in doubt on another table. `gone` is True if that table no longer exists."""

    reaction: str
    was: str
    now: str
    count: int
    gone: bool

    @property
    def words(self) -> str:
        """The message for a person, with what can be done."""
        calls = counted(self.count, "call is", "calls are")
        return (
            f"{calls} in the air or in doubt on records of {self.was}, and this code declares {self.reaction} on {self.now}. Both exist,"
            f" so nothing keeps other reactions off the records of {self.now} that have the same keys. Let workers of the code that began"
            " them settle them first (`groundstate pending` lists them), or settle them by hand (`groundstate settle`)"
        )


def attempts_on_other_tables(connection: Connection, app: str, queries: Sequence[ConditionQuery]) -> Iterator[Elsewhere]:
    """Yield the calls of each reaction that are on another table, except where today's table does not exist yet in this database."""
    by_name = {query.spec.name: query for query in queries}
    mine = and_(attempt.c.app == app, attempt.c.reaction.in_(sorted(by_name)), attempt.c.blocks.is_not(None), blocking)
    told = select(attempt.c.reaction, attempt.c.blocks, func.count()).where(mine).group_by(attempt.c.reaction, attempt.c.blocks)
    try:
        standing = connection.execute(told.order_by(attempt.c.reaction, attempt.c.blocks)).all()
    except Exception as error:
        if not db_errors.unreadable(error):
            raise
        return  # one of these rows was edited by hand, and its text cannot be read
    for name, was, count in standing:
        query = by_name[name]
        if isinstance(was, str) and was not in query.spellings and _is_there(connection, query.spec.table_name):
            yield Elsewhere(name, was, query.spec.table_name, count, gone=not _is_there(connection, was))


def update_renamed_tables(worker_state: WorkerState) -> None:
    """Rename the table in open attempts if it was renamed, or log a warning if both tables exist. Called at a start, before any claim."""
    queries = [queue.query for queue in worker_state.queues]
    with worker_state.database.reading() as connection:
        found = list(attempts_on_other_tables(connection, worker_state.app, queries))
    if not found:
        return
    with worker_state.incarnation.transaction() as tx:
        for one in found:
            if one.gone:
                those = (attempt.c.app == worker_state.app, attempt.c.reaction == one.reaction, attempt.c.blocks == one.was, blocking)
                tx.connection.execute(update(attempt).where(*those).values(blocks=one.now))
    for one in found:
        if one.gone:
            log.info(
                "%s is gone, and %s is declared on %s: its calls in the air or in doubt (%d) keep others off that from now on",
                one.was,
                one.reaction,
                one.now,
                one.count,
                extra={"event": "table_followed", "reaction": one.reaction, "was": one.was, "now": one.now, "count": one.count},
            )
        else:
            log.warning(
                "%s",
                one.words,
                extra={"event": "table_unclear", "reaction": one.reaction, "was": one.was, "now": one.now, "count": one.count},
            )


def _is_there(connection: Connection, named: str) -> bool:
    """Whether a table or view of this name exists. `named` includes the schema if it was declared with one."""
    looked = inspect(connection)
    schema, _, name = named.rpartition(".")
    return looked.has_table(named) or (bool(schema) and looked.has_table(name, schema=schema))

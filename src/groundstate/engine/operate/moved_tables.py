"""Finds attempts whose records are in another table than the table on which their reaction is declared today.

An attempt's column `blocks` has the name that the table had at the time of the call. If only today's table exists, the table was renamed or
moved to another schema, and the next start writes the new name into the attempts. If both tables exist, it is not known which table is
right, and a log line asks a person to decide.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, inspect, select, update

from groundstate.engine.rows.attempt_text import count_with_noun
from groundstate.engine.sql import db_errors
from groundstate.engine.sql.attempt_filters import is_blocking
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.store.tables import attempt

log = logging.getLogger("groundstate")


@dataclass(frozen=True)
class CallsOnOtherTable:
    """Calls of one reaction, in flight or in doubt, whose records are in a former table of the reaction.

    `was` is the name of the former table, and `now` the name of the reaction's table today. `gone` is True if the former table does not
    exist any more.
    """

    reaction: str
    was: str
    now: str
    count: int
    gone: bool

    @property
    def message_for_people(self) -> str:
        """Return a message for a person about these calls, with what the person can do."""
        calls = count_with_noun(self.count, "call is", "calls are")
        return (
            f"{calls} in the air or in doubt on records of {self.was}, and this code declares {self.reaction} on {self.now}. Both exist,"
            f" so nothing keeps other reactions off the records of {self.now} that have the same keys. Let workers of the code that began"
            " them settle them first (`groundstate pending` lists them), or settle them by hand (`groundstate settle`)"
        )


def find_calls_on_other_tables(connection: Connection, app: str, queries: Sequence[ConditionQuery]) -> Iterator[CallsOnOtherTable]:
    """Yield one item for each reaction and each former table on which the reaction has calls in flight or in doubt.

    A reaction is left out if the table on which it is declared today does not exist in this database yet.
    """
    by_name = {query.spec.name: query for query in queries}
    mine = and_(attempt.c.app == app, attempt.c.reaction.in_(sorted(by_name)), attempt.c.blocks.is_not(None), is_blocking)
    told = select(attempt.c.reaction, attempt.c.blocks, func.count()).where(mine).group_by(attempt.c.reaction, attempt.c.blocks)
    try:
        standing = connection.execute(told.order_by(attempt.c.reaction, attempt.c.blocks)).all()
    except Exception as error:
        if not db_errors.is_conversion_error(error):
            raise
        return  # one of these rows was edited by hand, and its text cannot be read
    for name, was, count in standing:
        query = by_name[name]
        if isinstance(was, str) and was not in query.attempts.table_name_spellings and _has_table(connection, query.spec.table_name):
            yield CallsOnOtherTable(name, was, query.spec.table_name, count, gone=not _has_table(connection, was))


def update_renamed_tables(worker_state: WorkerState) -> None:
    """Write a table's new name into attempts if the table was renamed; log a warning if tables of both names exist. Call this at a
    worker's start, before the worker locks any record.
    """
    queries = [queue.query for queue in worker_state.queues]
    with worker_state.database.reading() as connection:
        found = list(find_calls_on_other_tables(connection, worker_state.app, queries))
    if not found:
        return
    with worker_state.incarnation.open_transaction() as tx:
        for one in found:
            if one.gone:
                those = (attempt.c.app == worker_state.app, attempt.c.reaction == one.reaction, attempt.c.blocks == one.was, is_blocking)
                tx.connection.execute(update(attempt).where(*those).values(blocks=one.now))
    for one in found:
        if one.gone:
            log.info(
                "%s is gone, and %s is declared on %s: its calls in the air or in doubt (%d) block records of that table from now on",
                one.was,
                one.reaction,
                one.now,
                one.count,
                extra={"event": "table_followed", "reaction": one.reaction, "was": one.was, "now": one.now, "count": one.count},
            )
        else:
            log.warning(
                "%s",
                one.message_for_people,
                extra={"event": "table_unclear", "reaction": one.reaction, "was": one.was, "now": one.now, "count": one.count},
            )


def _has_table(connection: Connection, named: str) -> bool:
    """Return whether a table or view exists. `named` is its name, with the schema in front if the table was declared with a schema."""
    looked = inspect(connection)
    schema, _, name = named.rpartition(".")
    return looked.has_table(named) or (bool(schema) and looked.has_table(name, schema=schema))

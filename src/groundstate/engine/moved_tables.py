"""Attempts that keep others off a table which is not the one that their reaction is declared on today.

`blocks` says the table as it was when the call was begun. Where that table is gone and today's is there, it was renamed, or moved to
another schema: what is open follows it at the next start. Where both are there nobody knows what was meant, and a person is told.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, inspect, select, update

from groundstate.engine import trouble
from groundstate.engine.question import Question, blocking
from groundstate.engine.shift import Shift
from groundstate.engine.wording import counted
from groundstate.store.tables import attempt

log = logging.getLogger("groundstate")


@dataclass(frozen=True)
class Elsewhere:
    """Calls of one reaction that are in the air or in doubt on another table. gone: that table is no more."""

    reaction: str
    was: str
    now: str
    count: int
    gone: bool

    @property
    def words(self) -> str:
        """For people, with what can be done."""
        calls = counted(self.count, "call is", "calls are")
        return (
            f"{calls} in the air or in doubt on records of {self.was}, and this code declares {self.reaction} on {self.now}. Both exist,"
            f" so nothing keeps other reactions off the records of {self.now} that have the same keys. Let workers of the code that began"
            " them settle them first (`groundstate pending` lists them), or settle them by hand (`groundstate settle`)"
        )


def elsewhere(connection: Connection, app: str, questions: Sequence[Question]) -> Iterator[Elsewhere]:
    """What stands so. Of a table that this database does not have yet nothing is said."""
    by_name = {question.spec.name: question for question in questions}
    mine = and_(attempt.c.app == app, attempt.c.reaction.in_(sorted(by_name)), attempt.c.blocks.is_not(None), blocking)
    told = select(attempt.c.reaction, attempt.c.blocks, func.count()).where(mine).group_by(attempt.c.reaction, attempt.c.blocks)
    try:
        standing = connection.execute(told.order_by(attempt.c.reaction, attempt.c.blocks)).all()
    except Exception as error:
        if not trouble.unreadable(error):
            raise
        return  # somebody edited one of these rows: what it says is no text
    for name, was, count in standing:
        question = by_name[name]
        if isinstance(was, str) and was not in question.spellings and _is_there(connection, question.spec.table_name):
            yield Elsewhere(name, was, question.spec.table_name, count, gone=not _is_there(connection, was))


def follow(shift: Shift) -> None:
    """At a start, before anything is taken: what is open follows its table, or a person is told."""
    questions = [lane.question for lane in shift.lanes]
    with shift.database.reading() as connection:
        found = list(elsewhere(connection, shift.app, questions))
    if not found:
        return
    with shift.life.transaction() as tx:
        for one in found:
            if one.gone:
                those = (attempt.c.app == shift.app, attempt.c.reaction == one.reaction, attempt.c.blocks == one.was, blocking)
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
    """Whether there is such a table, or a view. named: with its schema, where it was declared with one."""
    looked = inspect(connection)
    schema, _, name = named.rpartition(".")
    return looked.has_table(named) or (bool(schema) and looked.has_table(name, schema=schema))

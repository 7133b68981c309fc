"""Rows that a person said to leave: held attempts, why 'baseline', each with the conditions under which it was left. Calls nothing.

Workers of several versions of the code may run at once, each with a condition of its own. So a baseline is judged by the conditions that
stand in its row, whoever looks at it: it is let go once none of them holds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from sqlalchemy import ColumnElement, Connection, delete, or_, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine import attempts, claim, raising, trouble
from groundstate.engine.attempts import Identity
from groundstate.engine.claim import Taken, Unreadable
from groundstate.engine.life import Life
from groundstate.engine.plain import new_attempt
from groundstate.engine.question import PrimaryKey, Question, held_under
from groundstate.engine.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules import blocking, kind
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.blocking import BASELINE
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")
PATIENCE = timedelta(seconds=20)  # so long a person's command waits for records that somebody has locked
ASKED_AT_ONCE = 1000  # records of which it is asked at once whether a condition holds


def hold(life: Life, question: Question, *, at_once: int = 1000, tell: Callable[[int], None] | None = None) -> int:
    """Holds each row that matches now, why 'baseline' (rules.md 32); tells how many so far, and returns how many.

    A row that was left before, under another condition, is left under this one as well: it goes when neither holds.
    """
    return raising.beside_them(life.database, question, partial(_hold, life, question, at_once, tell))


def _hold(life: Life, question: Question, at_once: int, tell: Callable[[int], None] | None) -> int:
    count, cursor, apart = 0, None, list(question.apart)
    left_under = kind.text_of_baseline([question.clauses_text], question.spec.occurrence_columns)
    while True:
        with life.transaction(wait=PATIENCE) as tx:
            places = [tuple(row) for row in tx.connection.execute(question.places_after(cursor, at_once, crowded=False))]
            wanted = [question.key_in(place) for place in places]
            if not wanted:
                wanted, apart = apart, []
            if not wanted:
                return count
            # Or a call that is concluded just now leaves a baseline on a record that matches no more.
            records, unreadable = claim.readable_under_lock(question, tx, wanted)
            matching: list[Taken | Unreadable] = [*(_taken(question, record) for record in records), *unreadable]
            new = [new_attempt(life, question, one.text, one.occurrence, tx.now) for one in matching]
            held = [replace(rules.held_as(one, BASELINE).attempt, blocks=None, begun_with=left_under) for one in new]
            if len(attempts.insert(tx, held)) < len(held):
                _leave_under_this_too(tx, question, held)
            count += len(held)
            cursor = places[-1] if places else cursor
        if tell is not None:
            tell(count)


def _taken(question: Question, record: object) -> Taken:
    key: PrimaryKey = question.key_of(record)
    return Taken(key, question.record_text(key), question.occurrence_text(record), record)


def _leave_under_this_too(tx: Transaction, question: Question, wanted: Sequence[Attempt]) -> None:
    """Adds today's condition to those of the baselines that stood already."""
    spec, today = question.spec, question.clauses_text
    standing = attempts.concerning(tx, question, [one.record for one in wanted], lock=True, own=True)
    changed = []
    for new in wanted:
        one = attempts.by_identity(standing, new.identity)
        if one is None or one.call == new.call or not blocking.is_baseline(one):
            continue
        left = kind.baseline_in(one.begun_with)
        if left is None or today not in left.conditions:
            conditions = [*(left.conditions if left is not None else ()), today]
            changed.append((one, replace(one, begun_with=kind.text_of_baseline(conditions, spec.occurrence_columns))))
    attempts.save(tx.connection, changed)


# ---- let go ----------------------------------------------------------------------------------------------------------------------
def let_go(life: Life, question: Question, unasked: set[str] | None = None) -> int:
    """Deletes the baselines of a reaction of which no condition holds any more, so that the record is carried out when it comes again.

    Returns how many. unasked: what rows say of conditions that this database cannot be asked any more, since a column of theirs is gone:
    those rows stay as they are, and are asked no more; a new one is added to it, and said in the log.
    """
    mine, left_out = _of(question), set() if unasked is None else unasked
    count = 0
    with life.transaction() as tx:
        for said in tx.connection.execute(select(table.c.begun_with).where(*mine).distinct()).scalars().all():
            if said in left_out:
                continue
            same = table.c.begun_with.is_(None) if said is None else table.c.begun_with == said
            try:
                with tx.connection.begin_nested():
                    count += _let_go(tx, question, [*mine, same], _holds(question, said))
            except DBAPIError as error:
                if trouble.transient(error) or said is None or _is_todays(question, said):
                    raise
                left_out.add(said)
                log.warning(
                    "%s: rows that were left as a baseline stay so, since the condition they were left under cannot be asked any more (%s):"
                    " `groundstate forget --all --baseline` lets go of those that do not match now",
                    question.spec.name,
                    life.shorten(trouble.told(error)),
                    extra={"event": "baseline_unaskable", "reaction": question.spec.name},
                )
    return count


def _of(question: Question) -> list[ColumnElement[bool]]:
    spec = question.spec
    own = (table.c.app == spec.app, table.c.reaction == spec.name)
    return [*own, table.c.state == State.HELD.value, table.c.why == BASELINE, ~table.c.unsure]


def _let_go(tx: Transaction, question: Question, where: Sequence[ColumnElement[bool]], holds: ColumnElement[bool]) -> int:
    written = question.text_in_sql
    if written is not None:
        still = select(written).select_from(question.entity).where(holds)
        return tx.connection.execute(delete(table).where(*where, table.c.record.not_in(still))).rowcount
    some = attempts.fetch(tx.connection, attempts.rows(*where))
    still_held = set(_records(tx.connection, question, some, holds))
    return attempts.remove(tx.database, tx.connection, [one for one in some if one.record not in still_held])


def _holds(question: Question, said: str | None) -> ColumnElement[bool]:
    """Whether one of the conditions holds under which rows with this text were left; of older code, which says none, today's."""
    left = kind.baseline_in(said)
    conditions = (question.clauses_text,) if left is None else left.conditions
    return or_(*[question.condition if one == question.clauses_text else held_under(one) for one in conditions])


def _is_todays(question: Question, said: str) -> bool:
    left = kind.baseline_in(said)
    return left is None or set(left.conditions) == {question.clauses_text}


def _records(connection: Connection, question: Question, some: Sequence[Attempt], holds: ColumnElement[bool]) -> Iterator[str]:
    """Of the records of these attempts those for which it holds, as text."""
    keys = [key for text in {one.record for one in some} if (key := question.key_of_text(text)) is not None]
    for first in range(0, len(keys), ASKED_AT_ONCE):
        asked = select(*question.key_attributes).select_from(question.entity)
        for row in connection.execute(asked.where(holds, question.among(keys[first : first + ASKED_AT_ONCE]))):
            yield question.record_text(tuple(row))


# ---- asked -----------------------------------------------------------------------------------------------------------------------
def still_left(connection: Connection, question: Question, some: Sequence[Attempt]) -> set[Identity]:
    """Of these attempts the baselines of which some condition still holds: to forget such a one could be a new call, by whatever code."""
    said_by: dict[str | None, list[Attempt]] = {}
    for one in some:
        if blocking.is_baseline(one):
            said_by.setdefault(one.begun_with, []).append(one)
    found: set[Identity] = set()
    for said, mine in said_by.items():
        try:
            with connection.begin_nested():
                holding = set(_records(connection, question, mine, _holds(question, said)))
        except DBAPIError as error:
            if trouble.transient(error) or not trouble.undefined(error):
                raise
            continue  # of what cannot be asked any more the condition of today decides alone
        found |= {one.identity for one in mine if one.record in holding}
    return found


def reactions_with_some(connection: Connection, app: str) -> set[str]:
    """Reactions that have held baselines."""
    return set(connection.execute(select(table.c.reaction).where(table.c.app == app, table.c.why == BASELINE).distinct()).scalars())

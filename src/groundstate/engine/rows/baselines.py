"""Baselines: rows that a person chose to leave out of a reaction. Each is a held attempt whose `why` is 'baseline', with the conditions
under which it was left. Makes no calls.

Workers with several versions of the code may run at once, each with its own condition. So every worker judges a baseline by the conditions
stored in its row, and deletes it once none of them holds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from sqlalchemy import ColumnElement, Connection, delete, or_, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine.rows import attempts, claim
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.rows.claim import Taken, Unreadable
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import db_errors, raising_rows
from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey, held_under
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules import begun_kind, blocking
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.blocking import BASELINE
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")
PATIENCE = timedelta(seconds=20)  # how long a person's command waits for records that are locked
ASKED_AT_ONCE = 1000  # records whose condition is asked in one statement


def hold(incarnation: Incarnation, query: ConditionQuery, *, at_once: int = 1000, tell: Callable[[int], None] | None = None) -> int:
    """Write a baseline for each row that matches now (rules.md 32), and return how many. `tell` is called with the count so far.

    A row that is a baseline already, under another condition, gets this condition as well: the baseline is deleted when neither holds.
    """
    return raising_rows.retry_without_raising_rows(incarnation.database, query, partial(_hold, incarnation, query, at_once, tell))


def _hold(incarnation: Incarnation, query: ConditionQuery, at_once: int, tell: Callable[[int], None] | None) -> int:
    count, cursor, apart = 0, None, list(query.apart)
    left_under = begun_kind.text_of_baseline([query.clauses_text], query.spec.occurrence_columns)
    while True:
        with incarnation.transaction(wait=PATIENCE) as tx:
            places = [tuple(row) for row in tx.connection.execute(query.places_after(cursor, at_once, crowded=False))]
            wanted = [query.key_in(place) for place in places]
            if not wanted:
                wanted, apart = apart, []
            if not wanted:
                return count
            # Read under a lock: else a call that is concluded at the same time could leave a baseline on a record that no longer matches.
            records, unreadable = claim.readable_under_lock(query, tx, wanted)
            matching: list[Taken | Unreadable] = [*(_taken(query, record) for record in records), *unreadable]
            new = [attempts.new_attempt_of_record(query, one.text, one.occurrence, incarnation.id, tx.now) for one in matching]
            held = [replace(rules.held_as(one, BASELINE).attempt, blocks=None, begun_with=left_under) for one in new]
            if len(attempts.insert(tx, held)) < len(held):
                _leave_under_this_too(tx, query, held)
            count += len(held)
            cursor = places[-1] if places else cursor
        if tell is not None:
            tell(count)


def _taken(query: ConditionQuery, record: object) -> Taken:
    key: PrimaryKey = query.key_of(record)
    return Taken(key, query.record_text(key), query.occurrence_text(record), record)


def _leave_under_this_too(tx: Transaction, query: ConditionQuery, wanted: Sequence[Attempt]) -> None:
    """Add the reaction's present condition to the conditions of baselines that existed already."""
    spec, today = query.spec, query.clauses_text
    standing = attempts.attempts_deciding_claim(tx, query, [one.record for one in wanted], lock=True, own=True)
    changed = []
    for new in wanted:
        one = attempts.by_identity(standing, new.identity)
        if one is None or one.call == new.call or not blocking.is_baseline(one):
            continue
        left = begun_kind.baseline_in(one.begun_with)
        if left is None or today not in left.conditions:
            conditions = [*(left.conditions if left is not None else ()), today]
            changed.append((one, replace(one, begun_with=begun_kind.text_of_baseline(conditions, spec.occurrence_columns))))
    attempts.save(tx.connection, changed)


# ---- deleting baselines ----------------------------------------------------------------------------------------------------------
def let_go(incarnation: Incarnation, query: ConditionQuery, unasked: set[str] | None = None) -> int:
    """Delete the baselines of a reaction of which no condition holds any more, so that a record is carried out when it matches again.

    Returns how many. `unasked` collects the condition texts that this database can no longer evaluate, since a column is gone: their
    baselines stay and are not tried again; a new one is logged.
    """
    mine, left_out = _of(query), set() if unasked is None else unasked
    count = 0
    with incarnation.transaction() as tx:
        for said in tx.connection.execute(select(table.c.begun_with).where(*mine).distinct()).scalars().all():
            if said in left_out:
                continue
            same = table.c.begun_with.is_(None) if said is None else table.c.begun_with == said
            try:
                with tx.connection.begin_nested():
                    count += _let_go(tx, query, [*mine, same], _holds(query, said))
            except DBAPIError as error:
                if db_errors.transient(error) or said is None or _is_todays(query, said):
                    raise
                left_out.add(said)
                log.warning(
                    "%s: rows that were left as a baseline stay so, since the condition they were left under cannot be asked any more (%s):"
                    " `groundstate forget --all --baseline` lets go of those that do not match now",
                    query.spec.name,
                    incarnation.shorten(db_errors.error_in_one_line(error)),
                    extra={"event": "baseline_unaskable", "reaction": query.spec.name},
                )
    return count


def _of(query: ConditionQuery) -> list[ColumnElement[bool]]:
    spec = query.spec
    own = (table.c.app == spec.app, table.c.reaction == spec.name)
    return [*own, table.c.state == State.HELD.value, table.c.why == BASELINE, ~table.c.unsure]


def _let_go(tx: Transaction, query: ConditionQuery, where: Sequence[ColumnElement[bool]], holds: ColumnElement[bool]) -> int:
    written = query.text_in_sql
    if written is not None:
        still = select(written).select_from(query.entity).where(holds)
        return tx.connection.execute(delete(table).where(*where, table.c.record.not_in(still))).rowcount
    some = attempts.fetch(tx.connection, attempts.select_attempts(*where))
    still_held = set(_records(tx.connection, query, some, holds))
    return attempts.remove(tx.database, tx.connection, [one for one in some if one.record not in still_held])


def _holds(query: ConditionQuery, said: str | None) -> ColumnElement[bool]:
    """Return the condition that holds while one of the conditions stored in `said` does; rows of older code store none, so the present
    condition counts for them.
    """
    left = begun_kind.baseline_in(said)
    conditions = (query.clauses_text,) if left is None else left.conditions
    return or_(*[query.condition if one == query.clauses_text else held_under(one) for one in conditions])


def _is_todays(query: ConditionQuery, said: str) -> bool:
    left = begun_kind.baseline_in(said)
    return left is None or set(left.conditions) == {query.clauses_text}


def _records(connection: Connection, query: ConditionQuery, some: Sequence[Attempt], holds: ColumnElement[bool]) -> Iterator[str]:
    """Yield the records of these attempts for which the condition holds, as texts."""
    keys = [key for text in {one.record for one in some} if (key := query.key_of_text(text)) is not None]
    for first in range(0, len(keys), ASKED_AT_ONCE):
        asked = select(*query.key_attributes).select_from(query.entity)
        for row in connection.execute(asked.where(holds, query.among(keys[first : first + ASKED_AT_ONCE]))):
            yield query.record_text(tuple(row))


# ---- queries about baselines -----------------------------------------------------------------------------------------------------
def still_left(connection: Connection, query: ConditionQuery, some: Sequence[Attempt]) -> set[Identity]:
    """Return the identities of the baselines among these attempts of which a condition still holds. To forget one of them could cause a new
    call, by some version of the code.
    """
    said_by: dict[str | None, list[Attempt]] = {}
    for one in some:
        if blocking.is_baseline(one):
            said_by.setdefault(one.begun_with, []).append(one)
    found: set[Identity] = set()
    for said, mine in said_by.items():
        try:
            with connection.begin_nested():
                holding = set(_records(connection, query, mine, _holds(query, said)))
        except Exception as error:
            if not db_errors.is_its_own(error):
                raise
            if db_errors.undefined(error):
                continue  # the stored condition cannot be evaluated any more, so only the present one decides
            holding = {one.record for one in mine}  # the condition raised for some row, so none of them is let go
        found |= {one.identity for one in mine if one.record in holding}
    return found


def reactions_with_some(connection: Connection, app: str) -> set[str]:
    """Return the names of the app's reactions that have baselines."""
    return set(connection.execute(select(table.c.reaction).where(table.c.app == app, table.c.why == BASELINE).distinct()).scalars())

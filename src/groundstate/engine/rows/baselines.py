"""Writes and deletes baselines, which mark rows that a person chose to leave out of a reaction.

A baseline is a held attempt whose `why` is 'baseline'; it stores the conditions under which its row was left out. Several versions of the
application may run at once, each with its own condition. So every worker checks the stored conditions, and deletes a baseline once none of
them holds.
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
from groundstate.engine.rows.claim import ClaimedRecord, Unreadable
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import db_errors, raising_rows
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.condition_texts import condition_from_text
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import attempt as rules
from groundstate.rules import begun_kind, blocking
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.blocking import BASELINE
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")
PATIENCE = timedelta(seconds=20)  # how long a command waits for records that others have locked
ASKED_AT_ONCE = 1000  # the most records for which one statement checks a condition


def write_baselines(
    incarnation: Incarnation, query: ConditionQuery, *, at_once: int = 1000, tell: Callable[[int], None] | None = None
) -> int:
    """Write a baseline for each row that matches the condition now (rules.md 32), and return how many were written.

    If a row has a baseline under another condition, this condition is added to it: the baseline is deleted only when neither holds. tell:
        called with the number written so far.
    """
    return raising_rows.retry_without_raising_rows(
        incarnation.database, query, partial(_write_baselines, incarnation, query, at_once, tell)
    )


def _write_baselines(incarnation: Incarnation, query: ConditionQuery, at_once: int, tell: Callable[[int], None] | None) -> int:
    count, cursor, apart = 0, None, list(query.raising_keys)
    left_under = begun_kind.baseline_as_json([query.texts.clauses_text], query.spec.occurrence_columns)
    while True:
        with incarnation.open_transaction(wait=PATIENCE) as tx:
            places = [tuple(row) for row in tx.connection.execute(query.selects.select_cursors_after(cursor, at_once, crowded=False))]
            wanted = [query.cursors.key_in_cursor(place) for place in places]
            if not wanted:
                wanted, apart = apart, []
            if not wanted:
                return count
            # Read under a lock: otherwise a record that a handler changes at the same time could get a baseline although it no longer
            # matches.
            records, unreadable = claim.load_ready_records_under_lock(query, tx, wanted)
            matching: list[ClaimedRecord | Unreadable] = [*(_claimed_without_loading(query, record) for record in records), *unreadable]
            new = [attempts.new_attempt_of_record(query, one.text, one.occurrence, incarnation.id, tx.now) for one in matching]
            held = [replace(rules.hold_attempt(one, BASELINE).attempt, blocks=None, begun_with=left_under) for one in new]
            if len(attempts.insert_attempts(tx, held)) < len(held):
                _add_present_condition(tx, query, held)
            count += len(held)
            cursor = places[-1] if places else cursor
        if tell is not None:
            tell(count)


def _claimed_without_loading(query: ConditionQuery, record: object) -> ClaimedRecord:
    key: PrimaryKey = query.keys.key_of_record(record)
    return ClaimedRecord(key, query.keys.record_text(key), query.occurrences.occurrence_text(record), record)


def _add_present_condition(tx: Transaction, query: ConditionQuery, wanted: Sequence[Attempt]) -> None:
    """Some of the baselines that the caller wants are in the table already: add the reaction's present condition to the conditions that
    are stored with them. wanted: all baselines that the caller wants.
    """
    spec, today = query.spec, query.texts.clauses_text
    standing = attempts.attempts_deciding_claim(tx, query, [one.record for one in wanted], lock=True, own=True)
    changed = []
    for new in wanted:
        one = attempts.find_by_identity(standing, new.identity)
        if one is None or one.call == new.call or not blocking.is_baseline(one):
            continue
        left = begun_kind.parse_baseline(one.begun_with)
        if left is None or today not in left.conditions:
            conditions = [*(left.conditions if left is not None else ()), today]
            changed.append((one, replace(one, begun_with=begun_kind.baseline_as_json(conditions, spec.occurrence_columns))))
    attempts.update_attempts(tx.connection, changed)


# ---- deleting baselines ----------------------------------------------------------------------------------------------------------
def delete_obsolete_baselines(incarnation: Incarnation, query: ConditionQuery, unasked: set[str] | None = None) -> int:
    """Delete each baseline of the reaction if none of its stored conditions holds any more, and return how many were deleted. If the record
    of a deleted baseline matches again later, the reaction is carried out for it.

    unasked: texts of conditions that the database can no longer evaluate, for example because a column was dropped. The baselines with
        these conditions stay, and the conditions are not evaluated again. This function logs further such texts and adds them to the set.
    """
    mine, left_out = _clauses_of_baselines(query), set() if unasked is None else unasked
    count = 0
    with incarnation.open_transaction() as tx:
        for said in tx.connection.execute(select(table.c.begun_with).where(*mine).distinct()).scalars().all():
            if said in left_out:
                continue
            same = table.c.begun_with.is_(None) if said is None else table.c.begun_with == said
            try:
                with tx.connection.begin_nested():
                    count += _delete_where_condition_is_false(tx, query, [*mine, same], _disjunction_of_stored_conditions(query, said))
            except DBAPIError as error:
                if db_errors.is_no_fault_of_record(error) or said is None or _is_present_condition(query, said):
                    raise
                left_out.add(said)
                log.warning(
                    "%s: some baselines are kept, since the condition under which their rows were left out cannot be evaluated any more"
                    " (%s): `groundstate forget --all --baseline` deletes those whose rows do not match now",
                    query.spec.name,
                    incarnation.shorten(db_errors.error_in_one_line(error)),
                    extra={"event": "baseline_unaskable", "reaction": query.spec.name},
                )
    return count


def _clauses_of_baselines(query: ConditionQuery) -> list[ColumnElement[bool]]:
    spec = query.spec
    own = (table.c.app == spec.app, table.c.reaction == spec.name)
    return [*own, table.c.state == State.HELD.value, table.c.why == BASELINE, ~table.c.unsure]


def _delete_where_condition_is_false(
    tx: Transaction, query: ConditionQuery, where: Sequence[ColumnElement[bool]], holds: ColumnElement[bool]
) -> int:
    written = query.keys.key_text_in_sql
    if written is not None:
        still = select(written).select_from(query.entity).where(holds)
        return tx.connection.execute(delete(table).where(*where, table.c.record.not_in(still))).rowcount
    some = attempts.fetch_attempts(tx.connection, attempts.select_attempts(*where))
    still_held = set(_records_where_condition_holds(tx.connection, query, some, holds))
    return attempts.delete_attempts(tx.database, tx.connection, [one for one in some if one.record not in still_held])


def _disjunction_of_stored_conditions(query: ConditionQuery, said: str | None) -> ColumnElement[bool]:
    """Return the SQL condition that holds if at least one of the conditions stored in `said` holds.

    An older version stored no conditions, so that `said` is None. Then return the present condition.
    """
    left = begun_kind.parse_baseline(said)
    conditions = (query.texts.clauses_text,) if left is None else left.conditions
    return or_(*[query.condition.holds if one == query.texts.clauses_text else condition_from_text(one) for one in conditions])


def _is_present_condition(query: ConditionQuery, said: str) -> bool:
    left = begun_kind.parse_baseline(said)
    return left is None or set(left.conditions) == {query.texts.clauses_text}


def _records_where_condition_holds(
    connection: Connection, query: ConditionQuery, some: Sequence[Attempt], holds: ColumnElement[bool]
) -> Iterator[str]:
    """Yield the key, as a text, of each record of these attempts for which the condition holds."""
    keys = [key for text in {one.record for one in some} if (key := query.keys.key_from_text_or_none(text)) is not None]
    for first in range(0, len(keys), ASKED_AT_ONCE):
        asked = select(*query.keys.key_attributes).select_from(query.entity)
        for row in connection.execute(asked.where(holds, query.keys.has_key_among(keys[first : first + ASKED_AT_ONCE]))):
            yield query.keys.record_text(tuple(row))


# ---- queries about baselines -----------------------------------------------------------------------------------------------------
def baselines_still_holding(connection: Connection, query: ConditionQuery, some: Sequence[Attempt]) -> set[Identity]:
    """Return the identities of the baselines among `some` that must stay, since at least one of their stored conditions still holds. If
    such a baseline were deleted, some version of the application could make a call for its record.
    """
    said_by: dict[str | None, list[Attempt]] = {}
    for one in some:
        if blocking.is_baseline(one):
            said_by.setdefault(one.begun_with, []).append(one)
    found: set[Identity] = set()
    for said, mine in said_by.items():
        try:
            with connection.begin_nested():
                holding = set(_records_where_condition_holds(connection, query, mine, _disjunction_of_stored_conditions(query, said)))
        except Exception as error:
            if not db_errors.is_fault_of_statement(error):
                raise
            if db_errors.is_schema_mismatch(error):
                continue  # the stored condition cannot be evaluated any more, so the baseline may be deleted
            # The condition raises an error for some row, so it is unknown for which rows the condition holds.
            holding = {one.record for one in mine}
        found |= {one.identity for one in mine if one.record in holding}
    return found


def reactions_with_baselines(connection: Connection, app: str) -> set[str]:
    """Return the names of the app's reactions that have baselines."""
    return set(connection.execute(select(table.c.reaction).where(table.c.app == app, table.c.why == BASELINE).distinct()).scalars())

"""Decides which of the records with one value of `in_order` may go next. Asked under the records' locks and a lock on the value. Writes
nothing.

A call in flight, or one that may have been made, counts for its record's value even if the record's condition no longer holds. So 'one at a
time' also holds if a record was overtaken, or is in doubt and has moved on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, select

from groundstate.engine.rows import attempts
from groundstate.engine.sql import db_errors, group_scan
from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey
from groundstate.engine.sql.lock_ids import try_transaction_locks
from groundstate.engine.sql.safe_text import user_code
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State
from groundstate.store.tables import attempt
from groundstate.store.tables import blocking as stands_in_the_way

LOOKED_AT_MOST = 1_000  # calls that are looked through to tell a person which record waits for which


def places_of_records_that_may_go(
    tx: Transaction, query: ConditionQuery, records: Sequence[tuple[PrimaryKey, Any]]
) -> dict[PrimaryKey, int]:
    """Return those of these locked records that may be carried out now, each with its place in its line (the records with the same value):
    0 for the first.

    One record of each value may go, and every record without a value. An ordered reaction without a call may also take the next ones of a
    line, one after another in the same transaction.
    """
    asked = group_scan.statements(query)
    by_value: dict[str, list[PrimaryKey]] = {}
    may: dict[PrimaryKey, int] = {}
    for key, record in records:
        value = asked.text_of(record)
        if value is None:
            may[key] = 0
        else:
            by_value.setdefault(value, []).append(key)
    ours = _locked(tx, query, list(by_value))
    # From here on each statement is new, so it sees what was committed before we got the locks on the values (hazard 17).
    waiting = {value: some for value, some in by_value.items() if value in ours}
    if waiting:
        others = _in_the_way(tx.connection, query) - {key for some in waiting.values() for key in some}  # these records are judged below
        taken = set(asked.values_of(tx.connection, others).values())
        waiting = {value: some for value, some in waiting.items() if value not in taken}
    if not asked.ordered:
        may |= {some[0]: 0 for some in waiting.values()}
    elif waiting:
        longest = max(len(some) for some in waiting.values())
        each = next((each for each in group_scan.EACH if each >= longest), group_scan.EACH[-1])
        firsts = asked.first_of(tx.connection, [some[0] for some in waiting.values()], min(each, asked.most_of_one))
        for some in waiting.values():
            for place, key in enumerate(firsts.get(some[0], ())):
                if key not in some:
                    break
                may[key] = place
    return may


def doubts_of_their_turn(tx: Transaction, query: ConditionQuery, records: Sequence[tuple[PrimaryKey, Any]]) -> set[PrimaryKey]:
    """Return those of these records in doubt that may be called again. If several of one line are in doubt, as after a restore, only the
    first.
    """
    asked = group_scan.statements(query)
    values = {key: value for key, record in records if record is not None and (value := asked.text_of(record)) is not None}
    ours = _locked(tx, query, sorted(set(values.values())))
    flying = set(asked.values_of(tx.connection, _in_the_way(tx.connection, query, begun=True)).values())
    firsts = asked.first_among(tx.connection, _in_the_way(tx.connection, query) | values.keys())
    waiting = {key for key, value in values.items() if value not in ours or value in flying or firsts.get(value) != key}
    return {key for key, _ in records} - waiting


def _locked(tx: Transaction, query: ConditionQuery, values: Sequence[str]) -> set[str]:
    spec = query.spec
    return {name[-1] for name in try_transaction_locks(tx, [("line", spec.app, spec.name, value) for value in values])}


def _in_the_way(connection: Connection, query: ConditionQuery, most: int | None = None, *, begun: bool = False) -> set[PrimaryKey]:
    """Return the records for which a call is in flight or may have been made; with `begun`, only those with a call in flight."""
    spec = query.spec
    blocks = attempt.c.blocks.is_(None) if spec.done_column is not None else attempt.c.blocks.in_(query.spellings)
    mine = and_(attempt.c.app == spec.app, attempt.c.reaction == spec.name)
    chosen = attempt.c.state == State.BEGUN.value if begun else stands_in_the_way
    texts = connection.execute(select(attempt.c.record).where(blocks, mine, chosen).limit(most)).scalars()
    return {key for text in texts if (key := query.key_of_text(text)) is not None}


def free(tx: Transaction, query: ConditionQuery, wanted: Sequence[PrimaryKey]) -> list[PrimaryKey]:
    """Leave out records that cannot go now, since their own attempt on the present occurrence waits, or an attempt on another occurrence
    keeps them out. The first record of a line stays first meanwhile, and must not be locked in every pass.
    """
    spec = query.spec
    if spec.in_order is None or not wanted or not tx.some_attempts:
        return list(wanted)
    texts = {key: query.record_text(key) for key in wanted}
    found = attempts.attempts_deciding_claim(tx, query, list(texts.values()), own=True)
    rounds = _rounds_of(tx.connection, query, [key for key in wanted if texts[key] in found])
    return [key for key in wanted if key not in rounds or not _waits(tx, query, rounds[key], found[texts[key]])]


def _waits(tx: Transaction, query: ConditionQuery, occurrence: str, standing: Sequence[Attempt]) -> bool:
    spec = query.spec
    own = blocking.own(spec.app, spec.name, occurrence, standing, spec.occurrence_columns)
    if own is not None and (own.state is not State.FAILED or not blocking.due(own, tx.now)):
        return True
    return blocking.blocker(spec.app, spec.name, occurrence, standing, **spec.kept_out_by) is not None


def _rounds_of(connection: Connection, query: ConditionQuery, wanted: Sequence[PrimaryKey]) -> dict[PrimaryKey, str]:
    """Return the present occurrences of these records, as texts. If they cannot be read here, return none; claiming the records will show
    why.
    """
    columns = query.spec.occurrence
    if not columns or not wanted:
        return dict.fromkeys(wanted, "")
    size = len(query.key_attributes)
    try:
        with user_code():
            rows = connection.execute(select(*query.key_attributes, *columns).where(query.among(wanted))).all()
    except Exception as error:
        if not db_errors.unloadable(error):
            raise
        return {}
    return {tuple(row[:size]): query.round_text(tuple(row[size:])) for row in rows}


def who_is_before(connection: Connection, query: ConditionQuery, key: PrimaryKey) -> PrimaryKey | None:
    """Return the record that this one waits for in its line; None if it may go next, or has no line."""
    asked = group_scan.statements(query)
    first = asked.first_of(connection, [key]).get(key) if asked.ordered else None
    if first and first[0] != key:
        return first[0]
    others = _in_the_way(connection, query, LOOKED_AT_MOST) - {key}
    value = next(iter(asked.values_of(connection, [key]).values()), None)
    return (
        next((one for one, theirs in asked.values_of(connection, others).items() if theirs == value), None) if value is not None else None
    )

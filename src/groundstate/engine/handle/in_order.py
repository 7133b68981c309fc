"""Decides which records of a reaction with `in_order` may be carried out next. Records with the same `in_order` value form a line, and are
carried out one at a time. Writes nothing.

The caller holds locks on the records, and this module locks the `in_order` values. A record whose call is in flight or may have been made
holds up its line, even if the record no longer meets the condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, select

from groundstate.engine.rows import attempts
from groundstate.engine.sql import db_errors, group_scan
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.lock_ids import try_transaction_locks
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.safe_text import running_user_code
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State
from groundstate.store.tables import attempt
from groundstate.store.tables import blocking as stands_in_the_way

LOOKED_AT_MOST = 1_000  # at most this many attempts are read to find the earlier record for which a record waits


def find_places_of_records_in_turn(
    tx: Transaction, query: ConditionQuery, records: Sequence[tuple[PrimaryKey, Any]]
) -> dict[PrimaryKey, int]:
    """Return which of these records may be carried out now, as a dict from the key of each such record to its place in its line. The first
    place is 0. The caller has locked the records.

    The first record of each line may be carried out, and so may every record without an `in_order` value. If the reaction has no call and
    sorts its lines, the next records of a line may follow in the same transaction, in the order of their places.
    """
    asked = group_scan.group_statements(query)
    by_value: dict[str, list[PrimaryKey]] = {}
    may: dict[PrimaryKey, int] = {}
    for key, record in records:
        value = asked.group_text_of(record)
        if value is None:
            may[key] = 0
        else:
            by_value.setdefault(value, []).append(key)
    ours = _try_to_lock_lines(tx, query, list(by_value))
    # The statements below begin after the values were locked, so they see all that was committed before the locks were taken (hazard 17).
    waiting = {value: some for value, some in by_value.items() if value in ours}
    if waiting:
        others = _records_holding_up_their_line(tx.connection, query) - {
            key for some in waiting.values() for key in some
        }  # the given records do not hold up their own line
        taken = set(asked.group_texts_of(tx.connection, others).values())
        waiting = {value: some for value, some in waiting.items() if value not in taken}
    if not asked.must_keep_order:
        may |= {some[0]: 0 for some in waiting.values()}
    elif waiting:
        longest = max(len(some) for some in waiting.values())
        each = next((each for each in group_scan.EACH if each >= longest), group_scan.EACH[-1])
        firsts = asked.first_keys_in_group_of(tx.connection, [some[0] for some in waiting.values()], min(each, asked.most_rows_of_group))
        for some in waiting.values():
            for place, key in enumerate(firsts.get(some[0], ())):
                if key not in some:
                    break
                may[key] = place
    return may


def find_doubts_in_turn(tx: Transaction, query: ConditionQuery, records: Sequence[tuple[PrimaryKey, Any]]) -> set[PrimaryKey]:
    """Return the keys of the records whose call may be made again. The calls of all given records are in doubt. If calls of several records
    of a line are in doubt, as after a restore, only the call of the first record may be made again.
    """
    asked = group_scan.group_statements(query)
    values = {key: value for key, record in records if record is not None and (value := asked.group_text_of(record)) is not None}
    ours = _try_to_lock_lines(tx, query, sorted(set(values.values())))
    flying = set(asked.group_texts_of(tx.connection, _records_holding_up_their_line(tx.connection, query, begun=True)).values())
    firsts = asked.first_key_of_each_group(tx.connection, _records_holding_up_their_line(tx.connection, query) | values.keys())
    waiting = {key for key, value in values.items() if value not in ours or value in flying or firsts.get(value) != key}
    return {key for key, _ in records} - waiting


def _try_to_lock_lines(tx: Transaction, query: ConditionQuery, values: Sequence[str]) -> set[str]:
    """Try to lock the lines with these `in_order` values until the transaction ends, and return the values whose lines were free."""
    spec = query.spec
    return {name[-1] for name in try_transaction_locks(tx, [("line", spec.app, spec.name, value) for value in values])}


def _records_holding_up_their_line(
    connection: Connection, query: ConditionQuery, most: int | None = None, *, begun: bool = False
) -> set[PrimaryKey]:
    """Return the keys of at most `most` records whose call is in flight or may have been made. With `begun`, return only records whose call
    is in flight.
    """
    spec = query.spec
    blocks = attempt.c.blocks.is_(None) if spec.done_column is not None else attempt.c.blocks.in_(query.attempts.table_name_spellings)
    mine = and_(attempt.c.app == spec.app, attempt.c.reaction == spec.name)
    chosen = attempt.c.state == State.BEGUN.value if begun else stands_in_the_way
    texts = connection.execute(select(attempt.c.record).where(blocks, mine, chosen).limit(most)).scalars()
    return {key for text in texts if (key := query.keys.key_from_text_or_none(text)) is not None}


def without_waiting_records(tx: Transaction, query: ConditionQuery, wanted: Sequence[PrimaryKey]) -> list[PrimaryKey]:
    """Return the keys in `wanted`, except for records that cannot be carried out now because an attempt of this or another reaction makes
    them wait.

    A record with such an attempt may be the first of its line for a long time. Without this check, each pass would lock the record in vain.
    """
    spec = query.spec
    if spec.in_order is None or not wanted or not tx.some_attempts:
        return list(wanted)
    texts = {key: query.keys.record_text(key) for key in wanted}
    found = attempts.attempts_deciding_claim(tx, query, list(texts.values()), own=True)
    rounds = _present_occurrences(tx.connection, query, [key for key in wanted if texts[key] in found])
    return [key for key in wanted if key not in rounds or not _is_kept_waiting_by_attempt(tx, query, rounds[key], found[texts[key]])]


def _is_kept_waiting_by_attempt(tx: Transaction, query: ConditionQuery, occurrence: str, standing: Sequence[Attempt]) -> bool:
    """Return whether an attempt on the record, of this reaction or of another one, makes the record wait."""
    spec = query.spec
    own = blocking.find_own_attempt(spec.app, spec.name, occurrence, standing, spec.occurrence_columns)
    if own is not None and (own.state is not State.FAILED or not blocking.is_retry_due(own, tx.now)):
        return True
    return blocking.find_blocking_attempt(spec.app, spec.name, occurrence, standing, **spec.blocking_arguments) is not None


def _present_occurrences(connection: Connection, query: ConditionQuery, wanted: Sequence[PrimaryKey]) -> dict[PrimaryKey, str]:
    """Return a dict from the key of each record to the text of its present occurrence. If an occurrence cannot be read, return an empty
    dict: the query that locks the records reports why.
    """
    columns = query.spec.occurrence
    if not columns or not wanted:
        return dict.fromkeys(wanted, "")
    size = len(query.keys.key_attributes)
    try:
        with running_user_code():
            rows = connection.execute(select(*query.keys.key_attributes, *columns).where(query.keys.has_key_among(wanted))).all()
    except Exception as error:
        if not db_errors.is_record_load_error(error):
            raise
        return {}
    return {tuple(row[:size]): query.occurrences.occurrence_text_of_values(tuple(row[size:])) for row in rows}


def record_before_in_line(connection: Connection, query: ConditionQuery, key: PrimaryKey) -> PrimaryKey | None:
    """Return the key of the record in the same line that must be carried out before the record `key`; None if there is no such record."""
    asked = group_scan.group_statements(query)
    first = asked.first_keys_in_group_of(connection, [key]).get(key) if asked.must_keep_order else None
    if first and first[0] != key:
        return first[0]
    others = _records_holding_up_their_line(connection, query, LOOKED_AT_MOST) - {key}
    value = next(iter(asked.group_texts_of(connection, [key]).values()), None)
    return (
        next((one for one, theirs in asked.group_texts_of(connection, others).items() if theirs == value), None)
        if value is not None
        else None
    )

"""Whose turn it is among records of one value (`in_order`): asked under the records' locks, and under one of the value. Writes nothing.

What is in the air, or may be, counts by the record that it was begun for, whatever became of that record's condition: so 'one at a time'
holds too where a record was overtaken, or is in doubt and has moved on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, select

from groundstate.engine import attempts, groups, trouble
from groundstate.engine.guarded import user_code
from groundstate.engine.numbers import try_turns
from groundstate.engine.question import PrimaryKey, Question
from groundstate.engine.transaction import Transaction
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State
from groundstate.store.tables import attempt
from groundstate.store.tables import blocking as stands_in_the_way

LOOKED_AT_MOST = 1_000  # calls that are looked through for people, to say who waits for whom


def of_their_turn(tx: Transaction, question: Question, records: Sequence[tuple[PrimaryKey, Any]]) -> dict[PrimaryKey, int]:
    """Those of these records, all of them locked by us, that may be carried out now, and in which place of their line: 0 for the first.

    One of each value, and every one without a value; of a reaction in order and without a call those that follow as well, in one
    transaction one after another.
    """
    asked = groups.statements(question)
    by_value: dict[str, list[PrimaryKey]] = {}
    may: dict[PrimaryKey, int] = {}
    for key, record in records:
        value = asked.text_of(record)
        if value is None:
            may[key] = 0
        else:
            by_value.setdefault(value, []).append(key)
    ours = _locked(tx, question, list(by_value))
    # From here on in statements of their own: what was committed before we got the turns is seen (hazard 17).
    waiting = {value: some for value, some in by_value.items() if value in ours}
    if waiting:
        others = _in_the_way(tx.connection, question) - {key for some in waiting.values() for key in some}  # these are looked at themselves
        taken = set(asked.values_of(tx.connection, others).values())
        waiting = {value: some for value, some in waiting.items() if value not in taken}
    if not asked.ordered:
        may |= {some[0]: 0 for some in waiting.values()}
    elif waiting:
        longest = max(len(some) for some in waiting.values())
        each = next((each for each in groups.EACH if each >= longest), groups.EACH[-1])
        firsts = asked.first_of(tx.connection, [some[0] for some in waiting.values()], min(each, asked.most_of_one))
        for some in waiting.values():
            for place, key in enumerate(firsts.get(some[0], ())):
                if key not in some:
                    break
                may[key] = place
    return may


def doubts_of_their_turn(tx: Transaction, question: Question, records: Sequence[tuple[PrimaryKey, Any]]) -> set[PrimaryKey]:
    """Those of these records in doubt that may be called again: where several of a line are, as after a restore, the first of them."""
    asked = groups.statements(question)
    values = {key: value for key, record in records if record is not None and (value := asked.text_of(record)) is not None}
    ours = _locked(tx, question, sorted(set(values.values())))
    flying = set(asked.values_of(tx.connection, _in_the_way(tx.connection, question, begun=True)).values())
    firsts = asked.first_among(tx.connection, _in_the_way(tx.connection, question) | values.keys())
    waiting = {key for key, value in values.items() if value not in ours or value in flying or firsts.get(value) != key}
    return {key for key, _ in records} - waiting


def _locked(tx: Transaction, question: Question, values: Sequence[str]) -> set[str]:
    spec = question.spec
    return {name[-1] for name in try_turns(tx, [("line", spec.app, spec.name, value) for value in values])}


def _in_the_way(connection: Connection, question: Question, most: int | None = None, *, begun: bool = False) -> set[PrimaryKey]:
    """Records for which a call is in the air, or may have been made; begun: the former alone."""
    spec = question.spec
    blocks = attempt.c.blocks.is_(None) if spec.fact is not None else attempt.c.blocks.in_(question.spellings)
    mine = and_(attempt.c.app == spec.app, attempt.c.reaction == spec.name)
    chosen = attempt.c.state == State.BEGUN.value if begun else stands_in_the_way
    texts = connection.execute(select(attempt.c.record).where(blocks, mine, chosen).limit(most)).scalars()
    return {key for text in texts if (key := question.key_of_text(text)) is not None}


def free(tx: Transaction, question: Question, wanted: Sequence[PrimaryKey]) -> list[PrimaryKey]:
    """Without those whose own attempt of the present round waits, or that one of another round keeps out: who is first in line stays
    there meanwhile, and is not to be locked at each look.
    """
    spec = question.spec
    if spec.in_order is None or not wanted or not tx.some_attempts:
        return list(wanted)
    texts = {key: question.record_text(key) for key in wanted}
    found = attempts.concerning(tx, question, list(texts.values()), own=True)
    rounds = _rounds_of(tx.connection, question, [key for key in wanted if texts[key] in found])
    return [key for key in wanted if key not in rounds or not _waits(tx, question, rounds[key], found[texts[key]])]


def _waits(tx: Transaction, question: Question, occurrence: str, standing: Sequence[Attempt]) -> bool:
    spec = question.spec
    own = blocking.own(spec.app, spec.name, occurrence, standing, spec.occurrence_columns)
    if own is not None and (own.state is not State.FAILED or not blocking.due(own, tx.now)):
        return True
    return blocking.blocker(spec.app, spec.name, occurrence, standing, **spec.kept_out_by) is not None


def _rounds_of(connection: Connection, question: Question, wanted: Sequence[PrimaryKey]) -> dict[PrimaryKey, str]:
    """The present rounds of these records. Without those of which it cannot be told here: who takes them will see."""
    columns = question.spec.occurrence
    if not columns or not wanted:
        return dict.fromkeys(wanted, "")
    size = len(question.key_attributes)
    try:
        with user_code():
            rows = connection.execute(select(*question.key_attributes, *columns).where(question.among(wanted))).all()
    except Exception as error:
        if not trouble.unloadable(error):
            raise
        return {}
    return {tuple(row[:size]): question.round_text(tuple(row[size:])) for row in rows}


def who_is_before(connection: Connection, question: Question, key: PrimaryKey) -> PrimaryKey | None:
    """The record for whose end this one waits in its line; None where it is its turn, or has no line."""
    asked = groups.statements(question)
    first = asked.first_of(connection, [key]).get(key) if asked.ordered else None
    if first and first[0] != key:
        return first[0]
    others = _in_the_way(connection, question, LOOKED_AT_MOST) - {key}
    value = next(iter(asked.values_of(connection, [key]).values()), None)
    return (
        next((one for one, theirs in asked.values_of(connection, others).items() if theirs == value), None) if value is not None else None
    )

"""Of which records it was that a batch failed, so that they alone get a savepoint each, and the others are done together once more.

Looked for in a transaction of its own that is always rolled back, and never where all goes well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from groundstate.engine import changes, handling, trouble
from groundstate.engine.handling import HandlerFailed, Work
from groundstate.engine.question import PrimaryKey, Question
from groundstate.engine.transaction import Transaction
from groundstate.rules.reaction import Function

WRITING_S = 0.25  # so long it is looked whose values are refused: less than others wait for a lock without being told
_Change = tuple[Work, dict[str, Any]]


class Looked(Exception):
    """Rolls back the transaction in which it was looked. failed: those that fail by themselves. others: those of which nothing shows that
    they would. What was not reached in time is in neither.
    """

    def __init__(self, failed: set[PrimaryKey], others: set[PrimaryKey]) -> None:
        super().__init__()
        self.failed = failed
        self.others = others - failed


def look(question: Question, tx: Transaction, function: Function, works: Sequence[Work], hold_s: float = math.inf) -> Looked:
    """Runs the handlers, each whatever became of the others, and writes by halves what they changed. To be raised.

    hold_s: for so long handlers are run; of one it is told all the same.
    """
    failed, ran = _run(question, tx, function, works, time.monotonic() + hold_s)
    new = None if ran is None else _taken_out(question, tx, ran)
    if ran is None or new is None:
        return Looked(failed, {work.key for work in (works if ran is None else ran)})
    fine: list[_Change] = []
    _by_halves(question, tx, list(zip(ran, new, strict=True)), time.monotonic() + WRITING_S, (fine, failed))
    failed |= set(handling.without_progress(question, tx, [work for work, _ in fine], [change for _, change in fine]))
    return Looked(failed, {work.key for work, _ in fine})


def _run(
    question: Question, tx: Transaction, function: Function, works: Sequence[Work], until_s: float
) -> tuple[set[PrimaryKey], list[Work] | None]:
    """Those that raise, and those that do not; None instead where a statement was refused, after which the transaction is of no use."""
    failed: set[PrimaryKey] = set()
    ran: list[Work] = []
    for work in works:
        if (ran or failed) and time.monotonic() >= until_s:
            break
        try:
            handling.call(question, tx, function, work, *(one.record for one in ran))
        except HandlerFailed as failure:
            if failure.cause is not None and trouble.transient(failure.cause):
                raise failure.cause from None
            failed.add(work.key)
            if isinstance(failure.cause, SQLAlchemyError) or tx.session.is_undone:
                return failed, None
            if work.record in tx.session:
                tx.session.expunge(work.record)
        else:
            ran.append(work)
    return failed, ran


def _taken_out(question: Question, tx: Transaction, ran: Sequence[Work]) -> list[dict[str, Any]] | None:
    """What is to be written to the records; None where that is the unit of work's affair, or what stands beside them is refused."""
    try:
        return handling.take_out(question, tx, ran)
    except Exception as error:
        if trouble.transient(error):
            raise
        return None


def _by_halves(
    question: Question, tx: Transaction, some: Sequence[_Change], until_s: float, told: tuple[list[_Change], set[PrimaryKey]]
) -> None:
    """Puts those that the database takes, and those that it refuses, where they are told of."""
    fine, refused = told
    if not some or ((fine or refused) and time.monotonic() >= until_s):
        return
    try:
        with tx.connection.begin_nested():
            changes.write(tx.database, tx.connection, question.mapper, [work.key for work, _ in some], [change for _, change in some])
    except Exception as error:
        if trouble.transient(error):
            raise
        if len(some) == 1:
            refused.add(some[0][0].key)
            return
        half = len(some) // 2
        _by_halves(question, tx, some[:half], until_s, told)
        _by_halves(question, tx, some[half:], until_s, told)
    else:
        fine += some

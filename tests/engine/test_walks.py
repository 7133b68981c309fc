"""How many files of the engine a reader opens to follow an outcome to the commit that concludes it, and a batch to its commit.

Each walk is traced once, on SQLite. Files that it enters are not counted if the names of their functions are all that a reader of the walk
needs of them: they are listed here, each with what it does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import Connection, event

from groundstate import engine
from groundstate.engine.call.call_turn import CallTurns
from groundstate.engine.handler_turn import Batches
from tests.engine.charging import SAME_KEY, charging
from tests.engine.kit import Order, World, until

ENGINE = Path(engine.__file__).parent
ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"
FILES_OF_CONCLUSION_MOST = 9
FILES_OF_BATCH_MOST = 11

NOT_COUNTED = {
    # They make the statements, or write and parse what is in them; which statement it is, is in the name of the function.
    "rows/attempts.py": "reads, saves and deletes attempts",
    "sql/condition_query.py": "holds what a reaction asks the database, in parts",
    "sql/evaluated_condition.py": "the condition, as one or more clauses",
    "sql/attempt_filters.py": "which attempts keep a record from being taken",
    "sql/record_keys.py": "keys, and what finds records by them",
    "sql/pass_cursors.py": "where a pass over the records stands",
    "sql/occurrence_texts.py": "the text of a record's occurrence",
    "sql/record_loading.py": "what is loaded and locked with a record",
    "sql/record_selects.py": "the SELECTs over the records",
    "sql/user_filters.py": "what the user's own filters add to a SELECT",
    "sql/in_list.py": "a list of values as one parameter",
    "sql/key_columns.py": "keys from their texts",
    "sql/side_effects.py": "what the database's catalogue says of a table",
    "sql/tables_read.py": "which tables a condition reads",
    "sql/transaction_time.py": "the time of the transaction, as a parameter",
    # They watch over every statement, session or transaction of a process, and change nothing where nothing is wrong.
    "sql/call_write_guard.py": "refuses writes of user code that may not write",
    "sql/session_guards.py": "refuses changes that would make an attempt impossible to conclude",
    "sql/in_place_changes.py": "finds changes inside a value that SQLAlchemy does not notice",
    "sql/related_rows.py": "repeats a transaction after a lost update",
    "sql/rows_by_key.py": "keeps rows that handlers load by key",
    "sql/safe_text.py": "marks where code of the user runs",
    "sql/db_errors.py": "the names of errors",
    # They are the parts of a queue and of a worker's state: what they answer is in the name of the method.
    "watch/waiting_rows.py": "which records wait",
    "watch/postponement.py": "until when a queue waits, and why",
    "watch/due_work.py": "what is due",
    "watch/batch_locks.py": "how long a batch may hold its locks",
    "watch/progress.py": "how many records were carried out",
    "watch/queue_rotation.py": "which queue comes first",
    # They take note of what was done, for hints, metrics and the slowing down of cycles.
    "sql/calls_in_air.py": "which records have a call in flight",
    "sql/commit_hooks.py": "which rows a commit touched",
    "sql/record_cycles.py": "which records are carried out again and again",
    "watch/counters.py": "counts",
    "watch/slow_conditions.py": "the time limit of a condition",
    "watch/trace_hooks.py": "begins and ends a trace",
}
NOT_COUNTED_IN_CONCLUSION = {
    "rows/in_flight.py": "what a call in flight and its result are",
    # The transaction that concludes results also begins new calls, for which these are asked.
    "call/dispatch.py": "chooses how many calls may begin",
    "call/limiter.py": "how many calls a service may have",
    "call/rate_limit.py": "how many calls a service may have in a time",
    "call/semaphore.py": "how many calls all workers together may have",
    "watch/work_queue.py": "the queue of a reaction",
    "watch/worker_state.py": "which queues are there",
}


class Walk:
    """The files of the engine that are entered from the beginning of a step of the worker until its next commit."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.armed = False  # the next step is traced
        self.committed = False

    def trace(self, step: Callable[..., None]) -> Callable[..., None]:
        def traced(*arguments: Any) -> None:
            if self.armed and not self.committed:
                sys.setprofile(self._note)
            try:
                step(*arguments)
            finally:
                sys.setprofile(None)

        return traced

    def end(self, _connection: Connection) -> None:
        """At a commit. It is called for those of other threads too, which have no trace."""
        if sys.getprofile() is not None:
            sys.setprofile(None)
            self.committed = True

    def _note(self, frame: FrameType, what: str, _argument: object) -> None:
        path = Path(frame.f_code.co_filename) if what == "call" else None
        if path is not None and path.is_relative_to(ENGINE):
            self.files.add(path.relative_to(ENGINE).as_posix())

    def counted(self, *not_counted: Mapping[str, str]) -> set[str]:
        return self.files.difference(*not_counted)


@pytest.fixture
def conclusion(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """The walk of one outcome, from when the worker has it to the commit in which its order is paid."""
    walk = Walk()
    receive: Any = CallTurns._receive_results

    def receive_and_arm(turns: CallTurns, results: Any) -> None:
        walk.armed = True
        receive(turns, results)

    monkeypatch.setattr(CallTurns, "_receive_results", receive_and_arm)
    monkeypatch.setattr(CallTurns, "run_turn", walk.trace(CallTurns.run_turn))
    charging(sqlite_world, SAME_KEY)
    _carry_out(sqlite_world, walk)
    return walk


@pytest.fixture
def batch(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """The walk of a batch of two records without a call, from the choice of their queue to its commit."""
    walk = Walk()
    walk.armed = True
    monkeypatch.setattr(Batches, "run_batches", walk.trace(Batches.run_batches))

    @sqlite_world.app.on(Order, Order.status == "placed")
    def paid(order: Order) -> None:
        order.status = "paid"

    _carry_out(sqlite_world, walk, orders=2)
    return walk


def _carry_out(world: World, walk: Walk, orders: int = 1) -> None:
    world.orders(orders)
    life = world.worker(start=False)
    event.listen(life.database.engine, "commit", walk.end)
    life.worker.start()
    until(lambda: world.count(Order.status == "paid") == orders)
    life.stop()
    assert walk.committed


def test_an_outcome_is_followed_to_its_commit_through_few_files(conclusion: Walk) -> None:
    files = conclusion.counted(NOT_COUNTED, NOT_COUNTED_IN_CONCLUSION)
    assert {"call/call_turn.py", "sql/transaction.py"} <= files
    assert len(files) <= FILES_OF_CONCLUSION_MOST, ", ".join(sorted(files))
    _are_named_in_the_architecture(files)


def test_a_batch_is_followed_to_its_commit_through_few_files(batch: Walk) -> None:
    files = batch.counted(NOT_COUNTED)
    assert {"handler_turn.py", "sql/transaction.py"} <= files
    assert len(files) <= FILES_OF_BATCH_MOST, ", ".join(sorted(files))
    _are_named_in_the_architecture(files)


def test_each_file_that_is_not_counted_exists() -> None:
    assert [file for file in NOT_COUNTED | NOT_COUNTED_IN_CONCLUSION if not (ENGINE / file).is_file()] == []


def _are_named_in_the_architecture(files: set[str]) -> None:
    story = ARCHITECTURE.read_text().partition("## The story of one row")[2].partition("\n## ")[0]
    assert {file for file in files if f"engine/{file}" not in story} == set()

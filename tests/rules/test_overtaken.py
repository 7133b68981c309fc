"""What is kept of an ordinary handler's work after its condition became false: a done column concludes, anything else is held."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from groundstate.rules.overtaken import (
    DropOutcome,
    FalseClause,
    HandOver,
    Hold,
    WhenOvertaken,
    WriteFact,
    WriteSame,
    decide_overtaken_outcome,
    reason_to_hold_overtaken,
)

CANCELLED = FalseClause({"status"}, own_columns_only=True)


def test_a_fact_that_was_null_and_that_no_false_clause_tests_is_kept() -> None:
    assert reason_to_hold_overtaken({"receipt"}, {"receipt"}, [CANCELLED], wrote_else=False, same_occurrence=True) is None


def test_a_state_that_a_false_clause_tests_is_held() -> None:
    why = reason_to_hold_overtaken({"status"}, {"status"}, [CANCELLED], wrote_else=False, same_occurrence=True)
    assert why is not None
    assert "status is tested by a clause that no longer held" in why


def test_a_column_that_had_a_value_is_held_though_no_false_clause_tests_it() -> None:
    by_another_column = FalseClause({"cancelled_at"}, own_columns_only=True)
    why = reason_to_hold_overtaken({"status"}, set(), [by_another_column], wrote_else=False, same_occurrence=True)
    assert why is not None
    assert "status had a value already" in why


def test_a_false_clause_over_other_tables_holds() -> None:
    other = FalseClause({"id"}, own_columns_only=False)
    assert reason_to_hold_overtaken({"receipt"}, {"receipt"}, [CANCELLED, other], wrote_else=False, same_occurrence=True) is not None


def test_a_false_clause_over_other_tables_does_not_hold_what_is_declared_a_fact() -> None:
    other = FalseClause({"id"}, own_columns_only=False)
    assert (
        reason_to_hold_overtaken({"receipt"}, {"receipt"}, [CANCELLED, other], wrote_else=False, same_occurrence=True, done_column=True)
        is None
    )


def test_what_is_declared_a_fact_is_none_where_it_had_a_value_or_a_false_clause_tests_it() -> None:
    for false in (FalseClause({"receipt"}, own_columns_only=False), FalseClause({"receipt"}, own_columns_only=True)):
        assert (
            reason_to_hold_overtaken({"receipt"}, {"receipt"}, [false], wrote_else=False, same_occurrence=True, done_column=True)
            is not None
        )
    assert reason_to_hold_overtaken({"receipt"}, set(), [CANCELLED], wrote_else=False, same_occurrence=True, done_column=True) is not None


def test_whatever_else_it_wrote_holds() -> None:
    assert reason_to_hold_overtaken({"receipt"}, {"receipt"}, [CANCELLED], wrote_else=True, same_occurrence=True) is not None


def test_a_handler_that_wrote_nothing_has_not_taken_the_outcome() -> None:
    assert reason_to_hold_overtaken(set(), set(), [CANCELLED], wrote_else=False, same_occurrence=True) is not None


def test_another_occurrence_holds_since_the_fact_would_be_that_of_the_next_one() -> None:
    assert reason_to_hold_overtaken({"receipt"}, {"receipt"}, [], wrote_else=False, same_occurrence=False) is not None


columns = st.sets(st.sampled_from(["status", "receipt", "paid_at", "note"]))
clauses = st.lists(st.builds(FalseClause, columns, st.booleans()), max_size=3)


@given(columns, columns, clauses, st.booleans(), st.booleans(), st.booleans())
def test_it_is_kept_exactly_where_all_of_it_is_a_fact(
    written: set[str], null_before: set[str], false: list[FalseClause], wrote_else: bool, same_occurrence: bool, done_column: bool
) -> None:
    tested = {column for clause in false for column in clause.columns}
    a_fact = (
        bool(written)
        and written <= null_before
        and not written & tested
        and (done_column or all(clause.own_columns_only for clause in false))
        and not wrote_else
        and same_occurrence
    )
    said = reason_to_hold_overtaken(
        written, null_before, false, wrote_else=wrote_else, same_occurrence=same_occurrence, done_column=done_column
    )
    assert (said is None) == a_fact


# ---- what the author said ------------------------------------------------------------------------------------------------------
def test_what_the_author_said_counts_before_the_policy() -> None:
    for twice in (False, True):
        assert isinstance(decide_overtaken_outcome("same", has_handler=False, repeats=twice, exists=True), WriteSame)
        assert isinstance(decide_overtaken_outcome("hold", has_handler=False, repeats=twice, exists=True), Hold)
        assert isinstance(decide_overtaken_outcome("drop", has_handler=False, repeats=twice, exists=True), DropOutcome)


def test_where_nothing_is_said_a_handler_takes_it_else_it_is_written_as_a_fact() -> None:
    assert decide_overtaken_outcome(None, has_handler=True, repeats=True, exists=True) == HandOver()
    assert decide_overtaken_outcome(None, has_handler=False, repeats=False, exists=True) == WriteFact(drops=False)
    assert decide_overtaken_outcome(None, has_handler=False, repeats=True, exists=True) == WriteFact(drops=True)


def test_an_outcome_of_a_deleted_record_is_held_unless_it_is_to_be_dropped() -> None:
    keep: tuple[WhenOvertaken | None, ...] = (None, "hold", "same")
    for said in keep:
        assert isinstance(decide_overtaken_outcome(said, has_handler=said is None, repeats=True, exists=False), Hold)
    assert isinstance(decide_overtaken_outcome("drop", has_handler=False, repeats=False, exists=False), DropOutcome)

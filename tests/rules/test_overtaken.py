"""A fact concludes, a state holds: what is kept of an ordinary handler's work after its condition became false."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from groundstate.rules.overtaken import DropIt, FalseClause, HandOver, Hold, WhenOvertaken, WriteFact, WriteSame, answer, kept

CANCELLED = FalseClause({"status"}, own_columns_only=True)


def test_a_fact_that_was_null_and_that_no_false_clause_tests_is_kept() -> None:
    assert kept({"receipt"}, {"receipt"}, [CANCELLED], wrote_else=False, same_occurrence=True) is None


def test_a_state_that_a_false_clause_tests_is_held() -> None:
    why = kept({"status"}, {"status"}, [CANCELLED], wrote_else=False, same_occurrence=True)
    assert why is not None
    assert "status is tested by a clause that no longer held" in why


def test_a_column_that_had_a_value_is_held_though_no_false_clause_tests_it() -> None:
    by_another_column = FalseClause({"cancelled_at"}, own_columns_only=True)
    why = kept({"status"}, set(), [by_another_column], wrote_else=False, same_occurrence=True)
    assert why is not None
    assert "status had a value already" in why


def test_a_false_clause_over_other_tables_holds() -> None:
    other = FalseClause({"id"}, own_columns_only=False)
    assert kept({"receipt"}, {"receipt"}, [CANCELLED, other], wrote_else=False, same_occurrence=True) is not None


def test_a_false_clause_over_other_tables_does_not_hold_what_is_declared_a_fact() -> None:
    other = FalseClause({"id"}, own_columns_only=False)
    assert kept({"receipt"}, {"receipt"}, [CANCELLED, other], wrote_else=False, same_occurrence=True, fact=True) is None


def test_what_is_declared_a_fact_is_none_where_it_had_a_value_or_a_false_clause_tests_it() -> None:
    for false in (FalseClause({"receipt"}, own_columns_only=False), FalseClause({"receipt"}, own_columns_only=True)):
        assert kept({"receipt"}, {"receipt"}, [false], wrote_else=False, same_occurrence=True, fact=True) is not None
    assert kept({"receipt"}, set(), [CANCELLED], wrote_else=False, same_occurrence=True, fact=True) is not None


def test_whatever_else_it_wrote_holds() -> None:
    assert kept({"receipt"}, {"receipt"}, [CANCELLED], wrote_else=True, same_occurrence=True) is not None


def test_a_handler_that_wrote_nothing_has_not_taken_the_outcome() -> None:
    assert kept(set(), set(), [CANCELLED], wrote_else=False, same_occurrence=True) is not None


def test_another_occurrence_holds_since_the_fact_would_be_that_of_the_next_one() -> None:
    assert kept({"receipt"}, {"receipt"}, [], wrote_else=False, same_occurrence=False) is not None


columns = st.sets(st.sampled_from(["status", "receipt", "paid_at", "note"]))
clauses = st.lists(st.builds(FalseClause, columns, st.booleans()), max_size=3)


@given(columns, columns, clauses, st.booleans(), st.booleans(), st.booleans())
def test_it_is_kept_exactly_where_all_of_it_is_a_fact(
    written: set[str], null_before: set[str], false: list[FalseClause], wrote_else: bool, same_occurrence: bool, fact: bool
) -> None:
    tested = {column for clause in false for column in clause.columns}
    a_fact = (
        bool(written)
        and written <= null_before
        and not written & tested
        and (fact or all(clause.own_columns_only for clause in false))
        and not wrote_else
        and same_occurrence
    )
    said = kept(written, null_before, false, wrote_else=wrote_else, same_occurrence=same_occurrence, fact=fact)
    assert (said is None) == a_fact


# ---- what the author said ------------------------------------------------------------------------------------------------------
def test_what_the_author_said_counts_before_the_policy() -> None:
    for twice in (False, True):
        assert isinstance(answer("same", has_handler=False, again=twice, exists=True), WriteSame)
        assert isinstance(answer("hold", has_handler=False, again=twice, exists=True), Hold)
        assert isinstance(answer("drop", has_handler=False, again=twice, exists=True), DropIt)


def test_where_nothing_is_said_a_handler_takes_it_else_it_is_written_as_a_fact() -> None:
    assert answer(None, has_handler=True, again=True, exists=True) == HandOver()
    assert answer(None, has_handler=False, again=False, exists=True) == WriteFact(drops=False)
    assert answer(None, has_handler=False, again=True, exists=True) == WriteFact(drops=True)


def test_an_outcome_of_a_deleted_record_is_held_unless_it_is_to_be_dropped() -> None:
    keep: tuple[WhenOvertaken | None, ...] = (None, "hold", "same")
    for said in keep:
        assert isinstance(answer(said, has_handler=said is None, again=True, exists=False), Hold)
    assert isinstance(answer("drop", has_handler=False, again=False, exists=False), DropIt)

"""What something costs as a rule: one stall is not a cost, and what is dear twice in a row is."""

from __future__ import annotations

from groundstate.rules.median_cost import UsualDuration


def test_one_stall_is_not_what_it_costs() -> None:
    usual = UsualDuration()
    assert [usual.record(seconds) for seconds in (5.0, 0.01, 0.02, 0.02, 5.0, 0.03)] == [0.0, 0.01, 0.02, 0.02, 0.02, 0.03]


def test_what_is_dear_twice_in_a_row_is_dear() -> None:
    usual = UsualDuration()
    assert [usual.record(seconds) for seconds in (2.0, 3.0, 2.5, 4.0)] == [0.0, 2.0, 2.5, 3.0]
    assert [usual.record(0.5), usual.record(0.5)] == [2.5, 0.5]

"""What something costs as a rule: one stall is not a cost, and what is dear three times in a row is."""

from __future__ import annotations

from groundstate.rules.usual import Usual


def test_one_stall_is_not_what_it_costs() -> None:
    usual = Usual()
    assert [usual.took(seconds) for seconds in (1.0, 0.01, 0.02, 5.0, 0.03)] == [0.0, 0.0, 0.01, 0.01, 0.02]


def test_what_is_dear_three_times_in_a_row_is_dear() -> None:
    usual = Usual()
    assert [usual.took(seconds) for seconds in (2.0, 3.0, 2.5, 4.0)] == [0.0, 0.0, 2.0, 2.5]
    assert usual.took(0.5) == 0.5

"""The gateway's moods must be repeatable, and must stay within what the shop's `settle_after` was chosen for."""

from __future__ import annotations

from groundstate.demo.mischief import CLIENT_GIVES_UP, LONGEST_HIDDEN, Trick, choose_treatment, is_card_declined, mail_delay_s

SAMPLE = [choose_treatment(7, order, number) for order in range(1, 1500) for number in (1, 2)]
SETTLE_AFTER = 3.0  # seconds past the deadline, as in the shop


def test_the_same_seed_gives_the_same_mischief() -> None:
    assert [choose_treatment(7, order, 1) for order in range(50)] == [choose_treatment(7, order, 1) for order in range(50)]
    assert [choose_treatment(7, order, 1) for order in range(50)] != [choose_treatment(8, order, 1) for order in range(50)]
    assert [is_card_declined(7, order) for order in range(50)] == [is_card_declined(7, order) for order in range(50)]


def test_every_trick_is_played() -> None:
    assert {one.trick for one in SAMPLE} == set(Trick)
    assert {is_card_declined(7, order) for order in range(200)} == {True, False}


def test_what_is_late_is_late_for_the_client_and_what_is_not_is_in_time() -> None:
    for one in SAMPLE:
        late = one.trick in (Trick.LATE_ANSWER, Trick.LATE_CHARGE)
        assert (one.before + one.after > CLIENT_GIVES_UP) is late
        assert one.trick is not Trick.LATE_ANSWER or one.before < CLIENT_GIVES_UP < one.after


def test_each_charge_is_shown_before_an_absent_is_believed() -> None:
    assert all(one.hidden <= LONGEST_HIDDEN for one in SAMPLE)
    assert any(one.hidden > 0 for one in SAMPLE)
    assert max(one.before + one.hidden for one in SAMPLE) < CLIENT_GIVES_UP + SETTLE_AFTER


def test_the_mail_server_is_slow_at_times_and_never_slower_than_its_client_waits() -> None:
    waits = [mail_delay_s(7, str(order)) for order in range(1500)]
    assert max(waits) > 0.5
    assert 2 * max(waits) < 20

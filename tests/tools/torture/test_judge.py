"""The judge itself: a verdict that cannot find fault says nothing. Each invariant is broken here once, in forged books, and is named."""

from __future__ import annotations

import pytest
from tools.torture.excuses import LATE
from tools.torture.seen import DELETED, KILLED, OLD_KEY

from tests.tools.torture.books import Books


def test_an_order_that_went_all_the_way_is_no_fault(books: Books) -> None:
    books.whole()
    assert books.judge.judge_end() == {}
    assert books.judge.faults == []
    assert books.judge.checks["Fenced"] == 1


def test_a_charge_that_is_in_no_record_and_has_no_attempt_is_unlisted(books: Books) -> None:
    books.order("placed")
    books.effect()
    books.judge.check_effects()
    assert books.named == {"Listed"}


def test_a_charge_whose_attempt_stands_is_listed(books: Books) -> None:
    books.order("placed")
    books.attempt("doubt")
    books.effect()
    books.judge.check_effects()
    assert books.judge.faults == []
    assert books.judge.doubts == {"paid": 1}


def test_a_label_whose_attempt_stands_under_the_new_name_of_its_reaction_is_listed(books: Books) -> None:
    books.order("packed")
    books.attempt("begun", reaction="stickered", occurrence="")
    books.effect("label", occurrence="")
    books.judge.check_effects()
    assert books.judge.faults == []


def test_an_attempt_of_another_occurrence_lists_nothing(books: Books) -> None:
    books.order("placed")
    books.attempt("doubt", occurrence="2")
    books.effect()
    books.judge.check_effects()
    assert books.named == {"Listed"}


@pytest.mark.parametrize("call", ["charge", "mail"])
def test_done_twice_is_named(books: Books, call: str) -> None:
    books.order(charged_round=1, mailed="mail-1")
    books.effect(call)
    books.effect(call)
    books.judge.check_effects()
    assert books.named == {"AtMostOnce"}


@pytest.mark.parametrize("call", ["label", "announce"])
def test_a_key_called_again_after_the_provider_forgot_it_is_named(books: Books, call: str) -> None:
    books.order(label="label-1", announced="announce-1")
    books.effect(call, at=0, kept_s=20)
    books.effect(call, at=19, kept_s=20)
    books.judge.check_effects()
    assert books.judge.faults == []
    books.effect(call, at=40, kept_s=20)
    books.judge.check_effects()
    assert books.named == {"OncePerKey"}


def test_a_label_under_another_key_is_named(books: Books) -> None:
    books.order(label="label-1")
    books.effect("label", occurrence="", key="one", kept_s=20)
    books.effect("label", occurrence="", key="other", kept_s=20)
    books.judge.check_effects()
    assert books.named == {"OncePerKey"}


def test_a_second_charge_by_a_process_that_was_stopped_past_its_deadline_is_excused_and_counted(books: Books) -> None:
    books.judge.stopped.add(7)
    books.order(charged_round=1)
    books.effect()
    books.effect(pid=7, late_s=0.3)
    books.judge.check_effects()
    assert books.judge.faults == []
    assert books.judge.excuses.counts == {LATE: 1}


def test_a_second_charge_is_excused_where_the_machine_stood_still_just_before_it(books: Books) -> None:
    books.order(charged_round=1)
    books.effect(at=1000.0)
    books.judge.clock.count_tick(2.0, now=1008.0)
    books.effect(at=1009.0, late_s=0.3)
    books.judge.check_effects()
    assert books.judge.faults == []
    assert books.judge.excuses.counts == {LATE: 1}
    books.effect(at=1090.0, late_s=0.3)
    books.judge.check_effects()
    assert books.named == {"Deadline"}


def test_a_call_later_than_its_deadline_by_a_process_that_nobody_stopped_is_named(books: Books) -> None:
    books.order(charged_round=1)
    books.effect(late_s=0.3)
    books.judge.check_effects()
    assert books.named == {"Deadline"}


def test_an_order_that_vanished_or_stands_still_is_lost(books: Books) -> None:
    books.judge.placed.append(1)
    books.order("packed", number=2)
    books.judge.judge_end()
    assert books.named == {"NotLost"}
    assert len(books.judge.faults) == 2


def test_an_order_that_vanished_is_seen_in_the_midst_of_it(books: Books) -> None:
    books.judge.placed.append(1)
    books.judge.check_orders()
    assert books.named == {"NotLost"}


def test_an_order_that_was_deleted_by_its_owner_is_not_lost_and_its_charge_must_be_listed(books: Books) -> None:
    books.order("placed", gone=True)
    books.judge.check_orders()
    assert books.judge.faults == []
    books.effect()
    books.judge.check_effects()
    assert books.named == {"Listed"}


@pytest.mark.parametrize("lacks", ["mailed", "announced", "surveyed", "listing"])
def test_an_order_that_is_done_and_lacks_something_is_named(books: Books, lacks: str) -> None:
    books.judge.surveys = True
    books.whole()
    books.run(f"UPDATE orders SET {lacks} = NULL")
    books.attempt("failed", reaction="any")  # so that nothing but what lacks is asked about
    books.judge.judge_end()
    assert "NotLost" in books.named


def test_a_charge_that_the_ledger_does_not_know_is_no_charge(books: Books) -> None:
    books.order("cancelled", charged_round=1, receipt="charge-9", mailed="mail-9")
    books.judge.judge_end()
    assert books.named == {"NotLost", "Fenced"}


def test_a_receipt_of_another_order_is_named(books: Books) -> None:
    books.whole(1)
    books.whole(2)
    books.run("UPDATE orders SET receipt = (SELECT receipt FROM orders WHERE id = 2) WHERE id = 1")
    books.judge.judge_end()
    assert books.named == {"Fenced"}


def test_what_stands_when_nothing_is_to_be_done_is_named(books: Books) -> None:
    books.whole()
    books.attempt("failed")
    books.life(pid=2)
    books.judge.judge_end()
    assert books.named == {"NothingAtRest"}
    assert len(books.judge.faults) == 2


def test_the_row_of_a_worker_that_still_lives_is_no_fault(books: Books) -> None:
    books.whole()
    books.life(pid=2)
    books.judge.judge_end(living={2})
    assert books.judge.faults == []


def test_what_has_a_reason_may_be_held(books: Books) -> None:
    books.whole()
    books.attempt("held", reaction="mailed", occurrence="", unsure=True, why="a person decides")
    books.attempt("held", reaction="packed", occurrence="", why=KILLED)
    books.attempt("held", reaction="announced", occurrence="", unsure=True, why=OLD_KEY)
    books.attempt("held", record=9, unsure=True, why=DELETED)
    assert sum(books.judge.judge_end().values()) == 4
    assert books.judge.faults == []


@pytest.mark.parametrize(("reaction", "column"), [("announced", "announced"), ("mailed", "mailed"), ("insured", "policy")])
def test_an_outcome_that_came_again_may_be_held_where_the_record_has_it_and_not_where_it_has_another(
    books: Books, reaction: str, column: str
) -> None:
    books.whole()
    books.run(f"UPDATE orders SET {column} = 'outcome-7'")
    books.attempt("held", reaction=reaction, why="an outcome came after its attempt was gone", outcome='["outcome-7"]')
    books.judge.check_effects()
    assert books.judge.faults == []
    books.run(f"UPDATE orders SET {column} = 'outcome-8'")
    books.run("UPDATE groundstate_attempt SET why = 'repeat'")
    books.judge.check_effects()
    assert books.named == {"HeldForAReason"}


def test_what_has_no_reason_may_not_be_held(books: Books) -> None:
    books.whole()
    books.attempt("held", unsure=True, why="anything else")
    books.judge.check_effects()
    assert books.named == {"HeldForAReason"}


def test_an_order_that_does_not_move_is_named_and_one_that_moves_is_not(books: Books) -> None:
    books.order("placed", number=1)
    books.order("placed", number=2)
    books.judge.check_orders()
    books.judge.clock.awake_s += 100
    books.run("UPDATE orders SET status = 'packed' WHERE id = 2")
    books.judge.check_orders()
    assert books.judge.faults == []
    books.judge.clock.awake_s += 30
    books.judge.check_orders()
    assert books.judge.faults == [], "nothing was done for others meanwhile: it waits for its turn"
    books.judge.effects["charge"] += 2000
    books.judge.check_orders()
    assert books.named == {"Progress"}
    assert "id=1" in books.judge.faults[0]
    assert len(books.judge.faults) == 1


def test_what_is_under_way_keeps_it_from_being_quiet_and_what_is_held_does_not(books: Books) -> None:
    books.order("placed", number=1)
    books.order("placed", number=2)
    books.attempt("held", record=2, unsure=True, why="a person decides")
    books.attempt("failed", record=3)
    left = books.judge.list_unfinished()
    assert len(left) == 2
    assert "record='3'" in left[0]
    assert "id=1" in left[1]


def test_what_waits_for_a_person_to_settle_another_round_of_it_is_quiet_and_behind_another_reaction_it_is_not(books: Books) -> None:
    books.attempt("held", reaction="insured", record=1, occurrence="1", unsure=True, why="its occurrence changed")
    books.attempt("failed", reaction="insured", record=1, occurrence="2")
    books.attempt("failed", reaction="mailed", record=1)
    (left,) = books.judge.list_unfinished()
    assert "reaction='mailed'" in left

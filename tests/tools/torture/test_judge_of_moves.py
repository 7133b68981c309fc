"""The judge of what enemies, restores, restarts and deploys do: each fault is forged and named, each excuse is counted and no wider."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tools.torture.clock import Clock
from tools.torture.excuses import AGAIN, UNLISTED, UNMATCHED, VANISHED
from tools.torture.ledger import Request, Requests
from tools.torture.restarts import judge_restart, standstill_s

from tests.tools.torture.books import Books

DEAD, LIVING = 7, 8  # processes before a copy was put back, and since


# ---- a copy put back -------------------------------------------------------------------------------------------------------------
def test_a_call_of_the_lost_time_must_be_in_doubt_once_workers_know_where_its_condition_matches(books: Books) -> None:
    books.order("placed")
    books.effect(pid=DEAD)
    books.judge.record_restore([DEAD])
    books.judge.check_effects()
    assert books.judge.faults == []
    books.judge.record_restore_is_known()
    books.judge.check_effects()
    assert books.named == {"Listed"}
    assert "of the lost time" in books.judge.faults[0]


def test_a_call_of_the_lost_time_that_is_in_doubt_is_no_fault(books: Books) -> None:
    books.order("placed")
    books.effect(pid=DEAD)
    books.judge.record_restore([DEAD])
    books.attempt("doubt")
    books.judge.record_restore_is_known()
    books.judge.check_effects()
    assert books.judge.faults == []
    assert books.judge.excuses.counts == {}


def test_a_call_of_the_lost_time_whose_condition_did_not_match_is_excused_and_counted_until_it_is_listed(books: Books) -> None:
    books.order("paid", charged_round=1, receipt=books.effect())
    books.effect("label", occurrence="", pid=DEAD)
    books.judge.record_restore([DEAD])
    books.judge.record_restore_is_known()
    books.judge.check_effects()
    assert books.judge.faults == []
    assert books.judge.excuses.counts == {UNMATCHED: 1}
    books.attempt("doubt", reaction="labelled", occurrence="")
    books.judge.check_effects()
    books.run("DELETE FROM groundstate_attempt")
    books.judge.check_effects()
    assert books.named == {"Listed"}


def test_a_call_of_the_lost_time_that_is_made_again_is_named(books: Books) -> None:
    books.order("placed")
    books.effect(pid=DEAD)
    books.judge.record_restore([DEAD])
    books.attempt("begun")
    books.effect(pid=LIVING)
    books.judge.check_effects()
    assert books.named == {"AtMostOnce"}


def test_a_call_of_a_dead_process_that_lands_after_the_copy_is_back_is_of_the_lost_time_and_one_of_a_living_is_not(books: Books) -> None:
    books.order("placed")
    books.order("placed", number=2)
    books.judge.record_restore([DEAD])
    books.effect(pid=DEAD, at=time.time())
    books.judge.check_effects()
    assert books.judge.faults == []
    books.effect(record=2, pid=LIVING, at=time.time())
    books.judge.check_effects()
    assert books.named == {"Listed"}
    assert "record='2'" in books.judge.faults[0]


def test_an_order_that_was_lost_with_the_time_is_no_fault_and_a_new_call_for_it_is(books: Books) -> None:
    books.judge.placed.append(1)
    books.effect(pid=DEAD)
    assert books.judge.record_restore([DEAD]) == 1
    books.judge.check_orders()
    books.judge.check_effects()
    assert books.judge.placed == []
    assert books.judge.faults == []
    assert books.judge.excuses.counts == {VANISHED: 1}
    books.effect(pid=LIVING)
    books.judge.check_effects()
    assert books.named == {"NotLost"}


def test_a_copy_that_is_put_back_makes_what_was_concluded_open_again(books: Books) -> None:
    books.order("paid", charged_round=1, receipt=books.effect())
    books.judge.check_effects()
    books.run("UPDATE orders SET status = 'placed', charged_round = 0, receipt = NULL")
    books.judge.record_restore([])
    books.judge.record_restore_is_known()
    books.judge.check_effects()
    assert books.named == {"Listed"}


def test_a_person_may_trust_once_each_call_of_the_lost_time_is_listed_or_can_be_met_no_more(books: Books) -> None:
    books.order("paid", charged_round=1, receipt=books.effect())
    books.effect("label", occurrence="", pid=DEAD)
    books.judge.record_restore([DEAD])
    assert not books.judge.is_lost_time_over(wider=False)
    books.judge.record_restore_is_known()
    books.judge.excuses.lost.until = 0.0
    assert not books.judge.is_lost_time_over(wider=False)
    books.run("UPDATE orders SET status = 'cancelled'")
    assert books.judge.is_lost_time_over(wider=False)
    books.run("UPDATE orders SET status = 'packed'")
    books.attempt("doubt", reaction="labelled", occurrence="")
    assert not books.judge.is_lost_time_over(wider=False)
    books.judge.check_effects()
    assert books.judge.is_lost_time_over(wider=False)


def test_a_person_does_not_wait_for_what_was_deleted_by_hand_or_is_left_as_it_is(books: Books) -> None:
    books.order("packed", number=1)
    books.effect("label", 1, "", pid=LIVING)
    books.judge.record_deleted_attempt("labelled", "1", "", LIVING)
    books.whole(4)
    books.judge.left.add("4")
    books.attempt("held", reaction="thanked", occurrence="", record=4, why="baseline")
    books.effect("thank", 4, "", pid=DEAD)
    books.judge.check_effects()
    books.judge.faults.clear()  # of flowers for an order that is left: not what this is about
    books.judge.record_restore([DEAD])
    books.judge.record_restore_is_known()
    books.judge.excuses.lost.until = 0.0
    assert books.judge.is_lost_time_over(wider=True)
    books.judge.check_effects()
    assert books.judge.faults == []


def test_a_person_waits_for_flowers_that_wider_code_would_send_again(books: Books) -> None:
    books.whole(4)
    books.effect("thank", 4, "", pid=DEAD)
    books.judge.record_restore([DEAD])
    books.judge.record_restore_is_known()
    books.judge.excuses.lost.until = 0.0
    assert books.judge.is_lost_time_over(wider=False)
    assert not books.judge.is_lost_time_over(wider=True)


# ---- an attempt deleted by hand --------------------------------------------------------------------------------------------------
def test_a_call_whose_attempt_was_deleted_is_excused_and_counted_and_so_is_another_workers_call(books: Books) -> None:
    books.order("placed")
    books.effect(pid=LIVING)
    books.judge.record_deleted_attempt("paid", "1", "1", LIVING)
    books.judge.check_effects()
    assert books.judge.faults == []
    assert books.judge.excuses.counts == {UNLISTED: 1}
    books.attempt("begun")
    books.effect(pid=9)
    books.judge.check_effects()
    assert books.judge.faults == []
    assert books.judge.excuses.counts == {UNLISTED: 1, AGAIN: 1}


def test_a_call_whose_attempt_was_deleted_may_land_after_another_workers_call(books: Books) -> None:
    books.order("placed")
    books.judge.record_deleted_attempt("paid", "1", "1", LIVING)
    books.attempt("begun")
    books.effect(pid=9)
    books.effect(pid=LIVING)
    books.judge.check_effects()
    assert books.judge.faults == []
    assert books.judge.excuses.counts == {AGAIN: 1}


def test_two_calls_each_of_whose_attempts_was_deleted_are_excused(books: Books) -> None:
    books.order("placed")
    books.judge.record_deleted_attempt("paid", "1", "1", LIVING)
    books.judge.record_deleted_attempt("paid", "1", "1", 9)
    books.effect(pid=9)
    books.effect(pid=LIVING)
    books.judge.check_effects()
    assert books.judge.faults == []


def test_a_call_that_was_made_though_an_earlier_one_had_landed_is_named_though_its_attempt_was_deleted(books: Books) -> None:
    books.order("placed")
    books.effect(pid=DEAD)
    books.judge.record_deleted_attempt("paid", "1", "1", LIVING)
    books.effect(pid=LIVING)
    books.judge.check_effects()
    assert books.named == {"AtMostOnce"}


def test_two_others_that_call_after_an_attempt_was_deleted_are_named(books: Books) -> None:
    books.order("placed")
    books.judge.record_deleted_attempt("paid", "1", "1", LIVING)
    books.attempt("begun")
    books.effect(pid=9)
    books.effect(pid=10)
    books.judge.check_effects()
    assert books.named == {"AtMostOnce"}


def test_what_an_earlier_worker_had_done_is_excused_with_the_attempt_that_stood_for_it(books: Books) -> None:
    books.order("packed")
    books.effect("label", occurrence="", pid=DEAD, kept_s=20)
    books.judge.record_deleted_attempt("labelled", "1", "", LIVING)
    books.judge.check_effects()
    assert books.judge.faults == []
    assert books.judge.excuses.counts == {UNLISTED: 1}


def test_a_worker_that_calls_again_beside_its_own_call_whose_attempt_was_deleted_is_named(books: Books) -> None:
    books.order("placed")
    books.effect(pid=LIVING)
    books.judge.record_deleted_attempt("paid", "1", "1", LIVING)
    books.effect(pid=LIVING)
    books.judge.check_effects()
    assert books.named == {"AtMostOnce"}


def test_a_deleted_attempt_excuses_nothing_for_another_order(books: Books) -> None:
    books.order("placed")
    books.order("placed", number=2)
    books.judge.record_deleted_attempt("paid", "1", "1", LIVING)
    books.effect(record=2, pid=LIVING)
    books.judge.check_effects()
    assert books.named == {"Listed"}


# ---- a moved occurrence ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("columns", [{"unsure": True}, {"outcome": '["insure-1"]'}])
def test_a_call_under_another_term_while_the_first_one_waits_is_named(books: Books, columns: dict[str, Any]) -> None:
    books.order("labelled", term=2, insured_term=0)
    books.judge.moved.add("1")
    books.effect("insure", occurrence="1")
    books.attempt("held", reaction="insured", occurrence="1", why="its occurrence changed", **columns)
    books.judge.check_effects()
    assert books.judge.faults == []
    books.attempt("begun", reaction="insured", occurrence="2")
    books.effect("insure", occurrence="2")
    books.judge.check_effects()
    assert books.named == {"OtherRounds"}


def test_a_call_under_another_term_after_a_person_settled_the_first_is_no_fault(books: Books) -> None:
    books.order("labelled", term=2, insured_term=0)
    books.effect("insure", occurrence="1")
    books.attempt("held", reaction="insured", occurrence="1", unsure=True, why="its occurrence changed")
    books.judge.moved.add("1")
    books.judge.check_effects()
    books.run("UPDATE groundstate_attempt SET occurrence = '2', state = 'begun'")
    books.run("UPDATE orders SET insured_term = 1")
    books.effect("insure", occurrence="2")
    books.judge.check_effects()
    assert books.judge.faults == []


def test_an_insurance_is_held_for_no_reason_where_nobody_moved_its_term(books: Books) -> None:
    books.order("labelled", insured_term=0)
    books.attempt("held", reaction="insured", unsure=True, why="anything")
    books.judge.check_effects()
    assert books.named == {"HeldForAReason"}


def test_what_other_code_had_begun_is_held_for_a_reason_only_where_a_deploy_declared_its_reaction_otherwise(books: Books) -> None:
    books.order("packed")
    books.attempt("held", reaction="labelled", occurrence="", unsure=True, why="in doubt, and begun by other code: its occurrence was none")
    books.judge.redeclared.add("labelled")
    books.judge.check_effects()
    assert books.judge.faults == []
    books.judge.redeclared.clear()
    books.run("UPDATE groundstate_attempt SET call_no = 2")
    books.judge.check_effects()
    assert books.named == {"HeldForAReason"}


# ---- orders that a person left as they are ---------------------------------------------------------------------------------------
def test_a_call_for_an_order_that_a_person_left_as_it_is_is_named(books: Books) -> None:
    books.whole(4)
    books.attempt("held", reaction="thanked", occurrence="", record=4, why="baseline")
    books.judge.left.add("4")
    books.judge.check_orders()
    assert books.judge.faults == []
    books.effect("thank", 4, "")
    books.judge.check_effects()
    assert "LeftAlone" in books.named


def test_a_mark_that_goes_before_its_order_is_named(books: Books) -> None:
    books.whole(4)
    books.whole(12)
    books.judge.left |= {"4", "12"}
    books.attempt("held", reaction="thanked", occurrence="", record=4, why="baseline")
    books.judge.check_orders()
    assert books.named == {"LeftAlone"}
    assert "order 12" in books.judge.faults[0]


def test_what_is_left_as_it_is_keeps_nothing_from_being_quiet_and_waits_for_nobody(books: Books) -> None:
    books.whole(4)
    books.attempt("held", reaction="thanked", occurrence="", record=4, why="baseline")
    assert books.judge.list_unfinished() == []
    assert books.judge.count_helpable() == 0
    assert books.judge.judge_end() == {}
    assert books.judge.faults == []


# ---- restarts of the server ------------------------------------------------------------------------------------------------------
def heard(key: str, pid: int, trick: str = "prompt", sent: float = 0.0, call: str = "charge") -> Request:
    return Request(key, call, "1", "1", pid, sent, trick)


def test_a_call_that_goes_out_beside_a_living_workers_is_named(books: Books) -> None:
    judge_restart(books.judge, "fast", [heard("one", LIVING), heard("two", 9), heard("one", 9)], {LIVING, 9}, ())
    assert books.named == {"NoSecondCall"}
    assert len(books.judge.faults) == 1


@pytest.mark.parametrize("first", [heard("one", DEAD), heard("one", LIVING, "refused"), heard("one", 9)])
def test_a_call_after_a_dead_workers_a_refused_one_and_ones_own_are_no_fault(books: Books, first: Request) -> None:
    judge_restart(books.judge, "fast", [first, heard("one", 9)], {LIVING, 9}, ())
    assert books.judge.faults == []
    assert books.judge.checks["NoSecondCall"] == 2


def test_a_call_after_a_find_may_have_said_absent_is_no_fault_and_one_that_is_called_again_unasked_is(books: Books) -> None:
    judge_restart(books.judge, "fast", [heard("one", LIVING), heard("one", 9, sent=6.5)], {LIVING, 9}, ())
    assert books.judge.faults == []
    judge_restart(books.judge, "fast", [heard("one", LIVING, call="label"), heard("one", 9, sent=6.5, call="label")], {LIVING, 9}, ())
    assert books.named == {"NoSecondCall"}


def test_a_worker_that_is_said_to_have_ended_and_lives_is_named(books: Books) -> None:
    judge_restart(books.judge, "fast", [], {LIVING}, {255})
    assert books.judge.faults == ["OthersGoOn: the life ff is said to have ended, and its worker lived through the restart (fast)"]


def test_how_long_a_machine_stood_still_is_counted_within_a_frame() -> None:
    clock = Clock()
    clock.count_tick(2.0, now=100.0)
    clock.count_tick(4.0, now=110.0)
    assert standstill_s(clock, 99.0, 108.0) == pytest.approx(3.0)


def test_requests_are_read_from_where_they_were_skipped_to(tmp_path: Path) -> None:
    line = '{"key": "k%d", "call": "mail", "record": "1", "occurrence": "", "pid": 3, "sent": 1.5, "trick": "busy"}\n'
    file = tmp_path / "requests.jsonl"
    requests = Requests(file)
    requests.skip_existing()
    file.write_text(line % 1)
    requests.skip_existing()
    with file.open("a") as more:
        more.write(line % 2 + line[:20])
    assert [(one.key, one.is_surely_not_done) for one in requests.read_new_requests()] == [("k2", True)]


def test_the_judge_reads_moduli_as_they_are_meant(books: Books) -> None:
    books.whole(8)
    assert [order.id for order in books.judge.books.read_unfinished(surveys=False)] == [8]
    with books.engine.begin() as connection:
        connection.execute(text("UPDATE orders SET thanked = 'thank-1'"))
    assert books.judge.books.read_unfinished(surveys=False) == []


def test_an_order_that_a_person_left_as_it_is_is_owed_no_flowers_and_another_one_is(books: Books) -> None:
    books.whole(8)
    books.whole(16)
    books.judge.left.add("8")
    books.attempt("held", reaction="thanked", occurrence="", record=8, why="baseline")
    books.judge.judge_end()
    assert books.named == {"NotLost"}
    assert "id=16" in books.judge.faults[0]
    assert len(books.judge.faults) == 1

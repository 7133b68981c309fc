"""The lab really moves what it says: each kind of move is seen in what it does to a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from groundstate import App, Retry, Store
from groundstate.engine.rows.in_flight import InFlightCall
from groundstate.engine.sql.commit_hooks import TouchedRecords
from groundstate.engine.worker.worker import Worker
from groundstate.testing import Ledger
from groundstate.testing.lab import Lab
from groundstate.testing.runner import Trial
from groundstate.testing.simulate.crash_plan import parse_schedule
from groundstate.testing.simulate.fake_environment import EPOCH, Stuck
from groundstate.testing.simulate.simulation import Stage
from tests.testing.shops import NOWHERE, Base, Calling, Order, calling, many, shop
from tests.testing.two_stores import Invoice, two_stores


class Run:
    """One app in a lab, one schedule after another."""

    def __init__(self, lab: Lab, made: Calling, *rows: Order) -> None:
        self.lab = lab
        self.ledger: Ledger[Any] = lab.fake(made.call, lambda order: f"r{order.id}")
        self.trial: Trial = lab._build_trial(made.app, *(rows or (Order(id=1),)))

    def __call__(self, line: str = "") -> Stage:
        return self.trial.run(parse_schedule(line))

    def orders(self) -> list[Order]:
        with self.lab._places[-1].session() as session:
            return list(session.scalars(select(Order).order_by(Order.id)))

    def held(self) -> list[str]:
        return [f"{row[0]}" for row in self.lab._places[-1].query_rows(0, "SELECT why FROM groundstate_attempt WHERE state = 'held'")]


@pytest.fixture
def made() -> Iterator[Any]:
    with Lab() as lab:

        def make(calls: Calling, *rows: Order) -> Run:
            return Run(lab, calls, *rows)

        yield make


def where(stage: Stage, kind: str, what: str = "") -> int:
    """The first crossing of this kind."""
    return next(one.number for one in stage.crossings if one.kind == kind and what in one.what)


def told(stage: Stage, words: str) -> int:
    return sum(words in line for line in stage.story)


# ---- moods of the service ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mood", "requests"), [("refused", 2), ("busy", 2), ("lost", 2), ("answer-lost", 1), ("late", 1)])
def test_under_ask_each_mood_ends_in_one_effect(made: Any, mood: str, requests: int) -> None:
    run = made(calling("lookup"))
    stage = run(f"call1={mood}")
    assert len(run.ledger.effects) == 1
    assert run.ledger.requests == requests
    assert run.orders()[0].receipt == "r1"
    assert told(stage, f"(call 1: {mood})") == 1
    assert (run.ledger.asked > 0) == (mood in ("lost", "answer-lost", "late"))


@pytest.mark.parametrize("mood", ["lost", "answer-lost", "late"])
def test_under_hold_what_says_nothing_is_left_to_a_person(made: Any, mood: str) -> None:
    run = made(calling("hold"))
    run(f"call1={mood}")
    assert run.held() == ["in doubt, and its policy is InDoubt.hold(): a person decides"]
    assert run.orders()[0].status == "placed"


def test_under_same_key_it_is_called_again_and_the_provider_knows_the_key(made: Any) -> None:
    run = made(calling("same_key"))
    stage = run("call1=answer-lost")
    assert run.ledger.requests == 2
    assert len(run.ledger.effects) == 1
    assert told(stage, "the service knows the key of paid of 1") == 1


def test_under_again_it_is_done_twice(made: Any) -> None:
    run = made(calling("repeat"))
    run("call1=answer-lost")
    assert len(run.ledger.effects) == 2


def test_a_late_request_is_done_after_the_find_was_asked_and_is_found_later(made: Any) -> None:
    run = made(calling("lookup"))
    stage = run("call1=late")
    story = "\n".join(stage.story)
    assert story.index("'absent'") < story.index("the service has done paid of 1") < story.index("'r1'")


def test_a_find_that_is_late_by_design_says_absent_for_as_long_as_it_may(made: Any) -> None:
    run = made(calling("lookup"))
    soon = run("call1=answer-lost")
    late = run("call1=answer-lost lookups=lag")
    assert told(soon, "'absent'") == 0
    assert told(late, "'absent'") > 0
    assert len(run.ledger.effects) == 1


def test_a_thread_that_was_given_up_brings_its_outcome_late(made: Any) -> None:
    run = made(calling("hold", sync=True))
    stage = run("call1=late-answer")
    assert run.orders()[0].receipt == "r1"
    assert run.held() == []
    assert stage.time.now_s > 20


def test_a_thread_that_hangs_before_its_request_goes_out_keeps_its_doubt_until_it_has_ended(made: Any) -> None:
    run = made(calling("lookup", sync=True))
    stage = run("call1=stuck")
    assert run.ledger.requests == len(run.ledger.effects) == 1
    assert run.orders()[0].receipt == "r1"
    assert stage.time.now_s > 60


def test_a_provider_forgets_a_key_when_it_was_kept_for_as_long_as_promised(made: Any) -> None:
    run = made(calling("same_key"))
    run()
    one = run.ledger.entries[0]
    fake = run.lab._fakes[0]
    day_s = timedelta(days=1).total_seconds()
    assert fake.carry_out(one.identity, one.key, one.argument, one.done_s + day_s - 1, 0.0) is one
    assert fake.carry_out(one.identity, one.key, one.argument, one.done_s + day_s, 0.0) is not one


def test_one_request_for_many_can_be_cut_in_its_middle(made: Any) -> None:
    run = made(many(), Order(id=1), Order(id=2), Order(id=3))
    clean = run()
    assert run.ledger.requests == 3
    run(f"die@{where(clean, 'done')}")
    assert sorted(order.receipt for order in run.orders()) == ["r1", "r2", "r3"]
    assert len(run.ledger.effects) == 3
    assert run.ledger.requests == 3  # one was done before the death, and found; the others had not left yet
    assert run.ledger.asked > 2


# ---- time ----------------------------------------------------------------------------------------------------------------------
def test_the_clock_is_the_labs_and_moves_to_what_is_due(made: Any) -> None:
    run = made(calling("lookup", retry=Retry(times=3, first=timedelta(hours=2), longest=timedelta(hours=2))))
    stage = run("call1=refused")
    done_at = run.orders()[0].done_at
    assert stage.time.now_s > 3000  # backoff has jitter: from half of it on
    assert (done_at - EPOCH).total_seconds() == pytest.approx(stage.time.now_s, abs=60)


def test_someone_elses_transaction_moves_the_clock_by_hand() -> None:
    made = calling("lookup")
    with Lab() as lab:
        lab.fake(made.call, "r1")

        @lab.meanwhile
        def two_days_pass(_session: Session) -> None:
            lab.clock.forward(timedelta(days=2))

        trial = lab._build_trial(made.app, Order(id=1))
        clean = trial.run(parse_schedule(""))
        moved = trial.run(parse_schedule(f"meanwhile@{where(clean, 'call')}"))
        assert moved.time.now_s - clean.time.now_s > 170_000
        assert lab.clock.now == EPOCH
        with pytest.raises(Stuck, match="no run is under way"):
            lab.clock.forward(timedelta(seconds=1))


# ---- others --------------------------------------------------------------------------------------------------------------------
def test_someone_elses_transaction_comes_where_it_is_put() -> None:
    made = calling("lookup")
    with Lab() as lab:
        ledger = lab.fake(made.call, "r1")
        app = made.app

        @lab.meanwhile
        def cancel(session: Session) -> None:
            session.get_one(Order, 1).status = "cancelled"

        trial = lab._build_trial(app, Order(id=1))
        clean = trial.run(parse_schedule(""))
        trial.run(parse_schedule("meanwhile@1"))
        assert ledger.effects == []
        stage = trial.run(parse_schedule(f"meanwhile@{where(clean, 'call')}"))
        assert len(ledger.effects) == 1
        assert told(stage, "meanwhile, before the call paid of 1: cancel") == 1
        # Inside a transaction of the worker's it is kept out by the lock, and comes after it.
        inside = where(clean, "commit", "INSERT groundstate_attempt")
        later = trial.run(parse_schedule(f"meanwhile@{inside}"))
        assert told(later, "meanwhile, after COMMIT of INSERT groundstate_attempt") == 1


def test_two_workers_are_interleaved_where_the_schedule_says_and_each_time_alike(made: Any) -> None:
    run = made(calling("lookup"), Order(id=1), Order(id=2))
    alone = run()
    stage = run("switch@30 switch@60 switch@75 workers=2")
    assert {crossing.process for crossing in stage.crossings} == {1, 2}
    turns = [crossing.process for crossing in stage.crossings]
    assert sum(one != other for one, other in pairwise(turns)) > 2
    assert {crossing.process for crossing in alone.crossings} == {1}
    again = run("switch@30 switch@60 switch@75 workers=2")
    assert again.story == stage.story
    assert len(run.ledger.effects) == 2


def test_a_lock_that_is_lost_alive_begins_a_new_life_and_does_nothing_twice(made: Any) -> None:
    run = made(calling("lookup"))
    clean = run()
    stage = run(f"unlock@{where(clean, 'call')}")
    assert told(stage, "worker 1 loses its lock and lives") == 1
    assert told(stage, "worker 2 starts") == 1
    assert len(run.ledger.effects) == 1


def test_a_worker_that_stands_still_sends_what_it_was_about_to_send_no_more(made: Any) -> None:
    run = made(calling("lookup"))
    clean = run()
    stage = run(f"freeze@{where(clean, 'call')}")
    story = "\n".join(stage.story)
    assert told(stage, "worker 1 loses its lock and stands still") == 1
    assert story.index("worker 2 looks up paid of 1: 'absent'") < story.index("worker 2 calls paid of 1")
    assert told(stage, "worker 1 calls") == 0
    assert len(run.ledger.effects) == 1
    assert stage.time.now_s > 60  # it was waited for until it went on


@pytest.mark.parametrize("kind", ["statement", "call", "committed", "hint"])
def test_a_worker_may_stand_still_anywhere_and_the_run_ends(made: Any, kind: str) -> None:
    run = made(calling("lookup"))
    for one in [one.number for one in run().crossings if one.kind == kind][:: 12 if kind == "statement" else 1]:
        run(f"freeze@{one}")
        assert len(run.ledger.effects) == 1


def test_a_find_leaves_nothing_behind_so_no_attempt_need_stand_when_it_goes_out(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[InFlightCall] = []
    real = Stage.on_calls_leave

    def leave(stage: Stage, flights: Sequence[InFlightCall]) -> None:
        left.extend(flights)
        real(stage, flights)

    monkeypatch.setattr(Stage, "on_calls_leave", leave)
    stage = made(calling("lookup"))("call1=answer-lost")
    assert told(stage, "looks up paid of 1") >= 1
    assert [flight.is_lookup for flight in left] == [False]


def test_what_happens_in_the_clean_stop_is_looked_after_as_well(made: Any) -> None:
    run = made(calling("lookup"))
    clean = run()
    stopping = where(clean, "commit", "DELETE groundstate_worker")
    assert told(run(f"unlock@{stopping}"), "worker 2 commits DELETE groundstate_worker") == 1
    for line in (f"die@{stopping}", f"die@{stopping} die@{stopping + 30}"):
        stage = run(line)
        assert told(stage, "is killed") == len(line.split())
        assert run.lab._places[-1].query_rows(0, "SELECT count(*) FROM groundstate_worker WHERE ended_at IS NULL")[0][0] == 0


def test_the_database_is_put_back_and_what_was_done_meanwhile_is_asked_for(made: Any) -> None:
    run = made(calling("lookup"))
    clean = run()
    stage = run(f"copy@5 restore@{len(clean.crossings) - 5}")
    assert told(stage, "the copy of the database is restored") == 1
    assert told(stage, "looks up paid of 1: 'r1'") == 1
    assert len(run.ledger.effects) == 1
    assert run.orders()[0].receipt == "r1"


def test_a_doubt_whose_time_comes_while_another_is_looked_at_is_waited_for(made: Any) -> None:
    run = made(calling("lookup"), Order(id=1), Order(id=2))
    run("call1=lost call2=lost lookups=lag")
    assert [order.receipt for order in run.orders()] == ["r1", "r2"]


# ---- hints ---------------------------------------------------------------------------------------------------------------------
def two_steps() -> App:
    app = App("lab-steps", Store(NOWHERE, Base))

    @app.on(Order, Order.status == "packed")
    def sent(order: Order) -> None:
        order.status = "sent"

    @app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"

    return app


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch, whole_batches: None) -> list[TouchedRecords]:
    """What workers are told."""
    told: list[TouchedRecords] = []
    note_commit = Worker.note_commit

    def listen(worker: Worker, touched: TouchedRecords) -> None:
        told.append(touched)
        note_commit(worker, touched)

    monkeypatch.setattr(Worker, "note_commit", listen)
    return told


@pytest.mark.parametrize("hints", ["told", "lost", "doubled", "reordered", "invented"])
def test_what_becomes_of_hints_is_seen_in_what_is_heard_and_in_no_final_state(heard: list[TouchedRecords], hints: str) -> None:
    with Lab() as lab:
        trial = lab._build_trial(two_steps(), Order(id=1), Order(id=2))
        stage = trial.run(parse_schedule("" if hints == "told" else f"hints={hints}"))
        with lab._places[-1].session() as session:
            assert session.scalars(select(Order.status)).all() == ["sent", "sent"]
    commits = told(stage, "commits UPDATE orders")
    keys = [key for touched in heard for key in touched.keys.get(Order, {})]
    assert commits == 2
    match hints:
        case "told":
            assert len(heard) == commits
        case "lost":
            assert heard == []
        case "doubled":
            assert len(heard) == 2 * commits
            assert heard[0] is heard[1]
        case "reordered":
            assert len(heard) == commits
            assert [(touched.keys[Order][(1,)] or {})["status"] for touched in heard] == ["sent", "packed"]
        case _:
            assert keys.count((-1,)) == commits


# ---- several stores ------------------------------------------------------------------------------------------------------------
def test_an_app_of_two_stores_is_cut_in_both() -> None:
    app = two_stores()
    with Lab() as lab:
        found = lab.crash_everywhere(app, Order(id=1), Invoice(id=1), budget=3, seed=4)
        assert found.kills >= 10
        with lab._places[-1].session() as session:
            assert session.scalars(select(Order.status)).all() == ["packed"]
            assert session.scalars(select(Invoice.paid)).all() == [True]


def test_the_shop_with_a_second_worker_and_all_else_repeats_itself() -> None:
    stories = []
    for _ in range(2):
        made = shop()
        with Lab() as lab:
            lab.fake(made.charge, lambda order: f"r{order.id}")
            lab.fake(made.send, lambda order: f"m{order.id}")
            trial = lab._build_trial(made.app, Order(id=1), Order(id=2))
            stories.append(trial.run(parse_schedule("die@20 die@150 switch@60 call2=late call3=answer-lost hints=doubled workers=2")).story)
    assert stories[0] == stories[1]

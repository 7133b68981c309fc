"""Reactions without a call: batches, failures, progress, and what the lock is good for."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from groundstate import Failure, ReactionContext, Retry
from groundstate.engine.rows import incarnation as lives
from tests.engine.clocks import Turned
from tests.engine.kit import QUICK, Order, World, ms, until


def test_a_chain_of_states_is_carried_out_and_nothing_of_ours_is_left(world: World) -> None:
    @world.app.on(Order, Order.status == "placed")
    def paid(order: Order) -> None:
        order.status = "paid"

    @world.app.on(Order, Order.status == "paid")
    def packed(order: Order, ctx: ReactionContext) -> None:
        order.status, order.note = "packed", ctx.now.isoformat()

    world.orders(700)
    world.settled()
    assert world.count(Order.status == "packed") == 700
    assert world.attempts() == []
    with world.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from groundstate_worker").scalar_one() == 0


def test_hazard_21_a_handler_that_makes_no_progress_fails_and_names_the_clause(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", Order.round > 0, retry=Retry(times=2, first=ms(5)))
    def paid(order: Order) -> None:
        order.note = "seen"

    world.orders(1)
    world.settled()
    attempt = world.attempt()
    assert attempt.state in {"failed", "held"}
    assert "made no progress" in (attempt.error or "")
    assert "placed" in (attempt.error or "")
    assert world.order().note is None, "what made no progress was committed"


def test_one_bad_record_of_a_batch_fails_alone(world: World) -> None:
    runs: list[int] = []

    @world.app.on(Order, Order.status == "placed", retry=Retry(times=5, first=ms(60_000)))
    def paid(order: Order) -> None:
        runs.append(order.id)
        if order.id == 250:
            raise ValueError("this one is bad")
        order.status = "paid"

    world.orders(500)
    world.settled()
    assert world.count(Order.status == "paid") == 499
    attempt = world.attempt()
    assert (attempt.record, attempt.state, attempt.failures, attempt.unsure) == ("250", "failed", 1, False)
    assert "ValueError: this one is bad" in (attempt.error or "")
    assert len(runs) < 2000, "records were run again and again for one that failed"


def test_a_failed_handler_is_tried_again_and_leaves_nothing(world: World) -> None:
    tries: list[int] = []

    @world.app.on(Order, Order.status == "placed", retry=QUICK)
    def paid(order: Order) -> None:
        tries.append(order.id)
        if len(tries) < 6:
            raise ValueError("not yet")
        order.status = "paid"

    world.orders(1)
    life = world.worker()
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert world.attempts() == []


def test_gave_up_answers_after_the_last_try(world: World) -> None:
    told: list[Failure] = []

    @world.app.on(Order, Order.status == "placed", retry=Retry(times=2, first=ms(5)))
    def paid(order: Order) -> None:
        raise ValueError("never")

    @paid.gave_up
    def _(order: Order, failure: Failure) -> None:
        told.append(failure)
        order.status = "declined"

    world.orders(1)
    life = world.worker()
    until(lambda: world.order().status == "declined")
    life.quiet()
    assert world.attempts() == []
    assert "never" in told[-1].error


def test_a_record_whose_condition_is_gone_takes_its_failed_attempt_with_it(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", retry=Retry(times=None, first=ms(5), longest=ms(5)))
    def paid(order: Order) -> None:
        raise ValueError("never")

    world.orders(1)
    life = world.worker()
    until(lambda: world.states() == ["failed"])
    world.set(1, status="cancelled")
    until(lambda: world.attempts() == [])
    life.quiet()
    assert world.order().status == "cancelled"


def test_a_handler_of_a_fact_that_writes_other_rows_by_a_statement_fails(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", done_column=Order.mailed, retry=Retry(times=1))
    def mailed(order: Order, session: Session) -> None:
        order.mailed = "now"
        if order.id == 1:
            session.execute(text("UPDATE orders SET note = 'beside' WHERE id = 2"))

    world.orders(2)
    world.settled()
    assert (world.order(1).mailed, world.order(2).mailed, world.order(2).note) == (None, "now", None)
    assert "its handler wrote other rows too" in (world.attempt().error or "")


def test_a_session_commit_in_a_handler_is_refused_with_the_cure(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", retry=Retry(times=1))
    def paid(order: Order, session: Session) -> None:
        order.status = "paid"
        session.commit()

    world.orders(1)
    world.settled()
    assert world.order().status == "placed"
    assert "remove session.commit()" in (world.attempt().error or "")


SLOW = (
    "3600.0 s of it in handlers, 3600.0 s of them on record 2: a handler that waits for something blocks others: move the wait into a call"
)
QUICK_ONE = "0.0 s of it in handlers: the rest waited, as for a row that another transaction had locked, or for the disk"


@pytest.mark.parametrize(("takes_s", "words"), [(3600.0, SLOW), (0.0, QUICK_ONE)], ids=["the handler", "the database"])
def test_hazard_26_a_transaction_that_keeps_others_out_for_long_is_told_with_what_it_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, takes_s: float, words: str
) -> None:
    monkeypatch.setattr(lives, "LONG_S", 0.0)
    world.clock = clock = Turned(still=True)

    @world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"
        clock.ahead += takes_s if order.id == 2 else 0.0

    world.orders(3)
    life = world.worker()
    assert life.worker.wait_until_idle(None)  # by a clock that a handler moves by an hour any limit would soon be over
    life.stop()
    told = [line for line in caplog.records if getattr(line, "event", None) == "transaction_long" and vars(line)["reaction"] == "packed"]
    said = {line.getMessage().partition(" s, ")[2]: vars(line)["record"] for line in told}  # looks in vain are transactions, too
    assert said[words] in (("2",) if takes_s else ("1", "2", "3", None))


def test_a_transaction_that_is_over_soon_is_not_told(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lives, "LONG_S", 3600.0)

    @world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"

    world.orders(1)
    world.settled()
    assert world.order().status == "packed"
    assert "transaction_long" not in [getattr(line, "event", None) for line in caplog.records]

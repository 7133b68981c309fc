"""The lab lets the right app be, finds what is wrong in others, and says how to see it again."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from groundstate import App, DeclarationError, Retry, Store
from groundstate.testing import Crashed, Lab, NeverTaken, runner
from groundstate.testing.simulate.crash_plan import parse_schedule
from tests.testing.shops import Base, Order, calling, cancel, many, never, plain, shop


def right_shop(lab: Lab) -> App:
    made = shop()
    lab.fake(made.charge, lambda order: f"r{order.id}")
    lab.fake(made.send, lambda order: f"m{order.id}")
    lab.meanwhile(cancel)
    return made.app


def pack(order: Order) -> None:
    order.status = "packed"


def test_the_right_app_passes_at_all_single_crossings_and_in_mixtures() -> None:
    with Lab() as lab:
        found = lab.crash_everywhere(right_shop(lab), Order(id=1), budget=10, seed=3)
    assert found.crossings > 100
    assert found.kills >= found.deaths > 10
    assert found.runs > found.deaths + 10
    assert set(found.held) <= {
        "mailed: in doubt, and its policy is InDoubt.hold(): a person decides",
        "paid: overtaken: status had a value already when the handler wrote it",
    }


def counts(order: Order) -> None:
    """Says that it packed before it is known whether it may."""
    order.count += 1
    if order.count < 2:
        raise ValueError("the packer is asleep")
    order.status = "packed"


def test_a_handler_that_raises_is_found_in_the_clean_run_already() -> None:
    with Lab() as lab, pytest.raises(Crashed, match="ValueError: the packer is asleep") as caught:
        lab.crash_everywhere(plain("raises", counts), Order(id=1))
    assert caught.value.invariant == "Progress"
    assert str(caught.value.schedule) == "nothing"


def undoing_each_other(name: str, *, rounds: int | None = None) -> App:
    app = App(name, Store("sqlite:///undoing.db", Base))
    bounds = () if rounds is None else (Order.count < rounds,)

    @app.on(Order, Order.status == "placed")
    def ping(order: Order) -> None:
        order.status, order.count = "packed", order.count + 1

    @app.on(Order, Order.status == "packed", *bounds)
    def pong(order: Order) -> None:
        order.status = "placed"

    return app


def test_reactions_that_undo_each_other_are_found_in_the_clean_run_already() -> None:
    with (
        Lab() as lab,
        pytest.raises(Crashed, match=r"orders 1 goes round: .* without a new occurrence, which p[io]ng makes hold again") as caught,
    ):
        lab.crash_everywhere(undoing_each_other("undoing"), Order(id=1))
    assert caught.value.invariant == "Progress"
    assert str(caught.value.schedule) == "nothing"


def test_a_loop_of_some_rounds_is_no_fault() -> None:
    with Lab() as lab:
        assert lab.crash_everywhere(undoing_each_other("some rounds", rounds=6), Order(id=1), budget=0).runs > 3


def test_a_handler_that_is_meant_to_raise_is_no_fault() -> None:
    tried: list[int] = []

    def sometimes(order: Order) -> None:
        tried.append(1)
        if len(tried) % 2:
            raise ValueError("not now")
        order.status = "packed"

    with Lab() as lab:
        assert lab.crash_everywhere(plain("sometimes", sometimes), Order(id=1), may_fail=["sometimes"], budget=0).runs > 3


def test_what_the_user_asserts_is_found_broken_with_the_smallest_schedule_its_story_and_the_line_that_repeats_it() -> None:
    made = calling("repeat")
    with Lab() as lab:
        ledger = lab.fake(made.call, lambda order: f"r{order.id}")

        def once(_session: Session) -> None:
            if len(ledger.effects) > 1:
                raise AssertionError("charged twice")

        with pytest.raises(Crashed, match="charged twice") as caught:
            lab.crash_everywhere(made.app, Order(id=1), at_the_end=once, seed=11)
        told = str(caught.value)
        assert caught.value.schedule.size == 1
        assert "calls paid of 1 (call 1: done)" in told
        assert "is killed" in told
        assert "seed 11" in told
        line = re.search(r'only="(.*?)"', told)
        assert line is not None
        assert parse_schedule(line[1]) == caught.value.schedule
        with pytest.raises(Crashed, match="charged twice") as again:
            lab.crash_everywhere(made.app, Order(id=1), at_the_end=once, only=line[1])
        assert str(again.value).partition("again:")[0] == told.partition("again:")[0]


def test_a_failure_of_many_things_at_once_is_shrunk_to_the_one_that_matters() -> None:
    made = calling("repeat")
    with Lab() as lab:
        ledger = lab.fake(made.call, lambda order: f"r{order.id}")

        def once(_session: Session) -> None:
            if len(ledger.effects) > 1:
                raise AssertionError("charged twice")

        with pytest.raises(Crashed) as caught:
            lab.crash_everywhere(
                made.app, Order(id=1), at_the_end=once, only="die@3 die@9 call1=answer-lost call2=busy hints=lost workers=2"
            )
    assert str(caught.value.schedule) == "call1=answer-lost"


def test_a_schedule_in_the_environment_is_the_one_that_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDSTATE_LAB", "die@5")
    with Lab() as lab:
        found = lab.crash_everywhere(plain("environment", pack), Order(id=1))
    assert (found.runs, found.kills) == (1, 1)


def test_what_always_asserts_is_asked_after_each_commit() -> None:
    seen: list[str] = []

    def look(session: Session) -> None:
        seen.append(session.scalars(select(Order.status)).one())
        assert seen[-1] != "packed", "it must never be packed"

    with Lab() as lab, pytest.raises(Crashed, match="it must never be packed") as caught:
        lab.crash_everywhere(plain("always", pack), Order(id=1), always=look)
    assert caught.value.invariant == "assertion"
    assert "placed" in seen


def test_the_same_seed_draws_the_same_runs() -> None:
    told = []
    for _ in range(2):
        with Lab() as lab:
            found = lab.crash_everywhere(plain("seeded", pack), Order(id=1), seed=5, budget=10)
        told.append((found.runs, found.kills, found.crossings, found.seed))
    assert told[0] == told[1]


def test_where_it_takes_long_it_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundstate.testing.lab.SAYS_EVERY_S", 0.0)
    said: list[str] = []
    with Lab(say=said.append) as lab:
        lab.crash_everywhere(plain("says", pack), Order(id=1), budget=0, seed=2)
    assert re.fullmatch(r"crash lab: 1 of \d+ runs, \d+ s, seed 2", said[0])


def test_a_reaction_that_no_run_carried_out_is_reported() -> None:
    with Lab() as lab:
        app = right_shop(lab)
        lab._meanwhile.clear()
        with pytest.raises(NeverTaken, match=r"mailed, packed, paid: never carried out .* Give rows"):
            lab.crash_everywhere(app, Order(id=1, status="cancelled"), budget=0)


def test_what_nothing_can_bring_about_is_reported_after_the_clean_run_and_what_may_yet_come_is_said() -> None:
    app = undoing_each_other("one way", rounds=0)
    with (
        Lab() as lab,
        pytest.raises(NeverTaken, match="pong: never carried out in the run without disturbances, and no crash can change that"),
    ):
        lab.crash_everywhere(app, Order(id=1))

    def somebody_undoes(session: Session) -> None:
        session.execute(update(Order).where(Order.status == "packed", Order.count == 1).values(count=-1))

    said: list[str] = []
    with Lab(say=said.append) as lab:
        lab.meanwhile(somebody_undoes)
        assert lab.crash_everywhere(app, Order(id=1), budget=0).runs > 3
    assert said[0] == "crash lab: pong not carried out in the run without disturbances; other runs may carry it out"


def test_a_handler_that_always_raises_and_may_was_tried() -> None:
    def never(_order: Order) -> None:
        raise ValueError("never")

    with Lab() as lab:
        assert lab.crash_everywhere(plain("never", never), Order(id=1), may_fail=["never"], budget=0).runs > 3


def test_a_part_of_an_app_is_tested_as_if_the_rest_were_not_declared() -> None:
    with Lab() as lab:
        right_shop(lab)
        app = right_shop(Lab())
        lab._fakes.clear()
        lab._meanwhile.clear()
        row = Order(id=1, status="paid")
        assert lab.crash_everywhere(app, row, reactions=["packed"], budget=0).runs > 3
        assert "has no fake, and would be made for real" in refused(lab, app, row, reactions=["packed", "mailed"])
        assert "there is no such reaction; there are mailed, packed, paid" in refused(lab, app, row, reactions=["sent"])
        assert "nothing would take part" in refused(lab, app, row, reactions=[])


def test_a_long_wait_is_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "CLEAN_MOST", 500)
    app = App("waits long", Store("sqlite:///waits.db", Base))

    @app.on(Order, Order.status == "placed", retry=Retry(times=None, first=timedelta(hours=1), longest=timedelta(hours=1)))
    def packed(order: Order) -> None:
        if lab.clock.passed < timedelta(hours=8):
            raise ValueError("not yet")
        order.status = "packed"

    with Lab() as lab:
        found = lab.crash_everywhere(app, Order(id=1), may_fail=["packed"], only="nothing")
    assert found.crossings > 500


# ---- what has no meaning -------------------------------------------------------------------------------------------------------
def refused(lab: Lab, *given: object, **more: object) -> str:
    with pytest.raises(DeclarationError) as caught:
        lab.crash_everywhere(*given, **more)  # type: ignore[arg-type]  # what is refused
    return str(caught.value)


def test_a_call_without_a_fake_is_refused_before_it_is_made() -> None:
    made = calling()
    with Lab() as lab:
        assert "has no fake, and would be made for real: lab.fake(" in refused(lab, made.app, Order(id=1))


def test_a_lab_in_which_nothing_would_happen_is_refused() -> None:
    with Lab() as lab:
        assert "has no rows" in refused(lab, plain("rowless", pack))


def test_what_is_no_record_of_the_app_is_refused() -> None:
    app = plain("strangers", pack)
    with Lab() as lab:
        assert "give records, as in Order(id=1)" in refused(lab, app, "an order")
        assert "give records, as in Order(id=1)" in refused(lab, app, Order)


@pytest.mark.parametrize("line", ["die", "die@x", "explode@3", "call1=happy", "hints=late", "lookups=early", "workers=0", "die@3;die@4"])
def test_a_line_that_is_no_schedule_is_refused_with_the_word(line: str) -> None:
    with Lab() as lab:
        assert f"{line!r} is no part of a schedule" in refused(lab, plain("malformed", pack), Order(id=1), only=line)


def test_a_reaction_that_is_not_there_may_not_fail() -> None:
    with Lab() as lab:
        assert "there is no such reaction; there are unknown" in refused(lab, plain("unknown", pack), Order(id=1), may_fail=["packed"])


def test_less_than_no_mixture_is_refused() -> None:
    with Lab() as lab:
        assert "0 or more" in refused(lab, plain("budget", pack), Order(id=1), budget=-1)


def test_a_call_for_many_records_is_not_run_by_the_lab() -> None:
    with Lab() as lab, pytest.raises(DeclarationError, match="a call for many records at once is not run"):
        lab.fake(many().call, "r1", through=lambda client: client)


def test_no_time_at_all_is_refused() -> None:
    with Lab() as lab:
        assert "give how long runs may begin" in refused(lab, plain("seconds", pack), Order(id=1), seconds=0)


def test_only_a_call_can_be_faked_and_only_a_function_comes_meanwhile() -> None:
    with Lab() as lab:
        with pytest.raises(DeclarationError, match="give the call itself"):
            lab.fake(never, "r1")  # type: ignore[arg-type]  # what is refused
        with pytest.raises(DeclarationError, match="takes a session"):
            lab.meanwhile("cancel")  # type: ignore[type-var]  # what is refused

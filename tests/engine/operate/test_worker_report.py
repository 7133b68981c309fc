"""What a worker says of itself in its row, and what `status` and `why` make of it, which other processes would not know otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event

from groundstate import ExternalService, InDoubt
from groundstate.engine import publish_report
from groundstate.engine.call import limiter
from groundstate.engine.rows import worker_report
from groundstate.engine.rows.worker_report import Failing, HandlerLock, Lacks, Pause, Ring, Step, WorkerReport
from groundstate.engine.sql import record_cycles
from tests.engine.call.test_limiter import Delivery, Provider, Tenants, deliveries, delivering
from tests.engine.charging import charging
from tests.engine.kit import Life, World, until
from tests.engine.looking import (
    HOUR_S,
    SLOW,
    another_that_lives,
    answer,
    lives,
    paused,
    printed,
    rows,
    said,
    standing_still,
    tenants_rows,
)
from tests.engine.sql.test_record_cycles import undoing_each_other

pytestmark = pytest.mark.usefixtures("looks_often")


@pytest.fixture
def tenants(database_url: str) -> Iterator[World]:
    made = World(database_url, Tenants)
    yield made
    made.close()


# ---- a service that is paused -----------------------------------------------------------------------------------------------------
def test_a_paused_outside_is_in_status_and_why_says_which_records_wait_for_it(world: World) -> None:
    life, gateway = paused(world)
    world.orders_from(6, 6)
    life.sweep()
    (pause,) = said(world).paused
    assert (pause.service, pause.tenant, pause.answered, said(world).paused_count) == ("bank", None, "NotDone: refused", 1)
    assert timedelta(minutes=50) < pause.until - pause.since < timedelta(minutes=70)
    assert abs(datetime.now(UTC) - pause.since) < timedelta(minutes=10)
    out = printed(world)
    assert "bank" in out
    assert "NotDone: refused" in out
    waits = answer(world, 6)
    assert waits.next.startswith("waits for the service bank, which is paused (its last answer: NotDone: refused)")
    assert waits.next_at == pause.until
    assert gateway.called(6) == 0
    if world.postgres:
        ours = "select xmin::text::bigint = (wrote::text::bigint & 4294967295) from groundstate_worker"
        assert rows(world, ours) == [(True,)], "a worker would take its own row for one that somebody else wrote"


def test_a_failed_call_whose_time_has_come_waits_for_its_outside_too(world: World) -> None:
    life, _ = paused(world)
    assert answer(world, 1).next == "tried again"
    with standing_still(life):
        world.force("update groundstate_attempt set next_at = since where record = '1'")
        found = answer(world, 1)
    assert found.next.startswith("tried again, but it waits for the service bank, which is paused")


def test_once_its_pause_is_over_it_is_told_that_it_is_probed(world: World) -> None:
    moment = "2026-01-01T00:00:00+00:00"
    words = json.dumps({"paused": [{"service": "bank", "tenant": None, "since": moment, "until": moment, "answered": ""}]})
    charging(world, InDoubt.repeat())
    world.orders(1)
    with another_that_lives(world, words):
        found = answer(world, 1)
        assert found.next == (
            "waits for the service bank, which is paused; one call at a time probes it,"
            " in turn of a record that was tried before and of one that was not"
        )
        assert found.next_at is None
        assert "one at a time probes it" in printed(world)


def test_what_one_worker_pauses_another_one_may_call(world: World) -> None:
    life, _ = paused(world)
    with standing_still(life), another_that_lives(world):
        world.orders_from(6, 6)
        assert answer(world, 6).next == "carried out now"
        assert "1 of 2 workers" in printed(world)
    with standing_still(life), another_that_lives(world, '{"waits_for_go":true}'):
        assert answer(world, 6).next.startswith("waits for the service bank")


def test_one_tenants_paused_endpoint_is_told_of_that_tenants_records_alone(tenants: World) -> None:
    delivering(tenants, ExternalService("hooks"), Provider(dead={"dead"}), retry=SLOW, per=Delivery.tenant)
    deliveries(tenants, 6, "dead")
    life = tenants.worker()
    until(lambda: said(tenants).paused)
    with standing_still(life):
        deliveries(tenants, 2, "dead", "a", first=100)
        found = {one.tenant: answer(tenants, one.id, table="deliveries").next for one in tenants_rows(tenants)}
    assert found["dead"].startswith("waits for the service hooks, dead, which is paused (its last answer: NotDone: no answer)")
    assert found["a"] == "carried out now"
    assert "hooks, dead" in printed(tenants)


def test_where_more_parts_are_paused_than_are_named_it_is_said_that_it_may_be_one_of_them(
    tenants: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_report, "NAMED_MOST", 1)
    delivering(tenants, ExternalService("hooks"), Provider(dead={"a", "b"}), retry=SLOW, per=Delivery.tenant)
    deliveries(tenants, 20, "a", "b")
    life = tenants.worker()
    until(lambda: said(tenants).paused_count == 2)
    assert [one.tenant for one in said(tenants).paused] == ["a"]
    assert "And 1 more that are paused." in printed(tenants)
    with standing_still(life):
        deliveries(tenants, 1, "b", first=100)
        words = answer(tenants, tenants_rows(tenants)[0].id, table="deliveries").next
    assert words.startswith("carried out now, or after a pause: 2 parts of services are paused")


def test_what_an_outside_answered_is_redacted_and_short(world: World) -> None:
    paused(world, redact=lambda words: words.replace("refused", "hidden " * 100))
    (pause,) = said(world).paused
    assert pause.answered.startswith("NotDone: hidden")
    assert len(pause.answered) == limiter.ANSWER_LENGTH
    assert "refused" not in json.dumps(rows(world, "select says from groundstate_worker"))


# ---- when it is written --------------------------------------------------------------------------------------------------------
@contextmanager
def writes(life: Life) -> Iterator[list[str]]:
    """The statements by which it writes what it says."""
    heard: list[str] = []

    def note_commit(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "SET says" in statement:
            heard.append(statement)

    event.listen(life.database.engine, "before_cursor_execute", note_commit)
    yield heard
    event.remove(life.database.engine, "before_cursor_execute", note_commit)


def test_nothing_is_written_while_nothing_changes(world: World) -> None:
    life, _ = paused(world)
    with writes(life) as heard:
        for _ in range(5):
            life.sweep()
    assert heard == []


def test_a_worker_with_nothing_to_say_writes_nothing(world: World) -> None:
    charging(world, InDoubt.repeat())
    life = world.worker()
    with writes(life) as heard:
        world.orders(3)
        life.quiet()
        life.sweep()
    assert heard == []
    assert rows(world, "select says from groundstate_worker") == [(None,)]


def test_however_much_changes_it_is_written_no_more_than_once_in_a_while(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = charging(world, InDoubt.repeat(), retry=SLOW)
    life = world.worker()
    life.sweep()
    life.worker.components.report_publisher._next = float("inf")  # the next look is far off
    with writes(life) as heard:
        for number in range(1, 6):
            gateway.plan(number, "refuse")
        world.orders(5)
        until(lambda: life.pauses)
        life.sweep()
        assert heard == []
        monkeypatch.setattr(publish_report, "EACH_S", HOUR_S)
        life.worker.components.report_publisher._next = 0.0
        until(lambda: heard)
        life.worker.components.call_turns.limits.paused.clear()
        life.sweep()
        assert len(heard) == 1


def test_what_is_over_is_said_no_more(world: World) -> None:
    life, gateway = paused(world)
    for one in life.worker.components.call_turns.limits._breakers.values():
        one.until = 0.0  # the pause is over, and the next call a probe
    world.orders_from(6, 6)
    until(lambda: world.order(6).status == "paid")
    until(lambda: said(world) == worker_report.NOTHING)
    assert gateway.called(6) == 1
    assert rows(world, "select says from groundstate_worker") == [(None,)]


def test_where_it_cannot_be_written_the_worker_goes_on_and_it_is_written_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[Any] = []

    def refuse(_self: publish_report.ReportPublisher, seen: Any) -> None:
        refused.append(seen)
        raise RuntimeError("no such column")

    with monkeypatch.context() as patch:
        patch.setattr(publish_report.ReportPublisher, "_write_report", refuse)
        gateway = charging(world, InDoubt.repeat(), retry=SLOW)
        for number in range(1, 6):
            gateway.plan(number, "refuse")
        world.orders(5)
        life = world.worker()
        until(lambda: len(refused) >= 2)
        assert not life.in_trouble
    until(lambda: said(world).paused)


def test_a_worker_whose_lock_was_lost_says_it_still_in_whatever_life_it_goes_on(world: World) -> None:
    life, _ = paused(world)
    life.lose_lock()
    until(lambda: life.worker.incarnation.sound)
    until(lambda: [one.id for one in lives(world) if one.says.paused] == [life.worker.incarnation.id])


def test_the_words_of_a_dead_worker_are_not_shown(world: World) -> None:
    life, _ = paused(world)
    life.kill()
    assert rows(world, "select count(*) from groundstate_worker where says is not null") == [(1,)], "they stand there still"
    assert said(world) == worker_report.NOTHING
    assert "NotDone" not in printed(world)
    world.orders_from(6, 6)
    assert answer(world, 6).next == "carried out as soon as a worker runs"


# ---- what is read --------------------------------------------------------------------------------------------------------------
GARBAGE = (
    "", "{", "[1]", "7", "null", '"held"', "[" * 100_000, '{"paused": 7, "rings": {"a": 1}, "leaves": "packed", "held": "yes"}',
    '{"paused": [7, {}, {"service": 1, "tenant": null, "since": "x", "until": "y", "answered": ""}], "paused_count": "many"}',
    '{"paused": [{"service": "bank", "tenant": null, "since": "2026-01-01T00:00:00", "until": "2026-01-01T00:00:00", "answered": ""}]}',
    '{"failing": [{"reaction": "paid", "since": "9999-12-31T23:59:59+00:00", "until": "9999-12-31T23:59:59-10:00"}]}',
    '{"rings": [{"since": "2026-01-01T00:00:00+00:00", "steps": []}, {"since": 5, "steps": [[]]}], "rings_count": -1}',
    '{"failing": [{"reaction": "paid"}], "troubled": [null], "aside": [[]], "tomorrow": {"more": true}}',
    '{"locks": [{"reaction": "paid"}, {"reaction": "paid", "why": "", "records": [1]}, {"reaction": "paid", "why": 1, "records": []}]}',
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(GARBAGE)))
def test_garbage_says_nothing_and_fails_nobody(world: World, number: int) -> None:
    charging(world, InDoubt.repeat())
    world.orders(1)
    with another_that_lives(world, GARBAGE[number]):
        assert said(world) == worker_report.NOTHING
        assert answer(world, 1).next == "carried out now"
        assert "lives" in printed(world)


def test_what_is_written_is_read_as_it_was() -> None:
    moment = datetime(2026, 11, 30, 12, 0, 0, 5, tzinfo=UTC)
    whole = WorkerReport(
        waits_for_go=True,
        drains=True,
        paused=(Pause("bank", None, moment, moment, 'NotDone: "é\u2028"'), Pause("hooks", "", moment, moment, "")),
        paused_count=7,
        rings=(Ring(moment, (Step("ping", "orders", "1", ""), Step("pong", "orders", "1", "2"))),),
        rings_count=1,
        leaves=("packed",),
        aside=("noted",),
        failing=(Failing("sent", moment, moment),),
        troubled=("mailed",),
        lacks=(Lacks("paid", "a column"),),
        locks=(HandlerLock("packed", "a row is locked", ("1", "2")), HandlerLock("sent", "a table is locked")),
    )
    text_ = worker_report.report_to_json(whole)
    assert text_ is not None
    assert text_.isascii()
    assert worker_report.report_from_json(text_) == whole
    assert worker_report.report_to_json(worker_report.NOTHING) is None


# ---- records that go round -------------------------------------------------------------------------------------------------------
def test_a_ring_is_in_status_and_why_says_of_its_record_that_it_is_slowed_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    undoing_each_other(world)
    world.orders(2)
    world.set(2, status="quiet")
    life = world.worker()
    until(lambda: said(world).rings)
    (ring,) = said(world).rings
    assert (set(ring.reactions), ring.records, said(world).rings_count) == ({"ping", "pong"}, (("orders", "1"),), 1)
    out = printed(world)
    assert "orders 1 goes round since " in out
    assert "undo each other" in out
    with standing_still(life):
        of_ping, of_pong = answer(world, 1, "ping"), answer(world, 1, "pong")
        quiet = answer(world, 2, "ping")
    assert of_ping.goes_round == "goes round, since pong undoes it, and is slowed down: it is carried out after pauses of up to a minute"
    assert {of_ping.next, of_pong.next} & {of_ping.goes_round, of_pong.goes_round}
    assert quiet.goes_round is None
    monkeypatch.setattr(record_cycles, "LATELY_S", 0.0)
    world.set(1, status="quiet")
    until(lambda: not said(world).rings)


def test_what_a_worker_says_while_it_goes_round_is_not_written_at_each_round(world: World) -> None:
    runs = undoing_each_other(world)
    world.orders(1)
    life = world.worker()
    until(lambda: said(world).rings)
    with writes(life) as heard:
        before = len(runs)
        until(lambda: len(runs) >= before + 2)
    assert heard == []

"""Several workers on one PostgreSQL: one sweeps for all, a hint wakes few, a backlog is shared, and all of it may be lost."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from groundstate import ExternalService, InDoubt, ReactionContext
from groundstate.cli import status
from groundstate.engine import publish_report
from groundstate.engine.handle import run_batch
from groundstate.engine.rows import attempts
from groundstate.engine.sql.commit_hooks import TouchedRecords
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch import backlog_sharing, due_attempts, sweep_leader
from groundstate.engine.watch.hint_publisher import HintPublisher
from groundstate.engine.worker.options import Options
from groundstate.rules import hint_codec as rules
from groundstate.rules.attempt import State
from groundstate.rules.concurrency_tuning import AdmittedWorkers
from groundstate.rules.hint_codec import Hint
from groundstate.rules.poison_suspects import Care
from groundstate.transport.memory import MemoryTransport
from tests.engine.charging import ASK, charging
from tests.engine.kit import HANG_S, Life, Order, World, until


class Line(MemoryTransport):
    """Hints in memory, over a line that can be cut."""

    cut = False

    @property
    def is_usable(self) -> bool:
        return not self.cut and super().is_usable

    def send(self, hint: bytes) -> None:
        if not self.cut:
            super().send(hint)


class Fleet:
    """Workers that are told by hints alone what others commit, as in processes of their own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lines: list[Line] = []
        self.publishers: list[HintPublisher] = []
        self.lives: list[Life] = []

    def messenger(self, *, with_keys: bool = False) -> HintPublisher:
        line = Line(self.world.url)
        database = Life(self.world, [], Options(), None).database
        questions = [ConditionQuery(spec, database) for spec in self.world.app.reactions.values()]
        made = HintPublisher("shop", line, questions, with_keys=with_keys)
        made.start()
        self.lines.append(line)
        self.publishers.append(made)
        return made

    def worker(self, **options: Any) -> Life:
        told = self.messenger()
        life = self.world.worker(messenger=told, **options)
        told.add_receiver(life.worker)
        self.lives.append(life)
        return life

    def workers(self, count: int) -> list[Life]:
        for _ in range(count):
            self.worker()
        until(lambda: len(self.sweeping) == 1)
        for life in self.lives:
            life.quiet()  # its first sweep, which each does for itself
        return self.lives

    @property
    def sweeping(self) -> list[Life]:
        return [life for life in self.lives if not life.dead and life.worker.components.leader.has_to_sweep]

    def other_than(self, life: Life) -> Life:
        return next(one for one in self.lives if one is not life and not one.dead)

    def commit_elsewhere(self, *numbers: int) -> None:
        """Rows that come with no hint at all: as psql writes them."""
        for number in numbers:
            self.world.run("insert into orders (id, status, round) values (:id, 'placed', 1)", id=number)

    def cut(self, cut: bool = True) -> None:
        """No hint comes or goes any more; or they do again."""
        for line in self.lines:
            line.cut = cut

    @contextmanager
    def only(self, life: Life) -> Iterator[None]:
        """Nobody but this one begins anything meanwhile."""
        held = [one for one in self.lives if one is not life]
        for one in held:
            one._gate.acquire()
        yield
        for one in held:
            one._gate.release()

    def close(self) -> None:
        for one in self.publishers:
            one.stop()


@pytest.fixture
def made(postgres_world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setattr(sweep_leader, "BEAT_S", 0.2)  # a beat is a second and a half for each worker: tests wait for several
    monkeypatch.setattr(
        sweep_leader, "STUCK_S", HANG_S
    )  # a worker that a busy machine does not let turn for some seconds still sweeps for all
    monkeypatch.setattr(sweep_leader, "SILENT_S", HANG_S)  # likewise
    made = Fleet(postgres_world)
    yield made
    made.close()


def _packed(world: World, by: set[int] | None = None) -> None:
    @world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"
        if by is not None:
            by.add(threading.get_ident())


def _told_of(*numbers: int) -> TouchedRecords:
    touched = TouchedRecords()
    touched.add(Order, [(number,) for number in numbers], None)
    return touched


# ---- who sweeps --------------------------------------------------------------------------------------------------------------------
def test_one_worker_sweeps_for_all_and_another_one_when_it_is_gone(made: Fleet) -> None:
    _packed(made.world)
    made.workers(3)
    first = made.sweeping[0]
    first.kill()
    until(lambda: len(made.sweeping) == 1)
    assert made.sweeping[0] is not first
    made.commit_elsewhere(1)
    until(lambda: made.world.order().status == "packed")


def test_a_lost_hint_is_found_by_the_sweep(made: Fleet) -> None:
    _packed(made.world)
    made.workers(2)
    made.commit_elsewhere(1, 2, 3)
    until(lambda: made.world.count(Order.status == "packed") == 3)


def test_without_hints_every_worker_sweeps_for_itself(made: Fleet) -> None:
    _packed(made.world)
    made.workers(3)
    made.cut()
    until(lambda: len(made.sweeping) == 3)
    made.sweeping[0].kill()
    made.commit_elsewhere(1)
    until(lambda: made.world.order().status == "packed")


def test_hints_that_come_again_leave_one_that_sweeps(made: Fleet) -> None:
    _packed(made.world)
    made.workers(3)
    made.cut()
    until(lambda: len(made.sweeping) == 3)
    made.cut(False)
    until(lambda: len(made.sweeping) == 1)


def test_a_worker_that_hangs_in_a_handler_lets_another_one_sweep(made: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_leader, "STUCK_S", 0.5)
    gate, hangs = threading.Event(), threading.Event()

    @made.world.app.on(Order, Order.status == "slow")
    def slow(order: Order) -> None:
        hangs.set()
        assert gate.wait(HANG_S)
        order.status = "done"

    _packed(made.world)
    made.workers(2)
    stuck = made.sweeping[0]
    made.world.run("insert into orders (id, status, round) values (1, 'slow', 1)")
    assert hangs.wait(HANG_S)
    until(lambda: made.sweeping == [made.other_than(stuck)])
    made.commit_elsewhere(2)
    until(lambda: made.world.order(2).status == "packed")
    gate.set()
    until(lambda: made.world.order(1).status == "done")


def test_while_who_sweeps_for_all_is_suspended_the_others_sweep_and_look_after_schedules(
    made: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "groundstate")
    monkeypatch.setattr(sweep_leader, "LEADS_EACH_S", 0.05)
    _packed(made.world)
    ticks: list[int] = []

    @made.world.app.every(timedelta(seconds=1))
    def tick(session: Session) -> None:
        ticks.append(threading.get_ident())

    made.workers(2)
    first = made.sweeping[0]
    other = made.other_than(first)
    until(lambda: other.worker.components.leader._led_by == first.worker.incarnation.id)
    goes_on, stands = threading.Event(), threading.Event()
    really = first.worker.loop.iteration.run_iteration

    def suspended() -> None:
        stands.set()
        goes_on.wait(HANG_S)
        really()

    vars(first.worker.loop.iteration)["run_iteration"] = suspended
    try:
        assert stands.wait(HANG_S)
        monkeypatch.setattr(sweep_leader, "SILENT_S", 0.5)
        until(lambda: other.worker.components.leader.silent)
        seen = len(ticks)
        made.commit_elsewhere(1)
        until(lambda: made.world.order().status == "packed")
        until(lambda: len(ticks) >= seen + 2)
        assert first.worker.components.leader.leads, "it keeps its lock"
        (line,) = [one for one in caplog.records if vars(one).get("event") == "sweep_leader_silent"]
        assert line.levelname == "WARNING"
        assert f"process {os.getpid()} on {socket.gethostname()}" in line.getMessage()
    finally:
        vars(first.worker.loop.iteration)["run_iteration"] = really
        monkeypatch.setattr(sweep_leader, "SILENT_S", HANG_S)
        goes_on.set()
    until(lambda: not other.worker.components.leader.has_to_sweep)


def test_who_was_suspended_himself_does_not_take_the_other_for_silent(made: Fleet) -> None:
    led = _led(made)
    leader, now = led.worker.components.leader, time.monotonic()
    leader.announce_or_watch_leader(now + 2 * HANG_S, lambda _hint: None)
    assert not leader.silent


def test_a_worker_that_drains_lets_another_one_sweep(made: Fleet) -> None:
    gateway = charging(made.world, ASK)
    made.world.there()
    made.workers(2)
    leaving = made.sweeping[0]
    staying = made.other_than(leaving)
    gateway.plan(1, "hang")
    leaving.worker.components.signals.wake.set()
    with made.only(leaving):
        made.commit_elsewhere(1)
        until(lambda: gateway.waiting == 1)
    leaving.drain()
    until(lambda: made.sweeping == [staying])
    made.commit_elsewhere(2)
    until(lambda: made.world.order(2).status == "paid")
    assert not leaving.ended  # its call is still in the air
    gateway.gate.set()
    until(lambda: made.world.order(1).status == "paid")
    until(lambda: leaving.ended)


def test_a_worker_whose_call_outlasts_its_stop_keeps_its_lock_and_lets_another_one_sweep(made: Fleet) -> None:
    gateway = charging(made.world, ASK, sync=True)
    made.world.there()
    made.workers(2)
    leaving = made.sweeping[0]
    staying = made.other_than(leaving)
    gateway.plan(1, "hang")
    with made.only(leaving):
        made.commit_elsewhere(1)
        until(lambda: gateway.waiting == 1)
    leaving.stop(0.0)
    assert leaving.worker.incarnation.liveness.has_lock()
    until(lambda: made.sweeping == [staying])
    made.commit_elsewhere(2)
    until(lambda: made.world.order(2).status == "paid")
    gateway.gate.set()
    until(lambda: not leaving.worker.incarnation.liveness.has_lock())  # once its thread has come back


def test_a_worker_that_alone_is_cut_off_from_hints_lets_another_one_sweep(made: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_leader, "CUT_OFF_S", 0.3)
    _packed(made.world)
    made.workers(3)
    cut = made.sweeping[0]
    made.lines[made.lives.index(cut)].cut = True
    until(lambda: any(one.worker.components.leader.leads for one in made.lives if one is not cut))
    assert not cut.worker.components.leader.leads
    assert cut in made.sweeping  # for itself
    made.lines[made.lives.index(cut)].cut = False
    until(lambda: len(made.sweeping) == 1)


def test_words_of_strangers_make_no_worker_look_who_is_there_all_the_time(made: Fleet) -> None:
    _packed(made.world)
    (life,) = made.workers(1)
    own = life.worker.components.leader
    life.sweep_no_more()
    now = own._beat_at + 0.01
    own.next_beat = now + 3600
    assert not any(own.is_known_worker(stranger, now) for stranger in range(1, 50))
    assert own.next_beat == own._beat_at + sweep_leader.STRANGERS_S  # once for all of them
    own.next_beat = now + 3600
    assert not any(own.is_known_worker(stranger, now + 10) for stranger in range(1, 50))
    assert own.next_beat == now + 3600  # who was looked for and not found
    assert not any(own.is_known_worker(stranger, now + 10) for stranger in range(50, 2 * sweep_leader.STRANGERS_MOST))
    own.next_beat = now + 3600
    assert not own.is_known_worker(5 * sweep_leader.STRANGERS_MOST, now + 10)
    assert own.next_beat == now + 3600  # and so many that all of them are forged, or of another database


def test_a_life_that_lost_its_lock_sweeps_for_nobody(made: Fleet) -> None:
    _packed(made.world)
    made.workers(2)
    made.sweeping[0].lose_lock()
    until(lambda: len(made.sweeping) == 1)
    made.commit_elsewhere(1)
    until(lambda: made.world.order().status == "packed")


def test_each_version_of_the_code_has_one_that_sweeps_for_it(made: Fleet) -> None:
    _packed(made.world)
    made.workers(2)

    @made.world.app.on(Order, Order.status == "packed")
    def sent(order: Order) -> None:
        order.status = "sent"

    made.world.app.init(accept=True)
    newer = made.worker()
    until(lambda: newer in made.sweeping)
    assert len(made.sweeping) == 2
    made.commit_elsewhere(1)
    until(lambda: made.world.order().status == "sent")


def test_what_a_person_accepts_reaches_a_worker_that_does_not_sweep(made: Fleet) -> None:
    _packed(made.world)
    made.world.app.init(tables=True)
    with made.world.engine.begin() as connection:
        connection.exec_driver_sql("delete from groundstate_reaction where name = 'packed'")
    made.world._there = True
    made.commit_elsewhere(1)
    made.workers(2)
    until(lambda: all(len(one.worker.refused_reactions) == 1 for one in made.lives))
    made.world.app.init(accept=["packed"])
    until(lambda: all(not one.worker.refused_reactions for one in made.lives))
    until(lambda: made.world.order().status == "packed")


def test_a_schedule_is_carried_out_by_the_one_that_sweeps_and_by_the_next_when_it_is_gone(made: Fleet) -> None:
    by: list[int] = []

    @made.world.app.every(timedelta(seconds=1))
    def tick(session: Session, ctx: ReactionContext) -> None:
        by.append(threading.get_ident())

    for life in made.workers(3):  # each looks after schedules while somebody waits until it is quiet
        life.turn()
    seen = len(by)
    until(lambda: len(by) >= seen + 2)
    assert len(set(by[seen:])) == 1
    made.sweeping[0].kill()
    seen = len(by)
    until(lambda: len(by) > seen + 1)
    assert len(set(by[seen + 1 :])) == 1


def _led(made: Fleet) -> Life:
    """One of two workers, for which the other one sweeps."""
    made.workers(2)
    until(lambda: all(one.worker.components.leader.worker_count == 2 for one in made.lives))
    return made.other_than(made.sweeping[0])


def test_a_begin_that_landed_unknown_is_found_on_a_worker_that_does_not_sweep(made: Fleet) -> None:
    gateway = charging(made.world, ASK)
    made.world.there()
    led = _led(made)
    for life in made.lives:
        if life is not led:
            life.hints_alone()
    led.lose_word_of = "insert into groundstate_attempt"
    made.commit_elsewhere(1)
    led.worker.receive_remote_hint(Hint("web", ("paid",), rules.EVERYBODY, 0))
    until(lambda: made.world.order().status == "paid")
    assert led.lost == 1
    assert gateway.done(1) == 1


@pytest.mark.parametrize("mine", [True, False], ids=["its own", "another's"])
def test_a_doubt_that_is_overdue_is_looked_at_within_a_second_by_its_worker_alone(postgres_world: World, mine: bool) -> None:
    charging(postgres_world, ASK)
    worker = postgres_world.worker(wait_for_go=True).worker  # it does not look by itself
    life, question = worker.incarnation, worker.queues[0].query
    with life.open_transaction() as tx:
        doubt = attempts.new_attempt_of_record(question, "1", "", life.id, tx.now)
        past = tx.now - timedelta(seconds=5)  # as one that was adopted after its time
        owner = life.id if mine else life.id + 1
        attempts.insert_attempts(
            tx, [replace(doubt, state=State.DOUBT, unsure=True, next_at=past, first_at=past, deadline=tx.now, worker=owner)]
        )
    due_attempts.refresh_next_due(worker.components.worker_state)
    soon = worker.components.worker_state.next_due is not None and worker.components.worker_state.next_due <= time.monotonic() + 1
    assert soon == mine


def test_what_a_careful_worker_had_begun_and_could_not_lock_then_stands_in_nobodys_way(
    made: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    _packed(made.world)
    made.workers(2)
    sweeping = made.sweeping[0]
    until(lambda: all(one.worker.components.leader.worker_count == 2 for one in made.lives))
    made.other_than(sweeping).hints_alone()
    led = made.other_than(sweeping).worker
    led.incarnation.care = Care(careful=True)
    right, met = run_batch.carry_out_batch, threading.Event()

    def meets_a_lock(life: Any, question: Any, feed: run_batch.Feed) -> run_batch.Done:
        if feed.mine is None or met.is_set():
            return right(life, question, feed)
        met.set()
        return run_batch.Done(read=1)

    monkeypatch.setattr(run_batch, "carry_out_batch", meets_a_lock)
    sweeping.sweep_no_more()  # before the other one has begun it
    made.commit_elsewhere(1)
    led.receive_remote_hint(Hint("web", ("packed",), rules.EVERYBODY, 0))
    assert met.wait(HANG_S)
    sweeping.worker.components.sweeps.next = 0.0
    until(lambda: made.world.order().status == "packed")


def test_a_call_whose_record_moved_on_is_ended_on_a_worker_that_does_not_sweep(made: Fleet) -> None:
    ended, begun = threading.Event(), threading.Event()
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.repeat(), timeout=timedelta(hours=1), stop_when_overtaken=True)
    async def charge(order: Order) -> str:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        return "late"

    @made.world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status = outcome

    made.world.there()
    led = _led(made)
    for life in made.lives:
        if life is not led:
            life.hints_alone()
    made.commit_elsewhere(1)
    led.worker.receive_remote_hint(Hint("web", ("paid",), rules.EVERYBODY, 0))
    assert begun.wait(HANG_S)
    made.world.set(status="cancelled")
    assert ended.wait(HANG_S)


# ---- whom a hint wakes -------------------------------------------------------------------------------------------------------------
def test_a_hint_of_one_row_wakes_one_worker_and_a_second_one_in_case(made: Fleet) -> None:
    _packed(made.world)
    made.workers(4)
    until(lambda: all(one.worker.components.leader.worker_count == 4 for one in made.lives))
    for dice in range(20):
        waits = [one.worker.components.leader.seconds_until_wake(dice, 1) for one in made.lives]
        assert sorted(wait for wait in waits if wait is not None) == [0.0, sweep_leader.BACKUP_S]
    for rows, first, later in ((500, 2, 1), (rules.EVERYBODY, 2, 2)):
        waits = [one.worker.components.leader.seconds_until_wake(3, rows) for one in made.lives]
        assert sum(wait == 0.0 for wait in waits) == first
        assert sum(wait is not None and wait >= sweep_leader.HELPS_AFTER_S for wait in waits) == later


def test_a_hint_is_carried_out_by_who_is_told(made: Fleet) -> None:
    by: set[int] = set()
    _packed(made.world, by)
    made.workers(3)
    for life in made.lives:
        life.quiet()
        life.sweep_no_more()
    web = made.messenger()
    for number in range(1, 31):
        made.commit_elsewhere(number)
        web.note_commit(_told_of(number))
        until(lambda: made.world.count(Order.status == "packed") == number)  # noqa: B023  # called within its round
    assert len(by) > 1, "all hints woke the same worker"


def test_a_hint_to_a_worker_that_is_gone_is_taken_up_by_a_second_one(made: Fleet) -> None:
    _packed(made.world)
    made.workers(3)
    until(lambda: all(one.worker.components.leader.worker_count == 3 for one in made.lives))
    gone = made.other_than(made.sweeping[0])
    others = [one for one in made.lives if one is not gone]
    lives = made.lives[0].worker.components.leader.workers
    gone.kill()
    for life in others:
        life.hints_alone()
    made.commit_elsewhere(1)
    dice = next(dice for dice in range(3) if rules.rank_in_worker_ring(gone.worker.incarnation.id, lives, dice) == 0)
    for life in made.lives:
        life.worker.receive_remote_hint(Hint("web", ("packed",), 1, dice))
    until(lambda: made.world.order().status == "packed")


@pytest.mark.parametrize("with_keys", [False, True], ids=["names alone", "with keys"])
def test_hints_name_reactions_and_keys_only_where_the_app_says_so(made: Fleet, with_keys: bool) -> None:
    _packed(made.world)
    heard: list[bytes] = []
    spy = Line(made.world.url)
    spy.open("groundstate.shop", heard.append)
    made.messenger(with_keys=with_keys).note_commit(_told_of(4711))
    until(lambda: bool(heard))
    found = rules.decode_hint(heard[0])
    assert found is not None
    assert (found.reactions, found.rows) == (("packed",), 1)
    assert found.keys == ({"packed": ("4711",)} if with_keys else {})
    assert with_keys or b"4711" not in heard[0]


def test_forged_hints_do_nothing(made: Fleet) -> None:
    _packed(made.world)
    life = made.workers(1)[0]
    nonsense = [
        b"",
        b"{}",
        b"null",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"v":1,"r":["packed"],"n":"x","d":1}',
        b'{"v":1,"r":["nobody"],"n":1,"d":1}',
    ]
    told = b'{"v":1,"r":["packed"],"n":1,"d":1,"c":7'
    nonsense += [
        told + more for more in (b',"p":[1]}', b',"p":[1,"x",2]}', b',"l":[1]}', b',"l":[1,["x"]]}', b',"l":7,"p":true}', b',"c":[]}')
    ]
    nonsense.append(told + b',"p":[1,1' + b"0" * 400 + b",1]}")  # more rows than a number of ours can hold
    nonsense += [b'{"v":1,"r":["packed"],"n":1,"d":1,"k":{"packed":["no key"]}}', b"rows:", b"rows:orders", b"rows:orders 1"]
    made.commit_elsewhere(1)
    for words in nonsense:
        made.lines[0].send(words)
    until(lambda: made.world.order().status == "packed")
    life.quiet()
    assert life.worker.failure is None


def test_what_a_trigger_says_of_a_table_wakes_who_reads_it(made: Fleet) -> None:
    _packed(made.world)
    life = made.workers(1)[0]
    life.quiet()
    life.sweep_no_more()
    made.commit_elsewhere(1)
    made.lines[0].send(b"rows:orders 815")
    until(lambda: made.world.order().status == "packed")


# ---- a backlog ---------------------------------------------------------------------------------------------------------------------
def _many_orders(world: World, first: int, last: int) -> None:
    world.run(f"insert into orders (id, status, round) select n, 'placed', 1 from generate_series({first}, {last}) as n")


def test_a_backlog_that_one_worker_finds_is_worked_off_by_several(made: Fleet) -> None:
    by: set[int] = set()
    _packed(made.world, by)
    made.workers(3)
    until(lambda: all(one.worker.components.leader.worker_count == 3 for one in made.lives))
    _many_orders(made.world, 1, 20_000)
    until(lambda: made.world.count(Order.status == "packed") == 20_000)
    assert len(by) > 1


def test_of_many_workers_some_are_told_to_leave_a_backlog_to_the_others(made: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _packed(made.world)
    made.workers(4)
    until(lambda: all(one.worker.components.leader.worker_count == 4 for one in made.lives))
    _many_orders(made.world, 1, 20_000)
    until(lambda: sum(one.worker.queues[0].rows.left_to_others for one in made.lives) == 2)
    until(lambda: made.world.count(Order.status == "packed") == 20_000)
    until(lambda: not any(one.worker.queues[0].rows.left_to_others for one in made.lives))
    assert "of 4 workers 2 go on with the backlog of packed" in caplog.text


def _kept_out(made: Fleet) -> Life:
    """A worker that was told to leave the backlog to others, by the one that sweeps."""
    sweeping = made.sweeping[0].worker
    life = made.other_than(made.sweeping[0])
    until(lambda: sweeping.incarnation.id in life.worker.components.leader.workers)
    word = AdmittedWorkers((sweeping.incarnation.id,), ("packed",))
    life.worker.receive_remote_hint(
        Hint("web", ("packed",), rules.EVERYBODY, crew=sweeping.components.leader.lock, let_in=(sweeping.incarnation.id, word))
    )
    life.worker.components.signals.wake.set()
    until(lambda: life.worker.components.worker_state.queue_named("packed").rows.left_to_others)
    return life


def test_who_leaves_a_backlog_to_others_still_carries_out_what_is_fresh(made: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_sharing, "KEPT_OUT_S", 3600.0)
    by: set[int] = set()
    _packed(made.world, by)
    made.workers(2)
    life = _kept_out(made)
    made.sweeping[0].sweep_no_more()
    made.commit_elsewhere(1)
    dice = next(
        dice for dice in range(2) if rules.rank_in_worker_ring(life.worker.incarnation.id, life.worker.components.leader.workers, dice) == 0
    )
    life.worker.receive_remote_hint(Hint("web", ("packed",), 1, dice))
    until(lambda: made.world.order().status == "packed")
    assert life.worker.queues[0].rows.left_to_others
    assert by == {life.worker.thread.ident}


def test_who_leaves_a_backlog_to_others_says_so(made: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_sharing, "KEPT_OUT_S", 3600.0)
    monkeypatch.setattr(publish_report, "EACH_S", 0.02)
    _packed(made.world)
    made.workers(2)
    life = _kept_out(made)

    def leaving() -> dict[int, tuple[str, ...]]:
        seen = status.read_status(made.world.app, made.world.app.stores[0]).status.workers or ()
        return {one.id: one.says.leaves for one in seen if one.says.leaves}

    until(lambda: leaving() == {life.worker.incarnation.id: ("packed",)}, leaving)


@pytest.mark.parametrize(("kept_out_s", "cut"), [(0.2, False), (3600.0, True)], ids=["once nobody says who is to", "without hints"])
def test_a_backlog_that_was_left_to_others_is_gone_on_with(
    made: Fleet, monkeypatch: pytest.MonkeyPatch, kept_out_s: float, cut: bool
) -> None:
    monkeypatch.setattr(backlog_sharing, "KEPT_OUT_S", kept_out_s)
    _packed(made.world)
    made.workers(2)
    life = _kept_out(made)
    made.sweeping[0].kill()
    made.cut(cut)
    made.commit_elsewhere(1)
    until(lambda: made.world.order().status == "packed")
    assert not life.worker.queues[0].rows.left_to_others


def test_who_comes_up_beside_others_first_listens_whether_they_are_at_a_backlog(made: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_sharing, "ARRIVES_S", 3600.0)
    by: set[int] = set()
    _packed(made.world, by)
    first = made.workers(1)[0]
    assert not first.worker.queues[0].rows.left_to_others
    second = made.worker()
    until(lambda: second.worker.queues[0].rows.left_to_others)
    _many_orders(made.world, 1, 1_000)
    until(lambda: made.world.count(Order.status == "packed") == 1_000)
    assert by == {first.worker.thread.ident}


def test_who_is_told_of_one_backlog_goes_on_with_the_others(made: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_sharing, "ARRIVES_S", 0.2)

    @made.world.app.on(Order, Order.status == "packed")
    def sent(order: Order) -> None:
        order.status = "sent"

    _packed(made.world)
    monkeypatch.setattr(backlog_sharing, "KEPT_OUT_S", 3600.0)
    made.workers(2)
    life = _kept_out(made)
    until(lambda: {lane.name: lane.rows.left_to_others for lane in life.worker.queues} == {"packed": True, "sent": False})


@pytest.mark.parametrize("forged", ["by a stranger", "to who sweeps", "for other code"])
def test_a_forged_word_of_who_is_to_go_on_keeps_nobody_out(made: Fleet, forged: str) -> None:
    _packed(made.world)
    made.workers(2)
    sweeping = made.sweeping[0].worker
    told = sweeping if forged == "to who sweeps" else made.other_than(made.sweeping[0]).worker
    who = 815 if forged == "by a stranger" else made.other_than(made.sweeping[0]).worker.incarnation.id
    crew = 4711 if forged == "for other code" else sweeping.components.leader.lock
    told.receive_remote_hint(Hint("web", ("packed",), rules.EVERYBODY, crew=crew, let_in=(who, AdmittedWorkers((who + 1,), ("packed",)))))
    told.components.signals.wake.set()
    until(lambda: not told.components.sharing._unheard)
    made.commit_elsewhere(1)
    until(lambda: made.world.order().status == "packed")
    assert not told.queues[0].rows.left_to_others


# ---- what it costs -----------------------------------------------------------------------------------------------------------------
def test_a_sweep_over_many_reactions_is_a_few_statements(postgres_world: World) -> None:
    for number in range(100):
        postgres_world.app.on(Order, Order.status == f"state {number}", name=f"reaction_{number}")(_nothing(number))
    life = postgres_world.worker()
    life.quiet()
    said: list[str] = []
    event.listen(life.database.engine, "before_cursor_execute", lambda *args: said.append(args[2]))

    def statements_between_last_looks() -> list[str] | None:
        """Of the last two sweeps; None where fewer than four have been, since the first one looks at the plans of all conditions."""
        life.sweep()
        looks = [number for number, one in enumerate(said) if "found_0" in one]
        return [one for one in said[looks[-2] : looks[-1]] if not one.startswith("BEGIN")] if len(looks) >= 4 else None

    # On a busy machine a look may take so long that it is cut and each condition is asked alone, once.
    until(lambda: (between := statements_between_last_looks()) is not None and len(between) <= 5)


def _nothing(number: int) -> Any:
    def handler(order: Order) -> None:
        order.status = f"state {number + 1}"

    return handler

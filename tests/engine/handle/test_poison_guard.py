"""Careful mode (hazard 25): the record that ends its workers is found within four deaths, held, and no other is; all others go on."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from groundstate import ExternalService, IdempotencyKey, InDoubt, Retry
from groundstate.engine.handle import poison_guard
from groundstate.engine.recover import adopt
from groundstate.engine.rows import attempts
from groundstate.engine.rows import incarnation as lives
from groundstate.engine.watch.idle_probe import IdleProbe
from groundstate.rules.attempt import State
from groundstate.rules.poison_suspects import STRETCH, why_for_ended_workers, worker_ends_in_why
from tests.engine.charging import charging
from tests.engine.kit import Killed, Order, World, ms, until

SOON = Retry(times=None, first=ms(5), longest=ms(5))


def deaths(world: World) -> int:
    """How many workers died until one found who kills, and did not die of it."""
    for count in range(10):
        with suppress(Killed):  # it may die before who started it looks
            world.worker()
        one = world.lives[-1]
        until(lambda: one.ended or world.states() == ["held"])  # noqa: B023  # asked in this round alone
        if not one.ended:
            return count
    raise AssertionError("nobody found who kills")


def kills_by_handler(world: World, number: int) -> None:
    @world.app.on(Order, Order.status == "placed", retry=SOON)
    def packed(order: Order) -> None:
        if order.id == number:
            world.die()
        order.status = "packed"


class Bomb:
    """A call that ends its worker where it is made for one record."""

    def __init__(self, world: World, number: int, policy: InDoubt) -> None:
        self.alone: list[int] = []  # how many calls were in the air when it went off
        self._flying: set[int] = set()
        post = ExternalService("post", limit=10)

        @post.call(in_doubt=policy, timeout=ms(20_000), retry=SOON)
        def send(order: Order, *, key: IdempotencyKey) -> str:
            self._flying.add(order.id)
            if order.id == number:
                self.alone.append(len(self._flying))
                self._flying.clear()
                threading.Thread(target=world.lives[-1].kill).start()
                until(lambda: world.lives[-1].ended)
            self._flying.discard(order.id)
            return "sent"

        @world.app.on(Order, Order.status == "placed", call=send, name="packed")
        def _(order: Order, outcome: str) -> None:
            order.status = "packed"


def test_what_makes_no_call_is_held_after_two_deaths_in_careful_mode_the_second_alone(world: World) -> None:
    kills_by_handler(world, 17)
    world.orders(60)
    assert deaths(world) == 4
    world.lives[-1].quiet()
    one = world.attempt()
    assert (one.record, one.state, one.unsure, len(worker_ends_in_why(one.why))) == ("17", "held", False, 2)
    assert "the last time alone" in (one.why or "")
    assert world.count(Order.status == "packed") == 59


@pytest.mark.parametrize("policy", [InDoubt.repeat(), InDoubt.same_key(kept_for=timedelta(hours=24))], ids=["repeat", "same key"])
def test_a_call_is_held_after_three_deaths_the_last_with_it_alone(world: World, policy: InDoubt) -> None:
    bomb = Bomb(world, 7, policy)
    world.orders(12)
    assert deaths(world) == 3
    world.lives[-1].quiet()
    one = world.attempt()
    assert (one.record, one.state, one.unsure, len(worker_ends_in_why(one.why))) == ("7", "held", True, 3)
    assert bomb.alone[-1] == 1
    assert world.count(Order.status == "packed") == 11


# ---- what is no unclean end --------------------------------------------------------------------------------------------------------
def two_unclean_ends(world: World) -> None:
    """Of the lives 101 and 102, which a worker has seen."""
    for one in (101, 102):
        life = world.worker(start=False)
        life.worker.incarnation.id = one
        life.worker.incarnation.database.connect()
        life.worker.incarnation.take_lock_and_insert_row()
        life.kill()
    world.worker().stop()


class Left:
    """A worker that ended while one record alone, which was under way at two unclean ends before, was carried out."""

    def __init__(self, world: World) -> None:
        kills_by_handler(world, 0)
        world.there()
        self.world = world
        two_unclean_ends(world)
        self.incarnation = world.worker()
        self.incarnation.quiet()
        with self.incarnation.worker.incarnation.open_transaction() as tx:
            dice = tx.database.dice
            made = attempts.new_attempt(("shop", "packed", "1", ""), self.incarnation.worker.incarnation.id, tx.now, "orders", dice=dice)
            made = poison_guard.begun_attempt(self.incarnation.worker.incarnation, made, attempts.new_call_number(dice), tx.now, together=1)
            attempts.insert_attempts(tx, [replace(made, why=why_for_ended_workers([101, 102]))])
        self.incarnation.kill()

    @property
    def number(self) -> int:
        return self.incarnation.worker.incarnation.id

    def adopted(self) -> list[str]:
        """What became of it: nothing stays of one that has failed, since no such record is there."""
        self.world.worker()
        until(lambda: self.world.states() != ["begun"])
        return [state for state in self.world.states() if state == "held"]


@pytest.fixture
def left(world: World) -> Left:
    return Left(world)


def test_who_was_alone_at_an_unclean_end_and_under_way_at_two_before_is_held(left: Left) -> None:
    assert left.adopted() == ["held"]


def test_a_drain_that_left_something_says_nothing_of_it(left: Left) -> None:
    left.world.run("DELETE FROM groundstate_worker WHERE id = :life", life=left.number)  # by the worker itself, which ended
    assert left.adopted() == []


def test_ends_that_were_lost_locks_or_are_long_past_say_nothing_of_it(left: Left) -> None:
    left.world.run("DELETE FROM groundstate_worker WHERE id IN (101, 102)")  # as by the process that goes on, or by a calm stretch
    assert left.adopted() == []


def test_an_end_at_which_something_else_was_under_way_says_too_little(left: Left) -> None:
    kept = "state, worker, call, call_no, unsure, since, first_at, deadline, failures, blocks, together"
    left.world.run(
        f"INSERT INTO groundstate_attempt (app, reaction, record, occurrence, {kept})"
        f" SELECT app, reaction, '2', occurrence, {kept} FROM groundstate_attempt"
    )
    assert left.adopted() == []


def test_a_worker_whose_server_was_started_anew_since_makes_nobody_careful_or_suspected(
    postgres_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Left(postgres_world)
    monkeypatch.setattr(lives, "RECONNECT", timedelta())  # it is not waited for
    left.world.run("UPDATE groundstate_worker SET server = '[\"of before\"]' WHERE id = :life", life=left.number)
    assert left.adopted() == []
    with left.world.engine.connect() as connection:
        there = connection.exec_driver_sql(f"SELECT count(*) FROM groundstate_worker WHERE id = {left.number}").scalar_one()
    assert there == 0


# ---- what is in the air all the same -----------------------------------------------------------------------------------------------
def test_a_suspected_call_that_hangs_is_not_looked_at_while_its_thread_runs(world: World, caplog: pytest.LogCaptureFixture) -> None:
    gateway = charging(world, InDoubt.repeat(), sync=True, timeout=ms(200), retry=SOON)
    gateway.plan(1, "hang")
    world.orders(1, status="new")
    two_unclean_ends(world)
    life = world.worker()
    life.quiet()
    with life.worker.incarnation.open_transaction() as tx:
        failed = attempts.new_attempt(("shop", "paid", "1", ""), life.worker.incarnation.id, tx.now, "orders", dice=tx.database.dice)
        failed = replace(failed, state=State.FAILED, failures=1, next_at=tx.now, why=why_for_ended_workers([101, 102]))
        attempts.insert_attempts(tx, [failed])
        tx.connection.execute(update(Order).values(status="placed"))
    life.sweep()
    until(lambda: world.states() == ["doubt"] and gateway.waiting == 1)
    world.set(status="cancelled")
    for _ in range(3):
        life.sweep()
    assert world.states() == ["doubt"], "it was let go while its thread could still act"
    gateway.gate.set()
    until(lambda: world.states() == [])
    life.quiet()
    assert (gateway.called(1), "by hand" in caplog.text) == (1, False)


def test_its_line_counts_the_ends_of_the_last_minutes_alone(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = world.worker(start=False).worker.incarnation
    now = datetime.now(UTC)
    ends = {1: now - 3 * STRETCH, 2: now - 2 * STRETCH, 3: now - STRETCH / 2, 4: now}
    monkeypatch.setattr(adopt, "_read_unclean_ends", lambda _life: {world.app.name: ends})
    seen = IdleProbe(now, life.clock.uptime_s(), attempts=False, strangers=False, ended=True, old_rates=False, known="", workers=())
    adopt.update_careful_mode(life, seen)
    (line,) = [one for one in caplog.records if vars(one).get("event") == "careful_mode"]
    assert line.getMessage().startswith("2 workers ended uncleanly within 10 minutes")

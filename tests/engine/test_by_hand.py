"""Rows of our own that somebody deletes, changes or puts back by hand, while a worker lives: no call goes out twice because of it."""

from __future__ import annotations

from tests.engine.charging import ASK, charging
from tests.engine.kit import Order, World, until


def test_an_attempt_that_is_put_back_under_its_living_worker_is_in_doubt_and_not_called_again(world: World) -> None:
    gateway = charging(world, ASK)
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.run("create table put_back as select * from groundstate_attempt")
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    life.quiet()
    with world.engine.begin() as connection:  # the users' table and ours go back together, as by a restore beneath the worker
        connection.exec_driver_sql("insert into groundstate_attempt select * from put_back")
        connection.exec_driver_sql("update orders set status = 'placed', receipt = null")
    life.sweep()
    until(lambda: world.count(Order.status == "paid") == 1)
    life.quiet()
    assert gateway.called(1) == gateway.done(1) == 1
    assert gateway.asked == [1]
    assert world.attempts() == []

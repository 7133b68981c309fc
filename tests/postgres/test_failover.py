"""Failovers to a streaming standby, beneath workers whose URL names both hosts, and before one that is started afterwards (hazard 46).

The primary is killed and the standby promoted; with asynchronous replication commits are lost, with synchronous ones none. One failover
for several shops, a database each, since servers are slow to make.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from groundstate import InDoubt
from tests.engine.charging import ASK, SAME_KEY, charging
from tests.engine.kit import Gateway, Life, Order, World, until
from tests.postgres.pairs import Pair, pair

LONG, SHORT = timedelta(minutes=10), timedelta(seconds=20)


@dataclass
class Shop:
    """On a pair of servers."""

    world: World
    gateway: Gateway
    life: Life | None = None
    before: int = 0  # the life of before the failover

    def opens(self) -> None:
        """Its worker lives through the failover."""
        self.incarnation = self.world.worker()
        self.before = self.incarnation.worker.incarnation.id

    def goes_on(self) -> Life:
        """Waits until its worker has begun another life: begins were lost."""
        life = self.incarnation
        assert life is not None
        until(lambda: life.worker.incarnation.id != self.before and life.worker.incarnation.sound)
        return life

    def comes_back(self) -> Life:
        """Waits until its worker has its lock on the new primary, under its own number: no begin was lost."""
        life = self.incarnation
        assert life is not None
        until(lambda: life.worker.incarnation.taken == 2 and life.worker.incarnation.sound)
        assert life.worker.incarnation.id == self.before
        return life

    @property
    def suspects(self) -> list[str]:
        with self.world.engine.connect() as connection:
            return list(connection.exec_driver_sql("select name from groundstate_reaction where suspect").scalars())

    def done(self, *records: int) -> list[int]:
        return [self.gateway.done(number) for number in records]


@dataclass
class Shops:
    """On one pair."""

    pair: Pair
    stack: ExitStack
    all: list[Shop] = field(default_factory=list)

    def shop(self, in_doubt: InDoubt, way: str = "libpq", *, timeout: timedelta = LONG, **store: Any) -> Shop:
        """timeout: of its calls, some of which are in the air for as long as the test of another shop takes."""
        world = World(self.pair.create_database(way), **store)
        self.stack.callback(world.close)
        self.all.append(Shop(world, charging(world, in_doubt, timeout=timeout)))
        return self.all[-1]

    def fail_over(self) -> None:
        self.pair.fail_over()
        for shop in self.all:
            shop.world.engine.dispose()  # the test's own connections


@dataclass
class Lost:
    """After a failover that lost commits."""

    ask: Shop
    same_key: Shop
    called_lossless: Shop
    cold: Shop


@pytest.fixture
def lost() -> Iterator[Lost]:
    """Order 1 was paid before, 4 was in the air then; 2 was paid and 3 in the air in the time that was lost."""
    with ExitStack() as stack:
        shops = Shops(stack.enter_context(pair()), stack)
        made = Lost(
            shops.shop(ASK), shops.shop(SAME_KEY), shops.shop(ASK, "sqlalchemy", failover="lossless"), shops.shop(ASK, timeout=SHORT)
        )
        living = (made.ask, made.same_key, made.called_lossless)
        for shop in living:
            shop.world.orders(1)
            shop.world.orders_from(4, 4)
            shop.world.add(Order(id=2, status="cart"), Order(id=3, status="cart"))
            shop.gateway.plan(4, "done_hang")
            shop.gateway.plan(3, "done_hang")
            shop.opens()
            until(lambda shop=shop: shop.world.order().status == "paid" and shop.gateway.waiting == 1)  # type: ignore[misc]
        made.cold.world.orders(3)
        shops.pair.stop_following()
        made.cold.world.settled()
        assert made.cold.world.count(Order.status == "paid") == 3
        for shop in living:
            shop.world.set(2, status="placed")
            shop.world.set(3, status="placed")
            until(lambda shop=shop: shop.world.order(2).status == "paid" and shop.gateway.waiting == 2)  # type: ignore[misc]
        shops.fail_over()
        yield made


def tries_again(shop: Shop) -> None:
    """The customers whose orders were lost place them again, and the answers come that were on their way."""
    assert shop.world.order(2).status == shop.world.order(3).status == "cart"
    shop.world.set(2, status="placed")
    shop.world.set(3, status="placed")
    until(lambda: {"2", "3", "4"} <= {one.record for one in shop.world.attempts()} | {str(one) for one in (2, 3, 4) if paid(shop, one)})
    shop.gateway.gate.set()
    until(lambda: paid(shop, 3) and paid(shop, 4))


def paid(shop: Shop, number: int) -> bool:
    return bool(shop.world.order(number).status == "paid")


def notices(shop: Shop) -> None:
    """A living worker, under `ask`."""
    life = shop.goes_on()
    until(lambda: shop.suspects == ["paid"])
    tries_again(shop)
    until(lambda: paid(shop, 2))
    assert shop.world.order(2).receipt in {"r2", "r3"}, "not what the gateway gave for it in the lost time"
    life.quiet()
    assert shop.done(1, 2, 3, 4) == [1, 1, 1, 1]
    assert shop.world.attempts() == []
    assert shop.suspects == ["paid"], "nobody has trusted it yet"


def sends_nothing_under_an_old_key(shop: Shop) -> None:
    """A living worker, under `same_key`."""
    life = shop.goes_on()
    until(lambda: shop.suspects == ["paid"])
    tries_again(shop)
    life.quiet()
    assert shop.done(1, 2, 3, 4) == [1, 1, 1, 1]
    # How old its key is nobody knows any more, so a person looks it up.
    assert [(one.record, one.state.value, one.unsure) for one in shop.world.attempts()] == [("2", "held", True)]


def asks(shop: Shop) -> None:
    """A worker that is started afterwards."""
    cold = shop.world.worker()
    shop.world.forward(60)
    cold.quiet()
    assert set(shop.gateway.asked) == {1, 2, 3}
    assert [shop.gateway.called(number) for number in (1, 2, 3)] == [1, 1, 1]
    assert shop.world.count(Order.status == "paid") == 3
    assert shop.suspects == ["paid"]


def test_hazard_46_a_failover_that_lost_calls_is_noticed_by_living_workers_and_by_new_ones(lost: Lost) -> None:
    notices(lost.ask)
    notices(lost.called_lossless)  # by its count alone
    sends_nothing_under_an_old_key(lost.same_key)
    asks(lost.cold)


def test_a_failover_without_loss_is_no_alarm_where_that_was_said() -> None:
    with ExitStack() as stack:
        shops = Shops(stack.enter_context(pair()), stack)
        shops.pair.is_synchronous()
        shop = shops.shop(ASK, failover="lossless")
        shop.world.orders(2)
        shop.gateway.plan(2, "done_hang")
        shop.opens()
        until(lambda: shop.world.order().status == "paid" and shop.gateway.waiting == 1)
        shops.fail_over()
        life = shop.comes_back()
        shop.gateway.gate.set()
        shop.world.orders_from(3, 5)
        until(lambda: shop.world.count(Order.status == "paid") == 5)
        life.quiet()
        assert shop.done(1, 2, 3, 4, 5) == [1] * 5
        assert shop.gateway.asked == [], "its call in the air was its own all the while"
        assert shop.suspects == []
        assert shop.world.attempts() == []

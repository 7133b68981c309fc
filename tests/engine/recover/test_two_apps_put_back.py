"""Two apps on one database that went back in time: one answers the sign, and the other's calls are in doubt all the same."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from groundstate import ExternalService, InDoubt, Retry
from tests.engine.charging import ASK, charging
from tests.engine.kit import Gateway, Order, World, ms, until


class Two:
    """`first` answers, and has a reaction of its own; `second` charges orders."""

    def __init__(self, url: str) -> None:
        self.first, self.second = World(url), World(url)
        self.first.app.name = "mailer"
        post = ExternalService("post")

        @post.call(in_doubt=InDoubt.hold(), timeout=ms(20_000))
        def mail(order: Order) -> str:
            return "sent"

        @self.first.app.on(Order, Order.status == "mine", call=mail, name="mailed")
        def _(order: Order, outcome: str) -> None:
            order.status = outcome

        self.gateway: Gateway = charging(self.second, ASK)
        self.second.orders(3)
        self.first.there()

    def suspects(self) -> list[str]:
        with self.first.engine.connect() as connection:
            said = "select name from groundstate_reaction where suspect order by name"
            return list(connection.exec_driver_sql(said).scalars())

    def close(self) -> None:
        self.first.close()
        self.second.close()


@pytest.fixture
def two(database_url: str) -> Iterator[Two]:
    made = Two(database_url)
    yield made
    made.close()


def test_what_one_app_answered_makes_the_other_suspect_as_well(two: Two) -> None:
    two.second.settled()
    two.second.run("update orders set status = 'placed'")  # as it was in the backup
    two.first.worker(after_restore=True).stop()
    assert two.suspects() == ["mailed", "paid"]
    cold = two.second.worker()
    until(lambda: two.second.states() == ["doubt"] * 3 or len(two.gateway.calls) > 3)
    assert [two.gateway.called(number) for number in (1, 2, 3)] == [1, 1, 1], "the other app charged again"
    two.second.forward(60)
    cold.quiet()
    assert two.second.count(Order.status == "paid") == 3
    assert len(two.gateway.calls) == 3


def test_a_failed_attempt_of_the_other_app_is_in_doubt_too(two: Two) -> None:
    """It came back with the backup, and may have been called since."""
    slow = Retry(times=10, first=timedelta(hours=1), longest=timedelta(hours=1))
    world = World(two.second.url)
    gateway = charging(world, ASK, retry=slow)
    gateway.plan(1, "refuse")
    life = world.worker()
    until(lambda: world.states() == ["failed"])
    life.kill()
    two.first.worker(after_restore=True).stop()
    assert [(one.state.value, one.unsure) for one in world.attempts()] == [("doubt", True)]
    world.close()

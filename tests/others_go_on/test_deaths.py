"""A record that ends its workers is held after four deaths at most, and the others are carried out; no other app is careful by that."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from groundstate import ExternalService, Retry
from tests.engine.handle.test_poison_guard import deaths
from tests.engine.kit import Order, World, ms, until
from tests.others_go_on.conftest import RECEIPT, Beside

SOON = Retry(times=None, first=ms(5), longest=ms(5))


@pytest.fixture
def mailer(beside: Beside) -> Iterator[World]:
    """Another app on the same database."""
    made = World(beside.url)
    made.app.name = "mailer"

    @made.app.on(Order, Order.status == "done", Order.mailed.is_(None))
    def mailed(order: Order) -> None:
        order.mailed = "yes"

    made.there()
    yield made
    made.close()


def end(world: World) -> str:
    """In a thread of a call: its worker."""
    threading.Thread(target=world.lives[-1].kill).start()
    until(lambda: world.lives[-1].ended)
    return RECEIPT


@pytest.mark.parametrize("by_a_call", [False, True], ids=["by_a_handler", "by_a_call"])
def test_a_record_ends_its_workers(beside: Beside, mailer: World, by_a_call: bool) -> None:
    if by_a_call:
        beside.called(lambda: end(beside), retry=SOON, timeout=ms(20_000), service=ExternalService("desk", limit=20))
    else:
        beside.handled(lambda _order: beside.die(), retry=SOON)
    beside.placed()
    other = mailer.worker()
    assert deaths(beside) <= 4
    beside.until_done()
    beside.lives[-1].quiet()
    words = f"its worker ended while it was carried out, {3 if by_a_call else 2} times, the last time alone"
    beside.listed(words, "held")
    beside.told_once(words, "attempt_kept")
    until(lambda: mailer.count(Order.mailed == "yes") == len(beside.done()))
    assert (beside.lives[-1].worker.incarnation.care.careful, other.worker.incarnation.care.careful) == (True, False)
    assert beside.pending().careful

"""Two versions of one condition side by side: what both match goes on, and what the newer one alone matches waits and is told."""

from __future__ import annotations

from tests.engine.kit import Order, until
from tests.others_go_on.conftest import ONE, Beside, a_world


def test_what_both_versions_match_is_carried_out_and_the_rest_waits_for_a_person(beside: Beside) -> None:
    beside.handled(lambda _order: None, Order.round == 1)
    beside.there()
    with a_world(beside.url, beside.said) as newer:
        newer._there = True
        newer.handled(lambda _order: None)
        beside.add(Order(id=ONE, round=2))
        for world in (newer, beside):
            world.worker()
        newer.placed()
        newer.until_done()
        until(lambda: newer.lives[-1].worker.refused_reactions)
        words = "newly matches 1 row that was there before"
        (newcomer,) = newer.pending().newcomers
        assert words in newcomer.message
        assert (newer.status().rows, newer.status().partly) == (1, True)
        assert words in newer.why().next
        assert len(newer.told("reaction_refused")) == 1
        assert words in newer.told("reaction_refused")[0]
        assert (beside.pending().newcomers, beside.status().rows) == ((), 0), "the older code says nothing of what it does not match"
        newer.app.init(accept=["done"])
        until(lambda: ONE in newer.done())

"""One call for many records: an answer that leaves a doubt of whose outcome is whose is written to none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from groundstate import ExternalService, InDoubt, NotDone
from tests.engine.kit import QUICK, Order, World


def answered(world: World, answer: Callable[[Sequence[Order]], Any], *, sync: bool = True) -> None:
    """Three orders, of which the call answers so; until all is quiet."""
    bank = ExternalService("bank")

    if sync:

        @bank.call_many(size=10, in_doubt=InDoubt.hold(), retry=QUICK)
        def charge(orders: Sequence[Order]) -> Any:
            return answer(orders)

    else:

        @bank.call_many(size=10, in_doubt=InDoubt.hold(), retry=QUICK)
        async def charge(orders: Sequence[Order]) -> Any:
            return answer(orders)

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    world.orders(3)
    world.settled()


def receipts(world: World) -> list[str | None]:
    return [world.order(number).receipt for number in (1, 2, 3)]


def without_the_second(orders: Sequence[Order]) -> list[str]:
    return [f"r{order.id}" for order in orders if order.id != 2]


def with_a_header(orders: Sequence[Order]) -> list[str]:
    return ["header", *(f"r{order.id}" for order in orders)]


def a_text(orders: Sequence[Order]) -> str:
    return "abc"  # of the right length


def some_bytes(orders: Sequence[Order]) -> bytes:
    return b"abc"


def nothing(orders: Sequence[Order]) -> None:
    return None


def a_generator(orders: Sequence[Order]) -> Iterator[str]:
    return (f"r{order.id}" for order in orders)


def by_id(orders: Sequence[Order]) -> dict[int, str]:
    return {order.id: f"r{order.id}" for order in orders}


class Broken(dict[Any, str]):
    def get(self, *_given: Any) -> Any:
        raise NotDone("of which one?")


def broken(orders: Sequence[Order]) -> dict[Any, str]:
    return Broken(dict.fromkeys(orders, "r"))


UNFIT = [
    (without_the_second, "has the length 2, and it was called for 3 records"),
    (with_a_header, "has the length 4, and it was called for 3 records"),
    (a_text, "no list of outcomes but of type str"),
    (some_bytes, "no list of outcomes but of type bytes"),
    (nothing, "no list of outcomes but of type NoneType"),
    (a_generator, "the call returned the generator"),
    (by_id, "a mapping by other keys than its records, such as "),
    (broken, "cannot be read: NotDone: of which one?"),
]


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize(("answer", "why"), UNFIT, ids=[answer.__name__ for answer, _ in UNFIT])
def test_an_answer_that_does_not_tell_whose_outcome_is_whose_leaves_all_in_doubt(world: World, answer: Any, why: str, sync: bool) -> None:
    answered(world, answer, sync=sync)
    assert receipts(world) == [None, None, None]
    assert world.states() == ["held"] * 3
    assert [why in (one.error or "") for one in world.attempts()] == [True] * 3, world.attempts()


def test_outcomes_in_the_order_of_the_records_are_theirs(world: World) -> None:
    answered(world, lambda orders: tuple(f"r{order.id}" for order in orders))
    assert receipts(world) == ["r1", "r2", "r3"]


def test_a_record_that_a_mapping_leaves_out_is_in_doubt_and_the_others_have_their_outcomes(world: World) -> None:
    answered(world, lambda orders: {order: f"r{order.id}" for order in orders if order.id != 2})
    assert receipts(world) == ["r1", None, "r3"]
    assert [one.record for one in world.attempts()] == ["2"]
    assert "says nothing of this record" in (world.attempt().error or "")

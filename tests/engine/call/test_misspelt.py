"""What an author wrote a little wrongly in a call is told in its own words, and surely not done stays surely not done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, dataclass
from datetime import timedelta
from typing import Any

import pytest

from groundstate import ExternalService, InDoubt, NotDone, Retry, Throttled
from tests.engine.kit import CALL_LIMIT, Order, World, until

Raises = Callable[[], BaseException]
ONCE = Retry(times=1)


@dataclass(frozen=True)
class GatewayError(Exception):
    code: int


def calling(world: World, raises: Raises, *, sync: bool, retry: Retry = ONCE, **service: Any) -> list[int]:
    """Declares a call that raises; returns the records of its calls."""
    calls: list[int] = []
    bank = ExternalService("bank", **service)

    if sync:

        @bank.call(in_doubt=InDoubt.hold(), timeout=CALL_LIMIT, retry=retry)
        def charge(order: Order) -> str:
            calls.append(order.id)
            raise raises()

    else:

        @bank.call(in_doubt=InDoubt.hold(), timeout=CALL_LIMIT, retry=retry)
        async def charge(order: Order) -> str:
            calls.append(order.id)
            raise raises()

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"

    return calls


WAITS: dict[str, tuple[Any, str]] = {
    "seconds as a number": (3600, "retry_after=3600 was taken as seconds: give a timedelta"),
    "a text": ("3", "retry_after='3' is no time to wait: give a timedelta"),
    "less than nothing": (timedelta(seconds=-5), "is no time to wait: give a timedelta of zero or more"),
    "a number below zero": (-1, "retry_after=-1 is no time to wait"),
    "a number that is none": (float("nan"), "retry_after=nan is no time to wait"),
    "more than there is": (10**20, "is no time to wait"),
    "a thousand years": (timedelta(days=365_000), "is more than 365 days, which is the longest wait"),
}


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("kind", [Throttled, lambda wait: NotDone("no", retry_after=wait)], ids=["Throttled", "NotDone"])
def test_a_wait_that_is_no_timedelta_is_told_and_the_call_is_surely_not_done(world: World, kind: Any, wait: str) -> None:
    given, words = WAITS[wait]
    calls = calling(world, lambda: kind(given), sync=False, retry=Retry(times=3, first=timedelta(hours=1), longest=timedelta(hours=1)))
    world.orders(1)
    world.worker()
    until(lambda: bool(world.attempts()) and world.states() == ["failed"])
    attempt = world.attempt()
    assert words in str(attempt.error)
    assert not attempt.unsure
    assert attempt.next_at is not None
    assert attempt.next_at - attempt.since > timedelta(minutes=20), "it is not tried at once, again and again"
    assert calls == [1]


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_a_client_that_is_no_context_manager_is_named_as_that(world: World, sync: bool) -> None:
    _takes_its_client(world, sync)
    world.orders(1)
    world.settled()
    assert "the client= of odd gives object, which is no context manager" in str(world.attempt().error)
    assert not world.attempt().unsure


def _takes_its_client(world: World, sync: bool) -> None:
    odd = ExternalService("odd", client=object)  # type: ignore[arg-type]

    if sync:

        @odd.call(in_doubt=InDoubt.hold(), retry=ONCE)
        def charge(order: Order, client: object) -> str:
            return "r1"

    else:

        @odd.call(in_doubt=InDoubt.hold(), retry=ONCE)
        async def charge(order: Order, client: object) -> str:
            return "r1"

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_an_exception_that_is_a_frozen_dataclass_is_told_itself(world: World, sync: bool, caplog: pytest.LogCaptureFixture) -> None:
    calling(world, lambda: GatewayError(402), sync=sync)
    world.orders(1)
    world.settled()
    assert str(world.attempt().error).startswith("GatewayError: 402 (")
    assert FrozenInstanceError.__name__ not in caplog.text


def test_such_an_exception_is_surely_not_done_where_the_service_lists_it(world: World) -> None:
    calling(world, lambda: GatewayError(402), sync=True, not_done=[GatewayError])
    world.orders(1)
    world.settled()
    assert not world.attempt().unsure


def test_such_an_exception_of_a_handler_is_told_itself(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", retry=ONCE)
    def paid(order: Order) -> None:
        with _within():
            raise GatewayError(402)

    world.orders(1)
    world.settled()
    assert "the handler raised GatewayError: 402 (" in str(world.attempt().error)


@contextmanager
def _within() -> Any:
    yield


def test_an_attribute_of_a_frozen_value_that_is_set_is_an_error_of_its_own(world: World) -> None:
    calling(world, _sets, sync=True)
    world.orders(1)
    world.settled()
    assert "FrozenInstanceError: cannot assign to field 'code'" in str(world.attempt().error)


def _sets() -> BaseException:
    try:
        raise ValueError("first")
    except ValueError:
        GatewayError(402).code = 1  # type: ignore[misc]
    return ValueError("never")

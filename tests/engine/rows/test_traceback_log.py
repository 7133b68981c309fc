"""What a user's code raised is told with where it did: the file and the line in the words, the traceback once for each kind and place."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest

from groundstate import ExternalService, InDoubt, Retry
from tests.engine.kit import QUICK, Base, Order, World, until

HERE = "rows/test_traceback_log.py:"


def helper(found: dict[str, str]) -> str:
    return found["secret"]


def failing(world: World, **options: Any) -> None:
    @world.app.on(Order, Order.status == "placed", **options)
    def paid(order: Order) -> None:
        order.status = helper({})


def traced(caplog: pytest.LogCaptureFixture, event: str) -> list[str | None]:
    """Of each line of this event its traceback."""
    show = logging.Formatter().formatException
    return [
        show(one.exc_info) if one.exc_info and one.exc_info[0] else None for one in caplog.records if getattr(one, "event", "") == event
    ]


def test_a_handler_that_raised_is_told_with_its_line_and_once_with_its_traceback(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "groundstate")
    failing(world, retry=Retry(times=1))
    world.orders(3)
    world.settled()
    for one in world.attempts():
        assert f"the handler raised KeyError: 'secret' ({HERE}" in (one.error or "")
        assert (one.error or "").endswith(", in helper)")
    first, *others = traced(caplog, "handler_failed")
    assert first is not None
    lines = [line.strip() for line in first.splitlines()]
    assert lines[0] == "Traceback (most recent call last):"
    assert [line.partition(", in ")[2] for line in lines if line.startswith("File ")] == ["paid", "helper"]
    assert lines[-1] == "KeyError: 'secret'"
    assert others == [None, None]


def test_at_debug_each_line_has_its_traceback(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "groundstate")
    failing(world, retry=Retry(times=1))
    world.orders(3)
    world.settled()
    assert [one is not None for one in traced(caplog, "handler_failed")] == [True] * 3


def test_what_redact_hides_is_in_no_traceback(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    world = World(database_url, Base)
    try:

        @world.app.on(Order, Order.status == "placed", retry=Retry(times=1))
        def paid(order: Order) -> None:
            try:
                helper({})
            except KeyError as error:
                raise ValueError("the secret is 17") from error

        world.orders(1)
        life = world.worker(redact=lambda words: words.replace("secret", "***"))
        life.quiet()
        (told,) = traced(caplog, "handler_failed")
        assert told is not None
        assert "ValueError: the *** is 17" in told
        assert "KeyError: '***'" in told
        assert "The above exception was the direct cause" in told
    finally:
        world.close()


def test_the_handler_of_a_call_and_of_a_schedule_are_told_likewise(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @ExternalService("bank").call(in_doubt=InDoubt.hold(), retry=QUICK)
    def charge(order: Order) -> str:
        return "r1"

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status = helper({})

    @world.app.every(timedelta(seconds=1), retry=Retry(times=1))
    def tick() -> None:
        helper({})

    world.orders(1)
    life = world.worker()
    until(lambda: len(traced(caplog, "outcome_held")) == 1)
    world.forward(2)
    until(lambda: len(traced(caplog, "tick_failed")) > 0)
    life.stop()
    for told in (traced(caplog, "outcome_held")[0], traced(caplog, "tick_failed")[0]):
        assert told is not None
        assert "in helper" in told
    assert [HERE in (one.error or "") for one in world.attempts() if one.reaction == "paid"] == [True]


def test_a_call_that_raised_is_told_with_its_line(world: World) -> None:
    @ExternalService("bank").call(in_doubt=InDoubt.hold(), retry=QUICK)
    def charge(order: Order) -> str:
        return helper({})

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"

    world.orders(1)
    world.settled()
    assert f"KeyError: 'secret' ({HERE}" in (world.attempt().error or "")

"""What a call, a lookup or a handler returns and did not mean: a coroutine that it forgot to await, and what it should have raised."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from groundstate import Absent, ExternalService, InDoubt, NotDone, Retry, Throttled, Unknown
from groundstate.values.errors import DeclarationError
from tests.engine.kit import CALL_LIMIT, Order, World, ms, until

ONCE = Retry(times=1, first=ms(1))
sent: list[str] = []


async def post(what: str) -> str:
    sent.append(what)
    return what


class Lazy:
    def __await__(self) -> Any:
        yield


def declare(world: World, given: Callable[[], Any], *, is_async: bool, policy: InDoubt | None = None, retry: Retry = ONCE) -> Any:
    """A call that returns what is given; its reaction writes the outcome."""
    service = ExternalService("service")
    how: Any = {"in_doubt": policy or InDoubt.hold(), "retry": retry, "timeout": CALL_LIMIT}
    if is_async:

        @service.call(**how)
        async def ask(order: Order) -> str:
            return given()  # type: ignore[no-any-return]
    else:

        @service.call(**how, name="ask")
        def ask_sync(order: Order) -> str:
            return given()  # type: ignore[no-any-return]

        ask = ask_sync

    @world.app.on(Order, Order.status == "placed", call=ask)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", str(outcome)

    return ask


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
@pytest.mark.filterwarnings("error")
def test_a_call_that_forgets_await_is_in_doubt_and_its_outcome_is_none(world: World, is_async: bool) -> None:
    sent.clear()
    declare(world, lambda: post("mail"), is_async=is_async)
    world.orders(2)
    world.settled()
    for attempt in world.attempts():
        assert attempt.state.value == "held"
        assert attempt.outcome is None
        assert "the coroutine post that was never awaited" in (attempt.error or "")
        assert "`await`" in (attempt.error or "")
    assert len(world.attempts()) == 2
    assert sent == []
    assert world.count(Order.status == "placed") == 2


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_so_is_one_that_returns_what_may_have_been_started(world: World, is_async: bool) -> None:
    declare(world, (lambda: asyncio.ensure_future(post("x"))) if is_async else Lazy, is_async=is_async)
    world.orders(1)
    world.settled()
    assert "an awaitable of type" in (world.attempt().error or "")
    assert world.attempt().unsure
    assert world.order().status == "placed"


def test_a_call_that_acted_and_forgot_to_await_the_body_of_its_answer_is_not_made_twice(world: World) -> None:
    acted: list[int] = []

    def act() -> Any:
        acted.append(1)  # as `await client.post()` before `return response.json()`
        return post("the body")

    declare(world, act, is_async=True, retry=Retry(times=5, first=ms(1), longest=ms(1)))
    world.orders(1)
    world.settled()
    assert acted == [1]
    assert world.states() == ["held"]


def test_a_call_that_forgets_await_is_settled_by_its_lookup(world: World) -> None:
    given: list[Any] = [post("x"), "r1"]
    ask = declare(
        world, lambda: given.pop(0), is_async=False, policy=InDoubt.lookup(settle_after=ms(1)), retry=Retry(first=ms(1), longest=ms(1))
    )

    @ask.lookup
    def looked(order: Order) -> str | Absent | Unknown:
        return Absent()

    world.orders(1)
    world.worker()
    until(lambda: world.states() == ["doubt"])
    world.forward(120)
    until(lambda: world.order().status == "paid")
    assert world.order().receipt == "r1"


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("what", ["instance", "class", "Throttled"])
def test_a_returned_not_done_counts_as_if_it_were_raised(world: World, is_async: bool, what: str) -> None:
    first: dict[str, Any] = {"instance": NotDone("no token"), "class": NotDone, "Throttled": Throttled(ms(1))}
    given = [first[what], "r1"]
    declare(world, lambda: given.pop(0), is_async=is_async, retry=Retry(times=5, first=ms(1), longest=ms(1)))
    world.orders(1)
    world.settled()
    assert world.order().receipt == "r1"
    assert world.attempts() == []


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_another_returned_exception_counts_as_if_it_were_raised(world: World, is_async: bool) -> None:
    declare(world, lambda: RuntimeError("the line went dead"), is_async=is_async)  # as by asyncio.gather(return_exceptions=True)
    world.orders(1)
    world.settled()
    assert world.attempt().error == "RuntimeError: the line went dead"
    assert world.attempt().unsure
    assert world.order().status == "placed"


@pytest.mark.parametrize("answer", [Absent, Absent(), Unknown, Unknown()], ids=["Absent", "Absent()", "Unknown", "Unknown()"])
def test_the_answer_of_a_lookup_from_a_call_is_in_doubt(world: World, answer: Any) -> None:
    declare(world, lambda: answer, is_async=True)
    world.orders(1)
    world.settled()
    name = answer.__name__ if isinstance(answer, type) else type(answer).__name__
    assert f"the call returned {name}, which is an answer of a lookup" in (world.attempt().error or "")
    assert world.attempt().unsure
    assert world.order().status == "placed"


def test_of_a_call_for_many_as_well(world: World) -> None:
    service = ExternalService("service")
    answers = {1: "r1", 2: NotDone("no"), 3: Absent(), 4: RuntimeError("dead"), 5: Lazy()}

    @service.call_many(size=10, in_doubt=InDoubt.hold(), retry=ONCE)
    def ask(orders: Sequence[Order]) -> list[str]:
        return [answers[order.id] for order in orders]  # type: ignore[misc]

    @world.app.on(Order, Order.status == "placed", call=ask)
    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"

    world.orders(5)
    world.settled()
    assert {one.record: one.unsure for one in world.attempts()} == {"2": False, "3": True, "4": True, "5": True}
    assert world.order(1).status == "paid"


def test_a_call_for_many_that_forgets_await_has_no_outcome_for_any(world: World) -> None:
    service = ExternalService("service")

    @service.call_many(size=10, in_doubt=InDoubt.hold(), retry=ONCE)
    def ask(orders: Sequence[Order]) -> list[str]:
        return post("all")  # type: ignore[return-value]

    @world.app.on(Order, Order.status == "placed", call=ask)
    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"

    world.orders(3)
    world.settled()
    assert ["the coroutine post that was never awaited" in (one.error or "") for one in world.attempts()] == [True] * 3


@pytest.mark.parametrize("what", ["coroutine", "NotDone"])
def test_a_lookup_that_forgets_await_knows_nothing(world: World, what: str) -> None:
    answers: list[Any] = [post("x") if what == "coroutine" else NotDone("no")]

    def fails() -> str:
        raise RuntimeError("the answer was lost")

    ask = declare(
        world, fails, is_async=False, policy=InDoubt.lookup(settle_after=timedelta(seconds=1)), retry=Retry(first=ms(1), longest=ms(1))
    )
    seen: list[int] = []

    @ask.lookup
    def looked(order: Order) -> str | Absent | Unknown:
        seen.append(1)
        return answers.pop(0) if answers else "r1"

    world.orders(1)
    world.worker()
    until(lambda: bool(seen))
    world.forward(120)
    until(lambda: world.order().status == "paid")
    assert world.order().receipt == "r1"


def test_a_handler_that_returns_a_coroutine_fails_and_keeps_nothing(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", retry=ONCE)
    def paid(order: Order) -> None:
        order.status = "paid"
        if order.id == 2:
            return post("mail")  # type: ignore[return-value]
        return None

    world.orders(3)
    world.settled()
    assert "the handler returned the coroutine post that was never awaited" in (world.attempt().error or "")
    assert [world.order(number).status for number in (1, 2, 3)] == ["paid", "placed", "paid"]


def test_so_does_a_tick(world: World) -> None:
    @world.app.every("* * * * *", retry=ONCE, missed="latest")
    def swept() -> None:
        return post("mail")  # type: ignore[return-value]

    world.there()
    world.settled()
    world.forward(120)
    world.settled()
    assert "the handler returned the coroutine post" in (world.attempt().error or "")


def test_prepare_that_returns_a_coroutine_makes_no_call(world: World) -> None:
    called: list[Any] = []
    service = ExternalService("service")

    @service.call(in_doubt=InDoubt.hold(), retry=ONCE)
    async def ask(order: str) -> str:
        called.append(order)
        return "r1"

    def prepared(order: Order) -> str:
        return post("x")  # type: ignore[return-value]

    @world.app.on(Order, Order.status == "placed", call=ask, prepare=prepared)
    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"

    world.orders(1)
    world.worker()
    until(lambda: world.states() in (["failed"], ["held"]))
    assert "`prepare` returned the coroutine post" in (world.attempt().error or "")
    assert called == []


def test_what_is_async_is_refused_where_nothing_is_awaited(sqlite_world: World) -> None:
    app, service = sqlite_world.app, ExternalService("service")

    @service.call(in_doubt=InDoubt.hold())
    async def ask(order: str) -> str:
        return "r1"

    async def prepared(order: Order) -> str:
        return "x"

    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"

    with pytest.raises(DeclarationError, match="prepared is async"):
        app.on(Order, Order.status == "placed", call=ask, prepare=prepared)(paid)  # type: ignore[misc]


def test_a_test_of_not_done_that_forgets_await_says_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def told(error: Exception) -> bool:
        return False

    def forgets(error: Exception) -> Any:
        return told(error)

    service = ExternalService("service", not_done=[forgets])

    @service.call(in_doubt=InDoubt.hold(), retry=ONCE)
    def ask(order: Order) -> str:
        raise RuntimeError("the answer was lost")

    @world.app.on(Order, Order.status == "placed", call=ask)
    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"

    world.orders(1)
    world.settled()
    assert world.attempt().unsure, "a coroutine is true, and the call would be made twice"
    assert [record for record in caplog.records if vars(record).get("event") == "not_done_failed"]


# ---- whose time limit it was --------------------------------------------------------------------------------------------------------
def test_a_time_limit_of_the_calls_own_is_told_as_such(world: World) -> None:
    service = ExternalService("service")

    @service.call(in_doubt=InDoubt.hold(), timeout=CALL_LIMIT)
    async def ask(order: Order) -> str:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(600)
        return "r1"

    @world.app.on(Order, Order.status == "placed", call=ask)
    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"

    world.orders(1)
    world.settled()
    error = world.attempt().error or ""
    assert error.startswith("TimeoutError (call/test_returned.py:")
    assert error.endswith("in ask): raised within the call, before its timeout= of 50 s was over")


def test_so_is_one_of_a_call_in_a_thread(world: World) -> None:
    def limited() -> str:
        raise TimeoutError("timed out")

    declare(world, limited, is_async=False)
    world.orders(1)
    world.settled()
    error = world.attempt().error or ""
    assert error.startswith("TimeoutError: timed out (call/test_returned.py:")
    assert error.endswith("before its timeout= of 50 s was over")


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_our_own_is_told_as_ours(world: World, many: bool) -> None:
    service = ExternalService("service")
    how: Any = {"in_doubt": InDoubt.hold(), "timeout": ms(20)}
    if many:

        @service.call_many(size=5, **how)
        async def ask(orders: Sequence[Order]) -> list[str]:
            await asyncio.sleep(600)
            return []
    else:

        @service.call(**how, name="ask")
        async def ask_one(order: Order) -> str:
            await asyncio.sleep(600)
            return "r1"

        ask = ask_one

    @world.app.on(Order, Order.status == "placed", call=ask)
    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"

    world.orders(1)
    world.settled()
    assert world.attempt().error == "timed out after 0.02 s"

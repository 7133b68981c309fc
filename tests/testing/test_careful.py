"""A record whose worker ended twice is called alone: the lab's worker waits for that call, and takes up the others after it."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from groundstate import App, ExternalService, InDoubt, Store
from groundstate.testing import Lab, runner
from tests.testing.shops import NOWHERE, Base, Order


@pytest.mark.parametrize("plan", ["die@60 die@160", "die@80 die@200"])
def test_a_reaction_without_a_call_that_waits_for_a_suspects_call_is_done_in_a_few_crossings(
    plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CLEAN_MOST", 3000)
    app = App("lab-suspects", Store(NOWHERE, Base))

    @ExternalService("desk").call(in_doubt=InDoubt.repeat())
    async def push(order: Order) -> str:
        raise AssertionError(order)

    @app.on(Order, Order.status == "placed", call=push)
    def pushed(order: Order, outcome: str) -> None:
        order.status = outcome

    @app.on(Order, Order.mailed == "wanted")
    def mailed(order: Order) -> None:
        order.mailed = "yes"

    def wants_mail(session: Session) -> None:
        session.get_one(Order, 1).mailed = "wanted"

    with Lab() as lab:
        lab.fake(push, "pushed")
        lab.meanwhile(wants_mail)
        found = lab.crash_everywhere(app, Order(id=1), only=plan)
    assert found.crossings < 3000

"""A handler that ends our transaction, in some way: its record alone fails, and nothing that was written beside is there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import ExternalService, InDoubt
from groundstate.engine.rows import limited_logging
from tests.engine.kit import Base, Order
from tests.engine.sql.test_transaction_kept_open import ways
from tests.others_go_on.conftest import ONCE, Beside, a_world


class Books(DeclarativeBase): ...


class Line(Books):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    of_order: Mapped[int]


@pytest.fixture
def beside(database_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Beside]:
    with a_world(database_url, caplog, Base, Books) as made:
        yield made


def are_written_once(beside: Beside) -> None:
    with beside.session() as session:
        lines = Counter(session.scalars(select(Line.of_order)))
    assert (set(lines), set(lines.values())) == (beside.done(), {1})


@pytest.mark.parametrize("by_a_call", [False, True], ids=["without_a_call", "of_an_outcome"])
def test_a_handler_ends_our_transaction(beside: Beside, by_a_call: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_logging, "LINES_MOST", 100)  # each of them is looked for in the log
    some = dict(zip(range(3, 1_000, 3), ways(beside)[::3], strict=False))  # some of them; test_kept_open has each
    beside.ones = tuple(some)

    def done(order: Order, session: Session, *_outcome: str) -> None:
        order.status = "done"
        session.add(Line(of_order=order.id))
        session.flush()
        if order.id in some:
            some[order.id](session)

    @ExternalService("desk", limit=50).call(in_doubt=InDoubt.hold(), retry=ONCE)
    async def ask(order: Order) -> str:
        return "receipt"

    def concluded(order: Order, outcome: str, session: Session) -> None:
        done(order, session, outcome)

    def plainly(order: Order, session: Session) -> None:
        done(order, session)

    if by_a_call:
        beside.app.on(Order, Order.status == "placed", name="done", call=ask)(concluded)
    else:
        beside.app.on(Order, Order.status == "placed", name="done", retry=ONCE)(plainly)
    beside.go_on("StateRefusedError", event="outcome_held" if by_a_call else "handler_failed")
    are_written_once(beside)

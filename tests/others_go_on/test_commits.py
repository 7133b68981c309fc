"""A record of which the database refuses the COMMIT alone, by a constraint that is deferred: no savepoint sees it, and the others go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import ForeignKey, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import ExternalService, InDoubt
from tests.engine.kit import CALL_LIMIT, Base
from tests.others_go_on.conftest import ONCE, ONE, Beside, a_world

REFUSED = "its commit was refused"
NOBODY = 404


class Ledger(DeclarativeBase): ...


class Account(Ledger):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)


class Bill(Ledger):
    __tablename__ = "bills"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    account: Mapped[int | None] = mapped_column(ForeignKey(Account.id, deferrable=True, initially="DEFERRED"))


@pytest.fixture
def beside(database_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Beside]:
    engine = create_engine(database_url)

    @event.listens_for(engine, "connect")
    def _(connection: Any, _record: object) -> None:
        if engine.dialect.name == "sqlite":
            connection.execute("PRAGMA foreign_keys=ON")

    with a_world(engine, caplog, Base, Ledger, kind=Bill) as made:
        yield made


def blame_nobody(bill: Any) -> None:
    bill.account = NOBODY


def test_a_record_whose_commit_is_refused_is_held_and_the_others_are_carried_out(beside: Beside) -> None:
    beside.handled(blame_nobody)
    beside.go_on(REFUSED, event="handler_failed")
    assert beside.told("turn_failed") == beside.told("batch_failed") == []
    beside.lives[0].quiet()


def test_an_outcome_whose_commit_is_refused_is_held_and_the_others_are_concluded(beside: Beside) -> None:
    @ExternalService("desk").call(in_doubt=InDoubt.repeat(), retry=ONCE, timeout=CALL_LIMIT)
    async def ask(_bill: Bill) -> str:
        return "receipt"

    @beside.app.on(Bill, Bill.status == "placed", name="done", call=ask)
    def done(bill: Bill, _outcome: str) -> None:
        bill.status, bill.account = "done", NOBODY if bill.id == ONE else None

    beside.go_on(REFUSED, event="outcome_held")
    assert beside.told("turn_failed") == []
    beside.lives[0].quiet()

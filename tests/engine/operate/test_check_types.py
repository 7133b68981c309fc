"""`check` and `pending --states` go through columns of every usual type, in conditions and as `per=` and `in_order=`."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Double, Float, Integer, Numeric, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import ExternalService, InDoubt, InOrder, UtcDateTime
from groundstate.engine.operate.check import check_database
from groundstate.engine.operate.unanswered_states import find_unanswered_states
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from tests.engine.kit import World


class Tier(enum.Enum):
    GOLD = "g"
    IRON = "i"


class Cents(TypeDecorator[Decimal]):
    impl = Numeric(12, 4)
    cache_ok = True

    @property
    def python_type(self) -> type:
        return Decimal


class Base(DeclarativeBase):
    pass


class Bill(Base):
    __tablename__ = "bills"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2), default=Decimal("1.50"))
    number: Mapped[float] = mapped_column(Numeric(12, 2, asdecimal=False), default=1.5)
    cents: Mapped[Decimal] = mapped_column(Cents, default=Decimal("1.5"))
    rate: Mapped[float] = mapped_column(Float, default=1.5)
    exact: Mapped[Decimal] = mapped_column(Double(asdecimal=True), default=Decimal("1.5"))
    count: Mapped[int] = mapped_column(Integer, default=1)
    text: Mapped[str] = mapped_column(String, default="a")
    tier: Mapped[Tier] = mapped_column(default=Tier.GOLD)
    gift: Mapped[bool] = mapped_column(default=True)
    day: Mapped[date] = mapped_column(default=date(2026, 1, 1))
    tenant: Mapped[uuid.UUID] = mapped_column(default=uuid.uuid4)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=lambda: datetime(2026, 1, 1, tzinfo=UTC))


NAMES = ["amount", "number", "cents", "rate", "exact", "count", "text", "tier", "gift", "day", "tenant", "at"]
EXACT = [name for name in NAMES if name not in ("number", "rate", "exact")]  # a float tells no part and no line


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, Base)
    yield made
    made.close()


def looked_at(world: World) -> tuple[list[str], list[str | None]]:
    """The kinds of what `check` finds, and the reasons that `pending --states` gives for what it did not look at."""
    database = connect.open_store(connect.resolve_settings(world.url, None, None, "lossy"))[0]
    try:
        questions = [ConditionQuery(spec, database) for spec in world.app.reactions.values()]
        kinds = [one.kind for one in check_database(database, questions, [Base.metadata])]
        with database.reading() as connection:
            return kinds, [one.why for one in find_unanswered_states(connection, questions, [])]
    finally:
        database.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_condition_that_compares_it_is_looked_at(world: World, name: str) -> None:
    value: Any = {"tenant": uuid.uuid4(), "tier": Tier.IRON, "text": "b", "gift": False, "day": date(2026, 2, 2)}.get(name, 7)
    clause = getattr(Bill, name) == (datetime(2026, 2, 2, tzinfo=UTC) if name == "at" else value)

    @world.app.on(Bill, Bill.status == "new", ~clause)
    def paid(bill: Bill) -> None:
        bill.status = "paid"

    @world.app.on(Bill, Bill.status == "open", clause)
    def opened(bill: Bill) -> None:
        bill.status = "new"

    world.add(Bill(id=1))
    kinds, whys = looked_at(world)
    assert "stored" not in kinds
    assert [why for why in whys if why is not None] == []


@pytest.mark.parametrize("name", EXACT)
def test_a_part_or_a_line_by_it_is_looked_at(world: World, name: str) -> None:
    @ExternalService("bank", limit_per=2).call(in_doubt=InDoubt.repeat())
    def charge(bill: Bill) -> str:
        return ""

    @world.app.on(Bill, Bill.status == "new", call=charge, per=getattr(Bill, name))
    def paid(bill: Bill, outcome: str) -> None:
        bill.status = "paid"

    @world.app.on(Bill, Bill.status == "paid", in_order=InOrder(by=getattr(Bill, name)))
    def booked(bill: Bill) -> None:
        bill.status = "booked"

    world.add(Bill(id=1))
    assert "stored" not in looked_at(world)[0]

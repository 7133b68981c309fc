"""Small apps that are right: one record, one or two reactions, each with what the lab is told of it. Faults are planted elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import Absent, App, ExternalService, IdempotencyKey, InDoubt, Reaction, Retry, Store, Unknown
from groundstate.testing import Client, Clock, Lab

SETTLE_AFTER = timedelta(seconds=40)
TIMEOUT = timedelta(seconds=20)
HOUR = timedelta(hours=1)
RETRY = Retry(first=timedelta(seconds=20), times=4)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    receipt: Mapped[str | None] = mapped_column(default=None)
    wish: Mapped[str | None] = mapped_column(default=None)
    round: Mapped[int] = mapped_column(default=1)
    stock: Mapped[int] = mapped_column(default=1)


class Parcel(Base):
    __tablename__ = "parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    order: Mapped[int]


Act = Callable[[Session], None]
Check = Callable[[Session, list[Any]], None]  # it is told what was done outside


@dataclass(eq=False)
class Case:
    """An app with its rows, its fakes, what others do meanwhile, and what its author asserts."""

    app: App
    calls: Sequence[Any] = ()
    rows: Callable[[], list[object]] = lambda: [Order(id=1)]
    meanwhile: Sequence[Act] = ()
    always: Check | None = None
    at_the_end: Check | None = None
    may_fail: Sequence[str] = ()
    through: Callable[[Client], Any] | None = None
    answer: Callable[[Any], Any] | None = None  # of the service; None: `answered`
    clock: Callable[[Clock], None] = lambda _clock: None  # what the lab's clock is told

    def run(self, lab: Lab, **how: Any) -> None:
        """Gives the lab the fakes and what others do, and crashes the app."""
        self.clock(lab.clock)
        ledgers = [lab.fake(call, self.answer or answered, through=self.through) for call in self.calls]
        for act in self.meanwhile:
            lab.meanwhile(act)

        def asserted(check: Check | None) -> Act | None:
            return None if check is None else lambda session: check(session, [one for ledger in ledgers for one in ledger.effects])

        lab.crash_everywhere(
            self.app, *self.rows(), always=asserted(self.always), at_the_end=asserted(self.at_the_end), may_fail=self.may_fail, **how
        )


def answered(order: Any) -> str:
    """What the gateway answers: another thing for each order and round."""
    return f"receipt {order.id}/{order.round}"


def order(session: Session) -> Order:
    """The first order."""
    return session.get_one(Order, 1)


# ---- one charge, by each policy ---------------------------------------------------------------------------------------------------
def charging(name: str, in_doubt: InDoubt) -> tuple[App, Any, Reaction[Order, str, ...]]:
    """An order that is charged, and then paid."""
    app = App(f"planted-{name}", Store("sqlite:///planted.db", Base))
    bank = ExternalService("bank")

    @bank.call(in_doubt=in_doubt, timeout=TIMEOUT, retry=RETRY)
    def charge(order: Order, key: IdempotencyKey) -> str:
        raise AssertionError("the lab's fake is called instead")

    if in_doubt.kind == "lookup":

        @charge.lookup
        def find(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
            raise AssertionError("the lab's fake is asked instead")

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    return app, charge, paid


ASK = InDoubt.lookup(settle_after=SETTLE_AFTER)
SAME_KEY = InDoubt.same_key(kept_for=timedelta(hours=24), settle_after=SETTLE_AFTER)


def simple(name: str, in_doubt: InDoubt, **more: Any) -> Case:
    """The case of one charge."""
    app, charge, _ = charging(name, in_doubt)
    return Case(app, [charge], **more)


ASKED = simple("asked", ASK)
KEYED = simple("keyed", SAME_KEY)
HELD = simple("held", InDoubt.hold())
AGAIN = simple("repeat", InDoubt.repeat())


def nothing_is_left(session: Session, _effects: list[Any]) -> None:
    assert not session.execute(text("SELECT 1 FROM groundstate_attempt")).all(), "a person is asked, and nothing went wrong"


UNTROUBLED = simple("untroubled", ASK, at_the_end=nothing_is_left)


# ---- others on the same record ------------------------------------------------------------------------------------------------------
def _cancelled_while_charged() -> Case:
    """A person cancels the order, by its status, whenever they like: then it is not paid any more."""
    app, charge, _ = charging("cancelled", ASK)

    def cancels(session: Session) -> None:
        one = order(session)
        if one.status == "placed":
            one.status = one.wish = "cancelled"

    def stays_cancelled(session: Session, _effects: list[Any]) -> None:
        one = order(session)
        assert one.wish != "cancelled" or one.status == "cancelled", "a cancelled order was paid"

    return Case(app, [charge], meanwhile=[cancels], always=stays_cancelled)


def _asked_to_cancel() -> Case:
    """A reaction of the app cancels what a person wishes to be cancelled: never an order that is charged."""
    app = App("planted-wishes", Store("sqlite:///planted.db", Base))
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold(), timeout=TIMEOUT, retry=RETRY)
    def charge(order: Order, key: IdempotencyKey) -> str:
        raise AssertionError("the lab's fake is called instead")

    @app.on(Order, Order.status == "placed", Order.wish.is_(None), call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"

    @paid.overtaken
    def _(order: Order, outcome: str) -> None:
        order.status = "paid"

    @app.on(Order, Order.status == "placed", Order.wish == "cancel")
    def cancelled(order: Order) -> None:
        order.status = "cancelled"

    def wishes(session: Session) -> None:
        order(session).wish = "cancel"

    def never_both(session: Session, effects: list[Any]) -> None:
        charged = {one.id for one in effects}
        assert not any(one.id in charged for one in session.scalars(select(Order).where(Order.status == "cancelled"))), (
            "charged and cancelled"
        )

    return Case(app, [charge], rows=lambda: [Order(id=1), Order(id=2, wish="cancel")], meanwhile=[wishes], always=never_both)


CANCELLED = _cancelled_while_charged()
WISHES = _asked_to_cancel()


def _in_rounds() -> Case:
    """A subscription: charged once in each round, under a key that tells them apart."""
    app = App("planted-rounds", Store("sqlite:///planted.db", Base))
    bank = ExternalService("bank")

    @bank.call(in_doubt=SAME_KEY, timeout=TIMEOUT, retry=RETRY)
    def charge(order: Order, key: IdempotencyKey) -> str:
        raise AssertionError("the lab's fake is called instead")

    @app.on(Order, Order.status == "placed", call=charge, occurrence=[Order.round])
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    def next_round(session: Session) -> None:
        one = order(session)
        one.status, one.round = "placed", one.round + 1

    return Case(app, [charge], meanwhile=[next_round])


ROUNDS = _in_rounds()


# ---- handlers that fail -------------------------------------------------------------------------------------------------------------
def _raising() -> Case:
    """The handler of a charge has a bug: it raises after the money was taken. Held with its outcome, and called no second time."""
    app = App("planted-raising", Store("sqlite:///planted.db", Base))
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold(), timeout=TIMEOUT, retry=RETRY)
    def charge(order: Order, key: IdempotencyKey) -> str:
        raise AssertionError("the lab's fake is called instead")

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        if order.wish is None:
            raise ValueError("a bug")
        order.status, order.receipt = "paid", outcome

    def repaired(session: Session) -> None:
        order(session).wish = "repaired"

    return Case(app, [charge], meanwhile=[repaired], may_fail=["paid"])


def _packing() -> Case:
    """No call: a parcel is written for an order, as long as there is stock."""
    app = App("planted-packing", Store("sqlite:///planted.db", Base))

    @app.on(Order, Order.status == "placed", retry=RETRY)
    def packed(order: Order, session: Session) -> None:
        session.add(Parcel(order=order.id))
        session.flush()
        if order.stock == 0:
            raise ValueError("sold out")
        order.status = "packed"

    def delivered(session: Session) -> None:
        order(session).stock = 1

    def a_parcel_an_order(session: Session, _effects: list[Any]) -> None:
        parcels = len(session.scalars(select(Parcel)).all())
        assert parcels == (order(session).status == "packed"), f"{parcels} parcels of one {order(session).status} order"

    return Case(app, rows=lambda: [Order(id=1, stock=0)], meanwhile=[delivered], always=a_parcel_an_order, may_fail=["packed"])


def _stuck() -> Case:
    """A handler that makes no progress on one of two orders: that one is tried as often as its retry says, and held."""
    app = App("planted-stuck", Store("sqlite:///planted.db", Base))

    @app.on(Order, Order.status == "placed", retry=RETRY)
    def packed(order: Order) -> None:
        order.stock = order.stock + 1
        if order.wish is not None:
            order.status = "packed"

    return Case(app, rows=lambda: [Order(id=1), Order(id=2, wish="packed")], may_fail=["packed"])


RAISING = _raising()
PACKING = _packing()
STUCK = _stuck()


def _two_steps() -> Case:
    """Two reactions, one after the other, without a call; and a row that another program writes."""
    app = App("planted-steps", Store("sqlite:///planted.db", Base))

    @app.on(Order, Order.status == "placed")
    def accepted(order: Order) -> None:
        order.status = "accepted"

    @app.on(Order, Order.status == "accepted")
    def packed(order: Order) -> None:
        order.status = "packed"

    def ordered(session: Session) -> None:
        session.add(Order(id=2))

    return Case(app, meanwhile=[ordered])


STEPS = _two_steps()


def _approved() -> Case:
    """An order that must be approved before it is charged: no condition of a call holds at the start."""
    app, charge, _ = charging("approved", ASK)

    @app.on(Order, Order.status == "new")
    def approved(order: Order) -> None:
        order.status = "placed"

    return Case(app, [charge], rows=lambda: [Order(id=1, status="new")])


APPROVED = _approved()


def _forgetful() -> Case:
    """A call that went wrong is tried again about each hour, and the provider keeps a key for little more: soon it is too old."""
    app = App("planted-forgetful", Store("sqlite:///planted.db", Base))
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.same_key(kept_for=timedelta(minutes=75)), timeout=TIMEOUT, retry=Retry(first=HOUR, longest=HOUR))
    def charge(order: Order, key: IdempotencyKey) -> str:
        raise AssertionError("the lab's fake is called instead")

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    return Case(app, [charge])


FORGETFUL = _forgetful()

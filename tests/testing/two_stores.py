"""An app whose records lie in two databases."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import App, Store
from tests.testing.shops import NOWHERE, Base, Order


class Money(DeclarativeBase): ...


class Invoice(Money):
    __tablename__ = "invoices"
    id: Mapped[int] = mapped_column(primary_key=True)
    paid: Mapped[bool] = mapped_column(default=False)


def two_stores() -> App:
    """A reaction in each."""
    app = App("lab-two-stores", Store(NOWHERE, Base), Store("sqlite:///never-opened-either.db", Money))

    @app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"

    @app.on(Invoice, Invoice.paid.is_(False))
    def settled(invoice: Invoice) -> None:
        invoice.paid = True

    return app

"""The grants that the docs list are enough for a worker, and no more than a reader needs lets nobody write."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import App, ExternalService, InDoubt, Store
from tests.docs.blocks import ROOT, blocks_of
from tests.patience import HANG


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")


def app_at(url: str) -> App:
    app = App("rights", Store(url, Base))

    @ExternalService("rights").call(in_doubt=InDoubt.repeat())
    async def send(order: Order) -> int:
        return order.id

    @app.on(Order, Order.status == "placed", call=send)
    def sent(order: Order, outcome: int) -> None:
        order.status = "sent"

    @app.on(Order, Order.status == "sent")
    def closed(order: Order) -> None:
        order.status = "closed"

    return app


def test_the_rights_of_the_docs_are_enough(postgres_url: str) -> None:
    grants = next(
        block.code for block in blocks_of(ROOT / "docs" / "operating.md") if block.language == "sql" and "app_worker" in block.code
    )
    roles = ("app_worker", "app_reader")
    app_at(postgres_url).init(tables=True, accept=True)
    owner = create_engine(make_url(postgres_url).set(drivername="postgresql+psycopg"))
    try:
        with owner.begin() as connection:
            for role in roles:
                connection.execute(text(f"create role {role} login"))
            connection.execute(text(grants))
        with Session(owner) as session, session.begin():
            session.add_all([Order() for _ in range(3)])

        rested = app_at(_as(postgres_url, "app_worker")).run_until_idle(HANG)

        assert (rested.in_doubt, rested.failed, rested.held) == (0, 0, 0)
        reader = create_engine(make_url(_as(postgres_url, "app_reader")).set(drivername="postgresql+psycopg"))
        with reader.connect() as connection:
            assert connection.execute(text("select distinct status from orders")).scalars().all() == ["closed"]
            with pytest.raises(ProgrammingError, match="permission denied"):
                connection.execute(text("update orders set status = 'placed'"))
        reader.dispose()
    finally:
        with owner.begin() as connection:
            for role in roles:
                connection.execute(text(f"drop owned by {role}"))
                connection.execute(text(f"drop role {role}"))
        owner.dispose()


def _as(url: str, role: str) -> str:
    return make_url(url).set(username=role).render_as_string(hide_password=False)

"""A database that takes what is sent and never answers: of several stores the others go on, and it is said which is silent."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from sqlalchemy import Engine, create_engine, func, make_url, select
from sqlalchemy.orm import Session

from groundstate import App, Store
from groundstate.app.declared import databases_of
from groundstate.cli import pending
from groundstate.cli.common import StoreReader
from groundstate.cli.health import Health
from groundstate.store import postgres
from tests.engine.kit import Base, Order, until
from tests.others_go_on.conftest import OTHERS
from tests.postgres.test_silent import Bank, Muffler, Payment, _soon, muffled

__all__ = ["_soon"]


def test_one_of_two_databases_is_silent(
    postgres_url: str, sqlite_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres._CONNECT, "connect_timeout", 2)  # of the reports, in seconds
    with ExitStack() as stack:
        muffler = Muffler(make_url(postgres_url).port or 0)
        stack.callback(muffler.close)
        app = App("beside-silence", Store(sqlite_url, Base, name="shop"), Store(muffler.before(postgres_url), Bank, name="bank"))

        @app.on(Order, Order.status == "placed")
        def done(order: Order) -> None:
            order.status = "done"

        @app.on(Payment, Payment.booked.is_(False))
        def booked(payment: Payment) -> None:
            payment.booked = True

        app.init(tables=True, accept=True)
        shop = create_engine(sqlite_url)
        stack.callback(shop.dispose)
        app.start()
        stack.callback(app.stop)
        health = Health(app)
        health.started = True
        until(lambda: all(one.ready for one in health.check_stores(60.0)))
        with muffled(muffler):
            until(lambda: "does not answer" in (health.check_stores(60.0)[1].why or ""), lambda: health.check_stores(60.0))
            with Session(shop) as session, session.begin():
                session.add_all([Order() for _ in range(OTHERS)])
            until(lambda: _done(shop) == OTHERS)
            assert [one.ready for one in health.check_stores(60.0)] == [True, False]
            asked = StoreReader(databases_of(app))
            ((store, report),) = asked.read_each(lambda store: pending.read_pending(app, store))
            assert (store.label, report.to_do[0].rows) == ("shop", 0)
            assert [one.store for one in asked.unusable_stores_json["unusable"]] == ["bank"]
            assert asked.unusable_stores_json["unusable"][0].message.startswith("the database does not answer: ")
        told = [one for one in caplog.records if getattr(one, "event", "") == "database_trouble"]
        assert {getattr(one, "store", None) for one in told} == {"bank"}


def _done(engine: Engine) -> int:
    with Session(engine) as session:
        return session.execute(select(func.count()).select_from(Order).where(Order.status == "done")).scalar_one()

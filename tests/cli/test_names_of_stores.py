"""Whoever names a store, names it alike: the log, commands, probes, metrics and spans, of a store with a name and of one without."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine, make_url, text

from groundstate.app.declared import databases_of
from groundstate.cli.common import find_app
from groundstate.cli.health import Health, StuckLog
from groundstate.cli.http_endpoint import Endpoint
from groundstate.engine.worker.loop_iteration import LoopIteration
from groundstate.telemetry.traces import trace
from tests.cli.conftest import Said, groundstate, module_named
from tests.patience import HANG, until

TEXT = """
from datetime import timedelta
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from groundstate import App, ExternalService, InDoubt, Store


class Shop(DeclarativeBase): ...


class Bank(DeclarativeBase): ...


class Order(Shop):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    status: Mapped[str] = mapped_column(default="placed")


class Payment(Bank):
    __tablename__ = "payments"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    status: Mapped[str] = mapped_column(default="placed")


shop, bank = Store(URL[0], Shop, name="shop"), Store(URL[1], Bank)
app = App(NAME, shop, bank)
post = ExternalService("post")


@post.call(in_doubt=InDoubt.hold())
def send(order: Order) -> str:
    return "sent"


@post.call(in_doubt=InDoubt.hold())
def fail(payment: Payment) -> str:
    raise ConnectionResetError("in the middle")


@app.on(Order, Order.status == "placed", call=send)
def sent(order: Order, outcome: str) -> None:
    order.status = outcome


@app.on(Payment, Payment.status == "placed", call=fail)
def failed(payment: Payment, outcome: str) -> None: ...


@app.on(Order, Order.status == "sent")
def packed(order: Order) -> None:
    order.status = "packed"


@app.on(Payment, Payment.status == "booked")
def checked(payment: Payment) -> None:
    payment.status = "checked"


@app.every(timedelta(days=1), store=shop, name="of_shop")
def _(session: Session) -> None: ...


@app.every(timedelta(days=1), store=bank, name="of_bank")
def _(session: Session) -> None: ...
"""


class Ends(BaseException):
    """What no worker handles."""


class Two:
    """The app of two stores in this process, and what it says of them while it is carried out, and after."""

    def __init__(self, folder: Path, urls: Sequence[str]) -> None:
        self.urls = urls
        _, self.module = module_named(folder, urls, TEXT)  # type: ignore[arg-type]  # two URLs, for two stores
        self.app = find_app(f"{self.module}:app")
        url = make_url(urls[1])
        at = "" if url.host is None else f"{url.host}{'' if url.port is None else f':{url.port}'}"
        self.names = {"shop", f"{url.get_backend_name()}://{at}/{url.database}"}
        self.health = Health(self.app)
        self.endpoint = Endpoint(self.app, self.health, "127.0.0.1:0", 3600)

    def run(self, *arguments: str) -> Said:
        said = groundstate(*arguments, "--app", f"{self.module}:app")
        assert said.code in {0, 1}, said.err  # 1: something needs a person
        return said

    def in_json(self, *arguments: str) -> set[str]:
        """The names of stores, wherever a command says `store`."""
        return set(_stores_of(self.run(*arguments, "--json").json))

    def page(self, path: str) -> str:
        return self.endpoint.respond_to(path)[2].decode()

    def in_metrics(self) -> dict[str, set[str]]:
        """Of each metric with that label."""
        found: dict[str, set[str]] = {}
        for family in text_string_to_metric_families(self.page("/metrics")):
            for one in family.samples:
                if "store" in one.labels:
                    found.setdefault(one.name, set()).add(one.labels["store"])
        return found


def _stores_of(said: Any) -> Iterator[str]:
    if isinstance(said, dict):
        if isinstance(said.get("store"), str):
            yield said["store"]
        for one in said.values():
            yield from _stores_of(one)
    elif isinstance(said, list):
        for one in said:
            yield from _stores_of(one)


@pytest.fixture
def two(folder: Path, database_url: str) -> Iterator[Two]:
    """A named store in a file, and one without a name on each kind of store."""
    shop_url = f"sqlite:///{folder / 'shop.db'}"
    found = Two(folder, [shop_url, database_url])
    found.app.init(tables=True, accept="call")
    for part, table, status in zip(databases_of(found.app), ("orders", "payments"), ("sent", "booked"), strict=True):
        engine = create_engine(part.settings().url)
        with engine.begin() as connection:
            connection.execute(text(f"INSERT INTO {table} (id, status) VALUES (1, 'placed'), (2, '{status}')"))
        engine.dispose()
    yield found
    found.endpoint.close()
    found.app.stop()


def test_a_store_has_one_name_wherever_it_is_named(two: Two, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG, "groundstate")
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace(two.app, provider)
    assert two.in_json("plan") == two.names
    two.app.start()
    two.app.run_until_idle(HANG)
    two.health.started = True
    for command in ("status", "pending", "check"):
        assert two.in_json(command) == two.names, command
    assert two.in_json("held") | two.in_json("timers") <= two.names
    assert two.in_json("why", "orders", "1") | two.in_json("why", "payments", "1") == two.names
    assert two.in_json("why", "of_shop") | two.in_json("why", "of_bank") == two.names
    assert set(_stores_of(json.loads(two.page("/readyz")))) == two.names
    assert {one for named in two.in_metrics().values() for one in named} == two.names
    assert two.in_metrics()["groundstate_worker_up"] == two.in_metrics()["groundstate_pending_rows"] == two.names
    assert {(one.attributes or {})["groundstate.store"] for one in spans.get_finished_spans()} == two.names
    StuckLog(two.app, two.health, -1.0).log_changes()  # as if both hung
    turn, ended = LoopIteration.run_iteration, set[str]()

    def end_once(self: LoopIteration) -> None:
        if self.components.worker_state.store not in ended:
            ended.add(self.components.worker_state.store)
            raise Ends("no more turns")
        turn(self)

    monkeypatch.setattr(LoopIteration, "run_iteration", end_once)
    until(lambda: {named(one) for one in caplog.records if event(one) == "worker_replaced"} == two.names)
    of_a_store = {event(one) for one in caplog.records if named(one)}
    assert of_a_store >= {"worker_began", "attempt_kept", "worker_stuck", "worker_ended", "worker_replaced"}
    assert {named(one) for one in caplog.records if named(one)} == two.names
    assert two.names == {one.label for one in databases_of(two.app)}


def test_reports_begin_with_the_same_name(two: Two) -> None:
    for command in ("status", "pending", "check", "plan"):
        out = two.run(command).out
        assert "shop (sqlite:///" in out, command
        assert all(name in out for name in two.names), command
        assert "sqlite+pysqlite" not in out, command
        assert "psycopg" not in out, command


def named(record: logging.LogRecord) -> Any:
    return vars(record).get("store")


def event(record: logging.LogRecord) -> Any:
    return vars(record).get("event")

"""The shop over groundstate: the commands `place N` and `left`. `groundstate init` creates its tables; `groundstate run` is its worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import Absent, App, ExternalService, IdempotencyKey, InDoubt, Store, Throttled, Unknown, not_done


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int]
    status: Mapped[str] = mapped_column(default="placed", index=True)  # placed -> paid, or declined
    receipt: Mapped[str | None] = mapped_column(default=None)


@dataclass(frozen=True)
class Receipt:
    id: str


@dataclass(frozen=True)
class Declined:
    why: str


DATABASE = os.environ.get("CRASH_DATABASE", "sqlite:///crash.db")
GATEWAY = os.environ.get("CRASH_GATEWAY", "http://127.0.0.1:8001")
CAN_BE_ASKED = os.environ.get("CRASH_KIND") == "find"
app = App("crash", Store(DATABASE, Base))
bank = ExternalService(
    "bank", limit=int(os.environ.get("CRASH_CONCURRENCY", "8")), not_done=not_done.HTTPX, client=lambda: httpx.AsyncClient(base_url=GATEWAY)
)
in_doubt = InDoubt.lookup(settle_after=timedelta(seconds=3)) if CAN_BE_ASKED else InDoubt.same_key(kept_for=timedelta(hours=24))


def outcome_of_charge(charge: dict[str, Any]) -> Receipt | Declined:
    return Receipt(charge["id"]) if charge["outcome"] == "charged" else Declined(charge["why"])


@bank.call(in_doubt=in_doubt, timeout=timedelta(seconds=2))
async def charge(order: Order, key: IdempotencyKey, client: httpx.AsyncClient) -> Receipt | Declined:
    answer = await client.post("/charges", json={"key": key, "order": order.id, "amount": order.total})
    if answer.status_code == 503:
        raise Throttled(timedelta(seconds=int(answer.headers["retry-after"])))
    return outcome_of_charge(answer.json())


async def charge_lookup(order: Order, key: IdempotencyKey, client: httpx.AsyncClient) -> Receipt | Declined | Absent | Unknown:
    answer = await client.get("/charges", params={"key": key})
    return outcome_of_charge(answer.json()) if answer.is_success else Absent() if answer.status_code == 404 else Unknown()


if CAN_BE_ASKED:
    charge.lookup(charge_lookup)


@app.on(Order, Order.status == "placed", call=charge)
def paid(order: Order, outcome: Receipt | Declined) -> None:
    if isinstance(outcome, Receipt):
        order.status, order.receipt = "paid", outcome.id
    else:
        order.status = "declined"


def place_orders(orders: int, pause_s: float) -> None:
    engine = create_engine(DATABASE)
    for number in range(1, orders + 1):
        with Session(engine) as session, session.begin():
            session.add(Order(id=number, total=4900))
        time.sleep(pause_s)
    engine.dispose()


def list_unfinished() -> dict[int, str]:
    """Return what `groundstate pending` lists, by order: attempts with their standing, and rows without an attempt."""
    pending = ["pending", "--app", "benchmarks.crash.ours:app", "--json", "--limit", "100000"]
    said = subprocess.run([sys.executable, "-m", "groundstate.cli.main", *pending], stdout=subprocess.PIPE, check=True).stdout
    report = json.loads(said)["stores"][0]["report"]
    attempts = {int(one["record"]): one["standing"] for kind in ("in_doubt", "failed", "held") for one in report[kind]}
    if not any(one["rows"] for one in report["to_do"]):
        return attempts
    engine = create_engine(DATABASE)
    with Session(engine) as session:
        waiting = session.scalars(select(Order.id).where(Order.status == "placed")).all()
    engine.dispose()
    return dict.fromkeys(waiting, "to be carried out") | attempts


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["place", orders, pause_s]:
            place_orders(int(orders), float(pause_s))
        case ["left"]:
            print(json.dumps(list_unfinished()))

# ruff: noqa: D101, D103, ARG001 - this is how a user writes, and the framework supplies arguments by position

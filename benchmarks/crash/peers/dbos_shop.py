"""The shop over DBOS: `setup`, `place N`, `work` and `left`.

Two ways, by CRASH_WAY. `plain` is as "Workflows", "Steps", "Queues" and "Transactions & Datasources" (Python tutorials) say: the call is
a step with retries, the row is written by a transaction of a datasource (exactly once), and the workflow is enqueued inside the
transaction that writes the order. One server without Conductor: its next life recovers what the last one left ("Workflow Recovery").
`waits` adds a recorded step before the call, by which a recovered workflow knows that a call may be on its way, and waits before it
asks. Their docs do not say so; it is what a careful user can write.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

import bank
from dbos import DBOS, DBOSClient, SQLAlchemyDatasource
from sqlalchemy import create_engine, text

DATABASE = os.environ["CRASH_DATABASE"].replace("postgresql://", "postgresql+psycopg://")
WAITS = os.environ["CRASH_WAY"] == "waits"
LISTED = ["ENQUEUED", "DELAYED", "PENDING", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]

# Without an executor_id the process is always "local", so that at each start it recovers what the one before has left.
DBOS(config={"name": "shop", "system_database_url": DATABASE, "log_level": "WARNING"})
orders = SQLAlchemyDatasource.create(DATABASE)
begun_in_this_process: set[int] = set()


@DBOS.step()
def begin(order_id: int) -> None:
    begun_in_this_process.add(order_id)


@DBOS.step(retries_allowed=True, max_attempts=10, interval_seconds=5, backoff_rate=1)
def charge(order_id: int, total: int) -> dict[str, Any]:
    if WAITS and order_id not in begun_in_this_process:
        time.sleep(5)
        begun_in_this_process.add(order_id)
    return bank.charge(order_id, total)


@orders.transaction()
def settle(order_id: int, status: str, receipt: str | None) -> None:
    change = text("UPDATE orders SET status = :status, receipt = :receipt WHERE id = :id")
    orders.sql_session().execute(change, {"status": status, "receipt": receipt, "id": order_id})


@DBOS.workflow()
def charge_order(order_id: int, total: int) -> None:
    if WAITS:
        begin(order_id)
    settle(order_id, *bank.settled(charge(order_id, total)))


def launch_dbos() -> None:
    DBOS.launch()
    DBOS.register_queue("charges", worker_concurrency=int(os.environ["CRASH_CONCURRENCY"]))


def place_orders(count: int, pause_s: float) -> None:
    engine, client = create_engine(DATABASE), DBOSClient(system_database_url=DATABASE)
    for order_id in range(1, count + 1):
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO orders (id, total, status) VALUES (:id, 4900, 'placed')"), {"id": order_id})
            options = {"queue_name": "charges", "workflow_name": "charge_order", "workflow_id": f"order-{order_id}"}
            client.enqueue_in_transaction(connection, options, order_id, 4900)
        time.sleep(pause_s)


def list_unfinished() -> dict[int, str]:
    """Return the workflows that `dbos workflow list` shows and that have not succeeded."""
    client = DBOSClient(system_database_url=DATABASE)
    return {int(one.workflow_id.rpartition("-")[2]): one.status for one in client.list_workflows(status=LISTED, name="charge_order")}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["setup"]:
            launch_dbos()
            DBOS.destroy()
        case ["place", count, pause_s]:
            place_orders(int(count), float(pause_s))
        case ["work"]:
            launch_dbos()
            threading.Event().wait()
        case ["left"]:
            print(json.dumps(list_unfinished()))

# ruff: noqa: D103 - this is how a user writes

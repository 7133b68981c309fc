"""The shop over Celery with Redis: the commands `place N` and `left`. `celery -A celery_shop worker` is its worker.

CRASH_WAY chooses the settings. `early` are Celery's defaults. `late` are those that its user guide gives for tasks that may be done twice:
acks_late with task_reject_on_worker_lost ("Tasks"), and worker_prefetch_multiplier=1 ("Optimizing", prefetch limits).
"""

from __future__ import annotations

import json
import os
import sys
import time

import bank
import httpx
import psycopg
import redis
from celery import Celery

DATABASE, REDIS = os.environ["CRASH_DATABASE"], os.environ["CRASH_REDIS"]
VISIBILITY_S = 60  # seconds, longer than any task and countdown here; the default of 3,600 would make the benchmark wait an hour

app = Celery("celery_shop", broker=REDIS, backend=REDIS)
# "Using Redis" (backends and brokers): all three must be set. With the default throttle of 10, messages are restored every 100 s.
app.conf.broker_transport_options = {"visibility_timeout": VISIBILITY_S, "unacked_restore_throttle": 1}
app.conf.result_backend_transport_options = {"visibility_timeout": VISIBILITY_S}
app.conf.visibility_timeout = VISIBILITY_S
if os.environ["CRASH_WAY"] == "late":
    app.conf.task_acks_late = True
    app.conf.task_reject_on_worker_lost = True
    app.conf.worker_prefetch_multiplier = 1


# "Automatic retry for known exceptions" (user guide, Tasks); 9 retries, 5 s apart, as for all contenders (default: 3, 180 s apart).
@app.task(autoretry_for=(httpx.HTTPError,), max_retries=9, default_retry_delay=5)
def charge_order(order_id: int) -> None:
    with psycopg.connect(DATABASE, autocommit=True) as connection:
        status, total = connection.execute("SELECT status, total FROM orders WHERE id = %s", [order_id]).fetchone()
        if status != "placed":  # "Ideally task functions should be idempotent"
            return
        row_values = bank.settled(bank.charge(order_id, total))
        connection.execute("UPDATE orders SET status = %s, receipt = %s WHERE id = %s", [*row_values, order_id])


def place_orders(orders: int, pause_s: float) -> None:
    """Commit each order, and then send its task, as "Database transactions" (user guide, Tasks) says."""
    with psycopg.connect(DATABASE) as connection:
        for order_id in range(1, orders + 1):
            with connection.transaction():
                connection.execute("INSERT INTO orders (id, total, status) VALUES (%s, 4900, 'placed')", [order_id])
            charge_order.apply_async((order_id,), task_id=f"order-{order_id}")
            time.sleep(pause_s)


def list_unfinished() -> dict[int, str]:
    """Return the queued tasks, the tasks that were delivered and not acknowledged, and the failed tasks in the result backend."""
    store = redis.Redis.from_url(REDIS)
    found = {number: "FAILURE" for number, state in _read_failed_results(store) if state == "FAILURE"}
    found |= {_order_of_message(json.loads(message)): "in the queue" for message in store.lrange("celery", 0, -1)}
    return found | {_order_of_message(json.loads(message)[0]): "unacked" for message in store.hvals("unacked")}


def _read_failed_results(store: redis.Redis) -> list[tuple[int, str]]:
    return [(int(key.rpartition(b"-")[2]), json.loads(store.get(key))["status"]) for key in store.scan_iter("celery-task-meta-*")]


def _order_of_message(message: dict[str, dict[str, str]]) -> int:
    return int(message["headers"]["id"].rpartition("-")[2])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["place", orders, pause_s]:
            place_orders(int(orders), float(pause_s))
        case ["left"]:
            print(json.dumps(list_unfinished()))

# ruff: noqa: D103 - this is how a user writes

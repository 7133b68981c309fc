"""Timers over Celery with Redis: `place FIRST COUNT DUE EACH`; its worker is `celery -A celery_timers worker`.

As "ETA and Countdown" (user guide, Calling Tasks) says; the row is committed, then the task is sent, as "Database transactions" (user
guide, Tasks) says. acks_late, since a reminder may be written twice and must not be lost. The visibility timeout is longer than any eta,
as "Using Redis" (Caveats) demands.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime

import psycopg
from celery import Celery

DATABASE, REDIS, VISIBILITY_S = os.environ["TIMERS_DATABASE"], os.environ["TIMERS_REDIS"], int(os.environ["TIMERS_VISIBILITY_S"])

app = Celery("celery_timers", broker=REDIS)
app.conf.broker_transport_options = {"visibility_timeout": VISIBILITY_S, "unacked_restore_throttle": 1}
app.conf.visibility_timeout = VISIBILITY_S
app.conf.task_ignore_result = True
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True
connection: psycopg.Connection | None = None


@app.task
def remind(number: int) -> None:
    global connection
    if connection is None:  # one for each process of the pool, opened after the fork
        connection = psycopg.connect(DATABASE, autocommit=True)
    connection.execute("UPDATE timers SET done_at = clock_timestamp(), times = times + 1 WHERE id = %s", [number])


def place_timers(first: int, count: int, due: float, each: float) -> None:
    with psycopg.connect(DATABASE, autocommit=True) as own, app.producer_pool.acquire(block=True) as producer:
        for number in range(count):
            at = datetime.fromtimestamp(due + number * each, UTC)
            own.execute("INSERT INTO timers (id, due_at) VALUES (%s, %s)", [first + number, at])
            remind.apply_async((first + number,), eta=at, producer=producer)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["place", first, count, due, each]:
            place_timers(int(first), int(count), float(due), float(each))

# ruff: noqa: D103, PLW0603 - this is how a user writes

"""Timers over DBOS: `setup`, `place FIRST COUNT DUE EACH` and `work`.

Two ways, by TIMERS_WAY. `delay` is as "Delayed Execution" (Python tutorials, Queues) says: enqueued with delay_seconds, inside the
transaction that writes the row. `sleep` is as "Durable Sleep" (Python tutorials, Workflows) says: a workflow that sleeps until its time;
async, so that one which waits needs no thread. One server without Conductor: its next life recovers what the last one left.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from datetime import UTC, datetime

from dbos import DBOS, DBOSClient, SQLAlchemyDatasource
from sqlalchemy import create_engine, text

DATABASE = os.environ["TIMERS_DATABASE"].replace("postgresql://", "postgresql+psycopg://")
DELAY = os.environ["TIMERS_WAY"] == "delay"
AT_ONCE = 500
EFFECT = text("UPDATE timers SET done_at = clock_timestamp(), times = times + 1 WHERE id = :id")

# Without an executor_id the process is always "local", so that at each start it recovers what the one before has left.
DBOS(config={"name": "timers", "system_database_url": DATABASE, "log_level": "WARNING"})
POOL = {"pool_timeout": 600}  # seconds; after the default of 30, a workflow that waits for a connection fails for good
timers = SQLAlchemyDatasource.create(DATABASE, engine_kwargs=POOL)
engine = create_engine(DATABASE, **POOL)


@timers.transaction()
def effect(number: int) -> None:
    timers.sql_session().execute(EFFECT, {"id": number})


@DBOS.workflow()
def remind(number: int) -> None:
    effect(number)


def write(number: int) -> None:
    with engine.begin() as connection:
        connection.execute(EFFECT, {"id": number})


@DBOS.step()
async def effect_in_a_step(number: int) -> None:
    await asyncio.to_thread(write, number)


@DBOS.workflow()
async def sleep_and_remind(number: int, due: float) -> None:
    await DBOS.sleep_async(due - time.time())
    await effect_in_a_step(number)


def launch_dbos() -> None:
    DBOS.launch()
    DBOS.register_queue("timers")  # without worker_concurrency: it polls every second, so a limit of 8 would mean 8 timers a second


def place_timers(first: int, count: int, due: float, each: float) -> None:
    """Insert each timer in its own transaction; if all are due at once, many in one transaction."""
    client = DBOSClient(system_database_url=DATABASE)
    step = 1 if each else AT_ONCE
    for start in range(0, count, step):
        with engine.begin() as connection:
            for number in range(start, min(start + step, count)):
                at = due + number * each
                values = {"id": first + number, "at": datetime.fromtimestamp(at, UTC)}
                connection.execute(text("INSERT INTO timers (id, due_at) VALUES (:id, :at)"), values)
                options = {"queue_name": "timers", "workflow_id": f"timer-{first + number}"}
                if DELAY:
                    options |= {"workflow_name": "remind", "delay_seconds": max(at - time.time(), 0.001)}
                    client.enqueue_in_transaction(connection, options, first + number)
                else:
                    client.enqueue_in_transaction(connection, options | {"workflow_name": "sleep_and_remind"}, first + number, at)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["setup"]:
            launch_dbos()
            DBOS.destroy()
        case ["place", first, count, due, each]:
            place_timers(int(first), int(count), float(due), float(each))
        case ["work"]:
            launch_dbos()
            threading.Event().wait()

# ruff: noqa: D103 - this is how a user writes

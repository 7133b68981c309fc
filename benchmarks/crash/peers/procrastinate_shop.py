"""The shop over Procrastinate: `place N` and `left`.

As "Define a retry strategy on a task", "Retry stalled jobs" and "Using an external database connection" (how-to guides) say: retries as
in their example, their task for stalled jobs, and the job deferred inside the transaction that writes the order. Its schema and its
worker are `procrastinate schema --apply` and `procrastinate worker`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import bank
import httpx
import procrastinate
import psycopg

DATABASE = os.environ["CRASH_DATABASE"]
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=DATABASE))


@app.task(retry=procrastinate.RetryStrategy(max_attempts=10, wait=5, retry_exceptions={httpx.HTTPError}))
async def charge_order(order_id: int) -> None:
    async with await psycopg.AsyncConnection.connect(DATABASE, autocommit=True) as connection:
        found = await connection.execute("SELECT status, total FROM orders WHERE id = %s", [order_id])
        status, total = await found.fetchone()
        if status != "placed":
            return
        row_values = bank.settled(await bank.charge_async(order_id, total))
        await connection.execute("UPDATE orders SET status = %s, receipt = %s WHERE id = %s", [*row_values, order_id])


# Every minute (in their example every tenth). By default a job is stalled after 30 s without a heartbeat.
@app.periodic(cron="* * * * *")
@app.task(queueing_lock="retry_stalled_jobs", pass_context=True)
async def retry_stalled_jobs(context: procrastinate.JobContext, timestamp: int) -> None:  # noqa: ARG001
    for job in await app.job_manager.get_stalled_jobs():
        await app.job_manager.retry_job(job)


async def place_orders(orders: int, pause_s: float) -> None:
    async with app.open_async(), await psycopg.AsyncConnection.connect(DATABASE) as connection:
        for order_id in range(1, orders + 1):
            await connection.execute("INSERT INTO orders (id, total, status) VALUES (%s, 4900, 'placed')", [order_id])
            await charge_order.configure(connection=connection).defer_async(order_id=order_id)
            await connection.commit()
            await asyncio.sleep(pause_s)


async def list_unfinished() -> dict[int, str]:
    """Return the jobs that `procrastinate shell` and the job manager list and that have not succeeded."""
    async with app.open_async():
        jobs = await app.job_manager.list_jobs_async(task=charge_order.name)
        return {job.task_kwargs["order_id"]: job.status for job in jobs if job.status != "succeeded"}


def main() -> None:
    match sys.argv[1:]:
        case ["place", orders, pause_s]:
            asyncio.run(place_orders(int(orders), float(pause_s)))
        case ["left"]:
            print(json.dumps(asyncio.run(list_unfinished())))


# ruff: noqa: D103 - this is how a user writes

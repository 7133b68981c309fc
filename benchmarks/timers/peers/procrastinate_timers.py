"""Timers over Procrastinate: `place FIRST COUNT DUE EACH`; the rest is `procrastinate schema --apply` and `procrastinate worker`.

As "Schedule a job in the future", "Retry stalled jobs" and "Using an external database connection" (how-to guides) say: schedule_at, their
task for stalled jobs, and the job deferred inside the transaction that writes the row.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime

import procrastinate
import psycopg
import psycopg_pool

DATABASE = os.environ["TIMERS_DATABASE"]
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=DATABASE))
pool: psycopg_pool.AsyncConnectionPool | None = None
AT_ONCE = 500


@app.task
async def remind(number: int) -> None:
    global pool
    if pool is None:
        pool = psycopg_pool.AsyncConnectionPool(DATABASE, open=False, max_size=8, kwargs={"autocommit": True})
        await pool.open()
    async with pool.connection() as connection:
        await connection.execute("UPDATE timers SET done_at = clock_timestamp(), times = times + 1 WHERE id = %s", [number])


# Every tenth minute as in their example, and 30 s without a heartbeat by default.
@app.periodic(cron="*/10 * * * *")
@app.task(queueing_lock="retry_stalled_jobs", pass_context=True)
async def retry_stalled_jobs(context: procrastinate.JobContext, timestamp: int) -> None:  # noqa: ARG001
    for job in await app.job_manager.get_stalled_jobs():
        await app.job_manager.retry_job(job)


async def place_timers(first: int, count: int, due: float, each: float) -> None:
    """Insert each timer in its own transaction; if all are due at once, in batches, as "Batch defer multiple jobs" says."""
    async with app.open_async(), await psycopg.AsyncConnection.connect(DATABASE) as connection:
        step = 1 if each else AT_ONCE
        for start in range(0, count, step):
            numbers = range(first + start, first + min(start + step, count))
            at = datetime.fromtimestamp(due + start * each, UTC)
            async with connection.cursor() as cursor:
                await cursor.executemany("INSERT INTO timers (id, due_at) VALUES (%s, %s)", [(number, at) for number in numbers])
            jobs = [{"number": number} for number in numbers]
            await remind.configure(connection=connection, schedule_at=at).batch_defer_async(*jobs)
            await connection.commit()


def main() -> None:
    match sys.argv[1:]:
        case ["place", first, count, due, each]:
            asyncio.run(place_timers(int(first), int(count), float(due), float(each)))


# ruff: noqa: D103, PLW0603 - this is how a user writes

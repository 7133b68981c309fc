"""The shop over PgQueuer: `place N`, `work` and `left`; its schema is `pgq install`.

As "Holding Failed Jobs" (guides) says under "Auto-retry with a safety net": the database-level retry and on_failure="hold". A job whose
worker died is picked again once its heartbeat is older than heartbeat_timeout, 30 s by default ("Heartbeat Monitoring"). The job is
enqueued on the connection, and in the transaction, that writes the order. The worker is started as "Running PgQueuer Programmatically"
says, which is the same as `pgq run`: that one ends with an AttributeError in the release that is pinned here.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import bank
from pgqueuer import PgQueuer, run
from pgqueuer.executors import DatabaseRetryEntrypointExecutor
from pgqueuer.models import Job
from pgqueuer.queries import Queries

DATABASE, CONCURRENCY = os.environ["CRASH_DATABASE"], int(os.environ["CRASH_CONCURRENCY"])


@asynccontextmanager
async def main() -> AsyncGenerator[PgQueuer, None]:
    """Create the worker."""
    connection = await asyncpg.connect(DATABASE)
    shop = await asyncpg.create_pool(DATABASE, min_size=1)
    pgq = PgQueuer.from_asyncpg_connection(connection)

    @pgq.entrypoint(
        "charge_order",
        on_failure="hold",
        executor_factory=lambda parameters: DatabaseRetryEntrypointExecutor(
            parameters=parameters, max_attempts=10, initial_delay=timedelta(seconds=5), backoff_multiplier=1
        ),
    )
    async def charge_order(job: Job) -> None:
        order_id = int(job.payload or b"")
        order = await shop.fetchrow("SELECT status, total FROM orders WHERE id = $1", order_id)
        if order["status"] != "placed":
            return
        row_values = bank.settled(await bank.charge_async(order_id, order["total"]))
        await shop.execute("UPDATE orders SET status = $1, receipt = $2 WHERE id = $3", *row_values, order_id)

    try:
        yield pgq
    finally:
        await shop.close()
        await connection.close()


async def place_orders(orders: int, pause_s: float) -> None:
    connection = await asyncpg.connect(DATABASE)
    queries = Queries.from_asyncpg_connection(connection)
    for order_id in range(1, orders + 1):
        async with connection.transaction():
            await connection.execute("INSERT INTO orders (id, total, status) VALUES ($1, 4900, 'placed')", order_id)
            await queries.enqueue("charge_order", str(order_id).encode())
        await asyncio.sleep(pause_s)
    await connection.close()


async def list_unfinished() -> dict[int, str]:
    """Return the content of the queue table, which `pgq backlog`, `pgq stale` and `pgq failed` show."""
    connection = await asyncpg.connect(DATABASE)
    return {int(row["payload"]): row["status"] for row in await connection.fetch("SELECT payload, status FROM pgqueuer")}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["place", orders, pause_s]:
            asyncio.run(place_orders(int(orders), float(pause_s)))
        case ["work"]:
            # A batch may be at most half of the concurrency limit.
            asyncio.run(run(main, batch_size=CONCURRENCY // 2, max_concurrent_tasks=CONCURRENCY, restart_on_failure=False))
        case ["left"]:
            print(json.dumps(asyncio.run(list_unfinished())))

# ruff: noqa: D103 - this is how a user writes

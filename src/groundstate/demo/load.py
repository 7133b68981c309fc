"""The customers: they place orders over HTTP at a steady rate, and keep a ledger of what they ordered and what the shop accepted."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from random import Random

import httpx

from groundstate.demo.ledger import Ledger


async def place_orders(client: httpx.AsyncClient, ledger: Ledger, *, orders: int, per_second: float, seed: int) -> None:
    """Place all orders, at a rate of `per_second`.

    A line is written to the ledger before each order is sent, and a second line with the order's number when the shop has accepted it.
    """
    dice = Random(seed)
    totals = [dice.randrange(500, 20_000) for _ in range(orders)]
    begun = asyncio.get_running_loop().time()
    at_once = asyncio.Semaphore(20)
    async with asyncio.TaskGroup() as customers:
        for number, total in enumerate(totals, 1):
            await asyncio.sleep(begun + number / per_second - asyncio.get_running_loop().time())
            await at_once.acquire()
            customer = customers.create_task(_place_order(client, ledger, f"customer{number}@example.org", total))
            customer.add_done_callback(lambda _: at_once.release())


async def _place_order(client: httpx.AsyncClient, ledger: Ledger, email: str, total: int) -> None:
    ledger.write({"email": email, "total": total})
    try:
        answer = await client.post("/orders", json={"email": email, "total": total})
    except httpx.HTTPError as error:
        ledger.write({"email": email, "refused": repr(error)})
        return
    if answer.status_code == 201:
        ledger.write({"email": email, "total": total, "order": answer.json()["id"]})
    else:
        ledger.write({"email": email, "refused": f"the shop answered {answer.status_code}"})


async def run(given: argparse.Namespace) -> None:
    """Place orders as the command-line arguments say."""
    async with httpx.AsyncClient(base_url=given.shop, timeout=60) as client:
        await place_orders(client, Ledger(given.ledger), orders=given.orders, per_second=given.per_second, seed=given.seed)


def main() -> None:
    """Run the customers: `python -m groundstate.demo.load --shop URL --ledger PATH --orders N --per-second N --seed N`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shop", required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--orders", type=int, required=True)
    parser.add_argument("--per-second", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()

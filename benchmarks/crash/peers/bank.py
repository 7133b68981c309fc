"""The gateway's client, as all the peers' shops use it: one key an order, the same in each try, which is what their docs advise.

Where the gateway keeps idempotency keys, the key is sent and that is all. Where it does not, it is asked first whether it knows the key.
"""

from __future__ import annotations

import os
from typing import Any

import httpx

GATEWAY = os.environ["CRASH_GATEWAY"]
CAN_BE_ASKED = os.environ["CRASH_KIND"] == "find"
GIVES_UP_S = 2.0


def charge(order_id: int, total: int) -> dict[str, Any]:
    """The charge, or the refusal, of an order. Raises an httpx.HTTPError where there is neither: then it is to be tried again."""
    key = f"order-{order_id}"
    with httpx.Client(base_url=GATEWAY, timeout=GIVES_UP_S) as client:
        if CAN_BE_ASKED and (known := _known(client.get("/charges", params={"key": key}))):
            return known
        return _answer(client.post("/charges", json={"key": key, "order": order_id, "amount": total}))


async def charge_async(order_id: int, total: int) -> dict[str, Any]:
    """As `charge`, for shops that are written with asyncio."""
    key = f"order-{order_id}"
    async with httpx.AsyncClient(base_url=GATEWAY, timeout=GIVES_UP_S) as client:
        if CAN_BE_ASKED and (known := _known(await client.get("/charges", params={"key": key}))):
            return known
        return _answer(await client.post("/charges", json={"key": key, "order": order_id, "amount": total}))


def settled(answer: dict[str, Any]) -> tuple[str, str | None]:
    """What the order's row gets: its status and its receipt."""
    return ("paid", answer["id"]) if answer["outcome"] == "charged" else ("declined", None)


def _known(response: httpx.Response) -> dict[str, Any] | None:
    return None if response.status_code == httpx.codes.NOT_FOUND else _answer(response)


def _answer(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != httpx.codes.PAYMENT_REQUIRED:  # a refused card is an answer
        response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer

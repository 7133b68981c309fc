"""The gateway's client for the shops of all peers: one key for each order, the same in each try, as the docs of the peers advise.

Where the gateway remembers idempotency keys, the client sends the key. Where it does not, the client first looks up the key.
"""

from __future__ import annotations

import os
from typing import Any

import httpx

GATEWAY = os.environ["CRASH_GATEWAY"]
CAN_BE_ASKED = os.environ["CRASH_KIND"] == "find"
GIVES_UP_S = 2.0


def charge(order_id: int, total: int) -> dict[str, Any]:
    """Return the gateway's answer, a charge or a refusal. Raises httpx.HTTPError where there is neither; then the task must be retried."""
    key = f"order-{order_id}"
    with httpx.Client(base_url=GATEWAY, timeout=GIVES_UP_S) as client:
        if CAN_BE_ASKED and (known := _find_known_charge(client.get("/charges", params={"key": key}))):
            return known
        return _parse_answer(client.post("/charges", json={"key": key, "order": order_id, "amount": total}))


async def charge_async(order_id: int, total: int) -> dict[str, Any]:
    """Do the same as `charge`, for shops that are written with asyncio."""
    key = f"order-{order_id}"
    async with httpx.AsyncClient(base_url=GATEWAY, timeout=GIVES_UP_S) as client:
        if CAN_BE_ASKED and (known := _find_known_charge(await client.get("/charges", params={"key": key}))):
            return known
        return _parse_answer(await client.post("/charges", json={"key": key, "order": order_id, "amount": total}))


def row_values(answer: dict[str, Any]) -> tuple[str, str | None]:
    """Return the status and the receipt that are written to the order's row."""
    return ("paid", answer["id"]) if answer["outcome"] == "charged" else ("declined", None)


def _find_known_charge(response: httpx.Response) -> dict[str, Any] | None:
    return None if response.status_code == httpx.codes.NOT_FOUND else _parse_answer(response)


def _parse_answer(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != httpx.codes.PAYMENT_REQUIRED:  # a refused card is an answer
        response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer

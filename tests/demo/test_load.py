"""The customers must remember what they asked for before they ask, and what was accepted when it was."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import httpx

from groundstate.demo.ledger import Entry, Ledger, read_entries
from groundstate.demo.load import place_orders


def ordered(path: Path, shop: httpx.MockTransport, orders: int, seed: int = 1) -> list[Entry]:
    async def all_of_them() -> None:
        with closing(Ledger(path)) as ledger:
            async with httpx.AsyncClient(transport=shop, base_url="http://shop") as client:
                await place_orders(client, ledger, orders=orders, per_second=1000, seed=seed)

    asyncio.run(all_of_them())
    return read_entries(path)


def test_each_accepted_order_is_written_down_with_its_number_and_was_asked_for_before(tmp_path: Path) -> None:
    seen: list[str] = []

    def shop(request: httpx.Request) -> httpx.Response:
        entries = read_entries(tmp_path / "l")
        email = httpx.Response(200, content=request.content).json()["email"]
        assert any(entry["email"] == email and "order" not in entry for entry in entries)
        seen.append(email)
        return httpx.Response(201, json={"id": len(seen)})

    entries = ordered(tmp_path / "l", httpx.MockTransport(shop), 30)
    assert {entry["order"]: entry["email"] for entry in entries if "order" in entry} == dict(enumerate(seen, 1))
    assert len(seen) == len(set(seen)) == 30


def test_an_order_that_was_refused_or_whose_answer_was_lost_is_not_accepted(tmp_path: Path) -> None:
    def shop(request: httpx.Request) -> httpx.Response:
        if b"customer1@" in request.content:
            raise httpx.ReadError("gone")
        return httpx.Response(500)

    entries = ordered(tmp_path / "l", httpx.MockTransport(shop), 2)
    assert not any("order" in entry for entry in entries)
    refused = {entry["email"]: entry["refused"] for entry in entries if "refused" in entry}
    assert refused == {"customer1@example.org": "ReadError('gone')", "customer2@example.org": "the shop answered 500"}


def test_the_same_seed_orders_the_same(tmp_path: Path) -> None:
    shop = httpx.MockTransport(lambda _: httpx.Response(500))
    totals = [
        [entry["total"] for entry in ordered(tmp_path / str(n), shop, 5, seed) if "total" in entry] for n, seed in enumerate((1, 1, 2))
    ]
    assert totals[0] == totals[1] != totals[2]

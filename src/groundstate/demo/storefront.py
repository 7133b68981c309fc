"""The web shop: it inserts a row for each order, and answers 201 once the row is committed. No message is sent to the worker, which finds
the row.

The web shop knows nothing of the worker, and could be written in another language.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from groundstate.demo import database, serving
from groundstate.demo.shop import Order


class Storefront:
    """The shop's HTTP endpoints: POST /orders {email, total} and GET /orders/ID."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def build_app(self) -> Starlette:
        """Return the shop's ASGI application."""
        return Starlette(
            routes=[
                Route("/orders", self.handle_place_order, methods=["POST"]),
                Route("/orders/{id:int}", self.handle_get_order, methods=["GET"]),
            ]
        )

    async def handle_place_order(self, request: Request) -> Response:
        """Insert an order, and answer 201 with the order's number once its row is committed."""
        asked = await request.json()
        return JSONResponse({"id": await run_in_threadpool(self._insert_order, asked["email"], asked["total"])}, 201)

    def _insert_order(self, email: str, total: int) -> int:
        with Session(self._engine) as session, session.begin():
            order = Order(email=email, total=total, placed_at=datetime.now(UTC))
            session.add(order)
            session.flush()
            return order.id

    async def handle_get_order(self, request: Request) -> Response:
        """Answer with the status of an order, or 404 if there is no such order."""
        order = await run_in_threadpool(self._read_order, request.path_params["id"])
        return JSONResponse({"why": "no such order"}, 404) if order is None else JSONResponse(order)

    def _read_order(self, number: int) -> dict[str, object] | None:
        with Session(self._engine) as session:
            order = session.get(Order, number)
            return None if order is None else {"id": order.id, "status": order.status, "mailed": order.mailed_at is not None}


def main() -> None:
    """Serve the web shop: `SHOP_DATABASE=URL python -m groundstate.demo.storefront --fd N`."""
    serving.serve(Storefront(database.create_shop_engine(os.environ["SHOP_DATABASE"])).build_app(), serving.parse_arguments().fd)


if __name__ == "__main__":
    main()

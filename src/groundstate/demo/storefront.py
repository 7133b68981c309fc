"""The web shop: it inserts an order, and answers 201 once that is committed; no more is needed to raise an event.

It does not know the worker, and could as well be written in another language.
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
    """The shop's endpoints: POST /orders {email, total} and GET /orders/ID."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def app(self) -> Starlette:
        """Return the shop's ASGI application."""
        return Starlette(routes=[Route("/orders", self.place, methods=["POST"]), Route("/orders/{id:int}", self.look, methods=["GET"])])

    async def place(self, request: Request) -> Response:
        """Insert an order, and answer 201 with its number once it is committed."""
        asked = await request.json()
        return JSONResponse({"id": await run_in_threadpool(self._insert, asked["email"], asked["total"])}, 201)

    def _insert(self, email: str, total: int) -> int:
        with Session(self._engine) as session, session.begin():
            order = Order(email=email, total=total, placed_at=datetime.now(UTC))
            session.add(order)
            session.flush()
            return order.id

    async def look(self, request: Request) -> Response:
        """Answer with the status of an order, or 404 where it does not exist."""
        order = await run_in_threadpool(self._read, request.path_params["id"])
        return JSONResponse({"why": "no such order"}, 404) if order is None else JSONResponse(order)

    def _read(self, number: int) -> dict[str, object] | None:
        with Session(self._engine) as session:
            order = session.get(Order, number)
            return None if order is None else {"id": order.id, "status": order.status, "mailed": order.mailed_at is not None}


def main() -> None:
    """Serve the web shop: `SHOP_DATABASE=URL python -m groundstate.demo.storefront --fd N`."""
    serving.serve(Storefront(database.engine(os.environ["SHOP_DATABASE"])).app(), serving.arguments().fd)


if __name__ == "__main__":
    main()

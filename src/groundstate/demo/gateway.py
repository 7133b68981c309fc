"""A payment gateway: a separate server with a ledger of its own, as unreliable as real ones are.

It does not deduplicate: a second POST with an equal key charges the card again, and the ledger shows that. So the gateway does not hide it
if the worker calls twice. The module `mischief` decides how each request is treated.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from groundstate.demo import mischief, serving
from groundstate.demo.ledger import Entry, Ledger, read_entries
from groundstate.demo.mischief import Treatment, Trick


class DroppedResponse(Response):
    """A response whose connection is closed before its body, so that the client does not learn whether the card was charged."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI defines the arguments
        """Send the headers of a response, which announce a body, but send no body."""
        await send({"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"1000")]})


class Gateway:
    """The HTTP endpoints of the gateway, which write to one ledger.

    treat: a function of an order's number and the POST's number (1 for the first POST with the order's key), which returns how to treat the
        POST. declines: returns whether an order's card is declined.
    pause, clock: replaced by tests, so that the tests need not wait.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        treat: Callable[[int, int], Treatment],
        declines: Callable[[int], bool],
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger, self._treat, self._declines, self._pause, self._clock = ledger, treat, declines, pause, clock
        self._by_key: dict[str, Entry] = {}
        self._entries = 0
        for entry in read_entries(ledger.path):  # entries that an earlier process of the gateway wrote
            self._index_entry(entry)
        self._posts: Counter[str] = Counter()

    def build_app(self) -> Starlette:
        """Return the gateway's ASGI application."""
        return Starlette(
            routes=[Route("/charges", self.handle_charge, methods=["POST"]), Route("/charges", self.handle_lookup, methods=["GET"])]
        )

    async def handle_charge(self, request: Request) -> Response:
        """Handle POST {key, order, amount}: answer 201 (charged), 402 (declined) or 503 (busy, nothing done), or drop the connection."""
        asked = await request.json()
        self._posts[asked["key"]] += 1
        treatment = self._treat(asked["order"], self._posts[asked["key"]])
        await self._pause(treatment.before)
        if treatment.trick is Trick.BUSY:
            return JSONResponse({"why": "too many requests, nothing was done"}, 503, headers={"retry-after": "1"})
        entry = self._record_charge(asked, treatment.hidden)
        await self._pause(treatment.after)
        if treatment.trick is Trick.DROP:
            return DroppedResponse()
        return JSONResponse(entry, 201 if entry["outcome"] == "charged" else 402)

    async def handle_lookup(self, request: Request) -> Response:
        """Handle GET ?key=: return the first ledger entry of this key, or 404 if there is no entry, or if it is still hidden."""
        entry = self._by_key.get(request.query_params["key"])
        if entry is None or self._clock() < entry["at"] + entry["hidden"]:
            return JSONResponse({"why": "no such charge"}, 404)
        return JSONResponse(entry)

    def _record_charge(self, asked: Entry, hidden: float) -> Entry:
        declined = self._declines(asked["order"])
        entry = {
            "id": f"ch_{self._entries + 1}",
            "key": asked["key"],
            "order": asked["order"],
            "amount": asked["amount"],
            "outcome": "declined" if declined else "charged",
            "why": "the card was refused" if declined else "",
            "at": self._clock(),
            "hidden": hidden,
        }
        self._ledger.write(entry)
        self._index_entry(entry)
        return entry

    def _index_entry(self, entry: Entry) -> None:
        self._entries += 1
        self._by_key.setdefault(entry["key"], entry)


def main() -> None:
    """Serve the gateway: `python -m groundstate.demo.gateway --fd N --ledger PATH --seed N`."""
    given = serving.parse_arguments()
    gateway = Gateway(
        Ledger(given.ledger),
        treat=lambda order, number: mischief.choose_treatment(given.seed, order, number),
        declines=lambda order: mischief.is_card_declined(given.seed, order),
    )
    serving.serve(gateway.build_app(), given.fd)


if __name__ == "__main__":
    main()

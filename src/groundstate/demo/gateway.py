"""A payment gateway: a separate server with a ledger of its own, as unreliable as real ones are.

It does not deduplicate: a second POST of the same key charges the card again, and the ledger shows it. So the provider does not hide a
fault of the worker. The module `mischief` decides how each request is treated.
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
from groundstate.demo.ledger import Entry, Ledger, read
from groundstate.demo.mischief import Treatment, Trick


class Dropped(Response):
    """A response that begins and never ends: the server closes the connection, and the client cannot know what happened."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI defines the arguments
        """Send the head of a response, and nothing of the body that the head announces."""
        await send({"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"1000")]})


class Gateway:
    """The gateway's endpoints over one ledger. `treat`, `declines`, `pause` and `clock` are arguments so that tests need not wait."""

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
        for entry in read(ledger.path):  # entries of an earlier process
            self._remember(entry)
        self._posts: Counter[str] = Counter()

    def app(self) -> Starlette:
        """Return the gateway's ASGI application."""
        return Starlette(routes=[Route("/charges", self.charge, methods=["POST"]), Route("/charges", self.find, methods=["GET"])])

    async def charge(self, request: Request) -> Response:
        """Handle POST {key, order, amount}: 201 charged, 402 declined, 503 busy with nothing done, or an answer that never reaches the
        client.
        """
        asked = await request.json()
        self._posts[asked["key"]] += 1
        treatment = self._treat(asked["order"], self._posts[asked["key"]])
        await self._pause(treatment.before)
        if treatment.trick is Trick.BUSY:
            return JSONResponse({"why": "too many requests, nothing was done"}, 503, headers={"retry-after": "1"})
        entry = self._enter(asked, treatment.hidden)
        await self._pause(treatment.after)
        if treatment.trick is Trick.DROP:
            return Dropped()
        return JSONResponse(entry, 201 if entry["outcome"] == "charged" else 402)

    async def find(self, request: Request) -> Response:
        """Handle GET ?key=: return the first entry of this key, or 404 where there is none or it is still hidden."""
        entry = self._by_key.get(request.query_params["key"])
        if entry is None or self._clock() < entry["at"] + entry["hidden"]:
            return JSONResponse({"why": "no such charge"}, 404)
        return JSONResponse(entry)

    def _enter(self, asked: Entry, hidden: float) -> Entry:
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
        self._remember(entry)
        return entry

    def _remember(self, entry: Entry) -> None:
        self._entries += 1
        self._by_key.setdefault(entry["key"], entry)


def main() -> None:
    """Serve the gateway: `python -m groundstate.demo.gateway --fd N --ledger PATH --seed N`."""
    given = serving.arguments()
    gateway = Gateway(
        Ledger(given.ledger),
        treat=lambda order, number: mischief.treatment(given.seed, order, number),
        declines=lambda order: mischief.declines(given.seed, order),
    )
    serving.serve(gateway.app(), given.fd)


if __name__ == "__main__":
    main()

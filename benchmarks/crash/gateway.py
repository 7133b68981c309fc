"""The gateway that all contenders charge at: the demo's, served in a thread, in two kinds. Its ledger outlives every kill of a worker.

Kind `keys` keeps idempotency keys for ever and cannot be asked. Kind `find` keeps none, and can be asked by key. What it does to a request
is the demo's mischief: by seed, order and number of the try, so that all contenders meet the same.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any, Self

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from groundstate.demo import mischief
from groundstate.demo.gateway import Gateway
from groundstate.demo.ledger import Entry, Ledger, read

KINDS = ("keys", "find")
LATEST_S = 6.0  # nothing lands, and no find is blind, for longer than this after the last request


class Bank(Gateway):
    """One gateway for one run of one contender."""

    def __init__(self, ledger: Ledger, seed: int, *, kind: str) -> None:
        super().__init__(
            ledger,
            treat=lambda order, number: mischief.treatment(seed, order, number),
            declines=lambda order: mischief.declines(seed, order),
        )
        self.kind = kind
        self.charges_asked = 0  # POSTs that arrived: what the schedule of kills counts
        self.requests = 0

    async def charge(self, request: Request) -> Response:
        """As the demo's. Counted on arrival, long before it is known whether anybody will hear the answer."""
        self.charges_asked += 1
        self.requests += 1
        return await super().charge(request)

    async def find(self, request: Request) -> Response:
        """As the demo's; kind `keys` cannot be asked."""
        self.requests += 1
        return JSONResponse({"why": "no such endpoint"}, 405) if self.kind == "keys" else await super().find(request)

    def _enter(self, asked: Entry, hidden: float) -> Entry:
        known = self._by_key.get(asked["key"]) if self.kind == "keys" else None
        return known or super()._enter(asked, hidden)


class Served:
    """A gateway on a loopback port of its own, in a `with`."""

    def __init__(self, path: Path, seed: int, *, kind: str) -> None:
        self._ledger = Ledger(path)
        self.bank = Bank(self._ledger, seed, kind=kind)
        self._gate = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._gate.getsockname()[1]}"
        # Silent: connections are dropped on purpose here, and that is no error.
        silent: dict[str, Any] = {"log_config": None, "log_level": "critical", "access_log": False}
        config = uvicorn.Config(self.bank.app(), lifespan="off", timeout_graceful_shutdown=1, **silent)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._gate],), name="gateway", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._gate.close()
        self._ledger.close()

    def entries(self) -> list[Entry]:
        """The ledger as it is on the disk."""
        return read(self._ledger.path)

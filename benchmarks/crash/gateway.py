"""The gateway at which all contenders charge: the demo's gateway, served in a thread. Its ledger outlives each kill of a worker.

The kind `keys` remembers idempotency keys for ever and has no lookup. The kind `find` ignores keys, and has a lookup by key. The demo's
module `mischief` decides by seed, order and number of the try how a request is treated, so that all contenders meet the same.
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
from groundstate.demo.ledger import Entry, Ledger, read_entries

KINDS = ("keys", "find")
LATEST_S = 6.0  # seconds after the last request in which charges may still be made or be hidden from lookups


class Bank(Gateway):
    """The gateway of one run of one contender."""

    def __init__(self, ledger: Ledger, seed: int, *, kind: str) -> None:
        super().__init__(
            ledger,
            treat=lambda order, number: mischief.choose_treatment(seed, order, number),
            declines=lambda order: mischief.is_card_declined(seed, order),
        )
        self.kind = kind
        self.charges_asked = 0  # POST requests received; the schedule of kills goes by this count
        self.requests = 0

    async def handle_charge(self, request: Request) -> Response:
        """Handle a charge as the demo's gateway does. The request is counted on arrival, before it is answered."""
        self.charges_asked += 1
        self.requests += 1
        return await super().handle_charge(request)

    async def handle_lookup(self, request: Request) -> Response:
        """Handle a lookup as the demo's gateway does; the kind `keys` answers 405."""
        self.requests += 1
        return JSONResponse({"why": "no such endpoint"}, 405) if self.kind == "keys" else await super().handle_lookup(request)

    def _record_charge(self, asked: Entry, hidden: float) -> Entry:
        known = self._by_key.get(asked["key"]) if self.kind == "keys" else None
        return known or super()._record_charge(asked, hidden)


class Served:
    """A gateway that is served on a loopback port within a `with` block."""

    def __init__(self, path: Path, seed: int, *, kind: str) -> None:
        self._ledger = Ledger(path)
        self.bank = Bank(self._ledger, seed, kind=kind)
        self._gate = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._gate.getsockname()[1]}"
        # Nothing is logged, since connections are dropped on purpose.
        silent: dict[str, Any] = {"log_config": None, "log_level": "critical", "access_log": False}
        config = uvicorn.Config(self.bank.build_app(), lifespan="off", timeout_graceful_shutdown=1, **silent)
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

    def read_entries(self) -> list[Entry]:
        """Return the entries of the ledger on disk."""
        return read_entries(self._ledger.path)

"""The endpoint of `groundstate run --http`: /livez, /readyz and /metrics, from threads of its own. Changes nothing."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import socket
import socketserver
import threading
from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from groundstate.app.app import App
from groundstate.cli.common import CommandFailed
from groundstate.cli.health import Health

log = logging.getLogger("groundstate")
LOOKS_S = 0.05  # how often it is looked whether it is to end
REQUEST_S = 10.0  # a client that says nothing for so long is hung up on


class Endpoint:
    """Serves until it is closed. Raises CommandFailed where the address is none, or is taken."""

    def __init__(self, app: App, health: Health, where: str, stuck_s: float) -> None:
        host, port = _address(where)
        self._app = app
        self._health = health
        self._stuck_s = stuck_s
        self._page: Any = None
        self._lock = threading.Lock()
        try:
            self._server = _Server(self, host, port)
        except (OSError, OverflowError) as error:
            raise CommandFailed(f"--http {where}: {getattr(error, 'strerror', None) or error}") from error
        threading.Thread(target=self._server.serve_forever, args=(LOOKS_S,), name="groundstate-http", daemon=True).start()

    @property
    def address(self) -> str:
        """Where it listens: the port that was chosen, where 0 was asked for."""
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def close(self) -> None:
        """Answers nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        if self._page is not None:
            self._page.close()

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, type and body."""
        match path:
            case "/livez":
                stuck = self._health.stuck(self._stuck_s)
                return _json(not stuck, {"alive": not stuck, "stuck": stuck})
            case "/readyz":
                stores = self._health.stores(self._stuck_s)
                ready = all(one.ready for one in stores)
                return _json(ready, {"ready": ready, "stores": [asdict(one) for one in stores]})
            case "/metrics":
                return self._metrics()
            case _:
                return HTTPStatus.NOT_FOUND, "text/plain", b"there are /livez, /readyz and /metrics\n"

    def _metrics(self) -> tuple[HTTPStatus, str, bytes]:
        try:
            prometheus = importlib.import_module("groundstate.telemetry.prometheus")
        except ModuleNotFoundError:
            return HTTPStatus.NOT_IMPLEMENTED, "text/plain", b"install groundstate[metrics] for this page\n"
        with self._lock:
            self._page = self._page or prometheus.Page(self._app)
        return HTTPStatus.OK, prometheus.CONTENT_TYPE, self._page.text()


def _json(well: bool, content: Mapping[str, Any]) -> tuple[HTTPStatus, str, bytes]:
    status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
    return status, "application/json", json.dumps(content).encode() + b"\n"


def _address(where: str) -> tuple[str, int]:
    host, colon, port = where.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise CommandFailed(f"--http {where}: write HOST:PORT, such as 127.0.0.1:8080, or 0.0.0.0:8080 for every address of this host")
    return host.removeprefix("[").removesuffix("]"), int(port)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, endpoint: Endpoint, host: str, port: int) -> None:
        self.endpoint = endpoint
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Request)

    def server_bind(self) -> None:
        """Without the library's question to the DNS for this host's name, which can take seconds, and which nobody reads."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # the library's names
        """A client that hung up is its own affair."""
        log.debug("a request over HTTP was cut off", extra={"event": "http_cut_off"})


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_S

    def do_GET(self) -> None:  # the library's name
        """A page."""
        status, kind, body = self.server.endpoint.answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  # the library's name

    def version_string(self) -> str:
        """Who answers, without the versions of this Python."""
        return "groundstate"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's names
        """Probes come every few seconds, and are no news."""

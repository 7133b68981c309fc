"""The HTTP server of `groundstate run --http`: it serves /livez, /readyz and /metrics from its own threads."""

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
LOOKS_S = 0.05  # seconds between two checks whether the server was told to end
REQUEST_S = 10.0  # seconds without data from a client after which its connection is closed


class Endpoint:
    """An HTTP server that runs until it is closed. Raises CommandFailed if the address is invalid or in use."""

    def __init__(self, app: App, health: Health, where: str, stuck_s: float) -> None:
        host, port = _parse_address(where)
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
        """The address on which the server listens, as HOST:PORT. If port 0 was given, PORT is the one that the system chose."""
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def close(self) -> None:
        """Stop the server: no request is answered any more."""
        self._server.shutdown()
        self._server.server_close()
        if self._page is not None:
            self._page.close()

    def respond_to(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Return the status, the content type and the body of the answer to a request for this path."""
        match path:
            case "/livez":
                stuck = self._health.find_stuck_workers(self._stuck_s)
                return _json_response(not stuck, {"alive": not stuck, "stuck": stuck})
            case "/readyz":
                stores = self._health.check_stores(self._stuck_s)
                ready = all(one.ready for one in stores)
                return _json_response(ready, {"ready": ready, "stores": [asdict(one) for one in stores]})
            case "/metrics":
                return self._respond_with_metrics()
            case _:
                return HTTPStatus.NOT_FOUND, "text/plain", b"there are /livez, /readyz and /metrics\n"

    def _respond_with_metrics(self) -> tuple[HTTPStatus, str, bytes]:
        try:
            prometheus = importlib.import_module("groundstate.telemetry.prometheus")
        except ModuleNotFoundError:
            return HTTPStatus.NOT_IMPLEMENTED, "text/plain", b"install groundstate[metrics] for this page\n"
        with self._lock:
            self._page = self._page or prometheus.Page(self._app)
        return HTTPStatus.OK, prometheus.CONTENT_TYPE, self._page.render()


def _json_response(well: bool, content: Mapping[str, Any]) -> tuple[HTTPStatus, str, bytes]:
    status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
    return status, "application/json", json.dumps(content).encode() + b"\n"


def _parse_address(where: str) -> tuple[str, int]:
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
        """Bind the socket without the library's DNS query for the host's name. The query can take seconds, and its result is not used."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # http.server gives the names
        """Log an error of a request at debug level only, since a client may close its connection at any time."""
        log.debug("a request over HTTP was cut off", extra={"event": "http_cut_off"})


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_S

    def do_GET(self) -> None:  # http.server requires this name
        """Send the page for the path of the request."""
        status, kind, body = self.server.endpoint.respond_to(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  # http.server gives the name

    def version_string(self) -> str:
        """Return the name of the server, without the version of Python."""
        return "groundstate"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server gives the names
        """Log nothing, since probes come every few seconds."""

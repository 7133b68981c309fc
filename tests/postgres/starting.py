"""A server that answers each connection with one refusal, as PostgreSQL does while it starts, or where it is full. It does nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.patience import HANG_S

SSL_REQUEST = 80877103
GSS_REQUEST = 80877104


class Refusals:
    """How many were refused."""

    count = 0


@contextmanager
def refusing(port: int, state: str, words: str) -> Iterator[Refusals]:
    """On this port, until the block ends. state: the SQLSTATE."""
    refused = Refusals()
    fields = b"".join(kind + text.encode() + b"\0" for kind, text in ((b"S", "FATAL"), (b"V", "FATAL"), (b"C", state), (b"M", words)))
    answer = b"E" + (len(fields) + 5).to_bytes(4, "big") + fields + b"\0"
    listening = socket.create_server(("127.0.0.1", port), reuse_port=False)

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            with client:
                _read_startup(client)
                client.sendall(answer)
                refused.count += 1

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield refused
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(HANG_S)


def _read_startup(client: socket.socket) -> None:
    while True:
        length = int.from_bytes(client.recv(4, socket.MSG_WAITALL), "big")
        words = client.recv(length - 4, socket.MSG_WAITALL)
        if int.from_bytes(words[:4], "big") not in {SSL_REQUEST, GSS_REQUEST}:
            return
        client.sendall(b"N")

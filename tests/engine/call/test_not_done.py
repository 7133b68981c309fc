"""What a service lists as surely not done: a mail that the server refused, and what a function of the author's tells."""

from __future__ import annotations

import smtplib
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from typing import ClassVar

import pytest

from groundstate import ExternalService, InDoubt, not_done
from tests.engine.kit import CALL_LIMIT, Order, World
from tests.patience import HANG_S


class _Mailserver(socketserver.StreamRequestHandler):
    """Takes everything, and answers the mail itself with `verdict`."""

    verdict: ClassVar[bytes]

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        for line in self.rfile:
            match line.split()[0].upper():
                case b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    while self.rfile.readline() != b".\r\n":
                        pass
                    self.wfile.write(self.verdict)
                    if not self.verdict:
                        return
                case b"QUIT":
                    self.wfile.write(b"221 bye\r\n")
                    return
                case _:
                    self.wfile.write(b"250 ok\r\n")


@contextmanager
def mailserver(verdict: bytes) -> Iterator[int]:
    handler = type("Handler", (_Mailserver,), {"verdict": verdict})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def mailing(world: World, port: int) -> None:
    smtp = ExternalService("smtp", not_done=not_done.SMTPLIB)

    @smtp.call(in_doubt=InDoubt.hold(), timeout=CALL_LIMIT)
    def send(order: Order) -> str:
        mail = EmailMessage()
        mail["From"], mail["To"] = "shop@example.com", "you@example.com"
        with smtplib.SMTP("127.0.0.1", port, timeout=HANG_S) as client:
            client.send_message(mail)
        return "sent"

    @world.app.on(Order, Order.status == "placed", call=send)
    def mailed(order: Order, outcome: str) -> None:
        order.status = outcome


@pytest.mark.parametrize(("verdict", "state"), [
    (b"550 no such mailbox\r\n", "failed"),
    (b"451 try later\r\n", "failed"),
    (b"421 closing\r\n", "failed"),
    (b"\xff\xfe\r\n", "held"),
    (b"", "held"),
], ids=["refused for good", "refused for now", "closes", "no reply that can be read", "no reply"])  # fmt: skip
def test_a_mail_is_not_done_where_the_server_says_so_and_in_doubt_where_it_says_nothing(world: World, verdict: bytes, state: str) -> None:
    with mailserver(verdict) as port:
        mailing(world, port)
        world.orders(1)
        world.settled()
        assert world.states() == [state]

"""A mail server that accepts every mail, sometimes slowly, and records each in a ledger of its own. No mail is delivered."""

from __future__ import annotations

import asyncio
import email
import time
from email.policy import default

from aiosmtpd.smtp import SMTP, Envelope, Session

from groundstate.demo import mischief, serving
from groundstate.demo.ledger import Ledger


class RecordingHandler:
    """An aiosmtpd handler that writes a ledger line for each mail before it confirms the mail."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self._ledger, self._seed = ledger, seed

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: ARG002, N802  # the name and the arguments are those of aiosmtpd
        """Handle one mail: wait, record it, wait again, and answer. aiosmtpd calls this method."""
        content = envelope.content if isinstance(envelope.content, bytes) else (envelope.content or "").encode()
        mail = email.message_from_bytes(content, policy=default)
        order = str(mail["X-Order"])
        await asyncio.sleep(mischief.mail_delay_s(self._seed, order))
        self._ledger.write({"order": int(order), "id": str(mail["Message-ID"]), "to": envelope.rcpt_tos, "at": time.time()})
        await asyncio.sleep(mischief.mail_delay_s(self._seed, order))
        return "250 taken"


async def run(given: serving.Arguments) -> None:
    """Serve until the process is killed."""
    handler = RecordingHandler(Ledger(given.ledger), given.seed)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(handler, hostname="mail.example.org"), sock=serving.socket_of_descriptor(given.fd))
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve the mail server: `python -m groundstate.demo.mailserver --fd N --ledger PATH --seed N`."""
    asyncio.run(run(serving.parse_arguments()))


if __name__ == "__main__":
    main()

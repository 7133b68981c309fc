"""The demo's mail server must count exactly what it took."""

from __future__ import annotations

import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from groundstate.demo.ledger import read_entries
from tests.patience import HANG_S


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as door:
        command = [sys.executable, "-m", "groundstate.demo.mailserver", "--fd", str(door.fileno()), "--ledger", str(tmp_path / "l")]
        process = subprocess.Popen(command, pass_fds=(door.fileno(),))
        number = door.getsockname()[1]
    yield number
    process.kill()
    process.wait()


def mail(order: int) -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Message-ID"], made["X-Order"] = "a@example.org", "b@example.org", f"<{order}@example.org>", str(order)
    made.set_content("Thank you, Zoë!")
    return made


def test_each_mail_that_was_taken_is_a_line_and_the_same_mail_again_is_another(port: int, tmp_path: Path) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=HANG_S) as client:
        for order in (1, 2, 1):
            client.send_message(mail(order))
            assert read_entries(tmp_path / "l")[-1]["order"] == order
    entries = read_entries(tmp_path / "l")
    assert [(entry["order"], entry["id"]) for entry in entries] == [(1, "<1@example.org>"), (2, "<2@example.org>"), (1, "<1@example.org>")]
    assert all(entry["to"] == ["b@example.org"] for entry in entries)


def test_a_client_that_leaves_before_the_mail_is_whole_is_not_counted(port: int, tmp_path: Path) -> None:
    client = smtplib.SMTP("127.0.0.1", port, timeout=HANG_S)
    client.ehlo()
    client.mail("a@example.org")
    client.rcpt("b@example.org")
    client.putcmd("data")
    client.getreply()
    client.send(b"X-Order: 9\r\n\r\nhalf of")
    client.close()
    with smtplib.SMTP("127.0.0.1", port, timeout=HANG_S) as other:
        other.send_message(mail(2))
    assert [entry["order"] for entry in read_entries(tmp_path / "l")] == [2]

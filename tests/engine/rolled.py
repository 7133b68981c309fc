"""Two versions of one shop for fleets that are rolled: workers as processes of their own, and what was done outside in files beside them.

A service acts by a line in its file. For a record that `hangs` it acts, and does not answer until the gate is open.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import or_
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import Absent, App, InDoubt, Key, Outside, Store, Unknown, ask, hold, same_key

DRAIN = timedelta(milliseconds=200)  # shorter than a call that hangs
TIMEOUT = timedelta(seconds=120)
ASK = ask(settle_after=timedelta(seconds=1))
SAME_KEY = same_key(kept_for=timedelta(hours=24), settle_after=timedelta(seconds=1))
CHANGES = ("service", "key", "occurrence")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    receipt: Mapped[str | None] = mapped_column(default=None)
    round: Mapped[int] = mapped_column(default=1)


class Books:
    """What was done outside: a file for each service, a line for each time that it acted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    def act(self, service: str, record: int, key: str) -> str:
        with (self.folder / service).open("ab", buffering=0) as file:  # a line at once, after all the others
            file.write(f"{record} {key}\n".encode())
        return f"{service} {record}"

    def lines(self, service: str) -> list[list[str]]:
        path = self.folder / service
        return [line.split(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []

    def done(self) -> Counter[int]:
        """How often each record was acted upon, by any service."""
        return Counter(int(record) for service in ("bank", "psp") for record, _ in self.lines(service))


def hangs(record: int) -> bool:
    return record % 3 == 0


def shop(url: str, folder: Path, change: str, version: int) -> App:
    """The code of version 1 or 2, between which there is this change."""
    app = App("rolled", Store(url, Base))
    if change == "condition":
        wide = or_(Order.status == "archived", Order.status == "closed")

        @app.on(Order, wide if version == 2 else Order.status == "archived", name="swept")
        def swept(order: Order) -> None:
            order.status = "swept"

        return app
    books = Books(folder)
    service = "psp" if change == "service" and version == 2 else "bank"
    policy: InDoubt = ASK if change != "key" else hold() if version == 1 else SAME_KEY
    call: Any = Outside(service, limit=8).call(in_doubt=policy, timeout=TIMEOUT, name="charge")(_call(books, service, key=policy != hold()))
    if policy != hold():
        call.find(_find(books, service))
    rounds = [Order.round] if change == "occurrence" and version == 2 else []

    @app.on(Order, Order.status == "placed", call=call, name="paid", occurrence=rounds)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    return app


def _call(books: Books, service: str, *, key: bool) -> Any:
    async def act(record: int, under: str) -> str:
        outcome = books.act(service, record, under)
        while hangs(record) and not books.gate.exists():  # noqa: ASYNC110  # a file is looked at, by any process
            await asyncio.sleep(0.02)
        return outcome

    async def with_key(order: Order, key: Key) -> str:
        return await act(order.id, str(key))

    async def without(order: Order) -> str:
        return await act(order.id, "-")

    return with_key if key else without


def _find(books: Books, service: str) -> Any:
    def charged(order: Order, key: Key) -> str | Absent | Unknown:
        return f"{service} {order.id}" if [str(order.id), str(key)] in books.lines(service) else Absent()

    return charged


def work(url: str, folder: str, change: str, version: int) -> None:
    """A worker, until it is told to stop or its parent is gone."""
    told, parent = threading.Event(), os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    app = shop(url, Path(folder), change, version)
    app.start()
    while not told.wait(0.2) and os.getppid() == parent:
        pass
    app.stop(DRAIN)
    os._exit(0)

"""Two versions of one shop for fleets that are rolled: workers as processes of their own, and what was done outside in files beside them.

A service acts by a line in its file. For a record that `hangs` it acts, and does not answer until the gate is open.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import or_
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import Absent, App, ExternalService, IdempotencyKey, InDoubt, InOrder, Store, Unknown

DRAIN = timedelta(milliseconds=200)  # shorter than a call that hangs
TIMEOUT = timedelta(seconds=120)
TIMEOUT_WHERE_SETTLED = timedelta(seconds=15)  # a call that a kill kept from acting is made again after it, and not left to a person
ASK = InDoubt.lookup(settle_after=timedelta(seconds=1))
SAME_KEY = InDoubt.same_key(kept_for=timedelta(hours=24), settle_after=timedelta(seconds=1))

# By the table in docs/operating.md: why version 2 holds what version 1 had in the air, and version 1 what version 2 had.
HELD = {
    "service": ("it was a call to bank, and the reaction calls psp now", "it was a call to psp, and the reaction calls bank now"),
    "key": ("it was given no key, and the call takes one now", "it was given a key, and the call takes none now"),
    "occurrence": ("its occurrence was none, and is made of round now", "its occurrence was made of round, and is none now"),
    "call": (
        "it was the call charge of bank, and the reaction makes the call charge_card now",
        "it was the call charge_card of bank, and the reaction makes the call charge now",
    ),
    "find": ("its lookup was charged, and is charged_too now", "its lookup was charged_too, and is charged now"),
    "repeat": ("it was begun under InDoubt.lookup(), which calls nothing twice, and the policy is InDoubt.repeat() now", None),
}
SETTLED = ("in_order", "per")
LEAVES_OUT = ("narrowed", "split")  # version 2 of `paid` takes no orders of the second round; where it is split, `paid_too` does


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    receipt: Mapped[str | None] = mapped_column(default=None)
    round: Mapped[int] = mapped_column(default=1)
    customer: Mapped[int]


class Books:
    """What was done outside: a file for each service, a line for each time that it acted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    def act(self, service: str, record: int, policy: str, key: str) -> str:
        with (self.folder / service).open("ab", buffering=0) as file:  # a line at once, after all the others
            file.write(f"{record} {policy} {key}\n".encode())
        return f"{service} {record}"

    def lines(self, service: str) -> list[tuple[int, str, str]]:
        """The record, the policy and the key of each."""
        path = self.folder / service
        lines = [line.split(" ", 2) for line in path.read_text().splitlines()] if path.exists() else []
        return [(int(record), policy, key) for record, policy, key in lines]

    def done(self) -> Counter[int]:
        """How often each record was acted upon, by any service."""
        return Counter(record for service in ("bank", "psp") for record, _, _ in self.lines(service))

    def twice(self) -> set[int]:
        """The records that were acted upon again after a call that was not begun under InDoubt.repeat()."""
        policies = defaultdict[int, list[str]](list)
        for service in ("bank", "psp"):
            for record, policy, _ in self.lines(service):
                policies[record].append(policy)
        return {record for record, each in policies.items() if set(each[:-1]) - {"repeat"}}


def hangs(record: int) -> bool:
    return record % 3 == 0


@dataclass(frozen=True)
class _Charging:
    """How a version charges."""

    books: Books
    service: str
    policy: InDoubt

    def call(self, change: str, version: int) -> Any:
        limit_per = 1 if (change, version) == ("per", 2) else None
        name = "charge_card" if (change, version) == ("call", 2) else "charge"
        timeout = TIMEOUT_WHERE_SETTLED if change in (*SETTLED, *LEAVES_OUT, "repeat") else TIMEOUT
        service = ExternalService(self.service, limit=8, limit_per=limit_per)
        made: Any = service.call(in_doubt=self.policy, timeout=timeout, name=name)(self._function())
        if self.policy.kind in ("lookup", "same_key"):
            made.lookup(self._find(another=(change, version) == ("find", 2)))
        return made

    def _function(self) -> Any:
        async def act(record: int, under: str) -> str:
            outcome = self.books.act(self.service, record, self.policy.kind, under)
            while hangs(record) and not self.books.gate.exists():  # noqa: ASYNC110  # a file is looked at, by any process
                await asyncio.sleep(0.02)
            return outcome

        async def with_key(order: Order, key: IdempotencyKey) -> str:
            return await act(order.id, str(key))

        async def without(order: Order) -> str:
            return await act(order.id, "-")

        return without if self.policy.kind == "hold" else with_key

    def _find(self, *, another: bool) -> Any:
        def charged(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
            there = any((record, under) == (order.id, str(key)) for record, _, under in self.books.lines(self.service))
            return f"{self.service} {order.id}" if there else Absent()

        def charged_too(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
            return charged(order, key)

        return charged_too if another else charged


def shop(url: str, folder: Path, change: str, version: int) -> App:
    """The code of version 1 or 2, between which there is this change."""
    app = App("rolled", Store(url, Base))
    if change == "condition":
        wide = or_(Order.status == "archived", Order.status == "closed")

        @app.on(Order, wide if version == 2 else Order.status == "archived", name="swept")
        def swept(order: Order) -> None:
            order.status = "swept"

        return app
    call = _Charging(Books(folder), "psp" if (change, version) == ("service", 2) else "bank", _policy(change, version)).call(
        change, version
    )
    changed: dict[str, dict[str, Any]] = {
        "occurrence": {"occurrence": [Order.round]},
        "in_order": {"in_order": InOrder(Order.customer, Order.id)},
        "per": {"per": Order.customer},
    }
    options = changed.get(change, {}) if version == 2 else {}
    narrow = [Order.round == 1] if change in LEAVES_OUT and version == 2 else []

    @app.on(Order, Order.status == "placed", *narrow, call=call, name="paid", **options)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    if (change, version) == ("split", 2):

        @app.on(Order, Order.status == "placed", Order.round == 2, call=call)
        def paid_too(order: Order, outcome: str) -> None:
            order.status, order.receipt = "paid", outcome

    return app


def _policy(change: str, version: int) -> InDoubt:
    match change, version:
        case "key", 1:
            return InDoubt.hold()
        case "key", 2:
            return SAME_KEY
        case "repeat", 2:
            return InDoubt.repeat()
        case _:
            return ASK


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

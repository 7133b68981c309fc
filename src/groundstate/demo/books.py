"""Reads three independent records (books) and checks that they agree: the orders with the customers who placed them, the gateway's ledger,
and the mails.

`read_books` reads them when all processes have ended, and `compare_books`, a pure function, compares them. The worker is not trusted: the
row of an order must match what the gateway, the mail server and the customers wrote down themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, Engine, text

from groundstate.demo import ledger
from groundstate.demo.ledger import Entry

CUSTOMERS, CHARGES, MAILS = "customers.jsonl", "gateway.jsonl", "mails.jsonl"  # names of the books' files in the demo's folder


@dataclass(frozen=True)
class OrderRow:
    """The row of an order at the end of the demo."""

    id: int
    email: str
    total: int
    status: str
    receipt: str | None
    mailed: bool


@dataclass(frozen=True)
class Attempt:
    """A row of `groundstate_attempt` at the end of the demo: work on an order that is not finished."""

    reaction: str
    record: str
    state: str
    unsure: bool
    why: str | None
    error: str | None


@dataclass(frozen=True)
class Books:
    """What each party has written down: the customers, the gateway, the mail server, and the shop's database."""

    customers: Sequence[Entry] = ()
    charges: Sequence[Entry] = ()
    mails: Sequence[Entry] = ()
    orders: Sequence[OrderRow] = ()
    attempts: Sequence[Attempt] = ()


@dataclass(frozen=True)
class Fault:
    """A contradiction between the books. order: the number of the order; None if it concerns no order."""

    order: int | None
    what: str


@dataclass(frozen=True)
class Held:
    """An attempt that waits for a person, with its reason, and what the book of the gateway or the mail server says about it."""

    reaction: str
    order: int
    why: str
    evidence: str


@dataclass(frozen=True)
class Balance:
    """The result of comparing the books. The books balance if there are no faults. counts: numbers to show, by label."""

    faults: tuple[Fault, ...]
    held: tuple[Held, ...]
    counts: Mapping[str, int]


def read_books(folder: Path, engine: Engine) -> Books:
    """Read the books as they are now. The database is only read."""
    with engine.connect() as connection:
        orders, attempts = _read_orders(connection), _read_attempts(connection)
    customers, charges, mails = (ledger.read_entries(folder / name) for name in (CUSTOMERS, CHARGES, MAILS))
    return Books(customers, charges, mails, orders, attempts)


def _read_orders(connection: Connection) -> list[OrderRow]:
    rows = connection.execute(text("select id, email, total, status, receipt, mailed_at from orders order by id"))
    return [OrderRow(row.id, row.email, row.total, row.status, row.receipt, row.mailed_at is not None) for row in rows]


def _read_attempts(connection: Connection) -> list[Attempt]:
    statement = "select reaction, record, state, unsure, why, error from groundstate_attempt where app = 'shop' order by reaction, record"
    return [
        Attempt(row.reaction, row.record, row.state, bool(row.unsure), row.why, row.error) for row in connection.execute(text(statement))
    ]


@dataclass
class _Case:
    """Everything in the books that concerns one order."""

    order: OrderRow
    charged: list[Entry] = field(default_factory=list)
    declined: list[Entry] = field(default_factory=list)
    mails: list[Entry] = field(default_factory=list)
    attempts: dict[str, Attempt] = field(default_factory=dict)

    def is_held(self, reaction: str) -> bool:
        """Return whether the attempt of this reaction for the order is held (waits for a person)."""
        attempt = self.attempts.get(reaction)
        return attempt is not None and attempt.state == "held"


def compare_books(books: Books) -> Balance:
    """Compare the books with each other and return the result. Nothing is read or written."""
    cases = {order.id: _Case(order) for order in books.orders}
    faults = [*_faults_of_customers(books, cases), *_sort_entries_by_order(books, cases)]
    held: list[Held] = []
    for case in cases.values():
        faults += [Fault(case.order.id, what) for what in (*_faults_of_progress(case), *_faults_of_charges(case), *_faults_of_mails(case))]
        held += [_describe_held_attempt(case, attempt) for attempt in case.attempts.values() if attempt.state == "held"]
    return Balance(tuple(faults), tuple(held), _counts_by_label(books, cases))


def _faults_of_customers(books: Books, cases: Mapping[int, _Case]) -> Iterator[Fault]:
    asked = {entry["email"] for entry in books.customers}
    for entry in books.customers:
        if "order" not in entry:
            continue
        case = cases.get(entry["order"])
        if case is None:
            yield Fault(entry["order"], "was accepted, and is not in the database: lost")
        elif (case.order.email, case.order.total) != (entry["email"], entry["total"]):
            yield Fault(entry["order"], "is not what the customer ordered")
    seen: set[str] = set()
    for case in cases.values():
        if case.order.email not in asked:
            yield Fault(case.order.id, "is in the database, and nobody ordered it")
        if case.order.email in seen:
            yield Fault(case.order.id, "is in the database a second time")
        seen.add(case.order.email)


def _sort_entries_by_order(books: Books, cases: Mapping[int, _Case]) -> Iterator[Fault]:
    for entry in books.charges:
        case = cases.get(entry["order"])
        if case is None:
            yield Fault(entry["order"], f"has {entry['id']} in the gateway's ledger, and is not in the database")
        else:
            (case.charged if entry["outcome"] == "charged" else case.declined).append(entry)
    for entry in books.mails:
        case = cases.get(entry["order"])
        if case is None:
            yield Fault(entry["order"], "had a mail, and is not in the database")
        else:
            case.mails.append(entry)
    for attempt in books.attempts:
        case = cases.get(int(attempt.record)) if attempt.record.isdecimal() else None
        if case is None:
            yield Fault(None, f"{attempt.reaction} {attempt.record} is {attempt.state}, and there is no such order")
        else:
            case.attempts[attempt.reaction] = attempt


def _faults_of_progress(case: _Case) -> Iterator[str]:
    """Yield a text for each fault in an order's progress: the order must be packed or cancelled, or have a held attempt."""
    for attempt in case.attempts.values():
        if attempt.state != "held":
            yield f"was not finished: {attempt.reaction} is {attempt.state} ({attempt.error or attempt.why or 'no error'})"
    # An attempt of the reaction `mailed` does not keep an order from being packed, so it does not explain the order's status.
    if case.order.status not in ("packed", "cancelled") and not case.attempts.keys() - {"mailed"}:
        yield f"stopped at '{case.order.status}', and is listed nowhere"


def _faults_of_charges(case: _Case) -> Iterator[str]:
    """Yield a text for each fault in an order's charges.

    A paid order must be charged once. An unpaid order must not be charged, unless the attempt to charge it is held.
    """
    order, charges = case.order, [charge["id"] for charge in case.charged]
    if len(charges) > 1:
        yield f"was charged {len(charges)} times: {', '.join(charges)}"
    if order.receipt is not None and not charges:
        yield f"has the receipt {order.receipt}, and was never charged"
    elif order.receipt is not None and order.receipt not in charges:
        yield f"has the receipt {order.receipt}, and was charged as {charges[0]}"
    if order.receipt is None and charges and not case.is_held("paid"):
        yield f"was charged as {charges[0]}, and does not know it"
    if any(charge["amount"] != order.total for charge in case.charged):
        yield "was charged another amount than its total"
    if order.status in ("paid", "packed") and order.receipt is None:
        yield f"is '{order.status}' without a receipt"
    if order.status in ("declined", "cancelled") and not case.declined:
        yield f"is '{order.status}', and the gateway never declined it"


def _faults_of_mails(case: _Case) -> Iterator[str]:
    """Yield a text for each fault in an order's mails.

    An order that is marked as mailed must have one mail. No order may have two mails. An order that has a mail but is not marked as mailed
    must have a held attempt.
    """
    order, mails = case.order, len(case.mails)
    if mails > 1:
        yield f"had {mails} mails"
    if order.mailed and not mails:
        yield "says that its mail has gone out, and none arrived"
    if mails and order.receipt is None:
        yield "had a mail for a receipt that it does not have"
    elif mails and not order.mailed and not case.is_held("mailed"):
        yield "had its mail, and does not know it"
    if not mails and order.receipt is not None and not order.mailed and "mailed" not in case.attempts:
        yield "never had its mail, and is listed nowhere"
    if any(mail["to"] != [order.email] for mail in case.mails):
        yield "had its mail sent to somebody else"


def _describe_held_attempt(case: _Case, attempt: Attempt) -> Held:
    if attempt.reaction == "mailed":
        evidence = "the mail arrived" if case.mails else "no mail arrived"
    else:
        evidence = f"charged as {case.charged[0]['id']}" if case.charged else "declined" if case.declined else "not charged"
    why = " - ".join(part for part in (attempt.why, attempt.error) if part)
    return Held(attempt.reaction, case.order.id, why or "no reason was given", evidence)


def _counts_by_label(books: Books, cases: Mapping[int, _Case]) -> dict[str, int]:
    statuses: dict[str, int] = defaultdict(int)
    for case in cases.values():
        statuses[case.order.status] += 1
    return {
        "accepted by the shop": sum("order" in entry for entry in books.customers),
        "not accepted": sum("refused" in entry for entry in books.customers),
        "in the database": len(books.orders),
        "packed": statuses["packed"],
        "cancelled": statuses["cancelled"],
        "with a receipt": sum(case.order.receipt is not None for case in cases.values()),
        "charged by the gateway": sum(len(case.charged) for case in cases.values()),
        "declined by the gateway": sum(len(case.declined) for case in cases.values()),
        "marked as mailed": sum(case.order.mailed for case in cases.values()),
        "mails that arrived": len(books.mails),
        "held for a person": sum(attempt.state == "held" for attempt in books.attempts),
    }

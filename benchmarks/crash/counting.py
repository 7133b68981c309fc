"""Counts what became of the orders, from three books: the gateway's ledger, the shop's table, and the lists of the contender's own tools.

The functions are pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from groundstate.demo.ledger import Entry


@dataclass(frozen=True)
class Row:
    """An order's row in the shop's table."""

    status: str
    receipt: str | None


@dataclass(frozen=True)
class Counts:
    """Counts of orders, except `unlisted`, which counts charges. An order may count as doubled and as stuck."""

    orders: int
    right: int  # charged once or refused, and the table agrees
    doubled: int  # more than one charge
    lost: int  # no answer in the table and no charge, and no tool lists the order as unfinished
    stuck: int  # still listed by the contender's own tools after it did nothing for longer than its own timeouts
    unlisted: int  # charges that are not in the order's row, of orders that no tool lists
    stuck_as: Mapping[str, int] = field(default_factory=dict)  # counts of stuck orders by the contender's own word


def count_orders(rows: Mapping[int, Row], ledger: Sequence[Entry], listed: Mapping[int, str]) -> Counts:
    """Return the counts of a run after all its work has come to rest. listed: the contender's own list of unfinished orders."""
    charges: dict[int, list[str]] = {}
    refused: set[int] = set()
    for entry in ledger:
        if entry["outcome"] == "charged":
            charges.setdefault(entry["order"], []).append(entry["id"])
        else:
            refused.add(entry["order"])

    def is_right(number: int, row: Row) -> bool:
        made = charges.get(number, [])
        return (row.status == "paid" and made == [row.receipt]) or (row.status == "declined" and not made and number in refused)

    def is_lost(number: int, row: Row) -> bool:
        return number not in charges and number not in listed and not is_right(number, row)

    return Counts(
        orders=len(rows),
        right=sum(is_right(number, row) for number, row in rows.items()),
        doubled=sum(len(made) > 1 for made in charges.values()),
        lost=sum(is_lost(number, row) for number, row in rows.items()),
        stuck=len(listed),
        unlisted=sum(
            number not in rows or charge != rows[number].receipt
            for number, made in charges.items()
            if number not in listed
            for charge in made
        ),
        stuck_as=dict(Counter(listed.values())),
    )

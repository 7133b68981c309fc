"""What became of the orders, from three books: the gateway's ledger, the shop's table, and what the contender's own tools list. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from groundstate.demo.ledger import Entry


@dataclass(frozen=True)
class Row:
    """An order as the shop's table has it."""

    status: str
    receipt: str | None


@dataclass(frozen=True)
class Counts:
    """Orders, but for `unlisted`, which counts charges. One order may be doubled and stuck."""

    orders: int
    right: int  # charged once and so in the table, or refused and so in the table
    doubled: int  # more than one charge
    lost: int  # no answer in the table, no charge, and no tool lists it as anything that is to be done
    stuck: int  # still listed by the contender's own tools when it was quiet for longer than its own timeouts
    unlisted: int  # charges that the order's row does not know, of orders that no tool lists
    stuck_as: Mapping[str, int] = field(default_factory=dict)  # in the contender's own words


def count(rows: Mapping[int, Row], ledger: Sequence[Entry], listed: Mapping[int, str]) -> Counts:
    """The counts of one run that has come to rest."""
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

"""The orders and attempts of the shop as the judge reads them, by plain SQL; the framework takes no part in it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, bindparam, text

from tools.torture.ledger import Effect
from tools.torture.shop import FINAL, THANKED_OF

REACTIONS = {
    "charge": ("paid",),
    "label": ("labelled", "stickered"),
    "mail": ("mailed",),
    "announce": ("announced",),
    "insure": ("insured",),
    "thank": ("thanked",),
}
KILLED = "its worker ended while it was carried out"  # the beginning of the reason that careful mode gives (hazard 25)
OLD_KEY = "in doubt, and its key is too old to call again"
LOST_TIME = "in doubt, and the database went back in time: it may have been called in the lost time"
DELETED = "the record was deleted while its call was in doubt"
OTHER_CODE = "begun by other code"
OTHER_ROUND = "its occurrence changed"
BASELINE = "baseline"  # the reason of rows that a person said to leave as they are
MANY = 5000  # for more orders than this, all orders are read


@dataclass(frozen=True)
class OrderSeen:
    """An order as it is in the database, or as it was when it was deleted."""

    id: int
    status: str
    round: int
    rounds: int
    charged_round: int
    receipt: str | None
    label: str | None
    listing: str | None
    mailed: str | None
    announced: str | None
    surveyed: int | None
    term: int
    insured_term: int
    policy: str | None
    thanked: str | None

    def is_concluded(self, effect: Effect) -> bool:
        """Return whether the record shows that this effect's call is concluded."""
        match effect.call:
            case "charge":
                return self.charged_round >= int(effect.occurrence)
            case "label":
                return self.label is not None
            case "mail":
                return self.mailed is not None
            case "announce":
                return self.announced is not None
            case "insure":
                return self.insured_term >= int(effect.occurrence)
            case "thank":
                return self.thanked is not None
            case _:
                return True

    def meets_condition(self, effect: Effect) -> bool:
        """Return whether the condition of this effect's reaction holds for the order now, under the effect's occurrence."""
        match effect.call:
            case "charge":
                return self.status == "placed" and effect.occurrence == str(self.round)
            case "label":
                return self.status == "packed"
            case "mail":
                return self.receipt is not None and self.mailed is None
            case "announce":
                return self.label is not None and self.announced is None
            case "insure":
                return self.receipt is not None and self.insured_term < self.term and effect.occurrence == str(self.term)
            case "thank":
                return self.status == "done" and self.thanked is None and self.id % THANKED_OF == 0
            case _:
                return False

    def list_open_work(self, *, surveys: bool, left: bool = False) -> list[str]:
        """Return the work that is still to be done for the order.

        surveys: whether the reaction of version 2 has been deployed.
        left: whether a person said not to thank for the order.
        """
        owed = [] if self.status in FINAL else [f"is {self.status}"]
        if self.receipt is not None and self.mailed is None:
            owed.append("has no mail")
        if self.receipt is not None and self.insured_term < self.term:
            owed.append("is not insured")
        if self.label is not None and self.announced is None:
            owed.append("is not announced")
        if surveys and self.status == "done" and self.surveyed is None:
            owed.append("is not surveyed")
        if self.status == "done" and self.id % THANKED_OF == 0 and self.thanked is None and not left:
            owed.append("has no flowers")
        return owed


@dataclass(frozen=True)
class AttemptSeen:
    """A row of `groundstate_attempt`."""

    reaction: str
    record: str
    occurrence: str
    state: str
    unsure: bool
    failures: int
    call_no: int
    why: str | None
    error: str | None
    outcome: str | None
    worker: int
    next_at: str | None

    @property
    def key(self) -> tuple[str, str, str]:
        """The reaction, record and occurrence that identify the attempt."""
        return (self.reaction, self.record, self.occurrence)

    @property
    def is_open(self) -> bool:
        """Return whether the call was made, or may have been, and is not concluded."""
        return self.state == "begun" or self.unsure or self.outcome is not None

    def has_outcome_in(self, column: str | None) -> bool:
        """Return whether the attempt's outcome is already in this column of the record.

        Then the attempt may be held: its outcome came again after its row was deleted, and no overtaken handler compares it.
        """
        return self.outcome is not None and column is not None and set(json.loads(self.outcome)) == {column}


_COLUMNS = (
    "id, status, round, rounds, charged_round, receipt, label, listing, mailed, announced, surveyed, term, insured_term, policy, thanked"
)
_ATTEMPTS = (
    "SELECT reaction, record, occurrence, state, unsure, failures, call_no, why, error, outcome, worker, CAST(next_at AS TEXT)"
    " FROM groundstate_attempt WHERE NOT (state = 'held' AND coalesce(why, '') = :baseline)"
)
_UNFINISHED = (
    "status NOT IN ('done', 'cancelled') OR (receipt IS NOT NULL AND mailed IS NULL) OR (label IS NOT NULL AND announced IS NULL)"
    " OR (status = 'done' AND surveyed IS NULL) OR (receipt IS NOT NULL AND insured_term < term)"
    f" OR (status = 'done' AND thanked IS NULL AND id % {THANKED_OF} = 0)"
)


class Books:
    """The shop's database, read by plain SQL. Its methods raise DBAPIError where the database is in trouble."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def query_rows(self, sql: str, **given: Any) -> Sequence[Any]:
        """Run a SELECT and return its rows."""
        with self._engine.connect() as connection:
            return connection.execute(text(sql), given).all()

    def read_attempts(self) -> list[AttemptSeen]:
        """Return all attempts except baselines."""
        return [
            AttemptSeen(row[0], row[1], row[2], row[3], bool(row[4]), *row[5:]) for row in self.query_rows(_ATTEMPTS, baseline=BASELINE)
        ]

    def read_baselines(self) -> set[tuple[str, str]]:
        """Return reaction and record of the rows that a person said to leave as they are."""
        rows = self.query_rows("SELECT reaction, record FROM groundstate_attempt WHERE state = 'held' AND why = :why", why=BASELINE)
        return {(row[0], row[1]) for row in rows}

    def read_unfinished(self, *, surveys: bool, left: Collection[str] = ()) -> list[OrderSeen]:
        """Return the orders for which work is still to be done. left: ids of orders that a person said not to thank for."""
        found = [OrderSeen(*row) for row in self.query_rows(f"SELECT {_COLUMNS} FROM orders WHERE {_UNFINISHED}")]  # noqa: S608  # all parts of the statement are constants of this module
        return [order for order in found if order.list_open_work(surveys=surveys, left=str(order.id) in left)]

    def read_orders(self, among: Collection[int] | None = None, table: str = "orders") -> dict[int, OrderSeen]:
        """Return the orders with these ids, or all orders, by id."""
        sql = f"SELECT {_COLUMNS} FROM {table}"  # noqa: S608  # all parts of the statement are constants of this module
        if among is not None and not among:
            return {}
        if among is None or len(among) > MANY:
            return {row[0]: OrderSeen(*row) for row in self.query_rows(sql)}
        statement = text(f"{sql} WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
        with self._engine.connect() as connection:
            return {row[0]: OrderSeen(*row) for row in connection.execute(statement, {"ids": sorted(among)})}

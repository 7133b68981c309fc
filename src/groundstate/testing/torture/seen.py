"""What the judge reads of the shop: orders and attempts as they stand, by plain SQL. Nothing of the framework takes part; no verdict."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, bindparam, text

from groundstate.testing.torture.ledger import Effect
from groundstate.testing.torture.shop import FINAL, THANKED_OF

REACTIONS = {
    "charge": ("paid",),
    "label": ("labelled", "stickered"),
    "mail": ("mailed",),
    "announce": ("announced",),
    "insure": ("insured",),
    "thank": ("thanked",),
}
KILLED = "its worker ended while it was carried out"  # so begins careful mode's own reason (hazard 25)
OLD_KEY = "in doubt, and its key is too old to call again"
LOST_TIME = "in doubt, and the database went back in time: it may have been called in the lost time"
DELETED = "the record was deleted while its call was in doubt"
OTHER_CODE = "begun by other code"
OTHER_ROUND = "its occurrence changed"
BASELINE = "baseline"  # it was there before a person said to leave what was there
MANY = 5000  # of more orders than so many all are read


@dataclass(frozen=True)
class OrderSeen:
    """An order as it stands in the database, or as it stood when it was deleted."""

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

    def concluded(self, effect: Effect) -> bool:
        """Whether this effect's own call is in the record."""
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

    def asks_for(self, effect: Effect) -> bool:
        """Whether the condition of this effect's reaction holds for it as it stands, under the effect's occurrence."""
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

    def owes(self, *, surveys: bool, left: bool = False) -> list[str]:
        """What is still to be done for it. surveys: the second version's reaction is there. left: a person said not to thank for it."""
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
        """Which one it is."""
        return (self.reaction, self.record, self.occurrence)

    @property
    def is_open(self) -> bool:
        """Whether its call was made, or may have been, and nobody has concluded it."""
        return self.state == "begun" or self.unsure or self.outcome is not None

    def says_what_is_in(self, column: str | None) -> bool:
        """An outcome that came once more after its attempt was gone, and that the record has: held, since no overtaken handler compares."""
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
    """The shop's database, read by plain SQL. What reads it raises where that is in trouble."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def rows(self, sql: str, **given: Any) -> Sequence[Any]:
        """Plain SQL's rows."""
        with self._engine.connect() as connection:
            return connection.execute(text(sql), given).all()

    def attempts(self) -> list[AttemptSeen]:
        """All that stand, but for baselines."""
        return [AttemptSeen(row[0], row[1], row[2], row[3], bool(row[4]), *row[5:]) for row in self.rows(_ATTEMPTS, baseline=BASELINE)]

    def baselines(self) -> set[tuple[str, str]]:
        """Reaction and record of what a person said to leave as it is."""
        rows = self.rows("SELECT reaction, record FROM groundstate_attempt WHERE state = 'held' AND why = :why", why=BASELINE)
        return {(row[0], row[1]) for row in rows}

    def unfinished(self, *, surveys: bool, left: Collection[str] = ()) -> list[OrderSeen]:
        """The orders for which something is still to be done. left: numbers of those of which a person said not to thank for them."""
        found = [OrderSeen(*row) for row in self.rows(f"SELECT {_COLUMNS} FROM orders WHERE {_UNFINISHED}")]  # noqa: S608  # our own words
        return [order for order in found if order.owes(surveys=surveys, left=str(order.id) in left)]

    def orders(self, among: Collection[int] | None = None, table: str = "orders") -> dict[int, OrderSeen]:
        """These orders, or all, by their number."""
        sql = f"SELECT {_COLUMNS} FROM {table}"  # noqa: S608  # our own words
        if among is not None and not among:
            return {}
        if among is None or len(among) > MANY:
            return {row[0]: OrderSeen(*row) for row in self.rows(sql)}
        statement = text(f"{sql} WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
        with self._engine.connect() as connection:
            return {row[0]: OrderSeen(*row) for row in connection.execute(statement, {"ids": sorted(among)})}

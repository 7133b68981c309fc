"""Books that a test forges: a database and a ledger, and the judge of both."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, insert, text
from tools.torture.judge import Judge
from tools.torture.ledger import Ledger, Reader
from tools.torture.shop import Base, GoneOrder, Order

from groundstate.store import tables

THEN = datetime(2026, 1, 1, tzinfo=UTC)


class Books:
    """A database and a ledger that a test forges, and the judge of both."""

    def __init__(self, folder: Path) -> None:
        self.engine: Engine = create_engine(f"sqlite:///{folder / 'books.db'}")
        Base.metadata.create_all(self.engine)
        tables.metadata.create_all(self.engine)
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.judge = Judge(self.engine, Reader(folder / "ledger.jsonl"))

    def effect(self, call: str = "charge", record: int = 1, occurrence: str = "1", *, at: float = 0.0, **more: Any) -> str:
        """What was done outside; its id."""
        asked = {"call": call, "key": more.pop("key", f"{call} {record} {occurrence}"), "record": str(record), "occurrence": occurrence}
        return self.ledger.carry_out(asked | {"pid": more.pop("pid", 1)}, at, at, **more).id

    def order(self, status: str = "done", number: int = 1, *, gone: bool = False, placed: bool = True, **columns: Any) -> None:
        if placed:
            self.judge.placed.append(number)
        values = {"id": number, "status": status, "round": 1, "rounds": 1, "charged_round": 0, "surveyed": 1, "term": 1, "insured_term": 1}
        if "insured_term" not in columns:  # unless it is about insurances, it has one
            columns["policy"] = self.effect("insure", number)
        values |= columns
        with self.engine.begin() as connection:
            connection.execute(insert(GoneOrder if gone else Order).values(**values))

    def attempt(self, state: str, reaction: str = "paid", occurrence: str = "1", record: int = 1, **columns: Any) -> None:
        values: dict[str, Any] = {"app": "torture", "reaction": reaction, "record": str(record), "occurrence": occurrence, "state": state}
        values |= {"unsure": state == "doubt", "call": 1, "call_no": 1, "failures": 0, "worker": 1, "together": 0}
        values |= dict.fromkeys(("since", "first_at", "deadline"), THEN)
        with self.engine.begin() as connection:
            connection.execute(insert(tables.attempt).values(values | columns))

    def life(self, pid: int) -> None:
        """A row of a worker that has not ended."""
        with self.engine.begin() as connection:
            connection.execute(insert(tables.worker).values(id=1, app="torture", host="here", pid=pid, began_at=THEN, begins=0))

    def whole(self, number: int = 1, **columns: Any) -> None:
        """An order that went all the way."""
        ids = {call: self.effect(call, number, "") for call in ("label", "mail", "listing", "announce")}
        named = {"label": ids["label"], "mailed": ids["mail"], "listing": ids["listing"], "announced": ids["announce"]}
        self.order(number=number, charged_round=1, receipt=self.effect("charge", number), **named | columns)

    def run(self, statement: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(statement))

    @property
    def named(self) -> set[str]:
        """The invariants that the judge found broken."""
        return {fault.split(":")[0] for fault in self.judge.faults}

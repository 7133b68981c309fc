"""The judge itself: a verdict that cannot find fault says nothing, so each invariant is broken here once and must be named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from tests.kill.judge import KILLED, Judge
from tests.kill.provider import Ledger

_ORDER = "INSERT INTO orders VALUES (:id, :status, :round, :rounds, :charged, :receipt, :label, :listing, :mailed)"
_ATTEMPT = "INSERT INTO groundstate_attempt VALUES (:reaction, :record, :occurrence, :state, :unsure, 0, :why, NULL, NULL)"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'books.db'}")
    with made.begin() as connection:
        columns = "id INTEGER PRIMARY KEY, status, round, rounds, charged_round, receipt, label, listing, mailed"
        connection.execute(text(f"CREATE TABLE orders ({columns})"))
        columns = "reaction, record, occurrence, state, unsure, failures, why, error, outcome"
        connection.execute(text(f"CREATE TABLE groundstate_attempt ({columns})"))
        connection.execute(text("CREATE TABLE groundstate_worker (life, pid, began_at, ended_at)"))
    yield made
    made.dispose()


def charged(ledger: Ledger, key: str = "k", record: str = "1", call: str = "charge", occurrence: str = "1", at: float = 0.0) -> str:
    """An effect in the ledger; its id."""
    asked = {"call": call, "key": key, "record": record, "occurrence": occurrence, "pid": 1}
    return ledger.land(asked, at, at).id


def order(engine: Engine, status: str = "done", number: int = 1, **columns: object) -> None:
    values = {"id": number, "status": status, "round": 1, "rounds": 1, "charged": 0}
    values |= {"receipt": None, "label": None, "listing": None, "mailed": None} | columns
    with engine.begin() as connection:
        connection.execute(text(_ORDER), values)


def attempt(engine: Engine, state: str, reaction: str = "paid", occurrence: str = "1", **columns: object) -> None:
    values = {"reaction": reaction, "record": "1", "occurrence": occurrence, "state": state, "unsure": state == "doubt", "why": None}
    with engine.begin() as connection:
        connection.execute(text(_ATTEMPT), values | columns)


def whole(ledger: Ledger, engine: Engine) -> None:
    """An order that went all the way."""
    ids = {call: charged(ledger, key=call, call=call, occurrence="") for call in ("label", "mail", "listing")}
    ids["charge"] = charged(ledger, key="charge")
    order(engine, charged=1, receipt=ids["charge"], label=ids["label"], listing=ids["listing"], mailed=ids["mail"])


def names(judge: Judge) -> set[str]:
    return {fault.split(":")[0] for fault in judge.faults}


def test_an_order_that_went_all_the_way_is_no_fault(engine: Engine) -> None:
    judge = Judge(engine, Ledger())
    whole(judge.ledger, engine)
    assert judge.verdict([1]) == {}
    assert judge.faults == []


def test_a_charge_that_is_in_no_record_and_has_no_attempt_is_unlisted(engine: Engine) -> None:
    judge = Judge(engine, Ledger())
    order(engine, "placed")
    charged(judge.ledger)
    judge.sample()
    assert names(judge) == {"Listed"}


def test_a_charge_whose_attempt_stands_is_listed(engine: Engine) -> None:
    judge = Judge(engine, Ledger())
    order(engine, "placed")
    attempt(engine, "doubt")
    charged(judge.ledger)
    judge.sample()
    assert judge.faults == []


def test_an_attempt_of_another_occurrence_lists_nothing(engine: Engine) -> None:
    judge = Judge(engine, Ledger())
    order(engine, "placed")
    attempt(engine, "doubt", occurrence="2")
    charged(judge.ledger)
    judge.sample()
    assert names(judge) == {"Listed"}


@pytest.mark.parametrize("call", ["charge", "mail"])
def test_done_twice_is_named(engine: Engine, call: str) -> None:
    judge = Judge(engine, Ledger())
    order(engine, charged=1, mailed="mail-1")
    charged(judge.ledger, call=call)
    charged(judge.ledger, call=call)
    judge.sample()
    assert names(judge) == {"AtMostOnce"}


def test_a_key_called_again_after_the_provider_forgot_it_is_named(engine: Engine) -> None:
    judge = Judge(engine, Ledger())
    order(engine, label="label-1")
    charged(judge.ledger, call="label", at=0)
    charged(judge.ledger, call="label", at=19)
    judge.sample()
    assert judge.faults == []
    charged(judge.ledger, call="label", at=21)
    judge.sample()
    assert names(judge) == {"OncePerKey"}


def test_an_order_that_vanished_or_stands_still_is_lost(engine: Engine) -> None:
    judge = Judge(engine, Ledger())
    order(engine, "packed", number=2)
    judge.verdict([1, 2])
    assert names(judge) == {"NotLost"}
    assert len(judge.faults) == 2


def test_a_charge_that_the_ledger_does_not_know_is_no_charge(engine: Engine) -> None:
    judge = Judge(engine, Ledger())
    order(engine, "cancelled", charged=1, receipt="charge-9", mailed="mail-9")
    judge.verdict([1])
    assert names(judge) == {"NotLost", "Fenced"}


def test_a_receipt_of_another_order_is_named(engine: Engine) -> None:
    judge = Judge(engine, Ledger())
    whole(judge.ledger, engine)
    other = charged(judge.ledger, key="other", record="2")
    order(engine, "cancelled", number=2, charged=1, receipt=other, mailed="mail-3")
    with engine.begin() as connection:
        connection.execute(text("UPDATE orders SET receipt = :other WHERE id = 1"), {"other": other})
    judge.verdict([1])
    assert names(judge) == {"Fenced"}


def test_what_stands_when_nothing_is_to_be_done_is_named(engine: Engine) -> None:
    judge = Judge(engine, Ledger())
    whole(judge.ledger, engine)
    attempt(engine, "failed")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO groundstate_worker VALUES (1, 2, 'then', NULL)"))
    judge.verdict([1])
    assert names(judge) == {"NothingAtRest"}
    assert len(judge.faults) == 2


def test_only_hold_and_careful_mode_may_hold(engine: Engine) -> None:
    judge = Judge(engine, Ledger())
    whole(judge.ledger, engine)
    attempt(engine, "held", reaction="mailed", occurrence="", unsure=True, why="a person decides")
    attempt(engine, "held", reaction="packed", occurrence="", unsure=False, why=KILLED)
    assert sum(judge.verdict([1]).values()) == 2
    assert judge.faults == []
    attempt(engine, "held", reaction="paid", unsure=True, why="anything else")
    judge.verdict([1])
    assert names(judge) == {"HeldForAReason"}

"""`plan` tells what this code would do before it does it, by SELECTs alone, and by its exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from groundstate.rules.attempt import State
from tests.cli.conftest import Said, Shop


def planned(shop: Shop, code: int) -> dict[str, Any]:
    said = shop.run("plan", "--json")
    assert said.code == code, said.err or said.out
    found: dict[str, Any] = said.json["stores"][0]["plan"]
    return {one["reaction"]: one for one in found["reactions"]} | {"": found}


def edit(shop: Shop, before: str, after: str) -> None:
    """The app's module says something else from now on."""
    path = Path(f"{shop.module}.py")
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    sys.modules.pop(shop.module, None)


def test_code_that_stands_as_it_was_accepted_changes_nothing(shop: Shop) -> None:
    shop.order("placed", 3)
    found = planned(shop, 0)
    assert {one["standing"] for name, one in found.items() if name} == {"unchanged"}
    assert found["paid"]["rows"] == 3
    assert "All of it runs" in shop.run("plan").out


def test_the_first_deployment_on_old_rows_needs_somebody(bare: Shop) -> None:
    assert bare.run("plan").code == 4  # our tables are not there
    bare.run("init", "--tables")
    bare.sql("DELETE FROM groundstate_reaction WHERE name <> ''")
    bare.order("placed", 2)
    found = planned(bare, 1)
    assert found[""]["first"]
    assert (found["paid"]["standing"], found["paid"]["rows"], found["paid"]["starts"]) == ("new", 2, False)
    assert found["packed"]["starts"]
    said = bare.run("plan")
    assert "init --accept paid" in said.out
    assert "--baseline paid" in said.out


def test_a_changed_condition_is_shown_beside_the_old_one_with_what_it_takes_more_and_fewer(shop: Shop) -> None:
    shop.order("placed", 3)
    shop.order("reserved", 2)
    edit(shop, 'Order.status == "placed"', 'Order.status == "reserved"')
    found = planned(shop, 1)
    paid = found["paid"]
    assert (paid["standing"], paid["rows"], paid["more"], paid["fewer"]) == ("changed", 2, 2, 3)
    assert "placed" in paid["was"]
    assert "reserved" in paid["condition"]
    out = shop.run("plan").out
    assert "was orders.status = 'placed'" in out
    assert "is  orders.status = 'reserved'" in out


def test_a_changed_condition_that_takes_nothing_more_is_silent(shop: Shop) -> None:
    shop.order("placed", 3)
    edit(shop, 'Order.status == "placed"', 'Order.status == "reserved"')
    assert planned(shop, 0)["paid"]["fewer"] == 3


def test_a_reaction_that_is_gone_with_open_attempts_would_be_refused(shop: Shop) -> None:
    edit(shop, "def packed(", "def wrapped(")
    found = planned(shop, 1)
    assert (found["packed"]["standing"], found["wrapped"]["standing"]) == ("gone", "new")
    assert "groundstate rename packed wrapped" in found["wrapped"]["needs"]
    shop.attempt("packed", "1", State.FAILED)
    found = planned(shop, 1)
    assert found["packed"]["open_attempts"] == 1
    assert "groundstate rename packed NEW" in found[""]["refused"][0]
    assert "A start is refused" in shop.run("plan").out


def test_a_reaction_that_is_gone_with_nothing_but_rows_it_left_out_keeps_no_code_from_starting(shop: Shop) -> None:
    shop.attempt("shipped", "1", State.HELD, why="baseline")
    assert planned(shop, 0)[""]["refused"] == []
    columns = "key_name, condition, suspect, seen_at, app"
    shop.sql(
        f"INSERT INTO groundstate_reaction (name, {columns}) SELECT 'shipped', {columns} FROM groundstate_reaction WHERE name = 'packed'"
    )
    assert planned(shop, 0)["shipped"]["open_attempts"] == 0


def test_held_outcomes_that_the_new_code_cannot_load_are_named_and_end_with_1(shop: Shop) -> None:
    shop.attempt("paid", "1", State.HELD, why="a bug", outcome='["r1"]')
    shop.attempt("paid", "2", State.HELD, why="a bug", outcome='["r2", "r3"]')
    shop.attempt("mailed", "1", State.HELD, why="a bug", outcome='["m1"]')
    assert planned(shop, 0)["paid"]["not_loaded"] == []
    edit(shop, '-> str:\n    return f"r{order.id}"', "-> int:\n    return order.id")
    edit(shop, "-> str | Absent | Unknown:", "-> int | Absent | Unknown:")
    edit(shop, "def paid(order: Order, outcome: str)", "def paid(order: Order, outcome: int)")
    found = planned(shop, 1)
    assert [one["record"] for one in found["paid"]["not_loaded"]] == ["1", "2"]
    assert "no outcome of type int" in found["paid"]["not_loaded"][0]["why"]
    assert found["mailed"]["not_loaded"] == []
    said = shop.run("plan")
    assert said.code == 1
    assert "paid: the outcome held for 1 cannot be given to this code's handler: this JSON is no outcome of type int" in said.out
    assert "paid: the outcome held for 2 cannot" in said.out
    assert "settle each with its outcome by hand" in said.out
    assert "All of it runs" not in said.out


def test_it_writes_nothing(shop: Shop) -> None:
    shop.order("placed", 1)
    before = [_rows(shop, table) for table in ("groundstate_reaction", "groundstate_attempt", "groundstate_worker")]
    shop.run("plan")
    assert [_rows(shop, table) for table in ("groundstate_reaction", "groundstate_attempt", "groundstate_worker")] == before


def _rows(shop: Shop, table: str) -> list[Any]:
    with shop.engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY 1, 2")]


# ---- triggers ----------------------------------------------------------------------------------------------------------------------
def test_triggers_are_installed_shown_and_removed(postgres_shop: Shop) -> None:
    def states() -> set[str]:
        said = postgres_shop.run("triggers", "show", "--json")
        return {one["state"] for one in said.json["stores"][0]["tables"]}

    assert states() == {"missing"}
    assert postgres_shop.run("triggers", "install").code == 0
    assert states() == {"installed"}
    assert "a hint is sent when another program commits" in postgres_shop.run("triggers").out
    postgres_shop.sql(f"ALTER TABLE orders DISABLE TRIGGER groundstate_rows_{postgres_shop.name}")
    assert postgres_shop.run("triggers").code == 1
    assert postgres_shop.run("triggers", "--json").code == 1
    assert postgres_shop.run("triggers", "remove").code == 0
    assert states() == {"missing"}


def test_check_tells_of_triggers_that_are_stale_or_needless(postgres_shop: Shop) -> None:
    def told() -> dict[str, str]:
        said = postgres_shop.run("check", "--json")
        assert said.code == 0  # advice
        return {one["subject"]: one["cure"] for one in said.json["stores"][0]["findings"] if one["kind"] == "triggers"}

    assert postgres_shop.run("triggers", "install").code == 0
    assert told() == {}
    postgres_shop.sql("CREATE TABLE old (id int)")
    postgres_shop.sql("CREATE TRIGGER groundstate_rows AFTER INSERT ON old EXECUTE FUNCTION groundstate_rows('old')")
    postgres_shop.sql(f"ALTER TABLE orders DISABLE TRIGGER groundstate_rows_{postgres_shop.name}")
    found = told()
    assert set(found) == {"old", "orders"}
    assert found["orders"] == "groundstate triggers install"
    assert found["old"].startswith("groundstate triggers remove")


def test_their_sql_is_for_migrations_and_changes_nothing(postgres_shop: Shop) -> None:
    said = postgres_shop.run("triggers", "install", "--sql")
    assert said.code == 0
    assert "missing" in postgres_shop.run("triggers").out
    with postgres_shop.engine.begin() as connection:
        connection.exec_driver_sql(said.out)
    assert "missing" not in postgres_shop.run("triggers").out


@pytest.mark.parametrize("action", ["show", "install", "remove"])
def test_sqlite_needs_none(sqlite_shop: Shop, action: str) -> None:
    said: Said = sqlite_shop.run("triggers", action)
    assert said.code == 2
    assert "PRAGMA data_version" in said.err


def test_a_column_that_the_code_has_and_the_table_has_not_needs_the_migrations(shop: Shop) -> None:
    shop.order("paid", 2)
    shop.sql("ALTER TABLE orders DROP COLUMN mailed")  # which the condition of one reaction alone names: `done_column` makes it one
    found = planned(shop, 1)
    words = "column orders.mailed is missing: run your migrations"
    assert {name: one["lacks"] for name, one in found.items() if name} == {
        "paid": words, "packed": words, "noted": words, "mailed": words, "seen": None,
    }  # fmt: skip
    assert {name for name, one in found.items() if name and one["starts"]} == {"seen"}
    assert found["packed"]["rows"] == 2
    said = shop.run("plan").out
    assert f"paid: {words}" in said
    assert "All of it runs" not in said
    shop.sql("ALTER TABLE orders ADD COLUMN mailed VARCHAR")
    assert planned(shop, 0)["mailed"]["lacks"] is None


def test_a_table_that_is_not_there_needs_the_migrations(shop: Shop) -> None:
    shop.sql("DROP TABLE items")
    found = planned(shop, 1)
    assert found["seen"]["lacks"] == "table items is missing: run your migrations"
    assert found["paid"]["starts"]


# ---- calls that the new code could not settle --------------------------------------------------------------------------------------
def begun(shop: Shop, record: str, state: State = State.DOUBT, **said: Any) -> None:
    """A call of this record is open, which was begun with what is said here, and else with what the shop's code of today says."""
    today = {"service": "bank", "call": "charge", "key": True, "policy": "lookup", "occurrence": []}
    held = {"why": "by the test", "unsure": True} if state is State.HELD else {}
    shop.attempt("paid", record, state, begun_with=json.dumps(today | said), **held)


def test_calls_that_this_code_would_hold_need_somebody_and_are_told_with_the_reason_and_the_cure(shop: Shop) -> None:
    shop.order("placed", 6)
    begun(shop, "1", service="psp")
    begun(shop, "2", State.BEGUN, service="psp")
    begun(shop, "3", State.HELD, service="psp")
    begun(shop, "4", State.FAILED, service="psp")
    begun(shop, "5")
    shop.attempt("paid", "6", State.DOUBT)  # of older code, which does not say
    (words,) = planned(shop, 1)["paid"]["would_hold"]
    assert words.startswith("3 calls are in the air, in doubt, or held unsure, and begun by other code: it was a call to psp, and")
    assert "Let workers of the code that began them settle them first" in words
    assert "answers_for=['psp']" in words
    assert words in shop.run("plan").out.replace("\n", " ")
    assert "All of it runs" not in shop.run("plan").out


@pytest.mark.parametrize(
    ("said", "reason", "cure"),
    [
        ({"call": "charged"}, "it was the call charged of bank", "name='charged'"),
        ({"key": False}, "it was given no key", "answers_for=['bank']"),
        ({"occurrence": ["status"]}, "its occurrence was made of status, and is none now", ""),
    ],
)
def test_each_difference_is_told_with_what_helps_there(shop: Shop, said: dict[str, Any], reason: str, cure: str) -> None:
    shop.order("placed", 1)
    begun(shop, "1", **said)
    (words,) = planned(shop, 1)["paid"]["would_hold"]
    assert reason in words
    assert cure in words
    assert bool(cure) == ("; or " in words)


def test_a_held_outcome_of_other_rounds_needs_somebody_and_one_of_these_needs_nobody(shop: Shop) -> None:
    shop.order("placed", 2)
    outcome = {"why": "its handler raised", "outcome": '"charge-1"'}
    said = {"service": "bank", "call": "charge", "key": True, "policy": "lookup"}
    shop.attempt("paid", "1", State.HELD, begun_with=json.dumps(said | {"occurrence": []}), **outcome)
    assert planned(shop, 0)["paid"]["would_hold"] == []
    shop.attempt("paid", "2", State.HELD, begun_with=json.dumps(said | {"occurrence": ["status"]}), **outcome)
    (words,) = planned(shop, 1)["paid"]["would_hold"]
    assert words.startswith("1 outcome is held: its occurrence was made of status, and is none now. This code would leave each as it is")


def test_calls_that_this_code_settles_need_nobody(shop: Shop) -> None:
    shop.order("placed", 2)
    begun(shop, "1")
    begun(shop, "2", policy="hold")
    assert planned(shop, 0)["paid"]["would_hold"] == []


def test_pending_says_that_a_doubt_of_other_code_will_be_held(shop: Shop) -> None:
    shop.order("placed", 1)
    begun(shop, "1", service="psp")
    (doubt,) = shop.run("pending", "--json").json["stores"][0]["report"]["in_doubt"]
    assert doubt["next"].startswith("held, since other code began it (it was a call to psp")


# ---- what other apps left ----------------------------------------------------------------------------------------------------------
def test_what_an_app_without_a_worker_left_on_our_tables_needs_somebody_and_is_told_by_each_list(shop: Shop) -> None:
    shop.attempt("paid", "1", State.DOUBT, app="old shop")
    shop.attempt("paid", "2", State.HELD, app="old shop", unsure=True, why="by the test")
    told = "2 attempts are open of app 'old shop' (1 in doubt, 1 held: paid)"
    cure = f"groundstate rename --whole-app 'old shop' {shop.name}"
    for command, code in (("plan", 1), ("pending", 0), ("held", 0)):
        said = shop.run(command)
        assert said.code == code
        assert told in said.out, command
        assert cure in said.out, command
    assert [one["app"] for one in planned(shop, 1)[""]["others"]] == ["old shop"]
    assert [one["app"] for one in shop.report()["others"]] == ["old shop"]
    assert [(one["app"], one["in_doubt"], one["held"]) for one in shop.run("held", "--json").json["others"]] == [("old shop", 1, 1)]


def test_what_an_app_that_is_stopped_left_on_its_own_tables_is_one_line(shop: Shop) -> None:
    shop.attempt("mailed_out", "1", State.DOUBT, app="mailer", blocks="mails")
    shop.attempt("billed", "1", State.HELD, app="billing", blocks="bills", why="by the test", unsure=True)
    line = "Other apps on this database of which no worker lives have open attempts: billing (1 held), mailer (1 in doubt)."
    for command in ("plan", "pending", "held"):
        said = shop.run(command)
        assert said.code == 0
        assert line in said.out, command
    assert "All of it runs" in shop.run("plan").out
    assert "Nothing is left to do" in shop.run("pending").out

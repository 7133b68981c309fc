"""`status`: the fleet, told by its locks, and what waits for it."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

from groundstate.rules.attempt import State
from tests.cli.conftest import Shop
from tests.cli.test_pending import _READS, statements


def status(shop: Shop) -> Any:
    said = shop.run("status", "--json")
    assert said.code == 0, said.err
    return said.json["stores"][0]


def reaction(shop: Shop, name: str) -> Any:
    return next(one for one in status(shop)["status"]["reactions"] if one["name"] == name)


def test_it_lists_who_lives_by_the_lock(shop: Shop) -> None:
    app = shop.load()
    app.start()
    try:
        found = status(shop)
        assert found["alive"] == 1
        (life,) = found["status"]["lives"]
        assert (life["app"], life["host"], life["pid"], life["alive"]) == (shop.name, socket.gethostname(), os.getpid(), True)
        assert shop.name in shop.run("status").out
    finally:
        app.stop(timedelta(seconds=1))
    assert status(shop)["alive"] == 0
    assert "No worker is here." in shop.run("status").out


def test_it_counts_what_waits_and_what_stands_open(shop: Shop) -> None:
    shop.order("paid", 3)
    began = datetime.now(UTC) - timedelta(hours=2)
    shop.attempt("paid", "90", State.DOUBT, since=began)
    shop.attempt("paid", "91", State.HELD)
    shop.attempt("paid", "92", State.HELD, why="baseline")
    shop.attempt("packed", "93", State.FAILED)
    paid, packed = reaction(shop, "paid"), reaction(shop, "packed")
    assert packed["rows"] == 3
    assert {state: one["count"] for state, one in paid["attempts"].items()} == {"doubt": 1, "held": 1}
    assert datetime.fromisoformat(paid["attempts"]["doubt"]["since"]) - began < timedelta(seconds=1)
    assert packed["attempts"]["failed"]["count"] == 1
    assert (paid["makes"], packed["makes"]) == ("call", "change")
    out = shop.run("status").out
    assert "2 h ago" in out


def test_it_shows_what_is_off_what_is_suspect_and_careful_mode(sqlite_shop: Shop) -> None:
    sqlite_shop.sql("DELETE FROM groundstate_reaction WHERE name = 'packed'")
    sqlite_shop.sql("UPDATE groundstate_reaction SET suspect = 1 WHERE name = 'paid'")
    sqlite_shop.order("paid")
    now = datetime.now(UTC).isoformat(sep=" ")
    for life in (5, 6):
        sqlite_shop.sql(
            "INSERT INTO groundstate_worker (life, app, host, pid, began_at, ended_at, begins) VALUES (:life, 'a', 'h', 1, :now, :now, 0)",
            life=life, now=now[:26],
        )  # fmt: skip
    assert not reaction(sqlite_shop, "packed")["on"]
    assert reaction(sqlite_shop, "paid")["suspect"]
    assert status(sqlite_shop)["status"]["careful"]
    out = sqlite_shop.run("status").out
    assert "Not started until a person accepts them: packed" in out
    assert "paid start each call as a doubt" in out
    assert "Careful mode" in out
    assert "ended uncleanly, adopted" in out


def test_attempts_that_this_code_does_not_declare_are_told(sqlite_shop: Shop) -> None:
    sqlite_shop.attempt("of_old", "1", State.HELD)
    assert status(sqlite_shop)["status"]["undeclared"] == {"of_old": 1}
    assert "does not declare" in sqlite_shop.run("status").out


def test_a_reaction_that_cannot_be_asked_does_not_hide_the_others(shop: Shop) -> None:
    shop.order("paid", 2)
    shop.sql("DROP TABLE items")
    assert not reaction(shop, "seen")["asked"]
    assert reaction(shop, "packed")["rows"] == 2
    assert "cannot be asked" in shop.run("status").out


def test_a_reaction_whose_record_has_a_column_that_the_table_has_not_is_not_carried_out(shop: Shop) -> None:
    shop.order("paid", 2)
    shop.sql("ALTER TABLE orders DROP COLUMN mailed")
    assert reaction(shop, "packed")["lacks"] == "column orders.mailed is missing"
    assert (reaction(shop, "packed")["asked"], reaction(shop, "packed")["rows"]) == (True, 2)
    assert reaction(shop, "seen")["lacks"] is None
    out = shop.run("status").out
    assert "not carried out" in out
    assert "packed is not carried out: column orders.mailed is missing: run your migrations." in out


def test_a_time_that_somebody_edited_is_left_out(sqlite_shop: Shop) -> None:
    sqlite_shop.attempt("paid", "1", State.FAILED)
    sqlite_shop.sql("UPDATE groundstate_attempt SET since = 'yesterday'")
    assert reaction(sqlite_shop, "paid")["attempts"]["failed"] == {"count": 1, "since": None}


def test_it_asks_by_selects_alone(shop: Shop) -> None:
    shop.order("paid")
    shop.attempt("paid", "1", State.DOUBT)
    with statements() as heard:
        status(shop)
    assert heard
    assert [one for one in heard if not one.lstrip("( \n").upper().startswith(_READS)] == []


def test_a_database_that_is_not_initialised_is_told(bare: Shop) -> None:
    assert bare.run("status").code == 4

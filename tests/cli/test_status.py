"""`status`: the fleet, told by its locks, and what waits for it."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from groundstate.app.transports import describe_hints
from groundstate.cli import status as command
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
        (life,) = found["status"]["workers"]
        assert (life["app"], life["host"], life["pid"], life["alive"]) == (shop.name, socket.gethostname(), os.getpid(), True)
        assert shop.name in shop.run("status").out
    finally:
        app.stop(timedelta(seconds=1))
    assert status(shop)["alive"] == 0
    assert "No worker is alive." in shop.run("status").out


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
            "INSERT INTO groundstate_worker (id, app, host, pid, began_at, ended_at, begins) VALUES (:life, :app, 'h', 1, :now, :now, 0)",
            life=life, app=sqlite_shop.name, now=now[:26],
        )  # fmt: skip
    assert not reaction(sqlite_shop, "packed")["on"]
    assert reaction(sqlite_shop, "paid")["suspect"]
    assert status(sqlite_shop)["status"]["careful"]
    out = sqlite_shop.run("status").out
    assert "Not started until a person accepts them: packed" in out
    assert "each call of paid starts in doubt" in out
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
    assert reaction(shop, "packed")["lacks"] == "column orders.mailed is missing: run your migrations"
    assert (reaction(shop, "packed")["asked"], reaction(shop, "packed")["rows"]) == (True, 2)
    assert reaction(shop, "seen")["lacks"] is None
    out = shop.run("status").out
    assert "not carried out" in out
    words = "packed is not carried out: column orders.mailed is missing: run your migrations."
    assert words in out
    pending = shop.run("pending").out
    assert words.removesuffix(".") in pending
    assert "packed (not carried out)" in pending
    why = shop.run("why", "orders", "1").out
    assert "not carried out: column orders.mailed is missing: run your migrations" in " ".join(why.split())


def test_a_time_that_somebody_edited_is_left_out(sqlite_shop: Shop) -> None:
    sqlite_shop.attempt("paid", "1", State.FAILED)
    sqlite_shop.sql("UPDATE groundstate_attempt SET since = 'yesterday'")
    assert reaction(sqlite_shop, "paid")["attempts"]["failed"] == {"count": 1, "since": None}


# ---- what a person can do, and what workers say of themselves ----------------------------------------------------------------------
def test_what_is_held_comes_with_the_commands_that_settle_it_where_they_are_the_same_for_all(shop: Shop) -> None:
    shop.order("placed", 3)
    shop.attempt("packed", "it's", State.HELD, call_no=0, why="the last try was used")
    past = datetime.now(UTC) - timedelta(hours=1)
    for record in ("1", "2"):
        shop.attempt("paid", record, State.HELD, unsure=True, deadline=past)
    held = status(shop)["held"]
    lists = "groundstate held --reaction"
    assert held["packed"] == {
        "count": 1, "lists": f"{lists} packed", "can": ["groundstate retry packed 'it'\"'\"'s'", "groundstate forget packed 'it'\"'\"'s'"],
    }  # fmt: skip
    assert held["paid"]["count"] == 2
    assert {"groundstate settle paid PK --absent", "groundstate settle paid PK --outcome JSON"} <= set(held["paid"]["can"])
    shop.attempt("paid", "3", State.HELD, outcome='"r3"')
    assert status(shop)["held"]["paid"] == {"count": 3, "lists": f"{lists} paid", "can": []}
    out = shop.run("status").out
    assert "3 attempts are held of paid: `groundstate held --reaction paid` lists them, and says what you can do." in out
    assert "1 attempt is held of packed (`groundstate held --reaction packed` says why): `groundstate retry packed " in out


def test_of_many_that_are_held_the_command_is_told_alone(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ASKED_MOST", 1)
    shop.attempt("packed", "1", State.HELD, call_no=0)
    assert status(shop)["held"]["packed"]["can"]
    shop.attempt("packed", "2", State.HELD, call_no=0)
    assert status(shop)["held"]["packed"] == {"count": 2, "lists": "groundstate held --reaction packed", "can": []}


def test_a_reaction_that_cannot_be_asked_still_tells_where_its_held_ones_are_listed(shop: Shop) -> None:
    shop.attempt("seen", "[1,2]", State.HELD, call_no=0)
    shop.sql("DROP TABLE items")
    assert status(shop)["held"]["seen"] == {"count": 1, "lists": "groundstate held --reaction seen", "can": []}


def test_of_a_backlog_that_some_leave_to_others_it_is_told_how_many_go_on(shop: Shop) -> None:
    with shop.a_worker('{"leaves":["packed"]}'):
        assert status(shop)["status"]["workers"][0]["says"]["leaves"] == ["packed"]
        out = shop.run("status").out
        assert "packed: 0 of 1 workers go on with its backlog, and the other leaves it to them, since more at once do no more." in out


def test_what_workers_of_other_apps_say_is_theirs(shop: Shop) -> None:
    with shop.a_worker('{"leaves":["packed"]}'):
        shop.sql("UPDATE groundstate_worker SET app = 'another'")
        assert "packed: " not in shop.run("status").out


def test_it_asks_by_selects_alone(shop: Shop) -> None:
    shop.order("paid")
    shop.attempt("paid", "1", State.DOUBT)
    with statements() as heard:
        status(shop)
    assert heard
    assert [one for one in heard if not one.lstrip("( \n").upper().startswith(_READS)] == []


def test_a_database_that_is_not_initialised_is_told(bare: Shop) -> None:
    assert bare.run("status").code == 4


def test_it_says_by_what_hints_go(shop: Shop) -> None:
    words = "Hints: by PostgreSQL's NOTIFY" if shop.url.startswith("postgres") else "Hints: within each process"
    assert status(shop)["hints"].startswith(words)
    assert words in shop.run("status").out


def test_a_transport_that_was_chosen_is_named_without_its_password_and_one_that_cannot_be_told_says_why() -> None:
    assert describe_hints("nats://me:secret@host:4222", postgres=True) == "Hints: by nats"

    def missing() -> str:
        raise KeyError("NATS_URL")

    assert "KeyError: 'NATS_URL'" in describe_hints(missing, postgres=False)

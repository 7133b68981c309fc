"""Rows of groundstate_worker and groundstate_reaction that make no sense, and our tables and the user's with a column missing."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from sqlalchemy import Table

from groundstate.rules.attempt import State
from groundstate.store import tables
from groundstate.values.errors import NotInitialisedError, StoreRefusedError
from tests.cli.conftest import Shop
from tests.fuzz.nonsense import COUNTS, TEXTS, TIMES
from tests.fuzz.test_attempt_rows import in_words, packed, rows, working
from tests.patience import until

READS = [["status"], ["pending"], ["pending", "--json"], ["why", "orders", "1"], ["held"], ["check"]]
LIVES: dict[str, tuple[Any, ...]] = {
    "id": (-1, 2**63 - 1, "abc", 1.5, b"x"),
    "host": TEXTS,
    "pid": COUNTS,
    "began_at": TIMES,
    "ended_at": TIMES,
    "begins": (-1, "many", 1.5, b"1"),
    "says": (*TEXTS, 7, b"\xff", "{", '{"paused": [7], "rings": {}}'),
}
REACTIONS: dict[str, tuple[Any, ...]] = {
    "key_name": (b"paid", b"\xff"),
    "condition": ("", "nonsense (", "1); DROP TABLE orders; --", b"\xff", "\0"),
    "suspect": ("yes", 7.5, b"\1"),
    "seen_at": TIMES[:3],
    "mark": TEXTS[:1],
    "name": ("nobody", b"paid"),
}


def test_lives_that_make_no_sense_are_told_as_what_they_are_and_no_worker_stumbles_over_them(sqlite_shop: Shop) -> None:
    shop = sqlite_shop
    for column, values in LIVES.items():
        for number, value in enumerate(values):
            given = {"id": 1000 + number, "host": "h", "pid": 5, "began_at": "2026-01-01 00:00:00.000000", "ended_at": None, "begins": 0}
            given[column] = value
            names = ", ".join(given)
            shop.sql(f"INSERT INTO groundstate_worker (app, {names}) VALUES ('x', {', '.join(f':{one}' for one in given)})", **given)
        for command in READS:
            assert in_words(shop.run(*command)), (column, command, shop.run(*command))
        shop.order("placed", 2)
        with working(shop):
            until(lambda: rows(shop, "SELECT count(*) FROM orders WHERE status <> 'packed'")[0][0] == 0)
        for command in READS:
            assert in_words(shop.run(*command)), (column, command)
        shop.sql("DELETE FROM groundstate_worker")


def test_on_postgresql_a_life_whose_number_is_none_is_forgotten(postgres_shop: Shop) -> None:
    shop = postgres_shop
    for life in (-5, 2**63 - 1):
        shop.sql(
            "INSERT INTO groundstate_worker (id, app, host, pid, began_at, ended_at, begins)"
            " VALUES (:life, 'x', 'h', 1, 'infinity', NULL, -1)",
            life=life,
        )
    for command in READS:
        assert in_words(shop.run(*command)), (command, shop.run(*command))
    shop.order("placed", 1)
    with working(shop):
        until(lambda: packed(shop, 1, 1))
    assert rows(shop, "SELECT * FROM groundstate_worker") == []


@pytest.mark.parametrize("column", list(REACTIONS))
def test_a_reaction_whose_row_makes_no_sense_is_told_and_the_others_go_on(sqlite_shop: Shop, column: str) -> None:
    shop = sqlite_shop
    for value in REACTIONS[column]:
        shop.sql(f"UPDATE groundstate_reaction SET {column} = :value WHERE name = 'paid'", value=value)
        shop.order("paid", 1)
        for command in [*READS, ["trust"], ["init"]]:
            assert in_words(shop.run(*command)), (value, command, shop.run(*command))
        with working(shop):
            until(lambda: rows(shop, "SELECT count(*) FROM orders WHERE status <> 'packed'")[0][0] == 0)
        said = shop.run("rename", "paid", "charged")
        assert in_words(said), said
        shop.sql("DELETE FROM groundstate_reaction WHERE name IN ('charged', 'nobody') OR typeof(name) = 'blob'")
        assert shop.run("init", "--accept", "all").code == 0


def test_a_suspect_that_is_neither_true_nor_false_is_not_trusted_until_a_person_says_so(sqlite_shop: Shop) -> None:
    sqlite_shop.sql("UPDATE groundstate_reaction SET suspect = 'perhaps' WHERE name = 'paid'")
    assert sqlite_shop.report()["suspects"] == ["paid"]
    assert sqlite_shop.run("trust", "--json").json["trusted"] == ["paid"]
    assert sqlite_shop.report()["suspects"] == []


def test_an_identity_that_somebody_edited_is_a_database_that_may_have_gone_back(postgres_shop: Shop) -> None:
    shop = postgres_shop
    with working(shop):
        pass
    shop.sql("UPDATE groundstate_reaction SET condition = 'x' WHERE app = ''")
    shop.order("placed", 1)
    with working(shop):
        until(lambda: [row[0] for row in rows(shop, "SELECT state FROM groundstate_attempt")] == ["doubt"])
    assert "paid" in shop.report()["suspects"]


MISSING = [
    (table, column.name) for table in (tables.attempt, tables.reaction, tables.worker) for column in table.columns if not column.primary_key
]


def test_a_column_that_one_of_our_tables_lacks_is_named_with_the_cure(sqlite_shop: Shop) -> None:
    shop = sqlite_shop
    shop.order("placed", 1)
    shop.sql("DROP INDEX groundstate_attempt_blocks")
    shop.sql("DROP INDEX groundstate_attempt_worker")
    shop.sql("DROP INDEX groundstate_attempt_next")
    app = importlib.import_module(shop.module).app
    for table, column in MISSING:
        _drop(shop, table, column)
        for command in (["pending"], ["retry", "paid", "1"], ["init"]):
            said = shop.run(*command)
            assert said.code == 4, said
            assert f"{table.name} in " in said.err
            assert f"has no column {column}" in said.err
            assert "migrations" in said.err
        with pytest.raises(NotInitialisedError, match=column):
            app.start()
        shop.sql(f"ALTER TABLE {table.name} RENAME COLUMN gone TO {column}")
    assert shop.run("pending").code == 0


def _drop(shop: Shop, table: Table, column: str) -> None:
    shop.sql(f"ALTER TABLE {table.name} RENAME COLUMN {column} TO gone")


def test_a_column_of_the_users_that_goes_under_a_running_worker_stops_its_reactions_alone_and_nothing_is_lost(shop: Shop) -> None:
    with working(shop):
        shop.sql("ALTER TABLE items RENAME COLUMN status TO state")
        shop.sql("INSERT INTO items (order_id, number, state) VALUES (1, 1, 'new')")
        shop.order("placed", 3)
        until(lambda: packed(shop, 1, 3))
        said = shop.run("pending")
        assert said.code == 0
        assert "seen is not carried out: column items.status is missing: run your migrations" in " ".join(said.out.split())
        shop.sql("ALTER TABLE items RENAME COLUMN state TO status")
        until(lambda: rows(shop, "SELECT status FROM items") == [("seen",)])


def test_a_column_of_ours_that_goes_under_a_running_worker_is_waited_for(shop: Shop) -> None:
    with working(shop) as app:
        shop.sql("ALTER TABLE groundstate_attempt RENAME COLUMN state TO gone")
        shop.order("placed", 3)
        until(lambda: app._workers[0].components.trouble.errors_in_a_row > 0)
        assert rows(shop, "SELECT count(*) FROM groundstate_attempt")[0][0] == 0  # no attempt, no call
        shop.sql("ALTER TABLE groundstate_attempt RENAME COLUMN gone TO state")
        until(lambda: packed(shop, 1, 3))


def test_an_attempt_of_a_reaction_without_a_name_is_refused_with_its_name_to_be_seen(sqlite_shop: Shop) -> None:
    sqlite_shop.attempt("", "1", State.HELD, why="by the test")
    with pytest.raises(StoreRefusedError, match=r"does not declare: '' \(1\)"):
        importlib.import_module(sqlite_shop.module).app.start()

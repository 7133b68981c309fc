"""`init`: our tables, and which reactions start on rows that are there."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import inspect

from tests.cli.conftest import Shop, groundstate, module_named


def test_it_makes_our_tables_and_the_apps_where_it_is_told_to(bare: Shop) -> None:
    said = bare.run("init", "--tables", "--json")
    assert said.code == 0, said.err
    assert (said.json["groundstate"], said.json["command"], said.json["app"]) == (1, "init", bare.name)
    assert set(said.json["created"]) == {
        "groundstate_attempt",
        "groundstate_reaction",
        "groundstate_worker",
        "groundstate_rate",
        "orders",
        "items",
    }
    assert set(inspect(bare.engine).get_table_names()) == set(said.json["created"])


def test_it_may_be_run_again(shop: Shop) -> None:
    said = shop.run("init")
    assert said.code == 0
    assert "All tables are there already." in said.out


def test_without_the_apps_tables_it_says_who_makes_them(bare: Shop) -> None:
    said = bare.run("init")
    assert said.code == 4
    assert "groundstate init --tables" in said.err


def test_reactions_that_match_old_rows_are_named_until_they_are_accepted(bare: Shop) -> None:
    bare.run("init", "--tables")
    bare.sql("DELETE FROM groundstate_reaction WHERE name <> ''")
    bare.order("paid", 3)
    said = bare.run("init", "--json")
    assert [(one["name"], one["rows"]) for one in said.json["not_started"]] == [("packed", 3)]
    assert "matches 3 rows" in bare.run("init").out
    assert bare.run("init", "--accept", "packed", "--json").json["not_started"] == []


def test_a_baseline_leaves_the_rows_that_match_now(bare: Shop) -> None:
    bare.run("init", "--tables")
    bare.sql("DELETE FROM groundstate_reaction WHERE name <> ''")
    bare.order("paid", 3)
    said = bare.run("init", "--baseline", "packed", "--json")
    assert said.code == 0, said.err
    assert said.json["baseline"] == {"packed": 3}
    report = bare.report()
    assert (report["baseline"], report["counts"]["held"], report["held"]) == (3, 0, [])
    assert {one["reaction"]: one["rows"] for one in report["to_do"]}["packed"] == 0
    assert "3 rows were there before their reaction" in bare.run("pending").out


def test_a_reaction_that_is_not_there_is_refused(shop: Shop) -> None:
    for option in ("--accept", "--baseline"):
        said = shop.run("init", option, "nix")
        assert said.code == 2
        assert "has no reaction 'nix'" in said.err


def test_a_folder_that_is_not_there_is_told(folder: Path) -> None:
    _, module = module_named(folder, f"sqlite:///{folder}/nowhere/shop.db")
    said = groundstate("init", "--tables", "--app", f"{module}:app")
    assert said.code == 4
    assert "does not exist" in said.err
    assert "Traceback" not in said.err


def test_a_locked_file_is_told_and_not_waited_for_for_ever(sqlite_shop: Shop) -> None:
    with sqlite_shop.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        said = sqlite_shop.run("init", "--accept", "packed")
        connection.exec_driver_sql("ROLLBACK")
    assert said.code == 4
    assert "another process keeps it locked" in said.err

"""`init`: our tables, and which reactions start on rows that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import inspect, make_url

from groundstate.store.begin_counter_file import FileWitness
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


@pytest.mark.parametrize(
    "said",
    [
        ("--baseline", "packed", "--accept", "packed"),
        ("--accept", "paid=call", "--baseline", "paid"),
        ("--accept", "all", "--accept", "paid=doubt", "--baseline", "paid"),
        ("--accept", "paid=call", "--accept", "paid=doubt"),
    ],
)
def test_what_contradicts_itself_is_refused_and_nothing_is_changed(bare: Shop, said: tuple[str, ...]) -> None:
    bare.run("init", "--tables")
    bare.sql("DELETE FROM groundstate_reaction WHERE name <> ''")
    bare.order("paid", 3)
    told = bare.run("init", *said)
    assert told.code == 2
    assert "give one" in told.err.lower()
    assert bare.report()["baseline"] == 0
    assert {one["name"] for one in bare.run("init", "--json").json["not_started"]} >= {"packed"}


def test_a_baseline_is_an_exception_to_all(bare: Shop) -> None:
    bare.run("init", "--tables")
    bare.sql("DELETE FROM groundstate_reaction WHERE name <> ''")
    bare.order("paid", 3)
    said = bare.run("init", "--accept", "all=doubt", "--baseline", "packed", "--json")
    assert (said.code, said.json["baseline"]) == (0, {"packed": 3})


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


# ---- calls for rows that are there -------------------------------------------------------------------------------------------------
def test_a_reaction_that_would_call_for_old_rows_says_for_how_many_and_wants_to_be_told_what_is_known_of_them(bare: Shop) -> None:
    bare.run("init", "--tables")
    bare.sql("DELETE FROM groundstate_reaction WHERE name <> ''")
    bare.order("placed", 3)
    (left,) = [one for one in bare.run("init", "--json").json["not_started"] if one["name"] == "paid"]
    assert (left["rows"], left["calls"], left["call"]) == (3, 3, "charge")
    for names in (["paid"], ["all"], ["packed", "paid"]):
        said = bare.run("init", *(word for name in names for word in ("--accept", name)))
        assert said.code == 1
        assert "charge would be called for 3 of them" in said.err
        assert "--accept paid=call" in said.err
        assert "--accept paid=doubt" in said.err
        assert {one["name"] for one in bare.run("init", "--json").json["not_started"]} == {"paid"}
    said = bare.run("init", "--accept", "paid=doubt", "--json")
    assert said.code == 0, said.err
    assert (said.json["accepted"], said.json["in_doubt"], said.json["not_started"]) == (["paid"], {"paid": 3}, [])
    assert bare.report()["counts"]["in doubt"] == 3


def test_accepted_as_calls_they_are_ordinary_rows(bare: Shop) -> None:
    bare.run("init", "--tables")
    bare.sql("DELETE FROM groundstate_reaction WHERE name <> ''")
    bare.order("placed", 2)
    said = bare.run("init", "--accept", "all=call")
    assert said.code == 0, said.err
    assert "every reaction" in said.out
    report = bare.report()
    assert report["counts"]["in doubt"] == 0
    assert {one["reaction"]: one["rows"] for one in report["to_do"]}["paid"] == 2


def test_a_word_for_its_calls_that_is_none_is_refused(shop: Shop) -> None:
    said = shop.run("init", "--accept", "paid=perhaps")
    assert said.code == 2
    assert "paid=doubt" in said.err


def test_pending_and_plan_ask_for_the_same_word(bare: Shop) -> None:
    bare.run("init", "--tables")
    bare.sql("DELETE FROM groundstate_reaction WHERE name <> ''")
    bare.order("placed", 2)
    assert "groundstate init --accept paid=call" in bare.run("pending").out
    said = bare.run("plan")
    assert said.code == 1
    assert "--accept paid=call" in said.out
    assert "--accept paid=doubt" in said.out


# ---- our tables vanished -----------------------------------------------------------------------------------------------------------
def _killed_under_a_call(shop: Shop) -> Path:
    """What a worker that was killed while its call was in the air left of its witness, once our tables are dropped."""
    folder = Path(make_url(shop.url).database or "").parent
    witness = FileWitness(str(folder), "test.db")
    witness.write(255, 1)
    witness.close()
    for name in ("groundstate_attempt", "groundstate_reaction", "groundstate_worker", "groundstate_rate"):
        shop.sql(f"DROP TABLE {name}")
    return folder / "test.db-groundstate-witness-ff"


def test_beside_a_witness_of_begun_calls_it_wants_to_be_told_what_became_of_our_tables(sqlite_shop: Shop) -> None:
    sqlite_shop.order("placed", 2)
    witness = _killed_under_a_call(sqlite_shop)
    said = sqlite_shop.run("init", "--accept", "all=call")
    assert said.code == 4
    assert "--after-restore" in said.err
    assert "--new-database" in said.err
    assert witness.name in said.err
    assert witness.exists()
    assert sqlite_shop.run("pending").code == 4, "nothing was made"
    said = sqlite_shop.run("init", "--after-restore", "--accept", "all")
    assert said.code == 0, said.err
    assert not witness.exists()
    report = sqlite_shop.report()
    assert (report["counts"]["in doubt"], report["suspects"]) == (2, ["mailed", "paid"])


def test_a_new_database_is_said_to_be_one_and_the_witness_goes_and_is_named(sqlite_shop: Shop) -> None:
    witness = _killed_under_a_call(sqlite_shop)
    said = sqlite_shop.run("init", "--new-database", "--json")
    assert said.code == 0, said.err
    assert not witness.exists()
    assert sqlite_shop.report()["suspects"] == []
    assert sqlite_shop.run("init", "--new-database", "--after-restore").code == 2


def test_what_says_that_our_tables_are_missing_says_what_to_do_where_they_were_there(sqlite_shop: Shop) -> None:
    sqlite_shop.sql("DROP TABLE groundstate_attempt")
    said = sqlite_shop.run("pending")
    assert said.code == 4
    assert "groundstate init --after-restore" in said.err

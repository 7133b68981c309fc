"""`why TABLE PK`: every reaction on one record, clause by clause."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from groundstate.rules.attempt import State
from groundstate.rules.poison_suspects import why_for_ended_workers
from tests.cli.conftest import Shop, module_named


def answers(shop: Shop, *arguments: str) -> dict[str, dict[str, Any]]:
    said = shop.run("why", *arguments, "--json")
    assert said.code == 0, said.err
    return {one["reaction"]: one for one in said.json["why"]["answers"]}


def test_each_clause_is_true_false_or_null(shop: Shop) -> None:
    shop.order("placed")
    found = answers(shop, "orders", "1")
    assert [one["holds"] for one in found["paid"]["clauses"]] == [True]
    assert [one["holds"] for one in found["noted"]["clauses"]] == [None, True]
    assert [one["holds"] for one in found["packed"]["clauses"]] == [False]
    assert found["noted"]["clauses"][0]["sql"] == "orders.note = 'please'"
    assert (found["paid"]["holds"], found["noted"]["holds"]) == (True, False)
    said = shop.run("why", "orders", "1").out
    for words in ("true  orders.status = 'placed'", "false orders.status = 'paid'", "NULL  orders.note = 'please'"):
        assert words in said


def test_a_class_names_the_table_as_well(shop: Shop) -> None:
    shop.order("placed")
    assert "paid" in answers(shop, "Order", "1")


def test_what_comes_next_without_a_worker_and_without_attempts(shop: Shop) -> None:
    shop.order("placed")
    found = answers(shop, "orders", "1")
    assert found["paid"]["next"] == "carried out as soon as a worker runs"
    assert found["packed"]["next"] == "nothing: its condition does not hold"


def test_a_failed_attempt_says_when_next_and_how_many_of_how_many(shop: Shop) -> None:
    shop.order("placed")
    shop.attempt("paid", "1", State.FAILED, failures=3, next_at=datetime.now(UTC) + timedelta(hours=1), error="NotDone: refused")
    paid = answers(shop, "orders", "1")["paid"]
    assert paid["next"] == "tried again"
    assert paid["next_at"] is not None
    assert paid["attempts"][0]["tries"] == "3 of 10"
    assert "failures 3 of 10" in shop.run("why", "orders", "1").out


def test_others_wait_for_a_call_in_doubt(shop: Shop) -> None:
    shop.order("placed", note="please")
    shop.attempt("paid", "1", State.DOUBT)
    noted = answers(shop, "orders", "1")["noted"]
    assert [(one["reaction"], one["standing"]) for one in noted["waits_for"]] == [("paid", "in doubt")]
    assert noted["next"] == "waits for paid, which is in doubt"
    assert "waits for paid on 1, which is in doubt" in shop.run("why", "orders", "1").out


def test_a_held_attempt_says_why_and_what_a_person_can_do(shop: Shop) -> None:
    shop.order("placed")
    shop.attempt("paid", "1", State.HELD, unsure=True, why="the outcome was not clear", error="\x1b[2J")
    said = shop.run("why", "orders", "1")
    assert "the outcome was not clear" in said.out
    assert "groundstate settle" in said.out
    assert "\x1b" not in said.out


def test_a_composite_key_is_a_json_array(shop: Shop) -> None:
    shop.sql("INSERT INTO items (order_id, number, status) VALUES (1, 2, 'new')")
    assert answers(shop, "items", "[1,2]")["seen"]["holds"] is True
    assert answers(shop, "items", "[1, 2]")["seen"]["holds"] is True


@pytest.mark.parametrize(
    ("table", "record", "code", "words"),
    [
        ("nix", "1", 3, "no reaction is on a table 'nix'; tables with reactions are: items, orders"),
        ("orders", "1", 3, "orders has no record '1'"),
        ("orders", "x", 2, "'x' is no key of orders (id): 'x' is not a whole number"),
        ("orders", "", 2, "is no key of orders"),
        ("items", "1", 2, "is no key of items (order_id, number)"),
        ("items", "[1]", 2, "a JSON array of 2 values"),
        ("items", "[1,2,3]", 2, "a JSON array of 2 values"),
        ("items", "{}", 2, "a JSON array of 2 values"),
        ("items", "[1,", 2, "a JSON array of 2 values"),
        ("orders'; DROP TABLE orders; --", "1", 3, "no reaction is on a table"),
        ("orders", "1'; DROP TABLE orders; --", 2, "is no key of orders"),
    ],
)
def test_a_wrong_table_or_key_is_told(shop: Shop, table: str, record: str, code: int, words: str) -> None:
    said = shop.run("why", table, record)
    assert said.code == code
    assert words in said.err
    assert "Traceback" not in said.err


def test_a_deleted_record_whose_attempt_is_left_is_shown(shop: Shop) -> None:
    shop.attempt("paid", "99", State.HELD, unsure=True, why="the record was deleted while its call was in doubt")
    said = shop.run("why", "orders", "99")
    assert said.code == 0
    assert "which is not there any more" in said.out
    assert "the record was deleted" in said.out


def test_a_number_too_large_for_the_column_is_told_without_a_traceback(shop: Shop) -> None:
    said = shop.run("why", "orders", "9" * 40)
    assert said.code == 2
    assert "is no key of orders" in said.err
    assert len(said.err.splitlines()) == 1


def test_arguments_that_are_missing_are_told(shop: Shop) -> None:
    assert shop.run("why").code == 2
    assert shop.run("why", "orders").code == 2


# ---- what is not carried out now -------------------------------------------------------------------------------------------------
def test_with_a_worker_that_can_it_is_carried_out_now(shop: Shop) -> None:
    shop.order("placed")
    shop.order("paid")
    with shop.a_worker():
        assert answers(shop, "orders", "1")["paid"]["next"] == "carried out now"
        assert answers(shop, "orders", "2")["packed"]["next"] == "carried out now"


def test_a_reaction_whose_record_has_a_column_that_the_table_has_not_says_so_and_the_others_are_shown(shop: Shop) -> None:
    shop.order("paid")
    shop.sql("ALTER TABLE orders DROP COLUMN mailed")
    with shop.a_worker():
        found = answers(shop, "orders", "1")
    assert found["packed"]["next"] == "not carried out: column orders.mailed is missing: run your migrations"
    assert found["packed"]["holds"] is True
    assert found["mailed"]["next"] == "not carried out: column orders.mailed is missing: run your migrations"
    assert found["mailed"]["clauses"] == [], "its condition names the column"


def test_a_failed_attempt_whose_time_has_come_waits_for_what_a_new_one_would_wait_for(shop: Shop) -> None:
    shop.order("placed")
    past = datetime.now(UTC) - timedelta(minutes=1)
    shop.attempt("paid", "1", State.FAILED, failures=1, next_at=past)
    assert answers(shop, "orders", "1")["paid"]["next"] == "tried again, as soon as a worker runs"
    with shop.a_worker():
        assert answers(shop, "orders", "1")["paid"]["next"] == "tried again"
    with shop.a_worker('{"drains":true}'):
        assert "tried again, but it waits for a worker" in answers(shop, "orders", "1")["paid"]["next"]
    shop.sql("UPDATE groundstate_reaction SET condition = '1 = 0' WHERE name = 'paid'")
    with shop.a_worker():
        assert answers(shop, "orders", "1")["paid"]["next"].startswith("tried again, but not now: ")


def test_a_doubt_waits_for_its_outside_where_that_is_to_be_asked(shop: Shop) -> None:
    shop.order("placed")
    past, later = datetime.now(UTC) - timedelta(minutes=1), datetime.now(UTC) + timedelta(hours=1)
    shop.attempt("paid", "1", State.DOUBT, next_at=past)
    pause = {"service": "bank", "tenant": None, "since": past.isoformat(), "until": later.isoformat(), "answered": "NotDone: closed"}
    with shop.a_worker(json.dumps({"paused": [pause]})):
        paid = answers(shop, "orders", "1")["paid"]
        said = shop.run("why", "orders", "1").out
    assert paid["next"].startswith("by its lookup;")
    assert "but it waits for the service bank, which is paused (its last answer: NotDone: closed)" in paid["next"]
    assert "; the next probe goes out, " in said
    assert "(in 60 min)" in said


def test_in_careful_mode_and_while_a_reaction_is_suspect_it_says_how_it_is_carried_out(shop: Shop) -> None:
    shop.order("placed")
    shop.order("paid")
    shop.sql("UPDATE groundstate_reaction SET suspect = (1 = 1) WHERE name = 'paid'")
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")
    with shop.a_worker():
        assert answers(shop, "orders", "1")["paid"]["next"].startswith("carried out in doubt first, since the database went back in time")
        for life in (5, 6):
            shop.sql(
                "INSERT INTO groundstate_worker (id, app, host, pid, began_at, ended_at, begins)"
                " VALUES (:life, :app, 'h', 1, :now, :now, 0)",
                life=life, app=shop.name, now=now,
            )  # fmt: skip
        shop.attempt("packed", "2", State.FAILED, failures=2, next_at=datetime.now(UTC), why=why_for_ended_workers([5, 6]), call_no=0)
        assert answers(shop, "orders", "2")["packed"]["next"].startswith("tried again, alone, once nothing else is under way")
        shop.order("paid")
        assert answers(shop, "orders", "3")["packed"]["next"].startswith("carried out in careful mode: among few others")


@pytest.mark.parametrize("table", ["orders", "groundstate_attempt"])
def test_a_table_that_somebody_keeps_from_being_written_is_named(postgres_shop: Shop, table: str) -> None:
    shop = postgres_shop
    shop.order("paid")
    other = create_engine(shop.engine.url, connect_args={"application_name": "index"})
    with shop.a_worker(), other.begin() as theirs:
        theirs.execute(text(f"LOCK TABLE {table} IN SHARE MODE"))
        found = answers(shop, "orders", "1")["packed"]["next"]
    other.dispose()
    assert "waits: pid " in found
    assert f"(index, idle in transaction) has locked the table {table}" in found


def test_a_record_in_a_ring_is_told_of_once_for_each_reaction_of_it(shop: Shop) -> None:
    shop.order("paid")
    steps = [{"reaction": name, "table": "orders", "record": "1", "occurrence": ""} for name in ("packed", "paid")]
    with shop.a_worker(json.dumps({"rings": [{"since": "2026-01-01T00:00:00+00:00", "steps": steps}]})):
        found = answers(shop, "orders", "1")
        said = shop.run("why", "orders", "1").out
    words = "goes round, since paid undoes it, and is slowed down: it is carried out after pauses of up to a minute"
    assert (found["packed"]["next"], found["packed"]["goes_round"]) == (words, words)
    assert found["paid"]["next"] == "nothing: its condition does not hold"
    assert found["noted"]["goes_round"] is None
    assert said.count(words) == 1
    assert "goes round, since packed undoes it" in said


VIDEOS = """
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from groundstate import App, Store, every_child

class Base(DeclarativeBase): ...

class Video(Base):
    __tablename__ = "videos"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    renditions: Mapped[list["Rendition"]] = relationship()

class Rendition(Base):
    __tablename__ = "renditions"
    id: Mapped[int] = mapped_column(primary_key=True)
    video_id: Mapped[int] = mapped_column(ForeignKey("videos.id"))
    file: Mapped[str | None]

app = App(NAME, Store(URL, Base))

@app.on(Rendition, Rendition.file.is_(None))
def rendered(rendition: Rendition) -> None:
    raise RuntimeError("no encoder")

@app.on(Video, Video.status == "new", every_child(Video.renditions, Rendition.file.is_not(None)))
def published(video: Video) -> None:
    video.status = "published"
"""


def test_hazard_63_a_parent_says_which_held_child_it_waits_for(folder: Path, database_url: str) -> None:
    name, module = module_named(folder, database_url, VIDEOS)
    engine = create_engine(database_url)
    shop = Shop(database_url, name, module, engine)
    assert shop.run("init", "--tables").code == 0
    shop.sql("INSERT INTO videos (id, status) VALUES (1, 'new')")
    shop.sql("INSERT INTO renditions (id, video_id, file) VALUES (5, 1, NULL), (6, 1, 'x')")
    shop.attempt("rendered", "5", State.HELD, blocks="renditions", why="the last try was used")
    published = answers(shop, "videos", "1")["published"]
    assert [(one["reaction"], one["record"], one["why"]) for one in published["waits_for"]] == [("rendered", "5", "the last try was used")]
    assert published["next"] == "nothing yet: rendered on its child 5 is held, and waits for a person"
    engine.dispose()
    for database in shop.opened:
        database.close()

"""Commands over several databases: each named, one that is down told of, and the one that is meant found or asked for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from groundstate.engine.rows import attempts
from groundstate.engine.sql import transaction
from groundstate.rules.attempt import Attempt, State
from groundstate.store import connect
from groundstate.store.safe_name import label_of_url
from tests.cli.conftest import Said, groundstate, module_named
from tests.engine.operate.test_several_stores import unused_url

TEXT = """
from datetime import datetime, timedelta
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from groundstate import App, ExternalService, InDoubt, IdempotencyKey, ReactionContext, Store, UtcDateTime


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    status: Mapped[str] = mapped_column(default="placed")
    due_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


app = App(NAME, Store.shards(URL, Base))
bank = ExternalService("bank")


@bank.call(in_doubt=InDoubt.hold())
async def charge(order: Order, key: IdempotencyKey) -> str:
    return "r1"


@app.on(Order, Order.status == "placed", call=charge)
def paid(order: Order, outcome: str) -> None:
    order.status = "paid"


@app.on(Order, Order.status == "waiting", due=Order.due_at)
def reminded(order: Order) -> None:
    order.status = "reminded"


@app.every(timedelta(days=1))
def daily(session: Session, ctx: ReactionContext) -> None: ...
"""


class Sharded:
    """An app on two files, and what is put there by hand."""

    def __init__(self, folder: Path, **more: str) -> None:
        self.urls = {name: f"sqlite:///{folder / name}.db" for name in ("north", "south")}
        _, self.init = module_named(folder, self.urls, TEXT)  # type: ignore[arg-type]  # a mapping of names to URLs
        self.name, self.module = module_named(folder, {**self.urls, **more}, TEXT)  # type: ignore[arg-type]  # as above
        assert groundstate("init", "--tables", "--accept", "all", "--app", f"{self.init}:app").code == 0

    def run(self, *arguments: str) -> Said:
        return groundstate(*arguments, "--app", f"{self.module}:app")

    def sql(self, shard: str, statement: str) -> Any:
        engine = create_engine(self.urls[shard])
        with engine.begin() as connection:
            found = connection.execute(text(statement))
            rows = found.all() if found.returns_rows else []
        engine.dispose()
        return rows

    def held(self, shard: str, record: str, **more: Any) -> None:
        now = datetime.now(UTC)
        made = Attempt(**{
            "app": self.name, "reaction": "paid", "record": record, "occurrence": "", "state": State.HELD, "worker": 7, "call": 1,
            "call_no": 1, "unsure": False, "since": now, "first_at": now, "deadline": now, "blocks": "orders", **more,
        })  # fmt: skip
        database = connect.open_store(connect.resolve_settings(self.urls[shard]))[0]
        with transaction.writing_transaction(database, self.name) as tx:
            attempts.insert_attempts(tx, [made])
        database.close()

    def attempts(self, shard: str) -> list[tuple[str, str]]:
        return [tuple(row) for row in self.sql(shard, "SELECT record, state FROM groundstate_attempt ORDER BY record")]


@pytest.fixture
def sharded(folder: Path) -> Sharded:
    return Sharded(folder)


@pytest.fixture
def one_down(folder: Path) -> Sharded:
    """With a third shard, whose server is not there."""
    return Sharded(folder, west=unused_url())


def test_pending_and_status_tell_of_each_shard_by_its_name(sharded: Sharded) -> None:
    sharded.sql("south", "INSERT INTO orders (id, status) VALUES (1, 'placed'), (2, 'placed')")
    stores = sharded.run("pending", "--json").json["stores"]
    assert [(one["store"], one["report"]["to_do"][0]["rows"]) for one in stores] == [("north", 0), ("south", 2)]
    for named in ("south", label_of_url(connect.resolve_settings(sharded.urls["south"]).url)):
        assert [one["store"] for one in sharded.run("pending", "--store", named, "--json").json["stores"]] == ["south"]
    assert f"south ({sharded.urls['south']})" in sharded.run("pending").out
    assert [one["store"] for one in sharded.run("status", "--json").json["stores"]] == ["north", "south"]


def test_a_store_that_is_not_there_is_a_wrong_argument(sharded: Sharded) -> None:
    said = sharded.run("pending", "--store", "east")
    assert (said.code, said.out) == (2, "")
    assert "--store: there is no 'east' here; there are north, south" in said.err


@pytest.mark.parametrize("command", ["pending", "status", "held", "timers", "check", "plan"])
def test_a_shard_that_is_down_is_told_of_and_the_others_are_shown(one_down: Sharded, command: str) -> None:
    one_down.held("south", "1")
    one_down.sql("south", "INSERT INTO orders (id, status, due_at) VALUES (3, 'waiting', '2099-01-01 00:00:00.000000')")
    said = one_down.run(command, "--json")
    assert said.code == 4
    assert [(one["store"], one["kind"]) for one in said.json["unusable"]] == [("west", "OperationalError")]
    assert "west could not be read: the database says: " in said.err
    shown = one_down.run(command)
    assert shown.code == 4
    assert {"held": "1 of 1 held", "timers": "reminded"}.get(command, "south") in shown.out


def test_why_finds_the_shard_of_a_record(sharded: Sharded) -> None:
    sharded.sql("south", "INSERT INTO orders (id, status) VALUES (1, 'placed')")
    said = sharded.run("why", "orders", "1", "--json").json
    assert [one["store"] for one in said["stores"]] == ["south"]
    assert said["why"]["exists"]
    assert "south (sqlite" in sharded.run("why", "orders", "1").out
    sharded.sql("north", "INSERT INTO orders (id, status) VALUES (1, 'placed')")
    assert [one["store"] for one in sharded.run("why", "orders", "1", "--json").json["stores"]] == ["north", "south"]
    assert [one["store"] for one in sharded.run("why", "orders", "1", "--store", "north", "--json").json["stores"]] == ["north"]
    assert [one["store"] for one in sharded.run("why", "daily", "--json").json["stores"]] == ["north", "south"]
    assert sharded.run("why", "visits", "1").code == 3


def test_an_act_goes_to_the_shard_that_has_the_attempt(sharded: Sharded) -> None:
    sharded.sql("south", "INSERT INTO orders (id, status) VALUES (1, 'placed')")
    sharded.held("south", "1")
    assert sharded.run("retry", "paid", "1").code == 0
    assert sharded.attempts("south") == [("1", "failed")]
    assert sharded.run("retry", "paid", "2").code == 3


def test_an_act_that_could_be_meant_for_two_shards_asks_which(sharded: Sharded) -> None:
    for shard in ("north", "south"):
        sharded.held(shard, "1")
    for act in (("retry", "paid", "1"), ("forget", "paid", "1"), ("settle", "paid", "1", "--absent")):
        said = sharded.run(*act)
        assert said.code == 1
        assert "paid has an attempt on 1 in several stores: say which by --store: north, south" in said.err
    assert sharded.attempts("north") == sharded.attempts("south") == [("1", "held")]
    assert sharded.run("forget", "paid", "1", "--store", "north").code == 0
    assert (sharded.attempts("north"), sharded.attempts("south")) == ([], [("1", "held")])


def test_an_act_on_what_may_be_on_a_shard_that_is_down_says_so(one_down: Sharded) -> None:
    one_down.held("south", "1")
    assert one_down.run("forget", "paid", "1").code == 0
    said = one_down.run("forget", "paid", "1")
    assert said.code == 4
    assert "west could not be read" in said.err


def test_acts_on_all_go_over_all_shards(one_down: Sharded) -> None:
    for shard in ("north", "south"):
        one_down.held(shard, "1")
        one_down.held(shard, "2")
    said = one_down.run("forget", "--all", "--reaction", "paid", "--store", "north", "--json")
    assert (said.code, said.json["counts"]) == (0, {"deleted": 2})
    said = one_down.run("forget", "--all", "--reaction", "paid", "--json")
    assert (said.code, said.json["counts"], [one["store"] for one in said.json["unusable"]]) == (4, {"deleted": 2}, ["west"])


def test_held_goes_on_from_one_shard_to_the_next(sharded: Sharded) -> None:
    for shard in ("north", "south"):
        sharded.held(shard, "1")
        sharded.held(shard, "2")
    first = sharded.run("held", "--limit", "3", "--json").json
    assert [(one["store"], one["record"]) for one in first["held"]] == [("north", "1"), ("north", "2"), ("south", "1")]
    rest = sharded.run("held", "--after", first["more"], "--json").json
    assert [(one["store"], one["record"]) for one in rest["held"]] == [("south", "2")]


def test_trust_and_rename_go_over_all_shards(sharded: Sharded) -> None:
    for shard in ("north", "south"):
        sharded.sql(shard, "UPDATE groundstate_reaction SET suspect = 1 WHERE name = 'paid'")
    assert sharded.run("trust", "--json").json["trusted"] == []  # of an app of another name
    for shard in ("north", "south"):
        sharded.held(shard, "1", reaction="of_old")
    assert sharded.run("rename", "of_old", "paid", "--json").json["attempts"] == 2


def test_check_finds_records_that_two_shards_have(sharded: Sharded) -> None:
    for shard in ("north", "south"):
        sharded.sql(shard, "INSERT INTO orders (id, status) VALUES (7, 'paid')")
    said = sharded.run("check", "--json")
    assert said.code == 1
    between = said.json["stores"][-1]
    assert between["store"] == "north, south"
    assert [one["kind"] for one in between["findings"]] == ["shards"]
    assert "north and south both have a record 7" in sharded.run("check").out


def test_plan_and_init_tell_of_shards_that_number_their_rows_alike(folder: Path) -> None:
    numbered = TEXT.replace("primary_key=True, autoincrement=False", "primary_key=True")
    _, module = module_named(folder, {name: f"sqlite:///{folder / name}.db" for name in ("north", "south")}, numbered)  # type: ignore[arg-type]  # a mapping
    app, words = f"{module}:app", "give the same numbers to rows of orders"
    made = groundstate("init", "--tables", "--accept", "all", "--app", app)
    assert (made.code, words in made.out, "A start is refused" in made.out) == (0, True, True), made.out
    planned = groundstate("plan", "--app", app)
    assert (planned.code, words in planned.out) == (1, True), planned.out
    assert words in groundstate("run", "--app", app).err
    refused = json.loads(groundstate("init", "--json", "--app", app).out)["refused"]
    assert [words in one for one in refused] == [True, True]

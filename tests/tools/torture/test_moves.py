"""What an enemy and a restore do to the database: that they do it, and that the judge is told."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from tools.servers.postgres import ServerError
from tools.torture.copies import DataCopy, FolderCopy
from tools.torture.disk import BALLAST
from tools.torture.enemy import Intruder
from tools.torture.excuses import Erased
from tools.torture.orders import Orders
from tools.torture.person import BOOKED
from tools.torture.place import Place
from tools.torture.shop import Base

from groundstate.store import tables
from tests.tools.torture.books import Books


def enemy(books: Books, store: str = "sqlite") -> Intruder:
    return Intruder(cast("Place", SimpleNamespace(engine=books.engine, store=store)), books.judge, Random(1))


def test_an_enemy_deletes_an_attempt_whose_call_is_in_the_air_and_the_judge_knows_whose_it_was(books: Books) -> None:
    books.order("placed")
    books.life(pid=8)
    books.attempt("begun", call=77)
    books.attempt("doubt", record=2)
    assert enemy(books).delete_attempt() == "attempts deleted while their call was in the air"
    assert [one.record for one in books.judge.books.read_attempts()] == ["2"]
    assert books.judge.excuses.erased == {("charge", "1", "1"): Erased({8})}
    assert books.judge.faults == []


def test_a_delete_that_says_nothing_and_is_let_through_on_postgresql_is_named(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.torture.enemy.KNOWS_THE_MARK", 0.0)
    books.life(pid=8)
    books.attempt("begun")
    one = enemy(books, "postgres")
    monkeypatch.setattr(one, "_run_in_transaction", lambda _act: 1)
    assert one.delete_attempt() == "attempts deleted while their call was in the air"
    assert books.named == {"Guarded"}


def test_a_delete_that_is_refused_on_postgresql_is_counted_and_excuses_nothing(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    books.life(pid=8)
    books.attempt("begun")
    one = enemy(books, "postgres")

    def refuse(_act: object) -> int:
        raise OperationalError("DELETE", {}, Exception("refused"))

    monkeypatch.setattr(one, "_run_in_transaction", refuse)
    assert one.delete_attempt() == "attempts whose DELETE was refused"
    assert books.judge.excuses.erased == {}
    assert books.judge.checks["Guarded"] == 1


def test_an_enemy_moves_the_term_of_an_order_whose_insurance_is_open(books: Books) -> None:
    books.order("labelled", insured_term=0)
    books.attempt("doubt", reaction="insured")
    assert enemy(books).move_occurrence() == "occurrences moved while their call was open"
    assert books.judge.books.read_orders()[1].term == 2
    assert books.judge.moved == {"1"}


def test_an_enemy_who_finds_nothing_to_do_says_so(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.torture.enemy.LOOKS_FOR_S", 0.0)
    assert enemy(books).delete_attempt() == "found no call in the air"
    assert enemy(books).move_occurrence() == "found no insurance under way"


def test_a_folder_is_put_back_with_all_that_lay_in_it_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    engine = create_engine(f"sqlite:///{folder / 'one.db'}")
    copy = FolderCopy(folder, tmp_path / "copy", engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE one (id INTEGER)"))
    (folder / "one.db-groundstate-witness-1").write_bytes(b"12")
    (folder / BALLAST).write_bytes(b"x" * 100)
    copy.take_copy()
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO one VALUES (1)"))
    (folder / "one.db-groundstate-witness-1").unlink()
    (folder / "one.db-groundstate-witness-2").touch()
    (folder / BALLAST).unlink()
    copy.restore()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM one")).scalar_one() == 0
    assert [path.name for path in sorted(folder.iterdir())] == ["one.db", "one.db-groundstate-witness-1"]
    engine.dispose()


def test_rows_are_put_back_into_the_same_tables_of_a_postgresql(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    Base.metadata.create_all(engine)
    tables.metadata.create_all(engine)
    copy = DataCopy(engine)
    insert = text(
        "INSERT INTO orders (id, status, round, rounds, charged_round, receipt, term, insured_term) VALUES (:id, 'a	b', 1, 1, 0, :r, 1, 0)"
    )
    oid = text("SELECT oid FROM pg_class WHERE relname = 'orders'")
    with engine.begin() as connection:
        connection.execute(insert, {"id": 1, "r": None})
        before = connection.execute(oid).scalar_one()
    copy.take_copy()
    with engine.begin() as connection:
        connection.execute(insert, {"id": 2, "r": "new"})
        connection.execute(text("UPDATE orders SET receipt = 'new'"))
    copy.restore()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT id, status, receipt FROM orders")).all() == [(1, "a\tb", None)]
        assert connection.execute(oid).scalar_one() == before
    engine.dispose()


def test_no_order_comes_in_while_the_shop_is_closed_and_no_number_is_given_twice(books: Books) -> None:
    orders = Orders(books.engine, Random(3), 1000, 0, 0, books.judge.placed)
    with orders.placing_orders():
        while not orders.placed:
            pass
        with orders.paused():
            highest = orders.placed[-1]
            books.run("DELETE FROM orders")
            orders.placed.clear()
            assert list(books.judge.books.read_orders()) == []
        while not orders.placed:
            pass
    assert min(orders.placed) == highest + 1


@pytest.mark.parametrize("reaction", sorted(BOOKED))
def test_a_person_writes_an_outcome_into_an_order_that_lacks_it_and_into_no_other(books: Books, reaction: str) -> None:
    books.order("packed", number=1, insured_term=0)
    books.order("packed", number=2, insured_term=0)
    given: dict[str, Any] = {"id": 1, "outcome": "first"}
    if ":occurrence" in BOOKED[reaction]:
        given["occurrence"] = 1
    for outcome in ("first", "second"):
        with books.engine.begin() as connection:
            connection.execute(text(BOOKED[reaction]), given | {"outcome": outcome})
    orders = books.judge.books.read_orders()
    columns = {"insured": "policy", "labelled": "label", "stickered": "label", "mailed": "mailed", "thanked": "thanked"}
    assert getattr(orders[1], columns[reaction]) == "first"
    assert getattr(orders[2], columns[reaction]) is None


class Cramped:
    """A server that writes when it starts, and the disk that it writes to."""

    def __init__(self) -> None:
        self.running = False
        self.room = False

    def start(self) -> None:
        if not self.room:
            raise ServerError("No space left on device")
        self.running = True

    def free(self) -> None:
        self.room = True


def test_a_server_that_was_killed_on_a_full_disk_is_given_room_to_recover(books: Books) -> None:
    cramped: Any = Cramped()
    place = Place("postgres", "", "", "", cramped, books.engine, Random(1), cast("DataCopy", None), cramped)
    place.wait_for_recovery()
    assert cramped.running
    assert place.done["PostgreSQL had no room to start"] == 1


def test_a_server_that_does_not_start_for_another_reason_ends_the_run(books: Books) -> None:
    cramped: Any = Cramped()
    with pytest.raises(ServerError):
        Place("postgres", "", "", "", None, books.engine, Random(1), cast("DataCopy", None), cramped).wait_for_recovery()

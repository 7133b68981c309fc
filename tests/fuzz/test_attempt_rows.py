"""Attempts that somebody edited by hand to nonsense: held for a person, said in words, and everything else is carried out."""

from __future__ import annotations

import importlib
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import bindparam, delete, insert, select, text

from groundstate.rules.attempt import State
from groundstate.store.tables import attempt as table
from tests.cli.conftest import Said, Shop
from tests.engine.kit import forcing
from tests.fuzz.conftest import examples
from tests.fuzz.nonsense import HELD, KEPT, STATES_UNKNOWN
from tests.patience import HANG_S, until

STATES = [State.BEGUN, State.DOUBT, State.FAILED, State.HELD]
NONSENSE = [(column, value) for column, values in {**HELD, **KEPT, "state": STATES_UNKNOWN}.items() for value in values]


def rows(shop: Shop, statement: str, **given: Any) -> list[Any]:
    with shop.engine.connect() as connection:
        return list(connection.execute(text(statement), given))


def edit(shop: Shop, record: str, column: str, value: Any) -> None:
    edit_each(shop, [(record, column, value)])


def edit_each(shop: Shop, edits: Iterable[tuple[str, str, Any]]) -> None:
    with forcing(shop.engine) as connection:
        for record, column, value in edits:
            statement = text(f"UPDATE groundstate_attempt SET {column} = :value WHERE record = :record")
            connection.execute(statement, {"value": value, "record": record})


def stands(shop: Shop, record: str, state: State) -> None:
    shop.attempt("paid", record, state, failures=int(state is State.FAILED), why="by the test" if state is State.HELD else None)


def all_stand(shop: Shop, bad: Sequence[tuple[str, Any]]) -> None:
    """One attempt for each, in each state in turn, and then its nonsense."""
    shop.sql("INSERT INTO orders (status) " + " UNION ALL ".join(["SELECT 'placed'"] * (len(bad) + 5)))
    stands(shop, "0", State.DOUBT)
    with forcing(shop.engine) as connection:
        for number in range(1, len(bad) + 1):
            state = STATES[number % 4]
            own = {"record": str(number), "state": str(state), "unsure": state is State.DOUBT, "failures": number % 2, "call": number}
            values = [bindparam(None, own[column.name], type_=column.type) if column.name in own else column for column in table.columns]
            connection.execute(insert(table).from_select(table.columns.keys(), select(*values).where(table.c.record == "0")))
        connection.execute(delete(table).where(table.c.record == "0"))
    edit_each(shop, [(str(number), column, value) for number, (column, value) in enumerate(bad, 1)])


@contextmanager
def working(shop: Shop) -> Iterator[Any]:
    app = importlib.import_module(shop.module).app
    app.start()
    try:
        yield app
        assert app.failure is None
    finally:
        app.stop(timedelta(seconds=5))


def packed(shop: Shop, first: int, last: int) -> bool:
    found = rows(shop, "SELECT count(*) FROM orders WHERE id BETWEEN :first AND :last AND status = 'packed'", first=first, last=last)
    return bool(found[0][0] == last - first + 1)


def in_words(said: Said) -> bool:
    """No traceback, no error of ours, no escape for the terminal."""
    return said.code in (0, 1, 3) and not any(bad in said.out + said.err for bad in ("Traceback", "--debug", "\x1b", "\u202e", "\x00"))


def test_others_are_carried_out_beside_rows_that_make_no_sense_and_those_are_held_for_a_person(sqlite_shop: Shop) -> None:
    shop = sqlite_shop
    bad = [(column, value) for column, values in HELD.items() for value in values]
    all_stand(shop, bad)
    with working(shop):
        until(lambda: packed(shop, len(bad) + 1, len(bad) + 5))
        until(lambda: len(_held_by_the_worker(shop)) == len(bad), lambda: _held_by_the_worker(shop))
    for number, (column, _) in enumerate(bad, 1):
        (row,) = rows(shop, "SELECT why, next_at, typeof(since) FROM groundstate_attempt WHERE record = :n", n=str(number))
        assert row[0].startswith(f"somebody edited its row, which cannot be read: {column} ")
        assert row[1:] == (None, "text")
    assert rows(shop, "SELECT count(*) FROM orders WHERE status = 'placed'")[0][0] == len(bad)  # none of them was called
    assert {one["record"] for one in shop.run("held", "--json", "--limit", "1000").json["held"]} == {str(n) for n in range(1, len(bad) + 1)}


def _held_by_the_worker(shop: Shop) -> list[Any]:
    return rows(shop, "SELECT record FROM groundstate_attempt WHERE state = 'held' AND why LIKE 'somebody edited%'")


def test_on_postgresql_times_that_python_has_not_are_held_as_well(postgres_shop: Shop) -> None:
    shop = postgres_shop
    bad: list[tuple[str, Any]] = [
        ("since", "infinity"),
        ("first_at", "-infinity"),
        ("deadline", "20000-01-01"),
        ("next_at", "infinity"),
    ]
    bad += [("worker", -5), ("call_no", -1), ("failures", -1), ("together", -1), ("since", "0044-03-15 BC")]
    all_stand(shop, bad)
    for command in (["pending"], ["held", "--long"], *(["why", "orders", str(number)] for number in range(1, len(bad) + 1))):
        assert in_words(shop.run(*command)), command
    with working(shop):
        until(lambda: packed(shop, len(bad) + 1, len(bad) + 5))
        until(lambda: len(_held_by_the_worker(shop)) == len(bad), lambda: _held_by_the_worker(shop))


def test_a_state_that_is_none_is_told_once_keeps_its_record_and_is_never_rewritten(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    unknown = ["gone", "BEGUN", "", "zzz"] if shop.engine.dialect.name == "postgresql" else list(STATES_UNKNOWN)
    count = len(unknown)
    shop.order("placed", count + 3, note="please")
    for number, state in enumerate(unknown, 1):
        shop.attempt("paid", str(number), STATES[number % 4], failures=0, unsure=False)
        edit(shop, str(number), "state", state)
    before = rows(shop, "SELECT * FROM groundstate_attempt ORDER BY record")
    with working(shop) as app:
        until(lambda: _packed_or_noted(shop, count + 1, count + 3))
        told = [one for one in caplog.records if getattr(one, "event", "") == "attempt_state_unknown"]
        assert sorted(one.record for one in told) == [str(number) for number in range(1, count + 1)]  # type: ignore[attr-defined]  # extra=
        assert app.failure is None
    assert rows(shop, "SELECT * FROM groundstate_attempt ORDER BY record") == before
    assert not [one for one in caplog.records if getattr(one, "event", "") == "attempt_illegible"]
    left = rows(shop, "SELECT id FROM orders WHERE status = 'placed' AND note = 'please' ORDER BY id")
    assert [row[0] for row in left] == list(range(1, count + 1))  # no reaction took their records
    for one in shop.report()["held"]:
        assert "which this version does not know" in one["why"]
    assert "which this version does not know" in shop.run("why", "orders", "1").out


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (["settle", "paid", "1", "--outcome", '"r7"'], "concluded"),
        (["retry", "paid", "1"], "doubt"),
        (["forget", "paid", "1"], "refused"),
    ],
)
def test_a_person_settles_an_attempt_in_a_state_that_is_none_and_is_told_that_it_is_taken_as_held(
    shop: Shop, command: list[str], word: str
) -> None:
    shop.order("placed", 1)
    shop.attempt("paid", "1", State.BEGUN)
    edit(shop, "1", "state", "gone")
    said = shop.run(*command)
    (state,) = [row[0] for row in rows(shop, "SELECT state FROM groundstate_attempt")] or ["concluded"]
    assert state == ("gone" if word == "refused" else word)
    assert ("was taken as held" in said.out) is (word != "refused"), said


def _packed_or_noted(shop: Shop, first: int, last: int) -> bool:
    found = rows(shop, f"SELECT count(*) FROM orders WHERE id BETWEEN {first} AND {last} AND (status = 'packed' OR note = 'noted')")
    return bool(found[0][0] == last - first + 1)


COMMANDS = [
    ["pending", "--states"],
    ["pending", "--json"],
    ["why", "orders", "1"],
    ["held", "--long"],
    ["held", "--json"],
    ["check"],
    ["retry", "paid", "1"],
    ["settle", "paid", "1", "--outcome", '"r"'],
    ["settle", "paid", "1", "--absent"],
    ["forget", "paid", "1"],
    ["retry", "--all", "paid", "--failed"],
    ["forget", "--all", "paid"],
]


@examples(8)
@given(st.sampled_from(NONSENSE), st.sampled_from(STATES), st.permutations(COMMANDS))
def test_each_command_answers_in_words_whatever_stands_in_the_row(
    sqlite_shop: Shop, nonsense: tuple[str, Any], state: State, commands: list[list[str]]
) -> None:
    shop = sqlite_shop
    shop.sql("DELETE FROM orders")
    shop.sql("DELETE FROM groundstate_attempt")
    shop.order("placed", 2)
    stands(shop, "1", state)
    edit(shop, "1", *nonsense)
    for command in commands:
        said = shop.run(*command)
        assert in_words(said), (command, said)
        assert "--json" not in command or said.json["groundstate"] == 1


@pytest.mark.parametrize(("column", "value"), [("state", "nonsense"), ("deadline", "soon"), ("since", 5), ("worker", "abc")])
def test_a_person_settles_what_cannot_be_read_without_any_worker(sqlite_shop: Shop, column: str, value: Any) -> None:
    shop = sqlite_shop
    shop.order("placed", 1)
    stands(shop, "1", State.DOUBT)
    edit(shop, "1", column, value)
    (listed,) = shop.report()["held"] or shop.report()["in_doubt"]
    assert listed["standing"] == "held"
    assert column in listed["why"]
    assert "settle --outcome" in shop.run("held", "--json").json["held"][0]["can"] if column == "state" else True
    said = shop.run("settle", "paid", "1", "--outcome", '"r7"')
    assert said.code == 0, said
    assert rows(shop, "SELECT status, receipt FROM orders") == [("paid", "r7")]
    assert rows(shop, "SELECT * FROM groundstate_attempt") == []


def test_an_attempt_whose_record_is_no_key_does_not_keep_others_that_are_due_waiting(shop: Shop) -> None:
    shop.order("placed", 3)
    for number, record in enumerate(("xyz", "9" * 30, "-1", "1", "2", "3")):
        for reaction in ("paid", "noted"):
            shop.attempt(reaction, record, State.FAILED, failures=1, blocks=None, call=number + 1, call_no=int(reaction == "paid"))
    with working(shop):
        until(lambda: packed(shop, 1, 3))
        until(lambda: rows(shop, "SELECT * FROM groundstate_attempt") == [])  # of what is not there nothing is left to be done


@pytest.mark.parametrize("column", ["since", "state"])
def test_a_row_that_is_edited_while_its_call_is_in_the_air_is_concluded_with_the_outcome(sqlite_shop: Shop, column: str) -> None:
    shop = sqlite_shop
    module = importlib.import_module(shop.module)
    spec = module.app.reactions["paid"]
    gone, go = threading.Event(), threading.Event()

    def slowly(order: Any, **_: Any) -> str:
        gone.set()
        assert go.wait(HANG_S)
        return f"r{order.id}"

    function = spec.call.function
    before = function.call
    object.__setattr__(function, "call", slowly)
    shop.order("placed", 1)
    try:
        with working(shop):
            assert gone.wait(HANG_S)
            edit(shop, "1", column, "when it was")
            until(lambda: column == "state" or len(_held_by_the_worker(shop)) == 1)
            go.set()
            until(lambda: packed(shop, 1, 1))
    finally:
        go.set()
        object.__setattr__(function, "call", before)
    assert rows(shop, "SELECT receipt FROM orders") == [("r1",)]
    assert rows(shop, "SELECT * FROM groundstate_attempt") == []


def test_of_an_outcome_that_is_no_json_any_more_the_text_is_kept_beside_the_one_that_is_said(sqlite_shop: Shop) -> None:
    shop = sqlite_shop
    for number, outcome in enumerate(("", "r1", "[]", "{}", "[" * 10_000), 1):
        shop.order("placed", 1)
        shop.attempt("paid", str(number), State.HELD, outcome=outcome, why="by the test")
        said = shop.run("retry", "paid", str(number))
        assert said.code == 1
        assert "settle it with its outcome by hand" in said.err
        assert shop.run("settle", "paid", str(number), "--outcome", f'"s{number}"').code in (0, 1)
    assert [row[0] for row in rows(shop, "SELECT receipt FROM orders ORDER BY id")] == [f"s{number}" for number in range(1, 6)]
    assert list(itertools.chain.from_iterable(rows(shop, "SELECT outcome FROM groundstate_attempt"))) == []

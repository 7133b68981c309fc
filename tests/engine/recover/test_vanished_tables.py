"""Our tables vanish, as by a migration that drops what it does not know, while a call is in doubt: no advice leads to a second call."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect

from groundstate import DeclarationError, InDoubt, NotInitialisedError, StateRefusedError, StoreRefusedError
from groundstate.store.tables import metadata as ours
from tests.engine.charging import ASK, charging
from tests.engine.kit import Gateway, Order, World, until

DAY = timedelta(hours=24)


@pytest.fixture
def witnessed(database_url: str, tmp_path: Path) -> Iterator[World]:
    made = World(database_url, witness=tmp_path / "witness")
    yield made
    made.close()


def one_in_doubt(world: World, policy: Any = ASK) -> Gateway:
    """A charge went out and was made, its word is lost, and its worker is killed."""
    gateway = charging(world, policy)
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    life.kill()
    return gateway


def drop_ours(world: World, *names: str) -> None:
    world.engine.dispose()
    for name in names or ours.tables:
        world.run(f"drop table {name}")


def tables_of(world: World) -> set[str]:
    return set(inspect(world.engine).get_table_names()) & set(ours.tables)


def witnesses(tmp_path: Path) -> list[str]:
    return sorted(one.name for one in (tmp_path / "witness").iterdir())


def suspects(world: World) -> list[str]:
    with world.engine.connect() as connection:
        return list(connection.exec_driver_sql("select name from groundstate_reaction where suspect").scalars())


# ---- a witness of begins that nobody has settled -----------------------------------------------------------------------------------
def test_init_refuses_to_make_our_tables_anew_beside_a_witness_of_begun_calls(witnessed: World, tmp_path: Path) -> None:
    one_in_doubt(witnessed)
    drop_ours(witnessed)
    before = witnesses(tmp_path)
    with pytest.raises(StoreRefusedError, match="1 call begun") as refused:
        witnessed.app.init()
    assert "--after-restore" in str(refused.value)
    assert "--new-database" in str(refused.value)
    assert before[0] in str(refused.value)
    assert tables_of(witnessed) == set(), "nothing is changed by what is refused"
    assert witnesses(tmp_path) == before != []


def test_after_a_restore_said_to_init_the_lost_call_is_asked_after_and_never_made_again(witnessed: World, tmp_path: Path) -> None:
    gateway = one_in_doubt(witnessed)
    drop_ours(witnessed)
    witnessed.app.init(after_restore=True)
    assert witnessed.states() == ["doubt"]
    assert suspects(witnessed) == ["paid"]
    assert witnesses(tmp_path) == [], "what it said is answered: the call of the lost time is in doubt"
    life = witnessed.worker()  # no word is wanted: each of its rows is in doubt already
    witnessed.forward(60)
    until(lambda: witnessed.order().receipt == "r1")
    life.quiet()
    assert life.worker.refused_reactions == []
    assert gateway.called(1) == 1


def test_what_is_taken_after_that_starts_as_a_doubt_until_a_person_trusts_it(witnessed: World) -> None:
    gateway = one_in_doubt(witnessed)
    drop_ours(witnessed)
    witnessed.app.init(after_restore=True, accept=["paid"])
    witnessed.orders_from(2, 2)
    witnessed.worker()
    until(lambda: [one.record for one in witnessed.attempts()] == ["1", "2"])
    assert gateway.called(2) == 0


def test_a_new_database_erases_the_witness_and_says_which(witnessed: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one_in_doubt(witnessed)
    drop_ours(witnessed)
    (before,) = witnesses(tmp_path)
    witnessed.app.init(new_database=True)
    assert witnesses(tmp_path) == []
    assert before in caplog.text
    assert witnessed.states() == []
    assert suspects(witnessed) == []


def test_the_witness_of_a_worker_that_runs_is_no_other_databases(witnessed: World, tmp_path: Path) -> None:
    charging(witnessed, ASK)
    witnessed.orders(1)
    life = witnessed.worker()
    life.quiet()
    drop_ours(witnessed)
    with pytest.raises(StoreRefusedError, match="stop them first"):
        witnessed.app.init(new_database=True)
    assert len(witnesses(tmp_path)) == 1


def test_init_beside_a_worker_whose_witness_the_database_knows_is_as_always(witnessed: World, tmp_path: Path) -> None:
    one_in_doubt(witnessed)
    assert witnessed.app.init() == []
    assert len(witnesses(tmp_path)) == 1


def test_tables_that_a_migration_made_anew_are_no_reason_to_forget_the_witness(witnessed: World, tmp_path: Path) -> None:
    gateway = one_in_doubt(witnessed)
    drop_ours(witnessed)
    ours.create_all(witnessed.engine)  # as Alembic does, where our metadata is a target
    with pytest.raises(StoreRefusedError, match="--after-restore"):
        witnessed.app.init()
    assert len(witnesses(tmp_path)) == 1
    life = witnessed.worker()  # without init
    assert witnessed.states() == ["doubt"]
    witnessed.app.init(accept=["paid"])
    witnessed.forward(60)
    until(lambda: witnessed.order().receipt == "r1")
    life.quiet()
    assert gateway.called(1) == 1


def test_a_new_file_in_the_place_of_the_old_one_is_told_from_a_new_database_by_a_person(sqlite_url: str) -> None:
    world = World(sqlite_url)
    try:
        one_in_doubt(world)
        world.engine.dispose()
        file = Path(sqlite_url.removeprefix("sqlite:///"))
        for one in (file, *file.parent.glob(f"{file.name}-wal"), *file.parent.glob(f"{file.name}-shm")):
            one.unlink(missing_ok=True)
        with pytest.raises(StoreRefusedError, match="witness"):
            world.app.init(tables=True)
        assert not file.exists(), "what is refused makes no file"
        assert "groundstate_attempt" in world.app.init(tables=True, new_database=True)
    finally:
        world.close()


@pytest.mark.parametrize("gone", ["groundstate_attempt", "groundstate_worker", "groundstate_reaction"])
def test_one_of_our_tables_that_is_gone_is_no_first_start(world: World, gone: str) -> None:
    gateway = one_in_doubt(world)
    drop_ours(world, gone)
    seen_by_a_start = world.postgres and gone != "groundstate_reaction"  # by the tables' oids
    if seen_by_a_start:
        world.app.init()
    else:
        with pytest.raises(StoreRefusedError, match=gone):
            world.app.init()
        world.app.init(after_restore=True)
    life = world.worker()
    if gone == "groundstate_reaction":
        world.app.init(accept=["paid"])
    world.forward(60)
    until(lambda: world.order().receipt == "r1")
    life.quiet()
    assert gateway.called(1) == 1


def test_a_table_that_a_newer_version_adds_is_made_without_a_word(witnessed: World) -> None:
    one_in_doubt(witnessed)
    drop_ours(witnessed, "groundstate_rate")
    assert witnessed.app.init() == ["groundstate_rate"]


def test_what_says_that_a_column_is_missing_says_how_to_add_it_and_to_keep_the_table(world: World) -> None:
    """Whoever made the table anew, to be rid of 'has no column', would lose the doubts that stand in it."""
    gateway = one_in_doubt(world)
    world.engine.dispose()
    world.run("alter table groundstate_attempt drop column error")
    with pytest.raises(NotInitialisedError, match="do not make the table anew") as refused:
        world.worker()
    (statement,) = re.findall(r"by hand: (ALTER TABLE [^;]*);", str(refused.value))
    world.run(statement)
    life = world.worker()
    world.forward(60)
    until(lambda: world.order().receipt == "r1")
    life.quiet()
    assert gateway.called(1) == 1


def test_tables_that_are_dropped_and_made_anew_under_a_living_worker_lead_to_no_second_call(world: World) -> None:
    gateway = charging(world, ASK)
    world.orders(1)
    life = world.worker()
    until(lambda: world.order().status == "paid")
    drop_ours(world)
    ours.create_all(world.engine)
    world.set(1, status="placed", receipt=None)  # as if its charge had been in doubt
    life.sweep()
    until(lambda: world.states() == ["doubt"])
    world.forward(60)
    until(lambda: world.order().receipt == "r1")
    assert gateway.called(1) == 1


def test_a_copy_that_is_to_be_a_database_of_its_own_is_no_database_that_went_back(world: World) -> None:
    charging(world, ASK)
    world.orders(1)
    world.settled()
    if world.postgres:
        world.run("update groundstate_reaction set condition = '{\"system\": \"another\"}' where name = ''")
    else:
        world.run("update groundstate_reaction set begins = 0 where name = ''")  # as in a copy of an earlier day, at this path
    world.app.init(new_database=True)
    world.settled()
    assert suspects(world) == []


def test_both_words_at_once_contradict_each_other(world: World) -> None:
    charging(world, ASK)
    with pytest.raises(DeclarationError, match="contradict"):
        world.app.init(after_restore=True, new_database=True)


# ---- accepting a reaction that would call -------------------------------------------------------------------------------------------
def without_a_witness(world: World, tmp_path: Path) -> None:
    drop_ours(world)
    for one in tmp_path.glob("*-groundstate-witness-*"):
        one.unlink()
    world.app.init()


def test_the_story_of_the_issue_the_advice_names_the_calls_and_accepting_alone_is_refused(world: World, tmp_path: Path) -> None:
    gateway = one_in_doubt(world)
    without_a_witness(world, tmp_path)
    life = world.worker()
    until(lambda: [(one.name, one.calls) for one in life.worker.refused_reactions] == [("paid", 1)])
    words = life.worker.refused_reactions[0].message
    assert "charge would be called for 1 of them" in words
    assert "groundstate init --accept paid=call" in words
    assert "groundstate init --accept paid=doubt" in words
    for accept in (["paid"], True, ["all"]):
        with pytest.raises(StateRefusedError, match="paid=doubt"):
            world.app.init(accept=accept)
    life.quiet()
    assert gateway.called(1) == 1
    assert world.states() == []


@pytest.mark.parametrize("accept", [["paid=doubt"], "doubt", ["all=doubt"], {"paid": "doubt"}], ids=["named", "word", "all", "mapping"])
def test_accepted_as_a_doubt_the_lost_call_is_found_and_not_made_again(world: World, tmp_path: Path, accept: Any) -> None:
    gateway = one_in_doubt(world)
    without_a_witness(world, tmp_path)
    told: dict[str, int] = {}
    world.app.init(accept=accept, progress=told.__setitem__)
    assert told == {"paid": 1}
    assert world.attempt().unsure
    life = world.worker()
    world.forward(60)
    until(lambda: world.order().receipt == "r1")
    life.quiet()
    assert gateway.called(1) == 1
    world.orders_from(2, 2)  # a new row is no doubt: nothing is suspect
    until(lambda: world.order(2).status == "paid")
    assert gateway.done(2) == 1


def test_accepted_as_calls_rows_that_were_never_called_are_called(world: World) -> None:
    world.there()
    world.orders(3)
    gateway = charging(world, ASK)
    world.app.init(accept=["paid=call"])
    world.settled()
    assert [gateway.called(number) for number in (1, 2, 3)] == [1, 1, 1]


def test_a_row_that_was_surely_not_called_is_called_once_its_find_says_so(world: World) -> None:
    world.there()
    world.orders(1)
    gateway = charging(world, ASK)
    world.app.init(accept=["paid=doubt"])
    life = world.worker()
    world.forward(60)
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert gateway.called(1) == 1


@pytest.mark.parametrize("policy", [InDoubt.hold(), InDoubt.same_key(kept_for=DAY)], ids=["hold", "same_key"])
def test_where_nobody_can_be_asked_each_doubt_is_held_for_a_person_and_the_words_say_so(world: World, policy: Any) -> None:
    world.there()
    world.orders(3)
    gateway = charging(world, policy)
    life = world.worker()
    until(lambda: [one.calls for one in life.worker.refused_reactions] == [3])
    assert "3 would be held, each until a person says what became of it" in life.worker.refused_reactions[0].message
    world.app.init(accept=["paid=doubt"])
    until(lambda: world.states() == ["held", "held", "held"])
    assert [one.unsure for one in world.attempts()] == [True, True, True]
    assert gateway.ledger == []


def test_under_again_a_doubt_is_called_all_the_same_and_the_words_say_so(world: World) -> None:
    world.there()
    world.orders(1)
    gateway = charging(world, InDoubt.repeat())
    with pytest.raises(StateRefusedError, match=r"it is called all the same, since its policy is InDoubt\.repeat"):
        world.app.init(accept=["paid"])
    world.app.init(accept=["paid=doubt"])
    world.settled()
    assert gateway.called(1) == 1


def test_a_reaction_without_a_call_or_without_such_rows_needs_no_word(world: World) -> None:
    world.there()
    world.orders(2, status="packed")
    charging(world, ASK)

    @world.app.on(Order, Order.status == "packed")
    def shipped(order: Order) -> None:
        order.status = "shipped"

    world.app.init(accept=True)
    world.settled()
    assert world.count(Order.status == "shipped") == 2


def test_what_was_accepted_before_is_put_in_no_doubt(world: World) -> None:
    gateway = charging(world, ASK)
    world.orders(2)
    world.app.init(accept=["paid=doubt"])
    assert world.states() == []
    world.settled()
    assert gateway.called(1) == 1


def test_of_a_wider_condition_the_rows_alone_that_it_newly_matches_are_in_doubt(world: World) -> None:
    charging(world, ASK)
    world.orders(2)
    world.set(2, note="express")
    world.app.reactions.clear()
    gateway = charging(world, ASK)
    narrow = world.app.reactions["paid"].clauses
    world.app.reactions["paid"].clauses = (*narrow, Order.note == "express")
    world.app.init(accept=["paid=call"])
    world.app.reactions["paid"].clauses = narrow
    with pytest.raises(StateRefusedError, match="called for 1 of them"):
        world.app.init(accept=["paid"])
    world.app.init(accept=["paid=doubt"])
    assert [one.record for one in world.attempts()] == ["1"]
    assert gateway.ledger == []


def test_a_start_that_accepts_all_leaves_out_what_would_call_until_it_is_told(world: World) -> None:
    world.there()
    world.orders(1)
    gateway = charging(world, ASK)
    life = world.worker(accept=True)
    until(lambda: [one.name for one in life.worker.refused_reactions] == ["paid"])
    life.quiet()
    life.stop()
    assert gateway.ledger == []
    told = world.worker(accept="doubt")
    until(lambda: world.states() == ["doubt"] or gateway.ledger != [])
    assert gateway.ledger == []
    world.forward(60)
    until(lambda: world.order().status == "paid")
    told.quiet()
    assert gateway.called(1) == 1


def test_a_start_that_accepts_all_as_calls_calls(world: World) -> None:
    world.there()
    world.orders(2)
    gateway = charging(world, ASK)
    world.worker(accept="call").quiet()
    assert [gateway.called(number) for number in (1, 2)] == [1, 1]


def test_a_word_that_is_none_is_refused(world: World) -> None:
    charging(world, ASK)
    for accept in (["paid=perhaps"], {"paid": "perhaps"}, ["all=maybe"]):
        with pytest.raises(DeclarationError, match="=doubt"):
            world.app.init(accept=accept)
    with pytest.raises(DeclarationError, match="has no reaction 'nix'"):
        world.app.init(accept=["nix=call"])


def test_a_baseline_after_the_tables_vanished_calls_nothing(world: World, tmp_path: Path) -> None:
    gateway = one_in_doubt(world)
    without_a_witness(world, tmp_path)
    world.app.init(baseline=["paid"])
    world.settled()
    assert gateway.called(1) == 1
    assert world.states() == ["held"]

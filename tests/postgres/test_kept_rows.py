"""The trigger on `groundstate_attempt`: who deletes by hand the row of a call that may have been made is refused, with the cure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from groundstate import InDoubt
from groundstate.engine.operate import check as checking
from groundstate.engine.sql import schema
from groundstate.engine.sql.findings import Finding
from groundstate.store import connect, delete_guard
from groundstate.store.migrations import keep_rows, metadata
from tests.engine.charging import ASK, SAME_KEY, charging
from tests.engine.kit import Gateway, Life, Order, World, until
from tests.patience import HANG
from tests.postgres.roles import role

DELETE = "delete from groundstate_attempt"
WORD = "set local groundstate.ours = 'on'"


@pytest.fixture
def flying(world: World) -> Iterator[tuple[World, Gateway, Life]]:
    """With one call in the air."""
    gateway = charging(world, SAME_KEY)
    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    yield world, gateway, life
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert gateway.called(1) == gateway.done(1) == 1
    assert world.attempts() == []


STATEMENTS = [
    DELETE,
    "truncate groundstate_attempt",
    "update groundstate_attempt set state = 'failed'",
    "update groundstate_attempt set call = 1",
    "update groundstate_attempt set worker = 1",
    "update groundstate_attempt set occurrence = 'elsewhere'",
    "update groundstate_attempt set blocks = null",
    "update groundstate_attempt set deadline = '2020-01-01'",
    "update groundstate_attempt set first_at = now()",
    "update groundstate_attempt set begun_with = null",
    "update groundstate_attempt set call_no = 0",
    "update groundstate_attempt set why = 'baseline'",
    "with gone as (delete from groundstate_attempt returning 1) select * from gone",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_the_row_of_a_call_in_the_air_is_kept_from_others_with_the_cure(flying: tuple[World, Gateway, Life], statement: str) -> None:
    world = flying[0]
    with pytest.raises(IntegrityError, match="the call would be made once more") as refused:
        world.run(statement)
    for cure in ("groundstate settle", "groundstate.ours", "--after-restore"):
        assert cure in str(refused.value)
    assert world.states() == ["begun"]


@pytest.mark.parametrize("state", ["doubt", "held"])
def test_so_is_a_row_that_is_unsure(world: World, state: str) -> None:
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "done_raise")
    world.orders(1)
    world.settled()
    assert world.states() == ["held"]
    world.force(f"update groundstate_attempt set state = '{state}'")
    for statement in (DELETE, "update groundstate_attempt set unsure = false", "truncate groundstate_attempt"):
        with pytest.raises(IntegrityError):
            world.run(statement)
    assert world.attempt().unsure


def test_a_deadline_that_is_set_back_by_hand_makes_no_absent_believed_early(world: World) -> None:
    gateway = charging(world, ASK, timeout=HANG)
    gateway.plan(1, "raise")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.asked != [])
    with pytest.raises(IntegrityError, match="the call would be made once more"):
        world.run("update groundstate_attempt set deadline = '2020-01-01'")
    asked = len(gateway.asked)
    world.run("update groundstate_attempt set next_at = now()")  # when it is asked again may be said by hand
    life.sweep()
    until(lambda: len(gateway.asked) > asked + 1)  # the second time it was told Absent already
    assert gateway.called(1) == 1
    assert world.attempt().unsure


def test_so_is_a_row_that_is_held_with_its_outcome(world: World) -> None:
    def raises(_order: Order, outcome: str) -> None:
        raise RuntimeError(f"a bug, and {outcome} in hand")

    gateway = charging(world, InDoubt.hold(), handler=raises)
    world.orders(1)
    world.settled()
    kept = world.attempt()
    assert (kept.state, kept.unsure, kept.outcome is not None) == ("held", False, True)
    for statement in (DELETE, "truncate groundstate_attempt", "update groundstate_attempt set outcome = null"):
        with pytest.raises(IntegrityError, match="the call would be made once more"):
            world.run(statement)
    world.settled()
    assert (world.attempt(), gateway.called(1)) == (kept, 1)


def test_what_is_surely_not_done_may_be_deleted_and_an_empty_table_truncated(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, *["refuse"] * 20)
    world.orders(1)
    life = world.worker()
    until(lambda: world.states() == ["held"])  # after its last try
    life.stop()
    assert not world.attempt().unsure
    world.run("update groundstate_attempt set state = 'failed', failures = 0")
    world.run(DELETE)
    world.run("truncate groundstate_attempt")
    assert world.attempts() == []


def test_who_says_the_word_in_his_transaction_may(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "done_raise")
    world.orders(1)
    world.settled()
    with world.engine.begin() as connection:
        connection.execute(text(WORD))
        connection.execute(text("truncate groundstate_attempt"))
        connection.rollback()
    assert world.states() == ["held"]
    with pytest.raises(IntegrityError):
        world.run(DELETE)
    world.force(DELETE)
    assert world.attempts() == []


def test_what_replication_applies_is_not_asked(world: World) -> None:
    charging(world, InDoubt.hold()).plan(1, "done_raise")
    world.orders(1)
    world.settled()
    with world.engine.begin() as connection:
        connection.execute(text("set local session_replication_role = 'replica'"))
        connection.execute(text(DELETE))
    assert world.attempts() == []


def test_a_role_that_owns_nothing_carries_out_beside_it(world: World) -> None:
    charging(world, SAME_KEY)
    world.there()
    with role(str(world.url), options="nosuperuser") as login:
        name = login.partition("//")[2].partition("@")[0].partition(":")[0]
        world.run(f'grant select, insert, update, delete on all tables in schema public to "{name}"')
        world.orders(5)
        theirs = World(login)
        try:
            gateway = charging(theirs, SAME_KEY)
            vars(theirs)["_there"] = True
            theirs.settled()
            assert [gateway.called(number) for number in range(1, 6)] == [1] * 5
            assert theirs.count(Order.status == "paid") == 5
        finally:
            theirs.close()


# ---- where it is, and where it is missing ---------------------------------------------------------------------------------------
def findings(world: World) -> list[Finding]:
    database, _, _ = connect.open_store(world.app.stores[0].settings())
    try:
        return [one for one in checking.check_database(database, [], []) if one.kind == "kept rows"]
    finally:
        database.close()


def without(world: World) -> None:
    world.run("drop function groundstate_keep() cascade")


def test_check_tells_where_it_is_missing_and_its_cure_brings_it(world: World) -> None:
    world.there()
    assert findings(world) == []
    without(world)
    (one,) = findings(world)
    assert (one.level, one.subject) == ("advice", "groundstate_attempt")
    assert one.cure is not None
    with world.engine.begin() as connection:
        connection.exec_driver_sql(one.cure.replace("%", "%%"))
    assert findings(world) == []


@pytest.mark.parametrize(
    "change",
    [
        "alter table groundstate_attempt disable trigger groundstate_keep_delete",
        "drop trigger groundstate_keep_update on groundstate_attempt",
        "create or replace function groundstate_keep() returns trigger language plpgsql as 'begin return null; end'",
    ],
)
def test_check_tells_where_it_is_switched_off_or_edited(world: World, change: str) -> None:
    world.there()
    world.run(change)
    assert len(findings(world)) == 1


def test_an_older_one_that_looks_at_fewer_columns_is_told_by_check_and_made_anew_by_init(world: World) -> None:
    charging(world, InDoubt.hold()).plan(1, "done_raise")
    world.orders(1)
    world.settled()
    older = [one.replace(", deadline, first_at, begun_with, why", "") for one in delete_guard.STATEMENTS]
    for row in ("OLD", "NEW"):
        older = [one.replace("".join(f", {row}.{name}" for name in ("deadline", "first_at", "begun_with", "why")), "") for one in older]
    for statement in older:
        world.run(statement)
    world.run("update groundstate_attempt set first_at = first_at - interval '1 second'")
    assert len(findings(world)) == 1
    world.app.init()
    assert findings(world) == []
    with pytest.raises(IntegrityError):
        world.run("update groundstate_attempt set first_at = first_at - interval '1 second'")


def test_init_makes_it_on_a_table_that_was_made_without_and_says_nothing_where_it_may_not(world: World) -> None:
    world.there()
    without(world)
    world.app.init()
    assert findings(world) == []
    without(world)
    with role(str(world.url), options="nosuperuser") as login:
        name = login.partition("//")[2].partition("@")[0].partition(":")[0]
        world.run(f'grant select, insert, update, delete on all tables in schema public to "{name}"')
        theirs = World(login)
        try:
            database, _, _ = connect.open_store(theirs.app.stores[0].settings())
            database.connect()
            assert schema.create_tables(database) == []
            database.close()
        finally:
            theirs.close()
    assert len(findings(world)) == 1


def test_create_all_makes_it_and_a_migration_has_its_statements(world: World) -> None:
    with world.engine.begin() as connection:
        metadata.create_all(connection)
    with world.engine.connect() as connection:
        assert delete_guard.triggers_exist(connection)
    without(world)
    with world.engine.begin() as connection:
        for statement in keep_rows:
            connection.execute(text(statement))
    with world.engine.connect() as connection:
        assert delete_guard.triggers_exist(connection)


def test_two_workers_and_a_row_deleted_by_hand_make_one_call(world: World) -> None:
    gateway = charging(world, SAME_KEY)
    gateway.plan(1, "done_hang")
    world.orders(1)
    first, second = world.worker(), world.worker()
    until(lambda: gateway.waiting == 1)
    with pytest.raises(DBAPIError):
        world.run(DELETE)
    first.sweep()
    second.sweep()
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    assert gateway.called(1) == gateway.done(1) == 1

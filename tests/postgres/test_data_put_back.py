"""Data alone that is put back under PostgreSQL, which changes no identity of the server: who waits for whose word (hazard 46)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text
from tools.servers.postgres import PostgresServer

from groundstate import ExternalService, InDoubt
from groundstate.engine.operate import actions, plan, renaming
from groundstate.engine.operate.fleet_status import build_overview
from groundstate.engine.operate.pending import build_pending_report
from groundstate.engine.operate.why import explain_record
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from tests.engine.charging import ASK, charging
from tests.engine.kit import QUICK, Gateway, Order, World, ms, until

MANY = 20
OURS = ("groundstate_attempt", "groundstate_reaction", "groundstate_worker", "groundstate_rate")
TELLS = "xmin::text::bigint <> (wrote::text::bigint & 4294967295)"


class Shop:
    """Orders that are charged, on a database of which a dump is made before."""

    def __init__(self, server: PostgresServer, url: str, in_doubt: Any = ASK, **store: Any) -> None:
        self.server, self.url, self.database = server, url, url.rpartition("/")[2]
        self.world = World(url, **store)
        self.gateway = charging(self.world, in_doubt)
        self._worlds = [self.world]

    @property
    def _at(self) -> tuple[str, ...]:
        return ("--host=127.0.0.1", f"--port={self.server.port}", "--username=postgres")

    def dump(self, *tables: str) -> str:
        """The data alone, of these tables or of all."""
        file = str(self.server.folder / f"{self.database}-{'-'.join(tables)[-20:]}.dump")
        only = [f"--table={table}" for table in tables]
        self.server.run("pg_dump", *self._at, "--data-only", "--format=custom", *only, "--file", file, self.database)
        return file

    def load(self, file: str, *tables: str) -> None:
        """Tables are emptied, and get the data of the dump."""
        self.world.force(f"truncate {', '.join(tables or ('orders', *OURS))}")
        self.server.run("pg_restore", *self._at, "--data-only", "--dbname", self.database, file)

    def another_app(self, name: str) -> tuple[World, Gateway]:
        """Another app on the same database, over the same table."""
        world = World(self.url)
        world.app.name = name
        self._worlds.append(world)
        return world, charging(world, ASK)

    def ask(self, statement: str) -> list[Any]:
        with self.world.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]

    def says(self) -> list[Any]:
        """The rows that tell that somebody else wrote them."""
        return self.ask(
            f"select 'own row' from groundstate_reaction where app = '' and name = '' and {TELLS}"
            f" union all select 'a life' from groundstate_worker where {TELLS}"
        )

    def charged(self) -> list[int]:
        return [self.gateway.called(number + 1) for number in range(MANY)]

    def trust(self, world: World | None = None, name: str | None = None) -> tuple[str, ...]:
        world = world or self.world
        database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
        try:
            person = actions.build_person(world.app.name, list(world.app.reactions.values()), database, make_lives(), by="ada")
            return renaming.trust_reactions(person, name).reactions
        finally:
            database.close()

    def read(self, act: Callable[[Any, Any, list[ConditionQuery]], Any]) -> Any:
        """What a command that only reads says."""
        database, make_lives, _ = connect.open_store(self.world.app.stores[0].settings())
        try:
            return act(database, make_lives(), [ConditionQuery(spec, database) for spec in self.world.app.reactions.values()])
        finally:
            database.close()

    def close(self) -> None:
        for world in reversed(self._worlds):
            world.close()


@pytest.fixture
def shop(postgres_server: PostgresServer, postgres_url: str) -> Iterator[Shop]:
    made = Shop(postgres_server, postgres_url)
    made.world.orders(MANY)
    yield made
    made.close()


def _charge_and_kill(shop: Shop) -> None:
    life = shop.world.worker()
    life.quiet()
    life.kill()
    assert shop.world.count(Order.status == "paid") == MANY


def _put_back(shop: Shop) -> None:
    """The issue's own example: 20 charges of which the database knows nothing any more, and no witness."""
    file = shop.dump()
    _charge_and_kill(shop)
    shop.load(file)
    assert shop.world.count(Order.status == "placed") == MANY


def _waits(shop: Shop, world: World | None = None) -> Any:
    life = (world or shop.world).worker()
    life.quiet()
    assert life.worker.incarnation.waiting == {"paid"}
    assert shop.world.states() == [], "something was put in doubt before anybody said so"
    assert shop.charged() == [1] * MANY
    return life


# ---- who waits ---------------------------------------------------------------------------------------------------------------------
def test_after_a_restore_of_data_alone_nothing_is_called_until_a_person_has_said_what_it_was(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    _put_back(shop)
    with caplog.at_level(logging.ERROR):
        life = _waits(shop)
        life.sweep()
        life.sweep()
    said = [record for record in caplog.records if getattr(record, "event", "") == "may_have_gone_back"]
    assert [record.levelname for record in said] == ["ERROR"]
    assert "--after-restore" in said[0].getMessage()
    assert "groundstate trust" in said[0].getMessage()


def test_a_start_with_after_restore_puts_each_call_in_doubt_and_nothing_waits_any_more(shop: Shop) -> None:
    _put_back(shop)
    _waits(shop).stop()
    cold = shop.world.worker(after_restore=True)
    assert shop.world.states() == ["doubt"] * MANY
    shop.world.forward(60)
    cold.quiet()
    assert shop.charged() == [1] * MANY
    assert shop.world.count(Order.status == "paid") == MANY
    cold.stop()
    assert shop.says() == []
    assert shop.trust() == ("paid",)
    again = shop.world.worker()
    assert again.worker.incarnation.waiting == frozenset()


def test_the_first_start_may_be_the_one_with_after_restore(shop: Shop) -> None:
    _put_back(shop)
    cold = shop.world.worker(after_restore=True)
    shop.world.forward(60)
    cold.quiet()
    assert shop.charged() == [1] * MANY
    assert cold.worker.incarnation.waiting == frozenset()


def test_under_hold_too(postgres_server: PostgresServer, postgres_url: str) -> None:
    shop = Shop(postgres_server, postgres_url, InDoubt.hold())
    try:
        shop.world.orders(MANY)
        _put_back(shop)
        _waits(shop).stop()
        shop.world.worker(after_restore=True).quiet()
        assert shop.world.states() == ["held"] * MANY
        assert shop.charged() == [1] * MANY
    finally:
        shop.close()


def test_trust_says_that_all_is_well_and_a_running_worker_goes_on(shop: Shop) -> None:
    shop.world.run("alter table groundstate_reaction alter column mark type varchar(99) using mark || ''")  # which rewrites the table
    life = shop.world.worker()
    life.quiet()
    assert life.worker.incarnation.waiting == {"paid"}
    assert shop.charged() == [0] * MANY
    assert shop.trust() == ("paid",)
    until(lambda: shop.world.count(Order.status == "paid") == MANY)
    assert shop.charged() == [1] * MANY
    assert shop.says() == []
    life.stop()
    again = shop.world.worker()
    assert again.worker.incarnation.waiting == frozenset()


def test_it_is_remembered_over_restarts_and_when_the_lives_that_told_of_it_are_forgotten(shop: Shop) -> None:
    first = shop.world.worker(wait_for_go=True)
    first.kill()
    file = shop.dump("groundstate_worker")
    _charge_and_kill(shop)
    shop.load(file, "groundstate_worker")
    shop.world.run("update orders set status = 'placed'")
    assert shop.says() == [("a life",)]
    _waits(shop).stop()
    shop.world.run("delete from groundstate_worker")  # as they are, ten minutes later
    assert shop.says() == []
    _waits(shop).kill()
    _waits(shop)


def test_an_adopter_does_not_wipe_the_sign_away(shop: Shop) -> None:
    """It writes when a dead life ended, before anybody has answered."""
    shop.world.worker(wait_for_go=True).kill()
    file = shop.dump("groundstate_worker")
    shop.load(file, "groundstate_worker")
    life = shop.world.worker()
    life.quiet()
    assert shop.ask("select count(*) from groundstate_worker where ended_at is not null") == [(1,)]
    assert shop.says() == [("a life",)]
    assert life.worker.incarnation.waiting == {"paid"}


def test_a_reaction_without_a_call_goes_on_meanwhile(shop: Shop) -> None:
    @shop.world.app.on(Order, Order.note == "mark", name="marked")
    def _(order: Order) -> None:
        order.note = "marked"

    shop.world.app.init(accept=True)
    _put_back(shop)
    shop.world.run("update orders set note = 'mark'")
    _waits(shop)
    assert shop.world.count(Order.note == "marked") == MANY


def test_each_app_on_the_database_waits_for_its_own_person(shop: Shop) -> None:
    other, gateway = shop.another_app("mailer")
    other.app.init(accept={"paid": "call"})
    file = shop.dump()
    shop.world.settled()
    shop.load(file)
    _waits(shop).stop()
    assert shop.trust() == ("paid",)
    assert shop.says() == []
    theirs = other.worker()
    theirs.quiet()
    assert theirs.worker.incarnation.waiting == {"paid"}
    assert len(gateway.calls) == 0
    assert shop.trust(other) == ("paid",)
    until(lambda: other.count(Order.status == "paid") == MANY)


def test_trust_of_one_reaction_leaves_the_others_waiting(shop: Shop) -> None:
    post = ExternalService("post")

    @post.call(in_doubt=InDoubt.hold(), timeout=ms(20_000), retry=QUICK)
    def mail(order: Order) -> str:
        return "sent"

    @shop.world.app.on(Order, Order.status == "paid", Order.mailed.is_(None), call=mail, name="mailed")
    def _(order: Order, outcome: str) -> None:
        order.mailed = outcome

    shop.world.app.init(accept=True)
    file = shop.dump()
    shop.load(file)
    life = shop.world.worker()
    life.quiet()
    assert life.worker.incarnation.waiting == {"paid", "mailed"}
    assert shop.trust(name="paid") == ("paid",)
    until(lambda: shop.world.count(Order.status == "paid") == MANY)
    life.sweep()
    assert life.worker.incarnation.waiting == {"mailed"}
    assert shop.world.count(Order.mailed.is_not(None)) == 0
    assert shop.says() == []
    life.stop()
    again = shop.world.worker()
    assert again.worker.incarnation.waiting == {"mailed"}
    assert shop.trust() == ("mailed",)
    until(lambda: shop.world.count(Order.mailed == "sent") == MANY)


def test_a_reaction_that_was_accepted_in_the_lost_time_waits_and_is_new(shop: Shop) -> None:
    shop.world.run("delete from groundstate_reaction where name = 'paid'")
    file = shop.dump()
    shop.world.app.init(accept={"paid": "call"})
    _charge_and_kill(shop)
    shop.load(file)
    life = _waits(shop)
    assert shop.trust() == ("paid",)
    until(lambda: life.worker.incarnation.waiting == frozenset())
    life.sweep()
    assert shop.charged() == [1] * MANY, "it was called though nobody had accepted it"


def test_a_renamed_reaction_waits_under_its_new_name(shop: Shop) -> None:
    _put_back(shop)
    _waits(shop).stop()
    database, make_lives, _ = connect.open_store(shop.world.app.stores[0].settings())
    try:
        renaming.rename(actions.build_person("shop", [], database, make_lives(), by="ada"), "paid", "charged")
    finally:
        database.close()
    assert shop.ask("select name from groundstate_reaction where wrote = '0'::xid8") == [("charged",)]


def test_a_database_that_is_said_to_be_new_waits_for_nobody(shop: Shop) -> None:
    """As one that is filled from a template's data, with our rows among them."""
    shop.load(shop.dump())
    assert shop.says() == [("own row",)]
    shop.world.app.init(new_database=True)
    assert shop.says() == []
    shop.world.settled()
    assert shop.charged() == [1] * MANY


# ---- living workers ----------------------------------------------------------------------------------------------------------------
def test_a_living_worker_that_began_nothing_sees_at_its_first_begin_that_its_row_was_written(shop: Shop) -> None:
    idle = shop.world.worker(wait_for_go=True)
    file = shop.dump()
    busy = shop.world.worker()
    until(lambda: shop.world.count(Order.status == "paid") == MANY)
    busy.kill()
    shop.load(file)
    idle.worker.begin_work()
    until(lambda: idle.worker.incarnation.waiting == {"paid"} or shop.charged() != [1] * MANY)
    assert shop.charged() == [1] * MANY
    idle.sweep()
    assert shop.world.states() == []


def test_a_living_worker_hears_of_what_another_start_has_seen(shop: Shop) -> None:
    shop.world.run("update orders set status = 'later'")
    living = shop.world.worker()
    living.quiet()
    shop.world.run("update groundstate_reaction set seen_at = now() where app = ''")
    other = shop.world.worker()
    until(lambda: living.worker.incarnation.waiting == {"paid"})
    other.stop()
    shop.world.run("update orders set status = 'placed'")
    living.sweep()
    assert shop.charged() == [0] * MANY


# ---- what commands say -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("when", ["before the first start", "after it"])
def test_every_command_that_looks_says_who_waits(shop: Shop, when: str) -> None:
    _put_back(shop)
    if when == "after it":
        _waits(shop).stop()
    report = shop.read(lambda database, lives, questions: build_pending_report("shop", database, questions, lives))
    assert report.waiting == ("paid",)
    assert [one.starts for one in report.to_do] == [False]
    planned = shop.read(lambda database, _lives, questions: plan.build_plan("shop", database, questions, []))
    assert planned.waiting == ("paid",)
    assert planned.needs_person
    assert [one.starts for one in planned.reactions] == [False]
    seen = shop.read(lambda database, lives, questions: build_overview("shop", database, questions, [], liveness=lives))
    assert [one.waits for one in seen.reactions] == [True]
    said = shop.read(lambda database, lives, questions: explain_record("shop", database, questions, lives, "orders", "1"))
    assert "waits for a person" in said.answers[0].next
    assert shop.world.states() == []


# ---- no sign -----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "act",
    [
        "vacuum (freeze) TABLE",
        "vacuum (full, freeze) TABLE",
        "cluster TABLE using TABLE_pkey",
        "alter table TABLE add column extra text default 'something'",
        "alter table TABLE set (fillfactor = 50)",
        "reindex table TABLE",
        "analyze TABLE",
    ],
)
def test_what_servers_and_their_keepers_do_is_no_sign(shop: Shop, act: str) -> None:
    shop.world.worker(wait_for_go=True).kill()
    with shop.world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in ("groundstate_reaction", "groundstate_worker"):
            connection.execute(text(act.replace("TABLE", table)))
    assert shop.says() == []
    shop.world.settled()
    assert shop.charged() == [1] * MANY


def test_nothing_that_we_do_is_a_sign(shop: Shop) -> None:
    """Begins, adoption, ends, a handler's savepoints, a rename, trust: none of them leaves a row that tells."""
    shop.gateway.plan(3, "done_hang")
    first = shop.world.worker()
    until(lambda: shop.gateway.waiting == 1)
    assert shop.says() == []
    first.kill()
    second = shop.world.worker()
    shop.gateway.gate.set()
    shop.world.forward(60)
    until(lambda: shop.world.count(Order.status == "paid") == MANY)
    assert shop.says() == []
    second.lose_lock(for_good=True)
    shop.world.orders_from(MANY + 1, MANY + 3)
    until(lambda: shop.world.count(Order.status == "paid") == MANY + 3)
    second.stop()
    shop.world.run("update groundstate_reaction set suspect = true where name = 'paid'")
    shop.trust()
    assert shop.says() == []
    shop.world.app.init(accept=True)
    assert shop.says() == []


def test_rows_of_older_code_say_nothing_and_do_from_the_next_start_on(shop: Shop) -> None:
    shop.world.worker(wait_for_go=True).kill()
    shop.world.run("update groundstate_reaction set wrote = null")
    shop.world.run("update groundstate_worker set wrote = null")
    shop.world.settled()
    assert shop.charged() == [1] * MANY
    assert shop.ask("select wrote is not null from groundstate_reaction where app = ''") == [(True,)]
    assert shop.says() == []


def test_where_no_failover_can_lose_a_commit_it_is_no_sign(postgres_server: PostgresServer, postgres_url: str) -> None:
    shop = Shop(postgres_server, postgres_url, failover="lossless")
    try:
        shop.world.orders(MANY)
        shop.world.worker(wait_for_go=True).kill()
        file = shop.dump()
        shop.load(file)
        assert len(shop.says()) == 2
        shop.world.settled()
        assert shop.charged() == [1] * MANY
        assert shop.says() == []
    finally:
        shop.close()


def test_the_attempts_alone_or_the_users_tables_alone_show_no_sign(shop: Shop) -> None:
    """As limits.md says: nothing else of ours changed."""
    file = shop.dump("orders", "groundstate_attempt")
    shop.load(file, "orders", "groundstate_attempt")
    shop.world.settled()
    assert shop.charged() == [1] * MANY


# ---- a sign ------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "act",
    [
        "create table kept as table groundstate_reaction; truncate groundstate_reaction; insert into groundstate_reaction table kept",
        "alter table groundstate_reaction alter column seen_at type timestamptz using seen_at + interval '0'",
        "alter table groundstate_reaction alter column begins type numeric",
        "update groundstate_reaction set seen_at = now() where app = ''",
    ],
)
def test_what_others_write_is_a_sign(shop: Shop, act: str) -> None:
    shop.world.run(act)
    assert shop.says() == [("own row",)]
    life = shop.world.worker()
    life.quiet()
    assert life.worker.incarnation.waiting == {"paid"}
    assert shop.charged() == [0] * MANY


def test_a_dump_of_our_tables_alone_is_a_sign(shop: Shop) -> None:
    file = shop.dump(*OURS)
    _charge_and_kill(shop)
    shop.load(file, *OURS)
    shop.world.run("update orders set status = 'placed'")
    _waits(shop)

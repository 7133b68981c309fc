"""What `status` and `why` say of a world, and workers of which a test says what they say of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from typing import Any

from rich.console import Console
from sqlalchemy import text

from groundstate import InDoubt, Retry
from groundstate.cli import status
from groundstate.engine.operate.living_workers import WorkerSeen
from groundstate.engine.operate.why import Answer, explain_record
from groundstate.engine.rows.worker_report import WorkerReport
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from tests.engine.call.test_limiter import Delivery
from tests.engine.charging import charging
from tests.engine.kit import Gateway, Life, World, until

SLOW = Retry(times=10, first=timedelta(hours=1), longest=timedelta(hours=1))
HOUR_S = 3600.0


def seen(world: World) -> status.StoreStatus:
    return status.read_status(world.app, world.app.stores[0])


def lives(world: World) -> list[WorkerSeen]:
    return list(seen(world).status.workers or ())


def said(world: World) -> WorkerReport:
    """By the one life that there is."""
    (life,) = lives(world)
    return life.says


def printed(world: World) -> str:
    out = Console(file=StringIO(), width=300)
    status._print_status(out, world.app.name, "the store", seen(world), "by nothing")
    return out.file.getvalue()  # type: ignore[attr-defined, no-any-return]  # the StringIO above


def answer(world: World, record: object, name: str | None = None, *, table: str = "orders") -> Answer:
    """What `why` says of one record; of the reaction of this name, or of the only one."""
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    try:
        questions = [ConditionQuery(spec, database) for spec in world.app.reactions.values()]
        answers = explain_record(world.app.name, database, questions, make_lives(), table, str(record)).answers
    finally:
        database.close()
    (found,) = [one for one in answers if name in (None, one.reaction)]
    return found


def rows(world: World, statement: str) -> list[Any]:
    with world.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


@contextmanager
def standing_still(life: Life) -> Iterator[None]:
    """It commits nothing meanwhile."""
    with life._gate:
        yield


@contextmanager
def another_that_lives(world: World, words: str | None = None, *, number: int = 77) -> Iterator[None]:
    """A living worker of which nothing is known but that it has its lock and what its row says."""
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    taken = make_lives()
    taken.take_lock(number)
    columns = {
        "id": number,
        "app": "shop",
        "host": "h",
        "pid": 1,
        "began_at": "2026-01-01 00:00:00.000000",
        "begins": 0,
        "says": words,
    }
    names = ", ".join(columns)
    world.run(f"insert into groundstate_worker ({names}) values ({', '.join(f':{name}' for name in columns)})", **columns)
    try:
        yield
    finally:
        world.run("delete from groundstate_worker where id = :life", life=number)
        taken.release()
        database.close()


def paused(world: World, **options: Any) -> tuple[Life, Gateway]:
    """A worker whose outside refused five calls, so that it pauses, and has said so."""
    gateway = charging(world, InDoubt.repeat(), retry=SLOW)
    for number in range(1, 6):
        gateway.plan(number, "refuse")
    world.orders(5)
    life = world.worker(**options)
    until(lambda: life.pauses)
    until(lambda: any(one.says.paused for one in lives(world)))
    return life, gateway


def tenants_rows(world: World) -> list[Delivery]:
    with world.session() as session:
        return list(session.query(Delivery).filter(Delivery.id >= 100))

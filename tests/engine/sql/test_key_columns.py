"""Keys of every kind: either their records are found again by the text that attempts keep of them, or that is refused, and others go on."""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Callable
from datetime import UTC, time, timedelta
from decimal import Decimal
from operator import attrgetter
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.orm import DeclarativeBase, mapped_column

from groundstate import App, DeclarationError, ExternalService, IdempotencyKey, InDoubt, Store
from groundstate.engine.operate.check import check_database
from groundstate.engine.operate.pending import build_pending_report
from groundstate.engine.sql.condition_query import ConditionQuery
from tests.engine.kit import World, until


class Guid(sa.TypeDecorator[Any]):
    """SQLAlchemy's own recipe."""

    impl = sa.CHAR
    cache_ok = True
    _default_type = sa.CHAR(32)
    _uuid_as_str = attrgetter("hex")

    def load_dialect_impl(self, dialect: Any) -> Any:
        return dialect.type_descriptor(pg.UUID() if dialect.name == "postgresql" else self._default_type)

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value if value is None or dialect.name == "postgresql" else self._uuid_as_str(value)

    def process_result_value(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002  # what a type is given
        return value if value is None or isinstance(value, uuid.UUID) else uuid.UUID(value)


class HashId(sa.TypeDecorator[str]):
    """Shows a number as a text."""

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002  # as above
        return None if value is None else int(value[1:], 16)

    def process_result_value(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002  # as above
        return None if value is None else f"h{value:x}"


class Ulid:
    def __init__(self, said: str) -> None:
        self.said = said


class UlidText(sa.TypeDecorator[Ulid]):
    """Of a class that has no text for us."""

    impl = sa.String(26)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002  # as above
        return None if value is None else value.said

    def process_result_value(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002  # as above
        return None if value is None else Ulid(value)


class ToldUlid(UlidText):
    @property
    def python_type(self) -> type:
        return Ulid


GENERIC: dict[str, tuple[Callable[[], Any], Any]] = {
    "guid": (Guid, uuid.UUID(int=10)),
    "hashid": (HashId, "h1f"),
    "char": (lambda: sa.CHAR(8), "a"),
    "nchar": (lambda: sa.NCHAR(8), "a"),
    "floating": (sa.Double, 0.1),
    "scaled": (lambda: sa.Numeric(10, 2), Decimal("1.10")),
    "binary": (sa.LargeBinary, b"\x00a"),
    "span": (sa.Interval, timedelta(days=1)),
}
POSTGRES: dict[str, tuple[Callable[[], Any], Any]] = {
    "inet": (pg.INET, ipaddress.ip_address("10.0.0.1")),
    "inet_net": (pg.INET, "10.0.0.1/8"),
    "cidr": (pg.CIDR, ipaddress.ip_network("10.0.0.0/8")),
    "mac": (pg.MACADDR, "08:00:2b:01:02:03"),
    "time_zone": (lambda: pg.TIME(timezone=True), time(1, tzinfo=UTC)),
}
ULID: dict[str, tuple[Callable[[], Any], Any]] = {"ulid": (UlidText, Ulid("01ARZ3NDEKTSV4RRFFQ69G5FAV"))}
REFUSED_BY_POSTGRES: dict[str, tuple[Callable[[], Any], Any]] = {
    **ULID,
    "single": (sa.REAL, 0.1),
    "single_domain": (lambda: pg.DOMAIN("a_real", pg.REAL), 0.1),
    "money": (pg.MONEY, "1.50"),
    "oid": (pg.OID, 7),
}


def keyed(kinds: dict[str, tuple[Callable[[], Any], Any]]) -> tuple[Any, dict[str, Any]]:
    """A mapped class for each, with a key of that type."""

    class Base(DeclarativeBase):
        pass

    return Base, {
        name: type(
            name,
            (Base,),
            {"__tablename__": name, "id": mapped_column(make(), primary_key=True), "status": mapped_column(sa.String(9), default="new")},
        )
        for name, (make, _) in kinds.items()
    }


def declared(app: App, rows: dict[str, Any]) -> None:
    """A call and a handler for each."""
    service = ExternalService("bank")

    def charge(record: Any, key: IdempotencyKey) -> str:
        return "r1"

    def paid(record: Any, outcome: str) -> None:
        record.status = "paid"

    def packed(record: Any) -> None:
        record.status = "packed"

    for name, row in rows.items():
        call = service.call(in_doubt=InDoubt.hold(), name=name)(charge)
        app.on(row, row.status == "new", call=call, name=f"{name}_paid")(paid)
        app.on(row, row.status == "paid", name=f"{name}_packed")(packed)


def insert(world: World, rows: dict[str, Any], kinds: dict[str, tuple[Callable[[], Any], Any]]) -> None:
    with world.session() as session, session.begin():
        for name, row in rows.items():
            session.execute(sa.insert(row).values(id=kinds[name][1], status="new"))


def statuses(world: World, rows: dict[str, Any]) -> dict[str, str]:
    with world.engine.connect() as connection:
        return {name: connection.execute(sa.select(row.status)).scalar_one() for name, row in rows.items()}


def test_a_record_is_called_for_and_concluded_by_a_key_of_each_type(database_url: Any) -> None:
    kinds = GENERIC if str(database_url).startswith("sqlite") else GENERIC | POSTGRES
    base, rows = keyed(kinds)
    world = World(database_url, base)
    try:
        declared(world.app, rows)
        world.there()
        insert(world, rows, kinds)
        world.worker()
        until(lambda: set(statuses(world, rows).values()) == {"packed"}, lambda: statuses(world, rows))
        assert world.attempts() == []
    finally:
        world.close()


@pytest.mark.filterwarnings("ignore:Type object:sqlalchemy.exc.SADeprecationWarning")  # of MONEY, which is SQLAlchemy's to mend
@pytest.mark.parametrize("there", [True, False], ids=["there_at_the_start", "written_later"])
def test_a_key_that_does_not_come_back_from_its_text_is_refused_and_the_others_go_on(
    database_url: Any, there: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bad = ULID if str(database_url).startswith("sqlite") else REFUSED_BY_POSTGRES
    kinds = {**bad, "guid": GENERIC["guid"]}
    base, rows = keyed(kinds)
    world = World(database_url, base)
    try:
        declared(world.app, rows)
        world.there()
        if there:
            insert(world, rows, kinds)
        life = world.worker()
        if not there:
            life.sweep()
            insert(world, rows, kinds)
        until(lambda: statuses(world, rows)["guid"] == "packed", lambda: statuses(world, rows))
        wanted = {f"{name}_paid" for name in bad}
        until(lambda: wanted <= set(life.worker.reasons_of_waiting_reactions), lambda: life.worker.reasons_of_waiting_reactions)
        assert {said for name, said in statuses(world, rows).items() if name != "guid"} == {"new"}
        assert world.attempts() == []
        questions = [ConditionQuery(spec, life.database) for spec in world.app.reactions.values()]
        report = build_pending_report(world.app.name, life.database, questions, life.worker.incarnation.liveness)
        assert {one.table for one in report.to_do if one.rows} == set(bad)
        said = [line for line in caplog.messages if "are not found by the text of their key" in line]
        assert len(said) == len({line.partition(" ")[0] for line in said}) >= len(bad)  # once for each reaction
        assert {one.subject for one in check_database(life.database, questions, [base.metadata]) if one.kind == "keys"} == set(bad)
    finally:
        world.close()


def test_a_key_whose_type_tells_that_it_has_no_text_is_refused_where_it_is_declared() -> None:
    base, rows = keyed({"told": (ToldUlid, None)})
    with pytest.raises(DeclarationError, match="whose values have no one text"):
        declared(App("of_a_told_ulid", Store(lambda: "sqlite:///never-opened.db", base)), rows)

"""A handler leaves what the same function leaves that is run by a plain Session of SQLAlchemy, whatever the mapping asks of the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, ForeignKey, event, func, inspect, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, column_property, mapped_column, relationship

from groundstate import App, ExternalService, Failure, InDoubt, Retry
from groundstate.engine.sql import transaction
from groundstate.engine.sql.transaction import OurSession
from tests.engine.kit import World, ms


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "as_customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    orders: Mapped[int] = mapped_column(default=0)


class Counter(Base):
    """What handlers of a batch share, and ask for by its key."""

    __tablename__ = "as_counters"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(default=0)
    entries: Mapped[list[Entry]] = relationship(passive_deletes=True)


class Entry(Base):
    __tablename__ = "as_entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    counter_id: Mapped[int] = mapped_column(ForeignKey("as_counters.id", ondelete="CASCADE"))


class Parcel(Base):
    """What it cascades goes out of a session with it: its items and theirs, its customer, and the parcels within it."""

    __tablename__ = "as_parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("as_customers.id"))
    customer: Mapped[Customer | None] = relationship(cascade="all")
    within_id: Mapped[int | None] = mapped_column(ForeignKey("as_parcels.id"))
    within: Mapped[Parcel | None] = relationship(cascade="all", remote_side="Parcel.id")
    items: Mapped[list[Item]] = relationship(cascade="all, delete-orphan")


class Item(Base):
    __tablename__ = "as_items"
    id: Mapped[int] = mapped_column(primary_key=True)
    picked: Mapped[int] = mapped_column(default=0)
    parcel_id: Mapped[int] = mapped_column(ForeignKey("as_parcels.id"))
    labels: Mapped[list[Label]] = relationship(cascade="all")


class Label(Base):
    __tablename__ = "as_labels"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(default="")
    item_id: Mapped[int] = mapped_column(ForeignKey("as_items.id"))


class Tally(Base):
    """Its number is of other rows."""

    __tablename__ = "as_tallies"
    id: Mapped[int] = mapped_column(primary_key=True)


Tally.parcels = column_property(  # as one may add it later
    select(func.count()).select_from(Parcel).where(Parcel.customer_id == Tally.id).correlate_except(Parcel).scalar_subquery()
)


class Selected(Base):
    """What it is mapped to is no table."""

    __table__ = (
        select(Parcel.customer_id.label("id"), func.count().label("parcels"))
        .where(Parcel.customer_id.is_not(None))
        .group_by(Parcel.customer_id)
        .subquery("as_selected")
    )
    __mapper_args__ = {"primary_key": [__table__.c.id]}  # noqa: RUF012  # as the declarative base has it


class Views(DeclarativeBase):
    pass


class Viewed(Views):
    """Mapped as a table, and a view in the database."""

    __tablename__ = "as_viewed"
    id: Mapped[int] = mapped_column(primary_key=True)
    parcels: Mapped[int]


VIEW = "create view as_viewed as select customer_id as id, count(*) as parcels from as_parcels group by customer_id"


class Animal(Base):
    __tablename__ = "as_animals"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="animal")
    status: Mapped[str] = mapped_column(default="new")
    audit: Mapped[str | None] = mapped_column(default=None)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012  # as the declarative base has it


class Cat(Animal):
    """In the same table."""

    __mapper_args__ = {"polymorphic_identity": "cat"}  # noqa: RUF012


class Dog(Animal):
    """In a table of its own as well."""

    __tablename__ = "as_dogs"
    id: Mapped[int] = mapped_column(ForeignKey("as_animals.id"), primary_key=True)
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class Compared:
    """A world in which a function is run by the batches of a worker, and then on the same rows by a plain Session."""

    def __init__(self, url: str) -> None:
        self.world = World(url, Base)

    def both(
        self,
        record: Any,
        rows: Callable[[], Sequence[Any]],
        declare: Callable[[], Any],
        plainly: Callable[[Any, Session], Any],
        statements: Sequence[str] = (),
    ) -> Any:
        """What stands in all tables, once by each of them. Fails where a handler failed. `plainly` is called with each new record."""
        declare()
        self.world.there()
        for statement in statements:
            self.world.run(statement)
        self.world.add(*rows())
        self.world.settled()
        assert [one.error for one in self.world.attempts()] == []
        return self.stored(), self.plainly(record, rows, plainly)

    def plainly(self, record: Any, rows: Callable[[], Sequence[Any]], act: Callable[[Any, Session], Any]) -> Any:
        """What stands in all tables once a plain Session has done it, and nothing else stood there."""
        self.empty()
        self.world.add(*rows())
        with Session(self.world.engine) as session, session.begin():
            for one in session.scalars(select(record).where(record.status == "new").order_by(record.id)).all():
                act(one, session)
        return self.stored()

    def of_a_handler(
        self, record: Any, rows: Callable[[], Sequence[Any]], act: Callable[[Any, Session], Any], statements: Sequence[str] = ()
    ) -> Any:
        """The same for a handler that does `act`."""

        def declare() -> None:
            def done(one: Any, session: Session) -> None:
                act(one, session)

            done.__annotations__["one"] = record
            self.world.app.on(record, record.status == "new")(done)

        return self.both(record, rows, declare, act, statements)

    def stored(self) -> dict[str, Any]:
        with self.world.engine.connect() as connection:
            tables = Base.metadata.sorted_tables
            return {table.name: sorted(tuple(row) for row in connection.execute(select(table))) for table in tables}

    def empty(self) -> None:
        with self.world.engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(table.delete())


@pytest.fixture
def compared(database_url: str) -> Iterator[Compared]:
    made = Compared(database_url)
    yield made
    made.world.close()


# ---- what goes out of a session with a record --------------------------------------------------------------------------------------
def _parcels() -> list[Any]:
    return [
        Parcel(
            id=number,
            customer=Customer(id=number),
            items=[Item(id=10 * number + one, labels=[Label(id=10 * number + one)]) for one in (1, 2)],
        )
        for number in range(1, 4)
    ]


def _one_item(parcel: Parcel, _session: Session) -> None:
    parcel.items[0].picked = 1
    parcel.status = "done"


def _customer(parcel: Parcel, _session: Session) -> None:
    assert parcel.customer is not None
    parcel.customer.orders += 1
    parcel.status = "done"


def _label(parcel: Parcel, _session: Session) -> None:
    parcel.items[1].labels[0].text = "sent"
    parcel.status = "done"


def _nothing_of_its_own(parcel: Parcel, session: Session) -> None:
    parcel.items[0].picked = 1
    session.connection().execute(update(Parcel).where(Parcel.id == parcel.id).values(status="done"))


CASCADED = {"an item": _one_item, "its customer": _customer, "a label of an item": _label, "items alone": _nothing_of_its_own}


@pytest.mark.parametrize("which", CASCADED)
def test_what_a_record_takes_along_out_of_a_session_is_written(compared: Compared, which: str) -> None:
    ours, plain = compared.of_a_handler(Parcel, _parcels, CASCADED[which])
    assert ours == plain


def test_what_a_record_takes_along_is_written_with_its_outcome(compared: Compared) -> None:
    post = ExternalService("post")

    def declare() -> None:
        @post.call(in_doubt=InDoubt.hold())
        def ask(parcel: Parcel) -> str:
            return "yes"

        @compared.world.app.on(Parcel, Parcel.status == "new", call=ask)
        def answered(parcel: Parcel, outcome: str, session: Session) -> None:
            _one_item(parcel, session)

    ours, plain = compared.both(Parcel, _parcels, declare, _one_item)
    assert ours == plain


def test_records_that_take_each_other_along_are_written_together(compared: Compared) -> None:
    ran: list[int] = []

    def act(parcel: Parcel, _session: Session) -> None:
        ran.append(parcel.id)
        assert parcel.within is None or parcel.within.status in ("new", "done")
        parcel.status = "done"

    def nested() -> list[Any]:
        outer = Parcel(id=9)
        return [outer, *[Parcel(id=number, within=outer) for number in range(1, 4)]]

    ours, plain = compared.of_a_handler(Parcel, nested, act)
    assert ours == plain
    assert sorted(ran) == sorted(2 * [1, 2, 3, 9])


# ---- what a handler asks after it has written ---------------------------------------------------------------------------------------
def _asks(parcel: Parcel, session: Session) -> None:
    """Its queries see what it wrote before them."""
    session.add(Item(id=parcel.id, parcel_id=parcel.id, picked=10))
    seen = session.scalar(select(func.sum(Item.picked)).where(Item.parcel_id == parcel.id))
    session.add(Customer(id=parcel.id, orders=seen or 0))
    parcel.customer_id = parcel.id
    found = session.scalar(select(func.count()).select_from(Parcel).where(Parcel.customer_id == parcel.id))
    parcel.status = f"done: {seen} {found}"


def _bare_parcels() -> list[Any]:
    return [Parcel(id=number) for number in range(1, 4)]


def _once_in_vain(act: Callable[[Parcel, Session], None]) -> Callable[[Parcel, Session], None]:
    """Where one of them raises, once: then each is run in a savepoint of its own."""
    failed: list[int] = []

    def run(parcel: Parcel, session: Session) -> None:
        if parcel.id == 2 and not failed:
            failed.append(parcel.id)
            raise RuntimeError("once")
        act(parcel, session)

    return run


def _declare_gave_up(app: App) -> None:
    @app.on(Parcel, Parcel.status == "new", retry=Retry(times=1, first=ms(5)))
    def never(parcel: Parcel) -> None:
        raise RuntimeError(f"never {parcel.id}")

    @never.gave_up
    def gave_up(parcel: Parcel, failure: Failure, session: Session) -> None:
        assert "never" in failure.error
        _asks(parcel, session)


def _declare_call(app: App) -> None:
    post, run = ExternalService("post"), _once_in_vain(_asks)

    @post.call(in_doubt=InDoubt.hold())
    def ask(parcel: Parcel) -> str:
        return str(parcel.id)

    @app.on(Parcel, Parcel.status == "new", call=ask)
    def answered(parcel: Parcel, outcome: str, session: Session) -> None:
        assert outcome == str(parcel.id)
        run(parcel, session)


def _declare_handler(app: App) -> None:
    run = _once_in_vain(_asks)

    @app.on(Parcel, Parcel.status == "new")
    def done(parcel: Parcel, session: Session) -> None:
        run(parcel, session)


RUN_ALONE = {"a handler": _declare_handler, "its outcome": _declare_call, "gave_up": _declare_gave_up}


@pytest.mark.parametrize("which", RUN_ALONE)
def test_a_handler_that_is_run_by_itself_sees_what_it_wrote(compared: Compared, which: str) -> None:
    ours, plain = compared.both(Parcel, _bare_parcels, lambda: RUN_ALONE[which](compared.world.app), _asks)
    assert ours == plain


# ---- who listens to what a mapper writes ---------------------------------------------------------------------------------------------
def _animals() -> list[Any]:
    return [Animal(id=1), *[Cat(id=number) for number in (2, 3)], *[Dog(id=number) for number in (4, 5)]]


def _fed(animal: Animal, _session: Session) -> None:
    animal.status = "fed"


@pytest.mark.parametrize("kind", [Animal, Cat, Dog])
def test_who_listens_to_a_class_hears_of_its_records_where_the_reaction_is_on_the_class_above_it(compared: Compared, kind: type) -> None:
    def audits(_mapper: Any, _connection: Any, animal: Animal) -> None:
        animal.audit = f"updated to {animal.status}"

    compared.of_a_handler(Animal, lambda: [kind(id=1)], _fed)  # when nobody listens yet
    event.listen(kind, "before_update", audits, propagate=True)
    try:
        compared.empty()
        compared.world.add(*_animals())
        compared.world.settled()
        ours = compared.stored()
        plain = compared.plainly(Animal, _animals, _fed)
    finally:
        event.remove(kind, "before_update", audits)
    assert ours == plain
    assert any("updated to fed" in row for row in ours["as_animals"])


@pytest.mark.parametrize("which", ["before_commit", "after_commit"])
def test_who_listens_to_commits_is_told_once_that_handlers_are_not_heard(
    compared: Compared, which: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Session] = []

    def publishes(session: Session) -> None:
        heard.append(session)

    monkeypatch.setattr(transaction, "_logged_unheard", set())
    event.listen(Session, which, publishes)
    try:
        compared.of_a_handler(Animal, _animals, _fed)
    finally:
        event.remove(Session, which, publishes)
    said = [one.getMessage() for one in caplog.records if getattr(one, "event", "") == "listener_unheard"]
    assert len(said) == 1
    assert f"publishes listens to {which} of sessions" in said[0]
    assert not [one for one in heard if isinstance(one, OurSession)]


# ---- rows that are asked for by their key ----------------------------------------------------------------------------------------------
def _in_any_order(stored: Any) -> Any:
    """Without which parcel was the first one: a pass may begin anywhere."""
    return stored | {"as_parcels": sorted(row[1] for row in stored["as_parcels"])}


@pytest.mark.parametrize("kind", [Tally, Selected, Viewed])
def test_what_is_asked_for_by_its_key_shows_what_was_written_before(compared: Compared, kind: Any) -> None:
    def counts(parcel: Parcel, session: Session) -> None:
        parcel.customer_id = 7
        parcel.status = f"done: {session.get_one(kind, 7).parcels}"

    ours, plain = compared.of_a_handler(Parcel, lambda: [Customer(id=7), Tally(id=7), *_bare_parcels()], counts, [VIEW])
    assert _in_any_order(ours) == _in_any_order(plain)
    assert _in_any_order(ours)["as_parcels"] == ["done: 1", "done: 2", "done: 3"]


NUMBER = {"number": Counter.number + 1}
FUNCTION = """create function as_counts() returns trigger language plpgsql as
$$ begin update as_counters set number = number + 1; return new; end $$"""
BY_PARCELS = {
    "sqlite": ["create trigger as_counts after update on as_parcels begin update as_counters set number = number + 1; end"],
    "postgresql": [
        FUNCTION,
        "create trigger as_counts after update on as_parcels for each row execute function as_counts()",
    ],
}


def _flushed(parcel: Parcel, session: Session) -> None:
    parcel.customer_id = 7
    session.flush()


def _number(session: Session) -> int:
    """The counter as the database has it, read past the session: whichever parcel comes first, the last one writes the same."""
    return session.connection().execute(select(Counter.__table__.c.number)).scalar_one()  # type: ignore[no-any-return]


WRITES: dict[str, Callable[[Parcel, Session], Any]] = {
    "a statement of Core": lambda _, session: session.connection().execute(update(Counter).values(NUMBER)),
    "text": lambda _, session: session.execute(text("update as_counters set number = number + 1")),
    "an UPDATE of the ORM": lambda _, session: session.execute(update(Counter).values(NUMBER)),
    "one that synchronises nothing": lambda _, session: session.execute(
        update(Counter).values(NUMBER).execution_options(synchronize_session=False)
    ),
    "mappings": lambda _, session: session.bulk_update_mappings(inspect(Counter), [{"id": 1, "number": _number(session) + 1}]),
    "a new member": lambda parcel, session: session.add(Entry(id=parcel.id, counter_id=1)),
    "a trigger": lambda parcel, _: setattr(parcel, "customer_id", 7),
    "a trigger in a flush": _flushed,
    "nothing": lambda _parcel, _session: None,
}


@pytest.mark.parametrize("which", WRITES)
def test_a_row_that_all_handlers_of_a_batch_ask_for_is_as_the_one_before_left_it(compared: Compared, which: str) -> None:
    def counts(parcel: Parcel, session: Session) -> None:
        WRITES[which](parcel, session)
        counter = session.get_one(Counter, 1)
        parcel.status = f"done: {counter.number} {len(counter.entries)}"

    triggers = BY_PARCELS[compared.world.engine.dialect.name] if "trigger" in which else []
    ours, plain = compared.of_a_handler(Parcel, lambda: [Customer(id=7), Counter(id=1), *_bare_parcels()], counts, triggers)
    assert _in_any_order(ours) == _in_any_order(plain)


def test_a_row_that_who_listens_to_others_writes_to_is_as_he_left_it(compared: Compared) -> None:
    def counts(_mapper: Any, connection: Connection, _parcel: Parcel) -> None:
        connection.execute(update(Counter).values(NUMBER))

    def asks(parcel: Parcel, session: Session) -> None:
        parcel.customer_id = 7
        parcel.status = f"done: {session.get_one(Counter, 1).number}"

    event.listen(Parcel, "after_update", counts)
    try:
        ours, plain = compared.of_a_handler(Parcel, lambda: [Customer(id=7), Counter(id=1), *_bare_parcels()], asks)
    finally:
        event.remove(Parcel, "after_update", counts)
    assert _in_any_order(ours) == _in_any_order(plain)


def test_a_row_that_is_gone_with_another_one_is_not_found_any_more(compared: Compared) -> None:
    def deletes(parcel: Parcel, session: Session) -> None:
        there = session.get(Entry, 1) is not None
        parcel.status = f"done: {there}"
        counter = session.get(Counter, 1)
        if counter is not None:
            session.delete(counter)

    ours, plain = compared.of_a_handler(Parcel, lambda: [Counter(id=1, entries=[Entry(id=1)]), *_bare_parcels()], deletes)
    assert _in_any_order(ours) == _in_any_order(plain)

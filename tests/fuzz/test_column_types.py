"""Each type of column through whatever we write or read of it, beside what plain SQLAlchemy makes of the same value (its oracle)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Integer, String, cast, create_engine, delete, func, select, text, type_coerce
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

from groundstate import Outside, hold
from groundstate.engine import attempts, handling, outcomes, persons
from groundstate.engine.deeds import Person
from groundstate.engine.handling import Work
from groundstate.engine.plain import new_attempt
from groundstate.rules import attempt as rules
from tests.engine.kit import World
from tests.engine.test_persons import acting
from tests.fuzz.column_types import Kind, kinds_of
from tests.fuzz.conftest import examples

MANY = 9  # records that are given one value: more than are written one by one
UNSET: Any = object()
Given = Mapping[str, Sequence[Any]]


@dataclass(eq=False)
class Pair:
    """The same value for two rows: one that is written by plain SQLAlchemy, and one that is written by us."""

    column: str
    value: Any
    before: Any  # what stands in the column before it is written
    theirs: int
    ours: int
    refused: bool = False


@dataclass(repr=False, eq=False)
class Place:
    """A store with a table for each type, and what is to be written there."""

    world: World
    kinds: dict[str, Kind]
    rows: dict[str, Any]  # mapped classes
    values: dict[int, Any] = field(default_factory=dict)  # by the id of our row
    number: int = 0

    def __repr__(self) -> str:
        return f"Place({self.world.url!r})"

    # ---- what is declared ----------------------------------------------------------------------------------------------------
    def batches(self) -> None:
        if self.world.app.reactions:
            return
        for column, row in self.rows.items():
            self.world.app.on(row, row.status == "new", name=column)(self._fill)
        self.world.app.init(tables=True)

    def _fill(self, record: Any) -> None:
        record.value, record.status = self.values[record.id], "done"

    def calls(self) -> None:
        """Of the types that an outcome may have."""
        if self.world.app.reactions:
            return
        for column, row in self.rows.items():
            if self.kinds[column].outcome is not None:
                self._call(column, row, self.kinds[column].outcome | None)
        self.world.there()

    def _call(self, column: str, row: Any, kind: Any) -> None:
        outside = Outside(column)

        async def ask(record: Any) -> Any:
            return self.values[record.id]

        def fill(record: Any, outcome: Any) -> None:
            record.value, record.status = outcome, "done"

        ask.__annotations__["return"] = fill.__annotations__["outcome"] = kind
        call: Any = outside.call(in_doubt=hold())(ask)
        self.world.app.on(row, row.status == "new", call=call, name=column)(fill)

    # ---- pairs ---------------------------------------------------------------------------------------------------------------
    def pairs(self, given_: Given, *, many: int = 0) -> list[Pair]:
        """Writes theirs, and inserts ours. Those that SQLAlchemy refuses are marked, and not inserted.

        First into an empty column, then, `many` times, over the first of the values.
        """
        pairs: list[Pair] = []
        with self.world.session() as session:
            for column, row in self.rows.items():
                session.execute(delete(row))
                first = self._theirs(session, column, [(value, UNSET) for value in given_.get(column, ())])
                taken = [one.value for one in first if not one.refused]
                again = [*taken, *[taken[-1]] * many] if taken and many else []
                mine = [*first, *self._theirs(session, column, [(value, taken[0]) for value in again])]
                for one in mine:
                    if not one.refused:
                        self._insert(session, one, one.ours, "new")
                pairs += mine
            session.commit()
        self.values = {one.ours: one.value for one in pairs}
        return pairs

    def _insert(self, session: Session, pair: Pair, number: int, status: str) -> None:
        given_ = {} if pair.before is UNSET else {"value": pair.before}
        session.add(self.rows[pair.column](id=number, status=status, **given_))

    def _theirs(self, session: Session, column: str, given_: Sequence[tuple[Any, Any]]) -> list[Pair]:
        pairs = []
        for value, before in given_:
            self.number += 2
            pairs.append(Pair(column, value, before, self.number, self.number + 1))
            self._insert(session, pairs[-1], self.number, "theirs")
        session.flush()
        session.expunge_all()
        row = self.rows[column]
        # As the store gives them back: what is equal to what it was is not written.
        asked = select(row).where(row.id.in_([one.theirs for one in pairs]))
        records = {record.id: record for record in session.scalars(asked)}
        for pair in pairs:
            try:
                with session.begin_nested():
                    records[pair.theirs].value = pair.value
                    session.flush()
            except Exception:  # noqa: BLE001  # the type, the driver or the database
                pair.refused = True
        session.expunge_all()
        return pairs

    def write(self, person: Person, column: str, values: Mapping[int, Any]) -> None:
        """As a batch does: the handler is run on the records of these ids, and all of it is written at once."""
        question, row = person.questions[column], self.rows[column]
        self.values = dict(values)
        with person.life.transaction() as tx:
            records = tx.session.scalars(select(row).where(row.id.in_(values)).order_by(row.id)).all()
            works = [Work((record.id,), record, "", (), {}) for record in records]
            handling.run_each(question, tx, question.spec.handler, works)
            assert handling.flush_all(question, tx, works) is not None, f"{column} goes by the unit of work"

    def hold(self, person: Person, pairs: Sequence[Pair]) -> None:
        """What an attempt is whose handler failed after the call."""
        with person.life.transaction() as tx:
            held = []
            for one in pairs:
                if not one.refused:
                    spec = person.questions[one.column].spec
                    fresh = new_attempt(person.life, person.questions[one.column], str(one.ours), "", tx.now)
                    written = outcomes.dump(spec.outcome_type, [one.value])
                    held.append(rules.outcome_refused(fresh, "the handler raised", None, written).attempt)
            attempts.insert(tx, held)

    # ---- what is read --------------------------------------------------------------------------------------------------------
    def compare(self, pairs: Sequence[Pair]) -> None:
        """Whether all of ours were written, and are as theirs."""
        wrong: dict[str, Any] = {}
        with self.world.session() as session:
            for column, row in self.rows.items():
                stored = self._stored(session, row)
                mine = [one for one in pairs if one.column == column and not one.refused]
                differ = [(one.value, stored[one.ours], stored[one.theirs]) for one in mine if stored[one.ours] != stored[one.theirs]]
                written = set(session.scalars(select(row.id).where(row.status == "done")))
                differ += [(one.value, "was not written") for one in mine if one.ours not in written]
                if differ:
                    wrong[column] = differ[:5]
        ours = {str(one.ours) for one in pairs}
        assert (wrong, [(one.reaction, one.error) for one in self.world.attempts() if one.record in ours]) == ({}, [])

    def _stored(self, session: Session, row: Any) -> dict[int, tuple[Any, ...]]:
        """What the store has in the column, by id: its type and text, and what SQLAlchemy reads."""
        if self.world.postgres:
            raw: list[Any] = [cast(func.pg_typeof(row.value), String), cast(type_coerce(row.value, String), String)]
        else:
            raw = [func.typeof(row.value), func.quote(row.value), func.hex(row.value)]
        asked = select(row.id, *[type_coerce(one, String) for one in raw])
        found = {one[0]: tuple(one[1:]) for one in session.execute(asked)}
        read = self._read(session, row, list(found))
        return {one: (*found[one], read[one]) for one in found}

    def _read(self, session: Session, row: Any, ids: Sequence[int]) -> dict[int, Any]:
        try:
            return {one: (type(value), repr(value)) for one, value in session.execute(select(row.id, row.value).where(row.id.in_(ids)))}
        except Exception as error:  # noqa: BLE001  # the driver has no such value in Python
            session.rollback()
            if len(ids) == 1:
                return {ids[0]: type(error)}
            half = len(ids) // 2
            return self._read(session, row, ids[:half]) | self._read(session, row, ids[half:])


def _rows_of(kinds: Mapping[str, Kind]) -> tuple[Any, dict[str, Any]]:
    class Base(DeclarativeBase):
        pass

    rows = {}
    for name, kind in kinds.items():
        columns = {
            "__tablename__": f"of_{name}",
            "id": mapped_column(Integer, primary_key=True),
            "status": mapped_column(String),
            "value": mapped_column(kind.make(), nullable=True),
        }
        rows[name] = type(f"Of{name.title()}", (Base,), columns)
    return Base, rows


def _install_extensions(url: str, kinds: dict[str, Kind]) -> None:
    """Types of extensions that the server lacks are left out."""
    engine = create_engine(url)
    with engine.begin() as connection:
        there = set(connection.scalars(text("SELECT name FROM pg_available_extensions")))
        for extension in ("hstore", "citext"):
            if extension in there:
                connection.execute(text(f"CREATE EXTENSION {extension}"))
            else:
                del kinds[extension]
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    kinds, url = kinds_of(request.param), request.getfixturevalue(f"{request.param}_url")
    if request.param == "postgres":
        _install_extensions(url, kinds)
    base, rows = _rows_of(kinds)
    world = World(url, base)
    yield Place(world, kinds, rows)
    world.close()


KINDS = {**kinds_of("sqlite"), **kinds_of("postgres")}
OUTCOMES = {name: kind for name, kind in KINDS.items() if kind.outcome is not None}


def _some(kinds: Mapping[str, Kind]) -> st.SearchStrategy[Given]:
    return st.fixed_dictionaries({name: st.lists(st.none() | kind.made, min_size=1, max_size=3) for name, kind in kinds.items()})


def _is_of(kind: Any, value: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return value is None or value.__class__ is kind
    return True


_BYTES = {"binary", "bytea"}  # an outcome of bytes that are no UTF-8 is no JSON: it is kept as its text, which is said
EDGES: Given = {name: [*kind.edges, None] for name, kind in KINDS.items()}
OUTCOME_EDGES: Given = {name: [one for one in EDGES[name] if _is_of(kind.outcome | None, one)] for name, kind in OUTCOMES.items()}


@examples(2)
@example(EDGES)
@given(_some(KINDS))
def test_a_batch_writes_each_type_as_plain_sqlalchemy_does(place: Place, given_: Given) -> None:
    place.batches()
    pairs = place.pairs(given_, many=MANY)
    with acting(place.world) as person:
        for column in place.rows:
            place.write(person, column, {one.ours: one.value for one in pairs if one.column == column and not one.refused})
    place.compare(pairs)


def test_a_batch_refuses_what_plain_sqlalchemy_does(place: Place) -> None:
    place.batches()
    pairs = place.pairs(EDGES)
    taken = []
    with acting(place.world) as person:
        for column in place.rows:
            mine = [one for one in pairs if one.column == column]
            good = [one for one in mine if not one.refused]
            for bad in [one for one in mine if one.refused]:
                for values in ({one.ours: bad.value for one in good}, {one.ours: one.value for one in good} | {good[0].ours: bad.value}):
                    try:
                        place.write(person, column, values)
                    except Exception:  # noqa: BLE001, S112  # whatever it is
                        continue
                    taken.append((column, bad.value))
    assert taken == []


@examples(1)
@example(OUTCOME_EDGES)
@given(_some(OUTCOMES))
def test_an_outcome_of_each_type_is_written_as_plain_sqlalchemy_does(place: Place, given_: Given) -> None:
    place.calls()
    pairs = place.pairs(given_)
    place.world.settled()
    place.compare(pairs)


@examples(1)
@example(OUTCOME_EDGES)
@given(_some(OUTCOMES))
def test_an_outcome_that_was_held_is_written_as_if_it_never_was(place: Place, given_: Given) -> None:
    place.calls()
    pairs = place.pairs(given_)
    with acting(place.world) as person:
        place.hold(person, pairs)
        refused = [did for column in person.questions for did in persons.retry_all(person, column) if not did.done]
    assert [did for did in refused if "could be kept as text only" not in did.words or did.reaction not in _BYTES] == []
    place.compare([one for one in pairs if str(one.ours) not in {did.record for did in refused}])

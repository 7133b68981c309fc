"""Each type of column through whatever we write or read of it, beside what plain SQLAlchemy makes of the same value (its oracle)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Integer, String, cast, create_engine, delete, func, insert, select, text, type_coerce
from sqlalchemy.orm import DeclarativeBase, Session, aliased, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from groundstate import App, DeclarationError, ExternalService, InDoubt, Store
from groundstate.engine.handle import recheck_conditions, run_handler
from groundstate.engine.handle.recheck_conditions import RecheckBeforeHandlers, Work
from groundstate.engine.operate import actions
from groundstate.engine.operate.action import Person
from groundstate.engine.rows import attempts, claim, outcome_json
from groundstate.rules import attempt as rules
from groundstate.rules import occurrences
from groundstate.values import keys
from tests.engine.kit import World
from tests.engine.operate.test_actions import acting
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
        service = ExternalService(column)

        async def ask(record: Any) -> Any:
            return self.values[record.id]

        def fill(record: Any, outcome: Any) -> None:
            record.value, record.status = outcome, "done"

        ask.__annotations__["return"] = fill.__annotations__["outcome"] = kind
        call: Any = service.call(in_doubt=InDoubt.hold())(ask)
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
        question, row = person.queries[column], self.rows[column]
        self.values = dict(values)
        with person.incarnation.open_transaction() as tx:
            records = tx.session.scalars(select(row).where(row.id.in_(values)).order_by(row.id)).all()
            works = [Work((record.id,), record, "", (), {}) for record in records]
            run_handler.run_for_each_record(
                question, tx, question.spec.handler, RecheckBeforeHandlers(question, tx, works, recheck_conditions.keys_still_to_handle)
            )
            assert run_handler.write_changes(question, tx, works) is not None, f"{column} goes by the unit of work"

    def hold(self, person: Person, pairs: Sequence[Pair]) -> None:
        """What an attempt is whose handler failed after the call."""
        with person.incarnation.open_transaction() as tx:
            held = []
            for one in pairs:
                if not one.refused:
                    spec = person.queries[one.column].spec
                    fresh = attempts.new_attempt_of_record(person.queries[one.column], str(one.ours), "", person.incarnation.id, tx.now)
                    written = outcome_json.dump_outcomes(spec.outcome_type, [one.value])
                    held.append(rules.hold_refused_outcome(fresh, "the handler raised", None, written).attempt)
            attempts.insert_attempts(tx, held)

    def insert_keys(self, given_: Given) -> list[tuple[str, Any]]:
        """A row for each value by which plain SQLAlchemy writes its row as well. Returns those by which it does not find it again."""
        lost = []
        with self.world.session() as session:
            for column, row in self.rows.items():
                session.execute(delete(row))
                for number, value in enumerate(given_[column]):
                    try:
                        with session.begin_nested():
                            session.execute(insert(row).values(value=value, id=number, status="new"))
                            session.scalars(select(row).where(row.id == number)).one().status = "known"
                            session.flush()
                            assert session.scalar(select(row.status).where(row.id == number)) == "known"  # and not another one
                    except StaleDataError:
                        lost.append((column, value))
                    except Exception:  # noqa: BLE001  # refused, or there already, or not to be read
                        pass
                    session.expunge_all()
            session.commit()
        return lost

    def found_again(self, person: Person, column: str) -> list[tuple[str, int, int | None]]:
        """The records of which the text does not lead back to them: it, which they are, and which was found."""
        question, row = person.queries[column], self.rows[column]
        with person.incarnation.open_transaction() as tx:
            asked = tx.connection.execute(select(row.value, row.id))
            there = {question.keys.record_text((value,)): number for value, number in asked}
            looked = claim.lock_and_read_attempts(question, tx, [(self.world.app.name, column, one, "") for one in there])
            records = {identity[2]: standing.record for identity, standing in looked.standing.items()}
            numbers = {one: None if (record := records.get(one)) is None else record.id for one in there}
            tx.session.expunge_all()
        return [(one, number, numbers[one]) for one, number in there.items() if numbers[one] != number]

    def write_by_keys(self, person: Person, column: str) -> None:
        """As a batch does."""
        question, row = person.queries[column], self.rows[column]
        with person.incarnation.open_transaction() as tx:
            records = tx.session.scalars(select(row)).all()
            works = [Work((record.value,), record, "", (), {}) for record in records]
            for record in records:
                record.status = "done"
            run_handler.write_changes(question, tx, works)

    # ---- what is read --------------------------------------------------------------------------------------------------------
    def compare(self, pairs: Sequence[Pair]) -> None:
        """Whether all of ours were written, and are as theirs."""
        wrong: dict[str, Any] = {}
        with self.world.session() as session:
            for column, row in self.rows.items():
                stored = self._stored(session, row)
                mine = [one for one in pairs if one.column == column and not one.refused]
                differ: list[tuple[Any, ...]] = [
                    (one.value, stored[one.ours], stored[one.theirs]) for one in mine if stored[one.ours] != stored[one.theirs]
                ]
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

    def values_read(self, session: Session, row: Any) -> Iterator[tuple[int, Any]]:
        """What Python reads of the column, by id, where it can."""
        for one in session.scalars(select(row.id)).all():
            try:
                yield one, session.scalars(select(row.value).where(row.id == one)).one()
            except Exception:  # noqa: BLE001  # the driver has no such value in Python
                session.rollback()

    def _read(self, session: Session, row: Any, ids: Sequence[int]) -> dict[int, Any]:
        try:
            return {one: (type(value), repr(value)) for one, value in session.execute(select(row.id, row.value).where(row.id.in_(ids)))}
        except Exception as error:  # noqa: BLE001  # the driver has no such value in Python
            session.rollback()
            if len(ids) == 1:
                return {ids[0]: type(error)}
            half = len(ids) // 2
            return self._read(session, row, ids[:half]) | self._read(session, row, ids[half:])


def _rows_of(kinds: Mapping[str, Kind], base: Any = None, *, keyed: bool = False) -> tuple[Any, dict[str, Any]]:
    """A base, and of each type a mapped class; keyed: the value is its primary key."""
    base = base or type("Base", (DeclarativeBase,), {})
    rows = {}
    for name, kind in kinds.items():
        columns = {
            "__tablename__": f"{'by' if keyed else 'of'}_{name}",
            "id": mapped_column(Integer, primary_key=not keyed),
            "status": mapped_column(String),
            "value": mapped_column(kind.make(), primary_key=keyed, nullable=not keyed),
        }
        rows[name] = type(f"{'By' if keyed else 'Of'}{name.title()}", (base,), columns)
    return base, rows


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


def _place(request: pytest.FixtureRequest, *, keyed: bool = False) -> Place:
    kinds, url = kinds_of(request.param), request.getfixturevalue(f"{request.param}_url")
    if request.param == "postgres":
        _install_extensions(url, kinds)
    if keyed:
        kinds = {name: kind for name, kind in kinds.items() if kind.has_text and name not in _EQUAL}
    base, rows = _rows_of(kinds, keyed=keyed)
    return Place(World(url, base), kinds, rows)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    made = _place(request)
    yield made
    made.world.close()


@pytest.fixture(params=["sqlite", "postgres"])
def keyed(request: pytest.FixtureRequest) -> Iterator[Place]:
    """The same, with the values as primary keys."""
    made = _place(request, keyed=True)
    yield made
    made.world.close()


KINDS = {**kinds_of("sqlite"), **kinds_of("postgres")}
OUTCOMES = {name: kind for name, kind in KINDS.items() if kind.outcome is not None}


def _some(kinds: Mapping[str, Kind]) -> st.SearchStrategy[Given]:
    return st.fixed_dictionaries({name: st.lists(st.none() | kind.made, min_size=1, max_size=2) for name, kind in kinds.items()})


def _fill(record: Any) -> None:
    record.status = "done"


def _is_of(kind: Any, value: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return value is None or value.__class__ is kind
    return True


_ONE_INSTANT = {"zoned"}  # whatever the zone: it is one round
_EQUAL = {"zoned", "time_zone"}  # what is one instant is equal in Python, so that as a key it is one record for SQLAlchemy itself
_ALIKE = [{"0.0", "-0.0"}]  # one number for PostgreSQL, and two texts since ever: the keys of calls are made of them
EDGES: Given = {name: [*kind.edges, None] for name, kind in KINDS.items()}
OUTCOME_EDGES: Given = {name: [one for one in EDGES[name] if _is_of(kind.outcome | None, one)] for name, kind in OUTCOMES.items()}


@examples(1)
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
                    except Exception:  # noqa: BLE001  # whatever it is
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
        values = {str(one.ours): one.value for one in pairs}  # those of an earlier example that were refused are still there
        retried = [did for column in person.queries for did in actions.retry_all(person, column)]
        refused = [did for did in retried if not did.done and did.record in values]
    told = [(did.reaction, values[did.record]) for did in refused if "could be kept as text only" in did.words]
    assert len(told) == len(refused)
    # Of another type than the handler's annotation.
    assert [one for one in told if type(one[1]) is place.kinds[one[0]].outcome] == []
    place.compare([one for one in pairs if str(one.ours) not in {did.record for did in refused}])


# ---- what tells one round from the next, and one record from another ------------------------------------------------------------------
def test_a_column_whose_values_have_no_one_text_is_refused_as_an_occurrence_and_as_a_key() -> None:
    base, rows = _rows_of(KINDS)
    _, keyed = _rows_of(KINDS, base, keyed=True)
    app = App("types", Store(lambda: "sqlite:///never-opened.db", base))
    refused: dict[str, list[str]] = {"occurrence": [], "key": []}
    for what, mapped in (("occurrence", rows), ("key", keyed)):
        for column, row in mapped.items():
            try:
                app.on(row, row.status == "new", name=f"{what} {column}", occurrence=[row.value if what == "occurrence" else row.id])(_fill)
            except DeclarationError as error:
                refused[what].append(column)
                told = str(error)
                assert "no one text" in told  # of some of them
    assert refused == {what: [name for name, kind in KINDS.items() if not kind.has_text] for what in refused}


@examples(1)
@example(EDGES)
@given(_some(KINDS))
def test_two_rounds_are_one_where_the_store_says_that_their_values_are_equal(place: Place, given_: Given) -> None:
    place.batches()
    pairs = place.pairs(given_)
    wrong: dict[str, Any] = {}
    with acting(place.world) as person:
        for column in [name for name, kind in place.kinds.items() if kind.has_text and name not in _ONE_INSTANT]:
            place.write(person, column, {one.ours: one.value for one in pairs if one.column == column and not one.refused})
            row, other = place.rows[column], aliased(place.rows[column])
            with place.world.session() as session:
                same = select(row.id, other.id).where(
                    type_coerce(row.value, Integer).is_not_distinct_from(type_coerce(other.value, Integer))
                )
                equal = {(one, two) for one, two in session.execute(same)}
                values = dict(place.values_read(session, row))
            texts = {one: keys.occurrence_text([value], [occurrences.can_hold_empty_text(row.value.type)]) for one, value in values.items()}
            for one, two in combinations(sorted(texts), 2):
                if {repr(values[one]), repr(values[two])} in _ALIKE or repr(values[one]) == repr(values[two]):
                    continue
                if ((one, two) in equal) != (texts[one] == texts[two]):
                    wrong.setdefault(column, []).append((values[one], values[two], texts[one], texts[two], (one, two) in equal))
    assert wrong == {}


@pytest.mark.filterwarnings("ignore:Type object:sqlalchemy.exc.SADeprecationWarning")  # MONEY IN (...), which is SQLAlchemy's to mend
@examples(1)
@example(EDGES)
@given(_some(KINDS))
def test_a_record_is_found_by_its_text_and_written_by_its_key_or_it_is_told_that_it_is_not(keyed: Place, given_: Given) -> None:
    keyed.batches()
    lost = keyed.insert_keys(given_)
    wrong: dict[str, Any] = {}
    with acting(keyed.world) as person, keyed.world.session() as session:
        for column, row in keyed.rows.items():
            found = keyed.found_again(person, column)
            if found:
                wrong[column] = found
            keyed.write_by_keys(person, column)
            left = session.scalars(select(row.id).where(row.status != "done")).all()
            if left:
                wrong[f"{column} is not written"] = left
            session.rollback()
        for column, value in lost:
            row = keyed.rows[column]
            session.execute(delete(row))
            session.execute(insert(row).values([{"value": value, "id": 1, "status": "new"}]))
            session.commit()
            with pytest.raises(StaleDataError):
                keyed.write_by_keys(person, column)
    assert wrong == {}

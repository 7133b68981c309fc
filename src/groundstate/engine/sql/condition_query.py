"""Builds the statements that evaluate one reaction's condition, and the texts of the records that they return. Decides nothing.

A condition is evaluated again by a statement of its own after the lock was taken: while a statement waits for a lock, PostgreSQL rechecks
only the locked row, and subqueries keep the old snapshot (hazard 17, rules.md 14).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Dialect,
    Enum,
    FromClause,
    Integer,
    LargeBinary,
    Select,
    String,
    Table,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    collate,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList

from groundstate.engine.sql import in_list, user_filters
from groundstate.engine.sql.due_expression import Timing
from groundstate.engine.sql.key_columns import KeyColumn, as_it_stands
from groundstate.engine.sql.sql_text import sql_shown, sql_text, undoubled
from groundstate.engine.sql.table_spelling import spellings
from groundstate.engine.sql.tables_read import beside_own_row
from groundstate.engine.sql.user_filters import FilterRaised
from groundstate.rules import begun_kind, constant_clauses, occurrences, sqlite_pitfalls
from groundstate.rules.blocking import BASELINE
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database
from groundstate.store.tables import UtcDateTime, attempt
from groundstate.values import keys
from groundstate.values.errors import DeclarationError, GroundstateError
from groundstate.values.keys import BytesOfText, NoValue

PrimaryKey = tuple[Any, ...]
Place = tuple[Any, ...]  # the cursor of a pass: a key, or a due time as the database writes it and a key


class ConditionQuery:
    """The SQL of one reaction's condition. Statements are built once and cached by SQLAlchemy.

    `condition` is what the clauses say; `come` says also that the due time has come, and `ready` also that it is not too late, which is
    checked for records that are to be taken. Once a call is begun its due time is checked only through the occurrence, since a host's clock
    may step back while the call is in flight. `moment` takes the place of the database's clock, to ask what would be due then.

    Raises:
        DeclarationError: this database would compute the condition or the due time otherwise than it is meant; the message names the cure.
    """

    def __init__(self, spec: ReactionSpec, database: Database, moment: datetime | None = None) -> None:
        why = sqlite_pitfalls.of_reaction(spec, database.engine.dialect)
        if why is not None:
            raise DeclarationError(why)
        self.spec = spec
        self.database = database
        self.moment = moment
        self.mapper: Mapper[Any] = spec.mapper
        self.entity: Any = spec.record
        self.key_attributes = tuple(
            getattr(self.entity, self.mapper.get_property_by_column(column).key) for column in self.mapper.primary_key
        )
        self.filter_raised: FilterRaised | None = None  # why the reaction is not carried out
        self.seen: ColumnElement[bool] | None = None
        clauses: Sequence[Any] = spec.clauses
        try:
            self.seen = user_filters.seen(database, self.entity)
            clauses = [user_filters.with_subqueries_filtered(database, self.mapper, clause) for clause in spec.clauses]
        except FilterRaised as error:
            self.filter_raised = error
        self._asked = (*clauses, *self._if_seen)
        self.timing = None if spec.due is None else Timing(spec, database, moment)
        self._narrowing: tuple[ColumnElement[bool], ...] = ()
        self.narrowed = False  # whether it takes only records that another condition matches as well
        self.in_turn = False  # whether the clauses are evaluated one after another, since the condition raised for some row
        self.apart: frozenset[PrimaryKey] = frozenset()  # keys of the rows for which the condition raised; it is not evaluated for them
        self.version = 0  # version of the SQL: cached statements are built anew when it changes
        self._say()
        self._key_getters = [self.mapper.get_property_by_column(column).key for column in self.mapper.primary_key]
        self._occurrence_getters = [column.key for column in spec.occurrence]
        self.has_triggers = False  # whether the table has triggers; set when the app starts
        # Whether the database finds records by the texts of their keys; set to True as well once a query has shown it.
        self.finds_its_keys = all(column.is_plain for column in self.key_columns)
        self.options = tuple(spec.call.load) if spec.call else ()

    @cached_property
    def late(self) -> ConditionQuery | None:
        """Return the query for the reaction's `expired` handler, which gets the records that are too late; None where no record is ever too
        late.
        """
        if self.spec.due is None or self.spec.due.valid_for is None or self.spec.due.expires:
            return None
        return ConditionQuery(self.spec.late, self.database, self.moment)

    def _say(self) -> None:
        """Build the SQL for the whole table (`condition`, `come`, `ready`) and for rows given by key (`_condition_of_one` and so on)."""
        come, ready = ((), ()) if self.timing is None else ((self.timing.come,), (self.timing.ready,))
        of_one = self._all(*self._asked), self._all(*self._asked, *come), self._all(*self._asked, *ready, *self._narrowing)
        self._condition_of_one, self._come_of_one, self._ready_of_one = of_one
        self.condition, self.come, self.ready = map(self._of_the_others, of_one)
        self.version += 1
        for made in ("records_given", "truths_given", "ready_given", "of_nothing", "takeable"):
            self.__dict__.pop(made, None)

    def _of_the_others(self, which: ColumnElement[bool]) -> ColumnElement[bool]:
        """Return the condition in a form that is false, without being evaluated, for the rows for which it raises (`apart`)."""
        return case((self._is_apart, not_(true())), else_=which) if self.in_turn else which

    def _all(self, *parts: ColumnElement[bool]) -> ColumnElement[bool]:
        """Return the SQL condition that all parts hold.

        Where clauses are evaluated in turn (`in_turn`), parts that cannot raise come first, and a false part keeps the rest from being
        evaluated.
        """
        if not self.in_turn:
            return and_(true(), *parts)
        found: ColumnElement[bool] = true()
        # The last part becomes the outermost CASE, which is evaluated first.
        for part in sorted(_apart_from_each_other(parts), key=_only_compares):
            found = self.and_then(part, found)
        return found

    def and_then(self, first: ColumnElement[bool], second: ColumnElement[bool]) -> ColumnElement[bool]:
        """Return the SQL condition that both hold.

        Where clauses are evaluated in turn (`in_turn`), the second is certainly not evaluated for a row for which the first is false.
        """
        return case((first, second), else_=not_(true())) if self.in_turn else and_(first, second)

    def beside_ready(self, *clauses: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        """Return the clauses for use beside `ready`.

        Where clauses are evaluated in turn (`in_turn`), these are evaluated only for rows that are ready.
        """
        return tuple(self.and_then(self.ready, one) for one in clauses) if self.in_turn else clauses

    @cached_property
    def _is_apart(self) -> ColumnElement[bool]:
        """Return the SQL condition that the record is one for which the condition raises.

        The parameter is read from `apart` when the statement is executed.
        """
        if len(self.key_attributes) > 1:
            return tuple_(*self.key_attributes).in_(bindparam(_APART, expanding=True, callable_=lambda: list(self.apart), unique=True))
        kind = self.mapper.primary_key[0].type
        return in_list.one_of(self.database, self.key_attributes[0], _APART, kind, lambda: [key[0] for key in self.apart]).expression

    def ask_in_turn(self, apart: Iterable[PrimaryKey]) -> None:
        """Evaluate the clauses one after another from now on, and not at all for the rows in `apart`, for which the condition raises."""
        self.apart = frozenset(apart)
        if not self.in_turn:
            self.in_turn = True
            self._say()
        if self.late is not None:
            self.late.ask_in_turn(self.apart)

    def ask_plainly(self) -> None:
        """Let the database choose the order of evaluation again, since the condition raises for no row any more."""
        self.apart, self.in_turn = frozenset(), False
        self._say()
        if self.late is not None:
            self.late.ask_plainly()

    def raises_for(self, key: PrimaryKey) -> None:
        """Note that the condition raised for this row, so that it is no longer evaluated for it."""
        if len(self.apart) < APART_MOST:
            self.ask_in_turn(self.apart | {key})

    def answers_for(self, wanted: Iterable[PrimaryKey]) -> None:
        """Note that the condition was evaluated for these rows and did not raise, so that it is evaluated for them from now on."""
        if self.apart and not self.apart.isdisjoint(wanted):
            self.ask_in_turn(self.apart.difference(wanted))

    def narrow(self, other: str) -> None:
        """Take only records for which this SQL holds as well, until `widen` is called. Must be called before any record is taken."""
        self.narrowed = True
        whole = bindparam("groundstate_whole", type_=Boolean(), callable_=lambda: not self.narrowed, unique=True)
        self._narrowing = (*self._narrowing, or_(whole, held_under(other)))
        self._say()
        self.reads_its_row_alone = False  # that SQL may read any row
        if self.late is not None:
            self.late.narrow(other)

    def widen(self) -> None:
        """Take all records that the condition matches again, after `narrow`."""
        self.narrowed = False
        if self.late is not None:
            self.late.widen()

    @cached_property
    def begun_with(self) -> str | None:
        """Return the text about the call that attempts of this reaction store in their column `begun_with`; None where it makes no call."""
        own = self.spec.kind
        return None if own is None else begun_kind.text_of(own)

    @cached_property
    def spellings(self) -> tuple[str, ...]:
        """Return the spellings of the record's table name that attempts may have in their column `blocks`."""
        return spellings(self.database, self.mapper.base_mapper.local_table)

    # ---- texts ---------------------------------------------------------------------------------------------------------------
    def key_of(self, record: Any) -> PrimaryKey:
        values = record.__dict__
        try:
            return tuple([values[name] for name in self._key_getters])
        except KeyError:  # the attribute is expired, or mapped under another name
            return tuple(self.mapper.primary_key_from_instance(record))

    def record_text(self, key: PrimaryKey) -> str:
        return keys.record_text(key)

    def record_shown(self, key: PrimaryKey) -> str:
        """Return the record's text for people.

        A reaction is refused where its key has no canonical text; its records are shown nevertheless.
        """
        try:
            return self.record_text(key)
        except GroundstateError:
            return ", ".join(str(value) for value in key)

    @property
    def answers_late(self) -> bool:
        """Whether this is the query for the reaction's `expired` handler, which gets the records that are too late."""
        return self.spec.due is not None and self.spec.due.expires

    def due_in(self, occurrence: str) -> datetime | None:
        """Return when an occurrence became due, from its text only, since the record may have changed meanwhile (rules.md 6).

        Returns None where the text does not contain the due time.
        """
        due = self.spec.due
        if due is None or due.attribute is None or self._occurrence_getters != [due.attribute.key]:
            return None
        try:
            return due.at(keys.value_of(occurrence, datetime if "T" in occurrence else date))
        except (ValueError, OverflowError):  # the text was edited
            return None

    @cached_property
    def keys_as_they_stand(self) -> tuple[Any, ...]:
        """Return the key columns in a form that reads as a NoValue, instead of raising, a stored value by which no record is found."""
        alone = len(self.key_attributes) == 1
        return tuple(as_it_stands(attribute, self.database.engine.dialect, alone=alone) for attribute in self.key_attributes)

    @cached_property
    def keys_may_stand_otherwise(self) -> bool:
        """Whether a stored key may have a form that its type does not write: its record can be loaded, but is not found by the key."""
        if self.database.locks_rows:
            return False  # PostgreSQL stores only values of the column's type
        return not all(one is attribute for one, attribute in zip(self.keys_as_they_stand, self.key_attributes, strict=True))

    @cached_property
    def place_attributes(self) -> tuple[Any, ...]:
        """Return the columns that sort a pass: the due column, if there is one, so that the oldest records come first, and then the key."""
        return self.key_attributes if self.timing is None else (self.timing.base, *self.key_attributes)

    @cached_property
    def _written_due(self) -> tuple[Any, ...]:
        return () if self.timing is None else (self.timing.written.label("groundstate_due"),)

    def place_of(self, row: Any) -> Place:
        """Return the cursor of a pass after this row of `records_after`."""
        return tuple(row[1:]) if self.keys_may_stand_otherwise else (*row[1:], *self.key_of(row[0]))

    def key_in(self, place: Sequence[Any]) -> PrimaryKey:
        """Return the key that is part of a cursor."""
        return tuple(place[len(place) - len(self.key_attributes) :])

    def occurrence_text(self, record: Any) -> str:
        if not self._occurrence_getters:
            return ""
        return self.round_text([getattr(record, name) for name in self._occurrence_getters])

    def round_text(self, values: Sequence[Any]) -> str:
        """Return the text of an occurrence with these values."""
        return occurrences.text_of(self.spec, values)

    def is_round(self, written: str, occurrence: str) -> bool:
        """Whether the occurrence text that an attempt has stored means this occurrence."""
        return keys.is_round(written, occurrence, len(self.spec.occurrence))

    def key_from_text(self, written: str) -> PrimaryKey:
        """Return the primary key with this canonical text. Raises ValueError with what was expected."""
        texts = keys.record_texts(written, len(self.key_columns))
        return tuple([column.value_of(text) for column, text in zip(self.key_columns, texts, strict=True)])

    @cached_property
    def key_columns(self) -> list[KeyColumn]:
        return [KeyColumn(column, self.database) for column in self.mapper.primary_key]

    def key_of_text(self, written: str) -> PrimaryKey | None:
        """Return the primary key with this canonical text; None where the text is that of no key, so that no such record exists."""
        try:
            return self.key_from_text(written)
        except ValueError:
            return None

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Return the values that `column == constant` clauses demand; empty where a trigger may change the row unseen."""
        return constant_clauses.constants(self.spec.clauses, self.mapper) if not self.has_triggers else {}

    @cached_property
    def condition_text(self) -> str:
        """Return the condition and its due time as SQL with the values written out, to compare it with the condition that was accepted."""
        come = self._clauses if self.timing is None else and_(self._clauses, Timing(self.spec, self.database).come)
        return self._sql(sql_text, come)

    @cached_property
    def clauses_text(self) -> str:
        """Return the clauses as SQL with the values written out, without the due time. A baseline stores them, to show what it matched."""
        return self._sql(sql_text, self._clauses)

    @property
    def _clauses(self) -> ColumnElement[bool]:
        """Return the SQL condition of all clauses as they were declared."""
        return and_(true(), *self.spec.clauses)

    @property
    def _if_seen(self) -> list[ColumnElement[bool]]:
        """Return the SQL conditions of the user's filters: a record that they hide counts as deleted. The list is empty without such
        filters.
        """
        return [] if self.seen is None else [self.seen]

    @cached_property
    def shown_text(self) -> str:
        """Return the condition for people: the clauses as SQL, and the due time in words."""
        if self.timing is None:
            return self.shown(self.condition)
        clauses = f"{self.shown(and_(*self.spec.clauses))}, " if self.spec.clauses else ""
        return f"{clauses}due {self.timing.words}"

    def shown(self, condition: ColumnElement[Any]) -> str:
        """Return a condition on the reaction's record as SQL for people."""
        return self._sql(sql_shown, condition)

    def _sql(self, as_: Callable[[Dialect, FromClause, ColumnElement[Any]], str], condition: ColumnElement[Any]) -> str:
        return as_(self.database.engine.dialect, self.mapper.selectable, condition)

    # ---- statements ----------------------------------------------------------------------------------------------------------
    def places_after(self, cursor: Place | None, limit: int, *, crowded: bool, newest: bool = False) -> Select[Any]:
        """Select the cursors of records that are ready, after this cursor, in the order of a pass. `key_in` takes the key from a cursor.

        crowded: exclude records with attempts by SQL as well, since reading past them again and again would take too long.
        """
        statement = select(*self._written_due, *self.keys_as_they_stand).where(self.ready)
        return self._after_cursor(statement, cursor, limit, crowded=crowded, newest=newest)

    def records_after(self, cursor: Place | None, limit: int, *, crowded: bool) -> Select[Any]:
        """Select and lock the records that are ready, after this cursor, in the order of a pass.

        For a store whose transaction is the lock, or where `reads_its_row_alone`.
        """
        beside = self.keys_as_they_stand if self.keys_may_stand_otherwise else ()
        statement = self._loading(select(self.entity, *self._written_due, *beside).where(self.ready))
        return self._at_once(self._after_cursor(statement, cursor, limit, crowded=crowded))

    def _after_cursor(
        self, statement: Select[Any], cursor: Place | None, limit: int, *, crowded: bool, newest: bool = False
    ) -> Select[Any]:
        if crowded and self.unattempted is not None:
            statement = statement.where(self.unattempted)
        if cursor is not None:
            statement = statement.where(*self.beside_ready(self._after(cursor)))
        order = [column.desc() if newest else column for column in self.place_attributes]
        return statement.order_by(*order).limit(limit)

    def lock(self, statement: Select[Any]) -> Select[Any]:
        return self.database.lock(statement, self.entity)

    def _at_once(self, statement: Select[Any]) -> Select[Any]:
        return self.lock(statement) if self.reads_its_row_alone else statement

    def _loading(self, statement: Select[Any]) -> Select[Any]:
        """Load records as the database has them now, since another reaction's handler may have left older copies in the session."""
        return statement.options(*self.options).execution_options(populate_existing=True)

    @cached_property
    def reads_its_row_alone(self) -> bool:
        """Whether a lock on the record's row fixes all that the condition reads, so that one statement may lock, evaluate and load.

        After waiting for the lock, PostgreSQL evaluates a row by its newest version, and everything else by the old snapshot.
        """
        mapper = self.mapper
        if not self.database.locks_rows or self.options or len(mapper.tables) > 1 or mapper.with_polymorphic_mappers:
            return False
        if any(relationship.lazy in (False, "joined") for relationship in mapper.relationships):
            return False
        own = set(mapper.tables)
        due = () if self.spec.due is None else (self.spec.due.base,)
        read = [*self.spec.clauses, *self._if_seen, *due, *(column for attribute in mapper.column_attrs for column in attribute.columns)]
        return all(_is_plain(part, own) for clause in read for part in visitors.iterate(clause))

    @property
    def tables_beside(self) -> frozenset[str] | None:
        """Return the full names of the tables of which the condition reads rows other than the record's own; None where it may read any."""
        return None if self.narrowed else self._tables_beside  # the SQL that narrows it is a text

    @cached_property
    def _tables_beside(self) -> frozenset[str] | None:
        due = () if self.spec.due is None else (self.spec.due.base,)
        return beside_own_row((*self._asked, *due), self.mapper.tables, functions_may_read=self.database.locks_rows)

    def children_of(self, wanted: Sequence[PrimaryKey]) -> list[Select[Any]]:
        """Return the statements that lock those children of the wanted records which `every_child` clauses read."""
        locks = []
        for every in self.spec.children:
            columns = every.parent_key
            parents = columns[0].in_([key[0] for key in wanted]) if len(columns) == 1 else tuple_(*columns).in_(wanted)
            locks.append(select(*columns).where(parents).with_for_update(read=True))
        return locks

    @cached_property
    def tables_named(self) -> frozenset[str]:
        """Return the full names of all tables that the condition reads."""
        named = {table.fullname for table in self.mapper.tables}
        for clause in self.spec.clauses:
            for part in visitors.iterate(clause):
                table = part if isinstance(part, Table) else getattr(part, "table", None)
                if isinstance(table, Table):
                    named.add(table.fullname)
        return frozenset(named)

    def among(self, wanted: Sequence[PrimaryKey]) -> ColumnElement[bool]:
        """Return the SQL condition that the record's key is one of these, for a statement that is built once and executed once."""
        if len(self.key_attributes) > 1:
            return and_(tuple_(*self.key_attributes).in_(wanted), *self._if_seen)
        return and_(self.key_attributes[0].in_([key[0] for key in wanted]), *self._if_seen)

    def given(self, wanted: Sequence[PrimaryKey]) -> dict[str, Any]:
        """Return the parameters of `keys_given` and the other `..._given` statements, which are built once and cached."""
        if len(self.key_attributes) > 1:
            return {_WANTED: list(wanted)}
        return {_WANTED: self._listed.parameter([key[0] for key in wanted])}

    @cached_property
    def _listed(self) -> in_list.Listed:
        return in_list.one_of(self.database, self.key_attributes[0], _WANTED, self.mapper.primary_key[0].type)

    @cached_property
    def _among_given(self) -> ColumnElement[bool]:
        return and_(self.among_given(self.key_attributes), *self._if_seen)

    def among_given(self, columns: Sequence[Any]) -> ColumnElement[bool]:
        """Return the SQL condition that these columns of the record's table, or of an alias of it, are the key of a record given."""
        if len(columns) > 1:
            return tuple_(*columns).in_(bindparam(_WANTED, expanding=True))
        return in_list.one_of(self.database, columns[0], _WANTED, self.mapper.primary_key[0].type).expression

    @cached_property
    def keys_given(self) -> Select[Any]:
        """Select and lock the keys of the records given. Rows that other transactions have locked are skipped."""
        return self.lock(select(*self.key_attributes).where(self._among_given))

    @cached_property
    def records_given(self) -> Select[Any]:
        """Load those of the records given that are ready."""
        return self._loading(select(self.entity).where(*self._given_and(self._ready_of_one)))

    @cached_property
    def ready_given(self) -> Select[Any]:
        """Select, without locks, the keys of those of the records given that are ready."""
        return select(*self.key_attributes).where(*self._given_and(self._ready_of_one))

    def _given_and(self, which: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        return self._these_and(self._among_given, which)

    def _these_and(self, these: ColumnElement[bool], which: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        """Return clauses that evaluate a condition for these rows only.

        Unless the clauses are in turn (`in_turn`), a database may evaluate first what it expects to cost less, and so evaluate the
        condition for all rows.
        """
        return (self.and_then(these, which), these) if self.in_turn else (which, these)

    def keys_after(self, cursor: PrimaryKey | None, limit: int) -> Select[Any]:
        """Select the next keys of the table in their order, whether their records are ready or not."""
        statement = select(*self.keys_as_they_stand).select_from(self.entity).order_by(*self.key_attributes).limit(limit)
        return statement if cursor is None else statement.where(self._after_key(cursor))

    @cached_property
    def of_nothing(self) -> list[Select[Any]]:
        """Return statements that load no record, and name every column that loading a record and evaluating its condition needs."""
        own = self._loading(select(self.entity).where(self.ready)).limit(0)
        return [own, *(select(mapper.class_).limit(0) for mapper in self._loaded_beside)]

    @cached_property
    def tables_loaded(self) -> list[Any]:
        """Return the tables that loading a record reads."""
        mappers = [self.mapper, *self.mapper.with_polymorphic_mappers, *self._loaded_beside]
        return list(dict.fromkeys(table for mapper in mappers for table in mapper.tables))

    @property
    def _loaded_beside(self) -> list[Mapper[Any]]:
        """Return the mappers of what the mapping, or the call's `load`, loads along with a record, in the same statement or in others."""
        found = [part for option in self.options for part in _path_of(option) if isinstance(part, Mapper)]
        found += [one for one in self.mapper.self_and_descendants if one.polymorphic_load == "selectin"]
        seen, left = {self.mapper: None}, [self.mapper, *found]
        while left:
            mapper = left.pop(0)
            seen[mapper] = None
            left += [one.mapper for one in mapper.relationships if one.lazy in _AT_ONCE and one.mapper not in seen]
        return [mapper for mapper in seen if mapper is not self.mapper]

    @cached_property
    def truths_given(self) -> Select[Any]:
        """Load the records given, each with whether its condition holds now.

        Where `reads_its_row_alone` they are locked, and rows that other transactions have locked are skipped.
        """
        holds = func.coalesce(self._condition_of_one, not_(true())).label("groundstate_holds")
        return self._at_once(self._loading(select(self.entity, holds).where(self._among_given)))

    def keys_among(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        return select(*self.key_attributes).where(self.among(wanted))

    def clause_truths(self, key: PrimaryKey) -> Select[Any]:
        """Select one row that says of each clause whether it holds for this record."""
        truths: list[Any] = [
            func.coalesce(clause, not_(true())).label(f"clause_{number}") for number, clause in enumerate(self.spec.clauses)
        ]
        return select(*truths).select_from(self.entity).where(self.among([key]))

    def still_holding(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        """Select keys and occurrences of the records whose condition still holds and whose due time has come.

        The same occurrence as before means that the handler made no progress.
        """
        return select(*self.key_attributes, *self.spec.occurrence).where(*self._these_and(self.among(wanted), self._come_of_one))

    def rounds_holding(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        """Select keys and occurrences of the records whose condition holds, whether their due time has come or not."""
        return select(*self.key_attributes, *self.spec.occurrence).where(*self._these_and(self.among(wanted), self._condition_of_one))

    def holding_among(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        """Select keys of the records whose condition holds, whether their due time has come or not. Used for calls that are begun."""
        return select(*self.key_attributes).where(*self._these_and(self.among(wanted), self._condition_of_one))

    def dues_among(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        """Select keys and base times of these records, for a due time that is an expression."""
        assert self.timing is not None  # noqa: S101  # callers check that the reaction has a due time
        return select(*self.key_attributes, self.timing.read).where(self.among(wanted))

    def next_due(self, within: timedelta, most: int = 1, since: ColumnElement[datetime] | None = None) -> Select[Any]:
        """Select the base times of the records that become due next, within this duration.

        `since` includes records that became due after it.
        """
        assert self.timing is not None  # noqa: S101  # callers check that the reaction has a due time
        when = self.timing.within(within, since)
        return select(self.timing.read_if_any.label("at")).where(self.and_then(self.condition, when)).order_by(self.timing.base).limit(most)

    def _after(self, cursor: Place) -> ColumnElement[bool]:
        if self.timing is None:
            return self._after_key(cursor)
        return tuple_(*self.place_attributes) > tuple_(self.timing.as_written(cursor[0]), *self._values_of(self.key_in(cursor)))

    def _after_key(self, key: Sequence[Any]) -> ColumnElement[bool]:
        values = self._values_of(key)
        if len(values) == 1:
            return self.key_attributes[0] > values[0]  # type: ignore[no-any-return]  # the attributes of a mapped class are Any
        return tuple_(*self.key_attributes) > tuple_(*values)

    def _values_of(self, key: Sequence[Any]) -> list[Any]:
        return [
            _as_it_stood(value.raw) if isinstance(value, NoValue) else bindparam(None, value, type_=column.type)
            for value, column in zip(key, self.mapper.primary_key, strict=True)
        ]

    # ---- attempts that keep a record from being taken --------------------------------------------------------------------------
    @cached_property
    def text_in_sql(self) -> ColumnElement[str] | None:
        """Return the canonical text of the key as SQL; None where SQL cannot compute it.

        It serves only to exclude rows early, never to decide.
        """
        if len(self.mapper.primary_key) > 1:
            return None
        kind = self.mapper.primary_key[0].type
        if isinstance(kind, Integer) or (isinstance(kind, Uuid) and self.database.name == "postgresql"):
            return cast(self.key_attributes[0], Text)
        return self.key_attributes[0] if self._is_text(kind) else None

    def _is_text(self, kind: Any) -> bool:
        """Whether a column's value is the same text in SQL as in Python."""
        return isinstance(kind, String) and not isinstance(kind, Enum) and not (self.database.locks_rows and in_list.is_padded(kind))

    @cached_property
    def _occurrence_in_sql(self) -> ColumnElement[str] | None:
        """Return the canonical text of the occurrence as SQL; None unless it is one UtcDateTime column."""
        if len(self.spec.occurrence) != 1 or not isinstance(self.spec.occurrence[0].type, UtcDateTime):
            return None
        at: Any = self.spec.occurrence[0]
        if self.database.locks_rows:
            text: Any = func.to_char(func.timezone("UTC", at), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
            is_a_time = at.between(*_CALENDAR)
        else:
            text = func.replace(cast(at, Text), " ", "T").op("||")("Z")
            is_a_time = func.julianday(at).is_not(None)
        return case((is_a_time, text), else_="")  # attempts on a record whose occurrence cannot be read have the text ''

    @cached_property
    def is_of_this_round(self) -> ColumnElement[bool] | None:
        """Return the SQL condition that an attempt is of the record's present occurrence, as `is_round` decides.

        None where SQL cannot express it.
        """
        if len(self.spec.occurrence) != 1:
            return None
        column, kind = self.spec.occurrence[0], self.spec.occurrence[0].type
        said = cast(column, Text) if isinstance(kind, Integer) else self._occurrence_in_sql
        if said is not None:
            return attempt.c.occurrence == func.coalesce(said, self.round_text([None]))
        if not self._is_text(kind):
            return None
        said = collate(column, "C" if self.database.locks_rows else "BINARY")  # compares bytes, and not by the column's own collation
        text = case(
            (said.is_(None), self.round_text([None])),
            (said == "", self.round_text([""])),
            (said.regexp_match(keys.LIKE_EMPTY), literal(":") + said + literal(":")),
            else_=said,
        )
        formerly = func.coalesce(said, "")  # the text that older versions wrote
        return or_(attempt.c.occurrence == text, attempt.c.occurrence == formerly)

    @cached_property
    def takeable(self) -> ColumnElement[bool]:
        """Return the SQL condition that a record is ready and that no attempt keeps it from being taken, as far as SQL can tell."""
        return self.ready if self.unattempted is None else and_(self.ready, self.unattempted)

    @property
    def left_under_other_rounds(self) -> ColumnElement[bool]:
        """Return the SQL condition that an attempt is a baseline from a time when the occurrence was made of other columns."""
        ending = begun_kind.ending_of_baseline(self.spec.occurrence_columns)
        said_otherwise = and_(attempt.c.begun_with.is_not(None), not_(attempt.c.begun_with.endswith(ending, autoescape=True)))
        return and_(attempt.c.state == "held", attempt.c.why == BASELINE, said_otherwise)

    @cached_property
    def unattempted(self) -> ColumnElement[bool] | None:
        written = self.text_in_sql
        if written is None:
            return None
        mine = select(1).where(attempt.c.app == self.spec.app, attempt.c.reaction == self.spec.name, attempt.c.record == written)
        if self.spec.occurrence:
            same = self._occurrence_in_sql
            others_too = or_(blocking if self.spec.repeats else keeps_own_reaction, self.left_under_other_rounds)
            mine = mine.where(others_too if same is None else or_(others_too, attempt.c.occurrence == same))
        if self.answers_late:
            mine = mine.where(attempt.c.state != "failed")  # a late record waits for no retry
        clause = not_(mine.exists())
        if self.spec.done_column is None:
            others = select(1).where(attempt.c.blocks.in_(self.spellings), attempt.c.record == written, blocking)
            clause = and_(clause, not_(others.exists()))
        if self.spec.same_call and self.spec.done_column is None and not self.spec.repeats:
            made = and_(keeps_own_reaction, attempt.c.blocks.is_not(None))
            theirs = select(1).where(attempt.c.app == self.spec.app, attempt.c.reaction.in_(self.spec.same_call))
            clause = and_(clause, not_(theirs.where(attempt.c.record == written, made).exists()))
        return clause

    @cached_property
    def has_own_attempt(self) -> ColumnElement[bool] | None:
        """Return the SQL condition that this reaction has an attempt for the record's present occurrence, or for all of its occurrences.

        It is None where SQL cannot express that.
        """
        written = self.text_in_sql
        if written is None:
            return None
        mine = select(1).where(attempt.c.app == self.spec.app, attempt.c.reaction == self.spec.name, attempt.c.record == written)
        if self.spec.occurrence:
            same, of_all = self._occurrence_in_sql, or_(blocking, self.left_under_other_rounds)
            mine = mine.where(of_all if same is None else or_(of_all, attempt.c.occurrence == same))
        return mine.exists()

    @cached_property
    def of_no_own_attempt(self) -> ColumnElement[bool]:
        """Return the SQL condition that no attempt of this reaction keeps the record from a call, as far as SQL can tell.

        Used only for counts.
        """
        written = self.text_in_sql
        if written is None:
            return true()
        mine = select(1).where(attempt.c.app == self.spec.app, attempt.c.reaction == self.spec.name, attempt.c.record == written)
        return not_((mine.where(blocking) if self.spec.occurrence else mine).exists())


_PLAIN = frozenset({"column", "bindparam", "binary", "unary", "clauselist", "expression_clauselist", "grouping", "null", "true", "false"})


def _is_plain(part: Any, own: set[Any]) -> bool:
    """Whether a part of a clause is a value, an operator, or a column of these tables. A function may read other rows."""
    return part.__visit_name__ in _PLAIN and (part.__visit_name__ != "column" or getattr(part, "table", None) in own)


def _apart_from_each_other(parts: Iterable[ColumnElement[bool]]) -> list[ColumnElement[bool]]:
    """Return the parts in reverse order, with each and_(...) split into its own parts."""
    found: list[ColumnElement[bool]] = []
    for part in reversed(list(parts)):
        within = part.clauses if isinstance(part, BooleanClauseList) and part.operator is operators.and_ else None
        found += [part] if within is None else _apart_from_each_other(within)
    return found


def _only_compares(clause: ColumnElement[bool]) -> bool:
    """Whether a clause compares columns with values, and does nothing else that might raise."""
    parts = list(visitors.iterate(clause))
    computes = any(isinstance(part, BinaryExpression) and not operators.is_comparison(part.operator) for part in parts)
    return not computes and all(part.__visit_name__ in _PLAIN for part in parts)


def _as_it_stood(raw: object) -> ColumnElement[Any]:
    """Return a value of a key that its type cannot convert, as the database compares it."""
    return cast(literal(bytes(raw), LargeBinary()), Text()) if isinstance(raw, BytesOfText) else literal(raw)


_WANTED = "groundstate_wanted"
_APART = "groundstate_apart"
APART_MOST = 1_000  # rows in `apart` at most; where it raises for more, the condition is wrong, and the reaction waits
_CALENDAR = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))  # the first and the last time of Python's calendar
_AT_ONCE = (False, "joined", "selectin", "subquery", "immediate")  # values of `lazy` for relationships that are loaded with their owner


def _path_of(option: Any) -> tuple[Any, ...]:
    """Return the mappers and attributes that a loader option leads through; empty where this version of SQLAlchemy does not tell."""
    return tuple(getattr(getattr(option, "path", None), "path", ()))


blocking: ColumnElement[bool] = or_(attempt.c.state == "begun", attempt.c.unsure)
# Attempts that keep their own reaction from the record under every other occurrence (`blocking.blocker` decides): also those held with an
# outcome.
keeps_own_reaction: ColumnElement[bool] = or_(blocking, and_(attempt.c.state == "held", attempt.c.outcome.is_not(None)))


def held_under(old: str) -> ColumnElement[bool]:
    """Return the SQL condition, false instead of NULL, for the text of a condition that was accepted earlier."""
    return func.coalesce(literal_column(f"({old})"), not_(true()))


def sql_name(table: Any, database: Database) -> str:
    """Return a table's name as SQL, with its schema, and with single percent signs."""
    preparer: Any = database.engine.dialect.identifier_preparer
    translated = database.engine.get_execution_options().get("schema_translate_map") or {}
    schema = translated.get(table.schema, table.schema)
    said = str(preparer.format_table(table, use_schema=False))
    if schema is not None:
        said = f"{preparer.quote_schema(schema)}.{said}"
    return undoubled(database.engine.dialect, said)

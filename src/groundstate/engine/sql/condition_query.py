"""Builds the statements that evaluate the condition of one reaction, and the texts that name its records. Decides nothing.

After a record was locked, its condition is evaluated again by a separate statement. The locking statement itself does not suffice: after
waiting for a lock, PostgreSQL rechecks only the locked row, and subqueries keep the old snapshot (hazard 17, rules.md 14).
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
from groundstate.engine.sql.key_columns import KeyColumn, column_as_stored
from groundstate.engine.sql.sql_text import sql_for_people, sql_text, with_single_percents
from groundstate.engine.sql.table_spelling import table_name_spellings
from groundstate.engine.sql.tables_read import other_tables_read
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
Place = tuple[Any, ...]  # the cursor of a pass over the records: (key columns), or (due time as stored, key columns) if there is a due time


class ConditionQuery:
    """The SQL of one reaction's condition. Statements are built once and cached by SQLAlchemy.

    `condition` is what the clauses say. `condition_and_due` adds that the due time has come. `ready` also adds that it is not too late, and
    is checked for records that are to be taken. Once a call has begun, its due time is checked only through the occurrence, since a host's
    clock may step back while the call is in flight. `moment` replaces the database's clock, to find what would be due at that time.

    Raises:
        DeclarationError: This database would not compute the condition or the due time as it is meant; the message names the cure.
    """

    def __init__(self, spec: ReactionSpec, database: Database, moment: datetime | None = None) -> None:
        why = sqlite_pitfalls.reason_to_refuse_reaction(spec, database.engine.dialect)
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
        self.filter_raised: FilterRaised | None = None  # the error of the user's ORM filter; the reaction is not carried out if it is set
        self.seen: ColumnElement[bool] | None = None
        clauses: Sequence[Any] = spec.clauses
        try:
            self.seen = user_filters.filter_clause_for(database, self.entity)
            clauses = [user_filters.with_subqueries_filtered(database, self.mapper, clause) for clause in spec.clauses]
        except FilterRaised as error:
            self.filter_raised = error
        self._asked = (*clauses, *self._user_filter_conditions)
        self.timing = None if spec.due is None else Timing(spec, database, moment)
        self._narrowing: tuple[ColumnElement[bool], ...] = ()
        self.narrowed = False  # whether records must also meet the condition given to `narrow_by`
        self.in_turn = False  # whether clauses are evaluated one after another; set after the evaluation failed for a row
        self.raising_keys: frozenset[PrimaryKey] = frozenset()  # keys of the rows for which the evaluation failed; these rows are excluded
        self.version = 0  # the version of the SQL: whenever it changes, cached statements are built again
        self._build_conditions()
        self._key_getters = [self.mapper.get_property_by_column(column).key for column in self.mapper.primary_key]
        self._occurrence_getters = [column.key for column in spec.occurrence]
        self.has_triggers = False  # whether the table has triggers; set at the app's start
        # Whether the database surely finds records by the texts of their keys. It may be set to True later, once a query has shown it.
        self.finds_its_keys = all(column.is_plain for column in self.key_columns)
        self.options = tuple(spec.call.load) if spec.call else ()

    @cached_property
    def query_for_expired(self) -> ConditionQuery | None:
        """Return the query for the reaction's `expired` handler, which gets the records that are too late. None if records of this reaction
        are never too late.
        """
        if self.spec.due is None or self.spec.due.valid_for is None or self.spec.due.expires:
            return None
        return ConditionQuery(self.spec.expired_variant, self.database, self.moment)

    def _build_conditions(self) -> None:
        """Build the conditions for the whole table (`condition`, `condition_and_due`, `ready`), and the same conditions for rows given by
        key (`_condition_of_one` and so on).
        """
        due, valid = ((), ()) if self.timing is None else ((self.timing.is_due,), (self.timing.is_due_and_valid,))
        of_one = (
            self._conjunction(*self._asked),
            self._conjunction(*self._asked, *due),
            self._conjunction(*self._asked, *valid, *self._narrowing),
        )
        self._condition_of_one, self._come_of_one, self._ready_of_one = of_one
        self.condition, self.condition_and_due, self.ready = map(self._false_for_raising_rows, of_one)
        self.version += 1
        for name in (
            "select_given_ready_records",
            "select_given_records_with_truth",
            "select_given_ready_keys",
            "probe_statements",
            "is_takeable",
        ):
            self.__dict__.pop(name, None)

    def _false_for_raising_rows(self, which: ColumnElement[bool]) -> ColumnElement[bool]:
        """Return the condition so that it is false, and not evaluated, for each row for which its evaluation is known to fail."""
        return case((self._is_raising_row, not_(true())), else_=which) if self.in_turn else which

    def _conjunction(self, *parts: ColumnElement[bool]) -> ColumnElement[bool]:
        """Return the SQL condition that all parts hold.

        If clauses are evaluated in turn (`in_turn`), parts that cannot raise an error are evaluated first, and after a false part the rest
        is not evaluated.
        """
        if not self.in_turn:
            return and_(true(), *parts)
        found: ColumnElement[bool] = true()
        # The last part in this loop makes the outermost of the nested CASEs, which the database evaluates first.
        for part in sorted(_split_conjunctions_reversed(parts), key=_is_plain_comparison):
            found = self.short_circuit_and(part, found)
        return found

    def short_circuit_and(self, first: ColumnElement[bool], second: ColumnElement[bool]) -> ColumnElement[bool]:
        """Return the SQL condition that `first` and `second` hold.

        If clauses are evaluated in turn (`in_turn`), `second` is surely not evaluated for a row for which `first` is false.
        """
        return case((first, second), else_=not_(true())) if self.in_turn else and_(first, second)

    def clauses_checked_after_ready(self, *clauses: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        """Return these clauses so that a WHERE may combine them with `ready`.

        If clauses are evaluated in turn (`in_turn`), the database evaluates the returned clauses only for rows that are ready.
        """
        return tuple(self.short_circuit_and(self.ready, one) for one in clauses) if self.in_turn else clauses

    @cached_property
    def _is_raising_row(self) -> ColumnElement[bool]:
        """Return the SQL condition that the record is one of those for which the evaluation of the condition fails.

        The keys are a parameter, which is read from `raising_keys` whenever the statement is executed.
        """
        if len(self.key_attributes) > 1:
            return tuple_(*self.key_attributes).in_(
                bindparam(_APART, expanding=True, callable_=lambda: list(self.raising_keys), unique=True)
            )
        kind = self.mapper.primary_key[0].type
        return in_list.is_one_of(
            self.database, self.key_attributes[0], _APART, kind, lambda: [key[0] for key in self.raising_keys]
        ).expression

    def evaluate_clauses_in_turn(self, apart: Iterable[PrimaryKey]) -> None:
        """Evaluate the clauses one after another from now on. Call it after the evaluation failed for some row.

        apart: The keys of rows for which the evaluation fails. The clauses are not evaluated for these rows at all.
        """
        self.raising_keys = frozenset(apart)
        if not self.in_turn:
            self.in_turn = True
            self._build_conditions()
        if self.query_for_expired is not None:
            self.query_for_expired.evaluate_clauses_in_turn(self.raising_keys)

    def evaluate_clauses_in_any_order(self) -> None:
        """Let the database choose the order of evaluation again. Call it when the evaluation fails for no row any more."""
        self.raising_keys, self.in_turn = frozenset(), False
        self._build_conditions()
        if self.query_for_expired is not None:
            self.query_for_expired.evaluate_clauses_in_any_order()

    def exclude_raising_row(self, key: PrimaryKey) -> None:
        """Do not evaluate the condition for this row from now on. Call it after the evaluation failed for the row."""
        if len(self.raising_keys) < APART_MOST:
            self.evaluate_clauses_in_turn(self.raising_keys | {key})

    def include_rows_again(self, wanted: Iterable[PrimaryKey]) -> None:
        """Evaluate the condition for these rows again from now on. Call it after the evaluation has succeeded for them."""
        if self.raising_keys and not self.raising_keys.isdisjoint(wanted):
            self.evaluate_clauses_in_turn(self.raising_keys.difference(wanted))

    def narrow_by(self, other: str) -> None:
        """Until `end_narrowing` is called, take only records that also meet the condition `other`, an SQL text. Call it before any record
        is taken.
        """
        self.narrowed = True
        whole = bindparam("groundstate_whole", type_=Boolean(), callable_=lambda: not self.narrowed, unique=True)
        self._narrowing = (*self._narrowing, or_(whole, condition_from_text(other)))
        self._build_conditions()
        self.reads_only_own_row = False  # the condition `other` may read any row
        if self.query_for_expired is not None:
            self.query_for_expired.narrow_by(other)

    def end_narrowing(self) -> None:
        """Undo `narrow_by`: take all records again that the reaction's own condition matches."""
        self.narrowed = False
        if self.query_for_expired is not None:
            self.query_for_expired.end_narrowing()

    @cached_property
    def begun_with_text(self) -> str | None:
        """Return the text about the reaction's call that its attempts store in their column `begun_with`; None if the reaction makes no
        call.
        """
        own = self.spec.kind
        return None if own is None else begun_kind.kind_as_json(own)

    @cached_property
    def table_name_spellings(self) -> tuple[str, ...]:
        """Return all spellings of the record's table name that attempts may have in their column `blocks`."""
        return table_name_spellings(self.database, self.mapper.base_mapper.local_table)

    # ---- texts ---------------------------------------------------------------------------------------------------------------
    def key_of_record(self, record: Any) -> PrimaryKey:
        """Return the primary key of a loaded record."""
        values = record.__dict__
        try:
            return tuple([values[name] for name in self._key_getters])
        except KeyError:  # the attribute is expired, or is mapped under another name than the column's
            return tuple(self.mapper.primary_key_from_instance(record))

    def record_text(self, key: PrimaryKey) -> str:
        """Return the canonical text of a key, the text by which attempts name the record."""
        return keys.record_text(key)

    def record_for_people(self, key: PrimaryKey) -> str:
        """Return a text that shows a key to people. It exists even for a key that has no canonical text, because of which the reaction is
        refused.
        """
        try:
            return self.record_text(key)
        except GroundstateError:
            return ", ".join(str(value) for value in key)

    @property
    def is_for_expired(self) -> bool:
        """Return whether this query is the one for the reaction's `expired` handler, which gets the records that are too late."""
        return self.spec.due is not None and self.spec.due.expires

    def due_time_in_occurrence(self, occurrence: str) -> datetime | None:
        """Return the due time that is part of this occurrence text; None if no due time is part of it.

        The record itself is not read, since its due time may have changed in the meantime (rules.md 6).
        """
        due = self.spec.due
        if due is None or due.attribute is None or self._occurrence_getters != [due.attribute.key]:
            return None
        try:
            return due.due_at(keys.parse_value(occurrence, datetime if "T" in occurrence else date))
        except (ValueError, OverflowError):  # a person has edited the text
            return None

    @cached_property
    def key_columns_as_stored(self) -> tuple[Any, ...]:
        """Return the key columns so that every stored value can be loaded: a value by which no record can be found is loaded as a
        NoValue.
        """
        alone = len(self.key_attributes) == 1
        return tuple(column_as_stored(attribute, self.database.engine.dialect, alone=alone) for attribute in self.key_attributes)

    @cached_property
    def may_store_other_key_forms(self) -> bool:
        """Return whether the database may store a key in a form that the column's type would not write. Such a record can be loaded, but is
        not found by its key.
        """
        if self.database.locks_rows:
            return False  # PostgreSQL stores a value in one form only
        return not all(one is attribute for one, attribute in zip(self.key_columns_as_stored, self.key_attributes, strict=True))

    @cached_property
    def cursor_columns(self) -> tuple[Any, ...]:
        """Return the columns by which a pass sorts the records: the due column, if there is one, so that the oldest records come first, and
        then the key.
        """
        return self.key_attributes if self.timing is None else (self.timing.base, *self.key_attributes)

    @cached_property
    def _due_time_for_cursor(self) -> tuple[Any, ...]:
        return () if self.timing is None else (self.timing.base_time_as_text.label("groundstate_due"),)

    def cursor_after_row(self, row: Any) -> Place:
        """Return the cursor from which a pass goes on after this row of `select_records_after`."""
        return tuple(row[1:]) if self.may_store_other_key_forms else (*row[1:], *self.key_of_record(row[0]))

    def key_in_cursor(self, place: Sequence[Any]) -> PrimaryKey:
        """Return the primary key that a cursor of this query contains."""
        return tuple(place[len(place) - len(self.key_attributes) :])

    def occurrence_text(self, record: Any) -> str:
        """Return the text of the record's present occurrence (the values that tell one round of the record from the next). Empty for a
        reaction without `occurrence=`.
        """
        if not self._occurrence_getters:
            return ""
        return self.occurrence_text_of_values([getattr(record, name) for name in self._occurrence_getters])

    def occurrence_text_of_values(self, values: Sequence[Any]) -> str:
        """Return the text of the occurrence that these values make."""
        return occurrences.occurrence_text(self.spec, values)

    def is_same_occurrence(self, written: str, occurrence: str) -> bool:
        """Return whether `written`, the occurrence text stored in an attempt, means the occurrence with the text `occurrence`."""
        return keys.belongs_to_occurrence(written, occurrence, len(self.spec.occurrence))

    def key_from_text(self, written: str) -> PrimaryKey:
        """Return the primary key with this canonical text. Raises ValueError, with a message that says what was expected."""
        texts = keys.split_record_text(written, len(self.key_columns))
        return tuple([column.value_from_text(text) for column, text in zip(self.key_columns, texts, strict=True)])

    @cached_property
    def key_columns(self) -> list[KeyColumn]:
        return [KeyColumn(column, self.database) for column in self.mapper.primary_key]

    def key_from_text_or_none(self, written: str) -> PrimaryKey | None:
        """Return the primary key with this canonical text; None if no key has this text, so that there is no such record."""
        try:
            return self.key_from_text(written)
        except ValueError:
            return None

    @cached_property
    def demanded_constants(self) -> dict[str, Any]:
        """Return a dict from attribute name to the value that a clause of the form `column == constant` demands. Empty if a trigger may
        change the row.
        """
        return constant_clauses.constants_by_attribute(self.spec.clauses, self.mapper) if not self.has_triggers else {}

    @cached_property
    def condition_text(self) -> str:
        """Return the condition and its due time as SQL with all values written out. It is compared with the condition that a person
        accepted.
        """
        come = self._declared_clauses if self.timing is None else and_(self._declared_clauses, Timing(self.spec, self.database).is_due)
        return self._render_condition_as_sql(sql_text, come)

    @cached_property
    def clauses_text(self) -> str:
        """Return the clauses as SQL with all values written out, without the due time. A baseline (an attempt for a record that matched
        before the reaction was introduced) stores this text.
        """
        return self._render_condition_as_sql(sql_text, self._declared_clauses)

    @property
    def _declared_clauses(self) -> ColumnElement[bool]:
        """Return the SQL condition of all clauses as they were declared."""
        return and_(true(), *self.spec.clauses)

    @property
    def _user_filter_conditions(self) -> list[ColumnElement[bool]]:
        """Return the SQL conditions of the user's ORM filters; empty if there are none. A record that a filter hides counts as deleted."""
        return [] if self.seen is None else [self.seen]

    @cached_property
    def condition_for_people(self) -> str:
        """Return the condition as a text for people: the clauses as SQL, and the due time in words."""
        if self.timing is None:
            return self.sql_for_people(self.condition)
        clauses = f"{self.sql_for_people(and_(*self.spec.clauses))}, " if self.spec.clauses else ""
        return f"{clauses}due {self.timing.in_words}"

    def sql_for_people(self, condition: ColumnElement[Any]) -> str:
        """Return any condition on the reaction's record as SQL for people."""
        return self._render_condition_as_sql(sql_for_people, condition)

    def _render_condition_as_sql(self, as_: Callable[[Dialect, FromClause, ColumnElement[Any]], str], condition: ColumnElement[Any]) -> str:
        return as_(self.database.engine.dialect, self.mapper.selectable, condition)

    # ---- statements ----------------------------------------------------------------------------------------------------------
    def select_cursors_after(self, cursor: Place | None, limit: int, *, crowded: bool, newest: bool = False) -> Select[Any]:
        """Select the cursors of the ready records after this cursor, in the order of a pass. `key_in_cursor` returns the key from such a
        cursor.

        crowded: Exclude records with attempts already in SQL. Use it if there are so many that reading them again in each pass would take
            too long.
        """
        statement = select(*self._due_time_for_cursor, *self.key_columns_as_stored).where(self.ready)
        return self._restrict_to_page(statement, cursor, limit, crowded=crowded, newest=newest)

    def select_records_after(self, cursor: Place | None, limit: int, *, crowded: bool) -> Select[Any]:
        """Select and lock the ready records after this cursor, in the order of a pass.

        Call it only for an embedded store (SQLite), whose transaction is the lock, or if `reads_only_own_row`.
        """
        beside = self.key_columns_as_stored if self.may_store_other_key_forms else ()
        statement = self._with_fresh_records(select(self.entity, *self._due_time_for_cursor, *beside).where(self.ready))
        return self._with_lock_if_row_decides(self._restrict_to_page(statement, cursor, limit, crowded=crowded))

    def _restrict_to_page(
        self, statement: Select[Any], cursor: Place | None, limit: int, *, crowded: bool, newest: bool = False
    ) -> Select[Any]:
        """Return the statement with the condition, the order and the limit for one page of a pass."""
        if crowded and self.has_no_blocking_attempt is not None:
            statement = statement.where(self.has_no_blocking_attempt)
        if cursor is not None:
            statement = statement.where(*self.clauses_checked_after_ready(self._is_record_after_cursor(cursor)))
        order = [column.desc() if newest else column for column in self.cursor_columns]
        return statement.order_by(*order).limit(limit)

    def with_row_lock(self, statement: Select[Any]) -> Select[Any]:
        return self.database.with_row_locks(statement, self.entity)

    def _with_lock_if_row_decides(self, statement: Select[Any]) -> Select[Any]:
        """Return the statement with a row lock if the condition reads only the record's own row; otherwise return the statement
        unchanged.
        """
        return self.with_row_lock(statement) if self.reads_only_own_row else statement

    def _with_fresh_records(self, statement: Select[Any]) -> Select[Any]:
        """Return the statement so that it loads records as they are in the database now: the handler of another reaction may have left
        older copies in the session.
        """
        return statement.options(*self.options).execution_options(populate_existing=True)

    @cached_property
    def reads_only_own_row(self) -> bool:
        """Return whether the condition reads nothing but the record's own row, so that one statement may lock, evaluate and load the
        record.

        After a wait for the lock, PostgreSQL evaluates the newest version of the locked row, but all other rows as they were before the
        wait.
        """
        mapper = self.mapper
        if not self.database.locks_rows or self.options or len(mapper.tables) > 1 or mapper.with_polymorphic_mappers:
            return False
        if any(relationship.lazy in (False, "joined") for relationship in mapper.relationships):
            return False
        own = set(mapper.tables)
        due = () if self.spec.due is None else (self.spec.due.base,)
        read = [
            *self.spec.clauses,
            *self._user_filter_conditions,
            *due,
            *(column for attribute in mapper.column_attrs for column in attribute.columns),
        ]
        return all(_is_value_or_own_column(part, own) for clause in read for part in visitors.iterate(clause))

    @property
    def other_tables_read(self) -> frozenset[str] | None:
        """Return the full names of the tables of which the condition reads rows other than the record's own row. None if the condition may
        read any table.
        """
        return None if self.narrowed else self._other_tables_read  # the SQL given to `narrow_by` is a text that may read any table

    @cached_property
    def _other_tables_read(self) -> frozenset[str] | None:
        due = () if self.spec.due is None else (self.spec.due.base,)
        return other_tables_read((*self._asked, *due), self.mapper.tables, functions_may_read=self.database.locks_rows)

    def select_and_lock_children(self, wanted: Sequence[PrimaryKey]) -> list[Select[Any]]:
        """Return statements that lock the children of these records, for the clauses made with `every_child`."""
        locks = []
        for every in self.spec.children:
            columns = every.parent_key
            parents = columns[0].in_([key[0] for key in wanted]) if len(columns) == 1 else tuple_(*columns).in_(wanted)
            locks.append(select(*columns).where(parents).with_for_update(read=True))
        return locks

    @cached_property
    def names_of_tables_read(self) -> frozenset[str]:
        """Return the full names of all tables that the condition reads, including the record's own."""
        named = {table.fullname for table in self.mapper.tables}
        for clause in self.spec.clauses:
            for part in visitors.iterate(clause):
                table = part if isinstance(part, Table) else getattr(part, "table", None)
                if isinstance(table, Table):
                    named.add(table.fullname)
        return frozenset(named)

    def has_key_among(self, wanted: Sequence[PrimaryKey]) -> ColumnElement[bool]:
        """Return the SQL condition that the record's key is one of these keys. Use it in a statement that is executed only once."""
        if len(self.key_attributes) > 1:
            return and_(tuple_(*self.key_attributes).in_(wanted), *self._user_filter_conditions)
        return and_(self.key_attributes[0].in_([key[0] for key in wanted]), *self._user_filter_conditions)

    def key_parameters(self, wanted: Sequence[PrimaryKey]) -> dict[str, Any]:
        """Return the parameters that pass these keys to the `select_given_...` statements. Those statements are built once and cached."""
        if len(self.key_attributes) > 1:
            return {_WANTED: list(wanted)}
        return {_WANTED: self._is_listed_key.parameter([key[0] for key in wanted])}

    @cached_property
    def _is_listed_key(self) -> in_list.ListCondition:
        return in_list.is_one_of(self.database, self.key_attributes[0], _WANTED, self.mapper.primary_key[0].type)

    @cached_property
    def _is_given_record(self) -> ColumnElement[bool]:
        return and_(self.are_given_key(self.key_attributes), *self._user_filter_conditions)

    def are_given_key(self, columns: Sequence[Any]) -> ColumnElement[bool]:
        """Return the SQL condition that these columns are one of the keys passed by `key_parameters`. The columns are those of the record's
        table or of an alias of it.
        """
        if len(columns) > 1:
            return tuple_(*columns).in_(bindparam(_WANTED, expanding=True))
        return in_list.is_one_of(self.database, columns[0], _WANTED, self.mapper.primary_key[0].type).expression

    @cached_property
    def select_given_keys(self) -> Select[Any]:
        """Select and lock those given keys that exist in the table. Rows that other transactions have locked are skipped."""
        return self.with_row_lock(select(*self.key_attributes).where(self._is_given_record))

    @cached_property
    def select_given_ready_records(self) -> Select[Any]:
        """Load each given record that is ready."""
        return self._with_fresh_records(select(self.entity).where(*self._conditions_for_given_rows(self._ready_of_one)))

    @cached_property
    def select_given_ready_keys(self) -> Select[Any]:
        """Select the key of each given record that is ready, without locks."""
        return select(*self.key_attributes).where(*self._conditions_for_given_rows(self._ready_of_one))

    def _conditions_for_given_rows(self, which: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        return self._conditions_for_rows(self._is_given_record, which)

    def _conditions_for_rows(self, these: ColumnElement[bool], which: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        """Return clauses that evaluate the condition `which` only for the rows for which `these` holds.

        Unless clauses are evaluated in turn (`in_turn`), a database may evaluate the cheaper clause first, and so evaluate the condition
        for all rows.
        """
        return (self.short_circuit_and(these, which), these) if self.in_turn else (which, these)

    def select_keys_after(self, cursor: PrimaryKey | None, limit: int) -> Select[Any]:
        """Select the next keys of the table in key order, whether or not their records are ready."""
        statement = select(*self.key_columns_as_stored).select_from(self.entity).order_by(*self.key_attributes).limit(limit)
        return statement if cursor is None else statement.where(self._has_key_after(cursor))

    @cached_property
    def probe_statements(self) -> list[Select[Any]]:
        """Return statements that select no rows, but name every column that is needed to load a record and to evaluate its condition."""
        own = self._with_fresh_records(select(self.entity).where(self.ready)).limit(0)
        return [own, *(select(mapper.class_).limit(0) for mapper in self._mappers_loaded_along)]

    @cached_property
    def tables_loaded(self) -> list[Any]:
        """Return the tables that are read when a record is loaded."""
        mappers = [self.mapper, *self.mapper.with_polymorphic_mappers, *self._mappers_loaded_along]
        return list(dict.fromkeys(table for mapper in mappers for table in mapper.tables))

    @property
    def _mappers_loaded_along(self) -> list[Mapper[Any]]:
        """Return the mappers of the other records that are loaded together with a record, by its mapping or by the call's `load`."""
        found = [part for option in self.options for part in _loader_path(option) if isinstance(part, Mapper)]
        found += [one for one in self.mapper.self_and_descendants if one.polymorphic_load == "selectin"]
        seen, left = {self.mapper: None}, [self.mapper, *found]
        while left:
            mapper = left.pop(0)
            seen[mapper] = None
            left += [one.mapper for one in mapper.relationships if one.lazy in _AT_ONCE and one.mapper not in seen]
        return [mapper for mapper in seen if mapper is not self.mapper]

    @cached_property
    def select_given_records_with_truth(self) -> Select[Any]:
        """Load the given records, each with a second column that says whether the record's condition holds now.

        If `reads_only_own_row`, the records are locked, and records that other transactions have locked are skipped.
        """
        holds = func.coalesce(self._condition_of_one, not_(true())).label("groundstate_holds")
        return self._with_lock_if_row_decides(self._with_fresh_records(select(self.entity, holds).where(self._is_given_record)))

    def select_existing_keys(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        return select(*self.key_attributes).where(self.has_key_among(wanted))

    def select_clause_truths(self, key: PrimaryKey) -> Select[Any]:
        """Select one row with one boolean per clause: whether the clause holds for this record."""
        truths: list[Any] = [
            func.coalesce(clause, not_(true())).label(f"clause_{number}") for number, clause in enumerate(self.spec.clauses)
        ]
        return select(*truths).select_from(self.entity).where(self.has_key_among([key]))

    def select_due_occurrences(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        """Select the key and the occurrence columns of each given record whose condition still holds and whose due time has come.

        If the occurrence is the same as before the handler ran, the handler made no progress.
        """
        return select(*self.key_attributes, *self.spec.occurrence).where(
            *self._conditions_for_rows(self.has_key_among(wanted), self._come_of_one)
        )

    def select_holding_occurrences(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        """Select the key and the occurrence columns of each given record whose condition holds, whether or not its due time has come."""
        return select(*self.key_attributes, *self.spec.occurrence).where(
            *self._conditions_for_rows(self.has_key_among(wanted), self._condition_of_one)
        )

    def select_holding_keys(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        """Select the key of each given record whose condition holds, whether or not its due time has come. It is used for calls that have
        begun.
        """
        return select(*self.key_attributes).where(*self._conditions_for_rows(self.has_key_among(wanted), self._condition_of_one))

    def select_base_times(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        """Select the key and the base time (the due time without its constant duration) of these records. It is used for a due time that is
        an SQL expression.
        """
        assert self.timing is not None  # noqa: S101  # callers check that the reaction has a due time
        return select(*self.key_attributes, self.timing.base_time).where(self.has_key_among(wanted))

    def select_next_base_times(self, within: timedelta, most: int = 1, since: ColumnElement[datetime] | None = None) -> Select[Any]:
        """Select the base times of the `most` records that become due next, within this duration from now.

        since: A base time; records that became due after it are selected as well, even if they are due already.
        """
        assert self.timing is not None  # noqa: S101  # callers check that the reaction has a due time
        when = self.timing.is_due_within(within, since)
        return (
            select(self.timing.base_time_or_none.label("at"))
            .where(self.short_circuit_and(self.condition, when))
            .order_by(self.timing.base)
            .limit(most)
        )

    def _is_record_after_cursor(self, cursor: Place) -> ColumnElement[bool]:
        if self.timing is None:
            return self._has_key_after(cursor)
        return tuple_(*self.cursor_columns) > tuple_(
            self.timing.base_time_from_text(cursor[0]), *self._key_values_in_sql(self.key_in_cursor(cursor))
        )

    def _has_key_after(self, key: Sequence[Any]) -> ColumnElement[bool]:
        values = self._key_values_in_sql(key)
        if len(values) == 1:
            return self.key_attributes[0] > values[0]  # type: ignore[no-any-return]  # the attributes of a mapped class are Any
        return tuple_(*self.key_attributes) > tuple_(*values)

    def _key_values_in_sql(self, key: Sequence[Any]) -> list[Any]:
        return [
            _stored_key_value_in_sql(value.raw) if isinstance(value, NoValue) else bindparam(None, value, type_=column.type)
            for value, column in zip(key, self.mapper.primary_key, strict=True)
        ]

    # ---- attempts that keep a record from being taken --------------------------------------------------------------------------
    @cached_property
    def key_text_in_sql(self) -> ColumnElement[str] | None:
        """Return the SQL expression for the canonical text of the key; None if SQL cannot compute this text.

        It is used only to exclude rows early. The final decision is made in Python.
        """
        if len(self.mapper.primary_key) > 1:
            return None
        kind = self.mapper.primary_key[0].type
        if isinstance(kind, Integer) or (isinstance(kind, Uuid) and self.database.name == "postgresql"):
            return cast(self.key_attributes[0], Text)
        return self.key_attributes[0] if self._is_same_text_in_sql(kind) else None

    def _is_same_text_in_sql(self, kind: Any) -> bool:
        """Return whether a value of a column of this type has the same text in SQL and in Python."""
        return isinstance(kind, String) and not isinstance(kind, Enum) and not (self.database.locks_rows and in_list.is_blank_padded(kind))

    @cached_property
    def _occurrence_in_sql(self) -> ColumnElement[str] | None:
        """Return the SQL expression for the canonical text of the occurrence. None unless the occurrence is a single UtcDateTime column."""
        if len(self.spec.occurrence) != 1 or not isinstance(self.spec.occurrence[0].type, UtcDateTime):
            return None
        at: Any = self.spec.occurrence[0]
        if self.database.locks_rows:
            text: Any = func.to_char(func.timezone("UTC", at), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
            is_a_time = at.between(*_CALENDAR)
        else:
            text = func.replace(cast(at, Text), " ", "T").op("||")("Z")
            is_a_time = func.julianday(at).is_not(None)
        return case((is_a_time, text), else_="")  # if an occurrence cannot be read, its attempts store this text

    @cached_property
    def is_attempt_of_this_occurrence(self) -> ColumnElement[bool] | None:
        """Return the SQL condition that an attempt belongs to the record's present occurrence, as `is_same_occurrence` decides it in
        Python.

        None if SQL cannot express this.
        """
        if len(self.spec.occurrence) != 1:
            return None
        column, kind = self.spec.occurrence[0], self.spec.occurrence[0].type
        said = cast(column, Text) if isinstance(kind, Integer) else self._occurrence_in_sql
        if said is not None:
            return attempt.c.occurrence == func.coalesce(said, self.occurrence_text_of_values([None]))
        if not self._is_same_text_in_sql(kind):
            return None
        said = collate(column, "C" if self.database.locks_rows else "BINARY")  # compare the bytes, and not by the column's own collation
        text = case(
            (said.is_(None), self.occurrence_text_of_values([None])),
            (said == "", self.occurrence_text_of_values([""])),
            (said.regexp_match(keys.LIKE_EMPTY), literal(":") + said + literal(":")),
            else_=said,
        )
        formerly = func.coalesce(said, "")  # the text that older versions of groundstate wrote
        return or_(attempt.c.occurrence == text, attempt.c.occurrence == formerly)

    @cached_property
    def is_takeable(self) -> ColumnElement[bool]:
        """Return the SQL condition that a record is ready, and that no attempt prevents it from being taken. SQL cannot see all such
        attempts.
        """
        return self.ready if self.has_no_blocking_attempt is None else and_(self.ready, self.has_no_blocking_attempt)

    @property
    def is_outdated_baseline(self) -> ColumnElement[bool]:
        """Return the SQL condition that an attempt is a baseline (it marks a record that matched before the reaction was introduced) from a
        time when other columns made up the occurrence.
        """
        ending = begun_kind.baseline_json_suffix(self.spec.occurrence_columns)
        said_otherwise = and_(attempt.c.begun_with.is_not(None), not_(attempt.c.begun_with.endswith(ending, autoescape=True)))
        return and_(attempt.c.state == "held", attempt.c.why == BASELINE, said_otherwise)

    @cached_property
    def has_no_blocking_attempt(self) -> ColumnElement[bool] | None:
        """Return the SQL condition that no attempt prevents the record from being taken, as far as SQL can see it. None if SQL can see
        nothing of it.
        """
        written = self.key_text_in_sql
        if written is None:
            return None
        mine = select(1).where(attempt.c.app == self.spec.app, attempt.c.reaction == self.spec.name, attempt.c.record == written)
        if self.spec.occurrence:
            same = self._occurrence_in_sql
            others_too = or_(blocking if self.spec.repeats else keeps_own_reaction, self.is_outdated_baseline)
            mine = mine.where(others_too if same is None else or_(others_too, attempt.c.occurrence == same))
        if self.is_for_expired:
            mine = mine.where(attempt.c.state != "failed")  # a failed attempt waits for its retry, but a record that is too late does not
        clause = not_(mine.exists())
        if self.spec.done_column is None:
            others = select(1).where(attempt.c.blocks.in_(self.table_name_spellings), attempt.c.record == written, blocking)
            clause = and_(clause, not_(others.exists()))
        if self.spec.same_call and self.spec.done_column is None and not self.spec.repeats:
            made = and_(keeps_own_reaction, attempt.c.blocks.is_not(None))
            theirs = select(1).where(attempt.c.app == self.spec.app, attempt.c.reaction.in_(self.spec.same_call))
            clause = and_(clause, not_(theirs.where(attempt.c.record == written, made).exists()))
        return clause

    @cached_property
    def has_own_attempt(self) -> ColumnElement[bool] | None:
        """Return the SQL condition that this reaction has an attempt on the record, for the record's present occurrence or for all
        occurrences.

        None if SQL cannot express this.
        """
        written = self.key_text_in_sql
        if written is None:
            return None
        mine = select(1).where(attempt.c.app == self.spec.app, attempt.c.reaction == self.spec.name, attempt.c.record == written)
        if self.spec.occurrence:
            same, of_all = self._occurrence_in_sql, or_(blocking, self.is_outdated_baseline)
            mine = mine.where(of_all if same is None else or_(of_all, attempt.c.occurrence == same))
        return mine.exists()

    @cached_property
    def has_no_own_attempt(self) -> ColumnElement[bool]:
        """Return the SQL condition that no attempt of this reaction prevents a call for the record, as far as SQL can see it.

        It is used only for counts.
        """
        written = self.key_text_in_sql
        if written is None:
            return true()
        mine = select(1).where(attempt.c.app == self.spec.app, attempt.c.reaction == self.spec.name, attempt.c.record == written)
        return not_((mine.where(blocking) if self.spec.occurrence else mine).exists())


_PLAIN = frozenset({"column", "bindparam", "binary", "unary", "clauselist", "expression_clauselist", "grouping", "null", "true", "false"})


def _is_value_or_own_column(part: Any, own: set[Any]) -> bool:
    """Return whether this part of a clause is a value, an operator, or a column in `own`. False for a function, since it may read other
    rows.
    """
    return part.__visit_name__ in _PLAIN and (part.__visit_name__ != "column" or getattr(part, "table", None) in own)


def _split_conjunctions_reversed(parts: Iterable[ColumnElement[bool]]) -> list[ColumnElement[bool]]:
    """Return the parts in reverse order, with each and_(...) replaced by its own parts."""
    found: list[ColumnElement[bool]] = []
    for part in reversed(list(parts)):
        within = part.clauses if isinstance(part, BooleanClauseList) and part.operator is operators.and_ else None
        found += [part] if within is None else _split_conjunctions_reversed(within)
    return found


def _is_plain_comparison(clause: ColumnElement[bool]) -> bool:
    """Return whether this clause only compares columns with values, so that its evaluation cannot fail."""
    parts = list(visitors.iterate(clause))
    computes = any(isinstance(part, BinaryExpression) and not operators.is_comparison(part.operator) for part in parts)
    return not computes and all(part.__visit_name__ in _PLAIN for part in parts)


def _stored_key_value_in_sql(raw: object) -> ColumnElement[Any]:
    """Return the SQL for a stored key value that its column's type cannot convert, in a form that the database can compare."""
    return cast(literal(bytes(raw), LargeBinary()), Text()) if isinstance(raw, BytesOfText) else literal(raw)


_WANTED = "groundstate_wanted"
_APART = "groundstate_apart"
APART_MOST = 1_000  # rows: the most in `raising_keys`. If more rows fail, the condition itself is wrong, and the reaction waits
_CALENDAR = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))  # the first and the last time of Python's calendar
_AT_ONCE = (False, "joined", "selectin", "subquery", "immediate")  # values of `lazy` that load a relationship with its owner


def _loader_path(option: Any) -> tuple[Any, ...]:
    """Return the mappers and attributes along the path of a loader option, as a tuple. Empty if this version of SQLAlchemy does not expose
    the path.
    """
    return tuple(getattr(getattr(option, "path", None), "path", ()))


# SQL condition on an attempt: it prevents all other reactions from taking its record, since a call for the record may have been made.
blocking: ColumnElement[bool] = or_(attempt.c.state == "begun", attempt.c.unsure)
# SQL condition on an attempt: it prevents its own reaction from taking the record for another occurrence, since it is `blocking` or is
# held with an outcome. `find_blocking_attempt` in rules/blocking.py makes the final decision.
keeps_own_reaction: ColumnElement[bool] = or_(blocking, and_(attempt.c.state == "held", attempt.c.outcome.is_not(None)))


def condition_from_text(old: str) -> ColumnElement[bool]:
    """Return the SQL condition for a stored condition text, such as the condition that a person accepted earlier. The result is false where
    the text gives NULL.
    """
    return func.coalesce(literal_column(f"({old})"), not_(true()))


def sql_table_name(table: Any, database: Database) -> str:
    """Return a table's name as SQL, with its schema. A percent sign in the name is not doubled."""
    preparer: Any = database.engine.dialect.identifier_preparer
    translated = database.engine.get_execution_options().get("schema_translate_map") or {}
    schema = translated.get(table.schema, table.schema)
    said = str(preparer.format_table(table, use_schema=False))
    if schema is not None:
        said = f"{preparer.quote_schema(schema)}.{said}"
    return with_single_percents(database.engine.dialect, said)

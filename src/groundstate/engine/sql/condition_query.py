"""The SQL of one reaction on one database: it holds the parts from which the reaction's statements are built. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cached_property
from typing import Any

from sqlalchemy import Boolean, ColumnElement, and_, bindparam, or_
from sqlalchemy.orm import Mapper

from groundstate.engine.sql import user_filters
from groundstate.engine.sql.attempt_filters import AttemptFilters
from groundstate.engine.sql.condition_texts import ConditionTexts, condition_from_text
from groundstate.engine.sql.due_expression import Timing
from groundstate.engine.sql.evaluated_condition import EvaluatedCondition
from groundstate.engine.sql.occurrence_texts import OccurrenceTexts
from groundstate.engine.sql.pass_cursors import PassCursors
from groundstate.engine.sql.record_keys import PrimaryKey, RecordKeys
from groundstate.engine.sql.record_loading import RecordLoading
from groundstate.engine.sql.record_selects import RecordSelects
from groundstate.engine.sql.tables_read import ConditionTables
from groundstate.rules import constant_clauses, sqlite_pitfalls
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database
from groundstate.values.errors import DeclarationError

# The most rows in `raising_keys`. If the evaluation fails for more rows, the condition itself is wrong, and no row is carried out.
APART_MOST = 1_000


class ConditionQuery:
    """The SQL of one reaction's condition, in parts. Statements are built once and cached by SQLAlchemy.

    keys: how records are found by their keys. cursors: the order of a pass. occurrences: the texts of occurrences. attempts: conditions on
    attempts. loading: how records are loaded. tables: which tables the clauses read. texts: the condition as text. timing: the due time;
    None if the reaction has none. selects: the SELECTs over records; they and `condition` are replaced whenever the order of evaluation or
    the narrowing changes, so read them from the query each time.

    In these parts, the name of an SQL condition begins with `is_` or `has_`, the name of a SELECT with `select_`, and the name of a list of
    WHERE clauses with `clauses_`. The name of a Python bool begins with another verb, such as `reads_` or `may_`.

    moment: A time that is used instead of the database's clock, to find what would be due at that time.

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
        filtered = user_filters.filter_clauses(database, spec)
        self.filter_raised = filtered.raised  # the error of the user's ORM filter; the reaction is not carried out if it is set
        self.user_filter_conditions = filtered.record_conditions
        self.timing = None if spec.due is None else Timing(spec, database, moment)
        self.keys = RecordKeys(spec.mapper, database, filtered.record_conditions)
        self.cursors = PassCursors(self.keys, self.timing)
        self.occurrences = OccurrenceTexts(spec)
        self.attempts = AttemptFilters(spec, database, self.keys, self.occurrences)
        self.loading = RecordLoading(spec, database)
        self.tables = ConditionTables(spec, database, filtered, self.loading)
        self.texts = ConditionTexts(spec, database, filtered, self.timing)
        self.triggers_may_change_row = False  # whether the table has triggers; set at the app's start
        self.raising_keys: frozenset[PrimaryKey] = frozenset()  # keys of the rows for which the evaluation failed; these rows are excluded
        self.narrowed = False  # whether records must also meet the condition given to `narrow_by`
        self._narrowing: tuple[ColumnElement[bool], ...] = ()
        self._clauses = filtered.all_conditions
        self.version = 1  # the version of the SQL: whenever it changes, cached statements are built again
        self.selects = self._make_selects(in_turn=False)

    @property
    def condition(self) -> EvaluatedCondition:
        """Return the condition in its present order of evaluation."""
        return self.selects.condition

    @property
    def in_turn(self) -> bool:
        """Return whether clauses are evaluated one after another, since the evaluation failed for a row."""
        return self.condition.in_turn

    @property
    def is_takeable(self) -> ColumnElement[bool]:
        """Return the SQL condition that a record is ready, and that no attempt prevents it from being taken. SQL cannot see all such
        attempts.
        """
        unblocked = self.attempts.has_no_blocking_attempt
        return self.condition.is_ready if unblocked is None else and_(self.condition.is_ready, unblocked)

    @cached_property
    def query_for_expired(self) -> ConditionQuery | None:
        """Return the query for the reaction's `expired` handler, which gets the records that are too late. None if records of this reaction
        are never too late.
        """
        if self.spec.due is None or self.spec.due.valid_for is None or self.spec.due.expires:
            return None
        return ConditionQuery(self.spec.expired_variant, self.database, self.moment)

    @property
    def takes_expired_records(self) -> bool:
        """Return whether this query is the one for the reaction's `expired` handler, which gets the records that are too late."""
        return self.spec.due is not None and self.spec.due.expires

    @property
    def demanded_constants(self) -> Mapping[str, Any]:
        """Return a dict from attribute name to the value that a clause of the form `column == constant` demands. Empty if a trigger may
        change the row.
        """
        return {} if self.triggers_may_change_row else self._constants_by_attribute

    @cached_property
    def _constants_by_attribute(self) -> Mapping[str, Any]:
        return constant_clauses.constants_by_attribute(self.spec.clauses, self.mapper)

    @property
    def other_tables_read(self) -> frozenset[str] | None:
        """Return the full names of the tables from which the condition reads rows besides the record's own row. None if the condition may
        read any table.
        """
        return None if self.narrowed else self.tables.other_tables_read_by_clauses  # the SQL given to `narrow_by` may read any table

    # ---- the order of evaluation ---------------------------------------------------------------------------------------------------
    def _make_selects(self, *, in_turn: bool) -> RecordSelects:
        """Return the statements for this order of evaluation. All that depends on the order is cached in the returned object alone."""
        raising = self._is_raising_row if in_turn else None
        condition = EvaluatedCondition(self._clauses, self.timing, self._narrowing, raising)
        return RecordSelects(
            spec=self.spec,
            condition=condition,
            timing=self.timing,
            keys=self.keys,
            cursors=self.cursors,
            attempts=self.attempts,
            loading=self.loading,
            tables=self.tables,
        )

    def _replace_selects(self, *, in_turn: bool) -> None:
        self.selects = self._make_selects(in_turn=in_turn)
        self.version += 1

    @cached_property
    def _is_raising_row(self) -> ColumnElement[bool]:
        """Return the SQL condition that selects the records for which evaluating the reaction's condition raises an error.

        The keys of these records are a parameter, which is read from `raising_keys` whenever the statement is executed.
        """
        return self.keys.has_key_among_present(lambda: list(self.raising_keys))

    def evaluate_clauses_in_turn(self, apart: Iterable[PrimaryKey]) -> None:
        """Evaluate the clauses one after another from now on. Call it after the evaluation failed for some row.

        apart: The keys of rows for which the evaluation fails. The clauses are not evaluated for these rows at all.
        """
        self.raising_keys = frozenset(apart)
        if not self.in_turn:
            self._replace_selects(in_turn=True)
        if self.query_for_expired is not None:
            self.query_for_expired.evaluate_clauses_in_turn(self.raising_keys)

    def evaluate_clauses_in_any_order(self) -> None:
        """Let the database choose the order of evaluation again. Call it when the evaluation fails for no row any more."""
        self.raising_keys = frozenset()
        self._replace_selects(in_turn=False)
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

    # ---- narrowing -------------------------------------------------------------------------------------------------------------------
    def narrow_by(self, other: str) -> None:
        """Until `end_narrowing` is called, take only records that also meet the condition `other`, an SQL text. Call it before any record
        is taken.
        """
        self.narrowed = True
        whole = bindparam("groundstate_whole", type_=Boolean(), callable_=lambda: not self.narrowed, unique=True)
        self._narrowing = (*self._narrowing, or_(whole, condition_from_text(other)))
        self._replace_selects(in_turn=self.in_turn)
        if self.query_for_expired is not None:
            self.query_for_expired.narrow_by(other)

    def end_narrowing(self) -> None:
        """Undo `narrow_by`: take all records again that the reaction's own condition matches."""
        self.narrowed = False
        if self.query_for_expired is not None:
            self.query_for_expired.end_narrowing()

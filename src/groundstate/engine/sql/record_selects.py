"""The SELECTs over the records of one reaction for one order of evaluation of its condition.

After a record was locked, its condition is evaluated again by a separate statement. The locking statement itself does not suffice: after
waiting for a lock, PostgreSQL rechecks only the locked row, and subqueries keep the old snapshot (hazard 17, rules.md 14).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from sqlalchemy import ColumnElement, Select, func, not_, select, true

from groundstate.engine.sql.attempt_filters import AttemptFilters
from groundstate.engine.sql.due_expression import Timing
from groundstate.engine.sql.evaluated_condition import EvaluatedCondition
from groundstate.engine.sql.pass_cursors import PassCursor, PassCursors
from groundstate.engine.sql.record_keys import PrimaryKey, RecordKeys
from groundstate.engine.sql.record_loading import RecordLoading
from groundstate.engine.sql.tables_read import ConditionTables
from groundstate.rules.specs import ReactionSpec


@dataclass(frozen=True, eq=False)
class RecordSelects:
    """The SELECTs over one reaction's records. They are built from `condition`, which never changes, so that they may be cached.

    When the order of evaluation changes, `ConditionQuery` makes new RecordSelects. Keep no reference to them beyond one use of the query.
    """

    spec: ReactionSpec
    condition: EvaluatedCondition
    timing: Timing | None
    keys: RecordKeys
    cursors: PassCursors
    attempts: AttemptFilters
    loading: RecordLoading
    tables: ConditionTables

    @property
    def reads_only_own_row(self) -> bool:
        """Return whether the condition reads nothing but the record's own row, so that one statement may lock, evaluate and load the
        record.

        After a wait for the lock, PostgreSQL evaluates the newest version of the locked row, but all other rows as they were before the
        wait.
        """
        return not self.condition.was_narrowed and self.tables.clauses_read_only_own_row  # a narrowing condition may read any row

    # ---- pages of a pass -------------------------------------------------------------------------------------------------------
    def select_cursors_after(self, cursor: PassCursor | None, limit: int, *, crowded: bool, newest: bool = False) -> Select[Any]:
        """Select the cursors of the ready records after this cursor, in the order of a pass. `PassCursors.key_in_cursor` returns the key
        from such a cursor.

        crowded: Whether SQL excludes records that have attempts. This saves time if very many such records would be read again in each
            pass.
        """
        columns = (*self.cursors.due_time_for_cursor, *self.keys.key_columns_as_stored)
        return self._restrict_to_page(select(*columns).where(self.condition.is_ready), cursor, limit, crowded=crowded, newest=newest)

    def select_records_after(self, cursor: PassCursor | None, limit: int, *, crowded: bool) -> Select[Any]:
        """Select and lock the ready records after this cursor, in the order of a pass.

        Call it only for an embedded store (SQLite), whose transaction is the lock, or if `reads_only_own_row`.
        """
        beside = self.keys.key_columns_as_stored if self.keys.may_store_other_key_forms else ()
        columns = (self.spec.record, *self.cursors.due_time_for_cursor, *beside)
        statement = self.loading.with_fresh_records(select(*columns).where(self.condition.is_ready))
        return self._with_lock_if_row_decides(self._restrict_to_page(statement, cursor, limit, crowded=crowded))

    def _restrict_to_page(
        self, statement: Select[Any], cursor: PassCursor | None, limit: int, *, crowded: bool, newest: bool = False
    ) -> Select[Any]:
        """Return the statement with the condition, the order and the limit for one page of a pass."""
        if crowded and self.attempts.has_no_blocking_attempt is not None:
            statement = statement.where(self.attempts.has_no_blocking_attempt)
        if cursor is not None:
            statement = statement.where(*self.condition.clauses_checked_after_ready(self.cursors.is_record_after_cursor(cursor)))
        order = [column.desc() if newest else column for column in self.cursors.cursor_columns]
        return statement.order_by(*order).limit(limit)

    def _with_lock_if_row_decides(self, statement: Select[Any]) -> Select[Any]:
        """Return the statement with a row lock if the condition reads only the record's own row; otherwise return the statement
        unchanged.
        """
        return self.loading.with_row_lock(statement) if self.reads_only_own_row else statement

    # ---- records whose keys are passed by `RecordKeys.key_parameters` -----------------------------------------------------------
    @cached_property
    def select_given_ready_records(self) -> Select[Any]:
        """Load each given record that is ready."""
        ready = self.condition.clauses_for_ready(self.keys.is_given_record)
        return self.loading.with_fresh_records(select(self.spec.record).where(*ready))

    @cached_property
    def select_given_ready_keys(self) -> Select[Any]:
        """Select the key of each given record that is ready, without locks."""
        return select(*self.keys.key_attributes).where(*self.condition.clauses_for_ready(self.keys.is_given_record))

    @cached_property
    def select_given_records_with_truth(self) -> Select[Any]:
        """Load the given records, each with a second column that says whether the record's condition holds now.

        If `reads_only_own_row`, the records are locked, and records that other transactions have locked are skipped.
        """
        record: Any = self.spec.record
        holds = func.coalesce(self.condition.holds_for_given_row, not_(true())).label("groundstate_holds")
        loaded = self.loading.with_fresh_records(select(record, holds).where(self.keys.is_given_record))
        return self._with_lock_if_row_decides(loaded)

    # ---- some records by their keys --------------------------------------------------------------------------------------------
    def select_clause_truths(self, key: PrimaryKey) -> Select[Any]:
        """Select one row with one boolean per clause: whether the clause holds for this record."""
        truths: list[Any] = [
            func.coalesce(clause, not_(true())).label(f"clause_{number}") for number, clause in enumerate(self.spec.clauses)
        ]
        return select(*truths).select_from(self.spec.record).where(self.keys.has_key_among([key]))

    def select_due_occurrences(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        """Select the key and the occurrence columns of each given record whose condition still holds and whose due time has come.

        If the occurrence is the same as before the handler ran, the handler made no progress.
        """
        due = self.condition.clauses_for_due(self.keys.has_key_among(wanted))
        return select(*self.keys.key_attributes, *self.spec.occurrence).where(*due)

    def select_holding_occurrences(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        """Select the key and the occurrence columns of each given record whose condition holds, whether or not its due time has come."""
        holding = self.condition.clauses_for_holding(self.keys.has_key_among(wanted))
        return select(*self.keys.key_attributes, *self.spec.occurrence).where(*holding)

    def select_holding_keys(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        """Select the key of each given record whose condition holds, whether or not its due time has come. It is used for calls that have
        begun.
        """
        return select(*self.keys.key_attributes).where(*self.condition.clauses_for_holding(self.keys.has_key_among(wanted)))

    # ---- due times -------------------------------------------------------------------------------------------------------------
    def select_base_times(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        """Select the key and the base time (the due time without its constant duration) of these records. It is used for a due time that is
        an SQL expression.
        """
        assert self.timing is not None  # noqa: S101  # callers check that the reaction has a due time
        return select(*self.keys.key_attributes, self.timing.base_time).where(self.keys.has_key_among(wanted))

    def select_next_base_times(self, within: timedelta, most: int = 1, since: ColumnElement[datetime] | None = None) -> Select[Any]:
        """Select the base times (due times without their constant duration) of the `most` records that become due next, within this
        duration from now.

        since: A base time; records that became due after it are selected as well, even if they are due already.
        """
        assert self.timing is not None  # noqa: S101  # callers check that the reaction has a due time
        when = self.timing.is_due_within(within, since)
        return (
            select(self.timing.base_time_or_none.label("at"))
            .where(self.condition.short_circuit_and(self.condition.holds, when))
            .order_by(self.timing.base)
            .limit(most)
        )

    # ---- probes ----------------------------------------------------------------------------------------------------------------
    @cached_property
    def probe_statements(self) -> list[Select[Any]]:
        """Return statements that select no rows, but name every column that is needed to load a record and to evaluate its condition."""
        own = self.loading.with_fresh_records(select(self.spec.record).where(self.condition.is_ready)).limit(0)
        return [own, *(select(mapper.class_).limit(0) for mapper in self.loading.mappers_loaded_along)]

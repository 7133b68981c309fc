"""The condition of one reaction as a text: for comparison with the condition that a person accepted, and for people to read."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from sqlalchemy import ColumnElement, Dialect, FromClause, and_, func, literal_column, not_, true

from groundstate.engine.sql.due_expression import Timing
from groundstate.engine.sql.sql_text import sql_for_people, sql_text
from groundstate.engine.sql.user_filters import FilteredClauses
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database


class ConditionTexts:
    """Writes the condition of one reaction as SQL with all values, whatever the order in which its clauses are evaluated now."""

    def __init__(self, spec: ReactionSpec, database: Database, filtered: FilteredClauses, timing: Timing | None) -> None:
        self._spec = spec
        self._database = database
        self._filtered = filtered
        self._timing = timing

    @cached_property
    def condition_text(self) -> str:
        """Return the condition and its due time as SQL with all values written out. It is compared with the condition that a person
        accepted.
        """
        clauses = self._declared_clauses
        come = clauses if self._spec.due is None else and_(clauses, Timing(self._spec, self._database).is_due)
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
        return and_(true(), *self._spec.clauses)

    @cached_property
    def condition_for_people(self) -> str:
        """Return the condition as a text for people: the clauses as SQL, and the due time in words."""
        if self._timing is None:
            return self.sql_for_people(and_(true(), *self._filtered.all_conditions))
        clauses = f"{self.sql_for_people(and_(*self._spec.clauses))}, " if self._spec.clauses else ""
        return f"{clauses}due {self._timing.in_words}"

    def sql_for_people(self, condition: ColumnElement[Any]) -> str:
        """Return any condition on the reaction's record as SQL for people."""
        return self._render_condition_as_sql(sql_for_people, condition)

    def _render_condition_as_sql(self, as_: Callable[[Dialect, FromClause, ColumnElement[Any]], str], condition: ColumnElement[Any]) -> str:
        return as_(self._database.engine.dialect, self._spec.mapper.selectable, condition)


def condition_from_text(old: str) -> ColumnElement[bool]:
    """Return the SQL condition for a stored condition text, such as the condition that a person accepted earlier. The result is false where
    the text gives NULL.
    """
    return func.coalesce(literal_column(f"({old})"), not_(true()))

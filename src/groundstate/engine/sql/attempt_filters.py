"""SQL conditions on the attempts of one reaction's records: which attempt keeps a record from being taken, as far as SQL can see it.

They exclude rows early. `find_blocking_attempt` in rules/blocking.py makes the final decision.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, Text, and_, case, cast, collate, func, literal, not_, or_, select, true

from groundstate.engine.sql.occurrence_texts import OccurrenceTexts
from groundstate.engine.sql.record_keys import RecordKeys, stores_canonical_text
from groundstate.engine.sql.table_spelling import table_name_spellings
from groundstate.rules import begun_kind
from groundstate.rules.blocking import BASELINE
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database
from groundstate.store.tables import UtcDateTime, attempt
from groundstate.values import keys

# SQL condition on an attempt: it prevents all other reactions from taking its record, since a call for the record may have been made.
is_blocking: ColumnElement[bool] = or_(attempt.c.state == "begun", attempt.c.unsure)
# SQL condition on an attempt: it prevents its own reaction from taking the record for another occurrence. This is so if the attempt is
# blocking, or if it is held with an outcome.
is_blocking_own_reaction: ColumnElement[bool] = or_(is_blocking, and_(attempt.c.state == "held", attempt.c.outcome.is_not(None)))

_CALENDAR = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))  # the first and the last time of Python's calendar


class AttemptFilters:
    """The SQL conditions that select one reaction's records by the attempts on them, and the texts that the reaction's attempts store."""

    def __init__(self, spec: ReactionSpec, database: Database, keys_: RecordKeys, occurrences: OccurrenceTexts) -> None:
        self._spec = spec
        self._database = database
        self._keys = keys_
        self._occurrences = occurrences

    # ---- what attempts store ---------------------------------------------------------------------------------------------------
    @cached_property
    def begun_with_text(self) -> str | None:
        """Return the text about the reaction's call that its attempts store in their column `begun_with`; None if the reaction makes no
        call.
        """
        own = self._spec.kind
        return None if own is None else begun_kind.kind_as_json(own)

    @cached_property
    def table_name_spellings(self) -> tuple[str, ...]:
        """Return all spellings of the record's table name that attempts may have in their column `blocks`."""
        return table_name_spellings(self._database, self._spec.mapper.base_mapper.local_table)

    # ---- conditions on an attempt ----------------------------------------------------------------------------------------------
    @cached_property
    def _occurrence_in_sql(self) -> ColumnElement[str] | None:
        """Return the SQL expression for the canonical text of the occurrence.

        Return None if the occurrence is anything else than a single UtcDateTime column.
        """
        if len(self._spec.occurrence) != 1 or not isinstance(self._spec.occurrence[0].type, UtcDateTime):
            return None
        at: Any = self._spec.occurrence[0]
        if self._database.locks_rows:
            text: Any = func.to_char(func.timezone("UTC", at), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
            is_a_time = at.between(*_CALENDAR)
        else:
            text = func.replace(cast(at, Text), " ", "T").op("||")("Z")
            is_a_time = func.julianday(at).is_not(None)
        return case((is_a_time, text), else_="")  # if an occurrence cannot be read, its attempts store this text

    @cached_property
    def is_attempt_of_this_occurrence(self) -> ColumnElement[bool] | None:
        """Return the SQL condition that an attempt belongs to the record's present occurrence, as `OccurrenceTexts.means_occurrence`
        decides it in Python.

        None if SQL cannot express this.
        """
        if len(self._spec.occurrence) != 1:
            return None
        column, kind = self._spec.occurrence[0], self._spec.occurrence[0].type
        said = cast(column, Text) if isinstance(kind, Integer) else self._occurrence_in_sql
        if said is not None:
            return attempt.c.occurrence == func.coalesce(said, self._occurrences.occurrence_text_of_values([None]))
        if not stores_canonical_text(self._database, kind):
            return None
        said = collate(column, "C" if self._database.locks_rows else "BINARY")  # compare by bytes, not by the column's own collation
        text = case(
            (said.is_(None), self._occurrences.occurrence_text_of_values([None])),
            (said == "", self._occurrences.occurrence_text_of_values([""])),
            (said.regexp_match(keys.LIKE_EMPTY), literal(":") + said + literal(":")),
            else_=said,
        )
        formerly = func.coalesce(said, "")  # the text that older versions of groundstate wrote
        return or_(attempt.c.occurrence == text, attempt.c.occurrence == formerly)

    @property
    def is_outdated_baseline(self) -> ColumnElement[bool]:
        """Return the SQL condition that an attempt is an outdated baseline: other columns made up the occurrence when it was written.

        A baseline marks a record that matched before the reaction was introduced.
        """
        ending = begun_kind.json_suffix_of_baselines(self._spec.occurrence_columns)
        said_otherwise = and_(attempt.c.begun_with.is_not(None), not_(attempt.c.begun_with.endswith(ending, autoescape=True)))
        return and_(attempt.c.state == "held", attempt.c.why == BASELINE, said_otherwise)

    # ---- conditions on a record ------------------------------------------------------------------------------------------------
    @cached_property
    def has_no_blocking_attempt(self) -> ColumnElement[bool] | None:
        """Return the SQL condition that no attempt prevents the record from being taken, as far as SQL can see it. None if SQL cannot
        compute the text of the record's key.
        """
        written = self._keys.key_text_in_sql
        if written is None:
            return None
        mine = self._select_own_attempts(written)
        if self._spec.occurrence:
            same = self._occurrence_in_sql
            others_too = or_(is_blocking if self._spec.repeats else is_blocking_own_reaction, self.is_outdated_baseline)
            mine = mine.where(others_too if same is None else or_(others_too, attempt.c.occurrence == same))
        if self._spec.due is not None and self._spec.due.expires:
            # a failed attempt makes its record wait for the retry, but a record that has expired does not wait
            mine = mine.where(attempt.c.state != "failed")
        clause = not_(mine.exists())
        if self._spec.done_column is None:
            others = select(1).where(attempt.c.blocks.in_(self.table_name_spellings), attempt.c.record == written, is_blocking)
            clause = and_(clause, not_(others.exists()))
        if self._spec.same_call and self._spec.done_column is None and not self._spec.repeats:
            made = and_(is_blocking_own_reaction, attempt.c.blocks.is_not(None))
            theirs = select(1).where(attempt.c.app == self._spec.app, attempt.c.reaction.in_(self._spec.same_call))
            clause = and_(clause, not_(theirs.where(attempt.c.record == written, made).exists()))
        return clause

    @cached_property
    def has_own_attempt(self) -> ColumnElement[bool] | None:
        """Return the SQL condition that this reaction has an attempt on the record, for the record's present occurrence or for all
        occurrences.

        None if SQL cannot express this.
        """
        written = self._keys.key_text_in_sql
        if written is None:
            return None
        mine = self._select_own_attempts(written)
        if self._spec.occurrence:
            same, of_all = self._occurrence_in_sql, or_(is_blocking, self.is_outdated_baseline)
            mine = mine.where(of_all if same is None else or_(of_all, attempt.c.occurrence == same))
        return mine.exists()

    @cached_property
    def has_no_own_attempt(self) -> ColumnElement[bool]:
        """Return the SQL condition that no attempt of this reaction prevents a call for the record, as far as SQL can see it.

        It is used only for counts.
        """
        written = self._keys.key_text_in_sql
        if written is None:
            return true()
        mine = self._select_own_attempts(written)
        return not_((mine.where(is_blocking) if self._spec.occurrence else mine).exists())

    def _select_own_attempts(self, key_text: ColumnElement[str]) -> Select[Any]:
        """Select the number 1 for each attempt of this reaction on the record."""
        return select(1).where(attempt.c.app == self._spec.app, attempt.c.reaction == self._spec.name, attempt.c.record == key_text)

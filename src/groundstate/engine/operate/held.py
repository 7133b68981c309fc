"""Lists held attempts for a person: the reason, the outcome, the idempotency key, and what can be done. It runs only SELECTs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, select

from groundstate.engine.rows import attempts, baselines, outcome_json, reaction_registry
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.rows.corrupt_rows import fetch_attempts_despite_corrupt_rows
from groundstate.engine.sql import db_errors
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt, State, Terms
from groundstate.rules.policy import Retry
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database
from groundstate.store.tables import attempt as table
from groundstate.values import keys
from groundstate.values.answers import IdempotencyKey

PAGE = 50  # the most held attempts on one page
ASKED_AT_ONCE = 1000  # the most records for which one statement checks whether the condition holds
Cursor = tuple[str, str, str]  # reaction, record and occurrence of the last attempt on a page


@dataclass(frozen=True)
class Filter:
    """Selects held attempts by their fields. A field that is None does not narrow the selection.

    Baselines are held attempts too: each marks a row that was left out when its reaction was new. If `baseline` is True, the filter selects
    only baselines. If it is False, the filter selects no baselines.
    """

    reaction: str | None = None
    record: str | None = None
    unsure: bool | None = None
    with_outcome: bool | None = None
    why: str | None = None  # a part of the reason or of the error text; upper and lower case are not distinguished
    baseline: bool = False


@dataclass(frozen=True)
class Held:
    """One held attempt, with what a person needs to settle it.

    Attributes:
        unsure: Whether a call may have been made whose result is not known.
        key: The idempotency key with which the calls are made; None if the reaction makes no call.
        absent_from: The earliest time at which a person may settle it as absent (no call was made); None if it is not `unsure`.
        can: The actions that are possible now: 'retry', 'settle --absent', 'settle --outcome' and 'forget'.
    """

    reaction: str
    table: str | None
    record: str
    occurrence: str
    why: str
    error: str | None
    unsure: bool
    outcome: str | None
    key: IdempotencyKey | None
    since: datetime
    calls: int
    failures: int
    absent_from: datetime | None
    can: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """One page of held attempts. `total` is the number of attempts that the filter selects on all pages, and `baselines` the number of rows
    that were left out when their reaction was new.

    `left` says whether a further page follows. To read the further page, pass `more` to `read_held_page` as `after`. On the last page,
    `more` is None.
    """

    held: list[Held] = field(default_factory=list)
    total: int = 0
    baselines: int = 0
    more: Cursor | None = None
    left: bool = False


def read_held_page(
    app: str,
    database: Database,
    declared: Mapping[str, ConditionQuery | ScheduleSpec],
    which: Filter | None = None,
    *,
    after: Cursor | None = None,
    limit: int = PAGE,
) -> Page:
    """Return one page of an app's held attempts in one database, ordered by reaction, record and occurrence.

    To read the page that follows another page, pass the other page's `more` as `after`. For the first page, `after` is None.
    """
    wanted = which or Filter()
    where = _clauses_of_filter(app, wanted)
    order = (table.c.reaction, table.c.record, table.c.occurrence)
    statement = attempts.select_attempts(*where).order_by(*order).limit(limit + 1)
    if after is not None:
        statement = statement.where(attempts.rows_after_cursor(order, after))
    with database.reading() as connection:
        names = {known.name: known.key_name for known in reaction_registry.read_known_reactions(connection, app).values()}
        now = connection.execute(select(database.now())).scalar_one()
        found = fetch_attempts_despite_corrupt_rows(database, connection, statement)
        total = _count_attempts(connection, where)
        mine = [table.c.app == app, table.c.state == State.HELD.value, table.c.why == reaction_registry.BASELINE]
        baselines = _count_attempts(connection, mine)
        holding = _attempts_whose_condition_holds(connection, declared, found[:limit])
    shown = [_describe_held(one, declared.get(one.reaction), names, now, holds=one.identity in holding) for one in found[:limit]]
    left = len(found) > limit
    last = shown[-1] if shown and left else None
    return Page(shown, total, baselines, (last.reaction, last.record, last.occurrence) if last else None, left)


def _count_attempts(connection: Connection, where: list[ColumnElement[bool]]) -> int:
    return int(connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one())


def _clauses_of_filter(app: str, which: Filter) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = [table.c.app == app, attempts.is_held]
    where.append(
        table.c.why == reaction_registry.BASELINE if which.baseline else func.coalesce(table.c.why, "") != reaction_registry.BASELINE
    )
    if which.reaction is not None:
        where.append(table.c.reaction == which.reaction)
    if which.record is not None:
        where.append(table.c.record == which.record)
    if which.unsure is not None:
        where.append(table.c.unsure.is_(which.unsure))
    if which.with_outcome is not None:
        where.append(table.c.outcome.is_not(None) if which.with_outcome else table.c.outcome.is_(None))
    if which.why is not None:
        words = func.coalesce(table.c.why, "") + " " + func.coalesce(table.c.error, "")
        where.append(func.lower(words).contains(which.why.lower(), autoescape=True))
    return where


def _attempts_whose_condition_holds(
    connection: Connection, declared: Mapping[str, ConditionQuery | ScheduleSpec], found: Sequence[Attempt]
) -> set[Identity]:
    """Return the identities of the attempts whose record still matches the condition with the same occurrence. If such an attempt were
    deleted, a new call would be made.

    If the condition cannot be checked for an attempt, the attempt is included too.
    """
    some: dict[str, list[Attempt]] = {}
    for one in found:
        some.setdefault(one.reaction, []).append(one)
    holding: set[Identity] = set()
    for name, mine in some.items():
        query = declared.get(name)
        if not isinstance(query, ConditionQuery):
            continue  # a schedule has no condition, and the condition of an undeclared reaction is not known
        try:
            with connection.begin_nested():
                now = dict(_read_current_occurrences(connection, query, mine))
        except Exception as error:
            if not db_errors.is_fault_of_statement(error):
                raise
            now = {}
            holding.update(one.identity for one in mine)  # the table or a row cannot be read, so the condition may hold
        holding.update(
            one.identity for one in mine if one.record in now and query.occurrences.means_occurrence(one.occurrence, now[one.record])
        )
        holding |= baselines.baselines_still_holding(connection, query, mine)
    return holding


def _read_current_occurrences(connection: Connection, query: ConditionQuery, found: Sequence[Attempt]) -> Iterator[tuple[str, str]]:
    """Yield the pair (record, its present occurrence), both as text, for each record of these attempts that matches the condition."""
    wanted = [key for text in {one.record for one in found} if (key := query.keys.key_from_text_or_none(text)) is not None]
    size = len(query.keys.key_attributes)
    for first in range(0, len(wanted), ASKED_AT_ONCE):
        for row in connection.execute(query.selects.select_holding_occurrences(wanted[first : first + ASKED_AT_ONCE])):
            yield query.keys.record_text(tuple(row[:size])), query.occurrences.occurrence_text_of_values(tuple(row[size:]))


def _describe_held(
    one: Attempt, declared: ConditionQuery | ScheduleSpec | None, names: Mapping[str, str], now: datetime, *, holds: bool
) -> Held:
    query = declared if isinstance(declared, ConditionQuery) else None
    spec = query.spec if query is not None else declared
    terms = spec.terms if isinstance(spec, ReactionSpec | ScheduleSpec) else Terms(policy=None, retry=Retry())
    calls = declared is None or (query is not None and query.spec.call is not None)
    return Held(
        reaction=one.reaction,
        table=query.spec.table_name if query is not None else one.blocks,
        record=one.record,
        occurrence=one.occurrence,
        why=one.why or "",
        error=one.error,
        unsure=one.unsure,
        outcome=one.outcome,
        key=keys.call_key(one.app, names.get(one.reaction, one.reaction), one.record, one.occurrence) if calls else None,
        since=one.since,
        calls=one.call_no,
        failures=one.failures,
        absent_from=one.deadline + terms.settle_after if one.unsure else None,
        can=_possible_actions(one, terms, now, declared=declared is not None, holds=holds),
    )


def _possible_actions(one: Attempt, terms: Terms, now: datetime, *, declared: bool, holds: bool) -> tuple[str, ...]:
    """Return which of 'retry', 'settle --absent', 'settle --outcome' and 'forget' the rules in rules/attempt.py allow now."""
    can, facts = [], rules.Facts(exists=holds, holds=holds)
    as_text = one.outcome is not None and outcome_json.is_text_only(outcome_json.first_and_rest(one.outcome)[0])
    if declared and not as_text and not isinstance(rules.apply_retry_command(one, terms, now), rules.Refuse):
        can.append("retry")
    if not isinstance(rules.apply_settle_absent_command(one, terms, facts, now), rules.Refuse):
        can.append("settle --absent")
    if declared and not isinstance(rules.apply_settle_outcome_command(one, terms, now), rules.Refuse):
        can.append("settle --outcome")
    if not isinstance(rules.apply_forget_command(one, terms, facts, now), rules.Refuse):
        can.append("forget")
    return tuple(can)

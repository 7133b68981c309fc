"""What is held, listed for a person: why, with what, under which key at the provider, and what can be done. SELECTs only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine import attempts, baselines, outcomes, registry, trouble
from groundstate.engine.attempts import Identity
from groundstate.engine.illegible import attempts_as_they_stand
from groundstate.engine.question import Question
from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt, State, Terms
from groundstate.rules.policy import Retry
from groundstate.rules.reaction import ReactionSpec
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database
from groundstate.store.tables import attempt as table
from groundstate.values import keys
from groundstate.values.answers import Key

PAGE = 50
ASKED_AT_ONCE = 1000  # records of one reaction, of which it is asked whether its condition holds
Cursor = tuple[str, str, str]  # reaction, record, occurrence of the last one that was shown


@dataclass(frozen=True)
class Filter:
    """Which held attempts. None means all; `baseline`: the rows that were left out when a reaction was new, and nothing else."""

    reaction: str | None = None
    record: str | None = None
    unsure: bool | None = None
    with_outcome: bool | None = None
    why: str | None = None  # a part of its reason or its error, whatever the case
    baseline: bool = False


@dataclass(frozen=True)
class Held:
    """One held attempt.

    key: under which its calls are known at the provider; None where it makes no call. absent_from: when it may be settled as absent.
    can: what is possible now, of retry, settle --absent, settle --outcome and forget (where its condition holds no longer).
    """

    reaction: str
    table: str | None
    record: str
    occurrence: str
    why: str
    error: str | None
    unsure: bool
    outcome: str | None
    key: Key | None
    since: datetime
    calls: int
    failures: int
    absent_from: datetime | None
    can: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """Some held attempts; `total` of them match. `left`: whether some come after these, which begin after `more` where any was shown.

    baselines: rows that are left out as baseline.
    """

    held: list[Held] = field(default_factory=list)
    total: int = 0
    baselines: int = 0
    more: Cursor | None = None
    left: bool = False


def held(  # a store, what is wanted of it, and which page
    app: str,
    database: Database,
    declared: Mapping[str, Question | ScheduleSpec],
    which: Filter | None = None,
    *,
    after: Cursor | None = None,
    limit: int = PAGE,
) -> Page:
    """Held attempts of an app in one store, by reaction, record and occurrence."""
    wanted = which or Filter()
    where = _where(app, wanted)
    order = (table.c.reaction, table.c.record, table.c.occurrence)
    statement = attempts.rows(*where).order_by(*order).limit(limit + 1)
    if after is not None:
        statement = statement.where(attempts.after(order, after))
    with database.reading() as connection:
        names = {known.name: known.key_name for known in registry.known(connection, app).values()}
        now = connection.execute(select(database.now())).scalar_one()
        found = attempts_as_they_stand(database, connection, statement)
        total = _count(connection, where)
        mine = [table.c.app == app, table.c.state == State.HELD.value, table.c.why == registry.BASELINE]
        baselines = _count(connection, mine)
        holding = _holding(connection, declared, found[:limit])
    shown = [_held(one, declared.get(one.reaction), names, now, holds=one.identity in holding) for one in found[:limit]]
    left = len(found) > limit
    last = shown[-1] if shown and left else None
    return Page(shown, total, baselines, (last.reaction, last.record, last.occurrence) if last else None, left)


def _count(connection: Connection, where: list[ColumnElement[bool]]) -> int:
    return int(connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one())


def _where(app: str, which: Filter) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = [table.c.app == app, attempts.is_held]
    where.append(table.c.why == registry.BASELINE if which.baseline else func.coalesce(table.c.why, "") != registry.BASELINE)
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


def _holding(connection: Connection, declared: Mapping[str, Question | ScheduleSpec], found: Sequence[Attempt]) -> set[Identity]:
    """Those whose condition and occurrence hold, so that forgetting them would be a new call; and those of which nobody can say."""
    some: dict[str, list[Attempt]] = {}
    for one in found:
        some.setdefault(one.reaction, []).append(one)
    holding: set[Identity] = set()
    for name, mine in some.items():
        question = declared.get(name)
        if not isinstance(question, Question):
            continue  # a schedule has no condition, and of what this code does not declare nobody knows one
        try:
            with connection.begin_nested():
                now = dict(_rounds(connection, question, mine))
        except Exception as error:
            if trouble.transient(error) or not (isinstance(error, DBAPIError) or trouble.unreadable(error)):
                raise
            now = {}
            holding.update(one.identity for one in mine)  # its table, or a row, cannot be read: `forget` could not ask either
        holding.update(one.identity for one in mine if one.record in now and question.is_round(one.occurrence, now[one.record]))
        holding |= baselines.still_left(connection, question, mine)
    return holding


def _rounds(connection: Connection, question: Question, found: Sequence[Attempt]) -> Iterator[tuple[str, str]]:
    """Record and occurrence, as text, of the records of these for which the condition holds."""
    wanted = [key for text in {one.record for one in found} if (key := question.key_of_text(text)) is not None]
    size = len(question.key_attributes)
    for first in range(0, len(wanted), ASKED_AT_ONCE):
        for row in connection.execute(question.rounds_holding(wanted[first : first + ASKED_AT_ONCE])):
            yield question.record_text(tuple(row[:size])), question.round_text(tuple(row[size:]))


def _held(one: Attempt, declared: Question | ScheduleSpec | None, names: Mapping[str, str], now: datetime, *, holds: bool) -> Held:
    question = declared if isinstance(declared, Question) else None
    spec = question.spec if question is not None else declared
    terms = spec.terms if isinstance(spec, ReactionSpec | ScheduleSpec) else Terms(policy=None, retry=Retry())
    calls = declared is None or (question is not None and question.spec.call is not None)
    return Held(
        reaction=one.reaction,
        table=question.spec.table_name if question is not None else one.blocks,
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
        can=_possible(one, terms, now, declared=declared is not None, holds=holds),
    )


def _possible(one: Attempt, terms: Terms, now: datetime, *, declared: bool, holds: bool) -> tuple[str, ...]:
    """As the rules say it."""
    can, facts = [], rules.Facts(exists=holds, holds=holds)
    as_text = one.outcome is not None and outcomes.is_text_only(outcomes.first_and_rest(one.outcome)[0])
    if declared and not as_text and not isinstance(rules.person_retry(one, terms, now), rules.Refuse):
        can.append("retry")
    if not isinstance(rules.person_absent(one, terms, facts, now), rules.Refuse):
        can.append("settle --absent")
    if declared and not isinstance(rules.person_outcome(one, terms, now), rules.Refuse):
        can.append("settle --outcome")
    if not isinstance(rules.person_forget(one, terms, facts, now), rules.Refuse):
        can.append("forget")
    return tuple(can)

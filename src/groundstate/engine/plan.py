"""What this code would do on this database before it does it: reactions and schedules new, changed and gone, and how many rows each takes.

SELECTs alone; works on a standby and with SELECT grants. Compares what was accepted with what the code says, and decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from sqlalchemy import ColumnElement, Connection, and_, func, not_, select, true
from sqlalchemy.exc import DBAPIError

from groundstate.engine import fitting, left_by_others, marks, moved_tables, not_loaded, put_back, raising, registry
from groundstate.engine.attempts import is_baseline
from groundstate.engine.left_by_others import LeftByOther
from groundstate.engine.not_loaded import NotLoaded
from groundstate.engine.question import Question, blocking, held_under
from groundstate.engine.registry import Known
from groundstate.engine.shown import one_line
from groundstate.engine.wording import counted
from groundstate.rules import kind
from groundstate.rules.attempt import Terms
from groundstate.rules.kind import Kind
from groundstate.rules.reaction import ReactionSpec
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database, Lives
from groundstate.store.tables import attempt, reaction

Standing = Literal["unchanged", "new", "changed", "gone"]


@dataclass(frozen=True)
class Planned:
    """One reaction. Counts end at 100,000. starts: without a person's word. needs: what a person is to say first; None: nothing.
    both: before that it carries out what the accepted condition matches as well.

    rows: that it would take now, attempts left aside. more, fewer: rows that a changed condition matches and the old one did not, and the
    other way round; None where the old condition is no longer valid here. lacks: what its record has and this database has not.
    would_hold: of its calls that are in the air or in doubt those that this code cannot settle, and of its held outcomes those of other
    rounds than this code has, with the reason and the cure.
    not_loaded: of its held outcomes those that this code cannot give to its handler, with the reason.
    """

    reaction: str
    standing: Standing
    condition: str | None
    was: str | None
    rows: int
    more: int | None = None
    fewer: int | None = None
    open_attempts: int = 0
    starts: bool = True
    needs: str | None = None
    both: bool = False
    lacks: str | None = None
    would_hold: tuple[str, ...] = ()
    not_loaded: tuple[NotLoaded, ...] = ()


@dataclass(frozen=True)
class PlannedSchedule:
    """One schedule: a new or a changed one starts with now, and needs no word."""

    schedule: str
    standing: Standing
    words: str | None
    was: str | None


@dataclass(frozen=True)
class Plan:
    """Of one store. refused: why a start would be refused, with the cure."""

    first: bool  # none of ours was ever here
    reactions: tuple[Planned, ...]
    schedules: tuple[PlannedSchedule, ...]
    refused: tuple[str, ...]
    waiting: tuple[str, ...] = ()  # reactions that wait for a person, since the database may have been put back
    others: tuple[LeftByOther, ...] = ()  # open attempts of apps of which no worker lives
    elsewhere: tuple[str, ...] = ()  # of open calls on a table that is not today's, which is there as well, with what can be done

    @property
    def needs_somebody(self) -> bool:
        """Whether a person has to say something before all of it runs."""
        return (
            bool(self.refused or self.waiting or self.elsewhere)
            or any(one.ours for one in self.others)
            or any(one.needs or one.lacks or one.would_hold or one.not_loaded for one in self.reactions)
        )


def plan(
    app: str, database: Database, questions: Sequence[Question], schedules: Sequence[ScheduleSpec], lives: Lives | None = None
) -> Plan:
    """Asks what stands. lives: who tells of which app a worker lives; None: of other apps nothing is told.

    A reaction whose condition cannot be asked here is among those that lack something.
    """
    with database.reading() as connection:
        known = registry.known(connection, app)
        attempts = _open_attempts(connection, app)
        written = marks.as_they_stand(database, connection, app, schedules)
        declared = {question.spec.name for question in questions} | {spec.name for spec in schedules}
        marked = _marked(connection, app)
        lacks = fitting.lacking(connection, questions)
        waiting = put_back.waiting(database, connection, app).among(question.spec for question in questions)
        planned = [_planned(connection, question, known.get(question.spec.name), attempts, lacks) for question in questions]
        planned = [replace(one, lacks=lacks[one.reaction]) if one.reaction in lacks else one for one in planned]
        begun, held = _begun_with(connection, app, blocking), _begun_with(connection, app, _is_held_outcome)
        specs = {question.spec.name: question.spec for question in questions}
        planned = [
            replace(
                one,
                would_hold=(
                    *_would_hold(specs[one.reaction], begun.get(one.reaction, {})),
                    *_of_other_rounds(specs[one.reaction], held.get(one.reaction, {})),
                ),
            )
            for one in planned
        ]
        planned = [replace(one, not_loaded=not_loaded.find(specs[one.reaction], database, connection)) for one in planned]
        planned += [_gone(one, attempts) for name, one in known.items() if name not in declared and name not in marked]
        gone = [PlannedSchedule(name, "gone", None, known[name].condition) for name in sorted(marked - declared) if name in known]
        names = [question.spec.name for question in questions]
        left = registry.removed(connection, app, names, [spec.name for spec in schedules])
        clashes = registry.key_clashes(connection, [question.spec for question in questions])
        others = () if lives is None else left_by_others.look(app, database, connection, questions, lives)
        elsewhere = tuple(one.words for one in moved_tables.elsewhere(connection, app, questions) if not one.gone)
    planned = [replace(one, starts=one.starts and one.reaction not in waiting) for one in planned]
    planned = [_with_its_old_name(one, planned, questions) for one in planned]
    refused = tuple(
        f"{counted(count, 'attempt is', 'attempts are')} open of {name or repr(name)}, and this code does not declare it:"
        f" `groundstate rename {name} NEW` where it was renamed, else settle or forget them first (`groundstate held`);"
        " `groundstate run --leave-undeclared` starts, and leaves them alone"
        for name, count in left
    )
    found = [_schedule(spec, written.get(spec.name)) for spec in schedules]
    return Plan(not known, tuple(planned), (*found, *gone), (*refused, *clashes), tuple(sorted(waiting)), others, elsewhere)


def _one(connection: Connection, question: Question, before: Known | None, attempts: Mapping[str, int]) -> Planned:
    name, now = question.spec.name, question.condition_text
    was = None if before is None else before.condition
    rows, opened = registry.count(connection, question, question.come), attempts.get(name, 0)
    if before is not None and before.has_other_records(question):
        moved = registry.newcomer(connection, question, before)
        condition, was = _beside(question, before.condition)
        needs = moved.needs if moved.rows or moved.known_before else None
        return Planned(name, "changed", condition, was, rows, None, None, opened, starts=needs is None, needs=needs)
    if was == now:
        return Planned(name, "unchanged", question.shown_text, None, rows, open_attempts=opened)
    more, fewer = (rows, None) if was is None else _differences(connection, question, was)
    took = rows if more is None else more
    found = registry.newcomer(connection, question, before) if took else None
    needs, both = (found.needs, found.both) if found is not None and found.rows else (None, False)
    standing: Standing = "new" if was is None else "changed"
    condition, was = _beside(question, was)
    return Planned(name, standing, condition, was, rows, more, fewer, opened, starts=needs is None, needs=needs, both=both)


def _beside(question: Question, was: str | None) -> tuple[str, str | None]:
    """The condition and the one that it was, where there is one, so that the eye sees where they differ."""
    return (question.shown_text, None) if was is None else (one_line(question.condition_text), one_line(was))


def _planned(
    connection: Connection, question: Question, before: Known | None, attempts: Mapping[str, int], lacks: dict[str, str]
) -> Planned:
    """Where the record has what this database has not, its condition may not name that, and then its rows are counted all the same."""
    name, why = question.spec.name, list[str]()
    ask = partial(_one, connection, question, before, attempts)
    found = raising.asked_of_the_others(connection, question, ask, lambda _, words: why.append(words), known=False)
    if found is None:
        lacks.setdefault(name, why[0])
        return _not_counted(question, before, attempts)
    return replace(found, starts=False) if name in lacks else found


def _not_counted(question: Question, before: Known | None, attempts: Mapping[str, int]) -> Planned:
    name, now = question.spec.name, question.condition_text
    was = None if before is None or before.condition == now else before.condition
    standing: Standing = "new" if before is None else "unchanged" if was is None else "changed"
    condition, was = _beside(question, was)
    return Planned(name, standing, condition, was, 0, open_attempts=attempts.get(name, 0), starts=False)


def _with_its_old_name(one: Planned, planned: Sequence[Planned], questions: Sequence[Question]) -> Planned:
    """A new reaction that asks what one asked that is gone may be that one, renamed: then its calls keep their keys."""
    if one.standing != "new":
        return one
    asks = next(question.condition_text for question in questions if question.spec.name == one.reaction)
    old = next((other.reaction for other in planned if other.standing == "gone" and other.was == asks), None)
    if old is None:
        return one
    words = f"it asks what {old} asked, which is gone: `groundstate rename {old} {one.reaction}` where that is its old name"
    return replace(one, needs=words if one.needs is None else f"{words}; else {one.needs}")


def _differences(connection: Connection, question: Question, was: str) -> tuple[int | None, int | None]:
    """Rows that match now and did not, and the other way round."""
    old = held_under(was)
    now = func.coalesce(question.come, not_(true()))
    try:
        with connection.begin_nested():
            more = registry.count(connection, question, question.come, not_(old))
            return more, registry.count(connection, question, old, not_(now))
    except DBAPIError:  # it names what is no longer here
        return None, None


def _gone(before: Known, attempts: Mapping[str, int]) -> Planned:
    return Planned(before.name, "gone", None, before.condition, 0, open_attempts=attempts.get(before.name, 0), starts=False)


def _open_attempts(connection: Connection, app: str) -> dict[str, int]:
    mine = (attempt.c.app == app, not_(is_baseline))
    counted = select(attempt.c.reaction, func.count()).where(*mine).group_by(attempt.c.reaction)
    return {str(row[0]): int(row[1]) for row in connection.execute(counted)}


_is_held_outcome = and_(attempt.c.state == "held", attempt.c.unsure.is_(False), attempt.c.outcome.is_not(None))


def _begun_with(connection: Connection, app: str, those: ColumnElement[bool]) -> dict[str, dict[str | None, int]]:
    """By reaction, and by what they were begun with: how many of those attempts there are."""
    told = select(attempt.c.reaction, attempt.c.begun_with, func.count()).where(attempt.c.app == app, those)
    found: dict[str, dict[str | None, int]] = {}
    for name, said, count in connection.execute(told.group_by(attempt.c.reaction, attempt.c.begun_with)):
        found.setdefault(str(name), {})[said if isinstance(said, str) else None] = int(count)
    return found


def _would_hold(spec: ReactionSpec, begun: Mapping[str | None, int]) -> tuple[str, ...]:
    """What this code would hold of them, each kind with its reason, as rules/kind.py has it."""
    terms, counts = spec.terms, Counter[tuple[str, str]]()
    for said, count in begun.items():
        reason = kind.not_to_settle(said, terms.kind, terms.answers_for if terms.has_find else ())
        if reason is None and terms.has_find and kind.kind_in(said).service not in terms.answers_for:
            reason = kind.other_find(said, terms.kind)
        if reason is not None:
            counts[reason, _cures(kind.kind_in(said), terms)] += count
    return tuple(_held_in_words(reason, cures, count) for (reason, cures), count in sorted(counts.items()))


def _of_other_rounds(spec: ReactionSpec, held: Mapping[str | None, int]) -> tuple[str, ...]:
    """Held outcomes of which nobody can say in which of today's rounds they came: they keep their records from this code."""
    if spec.again:
        return ()
    columns, counts = spec.occurrence_columns, Counter[str]()
    for said, count in held.items():
        if kind.is_of_other_rounds(said, columns):
            counts[kind.other_rounds(said, columns)] += count
    return tuple(
        f"{counted(count, 'outcome is', 'outcomes are')} held: {reason}. This code would leave each as it is, with its record."
        " Let the code that began them conclude them first (`groundstate held`, then `groundstate retry`), or settle each with its outcome"
        for reason, count in sorted(counts.items())
    )


def _cures(was: Kind, terms: Terms) -> str:
    """What can be done beside waiting until the old code has settled them."""
    today = terms.kind
    if today is None or was.service is None or was.occurrence != today.occurrence:
        return ""
    same_by_another_name = was.service == today.service and was.key == today.key and was.call != today.call
    renamed = f"; or where the call has only another name now, say the old one: name={was.call!r}" if same_by_another_name else ""
    beside = f"; or keep the old find beside the new one, and say so: answers_for=[{was.service!r}]" if today.policy in kind.ASKING else ""
    return renamed + beside


def _held_in_words(reason: str, cures: str, count: int) -> str:
    calls = counted(count, "call is", "calls are")
    return (
        f"{calls} in the air, in doubt, or held unsure, and begun by other code: {reason}. This code would hold what is left of them, each"
        f" with its record. Let workers of the code that began them settle them first (`groundstate pending` lists them){cures}"
    )


def _marked(connection: Connection, app: str) -> set[str]:
    """Names under which schedules were written down."""
    named = select(reaction.c.name).where(reaction.c.app == app, reaction.c.mark.is_not(None), reaction.c.name != "")
    return set(connection.execute(named).scalars())


def _schedule(spec: ScheduleSpec, before: marks.Mark | None) -> PlannedSchedule:
    if before is None:
        return PlannedSchedule(spec.name, "new", spec.words, None)
    if before.words != spec.words:
        return PlannedSchedule(spec.name, "changed", spec.words, before.words)
    return PlannedSchedule(spec.name, "unchanged", spec.words, None)

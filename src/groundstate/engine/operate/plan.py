"""Shows what this version of the application would do on a database: which reactions and schedules are new, changed or gone, and how many
rows each would carry out.

It compares the declarations that were accepted with those of this version, and changes nothing. It runs only SELECTs, works on a standby,
and needs only SELECT privileges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from sqlalchemy import ColumnElement, Connection, and_, func, not_, select, true
from sqlalchemy.exc import DBAPIError

from groundstate.engine.operate import left_by_other_apps, moved_tables, unloadable_outcomes
from groundstate.engine.operate.left_by_other_apps import LeftByOther
from groundstate.engine.operate.unloadable_outcomes import UnloadableOutcome
from groundstate.engine.rows import data_restore_check, reaction_registry
from groundstate.engine.rows.attempt_text import count_with_noun
from groundstate.engine.rows.attempts import is_baseline
from groundstate.engine.rows.reaction_registry import Known
from groundstate.engine.schedule import cursors
from groundstate.engine.sql import mapping_check, raising_rows
from groundstate.engine.sql.attempt_filters import is_blocking
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.condition_texts import condition_from_text
from groundstate.engine.sql.sql_text import one_line
from groundstate.rules import begun_kind
from groundstate.rules.attempt import Terms
from groundstate.rules.begun_kind import Kind
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database, Liveness
from groundstate.store.tables import attempt, reaction

Standing = Literal["unchanged", "new", "changed", "gone"]


@dataclass(frozen=True)
class Planned:
    """The plan for one reaction. Counts stop at 100,000.

    Attributes:
        condition: The declared condition; None if the reaction is gone.
        was: The accepted condition; None if there is none, or if it equals the declared condition.
        rows: The number of rows that match the condition now, with or without an attempt.
        more: The number of rows that match only the declared condition; None if the accepted condition is not valid here any more.
        fewer: The number of rows that match only the accepted condition; None if they cannot be counted.
        starts: Whether the reaction starts without the consent of a person.
        needs: What a person must say first; None if nothing.
        both: Whether rows that match both conditions are carried out until a person accepts the reaction.
        lacks: What the record's class declares and this database does not have; None if nothing.
        would_hold: Reasons, each with its cure, why this version would hold calls in flight or in doubt, or would leave held outcomes
        as they are.
        not_loaded: The outcomes that this version cannot give to its handler, each with the reason.
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
    not_loaded: tuple[UnloadableOutcome, ...] = ()


@dataclass(frozen=True)
class PlannedSchedule:
    """The plan for one schedule. A new or changed schedule starts at the present time, without the consent of a person."""

    schedule: str
    standing: Standing
    words: str | None
    was: str | None


@dataclass(frozen=True)
class Plan:
    """The plan for one database. `refused` has the reasons why a worker would refuse to start, each with the cure."""

    first: bool  # whether no reaction or schedule of this app was ever accepted here
    reactions: tuple[Planned, ...]
    schedules: tuple[PlannedSchedule, ...]
    refused: tuple[str, ...]
    waiting: tuple[str, ...] = ()  # reactions that wait for a person, since the database may have been restored from a backup
    others: tuple[LeftByOther, ...] = ()  # open attempts of other apps that have no worker alive
    # messages on open calls whose records are in a former table of the reaction, if the former table and today's table both exist
    elsewhere: tuple[str, ...] = ()

    @property
    def needs_person(self) -> bool:
        """Return whether a person has to do something before all reactions run."""
        return (
            bool(self.refused or self.waiting or self.elsewhere)
            or any(one.ours for one in self.others)
            or any(one.needs or one.lacks or one.would_hold or one.not_loaded for one in self.reactions)
        )


def build_plan(
    app: str, database: Database, queries: Sequence[ConditionQuery], schedules: Sequence[ScheduleSpec], liveness: Liveness | None = None
) -> Plan:
    """Return the plan for one database. `liveness` can tell which apps have a worker alive; if it is None, other apps are left out.

    If a reaction's condition cannot be queried here, `lacks` of its plan has the reason.
    """
    with database.reading() as connection:
        known = reaction_registry.read_known_reactions(connection, app)
        attempts = _count_open_attempts(connection, app)
        written = cursors.read_cursors_as_stored(database, connection, app, schedules)
        declared = {query.spec.name for query in queries} | {spec.name for spec in schedules}
        marked = _names_of_recorded_schedules(connection, app)
        lacks = mapping_check.why_not_carried_out(connection, queries)
        waiting = data_restore_check.find_waiting_reactions(database, connection, app).names_of_waiting(query.spec for query in queries)
        planned = [_plan_reaction_or_report_lack(connection, query, known.get(query.spec.name), attempts, lacks) for query in queries]
        planned = [replace(one, lacks=lacks[one.reaction]) if one.reaction in lacks else one for one in planned]
        begun, held = _count_by_begun_with(connection, app, is_blocking), _count_by_begun_with(connection, app, _is_held_outcome)
        specs = {query.spec.name: query.spec for query in queries}
        planned = [
            replace(
                one,
                would_hold=(
                    *_reasons_to_hold_calls(specs[one.reaction], begun.get(one.reaction, {})),
                    *_reasons_to_leave_outcomes_held(specs[one.reaction], held.get(one.reaction, {})),
                ),
            )
            for one in planned
        ]
        planned = [
            replace(one, not_loaded=unloadable_outcomes.find_unloadable_outcomes(specs[one.reaction], database, connection))
            for one in planned
        ]
        planned += [_plan_of_gone_reaction(one, attempts) for name, one in known.items() if name not in declared and name not in marked]
        gone = [PlannedSchedule(name, "gone", None, known[name].condition) for name in sorted(marked - declared) if name in known]
        names = [query.spec.name for query in queries]
        left = reaction_registry.undeclared_with_open_attempts(connection, app, names, [spec.name for spec in schedules])
        clashes = reaction_registry.key_clashes(connection, [query.spec for query in queries])
        others = () if liveness is None else left_by_other_apps.find_left_by_others(app, database, connection, queries, liveness)
        elsewhere = tuple(
            one.message_for_people for one in moved_tables.find_calls_on_other_tables(connection, app, queries) if not one.gone
        )
    planned = [replace(one, starts=one.starts and one.reaction not in waiting) for one in planned]
    planned = [_suggest_rename(one, planned, queries) for one in planned]
    refused = tuple(
        f"{count_with_noun(count, 'attempt is', 'attempts are')} open of {name or repr(name)}, and this code does not declare it:"
        f" `groundstate rename {name} NEW` where it was renamed, else settle or forget them first (`groundstate held`);"
        " `groundstate run --leave-undeclared` starts, and leaves them alone"
        for name, count in left
    )
    found = [_plan_schedule(spec, written.get(spec.name)) for spec in schedules]
    return Plan(not known, tuple(planned), (*found, *gone), (*refused, *clashes), tuple(sorted(waiting)), others, elsewhere)


def _plan_reaction(connection: Connection, query: ConditionQuery, before: Known | None, attempts: Mapping[str, int]) -> Planned:
    name, now = query.spec.name, query.texts.condition_text
    was = None if before is None else before.condition
    rows, opened = reaction_registry.count_records(connection, query, query.condition.holds_and_is_due), attempts.get(name, 0)
    if before is not None and before.has_other_records(query):
        moved = reaction_registry.find_newcomer(connection, query, before)
        condition, was = _conditions_to_compare(query, before.condition)
        needs = moved.answers_for_deployment if moved.rows or moved.known_before else None
        return Planned(name, "changed", condition, was, rows, None, None, opened, starts=needs is None, needs=needs)
    if was == now:
        return Planned(name, "unchanged", query.texts.condition_for_people, None, rows, open_attempts=opened)
    more, fewer = (rows, None) if was is None else _count_differences(connection, query, was)
    took = rows if more is None else more
    found = reaction_registry.find_newcomer(connection, query, before) if took else None
    needs, both = (found.answers_for_deployment, found.both) if found is not None and found.rows else (None, False)
    standing: Standing = "new" if was is None else "changed"
    condition, was = _conditions_to_compare(query, was)
    return Planned(name, standing, condition, was, rows, more, fewer, opened, starts=needs is None, needs=needs, both=both)


def _conditions_to_compare(query: ConditionQuery, was: str | None) -> tuple[str, str | None]:
    """Return the texts of the declared condition and of the accepted condition, for people. The second is None if `was` is None. If both
    exist, each text is on one line, so that a person sees the difference.
    """
    return (query.texts.condition_for_people, None) if was is None else (one_line(query.texts.condition_text), one_line(was))


def _plan_reaction_or_report_lack(
    connection: Connection, query: ConditionQuery, before: Known | None, attempts: Mapping[str, int], lacks: dict[str, str]
) -> Planned:
    """Return the plan for one reaction. If its condition cannot be queried, write the reason into `lacks`, and count no rows.

    A condition can be queried even if the database lacks other columns that the record's class declares.
    """
    name, why = query.spec.name, list[str]()
    ask = partial(_plan_reaction, connection, query, before, attempts)
    found = raising_rows.ask_excluding_raising_rows(connection, query, ask, lambda _, words: why.append(words), known=False)
    if found is None:
        lacks.setdefault(name, why[0])
        return _plan_without_counts(query, before, attempts)
    return replace(found, starts=False) if name in lacks else found


def _plan_without_counts(query: ConditionQuery, before: Known | None, attempts: Mapping[str, int]) -> Planned:
    name, now = query.spec.name, query.texts.condition_text
    was = None if before is None or before.condition == now else before.condition
    standing: Standing = "new" if before is None else "unchanged" if was is None else "changed"
    condition, was = _conditions_to_compare(query, was)
    return Planned(name, standing, condition, was, 0, open_attempts=attempts.get(name, 0), starts=False)


def _suggest_rename(one: Planned, planned: Sequence[Planned], queries: Sequence[ConditionQuery]) -> Planned:
    """Return the plan, with a suggested rename if the reaction is new and has the condition of a reaction that is gone.

    The new reaction may be the old one, renamed in the source only. With the rename, its calls keep their idempotency keys.
    """
    if one.standing != "new":
        return one
    asks = next(query.texts.condition_text for query in queries if query.spec.name == one.reaction)
    old = next((other.reaction for other in planned if other.standing == "gone" and other.was == asks), None)
    if old is None:
        return one
    words = f"it asks what {old} asked, which is gone: `groundstate rename {old} {one.reaction}` where that is its old name"
    return replace(one, needs=words if one.needs is None else f"{words}; else {one.needs}")


def _count_differences(connection: Connection, query: ConditionQuery, was: str) -> tuple[int | None, int | None]:
    """Return a pair: how many rows match only the new condition, and how many only the old condition (`was`). Both are None if the old
    condition is not valid here any more.
    """
    old = condition_from_text(was)
    now = func.coalesce(query.condition.holds_and_is_due, not_(true()))
    try:
        with connection.begin_nested():
            more = reaction_registry.count_records(connection, query, query.condition.holds_and_is_due, not_(old))
            return more, reaction_registry.count_records(connection, query, old, not_(now))
    except DBAPIError:  # the old condition uses a column or table that no longer exists
        return None, None


def _plan_of_gone_reaction(before: Known, attempts: Mapping[str, int]) -> Planned:
    return Planned(before.name, "gone", None, before.condition, 0, open_attempts=attempts.get(before.name, 0), starts=False)


def _count_open_attempts(connection: Connection, app: str) -> dict[str, int]:
    mine = (attempt.c.app == app, not_(is_baseline))
    counted = select(attempt.c.reaction, func.count()).where(*mine).group_by(attempt.c.reaction)
    return {str(row[0]): int(row[1]) for row in connection.execute(counted)}


_is_held_outcome = and_(attempt.c.state == "held", attempt.c.unsure.is_(False), attempt.c.outcome.is_not(None))


def _count_by_begun_with(connection: Connection, app: str, those: ColumnElement[bool]) -> dict[str, dict[str | None, int]]:
    """Return how many of these attempts there are for each reaction and each text in the column `begun_with`.

    The text names the service, call, lookup and policy with which an attempt's call was begun.
    """
    told = select(attempt.c.reaction, attempt.c.begun_with, func.count()).where(attempt.c.app == app, those)
    found: dict[str, dict[str | None, int]] = {}
    for name, said, count in connection.execute(told.group_by(attempt.c.reaction, attempt.c.begun_with)):
        found.setdefault(str(name), {})[said if isinstance(said, str) else None] = int(count)
    return found


def _reasons_to_hold_calls(spec: ReactionSpec, begun: Mapping[str | None, int]) -> tuple[str, ...]:
    """Return the reasons why this version would hold calls that another version began, for example that the service is another one.

    begun: the number of these calls for each value of `begun_with` (rules/begun_kind.py).
    """
    terms, counts = spec.terms, Counter[tuple[str, str]]()
    for said, count in begun.items():
        reason = begun_kind.why_not_settled_here(said, terms.kind, terms.answers_for if terms.has_lookup else ())
        if reason is None and terms.has_lookup and begun_kind.parse_kind(said).service not in terms.answers_for:
            reason = begun_kind.describe_lookup_difference(said, terms.kind)
        if reason is not None:
            counts[reason, _cures_in_words(begun_kind.parse_kind(said), terms)] += count
    return tuple(_held_in_words(reason, cures, count) for (reason, cures), count in sorted(counts.items()))


def _reasons_to_leave_outcomes_held(spec: ReactionSpec, held: Mapping[str | None, int]) -> tuple[str, ...]:
    """Return the reasons why this version does not conclude some held outcomes: their calls were begun when the reaction declared other
    `occurrence=` columns than today.

    It is not known to which of today's occurrences such an outcome belongs, so this version does not run the handler for its record.
    """
    if spec.repeats:
        return ()
    columns, counts = spec.occurrence_columns, Counter[str]()
    for said, count in held.items():
        if begun_kind.has_other_occurrence_columns(said, columns):
            counts[begun_kind.describe_occurrence_difference(said, columns)] += count
    return tuple(
        f"{count_with_noun(count, 'outcome is', 'outcomes are')} held: {reason}. This code would leave each as it is, with its record."
        " Let the code that began them conclude them first (`groundstate held`, then `groundstate retry`), or settle each with its outcome"
        for reason, count in sorted(counts.items())
    )


def _cures_in_words(was: Kind, terms: Terms) -> str:
    """Return a text with further cures, besides that workers of the older version settle the calls; "" if there are none."""
    today = terms.kind
    if today is None or was.service is None or was.occurrence != today.occurrence:
        return ""
    same_by_another_name = was.service == today.service and was.key == today.key and was.call != today.call
    renamed = f"; or where the call has only another name now, say the old one: name={was.call!r}" if same_by_another_name else ""
    beside = (
        f"; or keep the old lookup beside the new one, and say so: answers_for=[{was.service!r}]"
        if today.policy in begun_kind.ASKING
        else ""
    )
    return renamed + beside


def _held_in_words(reason: str, cures: str, count: int) -> str:
    calls = count_with_noun(count, "call is", "calls are")
    return (
        f"{calls} in the air, in doubt, or held unsure, and begun by other code: {reason}. This code would hold what is left of them, each"
        f" with its record. Let workers of the code that began them settle them first (`groundstate pending` lists them){cures}"
    )


def _names_of_recorded_schedules(connection: Connection, app: str) -> set[str]:
    """Return the names of the schedules of which this database stores a cursor (the time of the last tick)."""
    named = select(reaction.c.name).where(reaction.c.app == app, reaction.c.mark.is_not(None), reaction.c.name != "")
    return set(connection.execute(named).scalars())


def _plan_schedule(spec: ScheduleSpec, before: cursors.ScheduleCursor | None) -> PlannedSchedule:
    if before is None:
        return PlannedSchedule(spec.name, "new", spec.as_text, None)
    if before.words != spec.as_text:
        return PlannedSchedule(spec.name, "changed", spec.as_text, before.words)
    return PlannedSchedule(spec.name, "unchanged", spec.as_text, None)

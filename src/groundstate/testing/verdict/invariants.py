"""The judge of a run: it checks the invariants after every commit, and whenever an external service has carried out a request (an effect).

The invariants are named as in the model in the folder `model/`: Listed, NotLost, AtMostOnce, OncePerKey, StickyDoubt, OutcomeKept,
NothingAtRest, Progress.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial, wraps
from typing import Any

from sqlalchemy import event, inspect, select
from sqlalchemy.orm import Session, SessionTransaction

from groundstate.engine.rows.in_flight import InFlightCall
from groundstate.rules import occurrences
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import Function, ReactionSpec
from groundstate.store import tables
from groundstate.testing.databases.scratch_db import Place
from groundstate.testing.simulate.due_times import DueTimes
from groundstate.testing.simulate.fake_provider import Effect, Fake
from groundstate.testing.simulate.sim_process import Process
from groundstate.testing.simulate.simulation import Stage
from groundstate.values import keys

Check = Callable[[Session], object]
Condition = tuple[str, str, str]  # (reaction, record, occurrence): a condition that holds
UpcomingTime = tuple[Any, ...]  # an attempt with its state and retry time, a record with its due time, or a schedule with its next time
_HANDLERS_FAULT = ("the handler raised", "made no progress", "its flush was refused", "a reaction with done_column=")


class Violation(AssertionError):
    """Raised if an invariant does not hold; `name` says which one."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__(f"{name}: {words}")
        self.name = name
        self.words = words


@dataclass(frozen=True)
class AttemptRow:
    """The columns of an attempt that the judge reads."""

    app: str
    reaction: str
    record: str
    occurrence: str
    state: str
    unsure: bool
    outcome: str | None
    blocks: str | None
    why: str | None
    error: str | None

    @property
    def identity(self) -> tuple[str, str, str, str]:
        return (self.app, self.reaction, self.record, self.occurrence)

    def __str__(self) -> str:
        return f"{self.reaction} of {self.record} is {self.state}{', unsure' if self.unsure else ''} ({self.why or self.error or ''})"


_ATTEMPT_QUERY = f"SELECT {', '.join(AttemptRow.__dataclass_fields__)} FROM {tables.attempt.name}"  # noqa: S608  # table and columns are groundstate's own


@dataclass(frozen=True)
class JudgeSnapshot:
    """What the judge knows of the database's content. It is saved and restored together with a copy of the database."""

    taken: tuple[tuple[Effect[Any], int, int], ...]
    entries: Counter[Condition]
    holding: frozenset[Condition]


class InvariantJudge:
    """The judge of one run. It wraps the user's handlers, so as to know which commit wrote which outcome."""

    def __init__(
        self,
        specs: Sequence[Sequence[ReactionSpec]],
        fakes: Sequence[Fake],
        place: Place,
        *,
        always: Check | None = None,
        may_fail: Sequence[str] = (),
        around: Callable[[str], Any] | None = None,
    ) -> None:
        self._fakes = fakes
        self._place = place
        self._always = always
        self._may_fail = frozenset(may_fail)
        self._around = around
        self._plain = [(number, spec) for number, some in enumerate(specs) for spec in some]
        self._asked = {spec.name: _select_records_meeting_condition(spec) for _, spec in self._plain}
        self._times = DueTimes(place, self._plain)
        self.schedules: Sequence[Sequence[ScheduleSpec]] = ()  # for each store of the app, its schedules
        self._policies = {spec.name: spec.call.in_doubt.kind for _, spec in self._plain if spec.call is not None}
        self._declared = {spec.name: spec for _, spec in self._plain}
        self._entries: Counter[Condition] = Counter()
        self._rounds: Counter[tuple[str, str]] = Counter()  # by reaction and record: for how many occurrences (rounds) a call may be made
        # pairs (reaction, record) whose handlers changed the occurrence since `_rounds` was last counted
        self._moved_on: set[tuple[str, str]] = set()
        self._holding: frozenset[Condition] = frozenset()
        self._restored = False
        self._brought: list[tuple[Process, Effect[Any]]] = []
        self._ran: list[object] = []  # runs of the user's functions, and the states of the databases that `always` saw
        self.stage: Stage | None = None
        self.carried_out: set[str] = set()  # names of the reactions for which a handler's work was committed
        self.specs = [[self._wrap_handlers(spec) for spec in some] for some in specs]

    def watch_schedule(self, spec: ScheduleSpec) -> ScheduleSpec:
        """Return the schedule with its handler wrapped, so that actions which are forbidden in a transaction are noticed."""
        handler = spec.handler
        return replace(spec, handler=replace(handler, call=wraps(handler.call)(partial(self._run_prepare, spec, handler.call))))

    def begin_run(self, stage: Stage) -> None:
        """Reset the judge for a run. Each condition that a record meets now counts as having become true once."""
        self.stage = stage
        self._entries.clear()
        self._rounds.clear()
        self._moved_on.clear()
        self._brought.clear()
        self._ran.clear()
        self._holding, self._restored = frozenset(), False
        self._count_conditions_that_became_true(self._read_holding_conditions())

    # ---- notifications by the stage --------------------------------------------------------------------------------------------------
    def on_commit(self, *, ours_alone: bool) -> None:
        """Check the invariants after a commit. Raises Violation. ours_alone: whether the commit wrote only groundstate's own tables."""
        standing = self._read_attempts()
        if not ours_alone:
            self._count_conditions_that_became_true(self._read_holding_conditions())
        self._check_every_effect_is_listed(standing)
        self._check_no_doubt_is_cleared(standing)
        for one in standing:
            if one.error and one.error.startswith(_HANDLERS_FAULT) and one.reaction not in self._may_fail:
                raise Violation("Progress", f"{one.reaction} of {one.record}: {one.error}")
        self._check_no_endless_repetition()
        if self._always is not None:
            if not ours_alone and self.stage is not None and self.stage.restarts is not None:
                self._ran.append(self._place.state())
            with self._place.session() as session:
                self._always(session)

    def on_calls_leave(self, in_flights: Sequence[InFlightCall]) -> None:
        """Check, before these calls are sent, that the attempt of each call is committed. Raises Violation."""
        listed = {one.identity for one in self._read_attempts()} if in_flights else set()
        for in_flight in in_flights:
            if in_flight.identity not in listed and self._policies[in_flight.identity[1]] != "repeat":
                raise Violation("Listed", f"the call of {in_flight.identity[1]} of {in_flight.identity[2]} goes out, and no attempt stands")

    def on_outcome_delivered(self, process: Process, effect: Effect[Any]) -> None:
        self._brought.append((process, effect))

    def on_effect(self, effect: Effect[Any]) -> None:
        """Check that a new effect (what a service did for a call) does not repeat an earlier effect of its record. Raises Violation."""
        reaction = effect.identity[1]
        policy = self._policies[reaction]
        if policy == "repeat":
            return
        self._count_conditions_that_became_true(self._read_holding_conditions())
        same = [one for fake in self._fakes for one in fake.ledger.entries if one.identity == effect.identity]
        entered = max(self._entries[effect.identity[1:]], 1)
        if len(same) > entered:
            name = "OncePerKey" if policy == "same_key" else "AtMostOnce"
            times = f"it entered its condition {entered} time{'s' if entered > 1 else ''}"
            raise Violation(
                name, f"{reaction} of {effect.identity[2]} was done {len(same)} times, and {times}; keys {[one.key for one in same]}"
            )
        self._check_no_second_call(effect)
        self._check_every_effect_is_listed(self._read_attempts())

    def state_for_next_checks(self) -> object:
        """Return the part of the judge's memory that later checks use, without the states of the database and the services."""
        assert self.stage is not None  # noqa: S101  # it is called only during a run
        counted = [sorted(some.items()) for some in (self._entries, self._rounds)]
        brought = [(one.key, one.answer) for process, one in self._brought if not process.killed]
        rings = [one.words for process in self.stage.processes for worker in process.workers for one in worker.incarnation.rings.told]
        looks = sorted(map(repr, self.upcoming_times()))
        return counted, sorted(self._moved_on), sorted(self._holding), self._restored, brought, rings, looks, self._ran

    def snapshot(self) -> JudgeSnapshot:
        taken = tuple((one, one.taken, one.taken_in) for fake in self._fakes for one in fake.ledger.entries)
        return JudgeSnapshot(taken, self._entries.copy(), self._holding)

    def restore_snapshot(self, known: JudgeSnapshot) -> None:
        self._restored = True
        before = {id(effect): (taken, entry) for effect, taken, entry in known.taken}
        for fake in self._fakes:
            for one in fake.ledger.entries:
                one.taken, one.taken_in = before.get(id(one), (0, 0))
        self._entries, self._holding = known.entries.copy(), known.holding

    # ---- at the end ----------------------------------------------------------------------------------------------------------------
    def check_end(self) -> list[AttemptRow]:
        """Check the invariants that must hold after a clean stop, and return the held attempts. Raises Violation."""
        standing = self._read_attempts()
        early = self._times.records_not_yet_due(self._latest_due_time())
        for reaction, record, occurrence in sorted(self._read_holding_conditions()):
            if (reaction, record) in early:
                continue
            spec = next(spec for _, spec in self._plain if spec.name == reaction)
            if not any(one.reaction == reaction and one.record == record for one in standing) and not any(
                one.blocks == spec.table_name and one.record == record for one in standing
            ):
                when = f" ({occurrence})" if occurrence else ""
                raise Violation("NotLost", f"{reaction} of {record}{when} holds, was not carried out, and stands nowhere")
        for one in standing:
            held_by = [other for other in standing if other.state == "held" and other.unsure and other.record == one.record]
            if one.state != "held" and not held_by:
                raise Violation("NothingAtRest", f"nothing is left to do, and {one}")
        self._check_every_outcome_is_kept(standing)
        for number in range(len(self.specs)):
            with self._place.connect(number) as connection:
                left = connection.execute(select(tables.worker.c.id).where(tables.worker.c.ended_at.is_(None))).all()
            if left:
                raise Violation("NothingAtRest", f"all has ended cleanly, and {len(left)} rows stand in groundstate_worker")
        return [one for one in standing if one.state == "held"]

    def _now_and_end(self) -> tuple[datetime, datetime | None]:
        """Return a pair: the time now, and the time after which the run waits for no due record (None if there is no such time)."""
        assert self.stage is not None  # noqa: S101  # it is called only during a run
        return self.stage.time.now(), self.stage.clock.ends

    def _latest_due_time(self) -> datetime:
        """Return the latest due time of a record that must be carried out in this run."""
        now, ends = self._now_and_end()
        return now if ends is None else min(now, ends)

    def upcoming_times(self) -> frozenset[UpcomingTime]:
        """Return the times at which something happens later: when an attempt that failed or is in doubt is tried again, when a record
        becomes due or expires, and when a schedule ticks.

        The times are those of the database's clock. Times after the run's end are left out. Since a schedule ticks without end, its ticks
        are returned only if the run has an end (`lab.clock.ends`).
        """
        table = tables.attempt.c
        asked = select(table.reaction, table.record, table.occurrence, table.state, table.failures, table.next_at)
        found: set[UpcomingTime] = {
            *self._times.upcoming_due_times(*self._now_and_end()),
            *self._times.upcoming_ticks(self.schedules, *self._now_and_end()),
        }
        for number in range(len(self.specs)):
            with self._place.connect(number) as connection:
                found.update(map(tuple, connection.execute(asked.where(table.state.in_(["failed", "doubt"]), table.next_at.is_not(None)))))
        return frozenset(found)

    # ---- single invariants ------------------------------------------------------------------------------------------------------------
    def _check_every_effect_is_listed(self, standing: Sequence[AttemptRow]) -> None:
        if self._restored:
            return
        listed = {one.identity for one in standing}
        for fake in self._fakes:
            for one in fake.ledger.entries:
                if not one.taken and one.identity not in listed and self._policies[one.identity[1]] != "repeat":
                    raise Violation(
                        "Listed",
                        f"{one.identity[1]} of {one.identity[2]} was done ({one.answer!r}), which no record and no attempt shows",
                    )

    def _check_no_endless_repetition(self) -> None:
        assert self.stage is not None  # noqa: S101  # it is called only during a run
        for worker in (worker for process in self.stage.processes for worker in process.workers):
            for one in worker.incarnation.rings.told:
                if not self._may_fail.issuperset(one.reactions):
                    raise Violation("Progress", one.words)

    def _check_no_second_call(self, effect: Effect[Any]) -> None:
        """Check that a reaction does not act for a record again before its first outcome is in the record. Raises Violation.

        If two occurrences (rounds of a record) differ only in the due time, a reaction may act again only if the condition became true
        anew, or if the reaction's own handlers changed the due time.
        """
        reaction, record = effect.identity[1:3]
        spec = self._declared[reaction]
        earlier = [one for fake in self._fakes for one in fake.ledger.entries if one.identity[:3] == effect.identity[:3]]
        earlier = [one for one in earlier if one is not effect and one.identity != effect.identity]
        if self._restored or not earlier or spec.when_overtaken == "drop":
            return
        for one in earlier:
            if not one.taken:
                raise Violation(
                    "AtMostOnce",
                    f"{reaction} of {record} was done for round {effect.identity[3]}, while the outcome of round {one.identity[3]}"
                    f" ({one.answer!r}) is in no record: a person must first decide whether both are wanted",
                )
        rounds = max(self._rounds[reaction, record], 1)
        if spec.due is not None and not spec.occurrence_said and len(earlier) >= rounds:
            raise Violation(
                "AtMostOnce",
                f"{reaction} of {record} was done {len(earlier) + 1} times, since another program changed its due time: name by occurrence="
                " the columns that differ from round to round, or give occurrence=() if it must be done only once",
            )

    def _check_every_outcome_is_kept(self, standing: Sequence[AttemptRow]) -> None:
        """Check that each outcome that a process received is in its record or in a held attempt, unless the process was killed."""
        if self._restored:
            return
        kept = {one.identity for one in standing if one.outcome is not None}
        for process, one in self._brought:
            if not (one.taken or process.killed or one.identity in kept or self._policies[one.identity[1]] == "repeat"):
                raise Violation("OutcomeKept", f"{one.identity[1]} of {one.identity[2]}: its outcome {one.answer!r} was received and lost")

    def _check_no_doubt_is_cleared(self, standing: Sequence[AttemptRow]) -> None:
        if self._restored:
            return
        sure = {
            one.identity: one for one in standing if one.state == "failed" or (one.state == "held" and not one.unsure and not one.outcome)
        }
        for fake in self._fakes:
            for one in fake.ledger.entries:
                if not one.taken and one.identity in sure and self._policies[one.identity[1]] != "repeat":
                    raise Violation("StickyDoubt", f"{sure[one.identity]}, as if it was surely not done, and it was ({one.answer!r})")

    def _read_attempts(self) -> list[AttemptRow]:
        rows = [row for number in range(len(self.specs)) for row in self._place.query_rows(number, _ATTEMPT_QUERY)]
        return [replace(one, unsure=bool(one.unsure)) for one in (AttemptRow(*row) for row in rows)]

    def _read_holding_conditions(self) -> frozenset[Condition]:
        found: set[Condition] = set()
        for number, spec in self._plain:
            statement, width = self._asked[spec.name]
            with self._place.connect(number) as connection:
                for row in connection.execute(statement):
                    found.add((spec.name, keys.record_text(tuple(row[:width])), occurrences.occurrence_text(spec, row[width:])))
        return frozenset(found)

    def _count_conditions_that_became_true(self, now: frozenset[Condition]) -> None:
        self._entries.update(now - self._holding)
        before, after = {one[:2] for one in self._holding}, {one[:2] for one in now}
        self._rounds.update(after - before)
        self._rounds.update(self._moved_on & before & after)
        self._moved_on.clear()
        self._holding = now

    # ---- between the engine and the handlers -----------------------------------------------------------------------------------------
    def _wrap_handlers(self, spec: ReactionSpec) -> ReactionSpec:
        def wrap(function: Function | None, *, concludes: bool, ordinary: bool) -> Function | None:
            if function is None:
                return None
            return replace(function, call=wraps(function.call)(partial(self._run_handler, spec, function.call, concludes, ordinary)))

        handler = wrap(spec.handler, concludes=spec.call is not None, ordinary=True)
        assert handler is not None  # noqa: S101  # every reaction has a handler
        return replace(
            spec,
            handler=handler,
            overtaken=wrap(spec.overtaken, concludes=True, ordinary=False),
            gave_up=wrap(spec.gave_up, concludes=False, ordinary=False),
            expired=wrap(spec.expired, concludes=False, ordinary=False),
            prepare=spec.prepare
            and replace(spec.prepare, call=wraps(spec.prepare.call)(partial(self._run_prepare, spec, spec.prepare.call))),
        )

    def _run_handler(
        self, spec: ReactionSpec, handler: Callable[..., Any], concludes: bool, ordinary: bool, record: Any, *more: Any, **supplied: Any
    ) -> None:
        text = keys.record_text(inspect(record).identity)
        round_ = occurrences.occurrence_text(spec, [getattr(record, column.key) for column in spec.occurrence])
        assert self.stage is not None  # noqa: S101  # handlers run only on a stage
        transaction = self.stage.callbacks_of_current_transaction()
        self._ran.append((spec.name, concludes, ordinary, text, round_))
        with self._watch_user_function(spec):
            handler(record, *more, **supplied)
        if transaction is not None:
            values = inspect(record).dict  # the plain dict, since an attribute access could reload a row that the handler deleted
            if round_ != occurrences.occurrence_text(spec, [values.get(column.key) for column in spec.occurrence]):
                moved = partial(self._moved_on.add, (spec.name, text))
                transaction.append(moved)
                _remove_on_rollback(transaction, moved, inspect(record).session)
            took = partial(self._record_committed_handler, (spec.name, text, round_), more[0] if concludes else None, concludes, ordinary)
            transaction.append(took)
            _remove_on_rollback(transaction, took, inspect(record).session)

    def _run_prepare(self, spec: ReactionSpec | ScheduleSpec, prepare: Callable[..., Any], *more: Any, **supplied: Any) -> Any:
        self._ran.append(spec.name)
        with self._watch_user_function(spec):
            return prepare(*more, **supplied)

    @contextmanager
    def _watch_user_function(self, spec: ReactionSpec | ScheduleSpec) -> Iterator[None]:
        """Watch the user's function that runs in the block. If it does something forbidden, a Violation is raised. The Violation ends the
        run, even if the engine catches it.
        """
        try:
            with nullcontext() if self._around is None else self._around(spec.name):
                yield
        except Violation as wrong:
            if self.stage is not None:
                self.stage.wrong = wrong
            raise

    def _record_committed_handler(self, condition: Condition, outcome: Any, concludes: bool, ordinary: bool) -> None:
        """Record that a handler's work was committed.

        condition: reaction, record and occurrence (round of the record) before the handler ran.
        concludes: whether the handler received an outcome.
        ordinary: whether it was the reaction's main handler, and not `overtaken`, `gave_up` or `expired`.
        """
        reaction, record, round_ = condition
        if ordinary:
            self.carried_out.add(reaction)
        if not concludes:
            return
        same = [
            one for fake in self._fakes for one in fake.ledger.entries if one.identity[1:3] == (reaction, record) and one.answer == outcome
        ]
        for one in [one for one in same if one.identity[3] == round_] or same:
            entered = self._entries[one.identity[1:]]
            earlier = one.identity[3] != round_ or (one.taken and entered > one.taken_in)
            written_as_same = self._declared[reaction].when_overtaken == "same"
            if ordinary and earlier and not written_as_same and self._policies[reaction] != "repeat" and self.stage is not None:
                self.stage.wrong = Violation(
                    "NotLost",
                    f"{reaction} of {record}: the outcome of an earlier round ({outcome!r}) was written for this one, which had no call",
                )
            one.taken += 1
            one.taken_in = max(entered, 1)


def _remove_on_rollback(transaction: list[Callable[[], None]], took: Callable[[], None], session: Session | None) -> None:
    """If the session's savepoint is rolled back, remove the function `took` from the list `transaction`.

    The list has the functions to call at the commit.

    An event of the session reports the rollback. The statement ROLLBACK TO SAVEPOINT cannot serve for this: SQLAlchemy does not send it if
    the handler failed before its first statement.
    """
    nested = session.get_nested_transaction() if session is not None else None
    if session is None or nested is None:
        return

    def remove_if_ended(_session: Session, ended: SessionTransaction) -> None:
        if ended is nested and took in transaction:
            transaction.remove(took)

    event.listen(session, "after_soft_rollback", remove_if_ended)


def _select_records_meeting_condition(spec: ReactionSpec) -> tuple[Any, int]:
    """Return a pair: a SELECT of the key and occurrence columns of the records that meet the condition, and the number of key columns."""
    key = [getattr(spec.record, spec.mapper.get_property_by_column(column).key) for column in spec.mapper.primary_key]
    return select(*key, *spec.occurrence).where(*spec.clauses), len(key)

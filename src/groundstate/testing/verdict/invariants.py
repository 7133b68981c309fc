"""The judge of a run: it sees every effect at external services and every commit, and checks both against the invariants.

The invariants have the protocol's names: Listed, NotLost, AtMostOnce, OncePerKey, StickyDoubt, OutcomeKept, NothingAtRest and Progress.
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
from groundstate.testing.simulate.due_times import Times
from groundstate.testing.simulate.fake_provider import Effect, Fake
from groundstate.testing.simulate.sim_process import Process
from groundstate.testing.simulate.simulation import Stage
from groundstate.values import keys

Check = Callable[[Session], object]
Condition = tuple[str, str, str]  # reaction, record, occurrence
Look = tuple[Any, ...]  # an attempt (identity, state, failures, retry time), or a record or schedule with its next due time
_HANDLERS_FAULT = ("the handler raised", "made no progress", "its flush was refused", "a reaction with done_column=")


class Violation(AssertionError):
    """Raised where an invariant does not hold; `name` says which."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__(f"{name}: {words}")
        self.name = name
        self.words = words


@dataclass(frozen=True)
class Standing:
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


_STANDING = f"SELECT {', '.join(Standing.__dataclass_fields__)} FROM {tables.attempt.name}"  # noqa: S608  # the names are groundstate's own


@dataclass(frozen=True)
class Known:
    """What the judge knows of the database's content; it is restored together with the database."""

    taken: tuple[tuple[Effect[Any], int, int], ...]
    entries: Counter[Condition]
    holding: frozenset[Condition]


class Book:
    """The judge of one run. It wraps the user's handlers, so that it knows which outcome went into which commit."""

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
        self._asked = {spec.name: _holding(spec) for _, spec in self._plain}
        self._times = Times(place, self._plain)
        self.schedules: Sequence[Sequence[ScheduleSpec]] = ()  # the schedules of each store
        self._policies = {spec.name: spec.call.in_doubt.kind for _, spec in self._plain if spec.call is not None}
        self._declared = {spec.name: spec for _, spec in self._plain}
        self._entries: Counter[Condition] = Counter()
        self._rounds: Counter[tuple[str, str]] = Counter()  # by reaction and record: in how many occurrences a call is wanted at most
        # reactions and records whose own handlers moved the occurrence since `_rounds` was counted last
        self._moved_on: set[tuple[str, str]] = set()
        self._holding: frozenset[Condition] = frozenset()
        self._restored = False
        self._brought: list[tuple[Process, Effect[Any]]] = []
        self._ran: list[object] = []  # the user's functions that ran and their records, and the states that `always` was shown
        self.stage: Stage | None = None
        self.taken: set[str] = set()  # reactions of which a handler's work was committed
        self.specs = [[self._wrapped(spec) for spec in some] for some in specs]

    def ticking(self, spec: ScheduleSpec) -> ScheduleSpec:
        """Return the schedule with its handler watched for what must not be done in a transaction."""
        handler = spec.handler
        return replace(spec, handler=replace(handler, call=wraps(handler.call)(partial(self._prepare, spec, handler.call))))

    def begin(self, stage: Stage) -> None:
        """Start a run: each condition that holds now counts as entered once."""
        self.stage = stage
        self._entries.clear()
        self._rounds.clear()
        self._moved_on.clear()
        self._brought.clear()
        self._ran.clear()
        self._holding, self._restored = frozenset(), False
        self._enter(self._now_holding())

    # ---- notifications of the stage --------------------------------------------------------------------------------------------------
    def committed(self, *, ours_alone: bool) -> None:
        """Check the invariants after a commit; raise Violation. ours_alone: no condition can have changed."""
        standing = self._standing()
        if not ours_alone:
            self._enter(self._now_holding())
        self._every_effect_is_listed(standing)
        self._no_doubt_is_cleared(standing)
        for one in standing:
            if one.error and one.error.startswith(_HANDLERS_FAULT) and one.reaction not in self._may_fail:
                raise Violation("Progress", f"{one.reaction} of {one.record}: {one.error}")
        self._nothing_goes_round()
        if self._always is not None:
            if not ours_alone and self.stage is not None and self.stage.restarts is not None:
                self._ran.append(self._place.state())
            with self._place.session() as session:
                self._always(session)

    def leave(self, in_flights: Sequence[InFlightCall]) -> None:
        """Raise Violation where a call goes out before its attempt is committed."""
        listed = {one.identity for one in self._standing()} if in_flights else set()
        for in_flight in in_flights:
            if in_flight.identity not in listed and self._policies[in_flight.identity[1]] != "repeat":
                raise Violation("Listed", f"the call of {in_flight.identity[1]} of {in_flight.identity[2]} goes out, and no attempt stands")

    def brought(self, process: Process, effect: Effect[Any]) -> None:
        self._brought.append((process, effect))

    def acted(self, effect: Effect[Any]) -> None:
        """Check a new effect against the earlier ones of its record; raise Violation where it is one too many."""
        reaction = effect.identity[1]
        policy = self._policies[reaction]
        if policy == "repeat":
            return
        self._enter(self._now_holding())
        same = [one for fake in self._fakes for one in fake.ledger.entries if one.identity == effect.identity]
        entered = max(self._entries[effect.identity[1:]], 1)
        if len(same) > entered:
            name = "OncePerKey" if policy == "same_key" else "AtMostOnce"
            times = f"it entered its condition {entered} time{'s' if entered > 1 else ''}"
            raise Violation(
                name, f"{reaction} of {effect.identity[2]} was done {len(same)} times, and {times}; keys {[one.key for one in same]}"
            )
        self._no_second_call_for_the_record(effect)
        self._every_effect_is_listed(self._standing())

    def left(self) -> object:
        """Return what the judge knows of the run beside the database and the external services, and will use later."""
        assert self.stage is not None  # noqa: S101  # it is called only during a run
        counted = [sorted(some.items()) for some in (self._entries, self._rounds)]
        brought = [(one.key, one.answer) for process, one in self._brought if not process.killed]
        rings = [one.words for process in self.stage.processes for worker in process.workers for one in worker.incarnation.rings.told]
        looks = sorted(map(repr, self.looks()))
        return counted, sorted(self._moved_on), sorted(self._holding), self._restored, brought, rings, looks, self._ran

    def copied(self) -> Known:
        taken = tuple((one, one.taken, one.taken_in) for fake in self._fakes for one in fake.ledger.entries)
        return Known(taken, self._entries.copy(), self._holding)

    def put_back(self, known: Known) -> None:
        self._restored = True
        before = {id(effect): (taken, entry) for effect, taken, entry in known.taken}
        for fake in self._fakes:
            for one in fake.ledger.entries:
                one.taken, one.taken_in = before.get(id(one), (0, 0))
        self._entries, self._holding = known.entries.copy(), known.holding

    # ---- at the end ----------------------------------------------------------------------------------------------------------------
    def at_the_end(self) -> list[Standing]:
        """Check the invariants of the end after a clean stop, and return the attempts that are held. Raises Violation."""
        standing = self._standing()
        early = self._times.early(self._until())
        for reaction, record, occurrence in sorted(self._now_holding()):
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
        self._every_outcome_is_kept(standing)
        for number in range(len(self.specs)):
            with self._place.connect(number) as connection:
                left = connection.execute(select(tables.worker.c.id).where(tables.worker.c.ended_at.is_(None))).all()
            if left:
                raise Violation("NothingAtRest", f"all has ended cleanly, and {len(left)} rows stand in groundstate_worker")
        return [one for one in standing if one.state == "held"]

    def _span(self) -> tuple[datetime, datetime | None]:
        """Return the time now and the time after which due records are no longer waited for (None: no limit)."""
        assert self.stage is not None  # noqa: S101  # it is called only during a run
        return self.stage.time.now(), self.stage.clock.ends

    def _until(self) -> datetime:
        """Return the time by which a record must have become due to be carried out in this run."""
        now, ends = self._span()
        return now if ends is None else min(now, ends)

    def looks(self) -> frozenset[Look]:
        """Return when each failed or doubtful attempt is tried again, when each record becomes due or expires, and when schedules tick.

        The times are of the database's clock. Records due after the run's end are left out; ticks have no end of their own, so they are
        returned only if the run has one.
        """
        table = tables.attempt.c
        asked = select(table.reaction, table.record, table.occurrence, table.state, table.failures, table.next_at)
        found: set[Look] = {*self._times.to_come(*self._span()), *self._times.ticks(self.schedules, *self._span())}
        for number in range(len(self.specs)):
            with self._place.connect(number) as connection:
                found.update(map(tuple, connection.execute(asked.where(table.state.in_(["failed", "doubt"]), table.next_at.is_not(None)))))
        return frozenset(found)

    # ---- what is judged ------------------------------------------------------------------------------------------------------------
    def _every_effect_is_listed(self, standing: Sequence[Standing]) -> None:
        if self._restored:
            return
        listed = {one.identity for one in standing}
        for fake in self._fakes:
            for one in fake.ledger.entries:
                if not one.taken and one.identity not in listed and self._policies[one.identity[1]] != "repeat":
                    raise Violation(
                        "Listed",
                        f"{one.identity[1]} of {one.identity[2]} was done ({one.answer!r}), no record says so, and no attempt stands",
                    )

    def _nothing_goes_round(self) -> None:
        assert self.stage is not None  # noqa: S101  # it is called only during a run
        for worker in (worker for process in self.stage.processes for worker in process.workers):
            for one in worker.incarnation.rings.told:
                if not self._may_fail.issuperset(one.reactions):
                    raise Violation("Progress", one.words)

    def _no_second_call_for_the_record(self, effect: Effect[Any]) -> None:
        """Raise Violation where a reaction acts for a record again, although its first outcome is not in the record.

        Where only the due time separates the occurrences, it may act again only if the record entered its condition anew, or the reaction's
        own handlers moved the due time.
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
                    f" ({one.answer!r}) is in no record: a person must say first whether both are meant",
                )
        rounds = max(self._rounds[reaction, record], 1)
        if spec.due is not None and not spec.occurrence_said and len(earlier) >= rounds:
            raise Violation(
                "AtMostOnce",
                f"{reaction} of {record} was done {len(earlier) + 1} times, since somebody moved its due time: say by occurrence= what"
                " tells one round from the next, or occurrence=() where it is to be done once",
            )

    def _every_outcome_is_kept(self, standing: Sequence[Standing]) -> None:
        """Check that each outcome that came back to a process that was not killed is in the record, or held with the attempt."""
        if self._restored:
            return
        kept = {one.identity for one in standing if one.outcome is not None}
        for process, one in self._brought:
            if not (one.taken or process.killed or one.identity in kept or self._policies[one.identity[1]] == "repeat"):
                raise Violation("OutcomeKept", f"{one.identity[1]} of {one.identity[2]}: its outcome {one.answer!r} came, and was dropped")

    def _no_doubt_is_cleared(self, standing: Sequence[Standing]) -> None:
        if self._restored:
            return
        sure = {
            one.identity: one for one in standing if one.state == "failed" or (one.state == "held" and not one.unsure and not one.outcome)
        }
        for fake in self._fakes:
            for one in fake.ledger.entries:
                if not one.taken and one.identity in sure and self._policies[one.identity[1]] != "repeat":
                    raise Violation("StickyDoubt", f"{sure[one.identity]}, as if it was surely not done, and it was ({one.answer!r})")

    def _standing(self) -> list[Standing]:
        rows = [row for number in range(len(self.specs)) for row in self._place.ask(number, _STANDING)]
        return [replace(one, unsure=bool(one.unsure)) for one in (Standing(*row) for row in rows)]

    def _now_holding(self) -> frozenset[Condition]:
        found: set[Condition] = set()
        for number, spec in self._plain:
            statement, width = self._asked[spec.name]
            with self._place.connect(number) as connection:
                for row in connection.execute(statement):
                    found.add((spec.name, keys.record_text(tuple(row[:width])), occurrences.text_of(spec, row[width:])))
        return frozenset(found)

    def _enter(self, now: frozenset[Condition]) -> None:
        self._entries.update(now - self._holding)
        before, after = {one[:2] for one in self._holding}, {one[:2] for one in now}
        self._rounds.update(after - before)
        self._rounds.update(self._moved_on & before & after)
        self._moved_on.clear()
        self._holding = now

    # ---- between the engine and the handlers -----------------------------------------------------------------------------------------
    def _wrapped(self, spec: ReactionSpec) -> ReactionSpec:
        def put(function: Function | None, *, concludes: bool, ordinary: bool) -> Function | None:
            if function is None:
                return None
            return replace(function, call=wraps(function.call)(partial(self._run, spec, function.call, concludes, ordinary)))

        handler = put(spec.handler, concludes=spec.call is not None, ordinary=True)
        assert handler is not None  # noqa: S101  # every reaction has a handler
        return replace(
            spec,
            handler=handler,
            overtaken=put(spec.overtaken, concludes=True, ordinary=False),
            gave_up=put(spec.gave_up, concludes=False, ordinary=False),
            expired=put(spec.expired, concludes=False, ordinary=False),
            prepare=spec.prepare and replace(spec.prepare, call=wraps(spec.prepare.call)(partial(self._prepare, spec, spec.prepare.call))),
        )

    def _run(
        self, spec: ReactionSpec, handler: Callable[..., Any], concludes: bool, ordinary: bool, record: Any, *more: Any, **supplied: Any
    ) -> None:
        text = keys.record_text(inspect(record).identity)
        round_ = occurrences.text_of(spec, [getattr(record, column.key) for column in spec.occurrence])
        assert self.stage is not None  # noqa: S101  # handlers run only on a stage
        transaction = self.stage.transaction_of_me()
        self._ran.append((spec.name, concludes, ordinary, text, round_))
        with self._watching(spec):
            handler(record, *more, **supplied)
        if transaction is not None:
            values = inspect(record).dict  # The plain dict is read because an attribute access could reload a row that the handler deleted.
            if round_ != occurrences.text_of(spec, [values.get(column.key) for column in spec.occurrence]):
                moved = partial(self._moved_on.add, (spec.name, text))
                transaction.append(moved)
                _forget_where_rolled_back(transaction, moved, inspect(record).session)
            took = partial(self._took, (spec.name, text, round_), more[0] if concludes else None, concludes, ordinary)
            transaction.append(took)
            _forget_where_rolled_back(transaction, took, inspect(record).session)

    def _prepare(self, spec: ReactionSpec | ScheduleSpec, prepare: Callable[..., Any], *more: Any, **supplied: Any) -> Any:
        self._ran.append(spec.name)
        with self._watching(spec):
            return prepare(*more, **supplied)

    @contextmanager
    def _watching(self, spec: ReactionSpec | ScheduleSpec) -> Iterator[None]:
        """Watch a user's function; an action that is forbidden in a transaction ends the run, even if the engine catches the Violation."""
        try:
            with nullcontext() if self._around is None else self._around(spec.name):
                yield
        except Violation as wrong:
            if self.stage is not None:
                self.stage.wrong = wrong
            raise

    def _took(self, condition: Condition, outcome: Any, concludes: bool, ordinary: bool) -> None:
        """Record that a handler's work was committed. condition: reaction, record and occurrence as the handler found them."""
        reaction, record, round_ = condition
        if ordinary:
            self.taken.add(reaction)
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
                    f"{reaction} of {record}: the outcome of an earlier round ({outcome!r}) was taken for this one's, which was not done",
                )
            one.taken += 1
            one.taken_in = max(entered, 1)


def _forget_where_rolled_back(transaction: list[Callable[[], None]], took: Callable[[], None], session: Session | None) -> None:
    """Remove `took` from the transaction's callbacks if its savepoint is rolled back.

    SQLAlchemy sends no ROLLBACK TO SAVEPOINT where the handler failed before its first statement, so the session's event is used.
    """
    nested = session.get_nested_transaction() if session is not None else None
    if session is None or nested is None:
        return

    def rolled_back(_session: Session, ended: SessionTransaction) -> None:
        if ended is nested and took in transaction:
            transaction.remove(took)

    event.listen(session, "after_soft_rollback", rolled_back)


def _holding(spec: ReactionSpec) -> tuple[Any, int]:
    """Return a SELECT of the records whose condition holds, with their occurrences, and the number of its key columns."""
    key = [getattr(spec.record, spec.mapper.get_property_by_column(column).key) for column in spec.mapper.primary_key]
    return select(*key, *spec.occurrence).where(*spec.clauses), len(key)

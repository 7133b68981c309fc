"""Which reactions a worker carries out: those whose condition stands as it was accepted. New and changed ones wait for a person.

(Hazards 49 and 50.) Of a changed one the rows that the accepted condition matches as well are carried out all the same, so that neither a
new version nor an older one beside it stands still. Reads what was accepted, and says what was not; carries nothing out.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence

from sqlalchemy.exc import DBAPIError

from groundstate.engine import accepting, barred, baselines, check, put_back, registry, trouble, unfit
from groundstate.engine.lane import Lane
from groundstate.engine.pulse import Pulse
from groundstate.engine.put_back import Waiting
from groundstate.engine.question import Question
from groundstate.engine.registry import Known, Newcomer
from groundstate.engine.shift import Shift
from groundstate.rules.acceptance import Acceptance
from groundstate.rules.reaction import ReactionSpec
from groundstate.values.errors import StoreRefused

log = logging.getLogger("groundstate")
OLDER_EACH_S = 600.0


class Admission:
    """Of one worker; for its transactions' thread alone. accept: which new and changed reactions are started on rows that are there.

    leave_undeclared: attempts of reactions that this code does not declare are left alone, and do not keep it from starting.
    """

    def __init__(self, shift: Shift, *, accept: Acceptance, leave_undeclared: bool = False) -> None:
        self._shift = shift
        self._accept = accept
        self._leave_undeclared = leave_undeclared
        self._known = ""
        self._looks_at_older = 0.0
        self._of_unsaid_records: list[ReactionSpec] = []  # that older code accepted
        self._unasked: set[str] = set()  # conditions of baselines that this database cannot be asked any more
        self.refused: list[Newcomer] = []  # what is not started until a person accepts it

    def read(self) -> None:
        """Before the first life begins. Raises StoreRefused where attempts are open of reactions that this code does not declare."""
        shift = self._shift
        with shift.database.reading() as connection:
            left = registry.removed(connection, shift.app, [lane.name for lane in shift.lanes], shift.schedules)
            if left:
                self._refuse_or_leave(left)
            seen = registry.known(connection, shift.app)
            specs = [lane.question.spec for lane in shift.lanes]
            clashes = registry.key_clashes(connection, specs)
            if clashes:
                raise StoreRefused("; ".join(clashes))
            _say_key_names(registry.unsaid_key_names(connection, shift.app, specs))
            for lane in shift.parts:
                lane.question.has_triggers = registry.has_triggers(connection, shift.database, lane.question)
        self._remember(seen)
        gone = registry.gone(seen, {*(lane.name for lane in shift.lanes), *shift.schedules})
        if gone:
            log.warning("%s", registry.gone_in_words(gone), extra={"event": "reactions_gone", "reactions": list(gone)})
        for lane in shift.lanes:
            for part in _parts(lane):
                part.admitted = _accepted(seen, lane)
        self._of_unsaid_records = [lane.question.spec for lane in shift.lanes if lane.admitted and seen[lane.name].record is None]

    def _refuse_or_leave(self, left: Sequence[tuple[str, int]]) -> None:
        listed = ", ".join(f"{name or repr(name)} ({count})" for name, count in left)
        if not self._leave_undeclared:
            raise StoreRefused(
                f"attempts are open for reactions that this code does not declare: {listed}. "
                "Renamed: `groundstate rename OLD NEW`. Removed: settle or forget them first (`groundstate held`). "
                "Rolled back: `groundstate run --leave-undeclared` starts and leaves them to the code that declares them"
            )
        log.warning(
            "attempts of reactions that this code does not declare are left as they are, to the code that does: %s",
            listed,
            extra={"event": "undeclared_left", "reactions": [name for name, _ in left], "count": sum(count for _, count in left)},
        )

    def count_newcomers(self) -> None:
        """New and changed reactions, once the known ones are under way: counting may take a while.

        Those of which nothing can be asked before a migration has run are counted after it.
        """
        shift = self._shift
        counted = {one.name for one in self.refused}
        if self._of_unsaid_records:
            registry.remember_records(shift.life, self._of_unsaid_records)
            self._of_unsaid_records = []
        pending = [lane.question for lane in shift.lanes if not lane.admitted and lane.name not in counted]
        if not pending:
            return
        with shift.database.reading() as connection:
            seen = registry.known(connection, shift.app)
            silent, loud = registry.newcomers(connection, pending, seen, _unasked)
            told = {*(one.name for one in loud), *(question.spec.name for question in silent)}
            others = [question for question in pending if question.spec.name not in told]
            older = [one for one in others if registry.is_quietly_older(connection, one, seen.get(one.spec.name))]
        if len(older) < len(others):
            unfit.look_over(shift)  # so that it is known what they wait for
        registry.write(shift.life, silent)
        started = accepting.start(shift.life, {question.spec.name: question for question in pending}, loud, self._accept, seen)
        for question in [*silent, *started]:
            question.widen()
            if question.spec.name not in shift.life.waiting:
                shift.lane(question.spec.name).start()
        if started:
            shift.look_for_due()
        names = {question.spec.name for question in started}
        refused = [newcomer for newcomer in loud if newcomer.name not in names]
        both = {one.name for one in refused if one.both}
        for question in [*older, *(one for one in pending if one.spec.name in both)]:
            if not question.narrowed:
                question.narrow(seen[question.spec.name].condition)
            if question.spec.name not in shift.life.waiting:
                shift.lane(question.spec.name).start()
        self.refused = [*self.refused, *refused]
        for newcomer in refused:
            log.error("%s", newcomer.words, extra={"event": "reaction_refused", "reaction": newcomer.name, "rows": newcomer.rows})

    def look_at_older(self) -> None:
        """Whether this is older code that has run for so long beside, or after, what was accepted since that it must be what is meant."""
        if time.monotonic() < self._looks_at_older:
            return
        self._looks_at_older = time.monotonic() + OLDER_EACH_S
        shift, refused = self._shift, {one.name for one in self.refused}
        older = [lane for lane in shift.lanes if lane.admitted and lane.question.narrowed and lane.name not in refused]
        if not older:
            return
        with shift.database.reading() as connection:
            seen = registry.known(connection, shift.app)
            over = [lane for lane in older if not registry.is_older(connection, lane.question, seen.get(lane.name))]
        for lane in over:
            lane.admitted = False
        if over:
            self.count_newcomers()

    def read_again(self, pulse: Pulse) -> None:
        """What a person may have said meanwhile by a command: trust, accept; and baselines that are over."""
        if pulse.known == self._known and not pulse.attempts:
            return
        news, self._known = pulse.known != self._known, pulse.known
        shift = self._shift
        with shift.database.reading() as connection:
            seen = registry.known(connection, shift.app)
            left = baselines.reactions_with_some(connection, shift.app)
            waiting = put_back.waiting(shift.database, connection, shift.app) if news else None
        self._remember(seen)
        if waiting is not None:
            self._hold_back(waiting)
        self._stop_those_of_other_records(seen)
        for lane in shift.lanes:
            if lane.name not in shift.life.waiting and _accepted(seen, lane) and (not lane.admitted or lane.question.narrowed):
                self.refused = [newcomer for newcomer in self.refused if newcomer.name != lane.name]
                lane.question.widen()
                lane.start()
            elif lane.name not in shift.life.waiting and lane.question.narrowed and not lane.admitted:
                lane.start()
            if lane.name in left and lane.lacks is None:
                self._let_baselines_go(lane)

    def _stop_those_of_other_records(self, seen: dict[str, Known]) -> None:
        """Newer code, whose records are known by another table or key, was accepted beside this one: neither sees the other's attempts."""
        for lane in self._shift.lanes:
            before = seen.get(lane.name)
            if before is None or not before.has_other_records(lane.question) or not any(part.admitted for part in _parts(lane)):
                continue
            for part in _parts(lane):
                part.admitted = False
            log.error(
                "%s is carried out here no more: code was accepted for which its records are %s, and here they are %s. Stop this worker",
                lane.name,
                before.record,
                lane.question.spec.records,
                extra={"event": "records_moved", "reaction": lane.name},
            )

    def _hold_back(self, waiting: Waiting) -> None:
        names = waiting.among(lane.question.spec for lane in self._shift.lanes)
        if names - self._shift.life.waiting:
            put_back.say(names)
        self._shift.hold_back(names)

    def look_again(self) -> bool:
        """At what a migration may have mended; whether any of it can go on."""
        went_on = unfit.look_again(self._shift)
        if went_on:
            self.count_newcomers()
        return went_on

    def _let_baselines_go(self, lane: Lane) -> None:
        try:
            baselines.let_go(self._shift.life, lane.question, self._unasked)
        except DBAPIError as error:
            if trouble.transient(error) or not unfit.met(self._shift, lane, error):
                raise

    def warn(self) -> None:
        """A condition that reads a whole large table is said at each start (hazard 28), and so are rows that this role may not see, due
        times in SQLite that are none, and records with columns that are not there.
        """
        unfit.look_over(self._shift)
        # A courtesy: what goes wrong in it must not keep anything from being carried out.
        with contextlib.suppress(Exception), self._shift.database.reading(wait=barred.WAIT) as connection:
            questions = [lane.question for lane in self._shift.lanes]
            for finding in check.hidden_rows(self._shift.database, connection, questions):
                log.warning("%s. Cure: %s", finding.words, finding.cure, extra={"event": "rows_hidden"})
            for finding in check.other_times(connection, questions):
                log.warning(
                    "%s: %s. Cure: %s",
                    finding.subject,
                    finding.words,
                    finding.cure,
                    extra={"event": "due_time_odd", "reaction": finding.subject},
                )
            for finding in check.large_scans(self._shift.database, connection, questions):
                log.warning("%s. Cure: %s", finding.words, finding.cure or "see `groundstate check`", extra={"event": "condition_scans"})

    def _remember(self, seen: dict[str, Known]) -> None:
        self._shift.life.key_names = {known.name: known.key_name for known in seen.values()}
        self._shift.life.suspects = {known.name for known in seen.values() if known.suspect}


def _say_key_names(unsaid: Mapping[str, str]) -> None:
    for name, key_name in unsaid.items():
        log.warning(
            "%s was renamed, and this database alone knows of which name the keys of its calls are made: say key_name=%s in App.on, so that"
            " they stay the same where groundstate's tables are lost, or put back from before",
            name,
            key_name,
            extra={"event": "key_name_unsaid", "reaction": name},
        )


def _parts(lane: Lane) -> list[Lane]:
    return [part for part in (lane, lane.late) if part is not None]


def _accepted(seen: dict[str, Known], lane: Lane) -> bool:
    before = seen.get(lane.name)
    return before is not None and before.is_as(lane.question)


def _unasked(question: Question, error: DBAPIError, words: str) -> None:
    if not trouble.undefined(error):  # of which unfit.py tells, and looks again
        log.error(
            "%s is not started: %s",
            question.spec.name,
            words,
            extra={"event": "condition_unaskable", "reaction": question.spec.name},
        )

"""Faults of time, each planted in the engine by changing some words of one function, with what shows it. Runs nothing."""

from __future__ import annotations

from groundstate.engine import ahead, begin, leaps
from groundstate.engine.flight import Flight
from groundstate.engine.question import Question
from groundstate.engine.ticks import Ticks
from groundstate.engine.timing import Timing
from groundstate.rules import attempt as rules
from tests.lab import timed_apps as timed
from tests.lab.engine_faults import Fault
from tests.lab.planting import Change
from tests.lab.searching import around_the_first_find, at, leap, moods, nothing, sampled, there_and_back

OWN_CLOCK = """from datetime import UTC, datetime, timedelta
    from groundstate.engine import leaps
    from sqlalchemy import bindparam
    began = datetime(2027, 10, 31, 0, 30, tzinfo=UTC)
    own = lambda: began + timedelta(seconds=leaps.boot_s()) + ahead
    return bindparam("own", callable_=own, type_=Instant(), unique=True)"""

MARKED = "at_mark = self._sound(plan, mark, seen.now)\n"
SET_BACK = """    if at_mark is not None and at_mark > seen.now:
        with self._shift.life.transaction() as tx:
            mark, at_mark = marks.move(tx, spec, seen.now), seen.now
"""

FAULTS = [
    Fault(
        "due times are compared with the worker's own clock",
        timed.REMINDERS,
        leap(3, after=70),
        "assertion",
        [Change(Timing, "now", "return OneMoment(self._database, ahead) if self._embedded else self._database.now(ahead)", OWN_CLOCK)],
    ),
    Fault(
        "a record is taken before its time has come",
        timed.REMINDERS,
        nothing,
        "assertion",
        [Change(Timing, "come", "(le, -self._due.since)", "(le, timedelta(days=1))")],
    ),
    Fault(
        "nobody answers what is too late",
        timed.REMINDERS,
        sampled(leap(1), 9),
        "NotLost",
        [Change(Question, "late", "if self.spec.due is None or", "if True or")],
    ),
    Fault(
        "a call is begun for what is too late",
        timed.MESSAGES,
        leap(1, after=30),
        "assertion",
        [Change(Timing, "ready", "return self.come if until is None else", "return self.come if True else")],
    ),
    Fault(
        "a doubt that is too late is called again",
        timed.MESSAGES,
        moods(["lost"] * 3),
        "assertion",
        [Change(rules, "_by_policy", "if facts.holds and not facts.expired and not key_too_old", "if facts.holds and not key_too_old")],
    ),
    Fault(
        "the key of a month's charge leaves the month out",
        timed.RENEWED,
        nothing,
        "NotLost",
        [Change(begin, "_fly", "attempt.record, attempt.occurrence)", "attempt.record, '')")],
    ),
    Fault(
        "deadlines do not follow a clock that leaps ahead",
        timed.ASKED,
        leap(1, beside=["late"], after=70),
        "AtMostOnce",
        [Change(leaps, "moved", "max(attempt.deadline + by + NOTICED, now)", "attempt.deadline")],
    ),
    Fault(
        "nobody notices that the clock leapt",
        timed.ASKED,
        leap(1, beside=["late"], after=70),
        "AtMostOnce",
        [Change(leaps.Pace, "leapt", "if least > NOTICED or most < -NOTICED:", "if False:")],
    ),
    Fault(
        "a step back leaves the age of a key ahead",
        timed.KEYED,
        leap(2, beside=["late", "lost", "lost"], after=70),
        "OncePerKey",
        [
            Change(leaps, "moved", "first_at=attempt.first_at + back", "first_at=attempt.first_at"),
            Change(leaps, "moved", "attempt.next_at + by", "attempt.next_at"),
            Change(ahead, "_bound", "retried = tx.connection.execute(", "return 0\n    retried = tx.connection.execute("),
        ],
    ),
    Fault(
        "a find that was asked before the clock stepped back counts as asked late",
        timed.FINDS,
        around_the_first_find(1),
        "AtMostOnce",
        [Change(Flight, "asked_by", "return at_latest if asked_at - at_latest > NOTICED else asked_at", "return asked_at")],
    ),
    Fault(
        "what failed while the clock stood ahead waits for it after its step back",
        timed.HELD,
        there_and_back(27, beside=["refused"]),
        "assertion",
        [Change(ahead, "_bound", "retried = tx.connection.execute(", "return 0\n    retried = tx.connection.execute(")],
    ),
    Fault(
        "a schedule's mark is moved in another transaction than its tick",
        timed.BERLIN_GAP,
        at("die", "committed"),
        "assertion",
        [
            Change(
                Ticks,
                "_run",
                "            return marks.move(tx, plan.spec, tick)\n\n    try:",
                "        with self._shift.life.transaction() as tx:\n            return marks.move(tx, plan.spec, tick)\n\n    try:",
            )
        ],
    ),
    Fault(
        "a step back of the clock takes a schedule's mark along",
        timed.BERLIN_OVERLAP,
        leap(2, after=100),
        "assertion",
        [Change(Ticks, "_carry_out", MARKED, MARKED + SET_BACK)],
    ),
]

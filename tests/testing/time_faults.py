"""Faults of time, each planted in the engine by changing some words of one function, with what shows it. Runs nothing."""

from __future__ import annotations

from groundstate.engine.call import begin
from groundstate.engine.recover import clamp_future
from groundstate.engine.rows import clock_jumps
from groundstate.engine.rows.in_flight import InFlightCall
from groundstate.engine.schedule.run_ticks import TickRunner
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.due_expression import Timing
from groundstate.rules import attempt as rules
from tests.testing import timed_apps as timed
from tests.testing.engine_faults import Fault
from tests.testing.planting import Change
from tests.testing.searching import around_the_first_find, at, leap, moods, nothing, sampled, there_and_back

OWN_CLOCK = """from datetime import UTC, datetime, timedelta
    from sqlalchemy import bindparam
    began = datetime(2027, 10, 31, 0, 30, tzinfo=UTC)
    own = lambda: began + timedelta(seconds=self._database.clock.uptime_s()) + ahead
    return bindparam("own", callable_=own, type_=UtcDateTime(), unique=True)"""

MARKED = "at_mark = self._checked_cursor_time(plan, mark, seen.now)\n"
SET_BACK = """    if at_mark is not None and at_mark > seen.now:
        with self._worker_state.incarnation.open_transaction() as tx:
            mark, at_mark = cursors.move_cursor(tx, spec, seen.now), seen.now
"""

FAULTS = [
    Fault(
        "due times are compared with the worker's own clock",
        timed.REMINDERS,
        leap(3, after=70),
        "assertion",
        [
            Change(
                Timing,
                "clock_plus",
                "return TransactionTime(self._database, ahead) if self._embedded else self._database.now(ahead)",
                OWN_CLOCK,
            )
        ],
    ),
    Fault(
        "a record is taken before its time has come",
        timed.REMINDERS,
        nothing,
        "assertion",
        [Change(Timing, "is_due", "(le, -self._due.min_age)", "(le, timedelta(days=1))")],
    ),
    Fault(
        "nobody answers what is too late",
        timed.REMINDERS,
        sampled(leap(1), 9),
        "NotLost",
        [Change(ConditionQuery, "query_for_expired", "if self.spec.due is None or", "if True or")],
    ),
    Fault(
        "a call is begun for what is too late",
        timed.MESSAGES,
        leap(1, after=30),
        "assertion",
        [Change(Timing, "is_due_and_valid", "return self.is_due if until is None else", "return self.is_due if True else")],
    ),
    Fault(
        "a doubt that is too late is called again",
        timed.MESSAGES,
        moods(["lost"] * 3),
        "assertion",
        [
            Change(
                rules,
                "_decide_by_policy",
                "if facts.holds and not facts.expired and not is_key_too_old",
                "if facts.holds and not is_key_too_old",
            )
        ],
    ),
    Fault(
        "the key of a month's charge leaves the month out",
        timed.RENEWED,
        nothing,
        "NotLost",
        [Change(begin, "_make_in_flight_call", "attempt.record, attempt.occurrence)", "attempt.record, '')")],
    ),
    Fault(
        "deadlines do not follow a clock that leaps ahead",
        timed.ASKED,
        leap(1, beside=["late"], after=70),
        "AtMostOnce",
        [Change(clock_jumps, "with_times_adjusted", "max(attempt.deadline + by + NOTICED, now)", "attempt.deadline")],
    ),
    Fault(
        "nobody notices that the clock leapt",
        timed.ASKED,
        leap(1, beside=["late"], after=70),
        "AtMostOnce",
        [Change(clock_jumps.ClockComparison, "measure_leap", "if least > NOTICED or most < -NOTICED:", "if False:")],
    ),
    Fault(
        "a step back leaves the age of a key ahead",
        timed.KEYED,
        leap(2, beside=["late", "lost", "lost"], after=70),
        "OncePerKey",
        [
            Change(clock_jumps, "with_times_adjusted", "first_at=attempt.first_at + back", "first_at=attempt.first_at"),
            Change(clock_jumps, "with_times_adjusted", "attempt.next_at + by", "attempt.next_at"),
            Change(clamp_future, "_shorten_waits_of", "retried = tx.connection.execute(", "return 0\n    retried = tx.connection.execute("),
        ],
    ),
    Fault(
        "a lookup that was asked before the clock stepped back counts as asked late",
        timed.FINDS,
        around_the_first_find(1),
        "AtMostOnce",
        [Change(InFlightCall, "asked_at_by_clock", "return at_latest if asked_at - at_latest > NOTICED else asked_at", "return asked_at")],
    ),
    Fault(
        "what failed while the clock stood ahead waits for it after its step back",
        timed.HELD,
        there_and_back(27, beside=["refused"]),
        "assertion",
        [Change(clamp_future, "_shorten_waits_of", "retried = tx.connection.execute(", "return 0\n    retried = tx.connection.execute(")],
    ),
    Fault(
        "a schedule's mark is moved in another transaction than its tick",
        timed.BERLIN_GAP,
        at("die", "committed"),
        "assertion",
        [
            Change(
                TickRunner,
                "_run_tick",
                "            return cursors.move_cursor(tx, plan.spec, tick)\n\n    try:",
                "        with self._worker_state.incarnation.open_transaction() as tx:\n"
                "            return cursors.move_cursor(tx, plan.spec, tick)\n\n    try:",
            )
        ],
    ),
    Fault(
        "a step back of the clock takes a schedule's mark along",
        timed.BERLIN_OVERLAP,
        leap(2, after=100),
        "assertion",
        [Change(TickRunner, "_carry_out", MARKED, MARKED + SET_BACK)],
    ),
]

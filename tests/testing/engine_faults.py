"""Faults of the protocol, each planted in the engine by changing some words of one function, with what shows it. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from groundstate.engine.call import begin, call_turn, conclude
from groundstate.engine.handle import apply_outcome, run_handler
from groundstate.engine.recover import adopt, restore, startup
from groundstate.engine.rows import claim, in_flight
from groundstate.engine.sql.attempt_filters import AttemptFilters
from groundstate.engine.sql.calls_in_air import InFlightCalls
from groundstate.engine.sql.record_selects import RecordSelects
from groundstate.engine.watch import due_attempts, sweeps
from groundstate.rules import attempt as rules
from groundstate.rules import blocking
from tests.testing import apps
from tests.testing import user_apps as users
from tests.testing.apps import Case
from tests.testing.planting import Change
from tests.testing.searching import AROUND_CALLS, Search, at, back_in_time, hints, moods, nothing, two_workers


@dataclass(frozen=True)
class Fault:
    """A sentence that says what is wrong, the app and the schedules that show it, and the invariant that breaks."""

    words: str
    case: Case
    search: Search
    invariant: str
    changes: Sequence[Change]


DEATHS_IN_CALLS = at("die", *AROUND_CALLS)
LOST_ANSWERS = moods(["answer-lost"], ["answer-lost", "refused"], ["lost", "answer-lost"])
KEYS_GROW_OLD = moods(["answer-lost", "lost", "lost"])
LATE = moods(["late"], ["late", "done"])
HANGS = moods(["stuck"])
HANGS_BESIDE_ANOTHER = two_workers(beside=["stuck"])
ANSWERS_LATE_BESIDE_ANOTHER = two_workers(beside=["late-answer"])
FAILING = users.failing_on_one("planted-failing")
LATE_ANSWERS = moods(["late-answer"])
CANCELS = at("meanwhile", *AROUND_CALLS)
CANCELS_IN_DOUBT = at("meanwhile", *AROUND_CALLS, beside=["answer-lost"])
REPAIRS = at("meanwhile", "committed")
FROZEN = at("freeze", "call")
GOES_BACK = back_in_time()
WORKERS = two_workers("committed", "call")

FAULTS = [
    Fault(
        "a definite failure clears the doubt of an earlier call",
        apps.KEYED,
        LOST_ANSWERS,
        "StickyDoubt",
        [
            Change(
                rules,
                "on_call_not_done",
                "state = State.DOUBT if attempt.unsure else State.FAILED",
                "state, attempt = State.FAILED, replace(attempt, unsure=False)",
            )
        ],
    ),
    Fault(
        "a time-out is taken for a failure",
        apps.ASKED,
        LOST_ANSWERS,
        "StickyDoubt",
        [Change(rules, "put_in_doubt", "state=State.DOUBT,\n            unsure=True,", "state=State.FAILED,")],
    ),
    Fault(
        "a call whose worker died is taken for one that was not made",
        apps.HELD,
        DEATHS_IN_CALLS,
        "StickyDoubt",
        [Change(rules, "adopt_attempt", "state=State.DOUBT, unsure=True,", "state=State.FAILED,")],
    ),
    Fault(
        "the key of a call is made of its number",
        apps.KEYED,
        LOST_ANSWERS,
        "OncePerKey",
        [
            Change(
                begin,
                "_make_in_flight_call",
                "key=keys.call_key(attempt.app, name, attempt.record, attempt.occurrence)",
                "key=keys.call_key(attempt.app, name, attempt.record, str(attempt.call_no))",
            )
        ],
    ),
    Fault(
        "the key of a call is made of the life that makes it",
        apps.KEYED,
        DEATHS_IN_CALLS,
        "OncePerKey",
        [
            Change(
                begin,
                "_make_in_flight_call",
                "key=keys.call_key(attempt.app, name, attempt.record, attempt.occurrence)",
                "key=keys.call_key(attempt.app, name, attempt.record, str(incarnation.id))",
            )
        ],
    ),
    Fault(
        "the key of a call leaves the occurrence out",
        apps.ROUNDS,
        at("meanwhile", "committed", after_first_call=True),
        "NotLost",
        [Change(begin, "_make_in_flight_call", "attempt.record, attempt.occurrence)", "attempt.record, '')")],
    ),
    Fault(
        "a worker that lives is adopted from",
        apps.UNTROUBLED,
        ANSWERS_LATE_BESIDE_ANOTHER,
        "assertion",
        [
            Change(adopt, "adopt_all", " if seen.get(stranger) is not True]", "]"),
            Change(adopt, "adopt_all", "with incarnation.liveness.try_to_adopt(stranger) as is_dead:", "for is_dead in [stranger]:"),
        ],
    ),
    Fault(
        "what is held with an outcome keeps its own reaction from no other round",
        apps.ROUNDS,
        CANCELS,
        "AtMostOnce",
        [
            Change(blocking, "find_blocking_attempt", "if same and one.blocks_own_reaction and not (", "if False and not ("),
            Change(
                AttemptFilters, "has_no_blocking_attempt", "is_blocking if self._spec.repeats else is_blocking_own_reaction", "is_blocking"
            ),
        ],
    ),
    Fault(
        "a doubt is settled by another worker than its own, which lives",
        apps.ASKED,
        HANGS_BESIDE_ANOTHER,
        "AtMostOnce",
        [
            Change(
                due_attempts,
                "_build_due_query",
                "and_(table.c.state == State.DOUBT.value, table.c.worker == _LIFE)",
                "table.c.state == State.DOUBT.value",
            ),
            Change(begin, "process_due_attempts", "attempt.worker != incarnation.id", "False"),
            Change(conclude._ResultWriter, "_apply_result", " or attempt.worker != self.incarnation.id", ""),
        ],
    ),
    Fault(
        "a doubt is settled while the thread of its call still runs",
        apps.ASKED,
        HANGS,
        "AtMostOnce",
        [
            Change(
                call_turn.CallTurns,
                "_identities_in_flight",
                "for in_flight in self._flying.values()}",
                "for in_flight in self._flying.values() if not in_flight.given_up}",
            ),
            Change(
                InFlightCalls, "must_leave_alone", "return self._flying[key] > self._landing[key]", "return False"
            ),  # else this hides it
        ],
    ),
    Fault(
        "calls that end without an outcome are not counted",
        FAILING,
        nothing,
        "Progress",
        [Change(rules, "put_in_doubt", "failures=attempt.failures + 1", "failures=attempt.failures")],
    ),
    Fault(
        "no deadline is looked at before a call goes out",
        apps.ASKED,
        FROZEN,
        "AtMostOnce",
        [
            Change(
                in_flight.InFlightCall,
                "may_go_out",
                "return self.is_lookup or seconds_since_clocks(self.begun, self.query.database.clock) <= MARGIN.total_seconds()",
                "return True",
            )
        ],
    ),
    Fault(
        "Absent is believed while the request may still be on its way",
        apps.ASKED,
        LATE,
        "AtMostOnce",
        [Change(rules, "on_lookup_absent", "if asked_at <= attempt.deadline + terms.settle_after:", "if False:")],
    ),
    Fault(
        "settle_after is not waited for",
        apps.ASKED,
        LATE,
        "AtMostOnce",
        [Change(rules, "on_lookup_absent", "attempt.deadline + terms.settle_after", "attempt.deadline")],
    ),
    Fault(
        "an outcome is dropped when its record has moved on",
        apps.CANCELLED,
        CANCELS,
        "Listed",
        [
            Change(
                apply_outcome.Conclusion,
                "_apply_overtaken_outcome",
                "spec = self.query.spec\n",
                "self.removed.append(attempt)\n    return\n    spec = None\n",
            )
        ],
    ),
    Fault(
        "an outcome is put to a record that has moved on",
        apps.CANCELLED,
        CANCELS,
        "assertion",
        [Change(rules, "on_call_returned", "return Conclude() if facts.holds else Overtaken()", "return Conclude()")],
    ),
    Fault(
        "an attempt in doubt is deleted when its record has moved on",
        apps.CANCELLED,
        CANCELS_IN_DOUBT,
        "Listed",
        [
            Change(
                rules,
                "_decide_by_policy",
                "spent = is_last_try_used(",
                "if facts.no_longer_holds:\n        return Delete()\n    spent = is_last_try_used(",
            )
        ],
    ),
    Fault(
        "an outcome in hand becomes a new call when its handler raised",
        apps.RAISING,
        REPAIRS,
        "StickyDoubt",
        [
            Change(
                apply_outcome.Conclusion,
                "_hold_with_outcome",
                "rules.hold_refused_outcome(attempt, why, error, written).attempt",
                "rules.on_call_not_done(attempt, why, self.tx.now, counts=True).attempt",
            )
        ],
    ),
    Fault(
        "an outcome is concluded though its handler raised",
        apps.RAISING,
        REPAIRS,
        "Listed",
        [
            Change(
                apply_outcome.Conclusion,
                "_hold_with_outcome",
                "self.saved.append(",
                "self.removed.append(attempt)\n    return\n    self.saved.append(",
            )
        ],
    ),
    Fault(
        "calls go out before the begin is committed",
        apps.ASKED,
        nothing,
        "Listed",
        [
            Change(
                call_turn.CallTurns,
                "_commit_turn",
                "(list(wanting)), clock)\n",
                "(list(wanting)), clock)\n        self._send_begun_calls(begun)\n",
            ),
        ],
    ),
    Fault(
        "no attempt is written for a call",
        apps.ASKED,
        nothing,
        "Listed",
        [Change(begin, "begin_calls", "written = attempts.insert_attempts(tx, new) |", "written = {one.call for one in new} |")],
    ),
    Fault(
        "nothing blocks a record",
        apps.WISHES,
        CANCELS_IN_DOUBT,
        "assertion",
        [
            Change(blocking, "find_blocking_attempt", "for one in attempts:", "for one in ():"),
            Change(AttemptFilters, "has_no_blocking_attempt", "if self._spec.done_column is None:", "if False:"),
        ],
    ),
    Fault(
        "only hints are relied upon, and nothing is swept",
        apps.STEPS,
        hints("lost"),
        "NotLost",
        [
            Change(
                sweeps.Sweeps,
                "begin_sweep_if_due",
                "if queue.is_enabled:\n            queue.rows.request_pass()",
                "if queue.is_enabled and not self._worker_state.rotation.turn:\n            queue.rows.request_pass()",
            )
        ],
    ),
    Fault(
        "nobody adopts what a dead worker left",
        apps.ASKED,
        DEATHS_IN_CALLS,
        "NothingAtRest",
        [Change(adopt, "adopt_all", "if not strangers:", "if True:")],
    ),
    Fault(
        "a dead worker is waited for, as a lease would",
        apps.ASKED,
        DEATHS_IN_CALLS,
        "NothingAtRest",
        [Change(adopt, "adopt_all", "if not strangers:", "if incarnation.database is None or incarnation.begins == 0:")],
    ),
    Fault(
        "a handler that changes nothing that matters has made progress",
        apps.STUCK,
        nothing,
        "Progress",
        [Change(run_handler, "keys_without_progress", "doubtful = list(works)", "return []\n    doubtful = list(works)")],
    ),
    Fault(
        "what a handler wrote before it raised is kept",
        apps.PACKING,
        REPAIRS,
        "assertion",
        [Change(run_handler, "run_in_savepoint", "with tx.session.begin_nested():", "if True:")],
    ),
    Fault(
        "an outcome that comes late is dropped",
        apps.HELD,
        LATE_ANSWERS,
        "OutcomeKept",
        [Change(rules, "decide_late_outcome", "if attempt is None:", "return Drop('late')\n    if attempt is None:")],
    ),
    Fault(
        "under InDoubt.hold() a call in doubt is made again",
        apps.HELD,
        LOST_ANSWERS,
        "AtMostOnce",
        [
            Change(
                rules,
                "_decide_by_policy",
                'return hold_attempt(attempt, "in doubt, and its policy is InDoubt.hold(): a person decides")',
                "return Begin(attempt)",
            )
        ],
    ),
    Fault(
        "under InDoubt.lookup() a call in doubt is made again, and nobody is asked",
        apps.ASKED,
        LOST_ANSWERS,
        "AtMostOnce",
        [
            Change(
                rules,
                "_decide_by_policy",
                "return _ask_lookup_or_hold(attempt, terms)\n        case",
                "return Begin(attempt)\n        case",
            )
        ],
    ),
    Fault(
        "a key is used for longer than the provider keeps it",
        apps.FORGETFUL,
        KEYS_GROW_OLD,
        "OncePerKey",
        [
            Change(
                rules,
                "is_key_too_old",
                "return attempt.first_at + terms.policy.kept_for <=",
                "return False and attempt.first_at + terms.policy.kept_for <=",
            )
        ],
    ),
    Fault(
        "a key is as old as the latest call under it",
        apps.FORGETFUL,
        KEYS_GROW_OLD,
        "OncePerKey",
        [Change(rules, "attempt_with_new_call", "first_at=attempt.first_at if attempt.unsure else now", "first_at=now")],
    ),
    Fault(
        "the outcome of one round is taken for another's",
        apps.ROUNDS,
        at("meanwhile", *AROUND_CALLS),
        "NotLost",
        [
            Change(
                claim,
                "lock_and_read_attempts",
                "same = record is not None and is_present_occurrence(query, occurrence, record)",
                "same = record is not None",
            )
        ],
    ),
    Fault(
        "nobody notices that the database went back in time",
        apps.ASKED,
        GOES_BACK,
        "AtMostOnce",
        [
            Change(startup.Succession, "_check_for_restore", "if why:", "if why and restore.record_identity(worker_state.incarnation):")
        ],  # which returns None
    ),
    Fault(
        "what a backup tells of its failed attempts is believed",
        apps.ASKED,
        back_in_time("refused", copied=("call", 0, 15), restored=("call", 72)),
        "AtMostOnce",
        [Change(restore, "_put_attempts_in_doubt", "if not some:", "if True:")],
    ),
    Fault(
        "calls of the lost time are taken to have landed when the backup is put back",
        apps.ASKED,
        back_in_time("late", restored=("call", 8)),
        "AtMostOnce",
        [
            Change(
                restore,
                "_insert_doubts_for_matches",
                "deadline=tx.now + called.spec.terms.timeout + MARGIN, next_at",
                "deadline=tx.now, next_at",
            )
        ],
    ),
    Fault(
        "a reaction is trusted again once what matched at the restart is in doubt",
        apps.APPROVED,
        GOES_BACK,
        "AtMostOnce",
        [Change(begin, "begin_calls", "query.spec.name in incarnation.suspects", "False")],
    ),
    Fault(
        "a record that another worker is calling for is taken once more",
        apps.ASKED,
        WORKERS,
        "AtMostOnce",
        [
            Change(claim, "_drop_blocked_records", "if own is None or", "if True or own is None or"),
            Change(AttemptFilters, "has_no_blocking_attempt", "if written is None:", "if True:"),
        ],
    ),
    Fault(
        "a hint is believed without the condition",
        apps.ASKED,
        hints("invented"),
        "AtMostOnce",
        [
            Change(
                RecordSelects,
                "select_given_ready_records",
                "self.condition.clauses_for_ready(self.keys.is_given_record)",
                "(self.keys.is_given_record,)",
            )
        ],
    ),
]

"""Logs what became of attempts, once the transaction that made it so is committed."""

from __future__ import annotations

import logging
import time
from datetime import datetime
from functools import partial

from groundstate.engine.rows import limited_logging
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.policy import Retry
from groundstate.rules.retry import last_try_used
from groundstate.rules.specs import ReactionSpec

log = logging.getLogger("groundstate")


def named(incarnation: Incarnation, reaction: str, record: str, table: str | None = None) -> str:
    """Return a reaction with its record, as every log line names them. `table` is used if this code does not declare the reaction."""
    where = incarnation.tables_of.get(reaction) or table
    return f"{reaction} on {record}" if where is None else f"{reaction} on {where} {record}"


def of_attempt(incarnation: Incarnation, attempt: Attempt) -> str:
    """Return an attempt's reaction and record for a log line. A schedule's attempt has no record and is named by its tick."""
    return named(incarnation, attempt.reaction, attempt.record or attempt.occurrence, attempt.blocks)


def which_try(retry: Retry, after: Attempt, now: datetime) -> str:
    """Return the text that says which failure of the attempt this was, and when it is tried again."""
    number = f"failure {after.failures}" if retry.times is None else f"failure {after.failures} of {retry.times}"
    if after.state is State.HELD or after.next_at is None or last_try_used(retry, after.failures, after.since, now):
        return f"{number}, and the last"
    wait_s = max((after.next_at - now).total_seconds(), 0.0)
    return f"{number}, tried again in {wait_s:.{1 if wait_s < 10 else 0}f} s"  # only waits below 10 s are shown to a tenth of a second


def say_failed(incarnation: Incarnation, spec: ReactionSpec, record: str, error: str, cause: BaseException | None) -> None:
    """Log that a handler failed for this record. `error` says what it raised and which try that was."""
    incarnation.after_commit.say(partial(_say_failed, incarnation, spec, record, error, cause))


def _say_failed(incarnation: Incarnation, spec: ReactionSpec, record: str, error: str, cause: BaseException | None) -> None:
    if not incarnation.lines.may_tell(spec.name, limited_logging.HANDLER_FAILED, time.monotonic()):
        return
    log.warning(
        "%s: %s",
        named(incarnation, spec.name, record),
        error,
        exc_info=incarnation.tracebacks.of(spec.name, cause),
        extra={"event": "handler_failed", "reaction": spec.name, "record": record},
    )


def say_tick_failed(incarnation: Incarnation, schedule: str, tick: str, error: str, cause: BaseException | None) -> None:
    """Log that the handler of a schedule failed for this tick."""
    incarnation.after_commit.say(partial(_say_tick_failed, incarnation, schedule, tick, error, cause))


def _say_tick_failed(incarnation: Incarnation, schedule: str, tick: str, error: str, cause: BaseException | None) -> None:
    if not incarnation.lines.may_tell(schedule, limited_logging.TICK_FAILED, time.monotonic()):
        return
    log.warning(
        "schedule %s, tick %s: %s",
        schedule,
        tick,
        error,
        exc_info=incarnation.tracebacks.of(schedule, cause),
        extra={"event": "tick_failed", "schedule": schedule, "tick": tick},
    )


def say_unreadable(incarnation: Incarnation, spec: ReactionSpec, record: str, error: str | None) -> None:
    """Log that this record could not be read."""
    incarnation.after_commit.say(partial(_say_unreadable, incarnation, spec, record, error))


def _say_unreadable(incarnation: Incarnation, spec: ReactionSpec, record: str, error: str | None) -> None:
    if not incarnation.lines.may_tell(spec.name, limited_logging.RECORD_UNREADABLE, time.monotonic()):
        return
    log.warning(
        "%s: %s",
        named(incarnation, spec.name, record),
        error,
        extra={"event": "record_unreadable", "reaction": spec.name, "record": record},
    )


def say_given_up(incarnation: Incarnation, before: Attempt) -> None:
    """Log that an attempt used its last try and that its `gave_up` handler has run."""
    incarnation.after_commit.say(partial(_say_given_up, incarnation, before))


def _say_given_up(incarnation: Incarnation, before: Attempt) -> None:
    if not incarnation.lines.may_tell(before.reaction, limited_logging.GIVEN_UP, time.monotonic()):
        return
    log.info(
        "%s: given up after %d failures, and its gave_up handler answered; the last one: %s",
        of_attempt(incarnation, before),
        before.failures,
        before.error,
        extra={"event": "given_up", "reaction": before.reaction, "record": before.record},
    )


def say_held(incarnation: Incarnation, after: Attempt) -> None:
    """If the attempt is held now, log that it waits for a person, with the reason and its last error."""
    incarnation.after_commit.say(partial(_say_held, incarnation, after))


def _say_held(incarnation: Incarnation, after: Attempt) -> None:
    if after.state is not State.HELD or not incarnation.lines.may_tell(after.reaction, limited_logging.HELD, time.monotonic()):
        return
    why, error = after.why or "", after.error or ""
    log.error(
        "%s is held now, and waits for a person: %s; `groundstate held --reaction %s` says what can be done",
        of_attempt(incarnation, after),
        why if error in why else f"{why} ({error})",
        after.reaction,
        extra={"event": "attempt_kept", "reaction": after.reaction, "record": after.record, "state": "held"},
    )


def say_kept(incarnation: Incarnation, after: Attempt) -> None:
    """Log the state in which an attempt is kept without a new call, and why."""
    say_held(incarnation, after)
    incarnation.after_commit.say(partial(_say_kept, incarnation, after))


def _say_kept(incarnation: Incarnation, after: Attempt) -> None:
    if after.state is State.HELD or not incarnation.lines.may_tell(after.reaction, limited_logging.KEPT, time.monotonic()):
        return
    log.info(
        "%s is %s now: %s",
        of_attempt(incarnation, after),
        after.state,
        after.why,
        extra={"event": "attempt_kept", "reaction": after.reaction, "record": after.record, "state": str(after.state)},
    )


def say_held_with_outcome(incarnation: Incarnation, reaction: str, record: str, why: str, cause: BaseException | None = None) -> None:
    """Log that an outcome could not be written to its record, and is held for a person."""
    incarnation.after_commit.say(partial(_say_held_with_outcome, incarnation, reaction, record, why, cause))


def _say_held_with_outcome(incarnation: Incarnation, reaction: str, record: str, why: str, cause: BaseException | None) -> None:
    if not incarnation.lines.may_tell(reaction, limited_logging.OUTCOME_HELD, time.monotonic()):
        return
    log.error(
        "%s is held with its outcome: %s; `groundstate held --reaction %s` says what can be done",
        named(incarnation, reaction, record),
        why,
        reaction,
        exc_info=incarnation.tracebacks.of(reaction, cause),
        extra={"event": "outcome_held", "reaction": reaction, "record": record},
    )


def say_let_go(incarnation: Incarnation, attempt: Attempt, say: str | None) -> None:
    """Log the message `say`, if there is one, about an attempt that is removed. The line is the only trace of it, so it is exempt from the
    limit on lines.
    """
    incarnation.after_commit.say(partial(_say_let_go, incarnation, attempt, say), only_trace=True)


def _say_let_go(incarnation: Incarnation, attempt: Attempt, say: str | None) -> None:
    if say:
        log.warning(
            "%s: %s",
            of_attempt(incarnation, attempt),
            say,
            extra={"event": "attempt_let_go", "reaction": attempt.reaction, "record": attempt.record},
        )

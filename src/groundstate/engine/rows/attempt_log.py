"""Logs what became of attempts. Each line is written only after the transaction that changed the attempt is committed."""

from __future__ import annotations

import logging
from datetime import datetime
from functools import partial

from groundstate.engine.rows import limited_logging
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.policy import Retry
from groundstate.rules.retry import is_last_try_used
from groundstate.rules.specs import ReactionSpec

log = logging.getLogger("groundstate")


def name_record(incarnation: Incarnation, reaction: str, record: str, table: str | None = None) -> str:
    """Return 'REACTION on TABLE KEY', as log lines name a record. table: the TABLE to show if this version of the application does not
    declare the reaction.
    """
    where = incarnation.tables_of.get(reaction) or table
    return f"{reaction} on {record}" if where is None else f"{reaction} on {where} {record}"


def name_attempt(incarnation: Incarnation, attempt: Attempt) -> str:
    """Return an attempt's reaction and record for a log line. A schedule's attempt has no record, so the text has the attempt's tick (the
    time at which the schedule was to run) instead.
    """
    return name_record(incarnation, attempt.reaction, attempt.record or attempt.occurrence, attempt.blocks)


def describe_try(retry: Retry, after: Attempt, now: datetime) -> str:
    """Return a text that says how often the attempt has failed, and when it is tried again, as in 'failure 2 of 5, tried again in 30 s'."""
    number = f"failure {after.failures}" if retry.times is None else f"failure {after.failures} of {retry.times}"
    if after.state is State.HELD or after.next_at is None or is_last_try_used(retry, after.failures, after.since, now):
        return f"{number}, and the last"
    wait_s = max((after.next_at - now).total_seconds(), 0.0)
    return f"{number}, tried again in {wait_s:.{1 if wait_s < 10 else 0}f} s"  # waits below 10 s are shown to a tenth of a second


def log_failed(incarnation: Incarnation, spec: ReactionSpec, record: str, error: str, cause: BaseException | None) -> None:
    """Log that a handler failed for this record. error: a text with the handler's exception and the result of `describe_try`."""
    incarnation.after_commit.log(partial(_log_failed, incarnation, spec, record, error, cause))


def _log_failed(incarnation: Incarnation, spec: ReactionSpec, record: str, error: str, cause: BaseException | None) -> None:
    if not incarnation.lines.count_line(spec.name, limited_logging.HANDLER_FAILED, incarnation.clock.monotonic()):
        return
    log.warning(
        "%s: %s",
        name_record(incarnation, spec.name, record),
        error,
        exc_info=incarnation.tracebacks.exc_info_if_new(spec.name, cause),
        extra={"event": "handler_failed", "reaction": spec.name, "record": record},
    )


def log_tick_failed(incarnation: Incarnation, schedule: str, tick: str, error: str, cause: BaseException | None) -> None:
    """Log that the handler of a schedule failed for this tick (one of the times at which it is to run)."""
    incarnation.after_commit.log(partial(_log_tick_failed, incarnation, schedule, tick, error, cause))


def _log_tick_failed(incarnation: Incarnation, schedule: str, tick: str, error: str, cause: BaseException | None) -> None:
    if not incarnation.lines.count_line(schedule, limited_logging.TICK_FAILED, incarnation.clock.monotonic()):
        return
    log.warning(
        "schedule %s, tick %s: %s",
        schedule,
        tick,
        error,
        exc_info=incarnation.tracebacks.exc_info_if_new(schedule, cause),
        extra={"event": "tick_failed", "schedule": schedule, "tick": tick},
    )


def log_unreadable(incarnation: Incarnation, spec: ReactionSpec, record: str, error: str | None) -> None:
    """Log that this record could not be read."""
    incarnation.after_commit.log(partial(_log_unreadable, incarnation, spec, record, error))


def _log_unreadable(incarnation: Incarnation, spec: ReactionSpec, record: str, error: str | None) -> None:
    if not incarnation.lines.count_line(spec.name, limited_logging.RECORD_UNREADABLE, incarnation.clock.monotonic()):
        return
    log.warning(
        "%s: %s",
        name_record(incarnation, spec.name, record),
        error,
        extra={"event": "record_unreadable", "reaction": spec.name, "record": record},
    )


def log_given_up(incarnation: Incarnation, before: Attempt) -> None:
    """Log that an attempt used its last try and that its `gave_up` handler has run."""
    incarnation.after_commit.log(partial(_log_given_up, incarnation, before))


def _log_given_up(incarnation: Incarnation, before: Attempt) -> None:
    if not incarnation.lines.count_line(before.reaction, limited_logging.GIVEN_UP, incarnation.clock.monotonic()):
        return
    log.info(
        "%s: given up after %d failures, and its gave_up handler answered; the last one: %s",
        name_attempt(incarnation, before),
        before.failures,
        before.error,
        extra={"event": "given_up", "reaction": before.reaction, "record": before.record},
    )


def log_if_held(incarnation: Incarnation, after: Attempt) -> None:
    """If the attempt is held, log that it waits for a person, why, and its last error. Otherwise log nothing."""
    incarnation.after_commit.log(partial(_log_if_held, incarnation, after))


def _log_if_held(incarnation: Incarnation, after: Attempt) -> None:
    if after.state is not State.HELD or not incarnation.lines.count_line(
        after.reaction, limited_logging.HELD, incarnation.clock.monotonic()
    ):
        return
    why, error = after.why or "", after.error or ""
    log.error(
        "%s is held now, and waits for a person: %s; `groundstate held --reaction %s` says what can be done",
        name_attempt(incarnation, after),
        why if error in why else f"{why} ({error})",
        after.reaction,
        extra={"event": "attempt_kept", "reaction": after.reaction, "record": after.record, "state": "held"},
    )


def log_kept(incarnation: Incarnation, after: Attempt) -> None:
    """Log that an attempt was kept, in which state, and why. No new call is made for it."""
    log_if_held(incarnation, after)
    incarnation.after_commit.log(partial(_log_kept, incarnation, after))


def _log_kept(incarnation: Incarnation, after: Attempt) -> None:
    if after.state is State.HELD or not incarnation.lines.count_line(after.reaction, limited_logging.KEPT, incarnation.clock.monotonic()):
        return
    log.info(
        "%s is %s now: %s",
        name_attempt(incarnation, after),
        after.state,
        after.why,
        extra={"event": "attempt_kept", "reaction": after.reaction, "record": after.record, "state": str(after.state)},
    )


def log_held_with_outcome(incarnation: Incarnation, reaction: str, record: str, why: str, cause: BaseException | None = None) -> None:
    """Log that the outcome of a call could not be written to the record, so that the attempt is held: it waits for a person."""
    incarnation.after_commit.log(partial(_log_held_with_outcome, incarnation, reaction, record, why, cause))


def _log_held_with_outcome(incarnation: Incarnation, reaction: str, record: str, why: str, cause: BaseException | None) -> None:
    if not incarnation.lines.count_line(reaction, limited_logging.OUTCOME_HELD, incarnation.clock.monotonic()):
        return
    log.error(
        "%s is held with its outcome: %s; `groundstate held --reaction %s` says what can be done",
        name_record(incarnation, reaction, record),
        why,
        reaction,
        exc_info=incarnation.tracebacks.exc_info_if_new(reaction, cause),
        extra={"event": "outcome_held", "reaction": reaction, "record": record},
    )


def log_removed(incarnation: Incarnation, attempt: Attempt, say: str | None) -> None:
    """Log the message `say` about an attempt that is deleted; log nothing if `say` is None. The limit on lines does not apply, since no
    other trace of the attempt is left.
    """
    incarnation.after_commit.log(partial(_log_removed, incarnation, attempt, say), only_trace=True)


def _log_removed(incarnation: Incarnation, attempt: Attempt, say: str | None) -> None:
    if say:
        log.warning(
            "%s: %s",
            name_attempt(incarnation, attempt),
            say,
            extra={"event": "attempt_let_go", "reaction": attempt.reaction, "record": attempt.record},
        )

"""What became of attempts, as lines of the log."""

from __future__ import annotations

import logging
import time
from datetime import datetime

from groundstate.engine import limited_lines
from groundstate.engine.life import Life
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.policy import Retry
from groundstate.rules.reaction import ReactionSpec
from groundstate.rules.retry import last_try_used

log = logging.getLogger("groundstate")


def named(life: Life, reaction: str, record: str, table: str | None = None) -> str:
    """A reaction and its record, as each line of the log names them. table: where this code does not declare the reaction."""
    where = life.tables_of.get(reaction) or table
    return f"{reaction} on {record}" if where is None else f"{reaction} on {where} {record}"


def of_attempt(life: Life, attempt: Attempt) -> str:
    """The same for an attempt. A schedule's attempt has no record, and is named by its tick."""
    return named(life, attempt.reaction, attempt.record or attempt.occurrence, attempt.blocks)


def which_try(retry: Retry, after: Attempt, now: datetime) -> str:
    """Of an attempt that failed just now: which failure that was, and when it is tried again."""
    number = f"failure {after.failures}" if retry.times is None else f"failure {after.failures} of {retry.times}"
    if after.state is State.HELD or after.next_at is None or last_try_used(retry, after.failures, after.since, now):
        return f"{number}, and the last"
    wait_s = max((after.next_at - now).total_seconds(), 0.0)
    return f"{number}, tried again in {wait_s:.{1 if wait_s < 10 else 0}f} s"  # tenths of more say nothing


def say_failed(life: Life, spec: ReactionSpec, record: str, error: str, cause: BaseException | None) -> None:
    """Logs that a handler failed for this record. error: what it met, and which try that was."""
    if not life.lines.may_tell(spec.name, limited_lines.HANDLER_FAILED, time.monotonic()):
        return
    log.warning(
        "%s: %s",
        named(life, spec.name, record),
        error,
        exc_info=life.tracebacks.of(spec.name, cause),
        extra={"event": "handler_failed", "reaction": spec.name, "record": record},
    )


def say_tick_failed(life: Life, schedule: str, tick: str, error: str, cause: BaseException | None) -> None:
    """The handler of a schedule failed for this tick."""
    if not life.lines.may_tell(schedule, limited_lines.TICK_FAILED, time.monotonic()):
        return
    log.warning(
        "schedule %s, tick %s: %s",
        schedule,
        tick,
        error,
        exc_info=life.tracebacks.of(schedule, cause),
        extra={"event": "tick_failed", "schedule": schedule, "tick": tick},
    )


def say_unreadable(life: Life, spec: ReactionSpec, record: str, error: str | None) -> None:
    """This record could not be read."""
    if not life.lines.may_tell(spec.name, limited_lines.RECORD_UNREADABLE, time.monotonic()):
        return
    log.warning(
        "%s: %s",
        named(life, spec.name, record),
        error,
        extra={"event": "record_unreadable", "reaction": spec.name, "record": record},
    )


def say_given_up(life: Life, before: Attempt) -> None:
    """Its last try was used, and its `gave_up` handler answered."""
    if not life.lines.may_tell(before.reaction, limited_lines.GIVEN_UP, time.monotonic()):
        return
    log.info(
        "%s: given up after %d failures, and its gave_up handler answered; the last one: %s",
        of_attempt(life, before),
        before.failures,
        before.error,
        extra={"event": "given_up", "reaction": before.reaction, "record": before.record},
    )


def say_held(life: Life, after: Attempt) -> None:
    """Where an attempt waits for a person now, he should know, and what it met last."""
    if after.state is not State.HELD or not life.lines.may_tell(after.reaction, limited_lines.HELD, time.monotonic()):
        return
    why, error = after.why or "", after.error or ""
    log.error(
        "%s is held now, and waits for a person: %s; `groundstate held --reaction %s` says what can be done",
        of_attempt(life, after),
        why if error in why else f"{why} ({error})",
        after.reaction,
        extra={"event": "attempt_kept", "reaction": after.reaction, "record": after.record, "state": "held"},
    )


def say_kept(life: Life, after: Attempt) -> None:
    """An attempt goes on without a call, as its policy says."""
    say_held(life, after)
    if after.state is State.HELD or not life.lines.may_tell(after.reaction, limited_lines.KEPT, time.monotonic()):
        return
    log.info(
        "%s is %s now: %s",
        of_attempt(life, after),
        after.state,
        after.why,
        extra={"event": "attempt_kept", "reaction": after.reaction, "record": after.record, "state": str(after.state)},
    )


def say_held_with_outcome(life: Life, reaction: str, record: str, why: str, cause: BaseException | None = None) -> None:
    """An outcome could not be put to its record, and waits for a person."""
    if not life.lines.may_tell(reaction, limited_lines.OUTCOME_HELD, time.monotonic()):
        return
    log.error(
        "%s is held with its outcome: %s; `groundstate held --reaction %s` says what can be done",
        named(life, reaction, record),
        why,
        reaction,
        exc_info=life.tracebacks.of(reaction, cause),
        extra={"event": "outcome_held", "reaction": reaction, "record": record},
    )


def say_let_go(life: Life, attempt: Attempt, say: str | None) -> None:
    """An attempt is removed of which a person should know, where there is something to say. Nothing else tells of it."""
    if say:
        log.warning(
            "%s: %s",
            of_attempt(life, attempt),
            say,
            extra={"event": "attempt_let_go", "reaction": attempt.reaction, "record": attempt.record},
        )

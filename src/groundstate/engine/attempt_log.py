"""What became of attempts, as lines of the log."""

from __future__ import annotations

import logging
import time

from groundstate.engine import limited_lines
from groundstate.engine.life import Life
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.reaction import ReactionSpec

log = logging.getLogger("groundstate")


def say_failed(life: Life, spec: ReactionSpec, record: str, error: str, cause: BaseException | None) -> None:
    """A handler failed for this record."""
    if not life.lines.may_tell(spec.name, limited_lines.HANDLER_FAILED, time.monotonic()):
        return
    log.warning(
        "%s on %s %s: %s",
        spec.name,
        spec.table_name,
        record,
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
        "%s on %s %s: %s",
        spec.name,
        spec.table_name,
        record,
        error,
        extra={"event": "record_unreadable", "reaction": spec.name, "record": record},
    )


def say_given_up(life: Life, before: Attempt) -> None:
    """Its last try was used, and its `gave_up` handler answered."""
    if not life.lines.may_tell(before.reaction, limited_lines.GIVEN_UP, time.monotonic()):
        return
    log.info(
        "%s on %s: given up after %d failures, and its gave_up handler answered; the last one: %s",
        before.reaction,
        before.record,
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
        "%s on %s is held now, and waits for a person: %s",
        after.reaction,
        after.record,
        why if error in why else f"{why} ({error})",
        extra={"event": "attempt_kept", "reaction": after.reaction, "record": after.record, "state": "held"},
    )


def say_kept(life: Life, after: Attempt) -> None:
    """An attempt goes on without a call, as its policy says."""
    say_held(life, after)
    if after.state is State.HELD or not life.lines.may_tell(after.reaction, limited_lines.KEPT, time.monotonic()):
        return
    log.info(
        "%s on %s is %s now: %s",
        after.reaction,
        after.record,
        after.state,
        after.why,
        extra={"event": "attempt_kept", "reaction": after.reaction, "record": after.record, "state": str(after.state)},
    )


def say_held_with_outcome(life: Life, reaction: str, record: str, why: str, cause: BaseException | None = None) -> None:
    """An outcome could not be put to its record, and waits for a person."""
    if not life.lines.may_tell(reaction, limited_lines.OUTCOME_HELD, time.monotonic()):
        return
    log.error(
        "%s on %s is held with its outcome: %s",
        reaction,
        record,
        why,
        exc_info=life.tracebacks.of(reaction, cause),
        extra={"event": "outcome_held", "reaction": reaction, "record": record},
    )


def say_let_go(attempt: Attempt, say: str | None) -> None:
    """An attempt is removed of which a person should know, where there is something to say. Nothing else tells of it."""
    if say:
        log.warning(
            "%s on %s: %s",
            attempt.reaction,
            attempt.record,
            say,
            extra={"event": "attempt_let_go", "reaction": attempt.reaction, "record": attempt.record},
        )

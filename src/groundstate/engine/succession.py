"""The lives of one worker, one after another: each takes its lock, looks back, and adopts what dead lives left. Carries nothing out.

A life that lost its lock calls nobody any more. It goes on once it has its lock again, where nobody adopted it meanwhile; else the next one
begins (hazard 30).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from groundstate.engine import adopt, ahead, illegible, pulse, put_back, restore, trouble
from groundstate.engine.life import RECONNECT, Life
from groundstate.engine.pulse import Pulse
from groundstate.engine.repeated import Repeated
from groundstate.engine.shift import Shift
from groundstate.engine.trouble import LockNotFree, OtherServer
from groundstate.values.errors import LifeTaken, Stopped, StoreRefused

log = logging.getLogger("groundstate")
CHECK_S = 1.0  # how often it is asked whether the lock is still ours
LOCKED_OUT_S = 60.0  # for so long a start waits for locks that somebody else holds, or for a server that takes no connection just now
PAUSE_S = 0.2
PAUSE_LONGEST_S = 3.0
LOOKS_S = 0.1  # how often it is looked meanwhile whether the worker is to stop
WHILE_IT_CAME_UP = "told to stop while it came up: nothing was carried out"


class Succession:
    """Of one worker; for its transactions' thread alone. make: a life that has not begun."""

    def __init__(self, make: Callable[[], Life], *, after_restore: bool) -> None:
        self._make = make
        self._went_back: str | None = None  # why calls of a lost time are still to be put in doubt
        self._resumed: Life | None = None  # a life that has its lock again, while it is looked back
        self.after_restore = after_restore
        self.next_check = 0.0

    def next_life(self, old: Life | None = None) -> Life:
        """One that has not begun, with what the old one knew."""
        fresh = self._make()
        if old is not None:
            fresh.key_names, fresh.suspects, fresh.care = old.key_names, old.suspects, old.care
            fresh.waiting = old.waiting
            fresh.past = {*old.past, old.id}
            fresh.met, fresh.cut = old.met, old.cut
            fresh.air, fresh.rings, fresh.lines = old.air, old.rings, old.lines
        return fresh

    def begin(self, shift: Shift) -> None:
        """The first life. Waits while somebody else holds the locks that this needs. Raises StoreRefused."""

        def come_alive() -> None:
            try:
                shift.life.begin()
                illegible.mending(shift.life, lambda: self._look_back(shift))
                illegible.mending(shift.life, lambda: take_over(shift))
            except (DBAPIError, OtherServer):
                if shift.stopping is not None:
                    raise  # `give_up` ends what was begun
                shift.life.lives.release()
                shift.life = self.next_life(shift.life)
                raise

        patiently(shift, come_alive)
        self._say_begun(shift)

    def give_up(self, shift: Shift) -> None:
        """Told to stop while it came up: nothing was carried out, so that no row is to say that a life ended uncleanly."""
        life = shift.life
        if life.sound or life.past:
            life.end(with_past=True)
        else:
            life.lives.release()

    def check(self, shift: Shift) -> None:
        """Now and then: whether we still are who we were; where not, the next life begins."""
        now = time.monotonic()
        if now < self.next_check:
            return
        self.next_check = now + CHECK_S
        if shift.life.sound and shift.life.lives.held():
            return
        if shift.life.sound:
            log.error(
                "the lock of this life is lost: no call goes out until it is taken again, or a new life has begun",
                extra={"event": "lock_lost", "life": f"{shift.life.id:x}"},
            )
        old, old.sound = shift.life, False
        if self._goes_on(old):
            self._resume(shift)
            return
        self._went_back = self._went_back or restore.forgotten(old)
        fresh = self.next_life(old)
        fresh.begin()
        shift.life = fresh
        shift.tally.lives += 1
        try:
            self._look_back(shift)
        except BaseException:
            fresh.sound = False  # no call goes out before it is known that the database did not go back
            raise
        self._say_begun(shift)
        take_over(shift)

    def _goes_on(self, life: Life) -> bool:
        """Whether the life that lost its lock has it again, and nobody adopted it meanwhile.

        Raises LockNotFree for some seconds while somebody has that lock: a server ends a session a while after its client was cut off.
        """
        if self._resumed is life and life.lives.held():
            return True  # looking back was cut short
        self._resumed = None
        with contextlib.suppress(Exception):
            life.lives.release()
        since = life.lost_at = life.lost_at or time.monotonic()
        try:
            if self._went_back is None and life.resume():
                self._resumed, life.lost_at = life, None
        except LifeTaken as error:
            if time.monotonic() < since + RECONNECT.total_seconds():
                raise LockNotFree("the lock of this life is not free yet: its last session has not ended, or it is adopted") from error
        return self._resumed is not None

    def _resume(self, shift: Shift) -> None:
        """The same life goes on: what it has in the air is its own. Not before it is known that the database did not go back."""
        life = shift.life
        self._look_back(shift)
        self._resumed, life.sound = None, True
        shift.left_begun = True  # begins whose commit brought no answer, and which landed
        log.info(
            "%s: this life has its lock again, nobody had adopted it, and it goes on with what it began",
            shift.store,
            extra={"event": "life_resumed", "life": f"{life.id:x}", "store": shift.store},
        )
        take_over(shift)

    def _say_begun(self, shift: Shift) -> None:
        life = shift.life
        words = "a life has begun on %s: its lock is taken, and calls may go out"
        log.info(words, shift.store, extra={"event": "life_began", "life": f"{life.id:x}", "store": shift.store})

    def went_back(self, shift: Shift, why: str) -> None:
        """The database went back under a living worker: the next life looks back before it does anything else."""
        self._went_back = why
        shift.life.sound = False
        self.next_check = 0.0

    def begin_another(self, shift: Shift, why: str) -> None:
        """Something is wrong with this life's own row: the next one looks back before it does anything else."""
        log.error("no call goes out until a new life has begun: %s", why, extra={"event": "row_rewritten", "life": f"{shift.life.id:x}"})
        shift.life.sound, shift.life.over = False, True
        self.next_check = 0.0

    def _look_back(self, shift: Shift) -> None:
        said = "a person said so (--after-restore)" if self.after_restore else None
        why = said or self._went_back or restore.sign(shift.life)
        if why:
            self._went_back = why
            restore.went_back(shift.life, [lane.question for lane in shift.lanes], why)
            shift.enrolled = False
            self.after_restore, self._went_back = False, None  # only now: what was cut short is done again
            shift.hold_back(frozenset())
            return
        waiting = put_back.look(shift.life, [lane.question.spec for lane in shift.lanes])
        if waiting - shift.life.waiting:
            put_back.say(waiting)
        shift.hold_back(waiting)
        restore.keep_identity(shift.life)


def patiently(shift: Shift, step: Callable[[], object]) -> None:
    """A step of a start, tried again for a while where somebody else is in its way: a lock, or a server that takes no connection just now,
    or that was started anew since the step began, or cut its connection. One that cannot be reached is said at once, unless it answered
    before that it goes down or comes up.

    Raises:
        StoreRefused: that lasted too long, or a pooler in statement mode is in between; with the cure.
        Stopped: the worker was told to stop meanwhile.
        DBAPIError: anything else.
    """
    began, pause = time.monotonic(), PAUSE_S
    troubled = restarts = False
    says = Repeated()
    while True:
        if shift.stopping is not None:
            raise Stopped(WHILE_IT_CAME_UP)
        try:
            step()
        except (DBAPIError, OtherServer) as error:
            if trouble.by_statement(error):
                raise StoreRefused(f"{shift.store}: {trouble.BY_STATEMENT}") from error
            restarts = restarts or trouble.coming_up(error)
            refused = _in_the_way(shift, error, restarts=restarts)
            if refused is None or shift.stopping is not None:
                raise
            if time.monotonic() - began > LOCKED_OUT_S:
                raise StoreRefused(refused) from error
            troubled = True
            wait = 0.0 if trouble.locked(error) else pause  # that took its time already
            _say_trouble(says, trouble.told(error), wait)
            if wait:
                _rest(shift, wait)
                pause = min(pause * 1.5, PAUSE_LONGEST_S)
        else:
            if troubled:
                say_back(shift, time.monotonic() - began)
            return


def _say_trouble(says: Repeated, words: str, wait_s: float) -> None:
    if says.may_say(words, time.monotonic()):
        log.warning(
            "the database is in trouble, tried again in %.1f s: %s",
            wait_s,
            words,
            extra={"event": "database_trouble", "wait_s": round(wait_s, 3)},
        )


def say_back(shift: Shift, took_s: float) -> None:
    """After trouble that was told of: it is over."""
    words = "%s: well again, after %.1f s of trouble"
    log.info(words, shift.store, took_s, extra={"event": "database_back", "store": shift.store, "took_s": round(took_s, 3)})


def _rest(shift: Shift, seconds: float) -> None:
    """Between two tries: over as soon as the worker is told to stop."""
    end = time.monotonic() + seconds
    while shift.stopping is None and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, LOOKS_S))


def _in_the_way(shift: Shift, error: DBAPIError | OtherServer, *, restarts: bool) -> str | None:
    """What to say if it stays so; None where nothing says that it passes. restarts: the server has said that it goes down or comes up."""
    if isinstance(error, OtherServer):
        return f"the server was started anew again and again for {LOCKED_OUT_S:g} s: see its log, and start again"
    if error.connection_invalidated:
        words = f"the connection to the server was cut again and again for {LOCKED_OUT_S:g} s: see its log, and start again"
        return f"{words} ({trouble.told(error)})"
    if trouble.full(error):
        return trouble.FULL
    if restarts and trouble.transient(error) and not trouble.locked(error):
        return f"the server has not come up within {LOCKED_OUT_S:g} s: see its log, and start again ({trouble.told(error)})"
    if not (trouble.transient(error) if shift.embedded else trouble.locked(error)):
        return None
    if trouble.no_space(error):
        return f"nothing can be written where {shift.store} lies ({trouble.told(error)})"
    what = "the write lock" if shift.embedded else "rows or tables that must be looked at first"
    return (
        f"somebody has held {what} of {shift.store} for "
        f"{LOCKED_OUT_S:g} s: end that transaction (a stopped process, a shell that has not committed), and start again"
    )


def take_over(shift: Shift, seen: Pulse | None = None) -> None:
    """Adopts what dead lives left, with what their clock may have made of it, and sees how careful to be."""
    life = shift.life
    seen = pulse.take(shift) if seen is None else seen
    adopted = adopt.adopt_all(life) if seen.strangers else 0
    adopt.forget_past(life)
    adopt.look_at_ends(life, pulse.take(shift) if adopted else seen)
    follow_the_clock(shift, adopted=bool(adopted))


def follow_the_clock(shift: Shift, *, adopted: bool = False) -> None:
    """Attempts of a clock that stood ahead: looked for by a new life, after adopting some, and after a step back."""
    life = shift.life
    back, before = life.steps_back, shift.bounded
    if adopted or before != (life.id, back):
        terms = {lane.name: lane.question.spec.terms for lane in shift.lanes}
        if ahead.bound(life, terms, went_back=before[0] == life.id and before[1] < back):
            shift.look_for_due()
        shift.bounded = (life.id, back)

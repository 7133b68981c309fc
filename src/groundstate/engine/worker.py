"""The worker of one store: one thread for transactions and liveness, which takes turns between reactions. The story of a running life.

Each turn: are we still who we were; put what came back to its records and begin new calls into the freed slots, in one commit; then
DB-only batches, fresh rows before the backlog; then, each second or when something is due, a sweep, the safety net under lost hints.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine import due, guards, hints, illegible, schema, tokens, transaction, trouble, upcoming
from groundstate.engine.admission import Admission
from groundstate.engine.batches import Batches
from groundstate.engine.hints import Touched
from groundstate.engine.lane import Lane, lanes_of
from groundstate.engine.life import Life, describe
from groundstate.engine.question import Question
from groundstate.engine.registry import Newcomer
from groundstate.engine.shift import Shift, postpone
from groundstate.engine.succession import Succession, take_over
from groundstate.engine.ticks import Ticks
from groundstate.engine.timers import Timers
from groundstate.engine.traffic import Traffic
from groundstate.engine.trouble import Illegible
from groundstate.rules.reaction import ReactionSpec
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Opened
from groundstate.store.tables import attempt as attempt_table
from groundstate.values.errors import Stopped, WentBack

log = logging.getLogger("groundstate")
SWEEP_S = 1.0
SWEEP_SHARE = 0.01  # of the wall time, at most, goes into sweeps
LOOK_S = 0.1  # how often an embedded store is asked whether another process wrote
LOOK_BUSY_S = 0.02  # the same while a backlog is worked off, when it costs nothing beside the work
LOOK_SHARE = 0.1  # so much goes, at most, into what such a look leads to
SWEEP_LONGEST_S = 30.0
NEWEST_AT_ONCE = 50
ANY_ATTEMPT = select(attempt_table.c.app).limit(1)


@dataclass(frozen=True)
class Options:
    """How a worker is started."""

    accept: bool = False  # new and changed reactions are started, whatever they match
    after_restore: bool = False
    held: bool = False  # comes up and carries out nothing until told


@dataclass(frozen=True)
class Rest:
    """What remains when all is quiet: what waits for its time, or for a person."""

    in_doubt: int
    failed: int
    held: int
    timers: int = 0  # records that are still to become due


class Worker:
    """Carries out the reactions of one store. `start`, then `stop`; `quiet` tells when nothing is left that can be done now."""

    def __init__(
        self,
        app: str,
        specs: Sequence[ReactionSpec],
        opened: Opened,
        *,
        schedules: Sequence[ScheduleSpec] = (),
        options: Options,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self.options = options
        self.database, make_lives, self._witness = opened
        self._specs = specs
        self._app = app
        self.failure: BaseException | None = None
        self._wake = threading.Event()
        self._started = threading.Event()
        self._go = threading.Event()
        self._quiet = threading.Event()
        self._quiet_wanted: str | None = None  # 'asked', then 'swept' once a sweep began after that
        self._succession = Succession(
            lambda: Life(app, self.database, make_lives(), self._witness, redact or str), after_restore=options.after_restore
        )
        self._shift = Shift(app, self.database, self._succession.next_life())
        self._admission = Admission(self._shift, accept=options.accept)
        self._traffic = Traffic(self._shift, self._wake.set)
        self._batches = Batches(self._shift)
        self._clock = due.Clock()
        self._timers = Timers(self._shift)
        self._ticks = Ticks(self._shift, schedules)
        self._next_sweep = 0.0
        self._next_look = 0.0
        self._heard_here = False  # a session of this process committed since the last look
        self._not_before = 0.0  # the database is in trouble until then
        self._trouble = 0
        self._looked_s = 0.0  # spent on looking what there is to do, since another process's writes were last looked for
        self._idle_s = 0.0  # spent in turns of the last sweep that did nothing: what sweeping costs
        self._thread = threading.Thread(target=self._run, name=f"groundstate-{app}", daemon=True)

    @property
    def life(self) -> Life:
        """The present life: another one after a lock was lost."""
        return self._shift.life

    @property
    def refused(self) -> list[Newcomer]:
        """New and changed reactions that are not started until a person accepts them."""
        return self._admission.refused

    @property
    def expired(self) -> Mapping[str, int]:
        """How many were too late, by reaction, since it was started."""
        return self._shift.expired

    @property
    def lanes(self) -> list[Lane]:
        """What waits for each reaction."""
        return self._shift.lanes

    # ---- from other threads --------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Comes up: the lock, identity, adoption. Raises what stands in the way, with its cure."""
        self._thread.start()
        self._started.wait()
        if self.failure is not None:
            raise self.failure

    def stop(self, limit_s: float) -> None:
        """Begins nothing new, lets calls end within the limit, leaves the rest in doubt, and ends this life."""
        self._shift.stopping = time.monotonic() + limit_s
        self._traffic.caller.draining = True
        self._go.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(limit_s + 15)

    def go(self) -> None:
        """After a start with `held`: carries out from now on."""
        self._go.set()
        self._wake.set()

    def hear(self, touched: Touched) -> None:
        """A hint: wakes the reactions it concerns."""
        if threading.current_thread() is not self._thread:
            self._heard_here = True
        heard = [lane.hear(touched) for lane in self._shift.parts]  # each is to hear
        if any(heard):
            self._wake.set()

    def until_quiet(self, timeout_s: float | None) -> bool:
        """Waits until a whole sweep that began after now found nothing that can be done."""
        self._quiet.clear()
        self._quiet_wanted = "asked"
        self._next_sweep = 0.0
        self._wake.set()
        try:
            end = None if timeout_s is None else time.monotonic() + timeout_s
            while not self._quiet.wait(0.2):
                if self.failure is not None or not self._thread.is_alive():
                    raise self.failure or Stopped("the worker has stopped")
                if end is not None and time.monotonic() > end:
                    return False
                self._quiet_wanted = self._quiet_wanted or "asked"  # another who waited may have gone, and taken the wish with him
            return True
        finally:
            self._quiet_wanted = None

    # ---- a life ----------------------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            self._come_up()
        except BaseException as error:  # told to who started us
            self.failure = error
            with contextlib.suppress(Exception):
                self._shift.life.lives.release()
            with contextlib.suppress(Exception):
                self.database.close()
            return
        finally:
            self._started.set()
        hints.listen(self)
        try:
            self._go_on()
        except BaseException as error:
            log.exception("the worker stopped by an error of its own; what was under way is settled by the next life")
            self.failure = error
            self._shift.life.sound = False
        finally:
            hints.stop_listening(self)
            self._leave()

    def _come_up(self) -> None:
        self.database.connect()
        transaction.watch(self.database)
        schema.check(self.database)
        lanes = [lanes_of(Question(spec, self.database)) for spec in self._specs]
        questions = [lane.question for lane in lanes]
        for question in questions:
            guards.guard(question)
            for every in question.spec.children:
                hints.wakes_parent(every.child, question.entity, tuple(column.key for column in every.parent_key))
        self._shift.lanes = lanes
        self._admission.read()
        self._succession.begin(self._shift)

    # ---- turns -----------------------------------------------------------------------------------------------------------------
    def _go_on(self) -> None:
        if self.options.held:
            while not self._go.wait(SWEEP_S) and self._shift.stopping is None:
                self._shift.life.lives.held()
        counted = warned = False
        busy_until = time.monotonic() + SWEEP_S
        while self._shift.stopping is None or not self._traffic.drained():
            try:
                self._turn()
                if not counted:
                    self._admission.count_newcomers()  # after the first turn: what is known is under way before anything is counted
                    counted = True
            except WentBack as error:
                self._succession.went_back(self._shift, str(error))
            except Illegible as error:
                self._mend(error)
            except Exception as error:
                self._after_trouble(error)
            wait = self._wait_s()
            if not warned and (wait > 0 or time.monotonic() > busy_until):
                self._admission.warn_of_scans()  # not before what was waiting is under way
                warned, wait = True, self._wait_s()
            if wait > 0:
                self._wake.wait(wait)
            self._wake.clear()

    def _mend(self, met: Illegible) -> None:
        """Somebody edited rows of ours: they are held for a person, and everything else goes on."""
        try:
            if illegible.mend(self._shift.life):
                self._not_before = time.monotonic() + LOOK_S
            else:
                self._after_trouble(met)
        except Exception as error:
            self._after_trouble(error)

    def _after_trouble(self, error: Exception) -> None:
        """Waited out, whatever it is; what came back stays in memory, and no new call is begun while conclusions are stuck."""
        self._trouble = min(self._trouble + 1, 6)
        wait = 0.1 * 2**self._trouble
        self._not_before = time.monotonic() + wait
        if trouble.transient(error):
            log.warning("the database is in trouble, tried again in %.1f s: %s", wait, describe(error))
        else:
            log.error("a turn failed, tried again in %.1f s", wait, exc_info=error)
        self._succession.next_check = 0.0

    def _turn(self) -> None:
        started = time.monotonic()
        if started < self._not_before:
            return
        before = self._shift.took
        self._succession.check(self._shift)
        self._sweep_if_time()
        sweeping = any(lane.on and lane.backlog for lane in self._shift.parts)  # and not what rings now, or is heard of
        self._timers.turn()
        self._look()
        self._traffic.turn()
        if self._shift.stopping is None:
            self._ticks.turn()
            self._batches.turn()
            self._is_it_quiet()
        self._trouble = 0
        if sweeping and self._shift.took == before:
            self._idle_s += time.monotonic() - started

    def _look(self) -> None:
        """Takes over what was heard, and looks what a sweep found worth a look."""
        started = time.monotonic()
        for lane in self._shift.parts:
            if lane.listen() and lane.question.timing is not None:
                self._timers.heard()
            if lane.newest and lane.on:
                self._look_at_newest(lane)
        self._look_before_locking()
        self._looked_s += time.monotonic() - started

    def _look_before_locking(self) -> None:
        """Passes that begin are looked at first: most find nothing, and must not take a lock for that."""
        beginning = [
            lane for lane in self._shift.parts if lane.on and lane.backlog and not lane.probed and lane.not_before <= time.monotonic()
        ]
        due_lanes = [lane for lane in self._shift.lanes if lane.due]
        if not beginning and not due_lanes:
            return
        with self.database.reading() as connection:
            if due_lanes and connection.execute(ANY_ATTEMPT).first() is None:
                for lane in due_lanes:
                    lane.due, lane.due_cursor = False, None
            for lane in beginning:
                found = self._asked(lane, partial(lane.probe, connection))
                if found is None:
                    return
                lane.probed = True
                if not found:
                    lane.swept()

    def _asked(self, lane: Lane, ask: Callable[[], Sequence[Any]]) -> Sequence[Any] | None:
        """Rows; None where this lane's condition cannot be asked: it waits, and the others go on."""
        try:
            return ask()
        except DBAPIError as error:
            if trouble.transient(error):
                raise
            postpone(lane)
            log.exception("%s could not be asked, tried again", lane.name)
            return None

    def _look_at_newest(self, lane: Lane) -> None:
        """While a long backlog is gone through in key order, rows that somebody else has just written must not wait for its end."""
        lane.newest = False
        with self.database.reading() as connection:
            newest = lane.question.places_after(None, NEWEST_AT_ONCE, crowded=True, newest=True)
            rows = self._asked(lane, lambda: connection.execute(newest).all())
            lane.fresh.update(dict.fromkeys(lane.question.key_in(tuple(row)) for row in rows or ()))

    def _wait_s(self) -> float:
        """How long nothing is to be done but by a hint."""
        now = time.monotonic()
        if now < self._not_before:
            return self._not_before - now
        if self._shift.stopping is None and any(self._can_go_on(lane, now) for lane in self._shift.parts):
            return 0.0
        times = [self._next_sweep, now + SWEEP_S, self._ticks.wait_until()]
        if self._shift.embedded:
            times.append(self._next_look)
        times += [at for at in (self._shift.next_due, self._timers.wait_until()) if at is not None]
        times += [lane.not_before for lane in self._shift.parts if lane.wants and lane.not_before > now]
        times += [lane.failing.until for lane in self._shift.parts if lane.wants and lane.failing.until > now]
        traffic = self._traffic.wait_s(now)
        return max(min(min(times) - now, SWEEP_S if traffic is None else traffic), 0.0)

    def _can_go_on(self, lane: Lane, now: float) -> bool:
        if not lane.wants or lane.not_before > now:
            return False
        part = self._batches.can_go_on if lane.question.spec.call is None else self._traffic.has_room
        return part(lane, now)

    # ---- sweeps ------------------------------------------------------------------------------------------------------------------
    def _sweep_if_time(self) -> None:
        if self._shift.stopping is not None:
            return
        now = time.monotonic()
        if self._shift.next_due is not None and now >= self._shift.next_due:
            for lane in self._shift.lanes:
                lane.due, lane.seen_full = True, False
            self._clock.ask(self._shift)
        others = False
        if self._shift.embedded and now >= self._next_look:
            # What this process wrote came by hints already; another's commit in the same moment waits for the next sweep.
            others = self._shift.life.did_others_write() and not self._heard_here
            self._heard_here = False
            busy = any(lane.on and lane.backlog for lane in self._shift.parts)
            self._next_look = now + max(LOOK_BUSY_S if busy else LOOK_S, self._looked_s / LOOK_SHARE)
            self._looked_s = 0.0
        full = now >= self._next_sweep
        if not (full or others):
            return
        for lane in self._shift.parts:
            if lane.on:
                lane.sweep()
        for lane in self._shift.lanes:
            if lane.on:
                lane.due, lane.seen_full = True, False
        self._timers.heard()
        if full:
            share = min(max(SWEEP_S, self._idle_s / SWEEP_SHARE), SWEEP_LONGEST_S)
            self._next_sweep = now + share * (0.9 + self._shift.life.dice.random() / 5)
            self._housekeeping()
        self._shift.took = 0
        self._idle_s = 0.0
        if self._quiet_wanted == "asked":
            self._quiet_wanted = "swept"

    def _housekeeping(self) -> None:
        """What a sweep looks at beside conditions: dead lives, calls that nobody knows, baselines that are over, the next due time."""
        take_over(self._shift)
        self._traffic.find_unknown()
        tokens.forget_old(self._shift)
        self._traffic.end_overtaken()
        self._admission.read_again()
        self._ticks.look_again()
        self._clock.ask(self._shift)
        self._traffic.caller.watch()

    # ---- quiet, and the end ----------------------------------------------------------------------------------------------------------
    def _is_it_quiet(self) -> None:
        if self._quiet_wanted != "swept" or not self._traffic.quiet or self._ticks.wants or any(lane.wants for lane in self._shift.parts):
            return
        if self._shift.took:
            self._quiet_wanted = "asked"  # something was done since the last sweep began: look once more
            self._next_sweep = 0.0
            return
        self._quiet_wanted = None
        self._quiet.set()

    def rest(self) -> Rest:
        """What is left in the attempt table, by state."""
        table = attempt_table
        counted = select(table.c.state, func.count()).where(table.c.app == self._app).group_by(table.c.state)
        with self.database.reading() as connection:
            states = {row[0]: row[1] for row in connection.execute(counted)}
            timers = sum(upcoming.count(connection, lane.question) for lane in self._shift.lanes)
        return Rest(states.get("doubt", 0), states.get("failed", 0), states.get("held", 0), timers)

    def _leave(self) -> None:
        caller = self._traffic.caller
        caller.stop(1.0)
        if caller.threads.busy and self._shift.life.sound:
            # Whoever took this life for dead would settle calls that may still land. A process that ends takes its threads along.
            log.warning("%d calls still run in threads: this life's lock is kept until they end", caller.threads.busy)
            threading.Thread(target=self._leave_last, name="groundstate-last-calls", daemon=True).start()
        else:
            self._end_life()

    def _leave_last(self) -> None:
        self._traffic.caller.threads.wait()
        self._end_life()

    def _end_life(self) -> None:
        try:
            if self._shift.life.sound:
                self._shift.life.end()
            else:
                self._shift.life.lives.release()
        except Exception as error:
            log.warning("this life could not say that it ended: the next one will see that by its lock (%s)", describe(error))
        self.database.close()

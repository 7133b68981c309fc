"""The worker of one store: one thread for transactions and liveness, which takes turns between reactions. The story of a running life.

Each turn: are we still who we were; put what came back to its records and begin new calls into the freed slots, in one commit; then
DB-only batches, fresh rows before the backlog; then, each second or when something is due, a sweep, the safety net under lost hints.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import func, select

from groundstate.engine import (
    adopt,
    barred,
    due,
    guards,
    hints,
    illegible,
    inside_call,
    left_by_others,
    locked,
    moved_tables,
    numbers,
    put_back,
    schema,
    set_apart,
    tokens,
    transaction,
    trouble,
    unfit,
    unknown_states,
    upcoming,
    vitals,
)
from groundstate.engine.admission import Admission
from groundstate.engine.afar import Afar
from groundstate.engine.aside import Aside
from groundstate.engine.batches import Batches
from groundstate.engine.concern import wake_parents
from groundstate.engine.crowd import Crowd
from groundstate.engine.fleet import Fleet
from groundstate.engine.guarded import describe
from groundstate.engine.hints import Touched
from groundstate.engine.lane import Lane, lanes_of
from groundstate.engine.life import Life
from groundstate.engine.looks import Looks
from groundstate.engine.messenger import Messenger
from groundstate.engine.own_words import OwnWords
from groundstate.engine.part import Part
from groundstate.engine.pulse import Pulse
from groundstate.engine.question import Question
from groundstate.engine.registry import Newcomer
from groundstate.engine.repeated import Repeated
from groundstate.engine.shift import Shift
from groundstate.engine.succession import WHILE_IT_CAME_UP, Succession, follow_the_clock, patiently, say_back, take_over
from groundstate.engine.suspects import Suspects
from groundstate.engine.sweeps import SWEEP_S, Sweeps
from groundstate.engine.threads import stack_of
from groundstate.engine.ticks import Ticks
from groundstate.engine.timers import Timers
from groundstate.engine.traffic import Traffic
from groundstate.engine.trouble import Illegible, RowRewritten
from groundstate.engine.vitals import Vitals
from groundstate.engine.watching import Watch, Watched, Where
from groundstate.rules.acceptance import Accept, acceptance
from groundstate.rules.hint import Hint
from groundstate.rules.reaction import ReactionSpec
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.naming import name_of
from groundstate.store.port import Opened
from groundstate.store.tables import attempt as attempt_table
from groundstate.values import lines
from groundstate.values.errors import Stopped, StoreRefused, WentBack

log = logging.getLogger("groundstate")
DEAD_EACH_S = 0.2  # for each other worker: so often it is asked whether one of them is dead, and at each sweep where they are few
MENDED_S = 0.1  # after rows of ours were put right it is looked again
RETURNS_S = 0.8  # a worker without its lock tries so often: others wait some seconds for it on a server that was started anew
LEAVES_S = 15.0  # past the drain's limit it has so long to write down what is in doubt
CALLS_END_S = 3.0  # so long async calls may take to end once they are cancelled; what goes on all the same keeps this life's lock
GIVES_UP_S = 0.7  # so long a start that is given up is waited for: what it asked the server may not have been answered


@dataclass(frozen=True)
class Options:
    """How a worker is started."""

    accept: Accept = False  # which new and changed reactions are started on rows that are there, and what is known of their calls
    after_restore: bool = False
    held: bool = False  # comes up and carries out nothing until told
    leave_undeclared: bool = False  # attempts of reactions that this code does not declare do not keep it from starting


@dataclass(frozen=True)
class Rest:
    """What remains when all is quiet: what waits for its time, or for a person."""

    in_doubt: int
    failed: int
    held: int
    timers: int = 0  # records that are still to become due


@dataclass(frozen=True)
class Ended:
    """What an end left. clean: each life said that it is over, so that nobody has to find it out by its lock."""

    in_doubt: int = 0  # calls that it cut off, that timed out meanwhile, or that still run past their time limit
    clean: bool = True
    hangs: bool = False  # a worker's own thread did not end, and was left behind


class Worker:
    """Carries out the reactions of one store. `start`, then `stop`; `quiet` tells when nothing is left that can be done now."""

    def __init__(  # noqa: PLR0913  # an app's parts, as it is put together
        self,
        app: str,
        specs: Sequence[ReactionSpec],
        opened: Opened,
        *,
        schedules: Sequence[ScheduleSpec] = (),
        options: Options,
        redact: Callable[[str], str] | None = None,
        messenger: Messenger | None = None,
        watch: Watch | None = None,
        part: Part | None = None,
    ) -> None:
        self.options = options
        self._part = part or Part()
        self.database, make_lives, self._witness = opened
        self._specs = specs
        self._schedules = schedules
        self._app = app
        self._store = self._part.name or name_of(self.database.settings.url)
        self._place = inside_call.watch(app, self.database.settings.url, self.database)  # kept: as long as it is, calls may not write there
        self.failure: BaseException | None = None
        self.when_ended: Callable[[Worker], None] = _nobody_asks  # it came up, and its thread ended by itself: told once it has left
        self._up = False  # whether it came up
        self._said_so = False  # whether its last life said that it is over
        self._wake = threading.Event()
        self._started = threading.Event()
        self._go = threading.Event()
        self._quiet = threading.Event()
        self._quiet_wanted: str | None = None  # 'asked', then 'swept' once a sweep began after that
        declared = frozenset([*(spec.name for spec in specs), *(spec.name for spec in schedules)])
        tables_of = {spec.name: spec.table_name for spec in specs}
        self._succession = Succession(
            lambda: Life(app, self.database, make_lives(), self._witness, redact or str, declared=declared, tables_of=tables_of),
            after_restore=options.after_restore,
        )
        self._shift = Shift(app, self.database, self._succession.next_life(), self._store)
        self._shift.watched = Watched(Where(app, self._store), watch)
        self._admission = Admission(self._shift, accept=acceptance(options.accept, declared), leave_undeclared=options.leave_undeclared)
        self._traffic = Traffic(self._shift, self._wake.set)
        self._timers = Timers(self._shift)
        self._ticks = Ticks(self._shift, schedules)
        self._messenger = messenger
        self._fleet = Fleet(self._shift, lambda: messenger is not None and messenger.up)
        self._afar = Afar()
        self._crowd = Crowd(self._shift, self._fleet, self._say)
        self._words = OwnWords(self._shift, self._traffic.limits, self._crowd, lambda: self._is_held)
        self._aside = Aside(self._shift, self._wake.set)
        self._batches = Batches(self._shift, self._crowd)
        self._suspects = Suspects(self._shift)
        self._looks = Looks(self._shift, self._fleet, self._timers)
        self._sweeps = Sweeps(self._shift, self._fleet, self._looks, self._timers)
        self._registered = threading.Event()  # that happened, or something stands in the way of it
        self._counted = False  # whether new and changed reactions were: before that nobody knows whether all is quiet
        self._next_watch = 0.0
        self._next_dead = 0.0
        self._turned_at = time.monotonic()  # when its thread has come round, or at the latest will after a wait
        self._not_before = 0.0  # the database is in trouble until then
        self._trouble = 0
        self._troubled_at = 0.0  # since when
        self._troubled_by = ""
        self._says_trouble = Repeated()
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
    def waiting(self) -> dict[str, str]:
        """By the name of each reaction that is not carried out here just now, why."""
        found = {
            lane.name: lane.lacks or "it is not known yet which rows it would begin with"
            for lane in self.lanes
            if lane.lacks or not lane.on
        }
        found |= dict.fromkeys(
            self.life.waiting, f"the database may have been put back, and a person must say what it was: {put_back.CURE}"
        )
        found |= {newcomer.name: newcomer.words for newcomer in self.refused}
        found |= {part.name: part.barred for part in self._shift.parts if part.barred is not None and part.name not in found}
        if self.trouble is not None:
            found |= {lane.name: f"its database is in trouble: {self.trouble}" for lane in self.lanes if lane.name not in found}
        return found

    @property
    def expired(self) -> Mapping[str, int]:
        """How many were too late, by reaction, since it was started."""
        return self._shift.tally.expired

    @property
    def trouble(self) -> str | None:
        """What its database was in trouble with in the last turn; None where that went well."""
        return self._troubled_by if self._trouble else None

    def vitals(self) -> Vitals:
        """How it does. From any thread."""
        return vitals.of(
            self._shift,
            self._traffic,
            thread=self._thread.ident,
            turned_s=max(time.monotonic() - self._turned_at, 0.0),
            trouble=self.trouble,
            ended=self.failure,
            held=self._is_held,
            refused=[one.name for one in self.refused],
            waiting=self.waiting,
        )

    @property
    def _is_held(self) -> bool:
        return self.options.held and not self._go.is_set()

    @property
    def lanes(self) -> list[Lane]:
        """What waits for each reaction."""
        return self._shift.lanes

    # ---- from other threads --------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Comes up: the lock, identity, adoption.

        Raises:
            Stopped: `stop` was called meanwhile.
            what stands in the way, with its cure.
        """
        if self._shift.stopping is None:
            self._thread.start()
            self._started.wait()
        if self._shift.stopping is not None and not self._up:
            raise Stopped(WHILE_IT_CAME_UP) from self.failure
        if self.failure is not None and not self._up:
            raise self.failure

    def until_registered(self, timeout_s: float) -> None:
        """Returns once it is known of each reaction whether it is carried out: what is written from then on is its, or waits with it."""
        self._registered.wait(timeout_s)

    def stop(self, limit_s: float) -> Ended:
        """Begins nothing new, lets calls end within the limit, leaves the rest in doubt, and ends this life. A start ends at once."""
        self._shift.stopping = time.monotonic() + limit_s
        self._traffic.caller.draining = True
        self._go.set()
        self._wake.set()
        self._registered.set()
        up = self._up
        if not up:
            self._started.set()
        if self._thread.is_alive():
            self._thread.join(limit_s + LEAVES_S if up else GIVES_UP_S)
        hangs = self._thread.is_alive() and (up or self._shift.life.sound)  # else it waits for a server, and has begun nothing
        if hangs:
            stack = stack_of(self._thread.ident)
            log.error(
                "the worker of %s has not ended %.0f s after its limit, and is left behind: what it does is rolled back, or in doubt."
                " It stands at:\n%s",
                self._store,
                LEAVES_S,
                stack,
                extra={"event": "worker_left_behind", "store": self._store, "stack": stack},
            )
        return Ended(len(self._traffic.left_in_doubt), clean=not hangs and (self._said_so if up else True), hangs=hangs)

    def go(self) -> None:
        """After a start with `held`: carries out from now on."""
        self._go.set()
        self._wake.set()

    def hear(self, touched: Touched) -> None:
        """A hint: wakes the reactions it concerns."""
        if not self._part.concerns(self._part.of(touched)):
            return
        if threading.current_thread() is not self._thread:
            self._sweeps.heard_here = True
        heard = [lane.hear(touched, shared=self._shift.others) for lane in self._shift.parts]  # each is to hear
        if any(heard):
            self._wake.set()

    def until_quiet(self, timeout_s: float | None) -> bool:
        """Waits until a whole sweep that began after now found nothing that can be done."""
        self._quiet.clear()
        self._quiet_wanted = "asked"
        self._sweeps.next = 0.0
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
        lines.are_of(self._store, of_several=self._part.several)
        try:
            self._come_up()
            self._up = True
        except BaseException as error:  # told to who started us
            self.failure = error
            with contextlib.suppress(Exception):
                if self._shift.stopping is None:
                    self._shift.life.lives.release()
                else:
                    self._succession.give_up(self._shift)
            with contextlib.suppress(Exception):
                self.database.close()
            return
        finally:
            self._started.set()
        hints.listen(self)
        try:
            self._go_on()
        except BaseException as error:
            log.exception(
                "the worker of %s ended by an error of its own; what was under way is settled by the next life",
                self._store,
                extra={"event": "worker_ended", "app": self._app, "store": self._store},
            )
            self.failure = error
            self._shift.life.sound = False
        finally:
            self._registered.set()
            hints.stop_listening(self)
            try:
                self._leave()
            finally:
                if self.failure is not None:
                    self.when_ended(self)

    def _come_up(self) -> None:
        patiently(self._shift, self.database.connect)
        transaction.watch(self.database)
        patiently(self._shift, lambda: schema.check(self.database))
        lanes = [lanes_of(Question(spec, self.database)) for spec in self._specs]
        questions = [lane.question for lane in lanes]
        for question in questions:
            guards.guard(question)
            wake_parents(question)
        self._shift.lanes = lanes
        for lane in lanes:
            unfit.met(self._shift, lane, lane.question.filter_raised)
        self._fleet.lock = numbers.sweeper(self._app, self._code())
        patiently(self._shift, self._admission.read)
        self._succession.begin(self._shift)
        patiently(self._shift, lambda: moved_tables.follow(self._shift))
        patiently(self._shift, self._tell_of_others)

    def _tell_of_others(self) -> None:
        """What other apps of which no worker lives left on this database: perhaps this app, under its name of before."""
        questions = [lane.question for lane in self._shift.lanes]
        with self.database.reading() as connection:
            found = left_by_others.look(self._app, self.database, connection, questions, self.life.lives)
        left_by_others.say(self._app, found)

    def _code(self) -> str:
        """What tells this code's conditions and schedules from another version's: whoever sweeps for all must know all of them."""
        said = sorted([lane.name, lane.question.condition_text] for lane in self._shift.lanes)
        return json.dumps([said, sorted([spec.name, spec.words] for spec in self._schedules)])

    # ---- turns -----------------------------------------------------------------------------------------------------------------
    def _go_on(self) -> None:
        if self.options.held:
            self._stand_by()
        warned = False
        busy_until = time.monotonic() + SWEEP_S
        while self._shift.stopping is None or not self._traffic.drained():
            try:
                self._turn()
                if not self._counted:
                    self._count_newcomers()  # after the first turn: what is known is under way before anything is counted
            except RowRewritten as error:
                self._succession.begin_another(self._shift, str(error))
            except WentBack as error:
                self._succession.went_back(self._shift, str(error))
            except Illegible as error:
                self._mend(error)
            except Exception as error:
                self._after_trouble(error)
            wait = self._wait_s()
            if not warned and (wait > 0 or time.monotonic() > busy_until):
                self._admission.warn()  # not before what was waiting is under way
                warned, wait = True, self._wait_s()
            self._turned_at = time.monotonic() + max(wait, 0.0)
            if wait > 0:
                self._wake.wait(wait)
            self._wake.clear()

    def _stand_by(self) -> None:
        """Registers each reaction, and carries nothing out until `go`."""
        self._turned_at = time.monotonic() + SWEEP_S
        try:
            self._count_newcomers()
        except Exception as error:
            self._after_trouble(error)  # tried again after the first turn
        while not self._go.wait(SWEEP_S) and self._shift.stopping is None:
            self._shift.life.lives.held()
            self._words.turn()
            self._turned_at = time.monotonic() + SWEEP_S

    def _count_newcomers(self) -> None:
        self._admission.count_newcomers()
        self._counted = True
        self._registered.set()

    def _mend(self, met: Illegible) -> None:
        """Somebody edited rows of ours: they are held for a person, and everything else goes on."""
        try:
            if illegible.mend(self._shift.life):
                self._not_before = time.monotonic() + MENDED_S
            else:
                self._after_trouble(met)
        except Exception as error:
            self._after_trouble(error)

    def _after_trouble(self, error: Exception) -> None:
        """Waited out, whatever it is; what came back stays in memory, and no new call is begun while conclusions are stuck."""
        if not self._trouble:
            self._troubled_at = time.monotonic()
        self._trouble = min(self._trouble + 1, 6)
        whose = locked.who_locks_ours(self.database) if trouble.locked(error) else None
        self._troubled_by = whose or describe(error)
        self._registered.set()
        wait = 0.1 * 2**self._trouble
        if not self._shift.life.sound:
            wait = min(wait, RETURNS_S)
        self._not_before = time.monotonic() + wait
        self._sweeps.by_itself(self._not_before)
        self._succession.next_check = 0.0
        words = str(error) if isinstance(error, StoreRefused) else whose or trouble.told(error)
        is_new = self._says_trouble.is_new(words)
        if not self._says_trouble.may_say(words, time.monotonic()):
            return
        if trouble.transient(error):
            log.warning(
                "the database is in trouble, tried again in %.1f s: %s",
                wait,
                words,
                extra={"event": "database_trouble", "wait_s": wait},
            )
        elif isinstance(error, StoreRefused) or trouble.undefined(error) or trouble.denied(error):  # its words are enough
            log.error("tried again in %.1f s: %s", wait, words, extra={"event": "turn_failed", "wait_s": wait})
        else:
            trace = error if is_new else None
            log.error(
                "a turn failed, tried again in %.1f s: %s", wait, words, exc_info=trace, extra={"event": "turn_failed", "wait_s": wait}
            )

    def _turn(self) -> None:
        started = time.monotonic()
        if started < self._not_before:
            return
        before = self._shift.took
        self.database.refuse_silent()
        self._succession.check(self._shift)
        self._fleet.turned_at = started
        if self._shift.stopping is not None:
            self._fleet.resign()
        self._afar.take_over(self._shift, started)
        if self._sweeps.turn(self._keep_house, self._beat) and self._quiet_wanted == "asked":
            self._quiet_wanted = "swept"
        if self._shift.left_begun:
            self._traffic.find_unknown()
            self._shift.left_begun = False
        self._crowd.turn()
        sweeping = any(lane.passes for lane in self._shift.parts)  # and not what rings now, or is heard of
        if not sweeping:
            self._shift.tally.sweep_ends(started)
        if barred.look_again(self._shift):
            self._timers.heard()
        if self._admission.look_again():
            self._timers.heard()
        self._timers.turn()
        set_apart.turn(self._shift)
        self._looks.turn()
        self._aside.turn()
        self._watch_calls(started)
        self._suspects.turn()
        self._traffic.turn()
        if self._shift.stopping is None:
            if not self._traffic.suspect_in_air:
                self._handle()
            self._is_it_quiet()
        if self._trouble:
            self._trouble = 0
            self._says_trouble = Repeated()
            say_back(self._shift, time.monotonic() - self._troubled_at)
        if sweeping and self._shift.took == before:
            self._sweeps.idle_s += time.monotonic() - started
        self._words.turn()
        self._shift.life.lines.turn(started)

    def _handle(self) -> None:
        """What is carried out by handlers alone. In careful mode a suspect's handler runs once no call is in the air."""
        alone = None if self._traffic.calls_in_air else self._shift.alone
        if self._ticks_here and (alone is not None or self._shift.alone is None):
            self._ticks.turn()
        if alone is not None:
            if alone.reaction not in self._shift.schedules:
                self._batches.carry_out_alone(alone)
            self._suspects.had_its_turn()
        self._batches.turn()

    @property
    def _ticks_here(self) -> bool:
        """Whether this worker looks after schedules: the one that sweeps, and one that is to say when all is quiet."""
        return self._fleet.sweeps or self._quiet_wanted is not None

    def _wait_s(self) -> float:
        """How long nothing is to be done but by a hint."""
        now = time.monotonic()
        if now < self._not_before:
            return self._not_before - now
        if self._shift.alone is not None and not self._traffic.calls_in_air:
            return 0.0  # another one may be suspected
        if self._shift.stopping is None and any(self._can_go_on(lane, now) for lane in self._shift.parts):
            return 0.0
        if self._shift.stopping is None and any(set_apart.is_waiting(lane) and lane.not_before <= now for lane in self._shift.lanes):
            return 0.0
        times = [self._sweeps.wait_until(), now + SWEEP_S, self._afar.wait_until()]
        if self._ticks_here:
            times.append(self._ticks.wait_until())
        known = (
            self._shift.next_due,
            self._timers.wait_until(),
            self._aside.wait_until(),
            self._crowd.wait_until(),
            self._shift.life.rings.wait_until(),
        )
        times += [at for at in known if at is not None]
        times += [lane.not_before for lane in self._shift.parts if (lane.wants or lane.lacks) and lane.not_before > now]
        times += [lane.failing.until for lane in self._shift.parts if lane.wants and lane.failing.until > now]
        traffic = self._traffic.wait_s(now)
        return max(min(min(times) - now, SWEEP_S if traffic is None else traffic), 0.0)

    def _can_go_on(self, lane: Lane, now: float) -> bool:
        if not lane.wants or lane.not_before > now:
            return False
        part = self._batches.can_go_on if lane.question.spec.call is None else self._traffic.has_room
        return part(lane, now)

    # ---- sweeps ------------------------------------------------------------------------------------------------------------------
    def _keep_house(self, seen: Pulse) -> None:
        """What a sweep looks at beside conditions: dead lives, calls that nobody knows, baselines that are over, the next due time."""
        now = time.monotonic()
        if seen.strangers and now < self._next_dead:
            seen = replace(seen, strangers=False)
        else:
            self._next_dead = now + DEAD_EACH_S * (self._fleet.size - 1)
        take_over(self._shift, seen)
        if self._shift.life.awaits_until is not None:
            self._sweeps.next = min(self._sweeps.next, max(self._shift.life.awaits_until, self._next_dead, now))
        if seen.attempts:
            self._traffic.find_unknown()
        if seen.old_rates:
            tokens.forget_old(self._shift)
        self._admission.read_again(seen)
        self._admission.look_at_older()
        self._ticks.look_again()
        if seen.attempts:
            due.ask(self._shift)
        else:
            self._shift.next_due = None
            unknown_states.none(self._shift)
            for lane in self._shift.lanes:
                lane.due, lane.due_cursor = False, None

    def _beat(self, seen: Pulse) -> None:
        """What a worker looks at for which another one sweeps: what a person said, and how careful to be."""
        adopt.forget_past(self._shift.life)
        adopt.look_at_ends(self._shift.life, seen)
        follow_the_clock(self._shift)
        self._admission.read_again(seen)
        self._admission.look_at_older()

    def _watch_calls(self, now: float) -> None:
        """Each second: calls whose records moved on are ended where they asked for it, and one that blocks the loop is told of."""
        if now >= self._next_watch:
            self._next_watch = now + SWEEP_S
            self._traffic.end_overtaken()
            self._traffic.caller.watch()

    # ---- the others --------------------------------------------------------------------------------------------------------------
    def hear_afar(self, hint: Hint) -> None:
        """From any thread: a hint of another process. Which worker looks is in the dice; too many of them cost a query each."""
        if self.failure is not None or hint.in_hand or not self._part.concerns(hint.store) or not self._crowd.hear(hint):
            return
        if hint.let_in is None:
            wait_s = self._fleet.wakes(hint.dice, hint.rows)
            if wait_s is None:
                return
            self._afar.hear(hint, time.monotonic() + wait_s)
        self._wake.set()

    def _say(self, hint: Hint) -> None:
        """To the other workers, where there is a way."""
        if self._messenger is not None:
            self._messenger.say(replace(hint, store=self._part.name))

    def stand_down(self) -> None:
        """From any thread: one that hangs lets another one sweep for all."""
        self._fleet.stand_down()

    # ---- quiet, and the end ----------------------------------------------------------------------------------------------------------
    def _is_it_quiet(self) -> None:
        if (
            self._quiet_wanted != "swept"
            or not self._counted
            or not self._traffic.quiet
            or self._ticks.wants
            or self._shift.life.rings.wait
            or self._shift.alone is not None
            or any(lane.wants or (lane.on and lane.backlog) for lane in self._shift.parts)
        ):
            return
        if self._shift.took:
            self._quiet_wanted = "asked"  # something was done since the last sweep began: look once more
            self._sweeps.next = 0.0
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
        self._shift.life.lines.turn(time.monotonic(), over=True)
        with contextlib.suppress(Exception):
            self._fleet.resign()  # this life may be kept for long yet
        self._aside.stop()
        caller.stop(CALLS_END_S)
        if caller.busy and self._shift.life.sound:
            # Whoever took this life for dead would settle calls that may still land. A process that ends takes its threads along.
            log.warning(
                "%d calls still run: this life's lock is kept until they end",
                caller.busy,
                extra={"event": "calls_still_running", "count": caller.busy},
            )
            self._say_over(self._shift.life.say_over)  # a process that ends while they run is no unclean end: they are in doubt already
            threading.Thread(target=lines.as_here(self._leave_last), name="groundstate-last-calls", daemon=True).start()
            return
        if self._shift.life.sound:
            self._say_over(self._shift.life.end)
        else:
            self._shift.life.lives.release()
        self.database.close()

    def _leave_last(self) -> None:
        self._traffic.caller.wait()
        self._shift.life.lives.release()
        self.database.close()

    def _say_over(self, end: Callable[[], None]) -> None:
        try:
            end()
            self._said_so = True
        except Exception as error:
            log.warning(
                "this life could not say that it ended: the next one will see that by its lock (%s)",
                describe(error),
                extra={"event": "life_end_unsaid", "life": f"{self._shift.life.id:x}"},
            )


def _nobody_asks(_worker: Worker) -> None:
    """Who made it does not ask whether its thread ended."""

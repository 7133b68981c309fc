"""The worker of one store: one thread for transactions and liveness, which takes turns between reactions. The story of a running life.

Each turn: are we still who we were; put what came back to its records and begin new calls into the freed slots, in one commit; then
DB-only batches, fresh rows before the backlog; then, each second or when something is due, a sweep, the safety net under lost hints.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, union_all

from groundstate.engine import adopt, attempts, begin, careful, conclude, guards, hints, plain, registry, restore, schema, trouble
from groundstate.engine.attempts import Identity
from groundstate.engine.calling import Caller
from groundstate.engine.flight import Flight, NothingHappened, NotSent, Returned, ThreadEnded, Unclear, Word, clocks
from groundstate.engine.hints import Touched
from groundstate.engine.lane import Lane
from groundstate.engine.life import Life, describe
from groundstate.engine.plain import Feed
from groundstate.engine.question import Question
from groundstate.engine.transaction import Transaction, watch
from groundstate.rules.attempt import State
from groundstate.rules.breaker import Breaker
from groundstate.rules.reaction import OutsideSpec, ReactionSpec
from groundstate.store.port import Opened
from groundstate.store.tables import attempt as attempt_table
from groundstate.values.errors import StoreRefused, WentBack

log = logging.getLogger("groundstate")
SWEEP_S = 1.0
SWEEP_SHARE = 0.01  # of the wall time, at most, goes into sweeps
LOOK_S = 0.05  # how often an embedded store is asked whether another process wrote
HOLD_S = 0.05  # how long a batch aims to hold its locks
HOLD_EMBEDDED_S = 0.012  # the lock is over the whole database there
HOLD_BESIDE_OTHERS_S = 0.004  # and this while another process writes
DUE_AT_ONCE = 200
FOREIGN_S = 5.0  # for so long after another process wrote, an embedded store is left free half of the time


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


class Worker:
    """Carries out the reactions of one store. `start`, then `stop`; `quiet` tells when nothing is left that can be done now."""

    def __init__(
        self, app: str, specs: Sequence[ReactionSpec], opened: Opened, *, options: Options, redact: Callable[[str], str] | None = None
    ) -> None:
        self.app = app
        self.options = options
        self.database, self._make_lives, self._witness = opened
        self._redact = redact or (lambda words: words)
        self._specs = specs
        self.lanes: list[Lane] = []
        self.refused: list[registry.Newcomer] = []
        self.failure: BaseException | None = None
        self._by_name: dict[str, Lane] = {}
        self._breakers: dict[OutsideSpec, Breaker] = {}
        self._inbox: deque[Word] = deque()
        self._words: list[Word] = []  # in hand, not yet concluded
        self._tried: set[int] = set()  # calls of words whose commit was begun and whose outcome is unknown
        self._flying: dict[tuple[int, bool], Flight] = {}
        self._wake = threading.Event()
        self._started = threading.Event()
        self._quiet = threading.Event()
        self._stopping: float | None = None  # the monotonic time at which waiting for calls ends
        self._go = threading.Event()
        self._next_sweep = 0.0
        self._next_look = 0.0
        self._next_life_check = 0.0
        self._next_due: float | None = None
        self._foreign_until = 0.0
        self._took = 0
        self._turn = 0
        self._not_before = 0.0  # conclusions could not be written
        self._trouble = 0
        self._watch_quiet = False
        self._last_now: datetime | None = None
        self._thread = threading.Thread(target=self._run, name=f"groundstate-{app}", daemon=True)
        self.caller = Caller(self._say, self._may_call)
        self.life: Life = self._new_life()

    # ---- from other threads --------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Comes up: the lock, identity, adoption. Raises what stands in the way, with its cure."""
        self._thread.start()
        self._started.wait()
        if self.failure is not None:
            raise self.failure

    def stop(self, limit_s: float) -> None:
        """Begins nothing new, lets calls end within the limit, leaves the rest in doubt, and ends this life."""
        self._stopping = time.monotonic() + limit_s
        self.caller.draining = True
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
        if any([lane.hear(touched) for lane in self.lanes]):
            self._wake.set()

    def until_quiet(self, timeout_s: float | None) -> bool:
        """Waits until a whole sweep found nothing that can be done now."""
        self._quiet.clear()
        self._watch_quiet = True
        self._next_sweep = 0.0
        self._wake.set()
        try:
            end = None if timeout_s is None else time.monotonic() + timeout_s
            while not self._quiet.wait(0.2):
                if self.failure is not None or not self._thread.is_alive():
                    raise self.failure or RuntimeError("the worker has stopped")
                if end is not None and time.monotonic() > end:
                    return False
            return True
        finally:
            self._watch_quiet = False

    def _say(self, words: Sequence[Word]) -> None:
        self._inbox.extend(words)
        self._wake.set()

    def _may_call(self, life: int) -> bool:
        return self.life.sound and self.life.id == life

    # ---- a life ----------------------------------------------------------------------------------------------------------------
    def _new_life(self) -> Life:
        return Life(self.app, self.database, self._make_lives(), self._witness, self._redact)

    def _run(self) -> None:
        try:
            self._come_up()
        except BaseException as error:  # told to who started us
            self.failure = error
            with contextlib.suppress(Exception):
                self.life.lives.release()
            return
        finally:
            self._started.set()
        hints.listen(self)
        try:
            self._go_on()
        except BaseException as error:
            log.exception("the worker stopped by an error of its own; what was under way is settled by the next life")
            self.failure = error
            self.life.sound = False
        finally:
            hints.stop_listening(self)
            self._leave()

    def _come_up(self) -> None:
        self.database.connect()
        watch(self.database)
        schema.check(self.database)
        questions = [Question(spec, self.database) for spec in self._specs]
        for question in questions:
            guards.guard(question)
            for every in question.spec.children:
                hints.wakes_parent(every.child, question.entity, tuple(column.key for column in every.parent_key))
        self.lanes = [Lane(question) for question in questions]
        self._by_name = {lane.name: lane for lane in self.lanes}
        self._read_registry()
        self.life.begin()
        self._look_back()
        self._adopt()

    def _read_registry(self) -> None:
        names = [lane.name for lane in self.lanes]
        with self.database.reading() as connection:
            left = registry.removed(connection, self.app, names)
            if left:
                listed = ", ".join(f"{name} ({count})" for name, count in left)
                raise StoreRefused(
                    f"attempts are open for reactions that this code does not declare: {listed}. "
                    "Renamed: `groundstate rename OLD NEW`. Removed: settle or forget them first (`groundstate held`)"
                )
            seen = registry.known(connection, self.app)
            for lane in self.lanes:
                lane.question.has_triggers = registry.has_triggers(connection, self.database, lane.question)
        self.life.key_names = {known.name: known.key_name for known in seen.values()}
        self.life.suspects = {known.name for known in seen.values() if known.suspect}
        for lane in self.lanes:
            before = seen.get(lane.name)
            lane.on = before is not None and before.condition == lane.question.condition_text

    def _count_newcomers(self) -> None:
        """New and changed reactions, once the known ones are under way: counting may take a while."""
        pending = [lane.question for lane in self.lanes if not lane.on]
        if not pending:
            return
        with self.database.reading() as connection:
            silent, loud = registry.newcomers(connection, pending, registry.known(connection, self.app))
        if self.options.accept:
            silent, loud = pending, []
        registry.write(self.life, silent)
        for question in silent:
            lane = self._by_name[question.spec.name]
            lane.on = True
            lane.sweep()
        self.refused = loud
        for newcomer in loud:
            log.error("%s", newcomer.words)

    def _look_back(self) -> None:
        why = "a person said so (--after-restore)" if self.options.after_restore else restore.sign(self.life)
        if why:
            restore.went_back(self.life, [lane.question for lane in self.lanes], why)
        elif restore.remembered(self.life) != self.database.identity():
            restore.remember(self.life)

    def _adopt(self) -> None:
        adopt.adopt_all(self.life, with_call={lane.name: lane.question.spec.call is not None for lane in self.lanes})
        adopt.look_at_ends(self.life)

    def _check_life(self) -> None:
        """A worker that lost its lock stops calling at once and begins a new life (hazard 30)."""
        now = time.monotonic()
        if now < self._next_life_check:
            return
        self._next_life_check = now + SWEEP_S
        if self.life.sound and self.life.lives.held():
            return
        if self.life.sound:
            log.error("the lock of this life is lost: no call goes out until a new life has begun")
        old, old.sound = self.life, False
        with contextlib.suppress(Exception):
            old.lives.release()
        fresh = self._new_life()
        fresh.key_names, fresh.suspects, fresh.care = old.key_names, old.suspects, old.care
        fresh.begin()
        self.life = fresh
        self._look_back()
        self._adopt()

    # ---- turns -----------------------------------------------------------------------------------------------------------------
    def _go_on(self) -> None:
        if self.options.held:
            while not self._go.wait(SWEEP_S) and self._stopping is None:
                self.life.lives.held()
        first = True
        while True:
            try:
                if self._stopping is not None and self._drained():
                    return
                self._turn_once()
                if first:
                    first = False
                    self._count_newcomers()
            except WentBack as error:
                restore.went_back(self.life, [lane.question for lane in self.lanes], str(error))
                self._fresh_life_after_restore()
            except Exception as error:
                self._after_trouble(error)
            wait = self._wait_s()
            if wait > 0:
                self._wake.wait(wait)
            self._wake.clear()

    def _fresh_life_after_restore(self) -> None:
        self.life.sound = False
        self._next_life_check = 0.0

    def _after_trouble(self, error: Exception) -> None:
        """The database's trouble is waited out; what came back stays in memory. Anything else is said with its traceback, and waited out too."""
        self._trouble = min(self._trouble + 1, 6)
        wait = 0.1 * 2**self._trouble
        self._not_before = time.monotonic() + wait
        if trouble.transient(error):
            log.warning("the database is in trouble, tried again in %.1f s: %s", wait, describe(error))
        else:
            log.error("tried again in %.1f s", wait, exc_info=error)
        self._next_life_check = 0.0

    def _turn_once(self) -> None:
        if time.monotonic() < self._not_before:
            return
        self._check_life()
        self._take_words()
        self._sweep_if_time()
        for lane in self.lanes:
            lane.listen()
        self._calls()
        if self._stopping is None:
            self._batches()
            self._is_it_quiet()
        self._trouble = 0

    def _wait_s(self) -> float:
        now = time.monotonic()
        if now < self._not_before:
            return self._not_before - now
        if self._inbox or self._words:
            return 0.0 if self._inbox else 0.02
        if self._stopping is None and any(self._can_go_on(lane, now) for lane in self.lanes):
            return 0.0
        times = [self._next_sweep, now + SWEEP_S]
        if self.database.name == "sqlite":
            times.append(self._next_look)
        if self._next_due is not None:
            times.append(self._next_due)
        times += [lane.not_before for lane in self.lanes if lane.wants and lane.not_before > now]
        times += [breaker.until for breaker in self._breakers.values() if breaker.until > now]
        times += [flight.ends_s for flight in self._flying.values() if flight.ends_s is not None and not flight.given_up]
        return max(min(times) - now, 0.0)

    def _can_go_on(self, lane: Lane, now: float) -> bool:
        if not lane.wants or lane.not_before > now:
            return False
        if lane.question.spec.call is None:
            return lane.failing.room(1, 0, now) > 0
        return self._room(lane, now) > 0

    # ---- what came back ----------------------------------------------------------------------------------------------------------
    def _take_words(self) -> None:
        now = time.monotonic()
        while self._inbox:
            self._words.append(self._inbox.popleft())
        for flight in list(self._flying.values()):
            if flight.ends_s is not None and now > flight.ends_s and not flight.given_up:
                flight.given_up = True
                error = f"timed out after {flight.timeout.total_seconds():g} s, and its thread still runs"
                self._words.append(Unclear(flight, error, running=True))

    def _calls(self) -> None:
        """One transaction concludes all that returned, then begins into the freed slots; the next turn starts when it is committed."""
        lanes = [lane for lane in self.lanes if lane.question.spec.call is not None]
        if not lanes or not (self._words or (self._stopping is None and any(self._can_go_on(lane, time.monotonic()) for lane in lanes))):
            return
        clock = clocks()
        words, self._words = self._words, []
        try:
            with self.life.transaction() as tx:
                done, later = self._conclude_all(tx, words, one_by_one=set())
                self._tried |= {word.flight.call for word in done}
                begun = self._begin_all(tx, lanes, clock) if self._stopping is None else begin.Begun()
        except conclude.SomeHandlerFailed:
            self._conclude_apart(words)
        except Exception as error:
            self._words = words + self._words
            if trouble.transient(error) or isinstance(error, WentBack) or not words:
                raise
            self._words = self._words[len(words) :]
            self._conclude_apart(words)
        else:
            self._concluded(done, later)
            self._send(begun)

    def _conclude_all(self, tx: Transaction, words: Sequence[Word], *, one_by_one: set[str], refused: str | None = None) -> tuple[list[Word], list[Word]]:
        by_question: dict[Question, list[Word]] = {}
        for word in words:
            by_question.setdefault(word.flight.question, []).append(word)
        done: list[Word] = []
        later: list[Word] = []
        for question, some in by_question.items():
            result = conclude.conclude(
                self.life, tx, question, some, one_by_one=question.spec.name in one_by_one, was_ours=self._was_ours, refused=refused
            )
            done += result.done
            later += result.later
        return done, later

    def _was_ours(self, word: Word) -> bool:
        return word.flight.call in self._tried and self.life.id == word.flight.life and self.life.sound

    def _conclude_apart(self, words: Sequence[Word]) -> None:
        """With a savepoint a record; and where even the commit is refused, a transaction each."""
        by_question: dict[Question, list[Word]] = {}
        for word in words:
            by_question.setdefault(word.flight.question, []).append(word)
        waiting = list(words)
        try:
            for question, some in by_question.items():
                try:
                    self._conclude_in_one(question, some, None)
                except Exception as error:
                    if trouble.transient(error):
                        raise
                    for word in some:
                        self._conclude_alone(question, word)
                waiting = [word for word in waiting if word.flight.question is not question]
        except Exception:
            self._words = waiting + self._words
            raise

    def _conclude_in_one(self, question: Question, words: Sequence[Word], refused: str | None) -> None:
        with self.life.transaction() as tx:
            done, later = self._conclude_all(tx, words, one_by_one={question.spec.name}, refused=refused)
            self._tried |= {word.flight.call for word in done}
        self._concluded(done, later)

    def _conclude_alone(self, question: Question, word: Word) -> None:
        try:
            self._conclude_in_one(question, [word], None)
        except Exception as error:
            if trouble.transient(error):
                raise
            self._conclude_in_one(question, [word], f"its commit was refused: {describe(error)}")

    def _concluded(self, done: Sequence[Word], later: Sequence[Word]) -> None:
        self._words = [*later, *self._words]
        self._took += len(done)
        now = time.monotonic()
        for word in done:
            flight = word.flight
            self._tried.discard(flight.call)
            if not (isinstance(word, Unclear) and word.running):
                self._flying.pop((flight.call, flight.is_find), None)
            self._tell_breaker(word, now)
            if not isinstance(word, Returned):
                self._next_due = 0.0  # an attempt may have a time of its own now

    def _tell_breaker(self, word: Word, now: float) -> None:
        call = word.flight.question.spec.call
        if call is None or isinstance(word, NotSent | ThreadEnded):
            return
        breaker = self._breakers.setdefault(call.outside, Breaker())
        match word:
            case NothingHappened(counts=False, retry_after=wait) if wait is not None:
                breaker.asked_to_wait(now, wait.total_seconds())
            case NothingHappened() | Unclear():
                breaker.went_wrong(word.flight.identity, now)
            case Returned():
                breaker.succeeded()
            case _ if breaker.probing:  # a find that answered: the endpoint is there
                breaker.succeeded()

    # ---- calls are begun -----------------------------------------------------------------------------------------------------------
    def _room(self, lane: Lane, now: float) -> int:
        call = lane.question.spec.call
        if call is None or not self.life.sound:
            return 0
        flying = sum(1 for flight in self._flying.values() if flight.question.spec.call and flight.question.spec.call.outside is call.outside)
        if self.life.care.careful and self._flying:
            return 0
        room = self._breakers.setdefault(call.outside, Breaker()).room(call.outside.limit - flying, flying, now)
        return min(room, self.life.care.together(0)) if self.life.care.careful else room

    def _begin_all(self, tx: Transaction, lanes: Sequence[Lane], clock: tuple[float, float]) -> begin.Begun:
        total = begin.Begun()
        self._turn += 1
        start = self._turn % len(lanes)
        used: dict[OutsideSpec, int] = {}
        for lane in [*lanes[start:], *lanes[:start]]:
            call = lane.question.spec.call
            if call is None or not lane.on or self._stopping is not None:
                continue
            if self.life.care.careful and total.flights:
                break
            room = self._room(lane, time.monotonic()) - used.get(call.outside, 0)
            if room <= 0 or not lane.wants:
                continue
            before = len(total.flights)
            self._begin_lane(tx, lane, room, clock, total)
            used[call.outside] = used.get(call.outside, 0) + len(total.flights) - before
        if total.new_calls:
            self.life.count_begins(tx, total.new_calls)
        return total

    def _begin_lane(self, tx: Transaction, lane: Lane, room: int, clock: tuple[float, float], total: begin.Begun) -> None:
        full = len(total.flights) + room
        if lane.due:
            identities = self._due_of(tx, lane, min(room, DUE_AT_ONCE))
            if identities:
                begun = begin.consider(self.life, tx, lane.question, identities, clock)
                self._took += begun.new_calls + begun.changed
                total.add(begun)
        if lane.fresh and len(total.flights) < full:
            keys = lane.take_fresh(full - len(total.flights))
            begun = begin.begin(self.life, tx, lane.question, Feed(keys=keys, limit=len(keys)), clock)
            self._took += begun.new_calls + begun.changed
            total.add(begun)
        if lane.backlog and len(total.flights) < full:
            limit = full - len(total.flights)
            begun = begin.begin(self.life, tx, lane.question, Feed(cursor=lane.cursor, limit=limit, crowded=lane.crowded), clock)
            self._took += begun.new_calls + begun.changed
            total.add(begun)
            self._move_on(lane, begun.claimed.cursor, begun.claimed.read, limit, len(begun.claimed.taken))

    def _move_on(self, lane: Lane, cursor: tuple[object, ...] | None, read: int, limit: int, taken: int) -> None:
        lane.cursor = cursor
        if read < limit:
            lane.swept()
        elif taken * 2 < read:
            lane.crowded = True  # most were attempted already: left out by SQL for the rest of this pass (hazard 27)

    def _due_of(self, tx: Transaction, lane: Lane, most: int) -> list[Identity]:
        """Failed attempts and doubts of ours whose time has come, in a pass that begins anew with each sweep."""
        table = attempt_table
        order = (table.c.next_at, table.c.record, table.c.occurrence)
        statement = select(table.c.app, table.c.reaction, table.c.record, table.c.occurrence, table.c.next_at, table.c.together).where(
            table.c.app == self.app,
            table.c.reaction == lane.name,
            ((table.c.state == State.DOUBT.value) & (table.c.worker == self.life.id)) | (table.c.state == State.FAILED.value),
            table.c.next_at <= tx.now,
        )
        if lane.due_cursor is not None:
            statement = statement.where(attempts.after(order, lane.due_cursor))
        rows = tx.connection.execute(statement.order_by(*order).limit(most)).all()
        if len(rows) < most:
            lane.due, lane.due_cursor = False, None
        else:
            last = rows[-1]
            lane.due_cursor = (last.next_at, last.record, last.occurrence)
        in_air = {flight.identity for flight in self._flying.values()} | {word.flight.identity for word in self._words}
        found = [row for row in rows if tuple(row[:4]) not in in_air]
        if self.life.care.careful and found:
            found = found[: min(self.life.care.together(row.together) for row in found[:1])]
            lane.due_cursor = (found[-1].next_at, found[-1].record, found[-1].occurrence) if len(found) < len(rows) else lane.due_cursor
            lane.due = lane.due or len(found) < len(rows)
        return [(row[0], row[1], row[2], row[3]) for row in found]

    def _send(self, begun: begin.Begun) -> None:
        if begun.new_calls:
            self.life.counted(begun.new_calls)
        for flight in begun.flights:
            self._flying[(flight.call, flight.is_find)] = flight
        self.caller.start(begun.flights)
        if begun.changed:
            self._next_due = 0.0

    # ---- DB-only batches -------------------------------------------------------------------------------------------------------------
    def _batches(self) -> None:
        """A batch of fresh rows for each reaction, then one of the backlog for one that has some."""
        lanes = [lane for lane in self.lanes if lane.question.spec.call is None and lane.on]
        now = time.monotonic()
        for lane in lanes:
            if lane.fresh and lane.not_before <= now and (room := lane.failing.room(lane.batch, 0, now)) > 0:
                self._batch(lane, Feed(keys=lane.take_fresh(min(room, lane.batch))))
        for lane in lanes:
            if lane.due and lane.not_before <= now:
                self._due_batch(lane)
        waiting = [lane for lane in lanes if lane.backlog and lane.not_before <= now and lane.failing.room(1, 0, now) > 0]
        if waiting:
            self._turn += 1
            lane = waiting[self._turn % len(waiting)]
            limit = min(lane.failing.room(lane.batch, 0, now), lane.batch)
            done = self._batch(lane, Feed(cursor=lane.cursor, limit=limit, crowded=lane.crowded))
            if done is not None:
                self._move_on(lane, done.cursor, done.read, limit, done.taken)

    def _due_batch(self, lane: Lane) -> None:
        with self.life.transaction() as tx:
            identities = self._due_of(tx, lane, min(lane.batch, DUE_AT_ONCE))
            if identities:
                self._took += begin.let_go(tx, lane.question, identities)
        if identities:
            self._batch(lane, Feed(keys=[lane.question.key_from_text(identity[2]) for identity in identities]))

    def _batch(self, lane: Lane, feed: Feed) -> plain.Done | None:
        started = time.monotonic()
        carry_out = careful.carry_out if self.life.care.careful else plain.carry_out
        try:
            done = carry_out(self.life, lane.question, feed)
        except Exception as error:
            if feed.keys:
                lane.fresh.update(dict.fromkeys(feed.keys))
            lane.trouble = min(lane.trouble + 1, 8)
            lane.not_before = time.monotonic() + 0.05 * 2**lane.trouble
            if not trouble.transient(error):
                log.error("%s could not be carried out, tried again: %s", lane.name, describe(error), exc_info=error)
            return None
        lane.trouble = 0
        took = time.monotonic() - started
        if done.taken:
            lane.took(took, self._hold_s())
        if done.done:
            lane.failing.succeeded()
        for number in range(done.failed):
            lane.failing.went_wrong((self._turn, number), time.monotonic())
        if done.next_at is not None:
            self._next_due = 0.0
        self._took += done.done + done.failed
        self._stay_out(took)
        return done

    def _hold_s(self) -> float:
        if self.database.locks_rows:
            return HOLD_S
        return HOLD_BESIDE_OTHERS_S if time.monotonic() < self._foreign_until else HOLD_EMBEDDED_S

    def _stay_out(self, took: float) -> None:
        """Lets other writers of an embedded store in: its busy handler is unfair to who waits (rules.md 18)."""
        if self.database.name != "sqlite":
            return
        if self.life.others_wrote:
            self._foreign_until = time.monotonic() + FOREIGN_S
        time.sleep(took if time.monotonic() < self._foreign_until else took / 20)

    # ---- sweeps ------------------------------------------------------------------------------------------------------------------------
    def _sweep_if_time(self) -> None:
        now = time.monotonic()
        if self._stopping is not None:
            return
        if self._next_due is not None and now >= self._next_due:
            for lane in self.lanes:
                lane.due = True
            self._next_due = None
            self._ask_next_due()
        others = False
        if self.database.name == "sqlite" and now >= self._next_look:
            self._next_look = now + LOOK_S
            others = self.life.did_others_write()
        if now < self._next_sweep and not others:
            return
        started = time.monotonic()
        for lane in self.lanes:
            if lane.on:
                lane.sweep()
                lane.due = True
        if now >= self._next_sweep:
            self._housekeeping()
            took = time.monotonic() - started
            self._next_sweep = started + max(SWEEP_S, took / SWEEP_SHARE) * (0.9 + self.life.dice.random() / 5)
        self._took = 0

    def _housekeeping(self) -> None:
        """What a sweep looks at beside conditions: dead lives, calls that nobody knows, baselines that are over, the next due time."""
        self._adopt()
        self._find_unknown()
        self._look_at_overtaken()
        self._read_again()
        self._ask_next_due()
        self.caller.watch()

    def _read_again(self) -> None:
        """What a person may have said meanwhile by a command: trust, accept; and baselines that are over."""
        with self.database.reading() as connection:
            seen = registry.known(connection, self.app)
            baselines = registry.with_baselines(connection, self.app)
        self.life.suspects = {known.name for known in seen.values() if known.suspect}
        self.life.key_names = {known.name: known.key_name for known in seen.values()}
        for lane in self.lanes:
            before = seen.get(lane.name)
            if not lane.on and before is not None and before.condition == lane.question.condition_text:
                lane.on = True
                self.refused = [newcomer for newcomer in self.refused if newcomer.name != lane.name]
                lane.sweep()
            if lane.name in baselines:
                registry.let_baselines_go(self.life, lane.question)

    def _find_unknown(self) -> None:
        """Begun attempts of ours with no such call in memory: a COMMIT that landed after all (hazard 47)."""
        table = attempt_table
        with self.database.reading() as connection:
            mine = [attempts.from_row(row) for row in connection.execute(
                attempts.rows(table.c.worker == self.life.id, table.c.state == State.BEGUN.value)
            )]  # fmt: skip
        known = {call for call, _ in self._flying} | {word.flight.call for word in self._words} | {word.flight.call for word in self._inbox}
        unknown = [one for one in mine if one.call not in known]
        if unknown:
            with self.life.transaction() as tx:
                begin.unknown_begins(tx, unknown)

    def _look_at_overtaken(self) -> None:
        """Ends calls that asked for it, whose records moved on (`stop_when_overtaken`)."""
        flights = [f for f in self._flying.values() if not f.is_find and f.question.spec.call and f.question.spec.call.stop_when_overtaken]
        for question in {flight.question for flight in flights}:
            some = [flight for flight in flights if flight.question is question]
            keys = [question.key_from_text(flight.identity[2]) for flight in some]
            with self.database.reading() as connection:
                holding = {tuple(row)[: len(question.key_attributes)] for row in connection.execute(question.still_holding(keys))}
            self.caller.cancel([flight for flight, key in zip(some, keys, strict=True) if key not in holding])

    def _ask_next_due(self) -> None:
        """When the next failed attempt or doubt of ours is to be looked at."""
        table = attempt_table
        state = table.c.state.in_([State.FAILED.value, State.DOUBT.value])
        with self.database.reading() as connection:
            if connection.execute(select(table.c.app).limit(1)).first() is None:
                self._next_due = None
                return
            questions = [
                select(table.c.next_at).where(table.c.app == self.app, table.c.reaction == lane.name, state, table.c.next_at > self.database.now())
                .order_by(table.c.next_at).limit(1).subquery()
                for lane in self.lanes
            ]  # fmt: skip
            now = connection.execute(select(self.database.now())).scalar_one()
            self._notice_clock(now)
            times = [row[0] for row in connection.execute(union_all(*[select(one) for one in questions]))]
        self._next_due = time.monotonic() + (min(times) - now).total_seconds() + 0.001 if times else None

    def _notice_clock(self, now: datetime) -> None:
        """A clock that went backwards is said; nothing fires twice because of it (hazard 42)."""
        if self._last_now is not None and now < self._last_now - timedelta(seconds=1):
            log.warning("the database's clock went back by %s: what is due waits for it", self._last_now - now)
        self._last_now = now

    # ---- quiet, and the end ----------------------------------------------------------------------------------------------------------
    def _is_it_quiet(self) -> None:
        if not self._watch_quiet or self._flying or self._words or self._inbox or any(lane.wants for lane in self.lanes):
            return
        if self._took:
            self._next_sweep = 0.0  # something was done since the last sweep began: look once more
            return
        self._quiet.set()
        self._watch_quiet = False

    def rest(self) -> Rest:
        """What is left in the attempt table, by state."""
        table = attempt_table
        with self.database.reading() as connection:
            states = [row[0] for row in connection.execute(select(table.c.state).where(table.c.app == self.app))]
        return Rest(states.count("doubt"), states.count("failed"), states.count("held"))

    def _drained(self) -> bool:
        late = self._stopping is not None and time.monotonic() > self._stopping
        if self._flying and late:
            for flight in list(self._flying.values()):
                if not flight.given_up and not flight.is_find:
                    self._words.append(Unclear(flight, "the worker stopped while it was in the air"))
            self._flying.clear()
            self._take_words()
            if self._words:
                self._conclude_apart(self._words_taken())
            return True
        return not self._flying and not self._words and not self._inbox

    def _words_taken(self) -> list[Word]:
        words, self._words = self._words, []
        return words

    def _leave(self) -> None:
        self.caller.stop(1.0)
        try:
            if self.life.sound:
                self.life.end()
            else:
                self.life.lives.release()
        except Exception as error:
            log.warning("this life could not say that it ended: the next one will see that by its lock (%s)", describe(error))
        self.database.close()

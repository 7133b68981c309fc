"""The calls of one worker: those in the air, the words that came back, and the freed slots. Makes no call itself: see calling.py.

One transaction a turn concludes all that returned, then begins into the freed slots; the next turn starts when that is committed.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.exc import DBAPIError

from groundstate.engine import aside, attempts, barred, begin, beside, conclude, no_call, set_apart, trouble, unfit
from groundstate.engine.attempt_log import named
from groundstate.engine.attempts import Identity
from groundstate.engine.calling import Caller
from groundstate.engine.departures import Departures, LaneTrouble
from groundstate.engine.failed_calls import FailedCalls
from groundstate.engine.flight import (
    Flight,
    FoundAbsent,
    Returned,
    Unclear,
    Word,
    clocks,
)
from groundstate.engine.guarded import describe, let_through
from groundstate.engine.handling import Work
from groundstate.engine.in_hand import Some, SomeHandlerFailed, everyone, nobody
from groundstate.engine.kept_answers import KeptAnswers
from groundstate.engine.lane import Lane
from groundstate.engine.limits import Limits, place_of, places_of
from groundstate.engine.question import Question
from groundstate.engine.rings import Watch
from groundstate.engine.shift import Shift, postpone
from groundstate.engine.slots import Place
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import LostUpdate, Row
from groundstate.engine.watching import Committed
from groundstate.rules.attempt import State
from groundstate.store.tables import attempt as table
from groundstate.values.errors import WentBack

log = logging.getLogger("groundstate")


class Traffic:
    """Of one worker. `say` is called from any thread; everything else by the transactions' thread."""

    def __init__(self, shift: Shift, wake: Callable[[], None]) -> None:
        self._shift = shift
        self._wake = wake
        self._inbox: deque[Word] = deque()
        self._words: list[Word] = []  # in hand, not yet concluded
        self._carried_out: list[tuple[Question, Sequence[Work], Watch | None]] = []  # by the transaction that is under way
        self._tried: set[int] = set()  # calls of words whose commit was begun and whose outcome is unknown
        self._removing: set[int] = set()  # of these, whose attempts it removes
        self._removed: dict[int, None] = {}  # calls whose attempts were removed by a commit that was answered
        self._unanswered: dict[int, None] = {}  # calls whose begin's COMMIT brought no answer (yet): no such call went out
        self._flying: dict[tuple[int, bool], Flight] = {}
        self._said: dict[Identity, Any] = {}  # outcomes concluded lately under same_key: a call that was given up may bring the same
        self._locked_s = LOCKED_S
        self._met_locked: list[Word] = []  # by the transaction that is under way
        self._doubts: list[Word] = []  # the same
        self._kept = KeptAnswers(shift)
        self._let_go = False  # whether some of those in hand wait because those before them took long
        self._first_word: float | None = None  # when the first of those in hand came
        self.left_in_doubt: set[int] = set()  # calls of which nobody knows at the end of a drain what became of them
        self.limits = Limits(shift)
        self._failed = FailedCalls(shift.life.shorten, shift.life.lines)
        self._departures = Departures(shift, self.limits, self._flying, self._in_air)
        self.caller = Caller(self._say, self._may_call)
        self.caller.watched = shift.watched

    def _say(self, words: Sequence[Word]) -> None:
        self._inbox.extend(words)
        self._wake()

    def _may_call(self, life: int) -> bool:
        """Still who we were: a flag in memory, kept by the liveness check, never a query a call."""
        return self._shift.life.sound and self._shift.life.id == life

    # ---- what the worker asks ----------------------------------------------------------------------------------------------------
    @property
    def quiet(self) -> bool:
        return not (self._in_hand or self.limits.awaited)

    @property
    def _in_hand(self) -> bool:
        return bool(self._flying or self._words or self._inbox)

    @property
    def calls_in_air(self) -> int:
        return self._departures.calls_in_air

    @property
    def suspect_in_air(self) -> bool:
        return self._departures.suspect_in_air

    def has_room(self, lane: Lane, now: float) -> bool:
        return self._departures.room(lane, now) > 0

    def wait_s(self, now: float) -> float | None:
        """For how long nothing of ours is to be done; None: no word of ours says."""
        if self._let_go or (self._inbox and self._first_word is None):
            return 0.0
        if self._words:
            return self._locked_s if self._first_word is None else max(self._first_word + LINGER_S - now, 0.0)
        times = self.limits.times(now)
        times += [flight.ends_s for flight in self._flying.values() if flight.ends_s is not None and not flight.given_up]
        return max(min(times) - now, 0.0) if times else None

    # ---- a turn ------------------------------------------------------------------------------------------------------------------
    def turn(self) -> None:
        """Concludes what came back, and begins new calls."""
        self._take_words()
        self._let_go = False
        shift = self._shift
        lanes = [lane for lane in shift.lanes if lane.question.spec.call is not None]
        now = time.monotonic()
        self.limits.turn(now)
        stuck = {lane.question for lane in lanes if lane.not_before > now}
        words = [word for word in self._words if word.flight.question not in stuck]  # they stay in hand until `_concluded`
        freed = self._freed_by(words)
        wanting = [] if shift.stopping is not None else self._wanting(lanes, now, freed)
        if not words and not wanting:
            self._first_word = None
            return
        if self._lingers(now):
            return
        clock = clocks()
        started = time.monotonic()
        told, came = shift.watched.transaction(words), Committed()
        try:
            with shift.life.air.landing(), shift.life.transaction() as tx:
                done = self._conclude_all(tx, words, one_by_one=nobody)
                self._tried |= {word.flight.call for word in done}
                shift.life.air.lands(word.flight.subject for word in done if self._ends(word))
                self.limits.open(tx, self._freed_by(done))
                begun = self._departures.begin_all(tx, shift.in_turn(wanting), clock)
                self._unanswered.update((flight.call, None) for flight in begun.flights if not flight.is_find)
        except (SomeHandlerFailed, LostUpdate) as failed:
            self._conclude_again(words, failed)
        except LaneTrouble as error:
            cause = error.__cause__
            if aside.met(error.lane, cause) or unfit.met(shift, error.lane, cause) or set_apart.met(shift, error.lane, cause):
                return  # a turn without it follows at once
            postpone(error.lane)
            log.exception(
                "%s could not be begun, tried again", error.lane.name, extra={"event": "begin_failed", "reaction": error.lane.name}
            )
        except Exception as error:
            if isinstance(error, DBAPIError) and trouble.locked(error) and barred.are_barred(shift, self._concerned(words, wanting)):
                return  # what came back for those stays in hand, and the others are concluded by the next turn
            if trouble.transient(error) or isinstance(error, WentBack) or not words:
                raise
            self._conclude_apart(words)
        else:
            came = Committed(len(done), len(begun.flights))
            self._concluded(done)
            self._send(begun)
            shift.stay_out(time.monotonic() - started)
        finally:
            for call in list(self._unanswered)[:-UNANSWERED_MOST]:
                del self._unanswered[call]
            self.limits.close()
            shift.life.at_work = None
            told(came)

    def _wanting(self, lanes: Sequence[Lane], now: float, freed: Counter[Place]) -> list[Lane]:
        alone = self._shift.alone
        if alone is not None:
            return [] if self.calls_in_air else [lane for lane in lanes if lane.name == alone.reaction]
        return [
            lane
            for lane in lanes
            if lane.wants and lane.not_before <= now and ((lane.due and not lane.seen_full) or self._departures.room(lane, now, freed) > 0)
        ]

    def _concerned(self, words: Sequence[Word], wanting: Sequence[Lane]) -> list[Lane]:
        return list(dict.fromkeys([*(self._shift.lane(word.flight.question.spec.name) for word in words), *wanting]))

    def _lingers(self, now: float) -> bool:
        """Whether so few of many calls came back, and so lately, that one commit for more of them is worth the wait."""
        if not self._words:
            self._first_word = None
            return False
        if self._first_word is None:
            self._first_word = now
        late = now - self._first_word >= LINGER_S
        if late or len(self._words) * LINGER_SHARE >= len(self._flying) or self._shift.stopping is not None:
            self._first_word = None
            return False
        return True

    def _take_words(self) -> None:
        now = time.monotonic()
        while self._inbox:
            word = self._inbox.popleft()
            self._shift.tally.heard(word)
            self._words.append(word)
            word.flight.answered = True
        for flight in list(self._flying.values()):
            if flight.ends_s is not None and now > flight.ends_s and not (flight.given_up or flight.answered):
                flight.given_up = True
                self.limits.hangs(flight)
                error = f"timed out after {flight.timeout.total_seconds():g} s, and still runs"
                self._failed.hangs(flight, error, now)
                hung = Unclear(flight, error, running=True)
                self._shift.tally.heard(hung)
                self._words.append(hung)

    # ---- what came back ------------------------------------------------------------------------------------------------------------
    def _conclude_all(self, tx: Transaction, words: Sequence[Word], *, one_by_one: Some, refused: str | None = None) -> list[Word]:
        done: list[Word] = []
        self._carried_out, self._met_locked, self._doubts = [], [], []
        until_s = time.monotonic() + self._shift.hold_s
        for question, some in _by_question(words).items():
            self._shift.life.at_work = question.spec.name
            result = conclude.conclude(
                self._shift.life, tx, question, some, one_by_one=one_by_one, was_ours=self._was_ours, refused=refused, until_s=until_s,
            )  # fmt: skip
            done += result.done
            self._let_go |= bool(result.let_go)
            self._met_locked += result.locked
            self._doubts += result.doubts
            self._removing |= result.removed
            self._carried_out.append((question, result.works, result.watch))
        return done

    def _was_ours(self, word: Word) -> bool:
        """Where the attempt is gone: whether a commit of this very word may have landed (it was tried, and the lock was never lost), an
        earlier word of the same call removed it, or the same outcome was concluded before, under the same key.
        """
        life = self._shift.life
        if isinstance(word, Returned) and word.flight.identity in self._said and _equal(self._said[word.flight.identity], word.value):
            log.info(
                "%s: the outcome that was concluded came once more",
                named(life, *word.flight.identity[1:3]),
                extra={"event": "outcome_repeated", "reaction": word.flight.identity[1], "record": word.flight.identity[2]},
            )
            return True
        if word.flight.call in self._removed:
            return True
        return word.flight.call in self._tried and life.id == word.flight.life and life.sound

    def _conclude_apart(self, words: Sequence[Word], failed: SomeHandlerFailed | None = None) -> None:
        """With a savepoint for each that fails, where these can be told from the others, else for all; and where even the commit is
        refused, a transaction each. What is not done stays in hand.
        """
        for question, some in _by_question(words).items():
            try:
                if failed is None or not self._conclude_by_culprits(question, some, failed):
                    self._conclude_in_one(some, one_by_one=everyone)
            except Exception as error:
                if trouble.transient(error):
                    raise
                self._conclude_each(question, some)

    def _conclude_by_culprits(self, question: Question, words: Sequence[Word], failed: SomeHandlerFailed) -> bool:
        """Together but for those that fail; False where it cannot be told which ones those are, and nothing was done."""
        try:
            if failed.reaction != question.spec.name:
                self._conclude_in_one(words, one_by_one=nobody)
                return True
            told = failed if failed.apart else self._look_for_culprits(question, words)
            known = told.apart | told.others
            some = [word for word in words if not isinstance(word, Returned) or word.flight.identity in known]
            if not known or (not told.apart and len(some) == len(words)):
                return False
            self._conclude_in_one(some, one_by_one=told.apart.__contains__)
        except SomeHandlerFailed:
            return False
        self._let_go |= len(some) < len(words)
        return True

    def _look_for_culprits(self, question: Question, words: Sequence[Word]) -> SomeHandlerFailed:
        returned = [word for word in words if isinstance(word, Returned)]
        if len(returned) < 2:
            return SomeHandlerFailed(question.spec.name)
        try:
            with self._shift.life.transaction() as tx:
                conclude.conclude(
                    self._shift.life, tx, question, returned, one_by_one=nobody, was_ours=self._was_ours,
                    until_s=time.monotonic() + self._shift.hold_s, looks=True,
                )  # fmt: skip
                raise AssertionError("it ends by what it found")
        except SomeHandlerFailed as told:
            return told

    def _conclude_again(self, words: Sequence[Word], failed: SomeHandlerFailed | LostUpdate) -> None:
        """With the rows beside the records locked before them, or each record apart. What is not done stays in hand."""
        try:
            if isinstance(failed, LostUpdate):
                self._conclude_in_one(words, one_by_one=nobody, first=failed.rows)
            else:
                self._conclude_apart(words, failed)
        except SomeHandlerFailed as some:
            self._conclude_apart(words, some)
        except LostUpdate as lost:
            log.warning("%s, so far in vain", lost, extra={"event": "conclude_crossed"})

    def _conclude_each(self, question: Question, words: Sequence[Word]) -> None:
        until_s = time.monotonic() + self._shift.hold_s
        try:
            for word in words:
                if word is not words[0] and time.monotonic() >= until_s:
                    self._let_go = True
                    return
                self._conclude_alone(word)
        except Exception as error:
            lane = self._shift.lane(question.spec.name)
            if trouble.transient(error):
                raise
            if unfit.met(self._shift, lane, error) or set_apart.met(self._shift, lane, error):
                return
            postpone(lane)  # its table is gone, or cannot be asked: the others go on
            log.exception(
                "%s: what came back cannot be concluded, tried again",
                question.spec.name,
                extra={"event": "conclude_failed", "reaction": question.spec.name},
            )

    def _conclude_in_one(
        self, words: Sequence[Word], *, one_by_one: Some, refused: str | None = None, first: frozenset[Row] = beside.NO_ROWS
    ) -> None:
        def put(met: frozenset[Row]) -> list[Word]:
            with self._shift.life.transaction() as tx:
                tx.lock_first(first | met)
                done = self._conclude_all(tx, words, one_by_one=one_by_one, refused=refused)
                self._tried |= {word.flight.call for word in done}
            return done

        self._concluded(beside.redo_lost_updates(put))

    def _conclude_alone(self, word: Word) -> None:
        try:
            self._conclude_in_one([word], one_by_one=everyone)
        except Exception as error:
            if trouble.transient(error):
                raise
            self._conclude_in_one([word], one_by_one=everyone, refused=f"its commit was refused: {describe(error)}")

    def _concluded(self, done: Sequence[Word]) -> None:
        """After the commit: what is done leaves our hands; what could not be locked stays."""
        finished = {id(word) for word in done}
        self._locked_s = LOCKED_S if done else min(self._locked_s * 2, LOCKED_MOST_S)
        self._words = [word for word in self._words if id(word) not in finished]
        shift = self._shift
        shift.took += len(done)
        for question, works, watch in self._carried_out:
            shift.life.rings.carried_out(question, works, watch)
        self._carried_out = []
        now = time.monotonic()
        self._kept.look(self._met_locked, self._words, now)
        doubts = {id(word) for word in self._doubts}
        for word in done:
            flight = word.flight
            self._tried.discard(flight.call)
            if flight.call in self._removing:
                self._removing.discard(flight.call)
                self._removed[flight.call] = None
                if len(self._removed) > REMOVED_MOST:
                    del self._removed[next(iter(self._removed))]
            if isinstance(word, Returned) and flight.question.spec.terms.repeats_under_its_key:
                self._said[flight.identity] = word.value
                if len(self._said) > SAID_MOST:
                    del self._said[next(iter(self._said))]
            if self._ends(word):
                self._landed(flight)
            if isinstance(word, Unclear) and shift.stopping is not None:
                self.left_in_doubt.add(flight.call)
            self._failed.heard(word, now, pauses=self.limits.heard(word, now), doubts=id(word) in doubts)
            if not isinstance(word, Returned) or shift.life.care.careful:
                shift.look_for_due()

    def _ends(self, word: Word) -> bool:
        """Whether nothing of its flight is in the air any more once this word is concluded."""
        flying = (word.flight.call, word.flight.is_find) in self._flying
        return flying and not (isinstance(word, Unclear) and word.running)

    # ---- calls are begun -----------------------------------------------------------------------------------------------------------
    def _freed_by(self, words: Sequence[Word]) -> Counter[Place]:
        """Slots that these words free once they are concluded: taken again by the same commit, which sends nothing out if it fails.

        In careful mode none: what is in the air together is counted there, and a call counts until its conclusion is known. And none
        where anything failed: the breaker hears of it first.
        """
        if self._shift.life.care.careful:
            return Counter()
        failing = {place_of(word.flight) for word in words if not isinstance(word, Returned | FoundAbsent)}
        landed = (word.flight for word in words if place_of(word.flight) not in failing)
        flown = [flight for flight in landed if (flight.call, flight.is_find) in self._flying]
        return Counter(place for flight in flown for place in places_of(flight))

    def _in_air(self) -> set[Identity]:
        """What is not to be looked at: its word is still to come, or its thread still runs."""
        return {flight.identity for flight in self._flying.values()} | {word.flight.identity for word in [*self._words, *self._inbox]}

    def _send(self, begun: begin.Begun) -> None:
        """After the commit, and never before."""
        if begun.new_calls:
            self._shift.life.counted()
        for flight in begun.flights:
            self._unanswered.pop(flight.call, None)
            self._flying[(flight.call, flight.is_find)] = flight
            self._shift.life.air.sent(*flight.subject)
            self.limits.sent(flight)
        self._shift.tally.sent(begun.flights)
        self.caller.start(begun.flights)
        self._shift.tally.expired.update(begun.expired)
        if begun.changed:
            self._shift.look_for_due()

    def _landed(self, flight: Flight) -> None:
        if self._flying.pop((flight.call, flight.is_find), None) is not None:
            self._shift.life.air.landed(*flight.subject)
            self.limits.landed(flight)

    # ---- at each sweep ---------------------------------------------------------------------------------------------------------------
    def find_unknown(self) -> None:
        """Begun attempts of ours with no such call in memory: a COMMIT that landed after all (hazard 47)."""
        life = self._shift.life
        mine = attempts.rows(table.c.worker == life.id, table.c.state == State.BEGUN.value, table.c.reaction.not_in(self._shift.schedules))
        with self._shift.database.reading() as connection:
            begun = attempts.fetch(connection, mine)
        known = {call for call, _ in self._flying} | {word.flight.call for word in [*self._words, *self._inbox]}
        unknown = [one for one in begun if one.call not in known]
        if unknown:
            with life.transaction() as tx:
                no_call.unknown_begins(tx, unknown, self._unanswered)
            self._shift.look_for_due()

    def end_overtaken(self) -> None:
        """Ends calls that asked for it, whose records moved on (`stop_when_overtaken`)."""
        flights = [
            one
            for one in self._flying.values()
            if not one.is_find and one.question.spec.call and one.question.spec.call.stop_when_overtaken
        ]
        for question in {flight.question for flight in flights}:
            if self._shift.lane(question.spec.name).lacks is not None:
                continue  # it may not be asked
            some = [flight for flight in flights if flight.question is question]
            keys = [question.key_from_text(flight.identity[2]) for flight in some]  # a record of it was taken, so it is one
            try:
                with self._shift.database.reading() as connection:
                    holding = {tuple(row) for row in connection.execute(question.holding_among(keys))}
            except DBAPIError as error:
                if not trouble.of_a_value(error):
                    raise
                continue  # nobody knows whether they are overtaken: they are left to end by themselves
            self.caller.cancel([flight for flight, key in zip(some, keys, strict=True) if key not in holding])

    def drained(self) -> bool:
        """At the end of the worker: whether all has ended; past the limit what still flies is written down as in doubt."""
        stopping = self._shift.stopping
        late_s = time.monotonic() - stopping if stopping is not None else 0.0
        if late_s > 0 and self._flying:
            for flight in self._flying.values():
                if not (flight.answered or flight.is_find) or flight.given_up:
                    self.left_in_doubt.add(flight.call)
                if not (flight.given_up or flight.answered or flight.is_find):
                    flight.cut_off = True
                    self._words.append(Unclear(flight, "the worker stopped while it was in the air"))
            self._flying.clear()
            self._shift.life.air.clear()
            self.limits.clear()
        return not self._in_hand or late_s > LAST_WORDS_S  # what waits for a slot, or for a rate, is begun no more


SAID_MOST = 1000
REMOVED_MOST = 10_000  # a second word of an older call comes too late to be told from one whose attempt was deleted by hand
UNANSWERED_MOST = 10_000  # an older one that landed after all is taken for a doubt
LINGER_S = 0.001
LINGER_SHARE = 4  # a turn is worth it once a quarter of those in the air came back
LOCKED_S = 0.02  # an outcome whose record somebody has locked is tried again after so long, and then after twice as long
LOCKED_MOST_S = 1.0
LAST_WORDS_S = 5.0  # after the drain's limit, for writing down what is in doubt


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except BaseException as error:  # outcomes of the user's own making
        let_through(error)
        return False


def _by_question(words: Sequence[Word]) -> dict[Question, list[Word]]:
    by_question: dict[Question, list[Word]] = {}
    for word in words:
        by_question.setdefault(word.flight.question, []).append(word)
    return by_question

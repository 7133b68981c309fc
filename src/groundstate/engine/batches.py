"""The DB-only reactions of one worker, in turn: fresh rows before the backlog, and each only as long as others can bear."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from sqlalchemy.exc import DBAPIError

from groundstate.engine import aside, barred, begin, careful, due, failing, locked, no_call, plain, set_apart, trouble, unfit
from groundstate.engine.crowd import Crowd
from groundstate.engine.groups import Round
from groundstate.engine.lane import Lane
from groundstate.engine.plain import Feed
from groundstate.engine.question import Question
from groundstate.engine.shift import Shift, moved_on, postpone
from groundstate.engine.trouble import Illegible
from groundstate.engine.watching import Ran
from groundstate.rules.attempt import Attempt
from groundstate.rules.careful import TOGETHER

log = logging.getLogger("groundstate")


class Batches:
    """Of one worker; used by its transactions' thread alone."""

    def __init__(self, shift: Shift, crowd: Crowd) -> None:
        self._shift = shift
        self._crowd = crowd
        self._last: Lane | None = None  # which had a batch last

    def can_go_on(self, lane: Lane, now: float) -> bool:
        return lane.failing.room(1, 0, now) > 0

    def turn(self) -> None:
        """A batch of fresh rows for each reaction, then what is due, then one of the backlog for one that has some."""
        lanes = [lane for lane in self._shift.parts if lane.question.spec.call is None and lane.on]
        now = time.monotonic()
        if self._shift.life.rings:
            self._look_at_slowed(now)
        for lane in sorted(lanes, key=lambda lane: lane is self._last):  # it lets the others go first
            if lane.fresh and lane.not_before <= now and (room := lane.failing.room(lane.batch, 0, now)) > 0:
                self._batch(lane, Feed(keys=lane.take_fresh(min(room, lane.batch))))
        for lane in lanes:
            if lane.due and lane.not_before <= now:
                self._look_at_due(lane)
        waiting = [lane for lane in lanes if lane.passes and lane.not_before <= now and self.can_go_on(lane, now)]
        if waiting:
            lane = self._shift.in_turn(waiting)[0]
            limit = min(lane.failing.room(lane.batch, 0, now), lane.batch)
            if lane.groups is not None:
                self._by_groups(lane, lane.groups, limit)
                return
            done = self._batch(lane, Feed(cursor=lane.cursor, limit=limit, crowded=lane.crowded))
            if done is not None:
                if done.let_go:
                    lane.long = True  # the pass goes on where it was: who is done is not found again
                else:
                    moved_on(lane, done.cursor, done.read, limit, done.taken)
                self._crowd.did(done.taken, now)

    def carry_out_alone(self, one: Attempt) -> None:
        """Careful mode: one that is suspected, by its handler, or that of what is too late."""
        lane = self._shift.lane(one.reaction)
        key = lane.question.key_of_text(one.record)
        if key is None:
            return
        feed = Feed(keys=[key], limit=1, alone=True)
        if lane.question.spec.call is None:
            self._batch(lane, feed)
        if lane.late is not None:
            self._batch(lane.late, feed)

    def _look_at_slowed(self, now: float) -> None:
        """Records that go round, and whose pause is over. Those with a call are begun by the traffic."""
        by_question = {lane.question: lane for lane in self._shift.parts if lane.on}
        for question, key in self._shift.life.rings.ready(now):
            if question in by_question:
                by_question[question].fresh[key] = None

    def _by_groups(self, lane: Lane, groups: Round, limit: int) -> None:
        """One page of the pass: who is first of many values. Those behind them come with the next pass."""
        try:
            with self._shift.database.reading() as connection, aside.limited(self._shift, lane, connection):
                page = groups.page(connection, lane.cursor, limit)
        except Exception as error:
            if not isinstance(error, DBAPIError) and not trouble.unloadable(error):
                raise
            if self._waits_by_itself(lane, error):
                return
            if trouble.transient(error):
                raise
            postpone(lane)
            set_apart.say_failed(lane, error)
            return
        lane.cursor = page.cursor
        if page.cursor is None:
            lane.swept(again=groups.over())
        if page.keys:
            self._batch(lane, Feed(keys=page.keys))

    def _look_at_due(self, lane: Lane) -> None:
        try:
            self._due(lane)
        except Exception as error:
            if self._waits_by_itself(lane, error):
                return
            if trouble.transient(error):
                raise
            postpone(lane)
            log.exception(
                "what is due of %s could not be looked at, tried again", lane.name, extra={"event": "due_failed", "reaction": lane.name}
            )

    def _due(self, lane: Lane) -> None:
        """Failed attempts whose time has come: let go where their condition is gone, else carried out once more."""
        with self._shift.life.transaction() as tx:
            most = min(lane.batch, TOGETHER if self._shift.life.care.careful else due.AT_ONCE)
            identities = due.identities(self._shift, tx, lane, most, ())
            if identities:
                self._shift.took += no_call.let_go(self._shift.life, tx, lane.question, identities)
        if identities:
            keys = [key for identity in identities if (key := lane.question.key_of_text(identity[2])) is not None]
            self._batch(lane, Feed(keys=keys))
            if lane.late is not None:
                self._batch(lane.late, Feed(keys=keys))

    def _batch(self, lane: Lane, feed: Feed) -> plain.Done | None:
        told, self._last = self._shift.watched.batch(lane.question.spec), lane
        started = time.monotonic()
        self._shift.life.at_work = lane.name
        try:
            done = self._carried_out(lane, replace(feed, hold_s=self._shift.hold_s, claim_s=aside.claim_s(lane)))
        except Exception as error:
            told(Ran(error=error))
            passing = trouble.transient(error)
            if feed.keys and trouble.cut(error):
                aside.cut_by_keys(lane, feed.keys, time.monotonic() - started)
            elif feed.keys and passing:
                lane.fresh.update(dict.fromkeys(feed.keys))
            elif feed.keys:
                lane.sweep()  # not these keys again, of which one may be wrong: the condition itself tells what is to be done
            if self._waits_by_itself(lane, error):
                return None
            postpone(lane)
            if isinstance(error, Illegible) or (passing and self._nobody_goes_on(error)):
                raise
            if passing:
                log.warning(
                    "%s waits for the database, and is tried again: %s",
                    lane.name,
                    trouble.told(error),
                    extra={"event": "reaction_waits", "reaction": lane.name},
                )
            else:
                log.exception("%s could not be carried out, tried again", lane.name, extra={"event": "batch_failed", "reaction": lane.name})
            return None
        finally:
            self._shift.life.at_work = None
        told(Ran(done.done, done.failed))
        if feed.keys is not None and done.let_go:
            lane.fresh = dict.fromkeys(done.let_go) | lane.fresh
        took = time.monotonic() - started
        self._after(lane, done, took)
        self._shift.stay_out(took)
        return done

    def _waits_by_itself(self, lane: Lane, error: BaseException) -> bool:
        """Whether it was a locked table that this lane met, and no row that its handler wanted, or one that is not as its record is; or its
        condition takes long, or raises for some rows.
        """
        if aside.met(lane, error):
            return True
        if isinstance(error, DBAPIError) and trouble.locked(error):
            return barred.are_barred(self._shift, [lane])
        return unfit.met(self._shift, lane, error) or set_apart.met(self._shift, lane, error)

    def _nobody_goes_on(self, error: BaseException) -> bool:
        """Whether this is not the lane's own trouble: the lock of an embedded store is over all of it, and our tables are everybody's."""
        return self._shift.embedded or (trouble.locked(error) and locked.who_locks_ours(self._shift.database) is not None)

    def _carried_out(self, lane: Lane, feed: Feed) -> plain.Done:
        life = self._shift.life
        if lane.question.answers_late and lane.name in life.suspects:
            called = self._shift.lane(lane.name).question
            if called.spec.call is not None:
                return self._doubted(lane.question, called, feed)
        if not life.care.careful:
            return plain.carry_out(life, lane.question, feed)
        before, self._shift.left_begun = self._shift.left_begun, True  # unless it comes to its end
        done = careful.carry_out(life, lane.question, feed)
        self._shift.left_begun = before or done.left_begun
        return done

    def _doubted(self, late: Question, called: Question, feed: Feed) -> plain.Done:
        """What may have been called in the lost time is settled before it is too late for it: a doubt each, and no handler runs."""
        with self._shift.life.transaction() as tx:
            found = begin.claim_for_doubts(tx, late, feed)
            count = begin.doubt(self._shift.life, tx, called, [*found.taken, *found.unreadable])
            count += no_call.looked_at_now(tx, [one.attempt for one in found.taken if one.attempt is not None])
        if count:
            self._shift.took += count
            self._shift.look_for_due()
        return plain.Done(read=found.read, cursor=found.cursor, busy=found.busy, taken=len(found.taken))

    def _after(self, lane: Lane, done: plain.Done, took: float) -> None:
        lane.trouble = 0
        if done.taken:
            unfit.over(lane)
            lane.took(done.taken, done.rows_s, done.rows_s if done.again else took, self._shift.hold_s, cut=done.cut)
        failing.heard(lane, self._shift.life.lines, done.done, done.wrong, time.monotonic())
        if done.done and lane.groups is not None:
            lane.sweep()  # those behind them
        if done.done and lane.question.answers_late:
            self._shift.tally.expired[lane.name] += done.done
            log.info(
                "%s: %d expired, the last of them due at %s",
                lane.name,
                done.done,
                done.last_due,
                extra={"event": "expired", "reaction": lane.name, "count": done.done},
            )
        if done.next_at is not None:
            self._shift.look_for_due()
        self._shift.took += done.done + done.failed
        tally = self._shift.tally
        tally.batches += 1
        if not lane.question.answers_late:
            tally.done[lane.name] += done.done
        tally.failed[lane.name] += done.failed

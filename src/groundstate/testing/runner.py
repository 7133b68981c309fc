"""Runs schedules (the disturbances of one run) of one app on scratch databases. If a schedule breaks an invariant, searches for a smaller
schedule that breaks it too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from groundstate.app.app import App
from groundstate.app.declared import reactions_of, schedules_of
from groundstate.engine.sql.call_write_guard import guard_store
from groundstate.store import same_database
from groundstate.testing.databases.scratch_db import Place, stores_of_app
from groundstate.testing.search.tried_plans import Length, Tried
from groundstate.testing.simulate.clock import Clock, FrozenRun
from groundstate.testing.simulate.crash_plan import Schedule
from groundstate.testing.simulate.db_intercept import DatabasePool
from groundstate.testing.simulate.fake_environment import Stuck
from groundstate.testing.simulate.fake_provider import Fake
from groundstate.testing.simulate.restarts import RestartAlreadyTried, Restarts
from groundstate.testing.simulate.simulation import Stage
from groundstate.testing.simulate.time_outs import Fence
from groundstate.testing.verdict.invariants import Check, InvariantJudge, UpcomingTime, Violation
from groundstate.values.errors import StateRefusedError

CLEAN_MOST = 100_000  # the largest number of crossings that the clean run (the run without disturbances) may have
LOOKS_MOST = 400  # the largest number of times that one run may wait for a due time
LOOKS_WITH_AN_END = 20_000  # the value that replaces LOOKS_MOST if `lab.clock.ends` is given
LONGEST_S = 60.0  # the longest wait for a due time, in seconds; the waits grow up to this length
STORY_LINES = 30  # number of lines of the run's log that a failure prints
REPEAT = "GROUNDSTATE_LAB"  # name of the environment variable with a schedule; if it is set, only this schedule is run
ENOUGH = 20  # a run may have this many times the crossings of the clean run, plus 1,000; a longer run counts as endless


class Crashed(AssertionError):
    """Raised for a schedule in which an invariant does not hold; the message is the log of the run, and a line of Python that repeats the
    run.
    """

    def __init__(self, schedule: Schedule, name: str, words: str) -> None:
        super().__init__(words)
        self.schedule = schedule
        self.invariant = name


@dataclass
class Findings:
    """What `crash_everywhere` returns if every invariant held: counts, and how long the test took in seconds."""

    crossings: int  # number of crossings in the clean run
    runs: int
    kills: int
    seed: int
    seconds: float
    deaths: int = 0  # number of crossings in the clean run at which a kill leaves another state than a kill at the crossing before
    held: Counter[str] = field(default_factory=Counter)  # by reason, how many attempts were held at the end of runs
    skipped: int = 0  # number of schedules skipped because they would repeat an earlier run
    joined: int = 0  # number of runs that ended early, since an earlier run had restarted from an equal state
    # for each sort of schedule: (number of schedules left out for lack of time, number of all schedules)
    left_out: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        words = (
            f"{self.runs} runs over {self.crossings} crossings ({self.deaths} of them with a state of their own), "
            f"{self.kills} kills, seed {self.seed}, {self.seconds:.1f} s"
        )
        if self.skipped:
            words += f"\n  skipped {self.skipped} more, each of which would repeat an earlier run"
        if self.joined:
            words += f"\n  ended {self.joined} of them early, at a restart from the same state as in an earlier run"
        if self.left_out:
            some = ", ".join(f"{left} of {count} {sort}" for sort, (left, count) in self.left_out.items())
            words += f"\n  left out for want of time: {some}"
        return words + "".join(f"\n  held {count} times: {why}" for why, count in self.held.most_common())


@dataclass(frozen=True)
class RunSettings:
    """The user's arguments that apply to each run: fakes, transactions of other programs, assertions and options."""

    fakes: Sequence[Fake]
    meanwhile: Sequence[Callable[[Session], object]]
    always: Check | None
    at_the_end: Check | None
    may_fail: Sequence[str]
    around: Callable[[str], Any] | None  # returns the context for a user function that is called inside a transaction
    clock: Clock
    fence: Fence  # returns a context in which a user's call reaches no external service
    reactions: frozenset[str] | None = None  # names of the reactions and schedules that take part; None means all

    def takes_part(self, name: str) -> bool:
        """Return whether the reaction or schedule with this name takes part in the runs."""
        return self.reactions is None or name in self.reactions


class Trial:
    """All runs of one `crash_everywhere` on one scratch database."""

    def __init__(self, app: App, place: Place, cast: RunSettings) -> None:
        self._app = app
        self._place = place
        # While this list exists, user functions of calls (`through=`) cannot write to the app's own databases.
        self._watched = list(_watch_app_databases(app))
        self._cast = cast
        self._kept = DatabasePool()
        self._limit = CLEAN_MOST
        specs = [[spec for spec in reactions_of(app, store) if cast.takes_part(spec.name)] for store in stores_of_app(app)]
        self._book = InvariantJudge(specs, cast.fakes, place, always=cast.always, may_fail=cast.may_fail, around=cast.around)
        ticking = [[spec for spec in schedules_of(app, store) if cast.takes_part(spec.name)] for store in stores_of_app(app)]
        self._schedules = [[self._book.watch_schedule(spec) for spec in some] for some in ticking]
        self._book.schedules = self._schedules
        self.at_death: Callable[[Any], None] | None = None  # called with each process that is killed; None if not set
        self.findings = Findings(0, 0, 0, 0, 0.0)
        self._tried, self._restarts = Tried(), Restarts()

    @property
    def carried_out(self) -> set[str]:
        """Return the names of the reactions that were carried out in some run."""
        return self._book.carried_out

    def run_clean(self) -> Stage:
        """Run the app without any disturbance, and record, for each crossing, what state a kill there would leave behind."""
        stage = self.run(Schedule(), marked=True)
        self.findings.crossings = len(stage.crossings)
        self._limit = ENOUGH * len(stage.crossings) + 1000
        self._tried.record(Schedule(), Length(len(stage.crossings), stage.calls))
        self._tried.idle = stage.idle
        return stage

    def run_unless_repeated(self, one: Schedule) -> None:
        """Run this schedule unless it would repeat an earlier run. End the run early if an earlier run had restarted from an equal
        state.
        """
        __tracebackhide__ = True  # pytest hides this frame, which does not help the author of a test
        if self._tried.find_same_run(one) is not None:
            self.findings.skipped += 1
            return
        stage = self.run(one, joins=True)
        self._tried.record(one, None if stage.joined else Length(len(stage.crossings), stage.calls))

    def run(self, one: Schedule, *, marked: bool = False, joins: bool = False) -> Stage:
        """Run one schedule. If an invariant breaks, raise Crashed for the smallest schedule found that breaks it too.

        marked: whether to record in `stage.marks`, for each crossing, what state a kill there would leave behind.
        joins: whether to end the run early if an earlier run had restarted from an equal state.
        """
        __tracebackhide__ = True  # pytest hides this frame, which does not help the author of a test
        try:
            return self.run_once(one, marked=marked, joins=joins)
        except InvariantBroken as broken:
            smallest = self._shrink(one, broken)
        raise self._crash_report(*smallest) from smallest[1].cause

    def _shrink(self, one: Schedule, broken: InvariantBroken) -> tuple[Schedule, InvariantBroken]:
        """Leave out one disturbance after another while the same invariant breaks. Return the smallest schedule found, and the error with
        which it broke the invariant.
        """
        for smaller in one.smaller_schedules():
            try:
                self.run_once(smaller)
            except InvariantBroken as found:
                if found.name == broken.name:
                    return self._shrink(smaller, found)
        return one, broken

    def _crash_report(self, one: Schedule, broken: InvariantBroken) -> Crashed:
        story = broken.stage.story
        left_out = [f"  ... {len(story) - STORY_LINES} lines before"] if len(story) > STORY_LINES else []
        lines = [f"{broken.name}: {broken.words}", "", *left_out, *(f"  {line}" for line in story[-STORY_LINES:]), ""]
        test = os.environ.get("PYTEST_CURRENT_TEST", "...").partition(" ")[0]
        lines += [f'again: lab.crash_everywhere(..., only="{one}")', f"or:    {REPEAT}='{one}' pytest {test}   (seed {self.findings.seed})"]
        return Crashed(one, broken.name, "\n".join(lines))

    def run_once(self, one: Schedule, *, marked: bool = False, joins: bool = False) -> Stage:
        """Run one schedule once. Raise InvariantBroken if an invariant does not hold."""
        cast, book = self._cast, self._book
        for fake in cast.fakes:
            fake.reset()
        self._place.reset()
        stage = Stage(self._app.name, book.specs, self._place, cast.fakes, one, kept=self._kept, limit=self._limit, clock=cast.clock.moves)
        stage.judge, stage.meanwhile, stage.at_death, stage.marks = book, cast.meanwhile, self.at_death, [] if marked else None
        stage.schedules, stage.fence, stage.is_idle = self._schedules, cast.fence, partial(self._would_change_nothing, stage)
        stage.restarts = self._restarts if joins else None
        cast.clock.set_run(stage)
        try:
            with stage.use_stand_ins():
                book.begin_run(stage)
                self._run_to_end(stage, book)
        except RestartAlreadyTried:
            stage.joined = True
            self.findings.joined += 1
        except Violation as error:
            raise InvariantBroken(stage, error.name, error.words, error) from error
        except StateRefusedError as error:  # raised by a call or a lookup that the user wrote
            raise InvariantBroken(stage, "NothingWritten", str(error), error) from error
        except Stuck as error:
            raise InvariantBroken(stage, "Progress", str(error), error) from error
        except AssertionError as error:
            raise InvariantBroken(stage, "assertion", str(error) or repr(error), error) from error
        finally:
            cast.clock.set_run(None)
            self.findings.runs += 1
            self.findings.kills += sum(1 for process in stage.processes if process.killed)
        return stage

    def _would_change_nothing(self, stage: Stage, act: Callable[[Session], object]) -> bool:
        """Return whether the transaction `act` of another program, run now, would write nothing and move no clock."""
        still = FrozenRun(stage.time)
        self._cast.clock.set_run(still)
        try:
            return self._place.would_write_nothing(act) and not still.moved
        finally:
            self._cast.clock.set_run(stage)

    def _run_to_end(self, stage: Stage, book: InvariantJudge) -> None:
        """Run until no record can become due any more, stop the workers cleanly, and check the invariants that must hold at the end."""
        self._wait_for_due_times(stage, book)
        while not stage.stop():
            self._wait_for_due_times(stage, book)
        held = book.check_end()
        self.findings.held.update(f"{one.reaction}: {one.why or one.error or ''}" for one in held)
        if self._cast.at_the_end is not None:
            with self._place.session() as session:
                self._cast.at_the_end(session)

    def _wait_for_due_times(self, stage: Stage, book: InvariantJudge) -> None:
        """Move the clock from one due time to the next and let the workers run each time, until nothing will become due."""
        looked: frozenset[UpcomingTime] = frozenset()
        most = LOOKS_MOST if stage.clock.ends is None else LOOKS_WITH_AN_END
        for waited in range(most):
            stage.run_until_idle()
            looks = book.upcoming_times()
            now = stage.time.now()
            waits_s = [(look[-1] - now).total_seconds() for look in looks]
            later = [wait_s for wait_s in [*waits_s, (stage.next_task_s() or 0.0) - stage.time.now_s] if wait_s > 0]
            if any(wait_s <= 0 for wait_s in waits_s) and looks != looked:
                stage.time.forward(0.002)  # a record became due since the workers were last idle
            elif later:
                # The steps grow, so that a wait of a minute does not take a hundred checks. (On a busy host, too, threads
                # wake later than planned.)
                stage.time.forward(max(min(later) + 0.002, min(0.25 * 2.0 ** min(waited, 30), LONGEST_S)))
            else:
                return
            looked = looks
        words = "attempts are still retried or records become due: where a timer sets itself again for ever, give lab.clock.ends(...)"
        raise Violation("Progress", f"after {most} waits, {words}")


class InvariantBroken(Exception):
    """Raised when an invariant does not hold in a run; `stage` is that run."""

    def __init__(self, stage: Stage, name: str, words: str, cause: BaseException) -> None:
        super().__init__(words)
        self.stage = stage
        self.name = name
        self.words = words
        self.cause = cause


def _watch_app_databases(app: App) -> Iterator[same_database.StoreLocation]:
    """Guard the app's own databases: user functions of calls may not write to them, since the lab runs on databases of its own. Yield one
    guard for each database. A guard works as long as something refers to the yielded object.
    """
    for store in stores_of_app(app):
        with suppress(Exception):  # a function of the user gives the URL, and may raise in a test
            yield guard_store(app.name, store.settings().url)

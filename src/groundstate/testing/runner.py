"""Runs schedules of one app on its scratch database, and shrinks a schedule that breaks an invariant."""

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
from groundstate.engine.sql.call_write_guard import watch
from groundstate.store import same_database
from groundstate.testing.databases.scratch_db import Place, stores_of
from groundstate.testing.search.tried_plans import Length, Tried
from groundstate.testing.simulate.clock import Clock, Still
from groundstate.testing.simulate.crash_plan import Schedule
from groundstate.testing.simulate.db_intercept import Kept
from groundstate.testing.simulate.fake_environment import Stuck
from groundstate.testing.simulate.fake_provider import Fake
from groundstate.testing.simulate.restarts import Joined, Restarts
from groundstate.testing.simulate.simulation import Stage
from groundstate.testing.simulate.time_outs import Fence
from groundstate.testing.verdict.invariants import Book, Check, Look, Violation
from groundstate.values.errors import StateRefusedError

CLEAN_MOST = 100_000  # limit on the crossings of the clean run
LOOKS_MOST = 400  # limit on the waits for a due time in one run
LOOKS_WITH_AN_END = 20_000  # limit on the waits for a due time if `lab.clock.ends` ends the run
LONGEST_S = 60.0  # seconds: the clock's shortest step grows up to this with each wait
STORY_LINES = 30  # lines of the story that a failure prints
REPEAT = "GROUNDSTATE_LAB"  # environment variable with the one schedule to run
ENOUGH = 20  # a run may have this many times the crossings of the clean run


class Crashed(AssertionError):
    """Raised for a schedule in which an invariant does not hold; the message is the story of the run and the line that repeats it."""

    def __init__(self, schedule: Schedule, name: str, words: str) -> None:
        super().__init__(words)
        self.schedule = schedule
        self.invariant = name


@dataclass
class Findings:
    """What `crash_everywhere` counted in a test in which every invariant held."""

    crossings: int  # crossings of the clean run
    runs: int
    kills: int
    seed: int
    seconds: float
    deaths: int = 0  # the number of crossings of the clean run at which a kill leaves another state than at the crossing before
    held: Counter[str] = field(default_factory=Counter)  # the reasons for which attempts were held at the end of runs, and how often
    skipped: int = 0  # schedules that were skipped because they would repeat an earlier run
    joined: int = 0  # runs that ended at a restart whose database content an earlier run had left too
    left_out: dict[str, tuple[int, int]] = field(default_factory=dict)  # schedules left out for want of time: sort -> (left out, in all)

    def __str__(self) -> str:
        words = (
            f"{self.runs} runs over {self.crossings} crossings ({self.deaths} of them leave something else than the one before), "
            f"{self.kills} kills, seed {self.seed}, {self.seconds:.1f} s"
        )
        if self.skipped:
            words += f"\n  skipped {self.skipped} more, each the same as one that was tried"
        if self.joined:
            words += f"\n  ended {self.joined} of them at a restart on what an earlier one began with"
        if self.left_out:
            some = ", ".join(f"{left} of {count} {sort}" for sort, (left, count) in self.left_out.items())
            words += f"\n  left out for want of time: {some}"
        return words + "".join(f"\n  held {count} times: {why}" for why, count in self.held.most_common())


@dataclass(frozen=True)
class Cast:
    """The user's arguments that take part in each run: fakes, transactions of other programs, assertions and options."""

    fakes: Sequence[Fake]
    meanwhile: Sequence[Callable[[Session], object]]
    always: Check | None
    at_the_end: Check | None
    may_fail: Sequence[str]
    around: Callable[[str], Any] | None  # the context in which each user function inside a transaction runs
    clock: Clock
    fence: Fence  # the context in which a call runs that is inspected
    reactions: frozenset[str] | None = None  # names of the reactions and schedules that take part; None means all

    def plays(self, name: str) -> bool:
        """Return whether the reaction or schedule of this name takes part."""
        return self.reactions is None or name in self.reactions


class Trial:
    """All runs of one `crash_everywhere` on one scratch database."""

    def __init__(self, app: App, place: Place, cast: Cast) -> None:
        self._app = app
        self._place = place
        # kept alive: while these references exist, a call that is run `through` cannot write to the app's own databases
        self._watched = list(_watched(app))
        self._cast = cast
        self._kept = Kept()
        self._limit = CLEAN_MOST
        specs = [[spec for spec in reactions_of(app, store) if cast.plays(spec.name)] for store in stores_of(app)]
        self._book = Book(specs, cast.fakes, place, always=cast.always, may_fail=cast.may_fail, around=cast.around)
        ticking = [[spec for spec in schedules_of(app, store) if cast.plays(spec.name)] for store in stores_of(app)]
        self._schedules = [[self._book.ticking(spec) for spec in some] for some in ticking]
        self._book.schedules = self._schedules
        self.at_death: Callable[[Any], None] | None = None  # replaces the simulated death of a process, if it is set
        self.findings = Findings(0, 0, 0, 0, 0.0)
        self._tried, self._restarts = Tried(), Restarts()

    @property
    def taken(self) -> set[str]:
        """Return the names of the reactions that were carried out in some run."""
        return self._book.taken

    def clean(self) -> Stage:
        """Run the app without any disturbance, and record the state that a kill at each crossing would leave."""
        stage = self.run(Schedule(), marked=True)
        self.findings.crossings = len(stage.crossings)
        self._limit = ENOUGH * len(stage.crossings) + 1000
        self._tried.was(Schedule(), Length(len(stage.crossings), stage.calls))
        self._tried.idle = stage.idle
        return stage

    def once_more(self, one: Schedule) -> None:
        """Run this schedule unless it would repeat an earlier run; a run that begins to repeat one ends there."""
        __tracebackhide__ = True  # the author of a test finds nothing in this frame
        if self._tried.same_as(one) is not None:
            self.findings.skipped += 1
            return
        stage = self.run(one, joins=True)
        self._tried.was(one, None if stage.joined else Length(len(stage.crossings), stage.calls))

    def run(self, one: Schedule, *, marked: bool = False, joins: bool = False) -> Stage:
        """Run one schedule; raise Crashed for the smallest schedule that breaks the same invariant.

        joins: the run ends where it reaches a restart that was tried.
        """
        __tracebackhide__ = True  # the author of a test finds nothing in this frame
        try:
            return self.once(one, marked=marked, joins=joins)
        except Broken as broken:
            smallest = self._shrunk(one, broken)
        raise self._told(*smallest) from smallest[1].cause

    def _shrunk(self, one: Schedule, broken: Broken) -> tuple[Schedule, Broken]:
        """Leave out one part of the schedule after the other as long as the same invariant breaks, and return the smallest found."""
        for smaller in one.smaller():
            try:
                self.once(smaller)
            except Broken as found:
                if found.name == broken.name:
                    return self._shrunk(smaller, found)
        return one, broken

    def _told(self, one: Schedule, broken: Broken) -> Crashed:
        story = broken.stage.story
        left_out = [f"  ... {len(story) - STORY_LINES} lines before"] if len(story) > STORY_LINES else []
        lines = [f"{broken.name}: {broken.words}", "", *left_out, *(f"  {line}" for line in story[-STORY_LINES:]), ""]
        test = os.environ.get("PYTEST_CURRENT_TEST", "...").partition(" ")[0]
        lines += [f'again: lab.crash_everywhere(..., only="{one}")', f"or:    {REPEAT}='{one}' pytest {test}   (seed {self.findings.seed})"]
        return Crashed(one, broken.name, "\n".join(lines))

    def once(self, one: Schedule, *, marked: bool = False, joins: bool = False) -> Stage:
        """Run one schedule once, and raise Broken where an invariant does not hold."""
        cast, book = self._cast, self._book
        for fake in cast.fakes:
            fake.begin_anew()
        self._place.begin_anew()
        stage = Stage(self._app.name, book.specs, self._place, cast.fakes, one, kept=self._kept, limit=self._limit, clock=cast.clock.moves)
        stage.judge, stage.meanwhile, stage.at_death, stage.marks = book, cast.meanwhile, self.at_death, [] if marked else None
        stage.schedules, stage.fence, stage.is_idle = self._schedules, cast.fence, partial(self._is_idle, stage)
        stage.restarts = self._restarts if joins else None
        cast.clock.shows(stage)
        try:
            with stage.open():
                book.begin(stage)
                self._to_the_end(stage, book)
        except Joined:
            stage.joined = True
            self.findings.joined += 1
        except Violation as error:
            raise Broken(stage, error.name, error.words, error) from error
        except StateRefusedError as error:  # raised by a call or a lookup that the user wrote
            raise Broken(stage, "NothingWritten", str(error), error) from error
        except Stuck as error:
            raise Broken(stage, "Progress", str(error), error) from error
        except AssertionError as error:
            raise Broken(stage, "assertion", str(error) or repr(error), error) from error
        finally:
            cast.clock.shows(None)
            self.findings.runs += 1
            self.findings.kills += sum(1 for process in stage.processes if process.killed)
        return stage

    def _is_idle(self, stage: Stage, act: Callable[[Session], object]) -> bool:
        """Return whether this transaction of another program would write nothing and move no clock, if it ran now."""
        still = Still(stage.time)
        self._cast.clock.shows(still)
        try:
            return self._place.is_idle(act) and not still.moved
        finally:
            self._cast.clock.shows(stage)

    def _to_the_end(self, stage: Stage, book: Book) -> None:
        """Run until nothing is left that could become due, stop the workers cleanly, and check the invariants of the end."""
        self._wait(stage, book)
        while not stage.stop():
            self._wait(stage, book)
        held = book.at_the_end()
        self.findings.held.update(f"{one.reaction}: {one.why or one.error or ''}" for one in held)
        if self._cast.at_the_end is not None:
            with self._place.session() as session:
                self._cast.at_the_end(session)

    def _wait(self, stage: Stage, book: Book) -> None:
        """Move the clock to each next due time, until nothing is due any more."""
        looked: frozenset[Look] = frozenset()
        most = LOOKS_MOST if stage.clock.ends is None else LOOKS_WITH_AN_END
        for waited in range(most):
            stage.run_until_idle()
            looks = book.looks()
            now = stage.time.now()
            waits_s = [(look[-1] - now).total_seconds() for look in looks]
            later = [wait_s for wait_s in [*waits_s, (stage.next_task_s() or 0.0) - stage.time.now_s] if wait_s > 0]
            if any(wait_s <= 0 for wait_s in waits_s) and looks != looked:
                stage.time.forward(0.002)  # It became due while the others were checked; what it waits for may be over now.
            elif later:
                # A busy host may wake later than asked. Longer and longer steps keep a wait of a minute from taking a hundred checks.
                stage.time.forward(max(min(later) + 0.002, min(0.25 * 2.0 ** min(waited, 30), LONGEST_S)))
            else:
                return
            looked = looks
        words = "something is still tried again or due: where a timer sets itself anew for ever, say lab.clock.ends(...)"
        raise Violation("Progress", f"after {most} waits {words}")


class Broken(Exception):
    """Raised for the invariant that broke in one run, with the stage of the run."""

    def __init__(self, stage: Stage, name: str, words: str, cause: BaseException) -> None:
        super().__init__(words)
        self.stage = stage
        self.name = name
        self.words = words
        self.cause = cause


def _watched(app: App) -> Iterator[same_database.StoreLocation]:
    """Watch the app's own databases, which the functions of calls could reach although the lab uses others."""
    for store in stores_of(app):
        with suppress(Exception):  # a function of the user gives the URL, and has none in a test
            yield watch(app.name, store.settings().url)

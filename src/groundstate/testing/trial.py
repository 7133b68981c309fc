"""One app on one scratch database, run again and again: a schedule each time, shrunk where it breaks something. Draws no schedule."""

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
from groundstate.engine.inside_call import watch
from groundstate.store import same_database
from groundstate.testing.ambient import Stuck
from groundstate.testing.book import Book, Check, Look, Violation
from groundstate.testing.clock import Clock, Still
from groundstate.testing.place import Place, stores_of
from groundstate.testing.provider import Fake
from groundstate.testing.restarts import Joined, Restarts
from groundstate.testing.schedule import Schedule
from groundstate.testing.stage import Stage
from groundstate.testing.time_outs import Fence
from groundstate.testing.tried import Length, Tried
from groundstate.testing.wires import Kept
from groundstate.values.errors import StateRefused

CLEAN_MOST = 100_000  # crossings that the clean run may have
LOOKS_MOST = 400  # times that are waited for in one run
LOOKS_WITH_AN_END = 20_000
LONGEST_S = 60.0
STORY_LINES = 30
REPEAT = "GROUNDSTATE_LAB"  # in the environment: the one schedule that is run
ENOUGH = 20  # crossings that a run may have, times those of the clean one


class Crashed(AssertionError):
    """A schedule in which an invariant does not hold. Its words are the story, and the line that repeats it."""

    def __init__(self, schedule: Schedule, name: str, words: str) -> None:
        super().__init__(words)
        self.schedule = schedule
        self.invariant = name


@dataclass
class Findings:
    """What `crash_everywhere` did where all held."""

    crossings: int  # of the clean run
    runs: int
    kills: int
    seed: int
    seconds: float
    deaths: int = 0  # at how many crossings of the clean run a death leaves something else than at the one before
    held: Counter[str] = field(default_factory=Counter)  # why attempts were held at the end of runs, and how often
    skipped: int = 0  # schedules that were not run, since one that was tried is the same run
    joined: int = 0  # runs that ended where all was dead and what was left had been left before
    left_out: dict[str, tuple[int, int]] = field(default_factory=dict)  # for want of time: how many, of how many, by the sort of schedule

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
    """What the user gave, and takes part in each run."""

    fakes: Sequence[Fake]
    meanwhile: Sequence[Callable[[Session], object]]
    always: Check | None
    at_the_end: Check | None
    may_fail: Sequence[str]
    around: Callable[[str], Any] | None  # what each function of the app that runs in a transaction is run within
    clock: Clock
    fence: Fence  # what a call that is looked into is run within
    reactions: frozenset[str] | None = None  # those that take part, and schedules; None: all

    def plays(self, name: str) -> bool:
        """Whether the reaction, or schedule, of this name takes part."""
        return self.reactions is None or name in self.reactions


class Trial:
    """All runs of one `crash_everywhere`."""

    def __init__(self, app: App, place: Place, cast: Cast) -> None:
        self._app = app
        self._place = place
        self._watched = list(_watched(app))  # kept: as long as they are, a call that is run `through` may not write there
        self._cast = cast
        self._kept = Kept()
        self._limit = CLEAN_MOST
        specs = [[spec for spec in app.reactions_of(store) if cast.plays(spec.name)] for store in stores_of(app)]
        self._book = Book(specs, cast.fakes, place, always=cast.always, may_fail=cast.may_fail, around=cast.around)
        ticking = [[spec for spec in app.schedules_of(store) if cast.plays(spec.name)] for store in stores_of(app)]
        self._schedules = [[self._book.ticking(spec) for spec in some] for some in ticking]
        self._book.schedules = self._schedules
        self.at_death: Callable[[Any], None] | None = None  # instead of a death in process
        self.findings = Findings(0, 0, 0, 0, 0.0)
        self._tried, self._restarts = Tried(), Restarts()

    @property
    def taken(self) -> set[str]:
        """Reactions that were carried out in some run."""
        return self._book.taken

    def clean(self) -> Stage:
        """A run without mischief, with what a death at each of its crossings would leave."""
        stage = self.run(Schedule(), marked=True)
        self.findings.crossings = len(stage.crossings)
        self._limit = ENOUGH * len(stage.crossings) + 1000
        self._tried.was(Schedule(), Length(len(stage.crossings), stage.calls))
        self._tried.idle = stage.idle
        return stage

    def once_more(self, one: Schedule) -> None:
        """As `run`, but where it would be the same run as one that was tried, or as soon as it is."""
        __tracebackhide__ = True  # as below
        if self._tried.same_as(one) is not None:
            self.findings.skipped += 1
            return
        stage = self.run(one, joins=True)
        self._tried.was(one, None if stage.joined else Length(len(stage.crossings), stage.calls))

    def run(self, one: Schedule, *, marked: bool = False, joins: bool = False) -> Stage:
        """Raises Crashed, of the smallest schedule that breaks the same. joins: the run ends where it comes to a restart that was tried."""
        __tracebackhide__ = True  # what a test's author looks for is not in here
        try:
            return self.once(one, marked=marked, joins=joins)
        except Broken as broken:
            smallest = self._shrunk(one, broken)
        raise self._told(*smallest) from smallest[1].cause

    def _shrunk(self, one: Schedule, broken: Broken) -> tuple[Schedule, Broken]:
        """Takes away what is not needed, as long as the same breaks."""
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
        """Raises Broken."""
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
        except StateRefused as error:  # by a call or a find of the user's own
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
        """Whether this transaction of others, as it is now, would write nothing and move no clock."""
        still = Still(stage.time)
        self._cast.clock.shows(still)
        try:
            return self._place.is_idle(act) and not still.moved
        finally:
            self._cast.clock.shows(stage)

    def _to_the_end(self, stage: Stage, book: Book) -> None:
        """Until nothing is left whose time could come; then a clean stop, and the books are balanced."""
        self._wait(stage, book)
        while not stage.stop():
            self._wait(stage, book)
        held = book.at_the_end()
        self.findings.held.update(f"{one.reaction}: {one.why or one.error or ''}" for one in held)
        if self._cast.at_the_end is not None:
            with self._place.session() as session:
                self._cast.at_the_end(session)

    def _wait(self, stage: Stage, book: Book) -> None:
        """Moves the clock to whatever is due next, until nothing is."""
        looked: frozenset[Look] = frozenset()
        most = LOOKS_MOST if stage.clock.ends is None else LOOKS_WITH_AN_END
        for waited in range(most):
            stage.run_until_quiet()
            looks = book.looks()
            now = stage.time.now()
            waits_s = [(look[-1] - now).total_seconds() for look in looks]
            later = [wait_s for wait_s in [*waits_s, (stage.next_task_s() or 0.0) - stage.time.now_s] if wait_s > 0]
            if any(wait_s <= 0 for wait_s in waits_s) and looks != looked:
                stage.time.forward(0.002)  # its time came while the others were looked at: what it waits for may be over now
            elif later:
                # A busy host may wake later than it wished: so a minute's wait is not a hundred looks.
                stage.time.forward(max(min(later) + 0.002, min(0.25 * 2.0 ** min(waited, 30), LONGEST_S)))
            else:
                return
            looked = looks
        words = "something is still tried again or due: where a timer sets itself anew for ever, say lab.clock.ends(...)"
        raise Violation("Progress", f"after {most} waits {words}")


class Broken(Exception):
    """What broke in one run, and where."""

    def __init__(self, stage: Stage, name: str, words: str, cause: BaseException) -> None:
        super().__init__(words)
        self.stage = stage
        self.name = name
        self.words = words
        self.cause = cause


def _watched(app: App) -> Iterator[same_database.Place]:
    """The databases that the app's own engines lead to: the lab makes others, of which the functions of calls know nothing."""
    for store in stores_of(app):
        with suppress(Exception):  # a function of the user's gives the URL, and has none in a test
            yield watch(app.name, store.settings().url)

"""The crash lab: a user's own app, killed at every crossing and started again, with the invariants asserted after each.

What databases do for themselves, for the handlers of an application: SQLite's crash tests and FoundationDB's simulation are where the
idea comes from. A run is deterministic: clock, dice, threads and outside are the lab's.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import Self, TypeVar

from groundstate.app.app import App
from groundstate.app.outside import Call
from groundstate.testing import explore, schedule
from groundstate.testing.ambient import EPOCH, Stuck
from groundstate.testing.book import Book, Check, Violation
from groundstate.testing.place import SqlitePlace
from groundstate.testing.provider import Fake, Ledger
from groundstate.testing.schedule import Schedule
from groundstate.testing.stage import Crossing, Stage
from groundstate.values.errors import DeclarationError

A = TypeVar("A")
O = TypeVar("O")  # noqa: E741  # as in the other signatures
LOOKS_MOST = 400  # times that are waited for in one run
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


class NeverTaken(AssertionError):
    """A reaction that no schedule carried out: nothing was learned of it."""


@dataclass
class Findings:
    """What `crash_everywhere` did where all held."""

    crossings: int  # of the clean run
    runs: int
    kills: int
    seed: int
    seconds: float
    held: Counter[str] = field(default_factory=Counter)  # why attempts were held at the end of runs, and how often

    def __str__(self) -> str:
        words = f"{self.runs} runs of {self.crossings} crossings, {self.kills} kills, seed {self.seed}, {self.seconds:.1f} s"
        return words + "".join(f"\n  held {count} times: {why}" for why, count in self.held.most_common())


class Clock:
    """The database's clock in a run, as `Moment.now` tells it. The lab moves it to the next thing that is due; `meanwhile` may move it."""

    def __init__(self) -> None:
        self._stage: Stage | None = None

    @property
    def now(self) -> datetime:
        """The time in the run under way; where none is, that at which each begins."""
        return EPOCH if self._stage is None else self._stage.time.now()

    def forward(self, by: timedelta) -> None:
        """Moves it ahead, for all processes of the run."""
        if self._stage is None:
            raise Stuck("the clock stands still: no run is under way. Move it in a function given to lab.meanwhile")
        self._stage.time.forward(by.total_seconds())


class Lab:
    """One app under test. The fixture `lab` of the pytest plugin; in a script or another runner, `with Lab() as lab:`."""

    def __init__(self, *, say: Callable[[str], None] = print) -> None:
        self.clock = Clock()
        self._fakes: list[Fake] = []
        self._meanwhile: list[Callable[..., None]] = []
        self._say = say
        self._places: list[SqlitePlace] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the scratch databases."""
        while self._places:
            self._places.pop().close()

    def fake(self, call: Call[A, O], answer: Callable[[A], O] | O) -> Ledger[A]:
        """Replaces a call and its find by a provider with a ledger, kept by key, which does what the schedule says.

        answer: the outcome, or what makes it of the call's argument; make it different for each record, so that one taken for another
        shows.
        """
        if not isinstance(call, Call):
            raise DeclarationError(f"lab.fake({call!r}, ...): give the call itself, the function under @outside.call")
        self._fakes = [one for one in self._fakes if one.spec is not call.spec]
        made = Fake(call.__name__, call.spec, answer)
        self._fakes.append(made)
        return made.ledger

    def meanwhile(self, act: Callable[..., None]) -> Callable[..., None]:
        """Someone else's transaction: `act(session)` is put between any two crossings, once a run, and committed. May be a decorator.

        It is another program's: no hint tells of it.
        """
        self._meanwhile.append(act)
        return act

    def crash_everywhere(  # noqa: PLR0913  # each is said by name
        self,
        app: App,
        *rows: object,
        always: Check | None = None,
        at_the_end: Check | None = None,
        may_fail: Sequence[str] = (),
        budget: int = 200,
        seed: int | None = None,
        only: str | None = None,
    ) -> Findings:
        """Runs the app on these rows once for each place at which it can be cut, and asserts the invariants in each run.

        A clean run counts the crossings: each statement, each commit before and after, each hint, each call before, in and after, each
        find. Then the app dies at each in turn; someone else's transaction, each mood of the outside, lost locks and a second worker come
        in at each; then pairs and mixtures of these are drawn by a seed.

        Args:
            app: as declared. Its own database is not touched.
            rows: records that are there when a run begins.
            always: `always(session)` is called after each commit, and `at_the_end(session)` after each run; they assert.
            at_the_end: see there.
            may_fail: reactions whose handlers are meant to raise; elsewhere that is a fault.
            budget: how many mixtures are drawn.
            seed: draws the same again; printed by a failure.
            only: runs one schedule, as a failure printed it.

        Raises:
            Crashed: an invariant, or an assertion of yours, does not hold. The message is the story of the smallest schedule found.
            NeverTaken: a reaction was carried out in no run.
            DeclarationError: a call has no fake.
        """
        app.check_declarations()
        self._every_call_has_a_fake(app)
        place = SqlitePlace(app)
        self._places.append(place)
        place.fill(app, rows)
        trial = _Trial(self, app, place, always, at_the_end, may_fail)
        only = only or os.environ.get(REPEAT)
        if only is not None:
            trial.run(schedule.parsed(only))
            return trial.findings
        trial.findings.seed = seed if seed is not None else random.SystemRandom().randint(1, 999_999)
        trial.everywhere(budget)
        return trial.findings

    def _every_call_has_a_fake(self, app: App) -> None:
        known = {one.spec for one in self._fakes}
        for spec in app.reactions.values():
            if spec.call is not None and spec.call not in known:
                name = spec.call.function.name
                raise DeclarationError(f"call {name} has no fake, and would be made for real: lab.fake({name}, answer)")


class _Trial:
    """One app on one scratch database, run again and again."""

    def __init__(  # what crash_everywhere was given
        self, lab: Lab, app: App, place: SqlitePlace, always: Check | None, at_the_end: Check | None, may_fail: Sequence[str]
    ) -> None:
        self._lab = lab
        self._app = app
        self._place = place
        self._always = always
        self._at_the_end = at_the_end
        self._may_fail = may_fail
        self._specs = [app.reactions_of(store) for store in app.stores]
        self._taken: set[str] = set()
        self._limit = 100_000
        self.findings = Findings(0, 0, 0, 0, 0.0)

    def everywhere(self, budget: int) -> None:
        """The clean run, then all singles, then as many mixtures."""
        started = time.monotonic()
        seen = self._clean()
        meanwhile = len(self._lab._meanwhile)  # noqa: SLF001  # one thing with the lab
        dice = random.Random(self.findings.seed)  # noqa: S311  # to be repeated is what it is for
        mixed = explore.mixtures(seen, meanwhile, dice)
        for one in chain(explore.singles(seen, meanwhile), islice(mixed, budget)):
            self.run(one)
        self.findings.seconds = time.monotonic() - started
        missing = sorted(set(self._app.reactions) - self._taken)
        if missing:
            raise NeverTaken(
                f"{', '.join(missing)}: never carried out in {self.findings.runs} runs, so nothing was learned of it. Give rows for "
                "which it holds, or a lab.meanwhile that makes it hold"
            )

    def _clean(self) -> explore.Seen:
        stage = self.run(Schedule())
        self.findings.crossings = len(stage.crossings)
        self._limit = ENOUGH * len(stage.crossings) + 1000
        calls = [spec.call for some in self._specs for spec in some if spec.call is not None]
        return explore.Seen(
            stage.crossings, stage.calls, any(not call.function.is_async for call in calls), any(call.find is not None for call in calls)
        )

    def run(self, one: Schedule) -> Stage:
        """Raises Crashed, of the smallest schedule that breaks the same."""
        try:
            return self._once(one)
        except _Broken as broken:
            smallest = self._shrunk(one, broken)
        raise self._told(*smallest) from smallest[1].cause

    def _shrunk(self, one: Schedule, broken: _Broken) -> tuple[Schedule, _Broken]:
        """Takes away what is not needed, as long as the same breaks."""
        for smaller in one.smaller():
            try:
                self._once(smaller)
            except _Broken as found:
                if found.name == broken.name:
                    return self._shrunk(smaller, found)
        return one, broken

    def _told(self, one: Schedule, broken: _Broken) -> Crashed:
        story = broken.stage.story
        left_out = [f"  ... {len(story) - STORY_LINES} lines before"] if len(story) > STORY_LINES else []
        lines = [f"{broken.name}: {broken.words}", "", *left_out, *(f"  {line}" for line in story[-STORY_LINES:]), ""]
        lines += [f'again: lab.crash_everywhere(..., only="{one}")', f"or:    {REPEAT}='{one}' pytest ...   (seed {self.findings.seed})"]
        return Crashed(one, broken.name, "\n".join(lines))

    def _once(self, one: Schedule) -> Stage:
        lab, place = self._lab, self._place
        for fake in lab._fakes:  # noqa: SLF001  # one thing with the lab
            fake.begin_anew()
        place.begin_anew()
        book = Book(self._specs, lab._fakes, place, always=self._always, may_fail=self._may_fail)  # noqa: SLF001  # the same
        stage = Stage(self._app.name, book.specs, place, lab._fakes, one, limit=self._limit)  # noqa: SLF001  # the same
        stage.judge, stage.meanwhile = book, lab._meanwhile  # noqa: SLF001  # the same
        lab.clock._stage = stage  # noqa: SLF001  # the same
        try:
            with stage.open():
                book.begin(stage)
                self._to_the_end(stage, book)
        except Violation as error:
            raise _Broken(stage, error.name, error.words, error) from error
        except Stuck as error:
            raise _Broken(stage, "Progress", str(error), error) from error
        except AssertionError as error:
            raise _Broken(stage, "assertion", str(error) or repr(error), error) from error
        finally:
            lab.clock._stage = None  # noqa: SLF001  # the same
            self.findings.runs += 1
            self.findings.kills += sum(1 for process in stage.processes if process.killed)
            self._taken |= book.taken
        return stage

    def _to_the_end(self, stage: Stage, book: Book) -> None:
        """Until nothing is left whose time could come; then a clean stop, and the books are balanced."""
        for waited in range(LOOKS_MOST):
            stage.run_until_quiet()
            times = [(due - EPOCH).total_seconds() for due in [book.next_look()] if due is not None]
            times += [at_s for at_s in [stage.next_task_s()] if at_s is not None]
            later = [at_s for at_s in times if at_s > stage.time.now_s]
            if not later:
                break
            # A busy host may wake later than it wished: so a minute's wait is not a hundred looks.
            stage.time.forward(max(min(later) - stage.time.now_s + 0.002, min(0.25 * 2**waited, LONGEST_S)))
        else:
            raise Violation("Progress", f"after {LOOKS_MOST} waits something is still tried again")
        stage.stop()
        held = book.at_the_end()
        self.findings.held.update(f"{one.reaction}: {one.why or one.error or ''}" for one in held)
        if self._at_the_end is not None:
            with self._place.session() as session:
                self._at_the_end(session)


class _Broken(Exception):
    """What broke in one run, and where."""

    def __init__(self, stage: Stage, name: str, words: str, cause: BaseException) -> None:
        super().__init__(words)
        self.stage = stage
        self.name = name
        self.words = words
        self.cause = cause


__all__ = ["Clock", "Crashed", "Crossing", "Findings", "Lab", "Ledger", "NeverTaken"]

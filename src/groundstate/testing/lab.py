"""The crash lab. It kills a user's app at every crossing (a statement, commit, hint or call), restarts the app, and asserts invariants such
as that no call is made twice.

A run is deterministic, since the lab controls the clock, random numbers, threads and external services. The idea comes from SQLite's crash
tests and FoundationDB's simulation.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Self, TypeVar

from sqlalchemy import inspect

from groundstate.app.app import App
from groundstate.app.external_service import Call
from groundstate.clock import SYSTEM_CLOCK, SYSTEM_DICE, SeededDice
from groundstate.testing.databases.scratch_db import Place
from groundstate.testing.databases.scratch_postgres import PostgresPlace
from groundstate.testing.databases.scratch_sqlite import SqlitePlace
from groundstate.testing.runner import REPEAT, Crashed, Findings, RunSettings, Trial
from groundstate.testing.search import schedule_search
from groundstate.testing.simulate import crash_plan
from groundstate.testing.simulate.clock import Clock
from groundstate.testing.simulate.crash_plan import Schedule
from groundstate.testing.simulate.fake_provider import Client, Fake, Ledger
from groundstate.testing.verdict.invariants import Check
from groundstate.testing.verdict.io_guard import Guard
from groundstate.values.errors import DeclarationError

A = TypeVar("A")
O = TypeVar("O")  # noqa: E741  # the type variable has this name in other signatures too
Act = TypeVar("Act", bound=Check)
SAYS_EVERY_S = 10.0  # seconds between two printed lines of progress


class NeverTaken(AssertionError):
    """Raised if a reaction was not carried out in any run, so that the test proves nothing about that reaction."""


class Lab:
    """The crash lab for one app under test: the fixture `lab` of the pytest plugin, or `with Lab() as lab:` elsewhere.

    Args:
        postgres: the URL of a PostgreSQL server on which scratch databases may be created; None uses SQLite files, which is quicker.
        strict: whether the test also fails if a handler gets the time or random numbers from anything but its `ReactionContext`.
        say: a function that is called with a line of progress every 10 seconds of a long test.
    """

    def __init__(self, *, postgres: str | None = None, strict: bool = False, say: Callable[[str], None] = print) -> None:
        self.clock = Clock()
        self.postgres = postgres
        self.strict = strict
        self._fakes: list[Fake] = []
        self._meanwhile: list[Check] = []
        self._say = say
        self._places: list[Place] = []
        self._real = SYSTEM_CLOCK  # the real clock, which measures the duration of the whole test; no run reads it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the scratch databases."""
        while self._places:
            self._places.pop().close()

    def fake(self, call: Call[A, O], answer: Callable[[A], O] | O, *, through: Callable[[Client], Any] | None = None) -> Ledger[A]:
        """Replace a call and its lookup by a fake provider. It keeps a ledger of what calls have done (effects), and fails as the schedule
        of each run says.

        Args:
            call: the function that is decorated with `@service.call`.
            answer: the outcome, or a function that makes it from the call's argument. Make it different for each record, so that an outcome
                given to the wrong record shows.
            through: a function that makes the `client` that your call and lookup receive; its argument is a client of the fake provider.
                With `through`, the lab runs the functions that you wrote. Without it they are not run. Only one check remains: how a call
                with `key` and `client` reacts to a time-out of its client.

        Returns:
            The ledger of the fake provider.

        Raises:
            DeclarationError: `call` is not a call, or it is one for many records and `through` is given.
        """
        if not isinstance(call, Call):
            raise DeclarationError(f"lab.fake({call!r}, ...): give the call itself, the function under @service.call")
        if through is not None and call.spec.many:
            raise DeclarationError(f"lab.fake({call.__name__}, ..., through=...): a call for many records at once is not run; leave it out")
        self._fakes = [one for one in self._fakes if one.spec is not call.spec]
        made = Fake(call.__name__, call.spec, answer, through)
        self._fakes.append(made)
        return made.ledger

    def meanwhile(self, act: Act) -> Act:
        """Insert a transaction of another program: in each run, `act(session)` is called and committed at one crossing, a different one in
        each run.

        No hint is sent for the commit. The method may be used as a decorator.

        Raises:
            DeclarationError: `act` is not callable.
        """
        if not callable(act):
            raise DeclarationError(f"lab.meanwhile({act!r}): give a function that takes a session")
        self._meanwhile.append(act)
        return act

    def crash_everywhere(  # noqa: PLR0913  # each is passed by keyword
        self,
        app: App,
        *rows: object,
        always: Check | None = None,
        at_the_end: Check | None = None,
        may_fail: Sequence[str] = (),
        reactions: Sequence[str] | None = None,
        budget: int = 100,
        seconds: float | None = None,
        seed: int | None = None,
        only: str | None = None,
    ) -> Findings:
        """Run the app on these rows once for each crossing at which it can be killed, and assert the invariants in each run.

        A clean run counts the crossings: each statement, each commit (before and after), each hint, each call (before, during and after)
        and each lookup. The runs after it have one disturbance each: the app is killed at a crossing (once for all crossings that leave
        byte-identical state behind), a transaction of another program is committed at a crossing, `lab.clock` leaps as declared, or the
        external service treats one call badly (refuses it, loses its answer, and so on). Then mixtures of disturbances are drawn by a seed:
        pairs of kills, a worker's lock that is lost while its process lives, a second worker, the database restored from an earlier copy.

        A schedule (the disturbances of one run) that would repeat an earlier run is skipped. A run ends early if it restarts from a state
        from which an earlier run restarted.

        Args:
            app: the app as declared. Its own database is not touched.
            rows: records that exist when a run begins.
            always: `always(session)` is called after each commit, and makes assertions of yours.
            at_the_end: `at_the_end(session)` is called after each run, and makes assertions of yours.
            may_fail: names of the reactions whose handlers may raise; if another reaction's handler raises, the test fails.
            reactions: names of the reactions and schedules that take part; the others are treated as not declared. None means all.
            budget: the number of mixtures that are drawn.
            seconds: no run begins later than this many seconds after the first one. With a limit, the runs are shuffled by the seed, so
                that the runs within the limit are a fair sample; the findings say how many were left out. None means no limit.
            seed: the seed of the mixtures, which a failure prints; None draws a new one.
            only: the one schedule to run, in the form in which a failure prints it.

        Returns:
            The findings: counts of runs, crossings and kills, and why attempts were held.

        Raises:
            Crashed: an invariant or an assertion of yours does not hold. The message is the log of the run of the smallest schedule found.
            NeverTaken: some reaction that takes part was carried out in no run.
            DeclarationError: a call has no fake, or an argument is invalid; the message names the cure.
        """
        __tracebackhide__ = True  # pytest hides this frame, which does not help the author of a test
        app.check_declarations()
        played = self._check_arguments(app, rows, may_fail, reactions, budget, seconds)
        only = only or os.environ.get(REPEAT)
        one = None if only is None else _parse_schedule(only)
        trial = self._build_trial(app, *rows, always=always, at_the_end=at_the_end, may_fail=may_fail, reactions=reactions)
        if one is not None:
            trial.findings.crossings = len(trial.run(one).crossings)
            return trial.findings
        trial.findings.seed = seed if seed is not None else 1 + SYSTEM_DICE.randrange(999_999)
        self._run_all_schedules(trial, played - set(may_fail), budget, seconds)
        return trial.findings

    def _build_trial(
        self,
        app: App,
        *rows: object,
        always: Check | None = None,
        at_the_end: Check | None = None,
        may_fail: Sequence[str] = (),
        reactions: Sequence[str] | None = None,
    ) -> Trial:
        """Create scratch databases with these rows, and return a `Trial` that runs single schedules on them. The arguments are those of
        `crash_everywhere`.
        """
        place = SqlitePlace(app) if self.postgres is None else PostgresPlace(app, self.postgres)
        self._places.append(place)
        place.fill(app, rows)
        around = Guard(strict=self.strict).watch_block
        played = None if reactions is None else frozenset(reactions)
        cast = RunSettings(
            self._fakes, self._meanwhile, always, at_the_end, may_fail, around, self.clock, Guard(strict=False).watch_block, played
        )
        return Trial(app, place, cast)

    def _run_all_schedules(self, trial: Trial, expected: set[str], budget: int, seconds: float | None) -> None:
        """Run the clean schedule, all schedules with one disturbance, and `budget` mixtures. If `seconds` is given, stop after that time.

        expected: names of reactions. Raise NeverTaken if one of them is not carried out in any run.
        """
        __tracebackhide__ = True  # pytest hides this frame
        started = said = self._real.monotonic()
        stage = trial.run_clean()
        seen = schedule_search.summarise_clean_run(stage, locks_rows=stage.place.locks_rows)
        trial.findings.deaths = len(seen.deaths)
        missing = sorted(expected - trial.carried_out)
        if missing and not (seen.calls or self._meanwhile):
            raise NeverTaken(_never_taken_message(missing, "the run without disturbances, and no crash can change that"))
        if missing:
            self._say(f"crash lab: {', '.join(missing)} not carried out in the run without disturbances; other runs may carry it out")
        meanwhile = len(self._meanwhile)
        singles = list(schedule_search.single_schedules(seen, meanwhile))
        dice = SeededDice(trial.findings.seed)
        chosen = [*singles, *islice(schedule_search.mixed_schedules(seen, meanwhile, dice), budget)]
        if seconds is not None:
            chosen = schedule_search.order_evenly(chosen, dice)
        for number, one in enumerate(chosen):
            now = self._real.monotonic()
            if seconds is not None and now - started >= seconds:
                trial.findings.left_out = _count_left_out(chosen, number)
                break
            if number and now - said > SAYS_EVERY_S:
                said = now
                self._say(f"crash lab: {number} of {len(chosen)} runs, {said - started:.0f} s, seed {trial.findings.seed}")
            trial.run_unless_repeated(one)
        trial.findings.seconds = self._real.monotonic() - started
        missing = sorted(expected - trial.carried_out)
        if missing:
            more = ", and not all were tried: give it more seconds" if trial.findings.left_out else ""
            raise NeverTaken(_never_taken_message(missing, f"{trial.findings.runs} runs{more}"))

    # ---- checks of the arguments ---------------------------------------------------------------------------------------------------
    def _check_arguments(
        self,
        app: App,
        rows: Sequence[object],
        may_fail: Sequence[str],
        reactions: Sequence[str] | None,
        budget: int,
        seconds: float | None,
    ) -> set[str]:
        """Check the arguments of `crash_everywhere`, and return the names of the reactions and schedules that take part."""
        _check_names(app, "reactions", reactions or ())
        played = set(app.reactions) if reactions is None else set(app.reactions).intersection(reactions)
        known = {one.spec for one in self._fakes}
        for spec in app.reactions.values():
            if spec.name in played and spec.call is not None and spec.call not in known:
                name = spec.call.function.name
                raise DeclarationError(f"call {name} has no fake, and would be made for real: lab.fake({name}, answer)")
        if not app.reactions and not app.schedules:
            raise DeclarationError(f"{app!r} has no reactions, so nothing would run: import the module that declares them")
        if not rows and not self._meanwhile:
            raise DeclarationError(
                "crash_everywhere(app) has no rows, so no condition holds and nothing would run: give records, "
                "as in crash_everywhere(app, Order(id=1)), or a lab.meanwhile that adds some"
            )
        for row in rows:
            _check_row(app, row)
        _check_names(app, "may_fail", may_fail)
        if reactions is not None and not reactions:
            raise DeclarationError("reactions=[]: nothing would take part; leave it out for all of the app")
        if budget < 0:
            raise DeclarationError(f"budget={budget}: the number of mixtures that are drawn is 0 or more")
        if seconds is not None and seconds <= 0:
            raise DeclarationError(f"seconds={seconds}: give how long runs may begin, as in seconds=60; leave it out for all of them")
        return played


def _count_left_out(chosen: Sequence[Schedule], tried: int) -> dict[str, tuple[int, int]]:
    """Return for each sort of schedule a pair (number of schedules not tried, number of all schedules). Sorts that were tried in full
    are left out.
    """
    of_all, left = Counter(one.sort for one in chosen), Counter(one.sort for one in chosen[tried:])
    return {sort: (left[sort], count) for sort, count in of_all.items() if left[sort]}


def _never_taken_message(missing: Sequence[str], where: str) -> str:
    return (
        f"{', '.join(missing)}: never carried out in {where}, so the test proves nothing about it. Give rows that meet its condition, or a"
        " lab.meanwhile that makes rows meet it; or name the reactions to test: reactions=[...]"
    )


def _check_names(app: App, argument: str, given: Sequence[str]) -> None:
    unknown = sorted(set(given) - set(app.reactions) - set(app.schedules))
    if unknown:
        there = ", ".join(sorted({*app.reactions, *app.schedules}))
        raise DeclarationError(f"{argument}={unknown}: there is no such reaction; there are {there}")


def _check_row(app: App, row: Any) -> None:
    if isinstance(row, type) or inspect(row, raiseerr=False) is None:
        raise DeclarationError(f"crash_everywhere(app, {row!r}): give records, as in Order(id=1)")
    if not any(store.owns_class(type(row)) for store in app.stores):
        raise DeclarationError(f"{type(row).__name__} is in no store of {app!r}: give records of its tables")


def _parse_schedule(only: str) -> Schedule:
    try:
        return crash_plan.parse_schedule(only)
    except ValueError as error:
        raise DeclarationError(str(error)) from error


__all__ = ["Clock", "Crashed", "Findings", "Lab", "Ledger", "NeverTaken"]

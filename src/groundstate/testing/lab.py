"""The crash lab: it kills a user's own app at every crossing, starts it again, and asserts the invariants after each.

It does for the handlers of an application what databases do for themselves; the idea comes from SQLite's crash tests and FoundationDB's
simulation. A run is deterministic: the lab controls clock, random numbers, threads and external services.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Self, TypeVar

from sqlalchemy import inspect

from groundstate.app.app import App
from groundstate.app.external_service import Call
from groundstate.testing.databases.scratch_db import Place
from groundstate.testing.databases.scratch_postgres import PostgresPlace
from groundstate.testing.databases.scratch_sqlite import SqlitePlace
from groundstate.testing.runner import REPEAT, Cast, Crashed, Findings, Trial
from groundstate.testing.search import schedule_search
from groundstate.testing.simulate import crash_plan
from groundstate.testing.simulate.clock import Clock
from groundstate.testing.simulate.crash_plan import Schedule
from groundstate.testing.simulate.fake_provider import Client, Fake, Ledger
from groundstate.testing.verdict.invariants import Check
from groundstate.testing.verdict.io_guard import Guard
from groundstate.values.errors import DeclarationError

A = TypeVar("A")
O = TypeVar("O")  # noqa: E741  # the same type variable as in the other signatures
Act = TypeVar("Act", bound=Check)
SAYS_EVERY_S = 10.0  # seconds between two lines of progress that are printed


class NeverTaken(AssertionError):
    """Raised where a reaction was carried out in no run, so that the test shows nothing about it."""


class Lab:
    """The crash lab for one app under test: the fixture `lab` of the pytest plugin, or `with Lab() as lab:` elsewhere.

    Args:
        postgres: the URL of a PostgreSQL server on which scratch databases may be created; None uses SQLite files, which is quicker.
        strict: the test also fails where a handler reads a clock or random numbers other than through its `ReactionContext`.
        say: a function that receives a line of progress now and then in a long test.
    """

    def __init__(self, *, postgres: str | None = None, strict: bool = False, say: Callable[[str], None] = print) -> None:
        self.clock = Clock()
        self.postgres = postgres
        self.strict = strict
        self._fakes: list[Fake] = []
        self._meanwhile: list[Check] = []
        self._say = say
        self._places: list[Place] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the scratch databases."""
        while self._places:
            self._places.pop().close()

    def fake(self, call: Call[A, O], answer: Callable[[A], O] | O, *, through: Callable[[Client], Any] | None = None) -> Ledger[A]:
        """Replace a call and its lookup by a fake provider, which keeps a ledger by idempotency key and behaves as the schedule says.

        Args:
            call: the function under `@service.call`.
            answer: the outcome, or a function that makes it from the call's argument. Make it different for each record, so that an outcome
                given to the wrong record shows.
            through: makes the lab run the call and the lookup that you wrote against the fake provider: it receives a client of the
                provider and returns what they receive as `client`. Without it they are not run; but how a call with `key` and `client`
                reacts to a time-out is still checked, with a stand-in for its client.

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
        """Insert a transaction of another program: `act(session)` runs between any two crossings, once a run, and is committed.

        No hint is sent for it. It may be used as a decorator.

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
        """Run the app on these rows once for each crossing at which it can be cut, and assert the invariants in each run.

        A clean run counts the crossings: each statement, each commit (before and after), each hint, each call (before, during and after)
        and each lookup. Then the app is killed at each of them in turn (once for all crossings that leave byte-identical state behind), a
        transaction of another program is inserted between any two, `lab.clock` leaps as declared, and each call meets each mood of the
        external service. Then mixtures are drawn by a seed: pairs of kills, a lock lost while its process lives, a second worker, the
        database restored from an earlier copy. A schedule that would repeat an earlier run is skipped, and a run ends where it reaches a
        restart that was tried.

        Args:
            app: the app as declared. Its own database is not touched.
            rows: records that exist when a run begins.
            always: `always(session)` is called after each commit, and makes assertions of yours.
            at_the_end: `at_the_end(session)` is called after each run, and makes assertions of yours.
            may_fail: names of the reactions whose handlers are meant to raise; any other handler that raises fails the test.
            reactions: names of the reactions and schedules that take part; the others are left out as if they were not declared. None means
                all of the app.
            budget: the number of mixtures that are drawn.
            seconds: no run begins later than this many seconds after the first. The runs are then shuffled by the seed, so that those
                carried out are a fair sample of all kinds and crossings; the findings list what was left out. None means no limit.
            seed: draws the same mixtures again; a failure prints it.
            only: runs only this schedule, as a failure printed it.

        Returns:
            The findings: counts of runs, crossings and kills, and why attempts were held.

        Raises:
            Crashed: an invariant or an assertion of yours does not hold. The message is the story of the smallest schedule found.
            NeverTaken: no run carried out a reaction. It is raised right after the clean run where no other schedule could change that.
            DeclarationError: a call has no fake, or an argument is invalid; the message names the cure.
        """
        __tracebackhide__ = True  # pytest hides this frame, in which the author of a test finds nothing
        app.check_declarations()
        played = self._check(app, rows, may_fail, reactions, budget, seconds)
        only = only or os.environ.get(REPEAT)
        one = None if only is None else _parsed(only)
        trial = self.trial(app, *rows, always=always, at_the_end=at_the_end, may_fail=may_fail, reactions=reactions)
        if one is not None:
            trial.findings.crossings = len(trial.run(one).crossings)
            return trial.findings
        trial.findings.seed = seed if seed is not None else random.SystemRandom().randint(1, 999_999)
        self._everywhere(trial, played - set(may_fail), budget, seconds)
        return trial.findings

    def trial(
        self,
        app: App,
        *rows: object,
        always: Check | None = None,
        at_the_end: Check | None = None,
        may_fail: Sequence[str] = (),
        reactions: Sequence[str] | None = None,
    ) -> Trial:
        """Make a scratch database with these rows, on which schedules can be run one by one; `crash_everywhere` is built on it."""
        place = SqlitePlace(app) if self.postgres is None else PostgresPlace(app, self.postgres)
        self._places.append(place)
        place.fill(app, rows)
        around = Guard(strict=self.strict).watching
        played = None if reactions is None else frozenset(reactions)
        cast = Cast(self._fakes, self._meanwhile, always, at_the_end, may_fail, around, self.clock, Guard(strict=False).watching, played)
        return Trial(app, place, cast)

    def _everywhere(self, trial: Trial, expected: set[str], budget: int, seconds: float | None) -> None:
        """Run the clean schedule, all singles and `budget` mixtures, or with `seconds` as many of both, mixed, as fit into that time.

        expected: the reactions that must be carried out in some run.
        """
        __tracebackhide__ = True  # the author of a test finds nothing in this frame
        started = said = time.monotonic()
        stage = trial.clean()
        seen = schedule_search.seen(stage, locks_rows=stage.place.locks_rows)
        trial.findings.deaths = len(seen.deaths)
        missing = sorted(expected - trial.taken)
        if missing and not (seen.calls or self._meanwhile):
            raise NeverTaken(_never(missing, "the run without mischief, and no crash can change that"))
        if missing:
            self._say(f"crash lab: {', '.join(missing)} not carried out in the run without mischief; others may bring it about")
        meanwhile = len(self._meanwhile)
        singles = list(schedule_search.singles(seen, meanwhile))
        dice = random.Random(trial.findings.seed)  # noqa: S311  # the random numbers must be repeatable
        chosen = [*singles, *islice(schedule_search.mixtures(seen, meanwhile, dice), budget)]
        if seconds is not None:
            chosen = schedule_search.evenly(chosen, dice)
        for number, one in enumerate(chosen):
            now = time.monotonic()
            if seconds is not None and now - started >= seconds:
                trial.findings.left_out = _left_out(chosen, number)
                break
            if number and now - said > SAYS_EVERY_S:
                said = now
                self._say(f"crash lab: {number} of {len(chosen)} runs, {said - started:.0f} s, seed {trial.findings.seed}")
            trial.once_more(one)
        trial.findings.seconds = time.monotonic() - started
        missing = sorted(expected - trial.taken)
        if missing:
            more = ", and not all were tried: give it more seconds" if trial.findings.left_out else ""
            raise NeverTaken(_never(missing, f"{trial.findings.runs} runs{more}"))

    # ---- checks of the arguments ---------------------------------------------------------------------------------------------------
    def _check(
        self,
        app: App,
        rows: Sequence[object],
        may_fail: Sequence[str],
        reactions: Sequence[str] | None,
        budget: int,
        seconds: float | None,
    ) -> set[str]:
        """Check the arguments of `crash_everywhere` and return the names of the reactions that take part."""
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


def _left_out(chosen: Sequence[Schedule], tried: int) -> dict[str, tuple[int, int]]:
    """Map each sort of schedule to how many were not tried, and to how many there are in all."""
    of_all, left = Counter(one.sort for one in chosen), Counter(one.sort for one in chosen[tried:])
    return {sort: (left[sort], count) for sort, count in of_all.items() if left[sort]}


def _never(missing: Sequence[str], where: str) -> str:
    return (
        f"{', '.join(missing)}: never carried out in {where}, so nothing was learned of it. Give rows for which it holds, or a"
        " lab.meanwhile that makes it hold; or name those that take part: reactions=[...]"
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


def _parsed(only: str) -> Schedule:
    try:
        return crash_plan.parsed(only)
    except ValueError as error:
        raise DeclarationError(str(error)) from error


__all__ = ["Clock", "Crashed", "Findings", "Lab", "Ledger", "NeverTaken"]

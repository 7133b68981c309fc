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
from itertools import islice
from typing import Any, Self, TypeVar

from sqlalchemy import inspect

from groundstate.app.app import App
from groundstate.app.outside import Call
from groundstate.testing import explore, schedule
from groundstate.testing.book import Check
from groundstate.testing.clock import Clock
from groundstate.testing.guard import Guard
from groundstate.testing.place import Place
from groundstate.testing.postgres_place import PostgresPlace
from groundstate.testing.provider import Client, Fake, Ledger
from groundstate.testing.schedule import Schedule
from groundstate.testing.sqlite_place import SqlitePlace
from groundstate.testing.trial import REPEAT, Cast, Crashed, Findings, Trial
from groundstate.values.errors import DeclarationError

A = TypeVar("A")
O = TypeVar("O")  # noqa: E741  # as in the other signatures
Act = TypeVar("Act", bound=Check)
SAYS_EVERY_S = 10.0


class NeverTaken(AssertionError):
    """A reaction that no schedule carried out: nothing was learned of it."""


class Lab:
    """One app under test. The fixture `lab` of the pytest plugin; in a script or another runner, `with Lab() as lab:`.

    Args:
        postgres: the URL of a PostgreSQL on which scratch databases may be made; None: SQLite files, which is quicker.
        strict: a handler that reads a clock or throws dice other than by its `Moment` fails the test as well.
        say: is given a line now and then where it takes long.
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
        """Removes the scratch databases."""
        while self._places:
            self._places.pop().close()

    def fake(self, call: Call[A, O], answer: Callable[[A], O] | O, *, through: Callable[[Client], Any] | None = None) -> Ledger[A]:
        """Replaces a call and its find by a provider with a ledger, kept by key, which does what the schedule says.

        answer: the outcome, or what makes it of the call's argument; make it different for each record, so that one taken for another
            shows.
        through: runs the call and the find that you wrote, against the same provider: it is given a line to it, and returns what they
            are given as `client`. Without it they are not run; but what a call that takes `key` and `client` makes of a time-out is
            looked at, with a stand-in for its client.

        Raises:
            DeclarationError: it is no call, or one for many records with `through`.
        """
        if not isinstance(call, Call):
            raise DeclarationError(f"lab.fake({call!r}, ...): give the call itself, the function under @outside.call")
        if through is not None and call.spec.many:
            raise DeclarationError(f"lab.fake({call.__name__}, ..., through=...): a call for many records at once is not run; leave it out")
        self._fakes = [one for one in self._fakes if one.spec is not call.spec]
        made = Fake(call.__name__, call.spec, answer, through)
        self._fakes.append(made)
        return made.ledger

    def meanwhile(self, act: Act) -> Act:
        """Someone else's transaction: `act(session)` is put between any two crossings, once a run, and committed. May be a decorator.

        It is another program's: no hint tells of it. Raises DeclarationError where it is no function.
        """
        if not callable(act):
            raise DeclarationError(f"lab.meanwhile({act!r}): give a function that takes a session")
        self._meanwhile.append(act)
        return act

    def crash_everywhere(  # noqa: PLR0913  # each is said by name
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
        """Runs the app on these rows once for each place at which it can be cut, and asserts the invariants in each run.

        A clean run counts the crossings: each statement, each commit before and after, each hint, each call before, in and after, each
        find. Then the app dies at each in turn (where several leave the same behind, byte for byte, once for all of them), someone
        else's transaction comes between any two, `lab.clock` leaps as it was told, and each call meets each mood of the outside. Then
        mixtures are drawn by a seed: pairs of deaths, a lock lost alive, a second worker, the database put back to an earlier copy. What
        would be the same run as one that was tried is skipped, and a run ends where it comes to a restart that was tried.

        Args:
            app: as declared. Its own database is not touched.
            rows: records that are there when a run begins.
            always: `always(session)` is called after each commit, and `at_the_end(session)` after each run; they assert.
            at_the_end: see there.
            may_fail: reactions whose handlers are meant to raise; elsewhere that is a fault.
            reactions: the names of those, and of schedules, that take part: the others are left out, as if they were not declared. None:
                all of the app.
            budget: how many mixtures are drawn.
            seconds: no run begins later than so long after the first. They come in another order then, drawn by the seed, so that those
                that are carried out are a fair sample of all kinds and all crossings; the findings say what was left out. None: all.
            seed: draws the same again; printed by a failure.
            only: runs one schedule, as a failure printed it.

        Raises:
            Crashed: an invariant, or an assertion of yours, does not hold. The message is the story of the smallest schedule found.
            NeverTaken: a reaction was carried out in no run. Where nothing that is tried could change that, after the clean run.
            DeclarationError: a call has no fake, or an argument has no meaning; with the cure.
        """
        __tracebackhide__ = True  # of pytest: what a test's author looks for is not in here
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
        """A scratch database with these rows, on which schedules can be run one by one: what `crash_everywhere` is made of."""
        place = SqlitePlace(app) if self.postgres is None else PostgresPlace(app, self.postgres)
        self._places.append(place)
        place.fill(app, rows)
        around = Guard(strict=self.strict).watching
        played = None if reactions is None else frozenset(reactions)
        cast = Cast(self._fakes, self._meanwhile, always, at_the_end, may_fail, around, self.clock, Guard(strict=False).watching, played)
        return Trial(app, place, cast)

    def _everywhere(self, trial: Trial, expected: set[str], budget: int, seconds: float | None) -> None:
        """The clean run, then all singles, then as many mixtures; or as many of both, mixed, as the seconds let.

        expected: the reactions that are to be carried out in some run.
        """
        __tracebackhide__ = True  # as above
        started = said = time.monotonic()
        stage = trial.clean()
        seen = explore.seen(stage, locks_rows=stage.place.locks_rows)
        trial.findings.deaths = len(seen.deaths)
        missing = sorted(expected - trial.taken)
        if missing and not (seen.calls or self._meanwhile):
            raise NeverTaken(_never(missing, "the run without mischief, and no crash can change that"))
        if missing:
            self._say(f"crash lab: {', '.join(missing)} not carried out in the run without mischief; others may bring it about")
        meanwhile = len(self._meanwhile)
        singles = list(explore.singles(seen, meanwhile))
        dice = random.Random(trial.findings.seed)  # noqa: S311  # to be repeated is what it is for
        chosen = [*singles, *islice(explore.mixtures(seen, meanwhile, dice), budget)]
        if seconds is not None:
            chosen = explore.evenly(chosen, dice)
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

    # ---- what was given ------------------------------------------------------------------------------------------------------------
    def _check(
        self,
        app: App,
        rows: Sequence[object],
        may_fail: Sequence[str],
        reactions: Sequence[str] | None,
        budget: int,
        seconds: float | None,
    ) -> set[str]:
        """Returns the names of the reactions that take part."""
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
    """Of each sort how many were not tried, of how many."""
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
        return schedule.parsed(only)
    except ValueError as error:
        raise DeclarationError(str(error)) from error


__all__ = ["Clock", "Crashed", "Findings", "Lab", "Ledger", "NeverTaken"]

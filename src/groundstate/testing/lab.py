"""The crash lab: a user's own app, killed at every crossing and started again, with the invariants asserted after each.

What databases do for themselves, for the handlers of an application: SQLite's crash tests and FoundationDB's simulation are where the
idea comes from. A run is deterministic: clock, dice, threads and outside are the lab's.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
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
            are given as `client`. Without it they are not run.

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
        budget: int = 100,
        seed: int | None = None,
        only: str | None = None,
    ) -> Findings:
        """Runs the app on these rows once for each place at which it can be cut, and asserts the invariants in each run.

        A clean run counts the crossings: each statement, each commit before and after, each hint, each call before, in and after, each
        find. Then the app dies at each in turn (where several leave the same behind, byte for byte, once for all of them), someone
        else's transaction comes between any two, `lab.clock` leaps as it was told, and each call meets each mood of the outside. Then
        mixtures are drawn by a seed: pairs of deaths, a lock lost alive, a second worker, the database put back to an earlier copy.

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
            DeclarationError: a call has no fake, or an argument has no meaning; with the cure.
        """
        __tracebackhide__ = True  # of pytest: what a test's author looks for is not in here
        app.check_declarations()
        self._check(app, rows, may_fail, budget)
        only = only or os.environ.get(REPEAT)
        one = None if only is None else _parsed(only)
        trial = self.trial(app, *rows, always=always, at_the_end=at_the_end, may_fail=may_fail)
        if one is not None:
            trial.findings.crossings = len(trial.run(one).crossings)
            return trial.findings
        trial.findings.seed = seed if seed is not None else random.SystemRandom().randint(1, 999_999)
        self._everywhere(trial, app, budget)
        return trial.findings

    def trial(
        self, app: App, *rows: object, always: Check | None = None, at_the_end: Check | None = None, may_fail: Sequence[str] = ()
    ) -> Trial:
        """A scratch database with these rows, on which schedules can be run one by one: what `crash_everywhere` is made of."""
        place = SqlitePlace(app) if self.postgres is None else PostgresPlace(app, self.postgres)
        self._places.append(place)
        place.fill(app, rows)
        around = Guard(strict=self.strict).watching
        cast = Cast(self._fakes, self._meanwhile, always, at_the_end, may_fail, around, self.clock)
        return Trial(app, place, cast)

    def _everywhere(self, trial: Trial, app: App, budget: int) -> None:
        """The clean run, then all singles, then as many mixtures."""
        __tracebackhide__ = True  # as above
        started = said = time.monotonic()
        stage = trial.clean()
        seen = explore.seen(stage, app, locks_rows=stage.place.locks_rows)
        trial.findings.deaths = len(seen.deaths)
        meanwhile = len(self._meanwhile)
        singles = list(explore.singles(seen, meanwhile))
        mixed: Iterator[Schedule] = islice(
            explore.mixtures(seen, meanwhile, random.Random(trial.findings.seed)),  # noqa: S311  # to be repeated is what it is for
            budget,
        )
        for number, one in enumerate(chain(singles, mixed), 1):
            trial.run(one)
            if time.monotonic() - said > SAYS_EVERY_S:
                said = time.monotonic()
                self._say(f"crash lab: {number} of {len(singles) + budget} runs, {said - started:.0f} s, seed {trial.findings.seed}")
        trial.findings.seconds = time.monotonic() - started
        missing = sorted(set(app.reactions) - trial.taken)
        if missing:
            raise NeverTaken(
                f"{', '.join(missing)}: never carried out in {trial.findings.runs} runs, so nothing was learned of it. Give rows for "
                "which it holds, or a lab.meanwhile that makes it hold"
            )

    # ---- what was given ------------------------------------------------------------------------------------------------------------
    def _check(self, app: App, rows: Sequence[object], may_fail: Sequence[str], budget: int) -> None:
        known = {one.spec for one in self._fakes}
        for spec in app.reactions.values():
            if spec.call is not None and spec.call not in known:
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
        unknown = sorted(set(may_fail) - set(app.reactions) - set(app.schedules))
        if unknown:
            raise DeclarationError(f"may_fail={unknown}: there is no such reaction; there are {', '.join(sorted(app.reactions))}")
        if budget < 0:
            raise DeclarationError(f"budget={budget}: the number of mixtures that are drawn is 0 or more")


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

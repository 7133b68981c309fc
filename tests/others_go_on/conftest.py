"""One record, call, condition, handler, hook or database misbehaves, and 100 others beside it are carried out.

`beside` is a fresh world on each store in turn. A test declares on it what misbehaves for the record ONE, then says `go_on(...)`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from inspect import iscoroutinefunction
from typing import Any

import pytest
from sqlalchemy import select

from groundstate import ExternalService, InDoubt, Retry
from groundstate.app.declared import databases_of
from groundstate.cli import pending, status, why
from groundstate.cli.actions import _open_for_person as acting
from groundstate.cli.common import StoreReader
from groundstate.engine.operate.action import Person
from groundstate.engine.operate.fleet_status import ReactionSeen
from groundstate.engine.operate.pending import Pending
from groundstate.engine.operate.why import Answer, Why
from groundstate.engine.sql import lock_waits
from tests.engine.kit import CALL_LIMIT, Order, World, ms, until

OTHERS = 100
ONE = 1  # the key of the one that misbehaves
RECEIPT = "receipt"
ONCE = Retry(times=1)  # so that what fails is held at once
MORE = Retry(times=3, first=ms(5), longest=ms(5))


class Beside(World):
    """OTHERS orders go from 'placed' to 'done' whatever the order ONE does, by a reaction that is named 'done'."""

    said: pytest.LogCaptureFixture
    redact: Any = None  # of the store
    kind: Any = Order  # whose records they are
    ones: Sequence[int] = (ONE,)  # the keys of those that misbehave

    def handled(self, handler: Any, *clauses: Any, retry: Retry = ONCE, **options: Any) -> None:
        """A reaction without a call: its handler is given each of the ones, and those that it leaves in peace are done."""

        def done(order: Any) -> None:
            if order.id in self.ones:
                handler(order)
            order.status = "done"

        self.app.on(self.kind, self.kind.status == "placed", *clauses, name="done", retry=retry, **options)(done)

    def called(
        self,
        call: Any,
        *,
        kind: Any = str,
        handler: Any = None,
        retry: Retry = ONCE,
        in_doubt: InDoubt | None = None,
        timeout: timedelta = CALL_LIMIT,
        service: ExternalService | None = None,
        **options: Any,
    ) -> Any:
        """A reaction with a call, sync or async as this function is, which is called for the order ONE alone. Returns the reaction.

        kind: of its outcome, of which the others have RECEIPT. handler: is given the outcome of ONE.
        """

        async def ask(order: Any) -> Any:
            return await call() if order.id == ONE else RECEIPT

        def ask_sync(order: Any) -> Any:
            return call() if order.id == ONE else RECEIPT

        made = ask if iscoroutinefunction(call) else ask_sync
        made.__annotations__["return"] = kind
        asked = (service or ExternalService("desk")).call(in_doubt=in_doubt or InDoubt.repeat(), retry=retry, timeout=timeout)(made)

        def done(order: Any, outcome: Any) -> None:
            if order.id == ONE and handler is not None:
                handler(outcome)
            order.status = "done"

        done.__annotations__["outcome"] = kind
        return self.app.on(self.kind, self.kind.status == "placed", name="done", call=asked, **options)(done)

    def go_on(self, reason: str, *, event: str, state: str = "held") -> None:
        """Carries out until the others are done and each of the ones is in this state, with its reason in `pending`, `status`, `why` and,
        once, in the log under this event.
        """
        self.placed()
        self.worker(redact=self.redact)
        self.until_done()
        until(lambda: self.states() == [state] * len(self.ones), self.attempts)
        self.listed(reason, state)
        self.told_once(reason, event)

    def placed(self) -> None:
        """All of them, beside those that are there."""
        if not self._there:
            self.there()
        with self.engine.connect() as connection:
            there = set(connection.scalars(select(self.kind.id)))
        self.add(*[self.kind(id=number) for number in [*self.ones, *self._others()] if number not in there])

    def _others(self) -> list[int]:
        return [number for number in range(1, OTHERS + len(self.ones) + 1) if number not in self.ones]

    def told_once(self, reason: str, event: str) -> None:
        """The log has one line of this event for each of the ones, with its reason."""
        lines = [line for line in self.said.records if getattr(line, "event", None) == event]
        found = sorted(int(getattr(line, "record", "0")) for line in lines)
        assert found == sorted(self.ones), [line.getMessage() for line in lines]
        assert all(reason in line.getMessage() for line in lines), [line.getMessage() for line in lines]

    def told(self, event: str) -> list[str]:
        """The lines of this event, each with its level before it."""
        lines = [line for line in self.said.records if getattr(line, "event", None) == event]
        return [f"{line.levelname} {line.getMessage()}" for line in lines]

    def until_done(self) -> None:
        """Until the others are."""
        until(lambda: self.done() >= set(self._others()), self.attempts)

    def done(self) -> set[int]:
        """The keys of those that are done."""
        with self.engine.connect() as connection:
            return set(connection.scalars(select(self.kind.id).where(self.kind.status == "done")))

    def listed(self, reason: str, state: str) -> None:
        """The ones are in the three reports, with their reason where they tell reasons."""
        report = self.pending()
        listed = {"held": report.held, "failed": report.failed, "doubt": report.in_doubt}[state]
        assert sorted((one.reaction, int(one.record)) for one in listed) == [("done", number) for number in sorted(self.ones)]
        assert [one for one in listed if reason not in f"{one.error} {one.why}"] == []
        assert self.status().attempts[state].count == len(self.ones)
        for number in {self.ones[0], self.ones[-1]}:
            attempt = self.why(number).attempts[0]
            assert reason in f"{attempt.error} {attempt.why}"

    # ---- the three reports ----------------------------------------------------------------------------------------------------
    def pending(self) -> Pending:
        return pending.read_pending(self.app, self.app.stores[0], shown=OTHERS)

    def status(self, name: str = "done") -> ReactionSeen:
        return {one.name: one for one in status.read_status(self.app, self.app.stores[0]).status.reactions}[name]

    def why(self, number: int = ONE, name: str = "done") -> Answer:
        """What is said of this record by this reaction."""
        return {one.reaction: one for one in self.why_of(self.kind.__tablename__, str(number)).answers}[name]

    def why_of(self, table: str, record: str) -> Why:
        ((_, said),) = why._explain_record(self.app, StoreReader(databases_of(self.app)), table, record)
        return said

    def person(self) -> AbstractContextManager[Person]:
        """Who settles."""
        return acting(self.app, self.app.stores[0], "ada")


@contextmanager
def a_world(database_url: Any, caplog: pytest.LogCaptureFixture, *bases: Any, kind: Any = Order) -> Iterator[Beside]:
    """A world whose one record will misbehave, of this kind."""
    caplog.set_level(logging.INFO, logger="groundstate")
    made = Beside(database_url, *bases)
    made.said, made.kind = caplog, kind
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def locks_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not when they are some seconds old."""
    really = lock_waits.find_locked_records

    def told(connection: Any, questions: Any, age: timedelta = timedelta(), key: Any = None) -> list[lock_waits.LockedRecord]:
        return really(connection, questions, age, key)

    monkeypatch.setattr(lock_waits, "find_locked_records", told)


@pytest.fixture
def beside(database_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Beside]:
    """Orders, on each store in turn."""
    with a_world(database_url, caplog) as made:
        yield made

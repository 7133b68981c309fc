"""The outside of one run: who plays it for each call, and how late a request may arrive and be seen. Decides nothing of what happens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState

from groundstate.engine.flight import Flight
from groundstate.rules.policy import MARGIN
from groundstate.rules.reaction import CallSpec
from groundstate.testing.ambient import Time
from groundstate.testing.provider import Effect, Fake

RETRIED_S = 15.0  # until a doubt that has become ripe has surely been looked at


class Outside:
    """finds_lag: a find sees an effect only when `settle_after` is over. leaps: the clock that deadlines are told by may be set."""

    def __init__(self, fakes: Sequence[Fake], time: Time, *, finds_lag: bool, leaps: bool = False) -> None:
        self._fakes = {fake.spec: fake for fake in fakes}
        self._time = time
        self._finds_lag = finds_lag
        self._leaps = leaps

    def fake_of(self, flight: Flight) -> Fake:
        """Who plays it for this flight."""
        return self._fakes[_call_of(flight)]

    def carry_out(self, flight: Flight, key: str, argument: Any) -> tuple[Effect[Any], bool]:
        """What this flight asks for. True where it was done now, and not before under the same key."""
        fake = self.fake_of(flight)
        before = len(fake.ledger.entries)
        effect = fake.do(flight.identity, key, argument, self._time.now_s, self._visible_s(flight))
        return effect, len(fake.ledger.entries) > before

    def last_s(self, flight: Flight) -> float:
        """The last moment at which its request may still arrive: `settle_after` past its deadline.

        Where that clock leaps and its worker dies, nobody can tell the deadline any more: then so long after its caller gave up, or died.
        """
        call = _call_of(flight)
        if self._leaps:
            return self._time.now_s + _settle_after(call).total_seconds() - 0.002
        boot_s, _ = flight.begun
        return boot_s + _arrives_within(call).total_seconds()

    def done(self) -> object:
        """All that was done and asked, each in order."""
        ledgers = [fake.ledger for fake in self._fakes.values()]
        effects = [
            (one.identity, one.key, _told(one.argument), one.answer, one.done_s, one.visible_s, one.taken, one.taken_in)
            for ledger in ledgers
            for one in ledger.entries
        ]
        return effects, [(len(ledger.entries), ledger.requests, ledger.asked) for ledger in ledgers]

    @property
    def longest_s(self) -> float:
        """Until each call that is in the air now has surely been settled, and made again where it was not done."""
        return max((_arrives_within(call).total_seconds() for call in self._fakes), default=60.0) + RETRIED_S

    def _visible_s(self, flight: Flight) -> float:
        """From when on a find sees it: at once, or as late as `settle_after` allows."""
        if not self._finds_lag or _call_of(flight).in_doubt.settle_after is None:
            return self._time.now_s
        return max(self._time.now_s, self.last_s(flight) + 0.001)


def _told(argument: Any) -> object:
    """A record by its values."""
    state: Any = inspect(argument, raiseerr=False)
    if not isinstance(state, InstanceState):
        return argument
    return sorted((name, value) for name, value in state.dict.items() if name != "_sa_instance_state")


def _call_of(flight: Flight) -> CallSpec:
    call = flight.question.spec.call
    assert call is not None  # noqa: S101  # only reactions with a call fly
    return call


def _arrives_within(call: CallSpec) -> timedelta:
    """How long after its begin a request of this call may arrive."""
    return call.timeout + MARGIN + _settle_after(call)


def _settle_after(call: CallSpec) -> timedelta:
    return call.timeout if call.in_doubt.settle_after is None else call.in_doubt.settle_after

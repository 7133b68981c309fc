"""The external services of one run: the fake provider of each call, and how late a request may arrive and an effect be seen."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState

from groundstate.engine.rows.in_flight import InFlightCall
from groundstate.rules.policy import MARGIN
from groundstate.rules.specs import CallSpec
from groundstate.testing.simulate.fake_environment import Time
from groundstate.testing.simulate.fake_provider import Effect, Fake

RETRIED_S = 15.0  # seconds: once an attempt in doubt may be looked up, a worker surely does so within this time


class ExternalService:
    """All external services of one run.

    lookups_lag: whether a lookup sees an effect only after `settle_after`.
    leaps: whether the clock by which deadlines are measured may be set.
    """

    def __init__(self, fakes: Sequence[Fake], time: Time, *, lookups_lag: bool, leaps: bool = False) -> None:
        self._fakes = {fake.spec: fake for fake in fakes}
        self._time = time
        self._finds_lag = lookups_lag
        self._leaps = leaps

    def fake_of(self, in_flight: InFlightCall) -> Fake:
        """Return the fake provider of this in-flight call."""
        return self._fakes[_call_of(in_flight)]

    def carry_out(self, in_flight: InFlightCall, key: str, argument: Any) -> tuple[Effect[Any], bool]:
        """Carry out the request of this in-flight call.

        Return True with the effect where it was done now, and False where the key was known.
        """
        fake = self.fake_of(in_flight)
        before = len(fake.ledger.entries)
        effect = fake.do(in_flight.identity, key, argument, self._time.now_s, self._visible_s(in_flight))
        return effect, len(fake.ledger.entries) > before

    def last_s(self, in_flight: InFlightCall) -> float:
        """Return the last time, as `now_s`, at which the request of this call may still arrive: `settle_after` past its deadline.

        Where the clock leaps and the worker dies, the deadline is lost; then it is `settle_after` past now, when its caller gave up or
        died.
        """
        call = _call_of(in_flight)
        if self._leaps:
            return self._time.now_s + _settle_after(call).total_seconds() - 0.002
        boot_s, _ = in_flight.begun
        return boot_s + _arrives_within(call).total_seconds()

    def done(self) -> object:
        """Return all effects in order, and the counts of effects, requests and lookups, of every fake provider."""
        ledgers = [fake.ledger for fake in self._fakes.values()]
        effects = [
            (one.identity, one.key, _told(one.argument), one.answer, one.done_s, one.visible_s, one.taken, one.taken_in)
            for ledger in ledgers
            for one in ledger.entries
        ]
        return effects, [(len(ledger.entries), ledger.requests, ledger.asked) for ledger in ledgers]

    @property
    def longest_s(self) -> float:
        """Seconds until each call that is in flight now has surely been settled, and repeated where it was not done."""
        return max((_arrives_within(call).total_seconds() for call in self._fakes), default=60.0) + RETRIED_S

    def _visible_s(self, in_flight: InFlightCall) -> float:
        """Return when a lookup begins to see the effect, as `now_s`: at once, or as late as `settle_after` allows."""
        if not self._finds_lag or _call_of(in_flight).in_doubt.settle_after is None:
            return self._time.now_s
        return max(self._time.now_s, self.last_s(in_flight) + 0.001)


def _told(argument: Any) -> object:
    """Return a record as a list of its values, and any other argument unchanged."""
    state: Any = inspect(argument, raiseerr=False)
    if not isinstance(state, InstanceState):
        return argument
    return sorted((name, value) for name, value in state.dict.items() if name != "_sa_instance_state")


def _call_of(in_flight: InFlightCall) -> CallSpec:
    call = in_flight.query.spec.call
    assert call is not None  # noqa: S101  # only reactions with a call have in-flight calls
    return call


def _arrives_within(call: CallSpec) -> timedelta:
    """Return how long after its begin a request of this call may arrive."""
    return call.timeout + MARGIN + _settle_after(call)


def _settle_after(call: CallSpec) -> timedelta:
    return call.timeout if call.in_doubt.settle_after is None else call.in_doubt.settle_after

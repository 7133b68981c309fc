"""The external services of one run: the fake provider of each call, when requests arrive there, and when lookups see their effects."""

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

RETRIED_S = 15.0  # once an attempt in doubt may be looked up, a worker surely does so within this many seconds


class ExternalService:
    """All external services of one run.

    lookups_lag: whether a lookup sees an effect (what a call did) only after `settle_after`.
    leaps: whether the time of day leaps in this run.
    """

    def __init__(self, fakes: Sequence[Fake], time: Time, *, lookups_lag: bool, leaps: bool = False) -> None:
        self._fakes = {fake.spec: fake for fake in fakes}
        self._time = time
        self._finds_lag = lookups_lag
        self._leaps = leaps

    def fake_of(self, in_flight: InFlightCall) -> Fake:
        """Return the fake provider of this in-flight call."""
        return self._fakes[_declared_call(in_flight)]

    def carry_out_request(self, in_flight: InFlightCall, key: str, argument: Any) -> tuple[Effect[Any], bool]:
        """Carry out the request of this call. Return a pair: its effect (what the provider did), and whether the effect is new.

        If the provider remembered the key, nothing new is done, and the earlier effect is returned.
        """
        fake = self.fake_of(in_flight)
        before = len(fake.ledger.entries)
        effect = fake.carry_out(in_flight.identity, key, argument, self._time.now_s, self._visible_from_s(in_flight))
        return effect, len(fake.ledger.entries) > before

    def latest_arrival_s(self, in_flight: InFlightCall) -> float:
        """Return the last moment at which the request of this call may still arrive, `settle_after` past its deadline, in seconds since the
        run began.

        If the clock leaps and the worker dies, nobody knows the deadline any more. So in a run with leaps, return a
        moment just before `settle_after` from now.
        """
        call = _declared_call(in_flight)
        if self._leaps:
            return self._time.now_s + _settle_after(call).total_seconds() - 0.002
        boot_s, _ = in_flight.begun
        return boot_s + _longest_arrival_time(call).total_seconds()

    def effects_and_counts(self) -> object:
        """Return a pair: all effects of all fake providers in order, and for each provider its numbers of effects, requests and lookups."""
        ledgers = [fake.ledger for fake in self._fakes.values()]
        effects = [
            (one.identity, one.key, _comparable_argument(one.argument), one.answer, one.done_s, one.visible_s, one.taken, one.taken_in)
            for ledger in ledgers
            for one in ledger.entries
        ]
        return effects, [(len(ledger.entries), ledger.requests, ledger.asked) for ledger in ledgers]

    @property
    def surely_settled_within_s(self) -> float:
        """Seconds after which every call that is in flight now is surely settled: its outcome is known, or the call was repeated because it
        had not been carried out.
        """
        return max((_longest_arrival_time(call).total_seconds() for call in self._fakes), default=60.0) + RETRIED_S

    def _visible_from_s(self, in_flight: InFlightCall) -> float:
        """Return the time from which on a lookup sees the effect of this call, in seconds since the run began. It is now, or just after
        the last moment that `settle_after` allows.
        """
        if not self._finds_lag or _declared_call(in_flight).in_doubt.settle_after is None:
            return self._time.now_s
        return max(self._time.now_s, self.latest_arrival_s(in_flight) + 0.001)


def _comparable_argument(argument: Any) -> object:
    """Return the argument as it is compared: a record as a sorted list of its attributes with values, and any other argument unchanged."""
    state: Any = inspect(argument, raiseerr=False)
    if not isinstance(state, InstanceState):
        return argument
    return sorted((name, value) for name, value in state.dict.items() if name != "_sa_instance_state")


def _declared_call(in_flight: InFlightCall) -> CallSpec:
    call = in_flight.query.spec.call
    assert call is not None  # noqa: S101  # only reactions with a call have calls in flight
    return call


def _longest_arrival_time(call: CallSpec) -> timedelta:
    """Return the longest time between the beginning of this call and the arrival of its request."""
    return call.timeout + MARGIN + _settle_after(call)


def _settle_after(call: CallSpec) -> timedelta:
    return call.timeout if call.in_doubt.settle_after is None else call.in_doubt.settle_after

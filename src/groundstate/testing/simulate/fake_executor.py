"""The call executor of a worker in the lab. Each call in flight is a task of the run, which ends in a call result.

As in production, the engine decides which call may be sent and what an answer means. What happens at the service is up to the fake
provider.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from groundstate.clock import Clock
from groundstate.engine.call import call_many
from groundstate.engine.call.executor import CallExecutor
from groundstate.engine.rows.in_flight import CallResult, InFlightCall, NotSent, Returned, Unclear
from groundstate.engine.sql import readonly_record
from groundstate.engine.sql.call_write_guard import outside_of_call
from groundstate.rules.policy import MARGIN
from groundstate.testing.simulate import time_outs
from groundstate.testing.simulate.cooperative_threads import DeadThreadExit
from groundstate.testing.simulate.crash_plan import Schedule
from groundstate.testing.simulate.fake_environment import Time
from groundstate.testing.simulate.fake_provider import Client, Effect, Mood
from groundstate.testing.simulate.fake_service import ExternalService
from groundstate.testing.simulate.sim_process import Process
from groundstate.values.answers import Absent, NotDone, Throttled
from groundstate.values.errors import StateRefusedError


class CallStage(Protocol):
    """What the call executor of a worker needs of the run."""

    time: Time
    schedule: Schedule
    calls: int
    service: ExternalService
    fence: time_outs.Fence

    @property
    def process_being_built(self) -> Process:
        """The process that is being built, to which a new call executor belongs."""

    def report_crossing(self, process: Process, kind: str, what: str, *, inside: bool = False) -> bool:
        """Report that this process reaches a crossing, at which it may be killed; return whether it is dead now."""

    def add_task(self, process: Process, run: Callable[[], object], at_s: float = 0.0, *, outlives: bool = False) -> None:
        """Add a task, which is run `at_s` seconds after the run began. outlives: whether it is run even if the process is dead by
        then.
        """

    def on_calls_leave(self, in_flights: Sequence[InFlightCall]) -> None:
        """Report that the worker has handed over these calls, so that their requests may arrive at the service from now on."""

    def carry_out_request(self, in_flight: InFlightCall, key: str, argument: Any) -> Effect[Any]:
        """Let the external service carry out the request of this call, and return what it did."""

    def on_outcome_delivered(self, process: Process, effect: Effect[Any]) -> None:
        """Report that the process has received the outcome of what the service did (the effect)."""

    def add_to_story(self, words: str) -> None:
        """Add a line to the log of the run, which a failure prints."""


class LabCallExecutor(CallExecutor):
    """Stands in for the engine's CallExecutor: it hands each call to the run (the stage) as a task."""

    def __init__(self, stage: CallStage, say: Callable[[Sequence[CallResult]], None], sound: Callable[[int], bool], clock: Clock) -> None:
        super().__init__(say, sound, clock)
        self._stage = stage
        self._process = stage.process_being_built
        self._air: set[InFlightCall] = set()

    def start(self, in_flights: Sequence[InFlightCall]) -> None:
        self._stage.on_calls_leave(
            [in_flight for in_flight in in_flights if not in_flight.is_lookup and self._may_be_sent(in_flight)]
        )  # a lookup changes nothing at the service, so it need not be reported
        alone = [[in_flight] for in_flight in in_flights if call_many.declared_call_many(in_flight) is None]
        for group in [*alone, *(group for _, group in call_many.group_calls_for_call_many(in_flights))]:
            self._stage.add_task(self._process, partial(self._start_group, group))

    def cancel(self, in_flights: Sequence[InFlightCall]) -> None:
        for in_flight in in_flights:
            if in_flight in self._air:
                self._air.discard(in_flight)
                self._report_results(Unclear(in_flight, "CancelledError"))

    def warn_if_loop_blocked(self) -> None:
        """Do nothing: the lab has no event loop that could be blocked."""

    def stop(self, timeout_s: float) -> None:  # the signature is that of CallExecutor
        """Do nothing: this executor has no threads."""

    # ---- tasks -----------------------------------------------------------------------------------------------------------------
    def _start_group(self, in_flights: Sequence[InFlightCall]) -> None:
        stage, first = self._stage, in_flights[0]
        if stage.report_crossing(self._process, "lookup" if first.is_lookup else "call", describe_call(first)):
            return
        if self._process.frozen_until_s > stage.time.now_s:
            stage.add_task(self._process, partial(self._send_group, in_flights))
        else:
            self._send_group(in_flights)

    def _send_group(self, in_flights: Sequence[InFlightCall]) -> None:
        going = [in_flight for in_flight in in_flights if self._may_be_sent(in_flight)]
        self._report_results(*[NotSent(in_flight) for in_flight in in_flights if in_flight not in going])
        for in_flight in going:
            if self._process.dead:
                return  # the process was killed during a call for many records
            self._air.add(in_flight)
            through = self._stage.service.fake_of(in_flight).through
            if through is not None:
                self._run_user_function(in_flight, through)
            elif in_flight.is_lookup:
                self._look_up(in_flight)
            else:
                self._make_call(in_flight)

    def _look_up(self, in_flight: InFlightCall) -> None:
        stage = self._stage
        effect = stage.service.fake_of(in_flight).look_up(str(in_flight.key), stage.time.now_s)
        stage.add_to_story(f"{self._process.name} looks up {describe_call(in_flight)}: {'absent' if effect is None else effect.answer!r}")
        self._deliver_result(in_flight, self._result_of_returned_value(in_flight, Absent() if effect is None else effect.answer), "found")

    def _make_call(self, in_flight: InFlightCall) -> None:
        try:
            effect = self._request_effect(in_flight, str(in_flight.key), in_flight.argument)
        except DeadThreadExit:
            return
        except TimeoutError as error:
            self._deliver_answer(in_flight, self._result_after_time_out(in_flight, error), None)
        except Exception as error:  # noqa: BLE001  # the engine, too, catches every exception of a user's function
            self._deliver_result(in_flight, self._result_of_exception(in_flight, error), "answered")
        else:
            self._deliver_answer(in_flight, self._result_of_returned_value(in_flight, effect.answer), effect)

    def _result_after_time_out(self, in_flight: InFlightCall, error: TimeoutError) -> CallResult:
        """Return the call result that the engine gets after a time-out.

        If the user's own call turns a time-out into a definite result, return that result. Otherwise return the result for a TimeoutError.
        """
        call = in_flight.query.spec.call
        assert call is not None  # noqa: S101  # only reactions with a call have calls in flight

        def run(client: Any) -> Any:
            return call.function(in_flight.argument, **self._supplies_for_call(in_flight, client))

        with self._write_guard(in_flight):
            ends = list(time_outs.results_after_time_outs(call, run, str(in_flight.key), self._stage.fence))
        for end in ends:
            word = (
                self._result_of_returned_value(in_flight, end.returned)
                if end.raised is None
                else self._result_of_exception(in_flight, end.raised)
            )
            if not isinstance(word, Unclear):
                said = f"returns {end.returned!r}" if end.raised is None else f"raises {type(end.raised).__name__}"
                self._stage.add_to_story(f"{self._process.name} meets {end.met} in {call.function.plain_name}, which {said}")
                return word
        return self._result_of_exception(in_flight, error)

    def _run_user_function(self, in_flight: InFlightCall, through: Callable[[Client], Any]) -> None:
        """Run the user's call or lookup with a client of the fake provider."""
        stage, fake = self._stage, self._stage.service.fake_of(in_flight)
        done: list[Effect[Any]] = []

        def request(key: str, argument: Any) -> Any:
            with outside_of_call():  # a write by the fake provider must not count as a write by the call
                done.append(self._request_effect(in_flight, key, argument))
            return done[-1].answer

        def seen() -> list[Effect[Any]]:
            return [one for one in fake.ledger.entries if one.visible_s <= stage.time.now_s]

        function, given, client = (
            self._user_function(in_flight),
            readonly_record.copy_editable_values(in_flight.argument),
            through(Client(request, seen)),
        )
        fake.ledger.asked += in_flight.is_lookup
        try:
            with self._write_guard(in_flight):
                answer = function(in_flight.argument, **self._supplies_for_call(in_flight, client))
                if function.is_async:
                    answer = asyncio.run(answer)
            if edited := given.edited_paths() if given is not None else ():
                raise StateRefusedError(
                    readonly_record.in_place_edit_message(f"the {'lookup' if in_flight.is_lookup else 'call'} {function.name}", edited)
                )
            word = self._result_of_returned_value(in_flight, answer)
        except DeadThreadExit:
            return
        except StateRefusedError:
            raise  # the function wrote to the database: an error that its author must see
        except Exception as error:  # noqa: BLE001  # the engine, too, catches every exception of a user's function
            word = self._result_of_exception(in_flight, error)
        if in_flight.is_lookup:
            stage.add_to_story(f"{self._process.name} looks up {describe_call(in_flight)}: {type(word).__name__}")
            self._deliver_result(in_flight, word, "found")
        else:
            self._deliver_answer(in_flight, word, done[-1] if done and isinstance(word, Returned) else None)

    def _request_effect(self, in_flight: InFlightCall, key: str, argument: Any) -> Effect[Any]:
        """Send one request to the fake provider, let it end as the schedule says, and return what the provider did (the effect).

        Raises what a client would raise, or DeadThreadExit if no answer comes back.
        """
        stage = self._stage
        stage.service.fake_of(in_flight).ledger.requests += 1
        stage.calls += 1
        mood = dict(stage.schedule.moods).get(stage.calls, Mood.DONE)
        stage.add_to_story(f"{self._process.name} calls {describe_call(in_flight)} (call {stage.calls}: {mood.value})")
        match mood:
            case Mood.REFUSED:
                raise NotDone("the lab refuses it")
            case Mood.BUSY:
                raise Throttled(MARGIN)
            case Mood.LOST:
                raise ConnectionError("the lab lost it")
            case Mood.LATE:
                stage.add_task(
                    self._process,
                    partial(stage.carry_out_request, in_flight, key, argument),
                    stage.service.latest_arrival_s(in_flight),
                    outlives=True,
                )
                raise TimeoutError
            case Mood.STUCK if not self._user_function(in_flight).is_async:
                in_flight.ends_s = stage.time.monotonic_s + in_flight.timeout.total_seconds()
                stage.add_task(
                    self._process,
                    partial(self._send_late_request, in_flight, key, argument),
                    stage.time.now_s + stage.service.surely_settled_within_s,
                )
                raise DeadThreadExit
        effect = stage.carry_out_request(in_flight, key, argument)
        if mood is Mood.LATE_ANSWER and not self._user_function(in_flight).is_async:
            in_flight.ends_s = stage.time.monotonic_s + in_flight.timeout.total_seconds()
            return effect
        if stage.report_crossing(self._process, "done", describe_call(in_flight)):
            raise DeadThreadExit
        if mood is not Mood.DONE:
            raise TimeoutError
        return effect

    def _deliver_answer(self, in_flight: InFlightCall, word: CallResult, effect: Effect[Any] | None) -> None:
        if in_flight.ends_s is None:
            self._deliver_result(in_flight, word, "answered", effect)
        else:
            at_s = self._stage.time.run_time_of_monotonic_s(in_flight.ends_s) + 1
            self._stage.add_task(self._process, partial(self._deliver_late_result, in_flight, word, effect), at_s)

    def _send_late_request(self, in_flight: InFlightCall, key: str, argument: Any) -> None:
        """Send the request of a call whose thread hung until after the call's deadline."""
        effect = self._stage.carry_out_request(in_flight, key, argument)
        if not self._stage.report_crossing(self._process, "done", describe_call(in_flight)):
            self._deliver_late_result(in_flight, self._result_of_returned_value(in_flight, effect.answer), effect)

    def _deliver_late_result(self, in_flight: InFlightCall, word: CallResult, effect: Effect[Any] | None) -> None:
        self._deliver_result(in_flight, self._as_result_after_time_limit(word), "answered", effect)

    def _deliver_result(self, in_flight: InFlightCall, word: CallResult, kind: str, effect: Effect[Any] | None = None) -> None:
        if in_flight in self._air:
            self._air.discard(in_flight)
            self._report_results(word)
            if effect is not None:
                self._stage.on_outcome_delivered(self._process, effect)
            self._stage.report_crossing(self._process, kind, describe_call(in_flight))


def describe_call(in_flight: InFlightCall) -> str:
    """Return one text with the reaction, record and occurrence (which round of the record) of the call."""
    _, reaction, record, occurrence = in_flight.identity
    return f"{reaction} of {record}" + (f" ({occurrence})" if occurrence else "")

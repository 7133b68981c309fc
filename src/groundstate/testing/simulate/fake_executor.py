"""The calls of a worker in the lab: each in-flight call is a step of the run and ends in a call result.

The engine itself decides what may be sent and what an answer means; the fake provider decides what happens at the external service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from groundstate.engine.call import call_many
from groundstate.engine.call.executor import CallExecutor
from groundstate.engine.rows.in_flight import CallResult, InFlightCall, NotSent, Returned, Unclear
from groundstate.engine.sql import readonly_record
from groundstate.engine.sql.call_write_guard import service
from groundstate.rules.policy import MARGIN
from groundstate.testing.simulate import time_outs
from groundstate.testing.simulate.cooperative_threads import Buried
from groundstate.testing.simulate.crash_plan import Schedule
from groundstate.testing.simulate.fake_environment import Time
from groundstate.testing.simulate.fake_provider import Client, Effect, Mood
from groundstate.testing.simulate.fake_service import ExternalService
from groundstate.testing.simulate.sim_process import Process
from groundstate.values.answers import Absent, NotDone, Throttled
from groundstate.values.errors import StateRefusedError


class CallsInAir(Protocol):
    """The interface of the run's stage that the callers of its workers use."""

    time: Time
    schedule: Schedule
    calls: int
    service: ExternalService
    fence: time_outs.Fence

    @property
    def building(self) -> Process:
        """The process that is being built."""

    def cross(self, process: Process, kind: str, what: str, *, inside: bool = False) -> bool:
        """Report that a crossing is reached; return True where the process is dead now."""

    def task(self, process: Process, run: Callable[[], object], at_s: float = 0.0, *, outlives: bool = False) -> None:
        """Add a step of a call that is carried out later."""

    def leave(self, in_flights: Sequence[InFlightCall]) -> None:
        """Report that these in-flight calls leave the worker's thread."""

    def arrives(self, in_flight: InFlightCall, key: str, argument: Any) -> Effect[Any]:
        """Let the external service carry out the request of this in-flight call."""

    def brought(self, process: Process, effect: Effect[Any]) -> None:
        """Report that the outcome of this effect has come back to the process."""

    def tell_story(self, words: str) -> None:
        """Add a line to the story of the run."""


class LabCaller(CallExecutor):
    """Stands in for the engine's Caller: it makes no call itself, but hands each in-flight call to the stage as a step."""

    def __init__(self, stage: CallsInAir, say: Callable[[Sequence[CallResult]], None], sound: Callable[[int], bool]) -> None:
        super().__init__(say, sound)
        self._stage = stage
        self._process = stage.building
        self._air: set[InFlightCall] = set()

    def start(self, in_flights: Sequence[InFlightCall]) -> None:
        self._stage.leave(
            [in_flight for in_flight in in_flights if not in_flight.is_lookup and self._may_go(in_flight)]
        )  # a lookup has no effect, so it need not be reported
        alone = [[in_flight] for in_flight in in_flights if call_many.call_for_many(in_flight) is None]
        for group in [*alone, *(group for _, group in call_many.groups_for_many(in_flights))]:
            self._stage.task(self._process, partial(self._send, group))

    def cancel(self, in_flights: Sequence[InFlightCall]) -> None:
        for in_flight in in_flights:
            if in_flight in self._air:
                self._air.discard(in_flight)
                self._back(Unclear(in_flight, "CancelledError"))

    def watch(self) -> None:
        """Do nothing: the lab has no event loop that could be blocked."""

    def stop(self, timeout_s: float) -> None:  # the signature of Caller
        """Do nothing: no thread of this caller runs by itself."""

    # ---- steps -----------------------------------------------------------------------------------------------------------------
    def _send(self, in_flights: Sequence[InFlightCall]) -> None:
        stage, first = self._stage, in_flights[0]
        if stage.cross(self._process, "lookup" if first.is_lookup else "call", told(first)):
            return
        if self._process.frozen_until_s > stage.time.now_s:
            stage.task(self._process, partial(self._go, in_flights))
        else:
            self._go(in_flights)

    def _go(self, in_flights: Sequence[InFlightCall]) -> None:
        going = [in_flight for in_flight in in_flights if self._may_go(in_flight)]
        self._back(*[NotSent(in_flight) for in_flight in in_flights if in_flight not in going])
        for in_flight in going:
            if self._process.dead:
                return  # the request for many records was cut in its middle
            self._air.add(in_flight)
            through = self._stage.service.fake_of(in_flight).through
            if through is not None:
                self._by_the_users_own(in_flight, through)
            elif in_flight.is_lookup:
                self._ask(in_flight)
            else:
                self._call(in_flight)

    def _ask(self, in_flight: InFlightCall) -> None:
        stage = self._stage
        effect = stage.service.fake_of(in_flight).find(str(in_flight.key), stage.time.now_s)
        stage.tell_story(f"{self._process.name} asks what became of {told(in_flight)}: {'absent' if effect is None else effect.answer!r}")
        self._bring(in_flight, self._answered(in_flight, Absent() if effect is None else effect.answer), "found")

    def _call(self, in_flight: InFlightCall) -> None:
        try:
            effect = self._request(in_flight, str(in_flight.key), in_flight.argument)
        except Buried:
            return
        except TimeoutError as error:
            self._answer(in_flight, self._timed_out(in_flight, error), None)
        except Exception as error:  # noqa: BLE001  # the engine too catches whatever a user's function raises
            self._bring(in_flight, self._raised(in_flight, error), "answered")
        else:
            self._answer(in_flight, self._answered(in_flight, effect.answer), effect)

    def _timed_out(self, in_flight: InFlightCall, error: TimeoutError) -> CallResult:
        """Return the call result that the engine gets after a time-out.

        If the user's own call turns the time-out into a definite result, it is that; otherwise it is the result of a plain TimeoutError.
        """
        call = in_flight.query.spec.call
        assert call is not None  # noqa: S101  # only reactions with a call have in-flight calls

        def run(client: Any) -> Any:
            return call.function(in_flight.argument, **self._supplies(in_flight, client))

        with self._inside(in_flight):
            ends = list(time_outs.taken_by(call, run, str(in_flight.key), self._stage.fence))
        for end in ends:
            word = self._answered(in_flight, end.returned) if end.raised is None else self._raised(in_flight, end.raised)
            if not isinstance(word, Unclear):
                said = f"returns {end.returned!r}" if end.raised is None else f"raises {type(end.raised).__name__}"
                self._stage.tell_story(f"{self._process.name} meets {end.met} in {call.function.plain_name}, which {said}")
                return word
        return self._raised(in_flight, error)

    def _by_the_users_own(self, in_flight: InFlightCall, through: Callable[[Client], Any]) -> None:
        """Run the function that the user wrote, with a client that leads to the fake provider."""
        stage, fake = self._stage, self._stage.service.fake_of(in_flight)
        done: list[Effect[Any]] = []

        def request(key: str, argument: Any) -> Any:
            with service():  # what other code does meanwhile is not an action of the call
                done.append(self._request(in_flight, key, argument))
            return done[-1].answer

        def seen() -> list[Effect[Any]]:
            return [one for one in fake.ledger.entries if one.visible_s <= stage.time.now_s]

        function, given, client = (
            self._function(in_flight),
            readonly_record.copy_editable_values(in_flight.argument),
            through(Client(request, seen)),
        )
        fake.ledger.asked += in_flight.is_lookup
        try:
            with self._inside(in_flight):
                answer = function(in_flight.argument, **self._supplies(in_flight, client))
                if function.is_async:
                    answer = asyncio.run(answer)
            if edited := given.edited() if given is not None else ():
                raise StateRefusedError(
                    readonly_record.in_place_edit_message(f"the {'lookup' if in_flight.is_lookup else 'call'} {function.name}", edited)
                )
            word = self._answered(in_flight, answer)
        except Buried:
            return
        except StateRefusedError:
            raise  # The function wrote to the database: that is no outcome of a call, but an error that its author must see.
        except Exception as error:  # noqa: BLE001  # the engine catches it in the same way
            word = self._raised(in_flight, error)
        if in_flight.is_lookup:
            stage.tell_story(f"{self._process.name} asks what became of {told(in_flight)}: {type(word).__name__}")
            self._bring(in_flight, word, "found")
        else:
            self._answer(in_flight, word, done[-1] if done and isinstance(word, Returned) else None)

    def _request(self, in_flight: InFlightCall, key: str, argument: Any) -> Effect[Any]:
        """Send one request to the external service and let it end as the schedule says.

        Raises what a client would raise, or Buried where no answer comes back.
        """
        stage = self._stage
        stage.service.fake_of(in_flight).ledger.requests += 1
        stage.calls += 1
        mood = dict(stage.schedule.moods).get(stage.calls, Mood.DONE)
        stage.tell_story(f"{self._process.name} calls {told(in_flight)} (call {stage.calls}: {mood.value})")
        match mood:
            case Mood.REFUSED:
                raise NotDone("the lab refuses it")
            case Mood.BUSY:
                raise Throttled(MARGIN)
            case Mood.LOST:
                raise ConnectionError("the lab lost it")
            case Mood.LATE:
                stage.task(self._process, partial(stage.arrives, in_flight, key, argument), stage.service.last_s(in_flight), outlives=True)
                raise TimeoutError
            case Mood.STUCK if not self._function(in_flight).is_async:
                in_flight.ends_s = stage.time.awake_s + in_flight.timeout.total_seconds()
                stage.task(
                    self._process, partial(self._send_after_all, in_flight, key, argument), stage.time.now_s + stage.service.longest_s
                )
                raise Buried
        effect = stage.arrives(in_flight, key, argument)
        if mood is Mood.LATE_ANSWER and not self._function(in_flight).is_async:
            in_flight.ends_s = stage.time.awake_s + in_flight.timeout.total_seconds()
            return effect
        if stage.cross(self._process, "done", told(in_flight)):
            raise Buried
        if mood is not Mood.DONE:
            raise TimeoutError
        return effect

    def _answer(self, in_flight: InFlightCall, word: CallResult, effect: Effect[Any] | None) -> None:
        if in_flight.ends_s is None:
            self._bring(in_flight, word, "answered", effect)
        else:
            at_s = self._stage.time.real_s(in_flight.ends_s) + 1
            self._stage.task(self._process, partial(self._bring_late, in_flight, word, effect), at_s)

    def _send_after_all(self, in_flight: InFlightCall, key: str, argument: Any) -> None:
        """Send the request of a thread that hung until after its deadline."""
        effect = self._stage.arrives(in_flight, key, argument)
        if not self._stage.cross(self._process, "done", told(in_flight)):
            self._bring_late(in_flight, self._answered(in_flight, effect.answer), effect)

    def _bring_late(self, in_flight: InFlightCall, word: CallResult, effect: Effect[Any] | None) -> None:
        self._bring(in_flight, self._after_giving_up(word), "answered", effect)

    def _bring(self, in_flight: InFlightCall, word: CallResult, kind: str, effect: Effect[Any] | None = None) -> None:
        if in_flight in self._air:
            self._air.discard(in_flight)
            self._back(word)
            if effect is not None:
                self._stage.brought(self._process, effect)
            self._stage.cross(self._process, kind, told(in_flight))


def told(in_flight: InFlightCall) -> str:
    """Return the reaction, record and occurrence of the call as text."""
    _, reaction, record, occurrence = in_flight.identity
    return f"{reaction} of {record}" + (f" ({occurrence})" if occurrence else "")

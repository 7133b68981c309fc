"""The calls of a worker as the lab makes them: each flight is a step of the run, and ends in a word. Knows no databases.

What may go out and what an answer means is the engine's own; what happens outside is the fake's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from groundstate.engine import many, snapshot
from groundstate.engine.calling import Caller
from groundstate.engine.flight import Flight, NotSent, Returned, Unclear, Word
from groundstate.engine.inside_call import outside
from groundstate.rules.policy import MARGIN
from groundstate.testing import time_outs
from groundstate.testing.actors import Buried
from groundstate.testing.ambient import Time
from groundstate.testing.outside import Outside
from groundstate.testing.process import Process
from groundstate.testing.provider import Client, Effect, Mood
from groundstate.testing.schedule import Schedule
from groundstate.values.answers import Absent, Busy, NotDone
from groundstate.values.errors import StateRefused


class Air(Protocol):
    """Through which calls go: the run, as its callers see it."""

    time: Time
    schedule: Schedule
    calls: int
    outside: Outside
    fence: time_outs.Fence

    @property
    def building(self) -> Process:
        """The process that is being made."""

    def cross(self, process: Process, kind: str, what: str, *, inside: bool = False) -> bool:
        """A crossing is reached. True where the process is dead now."""

    def task(self, process: Process, run: Callable[[], object], at_s: float = 0.0, *, outlives: bool = False) -> None:
        """A step that is still to come."""

    def leave(self, flights: Sequence[Flight]) -> None:
        """These leave the worker's thread."""

    def arrives(self, flight: Flight, key: str, argument: Any) -> Effect[Any]:
        """The request is carried out by the outside."""

    def brought(self, process: Process, effect: Effect[Any]) -> None:
        """The outcome of this effect has come back."""

    def tell_story(self, words: str) -> None:
        """A line of what happened."""


class LabCaller(Caller):
    """Makes no call by itself: gives each flight to the stage. What may go out and what an answer means is the engine's own."""

    def __init__(self, stage: Air, say: Callable[[Sequence[Word]], None], sound: Callable[[int], bool]) -> None:
        super().__init__(say, sound)
        self._stage = stage
        self._process = stage.building
        self._air: set[Flight] = set()

    def start(self, flights: Sequence[Flight]) -> None:
        self._stage.leave([flight for flight in flights if not flight.is_find and self._may_go(flight)])  # a find acts on nothing
        alone = [[flight] for flight in flights if many.call_for_many(flight) is None]
        for group in [*alone, *(group for _, group in many.groups_for_many(flights))]:
            self._stage.task(self._process, partial(self._send, group))

    def cancel(self, flights: Sequence[Flight]) -> None:
        for flight in flights:
            if flight in self._air:
                self._air.discard(flight)
                self._back(Unclear(flight, "CancelledError"))

    def watch(self) -> None:
        """There is no loop that could be blocked."""

    def stop(self, timeout_s: float) -> None:  # the caller's
        """Nothing of it runs by itself."""

    # ---- steps -----------------------------------------------------------------------------------------------------------------
    def _send(self, flights: Sequence[Flight]) -> None:
        stage, first = self._stage, flights[0]
        if stage.cross(self._process, "find" if first.is_find else "call", told(first)):
            return
        if self._process.frozen_until_s > stage.time.now_s:
            stage.task(self._process, partial(self._go, flights))
        else:
            self._go(flights)

    def _go(self, flights: Sequence[Flight]) -> None:
        going = [flight for flight in flights if self._may_go(flight)]
        self._back(*[NotSent(flight) for flight in flights if flight not in going])
        for flight in going:
            if self._process.dead:
                return  # the request for many was cut in its middle
            self._air.add(flight)
            through = self._stage.outside.fake_of(flight).through
            if through is not None:
                self._by_the_users_own(flight, through)
            elif flight.is_find:
                self._ask(flight)
            else:
                self._call(flight)

    def _ask(self, flight: Flight) -> None:
        stage = self._stage
        effect = stage.outside.fake_of(flight).find(str(flight.key), stage.time.now_s)
        stage.tell_story(f"{self._process.name} asks what became of {told(flight)}: {'absent' if effect is None else effect.answer!r}")
        self._bring(flight, self._answered(flight, Absent() if effect is None else effect.answer), "found")

    def _call(self, flight: Flight) -> None:
        try:
            effect = self._request(flight, str(flight.key), flight.argument)
        except Buried:
            return
        except TimeoutError as error:
            self._answer(flight, self._timed_out(flight, error), None)
        except Exception as error:  # noqa: BLE001  # as the engine takes it from a user's function
            self._bring(flight, self._raised(flight, error), "answered")
        else:
            self._answer(flight, self._answered(flight, effect.answer), effect)

    def _timed_out(self, flight: Flight, error: TimeoutError) -> Word:
        """What the engine hears of it: from the user's own call, where that takes a time-out for anything else than a doubt."""
        call = flight.question.spec.call
        assert call is not None  # noqa: S101  # only reactions with a call fly

        def run(client: Any) -> Any:
            return call.function(flight.argument, **self._supplies(flight, client))

        with self._inside(flight):
            ends = list(time_outs.taken_by(call, run, str(flight.key), self._stage.fence))
        for end in ends:
            word = self._answered(flight, end.returned) if end.raised is None else self._raised(flight, end.raised)
            if not isinstance(word, Unclear):
                said = f"returns {end.returned!r}" if end.raised is None else f"raises {type(end.raised).__name__}"
                self._stage.tell_story(f"{self._process.name} meets {end.met} in {call.function.plain_name}, which {said}")
                return word
        return self._raised(flight, error)

    def _by_the_users_own(self, flight: Flight, through: Callable[[Client], Any]) -> None:
        """The function that the user wrote, with a client that leads to the fake."""
        stage, fake = self._stage, self._stage.outside.fake_of(flight)
        done: list[Effect[Any]] = []

        def request(key: str, argument: Any) -> Any:
            with outside():  # what happens meanwhile, by others, is no doing of the call's
                done.append(self._request(flight, key, argument))
            return done[-1].answer

        def seen() -> list[Effect[Any]]:
            return [one for one in fake.ledger.entries if one.visible_s <= stage.time.now_s]

        function, given, client = self._function(flight), snapshot.given(flight.argument), through(Client(request, seen))
        fake.ledger.asked += flight.is_find
        try:
            with self._inside(flight):
                answer = function(flight.argument, **self._supplies(flight, client))
                if function.is_async:
                    answer = asyncio.run(answer)
            if edited := given.edited() if given is not None else ():
                raise StateRefused(snapshot.edit_of(f"the {'find' if flight.is_find else 'call'} {function.name}", edited))
            word = self._answered(flight, answer)
        except Buried:
            return
        except StateRefused:
            raise  # it writes: no outcome of a call, but a fault that the author must hear of
        except Exception as error:  # noqa: BLE001  # as the engine takes it
            word = self._raised(flight, error)
        if flight.is_find:
            stage.tell_story(f"{self._process.name} asks what became of {told(flight)}: {type(word).__name__}")
            self._bring(flight, word, "found")
        else:
            self._answer(flight, word, done[-1] if done and isinstance(word, Returned) else None)

    def _request(self, flight: Flight, key: str, argument: Any) -> Effect[Any]:
        """One request to the outside, as the schedule lets it end. Raises what a client would; Buried where nothing comes back."""
        stage = self._stage
        stage.outside.fake_of(flight).ledger.requests += 1
        stage.calls += 1
        mood = dict(stage.schedule.moods).get(stage.calls, Mood.DONE)
        stage.tell_story(f"{self._process.name} calls {told(flight)} (call {stage.calls}: {mood.value})")
        match mood:
            case Mood.REFUSED:
                raise NotDone("the lab refuses it")
            case Mood.BUSY:
                raise Busy(MARGIN)
            case Mood.LOST:
                raise ConnectionError("the lab lost it")
            case Mood.LATE:
                stage.task(self._process, partial(stage.arrives, flight, key, argument), stage.outside.last_s(flight), outlives=True)
                raise TimeoutError
            case Mood.STUCK if not self._function(flight).is_async:
                flight.ends_s = stage.time.awake_s + flight.timeout.total_seconds()
                stage.task(self._process, partial(self._send_after_all, flight, key, argument), stage.time.now_s + stage.outside.longest_s)
                raise Buried
        effect = stage.arrives(flight, key, argument)
        if mood is Mood.LATE_ANSWER and not self._function(flight).is_async:
            flight.ends_s = stage.time.awake_s + flight.timeout.total_seconds()
            return effect
        if stage.cross(self._process, "done", told(flight)):
            raise Buried
        if mood is not Mood.DONE:
            raise TimeoutError
        return effect

    def _answer(self, flight: Flight, word: Word, effect: Effect[Any] | None) -> None:
        if flight.ends_s is None:
            self._bring(flight, word, "answered", effect)
        else:
            at_s = self._stage.time.real_s(flight.ends_s) + 1
            self._stage.task(self._process, partial(self._bring_late, flight, word, effect), at_s)

    def _send_after_all(self, flight: Flight, key: str, argument: Any) -> None:
        """A thread that hung goes on."""
        effect = self._stage.arrives(flight, key, argument)
        if not self._stage.cross(self._process, "done", told(flight)):
            self._bring_late(flight, self._answered(flight, effect.answer), effect)

    def _bring_late(self, flight: Flight, word: Word, effect: Effect[Any] | None) -> None:
        self._bring(flight, self._after_giving_up(word), "answered", effect)

    def _bring(self, flight: Flight, word: Word, kind: str, effect: Effect[Any] | None = None) -> None:
        if flight in self._air:
            self._air.discard(flight)
            self._back(word)
            if effect is not None:
                self._stage.brought(self._process, effect)
            self._stage.cross(self._process, kind, told(flight))


def told(flight: Flight) -> str:
    """Which call it is, for people."""
    _, reaction, record, occurrence = flight.identity
    return f"{reaction} of {record}" + (f" ({occurrence})" if occurrence else "")

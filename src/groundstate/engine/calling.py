"""Makes calls and finds: async ones on a loop of its own, sync ones in threads. Touches no database; each flight ends in one word.

Never the host's loop: a user's call that blocks it delays other calls, and neither liveness nor conclusions (hazard 41).
"""

from __future__ import annotations

import asyncio
import builtins
import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, suppress
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

from groundstate.engine import many, snapshot
from groundstate.engine.call_loop import new_call_loop
from groundstate.engine.flight import (
    Flight,
    FoundAbsent,
    FoundUnknown,
    NothingHappened,
    NotSent,
    Returned,
    ThreadEnded,
    Unclear,
    Word,
)
from groundstate.engine.guarded import Raised, describe, has_a_class, let_through, place_of, text_of
from groundstate.engine.inside_call import inside
from groundstate.engine.threads import Threads
from groundstate.engine.watching import NOBODY
from groundstate.rules.policy import MARGIN
from groundstate.rules.reaction import CallSpec, Function, NotDoneWhen, OutsideSpec
from groundstate.values import lines
from groundstate.values.answers import Absent, Busy, NotDone, Unknown

log = logging.getLogger("groundstate")
UNWINDS_S = 1.0  # so long an async call may take to end after its time limit: what goes on past that swallows its cancellation
LONGEST_WAIT = timedelta(days=365)  # that an endpoint may ask for
_SLOW_CLIENT = (
    "the client= of the outside {} takes long to make its client, and async calls wait for that, once in each worker; where it loads"
    " certificates, let it take an ssl.SSLContext that was made at the import"
)


class Caller:
    """Calls to the outside, and the words that come back: `say` is called with each word, from any thread."""

    def __init__(self, say: Callable[[Sequence[Word]], None], sound: Callable[[int], bool]) -> None:
        self._say = say
        self.watched = NOBODY
        self._sound = sound  # whether we still are who we were: a flag in memory, never a query a call
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._none_on_loop = threading.Event()  # at the end
        self._may_stop = threading.Event()  # the loop, by us
        self._told_of_stop = False
        self._task_of: dict[Flight, asyncio.Task[None]] = {}
        self._clients = AsyncExitStack()
        self._opened: dict[OutsideSpec, asyncio.Future[Any]] = {}
        self._making: str | None = None  # the outside whose `client=` makes a client just now, in the loop
        self._beat_asked = self._beat_heard = self._beat_told = 0
        self._asked_at: float | None = None  # when the loop was asked to come round, and has not yet
        self._sync_clients = ExitStack()
        self._sync_opened: dict[OutsideSpec, Future[Any]] = {}
        self._sync_lock = threading.Lock()
        self.threads = Threads()
        self.draining = False
        self._told_of: set[tuple[str, str]] = set()  # reactions, and the attributes of their snapshots that were edited

    # ---- from the transactions' thread ---------------------------------------------------------------------------------------
    def start(self, flights: Sequence[Flight]) -> None:
        """Sends these out. What may not go out any more comes back as NotSent, and what cannot be started as a call that was not made."""
        on_loop: list[Flight] = []
        for flight in [one for one in flights if many.call_for_many(one) is None]:
            if self._function(flight).is_async:
                on_loop.append(flight)
            else:
                self._start_in_thread([flight], partial(self._sync, flight))
        if on_loop:
            self._start_on_loop(on_loop, partial(self._start_async, on_loop))
        for call, group in many.groups_for_many(flights):
            if call.function.is_async:
                self._start_on_loop(group, partial(self._start_many, call, group))
            else:
                self._start_in_thread(group, partial(self._sync_many, call, group))

    def _start_in_thread(self, flights: Sequence[Flight], work: Callable[[], None]) -> None:
        try:
            self.threads.run(work)
        except Exception as error:  # the system gives no more threads
            self._back(*[self._failed_before(flight, error, "it could not be started") for flight in flights])

    def _start_on_loop(self, flights: Sequence[Flight], work: Callable[[], None]) -> None:
        try:
            self._ensure_loop().call_soon_threadsafe(work)
        except Exception as error:  # the system gives no more files, which a loop needs, or threads
            self._back(*[self._failed_before(flight, error, "it could not be started") for flight in flights])

    def cancel(self, flights: Sequence[Flight]) -> None:
        """Ends async calls whose record moved on: each comes back in doubt, like any call that was cut off."""
        if self._loop is not None:
            for flight in flights:
                task = self._task_of.get(flight)
                if task is not None:
                    flight.cut_off = True
                    self._loop.call_soon_threadsafe(task.cancel)

    def watch(self) -> None:
        """Warns where the loop did not come round since the last look: a call blocks it, and delays every other (hazard 41)."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        if self._beat_asked > self._beat_heard and self._beat_asked != self._beat_told:
            self._beat_told = self._beat_asked
            frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001  # the one way to see where another thread is
            stack, making = _within(frame), self._making
            by = "an async call must await what it waits for" if making is None else _SLOW_CLIENT.format(making)
            log.warning(
                "the loop of async calls is blocked: %s. It is at:\n%s",
                by,
                stack,
                extra={"event": "call_loop_blocked", "stack": stack},
            )
        elif self._beat_asked == self._beat_heard:
            self._beat_asked += 1
            loop.call_soon_threadsafe(self._hear_beat, self._beat_asked)

    def _hear_beat(self, beat: int) -> None:
        self._beat_heard = beat

    def late_s(self) -> float:
        """For how long the loop of async calls has not come round since this was first asked. From any thread."""
        loop, asked_at, now = self._loop, self._asked_at, time.monotonic()
        if loop is None:
            return 0.0
        if asked_at is not None:
            return now - asked_at
        self._asked_at = now
        with suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(self._came_round)
        return 0.0

    def _came_round(self) -> None:
        self._asked_at = None

    def stop(self, timeout_s: float) -> None:
        """Cancels what still flies, ends the loop and closes the clients; what goes on all the same is left behind: see `busy`."""
        try:
            self._sync_clients.close()
        except BaseException:
            log.exception("closing an outside's client failed", extra={"event": "client_close_failed"})
        if self._loop is None or self._thread is None:
            return
        loop, self._loop = self._loop, None
        asyncio.run_coroutine_threadsafe(self._shut(), loop).add_done_callback(lambda _done: self._end_loop(loop))
        self._thread.join(timeout_s)

    def _end_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._may_stop.set()
        loop.call_soon_threadsafe(loop.stop)

    @property
    def busy(self) -> int:
        """Calls and finds that go on."""
        return self.threads.busy + len(self._tasks)

    def wait(self) -> None:
        """After `stop`: until none does."""
        self.threads.wait()
        if self._tasks:
            self._none_on_loop.wait()

    # ---- the loop --------------------------------------------------------------------------------------------------------------
    def _ensure_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            loop = new_call_loop()
            thread = threading.Thread(target=lines.as_here(partial(self._run_loop, loop)), name="groundstate-calls", daemon=True)
            try:
                thread.start()
            except BaseException:
                loop.close()
                raise
            self._loop, self._thread = loop, thread  # not before it runs: the next call tries again
        return self._loop

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            while not self._runs(loop):
                pass
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _runs(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it was stopped by us: SystemExit in a task that a call left behind ends the run of a loop too, and so does a call that
        stops it, and the other calls go on.
        """
        try:
            loop.run_forever()
        except BaseException as error:
            log.exception(
                "a task that a call left behind raised %s: the calls go on", type(error).__name__, extra={"event": "call_task_raised"}
            )
            return False
        if not self._may_stop.is_set() and not self._told_of_stop:
            self._told_of_stop = True  # it may do so each time
            log.error(
                "an async call stopped the loop in which all calls run (loop.stop()): they go on. A call returns, and stops nothing",
                extra={"event": "call_loop_stopped"},
            )
        return self._may_stop.is_set()

    def _start_async(self, flights: Sequence[Flight]) -> None:
        loop = asyncio.get_running_loop()
        for flight in flights:
            task = loop.create_task(self._one(flight))
            self._keep(task, [flight])
            call = flight.question.spec.call
            if call is not None and call.stop_when_overtaken:
                self._task_of[flight] = task
                task.add_done_callback(partial(self._forget, flight))

    def _start_many(self, call: CallSpec, group: Sequence[Flight]) -> None:
        self._keep(asyncio.get_running_loop().create_task(self._many(call, group)), group)

    def _keep(self, task: asyncio.Task[None], flights: Sequence[Flight]) -> None:
        self._tasks.add(task)
        task.add_done_callback(partial(self._has_ended, flights))

    def _has_ended(self, flights: Sequence[Flight], task: asyncio.Task[None]) -> None:
        """Once a task runs, its flights end in a word whatever it meets; one that is cancelled before that never runs (a call that cancels
        all tasks of its loop does that to others).
        """
        self._tasks.discard(task)
        if task.cancelled():
            self._back(*[NotSent(flight) for flight in flights])

    def _forget(self, flight: Flight, _done: asyncio.Task[None]) -> None:
        self._task_of.pop(flight, None)

    async def _shut(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._none_on_loop.set()
        try:
            await self._clients.aclose()
        except BaseException:
            log.exception("closing an outside's client failed", extra={"event": "client_close_failed"})

    # ---- one flight ------------------------------------------------------------------------------------------------------------
    async def _one(self, flight: Flight) -> None:
        if not self._may_go(flight):
            self._back(NotSent(flight))
            return
        try:
            client = await self._client(flight)
        except BaseException as error:  # cancelled while it waited for the client, too
            self._back(self._failed_before(flight, error))
            return
        if not self._may_go(flight):  # opening the client took its time
            self._back(NotSent(flight))
            return
        flight.ends_s = time.monotonic() + flight.timeout.total_seconds() + UNWINDS_S
        told, limit = self.watched.calls([flight]), asyncio.timeout(flight.timeout.total_seconds())
        try:
            with self._inside(flight):
                async with limit:
                    value = await self._function(flight)(flight.argument, **self._supplies(flight, client))
            word = self._answered(flight, value)
        except BaseException as error:  # each flight ends in a word, whatever its task met
            word = self._raised(flight, error, over=limit.expired())
        told([word])
        self._back(self._after_giving_up(word))

    async def _many(self, call: CallSpec, flights: Sequence[Flight]) -> None:
        """One outside call for many records: a word each. A record that the answer does not name is in doubt."""
        try:
            client = await self._client(flights[0])
        except BaseException as error:
            self._back(*[self._failed_before(flight, error) for flight in flights])
            return
        going = self._going(flights)
        if not going:
            return
        for flight in going:
            flight.ends_s = time.monotonic() + call.timeout.total_seconds() + UNWINDS_S
        told = self.watched.calls(going)
        try:
            with self._inside(going[0]):
                async with asyncio.timeout(call.timeout.total_seconds()):
                    answers = await call.function([flight.argument for flight in going], **self._supplies_of_many(going, client))
        except BaseException as error:
            words = [self._raised(flight, error) for flight in going]
        else:
            words = self._of_many(going, answers)
        told(words)
        self._back(*[self._after_giving_up(word) for word in words])

    def _sync_many(self, call: CallSpec, flights: Sequence[Flight]) -> None:
        """The same in a thread."""
        try:
            client = self._sync_client(call.outside)
        except BaseException as error:
            self._back(*[self._failed_before(flight, error) for flight in flights])
            return
        going = self._going(flights)
        if not going:
            return
        for flight in going:
            flight.ends_s = time.monotonic() + call.timeout.total_seconds()
        told = self.watched.calls(going)
        try:
            with self._inside(going[0]):
                answers = call.function([flight.argument for flight in going], **self._supplies_of_many(going, client))
        except BaseException as error:
            words = [self._raised(flight, error) for flight in going]
        else:
            words = self._of_many(going, answers)
        told(words)
        self._back(*[self._after_giving_up(word) for word in words])

    def _going(self, flights: Sequence[Flight]) -> list[Flight]:
        """Those that may go out still; the others come back as NotSent."""
        going = [flight for flight in flights if self._may_go(flight)]
        self._back(*[NotSent(flight) for flight in flights if flight not in going])
        return going

    def _supplies_of_many(self, going: Sequence[Flight], client: Any) -> dict[str, Any]:
        return self._supplies(going[0], client) | {"keys": [flight.key for flight in going]}

    def _after_giving_up(self, word: Word) -> Word:
        """A call that was given up has nothing to say but an outcome, or that it has ended."""
        return word if isinstance(word, Returned) or not word.flight.given_up else ThreadEnded(word.flight)

    def _of_many(self, going: Sequence[Flight], answers: Any) -> list[Word]:
        try:
            outcomes = many.by_record(answers, [flight.argument for flight in going])
        except many.Ambiguous as error:
            return [Unclear(flight, text_of(error)) for flight in going]
        except BaseException as error:  # what it answered with is of the user's own making
            return [Unclear(flight, f"the answer of call_many cannot be read: {describe(error)}") for flight in going]
        return [self._of_one(flight, outcome) for flight, outcome in zip(going, outcomes, strict=True)]

    def _of_one(self, flight: Flight, outcome: Any) -> Word:
        if outcome is many.NOTHING:
            return Unclear(flight, "the answer of call_many says nothing of this record")
        return self._raised(flight, outcome) if isinstance(outcome, NotDone | Busy) else Returned(flight, outcome)

    def _sync(self, flight: Flight) -> None:
        call = flight.question.spec.call
        try:
            client = self._sync_client(call.outside) if call is not None else None
        except BaseException as error:
            self._back(self._failed_before(flight, error))
            return
        if not self._may_go(flight):
            self._back(NotSent(flight))
            return
        flight.ends_s = time.monotonic() + flight.timeout.total_seconds()
        told = self.watched.calls([flight])
        try:
            with self._inside(flight):
                value = self._function(flight)(flight.argument, **self._supplies(flight, client))
            word = self._answered(flight, value)
        except BaseException as error:  # likewise
            word = self._raised(flight, error)
        told([word])
        self._back(self._after_giving_up(word))

    def _inside(self, flight: Flight) -> AbstractContextManager[None]:
        """In which the user's function runs: it may not write to the stores of its app."""
        kind = "find" if flight.is_find else "call"
        return inside(flight.question.spec.app, f"the {kind} {self._function(flight).name} of {flight.question.spec.name}")

    # ---- words -----------------------------------------------------------------------------------------------------------------
    def _answered(self, flight: Flight, value: Any) -> Word:
        if not flight.is_find:
            return Returned(flight, value)
        if value is Absent or isinstance(value, Absent):
            return FoundAbsent(flight)
        if value is Unknown or isinstance(value, Unknown):
            return FoundUnknown(flight)
        return Returned(flight, value)

    def _raised(self, flight: Flight, error: BaseException, *, over: bool = False) -> Word:
        """over: its own time limit ended it."""
        error = error if has_a_class(error) else Raised(error)
        if flight.is_find and over:
            return FoundUnknown(flight, f"its find timed out after {flight.timeout.total_seconds():g} s")
        if flight.is_find:
            return FoundUnknown(flight, f"find raised {describe(error)}{place_of(error)}")
        if isinstance(error, Busy):
            return NothingHappened(flight, describe(error), counts=False, retry_after=_wait_of(error))
        if isinstance(error, NotDone):
            return NothingHappened(flight, describe(error), retry_after=_wait_of(error))
        outside = flight.question.spec.call.outside if flight.question.spec.call else None
        if outside is not None and isinstance(error, Exception) and _surely_not_done(outside, error):
            return NothingHappened(flight, describe(error))
        if isinstance(error, TimeoutError):
            return Unclear(flight, f"timed out after {flight.timeout.total_seconds():g} s" if not text_of(error) else describe(error))
        if type(error).__name__ == "DetachedInstanceError":
            return Unclear(flight, f"{describe(error)}. {_how_to_load(flight, text_of(error))}")
        return Unclear(flight, f"{describe(error)}{place_of(error)}")

    def _failed_before(self, flight: Flight, error: BaseException, why: str = "the outside's client could not be opened") -> Word:
        """Surely nothing was sent."""
        words = f"{why}: {describe(error)}"
        return FoundUnknown(flight, words) if flight.is_find else NothingHappened(flight, words)

    def _back(self, *words: Word) -> None:
        try:
            for word in words:
                if word.flight.given is not None:
                    self._tell_edits(word.flight, word.flight.given)
        finally:
            if words:
                self._say(words)

    def _tell_edits(self, flight: Flight, given: snapshot.Given) -> None:
        """What a call edited in place of its snapshot is lost. Once for each attribute: it does so each time."""
        edited: list[str] = []
        with suppress(BaseException):  # likewise
            edited = given.edited()
        reaction = flight.question.spec.name
        new = [name for name in edited if (reaction, name) not in self._told_of]
        if new:
            self._told_of.update((reaction, name) for name in new)
            log.error(
                "%s",
                snapshot.edit_of(f"the {'find' if flight.is_find else 'call'} {self._function(flight).name} of {reaction}", new),
                extra={"event": "snapshot_edited", "reaction": reaction, "record": flight.identity[2]},
            )

    def _may_go(self, flight: Flight) -> bool:
        if self.draining or not self._sound(flight.life) or not flight.may_go_out():
            return False
        if flight.given is None:
            with suppress(BaseException):  # of a type of the user's, which cannot be looked into
                flight.given = snapshot.given(flight.argument)
        return True

    def _function(self, flight: Flight) -> Function:
        call = flight.question.spec.call
        assert call is not None  # noqa: S101  # only reactions with a call fly
        if flight.is_find:
            assert call.find is not None  # noqa: S101  # the table asks only where there is a find
            return call.find
        return call.function

    def _supplies(self, flight: Flight, client: Any) -> dict[str, Any]:
        return {"key": flight.key, "at": flight.moment, "client": client, "occurrence": flight.occurrence}

    async def _client(self, flight: Flight) -> Any:
        """The outside's client, opened once in this loop (W25)."""
        call = flight.question.spec.call
        if call is None or call.outside.client is None:
            return None
        opened = self._opened.get(call.outside)
        if opened is None:
            self._making = call.outside.name
            try:
                manager = call.outside.client()
            finally:
                self._making = None
            opened = self._opened[call.outside] = asyncio.ensure_future(self._open(manager))
        try:
            async with asyncio.timeout(MARGIN.total_seconds()):  # past that none of these calls may go out any more
                return await asyncio.shield(opened)
        except BaseException as error:
            ended_alone = not isinstance(error, Exception) and not opened.done()  # others wait on
            if not ended_alone and self._opened.get(call.outside) is opened:
                del self._opened[call.outside]  # the next call tries again
            raise

    async def _open(self, manager: Any) -> Any:
        if hasattr(manager, "__aenter__"):
            return await self._clients.enter_async_context(manager)
        return self._clients.enter_context(manager)

    def _sync_client(self, outside: OutsideSpec) -> Any:
        """The outside's client for calls in threads, opened once and shared by them; in a thread of its own, which may hang."""
        if outside.client is None:
            return None
        with self._sync_lock:
            opened = self._sync_opened.get(outside)
            if opened is None:
                opened = Future()
                threading.Thread(target=self._open_sync, args=(outside, opened), name="groundstate-sync-client", daemon=True).start()
                self._sync_opened[outside] = opened
        try:
            return opened.result(MARGIN.total_seconds())  # past that none of these calls may go out any more
        except BaseException:
            with self._sync_lock:
                if self._sync_opened.get(outside) is opened:
                    del self._sync_opened[outside]  # the next call tries again
            raise

    def _open_sync(self, outside: OutsideSpec, opened: Future[Any]) -> None:
        try:
            manager: Any = outside.client() if outside.client is not None else None
            if not hasattr(manager, "__enter__"):
                raise TypeError("a sync call cannot use an async client: let `client` give a sync one, or make the call async")
            opened.set_result(self._sync_clients.enter_context(manager))
        except BaseException as error:
            opened.set_exception(error)


def _within(frame: FrameType | None) -> str:
    """The stack from the user's call on, which ours awaits, to where it stands."""
    inner: list[str] = []
    while frame is not None and frame.f_code.co_filename != __file__:
        inner.insert(0, traceback.format_stack(frame, limit=1)[0].rstrip())
        frame = frame.f_back
    return "\n".join(inner) or "?"


def _wait_of(error: BaseException) -> timedelta | None:
    """How long the endpoint asks to wait, where the user's exception says so in a timedelta."""
    wait = getattr(error, "retry_after", None)
    return min(max(wait, timedelta()), LONGEST_WAIT) if isinstance(wait, timedelta) else None


def _how_to_load(flight: Flight, words: str) -> str:
    """What to do where a call reads of its record what was not loaded. words: SQLAlchemy's own."""
    found = re.search(r"(deferred|lazy) load operation of attribute '(\w+)'", words)
    option, name = ("undefer" if found[1] == "deferred" else "selectinload", found[2]) if found else ("selectinload", "...")
    loads = f"from sqlalchemy.orm import {option}, and @outside.call(load=[{option}({flight.question.spec.record.__name__}.{name})])"
    return f"Load it: {loads}; or make the argument by `sends`"


def _surely_not_done(outside: OutsideSpec, error: Exception) -> bool:
    """Whether the outside's author listed it. Dotted paths are resolved now, so that a list imports nothing."""
    return any(_means(listed, error) for listed in outside.not_done)


def _means(listed: NotDoneWhen, error: Exception) -> bool:
    if isinstance(listed, str):
        kind = _resolve(listed)
        return kind is not None and isinstance(error, kind)
    if isinstance(listed, type):
        return isinstance(error, listed)
    try:
        return bool(listed(error))
    except BaseException as failed:
        let_through(failed)
        log.exception(
            "%r cannot tell whether %r means that nothing was done: it is in doubt",
            listed,
            type(error).__name__,
            extra={"event": "not_done_failed"},
        )
        return False


def _resolve(path: str) -> type[Exception] | None:
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module) if module else builtins, name, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None

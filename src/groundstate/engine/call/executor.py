"""Runs calls and lookups: async ones on an event loop of its own, sync ones in threads. Each ends in one CallResult; no database is used.

The event loop is never the host's: a user's call that blocks it delays other calls, but neither the liveness check nor the writing of
results (hazard 41).
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

from groundstate.engine.call import call_many
from groundstate.engine.call.event_loop import new_call_loop
from groundstate.engine.call.thread_pool import Threads
from groundstate.engine.rows.in_flight import (
    CallResult,
    FoundAbsent,
    FoundUnknown,
    InFlightCall,
    NothingHappened,
    NotSent,
    Returned,
    ThreadEnded,
    Unclear,
)
from groundstate.engine.sql import readonly_record
from groundstate.engine.sql.call_write_guard import inside
from groundstate.engine.sql.safe_text import Raised, describe, has_a_class, let_through, meant, place_of, shown, text_of
from groundstate.engine.watch.trace_hooks import NOBODY
from groundstate.rules.policy import MARGIN
from groundstate.rules.specs import CallSpec, Function, NotDoneWhen, ServiceSpec
from groundstate.values import log_store
from groundstate.values.answers import Absent, NotDone, Throttled, Unknown
from groundstate.values.unawaited import unawaited

log = logging.getLogger("groundstate")
UNWINDS_S = 1.0  # seconds: an async call that has not ended this long after its time limit swallows its cancellation
LONGEST_WAIT = timedelta(days=365)  # the longest wait that is accepted from a service's `retry_after`
_PLAIN = frozenset({str, int, float, bool, type(None), dict, list})
_SLOW_CLIENT = (
    "the client= of the service {} takes long to make its client, and async calls wait for that, once in each worker; where it loads"
    " certificates, let it take an ssl.SSLContext that was made at the import"
)


class CallExecutor:
    """Runs calls to external services and reports their results: `say` is called with each batch of results, from any thread."""

    def __init__(self, say: Callable[[Sequence[CallResult]], None], sound: Callable[[int], bool]) -> None:
        self._say = say
        self.watched = NOBODY
        self._sound = sound  # whether this incarnation still holds its lock: reads memory, so that no call costs a query
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._none_on_loop = threading.Event()  # set by `_shut` once no task is left on the loop
        self._may_stop = threading.Event()  # set before we stop the loop ourselves, since a call may stop it too
        self._told_of_stop = False
        self._task_of: dict[InFlightCall, asyncio.Task[None]] = {}
        self._clients = AsyncExitStack()
        self._opened: dict[ServiceSpec, asyncio.Future[Any]] = {}
        self._making: str | None = None  # the service whose `client=` is making a client on the loop just now
        self._beat_asked = self._beat_heard = self._beat_told = 0
        self._asked_at: float | None = None  # monotonic time at which `late_s` scheduled a callback that has not run yet
        self._sync_clients = ExitStack()
        self._sync_opened: dict[ServiceSpec, Future[Any]] = {}
        self._sync_lock = threading.Lock()
        self.threads = Threads()
        self.draining = False
        self._told_of: set[tuple[str, str]] = set()  # (reaction, attribute) pairs for which an edited snapshot was logged

    # ---- methods called by the transactions' thread --------------------------------------------------------------------------
    def start(self, in_flights: Sequence[InFlightCall]) -> None:
        """Start these calls and lookups. One that may no longer go out is reported as NotSent; one that cannot be started is reported as
        surely not done.
        """
        on_loop: list[InFlightCall] = []
        for in_flight in [one for one in in_flights if call_many.call_for_many(one) is None]:
            if self._function(in_flight).is_async:
                on_loop.append(in_flight)
            else:
                self._start_in_thread([in_flight], partial(self._sync, in_flight))
        if on_loop:
            self._start_on_loop(on_loop, partial(self._start_async, on_loop))
        for call, group in call_many.groups_for_many(in_flights):
            if call.function.is_async:
                self._start_on_loop(group, partial(self._start_many, call, group))
            else:
                self._start_in_thread(group, partial(self._sync_many, call, group))

    def _start_in_thread(self, in_flights: Sequence[InFlightCall], work: Callable[[], None]) -> None:
        try:
            self.threads.run(work)
        except Exception as error:  # the operating system starts no more threads
            self._back(*[self._failed_before(in_flight, error, "it could not be started") for in_flight in in_flights])

    def _start_on_loop(self, in_flights: Sequence[InFlightCall], work: Callable[[], None]) -> None:
        try:
            self._ensure_loop().call_soon_threadsafe(work)
        except Exception as error:  # the operating system has no more threads, or no file descriptors for a loop
            self._back(*[self._failed_before(in_flight, error, "it could not be started") for in_flight in in_flights])

    def cancel(self, in_flights: Sequence[InFlightCall]) -> None:
        """Cancel the async calls whose records moved on. Each of them then ends in doubt, like any call that was cut off."""
        if self._loop is not None:
            for in_flight in in_flights:
                task = self._task_of.get(in_flight)
                if task is not None:
                    in_flight.cut_off = True
                    self._loop.call_soon_threadsafe(task.cancel)

    def watch(self) -> None:
        """Log a warning where the event loop has not run since the previous check: a call blocks it, and so
        delays all others (hazard 41).
        """
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        if self._beat_asked > self._beat_heard and self._beat_asked != self._beat_told:
            self._beat_told = self._beat_asked
            frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001  # the only way to read another thread's stack
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
            loop.call_soon_threadsafe(self._record_loop_beat, self._beat_asked)

    def _record_loop_beat(self, beat: int) -> None:
        self._beat_heard = beat

    def late_s(self) -> float:
        """Return for how many seconds the event loop has been blocked: the age of a callback that this method scheduled and that has not
        run. Any thread may call it.
        """
        loop, asked_at, now = self._loop, self._asked_at, time.monotonic()
        if loop is None:
            return 0.0
        if asked_at is not None:
            return now - asked_at
        self._asked_at = now
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._came_round)
        return 0.0

    def _came_round(self) -> None:
        self._asked_at = None

    def stop(self, timeout_s: float) -> None:
        """Cancel the calls in flight, end the event loop and close the clients. What has not ended after `timeout_s` keeps running: see
        `busy`.
        """
        try:
            self._sync_clients.close()
        except BaseException:
            log.exception("closing a service's client failed", extra={"event": "client_close_failed"})
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
        """Return how many calls and lookups are still running."""
        return self.threads.busy + len(self._tasks)

    def wait(self) -> None:
        """Wait until no call or lookup is running any more. To be called after `stop`."""
        self.threads.wait()
        if self._tasks:
            self._none_on_loop.wait()

    # ---- the event loop --------------------------------------------------------------------------------------------------------
    def _ensure_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            loop = new_call_loop()
            thread = threading.Thread(target=log_store.keep_log_label(partial(self._run_loop, loop)), name="groundstate-calls", daemon=True)
            try:
                thread.start()
            except BaseException:
                loop.close()
                raise
            self._loop, self._thread = loop, thread  # assigned only once the thread runs: after a failure the next call tries again
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
        """Run the event loop until it stops, and return whether we stopped it. A call can stop it too, by `loop.stop()` or by a task that
        raises SystemExit, and the other calls must go on then.
        """
        try:
            loop.run_forever()
        except BaseException as error:
            log.exception(
                "a task that a call left behind raised %s: the calls go on", type(error).__name__, extra={"event": "call_task_raised"}
            )
            return False
        if not self._may_stop.is_set() and not self._told_of_stop:
            self._told_of_stop = True  # a call may stop the loop every time: one line is enough
            log.error(
                "an async call stopped the loop in which all calls run (loop.stop()): they go on. A call returns, and stops nothing",
                extra={"event": "call_loop_stopped"},
            )
        return self._may_stop.is_set()

    def _start_async(self, in_flights: Sequence[InFlightCall]) -> None:
        loop = asyncio.get_running_loop()
        for in_flight in in_flights:
            task = loop.create_task(self._one(in_flight))
            self._keep(task, [in_flight])
            call = in_flight.query.spec.call
            if call is not None and call.stop_when_overtaken:
                self._task_of[in_flight] = task
                task.add_done_callback(partial(self._forget, in_flight))

    def _start_many(self, call: CallSpec, group: Sequence[InFlightCall]) -> None:
        self._keep(asyncio.get_running_loop().create_task(self._many(call, group)), group)

    def _keep(self, task: asyncio.Task[None], in_flights: Sequence[InFlightCall]) -> None:
        self._tasks.add(task)
        task.add_done_callback(partial(self._has_ended, in_flights))

    def _has_ended(self, in_flights: Sequence[InFlightCall], task: asyncio.Task[None]) -> None:
        """Report NotSent for the calls of a task that was cancelled before it ran, as a call may do to all tasks of its loop. A task that
        has run reports its results itself.
        """
        self._tasks.discard(task)
        if task.cancelled():
            self._back(*[NotSent(in_flight) for in_flight in in_flights])

    def _forget(self, in_flight: InFlightCall, _done: asyncio.Task[None]) -> None:
        self._task_of.pop(in_flight, None)

    async def _shut(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._none_on_loop.set()
        try:
            await self._clients.aclose()
        except BaseException:
            log.exception("closing a service's client failed", extra={"event": "client_close_failed"})

    # ---- one in-flight call ----------------------------------------------------------------------------------------------------
    async def _one(self, in_flight: InFlightCall) -> None:
        if not self._may_go(in_flight):
            self._back(NotSent(in_flight))
            return
        try:
            client = await self._client(in_flight)
        except BaseException as error:  # BaseException, since the task may be cancelled while it waits for the client
            self._back(self._failed_before(in_flight, error))
            return
        if not self._may_go(in_flight):  # opening the client took time, and its deadline may be too near by now
            self._back(NotSent(in_flight))
            return
        in_flight.ends_s = time.monotonic() + in_flight.timeout.total_seconds() + UNWINDS_S
        told, limit = self.watched.calls([in_flight]), asyncio.timeout(in_flight.timeout.total_seconds())
        try:
            with self._inside(in_flight):
                async with limit:
                    value = await self._function(in_flight)(in_flight.argument, **self._supplies(in_flight, client))
            word = self._answered(in_flight, value)
        except BaseException as error:  # every in-flight call must end in a result, whatever was raised
            word = self._raised(in_flight, error, over=limit.expired())
        told([word])
        self._back(self._after_giving_up(word))

    async def _many(self, call: CallSpec, in_flights: Sequence[InFlightCall]) -> None:
        """Make one external call for many records, and report a result for each. A record that the answer does not name is in doubt."""
        try:
            client = await self._client(in_flights[0])
        except BaseException as error:
            self._back(*[self._failed_before(in_flight, error) for in_flight in in_flights])
            return
        going = self._going(in_flights)
        if not going:
            return
        for in_flight in going:
            in_flight.ends_s = time.monotonic() + call.timeout.total_seconds() + UNWINDS_S
        told, limit = self.watched.calls(going), asyncio.timeout(call.timeout.total_seconds())
        try:
            with self._inside(going[0]):
                async with limit:
                    answers = await call.function([in_flight.argument for in_flight in going], **self._supplies_of_many(going, client))
        except BaseException as error:
            words = [self._raised(in_flight, error, over=limit.expired()) for in_flight in going]
        else:
            words = self._of_many(going, answers)
        told(words)
        self._back(*[self._after_giving_up(word) for word in words])

    def _sync_many(self, call: CallSpec, in_flights: Sequence[InFlightCall]) -> None:
        """Make one external call for many records in a thread, and report a result for each of them."""
        try:
            client = self._sync_client(call.service)
        except BaseException as error:
            self._back(*[self._failed_before(in_flight, error) for in_flight in in_flights])
            return
        going = self._going(in_flights)
        if not going:
            return
        for in_flight in going:
            in_flight.ends_s = time.monotonic() + call.timeout.total_seconds()
        told = self.watched.calls(going)
        try:
            with self._inside(going[0]):
                answers = call.function([in_flight.argument for in_flight in going], **self._supplies_of_many(going, client))
        except BaseException as error:
            words = [self._raised(in_flight, error) for in_flight in going]
        else:
            words = self._of_many(going, answers)
        told(words)
        self._back(*[self._after_giving_up(word) for word in words])

    def _going(self, in_flights: Sequence[InFlightCall]) -> list[InFlightCall]:
        """Return the calls that may still go out, and report the others as NotSent."""
        going = [in_flight for in_flight in in_flights if self._may_go(in_flight)]
        self._back(*[NotSent(in_flight) for in_flight in in_flights if in_flight not in going])
        return going

    def _supplies_of_many(self, going: Sequence[InFlightCall], client: Any) -> dict[str, Any]:
        return self._supplies(going[0], client) | {"keys": [in_flight.key for in_flight in going]}

    def _after_giving_up(self, word: CallResult) -> CallResult:
        """Return the result; or ThreadEnded where the call was given up and brought no outcome, since its
        attempt was put in doubt already.
        """
        return word if isinstance(word, Returned) or not word.in_flight.given_up else ThreadEnded(word.in_flight)

    def _of_many(self, going: Sequence[InFlightCall], answers: Any) -> list[CallResult]:
        lost = unawaited(answers)
        if lost is not None:
            return [Unclear(in_flight, _forgot(lost)) for in_flight in going]
        try:
            outcomes = call_many.by_record(answers, [in_flight.argument for in_flight in going])
        except call_many.Ambiguous as error:
            return [Unclear(in_flight, text_of(error)) for in_flight in going]
        except BaseException as error:  # the answer may be an object of a user's class, which can raise anything
            return [Unclear(in_flight, f"the answer of call_many cannot be read: {describe(error)}") for in_flight in going]
        return [self._of_one(in_flight, outcome) for in_flight, outcome in zip(going, outcomes, strict=True)]

    def _of_one(self, in_flight: InFlightCall, outcome: Any) -> CallResult:
        if outcome is call_many.NOTHING:
            return Unclear(in_flight, "the answer of call_many says nothing of this record")
        return self._of_call(in_flight, outcome)

    def _sync(self, in_flight: InFlightCall) -> None:
        call = in_flight.query.spec.call
        try:
            client = self._sync_client(call.service) if call is not None else None
        except BaseException as error:
            self._back(self._failed_before(in_flight, error))
            return
        if not self._may_go(in_flight):
            self._back(NotSent(in_flight))
            return
        in_flight.ends_s = time.monotonic() + in_flight.timeout.total_seconds()
        told = self.watched.calls([in_flight])
        try:
            with self._inside(in_flight):
                value = self._function(in_flight)(in_flight.argument, **self._supplies(in_flight, client))
            word = self._answered(in_flight, value)
        except BaseException as error:  # every in-flight call must end in a result, whatever was raised
            word = self._raised(in_flight, error)
        told([word])
        self._back(self._after_giving_up(word))

    def _inside(self, in_flight: InFlightCall) -> AbstractContextManager[None]:
        """Return the context manager in which the user's function runs: inside it, the function may not write to the stores of its app."""
        kind = "lookup" if in_flight.is_lookup else "call"
        return inside(in_flight.query.spec.app, f"the {kind} {self._function(in_flight).name} of {in_flight.query.spec.name}")

    # ---- call results ----------------------------------------------------------------------------------------------------------
    def _answered(self, in_flight: InFlightCall, value: Any) -> CallResult:
        if not in_flight.is_lookup:
            return self._of_call(in_flight, value)
        lost = unawaited(value)
        if lost is not None:
            return FoundUnknown(in_flight, f"its lookup returned {lost}: declare it as `async def`, and await in it")
        if issubclass(type(value), BaseException):
            return self._raised(in_flight, value)
        if value is Absent or isinstance(value, Absent):
            return FoundAbsent(in_flight)
        if value is Unknown or isinstance(value, Unknown):
            return FoundUnknown(in_flight)
        return Returned(in_flight, value)

    def _of_call(self, in_flight: InFlightCall, value: Any) -> CallResult:
        """What a call returned for one record. An exception counts as if it were raised."""
        kind = type(value)  # `isinstance` would ask the value itself, which may be a proxy
        if kind in _PLAIN:
            return Returned(in_flight, value)
        lost = unawaited(value)
        if lost is not None:
            return Unclear(in_flight, _forgot(lost))
        if issubclass(kind, BaseException):
            return self._raised(in_flight, value)
        if issubclass(kind, type) and issubclass(value, NotDone):
            return self._raised(in_flight, NotDone(f"the call returned the class {value.__name__}: raise {value.__name__}(...)"))
        if issubclass(kind, Absent | Unknown) or value is Absent or value is Unknown:
            name = value.__name__ if kind is type else kind.__name__
            return Unclear(
                in_flight,
                f"the call returned {name}, which is an answer of a lookup and says nothing of what the call did: return the outcome, or"
                " raise NotDone(...) where surely nothing was done",
            )
        return Returned(in_flight, value)

    def _raised(self, in_flight: InFlightCall, error: BaseException, *, over: bool = False) -> CallResult:
        """Return the result of a call or lookup that raised `error`. over: whether it was ended by its own time limit."""
        error = meant(error) if has_a_class(error) else Raised(error)
        if in_flight.is_lookup and over:
            return FoundUnknown(in_flight, f"its lookup timed out after {in_flight.timeout.total_seconds():g} s")
        if in_flight.is_lookup:
            return FoundUnknown(in_flight, f"lookup raised {describe(error)}{place_of(error)}")
        if isinstance(error, NotDone):
            wait, wrong = _wait_of(error)  # a wait that cannot be read is a failure: tried at once, it might be tried for ever
            counts = not isinstance(error, Throttled) or wait is None
            return NothingHappened(in_flight, f"{describe(error)}{wrong}", counts=counts, retry_after=wait)
        service = in_flight.query.spec.call.service if in_flight.query.spec.call else None
        if service is not None and isinstance(error, Exception) and _surely_not_done(service, error):
            return NothingHappened(in_flight, describe(error))
        if isinstance(error, TimeoutError) and over and not text_of(error):
            return Unclear(in_flight, f"timed out after {in_flight.timeout.total_seconds():g} s")
        if isinstance(error, TimeoutError):
            whose = f"raised within the call, before its timeout= of {in_flight.timeout.total_seconds():g} s was over"
            return Unclear(in_flight, f"{describe(error)}{place_of(error)}: {whose}")
        if type(error).__name__ == "DetachedInstanceError":
            return Unclear(in_flight, f"{describe(error)}. {_how_to_load(in_flight, text_of(error))}")
        return Unclear(in_flight, f"{describe(error)}{place_of(error)}")

    def _failed_before(
        self, in_flight: InFlightCall, error: BaseException, why: str = "the service's client could not be opened"
    ) -> CallResult:
        """Return the result of a call or lookup that failed before anything was sent."""
        words = f"{why}: {describe(error)}"
        return FoundUnknown(in_flight, words) if in_flight.is_lookup else NothingHappened(in_flight, words)

    def _back(self, *words: CallResult) -> None:
        try:
            for word in words:
                if word.in_flight.given is not None:
                    self._log_snapshot_edits(word.in_flight, word.in_flight.given)
        finally:
            if words:
                self._say(words)

    def _log_snapshot_edits(self, in_flight: InFlightCall, given: readonly_record.GivenSnapshot) -> None:
        """Log which attributes a call changed on its snapshot, since those changes are lost. Each attribute
        of a reaction is logged once.
        """
        edited: list[str] = []
        with suppress(BaseException):  # comparing values of a user's class may raise anything
            edited = given.edited()
        reaction = in_flight.query.spec.name
        new = [name for name in edited if (reaction, name) not in self._told_of]
        if new:
            self._told_of.update((reaction, name) for name in new)
            log.error(
                "%s",
                readonly_record.in_place_edit_message(
                    f"the {'lookup' if in_flight.is_lookup else 'call'} {self._function(in_flight).name} of {reaction}", new
                ),
                extra={"event": "snapshot_edited", "reaction": reaction, "record": in_flight.identity[2]},
            )

    def _may_go(self, in_flight: InFlightCall) -> bool:
        if self.draining or not self._sound(in_flight.incarnation) or not in_flight.may_go_out():
            return False
        if in_flight.given is None:
            with suppress(BaseException):  # the argument may be of a user's class that cannot be inspected
                in_flight.given = readonly_record.copy_editable_values(in_flight.argument)
        return True

    def _function(self, in_flight: InFlightCall) -> Function:
        call = in_flight.query.spec.call
        assert call is not None  # noqa: S101  # only a reaction with a call has calls in flight
        if in_flight.is_lookup:
            assert call.lookup is not None  # noqa: S101  # rules/attempt.py asks for a lookup only where one is declared
            return call.lookup
        return call.function

    def _supplies(self, in_flight: InFlightCall, client: Any) -> dict[str, Any]:
        return {"key": in_flight.key, "ctx": in_flight.moment, "client": client, "occurrence": in_flight.occurrence}

    async def _client(self, in_flight: InFlightCall) -> Any:
        """Return the client of the call's external service, opened once in this event loop (W25)."""
        call = in_flight.query.spec.call
        if call is None or call.service.client is None:
            return None
        opened = self._opened.get(call.service)
        if opened is None:
            self._making = call.service.name
            try:
                manager = call.service.client()
            finally:
                self._making = None
            _check_opens(call.service, manager)
            opened = self._opened[call.service] = asyncio.ensure_future(self._open(manager))
        try:
            async with asyncio.timeout(MARGIN.total_seconds()):  # after it, none of the waiting calls may go out any more
                return await asyncio.shield(opened)
        except BaseException as error:
            ended_alone = not isinstance(error, Exception) and not opened.done()  # only this task was cancelled: others wait for the client
            if not ended_alone and self._opened.get(call.service) is opened:
                del self._opened[call.service]  # the next call opens it anew
            raise

    async def _open(self, manager: Any) -> Any:
        if hasattr(manager, "__aenter__"):
            return await self._clients.enter_async_context(manager)
        return self._clients.enter_context(manager)

    def _sync_client(self, service: ServiceSpec) -> Any:
        """Return the service's client for calls in threads, opened once and shared by them. It is opened in a separate thread, which may
        hang.
        """
        if service.client is None:
            return None
        with self._sync_lock:
            opened = self._sync_opened.get(service)
            if opened is None:
                opened = Future()
                threading.Thread(target=self._open_sync, args=(service, opened), name="groundstate-sync-client", daemon=True).start()
                self._sync_opened[service] = opened
        try:
            return opened.result(MARGIN.total_seconds())  # after it, none of the waiting calls may go out any more
        except BaseException:
            with self._sync_lock:
                if self._sync_opened.get(service) is opened:
                    del self._sync_opened[service]  # the next call opens it anew
            raise

    def _open_sync(self, service: ServiceSpec, opened: Future[Any]) -> None:
        try:
            manager: Any = service.client() if service.client is not None else None
            if hasattr(manager, "__aenter__") and not hasattr(manager, "__enter__"):
                raise TypeError("a sync call cannot use an async client: let `client` give a sync one, or make the call async")
            _check_opens(service, manager)
            opened.set_result(self._sync_clients.enter_context(manager))
        except BaseException as error:
            opened.set_exception(error)


def _forgot(lost: str) -> str:
    """lost: what the call returned, in words of `unawaited`. What the call did before it returned that, such as to send, is not known."""
    return (
        f"the call returned {lost}, and no outcome: nothing of that was done, but what the call did before is not known. Declare the call"
        " as `async def`, and write `await` before it"
    )


def _within(frame: FrameType | None) -> str:
    """Return a formatted stack that begins at the user's call, which our code awaits, and ends at `frame`."""
    inner: list[str] = []
    while frame is not None and frame.f_code.co_filename != __file__:
        inner.insert(0, traceback.format_stack(frame, limit=1)[0].rstrip())
        frame = frame.f_back
    return "\n".join(inner) or "?"


def _check_opens(service: ServiceSpec, manager: Any) -> None:
    """Raise TypeError if what `client=` made is no context manager, neither a sync nor an async one."""
    if not hasattr(manager, "__enter__") and not hasattr(manager, "__aenter__"):
        raise TypeError(
            f"the client= of {service.name} gives {type(manager).__name__}, which is no context manager and cannot be opened:"
            " give one that is, as httpx.Client is, or a function with contextlib.contextmanager around it"
        )


def _wait_of(error: BaseException) -> tuple[timedelta | None, str]:
    """Return how long the service asks us to wait, and words about a `retry_after` that is no timedelta. A number is seconds."""
    wait: Any = getattr(error, "retry_after", None)
    if wait is None:
        return None, ""
    given = wait
    if isinstance(wait, int | float) and not isinstance(wait, bool):
        wait = _seconds(wait)
    if not isinstance(wait, timedelta) or wait < timedelta():
        return None, f"; retry_after={shown(given)} is no time to wait: give a timedelta of zero or more, as timedelta(seconds=3)"
    if wait > LONGEST_WAIT:
        return LONGEST_WAIT, f"; retry_after={shown(given)} is more than {LONGEST_WAIT.days} days, which is the longest wait"
    wrong = "" if wait is given else f"; retry_after={shown(given)} was taken as seconds: give a timedelta, as timedelta(seconds=3)"
    return wait, wrong


def _seconds(count: float) -> timedelta | None:
    try:
        return timedelta(seconds=count)
    except (OverflowError, ValueError):
        return None


def _how_to_load(in_flight: InFlightCall, words: str) -> str:
    """Return the cure for a call that read an attribute of its record which was not loaded. words: SQLAlchemy's error text."""
    found = re.search(r"(deferred|lazy) load operation of attribute '(\w+)'", words)
    option, name = ("undefer" if found[1] == "deferred" else "selectinload", found[2]) if found else ("selectinload", "...")
    loads = f"from sqlalchemy.orm import {option}, and @service.call(load=[{option}({in_flight.query.spec.record.__name__}.{name})])"
    return f"Load it: {loads}; or make the argument by `prepare`"


def _surely_not_done(service: ServiceSpec, error: Exception) -> bool:
    """Return whether the service's declaration lists this error as not done. Dotted paths are resolved only now, so that a list imports
    nothing.
    """
    return any(_means(listed, error) for listed in service.not_done)


def _means(listed: NotDoneWhen, error: Exception) -> bool:
    if isinstance(listed, str):
        kind = _resolve(listed)
        return kind is not None and isinstance(error, kind)
    if isinstance(listed, type):
        return isinstance(error, listed)
    try:
        said = listed(error)
        lost = unawaited(said)
        if lost is not None:
            raise TypeError(f"it returned {lost}: make it a plain function that returns True or False")
        return bool(said)
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

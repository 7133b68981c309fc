"""Runs calls and lookups: async functions on an event loop of its own, sync functions in threads. Each ends in one CallResult.

This module uses no database, and never the event loop of the host application. So a user's call that blocks the loop delays other calls,
but neither the liveness check nor the writing of results (hazard 41).
"""

from __future__ import annotations

import asyncio
import builtins
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, suppress
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

from groundstate.clock import SYSTEM_CLOCK, Clock
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
from groundstate.engine.sql.call_write_guard import refusing_writes
from groundstate.engine.sql.safe_text import (
    UserCodeRaised,
    describe_exception,
    has_readable_class,
    original_exception,
    reraise_keyboard_interrupt,
    safe_repr,
    safe_str,
    where_raised,
)
from groundstate.engine.watch.trace_hooks import NOBODY
from groundstate.rules.policy import MARGIN
from groundstate.rules.specs import CallSpec, Function, NotDoneWhen, ServiceSpec
from groundstate.values import log_store
from groundstate.values.answers import Absent, NotDone, Throttled, Unknown
from groundstate.values.unawaited import describe_unawaited

log = logging.getLogger("groundstate")
UNWINDS_S = 1.0  # seconds: an async call ends within this time after its time limit, unless it ignores its cancellation
LONGEST_WAIT = timedelta(days=365)  # the longest wait for which a service can ask by `retry_after`
_PLAIN = frozenset({str, int, float, bool, type(None), dict, list})
_SLOW_CLIENT = (
    "the client= of the service {} takes long to make its client, and async calls wait for that, once in each worker; where it loads"
    " certificates, let it take an ssl.SSLContext that was made at the import"
)


class CallExecutor:
    """Runs calls to external services and reports their results.

    report: a function that is called with each batch of results, from any thread.
    holds_lock: a function that returns whether the worker incarnation with this id still holds its lock. It must make no query.
    """

    def __init__(
        self, report: Callable[[Sequence[CallResult]], None], holds_lock: Callable[[int], bool], clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._report = report
        self._clock = clock
        self.watched = NOBODY
        self._holds_lock = holds_lock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._none_on_loop = threading.Event()  # set when no task is left on the event loop
        self._may_stop = threading.Event()  # set before this class stops the loop; if it is not set, a user's call has stopped the loop
        self._told_of_stop = False
        self._task_of: dict[InFlightCall, asyncio.Task[None]] = {}
        self._clients = AsyncExitStack()
        self._opened: dict[ServiceSpec, asyncio.Future[Any]] = {}
        self._making: str | None = None  # name of the service whose `client=` runs on the loop now; None if none does
        self._beat_asked = self._beat_heard = self._beat_told = 0
        # monotonic seconds at which `seconds_loop_blocked` scheduled its callback; None once the callback has run
        self._asked_at: float | None = None
        self._sync_clients = ExitStack()
        self._sync_opened: dict[ServiceSpec, Future[Any]] = {}
        self._sync_lock = threading.Lock()
        self.threads = Threads()
        self.draining = False
        # (reaction, attribute of its snapshot) -> call number: for this call it was logged that the call changed the attribute
        self._told_of: dict[tuple[str, str], int] = {}

    # ---- methods called by the transactions' thread --------------------------------------------------------------------------
    def start(self, in_flights: Sequence[InFlightCall]) -> None:
        """Start these calls and lookups. A call that may no longer be sent (its deadline is near, or the lock is lost) is reported as
        NotSent. A call that cannot be started is reported as NothingHappened: it was surely not done.
        """
        on_loop: list[InFlightCall] = []
        for in_flight in [one for one in in_flights if call_many.declared_call_many(one) is None]:
            if self._user_function(in_flight).is_async:
                on_loop.append(in_flight)
            else:
                self._start_in_thread([in_flight], partial(self._run_sync_call, in_flight))
        if on_loop:
            self._start_on_loop(on_loop, partial(self._create_tasks, on_loop))
        for call, group in call_many.group_calls_for_call_many(in_flights):
            if call.function.is_async:
                self._start_on_loop(group, partial(self._create_task_for_group, call, group))
            else:
                self._start_in_thread(group, partial(self._run_sync_call_many, call, group))

    def _start_in_thread(self, in_flights: Sequence[InFlightCall], work: Callable[[], None]) -> None:
        try:
            self.threads.run(work)
        except Exception as error:  # for example, the operating system refuses to start another thread
            self._report_results(*[self._result_of_failed_start(in_flight, error, "it could not be started") for in_flight in in_flights])

    def _start_on_loop(self, in_flights: Sequence[InFlightCall], work: Callable[[], None]) -> None:
        try:
            self._ensure_loop().call_soon_threadsafe(work)
        except Exception as error:  # for example, the operating system has no thread or file descriptor left for the event loop
            self._report_results(*[self._result_of_failed_start(in_flight, error, "it could not be started") for in_flight in in_flights])

    def cancel(self, in_flights: Sequence[InFlightCall]) -> None:
        """Cancel these calls if they run as tasks on the event loop and may be stopped; the other calls go on. A cancelled call ends in
        doubt.
        """
        if self._loop is not None:
            for in_flight in in_flights:
                task = self._task_of.get(in_flight)
                if task is not None:
                    in_flight.cut_off = True
                    self._loop.call_soon_threadsafe(task.cancel)

    def warn_if_loop_blocked(self) -> None:
        """Log a warning if the event loop has not run since this method was called last. In this case a user's call blocks the loop, and
        delays all other calls (hazard 41).
        """
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        if self._beat_asked > self._beat_heard and self._beat_asked != self._beat_told:
            self._beat_told = self._beat_asked
            frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001  # the only way to read another thread's stack
            stack, making = _format_stack_of_call(frame), self._making
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

    def seconds_loop_blocked(self) -> float:
        """Return the seconds for which the event loop has been blocked: the age of a callback that an earlier call of this method
        scheduled, and that has not run yet. Return 0 if there is no such callback. May be called from any thread.
        """
        loop, asked_at, now = self._loop, self._asked_at, self._clock.monotonic()
        if loop is None:
            return 0.0
        if asked_at is not None:
            return now - asked_at
        self._asked_at = now
        with suppress(RuntimeError):  # raised if the loop is closed
            loop.call_soon_threadsafe(self._clear_loop_probe)
        return 0.0

    def _clear_loop_probe(self) -> None:
        self._asked_at = None

    def stop(self, timeout_s: float) -> None:
        """Cancel the calls in flight, end the event loop and close the clients. Calls that have not ended after `timeout_s` seconds keep
        running; `number_running` still counts them.
        """
        try:
            self._sync_clients.close()
        except BaseException:
            log.exception("closing a service's client failed", extra={"event": "client_close_failed"})
        if self._loop is None or self._thread is None:
            return
        loop, self._loop = self._loop, None
        asyncio.run_coroutine_threadsafe(self._cancel_and_close_clients(), loop).add_done_callback(lambda _done: self._stop_loop(loop))
        self._thread.join(timeout_s)

    def _stop_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._may_stop.set()
        loop.call_soon_threadsafe(loop.stop)

    @property
    def number_running(self) -> int:
        """Return how many calls and lookups are still running."""
        return self.threads.number_busy + len(self._tasks)

    def wait_until_none_runs(self) -> None:
        """Wait until no call or lookup is running. Call it after `stop`."""
        self.threads.wait_until_none_works()
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
            # set only once the thread runs, so that after a failure the next call tries again to start a loop
            self._loop, self._thread = loop, thread
        return self._loop

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            while not self._run_loop_until_stopped(loop):
                pass
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _run_loop_until_stopped(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Run the event loop until it stops, and return whether this class stopped it. A user's call can stop it too, by `loop.stop()` or
        by a task that raises SystemExit; the caller must then run the loop again for the other calls.
        """
        try:
            loop.run_forever()
        except BaseException as error:
            log.exception(
                "a task that a call started and did not await raised %s: the calls go on",
                type(error).__name__,
                extra={"event": "call_task_raised"},
            )
            return False
        if not self._may_stop.is_set() and not self._told_of_stop:
            self._told_of_stop = True  # calls may stop the loop again and again: one log line is enough
            log.error(
                "an async call stopped the event loop of all calls by loop.stop(): it was started again. A call must not stop the loop",
                extra={"event": "call_loop_stopped"},
            )
        return self._may_stop.is_set()

    def _create_tasks(self, in_flights: Sequence[InFlightCall]) -> None:
        loop = asyncio.get_running_loop()
        for in_flight in in_flights:
            task = loop.create_task(self._run_async_call(in_flight))
            self._remember_task(task, [in_flight])
            call = in_flight.query.spec.call
            if call is not None and call.stop_when_overtaken:
                self._task_of[in_flight] = task
                task.add_done_callback(partial(self._forget_cancellable_task, in_flight))

    def _create_task_for_group(self, call: CallSpec, group: Sequence[InFlightCall]) -> None:
        self._remember_task(asyncio.get_running_loop().create_task(self._run_async_call_many(call, group)), group)

    def _remember_task(self, task: asyncio.Task[None], in_flights: Sequence[InFlightCall]) -> None:
        self._tasks.add(task)
        task.add_done_callback(partial(self._remove_ended_task, in_flights))

    def _remove_ended_task(self, in_flights: Sequence[InFlightCall], task: asyncio.Task[None]) -> None:
        """Forget an ended task. If it was cancelled before it ran at all (a call may cancel all tasks of its loop), report its calls as
        NotSent; a task that ran reports its results itself.
        """
        self._tasks.discard(task)
        if task.cancelled():
            self._report_results(*[NotSent(in_flight) for in_flight in in_flights])

    def _forget_cancellable_task(self, in_flight: InFlightCall, _done: asyncio.Task[None]) -> None:
        self._task_of.pop(in_flight, None)

    async def _cancel_and_close_clients(self) -> None:
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
    async def _run_async_call(self, in_flight: InFlightCall) -> None:
        if not self._may_be_sent(in_flight):
            self._report_results(NotSent(in_flight))
            return
        try:
            client = await self._get_async_client(in_flight)
        except BaseException as error:  # for example a CancelledError while the task waits for the client
            self._report_results(self._result_of_failed_start(in_flight, error))
            return
        if not self._may_be_sent(in_flight):  # opening the client took time, so the call's deadline may be too near now
            self._report_results(NotSent(in_flight))
            return
        in_flight.ends_s = self._clock.monotonic() + in_flight.timeout.total_seconds() + UNWINDS_S
        told, limit = self.watched.trace_calls([in_flight]), asyncio.timeout(in_flight.timeout.total_seconds())
        try:
            with self._write_guard(in_flight):
                async with limit:
                    value = await self._user_function(in_flight)(in_flight.argument, **self._supplies_for_call(in_flight, client))
            result = self._result_of_returned_value(in_flight, value)
        except BaseException as error:  # every in-flight call must end in a result, whatever was raised
            result = self._result_of_exception(in_flight, error, over=limit.expired())
        told([result])
        self._report_results(self._as_result_after_time_limit(result))

    async def _run_async_call_many(self, call: CallSpec, in_flights: Sequence[InFlightCall]) -> None:
        """Make one external call for many records, and report a result for each. A record without an outcome in the answer gets a result
        that puts its attempt in doubt.
        """
        try:
            client = await self._get_async_client(in_flights[0])
        except BaseException as error:
            self._report_results(*[self._result_of_failed_start(in_flight, error) for in_flight in in_flights])
            return
        going = self._calls_that_may_go_out(in_flights)
        if not going:
            return
        for in_flight in going:
            in_flight.ends_s = self._clock.monotonic() + call.timeout.total_seconds() + UNWINDS_S
        told, limit = self.watched.trace_calls(going), asyncio.timeout(call.timeout.total_seconds())
        try:
            with self._write_guard(going[0]):
                async with limit:
                    answers = await call.function(
                        [in_flight.argument for in_flight in going], **self._supplies_for_call_many(going, client)
                    )
        except BaseException as error:
            results = [self._result_of_exception(in_flight, error, over=limit.expired()) for in_flight in going]
        else:
            results = self._results_of_call_many(going, answers)
        told(results)
        self._report_results(*[self._as_result_after_time_limit(result) for result in results])

    def _run_sync_call_many(self, call: CallSpec, in_flights: Sequence[InFlightCall]) -> None:
        """Make one external call for many records in a thread, and report a result for each of them."""
        try:
            client = self._get_sync_client(call.service)
        except BaseException as error:
            self._report_results(*[self._result_of_failed_start(in_flight, error) for in_flight in in_flights])
            return
        going = self._calls_that_may_go_out(in_flights)
        if not going:
            return
        for in_flight in going:
            in_flight.ends_s = self._clock.monotonic() + call.timeout.total_seconds()
        told = self.watched.trace_calls(going)
        try:
            with self._write_guard(going[0]):
                answers = call.function([in_flight.argument for in_flight in going], **self._supplies_for_call_many(going, client))
        except BaseException as error:
            results = [self._result_of_exception(in_flight, error) for in_flight in going]
        else:
            results = self._results_of_call_many(going, answers)
        told(results)
        self._report_results(*[self._as_result_after_time_limit(result) for result in results])

    def _calls_that_may_go_out(self, in_flights: Sequence[InFlightCall]) -> list[InFlightCall]:
        """Return the calls that may still be sent, and report the others as NotSent."""
        going = [in_flight for in_flight in in_flights if self._may_be_sent(in_flight)]
        self._report_results(*[NotSent(in_flight) for in_flight in in_flights if in_flight not in going])
        return going

    def _supplies_for_call_many(self, going: Sequence[InFlightCall], client: Any) -> dict[str, Any]:
        return self._supplies_for_call(going[0], client) | {"keys": [in_flight.key for in_flight in going]}

    def _as_result_after_time_limit(self, result: CallResult) -> CallResult:
        """Return this result. If the call had timed out and brought no outcome, return a ThreadEnded instead, since its attempt is in doubt
        already.
        """
        return result if isinstance(result, Returned) or not result.in_flight.given_up else ThreadEnded(result.in_flight)

    def _results_of_call_many(self, going: Sequence[InFlightCall], answers: Any) -> list[CallResult]:
        lost = describe_unawaited(answers)
        if lost is not None:
            return [Unclear(in_flight, _unawaited_message(lost)) for in_flight in going]
        try:
            outcomes = call_many.assign_outcomes_to_records(answers, [in_flight.argument for in_flight in going])
        except call_many.AmbiguousAnswer as error:
            return [Unclear(in_flight, safe_str(error)) for in_flight in going]
        except BaseException as error:  # the answer may be of a user's class, whose methods can raise anything
            return [Unclear(in_flight, f"the answer of call_many cannot be read: {describe_exception(error)}") for in_flight in going]
        return [self._result_within_call_many(in_flight, outcome) for in_flight, outcome in zip(going, outcomes, strict=True)]

    def _result_within_call_many(self, in_flight: InFlightCall, outcome: Any) -> CallResult:
        if outcome is call_many.NOTHING:
            return Unclear(in_flight, "the answer of call_many says nothing of this record")
        return self._result_of_call_value(in_flight, outcome)

    def _run_sync_call(self, in_flight: InFlightCall) -> None:
        call = in_flight.query.spec.call
        try:
            client = self._get_sync_client(call.service) if call is not None else None
        except BaseException as error:
            self._report_results(self._result_of_failed_start(in_flight, error))
            return
        if not self._may_be_sent(in_flight):
            self._report_results(NotSent(in_flight))
            return
        in_flight.ends_s = self._clock.monotonic() + in_flight.timeout.total_seconds()
        told = self.watched.trace_calls([in_flight])
        try:
            with self._write_guard(in_flight):
                value = self._user_function(in_flight)(in_flight.argument, **self._supplies_for_call(in_flight, client))
            result = self._result_of_returned_value(in_flight, value)
        except BaseException as error:  # every in-flight call must end in a result, whatever was raised
            result = self._result_of_exception(in_flight, error)
        told([result])
        self._report_results(self._as_result_after_time_limit(result))

    def _write_guard(self, in_flight: InFlightCall) -> AbstractContextManager[None]:
        """Return the context manager in which the user's function runs: inside it, writes to the app's stores are refused."""
        kind = "lookup" if in_flight.is_lookup else "call"
        return refusing_writes(in_flight.query.spec.app, f"the {kind} {self._user_function(in_flight).name} of {in_flight.query.spec.name}")

    # ---- call results ----------------------------------------------------------------------------------------------------------
    def _result_of_returned_value(self, in_flight: InFlightCall, value: Any) -> CallResult:
        if not in_flight.is_lookup:
            return self._result_of_call_value(in_flight, value)
        lost = describe_unawaited(value)
        if lost is not None:
            return FoundUnknown(in_flight, f"its lookup returned {lost}: declare it as `async def`, and await in it")
        if issubclass(type(value), BaseException):
            return self._result_of_exception(in_flight, value)
        if value is Absent or isinstance(value, Absent):
            return FoundAbsent(in_flight)
        if value is Unknown or isinstance(value, Unknown):
            return FoundUnknown(in_flight)
        return Returned(in_flight, value)

    def _result_of_call_value(self, in_flight: InFlightCall, value: Any) -> CallResult:
        """Return the result of a call that returned this value for one record. An exception that was returned counts as if it had been
        raised.
        """
        kind = type(value)  # not `isinstance`: a proxy object may claim to be of another class
        if kind in _PLAIN:
            return Returned(in_flight, value)
        lost = describe_unawaited(value)
        if lost is not None:
            return Unclear(in_flight, _unawaited_message(lost))
        if issubclass(kind, BaseException):
            return self._result_of_exception(in_flight, value)
        if issubclass(kind, type) and issubclass(value, NotDone):
            return self._result_of_exception(
                in_flight, NotDone(f"the call returned the class {value.__name__}: raise {value.__name__}(...)")
            )
        if issubclass(kind, Absent | Unknown) or value is Absent or value is Unknown:
            name = value.__name__ if kind is type else kind.__name__
            return Unclear(
                in_flight,
                f"the call returned {name}, which is an answer of a lookup and does not say what the call did: return the outcome, or"
                " raise NotDone(...) where surely nothing was done",
            )
        return Returned(in_flight, value)

    def _result_of_exception(self, in_flight: InFlightCall, error: BaseException, *, over: bool = False) -> CallResult:
        """Return the result of a call or lookup that raised `error`. over: whether our time limit ended the call or lookup."""
        error = original_exception(error) if has_readable_class(error) else UserCodeRaised(error)
        if in_flight.is_lookup and over:
            return FoundUnknown(in_flight, f"its lookup timed out after {in_flight.timeout.total_seconds():g} s")
        if in_flight.is_lookup:
            return FoundUnknown(in_flight, f"lookup raised {describe_exception(error)}{where_raised(error)}")
        if isinstance(error, NotDone):
            # an invalid `retry_after` counts as a failure: otherwise the call might be repeated at once, for ever
            wait, wrong = _wait_asked_by_service(error)
            counts = not isinstance(error, Throttled) or wait is None
            return NothingHappened(in_flight, f"{describe_exception(error)}{wrong}", counts=counts, retry_after=wait)
        service = in_flight.query.spec.call.service if in_flight.query.spec.call else None
        if service is not None and isinstance(error, Exception) and _is_surely_not_done(service, error):
            return NothingHappened(in_flight, describe_exception(error))
        if isinstance(error, TimeoutError) and over and not safe_str(error):
            return Unclear(in_flight, f"timed out after {in_flight.timeout.total_seconds():g} s")
        if isinstance(error, TimeoutError):
            whose = f"raised within the call, before its timeout= of {in_flight.timeout.total_seconds():g} s was over"
            return Unclear(in_flight, f"{describe_exception(error)}{where_raised(error)}: {whose}")
        if type(error).__name__ == "DetachedInstanceError":
            return Unclear(in_flight, f"{describe_exception(error)}. {_how_to_load_attribute(in_flight, safe_str(error))}")
        return Unclear(in_flight, f"{describe_exception(error)}{where_raised(error)}")

    def _result_of_failed_start(
        self, in_flight: InFlightCall, error: BaseException, why: str = "the service's client could not be opened"
    ) -> CallResult:
        """Return the result of a call or lookup that failed before anything was sent."""
        text = f"{why}: {describe_exception(error)}"
        return FoundUnknown(in_flight, text) if in_flight.is_lookup else NothingHappened(in_flight, text)

    def _report_results(self, *results: CallResult) -> None:
        try:
            for result in results:
                if result.in_flight.given is not None:
                    self._log_snapshot_edits(result.in_flight, result.in_flight.given)
        finally:
            if results:
                self._report(results)

    def _log_snapshot_edits(self, in_flight: InFlightCall, given: readonly_record.GivenSnapshot) -> None:
        """Log which attributes a call changed on its copy of the record (the snapshot): these changes are lost. Each attribute of a
        reaction is logged once.
        """
        edited: list[str] = []
        with suppress(BaseException):  # comparing values of a user's class may raise anything
            edited = given.edited_paths()
        reaction = in_flight.query.spec.name
        # `setdefault` is atomic, and sync calls end in threads of their own.
        new = [name for name in edited if self._told_of.setdefault((reaction, name), in_flight.call) == in_flight.call]
        if new:
            log.error(
                "%s",
                readonly_record.in_place_edit_message(
                    f"the {'lookup' if in_flight.is_lookup else 'call'} {self._user_function(in_flight).name} of {reaction}", new
                ),
                extra={"event": "snapshot_edited", "reaction": reaction, "record": in_flight.identity[2]},
            )

    def _may_be_sent(self, in_flight: InFlightCall) -> bool:
        if self.draining or not self._holds_lock(in_flight.incarnation) or not in_flight.may_go_out():
            return False
        if in_flight.given is None:
            with suppress(BaseException):  # the argument may be of a user's class that raises when it is inspected
                in_flight.given = readonly_record.copy_editable_values(in_flight.argument)
        return True

    def _user_function(self, in_flight: InFlightCall) -> Function:
        call = in_flight.query.spec.call
        assert call is not None  # noqa: S101  # only a reaction with a call has calls in flight
        if in_flight.is_lookup:
            assert call.lookup is not None  # noqa: S101  # rules/attempt.py asks for a lookup only where one is declared
            return call.lookup
        return call.function

    def _supplies_for_call(self, in_flight: InFlightCall, client: Any) -> dict[str, Any]:
        return {"key": in_flight.key, "ctx": in_flight.moment, "client": client, "occurrence": in_flight.occurrence}

    async def _get_async_client(self, in_flight: InFlightCall) -> Any:
        """Return the client of the call's external service. It is opened once in this event loop, and then shared (W25)."""
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
            _check_is_context_manager(call.service, manager)
            opened = self._opened[call.service] = asyncio.ensure_future(self._open_client(manager))
        try:
            async with asyncio.timeout(MARGIN.total_seconds()):  # after a longer wait it would be too late to send the call
                return await asyncio.shield(opened)
        except BaseException as error:
            # only this task was cancelled: other tasks still wait for the client
            ended_alone = not isinstance(error, Exception) and not opened.done()
            if not ended_alone and self._opened.get(call.service) is opened:
                del self._opened[call.service]  # the next call opens the client anew
            raise

    async def _open_client(self, manager: Any) -> Any:
        if hasattr(manager, "__aenter__"):
            return await self._clients.enter_async_context(manager)
        return self._clients.enter_context(manager)

    def _get_sync_client(self, service: ServiceSpec) -> Any:
        """Return the service's client, which all calls in threads share. It is opened once, in a thread of its own, since opening it may
        hang.
        """
        if service.client is None:
            return None
        with self._sync_lock:
            opened = self._sync_opened.get(service)
            if opened is None:
                opened = Future()
                threading.Thread(target=self._open_sync_client, args=(service, opened), name="groundstate-sync-client", daemon=True).start()
                self._sync_opened[service] = opened
        try:
            return opened.result(MARGIN.total_seconds())  # after a longer wait it would be too late to send the call
        except BaseException:
            with self._sync_lock:
                if self._sync_opened.get(service) is opened:
                    del self._sync_opened[service]  # the next call opens the client anew
            raise

    def _open_sync_client(self, service: ServiceSpec, opened: Future[Any]) -> None:
        try:
            manager: Any = service.client() if service.client is not None else None
            if hasattr(manager, "__aenter__") and not hasattr(manager, "__enter__"):
                raise TypeError("a sync call cannot use an async client: let `client` give a sync one, or make the call async")
            _check_is_context_manager(service, manager)
            opened.set_result(self._sync_clients.enter_context(manager))
        except BaseException as error:
            opened.set_exception(error)


def _unawaited_message(lost: str) -> str:
    """Return the error text for a call whose returned value was still to be awaited. lost: the description of that value."""
    return (
        f"the call returned {lost}, and no outcome: nothing of that was done, but what the call did before is not known. Declare the call"
        " as `async def`, and write `await` before it"
    )


def _format_stack_of_call(frame: FrameType | None) -> str:
    """Return the stack that ends in `frame`, as text. It begins with the user's call, the first frame below this file."""
    inner: list[str] = []
    while frame is not None and frame.f_code.co_filename != __file__:
        inner.insert(0, traceback.format_stack(frame, limit=1)[0].rstrip())
        frame = frame.f_back
    return "\n".join(inner) or "?"


def _check_is_context_manager(service: ServiceSpec, manager: Any) -> None:
    """Raise TypeError if the object that `client=` made is neither a sync nor an async context manager."""
    if not hasattr(manager, "__enter__") and not hasattr(manager, "__aenter__"):
        raise TypeError(
            f"the client= of {service.name} gives {type(manager).__name__}, which is no context manager and cannot be opened:"
            " give one that is, as httpx.Client is, or a function with contextlib.contextmanager around it"
        )


def _wait_asked_by_service(error: BaseException) -> tuple[timedelta | None, str]:
    """Return a pair: how long the service asks us to wait (None if it asks for no wait, or for an invalid one), and a text about what is
    wrong with `retry_after` (empty if nothing is). A number is taken as seconds.
    """
    wait: Any = getattr(error, "retry_after", None)
    if wait is None:
        return None, ""
    given = wait
    if isinstance(wait, int | float) and not isinstance(wait, bool):
        wait = _seconds_as_timedelta(wait)
    if not isinstance(wait, timedelta) or wait < timedelta():
        return None, f"; retry_after={safe_repr(given)} is no time to wait: give a timedelta of zero or more, as timedelta(seconds=3)"
    if wait > LONGEST_WAIT:
        return LONGEST_WAIT, f"; retry_after={safe_repr(given)} is more than {LONGEST_WAIT.days} days, which is the longest wait"
    wrong = "" if wait is given else f"; retry_after={safe_repr(given)} was taken as seconds: give a timedelta, as timedelta(seconds=3)"
    return wait, wrong


def _seconds_as_timedelta(count: float) -> timedelta | None:
    try:
        return timedelta(seconds=count)
    except (OverflowError, ValueError):
        return None


def _how_to_load_attribute(in_flight: InFlightCall, text: str) -> str:
    """Return words that say how to correct a call which read an unloaded attribute of its record. text: SQLAlchemy's error text."""
    found = re.search(r"(deferred|lazy) load operation of attribute '(\w+)'", text)
    option, name = ("undefer" if found[1] == "deferred" else "selectinload", found[2]) if found else ("selectinload", "...")
    loads = f"from sqlalchemy.orm import {option}, and @service.call(load=[{option}({in_flight.query.spec.record.__name__}.{name})])"
    return f"Load it: {loads}; or make the argument by `prepare`"


def _is_surely_not_done(service: ServiceSpec, error: Exception) -> bool:
    """Return whether the service's `not_done=` lists this error, so that the call was surely not done. Dotted paths of classes are resolved
    only here, so that declaring them imports nothing.
    """
    return any(_matches_not_done(listed, error) for listed in service.not_done)


def _matches_not_done(listed: NotDoneWhen, error: Exception) -> bool:
    if isinstance(listed, str):
        kind = _resolve_exception_class(listed)
        return kind is not None and isinstance(error, kind)
    if isinstance(listed, type):
        return isinstance(error, listed)
    try:
        said = listed(error)
        lost = describe_unawaited(said)
        if lost is not None:
            raise TypeError(f"it returned {lost}: make it a plain function that returns True or False")
        return bool(said)
    except BaseException as failed:
        reraise_keyboard_interrupt(failed)
        log.exception(
            "%r failed to tell whether %r means that nothing was done: the call is in doubt",
            listed,
            type(error).__name__,
            extra={"event": "not_done_failed"},
        )
        return False


def _resolve_exception_class(path: str) -> type[Exception] | None:
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module) if module else builtins, name, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None

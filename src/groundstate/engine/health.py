"""Makes a snapshot of a running worker for other threads: whether its loop runs, and its counters. Sends no query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from groundstate.engine.call.call_turn import CallTurns
from groundstate.engine.rows.attempt_text import count_with_noun
from groundstate.engine.watch.counters import CallOf, EndOf
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState


@dataclass(frozen=True)
class WorkerHealth:
    """The health of one worker at one moment. Numbers count from the start of the worker; fields that end in `_s` are seconds."""

    store: str
    incarnation: int  # id of the worker since it took its lock; a restarted worker gets another id
    sound: bool  # False once the worker may have lost its lock
    trouble: str | None  # what went wrong with the database in the last loop iteration; None if nothing did
    ended: BaseException | None  # the error that ended the worker's thread; None if there was none
    thread: int | None  # identifier of the worker's own thread; None before the start
    at_work: str | None  # name of the reaction whose handlers run now; None if none runs
    at_record: str | None  # the record on which a handler runs now; None if none runs
    turned_s: float  # seconds since the loop's latest pause between two iterations ended; 0 during a pause
    loop_late_s: float  # seconds by which the event loop of async calls is late
    waits_for_go: bool  # the worker carries out nothing until `begin_work` is called
    careful: bool
    workers: int
    refused: tuple[str, ...]  # reactions that do not start until a person accepts them
    suspects: tuple[str, ...]
    lacking: Mapping[str, str]  # by reaction: what the database lacks for its records, such as a column, and the cure
    waiting: Mapping[str, str]  # by reaction: why this worker does not carry it out now; includes the reactions in `lacking`
    begun: Mapping[CallOf, int]
    ended_calls: Mapping[EndOf, int]
    done: Mapping[str, int]
    failed: Mapping[str, int]
    expired: Mapping[str, int]
    batches: int
    in_the_air: Mapping[str, int]  # calls in flight, by external service
    hanging: int  # calls that still run past their time limit
    going_round: int  # number of cycles (reactions that undo each other's changes of a record) that are slowed down
    pauses: Mapping[str, int]  # by external service: for how many tenants its calls are paused by a circuit breaker
    sweeps: int
    sweeps_s: float
    sweep_s: float
    swept_s: float  # seconds since the last sweep ended


def build_worker_health(  # noqa: PLR0913  # values that only the worker has
    worker_state: WorkerState,
    call_turns: CallTurns,
    *,
    thread: int | None,
    turned_s: float,
    trouble: str | None,
    ended: BaseException | None,
    waits_for_go: bool,
    refused: Sequence[str],
    waiting: Mapping[str, str],
) -> WorkerHealth:
    """Build the health snapshot of a worker. Any thread may call this: counters are copied, since the worker goes on counting."""
    incarnation, tally = worker_state.incarnation, worker_state.tally
    return WorkerHealth(
        store=worker_state.store,
        incarnation=incarnation.id,
        sound=incarnation.sound,
        trouble=trouble,
        ended=ended,
        thread=thread,
        at_work=incarnation.at_work,
        at_record=incarnation.handlers.current_record,
        turned_s=turned_s,
        loop_late_s=call_turns.caller.seconds_loop_blocked(),
        waits_for_go=waits_for_go,
        careful=incarnation.care.careful,
        workers=tally.workers,
        refused=tuple(refused),
        suspects=tuple(incarnation.suspects),
        lacking={queue.name: lacks for queue in worker_state.queues if (lacks := queue.postponement.lacks) is not None},
        waiting=dict(waiting),
        begun=dict(tally.begun),
        ended_calls=dict(tally.ended),
        done=dict(tally.done),
        failed=dict(tally.failed),
        expired=dict(tally.expired),
        batches=tally.batches,
        in_the_air=call_turns.limits.calls_in_flight_by_service,
        hanging=call_turns.limits.number_of_hanging_calls,
        going_round=incarnation.rings.slowed_cycle_count,
        pauses=Counter(place[0].name for place in call_turns.limits.scopes_with_open_breaker),
        sweeps=tally.sweeps,
        sweeps_s=tally.sweeps_s,
        sweep_s=tally.sweep_s,
        swept_s=worker_state.clock.monotonic() - tally.swept_at,
    )


def reasons_not_idle(worker_state: WorkerState, call_turns: CallTurns, waiting: Mapping[str, str], *, ticks: bool) -> list[str]:
    """Return the reasons why a worker is not idle, as a list of at least one text; reactions that are not carried out come first. Any
    thread may call this.

    waiting: by reaction, why it is not carried out. ticks: whether ticks of schedules are due.
    """
    busy = dict.fromkeys(part.name for part in worker_state.all_queues if part.has_work or (part.is_enabled and part.rows.backlog))
    at_work = [part for part in worker_state.all_queues if part.name in busy and part.name not in waiting]
    found = [f"{name} is not carried out: {waiting[name]}" for name in busy if name in waiting]
    found += list(dict.fromkeys(f"{part.name} {_describe_queue_activity(part)}" for part in at_work))
    limits = call_turns.limits
    found += [
        f"{count_with_noun(count, 'call', 'calls')} to {name} in the air"
        for name, count in sorted(limits.calls_in_flight_by_service.items())
        if count
    ]
    if limits.number_of_hanging_calls:
        found.append(f"{count_with_noun(limits.number_of_hanging_calls, 'call', 'calls')} past the time limit, and not ended")
    if not found and not call_turns.is_idle:
        found.append("results of calls are not concluded yet, or calls wait for a slot or for a rate")
    rings = worker_state.incarnation.rings
    if rings.has_waiting_records or rings.slowed_cycle_count:
        found.append("records go round, and are carried out after pauses (`groundstate why` says by which reactions)")
    if worker_state.handler_locks.has_waiting_records:
        found.append("handlers wait for locks of other transactions (the log and `groundstate why` say whose)")
    suspect = worker_state.alone
    if suspect is not None:
        found.append(f"{suspect.reaction} on {suspect.record} is carried out alone first, since its worker ended (careful mode)")
    if ticks:
        found.append("ticks of schedules are due")
    lately = worker_state.progress.latest_reaction or "something"
    return found or [f"{lately} was carried out a moment ago, and it was not queried yet whether more is to be carried out"]


def _describe_queue_activity(queue: WorkQueue) -> str:
    if queue.postponement.search is not None:
        return "is searched for the records for which its condition raises"
    if queue.postponement.is_failing:
        return "pauses, since its handler failed for record after record"
    if queue.postponement.trouble:
        return "could not be queried or carried out the last time, as the log says, and is tried again"
    if queue.rows.aside:
        return "is queried beside the others, since its condition takes long"
    return "has more to do"

"""A snapshot of a running worker for other threads: whether its loop runs, and what it counted. Sends no query."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from groundstate.engine.call.call_turn import CallTurns
from groundstate.engine.rows.attempt_text import counted
from groundstate.engine.watch.counters import CallOf, EndOf
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState


@dataclass(frozen=True)
class WorkerHealth:
    """The health of one worker at one moment. Counts are since the worker was started; times are seconds."""

    store: str
    incarnation: int
    sound: bool  # False once the worker may have lost its lock
    trouble: str | None  # what went wrong with the database in the last loop iteration
    ended: BaseException | None  # the error that ended the worker's thread
    thread: int | None  # identifier of the worker's own thread
    at_work: str | None  # the reaction whose handlers run now
    at_record: str | None  # the record on which a handler runs now
    turned_s: float  # seconds since the last loop iteration, or since the end of the wait after it
    loop_late_s: float  # seconds by which the event loop of async calls is late
    waits_for_go: bool  # the worker carries out nothing until `go` is called
    careful: bool
    workers: int
    refused: tuple[str, ...]  # reactions that do not start until a person accepts them
    suspects: tuple[str, ...]
    lacking: Mapping[str, str]  # by reaction: what the database lacks for its records, such as a column, and the cure
    waiting: Mapping[str, str]  # by reaction: why this worker does not carry it out now; includes those in `lacking`
    begun: Mapping[CallOf, int]
    ended_calls: Mapping[EndOf, int]
    done: Mapping[str, int]
    failed: Mapping[str, int]
    expired: Mapping[str, int]
    batches: int
    in_the_air: Mapping[str, int]  # calls in flight, by external service
    hanging: int  # calls that still run past their time limit
    going_round: int  # cycles of reactions that are slowed down, since they undo each other on a record
    pauses: Mapping[str, int]  # by external service: how many of its tenants have an open breaker
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
    """Build the health snapshot of a worker, on any thread. Counters are copied, since the worker goes on counting."""
    incarnation, tally = worker_state.incarnation, worker_state.tally
    return WorkerHealth(
        store=worker_state.store,
        incarnation=incarnation.id,
        sound=incarnation.sound,
        trouble=trouble,
        ended=ended,
        thread=thread,
        at_work=incarnation.at_work,
        at_record=incarnation.handlers.record,
        turned_s=turned_s,
        loop_late_s=call_turns.caller.late_s(),
        waits_for_go=waits_for_go,
        careful=incarnation.care.careful,
        workers=tally.workers,
        refused=tuple(refused),
        suspects=tuple(incarnation.suspects),
        lacking={queue.name: queue.lacks for queue in worker_state.queues if queue.lacks is not None},
        waiting=dict(waiting),
        begun=dict(tally.begun),
        ended_calls=dict(tally.ended),
        done=dict(tally.done),
        failed=dict(tally.failed),
        expired=dict(tally.expired),
        batches=tally.batches,
        in_the_air=call_turns.limits.in_the_air,
        hanging=call_turns.limits.hanging,
        going_round=incarnation.rings.slowed,
        pauses=Counter(place[0].name for place in call_turns.limits.open_breakers),
        sweeps=tally.sweeps,
        sweeps_s=tally.sweeps_s,
        sweep_s=tally.sweep_s,
        swept_s=time.monotonic() - tally.swept_at,
    )


def not_idle(worker_state: WorkerState, call_turns: CallTurns, waiting: Mapping[str, str], *, ticks: bool) -> list[str]:
    """What keeps a worker from being idle, in words, what waits for somebody first. From any thread. waiting: by reaction, why it is not
    carried out. ticks: whether schedules are.
    """
    busy = dict.fromkeys(part.name for part in worker_state.parts if part.wants or (part.on and part.backlog))
    at_work = [part for part in worker_state.parts if part.name in busy and part.name not in waiting]
    found = [f"{name} is not carried out: {waiting[name]}" for name in busy if name in waiting]
    found += list(dict.fromkeys(f"{part.name} {_what_it_does(part)}" for part in at_work))
    limits = call_turns.limits
    found += [f"{counted(count, 'call', 'calls')} to {name} in the air" for name, count in sorted(limits.in_the_air.items()) if count]
    if limits.hanging:
        found.append(f"{counted(limits.hanging, 'call', 'calls')} past the time limit, and not ended")
    if not found and not call_turns.quiet:
        found.append("what calls brought is not written down yet, or calls wait for a slot or for a rate")
    rings = worker_state.incarnation.rings
    if rings.wait or rings.slowed:
        found.append("records go round, and are carried out after pauses (`groundstate why` says by which reactions)")
    suspect = worker_state.alone
    if suspect is not None:
        found.append(f"{suspect.reaction} on {suspect.record} is carried out alone first, since its worker ended (careful mode)")
    if ticks:
        found.append("ticks of schedules are due")
    lately = worker_state.took_last or "something"
    return found or [f"{lately} was carried out a moment ago, and it was not looked yet whether more is to be"]


def _what_it_does(queue: WorkQueue) -> str:
    if queue.search is not None:
        return "is asked for the records of which its condition cannot be asked"
    if queue.failing.open:
        return "pauses, since its handler failed for record after record"
    if queue.trouble:
        return "could not be asked or carried out at all the last time, as the log says, and is tried again"
    if queue.aside:
        return "is asked beside the others, since its condition takes long"
    return "has more to do"

"""How a running worker does, as other threads may see it: whether it turns, and what it counted. Asks no database."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from groundstate.engine.shift import Shift
from groundstate.engine.tally import CallOf, EndOf
from groundstate.engine.traffic import Traffic


@dataclass(frozen=True)
class Vitals:
    """Of one worker at one moment. Counts are since it was started; times are seconds."""

    store: str
    life: int
    sound: bool  # whether its lock is its own, as far as it knows
    trouble: str | None  # what its database was in trouble with in the last turn, in words
    ended: BaseException | None  # what ended it by itself
    thread: int | None  # the number of its own thread
    at_work: str | None  # the reaction whose handlers it runs just now
    at_record: str | None  # and the record on which one runs
    turned_s: float  # since its own thread came round, or was to after a wait
    loop_late_s: float  # for how long the loop of async calls has not come round
    held: bool  # it carries out nothing until it is told to
    careful: bool
    lives: int
    refused: tuple[str, ...]  # reactions that wait for a person to accept them
    suspects: tuple[str, ...]
    lacking: Mapping[str, str]  # reactions whose records have a column that the database has not: what and the cure, in words
    waiting: Mapping[str, str]  # every reaction that is not carried out here just now, and why: those that lack a column among them
    begun: Mapping[CallOf, int]
    ended_calls: Mapping[EndOf, int]
    done: Mapping[str, int]
    failed: Mapping[str, int]
    expired: Mapping[str, int]
    batches: int
    in_the_air: Mapping[str, int]  # by outside
    hanging: int  # calls that went on past their time limit
    going_round: int  # rings of records that are slowed down
    pauses: Mapping[str, int]  # by outside: of how many of its parts the endpoint fails, so that it pauses and is probed
    sweeps: int
    sweeps_s: float
    sweep_s: float
    swept_s: float  # since the last sweep came to its end


def of(  # noqa: PLR0913  # what a worker alone knows of itself
    shift: Shift,
    traffic: Traffic,
    *,
    thread: int | None,
    turned_s: float,
    trouble: str | None,
    ended: BaseException | None,
    held: bool,
    refused: Sequence[str],
    waiting: Mapping[str, str],
) -> Vitals:
    """From any thread. Counters are copied whole, since their worker goes on counting."""
    life, tally = shift.life, shift.tally
    return Vitals(
        store=shift.store,
        life=life.id,
        sound=life.sound,
        trouble=trouble,
        ended=ended,
        thread=thread,
        at_work=life.at_work,
        at_record=life.handlers.record,
        turned_s=turned_s,
        loop_late_s=traffic.caller.late_s(),
        held=held,
        careful=life.care.careful,
        lives=tally.lives,
        refused=tuple(refused),
        suspects=tuple(life.suspects),
        lacking={lane.name: lane.lacks for lane in shift.lanes if lane.lacks is not None},
        waiting=dict(waiting),
        begun=dict(tally.begun),
        ended_calls=dict(tally.ended),
        done=dict(tally.done),
        failed=dict(tally.failed),
        expired=dict(tally.expired),
        batches=tally.batches,
        in_the_air=traffic.limits.in_the_air,
        hanging=traffic.limits.hanging,
        going_round=life.rings.slowed,
        pauses=Counter(place[0].name for place in traffic.limits.open_breakers),
        sweeps=tally.sweeps,
        sweeps_s=tally.sweeps_s,
        sweep_s=tally.sweep_s,
        swept_s=time.monotonic() - tally.swept_at,
    )

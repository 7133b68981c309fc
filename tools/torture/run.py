"""One run on one store: the shop is set up, tormented, left until it is quiet, and judged."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy.exc import DBAPIError

from tools.torture.beside import ProviderProcess
from tools.torture.clock import Clock
from tools.torture.deploy import Deploys
from tools.torture.enemy import DELETED_IN_THE_AIR
from tools.torture.fleet import Fleet
from tools.torture.hands import Operator
from tools.torture.judge import Judge
from tools.torture.ledger import Reader, Requests
from tools.torture.orders import Orders
from tools.torture.place import create_place
from tools.torture.plan import KILLS, Plan, draw_actions_forever
from tools.torture.said import LoggedErrors, read_errors
from tools.torture.tormentor import Tormentor

HELPED_WITHIN_S = 30.0  # seconds of run time for which a person still tries to help at the end
FAULTS_ENOUGH = 25  # the run ends after this many faults, since its verdict is clear
CANCELS, DELETES = 8, 2  # percent of the iterations of the order thread


@dataclass
class State:
    """The progress of a run, for the display, and at its end its result: seconds and counts."""

    plan: Plan
    version: str = ""  # the version of the database
    disk: str = ""  # the method by which the disk is filled
    phase: str = "sets up"
    passed_s: float = 0.0
    tormented_s: float = 0.0
    kills: int = 0
    troubles: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    orders: Counter[str] = field(default_factory=Counter)
    effects: Counter[str] = field(default_factory=Counter)
    doubts: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    held_at_the_end: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    provider: dict[str, Any] = field(default_factory=dict)
    said: LoggedErrors = field(default_factory=LoggedErrors)
    faults: list[str] = field(default_factory=list)

    @property
    def has_passed(self) -> bool:
        """Whether every invariant held."""
        return not self.faults


def run(plan: Plan, tell: Callable[[State], None] = lambda _: None) -> State:
    """Carry out a plan; `tell` is called repeatedly with the progress.

    Raises:
        RuntimeError, TimeoutError, ServerError: the shop could not be set up, or its database did not come back; the run is not judged.
    """
    state, dice = State(plan), Random(plan.seed)
    with ExitStack() as stack:
        folder = stack.enter_context(_run_folder(plan.keep))
        place = stack.enter_context(create_place(folder, plan.store, Random(dice.random())))
        state.version, state.disk = place.version, place.disk.name if place.disk else "not possible here"
        provider = stack.enter_context(ProviderProcess(folder, dice.randrange(2**32)))
        log = folder / "processes.log"
        cold = {**os.environ, "TORTURE_DATABASE": place.url, "TORTURE_PROVIDER": str(provider.gate)}
        cold["GROUNDSTATE_STATE"] = str(folder / "state")  # beside the database and not in its folder, so that no copy includes it
        judge = Judge(place.engine, Reader(provider.ledger), stack.enter_context(Clock()))
        deploys = Deploys(cold, judge)
        deploys.create_tables()
        fleet = stack.enter_context(Fleet(cold | {"TORTURE_DATABASE": place.through}, cold, log))
        orders = Orders(place.engine, Random(dice.random()), plan.under_way, CANCELS, DELETES, judge.placed)
        hands = Operator(plan, dice, place, fleet, judge, deploys, orders, folder / "acts.log")
        tormentor = Tormentor(hands, Requests(provider.requests))
        show = _ProgressReporter(state, hands, tell)
        _run_actions(hands, tormentor, show)
        _wait_until_settled(hands, tormentor, provider, show)
        _end_run(hands, provider, log, show)
        if plan.keep is not None and plan.store == "sqlite":
            shutil.copytree(folder / "disk", folder / "database")
    return state


class _ProgressReporter:
    """Passes the progress of a run to `tell`."""

    def __init__(self, state: State, hands: Operator, tell: Callable[[State], None]) -> None:
        self.state = state
        self._hands, self._tell = hands, tell
        self._began = self._told = time.monotonic()

    def report_phase(self, phase: str, *, every_s: float = 0.5) -> None:
        """Report the progress, unless it was reported less than `every_s` seconds ago in the same phase."""
        now, state = time.monotonic(), self.state
        if now - self._told < every_s and phase == state.phase:
            return
        self._told, state.phase, state.passed_s = now, phase, now - self._began
        hands, judge, orders, place = self._hands, self._hands.judge, self._hands.orders, self._hands.place
        done = place.proxy.done if place.proxy else Counter[str]()
        state.kills, state.troubles, state.ends = hands.kills, +(hands.done + place.done), +hands.ends
        state.troubles += Counter({f"connections that were {'cut' if name == 'cut' else 'stalled'}": n for name, n in done.items()})
        state.orders = Counter({"placed": len(orders.placed), "cancelled on their way": orders.cancelled, "deleted": orders.deleted})
        state.effects = +judge.effects
        state.doubts, state.held, state.checks = +judge.doubts, +judge.held, +judge.checks
        state.excused, state.faults = +judge.excuses.counts, list(judge.faults)
        self._tell(state)


def _run_actions(hands: Operator, tormentor: Tormentor, show: _ProgressReporter) -> None:
    plan, orders, began = hands.plan, hands.orders, time.monotonic()
    end = began + plan.minutes * 60 if plan.minutes is not None else float("inf")
    enough = plan.kills if plan.kills is not None else float("inf")

    def is_over() -> bool:
        return time.monotonic() > end or orders.failure is not None or len(hands.judge.faults) >= FAULTS_ENOUGH

    with orders.placing_orders():
        for some in draw_actions_forever(plan, hands.dice):
            for what in some:
                if (what in KILLS and hands.kills >= enough) or is_over():
                    continue  # the other troubles of a chunk are made even if its kills were made sooner
                tormentor.carry_out(what)
                show.report_phase("torments")
            if hands.kills >= enough or is_over():
                break
        if not is_over():
            tormentor.carry_out_postponed(lambda: show.report_phase("catches up"))
        show.state.tormented_s = time.monotonic() - began
        hands.end_troubles()  # before the last orders are placed, since they wait for the database


def _wait_until_settled(hands: Operator, tormentor: Tormentor, provider: ProviderProcess, show: _ProgressReporter) -> None:
    """Kill no worker any more, and wait until all orders are final and no person can help any held attempt."""
    judge, clock = hands.judge, hands.judge.clock
    end = clock.awake_s + hands.plan.settles_within_s
    helped_until: float | None = None
    while True:
        hands.keep_workers_running()
        hands.fleet.wait_until(lambda: False, 0.2)
        tormentor.check_invariants()
        show.report_phase("settles")
        try:
            left, helpable = judge.list_unfinished(), judge.count_helpable()
        except DBAPIError:
            left, helpable = ["the database is in trouble"], 0
        if not left and not tormentor.restores.suspect and not provider.query_figures()["in the air"]:
            helped_until = helped_until or clock.awake_s + HELPED_WITHIN_S
            if not helpable or clock.awake_s > helped_until:
                return
            hands.run_person()
        if len(judge.faults) >= FAULTS_ENOUGH:
            return
        if clock.awake_s > end:
            since = f"{hands.plan.settles_within_s:g} s after the last kill"
            judge.add_fault("NotLost", f"not quiet {since}: {len(left)} left, such as {left[:5]}")
            return


def _end_run(hands: Operator, provider: ProviderProcess, log: Path, show: _ProgressReporter) -> None:
    show.report_phase("ends")
    hands.drain_all_workers()
    show.state.held_at_the_end = hands.judge.judge_end()
    show.state.said = read_errors(log, hands.done)
    for line, count in show.state.said.unexplained.items():
        hands.judge.add_fault("OthersGoOn", f"the processes said {count} times: {line}")
    deleted, put_back = hands.done[DELETED_IN_THE_AIR], show.state.said.put_back
    if len(put_back) > deleted:
        words = f"{deleted} attempts were deleted by hand, and {len(put_back)} were taken for it: {sorted(put_back)[:20]}"
        hands.judge.add_fault("Guarded", words)
    show.state.provider = provider.query_figures()
    show.report_phase("is judged", every_s=0)


@contextmanager
def _run_folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="groundstate-torture-") as folder:
        yield Path(folder).resolve()

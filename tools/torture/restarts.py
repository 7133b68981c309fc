"""Restarts PostgreSQL under workers that run: no call may be made twice because of it, and no worker may be recorded as ended.

For some seconds before and after a restart nothing else is done to the workers, so that the restart explains whatever happens to their
calls.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from sqlalchemy.exc import DBAPIError

from groundstate.rules.policy import MARGIN
from tools.torture.clock import Clock
from tools.torture.hands import Operator
from tools.torture.judge import Judge
from tools.torture.ledger import Request, Requests
from tools.torture.shop import SETTLE_AFTER, TIMEOUT

WAYS = ("fast", "immediate", "killed", "a backend killed")
BEFORE_S = 2.5  # seconds in which workers notice earlier damage to connections
AFTER_S = 8.0  # seconds of watching after a restart, since adoption waits for 5 s after a server's start
STOOD_STILL_S = 2.0  # seconds: if the machine stood still for longer, workers may not have come back in time, and the restart is not judged
FOUND_ABSENT_S = (TIMEOUT + MARGIN + SETTLE_AFTER).total_seconds()  # seconds after which a lookup may have found a call absent
CALLED_AGAIN = ("label", "announce", "listing")  # calls in doubt that their own worker repeats without a lookup
_LIVES = "SELECT id, pid FROM groundstate_worker WHERE ended_at IS NULL"
_ENDED = "SELECT id, pid FROM groundstate_worker WHERE ended_at IS NOT NULL"


class Restarts:
    """Restarts of the server, each with a check of its consequences."""

    def __init__(self, hands: Operator, requests: Requests) -> None:
        self._hands, self._requests = hands, requests

    def restart_and_check(self) -> None:
        """Restart the server under the running workers, watch them for a while, and judge the restart."""
        hands = self._hands
        hands.end_troubles()
        if hands.place.proxy is not None:
            hands.place.proxy.cancel_faults()
        hands.run_with_checks(BEFORE_S)
        self._requests.skip_existing()
        hands.let_shop_run(1.0)
        pids = {one.pid for one in hands.fleet.living_workers() if one.up}
        lives = {life for life, pid in hands.judge.books.query_rows(_LIVES) if pid in pids}
        began = time.time()
        how = hands.dice.choice(WAYS)
        hands.note_trouble()
        self._restart_server(how)
        hands.note_trouble()
        end = time.monotonic() + AFTER_S
        while time.monotonic() < end:
            hands.let_shop_run(0.2)
            hands.check_all()
        alive = pids & {one.pid for one in hands.fleet.living_workers()}
        hands.done[f"restarted under {len(alive)} workers: {how}"] += 1
        if standstill_s(hands.judge.clock, began, time.time()) > STOOD_STILL_S:
            hands.done["restarts on a machine that stood still, not judged"] += 1
            return
        try:
            ended = {life for life, pid in hands.judge.books.query_rows(_ENDED) if life in lives and pid in alive}
        except DBAPIError:
            return
        judge_restart(hands.judge, how, self._requests.read_new_requests(), alive, ended)

    def _restart_server(self, how: str) -> None:
        place = self._hands.place
        match how:
            case "killed":
                place.kill_server()
            case "a backend killed":
                place.kill_backend()
            case _:
                place.restart_server(how)


def standstill_s(clock: Clock, since: float, until: float) -> float:
    """Return the seconds for which the machine stood still between the two times (Unix time)."""
    return sum(max(0.0, min(ended, until) - max(begun, since)) for begun, ended in clock.standstills())


def is_settled(first: Request, later: Request) -> bool:
    """Return whether a worker may have learned in between that the first call was surely not done, so that any worker may call again."""
    return first.is_surely_not_done or (first.call not in CALLED_AGAIN and later.sent - first.sent > FOUND_ABSENT_S)


def judge_restart(judge: Judge, how: str, heard: Sequence[Request], alive: Collection[int], ended: Collection[int]) -> None:
    """Check NoSecondCall and OthersGoOn after a restart.

    heard: the requests since before the restart.
    alive: pids of the workers that survived it.
    ended: ids of their worker incarnations that are recorded as ended.
    """
    for life in ended:
        judge.add_fault("OthersGoOn", f"the life {life:x} is said to have ended, and its worker lived through the restart ({how})")
    before: dict[str, Request] = {}
    for one in heard:
        judge.checks["NoSecondCall"] += 1
        first = before.get(one.key)
        if first is not None and first.pid != one.pid and first.pid in alive and not is_settled(first, one):
            judge.add_fault("NoSecondCall", f"after a restart ({how}) {one} was called, and {first} was another living worker's")
        before[one.key] = one

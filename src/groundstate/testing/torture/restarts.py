"""The server is restarted under workers that live and work: no call may go out twice by it, and none of them is said to have ended.

For a moment before it, and for some seconds after, nothing else is done to them; so whatever happens to their calls is the restart's.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from sqlalchemy.exc import DBAPIError

from groundstate.rules.policy import MARGIN
from groundstate.testing.torture.clock import Clock
from groundstate.testing.torture.hands import Hands
from groundstate.testing.torture.judge import Judge
from groundstate.testing.torture.ledger import Request, Requests
from groundstate.testing.torture.shop import SETTLE_AFTER, TIMEOUT

WAYS = ("fast", "immediate", "killed", "a backend killed")
BEFORE_S = 2.5  # in which what was done to connections before is noticed
AFTER_S = 8.0  # adoption waits for 5 s after a server's start
STOOD_STILL_S = 2.0  # a machine on which workers may not have come back in time: then nothing is judged
FOUND_ABSENT_S = (TIMEOUT + MARGIN + SETTLE_AFTER).total_seconds()
CALLED_AGAIN = ("label", "announce", "listing")  # while they are in doubt, by the worker whose doubt it is, and nobody is asked first
_LIVES = "SELECT life, pid FROM groundstate_worker WHERE ended_at IS NULL"
_ENDED = "SELECT life, pid FROM groundstate_worker WHERE ended_at IS NOT NULL"


class Restarts:
    """Restarts, each with a look at what came of it."""

    def __init__(self, hands: Hands, requests: Requests) -> None:
        self._hands, self._requests = hands, requests

    def restart(self) -> None:
        """The act."""
        hands = self._hands
        hands.end_troubles()
        if hands.place.proxy is not None:
            hands.place.proxy.calm()
        hands.go_on(BEFORE_S)
        self._requests.skip()
        hands.pause(1.0)
        pids = {one.pid for one in hands.fleet.living() if one.up}
        lives = {life for life, pid in hands.judge.books.rows(_LIVES) if pid in pids}
        began = time.time()
        how = hands.dice.choice(WAYS)
        hands.in_trouble()
        self._restart(how)
        hands.in_trouble()
        end = time.monotonic() + AFTER_S
        while time.monotonic() < end:
            hands.pause(0.2)
            hands.look()
        alive = pids & {one.pid for one in hands.fleet.living()}
        hands.done[f"restarted under {len(alive)} workers: {how}"] += 1
        if stood_still(hands.judge.clock, began, time.time()) > STOOD_STILL_S:
            hands.done["restarts on a machine that stood still, not judged"] += 1
            return
        try:
            ended = {life for life, pid in hands.judge.books.rows(_ENDED) if life in lives and pid in alive}
        except DBAPIError:
            return
        judge_restart(hands.judge, how, self._requests.heard(), alive, ended)

    def _restart(self, how: str) -> None:
        place = self._hands.place
        match how:
            case "killed":
                place.kill_server()
            case "a backend killed":
                place.kill_backend()
            case _:
                place.restart_server(how)


def stood_still(clock: Clock, since: float, until: float) -> float:
    """For how many seconds in all the machine did not let us run between the two (Unix time)."""
    return sum(max(0.0, min(ended, until) - max(begun, since)) for begun, ended in clock.standstills())


def is_settled(first: Request, later: Request) -> bool:
    """Whether somebody may have found out meanwhile that the first one was surely not done: then anybody may call."""
    return first.surely_not_done or (first.call not in CALLED_AGAIN and later.sent - first.sent > FOUND_ABSENT_S)


def judge_restart(judge: Judge, how: str, heard: Sequence[Request], alive: Collection[int], ended: Collection[int]) -> None:
    """NoSecondCall and OthersGoOn. alive: the workers that lived through it. ended: those of their lives that are said to have ended."""
    for life in ended:
        judge.fault("OthersGoOn", f"the life {life:x} is said to have ended, and its worker lived through the restart ({how})")
    before: dict[str, Request] = {}
    for one in heard:
        judge.checks["NoSecondCall"] += 1
        first = before.get(one.key)
        if first is not None and first.pid != one.pid and first.pid in alive and not is_settled(first, one):
            judge.fault("NoSecondCall", f"after a restart ({how}) {one} was called, and {first} was another living worker's")
        before[one.key] = one

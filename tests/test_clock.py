"""The port of clocks and dice: what the system's show, and who is given them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from groundstate.clock import SYSTEM_CLOCK, SYSTEM_DICE, Clock, Dice, SeededDice, SystemDice
from groundstate.engine.rows import attempts
from groundstate.engine.worker.options import Options
from groundstate.engine.worker.runtime import Runtime
from groundstate.engine.worker.worker import Worker
from groundstate.store import connect
from tests.engine.clocks import Turned


def test_the_clocks_of_the_system_are_those_of_the_system() -> None:
    for ours, theirs in ((SYSTEM_CLOCK.monotonic, time.monotonic), (SYSTEM_CLOCK.wall, time.time)):
        before = theirs()
        assert before <= ours() <= theirs()
    assert SYSTEM_CLOCK.uptime_s() <= SYSTEM_CLOCK.uptime_s()
    assert SYSTEM_CLOCK.monotonic is time.monotonic, "what is read for each row costs one call of a built-in function"


@pytest.mark.parametrize("dice", [SYSTEM_DICE, SeededDice(1)], ids=["system", "seeded"])
def test_dice_are_within_their_bounds(dice: Dice) -> None:
    assert 0 <= dice.random() < 1
    assert dice.randrange(3) in (0, 1, 2)
    assert 0 <= dice.getrandbits(62) < 2**62
    assert len(dice.randbytes(16)) == 16
    assert 0 <= attempts.new_call_number(dice) < 2**63


def test_dice_with_one_seed_are_the_same_and_those_of_the_system_are_not() -> None:
    assert SeededDice(7).randbytes(8) == SeededDice(7).randbytes(8) != SeededDice(8).randbytes(8)
    assert SystemDice().randbytes(8) != SystemDice().randbytes(8)
    assert attempts.new_call_number(SeededDice(7)) == attempts.new_call_number(SeededDice(7))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_draws_no_number_that_its_parent_drew_ahead() -> None:
    ahead: list[int] = []
    while not ahead:  # numbers that were drawn ahead may just have been used up
        attempts.new_call_number(SYSTEM_DICE)
        ahead = list(SYSTEM_DICE.drawn)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, str(attempts.new_call_number(SYSTEM_DICE)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 100)) not in ahead
    os.close(reading)
    os.close(writing)


def test_a_worker_hands_its_clock_and_dice_on_with_its_database(tmp_path: Path) -> None:
    opened = connect.open_store(connect.resolve_settings(f"sqlite:///{tmp_path}/shop.db"))
    assert (opened[0].clock, opened[0].dice) == (SYSTEM_CLOCK, SYSTEM_DICE)
    clock: Clock = Turned(still=True)
    worker = Worker("shop", [], opened, options=Options(), runtime=Runtime(clock=clock, dice=SeededDice(1)))
    assert worker.incarnation.clock is opened[0].clock is clock
    assert worker.incarnation.id == SeededDice(1).getrandbits(62)

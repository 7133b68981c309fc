"""An attempt in a state that this version does not know: its record alone waits, for newer code or a person."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from groundstate.engine.operate import actions
from tests.engine.kit import until
from tests.others_go_on.conftest import ONE, Beside


@pytest.mark.parametrize("after_a_call", [False, True], ids=["without_a_call", "of_a_call"])
def test_a_state_is_unknown(beside: Beside, after_a_call: bool) -> None:
    mended = threading.Event()

    def fails(_one: object) -> None:
        if not mended.is_set():
            raise ValueError("not yet")

    async def receipt() -> str:
        return "receipt"

    if after_a_call:
        beside.called(receipt, handler=fails)
    else:
        beside.handled(fails)
    beside.orders(1)
    life = beside.worker()
    until(lambda: beside.states() == ["held"], beside.attempts)
    life.stop()
    beside.force("UPDATE groundstate_attempt SET state = 'parked', deadline = '2020-01-01 00:00:00.000000'")
    beside.placed()
    life = beside.worker()
    beside.until_done()
    life.sweep()
    words = "which this version does not know"
    beside.listed(words, "held")
    beside.told_once("parked", "attempt_state_unknown")
    with beside.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT state FROM groundstate_attempt").scalar_one() == "parked"
    mended.set()
    with beside.person() as person:
        settle = partial(actions.settle, outcome='"receipt"') if after_a_call else actions.settle_absent
        assert "was taken as held" in settle(person, "done", str(ONE)).words
    until(lambda: ONE in beside.done(), beside.attempts)
    until(lambda: beside.attempts() == [], beside.attempts)

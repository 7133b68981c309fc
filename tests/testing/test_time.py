"""The clock leaps, and due times come, at the crossings of apps that are right; and faults of time, planted, are caught there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from groundstate.testing import Crashed, Lab, runner
from tests.sampling import a_few
from tests.testing import timed_apps as timed
from tests.testing.apps import Case
from tests.testing.engine_faults import Fault
from tests.testing.planting import planted
from tests.testing.searching import both, everything, limited_to, sampled
from tests.testing.time_faults import FAULTS

FULL = "GROUNDSTATE_LAB_FULL" in os.environ  # every crossing, and mixtures: some minutes


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A lab for one test, in which the engine's log says nothing."""
    monkeypatch.setattr(runner, "CLEAN_MOST", 3000)
    logging.disable(logging.CRITICAL)
    with Lab() as made:
        yield made
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("fault", a_few(FAULTS), ids=lambda fault: fault.words)
def test_a_fault_of_time_is_caught(lab: Lab, fault: Fault) -> None:
    with planted(*fault.changes), limited_to(fault.search), pytest.raises(Crashed) as caught:
        fault.case.run(lab, budget=0, seed=1)
    assert caught.value.invariant == fault.invariant, str(caught.value)


CASES = dict.fromkeys([*(fault.case for fault in FAULTS), timed.RENEWED_ASKED, timed.RENEWED_HELD, *timed.NIGHTS])


@pytest.mark.parametrize("case", a_few(CASES), ids=lambda case: case.app.name)
def test_nothing_is_reported_of_the_engine_as_it_is(lab: Lab, case: Case) -> None:
    if FULL:
        case.run(lab, budget=100)
        return
    of_faults = [sampled(fault.search, 5) for fault in FAULTS if fault.case is case]
    every = 40 if case in timed.NIGHTS or case.calls else 17
    with limited_to(both(*of_faults, sampled(everything(len(case.meanwhile)), every))):
        case.run(lab, budget=0, seed=1)

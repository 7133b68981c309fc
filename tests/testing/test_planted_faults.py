"""The lab catches what it is for: faults planted in the engine and in apps, each found by a few schedules; and it finds none without."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from groundstate.testing import Crashed, Lab, NeverTaken, runner
from groundstate.testing.search.schedule_search import CleanRun
from groundstate.testing.simulate.crash_plan import Move, Schedule
from tests.sampling import a_few
from tests.testing import apps
from tests.testing.app_faults import NEVER_TAKEN, SLIPS, Slip
from tests.testing.apps import Case
from tests.testing.engine_faults import FAULTS, Fault
from tests.testing.planting import planted
from tests.testing.searching import Search, both, limited_to


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A lab for one test. What the engine says to its log is what is tested for here, and no news."""
    monkeypatch.setattr(runner, "CLEAN_MOST", 600)  # what goes on for ever is seen sooner
    logging.disable(logging.CRITICAL)
    with Lab() as made:
        yield made
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("fault", a_few(FAULTS), ids=lambda fault: fault.words)
def test_a_fault_of_the_protocol_is_caught(lab: Lab, fault: Fault) -> None:
    with planted(*fault.changes), limited_to(fault.search), pytest.raises(Crashed) as caught:
        fault.case.run(lab, budget=0, seed=1)
    assert caught.value.invariant == fault.invariant, str(caught.value)


def _schedules_of(case: Case) -> Search:
    return both(*dict.fromkeys(fault.search for fault in FAULTS if fault.case is case))


@pytest.mark.parametrize("case", a_few(dict.fromkeys(fault.case for fault in FAULTS)), ids=lambda case: case.app.name)
def test_nothing_is_reported_of_the_engine_as_it_is(lab: Lab, case: Case) -> None:
    with limited_to(_schedules_of(case)):
        case.run(lab, budget=0, seed=1)


@pytest.mark.parametrize("slip", a_few(SLIPS), ids=lambda slip: slip.words)
def test_a_fault_of_an_app_is_caught(lab: Lab, slip: Slip) -> None:
    with limited_to(slip.search), pytest.raises((Crashed, NeverTaken)) as caught:
        slip.wrong.run(lab, budget=0, seed=1)
    assert getattr(caught.value, "invariant", NEVER_TAKEN) == slip.invariant, str(caught.value)


@pytest.mark.parametrize("slip", a_few(SLIPS), ids=lambda slip: slip.words)
def test_nothing_is_reported_of_the_app_that_is_right(lab: Lab, slip: Slip) -> None:
    with limited_to(slip.search):
        slip.right.run(lab, budget=0, seed=1)


def _in_the_clean_end(seen: CleanRun) -> Iterator[Schedule]:
    """A death and that of its restart, a restore, a lost lock: each in the last crossings, when all that was to be done is done."""
    end = seen.count
    yield Schedule((Move(end - 3, "die"), Move(end + 25, "die")))
    yield Schedule((Move(1, "copy"), Move(end - 1, "restore")))
    yield Schedule((Move(end - 1, "unlock"),))


def test_what_happens_in_the_clean_end_of_a_run_is_carried_out_to_its_own_end(lab: Lab) -> None:
    with limited_to(_in_the_clean_end):
        apps.ASKED.run(lab, budget=0, seed=1)


def test_no_fault_is_counted_twice() -> None:
    words = [fault.words for fault in FAULTS] + [slip.words for slip in SLIPS]
    assert len(set(words)) == len(words) >= 45

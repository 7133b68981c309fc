"""Limits, rates and lines under the lab: right at every crossing, on both databases, and wrong with each fault that is planted."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from groundstate.testing import Crashed, Lab, runner
from tests.sampling import a_few
from tests.testing.limited_apps import CASES, DIES, PLANTED, WORKERS, Case, Planted
from tests.testing.planting import planted
from tests.testing.searching import at, both, limited_to


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(runner, "CLEAN_MOST", 600)  # what goes on for ever is seen sooner
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("case", a_few(CASES, 2), ids=lambda case: case.app.name)
def test_it_is_right_whoever_dies_and_whoever_goes_on(quick: None, case: Case) -> None:
    with Lab() as lab, limited_to(both(DIES, WORKERS)):
        case.run(lab, budget=0, seed=1)


@pytest.mark.parametrize("case", a_few(CASES, 2), ids=lambda case: case.app.name)
def test_it_is_right_on_postgresql_too(quick: None, case: Case, postgres_url: str) -> None:
    with Lab(postgres=postgres_url) as lab, limited_to(at("die", "call")):
        case.run(lab, budget=0, seed=1)


@pytest.mark.parametrize("fault", a_few(PLANTED, 2), ids=lambda fault: fault.words)
def test_a_fault_is_caught(quick: None, fault: Planted) -> None:
    with Lab() as lab, planted(*fault.changes), limited_to(fault.search), pytest.raises(Crashed) as caught:
        fault.case.run(lab, budget=0, seed=1)
    assert caught.value.invariant == fault.invariant, str(caught.value)

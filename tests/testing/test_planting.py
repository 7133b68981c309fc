"""The faults that are planted stand where they are planted: told in moments, before a search of some minutes begins."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.testing import engine_faults, limited_apps, time_faults
from tests.testing.planting import Change, planted

CHANGES: dict[str, Sequence[Change]] = {
    **{fault.words: fault.changes for fault in [*engine_faults.FAULTS, *time_faults.FAULTS]},
    **{fault.words: fault.changes for fault in limited_apps.PLANTED},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_words_that_a_fault_replaces_stand_in_the_engine(changes: Sequence[Change]) -> None:
    before = [vars(change.owner)[change.name] for change in changes]
    with planted(*changes):
        assert all(vars(change.owner)[change.name] is not old for change, old in zip(changes, before, strict=True))

"""How many examples hypothesis makes here: few, and always the same ones. GROUNDSTATE_FUZZ makes more, and other ones each time."""

from __future__ import annotations

from hypothesis import settings

from tests.fuzz.times import TIMES

settings.register_profile("rules", deadline=None, max_examples=100 * TIMES, derandomize=TIMES == 1)
settings.load_profile("rules")

"""How many examples hypothesis makes here: few, and in CI always the same ones."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("rules", deadline=None, max_examples=100, derandomize=bool(os.environ.get("CI")))
settings.load_profile("rules")

"""By how much more nonsense is made than in the suite."""

from __future__ import annotations

import os

TIMES = int(os.environ.get("GROUNDSTATE_FUZZ", "1"))

"""For tests of applications: the crash lab. Never imported by what runs in production.

`Lab.crash_everywhere` kills an app at every statement, commit, hint and call, starts it again, and asserts that nothing was lost and
nothing done twice. `python -m groundstate.testing.torture` does it to real processes.
"""

from __future__ import annotations

from groundstate.testing.lab import Clock, Crashed, Findings, Lab, NeverTaken
from groundstate.testing.provider import Ledger

__all__ = ["Clock", "Crashed", "Findings", "Lab", "Ledger", "NeverTaken"]

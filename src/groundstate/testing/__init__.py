"""For tests of applications: the crash lab. Never imported by what runs in production.

`Lab.crash_everywhere` kills an app at every statement, commit, hint and call, starts it again, and asserts that nothing was lost and
nothing done twice. `python -m groundstate.testing.torture` does it to real processes.
"""

from __future__ import annotations

from groundstate.testing.clock import Clock
from groundstate.testing.lab import Lab, NeverTaken
from groundstate.testing.provider import Client, Ledger
from groundstate.testing.trial import Crashed, Findings

__all__ = ["Client", "Clock", "Crashed", "Findings", "Lab", "Ledger", "NeverTaken"]

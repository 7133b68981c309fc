"""The crash lab, with which users test their applications; production code never imports it.

`Lab.crash_everywhere` kills an app at every statement, commit, hint and call, starts it again, and asserts that no work was lost and none
was done twice. `python -m tools.torture` does the same to real processes.
"""

from __future__ import annotations

from groundstate.testing.lab import Lab, NeverTaken
from groundstate.testing.runner import Crashed, Findings
from groundstate.testing.simulate.clock import Clock
from groundstate.testing.simulate.fake_provider import Client, Ledger

__all__ = ["Client", "Clock", "Crashed", "Findings", "Lab", "Ledger", "NeverTaken"]

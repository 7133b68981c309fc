"""The crash lab, with which users test their applications. An application in production never imports it.

`Lab.crash_everywhere` kills an app at every statement, commit, hint and call, restarts it, and asserts that no work was lost or done twice.
`python -m tools.torture` kills real processes in the same way.
"""

from __future__ import annotations

from groundstate.testing.lab import Lab, NeverTaken
from groundstate.testing.runner import Crashed, Findings
from groundstate.testing.simulate.clock import Clock
from groundstate.testing.simulate.fake_provider import Client, Ledger

__all__ = ["Client", "Clock", "Crashed", "Findings", "Lab", "Ledger", "NeverTaken"]

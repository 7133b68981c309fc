"""A real worker process: `python -m benchmarks.worker LIMIT CALL_SECONDS COUNT URL`. It charges orders until it is killed.

Tells, once so many orders are under way (taken, or the lookup of their call asked), when the first and the last of them were, and its
memory.
`python -m benchmarks.worker timers COUNT URL` does the same with timers.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from pathlib import Path

from benchmarks.shop import charging_app, reminding_app
from groundstate import App


class Heard:
    """Which orders are under way, and since when."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen: dict[int, float] = {}
        self.all = threading.Event()

    def __call__(self, order: int) -> None:
        """Notes an order, once."""
        self.seen.setdefault(order, time.monotonic())
        if len(self.seen) >= self.count:
            self.all.set()


def work(app: App, heard: Heard) -> None:
    """Comes up, and goes on until killed."""
    app.start()
    if app.refused:
        sys.exit(f"not started: {app.refused}")
    print("up", flush=True)
    if heard.count:
        heard.all.wait()
        times = sorted(heard.seen.values())
        print(json.dumps({"first": times[0], "all": times[heard.count - 1], "memory_mb": memory_mb()}), flush=True)
    while app.failure is None:
        time.sleep(60)


def memory_mb() -> float:
    """The most that this program had in memory; on Linux not by getrusage, which counts what the process was before it became this one."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    [peak] = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(peak) / 1024


if __name__ == "__main__":
    hearing = Heard(int(sys.argv[-2]))
    if sys.argv[1] == "timers":
        work(reminding_app(sys.argv[-1], heard=hearing), hearing)
    else:
        work(charging_app(sys.argv[-1], limit=int(sys.argv[1]), call_s=float(sys.argv[2]), heard=hearing), hearing)

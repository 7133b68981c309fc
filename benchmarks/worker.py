"""A worker process: `python -m benchmarks.worker LIMIT CALL_SECONDS COUNT URL`. It charges orders until it is killed.

Once COUNT orders are under way (carried out, or their call was looked up), it prints when the first and the last of them were, and its
memory. `python -m benchmarks.worker timers COUNT URL` does the same with timers.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from pathlib import Path

from benchmarks.shop import create_charging_app, create_reminding_app
from groundstate import App


class OrdersUnderWay:
    """Records when each order was first under way."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen: dict[int, float] = {}
        self.all = threading.Event()

    def __call__(self, order: int) -> None:
        """Record that the order is under way, unless it was recorded before."""
        self.seen.setdefault(order, time.monotonic())
        if len(self.seen) >= self.count:
            self.all.set()


def run_worker(app: App, heard: OrdersUnderWay) -> None:
    """Start the app's worker, and run it until the process is killed."""
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
    """Return the peak memory of this process in MB.

    On Linux getrusage is not used, since it includes the process before it executed this program.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    [peak] = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(peak) / 1024


if __name__ == "__main__":
    hearing = OrdersUnderWay(int(sys.argv[-2]))
    if sys.argv[1] == "timers":
        run_worker(create_reminding_app(sys.argv[-1], heard=hearing), hearing)
    else:
        run_worker(create_charging_app(sys.argv[-1], limit=int(sys.argv[1]), call_s=float(sys.argv[2]), heard=hearing), hearing)

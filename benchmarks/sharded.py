"""Workload H: orders pass three steps on 1, 2 and 4 databases, by one process for each database and by one process for all. Steps a second.

As a program, `python -m benchmarks.sharded ours|bare URL`, it is the process of one shard, which begins when it reads a line.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial

from benchmarks.harness import (
    ROOT,
    Place,
    Row,
    Size,
    carry_out_all,
    count_with_status,
    insert_orders,
    median_of_rounds,
    read_line,
    require_count,
)
from benchmarks.shop import STEPS, Base, create_steps_app, create_steps_app_on, create_tables
from benchmarks.steps import run_bare_driver
from groundstate import Store

STORES: tuple[str, ...] = ("sqlite", "postgres")
LONGEST = timedelta(minutes=10)


def run(place: Place, size: Size) -> list[Row]:
    """Measure the same total number of orders on 1, 2 and 4 shards."""
    return [_measure_shards(place, size, number) for number in size.shards]


def _measure_shards(place: Place, size: Size, number: int) -> Row:
    each = size.orders // number

    def measure_rate(contender: str) -> float:
        with ExitStack() as stack:
            urls = [stack.enter_context(place.database()) for _ in range(number)]
            for url in urls:
                create_tables(create_steps_app(url))
                insert_orders(url, each, "placed")
            seconds = (
                carry_out_all(create_steps_app_on(Store.shards(urls, Base))) if contender == "together" else time_processes(contender, urls)
            )
            for url in urls:
                require_count(f"orders shipped by {contender}", count_with_status(url, "shipped"), each)
            return len(STEPS) * each * number / seconds

    found = median_of_rounds(size.rounds, {name: partial(measure_rate, name) for name in ("ours", "bare", "together")})
    figure = f"3-step orders, {number} {'shard' if number == 1 else 'shards'}, a process each"
    beside = {"driver, a process each": found["bare"], "one process of ours for all": found["together"]}
    return Row("H", place.name, figure, "steps/s", found["ours"], each * number * len(STEPS), beside)


def time_processes(contender: str, urls: Sequence[str]) -> float:
    """Return the seconds from the start signal until the last process has finished its shard."""
    with ExitStack() as stack:
        running = [_start_shard_process(stack, contender, url) for url in urls]
        for one in running:
            read_line(one)
        started = time.perf_counter()
        for one in running:
            assert one.stdin is not None  # it was asked for
            one.stdin.write("go\n")
            one.stdin.flush()
        for one in running:
            read_line(one)
        return time.perf_counter() - started


def _start_shard_process(stack: ExitStack, contender: str, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.sharded", contender, url]
    running = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.callback(_wait_for_end, running)
    return running


def _wait_for_end(running: subprocess.Popen[str]) -> None:
    running.kill()
    running.communicate()


def run_shard(contender: str, url: str) -> None:
    """Process one shard: print that it has started, wait for a line, carry out the orders, and print that it has finished."""
    app = create_steps_app(url)
    if contender == "ours":
        app.start(wait=True)
    print("up", flush=True)
    sys.stdin.readline()
    if contender == "ours":
        app.go()
        app.run_until_idle(LONGEST)
    else:
        run_bare_driver(url)
    print("done", flush=True)
    app.stop()


if __name__ == "__main__":
    run_shard(sys.argv[1], sys.argv[2])

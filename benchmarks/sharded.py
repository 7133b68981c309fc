"""H: orders pass three steps on 1, 2 and 4 databases, a process for each, and one process for all. Steps a second, in all.

As a program: `python -m benchmarks.sharded ours|bare URL`, the process of one shard, which waits for a line on stdin, and works.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial

from benchmarks.harness import ROOT, Place, Row, Size, alternate, carry_out_all, expect, fill, line_of, with_status
from benchmarks.shop import STEPS, Base, set_up, steps_app, steps_on
from benchmarks.steps import bare
from groundstate import Store

STORES: tuple[str, ...] = ("sqlite", "postgres")
LONGEST = timedelta(minutes=10)


def run(place: Place, size: Size) -> list[Row]:
    """The same number of orders in all, on more and more shards."""
    return [_row(place, size, number) for number in size.shards]


def _row(place: Place, size: Size, number: int) -> Row:
    each = size.orders // number

    def on(contender: str) -> float:
        with ExitStack() as stack:
            urls = [stack.enter_context(place.database()) for _ in range(number)]
            for url in urls:
                set_up(steps_app(url))
                fill(url, each, "placed")
            seconds = carry_out_all(steps_on(Store.shards(urls, Base))) if contender == "together" else by_processes(contender, urls)
            for url in urls:
                expect(f"orders shipped by {contender}", with_status(url, "shipped"), each)
            return len(STEPS) * each * number / seconds

    found = alternate(size.rounds, {name: partial(on, name) for name in ("ours", "bare", "together")})
    figure = f"3-step orders, {number} {'shard' if number == 1 else 'shards'}, a process each"
    beside = {"driver, a process each": found["bare"], "one process of ours for all": found["together"]}
    return Row("H", place.name, figure, "steps/s", found["ours"], each * number * len(STEPS), beside)


def by_processes(contender: str, urls: Sequence[str]) -> float:
    """From the word to go until the last of them has done its own."""
    with ExitStack() as stack:
        running = [_process(stack, contender, url) for url in urls]
        for one in running:
            line_of(one)
        started = time.perf_counter()
        for one in running:
            assert one.stdin is not None  # it was asked for
            one.stdin.write("go\n")
            one.stdin.flush()
        for one in running:
            line_of(one)
        return time.perf_counter() - started


def _process(stack: ExitStack, contender: str, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.sharded", contender, url]
    running = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.callback(_end, running)
    return running


def _end(running: subprocess.Popen[str]) -> None:
    running.kill()
    running.communicate()


def work(contender: str, url: str) -> None:
    """One shard: says that it is up, waits for the word, works, and says that it is done."""
    app = steps_app(url)
    if contender == "ours":
        app.start(wait=True)
    print("up", flush=True)
    sys.stdin.readline()
    if contender == "ours":
        app.go()
        app.run_until_idle(LONGEST)
    else:
        bare(url)
    print("done", flush=True)
    app.stop()


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2])

"""Shows that tests pass on a busy machine: runs them again and again beside processes that only compute.

    python -m tests.under_load                                              # every test, once, beside four busy loops
    python -m tests.under_load --times 10 tests/engine/call/test_limiter.py ...   # these files, ten times
    python -m tests.under_load --stalls 2 tests/engine/call/test_limiter.py       # and processes that stand still for up to 2 s

What it does not know is handed to pytest. It ends with 1 where a round failed, and tells which.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
# It ends with whoever started it, also where that was killed, and even before this one came to run.
LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(100_000))"
PAUSE_S = 0.3  # between two stalls


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """So many processes that only compute."""
    with ExitStack() as started:
        for _ in range(loops):
            loop = started.enter_context(subprocess.Popen([sys.executable, "-c", LOOP, str(os.getpid())]))
            started.callback(loop.kill)
        yield


@contextmanager
def stalling(process: subprocess.Popen[bytes], longest_s: float, dice: random.Random) -> Iterator[None]:
    """Meanwhile one process below this one, chosen anew each time, stands still for a while, as if the system gave it no time."""
    over = threading.Event()

    def stall() -> None:
        while not over.wait(PAUSE_S):
            stall_one(process.pid, longest_s, dice)

    thread = threading.Thread(target=stall)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def stall_one(root: int, longest_s: float, dice: random.Random) -> None:
    """Stops one process below `root` for a time of at most `longest_s`, and lets it go on. Does nothing where there is none.

    The program is chosen first and then its process: or else the many processes of a server would be chosen nearly always.
    """
    try:
        by_program: dict[str, list[psutil.Process]] = {}
        for one in psutil.Process(root).children(recursive=True):
            by_program.setdefault(one.name(), []).append(one)
        chosen = dice.choice(by_program[dice.choice(sorted(by_program))])
        chosen.send_signal(signal.SIGSTOP)
    except (IndexError, psutil.Error):  # none is there, or it has just ended
        return
    try:
        time.sleep(dice.uniform(0, longest_s))
    finally:
        with suppress(psutil.NoSuchProcess):
            chosen.send_signal(signal.SIGCONT)


def run_once(arguments: Sequence[str], stalls_s: float, dice: random.Random) -> int:
    """One run of pytest, as `./gs test` starts it; its exit status."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "5", "--dist", "loadfile", "--no-loadscope-reorder", *arguments]
    with subprocess.Popen(command, cwd=ROOT) as process, ExitStack() as around:
        around.callback(process.terminate)  # where this one is ended first
        if stalls_s:
            around.enter_context(stalling(process, stalls_s, dice))
        return process.wait()


def main(given: Sequence[str]) -> int:
    """0 where every round passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.under_load", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--loops", type=int, default=4, help="so many processes only compute meanwhile (4)")
    parser.add_argument("--times", type=int, default=1, help="so many rounds (1)")
    parser.add_argument("--stalls", type=float, default=0.0, metavar="SECONDS", help="processes of the tests stand still for up to so long")
    parser.add_argument("--seed", type=int, default=None, help="of the dice that choose who stands still")
    options, arguments = parser.parse_known_args(given)
    seed = options.seed if options.seed is not None else random.randrange(1_000_000)
    dice = random.Random(seed)
    failed = []
    for number in range(1, options.times + 1):
        started = time.monotonic()
        with busy(options.loops):
            status = run_once(arguments, options.stalls, dice)
        failed += [number] if status else []
        said = f"{'failed' if status else 'passed'} in {time.monotonic() - started:.0f} s, load {os.getloadavg()[0]:.1f}"
        print(f"round {number} of {options.times}: {said}", flush=True)
    print(f"{options.times - len(failed)} of {options.times} rounds passed" + (f"; failed: {failed}" if failed else ""), flush=True)
    if failed and options.stalls:
        print(f"the dice of the stalls: --seed {seed}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))

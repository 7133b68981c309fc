"""Child processes for tests of locks: one that holds a life until it is killed, and one that is forked from the test itself."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HOLDS = """
import sys
from groundstate.store.sqlite_liveness import FlockLiveness
from groundstate.store.connect import open_store, resolve_settings
url, life, kind = sys.argv[1:]
lives = FlockLiveness(url) if kind == "flock" else open_store(resolve_settings(url))[1]()
lives.take_lock(int(life))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(url: str, life: int, kind: str = "own") -> Iterator[subprocess.Popen[str]]:
    """A process that holds the life; killed with SIGKILL at the end, if it was not before."""
    command = [sys.executable, "-c", HOLDS, url, str(life), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@contextmanager
def forked(does: Callable[[], str]) -> Iterator[str]:
    """Forks; the child runs `does`, tells its answer, and stays alive, with all that it inherited, until the block ends."""
    answers, tells = os.pipe()
    waits, ends = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
        child = os.fork()
    if child == 0:
        try:
            os.close(ends)
            os.write(tells, does().encode())
            os.close(tells)
            os.read(waits, 1)
        finally:
            os._exit(0)
    os.close(tells)
    os.close(waits)
    try:
        with os.fdopen(answers) as file:
            yield file.read()
    finally:
        os.close(ends)
        os.waitpid(child, 0)

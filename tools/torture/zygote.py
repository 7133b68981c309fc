"""A process with all modules imported, which forks workers, so that ten thousand of them need not import anew.

It has one thread, and opens no database. Commands on stdin: `worker`, `restorer`, `person`, `signal PID NUMBER`. Answers on stdout: `born
PID`, `up PID` from a worker that has started, `ended PID STATUS` with the status of waitpid. A signal is sent to a child by its parent, so
that a pid cannot have been reused by another process. Run it as `python -m tools.torture.zygote LOG`.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

from tools.torture import person, shop, worker

# Modules that a worker's start imports late.
LATE = {
    "sqlite": (
        "sqlalchemy.dialects.sqlite.pysqlite",
        "groundstate.store.sqlite",
        "groundstate.store.sqlite_liveness",
        "groundstate.store.begin_counter_file",
    ),
    "postgresql": ("sqlalchemy.dialects.postgresql.psycopg", "groundstate.store.postgres", "groundstate.store.postgres_liveness"),
}
PLANTED = os.environ.get("TORTURE_PLANTED", "")  # a module that plants a fault on purpose, for tests of the judge
log = logging.getLogger("tools.torture")


def run_person() -> int:
    """Let the person handle all held attempts once, and log what was done; return the exit status."""
    done = person.handle_held_attempts()
    if done:
        log.warning("the person's round: %s", ", ".join(f"{name} {count}" for name, count in sorted(done.items())))
    return 0


def _report_started(answers: int) -> None:
    """Report a started worker to the reader of the zygote's output, in one write that a pipe does not split."""
    os.write(answers, b"up %d\n" % os.getpid())
    os.close(answers)


LIVES: dict[str, Callable[[Callable[[], None]], int]] = {
    "worker": worker.run,
    "restorer": lambda up: worker.run(up, after_restore=True),
    "person": lambda _: run_person(),
}


def run_child(log_file: str, life: Callable[[Callable[[], None]], int]) -> None:
    """Run in the forked process: start a session of its own, send its output to the log, and never return."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    said = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    answers = os.dup(1)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.close(0)
    status = worker.BY_ITSELF
    logging.basicConfig(level=logging.WARNING, format=f"%(asctime)s {os.getpid()} %(levelname)s %(message)s")
    try:
        status = life(lambda: _report_started(answers))
    except Exception:
        log.exception("ended by an error")
    os._exit(status)


def main(log_file: str) -> None:
    """Serve commands until stdin is closed."""
    if PLANTED:
        import_module(PLANTED)  # a fault on purpose, for tests of the judge
    for module in LATE[shop.app.stores[0].settings().url.get_backend_name()]:
        import_module(module)
    shop.app.check_declarations()
    gc.freeze()  # imported objects stay for ever, so garbage collections in the children need not copy their pages
    rest, children, ended_bell = b"", set[int](), _open_child_signal()
    while True:
        readable, _, _ = select.select([0, ended_bell], [], [])
        if ended_bell in readable:
            os.read(ended_bell, 65536)
        if 0 in readable:
            heard = os.read(0, 65536)
            if not heard:
                return
            *lines, rest = (rest + heard).split(b"\n")
            for line in lines:
                _execute_command(line.decode().split(), children, log_file)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                children.discard(ended[0])
                os.write(1, b"ended %d %d\n" % (ended[0], os.waitstatus_to_exitcode(ended[1])))


def _open_child_signal() -> int:
    """Return a descriptor that becomes readable when a child ends."""
    heard, rung = os.pipe()
    os.set_blocking(rung, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(rung, warn_on_full_buffer=False)
    return heard


def _execute_command(words: list[str], children: set[int], log_file: str) -> None:
    if words[0] == "signal":
        if int(words[1]) in children:  # the child is not reaped yet, so its pid cannot have been reused
            os.kill(int(words[1]), int(words[2]))
        return
    born = os.fork()
    if born == 0:
        run_child(log_file, LIVES[words[0]])
    children.add(born)
    os.write(1, b"born %d\n" % born)


if __name__ == "__main__":
    main(sys.argv[1])

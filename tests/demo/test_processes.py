"""No process of the demo may outlive its director, whatever way that one ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from groundstate.demo.processes import ListeningSockets, Processes, kill_and_reap
from tests.patience import HANG_S, until

SLEEPER = ["-c", "import time; time.sleep(600)"]
DIRECTOR = """
import signal, sys, time
from pathlib import Path
from groundstate.demo.processes import Processes
signal.signal(signal.SIGINT, signal.default_int_handler)  # which whoever runs tests in the background has it ignore
with Processes(Path(sys.argv[1]), {}) as processes:
    children = [processes.start(f"child{n}", ["-c", "import time; time.sleep(600)"]) for n in range(2)]
    print(*(child.pid for child in children), flush=True)
    time.sleep(600)
"""


def gone(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().split(") ")[1].startswith("Z")
    except FileNotFoundError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_children_die_with_a_director_that_is_killed_or_interrupted(tmp_path: Path, signal_number: int) -> None:
    director = subprocess.Popen(
        [sys.executable, "-c", DIRECTOR, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert director.stdout is not None
    with director.stdout as said:
        children = [int(pid) for pid in said.readline().split()]
    assert len(children) == 2
    assert not any(gone(pid) for pid in children)
    director.send_signal(signal_number)
    director.wait(HANG_S)
    until(lambda: all(gone(pid) for pid in children))


def test_children_die_when_the_with_is_left_by_an_error(tmp_path: Path) -> None:
    processes = Processes(tmp_path, {})
    child = processes.start("child", SLEEPER)
    with pytest.raises(RuntimeError, match="a mistake"), processes:
        raise RuntimeError("a mistake")
    assert child.returncode == -signal.SIGKILL


def test_a_killed_child_is_gone_when_kill_returns_and_its_log_is_kept(tmp_path: Path) -> None:
    with Processes(tmp_path, {"WORD": "hello"}) as processes:
        child = processes.start("child", ["-c", "import os, time; print(os.environ['WORD'], flush=True); time.sleep(600)"])
        until(lambda: "hello" in processes.last_log_lines("child"))
        kill_and_reap(child)
        assert child.returncode == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)
        assert processes.last_log_lines("another") == ""


def test_a_question_returns_what_was_said_and_the_exit_code(tmp_path: Path) -> None:
    with Processes(tmp_path, {}) as processes:
        done = processes.run_to_end(["-c", "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(4)"])
    assert (done.returncode, done.stdout) == (4, "out\nerr\n")


def test_a_door_is_on_loopback_and_takes_clients_before_its_server_runs() -> None:
    doors = ListeningSockets("shop")
    try:
        with socket.create_connection(("127.0.0.1", doors.ports["shop"]), timeout=HANG_S) as client:
            assert client.getpeername() == ("127.0.0.1", doors.ports["shop"])
    finally:
        doors.close("shop")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", doors.ports["shop"]), timeout=HANG_S)

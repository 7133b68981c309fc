"""What shows that the suite passes on a busy machine: that it is busy, that it stalls, and that it tells what failed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests import under_load
from tests.patience import HANG_S, until


def gone(process: psutil.Process) -> bool:
    """Or dead, and not waited for: where nobody does that for orphans, they stay so."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def a_test(folder: Path, words: str, times: int) -> list[str]:
    (folder / "test_it.py").write_text(f"def test_it():\n    {words}\n")
    return ["--loops", "1", "--times", str(times), "-n", "0", "-p", "no:cacheprovider", str(folder / "test_it.py")]


def test_rounds_that_pass_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert under_load.main(a_test(tmp_path, "pass", 1)) == 0
    assert "1 of 1 rounds passed" in capsys.readouterr().out


def test_a_round_that_fails_is_told_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = tmp_path / "once"
    assert under_load.main(a_test(tmp_path, f"open({str(once)!r}, 'x')", 2)) == 1  # the second round finds the file
    assert "1 of 2 rounds passed; failed: [2]" in capsys.readouterr().out


def test_whoever_is_chosen_stands_still_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = "import subprocess, sys\nwith subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE) as one: one.wait()"
    seen: list[str] = []
    with subprocess.Popen([sys.executable, "-c", starts]) as root:
        until(lambda: psutil.Process(root.pid).children())
        [child] = psutil.Process(root.pid).children()

        def meanwhile(_seconds: float) -> None:
            until(lambda: child.status() == psutil.STATUS_STOPPED)
            seen.append("stopped")

        monkeypatch.setattr(under_load, "time", SimpleNamespace(sleep=meanwhile))
        under_load.stall_one(root.pid, 1.0, random.Random(1))
        monkeypatch.undo()
        until(lambda: child.status() != psutil.STATUS_STOPPED)
        assert seen == ["stopped"]
        child.kill()
        assert root.wait(HANG_S) == 0
        under_load.stall_one(root.pid, 1.0, random.Random(1))  # nobody is there


def test_busy_loops_end_with_whoever_started_them() -> None:
    words = "import sys\nfrom tests.under_load import busy\nwith busy(2): print('busy', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", words], cwd=under_load.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "busy\n"
        loops = psutil.Process(one.pid).children()
        assert len(loops) == 2
        one.send_signal(signal.SIGKILL)
    until(lambda: all(gone(loop) for loop in loops))

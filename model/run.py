"""One run of the model checker: a model, its settings, and the result. The module does not judge the result."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
NEEDED = ("spin", "gcc")
TOO_SMALL = ("RaiseMAXC", "RaiseMAXI")  # not invariants: a limit of the model is too small for this run


@dataclass(frozen=True)
class Result:
    """The result of a run.

    verdict: pass, the name of the violated invariant, or why the run did not end (cut off, out of memory, error: ...).
    states: the number of stored states. seconds: the duration of the search, without translation and compilation.
    rows: the numbers of the table's rows that were reached.
    """

    verdict: str
    states: int
    seconds: float
    megabytes: int
    rows: frozenset[int]


def missing_tools() -> str | None:
    """Return a message that names the missing programs and how to install them; None if there are none."""
    absent = [tool for tool in NEEDED if shutil.which(tool) is None]
    if not absent:
        return None
    return (
        f"{' and '.join(absent)} not found on PATH. Debian, Ubuntu: apt-get install {' '.join(absent)}; macOS: brew install spin and"
        " xcode-select --install; else https://spinroot.com (6.5 or newer)"
    )


def run_command(*words: str, folder: Path, limit: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder, and return its result with its output. Raises TimeoutExpired after `limit` seconds."""
    return subprocess.run(list(words), cwd=folder, capture_output=True, text=True, timeout=limit, check=False)


def check_model(model: str, settings: tuple[str, ...], *, limit_s: float, memory_mb: int, small: bool = False) -> Result:
    """Translate, compile and search the model, and return the result.

    limit_s: seconds of the search at most. memory_mb: memory for the search.
    small: whether the search is expected to be short, so that optimising in the compiler would cost more than it saves.
    """
    with TemporaryDirectory(prefix="groundstate-model-") as name:
        folder = Path(name)
        problem = _build_checker(folder, model, settings, memory_mb, "-O0" if small else "-O2")
        if problem is not None:
            return Result(f"error: {problem}", 0, 0.0, 0, frozenset())
        started = time.monotonic()
        try:
            said = run_command("./pan", "-m400000", "-w22", folder=folder, limit=limit_s).stdout
        except subprocess.TimeoutExpired:
            return Result("cut off", 0, limit_s, 0, frozenset())
        return _parse_result(said, time.monotonic() - started)


def shortest_violation(model: str, settings: tuple[str, ...], *, limit_s: float, memory_mb: int) -> str:
    """Return the shortest way to the first violation, step by step, or the text that there is none."""
    with TemporaryDirectory(prefix="groundstate-model-") as name:
        folder = Path(name)
        problem = _build_checker(folder, model, settings, memory_mb, "-O1", "-DREACH")
        if problem is not None:
            return problem
        run_command("./pan", "-m400000", "-w22", "-i", folder=folder, limit=limit_s)
        return run_command("spin", "-t", "-p", "-g", *settings, "-DPLAIN", model, folder=folder).stdout


def _build_checker(folder: Path, model: str, settings: tuple[str, ...], memory_mb: int, *more: str) -> str | None:
    for file in HERE.glob("*.pml"):
        shutil.copy(file, folder)
    translated = run_command("spin", "-a", *settings, model, folder=folder)
    if translated.returncode != 0 or "Error" in translated.stdout:
        return f"spin: {translated.stdout.strip()[-500:]}{translated.stderr.strip()[-500:]}"
    flags = ("-w", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=2048", f"-DMEMLIM={memory_mb}", *more)
    compiled = run_command("gcc", *flags, "-o", "pan", "pan.c", folder=folder)
    return f"gcc: {compiled.stderr.strip()[-500:]}" if compiled.returncode != 0 else None


def _parse_result(said: str, seconds: float) -> Result:
    states = re.search(r"^\s*(\S+) states, stored", said, re.MULTILINE)
    memory = re.search(r"^\s*([\d.]+)\s+total actual memory usage", said, re.MULTILINE)
    rows = frozenset(int(number) for number in re.findall(r"^ROW (\d+)", said, re.MULTILINE))
    return Result(_parse_verdict(said), int(float(states[1])) if states else 0, seconds, int(float(memory[1])) if memory else 0, rows)


def _parse_verdict(said: str) -> str:
    violated = re.search(r"assertion violated .*?\((\d+)==0\)", said)
    if violated:
        return invariant_names().get(int(violated[1]), f"assertion {violated[1]}")
    if "out of memory" in said or "max search depth" in said:
        return "cut off"
    return "pass" if "errors: 0" in said else f"error: {said.strip()[-300:]}"


def invariant_names() -> dict[int, str]:
    """Return the invariants' names by the numbers that the checker prints."""
    found = {}
    for file in HERE.glob("*.pml"):
        for name, number in re.findall(r"^#define ([A-Za-z]+) (1\d\d)\b", file.read_text(), re.MULTILINE):
            found[int(number)] = name
    return found

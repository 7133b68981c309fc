"""One run of the model checker: a model, its settings, and what came out of it. Decides nothing about what should have come out."""

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
TOO_SMALL = ("RaiseMAXC", "RaiseMAXI")  # not invariants: the run needs more room


@dataclass(frozen=True)
class Result:
    """What came of a run.

    verdict: pass, the name of the invariant that was violated, or what kept it from an end (cut off, out of memory, error: ...).
    states: how many were stored. seconds: of the search alone, without translation and compilation. rows: of the table, that were met.
    """

    verdict: str
    states: int
    seconds: float
    megabytes: int
    rows: frozenset[int]


def missing() -> str | None:
    """What must be installed, and how; None where all is there."""
    absent = [tool for tool in NEEDED if shutil.which(tool) is None]
    if not absent:
        return None
    return (
        f"{' and '.join(absent)} not found on PATH. Debian, Ubuntu: apt-get install {' '.join(absent)}; macOS: brew install spin and"
        " xcode-select --install; else https://spinroot.com (6.5 or newer)"
    )


def command(*words: str, folder: Path, limit: float | None = None) -> subprocess.CompletedProcess[str]:
    """Carries out a command there, and takes what it says. Raises TimeoutExpired."""
    return subprocess.run(list(words), cwd=folder, capture_output=True, text=True, timeout=limit, check=False)


def check(model: str, settings: tuple[str, ...], *, limit_s: float, memory_mb: int, small: bool = False) -> Result:
    """Translates, compiles and searches. limit_s: of the search alone. memory_mb: for the search.

    small: the search is expected to be short, so that the compiler need not take pains.
    """
    with TemporaryDirectory(prefix="groundstate-model-") as name:
        folder = Path(name)
        problem = _build(folder, model, settings, memory_mb, "-O0" if small else "-O2")
        if problem is not None:
            return Result(f"error: {problem}", 0, 0.0, 0, frozenset())
        started = time.monotonic()
        try:
            said = command("./pan", "-m400000", "-w22", folder=folder, limit=limit_s).stdout
        except subprocess.TimeoutExpired:
            return Result("cut off", 0, limit_s, 0, frozenset())
        return _result(said, time.monotonic() - started)


def story(model: str, settings: tuple[str, ...], *, limit_s: float, memory_mb: int) -> str:
    """The shortest way to the violation that is found first, step by step; says so where none is found."""
    with TemporaryDirectory(prefix="groundstate-model-") as name:
        folder = Path(name)
        problem = _build(folder, model, settings, memory_mb, "-O1", "-DREACH")
        if problem is not None:
            return problem
        command("./pan", "-m400000", "-w22", "-i", folder=folder, limit=limit_s)
        return command("spin", "-t", "-p", "-g", *settings, "-DPLAIN", model, folder=folder).stdout


def _build(folder: Path, model: str, settings: tuple[str, ...], memory_mb: int, *more: str) -> str | None:
    for file in HERE.glob("*.pml"):
        shutil.copy(file, folder)
    translated = command("spin", "-a", *settings, model, folder=folder)
    if translated.returncode != 0 or "Error" in translated.stdout:
        return f"spin: {translated.stdout.strip()[-500:]}{translated.stderr.strip()[-500:]}"
    flags = ("-w", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=2048", f"-DMEMLIM={memory_mb}", *more)
    compiled = command("gcc", *flags, "-o", "pan", "pan.c", folder=folder)
    return f"gcc: {compiled.stderr.strip()[-500:]}" if compiled.returncode != 0 else None


def _result(said: str, seconds: float) -> Result:
    states = re.search(r"^\s*(\S+) states, stored", said, re.MULTILINE)
    memory = re.search(r"^\s*([\d.]+)\s+total actual memory usage", said, re.MULTILINE)
    rows = frozenset(int(number) for number in re.findall(r"^ROW (\d+)", said, re.MULTILINE))
    return Result(_verdict(said), int(float(states[1])) if states else 0, seconds, int(float(memory[1])) if memory else 0, rows)


def _verdict(said: str) -> str:
    violated = re.search(r"assertion violated .*?\((\d+)==0\)", said)
    if violated:
        return names().get(int(violated[1]), f"assertion {violated[1]}")
    if "out of memory" in said or "max search depth" in said:
        return "cut off"
    return "pass" if "errors: 0" in said else f"error: {said.strip()[-300:]}"


def names() -> dict[int, str]:
    """The invariants by their numbers, which is how the checker tells of them."""
    found = {}
    for file in HERE.glob("*.pml"):
        for name, number in re.findall(r"^#define ([A-Za-z]+) (1\d\d)\b", file.read_text(), re.MULTILINE):
            found[int(number)] = name
    return found

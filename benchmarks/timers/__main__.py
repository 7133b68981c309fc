"""The command `python -m benchmarks.timers`: timers of groundstate and its peers on one PostgreSQL. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tools.servers.postgres import PostgresServer

from benchmarks.crash import environment
from benchmarks.timers.contenders import CONTENDERS
from benchmarks.timers.measuring import (
    Lateness,
    Setting,
    Waiting,
    measure_lateness,
    measure_lateness_after_kill,
    measure_waiting,
)

Measure = Callable[[Setting], Lateness | Waiting]


@dataclass(frozen=True)
class Size:
    """How many timers are due and at which rate (a second), and how many wait."""

    late: tuple[tuple[float, int], ...] = ((1, 20), (100, 1_000), (1_000, 3_000))
    killed: tuple[float, int] = (10, 100)
    waiting: tuple[int, ...] = (0, 100_000)


FULL = Size()
QUICK = Size(late=((10, 30),), killed=(10, 20), waiting=(0, 1_000))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, and return its exit status: 1 where a run could not be completed."""
    chosen = _parse_arguments(arguments)
    names = chosen.only or list(CONTENDERS)
    talk = Console(stderr=True, highlight=False)
    if any(not CONTENDERS[name].is_ours for name in names):
        talk.print(f"the peers' environment: {chosen.venv}")
        environment.create_environment(chosen.venv)
    folder = chosen.logs or Path(tempfile.mkdtemp(prefix="groundstate-timers-"))
    size = QUICK if chosen.quick else FULL
    told: dict[str, list[dict[str, Any]]] = {"late": [], "killed": [], "waiting": []}
    failed = False
    with ExitStack() as stack:
        server = stack.enter_context(PostgresServer(max_connections=200, settings={"track_commit_timestamp": "on"}))
        for part, name, go in _run_contenders(chosen.part or list(told), names, size):
            setting = Setting(server, chosen.venv, folder / f"{name}-{part}")
            try:
                found = go(setting)
            except (RuntimeError, TimeoutError) as error:
                failed = True
                talk.print(f"{name}, {part}: not brought to its end: {error}", style="red")
                continue
            talk.print(f"{name}, {part}: {found}")
            told[part].append({"contender": CONTENDERS[name].name, **asdict(found)})
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "load after": round(os.getloadavg()[0], 2)}
    print_table(Console(width=None if sys.stdout.isatty() else 180), machine, told)
    if chosen.json:
        settings = {CONTENDERS[name].name: [CONTENDERS[name].settings, CONTENDERS[name].shortened] for name in names}
        chosen.json.write_text(json.dumps({"machine": machine, "settings": settings, **told}, indent=1))
    if failed:
        talk.print(f"logs stay in {folder}")
        return 1
    if not chosen.logs:
        shutil.rmtree(folder)
    return 0


def _run_contenders(parts: Sequence[str], names: Sequence[str], size: Size) -> list[tuple[str, str, Measure]]:
    """Return all runs, ordered so that contenders whose figures are compared run one after the other."""
    runs: list[tuple[str, str, Measure]] = []
    contenders = [(name, CONTENDERS[name]) for name in names]
    if "late" in parts:
        for rate, count in size.late:
            runs += [("late", name, partial(measure_lateness, one, each_second=rate, count=count)) for name, one in contenders]
    if "killed" in parts:
        rate, count = size.killed
        runs += [("killed", name, partial(measure_lateness_after_kill, one, each_second=rate, count=count)) for name, one in contenders]
    if "waiting" in parts:
        for count in size.waiting:
            runs += [("waiting", name, partial(measure_waiting, one, count=count)) for name, one in contenders]
    return runs


def print_table(console: Console, machine: dict[str, Any], told: dict[str, list[dict[str, Any]]]) -> None:
    """Print three tables: lateness, lateness after a kill, and the cost of waiting timers."""
    for part, title in (("late", "seconds late"), ("killed", "seconds late, the worker killed before their time and started again")):
        table = Table("contender", title=title)
        for column in ("due each second", "timers", "median", "p99", "longest", "early", "doubled", "missing"):
            table.add_column(column, justify="right")
        for row in told[part]:
            figures = [f"{row[name]:.3f}" for name in ("median_s", "p99_s", "longest_s")]
            counts = [str(row[name]) for name in ("early", "doubled", "missing")]
            table.add_row(row["contender"], f"{row['each_second']:g}", f"{row['timers']:,}", *figures, *counts)
        if told[part]:
            console.print(table)
    table = Table("contender", title="timers that are due in 6 hours")
    for column in ("timers", "start to first effect, s", "memory, MB"):
        table.add_column(column, justify="right")
    for row in told["waiting"]:
        table.add_row(row["contender"], f"{row['timers']:,}", f"{row['first_s']:.2f}", f"{row['memory_mb']:.0f}")
    if told["waiting"]:
        console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timers", description="Timers of groundstate and its peers.")
    parser.add_argument("--quick", action="store_true", help="few timers: to see that all runs; not for quoting")
    parser.add_argument(
        "--only", action="append", choices=list(CONTENDERS), metavar="NAME", help=f"may be given again: {', '.join(CONTENDERS)}"
    )
    parser.add_argument("--part", action="append", choices=("late", "killed", "waiting"), help="may be given again; all, if not given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes all there as well")
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "groundstate-crash-peers", metavar="DIR")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="an empty folder in which logs stay")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

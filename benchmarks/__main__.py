"""The command `python -m benchmarks`: it runs the workloads, each with its references, and prints one table. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table
from tools.servers.postgres import PostgresServer

from benchmarks import (
    calls,
    due,
    failing,
    fleet,
    fresh,
    idle,
    latency,
    leftover,
    limits,
    neighbour,
    punctual,
    restart,
    sharded,
    shared,
    slots,
    snapshot,
    steps,
    telling,
    tenants,
)
from benchmarks.harness import FULL, QUICK, NotDone, Place, Row, Size, Workload, measure_sync_ms

WORKLOADS: dict[str, Workload] = {
    "T": steps, "E": calls, "L": latency, "R": restart, "I": idle, "F": fresh, "W": neighbour, "B": leftover, "K": failing, "S": snapshot,
    "D": due, "P": punctual, "O": tenants, "M": fleet, "N": telling, "H": sharded, "C": limits, "J": shared,
    "Q": slots,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, and return its exit status: 1 where some work was not done."""
    chosen = _parse_arguments(arguments)
    size = QUICK if chosen.quick else FULL
    if chosen.snapshot_seconds is not None:
        size = replace(size, snapshot_s=chosen.snapshot_seconds)
    talk = Console(stderr=True)
    failed = False
    rows: list[Row] = []
    with create_places(("sqlite", "postgres") if chosen.store == "both" else (chosen.store,)) as (machine, found):
        for name in chosen.only or WORKLOADS:
            for place in found:
                if place.name not in WORKLOADS[name].STORES:
                    continue
                started = time.monotonic()
                try:
                    rows += run_workload(name, place, size)
                    talk.print(f"{name} on {place.name}: {time.monotonic() - started:.0f} s", highlight=False)
                except NotDone as error:
                    failed = True
                    talk.print(f"{name} on {place.name}: the work was not done: {error}", highlight=False, style="red")
    print_table(Console(width=None if sys.stdout.isatty() else 180), machine, rows)
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": machine, "size": asdict(size), "rows": [asdict(row) for row in rows]}, indent=1))
    return 1 if failed else 0


def run_workload(name: str, place: Place, size: Size) -> list[Row]:
    """Run one workload on one store, and return its rows of the table."""
    place.start()
    return WORKLOADS[name].run(place, size)


@contextmanager
def create_places(names: Sequence[str]) -> Iterator[tuple[dict[str, Any], list[Place]]]:
    """Within the block, yield a description of the machine and a place for databases for each named store."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="groundstate-benchmarks-")))
        # All processes write the state files of SQLite stores to this folder, and none to the user's state folder.
        stack.enter_context(mock.patch.dict(os.environ, {"GROUNDSTATE_STATE": str(folder / "state")}))
        machine = describe_machine(folder)
        made = [Place(name, folder, stack.enter_context(PostgresServer()) if name == "postgres" else None) for name in names]
        yield machine, made


def describe_machine(folder: Path) -> dict[str, Any]:
    """Return the properties of the machine on which the figures depend."""
    return {
        "python": platform.python_version(),
        "sqlalchemy": version("sqlalchemy"),
        "psycopg": version("psycopg"),
        "sqlite": sqlite3.sqlite_version,
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2),
        "fsync of 8 kB, ms": round(measure_sync_ms(folder), 3),
    }


def print_table(console: Console, machine: dict[str, Any], rows: Sequence[Row]) -> None:
    """Print the table: one line for each figure, and a further line for each further reference."""
    table = Table("", "store", "figure", caption=", ".join(f"{name} {value}" for name, value in machine.items()))
    for title in ("ours", "unit", "beside it", "reference", "ratio", "to reach"):
        table.add_column(title, justify="right" if title in ("ours", "reference", "ratio") else "left")
    for row in rows:
        references: list[tuple[str, float | None]] = [*row.beside.items()] or [("", None)]
        for number, (name, reference) in enumerate(references):
            own = (row.workload, row.store, row.figure, _format_number(row.ours), row.unit) if number == 0 else ("",) * 5
            ratio = f"{row.ours / reference:.2f}" if reference else ""
            table.add_row(*own, name, "" if reference is None else _format_number(reference), ratio, row.target if number == 0 else "")
    console.print(table)


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Figures of groundstate, with references beside them.")
    parser.add_argument("--quick", action="store_true", help="smaller, in a few minutes: to see that all runs; not for quoting")
    parser.add_argument("--store", choices=("sqlite", "postgres", "both"), default="both")
    names = "; ".join(f"{name}: {str(work.__doc__).partition(':')[2].split('.')[0].strip()}" for name, work in WORKLOADS.items())
    parser.add_argument("--only", action="append", choices=list(WORKLOADS), metavar="NAME", help=f"may be given again. {names}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes all figures there as well")
    parser.add_argument("--snapshot-seconds", type=float, metavar="S", help="how long S keeps its snapshot (60; the long form: 600)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks`: runs the workloads, each with its reference beside it, and prints one table. See docs/benchmarks.md."""

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
from benchmarks.harness import FULL, QUICK, NotDone, Place, Row, Size, Workload, sync_ms

WORKLOADS: dict[str, Workload] = {
    "T": steps, "E": calls, "L": latency, "R": restart, "I": idle, "F": fresh, "W": neighbour, "B": leftover, "K": failing, "S": snapshot,
    "D": due, "P": punctual, "O": tenants, "M": fleet, "N": telling, "H": sharded, "C": limits, "J": shared,
    "Q": slots,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 1 where some work was not done."""
    chosen = _parsed(arguments)
    size = QUICK if chosen.quick else FULL
    if chosen.snapshot_seconds is not None:
        size = replace(size, snapshot_s=chosen.snapshot_seconds)
    talk = Console(stderr=True)
    failed = False
    rows: list[Row] = []
    with places(("sqlite", "postgres") if chosen.store == "both" else (chosen.store,)) as (machine, found):
        for name in chosen.only or WORKLOADS:
            for place in found:
                if place.name not in WORKLOADS[name].STORES:
                    continue
                started = time.monotonic()
                try:
                    rows += run_one(name, place, size)
                    talk.print(f"{name} on {place.name}: {time.monotonic() - started:.0f} s", highlight=False)
                except NotDone as error:
                    failed = True
                    talk.print(f"{name} on {place.name}: the work was not done: {error}", highlight=False, style="red")
    show(Console(width=None if sys.stdout.isatty() else 180), machine, rows)
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": machine, "size": asdict(size), "rows": [asdict(row) for row in rows]}, indent=1))
    return 1 if failed else 0


def run_one(name: str, place: Place, size: Size) -> list[Row]:
    """One workload on one store."""
    place.start()
    return WORKLOADS[name].run(place, size)


@contextmanager
def places(names: Sequence[str]) -> Iterator[tuple[dict[str, Any], list[Place]]]:
    """What the machine is, and where databases of these stores can be made. All is gone afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="groundstate-benchmarks-")))
        # What SQLite stores leave in the user's state folder is in this one, also that of processes beside ours.
        stack.enter_context(mock.patch.dict(os.environ, {"GROUNDSTATE_STATE": str(folder / "state")}))
        machine = describe(folder)
        made = [Place(name, folder, stack.enter_context(PostgresServer()) if name == "postgres" else None) for name in names]
        yield machine, made


def describe(folder: Path) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "python": platform.python_version(),
        "sqlalchemy": version("sqlalchemy"),
        "psycopg": version("psycopg"),
        "sqlite": sqlite3.sqlite_version,
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2),
        "fsync of 8 kB, ms": round(sync_ms(folder), 3),
    }


def show(console: Console, machine: dict[str, Any], rows: Sequence[Row]) -> None:
    """The table: a line for each figure, and one more for each further reference."""
    table = Table("", "store", "figure", caption=", ".join(f"{name} {value}" for name, value in machine.items()))
    for title in ("ours", "unit", "beside it", "reference", "ratio", "to reach"):
        table.add_column(title, justify="right" if title in ("ours", "reference", "ratio") else "left")
    for row in rows:
        references: list[tuple[str, float | None]] = [*row.beside.items()] or [("", None)]
        for number, (name, reference) in enumerate(references):
            own = (row.workload, row.store, row.figure, _number(row.ours), row.unit) if number == 0 else ("",) * 5
            ratio = f"{row.ours / reference:.2f}" if reference else ""
            table.add_row(*own, name, "" if reference is None else _number(reference), ratio, row.target if number == 0 else "")
    console.print(table)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
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

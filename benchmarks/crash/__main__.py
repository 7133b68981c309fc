"""The command `python -m benchmarks.crash`: the same shop and the same kills for groundstate and its peers. See docs/crash-benchmark.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine, text
from tools.servers.postgres import PostgresServer

from benchmarks.crash import environment
from benchmarks.crash.contenders import CONTENDERS
from benchmarks.crash.gateway import KINDS
from benchmarks.crash.schedule import draw_kills
from benchmarks.crash.supervisor import Plan, Result, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, and return its exit status: 1 where a run could not be completed."""
    chosen = _parse_arguments(arguments)
    names = chosen.only or list(CONTENDERS)
    kinds = chosen.gateway or KINDS
    kills = draw_kills(chosen.seed, chosen.kills, chosen.orders)
    talk = Console(stderr=True, highlight=False)
    peers = [name for name in names if not CONTENDERS[name].is_ours]
    if peers:
        talk.print(f"the peers' environment: {chosen.venv}")
        environment.create_environment(chosen.venv)
    folder = chosen.logs or Path(tempfile.mkdtemp(prefix="groundstate-crash-"))
    failed: list[str] = []
    results: list[Result] = []
    with ExitStack() as stack:
        on_postgres = any(CONTENDERS[name].database == "postgres" for name in names)
        server = stack.enter_context(PostgresServer(max_connections=200)) if on_postgres else None

        def one(run_of: tuple[str, str]) -> Result | None:
            name, kind = run_of
            contender = CONTENDERS[name]
            plan = Plan(chosen.orders, chosen.seed, kills, chosen.venv, folder / f"{name}-{kind}", chosen.quiet)
            try:
                result = run(contender, kind, plan, server if contender.database == "postgres" else None)
            except (RuntimeError, TimeoutError) as error:
                failed.append(str(error))
                talk.print(f"{name}, {kind}: not brought to its end: {error}", style="red")
                return None
            talk.print(f"{name}, {kind}: {result.seconds:g} s, {result.kills} kills, {asdict(result.counts)}")
            return result

        with ThreadPoolExecutor(chosen.jobs) as pool:
            results = [result for result in pool.map(one, [(name, kind) for kind in kinds for name in names]) if result is not None]
        machine = describe_versions(server, chosen.venv if peers else None)
    told = {"orders": chosen.orders, "kills": chosen.kills, "seed": chosen.seed}
    print_table(Console(width=None if sys.stdout.isatty() else 180), {**told, **machine}, results)
    if chosen.json:
        settings = {name: {"settings": CONTENDERS[name].settings, "shortened": CONTENDERS[name].shortened} for name in names}
        written = {**told, "machine": machine, "settings": settings, "results": [asdict(result) for result in results]}
        chosen.json.write_text(json.dumps(written, indent=1))
    if failed:
        talk.print(f"ledgers and logs stay in {folder}")
        return 1
    if not chosen.logs:
        shutil.rmtree(folder)
    return 0


def describe_versions(server: PostgresServer | None, venv: Path | None) -> dict[str, Any]:
    """Return the versions of all programs that take part."""
    found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count(), **environment.our_versions()}
    if server is not None:
        engine = create_engine(server.url())
        with engine.connect() as connection:
            found["postgresql"] = connection.execute(text("SHOW server_version")).scalar_one()
        engine.dispose()
    if venv is not None:
        packages = sorted({package for contender in CONTENDERS.values() if not contender.is_ours for package in contender.packages})
        found.update(environment.installed_versions(venv / "bin" / "python", packages))
        found["redis-server"] = environment.read_redis_version(venv)
    return found


def print_table(console: Console, told: dict[str, Any], results: Sequence[Result]) -> None:
    """Print the table: one line for each contender at each kind of gateway."""
    table = Table("gateway", "contender", caption=", ".join(f"{name} {value}" for name, value in told.items()))
    for title in ("right", "doubled", "lost", "stuck", "unlisted", "kills", "requests", "s"):
        table.add_column(title, justify="right")
    table.add_column("stuck, in its own words")
    for result in results:
        counts = result.counts
        figures = (counts.right, counts.doubled, counts.lost, counts.stuck, counts.unlisted, result.kills, result.requests, result.seconds)
        words = ", ".join(f"{number} {word}" for word, number in counts.stuck_as.items())
        table.add_row(result.kind, result.contender, *map(str, figures), words)
    console.print(table)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.crash", description="groundstate and its peers under one schedule of kills."
    )
    parser.add_argument("--kills", type=int, default=30, metavar="N")
    parser.add_argument("--orders", type=int, default=300, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument(
        "--only", action="append", choices=list(CONTENDERS), metavar="NAME", help=f"may be given again: {', '.join(CONTENDERS)}"
    )
    parser.add_argument("--gateway", action="append", choices=KINDS, help="keeps idempotency keys, or can be asked; both, if not given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes all there as well")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many runs side by side")
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "groundstate-crash-peers", metavar="DIR")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="an empty folder in which ledgers and logs stay")
    parser.add_argument("--quiet", type=float, metavar="S", help="in place of each contender's own settling time: to see that all runs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

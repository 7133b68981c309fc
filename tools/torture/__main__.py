"""The command `python -m tools.torture`: its arguments, the run on each store, the verdict and the report."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from sqlalchemy.exc import DBAPIError

from tools.servers.postgres import ServerError
from tools.torture import report
from tools.torture.plan import Plan, trouble_intervals
from tools.torture.run import State, run
from tools.torture.table import Show

EPILOG = (
    "Exit status: 0 every invariant held, 1 one did not, 2 wrong arguments, 3 the shop could not be set up or its database is gone,"
    " 130 ended by SIGINT or SIGTERM."
)
FAULTS_SHOWN = 50  # limit on the faults that are printed


def main(given: list[str] | None = None) -> int:
    """Run the command with these arguments (None: those of the process), and return its exit status."""
    parser = _build_parser()
    asked = parser.parse_args(given)
    if sys.platform == "win32":
        parser.error("SIGKILL and fork are needed: run it on Linux or macOS")
    _check_arguments(parser, asked)
    kills = asked.kills if asked.kills is not None or asked.minutes is not None else 1000
    seed = asked.seed if asked.seed is not None else secrets.randbelow(1_000_000)
    plan = Plan("", kills, asked.minutes, seed, asked.workers, asked.orders, asked.rate, only=tuple(asked.only or ()))
    stores = ["sqlite", "postgres"] if asked.store == "both" else [asked.store]
    console, states = Console(), list[State]()
    for store in stores:
        keep = asked.keep / store if asked.keep else None
        console.print(f"{store}: seed {seed}", soft_wrap=True, highlight=False)
        try:
            with Show(console) as show:
                states.append(run(replace(plan, store=store, keep=keep), show.show_progress))
        except KeyboardInterrupt:
            sys.stderr.write(f"torture: {store}, seed {seed}: ended by hand, and not judged\n")
            return 130
        except (ServerError, DBAPIError, RuntimeError, OSError) as error:  # a TimeoutError is an OSError too
            sys.stderr.write(f"torture: {store}, seed {seed}: {type(error).__name__}: {error}\n")
            return 3
        _print_result(console, states[-1])
        if asked.report is not None:
            report.write_report(asked.report, states)
    return 0 if all(state.has_passed for state in states) else 1


def _build_parser() -> argparse.ArgumentParser:
    words = "Kills a shop's workers again and again, breaks its database, deploys other code, and judges by a ledger outside."
    parser = argparse.ArgumentParser(prog="python -m tools.torture", description=words, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("--store", choices=["sqlite", "postgres", "both"], default="both")
    parser.add_argument("--kills", type=int, metavar="N", help="so many workers die, on each store; 1000 where no --minutes are given")
    parser.add_argument("--minutes", type=float, metavar="M", help="for so long, on each store, or until the kills were made")
    parser.add_argument("--seed", type=int, metavar="S", help="of all dice; printed, and one of its own where it is not given")
    parser.add_argument("--workers", type=int, default=6, metavar="N", help="at once (default: 6)")
    parser.add_argument("--orders", type=int, default=250, metavar="N", help="on their way at once (default: 250)")
    parser.add_argument("--rate", type=float, default=25.0, metavar="N", help="kills a second, at most (default: 25)")
    moves = sorted(trouble_intervals("postgres"))
    parser.add_argument("--only", action="append", choices=moves, metavar="MOVE", help=f"beside the kills; repeatable: {', '.join(moves)}")
    parser.add_argument("--report", type=Path, metavar="FILE", help="writes a report: JSON where its name ends in .json, else Markdown")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder, in which the ledger, the log and the SQLite file stay")
    return parser


def _check_arguments(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    for name in ("kills", "minutes", "workers", "orders", "rate"):
        value = getattr(asked, name)
        if value is not None and not 0 < value < float("inf"):
            parser.error(f"--{name}: more than 0, not {value}")
    if asked.seed is not None and asked.seed < 0:
        parser.error("--seed: 0 or more")
    if asked.report is not None and (asked.report.is_dir() or not os.access(asked.report.parent, os.W_OK)):
        parser.error(f"--report: {asked.report} cannot be written: give a file in a folder that is there")
    if asked.keep is not None and asked.keep.exists():
        parser.error(f"--keep: {asked.keep} is there already: give a new folder, so that no two runs mix")


def _print_result(console: Console, state: State) -> None:
    shown = report.report_content(state)
    for name in ("kills", "kills a second", "troubles", "orders", "calls", "held at the end", "looked at"):
        console.print(f"  {name}: {shown[name]}", soft_wrap=True, highlight=False, markup=False)
    for fault in state.faults[:FAULTS_SHOWN]:
        console.print(f"FAULT {fault[: report.LONGEST_FAULT]}", soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"VERDICT {state.plan.store}, seed {state.plan.seed}: {report.verdict_text(state)}", soft_wrap=True, highlight=False, markup=False
    )


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background processes with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())

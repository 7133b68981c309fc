"""The command `python -m model`: it checks every configuration, hole and mutation, and that each row of the table is reached.

It needs spin and gcc. Exit codes: 0 all results are as expected; 1 some are not; 2 a program is missing, or the arguments are wrong.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from model import run
from model.cases import CASES, Case
from model.run import TOO_SMALL, Result

MEMORY_MB = 4000  # MB for each run, of which two run at once
LIMIT_S = 1200.0


def is_surprising(case: Case, result: Result) -> bool:
    """Return whether the result is not the expected one."""
    if case.caught:
        return result.verdict in {"pass", "cut off", *TOO_SMALL} or result.verdict.startswith("error")
    return result.verdict != "pass"


def all_row_numbers() -> set[int]:
    """Return the numbers of the table's rows and of the transitions that the engine makes by itself."""
    return {int(number) for number in re.findall(r"^/\* (?:ROW|ENGINE) (\d+) ", (run.HERE / "table.pml").read_text(), re.MULTILINE)}


def result_line(case: Case, result: Result) -> str:
    """Return the result as a line of the printed table."""
    expected = "caught" if case.caught else "pass"
    mark = "   <<< a surprise" if is_surprising(case, result) else ""
    return (
        f"{case.name:30} | {case.model.removesuffix('.pml'):8} | {expected:6} | {result.verdict:14} | {result.states:>10,} |"
        f" {result.megabytes:>6,} | {result.seconds:>6.1f}{mark}"
    )


def markdown_row(case: Case, result: Result) -> str:
    """Return the result as a row of the table in docs/model.md."""
    expected = "caught" if case.caught else "pass"
    return (
        f"| {case.name} | {case.model.removesuffix('.pml')} | {expected} | {result.verdict} | {result.states:,} |"
        f" {result.megabytes:,} | {result.seconds:.1f} | {case.says} |"
    )


def run_cases(cases: list[Case], jobs: int, limit_s: float, memory_mb: int) -> Iterator[tuple[Case, Result]]:
    """Run the cases, `jobs` at once, and yield each with its result as soon as it is done."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {
            pool.submit(run.check_model, one.model, one.flags, limit_s=limit_s, memory_mb=memory_mb, small=not one.large): one
            for one in cases
        }
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Parse the arguments. Exits with 2 where they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="check only small cases, in about 20 s")
    parser.add_argument("--only", default="", metavar="REGEX", help="check only cases whose name or model matches")
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at once (2)")
    parser.add_argument("--memory", type=int, default=MEMORY_MB, metavar="MB", help=f"memory of each run ({MEMORY_MB})")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS", help=f"time limit of each search ({LIMIT_S:g})")
    parser.add_argument("--list", action="store_true", help="list the cases and what each of them shows")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the results to a Markdown table, in the order of --list")
    parser.add_argument("--story", metavar="NAME", help="show step by step how one case comes to its violation")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Run the command with these arguments, and return its exit code."""
    asked = parse_arguments(words)
    cases = [one for one in CASES if (one.quick or not asked.quick) and re.search(asked.only, f"{one.name} {one.model}")]
    if asked.list:
        for one in cases:
            print(f"{one.name:30} | {one.model.removesuffix('.pml'):8} | {'caught' if one.caught else 'pass':6} | {one.says}")
        return 0
    absent = run.missing_tools()
    if absent is not None:
        print(f"model: {absent}", file=sys.stderr)
        return 2
    if asked.story:
        told = next((case for case in CASES if case.name == asked.story), None)
        if told is None:
            print(f"model: no case is called {asked.story!r}; see --list", file=sys.stderr)
            return 2
        print(run.shortest_violation(told.model, told.flags, limit_s=asked.limit, memory_mb=asked.memory))
        return 0
    if not cases:
        print("model: no case is found; see --list", file=sys.stderr)
        return 2
    return run_and_report(cases, asked)


def run_and_report(cases: list[Case], asked: argparse.Namespace) -> int:
    """Run the cases, print their table and the verdict, and return the exit code."""
    started = time.monotonic()
    print(f"{'case':30} | {'model':8} | {'must':6} | {'did':14} | {'states':>10} | {'MB':>6} | {'s':>6}")
    surprises: list[str] = []
    rows: set[int] = set()
    came: dict[Case, Result] = {}
    for case, result in run_cases(cases, asked.jobs, asked.limit, asked.memory):
        print(result_line(case, result), flush=True)
        came[case] = result
        if is_surprising(case, result):
            surprises.append(case.name)
        if not case.caught:
            rows |= result.rows
    if asked.report:
        head = "| case | model | must | came out | states | MB | seconds | shows |\n| --- | --- | --- | --- | ---: | ---: | ---: | --- |\n"
        asked.report.write_text(head + "".join(f"{markdown_row(case, came[case])}\n" for case in cases))
    unmet = all_row_numbers() - rows
    whole = len(cases) == len(CASES)
    told = f": {', '.join(surprises)}" if surprises else ""
    print(f"\n{len(cases)} cases in {time.monotonic() - started:.0f} s: {len(surprises)} surprises{told}")
    never = f"; never: {sorted(unmet)}" if unmet else ""
    print(f"rows reached: {len(all_row_numbers()) - len(unmet)} of {len(all_row_numbers())}{never}")
    return 1 if surprises or (whole and unmet) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

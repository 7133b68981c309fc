"""`python -m model`: checks every configuration, hole and mutation, and that each row of the table is reached. Needs spin and gcc.

Exit codes: 0 all as it must be; 1 a surprise; 2 something is not installed, or the arguments are wrong.
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

MEMORY_MB = 4000  # a run; two at once
LIMIT_S = 1200.0


def surprising(case: Case, result: Result) -> bool:
    """Whether this is not what must come out."""
    if case.caught:
        return result.verdict in {"pass", "cut off", *TOO_SMALL} or result.verdict.startswith("error")
    return result.verdict != "pass"


def all_rows() -> set[int]:
    """The numbers of the table's rows, and of what the engine writes by itself."""
    return {int(number) for number in re.findall(r"^/\* (?:ROW|ENGINE) (\d+) ", (run.HERE / "table.pml").read_text(), re.MULTILINE)}


def line(case: Case, result: Result) -> str:
    """One line of the table."""
    expected = "caught" if case.caught else "pass"
    mark = "   <<< a surprise" if surprising(case, result) else ""
    return (
        f"{case.name:30} | {case.model.removesuffix('.pml'):8} | {expected:6} | {result.verdict:14} | {result.states:>10,} |"
        f" {result.megabytes:>6,} | {result.seconds:>6.1f}{mark}"
    )


def in_markdown(case: Case, result: Result) -> str:
    """One line of the table as docs/model.md has it."""
    expected = "caught" if case.caught else "pass"
    return (
        f"| {case.name} | {case.model.removesuffix('.pml')} | {expected} | {result.verdict} | {result.states:,} |"
        f" {result.megabytes:,} | {result.seconds:.1f} | {case.says} |"
    )


def carried_out(cases: list[Case], jobs: int, limit_s: float, memory_mb: int) -> Iterator[tuple[Case, Result]]:
    """Each case with what came of it, as it comes."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {
            pool.submit(run.check, one.model, one.flags, limit_s=limit_s, memory_mb=memory_mb, small=not one.large): one for one in cases
        }
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def arguments(words: list[str]) -> argparse.Namespace:
    """What is asked for. Exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small configurations, and what is caught soon: some 20 s")
    parser.add_argument("--only", default="", metavar="REGEX", help="the cases whose name, or model, this finds")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (2)")
    parser.add_argument("--memory", type=int, default=MEMORY_MB, metavar="MB", help=f"for each run ({MEMORY_MB})")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS", help=f"for each search ({LIMIT_S:g})")
    parser.add_argument("--list", action="store_true", help="what would be checked, and what each shows")
    parser.add_argument("--report", type=Path, metavar="FILE", help="the same as a table in Markdown, in the order of --list")
    parser.add_argument("--story", metavar="NAME", help="how one case comes to its violation, step by step")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """The command; returns its exit code."""
    asked = arguments(words)
    cases = [one for one in CASES if (one.quick or not asked.quick) and re.search(asked.only, f"{one.name} {one.model}")]
    if asked.list:
        for one in cases:
            print(f"{one.name:30} | {one.model.removesuffix('.pml'):8} | {'caught' if one.caught else 'pass':6} | {one.says}")
        return 0
    absent = run.missing()
    if absent is not None:
        print(f"model: {absent}", file=sys.stderr)
        return 2
    if asked.story:
        told = next((case for case in CASES if case.name == asked.story), None)
        if told is None:
            print(f"model: no case is called {asked.story!r}; see --list", file=sys.stderr)
            return 2
        print(run.story(told.model, told.flags, limit_s=asked.limit, memory_mb=asked.memory))
        return 0
    if not cases:
        print("model: no case is found; see --list", file=sys.stderr)
        return 2
    return judged(cases, asked)


def judged(cases: list[Case], asked: argparse.Namespace) -> int:
    """Runs them, prints the table and the verdict."""
    started = time.monotonic()
    print(f"{'case':30} | {'model':8} | {'must':6} | {'did':14} | {'states':>10} | {'MB':>6} | {'s':>6}")
    surprises: list[str] = []
    rows: set[int] = set()
    came: dict[Case, Result] = {}
    for case, result in carried_out(cases, asked.jobs, asked.limit, asked.memory):
        print(line(case, result), flush=True)
        came[case] = result
        if surprising(case, result):
            surprises.append(case.name)
        if not case.caught:
            rows |= result.rows
    if asked.report:
        head = "| case | model | must | came out | states | MB | seconds | shows |\n| --- | --- | --- | --- | ---: | ---: | ---: | --- |\n"
        asked.report.write_text(head + "".join(f"{in_markdown(case, came[case])}\n" for case in cases))
    unmet = all_rows() - rows
    whole = len(cases) == len(CASES)
    told = f": {', '.join(surprises)}" if surprises else ""
    print(f"\n{len(cases)} cases in {time.monotonic() - started:.0f} s: {len(surprises)} surprises{told}")
    never = f"; never: {sorted(unmet)}" if unmet else ""
    print(f"rows reached: {len(all_rows()) - len(unmet)} of {len(all_rows())}{never}")
    return 1 if surprises or (whole and unmet) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

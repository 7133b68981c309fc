"""What the demo shows must be whole on a terminal and in a file, and the verdict must say what the balance says."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from groundstate.demo.books import Balance, Fault, Held
from groundstate.demo.show import Progress, Show, print_balance_sheet

PROGRESS = Progress({"placed": 3, "packed": 4, "cancelled": 1}, {"doubt": 2, "held": 5}, mailed=4, kills=1)


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=terminal, _environ={"TERM": "xterm"})


def said(by: Console) -> str:
    assert isinstance(by.file, io.StringIO)
    return by.file.getvalue()


def test_a_file_gets_a_plain_line_of_progress_at_most_every_few_seconds() -> None:
    out = console()
    with Show(out, 10, 8) as show:
        show.show_progress(PROGRESS)
        show.show_progress(PROGRESS)
    assert said(out).count("8 orders") == 1
    assert "\x1b" not in said(out)
    for part in ("3 placed", "4 packed", "1 declined", "4 mailed", "2 in doubt", "5 held", "1 kills"):
        assert part in said(out)


def test_a_terminal_gets_a_panel_and_lines_above_it() -> None:
    out = console(terminal=True)
    with Show(out, 10, 8) as show:
        show.show_progress(PROGRESS)
        show.print_line("kill -9 [not markup]")
        show.print_report("groundstate pending", "\x1b[1m[red]3[/red]\x1b[0m to carry out\n")
    assert "8 of 10 orders, 1 of 8 kills" in said(out)
    assert "kill -9 [not markup]" in said(out)
    assert "[red]3[/red]" in said(out)


def test_the_balance_tells_counts_what_is_held_and_the_verdict() -> None:
    out = console()
    print_balance_sheet(out, Balance((), (Held("mailed", 17, "in doubt [hold]", "the mail arrived"),), {"packed": 4}))
    for part in (
        "packed",
        "mailed",
        "17",
        "in doubt [hold]",
        "the mail arrived",
        "The books balance",
        "1 held, each listed with its reason",
    ):
        assert part in said(out)


@pytest.mark.parametrize(("order", "words"), [(3, "FAULT  order 3 was charged 2 times"), (None, "FAULT  was charged 2 times")])
def test_a_fault_is_told_and_the_books_do_not_balance(order: int | None, words: str) -> None:
    out = console()
    print_balance_sheet(out, Balance((Fault(order, "was charged 2 times"),), (), {}))
    assert words in said(out)
    assert "The books do not balance: 1 fault" in said(out)

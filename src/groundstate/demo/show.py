"""The demo's output: a line for each event, the progress, and the balance at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from groundstate.demo.books import Balance

PLAIN_EVERY_S = 3.0  # seconds between two lines of progress if the output is no terminal


@dataclass(frozen=True)
class Progress:
    """The progress of the shop. statuses: the count of orders in each status. attempts: the count of attempts in each state. mailed: the
    count of orders that are marked as mailed.
    """

    statuses: Mapping[str, int] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    mailed: int = 0
    kills: int = 0

    @property
    def orders(self) -> int:
        """The number of all orders, whatever their status."""
        return sum(self.statuses.values())

    def labelled_counts(self) -> list[tuple[str, int, str]]:
        """Return the counts to show, as triples (label, count, colour)."""
        statuses, attempts = self.statuses, self.attempts
        return [
            ("orders", self.orders, "white"),
            ("placed", statuses.get("placed", 0), "yellow"),
            ("packed", statuses.get("packed", 0), "green"),
            ("declined", statuses.get("declined", 0) + statuses.get("cancelled", 0), "cyan"),
            ("mailed", self.mailed, "green"),
            ("begun", attempts.get("begun", 0), "white"),
            ("in doubt", attempts.get("doubt", 0), "magenta"),
            ("failed", attempts.get("failed", 0), "yellow"),
            ("held", attempts.get("held", 0), "red"),
            ("kills", self.kills, "red"),
        ]


class Show:
    """Shows the demo on the console: on a terminal as a panel that is redrawn, elsewhere as plain lines."""

    def __init__(self, console: Console, orders: int, kills: int) -> None:
        self.console, self._orders, self._kills = console, orders, kills
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        self._begun = time.monotonic()
        self._last_plain = -PLAIN_EVERY_S

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._begun

    @property
    def inner_width(self) -> int:
        """The number of columns inside a report's frame."""
        return self.console.width - 4

    def print_line(self, what: str, style: str = "") -> None:
        """Print a line that stays above the panel."""
        self.console.print(Text(f"{self._elapsed_s():5.1f} s  {what}", style=style))

    def print_report(self, title: str, what: str) -> None:
        """Print the output of a command in a frame. title: shown in the frame's border."""
        self.console.print(Panel(Text.from_ansi(what.rstrip()), title=title, title_align="left", border_style="dim"))

    def show_progress(self, progress: Progress) -> None:
        """Show this progress. If the output is no terminal, do so at most every PLAIN_EVERY_S seconds."""
        if self._live is not None:
            self._live.update(self._build_panel(progress), refresh=True)
        elif self._elapsed_s() - self._last_plain >= PLAIN_EVERY_S:
            self._last_plain = self._elapsed_s()
            self.print_line("  ".join(f"{number} {word}" for word, number, _ in progress.labelled_counts()))

    def _build_panel(self, progress: Progress) -> Panel:
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in progress.labelled_counts():
            table.add_column(justify="right")
        table.add_row(*(Text(str(number), style=f"bold {style}") for _, number, style in progress.labelled_counts()))
        table.add_row(*(Text(word, style="dim") for word, _, _ in progress.labelled_counts()))
        title = f"{self._elapsed_s():.0f} s - {progress.orders} of {self._orders} orders, {progress.kills} of {self._kills} kills"
        return Panel(table, title=title, title_align="left")


def print_balance_sheet(console: Console, balance: Balance) -> None:
    """Print a table of the counts, then the held attempts with their reasons, the faults, and whether the books balance."""
    books = Table(title="Three books", title_justify="left", show_header=False)
    books.add_column()
    books.add_column(justify="right")
    for what, number in balance.counts.items():
        books.add_row(what, str(number))
    console.print(books)
    if balance.held:
        held = Table(title="Held: a person decides", title_justify="left")
        for heading in ("reaction", "order", "why", "the other party's book says"):
            held.add_column(heading, overflow="fold")
        for item in balance.held:
            held.add_row(item.reaction, str(item.order), Text(item.why), item.evidence)
        console.print(held)
    for fault in balance.faults:
        console.print(Text(f"FAULT  {'' if fault.order is None else f'order {fault.order} '}{fault.what}", style="bold red"))
    if balance.faults:
        console.print(
            Text(f"The books do not balance: {len(balance.faults)} {'fault' if len(balance.faults) == 1 else 'faults'}.", style="bold red")
        )
    else:
        console.print(Text(_verdict_text(balance), style="bold green"))


def _verdict_text(balance: Balance) -> str:
    held = len(balance.held)
    kept = "nothing is held." if not held else f"{held} held, each listed with its reason."
    return f"The books balance: no order lost, no card charged twice, no mail sent twice; {kept}"

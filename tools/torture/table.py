"""The progress of a torture run: a table that is redrawn on a terminal, or a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tools.torture.run import State

PLAIN_EVERY_S = 5.0  # seconds between two lines of progress where the output is no terminal
FAULT_SHOWN = 1000  # characters of a fault that are printed


class Show:
    """The display of a run's progress, within a `with` block."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._last, self._phase, self._faults = -PLAIN_EVERY_S, "", 0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show_progress(self, state: State) -> None:
        """Show the current progress."""
        if self._live is not None:
            self._live.update(_build_table(state), refresh=True)
            return
        for fault in state.faults[self._faults :]:
            self._console.print(f"FAULT {fault[:FAULT_SHOWN]}", soft_wrap=True, highlight=False, markup=False)
        self._faults = len(state.faults)
        if time.monotonic() - self._last > PLAIN_EVERY_S or state.phase != self._phase:
            self._last, self._phase = time.monotonic(), state.phase
            self._console.print(progress_line(state), soft_wrap=True, highlight=False)


def progress_line(state: State) -> str:
    """Return the progress as one line."""
    planned = f" of {state.plan.kills}" if state.plan.kills is not None else ""
    return (
        f"{state.plan.store:8} {state.passed_s:6.0f} s  {state.phase:9}  {state.kills}{planned} kills  {state.orders['placed']} orders"
        f"  {state.effects.total()} effects  {state.doubts.total()} doubts  {state.held.total()} held  {len(state.faults)} faults"
    )


def _build_table(state: State) -> Table:
    table = Table(title=progress_line(state), title_justify="left", show_header=True, header_style="bold")
    for column in ("troubles", "effects, doubts, held", "looked at by the judge"):
        table.add_column(column, ratio=1, vertical="top")
    shown = dict(state.effects)
    shown |= {f"in doubt: {name}": count for name, count in state.doubts.items()}
    shown |= {f"held: {name}": count for name, count in state.held.items()}
    table.add_row(_counts_text(state.troubles), _counts_text(shown), _counts_text(state.checks))
    for fault in state.faults[-5:]:
        table.add_row("[red]FAULT[/red]", fault[:200].replace("[", "\\["), "")
    return table


def _counts_text(counts: Mapping[str, int]) -> str:
    return "\n".join(f"{count:>8,}  {name[:60]}" for name, count in counts.items()).replace("[", "\\[")

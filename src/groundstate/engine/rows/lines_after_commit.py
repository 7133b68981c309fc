"""Writes log lines about a transaction's changes to attempts after the transaction is committed. If it is rolled back, the lines are
dropped.

So no line is untrue, and work that is repeated after a rollback is logged once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from groundstate.engine.sql import db_errors

Line = Callable[[], object]


@dataclass
class LinesAfterCommit:
    """Collects the log lines of one worker's open transaction. Must be used only by the thread that runs its transactions."""

    _waiting: list[tuple[Line, bool]] | None = field(default=None, repr=False)  # pairs (line, only_trace); None if no transaction is open
    _commits: bool = False  # whether the open transaction is done but for its commit

    def log(self, line: Line, *, only_trace: bool = False) -> None:
        """Call `line`, a function that writes a log line, after the commit of the open transaction; call it at once if no transaction is
        open.

        only_trace: whether the line is the only trace of its event, such as of a dropped outcome. Such a line is written even if nobody
            knows whether the commit succeeded.
        """
        if self._waiting is None:
            line()
        else:
            self._waiting.append((line, only_trace))

    def note_commit_is_next(self) -> None:
        """Note that the open transaction is done but for its commit."""
        self._commits = True

    @contextmanager
    def wrap_transaction(self) -> Iterator[None]:
        """Run one transaction in the block. Its lines are written at the end of the block, and dropped if the block raises."""
        waiting = self._waiting = []
        self._commits = False
        lines: list[Line] = []
        try:
            yield
            lines = [line for line, _ in waiting]
        except BaseException as error:
            if self._commits and db_errors.is_transient(error):
                lines = [line for line, only_trace in waiting if only_trace]
            raise
        finally:
            self._waiting = None
            for line in lines:
                line()

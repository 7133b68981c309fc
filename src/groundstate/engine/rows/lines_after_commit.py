"""Writes the log lines on what a transaction makes of attempts, once it is committed: a transaction that is rolled back says nothing.

So no line is untrue, and what is done again after a rollback is said once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from groundstate.engine.sql import db_errors

Line = Callable[[], object]


@dataclass
class LinesAfterCommit:
    """The lines of one worker's open transaction. Used by the thread of its transactions only."""

    _waiting: list[tuple[Line, bool]] | None = field(default=None, repr=False)  # with `only_trace`; None: no transaction is open
    _commits: bool = False  # whether nothing is left to be done but the commit

    def say(self, line: Line, *, only_trace: bool = False) -> None:
        """Call `line`, which writes a line to the log, once the open transaction is committed; at once if none is open.

        only_trace: nothing else tells of it, such as of an outcome that is dropped. So the line is also written where nobody knows whether
        the commit took place.
        """
        if self._waiting is None:
            line()
        else:
            self._waiting.append((line, only_trace))

    def commits_now(self) -> None:
        """Note that nothing is left to be done in the open transaction but its commit."""
        self._commits = True

    @contextmanager
    def of_a_transaction(self) -> Iterator[None]:
        """Wrap a transaction, whose lines are written at the end of the block, or forgotten where it raises."""
        waiting = self._waiting = []
        self._commits = False
        lines: list[Line] = []
        try:
            yield
            lines = [line for line, _ in waiting]
        except BaseException as error:
            if self._commits and db_errors.transient(error):
                lines = [line for line, only_trace in waiting if only_trace]
            raise
        finally:
            self._waiting = None
            for line in lines:
                line()

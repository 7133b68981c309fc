"""Counts the work of one worker since its last sweep began. The count shows the worker whether it is idle."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """The work that one worker has carried out since its last sweep began."""

    done_since_sweep: int = 0  # number of records, attempts and ticks (due times of a schedule) carried out since the last sweep began
    latest_reaction: str = ""  # name of the reaction of which a record was carried out last; empty before the first

    def count_done(self, number: int) -> None:
        """Count records, attempts or ticks (due times of a schedule) that were carried out."""
        self.done_since_sweep += number

    def note_reaction(self, name: str) -> None:
        """Note the reaction of which a record was carried out last."""
        self.latest_reaction = name

    def restart_count(self) -> None:
        """Count from zero, since a sweep begins."""
        self.done_since_sweep = 0

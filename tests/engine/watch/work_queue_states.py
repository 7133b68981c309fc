"""The states that the three parts of a work queue can reach, as tables. ARCHITECTURE.md shows the same tables.

Each part has groups of flags. The flags of one group depend on each other, and a row of the group's table allows some combinations of them.
Flags of different groups are independent: every combination of an allowed state of each group is reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from groundstate.engine.watch.due_work import DueWork
from groundstate.engine.watch.postponement import Postponement
from groundstate.engine.watch.waiting_rows import WaitingRows

Words = tuple[str, ...]  # a word for each flag
ANY = "any"
YES_NO = ("no", "yes")


@dataclass(frozen=True)
class Flag:
    """One flag: its name in the tables, how it is read from a part of a work queue, and the words for its values."""

    name: str
    word_of: Callable[[Any], str]
    words: Words = YES_NO


@dataclass(frozen=True)
class Group:
    """Flags that depend on each other, and the rows of their table: a cell for each flag, and a sentence that says what the row means."""

    flags: tuple[Flag, ...]
    rows: Mapping[Words, str]

    def expand_row(self, cells: Words) -> set[Words]:
        """Return the combinations that a row allows. A cell is one word, several words with 'or' between, or 'any'."""
        allowed = [flag.words if cell == ANY else tuple(cell.split(" or ")) for flag, cell in zip(self.flags, cells, strict=True)]
        return set(product(*allowed))

    @property
    def legal(self) -> set[Words]:
        """Return all combinations that some row allows."""
        return {state for cells in self.rows for state in self.expand_row(cells)}

    def as_markdown(self) -> str:
        """Return the table as the docs show it."""
        head = "| " + " | ".join(f"`{flag.name}`" for flag in self.flags) + " | what it means |"
        lines = [head, "|" + "---|" * (len(self.flags) + 1)]
        return "\n".join([*lines, *("| " + " | ".join([*cells, words]) + " |" for cells, words in self.rows.items())])


State = tuple[Words, ...]  # the words of each group


@dataclass(frozen=True)
class Table:
    """The table of one part of a work queue."""

    groups: tuple[Group, ...]

    def state_of(self, part: Any) -> State:
        """Return the state of this part, by its flags."""
        return tuple(tuple(flag.word_of(part) for flag in group.flags) for group in self.groups)

    def legal_states(self) -> Iterator[State]:
        """Yield each combination of one legal state of each group."""
        return product(*(group.legal for group in self.groups))


def _yes_no(read: Callable[[Any], object]) -> Callable[[Any], str]:
    return lambda part: "yes" if read(part) else "no"


def _field(name: str, *, is_none: bool = False, of: str | None = None) -> Flag:
    """Return a flag that is a field of the part. is_none: it is 'no' where the field is None, whatever else its value is."""
    field = f"_{of or name}"
    return Flag(name, _yes_no(lambda part: getattr(part, field) is not None if is_none else getattr(part, field)))


def _order_of(rows: WaitingRows) -> str:
    if rows.groups is not None:
        return "groups" if not rows.elsewhere else "groups elsewhere"
    return "elsewhere" if rows.elsewhere else "key"


def _not_before_of(postponement: Postponement) -> str:
    at = postponement.not_before
    return "never" if at == math.inf else "later" if at else "none"


WAITING_ROWS = Table(
    (
        Group((_field("fresh"),), {(ANY,): "Keys of fresh rows wait, or none do."}),
        Group((_field("heard"),), {(ANY,): "Keys of hints wait for the next loop iteration, which adds them to `fresh`, or none do."}),
        Group(
            (_field("heard_whole"), _field("spread")),
            {
                ("no", "no"): "No hint without keys has come since the last loop iteration.",
                ("yes", ANY): "A hint without keys has come. With `spread`, other workers look for the same rows.",
            },
        ),
        Group(
            (_field("long"),),
            {(ANY,): "The other workers have to be asked to help with a large backlog, or not."},
        ),
        Group(
            (
                _field("backlog"),
                _field("cursor", is_none=True),
                _field("crowded"),
                _field("look_again"),
                _field("newest"),
                _field("probed"),
                _field("left_to_others"),
                _field("aside"),
                Flag("order", _order_of, ("key", "elsewhere", "groups")),
            ),
            {
                ("no", "no", "no", "no", "no", "no", "no", ANY, ANY): (
                    "No pass runs. `aside` and `order` say how the next one is queried: beside the worker's own thread, and by the key,"
                    " from a row in the middle on (elsewhere), or group by group."
                ),
                ("yes", ANY, ANY, ANY, "no", ANY, "no", ANY, ANY): "A pass runs. With `look_again`, another one follows.",
                ("yes", ANY, ANY, "yes", "yes", ANY, "no", "no", "key or elsewhere"): (
                    "A row was written during a pass by the key, which would reach it last: the newest rows are queried at once."
                ),
                ("yes", ANY, ANY, ANY, "no", "no", "yes", ANY, ANY): (
                    "Other workers carry out the backlog. A pass waits until this worker rejoins, and begins with a query for rows to take."
                ),
                ("yes", ANY, ANY, "yes", "yes", "no", "yes", "no", "key or elsewhere"): (
                    "Other workers carry out the backlog, and a row was written: this worker queries the newest rows all the same."
                ),
            },
        ),
    )
)

POSTPONEMENT = Table(
    (
        Group((_field("admitted"),), {(ANY,): "Nobody has to accept the reaction any more, or a person still has to."}),
        Group(
            (_field("barred", is_none=True), _field("barred_until"), Flag("not_before", _not_before_of, ("none", "later", "never"))),
            {
                ("no", "no", "none or later"): "No table is locked. The queue is tried at once, or from a time on after an error.",
                (
                    "yes",
                    "yes",
                    "never",
                ): "A table is locked. The queue is not tried before a check of the table, at `barred_until`, finds it free.",
            },
        ),
        Group(
            (_field("lacks", is_none=True), _field("seen_lacking")),
            {
                ("no", "no"): "The database has all that the records need.",
                (
                    "yes",
                    "no",
                ): "A statement failed since something is missing. While rows wait, only a record that is carried out ends the wait.",
                ("yes", "yes"): "The check fails as well, so that the wait ends when the check succeeds.",
            },
        ),
        Group((_field("trouble"),), {(ANY,): "The last try of the queue met an error that concerned only this queue, or it did not."}),
        Group(
            (_field("plain_s"), _field("search", is_none=True), _field("raises_until")),
            {
                ("no", "no", "no"): "The condition has not raised for any row.",
                ("yes", "yes", ANY): "The condition raised, and a search for the rows runs. An earlier one may have found too many rows.",
                (
                    "yes",
                    "no",
                    ANY,
                ): "The search is over. With `raises_until`, one found too many rows, and the condition is not queried before that time.",
            },
        ),
        Group(
            (Flag("is_failing", _yes_no(lambda part: part.is_failing)), _field("told_failing", is_none=True)),
            {
                ("no", "no"): "The handler works, or has failed for few records in a row.",
                (
                    "yes",
                    ANY,
                ): "The handler failed for many records in a row: the reaction pauses. The log says so, if it may (`told_failing`).",
            },
        ),
    )
)

DUE_WORK = Table(
    (
        Group(
            (_field("has_due_attempts"), _field("cursor", is_none=True), _field("seen_full")),
            {
                ("no", "no", "no"): "No attempt is due.",
                ("yes", ANY, ANY): "Attempts may be due and are queried, behind `cursor`. With `seen_full`, this waits for a free slot.",
            },
        ),
        Group((_field("timers"),), {(ANY,): "It is known when the next records become due, or none becomes due soon."}),
        Group((_field("next_sweep"),), {(ANY,): "Sweeps include the queue from a time on, or at once."}),
    )
)

TABLES: Mapping[type[WaitingRows | Postponement | DueWork], Table] = {
    WaitingRows: WAITING_ROWS,
    Postponement: POSTPONEMENT,
    DueWork: DUE_WORK,
}

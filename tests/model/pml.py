"""Reads the table out of model/table.pml: each row's comment, its guard and what it writes, and carries them out on an attempt.

Knows the few forms that the table is written in, and refuses every other; runs no model checker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import CodeType

MODEL = Path(__file__).parents[2] / "model"
COLUMNS = {
    "A_st": "state", "A_un": "unsure", "A_inc": "worker", "A_c": "call", "A_no": "call_no", "A_fail": "failures", "A_dl": "deadline",
    "A_out": "outcome", "A_old": "first_at", "A_tog": "together", "A_ends": "why",
}  # fmt: skip
NOT_MODELLED = {
    "next_at",
    "error",
    "since",
    "why",
    "begun_with",
}  # a `why` is a column of the model where it says at which ends it was under way, or no longer does
_ROW = re.compile(
    r"^/\* ROW (?P<number>\d+) \| (?P<event>[^|]+) \| (?P<says>[^|]+) \| (?P<states>[^|]+) \| (?P<to>[^|]+) \|(?P<columns>[^|]*)\*/\n"
    r"#define on_(?P<on>\d+)\(o\) \((?P<guard>.*)\)\n#define do_(?P<do>\d+)\(o\) (?P<deed>.*)$",
    re.MULTILINE,
)
_MACRO = re.compile(r"^#define (\w+)\(o\) (.*)$", re.MULTILINE)
_EVENT = re.compile(r"^inline (\w+)\(o\) \{ if (.*) fi \}$", re.MULTILINE)
_ASSIGNS = re.compile(r"(\w+)\[o\] = (.*)")


class NotOfTheTable(AssertionError):
    """The text of the model is not written in the forms that a table has."""


@dataclass(frozen=True)
class ModelRow:
    """One row. changes: columns that it says it changes. not_modelled: those of them that have no column in the model."""

    number: int
    event: str
    says: str
    states: frozenset[str]
    to: str
    changes: frozenset[str]
    not_modelled: frozenset[str]
    guard: str
    deed: str

    @property
    def leaves_to_the_world(self) -> str | None:
        """What the model has to do with it beyond columns; 'wiped' where nothing stays of the attempt."""
        if self.deed in ("wipe(o)", "to = FORGOTTEN"):
            return "wiped"
        return self.deed.removeprefix("to = ") if self.deed.startswith("to = ") else None


@dataclass(frozen=True)
class ModelTable:
    """All rows; `macros` are the words that guards and deeds use; `events`: inline -> the rows that it carries out."""

    rows: tuple[ModelRow, ...]
    macros: Mapping[str, str]
    events: Mapping[str, tuple[int, ...]]

    @cached_property
    def guards(self) -> dict[str, list[tuple[ModelRow, str]]]:
        """By event: its rows, with their guards written out."""
        found: dict[str, list[tuple[ModelRow, str]]] = {}
        for row in self.rows:
            found.setdefault(row.event, []).append((row, self.written_out(row.guard)))
        return found

    def met(self, event: str, world: Mapping[str, object]) -> list[ModelRow]:
        """The rows of that event whose guard is true in this world."""
        return [row for row, guard in self.guards.get(event, []) if _value(guard, world)]

    def written_out(self, text: str) -> str:
        """With each macro of the table's own in its place."""
        if text not in self._written_out:
            self._written_out[text] = self._write_out(text)
        return self._written_out[text]

    @cached_property
    def _written_out(self) -> dict[str, str]:
        return {}

    def _write_out(self, text: str) -> str:
        for _ in range(5):
            before = text
            for name, body in self.macros.items():
                text = re.sub(rf"\b{name}\(o\)", f"({body})", text)
            if text == before:
                return text
        raise NotOfTheTable(text)

    def written(self, row: ModelRow, world: Mapping[str, object]) -> dict[str, object]:
        """The columns that the row writes, with what it writes. In the deadline's own, NEW_CALL is the new call's deadline."""
        if row.deed == "to = CALLED":
            deed = "; ".join(
                self.macros[f"begun_{name}"] for name in ("state", "worker", "call", "call_no", "first_at", "deadline", "together")
            )
        else:
            deed = row.deed
        columns: dict[str, object] = {}
        for statement in deed.split(";"):
            what = statement.strip()
            if what in ("skip", "wipe(o)") or what.startswith("to = "):
                continue
            if what == "deadline_not_before_now(o)":
                columns["deadline"] = max(world["A_dl"], world["now"])  # type: ignore[call-overload]  # both are moments
                continue
            found = _ASSIGNS.fullmatch(what)
            if found is None or found[1] not in COLUMNS:
                raise NotOfTheTable(f"row {row.number}: {what!r}")
            here = {**world, "NEW_CALL": world["NEW_DEADLINE"]} if found[1] == "A_dl" else world
            columns[COLUMNS[found[1]]] = _value(self.written_out(found[2]), here)
        return columns


def read(table: str, events: str) -> ModelTable:
    """The table as these texts of table.pml and events.pml have it. Raises NotOfTheTable."""
    rows = []
    for found in _ROW.finditer(table):
        number = int(found["number"])
        if int(found["on"]) != number or int(found["do"]) != number:
            raise NotOfTheTable(f"row {number} has the macros {found['on']} and {found['do']}")
        names = found["columns"].split()
        bracketed = frozenset(name[1:-1] for name in names if name.startswith("["))
        rows.append(
            ModelRow(
                number, found["event"], found["says"], frozenset(found["states"].split()), found["to"],
                frozenset(name for name in names if not name.startswith("[")), bracketed, found["guard"], found["deed"],
            )
        )  # fmt: skip
    if len(rows) != len(re.findall(r"^/\* ROW", table, re.MULTILINE)) or len(rows) != len(
        re.findall(r"^#define on_\d", table, re.MULTILINE)
    ):
        raise NotOfTheTable("a row is not written as a comment, on_ and do_")
    macros = {name: re.sub(r"\s*/\*.*?\*/", "", body) for name, body in _MACRO.findall(table) if not re.match(r"(on|do)_\d", name)}
    reached = {name: tuple(int(number) for number in re.findall(r"R\((\d+)\)", body)) for name, body in _EVENT.findall(events)}
    return ModelTable(tuple(rows), macros, reached)


def as_kept() -> ModelTable:
    """The table of the model that the project keeps."""
    return read((MODEL / "table.pml").read_text(), (MODEL / "events.pml").read_text())


def _value(text: str, world: Mapping[str, object]) -> object:
    """A Promela expression in this world. Its words are the table's own, so that an unknown one is an error and not a guess."""
    code, words = _compiled(text)
    if not words <= world.keys():
        raise NotOfTheTable(f"{text!r} speaks of {', '.join(sorted(words - world.keys()))}")
    return eval(code, {"__builtins__": {}}, world)  # of our own file, and of names that were looked at


@cache
def _compiled(text: str) -> tuple[CodeType, frozenset[str]]:
    python = re.sub(r"(\w+)\[o\]", r"\1", text)
    python = re.sub(r"(\w+)\(o\)", r"\1", python)
    python = re.sub(r"\((\w+) -> (.*) : (\w+)\)", r"(\2 if \1 else \3)", python)
    python = python.replace("&&", " and ").replace("||", " or ")
    python = re.sub(r"!(?!=)", " not ", python).strip()
    try:
        code = compile(python, "table.pml", "eval")
    except SyntaxError as error:
        raise NotOfTheTable(f"{text!r}: {error.msg}") from None
    return code, frozenset(code.co_names)

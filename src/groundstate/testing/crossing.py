"""A place where a program may be cut, and how it is told to people. Cuts nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Crossing:
    """A place where the program may be cut: before a statement, before and after a commit, at a hint, before, in and after a call."""

    number: int
    kind: str  # statement, commit, committed, hint, call, done, answered, find, found
    what: str
    process: int
    inside: bool = False  # in a transaction of the process's own
    told: bool = True  # since the crossing before, a clock was looked at that can leap or goes on while the host is suspended

    def __str__(self) -> str:
        return f"{_BEFORE.get(self.kind, self.kind)} {self.what}".strip()


_BEFORE = {
    "statement": "before",
    "commit": "before COMMIT of",
    "committed": "after COMMIT of",
    "hint": "before the hint of",
    "call": "before the call",
    "done": "in the call, done but not answered:",
    "answered": "after the answer of the call",
    "find": "before the find of",
    "found": "after the find of",
}


def in_short(statement: str) -> str:
    """A statement as its verb and the table that it names first."""
    words = statement.split(None, 2)
    verb = words[0].upper() if words else ""
    if verb in {"BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK", "PRAGMA", "SET"}:
        return verb
    if verb == "WITH":
        does = re.search(r"\b(INSERT|UPDATE|DELETE)\b", statement)
        verb = does[1] if does else "SELECT"
    if verb == "UPDATE" and words[0] != "WITH" and len(words) > 1:
        return f"UPDATE {words[1]}"
    found = re.search(r"\b(?:INTO|FROM)\s+([\w.\"]+)", statement, re.IGNORECASE)
    return f"{verb} {found[1]}" if found else verb

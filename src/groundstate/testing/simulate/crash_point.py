"""Crossings (the places at which the lab can kill a program), and what the log of a run calls them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Crossing:
    """A place at which the program can be killed: before a statement, before or after a commit, before a hint, or before, during or after a
    call or lookup.
    """

    number: int
    kind: str  # one of: statement, commit, committed, hint, call, done, answered, lookup, found
    what: str
    process: int
    inside: bool = False  # whether the process has a transaction open
    told: bool = True  # whether a clock that can leap, or that counts suspensions, was read since the crossing before

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
    "lookup": "before the lookup of",
    "found": "after the lookup of",
}


def shorten_statement(statement: str) -> str:
    """Return the first word of the SQL statement and the first table that it names."""
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

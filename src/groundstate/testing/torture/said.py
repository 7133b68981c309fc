"""What the shop's processes wrote to their log: errors that the troubles explain, told apart from errors that nothing explains.

Reads a file; nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from groundstate.engine.conclude import OR_CONCLUDED

# What an error of the database looks like at the end of a traceback.
_DATABASE = re.compile(r"(sqlalchemy\.exc|psycopg|sqlite3)\.")
# What a worker says loudly of what the torture does to it.
_EXPLAINED = (
    "tried again",  # the database was in trouble; what trouble, its traceback tells
    "the lock of this life is lost",  # its connection was cut, or the server killed
    "the database is on another server now",  # likewise
    "is held with its outcome",  # whether it had a reason is judged by the attempt
    "is held now, and waits for a person",  # likewise
    "since then, of which no line tells",  # how many more of such lines there were
    "is not started: it is new here",  # before a person accepts it
)
# And of what only some runs do.
_EXPLAINED_BY = {
    "put a copy back": ("the database went back in time", "the database may have been put back"),
    "delete an attempt": ("its attempt was deleted by hand", "an outcome of an earlier call came while a new one is in the air"),
}
_LATE = re.compile(r"ERROR \S+ on \S+ \S+: (?!an outcome of an earlier call came)")  # a word that came late, which is said loudly
_PUT_BACK = re.compile(rf"ERROR (\S+) on \S+ (\S+): its attempt was deleted by hand(?!.*{OR_CONCLUDED})")
_PERSON = re.compile(r"the person's round: (.*)")
_LEVEL = re.compile(r"^\S+ \S+ \d+ (WARNING|ERROR|CRITICAL) (.*)")
_END_OF_TRACEBACK = re.compile(r"^[A-Za-z_][A-Za-z_.]*(Error|Exception|Refused|Back|Interrupt)\b.*")


@dataclass
class Said:
    """Lines with their numbers left out, so that equal ones are counted together."""

    warnings: Counter[str] = field(default_factory=Counter)
    explained: Counter[str] = field(default_factory=Counter)
    unexplained: Counter[str] = field(default_factory=Counter)
    deeds: Counter[str] = field(default_factory=Counter)  # what persons did
    put_back: set[str] = field(default_factory=set)  # whose attempts were taken for deleted by hand: reaction and record


def said(log: Path, done: Collection[str] = ()) -> Said:
    """All that is in the log. done: the names of what was done, some of which explain what is said of it."""
    found = Said()
    if not log.exists():
        return found
    explained = (*_EXPLAINED, *(words for act in done for words in _EXPLAINED_BY.get(act, ())))
    with log.open(errors="replace") as lines:
        for line in lines:
            _take(found, line.rstrip("\n"), explained)
    return found


def _take(found: Said, line: str, explained: tuple[str, ...]) -> None:
    words = re.sub(r"\d+", "#", line)[:300]
    level = _LEVEL.match(line)
    if level is None:
        if _END_OF_TRACEBACK.match(line):
            (found.explained if _DATABASE.match(line) else found.unexplained)[words] += 1
        return
    said_so = re.sub(r"\d+", "#", level[2])[:200]
    if (deleted := _PUT_BACK.search(line)) is not None:
        found.put_back.add(f"{deleted[1]} on {deleted[2]}")
    person = _PERSON.search(line)
    if person is not None:
        for deed in person[1].split(", "):
            name, _, count = deed.rpartition(" ")
            found.deeds[name] += int(count)
    elif level[1] == "WARNING":
        found.warnings[said_so] += 1
    else:
        known = any(part in line for part in explained) or _LATE.search(line)
        (found.explained if known else found.unexplained)[said_so] += 1

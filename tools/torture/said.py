"""Sorts the errors in the log of the shop's processes into those that the troubles explain and those that nothing explains."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from groundstate.engine.call.conclude import OR_CONCLUDED

# The last line of a traceback of a database error.
_DATABASE = re.compile(r"(sqlalchemy\.exc|psycopg|sqlite3)\.")
# Messages that a worker logs because of what the torture does to it.
EXPLAINED = (
    "tried again",  # the database was in trouble; the traceback says how
    "the lock of this worker is lost",  # its connection was cut, or the server was killed
    "the database is on another server now",  # its connection was cut, or the server was killed
    "is held with its outcome",  # the judge decides by the attempt whether it had a reason
    "is held now, and waits for a person",  # the judge decides by the attempt whether it had a reason
    "since then, for which no line was written",  # the number of such messages that were not logged
    "it is new here and matches",  # it waits until a person accepts it
)
DELETED_BY_HAND = "its attempt was deleted by hand"
EARLIER_CALL = "an outcome of an earlier call came"
# Messages that only these troubles explain.
EXPLAINED_BY = {
    "put a copy back": ("the database went back in time", "the database may have been put back"),
    "delete an attempt": (DELETED_BY_HAND, f"{EARLIER_CALL} while a new call is in flight"),
}
_LATE = re.compile(rf"ERROR \S+ on \S+ \S+: (?!{EARLIER_CALL})")  # a call result that came late is logged as an error
_PUT_BACK = re.compile(rf"ERROR (\S+) on \S+ (\S+): {DELETED_BY_HAND}(?!.*{OR_CONCLUDED})")
_PERSON = re.compile(r"the person's round: (.*)")
_LEVEL = re.compile(r"^\S+ \S+ \d+ (WARNING|ERROR|CRITICAL) (.*)")
_END_OF_TRACEBACK = re.compile(r"^[A-Za-z_][A-Za-z_.]*(Error|Exception|Refused|Back|Interrupt)\b.*")


@dataclass
class LoggedErrors:
    """The lines of a log, counted with their numbers masked, so that similar lines are counted together."""

    warnings: Counter[str] = field(default_factory=Counter)
    explained: Counter[str] = field(default_factory=Counter)
    unexplained: Counter[str] = field(default_factory=Counter)
    deeds: Counter[str] = field(default_factory=Counter)  # actions of persons
    put_back: set[str] = field(default_factory=set)  # reaction and record of attempts that workers took for deleted by hand


def read_errors(log: Path, done: Collection[str] = ()) -> LoggedErrors:
    """Read the whole log. done: names of the troubles that were made, some of which explain certain messages."""
    found = LoggedErrors()
    if not log.exists():
        return found
    explained = (*EXPLAINED, *(words for act in done for words in EXPLAINED_BY.get(act, ())))
    with log.open(errors="replace") as lines:
        for line in lines:
            _count_line(found, line.rstrip("\n"), explained)
    return found


def _count_line(found: LoggedErrors, line: str, explained: tuple[str, ...]) -> None:
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

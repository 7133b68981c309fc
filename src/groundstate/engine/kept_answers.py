"""What calls said that cannot be written down, since somebody else's transaction keeps the record locked (PostgreSQL): told once of each
reaction, with who it is, and once more when it is over. Writes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy.exc import DBAPIError

from groundstate.engine import barred, locked
from groundstate.engine.flight import Word
from groundstate.engine.question import Question
from groundstate.engine.shift import Shift

log = logging.getLogger("groundstate")
TOLD_AFTER_S = 5.0


@dataclass
class _Of:
    """Of one reaction: since when what each call said has met a lock."""

    since: dict[int, float] = field(default_factory=dict)
    told: bool = False


class KeptAnswers:
    """Of one worker, for its transactions' thread."""

    def __init__(self, shift: Shift) -> None:
        self._shift = shift
        self._of: dict[Question, _Of] = {}

    def look(self, met: Sequence[Word], in_hand: Sequence[Word], now: float) -> None:
        """After a commit: the records of those in `met` were locked by somebody else; what is not in hand any more is written."""
        for word in met:
            self._of.setdefault(word.flight.question, _Of()).since.setdefault(word.flight.call, now)
        if not self._of:
            return
        left = {word.flight.call: word.flight.identity[2] for word in in_hand}
        for question, of in list(self._of.items()):
            longest_s = now - min(of.since.values())
            of.since = {call: since for call, since in of.since.items() if call in left}
            if not of.since:
                del self._of[question]
                self._over(question, of, longest_s)
            elif not of.told and longest_s >= TOLD_AFTER_S:
                of.told = True
                self._tell(question, left[min(of.since, key=of.since.__getitem__)])

    def _tell(self, question: Question, record: str) -> None:
        log.warning(
            "%s on %s %s: what its call said cannot be written down, since %s: it is kept in memory, and written once that ends",
            question.spec.name,
            question.spec.table_name,
            record,
            self._who(question, record) or "somebody else has locked its row",
            extra={"event": "answer_waits", "reaction": question.spec.name, "record": record},
        )

    def _over(self, question: Question, of: _Of, took_s: float) -> None:
        if of.told:
            log.info(
                "%s: what its calls said is written, after rows were locked by somebody else for %.0f s",
                question.spec.name,
                took_s,
                extra={"event": "answer_written", "reaction": question.spec.name, "took_s": round(took_s, 3)},
            )

    def _who(self, question: Question, record: str) -> str | None:
        key = question.key_of_text(record)
        try:
            with self._shift.database.reading(wait=barred.WAIT) as connection:
                return None if key is None else locked.who_has(connection, question, key)
        except DBAPIError:
            return None  # a courtesy

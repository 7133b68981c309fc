"""Starting new and changed reactions on rows that are there, as a person said.

Where they make a call, nothing is started before he said what is known of it: nobody else can tell a row that was never called from one
whose doubt was lost with our tables.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from groundstate.engine import registry, restore
from groundstate.engine.life import Life
from groundstate.engine.question import Question
from groundstate.engine.registry import Known, Newcomer
from groundstate.rules.acceptance import Acceptance

log = logging.getLogger("groundstate")
WHY = "accepted as a doubt: it may have been called before"


def unsaid(newcomers: Sequence[Newcomer], said: Acceptance) -> list[Newcomer]:
    """Those that are accepted, and of whose calls nothing was said, or nothing can be yet."""
    accepted = [one for one in newcomers if said.covers(one.name)]
    return [one for one in accepted if one.known_before or (one.calls and said.way(one.name) is None)]


def start(
    life: Life,
    questions: Mapping[str, Question],
    newcomers: Sequence[Newcomer],
    said: Acceptance,
    seen: Mapping[str, Known],
    *,
    tell: Callable[[str, int], None] | None = None,
) -> list[Question]:
    """Writes down those of the newcomers that are accepted, and first puts in doubt what is accepted as a doubt; returns which they were.

    questions: by the name of the reaction. seen: what is known of each reaction. tell: is told a reaction, and how many of its rows are in
    doubt so far.
    """
    left = {one.name for one in unsaid(newcomers, said)}
    accepted = [one for one in newcomers if said.covers(one.name) and one.name not in left]
    for one in accepted:
        if one.calls and said.way(one.name) == "doubt":
            _put_in_doubt(life, questions[one.name], one, seen.get(one.name), tell)
    started = [questions[one.name] for one in accepted]
    registry.write(life, started)
    return started


def _put_in_doubt(
    life: Life, question: Question, newcomer: Newcomer, before: Known | None, tell: Callable[[str, int], None] | None
) -> None:
    with life.database.reading() as connection:
        newly = registry.newly_matching(connection, question, before)

    def told(count: int) -> None:
        if tell is not None:
            tell(newcomer.name, count)

    count = restore.doubt_each(life, question, WHY, *newly, tell=told)
    log.warning(
        "%s is accepted, and each of %d rows that were there begins as a doubt: %s",
        newcomer.name,
        count,
        newcomer.in_doubt,
        extra={"event": "accepted_in_doubt", "reaction": newcomer.name, "count": count},
    )

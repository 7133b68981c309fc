"""Starts new and changed reactions on rows that exist already, as a person accepted them.

A reaction that makes a call does not start before the person said what is known of its calls. Nothing else tells a row that was never
called from one whose attempt in doubt was lost with groundstate's tables.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from groundstate.engine.recover import restore
from groundstate.engine.rows import reaction_registry
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.rows.reaction_registry import Known, Newcomer
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.acceptance import Acceptance

log = logging.getLogger("groundstate")
WHY = "accepted as a doubt: it may have been called before"


def unsaid(newcomers: Sequence[Newcomer], said: Acceptance) -> list[Newcomer]:
    """Return the accepted reactions that cannot start yet: nothing was said of their calls, or nothing can be said before older attempts
    are settled.
    """
    accepted = [one for one in newcomers if said.covers(one.name)]
    return [one for one in accepted if one.known_before or (one.calls and said.way(one.name) is None)]


def start(
    incarnation: Incarnation,
    queries: Mapping[str, ConditionQuery],
    newcomers: Sequence[Newcomer],
    said: Acceptance,
    seen: Mapping[str, Known],
    *,
    tell: Callable[[str, int], None] | None = None,
) -> list[ConditionQuery]:
    """Record the accepted newcomers, after putting in doubt the rows of those accepted as doubts; return the reactions that start.

    queries: condition queries by reaction name. seen: what is known of each reaction. tell: called with a reaction's name and how many of
    its rows are in doubt so far.
    """
    left = {one.name for one in unsaid(newcomers, said)}
    accepted = [one for one in newcomers if said.covers(one.name) and one.name not in left]
    for one in accepted:
        if one.calls and said.way(one.name) == "doubt":
            _put_in_doubt(incarnation, queries[one.name], one, seen.get(one.name), tell)
    started = [queries[one.name] for one in accepted]
    reaction_registry.write(incarnation, started)
    return started


def _put_in_doubt(
    incarnation: Incarnation, query: ConditionQuery, newcomer: Newcomer, before: Known | None, tell: Callable[[str, int], None] | None
) -> None:
    with incarnation.database.reading() as connection:
        newly = reaction_registry.newly_matching(connection, query, before)

    def told(count: int) -> None:
        if tell is not None:
            tell(newcomer.name, count)

    count = restore.doubt_each(incarnation, query, WHY, *newly, tell=told)
    log.warning(
        "%s is accepted, and each of %d rows that were there begins as a doubt: %s",
        newcomer.name,
        count,
        newcomer.in_doubt,
        extra={"event": "accepted_in_doubt", "reaction": newcomer.name, "count": count},
    )

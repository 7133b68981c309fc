"""Starts new and changed reactions on rows that exist already, once a person has accepted them.

A reaction that makes a call starts only once the person has also said whether calls may have been made for these rows. The database alone
cannot show this: a row for which no call was made looks like a row whose attempt in doubt was lost with groundstate's tables.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from groundstate.engine.recover import restore
from groundstate.engine.rows import reaction_registry
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.rows.reaction_registry import Known, UnacceptedReaction
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.acceptance import Acceptance

log = logging.getLogger("groundstate")
WHY = "accepted as a doubt: it may have been called before"


def newcomers_that_cannot_start(newcomers: Sequence[UnacceptedReaction], said: Acceptance) -> list[UnacceptedReaction]:
    """Return the new and changed reactions that a person accepted but that cannot start yet. Either the person did not say whether calls
    may have been made before, or older attempts have to be settled first.
    """
    accepted = [one for one in newcomers if said.is_accepted(one.name)]
    return [one for one in accepted if one.known_before or (one.calls and said.call_or_doubt_for(one.name) is None)]


def start_accepted(
    incarnation: Incarnation,
    queries: Mapping[str, ConditionQuery],
    newcomers: Sequence[UnacceptedReaction],
    said: Acceptance,
    seen: Mapping[str, Known],
    *,
    tell: Callable[[str, int], None] | None = None,
) -> list[ConditionQuery]:
    """Record each new or changed reaction that a person accepted, and return the condition queries of the reactions that start. If the
    person said that calls may have been made for the existing rows, insert an attempt in doubt for each of these rows first.

    queries: condition queries by reaction name. said: what the person accepted. seen: what the database has recorded of each reaction.
    tell: called with a reaction's name and how many of its rows are in doubt so far.
    """
    left = {one.name for one in newcomers_that_cannot_start(newcomers, said)}
    accepted = [one for one in newcomers if said.is_accepted(one.name) and one.name not in left]
    for one in accepted:
        if one.calls and said.call_or_doubt_for(one.name) == "doubt":
            _put_rows_in_doubt(incarnation, queries[one.name], one, seen.get(one.name), tell)
    started = [queries[one.name] for one in accepted]
    reaction_registry.accept_reactions(incarnation, started)
    return started


def _put_rows_in_doubt(
    incarnation: Incarnation,
    query: ConditionQuery,
    newcomer: UnacceptedReaction,
    before: Known | None,
    tell: Callable[[str, int], None] | None,
) -> None:
    with incarnation.database.reading() as connection:
        newly = reaction_registry.newly_matching_clauses(connection, query, before)

    def report_count(count: int) -> None:
        if tell is not None:
            tell(newcomer.name, count)

    count = restore.put_matching_records_in_doubt(incarnation, query, WHY, *newly, tell=report_count)
    log.warning(
        "%s is accepted, and each of %d rows that were there begins as a doubt: %s",
        newcomer.name,
        count,
        newcomer.in_doubt,
        extra={"event": "accepted_in_doubt", "reaction": newcomer.name, "count": count},
    )

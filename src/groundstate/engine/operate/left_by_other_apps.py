"""Finds open attempts of other apps on this database if no worker of the other app is alive, so that nobody settles the attempts. It only
reads.

If an app's name was changed only in the source, groundstate takes the app for a new one, and the open attempts stay with the old name. An
app that was stopped on purpose cannot be told apart from this case.

Open attempts of another app concern this app if they are on one of its tables, or belong to a reaction that it declares too: this app
cannot carry out their records. These attempts are reported with the cure. All other open attempts are logged at level INFO.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, not_, or_, select

from groundstate.engine.operate import living_workers
from groundstate.engine.rows.attempt_text import count_with_noun
from groundstate.engine.rows.attempts import is_baseline
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.attempt import State
from groundstate.store.port import Database, Liveness
from groundstate.store.tables import attempt

log = logging.getLogger("groundstate")


@dataclass(frozen=True)
class LeftByOther:
    """The open attempts of one other app that has no worker alive.

    `in_doubt` is the number of attempts in doubt or begun by a worker that ended; `held` is the number of held attempts. `reactions` names
    the reactions of these attempts. `ours` is True if some of them concern this app: they are on a table of one of its reactions, or one of
    its reactions has the same name.
    """

    app: str
    in_doubt: int
    held: int
    ours: bool
    reactions: tuple[str, ...]

    @property
    def counts_in_words(self) -> str:
        """Return the counts as a phrase, such as '2 in doubt, 1 held'."""
        said = [(self.in_doubt, "in doubt"), (self.held, "held")]
        return ", ".join(f"{count:,} {what}" for count, what in said if count)

    def message_for(self, app: str) -> str:
        """Return the message for people who run this app, with what they can do."""
        old, new = shlex.quote(self.app), shlex.quote(app)
        return (
            f"{count_with_noun(self.in_doubt + self.held, 'attempt is', 'attempts are')} open of app {self.app!r} ({self.counts_in_words}:"
            f" {', '.join(self.reactions)}) where this app works too, and no worker of it lives, so that nobody settles them."
            f" If this is that app under a new name: stop its workers, then `groundstate rename --whole-app {old} {new}`;"
            f" else start {self.app}"
        )


def count_left_by_others(
    connection: Connection, app: str, queries: Sequence[ConditionQuery], alive: Collection[str]
) -> tuple[LeftByOther, ...]:
    """Return the open attempts of other apps, one item per app. Leave out the apps in `alive`, which may have a worker alive."""
    open_ = and_(attempt.c.state.in_([State.BEGUN.value, State.DOUBT.value, State.HELD.value]), not_(is_baseline))
    named = or_(attempt.c.app < app, attempt.c.app > app)  # two ranges instead of !=, so that the primary key's index skips our own rows
    tables = sorted({name for query in queries for name in query.attempts.table_name_spellings})
    on_ours = func.coalesce(attempt.c.blocks.in_(tables), False).label("on_ours")
    columns = (attempt.c.app, attempt.c.reaction, attempt.c.state, on_ours)
    told = select(*columns, func.count()).where(named, open_).group_by(*columns).order_by(*columns)
    names = {query.spec.name for query in queries}
    found: dict[str, LeftByOther] = {}
    for other, reaction, state, on_ours_too, count in connection.execute(told):
        if other in alive or not (isinstance(other, str) and isinstance(reaction, str)):
            continue
        before = found.get(other, LeftByOther(other, 0, 0, ours=False, reactions=()))
        held = state == State.HELD.value
        found[other] = LeftByOther(
            other,
            before.in_doubt + (0 if held else count),
            before.held + (count if held else 0),
            before.ours or bool(on_ours_too) or reaction in names,
            tuple(dict.fromkeys([*before.reactions, reaction])),
        )
    return tuple(found.values())


def find_left_by_others(
    app: str, database: Database, connection: Connection, queries: Sequence[ConditionQuery], liveness: Liveness
) -> tuple[LeftByOther, ...]:
    """Return the open attempts of other apps that have no worker alive, one item per app."""
    found = count_left_by_others(connection, app, queries, ())
    if not found:
        return ()
    alive = apps_with_workers(living_workers.read_workers(database, connection, liveness))
    return tuple(one for one in found if one.app not in alive)


def apps_with_workers(seen: Sequence[living_workers.WorkerSeen]) -> frozenset[str]:
    """Return the apps that have a worker alive, or may have one."""
    return frozenset(one.app for one in seen if one.app is not None and one.alive is not False)


def describe_unrelated(found: Sequence[LeftByOther]) -> str | None:
    """Return one line on the open attempts that do not concern this app; None if all of them concern it."""
    others = [f"{one.app} ({one.counts_in_words})" for one in found if not one.ours]
    return f"Other apps on this database of which no worker lives have open attempts: {', '.join(others)}." if others else None


def log_left_by_others(app: str, found: Sequence[LeftByOther]) -> None:
    """Log the open attempts that other apps left: a warning for each app whose attempts concern this app, a line at INFO for the rest."""
    for one in found:
        count = one.in_doubt + one.held
        if one.ours:
            log.warning("%s", one.message_for(app), extra={"event": "left_by_other_app", "other": one.app, "count": count, "ours": True})
        else:
            log.info("%s", describe_unrelated([one]), extra={"event": "left_by_other_app", "other": one.app, "count": count, "ours": False})

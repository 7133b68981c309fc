"""Open attempts of other apps on this database of which no worker lives: nobody settles them until one does. Reads alone.

An app whose name was changed in the code alone is another app to us, and what it had begun stays with the old name. An app that is stopped
on purpose looks the same. So what lies on tables of this app, or is of a reaction that this app declares too, is told with the cure, since
it keeps this app off these records; of others there is one quiet line.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, not_, or_, select

from groundstate.engine import living
from groundstate.engine.attempts import is_baseline
from groundstate.engine.question import Question
from groundstate.engine.wording import counted
from groundstate.rules.attempt import State
from groundstate.store.port import Database, Lives
from groundstate.store.tables import attempt

log = logging.getLogger("groundstate")


@dataclass(frozen=True)
class LeftByOther:
    """Of one app without a worker: how many of its calls are in doubt (or were begun by a worker that ended), and how many are held.

    ours: whether they concern this app: they are on tables of its reactions, or of a reaction of the same name. reactions: whose they are.
    """

    app: str
    in_doubt: int
    held: int
    ours: bool
    reactions: tuple[str, ...]

    @property
    def so_many(self) -> str:
        """Such as '2 in doubt, 1 held'."""
        said = [(self.in_doubt, "in doubt"), (self.held, "held")]
        return ", ".join(f"{count:,} {what}" for count, what in said if count)

    def words(self, app: str) -> str:
        """For people of this app, with what can be done."""
        old, new = shlex.quote(self.app), shlex.quote(app)
        return (
            f"{counted(self.in_doubt + self.held, 'attempt is', 'attempts are')} open of app {self.app!r} ({self.so_many}:"
            f" {', '.join(self.reactions)}) where this app works too, and no worker of it lives, so that nobody settles them."
            f" If this is that app under a new name: stop its workers, then `groundstate rename --whole-app {old} {new}`;"
            f" else start {self.app}"
        )


def left_by_others(connection: Connection, app: str, questions: Sequence[Question], alive: Collection[str]) -> tuple[LeftByOther, ...]:
    """What stands so. alive: apps of which a worker lives, or may."""
    open_ = and_(attempt.c.state.in_([State.BEGUN.value, State.DOUBT.value, State.HELD.value]), not_(is_baseline))
    named = or_(attempt.c.app < app, attempt.c.app > app)  # as ranges, so that the primary key's index leaves ours out
    tables = sorted({name for question in questions for name in question.spellings})
    on_ours = func.coalesce(attempt.c.blocks.in_(tables), False).label("on_ours")
    columns = (attempt.c.app, attempt.c.reaction, attempt.c.state, on_ours)
    told = select(*columns, func.count()).where(named, open_).group_by(*columns).order_by(*columns)
    names = {question.spec.name for question in questions}
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


def look(app: str, database: Database, connection: Connection, questions: Sequence[Question], lives: Lives) -> tuple[LeftByOther, ...]:
    """The same, where nobody has asked yet who lives: that is asked where anything is left."""
    found = left_by_others(connection, app, questions, ())
    if not found:
        return ()
    alive = alive_among(living.lives_of(database, connection, lives))
    return tuple(one for one in found if one.app not in alive)


def alive_among(seen: Sequence[living.LifeSeen]) -> frozenset[str]:
    """Apps of which a worker lives, or may."""
    return frozenset(one.app for one in seen if one.app is not None and one.alive is not False)


def quiet_words(found: Sequence[LeftByOther]) -> str | None:
    """One line on all that does not concern this app."""
    others = [f"{one.app} ({one.so_many})" for one in found if not one.ours]
    return f"Other apps on this database of which no worker lives have open attempts: {', '.join(others)}." if others else None


def say(app: str, found: Sequence[LeftByOther]) -> None:
    """Logs them when a worker starts: a warning for each app whose attempts concern this one, a quiet line for the others."""
    for one in found:
        count = one.in_doubt + one.held
        if one.ours:
            log.warning("%s", one.words(app), extra={"event": "left_by_other_app", "other": one.app, "count": count, "ours": True})
        else:
            log.info("%s", quiet_words([one]), extra={"event": "left_by_other_app", "other": one.app, "count": count, "ours": False})

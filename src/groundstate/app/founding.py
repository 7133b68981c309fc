"""Setting up an app's databases: our tables, what a person says where they were here before, and which reactions start on old rows.

Nothing is accepted anywhere before all of it may be; no worker runs here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from sqlalchemy import MetaData
from sqlalchemy.exc import DBAPIError

from groundstate.app.store import Store
from groundstate.engine import accepting, baselines, marks, registry, restore, schema, trouble, vanished
from groundstate.engine.life import Life
from groundstate.engine.question import Question
from groundstate.engine.registry import Newcomer
from groundstate.rules.acceptance import Acceptance
from groundstate.rules.reaction import ReactionSpec
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store import opening
from groundstate.store.port import Settings
from groundstate.values.errors import StateRefused

log = logging.getLogger("groundstate")
SAID_SO = "a person said so (init --after-restore)"


@dataclass(frozen=True)
class Place:
    """One database of the app, and what of the app is on it."""

    store: Store
    reactions: Sequence[ReactionSpec]
    schedules: Sequence[ScheduleSpec]


@dataclass(frozen=True)
class Wishes:
    """What a person said; see `App.init`."""

    tables: bool = False
    said: Acceptance = field(default_factory=Acceptance)
    baseline: Sequence[str] = ()
    after_restore: bool = False
    new_database: bool = False
    tell: Callable[[str, int], None] | None = None


@dataclass
class _Site:
    """A database that is open."""

    place: Place
    life: Life
    others: list[tuple[int, int]]  # of a new database: lives of another one that have a witness here, and how many calls each began
    questions: dict[str, Question] = field(default_factory=dict)
    unasked: dict[str, str] = field(default_factory=dict)  # reactions whose condition this database cannot ask, and why


def found(app: str, places: Sequence[Place], wishes: Wishes) -> list[str]:
    """Sets all of them up; returns what was created, of several databases each with its name.

    Raises:
        StoreRefused: tables of ours vanished here, and what that means was not said; or a database cannot keep the promises.
        StateRefused: reactions were accepted that would make calls for rows that are there, and what is known of those was not said; or,
            once all else was done, the database cannot ask a condition.
    """
    created: list[str] = []
    with ExitStack() as opened:
        sites = [opened.enter_context(_opened(app, place, wishes)) for place in places]
        for site in sites:
            new = _make_tables(site, wishes)
            created += new if len(sites) == 1 else [f"{site.place.store.label}: {name}" for name in new]
        _refuse_unsaid(sites, wishes)
        told: dict[str, int] = {}
        for site in sites:
            _start_reactions(site, wishes, told)
        for site in sites:
            _refuse_unasked(site)
    return created


def _refuse_unasked(site: _Site) -> None:
    if site.unasked:
        each = "; ".join(f"{name}: {words}" for name, words in site.unasked.items())
        raise StateRefused(f"{site.place.store.label}: the rest was done, and these are not started: {each}")


def _unprepared(settings: Settings) -> Settings:
    """Without prepared statements: its URL may lead through a pooler of which nobody has told yet, and where a worker's start is refused
    with the cure, `init` is not to fail by a statement that another session of the server has prepared.
    """
    if not settings.url.drivername.startswith("postgresql"):
        return settings
    return replace(settings, connect_args={"prepare_threshold": None, **settings.connect_args})


@contextmanager
def _opened(app: str, place: Place, wishes: Wishes) -> Iterator[_Site]:
    database, make_lives, witness = opening.open_store(_unprepared(place.store.settings()))
    try:
        if database.missing() is None:
            database.connect()
        traces = vanished.traces(database, witness)
        if traces and not (wishes.after_restore or wishes.new_database):
            vanished.refuse(traces, database, witness)
        declared = frozenset([*(spec.name for spec in place.reactions), *(spec.name for spec in place.schedules)])
        lives = make_lives()
        others = vanished.unknown_lives(database, witness) if wishes.new_database else []
        vanished.refuse_living(lives, [life for life, _ in others])
        yield _Site(place, Life(app, database, lives, witness, place.store.redact or str, declared=declared), others)
    finally:
        database.close()


def _make_tables(site: _Site, wishes: Wishes) -> list[str]:
    """Our tables, and what was said of those that vanished."""
    life, database = site.life, site.life.database
    database.connect()
    questions = {spec.name: Question(spec, database) for spec in site.place.reactions}
    if wishes.after_restore:
        restore.suspect_known(life)  # before tables are made: what is cut short here is not to look as if nothing had been
    users: Sequence[MetaData] = site.place.store.metadatas if wishes.tables else ()
    new = schema.create(database, *users)
    schema.check(database)
    site.questions = questions
    if wishes.after_restore:
        restore.went_back(life, list(questions.values()), SAID_SO)
    elif wishes.new_database:
        _erase(site)
        restore.remember_as_new(life)
    elif restore.remembered(life) is None:
        restore.remember(life)
    return new


def _erase(site: _Site) -> None:
    """Witnesses of another database, each told of."""
    witness = site.life.witness
    for one, count in site.others:
        if witness is not None:
            where = witness.place(one)
            witness.erase(one)
            words = "this is a new database, a person said: the witness %s of %d begun calls is erased"
            log.warning(words, where, count, extra={"event": "witness_erased", "life": f"{one:x}", "count": count})


def _newcomers(site: _Site, names: Callable[[str], bool]) -> tuple[list[Question], list[Newcomer], dict[str, registry.Known]]:
    with site.life.database.reading() as connection:
        seen = registry.known(connection, site.life.app)
        some = [one for name, one in site.questions.items() if names(name)]
        silent, loud = registry.newcomers(connection, some, seen, partial(_unasked, site))
    return silent, loud, seen


def _unasked(site: _Site, question: Question, error: DBAPIError, words: str) -> None:
    if trouble.no_table(error):
        raise error  # the app's own tables are still to be made
    site.unasked[question.spec.name] = words


def _refuse_unsaid(sites: Sequence[_Site], wishes: Wishes) -> None:
    """Before anything is accepted anywhere: of each reaction that would make calls it must be known what for."""
    asked: dict[str, list[str]] = {}
    for site in sites:
        accepted = [name for name in site.questions if wishes.said.covers(name) and name not in wishes.baseline]
        _, loud, _ = _newcomers(site, accepted.__contains__)
        for one in accepting.unsaid(loud, wishes.said):
            where = f"{site.place.store.label}: " if len(sites) > 1 else ""
            asked.setdefault(one.name, []).append(f"{where}{one.asks}")
    if asked:
        each = "\n".join(f"{name}: {words}" for name, some in asked.items() for words in some)
        raise StateRefused(f"nothing was accepted, since it has to be said what is known of the calls:\n{each}")


def _start_reactions(site: _Site, wishes: Wishes, told: dict[str, int]) -> None:
    life, before = site.life, dict(told)

    def tell(name: str, count: int) -> None:
        told[name] = before.get(name, 0) + count
        if wishes.tell is not None:
            wishes.tell(name, told[name])

    left_out = [question for name, question in site.questions.items() if name in wishes.baseline]
    for question in left_out:
        baselines.hold(life, question, tell=partial(tell, question.spec.name))
    registry.write(life, left_out)
    marks.baseline(life, [spec for spec in site.place.schedules if spec.name in wishes.baseline])
    silent, loud, seen = _newcomers(site, site.questions.__contains__)
    registry.write(life, silent)
    accepting.start(life, site.questions, loud, wishes.said, seen, tell=tell)

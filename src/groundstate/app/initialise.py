"""Sets up an app's databases for `App.init`: creates groundstate's tables, and starts reactions on rows that exist. Starts no worker.

Nothing is accepted on any database before everything is known to be acceptable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from sqlalchemy import MetaData

from groundstate.app.store import Store
from groundstate.engine.recover import acceptance, restore, vanished_tables
from groundstate.engine.rows import baselines, reaction_registry
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.rows.reaction_registry import Newcomer
from groundstate.engine.schedule import cursors
from groundstate.engine.sql import db_errors, schema
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.savepoint_query import why_unasked
from groundstate.rules.acceptance import Acceptance
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store import connect
from groundstate.store.port import Settings
from groundstate.values.errors import StateRefusedError

log = logging.getLogger("groundstate")
SAID_SO = "a person said so (init --after-restore)"


@dataclass(frozen=True)
class Place:
    """One database of the app, with the reactions and schedules on it."""

    store: Store
    reactions: Sequence[ReactionSpec]
    schedules: Sequence[ScheduleSpec]


@dataclass(frozen=True)
class InitOptions:
    """The arguments of `App.init`, which explains them."""

    tables: bool = False
    said: Acceptance = field(default_factory=Acceptance)
    baseline: Sequence[str] = ()
    after_restore: bool = False
    new_database: bool = False
    tell: Callable[[str, int], None] | None = None


@dataclass
class _Site:
    """A database that is open while it is set up."""

    place: Place
    incarnation: Incarnation
    others: list[tuple[int, int]]  # with `new_database`: another database's workers that left a witness file, and how many calls each began
    queries: dict[str, ConditionQuery] = field(default_factory=dict)
    unasked: dict[str, str] = field(default_factory=dict)  # reactions whose condition this database cannot evaluate, and why


def set_up_databases(app: str, places: Sequence[Place], wishes: InitOptions) -> list[str]:
    """Set up all databases. Return the names of what was created, each with its database's name if there are several.

    Raises:
        StoreRefusedError: groundstate's tables vanished here, and neither `after_restore` nor `new_database` was given; or a database
            cannot keep the promises.
        StateRefusedError: an accepted reaction would make calls for rows that exist, and nothing was said about these calls; or, once all
            else was done, a database cannot evaluate a condition.
    """
    created: list[str] = []
    with ExitStack() as opened:
        sites = [opened.enter_context(_opened(app, place, wishes)) for place in places]
        for site in sites:
            new = _make_tables(site, wishes)
            created += new if len(sites) == 1 else [f"{site.place.store.label}: {name}" for name in new]
        _refuse_unexplained_calls(sites, wishes)
        told: dict[str, int] = {}
        for site in sites:
            _start_reactions(site, wishes, told)
        for site in sites:
            _refuse_unasked(site)
    return created


def _refuse_unasked(site: _Site) -> None:
    if site.unasked:
        each = "; ".join(f"{name}: {words}" for name, words in site.unasked.items())
        raise StateRefusedError(f"{site.place.store.label}: the rest was done, and these are not started: {each}")


def _unprepared(settings: Settings) -> Settings:
    """Return the settings without prepared statements.

    The URL may lead through a pooler that was not declared. A worker's start refuses that with the cure; `init` must not fail there because
    another session of the server prepared a statement.
    """
    if not settings.url.drivername.startswith("postgresql"):
        return settings
    return replace(settings, connect_args={"prepare_threshold": None, **settings.connect_args})


@contextmanager
def _opened(app: str, place: Place, wishes: InitOptions) -> Iterator[_Site]:
    database, make_liveness, witness = connect.open_store(_unprepared(place.store.settings()))
    try:
        if database.missing() is None:
            database.connect()
        traces = vanished_tables.traces(database, witness)
        if traces and not (wishes.after_restore or wishes.new_database):
            vanished_tables.refuse(traces, database, witness)
        declared = frozenset([*(spec.name for spec in place.reactions), *(spec.name for spec in place.schedules)])
        liveness = make_liveness()
        others = vanished_tables.unknown_lives(database, witness) if wishes.new_database else []
        vanished_tables.refuse_living(liveness, [incarnation for incarnation, _ in others])
        yield _Site(place, Incarnation(app, database, liveness, witness, place.store.redact or str, declared=declared), others)
    finally:
        database.close()


def _make_tables(site: _Site, wishes: InitOptions) -> list[str]:
    """Create groundstate's tables, and do what the person said about tables that vanished. Return the names of the new tables."""
    incarnation, database = site.incarnation, site.incarnation.database
    database.connect()
    queries = {spec.name: ConditionQuery(spec, database) for spec in site.place.reactions}
    if wishes.after_restore:
        restore.suspect_known(incarnation)  # first, so that reactions are suspect already if init is cut short later
    users: Sequence[MetaData] = site.place.store.metadatas if wishes.tables else ()
    new = schema.create(database, *users)
    schema.check(database)
    site.queries = queries
    if wishes.after_restore:
        restore.went_back(incarnation, list(queries.values()), SAID_SO)
    elif wishes.new_database:
        _erase(site)
        restore.remember_as_new(incarnation)
    elif restore.remembered(incarnation) is None:
        restore.remember(incarnation)
    return new


def _erase(site: _Site) -> None:
    """Erase the witness files of another database, and log each."""
    witness = site.incarnation.witness
    for one, count in site.others:
        if witness is not None:
            where = witness.place(one)
            witness.erase(one)
            words = "this is a new database, a person said: the witness %s of %d begun calls is erased"
            log.warning(words, where, count, extra={"event": "witness_erased", "worker": f"{one:x}", "count": count})


def _newcomers(
    site: _Site, names: Callable[[str], bool]
) -> tuple[list[ConditionQuery], list[Newcomer], dict[str, reaction_registry.Known]]:
    with site.incarnation.database.reading() as connection:
        seen = reaction_registry.known(connection, site.incarnation.app)
        some = [one for name, one in site.queries.items() if names(name)]
        silent, loud = reaction_registry.newcomers(connection, some, seen, partial(_unasked, site))
    return silent, loud, seen


def _unasked(site: _Site, query: ConditionQuery, error: Exception, words: str) -> None:
    if db_errors.no_table(error):
        raise error  # the app's own tables do not exist yet
    site.unasked[query.spec.name] = words


def _refuse_unexplained_calls(sites: Sequence[_Site], wishes: InitOptions) -> None:
    """Raise StateRefusedError if an accepted reaction would make calls for rows that exist, and nothing was said about these calls.

    This is checked for all databases before anything is accepted on one.
    """
    asked: dict[str, list[str]] = {}
    for site in sites:
        accepted = [name for name in site.queries if wishes.said.covers(name) and name not in wishes.baseline]
        _, loud, _ = _newcomers(site, accepted.__contains__)
        for one in acceptance.unsaid(loud, wishes.said):
            where = f"{site.place.store.label}: " if len(sites) > 1 else ""
            asked.setdefault(one.name, []).append(f"{where}{one.asks}")
    if asked:
        each = "\n".join(f"{name}: {words}" for name, some in asked.items() for words in some)
        raise StateRefusedError(f"nothing was accepted, since it has to be said what is known of the calls:\n{each}")


def _start_reactions(site: _Site, wishes: InitOptions, told: dict[str, int]) -> None:
    incarnation, before = site.incarnation, dict(told)

    def tell(name: str, count: int) -> None:
        told[name] = before.get(name, 0) + count
        if wishes.tell is not None:
            wishes.tell(name, told[name])

    left_out = [query for name, query in site.queries.items() if name in wishes.baseline]
    for query in list(left_out):
        try:
            baselines.hold(incarnation, query, tell=partial(tell, query.spec.name))
        except Exception as error:
            if not db_errors.unmade(error):
                raise
            site.unasked[query.spec.name] = why_unasked(error)
            left_out.remove(query)
    reaction_registry.write(incarnation, left_out)
    cursors.baseline(incarnation, [spec for spec in site.place.schedules if spec.name in wishes.baseline])
    silent, loud, seen = _newcomers(site, site.queries.__contains__)
    reaction_registry.write(incarnation, silent)
    acceptance.start(incarnation, site.queries, loud, wishes.said, seen, tell=tell)

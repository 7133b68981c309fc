"""Sets up an app's databases for `App.init`: creates groundstate's tables, and starts reactions on rows that exist. Starts no worker.

All databases are checked before any reaction is accepted (started although rows match already) on the first database.
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
from groundstate.engine.rows.reaction_registry import UnacceptedReaction
from groundstate.engine.schedule import cursors
from groundstate.engine.sql import db_errors, schema
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.savepoint_query import why_condition_not_evaluable
from groundstate.rules.acceptance import Acceptance
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store import connect
from groundstate.store.port import StoreSettings
from groundstate.values.errors import StateRefusedError

log = logging.getLogger("groundstate")
SAID_SO = "a person said so (init --after-restore)"


@dataclass(frozen=True)
class DatabaseToSetUp:
    """One database of the app, with the reactions and schedules on it."""

    store: Store
    reactions: Sequence[ReactionSpec]
    schedules: Sequence[ScheduleSpec]


@dataclass(frozen=True)
class InitOptions:
    """The arguments of `App.init`; its docstring explains each."""

    tables: bool = False
    said: Acceptance = field(default_factory=Acceptance)
    baseline: Sequence[str] = ()
    after_restore: bool = False
    new_database: bool = False
    report_progress: Callable[[str, int], None] | None = None


@dataclass
class _OpenDatabase:
    """A database that is open while it is set up."""

    place: DatabaseToSetUp
    incarnation: Incarnation
    others: list[tuple[int, int]]  # (worker, number of calls that it has begun): read from another database's witness files
    queries: dict[str, ConditionQuery] = field(default_factory=dict)
    unevaluated: dict[str, str] = field(default_factory=dict)  # by reaction name: why this database cannot evaluate the condition


def set_up_databases(app: str, places: Sequence[DatabaseToSetUp], options: InitOptions) -> list[str]:
    """Set up all databases. Return the names of the tables that were created. If there are several databases, each name is preceded by
    its database's label.

    Raises:
        StoreRefusedError: groundstate's tables vanished, and neither `after_restore` nor `new_database` was given; or a database cannot
            keep groundstate's promises.
        StateRefusedError: an accepted reaction would make calls for rows that exist, and `options` do not say whether these calls were made
            before. Or a database cannot evaluate a condition; in this case all else is set up before the error is raised.
    """
    created: list[str] = []
    with ExitStack() as opened:
        sites = [opened.enter_context(_open_database(app, place, options)) for place in places]
        for site in sites:
            new = _create_tables(site, options)
            created += new if len(sites) == 1 else [f"{site.place.store.label}: {name}" for name in new]
        _refuse_unexplained_calls(sites, options)
        told: dict[str, int] = {}
        for site in sites:
            _start_reactions(site, options, told)
        for site in sites:
            _refuse_if_condition_not_evaluable(site)
    return created


def _refuse_if_condition_not_evaluable(site: _OpenDatabase) -> None:
    if site.unevaluated:
        each = "; ".join(f"{name}: {words}" for name, words in site.unevaluated.items())
        raise StateRefusedError(f"{site.place.store.label}: all else was done, but these reactions are not started: {each}")


def _without_prepared_statements(settings: StoreSettings) -> StoreSettings:
    """Return the settings of a database, without prepared statements if it is a PostgreSQL database.

    The URL may lead through a pooler that was not declared. Behind a pooler, a prepared statement of another session would make `init`
    fail. A worker does not need this: it detects such a pooler when it starts, and its message names the cure.
    """
    if not settings.url.drivername.startswith("postgresql"):
        return settings
    return replace(settings, connect_args={"prepare_threshold": None, **settings.connect_args})


@contextmanager
def _open_database(app: str, place: DatabaseToSetUp, options: InitOptions) -> Iterator[_OpenDatabase]:
    database, make_liveness, witness = connect.open_store(_without_prepared_statements(place.store.settings()))
    try:
        if database.missing_file() is None:
            database.connect()
        traces = vanished_tables.find_traces(database, witness)
        if traces and not (options.after_restore or options.new_database):
            vanished_tables.refuse_creation(traces, database, witness)
        declared = frozenset([*(spec.name for spec in place.reactions), *(spec.name for spec in place.schedules)])
        liveness = make_liveness()
        others = vanished_tables.find_unknown_incarnations(database, witness) if options.new_database else []
        vanished_tables.refuse_if_workers_run(liveness, [incarnation for incarnation, _ in others])
        yield _OpenDatabase(place, Incarnation(app, database, liveness, witness, place.store.redact or str, declared=declared), others)
    finally:
        database.close()


def _create_tables(site: _OpenDatabase, options: InitOptions) -> list[str]:
    """Create missing tables, and do what `after_restore` or `new_database` asks for. Return the names of the tables that were created."""
    incarnation, database = site.incarnation, site.incarnation.database
    database.connect()
    queries = {spec.name: ConditionQuery(spec, database) for spec in site.place.reactions}
    if options.after_restore:
        # This is done first, so that calls of these reactions begin in doubt even if `init` fails later.
        restore.mark_known_reactions_suspect(incarnation)
    users: Sequence[MetaData] = site.place.store.metadatas if options.tables else ()
    new = schema.create_tables(database, *users)
    schema.check_tables(database)
    site.queries = queries
    if options.after_restore:
        restore.put_lost_calls_in_doubt(incarnation, list(queries.values()), SAID_SO)
    elif options.new_database:
        _erase_witness_files(site)
        restore.record_as_new_store(incarnation)
    elif restore.recorded_identity(incarnation) is None:
        restore.record_identity(incarnation)
    return new


def _erase_witness_files(site: _OpenDatabase) -> None:
    """Erase the witness files (counts of begun calls) that belong to another database, and log each erased file."""
    witness = site.incarnation.witness
    for one, count in site.others:
        if witness is not None:
            where = witness.path_of(one)
            witness.delete_count_of(one)
            words = "the witness file %s of %d begun calls is erased, since a person said that this database is new"
            log.warning(words, where, count, extra={"event": "witness_erased", "worker": f"{one:x}", "count": count})


def _find_unaccepted_reactions(
    site: _OpenDatabase, names: Callable[[str], bool]
) -> tuple[list[ConditionQuery], list[UnacceptedReaction], dict[str, reaction_registry.Known]]:
    with site.incarnation.database.reading() as connection:
        seen = reaction_registry.read_known_reactions(connection, site.incarnation.app)
        some = [one for name, one in site.queries.items() if names(name)]
        silent, loud = reaction_registry.split_newcomers(connection, some, seen, partial(_note_condition_not_evaluable, site))
    return silent, loud, seen


def _note_condition_not_evaluable(site: _OpenDatabase, query: ConditionQuery, error: Exception, words: str) -> None:
    if db_errors.is_missing_table(error):
        raise error  # the app's own tables do not exist yet
    site.unevaluated[query.spec.name] = words


def _refuse_unexplained_calls(sites: Sequence[_OpenDatabase], options: InitOptions) -> None:
    """Raise StateRefusedError if an accepted reaction would make calls for rows that exist, and `options` do not say whether these calls
    were made before.

    Call it once for all databases, before a reaction is accepted on any of them.
    """
    asked: dict[str, list[str]] = {}
    for site in sites:
        accepted = [name for name in site.queries if options.said.is_accepted(name) and name not in options.baseline]
        _, loud, _ = _find_unaccepted_reactions(site, accepted.__contains__)
        for one in acceptance.newcomers_that_cannot_start(loud, options.said):
            where = f"{site.place.store.label}: " if len(sites) > 1 else ""
            asked.setdefault(one.name, []).append(f"{where}{one.question_about_calls}")
    if asked:
        each = "\n".join(f"{name}: {words}" for name, some in asked.items() for words in some)
        raise StateRefusedError(f"nothing was accepted: first say what is known of these calls:\n{each}")


def _start_reactions(site: _OpenDatabase, options: InitOptions, told: dict[str, int]) -> None:
    incarnation, before = site.incarnation, dict(told)

    def report_progress(name: str, count: int) -> None:
        told[name] = before.get(name, 0) + count
        if options.report_progress is not None:
            options.report_progress(name, told[name])

    left_out = [query for name, query in site.queries.items() if name in options.baseline]
    for query in list(left_out):
        try:
            baselines.write_baselines(incarnation, query, tell=partial(report_progress, query.spec.name))
        except Exception as error:
            if not db_errors.is_raised_before_sending(error):
                raise
            site.unevaluated[query.spec.name] = why_condition_not_evaluable(error)
            left_out.remove(query)
    reaction_registry.accept_reactions(incarnation, left_out)
    cursors.reset_cursors_to_now(incarnation, [spec for spec in site.place.schedules if spec.name in options.baseline])
    silent, loud, seen = _find_unaccepted_reactions(site, site.queries.__contains__)
    reaction_registry.accept_reactions(incarnation, silent)
    acceptance.start_accepted(incarnation, site.queries, loud, options.said, seen, tell=report_progress)

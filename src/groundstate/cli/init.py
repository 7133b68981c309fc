"""`groundstate init`: creates groundstate's tables, and starts reactions on rows that exist."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from groundstate.app.app import App
from groundstate.app.declared import databases_of, reactions_of
from groundstate.cli.common import (
    REFUSED,
    AppOption,
    DebugOption,
    JsonOption,
    console,
    escape_for_terminal,
    find_app,
    find_conflict_with_admitted,
    open_store_read_only,
    print_json,
)
from groundstate.engine.operate.shard_check import AdmittedDatabases
from groundstate.engine.rows import reaction_registry
from groundstate.engine.rows.attempt_text import count_with_noun
from groundstate.engine.rows.reaction_registry import UnacceptedReaction
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.acceptance import parse_acceptance


def init(  # noqa: PLR0913  # each parameter is an option of the command
    *,
    app: AppOption = None,
    tables: Annotated[
        bool, typer.Option("--tables", help="Also create missing tables of the app: for a first try; use migrations later.")
    ] = False,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=call|=doubt]",
            help="Start this reaction on rows that match already; 'all': every reaction. If it would make calls for them: NAME=call if"
            " these calls were surely never made, NAME=doubt if they may have been. Repeatable.",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Leave out the rows that match now, and start with new rows; a schedule starts now. Repeatable."),
    ] = None,
    after_restore: Annotated[
        bool,
        typer.Option(
            "--after-restore",
            help="groundstate's tables were dropped, or a backup was restored: calls that would be made are in doubt.",
        ),
    ] = False,
    new_database: Annotated[
        bool,
        typer.Option("--new-database", help="This database is new: erase witness files of begun calls, which belong to another database."),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - `common.exit_with_code_on_error` reads the option
) -> None:
    """Create groundstate's four tables where they are missing. You can run this again at any time."""
    found = find_app(app)
    said = parse_acceptance(accept or [], {**found.reactions, **found.schedules})
    accepted = sorted(found.reactions) if said.all else list(said.named)
    setting_up = partial(found.init, tables=tables, accept=accept or [], after_restore=after_restore, new_database=new_database)
    created, counts = _set_up_with_progress(setting_up, baseline or [], quiet=as_json)
    held = {name: counts.get(name, 0) for name in baseline or []}
    doubts = {name: count for name, count in counts.items() if name not in held}
    left, refused = _find_reactions_not_started(found)
    if as_json:
        content = {"app": found.name, "created": created, "accepted": accepted, "in_doubt": doubts}
        print_json("init", content | {"baseline": held, "not_started": left, "refused": refused})
        return
    out = console()
    out.print(
        f"Created {', '.join(escape_for_terminal(one) for one in created)}." if created else "All tables are there already.", soft_wrap=True
    )
    for name, count in held.items():
        if name in found.schedules:
            out.print(f"{escape_for_terminal(name)} starts with now: ticks before that are not carried out.", soft_wrap=True)
        else:
            out.print(f"{escape_for_terminal(name)} starts with new rows; {count:,} that match now are left as they are.", soft_wrap=True)
    if accepted:
        named = "every reaction" if said.all else ", ".join(escape_for_terminal(name) for name in accepted)
        out.print(f"Started on the rows that are there: {named}.", soft_wrap=True)
    for name, count in doubts.items():
        which = count_with_noun(count, "row that matches now is", "rows that match now are")
        out.print(f"{escape_for_terminal(name)}: {which} in doubt (`groundstate pending`).", soft_wrap=True)
    if after_restore:
        then = "see `groundstate pending`, and say `groundstate trust` once nothing is in doubt any more"
        out.print(
            f"Rows for which a call would be made are in doubt, and so is each row that is taken from now on: {then}.", soft_wrap=True
        )
    for one in left:
        out.print(Text(escape_for_terminal(one.message), style="yellow"), soft_wrap=True)
    for why in refused:
        out.print(Text.assemble((REFUSED, "red"), escape_for_terminal(why)), soft_wrap=True)


def _set_up_with_progress(setting_up: Callable[..., list[str]], baseline: list[str], *, quiet: bool) -> tuple[list[str], dict[str, int]]:
    """Set up the databases, with a progress display. Return a pair: the names of what was created, and a dict from the name of a reaction
    to the number of attempts that were written for it, as a baseline or in doubt.
    """
    counts: dict[str, int] = {}
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} rows"), TimeElapsedColumn())
    progress = Progress(*columns, console=console(stderr=True), transient=True, disable=quiet)
    tasks: dict[str, TaskID] = {}

    def show_progress(name: str, count: int) -> None:
        counts[name] = count
        if not tasks:
            progress.start()
        if name not in tasks:
            tasks[name] = progress.add_task(f"{'baseline' if name in baseline else 'doubts'} of {escape_for_terminal(name)}", total=None)
        progress.update(tasks[name], completed=count)

    try:
        return setting_up(baseline=baseline, progress=show_progress), counts
    finally:
        if tasks:
            progress.stop()


def _find_reactions_not_started(app: App) -> tuple[list[UnacceptedReaction], list[str]]:
    """Return a pair: the reactions that a worker would not start, or would start only in part; and sentences that say why the start of a
    worker would be refused.
    """
    left: list[UnacceptedReaction] = []
    admitted, refused = AdmittedDatabases(), list[str]()
    for store in databases_of(app):
        with open_store_read_only(store) as (database, _):
            with database.reading() as connection:
                queries = [ConditionQuery(spec, database) for spec in reactions_of(app, store)]
                known = reaction_registry.read_known_reactions(connection, app.name)
                # `App.init` has refused conditions that cannot be evaluated, so the callback for such conditions does nothing.
                left += reaction_registry.split_newcomers(connection, queries, known, lambda *_: None)[1]
            why = find_conflict_with_admitted(app, store, database, admitted)
            refused += [] if why is None else [why]
    return left, refused
